"""L0 world: clock, randomness and threads. All nondeterminism is here, so that a simulation can replay.

Trio is imported on first use: the command line's `--help` must not pay for it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar, TypeVarTuple

Ts = TypeVarTuple('Ts')
T = TypeVar('T')


class World:
    """The real world; a simulation subclasses it. Any thread, except for the async methods."""

    def time_ns(self) -> int:
        """Return wall-clock time in nanoseconds since 1970. May jump."""
        return time.time_ns()

    def monotonic(self) -> float:
        """Return seconds of a clock that never jumps."""
        return time.monotonic()

    def boottime(self) -> float:
        """Return seconds since the machine was started, suspends included. Never jumps while it runs."""
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    def start_process(self, argv: Sequence[str], environment: Mapping[str, str]) -> None:
        """Start a program without a shell, with nothing to read, and do not wait for it. OSError."""
        import subprocess  # late: the command line's --help must not pay for it

        subprocess.Popen(
            list(argv),
            env=dict(environment),
            cwd='/',
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def random_bytes(self, count: int) -> bytes:
        """Return `count` unpredictable bytes."""
        return os.urandom(count)

    async def run_in_thread(self, function: Callable[[*Ts], T], *args: *Ts) -> T:
        """Run a blocking function of frozen values in a worker thread. Not cancelled half way."""
        import trio

        return await trio.to_thread.run_sync(function, *args)

    def pause(self, seconds: float) -> None:
        """Block this thread for `seconds`. Only in processes of their own."""
        time.sleep(seconds)

    async def sleep(self, seconds: float) -> None:
        """Let other tasks run for `seconds`."""
        import trio

        await trio.sleep(seconds)

    async def checkpoint(self) -> None:
        """Let other tasks run once."""
        import trio

        await trio.lowlevel.checkpoint()
