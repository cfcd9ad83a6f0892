"""L4 catalog ids: every column of the catalog that can hold a chunk id, for the second recount. Blocking;
one thread.

The second recount trusts no registry of roots: it finds the columns in the file itself, by their names
(`root`, `id`, `ids`, or ending so), and demands a rule for each. A table, a column, a trigger or a view
that has no rule is Corrupt: somebody added a place where an id may stand, and did not say what it means
there.

A *claim* is a row that names chunks because it wants to keep them. With `reach`, it wants the whole tree
below them. Rows of requests whose batch has its receipt (CONFIRMED, FREED) claim nothing any more. The
tables chunk, quarantine and freed are *places*: they say where a chunk is and want nothing; nor does the
table damage, which says what was found lost."""

from __future__ import annotations

import re
import shutil
import sqlite3
import stat
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from snapfs import limits
from snapfs.errors import Corrupt

APPLICATION_ID = 0x536E6170
SCHEMA_VERSION = 3
_ID_COLUMN = re.compile(r'(^|_)(root|id|ids)$')

# Every table with all its columns. Nothing here is derived from what the store writes with: that is the
# point.
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
# Columns that hold bytes and no id: names, digests of files.
BLOBS = frozenset(
    {
        ('volume', 'name'),
        ('snapshot', 'name'),
        ('hold', 'name'),
        ('request', 'volume_name'),
        ('request', 'name'),
        ('batch', 'digest'),
        ('batch', 'receipt'),
        ('pack', 'name'),
        ('receipt', 'digest'),
        ('approval', 'digest'),
    }
)
# What commits dropped, batches returned and a person called leaked: nobody can take these requests back.
ASKED = frozenset({('request_part', 'ids')})
PLACES = frozenset({('chunk', 'id'), ('quarantine', 'id'), ('freed', 'id')})
# These say something about a chunk and want nothing.
TOLD = frozenset({('damage', 'id')})
_OVER = "(SELECT number FROM batch WHERE state IN ('CONFIRMED', 'FREED'))"
# ids, whether the whole tree below is meant (1) or the chunks alone (0), batch, what to call the row
CLAIMS = {
    ('volume', 'root'): "SELECT root, 1, NULL, 'volume ' || volume FROM volume",
    ('snapshot', 'root'): "SELECT root, 1, NULL, 'snapshot ' || number FROM snapshot",
    ('canary', 'root'): "SELECT root, 1, NULL, 'canary ' || number FROM canary",
    ('request', 'root'): "SELECT root, 1, batch, 'request ' || number FROM request "
    f'WHERE batch IS NULL OR batch NOT IN {_OVER}',
    (
        'request_part',
        'ids',
    ): "SELECT ids, CASE request_part.kind WHEN 'subtrees' THEN 1 WHEN 'chunks' THEN 0 END, "
    "batch, 'request ' || number FROM request_part LEFT JOIN request ON number = request "
    f'WHERE batch IS NULL OR batch NOT IN {_OVER}',
}


@dataclass(frozen=True, slots=True)
class Claim:
    """A row that names chunks. `ids`: 32 bytes each, back to back; `reach`: with all below them; `batch`:
    that of its request, or None. `keeps`: False for a request that nobody can take back: it only asks."""

    row: str
    ids: bytes
    reach: bool
    batch: int | None
    keeps: bool


@dataclass(frozen=True, slots=True)
class PackFact:
    """What the catalog says of a pack: `bytes` and `records` count what is durable."""

    pack: int
    name: bytes
    kind: int
    state: str
    bytes: int
    records: int


def has_entry(path: Path) -> int | None:
    """Return the size in bytes of a regular file, None when nothing is there. Corrupt for anything
    else."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise Corrupt(f'cannot look at {path.name}: {error.strerror}') from error
    if not stat.S_ISREG(status.st_mode):
        raise Corrupt(f'{path.name} is not a regular file')
    return status.st_size


@contextmanager
def opened_catalog(store: Path) -> Iterator[sqlite3.Connection]:
    """Open STORE/catalog.sqlite for reading only and check its schema. Corrupt when it is not as it must
    be, also for every error of SQLite inside the block.

    Beside a daemon it shares that one's write-ahead log. A store that is closed has none and cannot
    change; one that was copied may have a log without an index to it, and is read from a temporary copy.
    """
    path = store / 'catalog.sqlite'
    there = {suffix: has_entry(Path(f'{path}{suffix}')) for suffix in ('', '-wal', '-shm')}
    if there[''] is None:
        raise Corrupt('catalog.sqlite is missing')
    with ExitStack() as stack:
        options = '' if there['-shm'] is not None else '&immutable=1'
        if there['-shm'] is None and there['-wal']:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix='snapfs-'))
            for suffix in ('', '-wal'):
                shutil.copyfile(f'{path}{suffix}', f'{folder}/catalog.sqlite{suffix}')
            path, options = Path(folder) / 'catalog.sqlite', ''
        try:
            db = sqlite3.connect(f'file:{quote(str(path))}?mode=ro{options}', uri=True, isolation_level=None)
        except sqlite3.Error as error:
            raise Corrupt(f'catalog: {error}') from error
        try:
            _prepare(db)
            _check_schema(db)
            yield db
        except sqlite3.Error as error:
            raise Corrupt(f'catalog: {error}') from error
        finally:
            db.close()


def _prepare(db: sqlite3.Connection) -> None:
    # A damaged text must not be what ends a recount without a clear line.
    db.text_factory = lambda raw: raw.decode('utf-8', 'backslashreplace')
    cache = f'cache_size = -{limits.CATALOG_CACHE_BYTES // limits.KIB}'
    for pragma in (
        'trusted_schema = OFF',
        'cell_size_check = ON',
        'query_only = ON',
        'temp_store = MEMORY',
        cache,
    ):
        db.execute(f'PRAGMA {pragma}')


def _check_schema(db: sqlite3.Connection) -> None:
    application = db.execute('PRAGMA application_id').fetchone()[0]
    version = db.execute('PRAGMA user_version').fetchone()[0]
    if application != APPLICATION_ID or version != SCHEMA_VERSION:
        raise Corrupt(f'catalog: schema version {version}; recount 2 knows {SCHEMA_VERSION}')
    found = db.execute('SELECT type, name, sql FROM sqlite_schema').fetchall()
    tables = {name for kind, name, _ in found if kind == 'table'}
    odd = [
        f'{kind} {name}'
        for kind, name, sql in found
        if kind != 'table' and (kind != 'index' or sql is not None)
    ]
    odd += [f'table {name}' for name in tables ^ COLUMNS.keys()]
    if odd:
        raise Corrupt(f'catalog: no rule for {", ".join(sorted(odd))}, or it is missing')
    strict = {row[1]: row[5] for row in db.execute('PRAGMA table_list')}
    ruled = set()
    for table in sorted(tables):
        columns = db.execute(f'SELECT name, type FROM pragma_table_xinfo({table!r})').fetchall()
        if [name for name, _ in columns] != COLUMNS[table].split() or not strict.get(table):
            raise Corrupt(f'catalog: table {table} has columns that recount 2 has no rule for')
        for name, kind in columns:
            place = (table, name)
            if _ID_COLUMN.search(name) is not None:
                ruled.add(place)
            elif kind not in ('INTEGER', 'TEXT') and place not in BLOBS:
                raise Corrupt(f'catalog: no rule for the {kind} in {table}.{name}')
    rules = PLACES | TOLD | CLAIMS.keys()
    if ruled != rules:
        raise Corrupt(f'catalog: no rule for the ids in {sorted(ruled ^ rules)}')


def setting(db: sqlite3.Connection, key: str) -> int:
    """Return a value of the settings. Corrupt when it is missing."""
    row = db.execute('SELECT value FROM settings WHERE key = ?', (key,)).fetchone()
    if row is None or type(row[0]) is not int:
        raise Corrupt(f'catalog: setting {key} is missing')
    return row[0]


def pack_facts(db: sqlite3.Connection) -> list[PackFact]:
    """Return the rows of the pack table, by number. Corrupt when one cannot be."""
    facts = [
        PackFact(*row)
        for row in db.execute('SELECT pack, name, kind, state, bytes, records FROM pack ORDER BY pack')
    ]
    for fact in facts:
        good = type(fact.name) is bytes and len(fact.name) == limits.PACK_NAME_BYTES and fact.kind in (1, 2)
        good = good and fact.state in ('open', 'sealed', 'retired') and fact.bytes >= 0 and fact.records >= 0
        if not good:
            raise Corrupt(f'catalog: impossible row of pack {fact.pack}')
    return facts


def claims(db: sqlite3.Connection) -> Iterator[Claim]:
    """Yield every claim of every column that holds ids. Corrupt for one that cannot be."""
    for (table, column), text in CLAIMS.items():
        for ids, reach, batch, row in db.execute(text):
            if ids is None and column == 'root':
                continue  # an empty tree
            whole = type(ids) is bytes and len(ids) > 0 and len(ids) % limits.ID_BYTES == 0
            if (
                not whole
                or (column == 'root' and len(ids) != limits.ID_BYTES)
                or reach is None
                or row is None
            ):
                raise Corrupt(f'catalog: an impossible {table}.{column} ({row})')
            yield Claim(row, ids, bool(reach), batch, (table, column) not in ASKED)


def batches_with(db: sqlite3.Connection, table: str, ids: Iterable[bytes]) -> dict[bytes, set[Any]]:
    """Return, for those of `ids` that a table of places has, the batches of their rows (None in chunk)."""
    assert (table, 'id') in PLACES
    batch = 'NULL' if table == 'chunk' else 'batch'
    found: dict[bytes, set[Any]] = {}
    wanted = sorted(ids)
    for start in range(0, len(wanted), limits.LOCATE_IDS_MAX):
        part = wanted[start : start + limits.LOCATE_IDS_MAX]
        marks = ','.join('?' * len(part))
        for id, number in db.execute(f'SELECT id, {batch} FROM {table} WHERE id IN ({marks})', part):
            found.setdefault(id, set()).add(number)
    return found
