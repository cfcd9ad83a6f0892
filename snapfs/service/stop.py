"""L6 stop: what `snapfs umount` does: unmount, and wait until the store is clean and its daemon gone.
Blocking."""

from __future__ import annotations

import os
import select
from dataclasses import dataclass
from pathlib import Path

from snapfs import limits
from snapfs.errors import Invalid, Unavailable
from snapfs.service import client, mounts, runtime, system, wire


@dataclass(frozen=True, slots=True)
class Stopped:
    """What came of it. `daemon` is False when it had died before: the next mount replays the journal."""

    mountpoint: str
    store: str | None
    daemon: bool
    clean: bool


def stop(path: str, *, wait_seconds: float = limits.UMOUNT_WAIT_SECONDS) -> Stopped:
    """Unmount what is mounted at `path`. Invalid: nothing of ours is. Unavailable: busy, or not clean in
    time."""
    mountpoint = str(mounts.absolute(path))
    mount = mounts.mount_at(mountpoint, mounts.read_mounts())
    if mount is None:
        raise Invalid(f'{mountpoint} is not mounted')
    if not mount.is_snapfs:
        raise Invalid(f'{mountpoint} is a mount of {mount.fstype}, not of snapfs')
    entry = runtime.find_entry(mount)
    store = None if entry is None else entry.store
    waiter = None if store is None else _Waiter.connect(Path(store), mount.device)
    if waiter is None:
        system.unmount(mountpoint)
        runtime.forget(mount)
        return Stopped(mountpoint, store, daemon=False, clean=False)
    with waiter:
        system.unmount(mountpoint)
        clean = waiter.wait(wait_seconds)
    if not clean:
        raise Unavailable(f'the store {store} was not closed cleanly; its log says why')
    return Stopped(mountpoint, store, daemon=True, clean=True)


class _Waiter:
    """A connection on which the daemon will say that the store is closed, and a handle of its process."""

    def __init__(self, connection: client.Connection, pidfd: int | None) -> None:
        self.connection = connection
        self.pidfd = pidfd

    @classmethod
    def connect(cls, store: Path, device: str) -> _Waiter | None:
        try:
            connection = client.Connection(store)
            hello = connection.ask(wire.Request('closed', {}, device))
        except client.NoDaemon:
            return None
        assert isinstance(hello, dict)
        try:
            pidfd = os.pidfd_open(int(hello['pid']))
        except OSError:
            pidfd = None  # in another process namespace: its answer has to do
        return cls(connection, pidfd)

    def __enter__(self) -> _Waiter:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.connection.close()
        if self.pidfd is not None:
            os.close(self.pidfd)

    def wait(self, seconds: float) -> bool:
        """Wait for the end of the daemon. Says whether the store was closed in good order."""
        self.connection.set_timeout(seconds)
        try:
            answer = self.connection.receive()
        except client.NoDaemon:
            answer = {'clean': False}
        if self.pidfd is not None and not select.select([self.pidfd], [], [], seconds)[0]:
            raise Unavailable('the store is closed, but its daemon does not end')
        return isinstance(answer, dict) and answer.get('clean') is True
