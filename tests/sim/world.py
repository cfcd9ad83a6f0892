"""A world in which everything that happens is decided by a seed: clock, randomness, and no threads."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from snapfs.world import World

START_NS = 1_700_000_000_000_000_000


class SimWorld(World):
    """Time stands still unless a test moves it (`advance`, `jump`), or trio does (`sleep`, with a mock
    clock)."""

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        self._random = random.Random(seed)
        self._elapsed = 0.0
        self._jumped_ns = 0

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self._elapsed += seconds

    def jump(self, seconds: float) -> None:
        """Set the wall clock forward or back; nothing has passed."""
        self._jumped_ns += int(seconds * 1e9)

    def time_ns(self) -> int:
        # A nanosecond a call: times of different things differ, as they do on a real machine.
        self._jumped_ns += 1
        return START_NS + self._jumped_ns + int(self.monotonic() * 1e9)

    def monotonic(self) -> float:
        import trio

        try:
            return self._elapsed + trio.current_time()
        except RuntimeError:
            return self._elapsed

    def random_bytes(self, count: int) -> bytes:
        return self._random.randbytes(count)

    async def run_in_thread(self, function: Callable[..., Any], *args: Any) -> Any:
        """Run it here and now: a worker thread that is always just in time."""
        await self.checkpoint()
        return function(*args)
