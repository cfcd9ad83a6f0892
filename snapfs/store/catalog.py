"""L2 catalog: the small precious rows and the chunk index, in SQLite; the one commit point. Blocking; any
thread.

One connection writes, under a lock; reads take a read-only connection from a pool, so that a look-up in a
worker thread neither waits for a commit nor shares a cursor. No read transaction outlives one function. Each
statement costs the caller's thread one hand-over of the interpreter lock, so bulk work is single statements:
inserts of 1,000 rows, look-ups of any number of ids that come back as one aggregated row.
"""

from __future__ import annotations

import errno
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any
from urllib.parse import quote

from snapfs import limits
from snapfs.errors import Corrupt, Refused, Unavailable
from snapfs.store import schema
from snapfs.store.audit import AuditHead, Place
from snapfs.store.durable import Disk
from snapfs.store.integrity import problem_of
from snapfs.store.migrate import OLDEST_VERSION, migrate
from snapfs.store.readonly import StillCatalog, still_catalog
from snapfs.store.rows import (
    ChunkRow,
    Commit,
    HeadUpdate,
    HoldRow,
    IncidentRow,
    Location,
    PackRow,
    RequestPart,
    RequestRow,
    SnapshotRow,
    VolumeRow,
    check_row,
    clean_text,
    pack_row,
)
from snapfs.store.sqlite_errors import sqlite_error
from snapfs.store.taken_away import Places, put_back_catalog

__all__ = [
    'Catalog',
    'ChunkRow',
    'Commit',
    'HeadUpdate',
    'HoldRow',
    'IncidentRow',
    'Location',
    'PackRow',
    'RequestPart',
    'RequestRow',
    'SnapshotRow',
    'VolumeRow',
]

# The ids come as one blob and go out by their position: one statement text for any number of them, one row as
# answer.
_LOCATE = """
WITH RECURSIVE wanted(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM wanted WHERE i + 1 < ?2)
SELECT group_concat(i || ' ' || pack || ' ' || offset || ' ' || stored || ' ' || plain, ' ')
FROM wanted CROSS JOIN {table} ON {table}.id = substr(?1, 32 * i + 1, 32)
"""
LOCATE_CHUNK = _LOCATE.format(table='chunk')
LOCATE_QUARANTINE = _LOCATE.format(table='quarantine')
LOCATE_FREED = _LOCATE.format(table='freed')
# A chunk put again between two commits has one location already; that one is as good and stays.
_INSERT_CHUNKS = 'INSERT INTO chunk VALUES {rows} ON CONFLICT (id) DO NOTHING'
_CHUNK_VALUES = '(?,?,?,?,?,?,?,?)'


class Catalog:
    """The catalog of one store. Every method is one transaction unless it says otherwise."""

    def __init__(self, disk: Disk, path: Path) -> None:
        self._disk = disk
        self._path = path
        self._lock = threading.RLock()
        self._readers: list[sqlite3.Connection] = []
        self._writer: sqlite3.Connection | None = None
        self._still: StillCatalog | None = None  # set where nothing can be written
        self._audit_head: AuditHead | None = None  # as stored
        self.audit_known: Callable[[], AuditHead | None] = lambda: None  # as durable in the audit log
        self._places = Places(path)
        self.on_taken_away: Callable[[str], object] = disk.latch
        self.epoch = 0
        self.journal_sequence = 0

    # --- open and close ----------------------------------------------------------------------------------
    @classmethod
    def create(cls, disk: Disk, path: Path) -> Catalog:
        """Make a new catalog file (0600) and open it."""
        disk.close(disk.open_write(path, create=True))
        catalog = cls(disk, path)
        writer = catalog._connect('rw')
        catalog._writer = writer
        with catalog._errors():
            writer.execute('PRAGMA journal_mode = WAL')
            writer.execute(f'PRAGMA application_id = {schema.APPLICATION_ID}')
            writer.execute(f'PRAGMA user_version = {schema.SCHEMA_VERSION}')
        with catalog.transaction() as db:
            for text in schema.TABLES.values():
                db.execute(text)
            db.executemany('INSERT INTO settings VALUES (?, ?)', schema.SETTINGS_INITIAL.items())
        return catalog

    @classmethod
    def open(cls, disk: Disk, path: Path) -> Catalog:
        """Open a catalog and check that it is one of ours; Corrupt otherwise."""
        disk.close(disk.open_read(path))  # a regular file, no link
        catalog = cls(disk, path)
        if disk.is_read_only(path):
            catalog._still = still_catalog(path)
        try:
            catalog._writer = catalog._connect('rw')
            catalog._check_schema(catalog._writer)
            catalog.epoch = catalog.setting('epoch')
            catalog.journal_sequence = catalog.setting('journal_sequence')
            problem = catalog.problem(schema.SMALL)
            if problem:
                raise Corrupt(f'catalog: {problem}')
        except BaseException:
            catalog.close()
            raise
        return catalog

    def _connect(self, mode: str) -> sqlite3.Connection:
        if self._still is None:
            target = f'file:{quote(str(self._path))}?mode={mode}'
        else:
            target = f'{self._still.uri}?mode={mode if self._still.folder else "ro"}{self._still.options}'
        try:
            connection = sqlite3.connect(
                target,
                uri=True,
                isolation_level=None,
                check_same_thread=False,
            )
            connection.execute('PRAGMA trusted_schema = OFF')
            connection.execute('PRAGMA cell_size_check = ON')
            connection.execute('PRAGMA synchronous = FULL')
            connection.execute('PRAGMA foreign_keys = ON')
            connection.execute('PRAGMA temp_store = MEMORY')
            connection.execute(f'PRAGMA cache_size = -{limits.CATALOG_CACHE_BYTES // limits.KIB}')
        except sqlite3.Error as error:
            raise sqlite_error(error, self._disk) from error
        return connection

    def _check_schema(self, db: sqlite3.Connection) -> None:
        with self._errors():
            application = db.execute('PRAGMA application_id').fetchone()[0]
            version = db.execute('PRAGMA user_version').fetchone()[0]
            if application == schema.APPLICATION_ID and OLDEST_VERSION <= version < schema.SCHEMA_VERSION:
                if self._still is not None:
                    raise Unavailable(
                        f'catalog: version {version}; this program reads {schema.SCHEMA_VERSION}',
                        advice='Open the store once where it can be written.',
                    )
                migrate(db, version)
                self._disk.database_committed(db)
                version = schema.SCHEMA_VERSION
            found = db.execute('SELECT name, sql FROM sqlite_schema WHERE sql IS NOT NULL').fetchall()
        if application != schema.APPLICATION_ID:
            raise Corrupt(f'{self._path} is not a catalog of snapfs')
        if version != schema.SCHEMA_VERSION:
            raise Corrupt(f'catalog: schema version {version}; this program reads {schema.SCHEMA_VERSION}')
        if {name: text.strip() for name, text in found} != {n: t.strip() for n, t in schema.TABLES.items()}:
            raise Corrupt('catalog: the schema is not that of its version')

    def close(self) -> None:
        """Close every connection. Nobody may be using one."""
        with self._lock:
            for connection in [*self._readers, self._writer]:
                if connection is not None:
                    connection.close()
            self._readers.clear()
            self._writer = None
            if self._still is not None:
                self._still.close()

    def _check_place(self) -> None:
        """Raise Latched when nothing can be written, or nobody would find it."""
        self._disk.check()
        taken = '' if self.still else self._places.taken_away()
        if taken:
            self.on_taken_away(f'{taken} was deleted, or replaced, while the store was open')
            self._disk.check()

    def put_back(self) -> None:
        """Give the catalog its file again, where that was taken away, with all that was committed; what has
        the name meanwhile stays as catalog.sqlite.lost-N. For a store that stops: what is committed after it
        goes nowhere. SnapfsError, OSError."""
        assert self._writer is not None, 'the catalog is closed'
        with self._lock, self._errors():
            put_back_catalog(self._disk, self._writer, self._path)

    @property
    def latched(self) -> str | None:
        """Why nothing is written any more, or None."""
        return self._disk.latched

    @property
    def still(self) -> bool:
        """Whether nothing is written beside it, not even what SQLite needs to read its log."""
        return self._still is not None

    # --- reading and writing -----------------------------------------------------------------------------
    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise sqlite_error(error, self._disk) from error
        except UnicodeDecodeError as error:  # SQLite quotes damaged names, which need not be UTF-8
            raise Corrupt(f'catalog: {error}') from error

    @contextmanager
    def transaction(self, even_latched: bool = False) -> Iterator[sqlite3.Connection]:
        """The write transaction, durable when the block ends without an error, undone otherwise. Latched when
        the disk is, except for incidents, which are about that."""
        with self._lock:
            if not even_latched:
                self._check_place()
            assert self._writer is not None, 'the catalog is closed'
            db = self._writer
            with self._errors():
                db.execute('BEGIN IMMEDIATE')
                try:
                    yield db
                    head = self._write_audit_head(db)
                    db.execute('COMMIT')
                except BaseException:
                    if db.in_transaction:
                        db.execute('ROLLBACK')
                    raise
            self._audit_head = head
            self._disk.database_committed(db)

    def _write_audit_head(self, db: sqlite3.Connection) -> AuditHead | None:
        """Store what the audit log has by now, in the caller's transaction: a log cut short later on shows
        (L20)."""
        head = self.audit_known()
        if head is not None and head != self._audit_head:
            db.execute(
                'INSERT OR REPLACE INTO audit_head VALUES (1, ?, ?, ?, ?, ?, ?)', (*head.end, *head.base)
            )
        return head

    def keep_audit_head(self) -> None:
        """Store now what the audit log must contain at least."""
        with self.transaction():
            pass

    def audit_head(self) -> AuditHead | None:
        """Return what the audit log must contain at least; None when no transaction followed a line yet."""
        rows = self.query('SELECT * FROM audit_head')
        if not rows:
            return None
        head = AuditHead(Place(*rows[0][1:4]), Place(*rows[0][4:7]))
        check_row(head)
        if min(*head.end[:2], *head.base[:2]) < 0:
            raise Corrupt('catalog: an audit log that ends before its beginning')
        return head

    @contextmanager
    def reserved(self) -> Iterator[None]:
        """While inside, this thread alone begins transactions. For taking other locks before the transaction
        without waiting in them for somebody else's."""
        with self._lock:
            yield

    def checkpoint(self) -> None:
        """Bring the write-ahead log into the catalog file, so that the file alone tells what is so."""
        with self._lock, self._errors():
            self._disk.check()
            assert self._writer is not None, 'the catalog is closed'
            self._writer.execute('PRAGMA wal_checkpoint(TRUNCATE)').fetchall()

    def query(self, text: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Return all rows of one SELECT, on a read-only connection."""
        try:
            connection = self._readers.pop()
        except IndexError:
            connection = self._connect('ro')
        try:
            return connection.execute(text, values).fetchall()
        except sqlite3.Error as error:
            raise sqlite_error(error, self._disk) from error
        finally:
            self._readers.append(connection)

    @contextmanager
    def snapshot(self) -> Iterator[Callable[[str], list[tuple[Any, ...]]]]:
        """Yield what answers SELECTs as of one moment. For a few rows: the log is not recycled meanwhile."""
        connection = self._connect('ro')
        try:
            with self._errors():
                connection.execute('BEGIN')
                yield lambda text: connection.execute(text).fetchall()
        finally:
            connection.close()

    def problem(self, tables: Iterable[str] = ()) -> str:
        """Return what SQLite finds wrong with the pages of these tables (none: of the whole file), '' when
        nothing is. A second for a million rows, on a connection of its own; the log is not recycled
        meanwhile. Values that cannot be are none of its business: whoever reads a row checks it."""
        connection = self._connect('ro')
        try:
            return problem_of(connection, tables)
        except sqlite3.Error as error:
            raise sqlite_error(error, self._disk) from error
        finally:
            connection.close()

    def setting(self, key: str) -> int:
        """Return a value of the settings table."""
        rows = self.query('SELECT value FROM settings WHERE key = ?', (key,))
        if not rows or not isinstance(rows[0][0], int):
            raise Corrupt(f'catalog: setting {key} is missing')
        return rows[0][0]

    def set_setting(self, key: str, value: int) -> None:
        """Change a value of the settings table."""
        assert key in schema.SETTINGS_INITIAL
        with self.transaction() as db:
            db.execute('UPDATE settings SET value = ? WHERE key = ?', (value, key))

    # --- the chunk index ---------------------------------------------------------------------------------
    def locate(self, ids: Sequence[bytes], statement: str = LOCATE_CHUNK) -> dict[bytes, Location]:
        """Return where chunks are, for those of `ids` that the index has. One statement per 500 ids.

        Looks in `chunk` alone, as deduplication must (P3); LOCATE_QUARANTINE and LOCATE_FREED look elsewhere.
        """
        found: dict[bytes, Location] = {}
        for start in range(0, len(ids), limits.LOCATE_IDS_MAX):
            part = ids[start : start + limits.LOCATE_IDS_MAX]
            answer = self.query(statement, (b''.join(part), len(part)))[0][0]
            if answer is not None:
                try:
                    numbers = [int(number) for number in answer.split(' ')]
                except ValueError:
                    raise Corrupt('catalog: a place of a chunk that is no number') from None
                for n in range(0, len(numbers), 5):
                    found[part[numbers[n]]] = checked_location(Location(*numbers[n + 1 : n + 5]))
        return found

    def packs(self) -> list[PackRow]:
        """Return every pack that is not gone."""
        return [
            pack_row(row) for row in self.query('SELECT pack, name, kind, state, bytes, records FROM pack')
        ]

    def put_packs(self, rows: Iterable[PackRow]) -> None:
        """Insert or update packs outside a commit: after a recovery."""
        with self.transaction() as db:
            write_packs(db, rows)

    def commit(self, commit: Commit) -> int:
        """Make new roots current; return the new epoch. The caller has synced all bytes that the rows name
        (P4)."""
        with self.transaction() as db:
            epoch = self.epoch + 1
            for head in commit.heads:
                changed = db.execute(
                    'UPDATE volume SET root = ?, root_items = ?, root_refs = ?, next_ino = ? '
                    'WHERE volume = ?',
                    (head.root, head.root_items, head.root_refs, head.next_ino, head.volume),
                ).rowcount
                assert changed == 1, f'volume {head.volume} is gone'
            insert_chunks(db, commit.chunks, epoch)
            _check_roots(db, commit.heads)
            write_packs(db, commit.packs)
            for part in commit.dropped:
                write_dropped(db, part, epoch, commit.time_ns)
            assert commit.journal_sequence >= self.journal_sequence, (
                'P5: the journal position never goes back'
            )
            db.executemany(
                'UPDATE settings SET value = ? WHERE key = ?',
                [(epoch, 'epoch'), (commit.journal_sequence, 'journal_sequence')],
            )
        self.epoch = epoch
        self.journal_sequence = commit.journal_sequence
        return epoch

    # --- incidents ---------------------------------------------------------------------------------------
    def incidents(self, scope: str | None = None, in_force: bool = True) -> list[IncidentRow]:
        """Return incidents, oldest first: those in force, or all."""
        rows = [IncidentRow(*row) for row in self.query('SELECT * FROM incident ORDER BY number')]
        for row in rows:
            check_row(row)
        return [
            row
            for row in rows
            if (scope is None or row.scope == scope) and not (in_force and row.acknowledged_ns is not None)
        ]

    def incident_add(self, scope: str, reason: str, now_ns: int, batch: int | None = None) -> IncidentRow:
        """Record an incident; it is in force until `incident_acknowledge`."""
        with self.transaction(even_latched=True) as db:
            number = take_number(db, 'next_incident')
            row = IncidentRow(number, scope, now_ns, clean_text(reason), None, None, batch)
            db.execute(
                'INSERT INTO incident VALUES (?, ?, ?, ?, NULL, NULL, ?)',
                (number, scope, now_ns, row.reason, batch),
            )
        return row

    def incident_acknowledge(self, number: int, who: str, now_ns: int) -> None:
        """A person has looked. Refused(ENOENT) when no such incident is in force."""
        with self.transaction(even_latched=True) as db:
            changed = db.execute(
                'UPDATE incident SET acknowledged_ns = ?, acknowledged_by = ? '
                'WHERE number = ? AND acknowledged_ns IS NULL',
                (now_ns, clean_text(who), number),
            ).rowcount
            if changed != 1:
                raise Refused(errno.ENOENT, f'no incident {number} is in force')


def checked_location(location: Location) -> Location:
    """Raise Corrupt when a location from disk cannot be one; memory is spent on it afterwards."""
    if not (
        0 <= location.offset <= limits.PACK_DATA_BYTES_MAX
        and 0 <= location.stored_length <= limits.STORED_BYTES_MAX
        and 0 <= location.plain_length <= limits.PLAIN_BYTES_MAX
    ):
        raise Corrupt(f'catalog: impossible location {tuple(location)}')
    return location


def _check_roots(db: sqlite3.Connection, heads: Sequence[HeadUpdate]) -> None:
    """P1: a new root that the index does not have would be lost at the next open, with everything below
    it."""
    for head in heads:
        if head.root is not None:
            row = db.execute('SELECT 1 FROM chunk WHERE id = ?', (head.root,)).fetchone()
            assert row is not None, f'P1: the root of volume {head.volume} is not among the chunks committed'


def take_number(db: sqlite3.Connection, counter: str) -> int:
    """Return the next number of a counter in `settings`, inside the caller's transaction. Never handed out
    again."""
    row = db.execute(
        'UPDATE settings SET value = value + 1 WHERE key = ? RETURNING value', (counter,)
    ).fetchone()
    if row is None:
        raise Corrupt(f'catalog: setting {counter} is missing')
    return int(row[0]) - 1


def insert_chunks(db: sqlite3.Connection, rows: Sequence[ChunkRow], epoch: int) -> None:
    """Insert index rows, up to 1,000 in a statement, in the order of their ids (neighbours share pages)."""
    ordered = sorted(rows)
    for start in range(0, len(ordered), limits.INSERT_ROWS_MAX):
        part = ordered[start : start + limits.INSERT_ROWS_MAX]
        values = list(chain.from_iterable((*row, epoch) for row in part))
        db.execute(_INSERT_CHUNKS.format(rows=','.join([_CHUNK_VALUES] * len(part))), values)


def write_packs(db: sqlite3.Connection, rows: Iterable[PackRow]) -> None:
    """Insert or update packs. Their numbers are never handed out again."""
    for row in rows:
        db.execute(
            'INSERT INTO pack VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (pack) DO UPDATE '
            'SET state = excluded.state, bytes = excluded.bytes, records = excluded.records',
            (row.pack, row.name, row.kind, row.state, row.bytes, row.records),
        )
        db.execute("UPDATE settings SET value = max(value, ?) WHERE key = 'next_pack'", (row.pack + 1,))


def write_dropped(db: sqlite3.Connection, part: RequestPart, epoch: int, time_ns: int) -> None:
    """Add the request for what one commit dropped from one volume."""
    name = db.execute('SELECT name FROM volume WHERE volume = ?', (part.volume,)).fetchone()[0]
    number = take_number(db, 'next_request')
    db.execute(
        'INSERT INTO request VALUES '
        "(?, 'dropped', ?, ?, x'', 0, NULL, 0, 0, 0, ?, ?, '', NULL, ?, '', ?, NULL, NULL, NULL, NULL)",
        (number, part.volume, name, epoch, time_ns, time_ns, epoch),
    )
    slices = [
        (kind, b''.join(ids[start : start + limits.INSERT_ROWS_MAX]))
        for kind, ids in (('chunks', part.chunks), ('subtrees', part.subtrees))
        for start in range(0, len(ids), limits.INSERT_ROWS_MAX)
    ]
    db.executemany(
        'INSERT INTO request_part VALUES (?, ?, ?, ?)',
        [(number, n, kind, ids) for n, (kind, ids) in enumerate(slices)],
    )
