"""L2 taken away: files whose names somebody has removed, or given to others, while they are open here.
Blocking; any thread, on one pack only one at a time.

What is open can still be read to its last byte, and would be gone for good with the descriptor; and what is
written to it would be gone with it, however often it is synced. So packs get their files back: a copy under
the name they had. What has that name meanwhile stays beside it, as NAME.lost-N. (A descriptor without a name
cannot be linked again.) A directory of packs that is gone as a whole, or is on another disk now, is left
alone: there it is not one file that is missing, and nothing is made over what somebody has unmounted.

The catalog gets its file back as well, by SQLite's own backup of what it still has open, and then the store
stops: SQLite cannot go on in the new file, and who deletes files under a store has to hear of it."""

from __future__ import annotations

import logging
import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from snapfs import limits
from snapfs.errors import SnapfsError
from snapfs.store.durable import Buffer, Disk
from snapfs.store.rows import PackRow

log = logging.getLogger('snapfs.store')


def put_back(disk: Disk, fd: int, size: int, path: Path) -> bool:
    """Give the first `size` bytes of an open pack a file with the name that it had; return whether that was
    needed, and could be. It is durable then. Corrupt, Latched, Refused(ENOSPC): nothing is lost as long as
    the descriptor is open."""
    folder = path.parent.parent
    if disk.is_at(fd, path) or not disk.exists(folder) or not disk.on_same_disk(fd, folder):
        return False
    log.error('pack %s has lost its file while it was open here: it is put back', path.name)
    if disk.mkdir(path.parent):
        disk.sync_directory(folder)
    if disk.exists(path):
        _aside(disk, path)
    try:
        disk.write_blocks(path, _blocks(disk, fd, size))
    except SnapfsError:
        temporary = path.with_name(path.name + '.new')
        if disk.latched is None and disk.exists(temporary):
            disk.unlink(temporary)  # the disk is full: it only takes room
        raise
    return True


def put_back_sealed(disk: Disk, packs: Iterable[tuple[PackRow, Path]], open_here: Mapping[int, int]) -> int:
    """The same for sealed packs that are open to be read (number to descriptor); return how many. What has
    the name of one meanwhile is left alone: it may be a better copy. One that the collector unlinks in this
    moment comes back as a file that nobody knows, which only takes room."""
    count = 0
    for row, path in packs:
        fd = open_here.get(row.pack, -1)
        if row.state == 'sealed' and fd >= 0 and disk.size(fd) == row.bytes and not disk.exists(path):
            count += put_back(disk, fd, row.bytes, path)
    return count


def _blocks(disk: Disk, fd: int, size: int) -> Iterator[Buffer]:
    for offset in range(0, size, limits.MIB):
        yield disk.pread(fd, min(limits.MIB, size - offset), offset)


def _aside(disk: Disk, path: Path) -> None:
    number = 1
    while disk.exists(path.with_name(f'{path.name}.lost-{number}')):
        number += 1
    disk.rename(path, path.with_name(f'{path.name}.lost-{number}'))
    disk.sync_directory(path.parent)


# --- the catalog -----------------------------------------------------------------------------------------
class Places:
    """Which files a catalog and its log are."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: dict[str, tuple[int, int]] = {}

    def taken_away(self) -> str:
        """Return the name of one that is not what it was, '' for none; the first call notes what they are."""
        for suffix in ('', '-wal'):
            try:
                status = os.lstat(f'{self._path}{suffix}')
                now = status.st_dev, status.st_ino
            except FileNotFoundError:
                now = None
            except OSError:
                continue
            known = self._known.get(suffix, now)
            if known is not None:
                self._known[suffix] = known
            if known != now:
                return f'{self._path}{suffix}'
        return ''


def put_back_catalog(disk: Disk, db: sqlite3.Connection, path: Path) -> None:
    """Write what a connection has committed to a new file with the catalog's name, durably. SnapfsError,
    sqlite3.Error."""
    new = path.with_name(f'{path.name}.back')
    for suffix in ('', '-wal', '-shm'):
        if disk.exists(Path(f'{new}{suffix}')):
            disk.unlink(Path(f'{new}{suffix}'))
    disk.close(disk.open_write(new, create=True))
    target = sqlite3.connect(new)
    try:
        db.backup(target)
    finally:
        target.close()
    fd = disk.open_write(new, create=False)
    try:
        disk.sync_data(fd)
    finally:
        disk.close(fd)
    number = 1
    while any(disk.exists(Path(f'{path}.lost-{number}{suffix}')) for suffix in ('', '-wal', '-shm')):
        number += 1
    for suffix in ('', '-wal', '-shm'):  # a log of another catalog would be brought into this one
        if disk.exists(Path(f'{path}{suffix}')):
            disk.rename(Path(f'{path}{suffix}'), Path(f'{path}.lost-{number}{suffix}'))
    disk.sync_directory(path.parent)
    disk.rename(new, path)
    disk.sync_directory(path.parent)
    log.error('the catalog was put back: %s', path)
