"""L4 rebuild, names: the rows that packs cannot give back, from a damaged catalog. Blocking; reads only.

Mostly it is the index that is damaged, for it is nearly all of a catalog, and packs give that back. The names
of volumes and snapshots are then still there, newer than in any backup. But SQLite has no checksums, and a
bit that turns round in a row makes another row of it. So the rows of a damaged catalog are believed all
together or not at all, and only when nothing speaks against any of them: SQLite's check of their tables,
their types, what such rows can hold, what the newest backup says of what never changes, and each root, which
is a hash of its top node, and counts what is below it (rebuild.py asks that when it knows the packs). Whoever
is in doubt takes the backup: it has a digest."""

from __future__ import annotations

import errno
import os
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from snapfs import limits
from snapfs.errors import Corrupt, Invalid, Refused
from snapfs.rescue.rebuild_install import READ, schema_of
from snapfs.store import backup as backups
from snapfs.store import schema
from snapfs.store.backup import Backup
from snapfs.store.durable import Disk
from snapfs.store.readonly import reading_uri, still_catalog
from snapfs.store.registry import check_name
from snapfs.store.rows import decode_name

SECTOR_BYTES = 4096
TIME_NS_MAX = 1 << 62  # a later time is nonsense
TREE = slice(3, 7)  # of rows of volumes and snapshots: root, items, references, next inode number


class Unproved(Exception):
    """The rows of a damaged catalog are not to be believed; the text says why."""


def names_in_catalog(disk: Disk, store: Path, uuid: bytes, now_ns: int, kept: Backup | None) -> Backup | None:
    """Return the rows of a catalog that is damaged, as a backup of it would hold them; None when there is no
    catalog. `kept`: the newest backup. Unproved; Refused(ENOSPC) when there is no room for a copy."""
    path = store / 'catalog.sqlite'
    if not disk.exists(path):
        return None
    try:
        with _opened(disk, path) as db:
            if schema_of(db) != (schema.APPLICATION_ID, schema.SCHEMA_VERSION, True):
                raise Unproved('its tables are not those of a catalog of this version')
            found = _read(db, path, uuid, now_ns)
    except (sqlite3.Error, UnicodeDecodeError, Corrupt, Invalid) as error:
        raise Unproved(str(error)) from error
    _check_settings(found)
    if kept is not None:
        _check_against(found, kept)
    return found


def _has_log(path: Path) -> bool:
    log = Path(f'{path}-wal')
    return log.is_file() and log.stat().st_size > 0


# --- reading ---------------------------------------------------------------------------------------------
@contextmanager
def _opened(disk: Disk, path: Path) -> Iterator[sqlite3.Connection]:
    """Open the catalog as one that nobody changes; with a log, a copy: zeros where the disk gives nothing."""
    if not _has_log(path):
        still = still_catalog(path)
        with closing(sqlite3.connect(reading_uri(path, still), uri=True)) as db:
            yield db
        return
    with tempfile.TemporaryDirectory(prefix='snapfs-') as folder:
        try:
            for suffix in ('', '-wal'):
                _copy(disk, Path(f'{path}{suffix}'), Path(folder) / f'catalog.sqlite{suffix}')
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            text = f'{folder}: no room for a copy of the catalog'
            raise Refused(errno.ENOSPC, text, advice='Set TMPDIR.') from error
        with closing(sqlite3.connect(Path(folder) / 'catalog.sqlite')) as db:
            yield db


def _copy(disk: Disk, source: Path, to: Path) -> None:
    fd = disk.open_read(source)
    try:
        size = disk.size(fd)
        with to.open('wb') as target:
            for offset in range(0, size, limits.MIB):
                for at, data in _pieces(disk, fd, offset, min(limits.MIB, size - offset)):
                    target.seek(at)
                    target.write(data)
            target.truncate(size)
    finally:
        disk.close(fd)


def _pieces(disk: Disk, fd: int, offset: int, count: int) -> Iterator[tuple[int, bytes]]:
    """Yield what the disk gives of a part of a file: all of it, or what else it gives sector by sector."""
    try:
        yield offset, bytes(disk.pread(fd, count, offset))
        return
    except Corrupt:
        pass
    for at in range(offset, offset + count, SECTOR_BYTES):
        try:
            yield at, bytes(disk.pread(fd, min(SECTOR_BYTES, offset + count - at), at))
        except Corrupt:
            continue


def _read(db: sqlite3.Connection, path: Path, uuid: bytes, now_ns: int) -> Backup:
    db.execute('PRAGMA trusted_schema = OFF')
    tables: dict[str, list[list[Any]]] = {}
    for name in backups.TABLES:
        try:
            tables[name] = _rows(db, name)
        except (sqlite3.Error, UnicodeDecodeError) as error:
            raise Unproved(f'table {name}: {error}') from error
    epoch = next((row[1] for row in tables['settings'] if row[0] == 'epoch'), None)
    if type(epoch) is not int:
        raise Unproved('it does not say which epoch it is of')
    data = backups.encode(uuid, epoch, now_ns, tables)
    if len(data) > limits.BACKUP_BYTES_MAX:
        raise Unproved('it has more rows of names than a backup can have')
    for name, read in READ.items():
        for row in tables[name]:
            read(tuple(row))
            if name in ('volume', 'snapshot'):
                check_name(decode_name(row[2]), name)
    return backups.decode(path, data, uuid)  # which looks at types


def _rows(db: sqlite3.Connection, name: str) -> list[list[Any]]:
    # The first looks at NOT NULL, CHECK and UNIQUE as well, and at what is sorted beside a table.
    for pragma in (f'integrity_check({name})', f'foreign_key_check({name})'):
        problem = db.execute(f'PRAGMA {pragma}').fetchone()
        if problem not in (None, ('ok',)):
            raise Unproved(f'table {name}: {problem[0]}')
    return [list(row) for row in db.execute(f'SELECT * FROM {name} ORDER BY 1')]


def _settings(found: Backup) -> dict[str, int]:
    return {row[0]: row[1] for row in found.tables['settings']}


# --- what speaks against it ------------------------------------------------------------------------------
def _check_settings(found: Backup) -> None:
    for key, value in _settings(found).items():
        if not 0 <= value < (TIME_NS_MAX if key.endswith('_ns') else limits.REBUILD_NUMBER_MAX):
            raise Unproved(f'setting {key} cannot be {value}')


def _check_against(found: Backup, kept: Backup) -> None:
    """Unproved when the newest backup knows better: of numbers that only grow, of snapshots, which do not
    change, and of names that are gone although nobody asked for that."""
    then, now = _settings(kept), _settings(found)
    for key, value in then.items():
        if (key.startswith('next_') or key in ('epoch', 'journal_sequence')) and now[key] < value:
            raise Unproved(f'setting {key} is {now[key]}, and was {value} in backup {kept.path.name}')
    asked = {(row[1], row[5] if row[1] == 'snapshot' else row[2]) for row in found.tables['request']}
    for table, same in (('snapshot', (1, *range(3, 9))), ('volume', (7,))):
        rows = {row[0]: row for row in found.tables[table]}
        for old in kept.tables[table]:
            row = rows.get(old[0])
            name = os.fsdecode(old[2])
            if row is None and (table, old[0]) not in asked:
                raise Unproved(f'{table} {name!r} of backup {kept.path.name} is not in it')
            if row is not None and [row[at] for at in same] != [old[at] for at in same]:
                raise Unproved(f'{table} {name!r} is another one than in backup {kept.path.name}')


def trees_to_prove(found: Backup, kept: Backup | None) -> Iterator[tuple[str, list[Any]]]:
    """Yield (what, [root, items, references, next inode number]) of each tree that the rows name and the
    newest backup does not have as well; not of what was freed."""
    known = (
        {tuple(row[TREE]) for name in ('volume', 'snapshot') for row in kept.tables[name]} if kept else set()
    )
    freed = {row[0] for row in found.tables['batch'] if row[1] in ('CONFIRMED', 'FREED')}
    for name in ('volume', 'snapshot'):
        for row in found.tables[name]:
            if tuple(row[TREE]) not in known:
                yield f'{name} {os.fsdecode(row[2])!r}', row[TREE]
    for row in found.tables['request']:
        if row[1] in ('snapshot', 'volume') and row[18] not in freed and tuple(row[6:10]) not in known:
            yield f'request {row[0]}', row[6:10]


def ended_batch(row: tuple[Any, ...], now_ns: int) -> tuple[Any, ...]:
    """Return the row of a batch that does not move any more."""
    values = list(row)
    if values[1] in ('PLANNED', 'QUARANTINED'):
        values[1], values[16], values[17] = 'RESTORED', now_ns, 'the catalog was rebuilt'
    elif values[1] == 'CONFIRMED':
        values[1], values[15], values[16] = 'FREED', values[5], now_ns
    return tuple(values)
