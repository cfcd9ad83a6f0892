"""L4 repack: live records of wasteful packs move to a new pack, so that the old ones can go. Blocking; one
at a time.

What moves: every record of the old pack that a row of `chunk` or `quarantine` stands for at exactly this
location, and every record that no table knows at all (a leak: a crash left it, and only a person's request
may free it). What stays behind: records with a receipt, and copies whose row says another location.

Order, for a crash at any point: the new pack is whole and durable before any row names it (P4); one
transaction adds its row and repoints, each chunk only if its row still says the old location; the old pack
then goes through the door that every pack goes through (sweep.py), which reads and verifies the copies
once more. A new pack that no transaction took over is found by the next recovery and kept."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from snapfs import limits
from snapfs.collect.receipts import Receipts
from snapfs.collect.sweep import PackUse, read_pack
from snapfs.errors import Corrupt, Refused
from snapfs.format.packs import (
    ENTRY_BYTES,
    PACK_HEADER_BYTES,
    TRAILER_BYTES,
    PackEntry,
    PackHeader,
    encode_footer,
    encode_pack_header,
)
from snapfs.format.records import HEADER_BYTES, RecordKind, decode_header, decode_payload
from snapfs.store.catalog import write_packs
from snapfs.store.packs import BYTES_MAX, pack_path
from snapfs.store.rows import PackRow
from snapfs.store.store import Store

log = logging.getLogger(__name__)

LEAK = 'no table'


@dataclass(frozen=True, slots=True)
class Move:
    """One record to copy: where it is, and the table with a row for it ('chunk' or 'quarantine'), or LEAK."""

    id: bytes
    pack: PackRow
    offset: int
    length: int  # header and payload
    table: str


@dataclass(frozen=True, slots=True)
class Moved:
    """One copied record: the move, and its entry in the new pack."""

    move: Move
    entry: PackEntry


def choose(uses: Sequence[PackUse], waste_min: float) -> list[PackUse]:
    """Return packs of one kind worth rewriting together, the most wasteful first; their live bytes fill
    one new pack at most. Empty when no pack is wasteful enough."""
    wasteful = sorted(
        (use for use in uses if use.row.state == 'sealed' and use.needed_bytes and use.waste >= waste_min),
        key=lambda use: (-use.waste, use.row.pack),
    )
    if not wasteful:
        return []
    kind = RecordKind(wasteful[0].row.kind)
    chosen: list[PackUse] = []
    size = PACK_HEADER_BYTES + TRAILER_BYTES
    for use in wasteful:
        needed = use.needed_bytes + use.row.records * ENTRY_BYTES
        if use.row.kind == kind and (not chosen or size + needed <= BYTES_MAX[kind]):
            chosen.append(use)
            size += needed
    return chosen


def plan_moves(store: Store, row: PackRow, receipts: Receipts) -> list[Move]:
    """Return what has to be carried out of a pack, in its order. Corrupt when the pack is not whole."""
    rows = store.catalog.query('SELECT offset, id FROM quarantine WHERE pack = ?', (row.pack,))
    quarantined = set(rows)
    headers = list(read_pack(store, row))
    live = store.catalog.locate(list(dict.fromkeys(header.id for _, header in headers)))
    freed = receipts.of_pack(row, [(offset, header.id) for offset, header in headers])
    moves = []
    for offset, header in headers:
        here = live.get(header.id)
        length = HEADER_BYTES + header.stored_length
        if here is not None and here[:2] == (row.pack, offset):
            moves.append(Move(header.id, row, offset, length, 'chunk'))
        elif (offset, header.id) in quarantined:
            moves.append(Move(header.id, row, offset, length, 'quarantine'))
        elif here is None and (offset, header.id) not in freed:
            moves.append(Move(header.id, row, offset, length, LEAK))
    return moves


def copy(store: Store, number: int, name: bytes, moves: Sequence[Move]) -> tuple[PackRow, list[Moved]]:
    """Write a new sealed pack with verified copies of the records; return its row and where they are.

    Durable when it returns. Corrupt when a record is not what its id says: nothing is repointed then.
    """
    kind = RecordKind(moves[0].pack.kind)
    root, disk = store.path / 'packs', store.disk
    path = pack_path(root, kind, name)
    if not disk.exists(path.parent):
        disk.mkdir(path.parent)
        disk.sync_directory(path.parent.parent)
    moved: list[Moved] = []
    fd = disk.open_write(path, create=True)
    try:
        disk.pwrite(fd, [encode_pack_header(PackHeader(store.superblock.uuid, name, kind))], 0)
        offset = PACK_HEADER_BYTES
        for run in _runs(moves):
            buffers = _verified(store, run)
            disk.pwrite(fd, buffers, offset)
            for move, buffer in zip(run, buffers, strict=True):
                header = decode_header(buffer[:HEADER_BYTES])
                sizes = (header.stored_length, header.plain_length, header.codec)
                moved.append(Moved(move, PackEntry(move.id, offset, *sizes)))
                offset += move.length
        footer = encode_footer([one.entry for one in moved], offset, name)
        disk.pwrite(fd, [footer], offset)
        disk.sync_data(fd)
    finally:
        disk.close(fd)
    disk.sync_directory(path.parent)
    row = PackRow(number, name, kind, 'sealed', offset + len(footer), len(moved))
    _read_back(store, row, moved)
    return row, moved


def _read_back(store: Store, row: PackRow, moved: Sequence[Moved]) -> None:
    """Read a new pack as a reader would, before anybody is sent there. Corrupt unless each copy is what its
    id says."""
    places = [(offset, header.id) for offset, header in read_pack(store, row)]
    if places != [(one.entry.offset, one.entry.id) for one in moved]:
        raise Corrupt(f'pack {row.name.hex()} does not hold what was written to it')
    copies = [Move(one.move.id, row, one.entry.offset, one.move.length, one.move.table) for one in moved]
    for run in _runs(copies):
        _verified(store, run)


def _runs(moves: Sequence[Move]) -> Iterator[list[Move]]:
    """Yield stretches of records of one pack, of bounded size together."""
    run: list[Move] = []
    size = 0
    for move in moves:
        if run and (run[0].pack != move.pack or size + move.length > limits.READ_BYTES_MAX):
            yield run
            run, size = [], 0
        run.append(move)
        size += move.length
    if run:
        yield run


def _verified(store: Store, run: list[Move]) -> list[memoryview]:
    """Read records of one pack and verify each against its id."""
    row = run[0].pack
    start, end = run[0].offset, run[-1].offset + run[-1].length
    fd = store.disk.open_read(pack_path(store.path / 'packs', row.kind, row.name))
    try:
        pieces = [memoryview(store.disk.pread(fd, move.length, move.offset)) for move in run]
    finally:
        store.disk.close(fd)
    assert start < end
    for move, piece in zip(run, pieces, strict=True):
        header = decode_header(piece[:HEADER_BYTES])
        if header.id != move.id or header.kind != row.kind:
            raise Corrupt(f'pack {row.name.hex()}: another record at offset {move.offset}')
        decode_payload(header, piece[HEADER_BYTES:])
    return pieces


def take_over(store: Store, row: PackRow, moved: Sequence[Moved]) -> int:
    """Make the new pack known and repoint, in one transaction; return how many chunks moved with it.

    A chunk whose row says something else by now (condemned, freed) stays as it is: its copy is waste.
    """
    with store.catalog.transaction() as db:
        write_packs(db, [row])
        count = 0
        for table in ('chunk', 'quarantine'):
            places = [
                (row.pack, one.entry.offset, *_was(one.move)) for one in moved if one.move.table == table
            ]
            text = f'UPDATE {table} SET pack = ?, offset = ? WHERE id = ? AND pack = ? AND offset = ?'
            changed = max(db.executemany(text, places).rowcount, 0)
            assert changed <= len(places), (
                f'P1: {changed} rows of {table} were repointed, {len(places)} wanted'
            )
            count += changed
        # A leak becomes known, so that it is counted and a person can ask for it.
        leaks = [(*_place(row, one), store.catalog.epoch) for one in moved if one.move.table == LEAK]
        db.executemany('INSERT INTO chunk VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO NOTHING', leaks)
        _check(db, row, moved)
    store.chunks.forget(one.move.id for one in moved)
    return count


def _check(db: sqlite3.Connection, row: PackRow, moved: Sequence[Moved]) -> None:
    """Assert that the tables say of the new pack what was written there (P1). Otherwise the transaction ends,
    and nothing has moved."""
    known = db.execute('SELECT name, state FROM pack WHERE pack = ?', (row.pack,)).fetchone()
    assert known == (row.name, 'sealed'), f'P1: pack {row.pack} is {known}'
    written = {tuple(one.entry) for one in moved}
    ids = sorted({one.entry.id for one in moved})
    for table in ('chunk', 'quarantine'):
        for start in range(0, len(ids), limits.LOCATE_IDS_MAX):
            part = ids[start : start + limits.LOCATE_IDS_MAX]
            rows = db.execute(
                f'SELECT id, offset, stored, plain, codec FROM {table} WHERE pack = ? '
                f'AND id IN ({",".join("?" * len(part))})',
                (row.pack, *part),
            ).fetchall()
            wrong = [found for found in rows if found not in written]
            assert not wrong, f'P1: {table} looks for chunk {wrong[0][0].hex()} where it was not written'


def _was(move: Move) -> tuple[bytes, int, int]:
    return move.id, move.pack.pack, move.offset


def _place(row: PackRow, one: Moved) -> tuple[bytes, int, int, int, int, int, int]:
    entry = one.entry
    sizes = (entry.stored_length, entry.plain_length, entry.codec)
    return entry.id, row.pack, entry.offset, *sizes, row.kind


def repack(store: Store, chosen: Sequence[PackUse], receipts: Receipts) -> int:
    """Carry what must stay out of the chosen packs into a new one; return how many chunks moved.

    Corrupt when a pack cannot be read to its end, Refused(ENOSPC): nothing was repointed then, and the
    unfinished copy is gone. Left there, it would be a pack that nobody knows after the next opening, and
    recount 2 would believe nothing any more."""
    moves = [move for use in chosen for move in plan_moves(store, use.row, receipts)]
    if not moves:
        return 0
    number, name = store.chunks.new_pack(moves[0].pack.kind)
    try:
        row, moved = copy(store, number, name, moves)
        return take_over(store, row, moved)
    except (Corrupt, Refused):
        # Nothing names this pack: it is ours alone to remove.
        path = pack_path(store.path / 'packs', moves[0].pack.kind, name)
        assert not store.catalog.query('SELECT 1 FROM pack WHERE name = ?', (name,)), 'a copy was taken over'
        if store.disk.exists(path):
            store.disk.unlink(path)
        store.chunks.forget_pack(number)
        raise
