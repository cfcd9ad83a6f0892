"""Tool: drill: what a drill is. Pure."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from tools.drill.lab import Lab


@dataclass(frozen=True, slots=True)
class Drill:
    """One accident. `story`: what happened, and where; `fault`: what the drill does; `guards`: what must
    stop it, by name; `play`: does it, and raises when it does not end as it must."""

    name: str
    story: tuple[str, str]
    fault: str
    guards: tuple[str, ...]
    play: Callable[[Lab], Awaitable[None]]
