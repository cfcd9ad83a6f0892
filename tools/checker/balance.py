"""Tool fsck, balance: references, index and records held against each other, part by part of the ids. Plain
functions for worker processes.

Of all chunks: what somebody reaches, rests in quarantine or was asked to go, and what leaked, together are
what the index names; and what the index names is what the packs have. Each difference is a finding with a
name."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tools.checker.graph import ASKED, NOBODY, RESTING, STRICT, Graph, find
from tools.checker.spill import RECORDS, part_of, range_of, read_part, text_of, words, words_of
from tools.checker.store import Store, query

PACK_SHIFT = np.uint64(32)
BAD_MAX = 100_000  # of one part
MOST = (1 << 64) - 1
_ROWS = 'SELECT id, pack, offset, stored, plain, codec, kind FROM {table} '
_ROWS += 'WHERE id >= ? AND id < ? AND length(id) = 32 ORDER BY id'


@dataclass(frozen=True, slots=True)
class Bad:
    """An id that is not as it should be. `key` names the finding that it belongs to: (code, place, what);
    chunks of one lost pack share one."""

    key: tuple[str, str, str]
    a: int
    b: int


@dataclass(slots=True)
class PartResult:
    """What one part showed. `owners`: for each of `bad`, numbers of nodes that refer to it."""

    bad: list[Bad] = field(default_factory=list)
    owners: list[NDArray[np.uint32]] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    findings: list[tuple[str, str, str]] = field(default_factory=list)

    def add(self, name: str, number: int) -> None:
        """Add to a count."""
        self.counts[name] = self.counts.get(name, 0) + number


@dataclass(frozen=True, slots=True)
class World:
    """What all parts are held against. `ends`: by pack, where its readable records end; `lost_by`: by pack,
    the code when it has lost some; `bad`: by place, (code, what) of records that cannot be read; `kinds`: by
    pack, of its records. `compared`: records were listed."""

    store: Store
    graph: Graph
    ends: Mapping[int, int]
    lost_by: Mapping[int, str]
    bad: Mapping[int, tuple[str, str]]
    kinds: Mapping[int, int]
    places: Mapping[int, str]
    compared: bool
    full: bool
    journal: frozenset[int]  # places of records that only the journal names
    tops: NDArray[np.void]  # ids of roots: (a, b, flag)
    parts: int
    wanted: tuple[bytes, ...]  # ids to be named all the same


class Table:
    """Rows of the index or of quarantine in one part, ascending by id."""

    def __init__(self, db: sqlite3.Connection, name: str, low: bytes, high: bytes) -> None:
        rows = query(db, _ROWS.format(table=name), (low, high))
        self.a, self.b = words(b''.join([row[0] for row in rows])) if rows else words(b'')
        numbers: NDArray[np.int64] = np.array([row[1:] for row in rows], dtype=np.int64).reshape(-1, 6)
        self.pack, self.offset, self.stored = numbers[:, 0], numbers[:, 1], numbers[:, 2]
        self.plain, self.codec, self.kind = numbers[:, 3], numbers[:, 4], numbers[:, 5]
        self.place = self.pack.astype(np.uint64) << PACK_SHIFT | self.offset.astype(np.uint64)

    def __len__(self) -> int:
        return len(self.a)


def check_part(world: World, part: int) -> PartResult:
    """Hold one part against the others."""
    db = world.store.connect()
    try:
        return _Part(world, db, part).run()
    finally:
        db.close()


class _Part:
    def __init__(self, world: World, db: sqlite3.Connection, part: int) -> None:
        self.world = world
        self.part = part
        self._order: NDArray[np.int64] | None = None
        self._sorted: NDArray[np.uint64] = np.zeros(0, dtype=np.uint64)
        self.result = PartResult()
        self.tops = world.tops[part_of(world.tops['a'], world.parts) == part]
        low, high = range_of(part, world.parts)
        self.index = Table(db, 'chunk', low, high)
        self.quarantine = Table(db, 'quarantine', low, high)
        self.freed = Table(db, 'freed', low, high)
        self.damaged = words(b''.join([id for (id,) in query(
            db, 'SELECT id FROM damage WHERE id >= ? AND id < ? ORDER BY id', (low, high)
        )]))  # fmt: skip
        folder = world.store.scratch
        self.refs = read_part(folder, 'refs', part)
        self.records = read_part(folder, 'records', part)
        self.asked = read_part(folder, 'asked', part)
        self.node = world.graph.by_owner(self.refs['owner'])
        flags = world.graph.flags
        self.flag = np.where(self.node != NOBODY, flags[self.node] if len(flags) else 0, 0)

    def run(self) -> PartResult:
        index, refs = self.index, self.refs
        at = find(index.a, index.b, refs['a'], refs['b'])
        tops = self.tops
        top_at = find(index.a, index.b, tops['a'], tops['b'])
        self.result.add('references', int((self.flag & STRICT > 0).sum()))
        self._absent(refs[at == NOBODY], self.flag[at == NOBODY])
        self._absent_tops(tops[top_at == NOBODY])
        self._lengths(at)
        self._leaks(at, top_at, tops)
        bad = self._places(index, 'index')
        self._places(self.quarantine, 'quarantine')
        if self.world.compared:
            self._records()
        self._known(bad)
        for id in self.world.wanted:
            a, b = words_of(id)
            if part_of(np.array([a], dtype=np.uint64), self.world.parts)[0] == self.part:
                self._mark(('chunk-named', f'chunk {id.hex()}', 'was asked for'), a, b)
        return self.result

    # --- what is referred to and not there ---------------------------------------------------------------
    def _mark(self, key: tuple[str, str, str], a: int, b: int, strict_only: bool = False) -> None:
        if len(self.result.bad) >= BAD_MAX:
            self.result.add('bad chunks not told', 1)
            return
        if self._order is None:
            self._order = np.argsort(self.refs['a'])
            self._sorted = self.refs['a'][self._order]
        start, end = np.searchsorted(self._sorted, [np.uint64(a), np.uint64(a) + np.uint64(1)])
        mine = self._order[start:end] if a != MOST else self._order[start:]
        good = (self.refs['b'][mine] == np.uint64(b)) & (self.node[mine] != NOBODY)
        mine = mine[good & (self.flag[mine] & (STRICT if strict_only else STRICT | RESTING) > 0)]
        self.result.bad.append(Bad(key, a, b))
        self.result.owners.append(self.refs['owner'][mine])

    def _absent(self, refs: NDArray[np.void], flag: NDArray[Any]) -> None:
        strict = refs[flag & STRICT > 0]
        for a, b in sorted(set(zip(strict['a'].tolist(), strict['b'].tolist(), strict=True))):
            self._absent_one(a, b)
        resting = refs[(flag & RESTING > 0) & (flag & STRICT == 0)]
        lost = find(self.quarantine.a, self.quarantine.b, resting['a'], resting['b']) == NOBODY
        for a, _b in sorted(set(zip(resting['a'][lost].tolist(), resting['b'][lost].tolist(), strict=True))):
            text = text_of(a)
            self.result.findings.append(
                ('request-incomplete', f'chunk {text}', 'is neither indexed nor in quarantine')
            )

    def _absent_tops(self, tops: NDArray[np.void]) -> None:
        for a, b, flag in tops.tolist():
            if flag & STRICT:
                self._absent_one(a, b)
            elif flag & RESTING and not self._has(self.quarantine, a, b):
                self.result.findings.append(
                    ('request-incomplete', f'node {text_of(a)}', 'the top of a request is not there')
                )

    @staticmethod
    def _has(table: Any, a: int, b: int) -> bool:
        column = (np.array([a], dtype=np.uint64), np.array([b], dtype=np.uint64))
        return bool(find(table.a, table.b, *column)[0] != NOBODY)

    def _absent_one(self, a: int, b: int) -> None:
        text = f'chunk {text_of(a)}'
        if self._has(self.quarantine, a, b):
            key = ('chunk-condemned', text, 'is only in quarantine, and something that stands needs it')
        elif self._has(self.freed, a, b):
            key = ('chunk-freed', text, 'has been freed, and something that stands needs it')
        elif bool(((self.records['a'] == np.uint64(a)) & (self.records['b'] == np.uint64(b))).any()):
            key = ('chunk-unindexed', text, 'is not in the index; a pack has it')
        else:
            key = ('chunk-missing', text, 'is not in the index, and in no pack')
        self._mark(key, a, b, strict_only=True)

    def _lengths(self, at: NDArray[np.int64]) -> None:
        known = (at != NOBODY) & (self.refs['plain'] > 0) & (self.flag & STRICT > 0)
        refs, row = self.refs[known], at[known]
        wrong = (refs['plain'] != self.index.plain[row]) | (self.index.kind[row] != 1)
        for ref, index in zip(refs[wrong], row[wrong], strict=True):
            plain, kind = self.index.plain[index], self.index.kind[index]
            what = f'a file says {ref["plain"]} bytes, the index {plain} of kind {kind}'
            self._mark(('chunk-length', f'chunk {text_of(ref["a"])}', what), int(ref['a']), int(ref['b']))

    # --- what is there and not referred to ---------------------------------------------------------------
    def _leaks(self, at: NDArray[np.int64], top_at: NDArray[np.int64], tops: NDArray[np.void]) -> None:
        index, result = self.index, self.result
        flags = np.zeros(len(index), dtype=np.uint8)
        for one in (STRICT, RESTING, ASKED):
            flags[at[(at != NOBODY) & (self.flag & one > 0)]] |= one
            flags[top_at[(top_at != NOBODY) & (tops['flag'] & one > 0)]] |= one
        asked = find(index.a, index.b, self.asked['a'], self.asked['b'])
        flags[asked[asked != NOBODY]] |= ASKED
        size = index.stored + 52
        result.add('indexed', len(index))
        result.add('indexed bytes', int(size.sum()))
        reached = flags & STRICT > 0
        result.add('reachable', int(reached.sum()))
        result.add('reachable bytes', int(size[reached].sum()))
        requested = (flags & (RESTING | ASKED) > 0) & ~reached
        result.add('requested', int(requested.sum()))
        result.add('requested bytes', int(size[requested].sum()))
        leaked = flags == 0
        result.add('leaked', int(leaked.sum()))
        result.add('leaked bytes', int(size[leaked].sum()))
        result.add('quarantined', len(self.quarantine))
        result.add('quarantined bytes', int((self.quarantine.stored + 52).sum()))

    # --- where chunks are said to be ---------------------------------------------------------------------
    def _places(self, table: Table, name: str) -> set[int]:
        """Check the places of rows; return the numbers of rows that are told as bad."""
        world = self.world
        bad: set[int] = set()
        packs = np.unique(table.pack)
        for pack in packs.tolist():
            rows = np.flatnonzero(table.pack == pack)
            code = world.lost_by.get(pack)
            if pack not in world.kinds:
                outside, key = (
                    rows,
                    ('index-record', f'pack number {pack}', f'{name} names it, the catalog does not know it'),
                )
            else:
                end = table.offset[rows] + 52 + table.stored[rows]
                outside = rows[end > world.ends.get(pack, 0)]
                what = 'its chunks are lost' if code else f'{name} names a place behind its last record'
                key = (code or 'index-record', world.places[pack], what)
            for row in outside.tolist():
                bad.add(row)
                self._mark(key, int(table.a[row]), int(table.b[row]))
        for row, place in enumerate(table.place.tolist()) if world.bad else ():
            if place in world.bad and row not in bad:
                bad.add(row)
                code, what = world.bad[place]
                where = f'{world.places[place >> 32]} at offset {place & 0xFFFFFFFF}'
                self._mark((code, where, what), int(table.a[row]), int(table.b[row]))
        if world.compared:
            self._match(table, name, bad)
        return bad

    def _match(self, table: Table, name: str, bad: set[int]) -> None:
        """Every row must name a record that is exactly there."""
        records = self.records[np.argsort(self.records['place'])]
        if len(records):
            at = np.minimum(np.searchsorted(records['place'], table.place), len(records) - 1)
            seen = records[at]
        else:
            seen = np.zeros(len(table), dtype=RECORDS)
        what = table.kind.astype(np.uint32) | table.codec.astype(np.uint32) << np.uint32(8)
        good = (seen['place'] == table.place) & (seen['a'] == table.a) & (seen['b'] == table.b)
        good &= (seen['stored'] == table.stored) & (seen['plain'] == table.plain) & (seen['what'] == what)
        for row in np.flatnonzero(~good).tolist():
            if row in bad:
                continue
            bad.add(row)
            where = self.world.places.get(int(table.pack[row]), f'pack number {table.pack[row]}')
            chunk = text_of(int(table.a[row]))
            text = f'{name} names offset {table.offset[row]}; there is no such record of chunk {chunk}'
            self._mark(('index-record', where, text), int(table.a[row]), int(table.b[row]))

    def _records(self) -> None:
        """Records that no row names: copies of what is indexed, freed ones, or what a crash left."""
        records = self.records
        named = np.isin(
            records['place'], np.concatenate([self.index.place, self.quarantine.place, self.freed.place])
        )
        copy = find(self.index.a, self.index.b, records['a'], records['b']) != NOBODY
        self.result.add('records', len(records))
        self.result.add('copies', int((copy & ~named).sum()))
        left = records[~named & ~copy & (records['place'] >> PACK_SHIFT > 0)]
        left = (
            left[[place not in self.world.journal for place in left['place'].tolist()]] if len(left) else left
        )
        self.result.add('unindexed', len(left))
        self.result.add('unindexed bytes', int((left['stored'].astype(np.int64) + 52).sum()))

    def _known(self, bad: set[int]) -> None:
        """Chunks that the catalog knows as lost."""
        for a, b in zip(self.damaged[0].tolist(), self.damaged[1].tolist(), strict=True):
            key = np.array([a], dtype=np.uint64), np.array([b], dtype=np.uint64)
            row = int(find(self.index.a, self.index.b, *key)[0])
            text = f'chunk {text_of(a)}'
            if row in bad:
                continue
            if self.world.full and row != NOBODY:
                self.result.findings.append(('damage-healed', text, 'is whole'))
            elif row != NOBODY:
                self._mark(('damage-known', text, 'was found missing or wrong'), a, b)
