"""L2 lock: one process owns a store. Blocking; one thread.

The lock is a flock on STORE/lock. The kernel drops it when its holder dies, however that happens, so a dead
holder's lock is no obstacle and there is nothing to clean up. The file's text names the holder for the
message that the second one gets; it is information only and proves nothing. The file is never unlinked: that
would be a race.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from snapfs import limits
from snapfs.errors import Held, Refused, Unavailable
from snapfs.store.durable import Disk
from snapfs.world import World


@dataclass(frozen=True, slots=True)
class Holder:
    """Who has the store. `mountpoint` is empty when it is not mounted."""

    pid: int
    host: str
    since_ns: int
    mountpoint: str

    def __str__(self) -> str:
        where = f', mounted at {self.mountpoint}' if self.mountpoint else ''
        try:
            since = time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(self.since_ns / 1e9))
        except (OverflowError, ValueError, OSError):  # the file may say anything
            since = 'a time that is none'
        return f'process {self.pid} on {self.host} since {since}{where}'


class StoreLock:
    """The lock of one store. `acquire`, then `release`; a fork keeps it as long as one process has it
    open."""

    def __init__(self, disk: Disk, path: Path, world: World) -> None:
        self._disk = disk
        self._path = path
        self._world = world
        self._fd = -1
        self._told = True  # the file says who holds the lock: not where it cannot be written

    @property
    def held(self) -> bool:
        """True between `acquire` and `release`."""
        return self._fd >= 0

    def acquire(self, wait_seconds: float = 0.0, mountpoint: str = '') -> None:
        """Take the lock; wait up to `wait_seconds` for a holder to leave, then Unavailable, naming the
        holder."""
        assert not self.held
        fd = self._open()
        # Whoever only asks for the holder has the lock for a moment: even an impatient caller tries twice.
        tries = max(2, 1 + round(wait_seconds / limits.LOCK_RETRY_SECONDS))
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                tries -= 1
                if not tries:
                    holder = self._holder(fd)
                    self._disk.close(fd)
                    who = str(holder) if holder else 'another process'
                    raise Unavailable(
                        f'{self._path.parent} is in use by {who}', advice='Try again when it has ended.'
                    ) from None
                time.sleep(limits.LOCK_RETRY_SECONDS)
        self._fd = fd
        try:
            self.describe(mountpoint)
        except Refused:
            pass  # the disk is full: the lock holds all the same

    def describe(self, mountpoint: str) -> None:
        """Write who holds the lock (this process, as of now) for others to read, where that is possible."""
        assert self.held
        if not self._told:
            return
        text = json.dumps([os.getpid(), socket.gethostname(), self._world.time_ns(), mountpoint]).encode()
        # One write of a fixed size: a reader never sees the tail of a longer predecessor.
        self._disk.pwrite(self._fd, [text[: limits.LOCK_HOLDER_BYTES].ljust(limits.LOCK_HOLDER_BYTES)], 0)

    def release(self) -> None:
        """Give the lock back."""
        if self.held:
            fd, self._fd = self._fd, -1
            self._disk.close(fd)

    def holder(self) -> Holder | None:
        """Return who has the store now, None when nobody has. Anybody may ask."""
        if self.held:
            return self._holder(self._fd)
        fd = self._open()
        try:
            # Shared, and only for this moment: two who ask do not see each other as the owner.
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return None
        except BlockingIOError:
            return self._holder(fd)
        finally:
            self._disk.close(fd)

    def _open(self) -> int:
        try:
            return self._disk.open_write(self._path, create=False)
        except FileNotFoundError:
            return self._disk.open_write(self._path, create=True)
        except Unavailable as error:
            if not (isinstance(error.__cause__, OSError) and error.__cause__.errno == errno.EROFS):
                raise
            self._told = False
            return self._disk.open_read(self._path)  # as good a lock

    def _holder(self, fd: int) -> Holder | None:
        try:
            pid, host, since_ns, mountpoint = json.loads(
                bytes(self._disk.pread(fd, limits.LOCK_HOLDER_BYTES, 0))
            )
            return Holder(int(pid), str(host), int(since_ns), str(mountpoint))
        except (ValueError, TypeError, OverflowError, RecursionError):
            return None


@contextmanager
def without_verifiers(disk: Disk, store: Path) -> Iterator[None]:
    """While inside, nobody looks through the whole store: whoever does (fsck) has a shared lock on its
    superblock, and waits for us now. Held when somebody does already: packs must not go under his eyes
    (L18)."""
    fd = disk.open_read(store / 'superblock')
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Held(
                'the store is being checked, or collected by somebody else: nothing is freed meanwhile'
            ) from None
        yield
    finally:
        disk.close(fd)


@contextmanager
def as_verifier(disk: Disk, store: Path) -> Iterator[None]:
    """While inside, no pack goes (L18). Waits for a collector that is just unlinking some: a moment."""
    fd = disk.open_read(store / 'superblock')
    try:
        fcntl.flock(fd, fcntl.LOCK_SH)
        yield
    finally:
        disk.close(fd)
