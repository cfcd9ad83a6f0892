"""Tool fsck, cells: values of the catalog that are not of their column's type, and rows that name no place.
One thread.

A page that rotted may have anything in any column, whatever the schema says; a program that takes it for a
number ends there. fsck looks at a copy of its own: so such a row is told, and then it goes from the copy, and
everything else can be checked without it.

The types are written down here once more, from the documentation of the tables."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from pathlib import Path

from tools.checker.findings import Report
from tools.checker.store import query

TEXTS = frozenset((
    'settings.key', 'snapshot.who', 'hold.who', 'hold.why', 'request.kind', 'request.created_by',
    'request.who', 'request_part.kind', 'batch.state', 'batch.class', 'batch.released_by', 'batch.reason',
    'incident.scope', 'incident.reason', 'incident.acknowledged_by', 'pack.state', 'receipt.kind',
    'config.key', 'config.value', 'approval.what', 'approval.who', 'audit_head.end_hash',
    'audit_head.base_hash', 'damage.found_by', 'damage.reason',
))  # fmt: skip
BLOBS = frozenset((
    'volume.name', 'volume.root', 'snapshot.name', 'snapshot.root', 'hold.name', 'request.volume_name',
    'request.name', 'request.root', 'request_part.ids', 'batch.digest', 'batch.receipt', 'pack.name',
    'chunk.id', 'quarantine.id', 'freed.id', 'receipt.digest', 'approval.digest', 'canary.root',
    'damage.id',
))  # fmt: skip
NULLS = frozenset((
    'volume.root', 'volume.origin', 'volume.damaged_ns', 'snapshot.root', 'snapshot.damaged_ns',
    'hold.until_ns', 'request.root', 'request.origin', 'request.bytes', 'request.batch',
    'request.owner_user', 'request.owner_group', 'batch.quarantined_ns', 'batch.quarantined_trusted_ns',
    'batch.quarantined_epoch', 'batch.released_by', 'batch.confirmed_ns', 'batch.receipt',
    'batch.ended_ns', 'batch.reason', 'incident.acknowledged_ns', 'incident.acknowledged_by',
    'incident.batch', 'receipt.batch',
))  # fmt: skip
# No pack is so long, and no store has so many packs, that a place could not be one number of 64 bits.
_NOWHERE = (
    'length(id) != 32 OR pack < 0 OR pack >= 1 << 31 OR offset < 0 OR offset >= 1 << 32 OR stored < 0 '
    'OR stored >= 1 << 31 OR plain < 0 OR plain >= 1 << 31'
)
NOWHERE = {'chunk': _NOWHERE, 'quarantine': _NOWHERE, 'freed': _NOWHERE, 'damage': 'length(id) != 32'}
NOWHERE['pack'] = 'pack < 0 OR pack >= 1 << 31 OR length(name) != 16'


def odd_types(table: str, columns: str) -> str:
    """Return the condition that a row has a value of another type."""
    parts = []
    for column in columns.split():
        name = f'{table}.{column}'
        kind = 'text' if name in TEXTS else 'blob' if name in BLOBS else 'integer'
        also = ", 'null'" if name in NULLS else ''
        parts.append(f"typeof({column}) NOT IN ('{kind}'{also})")
    return ' OR '.join(parts)


def tell_odd(db: sqlite3.Connection, columns: Mapping[str, str], report: Report) -> list[str]:
    """Tell of odd rows; return the statements that remove them from a copy. sqlite3.Error."""
    statements = []
    for table, names in columns.items():
        for condition, what in ((odd_types(table, names), 'of other types'), (NOWHERE.get(table), 'nowhere')):
            if condition is None:
                continue
            ((count,),) = query(db, f'SELECT count(*) FROM {table} WHERE {condition}')
            if count:
                report.add('catalog-corrupt', 'catalog.sqlite', f'{count} rows of {table} are {what}')
                statements.append(f'DELETE FROM {table} WHERE {condition}')
    return statements


def drop(copy: Path, statements: list[str]) -> None:
    """Remove odd rows from a copy that nobody has open. sqlite3.Error."""
    db = sqlite3.connect(copy, isolation_level=None)
    try:
        for pragma in ('trusted_schema = OFF', 'foreign_keys = OFF', 'synchronous = OFF'):
            db.execute(f'PRAGMA {pragma}')
        for text in statements:
            db.execute(text)
    finally:
        db.close()
