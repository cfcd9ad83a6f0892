"""The small world that the battery plays in: limits, the order of tasks, a clock that stands still."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from trio._core import _run as scheduler

from snapfs import limits
from snapfs.store import horizon
from snapfs.tree import apply
from tests.sim.world import SimWorld

SMALL = {
    'JOURNAL_BYTES': 2 * limits.MIB,
    'JOURNAL_INLINE_BYTES_MAX': 0,
    'RESERVE_BYTES': 64 * limits.KIB,
    'PUT_RECORD_BITS': 20,
    'QUARANTINE_SLICE_ROWS': 7,
    'BATCH_SLICE_ROWS_MAX': 9,
    'CANARY_SLICE_PART': 4,
    'INSERT_ROWS_MAX': 5,
}
NODE_BYTES = 700


class PowerCut(BaseException):
    """The process ends here."""


class Unexpected(AssertionError):
    """The battery expected something else."""


def expect(condition: object, what: str) -> None:
    """Raise Unexpected unless the condition holds."""
    if not condition:
        raise Unexpected(what)


@contextmanager
def small() -> Iterator[None]:
    """Everything small and decided: limits, nodes, and which task runs next."""
    before = {name: getattr(limits, name) for name in SMALL}
    shift_before = horizon._SHIFT
    horizon._SHIFT = 64 - SMALL['PUT_RECORD_BITS']
    bytes_before = apply.__kwdefaults__['target_bytes']
    steady = scheduler._ALLOW_DETERMINISTIC_SCHEDULING
    for name, value in SMALL.items():
        setattr(limits, name, value)
    apply.__kwdefaults__['target_bytes'] = NODE_BYTES
    scheduler._ALLOW_DETERMINISTIC_SCHEDULING = True
    scheduler._r.seed(1)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(limits, name, value)
        horizon._SHIFT = shift_before
        apply.__kwdefaults__['target_bytes'] = bytes_before
        scheduler._ALLOW_DETERMINISTIC_SCHEDULING = steady


class StepWorld(SimWorld):
    """Time stands still; something can be done before each step of the collector."""

    def __init__(self) -> None:
        super().__init__(1)
        self.step: Callable[[str], Any] | None = None
        self.wanted: frozenset[str] = frozenset()  # before which functions, by name

    def monotonic(self) -> float:
        return self._elapsed

    def random_again(self) -> None:
        """Whatever was drawn before, other numbers come now."""
        self._random.seed('aftermath')

    async def sleep(self, seconds: float) -> None:
        self.advance(seconds)
        await self.checkpoint()

    async def run_in_thread(self, function: Callable[..., Any], *args: Any) -> Any:
        await self.checkpoint()
        name = getattr(function, '__name__', '')
        if self.step is not None and name in self.wanted:
            await self.step(name)
        return function(*args)


def content(name: str, size: int = 300) -> bytes:
    """Bytes that nothing else has."""
    return random.Random(name).randbytes(size)
