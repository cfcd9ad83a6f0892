"""L4 moves: the statements with which batches.py moves rows, and nobody else does. Inside its transactions.

Each is one statement for a whole slice (ids go in as one blob), because every statement and every row that
comes out costs a hand-over of the interpreter lock. The checks that decide whether a slice may move at all
are here too, beside the statements: what they see is what moves."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from snapfs import limits
from snapfs.collect.states import BatchRow
from snapfs.errors import Corrupt
from snapfs.format.receipts import ReceiptRow
from snapfs.format.records import HEADER_BYTES
from snapfs.store.catalog import Catalog

_NAMED = (
    'WITH RECURSIVE wanted(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM wanted WHERE i + 1 < :count), '
    'named(i, id) AS MATERIALIZED (SELECT i, substr(:ids, 32 * i + 1, 32) FROM wanted) '
)
_HELD = 'named CROSS JOIN quarantine c ON c.id = named.id AND c.batch = :batch'
_TAKE = 'DELETE FROM quarantine WHERE batch = :batch AND id IN (SELECT id FROM named)'
_COLUMNS = 'c.id, c.pack, c.offset, c.stored, c.plain, c.codec, c.kind, c.epoch'
# Whatever recount 1 thought: the root of something that stands is not garbage.
_ROOTS = (
    'SELECT root FROM volume UNION ALL SELECT root FROM snapshot UNION ALL SELECT root FROM canary '
    'UNION ALL SELECT root FROM request WHERE batch IS NOT :batch'
)


@dataclass(frozen=True, slots=True)
class Moved:
    """What became of a slice: ids that are in quarantine now, and ids that stay because they were put
    since."""

    moved: tuple[bytes, ...]
    excluded: tuple[bytes, ...]


def _blob(ids: Sequence[bytes]) -> dict[str, object]:
    assert 0 < len(ids) <= limits.BATCH_SLICE_ROWS_MAX
    assert all(len(id) == limits.ID_BYTES for id in ids)
    assert all(a < b for a, b in pairwise(ids)), 'a slice ascends, each id once'
    return {'ids': b''.join(ids), 'count': len(ids)}


def _change(db: sqlite3.Connection, text: str, values: dict[str, object]) -> int:
    """Do a statement; return how many rows it changed. `rowcount` does not know when it begins with WITH."""
    before = db.total_changes
    db.execute(f'{_NAMED} {text}', values)
    return db.total_changes - before


def to_quarantine(db: sqlite3.Connection, row: BatchRow, ids: Sequence[bytes]) -> frozenset[bytes]:
    """Move rows with these ids from `chunk` to `quarantine`; return the ids whose rows stay, being younger
    than the horizon. Corrupt when an id is a root or has no row."""
    if not ids:
        return frozenset()
    values = {**_blob(ids), 'batch': row.number, 'horizon': row.horizon}
    rooted = db.execute(
        f'{_NAMED} SELECT hex(min(root)) FROM ({_ROOTS}) WHERE root IN (SELECT id FROM named)', values
    ).fetchone()[0]
    if rooted:
        raise Corrupt(f'P1: batch {row.number} has condemned the root {rooted.lower()}, which stands')
    late = db.execute(
        f'{_NAMED} SELECT group_concat(i) FROM named CROSS JOIN chunk c ON c.id = named.id '
        'WHERE c.epoch > :horizon',
        values,
    ).fetchone()[0]
    late_ids = frozenset(ids[int(i)] for i in late.split(',')) if late else frozenset()
    moved = _change(
        db,
        f'INSERT INTO quarantine SELECT {_COLUMNS}, :batch FROM named CROSS JOIN chunk c ON c.id = named.id '
        'WHERE c.epoch <= :horizon',
        values,
    )
    gone = _change(db, 'DELETE FROM chunk WHERE id IN (SELECT id FROM named) AND epoch <= :horizon', values)
    assert gone == moved, f'{moved} rows came, {gone} went'
    if moved + len(late_ids) != len(ids):
        missing = len(ids) - moved - len(late_ids)
        raise Corrupt(f'P10: batch {row.number} has condemned {missing} chunks that have no row')
    return late_ids


def in_quarantine(catalog: Catalog, number: int) -> tuple[int, int]:
    """Return how many chunks a batch has in quarantine, and their bytes, record headers included. Looks at
    all that rests, so it is asked outside the transaction: commits must not wait for it, and nobody else
    moves these rows."""
    rows = catalog.query(
        'SELECT count(*), coalesce(sum(stored), 0) FROM quarantine WHERE batch = ?', (number,)
    )
    count, stored = rows[0]
    return count, stored + count * HEADER_BYTES


def back_to_chunk(db: sqlite3.Connection, number: int, after: bytes, count: int) -> bytes | None:
    """Bring up to `count` chunks of a batch with ids above `after` back; return the last id, None for
    none. One that was stored anew keeps its new location."""
    last, wanted = db.execute(
        'SELECT max(id), count(*) FROM '
        '(SELECT id FROM quarantine WHERE batch = ? AND id > ? ORDER BY id LIMIT ?)',
        (number, after, count),
    ).fetchone()
    if last is None:
        return None
    values = (number, after, last)
    where = 'batch = ? AND id > ? AND id <= ?'
    db.execute(
        f'INSERT INTO chunk SELECT {_COLUMNS} FROM quarantine c WHERE {where} ON CONFLICT (id) DO NOTHING',
        values,
    )
    back = db.execute(
        f'SELECT count(*) FROM quarantine c WHERE {where} AND EXISTS (SELECT 1 FROM chunk WHERE id = c.id)',
        values,
    ).fetchone()[0]
    gone = db.execute(f'DELETE FROM quarantine WHERE {where}', values).rowcount
    assert wanted == back == gone, f'P1: {wanted} rows were to come back, {back} came, {gone} went'
    return bytes(last)


def take_out(db: sqlite3.Connection, number: int, ids: Sequence[bytes]) -> tuple[int, int]:
    """Bring these chunks of a batch back to `chunk`; return how many of them it had, and their bytes."""
    values = {**_blob(ids), 'batch': number}
    count, stored = db.execute(f'{_NAMED} SELECT count(*), sum(c.stored) FROM {_HELD}', values).fetchone()
    _change(
        db, f'INSERT INTO chunk SELECT {_COLUMNS} FROM {_HELD} WHERE true ON CONFLICT (id) DO NOTHING', values
    )
    back = db.execute(
        f'{_NAMED} SELECT count(*) FROM {_HELD} WHERE EXISTS (SELECT 1 FROM chunk WHERE id = c.id)', values
    ).fetchone()[0]
    gone = _change(db, _TAKE, values)
    assert count == back == gone, f'P1: {count} rows were to come back, {back} came, {gone} went'
    return count, (stored or 0) + count * HEADER_BYTES


def receipt_rows(catalog: Catalog, number: int) -> Iterator[list[ReceiptRow]]:
    """Yield where the chunks of a quarantined batch lie, in the order of the receipt, a slice at a time."""
    after = b''
    names = {row.pack: row.name for row in catalog.packs()}
    while True:
        rows = catalog.query(
            'SELECT id, pack, offset, stored FROM quarantine WHERE batch = ? AND id > ? ORDER BY id LIMIT ?',
            (number, after, limits.BATCH_SLICE_ROWS_MAX),
        )
        if not rows:
            return
        unknown = next((row for row in rows if row[1] not in names), None)
        if unknown is not None:
            raise Corrupt(
                f'batch {number}: chunk {unknown[0].hex()} lies in pack {unknown[1]}, which is unknown'
            )
        yield [ReceiptRow(id, names[pack], offset, stored) for id, pack, offset, stored in rows]
        after = rows[-1][0]


def to_freed(db: sqlite3.Connection, number: int, rows: Sequence[ReceiptRow]) -> int:
    """Move the records of these receipt rows from `quarantine` to `freed`; return how many. Rows that are
    freed already stay. Corrupt when a record lies elsewhere, belongs to another batch, or is in use."""
    ids = [row.id for row in rows]
    values = {**_blob(ids), 'batch': number}
    found = db.execute(
        f"{_NAMED} SELECT group_concat(i || ' ' || hex(p.name) || ' ' || c.offset || ' ' || c.stored, ',') "
        f'FROM {_HELD} JOIN pack p ON p.pack = c.pack',
        values,
    ).fetchone()[0]
    present = 0
    for text in found.split(',') if found else ():
        i, name, offset, stored = text.split(' ')
        row = rows[int(i)]
        if (row.pack_name.hex(), row.offset, row.stored_length) != (name.lower(), int(offset), int(stored)):
            raise Corrupt(f'P8: chunk {row.id.hex()} of batch {number} lies elsewhere than its receipt says')
        present += 1
    used = db.execute(
        f'{_NAMED} SELECT hex(min(c.id)) FROM {_HELD} '
        'JOIN chunk u ON u.id = c.id AND u.pack = c.pack AND u.offset = c.offset',
        values,
    ).fetchone()[0]
    if used:
        raise Corrupt(f'P1: the record of chunk {used.lower()} in batch {number} is in use')
    moved = _change(db, f'INSERT INTO freed SELECT {_COLUMNS}, c.batch FROM {_HELD}', values)
    gone = _change(db, _TAKE, values)
    assert gone == moved == present, f'{present} rows were there, {moved} came, {gone} went'
    return moved


def add_parts(db: sqlite3.Connection, request: int, first: int, ids: Sequence[bytes]) -> None:
    """Add ids to a request as parts from number `first` on."""
    size = limits.INSERT_ROWS_MAX
    db.executemany(
        "INSERT INTO request_part VALUES (?, ?, 'chunks', ?)",
        [(request, first + n // size, b''.join(ids[n : n + size])) for n in range(0, len(ids), size)],
    )


def _requests(db: sqlite3.Connection, number: int) -> tuple[int, int, int]:
    """Return how many requests there are: the batch's, all in batches, all."""
    text = 'SELECT count(*) FILTER (WHERE batch = ?), count(batch), count(*) FROM request'
    mine, held, every = db.execute(text, (number,)).fetchone()
    return mine, held, every


def release_requests(db: sqlite3.Connection, number: int) -> None:
    """The batch's requests are in no batch any more: they may be taken back, or go into another. Nobody
    else's: what still rests in quarantine would count as a standing root."""
    mine, held, every = _requests(db, number)
    db.execute('UPDATE request SET batch = NULL WHERE batch = ?', (number,))
    found = _requests(db, number)
    assert found == (0, held - mine, every), f'batch {number} released requests of others: {found}'


def end_requests(db: sqlite3.Connection, number: int, kept: int | None) -> None:
    """The batch's requests are fulfilled and go, but for `kept`, which is in no batch any more. Nobody
    else's: what is in the trash would be gone from there. In one step: to release what was not ended would
    let people take back what is freed."""
    mine, held, every = _requests(db, number)
    left = 0 if kept is None else 1
    db.execute('DELETE FROM request WHERE batch = ? AND number IS NOT ?', (number, kept))
    found = _requests(db, number)
    gone = mine - left
    assert found == (left, held - gone, every - gone), f'batch {number} ended requests of others: {found}'
    release_requests(db, number)
