"""A world for the collector: time stands still, and every hand-over to a thread is a moment at which others
may run, something may be done, or the process may end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.sim.disk import PowerCut
from tests.sim.world import SimWorld


class StillWorld(SimWorld):
    """Time passes only where the test says so, and where somebody sleeps; which takes no time at all.
    `kill_at` counts the hand-overs to threads: at that one, the process is killed."""

    hand_overs = 0
    kill_at: int | None = None
    passed = 0.0  # really; what the clocks say is another matter

    def __init__(self, seed: int = 0) -> None:
        super().__init__(seed)
        self._at: dict[int, Callable[[], None]] = {}

    def at(self, hand_over: int, what: Callable[[], None]) -> None:
        """Do something at a hand-over, before its function runs."""
        self._at[hand_over] = what

    def monotonic(self) -> float:
        return self._elapsed

    def advance(self, seconds: float) -> None:
        super().advance(seconds)
        self.passed += seconds

    def suspend(self, seconds: float) -> None:
        super().suspend(seconds)
        self.passed += seconds

    async def sleep(self, seconds: float) -> None:
        self.advance(seconds)
        await self.checkpoint()

    async def run_in_thread(self, function: Callable[..., Any], *args: Any) -> Any:
        await self.checkpoint()
        self.hand_overs += 1
        if self.kill_at is not None and self.hand_overs >= self.kill_at:
            raise PowerCut('killed')
        what = self._at.pop(self.hand_overs, None)
        if what is not None:
            what()
            await self.checkpoint()
        done = function(*args)
        await self.checkpoint()
        return done
