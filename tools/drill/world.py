"""Tool: world: a clock that a drill moves, and a disk on which a process is killed between two steps."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar, TypeVarTuple

from snapfs.store.durable import Buffer, Disk
from snapfs.world import World

Ts = TypeVarTuple('Ts')
T = TypeVar('T')

START_NS = 1_314_000_000_000_000_000  # August 2011
SECOND_NS = 1_000_000_000
DAY = 86_400.0


class DrillWorld(World):
    """Time stands still unless a drill moves it. Threads are work done here and now; before each step of the
    collector `on_step(its name)` is called, on the event loop."""

    def __init__(self, seed: int = 2011) -> None:
        self._random = random.Random(seed)
        self._elapsed = 1000.0
        self._wall_ns = START_NS
        self._asleep = 0.0
        self.on_step: Callable[[str], Awaitable[None]] | None = None
        self.processes: list[tuple[str, ...]] = []

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self._elapsed += seconds
        self._wall_ns += int(seconds * SECOND_NS)

    def jump(self, seconds: float) -> None:
        """Set the wall clock; nothing has passed."""
        self._wall_ns += int(seconds * SECOND_NS)

    def suspend(self, seconds: float) -> None:
        """The machine sleeps: wall clock and boot clock go on, the monotonic clock stands still."""
        self.jump(seconds)
        self._asleep += seconds

    def time_ns(self) -> int:
        self._wall_ns += 1  # times of different things differ
        return self._wall_ns

    def monotonic(self) -> float:
        return self._elapsed

    def boottime(self) -> float:
        return self._elapsed + self._asleep

    def start_process(self, argv: Sequence[str], environment: Mapping[str, str]) -> None:
        self.processes.append(tuple(argv))

    def random_bytes(self, count: int) -> bytes:
        return self._random.randbytes(count)

    async def run_in_thread(self, function: Callable[[*Ts], T], *args: *Ts) -> T:
        await self.checkpoint()
        step = _step_name(function)
        if step and self.on_step is not None:
            await self.on_step(step)
        return function(*args)

    async def sleep(self, seconds: float) -> None:
        self.advance(seconds)
        await self.checkpoint()


def _step_name(function: Callable[..., object]) -> str:
    """Return what a step of the collector is called; '' for what is none."""
    if function is next:
        return 'slice'
    owner, _, name = getattr(function, '__qualname__', '').rpartition('.')
    return name if owner == 'Collector' else ''


class Killed(BaseException):
    """The process was killed here: nothing of it runs any more."""


class KillDisk(Disk):
    """A disk that counts its steps (writes, syncs, names made and removed, transactions of the catalog) and
    kills the process before step `kill_at`; a transaction is then complete. What was written stays, as it
    does when a process dies and the machine does not."""

    def __init__(self, kill_at: int | None = None, really: bool = False) -> None:
        super().__init__()
        self.kill_at = kill_at
        self.steps = 0
        self.dead = False
        self._really = really

    def _step(self) -> None:
        if self.dead:
            raise Killed
        self.steps += 1
        if self.steps == self.kill_at:
            if self._really:
                os.kill(os.getpid(), signal.SIGKILL)
            self.dead = True
            self.latched = 'killed'  # whoever still runs, a `finally` perhaps, writes nothing
            raise Killed

    def database_committed(self, connection: sqlite3.Connection) -> None:
        self._step()

    def _sys_pwritev(self, fd: int, buffers: list[Buffer], offset: int) -> int:
        self._step()
        return super()._sys_pwritev(fd, buffers, offset)

    def _sys_ftruncate(self, fd: int, size: int) -> None:
        self._step()
        super()._sys_ftruncate(fd, size)

    def _sys_fdatasync(self, fd: int) -> None:
        self._step()
        super()._sys_fdatasync(fd)

    def _sys_rename(self, old: Path, new: Path) -> None:
        self._step()
        super()._sys_rename(old, new)

    def _sys_unlink(self, path: Path) -> None:
        self._step()
        super()._sys_unlink(path)

    def _sys_mkdir(self, path: Path) -> None:
        self._step()
        super()._sys_mkdir(path)

    def _sys_fsync_directory(self, path: Path) -> None:
        self._step()
        super()._sys_fsync_directory(path)
