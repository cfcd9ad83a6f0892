"""A world in which everything that happens is decided by a seed: clock, randomness, and no threads."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
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
        self._booted_at_least = 1000.0
        self.processes: list[tuple[tuple[str, ...], dict[str, str]]] = []
        self.fail_processes = False

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

    def boottime(self) -> float:
        return self._booted_at_least + self.monotonic()

    def restart_machine(self) -> None:
        """The clock since the start of the machine begins again."""
        self._booted_at_least = -self.monotonic()

    def suspend(self, seconds: float) -> None:
        """The machine sleeps: the wall clock and the boot clock go on, the monotonic clock stands still."""
        self._jumped_ns += int(seconds * 1e9)
        self._booted_at_least += seconds

    def start_process(self, argv: Sequence[str], environment: Mapping[str, str]) -> None:
        if self.fail_processes:
            raise FileNotFoundError(2, 'No such file or directory', argv[0])
        self.processes.append((tuple(argv), dict(environment)))

    def random_bytes(self, count: int) -> bytes:
        return self._random.randbytes(count)

    async def run_in_thread(self, function: Callable[..., Any], *args: Any) -> Any:
        """Run it here and now: a worker thread that is always just in time."""
        await self.checkpoint()
        return function(*args)
