"""Tool fsck, balance: references, index and records held against each other, part by part of the ids. Plain
functions for worker processes.

Of all chunks: what somebody reaches, rests in quarantine or was asked to go, and what leaked, together are
what the index names; and what the index names is what the packs have. Each difference is a finding with a
name."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tools.checker.badrows import CODES, BadRows
from tools.checker.graph import ASKED, NOBODY, RESTING, STRICT, Graph, find, search
from tools.checker.losses import (
    ANY,
    ASKED_FOR,
    CHUNK,
    PACK,
    RECORD,
    RESTING_ONLY,
    STRICT_ONLY,
    TOP,
    Marks,
    PartLosses,
)
from tools.checker.rows import Columns, Rows, Unusual, can_be, query_columns
from tools.checker.spill import RECORDS, bytes_of, part_of, range_of, read_part, text_of, words, words_of
from tools.checker.store import Store, query
from tools.checker.sums import Sums, mixed

PACK_SHIFT = np.uint64(32)


@dataclass(slots=True)
class PartResult:
    """What one part showed."""

    losses: PartLosses = field(default_factory=PartLosses)
    counts: dict[str, int] = field(default_factory=dict)
    unusual: bool = False  # a row is not as it should be; then nothing else was done
    healed: list[int] = field(default_factory=list)  # first numbers of ids that were lost, and are whole
    sums: Sums = field(default_factory=Sums)  # of the records that rows name, in packs that are summed

    def add(self, name: str, number: int) -> None:
        """Add to a count."""
        self.counts[name] = self.counts.get(name, 0) + number


@dataclass(frozen=True, slots=True)
class World:
    """What all parts are held against. `rows`: tables that can be read by pages; `epoch`: that no row may be
    beyond, where nobody has looked at the rows yet; `ends`: by pack, where its readable records end;
    `lost_by`: by pack, the code when it has lost some; `unseen`: packs that nobody let us read; `bad`: by
    pack, records that cannot be read; `dark`: by pack, (from, to) bytes that the disk does not give; `kinds`:
    by pack, of its records. `compared`: records were listed, but for those of packs in `summed`. `shown_max`:
    findings of each code that are kept."""

    store: Store
    rows: Mapping[str, Rows]
    epoch: int | None
    graph: Graph
    ends: Mapping[int, int]
    lost_by: Mapping[int, str]
    unseen: frozenset[int]
    bad: Mapping[int, BadRows]
    dark: Mapping[int, tuple[tuple[int, int], ...]]
    kinds: Mapping[int, int]
    compared: bool
    full: bool
    journal: frozenset[int]  # places of records that only the journal names
    tops: NDArray[np.void]  # ids of roots: (a, b, flag)
    parts: int
    wanted: tuple[bytes, ...]  # ids to be named all the same
    shown_max: int
    summed: frozenset[int] = frozenset()
    damaged: bool = True  # the catalog knows of lost chunks


def check_part(world: World, part: int) -> PartResult:
    """Hold one part against the others."""
    return _Part(world, part).run()


class _Part:
    def __init__(self, world: World, part: int) -> None:
        self.world = world
        self.part = part
        self.marks = Marks(world.shown_max)
        self.result = PartResult()
        self.tops = world.tops[part_of(world.tops['a'], world.parts) == part]
        self.index, self.quarantine, self.freed = [
            self._columns(table) for table in ('chunk', 'quarantine', 'freed')
        ]
        self.damaged = words(self._damaged() if world.damaged else b'')
        folder = world.store.scratch
        self.refs = read_part(folder, 'refs', part)
        records = read_part(folder, 'records', part)
        order = np.argsort(records['place'], kind='stable')
        self.records, self.places = records[order], records['place'][order]
        self.named = np.zeros(len(records), dtype=bool)  # by a row
        self.asked = read_part(folder, 'asked', part)
        self.node = world.graph.by_owner(self.refs['owner'])
        flags = world.graph.flags
        self.flag = np.where(self.node != NOBODY, flags[self.node] if len(flags) else 0, 0)

    def _damaged(self) -> bytes:
        with closing(self.world.store.connect()) as db:
            text = 'SELECT id FROM damage WHERE id >= ? AND id < ? ORDER BY id'
            return b''.join([id for (id,) in query(db, text, range_of(self.part, self.world.parts))])

    def _columns(self, table: str) -> Columns:
        rows, epoch = self.world.rows.get(table), self.world.epoch
        if rows is not None:
            try:
                found = rows.read(*bytes_of(self.part, self.world.parts))
            except Unusual:
                self.result.unusual |= epoch is not None
            else:
                self.result.unusual |= epoch is not None and not can_be(found, epoch)
                return found
        with closing(self.world.store.connect()) as db:
            return query_columns(db, table, *range_of(self.part, self.world.parts))

    def run(self) -> PartResult:
        if self.result.unusual:
            return self.result
        index, refs = self.index, self.refs
        at = find(index.a, index.b, refs['a'], refs['b'])
        tops = self.tops
        top_at = find(index.a, index.b, tops['a'], tops['b'])
        self.result.add('references', int((self.flag & STRICT > 0).sum()))
        self._absent(refs[at == NOBODY], self.flag[at == NOBODY])
        self._absent_tops(tops[top_at == NOBODY])
        if self.result.unusual:
            return self.result
        self._lengths(at)
        self._leaks(at, top_at, tops)
        bad = self._places(index, 'index')
        self._places(self.quarantine, 'quarantine')
        if self.world.compared:
            self._records()
        self._known(bad)
        for number, id in enumerate(self.world.wanted):
            a, b = words_of(id)
            if part_of(np.array([a], dtype=np.uint64), self.world.parts)[0] == self.part:
                self.marks.add(('chunk-named', ASKED_FOR, number), 'was asked for', a, b)
        self.result.losses = self.marks.resolve(refs, self.node, self.flag, tops)
        return self.result

    # --- what is referred to and not there ---------------------------------------------------------------
    def _absent(self, refs: NDArray[np.void], flag: NDArray[Any]) -> None:
        self._absent_ids(refs[flag & STRICT > 0])
        self._incomplete(
            refs[(flag & RESTING > 0) & (flag & STRICT == 0)], CHUNK, 'is neither indexed nor in quarantine'
        )

    def _absent_tops(self, tops: NDArray[np.void]) -> None:
        self._absent_ids(tops[tops['flag'] & STRICT > 0])
        self._incomplete(tops[tops['flag'] & RESTING > 0], TOP, 'the top of a request is not there')

    def _incomplete(self, rows: NDArray[np.void], about: int, what: str) -> None:
        a, b = _unique(rows)
        lost = find(self.quarantine.a, self.quarantine.b, a, b) == NOBODY
        for one, other in zip(a[lost].tolist(), b[lost].tolist(), strict=True):
            self.marks.add(('request-incomplete', about, one), what, one, other, RESTING_ONLY)

    def _absent_ids(self, rows: NDArray[np.void]) -> None:
        a, b = _unique(rows)
        if not len(a):
            return
        if self.world.summed:
            self.result.unusual = True  # only records that were listed tell whether a pack has it
            return
        resting = find(self.quarantine.a, self.quarantine.b, a, b) != NOBODY
        freed = find(self.freed.a, self.freed.b, a, b) != NOBODY
        records = self.records[np.argsort(self.records['a'])]
        seen = find(records['a'], records['b'], a, b) != NOBODY
        for index, (one, other) in enumerate(zip(a.tolist(), b.tolist(), strict=True)):
            if resting[index]:
                code, what = 'chunk-condemned', 'is only in quarantine, and something that stands needs it'
            elif freed[index]:
                code, what = 'chunk-freed', 'has been freed, and something that stands needs it'
            elif seen[index]:
                code, what = 'chunk-unindexed', 'is not in the index; a pack has it'
            else:
                code, what = 'chunk-missing', 'is not in the index, and in no pack'
            self.marks.add((code, CHUNK, one), what, one, other, STRICT_ONLY)

    def _lengths(self, at: NDArray[np.int64]) -> None:
        known = (at != NOBODY) & (self.refs['plain'] > 0) & (self.flag & STRICT > 0)
        refs, row = self.refs[known], at[known]
        wrong = (refs['plain'] != self.index.plain[row]) | (self.index.kind[row] != 1)
        for ref, index in zip(refs[wrong], row[wrong], strict=True):
            plain, kind = self.index.plain[index], self.index.kind[index]
            what = f'a file says {ref["plain"]} bytes, the index {plain} of kind {kind}'
            a, b = int(ref['a']), int(ref['b'])
            self.marks.add(('chunk-length', CHUNK, a), what, a, b)

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
    def _places(self, table: Columns, name: str) -> NDArray[np.bool_]:
        """Check the places of rows; return which of them are told as bad."""
        bad = np.zeros(len(table), dtype=bool)
        unseen = np.zeros(len(table), dtype=bool)
        order, packs, starts = _by_pack(table)
        self._sum(table, order, packs, starts)
        listed: list[NDArray[np.int64]] = []
        for pack, rows in zip(packs, np.split(order, starts[1:]), strict=False):
            if pack not in self.world.summed:
                listed.append(rows)
            if pack in self.world.unseen:
                unseen[rows] = True  # it is told that these were not checked
                continue
            self._outside(table, name, pack, rows, bad)
            self._dark(table, pack, rows, bad)
            found = self.world.bad.get(pack)
            if found is not None:
                self._unreadable(table, found, pack, rows[~bad[rows]], bad)
        if self.world.compared and listed:
            self._match(table, name, np.concatenate(listed), bad, unseen)
        return bad

    def _sum(
        self, table: Columns, order: NDArray[np.int64], packs: list[int], starts: NDArray[np.int64]
    ) -> None:
        """Add up the records that rows name in packs that are summed."""
        summed = self.world.summed
        if not summed or not packs:
            return
        lengths = (table.stored << 32 | table.plain).astype(np.uint64)
        what = (table.kind | table.codec << 8).astype(np.uint64)
        given = mixed(table.a, table.b, table.place, lengths, what)[order]
        totals = np.add.reduceat(given, starts).tolist()
        counts = np.diff(np.r_[starts, len(table)]).tolist()
        for pack, count, total in zip(packs, counts, totals, strict=True):
            if pack in summed:
                self.result.sums.add(pack, count, total)

    def _outside(
        self, table: Columns, name: str, pack: int, rows: NDArray[np.int64], bad: NDArray[np.bool_]
    ) -> None:
        """Mark rows that name a place where no record can be."""
        world = self.world
        if pack not in world.kinds:
            outside, code = rows, 'index-record'
            what = f'{name} names it, the catalog does not know it'
        else:
            end = table.offset[rows] + 52 + table.stored[rows]
            outside = rows[end > world.ends.get(pack, 0)]
            lost = world.lost_by.get(pack)
            code = lost or 'index-record'
            what = 'its chunks are lost' if lost else f'{name} names a place behind its last record'
        bad[outside] = True
        for row in outside.tolist():
            self.marks.add((code, PACK, pack), what, int(table.a[row]), int(table.b[row]))

    def _dark(self, table: Columns, pack: int, rows: NDArray[np.int64], bad: NDArray[np.bool_]) -> None:
        """Mark rows whose record the disk does not give."""
        for start, stop in self.world.dark.get(pack, ()):
            end = table.offset[rows] + 52 + table.stored[rows]
            for row in rows[(table.offset[rows] < stop) & (end > start) & ~bad[rows]].tolist():
                bad[row] = True
                a, b = int(table.a[row]), int(table.b[row])
                self.marks.add(('pack-unreadable', PACK, pack), 'the disk does not give its chunks', a, b)

    def _unreadable(
        self, table: Columns, found: BadRows, pack: int, rows: NDArray[np.int64], bad: NDArray[np.bool_]
    ) -> None:
        """Mark rows whose record cannot be read."""
        records = found.read()
        at = np.minimum(np.searchsorted(records['offset'], table.offset[rows]), len(records) - 1)
        hit = records['offset'][at] == table.offset[rows]
        rows, at = rows[hit], at[hit]
        bad[rows] = True
        found.name(at[records['named'][at] == 0])
        for row, record in zip(rows.tolist(), records[at], strict=True):
            code = CODES[record['code']]
            place = pack << 32 | int(record['offset'])
            what = partial(found.what, record)
            self.marks.add((code, RECORD, place), what, int(table.a[row]), int(table.b[row]))

    def _match(
        self, whole: Columns, name: str, rows: NDArray[np.int64], bad: NDArray[np.bool_],
        unseen: NDArray[np.bool_],
    ) -> None:  # fmt: skip
        """Each of these rows must name a record that is exactly there."""
        rows = np.sort(rows)
        table = whole if len(rows) == len(whole) else whole.take(rows)
        at = self._named(table)
        seen = self.records[at] if len(self.records) else np.zeros(len(table), dtype=RECORDS)
        what = table.kind.astype(np.uint32) | table.codec.astype(np.uint32) << np.uint32(8)
        good = (seen['place'] == table.place) & (seen['a'] == table.a) & (seen['b'] == table.b)
        good &= (seen['stored'] == table.stored) & (seen['plain'] == table.plain) & (seen['what'] == what)
        for row in rows[~good & ~bad[rows] & ~unseen[rows]].tolist():
            bad[row] = True
            a, b, pack = int(whole.a[row]), int(whole.b[row]), int(whole.pack[row])
            text = f'{name} names offset {whole.offset[row]}; there is no such record of chunk {text_of(a)}'
            self.marks.add(('index-record', PACK, pack), text, a, b)

    def _named(self, table: Columns) -> NDArray[np.int64]:
        """Note the records that rows name; return for each row the one that is there, or any other."""
        place = table.place
        at = np.minimum(search(self.places, place), max(len(self.places) - 1, 0))
        if len(self.places):
            self.named[at[self.places[at] == place]] = True
        return at

    def _records(self) -> None:
        """Records that no row names: copies of what is indexed, freed ones, or what a crash left."""
        self._named(self.freed)
        self._sum(self.freed, *_by_pack(self.freed))
        records = self.records[~self.named]
        copy = find(self.index.a, self.index.b, records['a'], records['b']) != NOBODY
        self.result.add('records', len(self.records))
        self.result.add('copies', int(copy.sum()))
        left = records[~copy & (records['place'] >> PACK_SHIFT > 0)]
        left = (
            left[[place not in self.world.journal for place in left['place'].tolist()]] if len(left) else left
        )
        self.result.add('unindexed', len(left))
        self.result.add('unindexed bytes', int((left['stored'].astype(np.int64) + 52).sum()))

    def _known(self, bad: NDArray[np.bool_]) -> None:
        """Chunks that the catalog knows as lost."""
        rows = find(self.index.a, self.index.b, *self.damaged)
        for a, b, row in zip(self.damaged[0].tolist(), self.damaged[1].tolist(), rows.tolist(), strict=True):
            if row == NOBODY or bad[row] or int(self.index.pack[row]) in self.world.unseen:
                continue
            if self.world.full:
                self.result.healed.append(a)
            else:
                self.marks.add(('damage-known', CHUNK, a), 'was found missing or wrong', a, b, ANY)


def _by_pack(table: Columns) -> tuple[NDArray[np.int64], list[int], NDArray[np.int64]]:
    """Return the rows in the order of their packs, these packs, and where the rows of each begin."""
    pack = table.pack
    if len(pack) and 0 <= int(pack.min()) <= int(pack.max()) < 1 << 16:
        pack = pack.astype(np.uint16)  # these are sorted in two passes
    order = np.argsort(pack, kind='stable')
    packs, starts = np.unique(pack[order], return_index=True)
    return order, packs.tolist(), starts


def _unique(rows: NDArray[np.void]) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Return the ids of rows, each once, ascending."""
    order = np.lexsort((rows['b'], rows['a']))
    a, b = rows['a'][order], rows['b'][order]
    new = np.r_[True, (a[1:] != a[:-1]) | (b[1:] != b[:-1])][: len(a)]
    return a[new], b[new]
