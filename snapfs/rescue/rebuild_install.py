"""L4 rebuild, install: looks at the catalog that is there, and puts a new one in its place. Blocking; the
caller owns the store.

Between any two steps the power may go. SQLite finds the log of a catalog by its name, and takes it for the
log of whatever catalog has that name: an old log beside the new catalog would be brought into it, and destroy
it. So the old catalog goes aside first, then its log (both under names by which SQLite finds them together),
then the journal if it is not to be replayed, and only when all of this is durable comes the new one. Until
then the store has no catalog: opening it says so and leads back here."""

from __future__ import annotations

import errno
import shutil
import sqlite3
import tempfile
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any
from urllib.parse import quote

from snapfs import limits
from snapfs.errors import Corrupt, Invalid, Refused, SnapfsError, Unavailable
from snapfs.store import schema
from snapfs.store.durable import Disk
from snapfs.store.journal import Journal
from snapfs.store.migrate import OLDEST_VERSION
from snapfs.store.missing import DIRECTORIES, missing_packs, way_out_of_hole
from snapfs.store.readonly import reading_uri, still_catalog
from snapfs.store.rows import PackRow, hold_row, request_row, snapshot_row, volume_row

LOGS = ('-wal', '-shm')
_PACKS = 'SELECT pack, name, kind, state, bytes, records FROM pack ORDER BY pack'
NOT_LOOKED_AT = (
    'Nothing was changed: a catalog that could not be looked at is not a damaged one. Call again as its '
    'owner, or when it can be read.'
)
# What a disk says of bytes that it has lost; a filesystem with checksums of its own says the other two.
LOST_BYTES = (errno.EIO, errno.EBADMSG, errno.EUCLEAN)
ABOUT_CONTENT = (
    sqlite3.SQLITE_ERROR,
    sqlite3.SQLITE_CORRUPT,
    sqlite3.SQLITE_NOTADB,
    sqlite3.SQLITE_FORMAT,
    sqlite3.SQLITE_SCHEMA,
    sqlite3.SQLITE_TOOBIG,
    sqlite3.SQLITE_MISMATCH,
)
READ: dict[str, Callable[[tuple[Any, ...]], object]] = {
    'volume': volume_row,
    'snapshot': snapshot_row,
    'request': request_row,
    'hold': hold_row,
}


def catalog_is_whole(disk: Disk, store: Path) -> bool:
    """Return whether the catalog is whole. It is not touched: with a log beside it, a copy is looked at.

    False only when it is not there, or what can be read of it proves that it is damaged. Whatever else keeps
    us from looking says nothing of it, and is raised: Invalid (permission, a link), Unavailable, Corrupt (the
    disk does not let it be opened), OSError (no room for the copy)."""
    path = store / 'catalog.sqlite'
    if path.is_symlink():
        raise Invalid(
            f'{path} is a symbolic link', advice='Put the catalog itself there, or remove the link.'
        )
    try:
        if not _can_be_read(disk, path):
            return False
        if disk.exists(Path(f'{path}-wal')) and not _can_be_read(disk, Path(f'{path}-wal')):
            return False
    except FileNotFoundError:
        return False
    try:
        return _is_whole(path)
    except UnicodeDecodeError:  # SQLite quotes damaged names, which need not be UTF-8
        return False
    except sqlite3.Error as error:
        if _proves_damage(error):
            return False
        raise Unavailable(f'{path} could not be checked: {error}', advice=NOT_LOOKED_AT) from error


def _can_be_read(disk: Disk, path: Path) -> bool:
    """Return whether all of a file can be read; False when it is none, or the disk has lost a part of it."""
    try:
        fd = disk.open_read(path)
    except SnapfsError as error:
        if isinstance(error, Corrupt) and error.__cause__ is None:
            return False  # it is no file
        raise type(error)(str(error), advice=NOT_LOOKED_AT) from error
    try:
        for offset in range(0, disk.size(fd), limits.MIB):
            disk.pread(fd, limits.MIB, offset)
    except Corrupt as error:
        cause = error.__cause__
        if isinstance(cause, OSError) and cause.errno in LOST_BYTES:
            return False
        raise Unavailable(f'{path}: {error}', advice=NOT_LOOKED_AT) from error
    finally:
        disk.close(fd)
    return True


def _proves_damage(error: sqlite3.Error) -> bool:
    """Return whether an error of SQLite is about what is in the file; all of it could be read before. One
    without a code is of Python's: a text that is none."""
    code = getattr(error, 'sqlite_errorcode', None)
    return code is None or code == sqlite3.SQLITE_IOERR_SHORT_READ or code & 0xFF in ABOUT_CONTENT


def refuse_whole(disk: Disk, store: Path) -> None:
    """Raise Refused(EEXIST) when the catalog is whole: there is nothing to make anew, and a rebuild would
    forget things. What else of the store is missing is told, with what helps: that is why somebody calls."""
    if not catalog_is_whole(disk, store):
        return
    missing, advice = _hole(disk, store)
    raise Refused(
        errno.EEXIST,
        f'the catalog is whole, and a rebuild would only forget things{"; but " * bool(missing)}{missing}',
        advice=advice or f'See: snapfs fsck {store}.',
    )


def _hole(disk: Disk, store: Path) -> tuple[str, str]:
    """Return what of a store with a whole catalog is seen to be missing, and what helps; nothing when all is
    there, or cannot be looked at."""
    for name in DIRECTORIES:
        if not disk.exists(store / name):
            return f'{store / name} is missing', way_out_of_hole(store, name)
    try:
        found = missing_packs(store, _pack_rows(store / 'catalog.sqlite'))
    except (sqlite3.Error, SnapfsError):
        return '', ''
    return found.text(), (
        f'snapfs damage {store} names the files that are lost; snapfs recover VOLUME@SNAPSHOT '
        f'--store {store} brings back what other copies have, and donors.'
    ) * bool(found.text())


def _pack_rows(path: Path) -> list[PackRow]:
    still = still_catalog(path)
    try:
        with closing(sqlite3.connect(reading_uri(path, still), uri=True)) as db:
            return [PackRow(*row) for row in db.execute(_PACKS)]
    finally:
        still.close()


def _is_whole(path: Path) -> bool:
    log = Path(f'{path}-wal')
    with ExitStack() as stack:
        options = '?mode=ro&immutable=1'
        if log.is_file() and log.stat().st_size:
            # Opening it would bring the log into the file, or index it: neither may happen to the original.
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix='snapfs-'))
            for suffix in ('', '-wal'):
                shutil.copyfile(f'{path}{suffix}', f'{folder}/catalog.sqlite{suffix}')
            path, options = Path(folder) / 'catalog.sqlite', ''
        db = stack.enter_context(closing(sqlite3.connect(f'file:{quote(str(path))}{options}', uri=True)))
        if not _is_ours(db):
            return False
        return bool(db.execute('PRAGMA integrity_check(1)').fetchone() == ('ok',))


def schema_of(db: sqlite3.Connection) -> tuple[int, int, bool]:
    """Return application id and version of a catalog, and whether it has the tables of this version, and no
    others. sqlite3.Error."""
    version = db.execute('PRAGMA user_version').fetchone()[0]
    application = db.execute('PRAGMA application_id').fetchone()[0]
    found = dict(db.execute('SELECT name, sql FROM sqlite_schema WHERE sql IS NOT NULL'))
    same = {name: (text or '').strip() for name, text in found.items()} == {
        name: text.strip() for name, text in schema.TABLES.items()
    }
    return application, version, same


def _is_ours(db: sqlite3.Connection) -> bool:
    """Return whether a store would open with this catalog: its tables, its settings, the rows of names.
    Refused when a newer program has made it."""
    application, version, same = schema_of(db)
    if application == schema.APPLICATION_ID and version > schema.SCHEMA_VERSION and not same:
        raise Refused(errno.EPERM, f'the catalog is one of version {version}, which a newer program has made')
    if application == schema.APPLICATION_ID and OLDEST_VERSION <= version < schema.SCHEMA_VERSION:
        return True  # it becomes one of this version when the store is opened
    if not same or version != schema.SCHEMA_VERSION:
        return False
    settings = dict(db.execute('SELECT key, value FROM settings'))
    if not all(isinstance(settings.get(key), int) for key in schema.SETTINGS_INITIAL):
        return False
    try:
        for table, read in READ.items():
            for row in db.execute(f'SELECT * FROM {table}'):
                read(row)
    except Corrupt:
        return False
    return True


def install(disk: Disk, store: Path, target: Path, uuid: bytes, replay: bool) -> list[str]:
    """Put the new catalog in place; return the names under which old files are kept. `replay`: the journal
    that is there belongs to the new catalog. Corrupt, nothing changed, when `target` is not in the store."""
    if target.parent != store:
        raise Corrupt(f'made, but not installed: {target} does not lie in {store}')
    kept = []
    old = [suffix for suffix in ('', *LOGS) if disk.exists(store / f'catalog.sqlite{suffix}')]
    # A log whose catalog a power cut has left aside already goes where that one is.
    aside = free_name(disk, store, 'catalog.sqlite.lost-', old)
    for suffix in old:
        disk.rename(store / f'catalog.sqlite{suffix}', store / f'{aside}{suffix}')
        disk.sync_directory(store)
        kept.append(f'{aside}{suffix}')
    if not replay:
        if disk.exists(store / 'journal'):
            name = free_name(disk, store, 'journal.lost-', [''])
            disk.rename(store / 'journal', store / name)
            disk.sync_directory(store)
            kept.append(name)
        Journal.create(disk, store / 'journal', uuid)
        disk.sync_directory(store)
    disk.rename(target, store / 'catalog.sqlite')
    disk.sync_directory(store)
    for suffix in LOGS:  # of the new catalog, empty: all of it is in the file
        if disk.exists(Path(f'{target}{suffix}')):
            disk.unlink(Path(f'{target}{suffix}'))
    return kept


def free_name(disk: Disk, store: Path, stem: str, suffixes: list[str]) -> str:
    """Return the first name that begins so, and under which, with each suffix, nothing is kept yet."""
    number = 1
    while any(disk.exists(store / f'{stem}{number}{suffix}') for suffix in suffixes):
        number += 1
    return f'{stem}{number}'
