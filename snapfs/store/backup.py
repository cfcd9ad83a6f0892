"""L2 backup: the rows of the catalog that packs cannot give back, in small files beside it. Blocking; any
thread.

STORE/backups/EPOCH-TIME.json is one JSON object, keys sorted, no spaces, and a newline: "backup" 1, "store"
(uuid), "schema", "epoch", "made_ns", "tables" (name: list of rows; bytes are {"x": hexadecimal}), "digest"
(BLAKE3-256 of the object without it). Left out are the index, and what only says what may go: a store that
is made anew keeps all of that. The rows are read in one transaction, so roots, position in the journal, epoch
and the ends of packs fit each other.

STORE/backups/superblock and STORE/mirror/superblock are copies of the superblock, the same bytes: whoever
loses one directory has the other.

A backup is written when these rows have changed: a few seconds after a volume or a snapshot was made, renamed
or asked to go, since nothing else can give a name back; else once a minute at most; and at a clean close. It
is read back, and only then an older one goes: the newest two stay, the last of each of the BACKUPS_RECENT
newest minutes, and the last of each of the BACKUPS_DAYS newest days."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from snapfs import limits
from snapfs.errors import Corrupt, SnapfsError
from snapfs.format.ids import data_id
from snapfs.format.superblock import SUPERBLOCK_BYTES, Superblock, decode_superblock
from snapfs.store import schema
from snapfs.store.catalog import Catalog
from snapfs.store.cells import columns_of
from snapfs.store.durable import Disk

log = logging.getLogger('snapfs.store')

VERSION = 1
FOLDER = 'backups'
SUPERBLOCK = 'superblock'
COPIES = (FOLDER, 'mirror')  # where copies of it are
# The index comes back from packs. Quarantine, freed and lists of what was asked to go only say what may go.
LEFT_OUT = frozenset({'chunk', 'quarantine', 'freed', 'request_part', 'damage', 'scrubbed', 'audit_head'})
TABLES = tuple(name for name in schema.TABLES if name not in LEFT_OUT)
# Settings that change by themselves are no reason for a backup. (A commit that changes nothing is an epoch.)
RESTLESS = frozenset({'epoch', 'trusted_ns', 'trusted_wall_ns', 'trusted_boot_ns', 'clean', 'unclean_opens'})
MINUTE_NS, DAY_NS = 60 * 10**9, 86_400 * 10**9


@dataclass(frozen=True, slots=True)
class Backup:
    """What a backup holds; bytes are bytes again."""

    path: Path
    store: bytes
    epoch: int
    made_ns: int
    tables: dict[str, list[list[Any]]]


class Backups:
    """The backups of one open store."""

    def __init__(self, disk: Disk, store: Path, uuid: bytes, catalog: Catalog) -> None:
        self._disk = disk
        self._folder = store / FOLDER
        self._uuid = uuid
        self._catalog = catalog
        self._last = b''
        self.problem = ''  # why the last one could not be written

    def write(self, now_ns: int) -> bool:
        """Write a backup if something has changed; return whether one was written. Never raises: a store
        without a new backup is as good as before, and says so."""
        if self._disk.latched is not None:
            return False
        try:
            written = self._write(now_ns)
        except (SnapfsError, OSError) as error:
            if str(error) != self.problem:
                log.warning('no backup of the catalog: %s', error)
            self.problem = str(error)
            return False
        self.problem = ''
        return written

    def _write(self, now_ns: int) -> bool:
        keep_superblock(self._disk, self._folder.parent)
        tables = self._read()
        state = _state(tables)
        if not self._last:  # else each command on a store that is not mounted would push an old one out
            before = newest(self._disk, self._folder.parent, self._uuid)
            self._last = _state(before.tables) if before is not None else b''
        if state == self._last:
            return False
        epoch = next(row[1] for row in tables['settings'] if row[0] == 'epoch')
        path = self._folder / f'{epoch:012d}-{now_ns}.json'
        self._disk.write_file(path, encode(self._uuid, epoch, now_ns, tables))
        decode(path, self._disk.read_file(path, limits.BACKUP_BYTES_MAX), self._uuid)
        self._last = state
        self._rotate()
        return True

    def _read(self) -> dict[str, list[list[Any]]]:
        with self._catalog.snapshot() as query:
            return {name: [list(row) for row in query(f'SELECT * FROM {name} ORDER BY 1')] for name in TABLES}

    def _rotate(self) -> None:
        names = [name for name in self._disk.listdir(self._folder) if _made(name)]
        for name in expired(names):
            self._disk.unlink(self._folder / name)


def keep_superblock(disk: Disk, store: Path) -> None:
    """See that there are copies of the superblock. Corrupt, nothing written, when that is not whole."""
    data = disk.read_file(store / SUPERBLOCK, SUPERBLOCK_BYTES)
    decode_superblock(data)
    for name in COPIES:
        if disk.mkdir(store / name):
            disk.sync_directory(store)
        if not _holds(disk, store / name / SUPERBLOCK, data):
            disk.write_file(store / name / SUPERBLOCK, data)


def _holds(disk: Disk, path: Path, data: bytes) -> bool:
    try:
        return disk.exists(path) and disk.read_file(path, len(data)) == data
    except Corrupt:  # it is longer, or the disk has lost it: it is written anew
        return False


def superblock_copies(disk: Disk, store: Path) -> Iterator[Superblock]:
    """Yield the copies of the superblock that are whole."""
    for name in COPIES:
        try:
            yield decode_superblock(disk.read_file(store / name / SUPERBLOCK, SUPERBLOCK_BYTES + 1))
        except (OSError, Corrupt):
            continue


def _state(tables: dict[str, list[list[Any]]]) -> bytes:
    kept = [row for row in tables['settings'] if row[0] not in RESTLESS]
    return data_id(_text({**tables, 'settings': kept}))


def expired(names: list[str]) -> list[str]:
    """Return which backups are not needed any more. Many that were written within a minute, since many
    snapshots were taken, do not push out those of the minutes before."""
    ordered = sorted(names, key=_order, reverse=True)
    keep = set(ordered[:2])
    for span_ns, count in ((MINUTE_NS, limits.BACKUPS_RECENT), (DAY_NS, limits.BACKUPS_DAYS)):
        spans: dict[int, str] = {}
        for name in ordered:
            spans.setdefault(_made(name) // span_ns, name)
        keep.update(list(spans.values())[:count])
    return [name for name in ordered if name not in keep]


def _order(name: str) -> tuple[int, int]:
    # Epochs only grow; a clock that was set back must not make an old backup the newest.
    made = _made(name)
    return (int(name.partition('-')[0]) if made else 0), made


def _made(name: str) -> int:
    stem, _, time_ns = name.removesuffix('.json').partition('-')
    good = (
        name.endswith('.json')
        and stem.isascii()
        and stem.isdigit()
        and time_ns.isascii()
        and time_ns.isdigit()
    )
    return int(time_ns) if good else 0


# --- bytes -----------------------------------------------------------------------------------------------
def encode(uuid: bytes, epoch: int, now_ns: int, tables: dict[str, list[list[Any]]]) -> bytes:
    """Return the bytes of a backup."""
    fields = {
        'backup': VERSION,
        'store': uuid.hex(),
        'schema': schema.SCHEMA_VERSION,
        'epoch': epoch,
        'made_ns': now_ns,
        'tables': tables,
    }
    return _text({**fields, 'digest': data_id(_text(fields)).hex()})


def decode(path: Path, data: bytes, uuid: bytes) -> Backup:
    """Return a backup. Corrupt unless it is whole, of this version, and of this store."""
    try:
        fields = json.loads(data, object_hook=_bytes)
        digest = fields.pop('digest')
        epoch, made_ns, tables = fields['epoch'], fields['made_ns'], fields['tables']
        whole = data_id(_text(fields)).hex() == digest and encode(uuid, epoch, made_ns, tables) == data
        if not whole and data_id(_text(fields)).hex() == digest and fields['store'] != uuid.hex():
            raise Corrupt(f'{path.name} is a backup of store {fields["store"]:.80}')
        if not (whole and type(epoch) is int and type(made_ns) is int):
            raise Corrupt(f'{path.name} is no backup that this program knows, or is damaged')
        _check_tables(path, tables)
        return Backup(path, uuid, epoch, made_ns, tables)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Corrupt(f'{path.name} is no backup: {error}') from error


def _check_tables(path: Path, tables: Any) -> None:
    """Raise Corrupt unless these rows are such as the tables of the catalog hold: a right digest says who
    wrote them, not that they make sense."""
    if type(tables) is not dict or set(tables) != set(TABLES):
        raise Corrupt(f'{path.name} has not the tables of a catalog')
    for name, rows in tables.items():
        shape = columns_of(name)
        if type(rows) is not list or not all(_fits(row, shape) for row in rows):
            raise Corrupt(f'{path.name}: a row of table {name} cannot be one')
    missing = schema.SETTINGS_INITIAL.keys() - {row[0] for row in tables['settings']}
    if missing:
        raise Corrupt(f'{path.name} does not have the setting {min(missing)}')


def _fits(row: Any, shape: tuple[tuple[str, type, bool], ...]) -> bool:
    if type(row) is not list or len(row) != len(shape):
        return False
    for value, (_, kind, nullable) in zip(row, shape, strict=True):
        if value is None:
            good = nullable
        else:
            good = type(value) is kind
            if kind is int:
                good = good and -(1 << 63) <= value < 1 << 63
            elif kind is str:
                value.encode()  # UnicodeEncodeError is a ValueError, which the caller expects
        if not good:
            return False
    return True


def newest(disk: Disk, store: Path, uuid: bytes) -> Backup | None:
    """Return the newest backup that is whole, or None."""
    return next(whole(disk, store, uuid), None)


def whole(disk: Disk, store: Path, uuid: bytes) -> Iterator[Backup]:
    """Yield the backups that are whole, the newest first; one at a time is in memory."""
    folder = store / FOLDER
    for name in names(disk, store):
        try:
            found = decode(folder / name, disk.read_file(folder / name, limits.BACKUP_BYTES_MAX), uuid)
        except (Corrupt, OSError) as error:
            log.warning('%s', error)
        else:
            yield found


def names(disk: Disk, store: Path) -> list[str]:
    """Return the file names of all backups, the newest first, whole or not."""
    found = disk.listdir(store / FOLDER) if disk.exists(store / FOLDER) else []
    return [name for name in sorted(found, key=_order, reverse=True) if _made(name)]


def _text(value: Any) -> bytes:
    return (json.dumps(value, sort_keys=True, separators=(',', ':'), default=_hex) + '\n').encode()


def _hex(value: object) -> dict[str, str]:
    assert isinstance(value, bytes)
    return {'x': value.hex()}


def _bytes(value: dict[str, Any]) -> Any:
    return bytes.fromhex(value['x']) if value.keys() == {'x'} else value
