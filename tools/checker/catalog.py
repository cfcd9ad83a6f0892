"""Tool fsck, catalog: its integrity, its schema, and every row by itself. One thread.

What the tables must look like is written down here once more, from their documentation: nothing is derived
from what the store writes with."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from snapfs import limits
from snapfs.errors import Corrupt
from tools.checker.cells import drop, tell_odd
from tools.checker.findings import Report
from tools.checker.rows import Rows, Unusual, can_be, rows_of, share_no_page
from tools.checker.store import Pack, Store, is_ours, query
from tools.checker.trust import LookCloser

APPLICATION_ID = 0x536E6170
VERSION = 3
COLUMNS = {
    'settings': 'key value',
    'volume': 'volume number name root root_items root_refs next_ino created_ns origin damaged_ns',
    'snapshot': 'number volume name root root_items root_refs next_ino epoch created_ns who damaged_ns',
    'hold': 'snapshot name who why created_ns until_ns',
    'request': 'number kind volume volume_name name view root root_items root_refs next_ino root_epoch '
    'created_ns created_by origin requested_ns who epoch bytes batch owner_user owner_group',
    'request_part': 'request part kind ids',
    'batch': 'number state class horizon digest chunks bytes grace_ns planned_ns quarantined_ns '
    'quarantined_trusted_ns quarantined_epoch released_by confirmed_ns receipt freed ended_ns reason',
    'incident': 'number scope opened_ns reason acknowledged_ns acknowledged_by batch',
    'pack': 'pack name kind state bytes records',
    'chunk': 'id pack offset stored plain codec kind epoch',
    'quarantine': 'id pack offset stored plain codec kind epoch batch',
    'freed': 'id pack offset stored plain codec kind epoch batch',
    'receipt': 'number kind batch made_ns epoch passed digest',
    'config': 'key value',
    'approval': 'digest what who given_ns until_trusted_ns',
    'canary': 'number root root_items root_refs made_ns',
    'audit_head': 'one end_bytes end_lines end_hash base_bytes base_lines base_hash',
    'damage': 'id found_ns found_by reason',
    'scrubbed': 'slot epoch verified_ns chunks bytes bad',
}
SETTINGS = (  # noqa: SIM905
    'epoch journal_sequence next_view next_volume next_request next_pack next_incident next_batch trusted_ns '
    'trusted_wall_ns trusted_boot_ns unclean_opens clean'
).split()

_ROOT = (
    '(root IS NOT NULL AND length(root) != 32) OR root_items < 0 OR root_refs < 0 OR '
    '(root IS NULL AND (root_items != 0 OR root_refs != 0)) OR (root IS NOT NULL AND root_items < 1)'
)
_PLACE = (
    'length(id) != 32 OR pack < 1 OR pack >= 1 << 31 OR offset < 48 OR offset >= 1 << 32 OR stored < 0 '
    'OR plain < 0 OR plain > 131072 '
    'OR stored > plain OR kind NOT IN (1, 2) OR codec NOT IN (0, 1) OR (codec = 0 AND stored != plain) '
    'OR epoch < 0 '
    "OR epoch > (SELECT value FROM settings WHERE key = 'epoch')"
)
_NEXT = "(SELECT value FROM settings WHERE key = '{}')"
# table, how a row is called, what no row may be, what that is
IMPOSSIBLE = (
    (
        'settings',
        'key',
        # Views are given out up to their limit, and a rebuild leaves gaps.
        "value < 0 OR (key = 'clean' AND value > 1) OR (key = 'next_view' AND value > 1 << 21)",
        'has an impossible value',
    ),
    ('volume', 'volume', f'volume >= {_NEXT.format("next_volume")}', 'has a number that was not given yet'),
    ('volume', 'volume', f'number >= {_NEXT.format("next_view")}', 'has a view that was not given yet'),
    ('volume', 'volume', 'number IN (SELECT number FROM snapshot)', 'shares its view with a snapshot'),
    ('volume', 'volume', _ROOT, 'has an impossible root'),
    ('snapshot', 'number', f'number >= {_NEXT.format("next_view")}', 'has a view that was not given yet'),
    ('snapshot', 'number', _ROOT, 'has an impossible root'),
    ('snapshot', 'number', f'epoch > {_NEXT.format("epoch")}', 'is of an epoch that has not been'),
    ('request', 'number', f'number >= {_NEXT.format("next_request")}', 'has a number that was not given yet'),
    ('request', 'number', _ROOT, 'has an impossible root'),
    (
        'request',
        'number',
        "kind IN ('dropped', 'returned', 'leaked') AND NOT EXISTS "
        '(SELECT 1 FROM request_part WHERE request = number) AND (batch IS NULL OR batch NOT IN '
        "(SELECT b.number FROM batch b WHERE b.state IN ('CONFIRMED', 'FREED')))",
        'names nothing',
    ),
    (
        'request',
        'number',
        'batch IS NOT NULL AND batch NOT IN (SELECT b.number FROM batch b)',
        'is in no batch',
    ),
    ('request_part', 'request', 'request NOT IN (SELECT number FROM request)', 'belongs to no request'),
    ('request_part', 'request', 'length(ids) = 0 OR length(ids) % 32 != 0', 'is no list of ids'),
    ('batch', 'number', f'number >= {_NEXT.format("next_batch")}', 'has a number that was not given yet'),
    ('batch', 'number', 'length(digest) != 32 OR chunks < 0 OR freed < 0 OR freed > chunks', 'cannot be'),
    (
        'batch',
        'number',
        "(state IN ('CONFIRMED', 'FREED')) != (receipt IS NOT NULL AND length(receipt) = 32)",
        'has a receipt too few or too many',
    ),
    ('pack', 'pack', 'length(name) != 16 OR kind NOT IN (1, 2) OR bytes < 0 OR records < 0', 'cannot be'),
    ('pack', 'pack', f'pack >= {_NEXT.format("next_pack")}', 'has a number that was not given yet'),
    ('chunk', 'hex(id)', _PLACE, 'cannot be'),
    ('quarantine', 'hex(id)', _PLACE, 'cannot be'),
    ('freed', 'hex(id)', _PLACE, 'cannot be'),
    ('quarantine', 'hex(id)', 'batch NOT IN (SELECT number FROM batch)', 'is of no batch'),
    ('freed', 'hex(id)', 'batch NOT IN (SELECT number FROM batch)', 'is of no batch'),
    ('damage', 'hex(id)', 'length(id) != 32', 'is no id'),
    ('canary', 'number', 'length(root) != 32 OR root_items < 1 OR root_refs < 1', 'cannot be'),
    (
        'incident',
        'number',
        f'number >= {_NEXT.format("next_incident")}',
        'has a number that was not given yet',
    ),
)
ROWS_SHOWN_MAX = 50
BIG = ('chunk', 'quarantine', 'freed')


@dataclass(frozen=True, slots=True)
class Root:
    """A root of the catalog. `kind`: volume, snapshot, canary, request (somebody may take it back), asked
    (nobody may). `strict`: all it reaches must be in the index; `resting`: quarantine will do; neither: it
    only asks. `tops`: ids of the top nodes; what is asked for is in request_part (`asked_ids`)."""

    kind: str
    number: int
    name: str
    tops: tuple[bytes, ...]
    items: int | None
    refs: int | None
    next_ino: int | None
    strict: bool
    resting: bool


class Catalog:
    """The catalog. `sound` says whether its tables can be relied on."""

    def __init__(self, store: Store, report: Report) -> None:
        self._store = store
        self._report = report
        self.sound = False
        self._can_be: set[str] = set()  # tables of chunks whose rows were all seen to name possible places
        self.rows: dict[str, Rows] = {}  # tables of chunks that are read by pages
        self.settings: dict[str, int] = {}
        self.packs: dict[int, Pack] = {}
        self.roots: list[Root] = []
        self.damaged = True  # some chunks are known to be lost
        self.batches: list[tuple[int, str, bytes, bytes | None, int, int]] = []
        self.audit_head: tuple[int, int, str, int, int, str] | None = None

    def check(self, *, closer: bool, in_place: bool = False) -> None:
        """Take and check the catalog, and read what the other passes need; `in_place`: without a copy, if
        that can be. Without `closer` pages and big tables are left to whoever comes later;
        LookCloser at the first thing that is not as it should be."""
        assert not (closer and in_place)  # who looks closer drops rows from the copy
        report = self._report
        try:
            self._store.take_catalog(in_place=in_place)
        except FileNotFoundError as error:
            report.add('catalog-missing', 'catalog.sqlite', error.strerror or str(error))
            return
        except (OSError, Corrupt, sqlite3.Error, UnicodeDecodeError) as error:
            if is_ours(error):
                report.could_not('the catalog', getattr(error, 'strerror', None) or str(error))
                return
            report.add('catalog-unreadable', 'catalog.sqlite', str(error))
            return
        try:
            if closer:
                self._check_all()
            else:
                self._check_small()
        except sqlite3.Error as error:
            if not closer:
                raise LookCloser from error
            report.add('catalog-corrupt', 'catalog.sqlite', f'SQLite says: {error}')
        except (TypeError, ValueError, OverflowError) as error:
            if not closer:
                raise LookCloser from error
            report.add('catalog-corrupt', 'catalog.sqlite', f'a row of wrong types: {error}')

    def _check_all(self) -> None:
        db = self._store.connect()
        try:
            # SQLite lets other threads run while it works, and this takes long.
            with ThreadPoolExecutor(1) as pool:
                pages = pool.submit(check_pages, self._store, self._report)
                same = self._schema(db)
                possible = {table for table in BIG if same and self._places_can_be(db, table)}
            # In tables that are STRICT an integrity check also looks at the type of each value.
            good = pages.result()
            self._can_be = possible if good else set()
            columns = {name: text for name, text in COLUMNS.items() if name not in self._can_be}
            odd = tell_odd(db, columns, self._report) if same else []
        finally:
            db.close()
        if same:
            self._read(odd)
            self.sound = True
            self.rows = self._by_pages() if good else {}

    def _check_small(self) -> None:
        columns = {name: text for name, text in COLUMNS.items() if name not in BIG}
        db = self._store.connect()
        try:
            if not self._schema(db) or tell_odd(db, columns, self._report):
                raise LookCloser
        finally:
            db.close()
        self.rows = self._by_pages()
        assert self._store.copy is not None
        try:
            apart = self.rows.keys() == set(BIG) and share_no_page(self.rows.values(), self._store.copy)
        except Unusual:
            apart = False
        if not apart:
            raise LookCloser
        self._can_be = set(BIG)  # seen to by whoever reads them
        self._read([])
        self.sound = True

    def _read(self, odd: list[str]) -> None:
        """Read what is left when rows that are none are gone from the copy."""
        if odd:
            assert self._store.copy is not None
            drop(self._store.copy, odd)
        db = self._store.connect()
        try:
            self._rows(db)
            self._take(db)
        finally:
            db.close()

    def _by_pages(self) -> dict[str, Rows]:
        assert self._store.copy is not None
        found = {table: rows_of(self._store.copy, table, len(COLUMNS[table].split())) for table in BIG}
        return {table: rows for table, rows in found.items() if rows is not None}

    def _places_can_be(self, db: sqlite3.Connection, table: str) -> bool:
        """Return whether every row of a table of chunks names a place that can be one."""
        try:
            assert self._store.copy is not None
            epochs = query(db, "SELECT value FROM settings WHERE key = 'epoch'")
            rows = rows_of(self._store.copy, table, len(COLUMNS[table].split()))
            if rows is not None and len(epochs) == 1 and isinstance(epochs[0][0], int):
                slices = map(rows.slice, range(rows.slices()))
                return all(can_be(one, epochs[0][0]) for one in slices)
        except Unusual:
            pass  # nothing is said by that; a query can tell
        except sqlite3.Error:
            return False
        try:
            return not query(db, f'SELECT 1 FROM {table} WHERE {_PLACE} LIMIT 1')
        except sqlite3.Error:
            return False  # whoever looks closer tells what it is

    def _schema(self, db: sqlite3.Connection) -> bool:
        application = db.execute('PRAGMA application_id').fetchone()[0]
        version = db.execute('PRAGMA user_version').fetchone()[0]
        found = query(db, 'SELECT type, name, sql FROM sqlite_schema')
        odd = [f'{kind} {name}' for kind, name, sql in found if kind not in ('table', 'index')]
        odd += [f'index {name}' for kind, name, sql in found if kind == 'index' and sql is not None]
        tables = {name for kind, name, _ in found if kind == 'table'}
        odd += [f'table {name}' for name in tables ^ COLUMNS.keys()]
        for table in sorted(tables & COLUMNS.keys()):
            names = [name for (name,) in query(db, f'SELECT name FROM pragma_table_xinfo({table!r})')]
            strict = query(db, f'SELECT strict FROM pragma_table_list({table!r})')
            if names != COLUMNS[table].split() or strict != [(1,)]:
                odd.append(f'columns of {table}')
        if application != APPLICATION_ID or version != VERSION:
            odd.append(f'version {version} (this program knows {VERSION})')
        if odd:
            self._report.add('catalog-corrupt', 'catalog.sqlite', f'its schema: {", ".join(sorted(odd))}')
        return not odd

    def _rows(self, db: sqlite3.Connection) -> None:
        for table, name, condition, what in IMPOSSIBLE:
            if condition == _PLACE and table in self._can_be:
                continue
            text = f'SELECT count(*), min({name}) FROM {table} WHERE {condition}'
            ((count, row),) = query(db, text)
            if count:
                others = f' (and {count - 1} more)' if count > 1 else ''
                self._report.add('catalog-row', f'{table} {str(row).lower()}', f'{what}{others}')
        settings = dict(query(db, 'SELECT key, value FROM settings'))
        for key in SETTINGS:
            if key not in settings:
                self._report.add('catalog-row', f'settings {key}', 'is missing')
        for key in settings.keys() - set(SETTINGS):
            self._report.add('catalog-row', f'settings {key}', 'is unknown')

    def _take(self, db: sqlite3.Connection) -> None:
        self.settings = {key: int(value) for key, value in query(db, 'SELECT key, value FROM settings')}
        for row in query(db, 'SELECT pack, name, kind, state, bytes, records FROM pack'):
            if isinstance(row[1], bytes) and len(row[1]) == limits.PACK_NAME_BYTES and row[2] in (1, 2):
                self.packs[row[0]] = Pack(*row)
        self.batches = query(db, 'SELECT number, state, digest, receipt, chunks, freed FROM batch')
        heads = query(
            db, 'SELECT end_bytes, end_lines, end_hash, base_bytes, base_lines, base_hash FROM audit_head'
        )
        self.audit_head = heads[0] if heads else None
        self.roots = read_roots(db)
        self.damaged = bool(query(db, 'SELECT 1 FROM damage LIMIT 1'))
        for number, scope, reason in query(
            db, 'SELECT number, scope, reason FROM incident WHERE acknowledged_ns IS NULL'
        ):
            self._report.add('incident', f'incident {number}', f'{scope}: {reason}')


def small_pages_are_sound(store: Store) -> bool:
    """Let SQLite check the pages of all tables but those that are read page by page (rows.py), which sees
    the same there. sqlite3.Error."""
    db = store.connect()
    try:
        # With the table of tables goes the list of free pages.
        for table in ('sqlite_schema', *(name for name in COLUMNS if name not in BIG)):
            if query(db, f'PRAGMA integrity_check({table})') != [('ok',)]:
                return False
        return not query(db, 'PRAGMA foreign_key_check')
    finally:
        db.close()


def check_pages(store: Store, report: Report) -> bool:
    """Let SQLite check the pages of the copy, and the types of all values; return whether all is well.
    sqlite3.Error."""
    good = True
    db = store.connect()
    try:
        for (text,) in db.execute(f'PRAGMA integrity_check({ROWS_SHOWN_MAX})'):
            if text != 'ok':
                good = False
                report.add('catalog-corrupt', 'catalog.sqlite', str(text).replace('\n', '; '))
        for table, row, parent, _ in db.execute('PRAGMA foreign_key_check'):
            what = f'refers to a row of {parent} that is not there'
            report.add('catalog-row', f'{table} {row}', what)
    finally:
        db.close()
    return good


def printable(raw: object) -> str:
    """Return a name from the catalog as text that can be printed."""
    text = raw.decode('utf-8', 'backslashreplace') if isinstance(raw, bytes) else str(raw)
    if text.isascii() and text.isprintable():
        return text  # most are: soon said
    return re.sub(r'[\x00-\x1f\x7f]', lambda match: f'\\x{ord(match[0]):02x}', text)


def read_roots(db: sqlite3.Connection) -> list[Root]:
    """Return every root of the catalog."""
    names = {number: printable(name) for number, name in query(db, 'SELECT volume, name FROM volume')}
    roots = []
    for number, name, root, items, refs, next_ino in query(
        db, 'SELECT volume, name, root, root_items, root_refs, next_ino FROM volume ORDER BY volume'
    ):
        roots.append(_tree('volume', number, printable(name), root, (items, refs, next_ino)))
    for number, volume, name, root, items, refs, next_ino in query(
        db,
        'SELECT number, volume, name, root, root_items, root_refs, next_ino FROM snapshot ORDER BY number',
    ):
        title = f'{names.get(volume, "?")}@{printable(name)}'
        roots.append(_tree('snapshot', number, title, root, (items, refs, next_ino)))
    for number, root, items, refs in query(db, 'SELECT number, root, root_items, root_refs FROM canary'):
        roots.append(_tree('canary', number, f'canary {number}', root, (items, refs, None)))
    return roots + _requests(db)


def _tree(
    kind: str,
    number: int,
    name: str,
    root: bytes | None,
    counts: tuple[int, int, int | None],
    resting: bool = False,
) -> Root:
    tops = (root,) if root is not None and len(root) == limits.ID_BYTES else ()
    return Root(kind, number, name, tops, *counts, strict=not resting, resting=resting)


def _requests(db: sqlite3.Connection) -> list[Root]:
    states = dict(query(db, 'SELECT number, state FROM batch'))
    roots = []
    for number, kind, volume, name, batch, root, items, refs, next_ino in query(
        db,
        'SELECT number, kind, volume_name, name, batch, root, root_items, root_refs, next_ino FROM request '
        'ORDER BY number',
    ):
        state = states.get(batch)
        if state in ('CONFIRMED', 'FREED'):
            continue
        if kind in ('snapshot', 'volume'):
            title = printable(volume) + (f'@{printable(name)}' if kind == 'snapshot' else '')
            resting = state in ('PLANNED', 'QUARANTINED')
            counts = (items, refs, next_ino)
            roots.append(_tree('request', number, f'request {number} ({title})', root, counts, resting))
            continue
        title = f'request {number} ({kind})'
        roots.append(Root('asked', number, title, (), None, None, None, False, False))
    return roots


def asked_ids(db: sqlite3.Connection, root: Root) -> Iterator[tuple[bool, bytes]]:
    """Yield slices of what a request of kind 'asked' names: (whole subtrees, ids back to back)."""
    text = 'SELECT kind, ids FROM request_part WHERE request = ? ORDER BY part'
    for kind, ids in db.execute(text, (root.number,)):
        yield kind == 'subtrees', ids[: len(ids) // limits.ID_BYTES * limits.ID_BYTES]
