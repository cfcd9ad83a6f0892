"""L4 proof: after a batch, is every reference of every standing root still there? Blocking; one thread.

The bytes of a deletion are gone when this runs, so it is the last to look and the first to know (L13):
from every volume, snapshot, canary and request that nobody has freed, through every node, to every chunk:
a row in the index, in a pack that stands, within its durable bytes. What a request of a resting batch
reaches may be in quarantine instead. Every node on the way is read and its id verified; of data only the
place is looked at, unless `hashed`.

Trees are gone through level by level: all nodes of one level at once, each once, in the order in which
they lie in packs. The index is held in memory by the first 16 bytes of its ids, in as many parts as that
needs; each part goes once through all leaves."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from snapfs import limits
from snapfs.collect.catalog_ids import has_entry, opened_catalog, pack_facts, setting
from snapfs.collect.condemned import Ids, as_ids
from snapfs.collect.index_part import NO_ROW, IndexPart, Miss, Packs, Place, locate
from snapfs.collect.meta_packs import read_bytes
from snapfs.collect.proof_values import Missing, Proof, ProofSpec, ProvedRoot
from snapfs.errors import Corrupt
from snapfs.format.ids import RecordKind
from snapfs.format.nodes import peek_refs
from snapfs.format.superblock import SUPERBLOCK_BYTES, decode_superblock

Progress = Callable[[int, int], None]  # leaves done, leaves in all (0 as long as that is unknown)
_ID = limits.ID_BYTES


class _IdSet:
    """A set of ids that is asked for once, in order. 32 bytes each."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._waiting = 0

    def add(self, joined: bytes) -> None:
        self._parts.append(joined)
        self._waiting += len(joined)
        if self._waiting > limits.PROOF_IDS_WAITING * _ID:
            self._parts = [self.unique().tobytes()]
            self._waiting = 0

    def unique(self) -> Ids:
        return (
            np.unique(as_ids(b''.join(self._parts)).reshape(-1).view(f'S{_ID}'))
            .view(np.uint8)
            .reshape(-1, _ID)
        )


@dataclass(frozen=True, slots=True)
class _Start:
    """Where a walk begins: the root that a row names, and its totals there."""

    row: str
    id: bytes
    resting: bool
    totals: tuple[int, int]  # items and references below


def prove(spec: ProofSpec, progress: Progress = lambda done, total: None) -> Proof:
    """Look whether everything is there. What is missing is told in the result; Corrupt when the looking
    itself is not possible: an unreadable catalog, another store, an old catalog."""
    raw = read_bytes(spec.store / 'superblock', 0, SUPERBLOCK_BYTES)
    if decode_superblock(raw).uuid != spec.uuid:
        raise Corrupt('the store is not the one whose proof was asked for')
    with opened_catalog(spec.store) as db:
        db.execute('BEGIN')
        epoch = setting(db, 'epoch')
        if epoch < spec.epoch:
            raise Corrupt(f'the catalog is of epoch {epoch}, before {spec.epoch}: it is an old one')
        packs = Packs(spec.store, spec.uuid, pack_facts(db))
        roots, starts = _standing(db)
        db.execute('COMMIT')
        walk = _Walk(db, packs, spec.hashed, progress)
        walk.run(starts)
        return Proof(
            uuid=spec.uuid,
            batch=spec.batch,
            epoch=epoch,
            hashed=spec.hashed,
            roots=tuple(roots),
            nodes=walk.nodes,
            references=walk.references,
            chunks=walk.chunks,
            packs=packs.standing,
            missing=tuple(walk.missing),
            missing_count=walk.missing_count,
        )


_ROOTS = """
SELECT 'volume', volume, CAST(name AS TEXT), root, root_items, root_refs, NULL FROM volume
UNION ALL SELECT 'snapshot', number, CAST(name AS TEXT), root, root_items, root_refs, NULL FROM snapshot
UNION ALL SELECT 'canary', number, '', root, root_items, root_refs, NULL FROM canary
UNION ALL SELECT 'request', request.number, CAST(volume_name || '@' || name AS TEXT), root, root_items,
  root_refs, CASE WHEN batch.state IN ('PLANNED', 'QUARANTINED') THEN batch.number END
  FROM request LEFT JOIN batch ON batch.number = request.batch
  WHERE request.kind IN ('snapshot', 'volume')
  AND (batch.state IS NULL OR batch.state NOT IN ('CONFIRMED', 'FREED'))
ORDER BY 1, 2
"""


def _standing(db: sqlite3.Connection) -> tuple[list[ProvedRoot], list[_Start]]:
    """Return the standing roots, and where to begin for each."""
    roots, starts = [], []
    for kind, number, name, root, items, refs, resting in db.execute(_ROOTS):
        row = f'{kind} {number}'
        if root is not None:
            if type(root) is not bytes or len(root) != _ID:
                raise Corrupt(f'catalog: the root of {row} is no id')
            starts.append(_Start(row, root, resting is not None, (items, refs)))
        text = '' if root is None else root.hex()
        roots.append(ProvedRoot(kind, number, name, text, items, refs, resting))
    return roots, starts


class _Walk:
    """The state of one run. Twice for each level: once for what must be in `chunk`, once for the rest of
    what only requests of resting batches reach, which may be in quarantine as well."""

    def __init__(self, db: sqlite3.Connection, packs: Packs, hashed: bool, progress: Progress) -> None:
        self._db = db
        self._packs = packs
        self._hashed = hashed
        self._progress = progress
        self._levels = [(_IdSet(), _IdSet()) for _ in range(limits.TREE_LEVELS_MAX + 1)]
        self.nodes = self.references = self.chunks = 0
        self._lost: set[bytes] = set()  # nodes that are not in the index
        self.missing: list[Missing] = []
        self.missing_count = 0

    def run(self, starts: Sequence[_Start]) -> None:
        """Go through everything."""
        for start in starts:
            self._enter(start)
        for level in range(limits.TREE_LEVELS_MAX, 0, -1):
            for resting in (False, True):
                for _, refs in self._read(self._unique(level, resting), resting, level):
                    self._levels[level - 1][resting].add(refs)
                    self.references += len(refs) // _ID
                    self.nodes += 1
            self._levels[level] = (_IdSet(), _IdSet())
        self._check_leaves()

    def _miss(self, id: bytes, by: str, why: str) -> None:
        self.missing_count += 1
        if len(self.missing) < limits.COLLECT_ALARMS_MAX:
            self.missing.append(Missing(id, by, why))

    def _enter(self, start: _Start) -> None:
        """Put the tops of trees where they belong: their level is only in themselves."""
        for id, place in self._places(as_ids(start.id), start.resting, start.row, self._miss):
            try:
                header, _ = peek_refs(self._packs.read(id, RecordKind.NODE, place))
            except Corrupt as error:
                self._miss(id, start.row, str(error))
                continue
            found = (header.items_below, header.refs_below)
            if start.totals != found:
                self._miss(id, start.row, f'totals {found}, the row says {start.totals}')
            self._levels[header.level][start.resting].add(id)

    def _unique(self, level: int, resting: bool) -> Ids:
        """Return the nodes of a level that must be in the index; or, after these, those that only requests
        of resting batches need, or for which only they have a copy."""
        ids = self._levels[level][resting].unique()
        sure = self._levels[level][False].unique() if resting and len(ids) else ids[:0]
        if not len(sure):
            return ids
        lost = [n for n, row in enumerate(ids) if row.tobytes() in self._lost] if self._lost else []
        done = np.isin(ids.reshape(-1).view(f'S{_ID}'), sure.reshape(-1).view(f'S{_ID}'))
        done[lost] = False
        return ids[~done]

    def _places(self, ids: Ids, resting: bool, by: str, miss: Miss) -> list[tuple[bytes, Place]]:
        """Return where these nodes are, in the order of packs; those that are nowhere are missing."""
        found = []
        known = locate(self._db, ids, resting)
        for row in ids:
            id = row.tobytes()
            place = known.get(id)
            why = NO_ROW if place is None else self._packs.oddity(place)
            if place is None or why is not None:
                miss(id, by, why or NO_ROW)
                if not resting:
                    self._lost.add(id)
            else:
                found.append((id, place))
        return sorted(found, key=lambda one: one[1])

    def _read(
        self, ids: Ids, resting: bool, level: int, *, tell: bool = True
    ) -> Iterator[tuple[bytes, bytes]]:
        """Yield (id, refs table) of nodes of this level, in the order of packs. `tell`: of what is
        missing."""
        miss = self._miss if tell else _keep_quiet
        for start in range(0, len(ids), limits.PROOF_NODES_AT_ONCE):
            part = ids[start : start + limits.PROOF_NODES_AT_ONCE]
            by = f'a node of level {level + 1}'
            for id, plain in self._packs.read_many(self._places(part, resting, by, miss), miss):
                try:
                    header, refs = peek_refs(plain)
                except Corrupt as error:
                    miss(id, by, str(error))
                    continue
                if header.level != level:
                    miss(id, by, f'a node of level {header.level} where one of {level} must be')
                    continue
                yield id, refs

    # --- leaves ------------------------------------------------------------------------------------------
    def _check_leaves(self) -> None:
        """Look up all references of all leaves, once for each part of the index."""
        sure = self._unique(0, False)
        both = [sure]
        leaves = 0
        parts = IndexPart.bounds(self._db)
        for number, (low, high) in enumerate(parts):
            index = IndexPart(self._db, self._packs, low, high)
            for resting in (False, True):
                if number == 0 and resting:
                    both.append(self._unique(0, True))  # now it is known which of the others are lost
                    leaves = sum(map(len, both))
                    self.nodes += leaves
                    self._levels[0] = (_IdSet(), _IdSet())
                tables = self._tables(both[resting], resting, count=number == 0)
                self._check_refs(tables, resting, index)
            self.chunks += index.seen_count()
            if self._hashed:
                for id, why in index.verify():
                    self._miss(id, 'the index', why)
            self._progress((number + 1) * leaves // len(parts), leaves)
            del index  # before the next one is made: one at a time fits into memory

    def _tables(self, ids: Ids, resting: bool, *, count: bool) -> Iterator[tuple[str, bytes]]:
        for id, refs in self._read(ids, resting, 0, tell=count):
            if count:
                self.references += len(refs) // _ID
            if refs:
                yield f'node {id.hex()}', refs

    def _check_refs(self, tables: Iterator[tuple[str, bytes]], resting: bool, index: IndexPart) -> None:
        rows: list[str] = []
        refs: list[bytes] = []
        waiting = 0
        for row, table in tables:
            rows.append(row)
            refs.append(table)
            waiting += len(table)
            if waiting >= limits.MENTION_BLOCK_IDS * _ID:
                self._check_block(rows, refs, resting, index)
                rows, refs, waiting = [], [], 0
        self._check_block(rows, refs, resting, index)

    def _check_block(self, rows: list[str], refs: list[bytes], resting: bool, index: IndexPart) -> None:
        if not refs:
            return
        ends = np.cumsum([len(table) // _ID for table in refs])
        for position, id, why in index.check(as_ids(b''.join(refs)), resting):
            self._miss(id, rows[int(np.searchsorted(ends, position, 'right'))], why)


def _keep_quiet(id: bytes, by: str, why: str) -> None:
    """It has been told before."""


def store_uuid(store: Path) -> bytes:
    """Return the uuid of the store at this path. Corrupt when it is none."""
    if has_entry(store / 'superblock') is None:
        raise Corrupt(f'{store} is not a snapfs store')
    return decode_superblock(read_bytes(store / 'superblock', 0, SUPERBLOCK_BYTES)).uuid
