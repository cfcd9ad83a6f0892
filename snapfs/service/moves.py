"""L6 moves: what the collector has in hand: what moves now, and plans that wait. Event loop only."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio

from snapfs.collect.collector import Chosen
from snapfs.collect.plan import Plan
from snapfs.store.horizon import PutRecord


@dataclass(slots=True)
class Waiting:
    """A plan above its limits: it waits for a person, and the puts since its horizon are noted meanwhile."""

    plan: Plan
    chosen: Chosen
    record: PutRecord
    reasons: tuple[str, ...]


@dataclass(slots=True)
class Move:
    """What moves now. Cancelling `scope` ends it; `done` is set when it has ended."""

    what: str
    requests: frozenset[int]
    batch: int | None = None
    stage: str = ''
    progress: tuple[int, int] = (0, 0)
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    done: trio.Event = field(default_factory=trio.Event)


@asynccontextmanager
async def held(lock: trio.Lock) -> AsyncIterator[None]:
    """Hold a lock that the same task may hold already."""
    if lock.statistics().owner is trio.lowlevel.current_task():
        yield
        return
    async with lock:
        yield
