"""A disk that forgets what was not synced. It stands below a store in the place of snapfs.store.durable.Disk.

Everything is done for real in a directory, so that reading (and SQLite) just works; nothing is really synced.
Beside that it remembers, per file, the writes since its last sync with the bytes they replaced, and per
directory the creations, renames and removals since its last sync. `crash(seed, destination)` writes the tree
that a power cut could have left:

- of each write that was not synced: all, nothing, any 512-byte sectors of it, or only the new length with
  zeros;
- of each change of a name that was not synced: done or not done, each by itself, in order;
- the catalog as of its last commit (SQLite syncs by itself; its image is taken when the commit has returned).

Events are syncs of files, syncs of directories and commits, counted from 1. `cut_at` = n cuts the power just
before event n has its effect: PowerCut is raised, from then on by every call. `fail` makes the n-th next call
of one kind fail; `space` limits what may be allocated from now on.
"""

from __future__ import annotations

import errno
import os
import random
import sqlite3
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from snapfs.store.durable import DIRECTORY_MODE, FILE_MODE, Buffer, Disk

SECTOR_BYTES = 512
KINDS = ('open', 'write', 'read', 'sync', 'sync_directory', 'rename', 'unlink', 'mkdir', 'truncate')


class PowerCut(BaseException):
    """The power went. Not an Exception: nothing but a test may catch it."""


@dataclass(frozen=True, slots=True)
class Change:
    """A write (or, with `data` None, a change of the length to `size`) and how to undo it."""

    offset: int
    data: bytes | None
    size: int
    old_bytes: bytes
    old_size: int


@dataclass(slots=True, eq=False)
class File:
    """A file, however it is called. `fd` keeps it readable when it has no name any more."""

    fd: int
    pending: list[Change] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class NameChange:
    """A change in a directory: `old` goes away, `new` appears with `what` (a file, or None for a
    directory)."""

    directory: Path
    old: Path | None
    new: Path | None
    what: File | None


class SimDisk(Disk):
    """The simulated disk; `root` exists, and what is in it counts as durable."""

    def __init__(self, root: Path, seed: int | None = None) -> None:
        super().__init__()
        self.root = root
        self.events = 0
        self.cut_at: int | None = None
        self.off = False
        self.space: int | None = None
        self.history: list[str] = []
        self.calls = dict.fromkeys(KINDS, 0)
        self._random = (
            None if seed is None else random.Random(seed)
        )  # short reads and writes, when there is a seed
        self._faults: dict[tuple[str, int], int] = {}
        self._lock = threading.RLock()
        self._names: dict[Path, File | None] = {}  # now
        self._durable: dict[Path, File | None] = {}  # as of the last sync of the directory
        self._changes: list[NameChange] = []
        self._fds: dict[int, File] = {}
        self._images: dict[Path, bytes] = {}
        for folder, folders, files in os.walk(root):
            above = Path(folder)
            for name in folders:
                self._names[above / name] = None
            for name in files:
                path = above / name
                if path.is_file() and not name.endswith(('-wal', '-shm')):
                    self._names[path] = File(os.open(path, os.O_RDONLY))
                    if path.suffix == '.sqlite':
                        self._images[path] = path.read_bytes()
        self._durable = dict(self._names)

    # --- what a test does --------------------------------------------------------------------------------
    def fail(self, kind: str, error: int, after: int = 0, count: int = 1) -> None:
        """Let calls of a kind fail with errno `error`: `count` of them, after `after` more that work."""
        first = self.calls[kind] + after + 1
        for number in range(first, first + count):
            self._faults[(kind, number)] = error

    def unsynced(self) -> bool:
        """Whether a power cut now could lose anything."""
        return bool(self._changes) or any(file is not None and file.pending for file in self._names.values())

    def unsynced_count(self) -> int:
        """Return of how many changes of names and of files a power cut now could keep any."""
        files = {file for file in self._files() if file.fd >= 0}
        return len(self._changes) + sum(len(file.pending) for file in files)

    def written_back(self, path: Path) -> None:
        """The kernel writes a file's bytes to the disk by itself, as it may at any time. No event."""
        with self._lock:
            file = self._names[path]
            assert file is not None
            file.pending.clear()

    def crash(
        self, seed: int, destination: Path, keep: float | None = None, kept: Iterable[bool] | None = None
    ) -> Path:
        """Write to `destination` the tree that a power cut at this moment could leave, chosen by `seed`; with
        `keep` 1, what a killed process leaves. `kept` says of one unsynced change after the other whether it
        is kept, as a whole. The disk is off afterwards."""
        with self._lock:
            self.off = True
            chance = random.Random(seed) if kept is None else _Chosen(kept)
            if kept is not None:
                keep = 1.0
            # Extremes are as likely as mixtures: all kept (a killed process), nothing kept, and shades.
            chosen = chance.choice((0.0, 1.0, 0.2, 0.5, 0.8))
            keep = chosen if keep is None else keep
            names = dict(self._durable)
            for change in self._changes:
                if chance.random() < keep:
                    _apply(names, change)
            destination.mkdir()
            begin, there = len(str(self.root)), {str(destination)}
            for path in sorted(names):
                target = f'{destination}{str(path)[begin:]}'
                file = names[path]
                if os.path.dirname(target) not in there:
                    continue  # its directory was lost
                if file is None:
                    os.mkdir(target, DIRECTORY_MODE)
                    there.add(target)
                elif path.suffix == '.sqlite':
                    Path(target).write_bytes(self._images.get(path, b''))
                    os.chmod(target, FILE_MODE)
                else:
                    _write_file(file, target, chance, keep)
            return destination

    def forget(self) -> None:
        """Close every descriptor that the simulation holds, and those that the dead process left."""
        with self._lock:
            self.off = True
            for fd in self._fds:
                os.close(fd)
            self._fds.clear()
            for file in self._files():
                if file.fd >= 0:
                    os.close(file.fd)
                    file.fd = -1

    def _files(self) -> set[File]:
        found = {*self._names.values(), *self._durable.values()} | {c.what for c in self._changes}
        return {file for file in found if file is not None}

    # --- power and faults --------------------------------------------------------------------------------
    def _call(self, kind: str, what: object) -> None:
        if self.off:
            raise PowerCut('the power is off')
        self.calls[kind] += 1
        error = self._faults.pop((kind, self.calls[kind]), None)
        if error is not None:
            raise OSError(error, os.strerror(error), str(what))

    def _event(self, what: str) -> None:
        self.events += 1
        self.history.append(what)
        if self.events == self.cut_at:
            self.off = True
            raise PowerCut(f'at event {self.events}: {what}')

    def _take_space(self, wanted: int) -> int:
        """Return how much of `wanted` bytes may be allocated; ENOSPC when that is nothing."""
        if self.space is None or wanted <= 0:
            return wanted
        granted = min(wanted, self.space)
        if granted == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.space -= granted
        return granted

    def statvfs(self, path: Path) -> os.statvfs_result:
        found = super().statvfs(path)
        if self.space is None:
            return found
        blocks = self.space // found.f_frsize
        return os.statvfs_result((*found[:3], blocks, blocks, *found[5:]))

    # --- the system calls --------------------------------------------------------------------------------
    def _sys_open(self, path: Path, flags: int) -> int:
        with self._lock:
            self._call('open', path)
            fd = super()._sys_open(path, flags)
            if flags & os.O_CREAT:
                file = File(os.open(path, os.O_RDONLY))
                self._change(NameChange(path.parent, None, path, file))
            known = self._names.get(path)
            if known is not None:
                self._fds[fd] = known
            return fd

    def _sys_close(self, fd: int) -> None:
        with self._lock:
            if self.off and fd not in self._fds:
                return  # closed by `forget`, and perhaps somebody else's by now
            self._fds.pop(fd, None)
            super()._sys_close(fd)

    def _sys_pread(self, fd: int, count: int, offset: int) -> bytes:
        self._call('read', fd)
        if self._random is not None and count > 1 and self._random.random() < 0.2:
            count = self._random.randrange(1, count)
        return super()._sys_pread(fd, count, offset)

    def _sys_preadv_nowait(self, fd: int, buffer: bytearray, offset: int) -> int:
        self._call('read', fd)
        return super()._sys_preadv_nowait(fd, buffer, offset)

    def _sys_pwritev(self, fd: int, buffers: list[Buffer], offset: int) -> int:
        with self._lock:
            self._call('write', fd)
            data = b''.join(bytes(buffer) for buffer in buffers)
            if self._random is not None and len(data) > 1 and self._random.random() < 0.2:
                data = data[: self._random.randrange(1, len(data))]
            file = self._fds[fd]
            size = os.fstat(file.fd).st_size
            growth = offset + len(data) - size
            if growth > 0:
                data = data[: len(data) - growth + self._take_space(growth)]
            old = os.pread(file.fd, len(data), offset)
            done = super()._sys_pwritev(fd, [data], offset)
            assert done == len(data)
            file.pending.append(Change(offset, data, max(size, offset + done), old, size))
            return done

    def _fill(self, fd: int, size: int) -> None:
        self.truncate(fd, size)  # zeros, without writing them

    def _sys_ftruncate(self, fd: int, size: int) -> None:
        with self._lock:
            self._call('truncate', fd)
            file = self._fds[fd]
            old_size = os.fstat(file.fd).st_size
            if size > old_size and self._take_space(size - old_size) < size - old_size:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            old = os.pread(file.fd, max(0, old_size - size), size)
            super()._sys_ftruncate(fd, size)
            file.pending.append(Change(size, None, size, old, old_size))

    def _sys_fdatasync(self, fd: int) -> None:
        with self._lock:
            self._call('sync', fd)
            self._event('sync')
            self._fds[fd].pending.clear()

    def _sys_fsync_directory(self, path: Path) -> None:
        with self._lock:
            self._call('sync_directory', path)
            self._event(f'sync of directory {path.relative_to(self.root)}')
            for change in self._changes:
                if change.directory == path:
                    _apply(self._durable, change)
            self._changes = [change for change in self._changes if change.directory != path]

    def _sys_rename(self, old: Path, new: Path) -> None:
        with self._lock:
            self._call('rename', old)
            super()._sys_rename(old, new)
            self._change(NameChange(old.parent, old, new, self._names[old]))

    def _sys_unlink(self, path: Path) -> None:
        with self._lock:
            self._call('unlink', path)
            size = os.lstat(path).st_size
            super()._sys_unlink(path)
            if self.space is not None:
                self.space += size
            self._change(NameChange(path.parent, path, None, None))

    def _sys_mkdir(self, path: Path) -> None:
        with self._lock:
            self._call('mkdir', path)
            super()._sys_mkdir(path)
            self._change(NameChange(path.parent, None, path, None))

    def database_committed(self, connection: sqlite3.Connection) -> None:
        with self._lock:
            if self.off:
                raise PowerCut('the power is off')
            self._event('commit')
            path = Path(connection.execute('PRAGMA database_list').fetchone()[2])
            self._images[path] = connection.serialize()

    def _change(self, change: NameChange) -> None:
        _apply(self._names, change)
        self._changes.append(change)


class _Chosen(random.Random):
    """Not chance: keeps (0.0) or loses (1.0) what it was told."""

    def __init__(self, kept: Iterable[bool]) -> None:
        super().__init__(0)
        self._kept = iter(kept)

    def random(self) -> float:
        return 0.0 if next(self._kept) else 1.0

    def choice(self, options: Any) -> Any:
        return options[0]


def _apply(names: dict[Path, File | None], change: NameChange) -> None:
    if change.old is not None:
        names.pop(change.old, None)
    if change.new is not None:
        names[change.new] = change.what


def _write_file(file: File, target: str, chance: random.Random, keep: float) -> None:
    """Write what a power cut could leave of a file: its durable bytes and a choice of what came after."""
    fd = os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL, FILE_MODE)
    try:
        _copy_sparse(file.fd, fd)
        for change in reversed(file.pending):
            os.pwrite(fd, change.old_bytes, change.offset)
            os.ftruncate(fd, change.old_size)
        for change in file.pending:
            if chance.random() >= keep:
                continue
            if change.data is None:
                os.ftruncate(fd, change.size)
            else:
                _write_part(fd, change, chance, keep)
    finally:
        os.close(fd)


def _write_part(fd: int, change: Change, chance: random.Random, keep: float) -> None:
    assert change.data is not None
    end = change.offset + len(change.data)
    how = 'all' if keep == 1.0 else chance.choice(('all', 'sectors', 'beginning', 'length'))
    if how in ('sectors', 'length') and os.fstat(fd).st_size < end:
        os.ftruncate(fd, end)
    if how == 'all':
        os.pwrite(fd, change.data, change.offset)
    elif how == 'beginning':
        cut = chance.randrange(len(change.data) + 1)
        # Sectors are written whole or not at all.
        cut = max(0, (change.offset + cut) // SECTOR_BYTES * SECTOR_BYTES - change.offset)
        os.pwrite(fd, change.data[:cut], change.offset)
    elif how == 'sectors':
        start = change.offset
        while start < end:
            stop = min((start // SECTOR_BYTES + 1) * SECTOR_BYTES, end)
            if chance.random() < 0.5:
                os.pwrite(fd, change.data[start - change.offset : stop - change.offset], start)
            start = stop


def _copy_sparse(source: int, target: int) -> None:
    size = os.fstat(source).st_size
    os.ftruncate(target, size)
    offset = 0
    while offset < size:
        try:
            offset = os.lseek(source, offset, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return
            raise
        end = os.lseek(source, offset, os.SEEK_HOLE)
        while offset < end:
            block = os.pread(source, min(1 << 20, end - offset), offset)
            os.pwrite(target, block, offset)
            offset += len(block)
