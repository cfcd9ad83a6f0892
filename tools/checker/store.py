"""Tool fsck, store: the files of a store, opened for looking only. One thread; workers open their own.

The catalog is copied first, at one commit, and only the copy is looked at: writers go on meanwhile, and no
read transaction keeps their log from being recycled. A store that is in use is copied through SQLite's backup
interface, which takes one consistent state; one that nobody has is copied as files, since SQLite would make
files of its own beside a catalog with a log. A shared lock on STORE/superblock is held as long as a check
runs: the collector removes no pack meanwhile."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import sqlite3
import stat
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from snapfs import limits
from snapfs.errors import Corrupt, Invalid
from snapfs.format.superblock import (
    SUPERBLOCK_BYTES,
    Superblock,
    decode_superblock,
    is_newer_superblock,
)

FOLDERS = {1: 'data', 2: 'meta'}
COPIES = ('backups', 'mirror')  # of the superblock
COPY_BYTES = limits.MIB
COPY_IN_KERNEL_BYTES = limits.GIB  # then Ctrl-C has its turn
MARKS = ('catalog.sqlite', 'catalog.sqlite-wal', 'journal/0', 'journal/1', 'lock')
# What stops a check and says nothing about the store.
OURS = {errno.EACCES, errno.EPERM, errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENOMEM}
SQLITE_OURS = {sqlite3.SQLITE_FULL, sqlite3.SQLITE_BUSY, sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_PERM}


@dataclass(frozen=True, slots=True)
class Pack:
    """A pack of the catalog: `bytes` and `records` are what was durable at the epoch that is checked."""

    number: int
    name: bytes
    kind: int
    state: str
    bytes: int
    records: int


# Directories that nobody follows when they are symbolic links, and whether the store is refused then.
LINKS = dict.fromkeys(('packs', 'packs/meta', 'packs/data', 'batches', 'journal'), True) | dict.fromkeys(
    ('mirror', 'backups', 'incidents'), False
)


class Store:
    """A store that is looked at. `close` gives everything back."""

    def __init__(self, path: Path, scratch: Path | None = None) -> None:
        """Invalid when `path` is no store, or there is no place for temporary files; OSError when nobody lets
        us see, or the disk does not answer. Nothing is opened yet."""
        if not path.is_dir():
            raise Invalid(f'{path} is not a directory')
        if not set(os.listdir(path)) & {'superblock', 'catalog.sqlite', 'packs'}:
            raise Invalid(f'{path} is not a store')
        self.path = path.resolve()
        if scratch is not None and not scratch.is_dir():
            raise Invalid(f'{scratch} is not a directory for temporary files')
        try:
            self.scratch = Path(tempfile.mkdtemp(prefix='snapfs-fsck-', dir=scratch))
        except OSError as error:
            raise Invalid(
                f'no temporary files can be made: {error.strerror}', advice='See --scratch.'
            ) from error
        self.superblock: Superblock | None = None
        self.superblock_problem = ''  # why its copy is used instead
        self.copy: Path | None = None  # of the catalog
        self.in_place = False  # it is the catalog itself
        self._lock = -1
        self._used = False
        self._seen: list[tuple[int, int, int] | None] | None = None

    def close(self) -> None:
        """Give back the lock and remove all temporary files."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1
        shutil.rmtree(self.scratch, ignore_errors=True)

    # --- files -------------------------------------------------------------------------------------------
    @contextmanager
    def opened(self, *parts: str) -> Iterator[tuple[int, int]]:
        """Open a regular file, no link, and yield (descriptor, size in bytes). OSError, Corrupt."""
        fd = os.open(self.path.joinpath(*parts), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise Corrupt(f'{"/".join(parts)} is not a regular file')
            yield fd, status.st_size
        finally:
            os.close(fd)

    def read(self, *parts: str, bytes_max: int) -> bytes:
        """Return a whole file. Corrupt when it is longer than `bytes_max`; OSError."""
        with self.opened(*parts) as (fd, size):
            if size > bytes_max:
                raise Corrupt(f'{"/".join(parts)} has {size} bytes, limit {bytes_max}')
            return read_at(fd, size, 0)

    def entries(self, *parts: str) -> list[str]:
        """Return the names in a folder, sorted; none when it is not there. OSError, Corrupt."""
        path = self.path.joinpath(*parts)
        try:
            if not stat.S_ISDIR(path.lstat().st_mode):
                raise Corrupt(f'{"/".join(parts)} is not a folder')
            return sorted(os.listdir(path))
        except FileNotFoundError:
            return []

    def pack_parts(self, kind: int, name: bytes) -> tuple[str, ...]:
        """Return where a pack is."""
        text = name.hex()
        return 'packs', FOLDERS[kind], text[:2], text

    # --- the beginning -----------------------------------------------------------------------------------
    def begin(self) -> None:
        """Read the superblock, or its copy where it is damaged, and take the lock on it. Corrupt, OSError."""
        data = b''
        try:
            fd = os.open(self.path / 'superblock', os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
            self._lock = fd
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise Corrupt('superblock is not a regular file')
            fcntl.flock(fd, fcntl.LOCK_SH)
            data = read_at(fd, SUPERBLOCK_BYTES + 1, 0)
            self.superblock = decode_superblock(data)
        except (FileNotFoundError, Corrupt) as error:
            copy = self._superblock_copy()
            if copy is None or is_newer_superblock(data):
                raise
            why = error.strerror if isinstance(error, OSError) else str(error)
            self.superblock, self.superblock_problem = copy, why or ''

    def _superblock_copy(self) -> Superblock | None:
        for folder in COPIES:
            try:
                return decode_superblock(self.read(folder, 'superblock', bytes_max=SUPERBLOCK_BYTES))
            except (OSError, Corrupt):
                continue
        return None

    def links(self) -> list[tuple[str, str]]:
        """Return the directories that are symbolic links, which nobody follows, with the code of each."""
        found = [(name, needed) for name, needed in LINKS.items() if (self.path / name).is_symlink()]
        return [('entry-link' if needed else 'entry-odd', name) for name, needed in found]

    def copy_problem(self, folder: str) -> str:
        """Say what is wrong with a copy of the superblock; nothing when it is the same or not there."""
        if self.superblock_problem:
            return ''
        try:
            copy = decode_superblock(self.read(folder, 'superblock', bytes_max=SUPERBLOCK_BYTES))
        except FileNotFoundError:
            return ''
        except OSError as error:
            return error.strerror or str(error)
        except Corrupt as error:
            return str(error)
        return '' if copy == self.superblock else 'it says something else than the superblock'

    @property
    def uuid(self) -> bytes:
        """Return the uuid of the store; `begin` comes first."""
        assert self.superblock is not None
        return self.superblock.uuid

    def in_use(self) -> bool:
        """Return whether a process has the store, or has had it since the catalog was copied. What such a one
        has written meanwhile is none of ours: without this, a store that is unmounted during a check would
        look as if its journal had lost what the commit at its end has superseded."""
        self._used = self._used or self._held() or (self._seen is not None and self._seen != self._marks())
        return self._used

    def _marks(self) -> list[tuple[int, int, int] | None]:
        """Return what changes whenever somebody works in the store."""
        found: list[tuple[int, int, int] | None] = []
        for name in MARKS:
            try:
                status = os.lstat(self.path / name)
                found.append((status.st_ino, status.st_size, status.st_mtime_ns))
            except OSError:
                found.append(None)
        return found

    def _held(self) -> bool:
        """Return whether a process has the store now. Asked without a write; for a moment, like others."""
        try:
            with self.opened('lock') as (fd, _):
                fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
                return False
        except FileNotFoundError:
            return False
        except BlockingIOError:
            return True

    # --- the catalog -------------------------------------------------------------------------------------
    def take_catalog(self, *, in_place: bool) -> None:
        """Take the catalog at one commit: a copy, or with `in_place`, when nobody has the store and no log
        goes with it, the catalog as it stands. Whoever works with that asks `moved` at the end. Corrupt,
        OSError, sqlite3.Error when it does not go."""
        used, marks = self._held(), self._marks()
        if in_place and not used and self._size('catalog.sqlite') and not self._size('catalog.sqlite-wal'):
            self.copy, self.in_place = self.path / 'catalog.sqlite', True
            self._used, self._seen = used, marks
            return
        self._copy_catalog()

    def moved(self) -> bool:
        """Return whether the catalog was read as it stands, and somebody has worked in the store since."""
        return self.in_place and self.in_use()

    def _copy_catalog(self) -> None:
        target = self.scratch / 'catalog.sqlite'
        for _ in range(3):
            used, marks = self._held(), self._marks()
            sizes = {suffix: self._size(f'catalog.sqlite{suffix}') for suffix in ('', '-wal', '-shm')}
            if sizes[''] is None:
                raise FileNotFoundError(2, 'catalog.sqlite is not there')
            for suffix in ('', '-wal', '-shm'):
                Path(f'{target}{suffix}').unlink(missing_ok=True)
            if used and sizes['-shm'] is not None:
                self._back_up(target)
            else:
                for suffix in ('', '-wal'):
                    if sizes[suffix] is not None:
                        self._copy_file(f'catalog.sqlite{suffix}', Path(f'{target}{suffix}'))
            if used == self._held() and (used or marks == self._marks()):
                self.copy, self._used, self._seen = target, used, marks
                _settle(target)
                return
        raise Corrupt('the store was opened or closed each time its catalog was copied')

    def _size(self, name: str) -> int | None:
        try:
            with self.opened(name) as (_, size):
                return size
        except FileNotFoundError:
            return None

    def _copy_file(self, name: str, target: Path) -> None:
        with self.opened(name) as (fd, size), target.open('wb') as copy:
            done = _copy_in_kernel(fd, copy.fileno(), size)
            copy.seek(done)
            for offset in range(done, size, COPY_BYTES):
                copy.write(read_at(fd, min(COPY_BYTES, size - offset), offset))

    def _back_up(self, target: Path) -> None:
        text = f'file:{quote(str(self.path / "catalog.sqlite"))}?mode=ro&readonly_shm=1'
        source = sqlite3.connect(text, uri=True)
        copy = sqlite3.connect(target)
        try:
            source.backup(copy)
            copy.execute('PRAGMA journal_mode = DELETE')
        finally:
            copy.close()
            source.close()

    def connect(self) -> sqlite3.Connection:
        """Open the copy of the catalog; any process may, each its own. sqlite3.Error."""
        assert self.copy is not None
        return connect(self.copy)


def _copy_in_kernel(source: int, target: int, size: int) -> int:
    """Copy the beginning of a file without taking its bytes through this process, or by sharing them where
    the filesystem can; return how many bytes. Where that does not go, whoever reads them finds out why."""
    done = 0
    try:
        while done < size:
            copied = os.copy_file_range(source, target, min(size - done, COPY_IN_KERNEL_BYTES), done, done)
            if not copied:
                break
            done += copied
    except OSError:
        pass
    return done


def _settle(copy: Path) -> None:
    """Take the copied log into the copy, so that nobody writes to it any more."""
    db = sqlite3.connect(copy)
    try:
        db.execute('PRAGMA synchronous = OFF')  # a temporary file
        db.execute('PRAGMA journal_mode = DELETE')
    except (sqlite3.Error, UnicodeDecodeError):  # SQLite quotes damaged names, which need not be UTF-8
        pass  # whoever reads the copy sees that it is damaged
    finally:
        db.close()


def connect(copy: Path) -> sqlite3.Connection:
    """Open a catalog that nobody changes, for queries. Its triggers and views are never run: there must be
    none."""
    db = sqlite3.connect(f'file:{quote(str(copy))}?mode=ro&immutable=1', uri=True, isolation_level=None)
    db.text_factory = lambda raw: raw.decode('utf-8', 'backslashreplace')
    for pragma in ('trusted_schema = OFF', 'cell_size_check = ON', 'query_only = ON', 'temp_store = MEMORY'):
        db.execute(f'PRAGMA {pragma}')
    db.execute(f'PRAGMA cache_size = -{limits.CATALOG_CACHE_BYTES // limits.KIB}')
    return db


def is_ours(error: Exception) -> bool:
    """Return whether this error is about us (no right, no room), and so says nothing about the store."""
    if isinstance(error, sqlite3.Error):
        return getattr(error, 'sqlite_errorcode', None) in SQLITE_OURS
    return isinstance(error, OSError) and error.errno in OURS


def query(db: sqlite3.Connection, text: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
    """Return all rows."""
    return db.execute(text, values).fetchall()


def read_at(fd: int, size: int, offset: int) -> bytes:
    """Return up to `size` bytes at `offset`: fewer only at the end of the file. OSError."""
    parts = []
    while size > 0:
        part = os.pread(fd, size, offset)
        if not part:
            break
        parts.append(part)
        size -= len(part)
        offset += len(part)
    return parts[0] if len(parts) == 1 else b''.join(parts)
