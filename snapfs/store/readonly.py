"""L2 read-only: a catalog that is not to be written, opened all the same. Blocking; any thread.

SQLite reads a catalog that has a log (-wal) by way of an index (-shm) that it makes beside it, also where it
only reads. On a filesystem that is mounted read-only it cannot. There the file alone is read, as one that
nobody changes; or, where its log has something in it (a crash, or a copy made in the middle of work), a copy
of both in a temporary directory. Whoever calls knows that nobody has the store open: by its lock, or because
there is no index. Where it can be written, the index stays behind when a reader has gone: there a catalog
that nobody has open is always copied."""

from __future__ import annotations

import errno
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from snapfs import limits
from snapfs.errors import Corrupt, Refused, Unavailable
from snapfs.store.durable import Disk

DRY_RUN = 'it was opened to be read only'
REASON = 'the filesystem below it is read-only'
ADVICE = (
    'What works there: fsck, verify, export, damage, snapshot list, recover --dry-run, and rebuild to '
    'another place.'
)


class ReadingDisk(Disk):
    """A disk that can be written, for who only reads: as one that cannot. Whoever has the store's lock by it
    may read the catalog as a file that nobody changes."""

    def is_read_only(self, path: Path) -> bool:
        """It is, for us."""
        return True

    def _sys_open(self, path: Path, flags: int) -> int:
        if flags & os.O_CREAT or (flags & (os.O_WRONLY | os.O_RDWR) and self.exists(path)):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        return super()._sys_open(path, flags)


@dataclass(frozen=True, slots=True)
class StillCatalog:
    """How a catalog is opened that nobody changes: `uri`, without a mode. `folder` holds the copy, if one
    had to be made; `close` removes it."""

    uri: str
    options: str
    folder: tempfile.TemporaryDirectory[str] | None

    def close(self) -> None:
        """Give the room of the copy back."""
        if self.folder is not None:
            self.folder.cleanup()


def reading_uri(path: Path, still: StillCatalog | None) -> str:
    """Return the address by which SQLite reads a catalog: one that nobody changes, or (None) as it stands."""
    if still is None:
        return f'file:{quote(str(path))}?mode=ro'
    return f'{still.uri}?mode=ro{still.options}'


def stop_writing(disk: Disk, path: Path) -> None:
    """Latch the disk of a store on which nothing can be written, or is to be. Nothing has failed: whoever
    wants to write hears `not now`."""
    if isinstance(disk, ReadingDisk):
        disk.latch(DRY_RUN, '', Unavailable.exit_code)
    elif disk.is_read_only(path):
        disk.latch(f'{path}: {REASON}', ADVICE, Unavailable.exit_code)


def still_catalog(path: Path) -> StillCatalog:
    """Return how to open this catalog. Refused(ENOSPC) or Unavailable when a copy cannot be made,
    Corrupt when the disk does not give its bytes."""
    log = Path(f'{path}-wal')
    if not (log.is_file() and log.stat().st_size):
        return StillCatalog(f'file:{quote(str(path))}', '&immutable=1', None)
    return _copied(path)


def copied_catalog(path: Path) -> StillCatalog | None:
    """Return how to open a copy of a catalog that nobody has open, so that nothing is left beside it; None
    when somebody has it (there is an index), or opened it meanwhile. As `still_catalog` otherwise."""
    index, marks = Path(f'{path}-shm'), _marks(path)
    if index.exists():
        return None
    copy = _copied(path)
    if index.exists() or _marks(path) != marks:
        copy.close()
        return None
    return copy


def _marks(path: Path) -> list[tuple[int, int, int] | None]:
    """Return what changes when somebody writes to a catalog."""
    found: list[tuple[int, int, int] | None] = []
    for suffix in ('', '-wal'):
        try:
            status = os.stat(f'{path}{suffix}')
            found.append((status.st_ino, status.st_size, status.st_mtime_ns))
        except FileNotFoundError:
            found.append(None)
    return found


def _copied(path: Path) -> StillCatalog:
    folder = tempfile.TemporaryDirectory(prefix='snapfs-')
    try:
        _copy(path, Path(folder.name) / 'catalog.sqlite')
        try:
            _copy(Path(f'{path}-wal'), Path(folder.name) / 'catalog.sqlite-wal')
        except FileNotFoundError:
            pass  # it was closed clean
    except OSError as error:
        folder.cleanup()
        if error.errno == errno.ENOSPC:
            raise Refused(
                errno.ENOSPC, f'{folder.name}: no room for a copy of the catalog', advice='Set TMPDIR.'
            ) from error
        raise Unavailable(f'{error.filename or path}: {error.strerror}') from error
    except BaseException:
        folder.cleanup()
        raise
    return StillCatalog(f'file:{quote(folder.name)}/catalog.sqlite', '', folder)


def _copy(path: Path, to: Path) -> None:
    """Copy a file. Corrupt when the disk has lost bytes of it, or does not open it."""
    try:
        source = path.open('rb')
    except OSError as error:
        if error.errno == errno.EIO:
            raise Corrupt(f'{path}: {error.strerror}') from error  # not proved to be lost: no new one is made
        raise
    with source, to.open('wb') as target:
        while True:
            try:
                data = source.read(limits.MIB)
            except OSError as error:
                raise Corrupt(f'catalog: {path}: {error.strerror}') from error
            if not data:
                return
            target.write(data)
