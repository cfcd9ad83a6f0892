"""L4 walk: from roots down to the leaves, level by level, by refs tables. Blocking; one thread owns a Walk.

Going by level, every node is read once however many parents it has, with a sorted array of ids as the only
memory of what was seen; and all nodes of a level are read in the order in which they lie on the disk. What a
parent or a row claims about a node is compared with what other parents claim and with the node's own header:
a reference that was lost or invented on the way makes a total that does not add up (L2).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from snapfs import limits
from snapfs.collect.idsets import (
    UNKNOWN,
    Claims,
    Ids,
    Owners,
    claim,
    divide,
    no_claims,
    settle,
    to_array,
    to_bytes,
)
from snapfs.collect.reading import Places, StoreReader
from snapfs.errors import Corrupt
from snapfs.format.nodes import LEAF, Branch, NodeHeader, decode_node, peek_header, peek_refs

LEVELS = limits.TREE_LEVELS_MAX + 1
Levels = list[Claims]
Names = Callable[[int], str]
Missing = Callable[[bytes, str], None]


def no_levels() -> Levels:
    """Return levels without nodes."""
    return [no_claims() for _ in range(LEVELS)]


def united(one: Levels, other: Levels) -> Levels:
    """Return the nodes of both. Corrupt when they claim different totals for one node."""
    return [settle([a, b]) if len(b) else a for a, b in zip(one, other, strict=True)]


class Walk:
    """The nodes below some roots that are not in `known`. After `run`, `levels` has them, leaves at 0.

    `either`: nodes may be in quarantine too. `names` gives an owner's name for messages. `on_missing(id,
    owner's name)` is called before Corrupt is raised for a node that is not where it has to be. `tick(n)` is
    called now and then: n more nodes are read. `lenient`: nodes that are nowhere are passed over.
    """

    def __init__(
        self,
        reader: StoreReader,
        known: Levels,
        names: Names,
        either: bool = False,
        on_missing: Missing | None = None,
        tick: Callable[[int], None] = lambda count: None,
        lenient: bool = False,
    ) -> None:
        self._reader = reader
        self._known = known
        self._names = names
        self._either = either
        self._on_missing = on_missing
        self._tick = tick
        self._lenient = lenient
        self._leaf_places: Places | None = None
        self.levels = no_levels()
        self.met: list[Claims] = []  # nodes in `known` that were come across, as `known` has them
        self.branches = 0
        self.branch_refs = 0

    def run(self, roots: Sequence[Claims]) -> None:
        """Read every branch. Corrupt."""
        pending: list[list[Claims]] = [[] for _ in range(LEVELS)]
        tops = settle(list(roots))
        for known in self._known:
            tops = self._unknown(tops, known)
        # A row does not say how high its tree is; the top node does. It is read again with its level.
        tops = self._standing(tops)
        for position, plain in self._nodes(tops, self._locate(tops)):
            header = peek_header(plain)
            self._check(tops, position, header, header.level)
            pending[header.level].append(tops.take(np.array([position])))
        for level in range(LEVELS - 1, 0, -1):
            claims = self._standing(self._unknown(settle(pending[level]), self._known[level]))
            pending[level] = []
            self.levels[level] = claims
            for position, plain in self._nodes(claims, self._locate(claims)):
                node = decode_node(plain)
                header = peek_header(plain)
                self._check(claims, position, header, level)
                assert isinstance(node, Branch)
                self.branches += 1
                self.branch_refs += len(node.children)
                owner = int(claims.owners[position])
                children = b''.join(node.children)
                pending[level - 1].append(claim(children, node.child_items, node.child_refs, owner))
        self.levels[0] = self._standing(self._unknown(settle(pending[0]), self._known[0]))

    def _standing(self, claims: Claims) -> Claims:
        """Return the nodes that are somewhere; all of them, unless the walk is lenient."""
        if not self._lenient or not len(claims):
            return claims
        missing = self._reader.locate_either(claims.ids).missing
        there = np.ones(len(claims), dtype=np.bool_)
        there[missing] = False
        return claims.take(there)

    def _unknown(self, claims: Claims, known: Claims) -> Claims:
        """Return what is not known; note what is, and is not gone into."""
        claims, met = divide(claims, known)
        if len(met):
            self.met.append(met)
        return claims

    def leaves(self) -> Iterator[tuple[Ids, Owners, int]]:
        """Yield what the leaves refer to, many at a time: (ids, owner of each, items in these leaves).

        May be called again; every call reads and checks every leaf once. Corrupt.
        """
        claims = self.levels[0]
        if self._leaf_places is None:
            self._leaf_places = self._locate(claims)
        tables: list[bytes] = []
        counts: list[int] = []
        positions: list[int] = []
        items = total = leaves = 0
        for position, plain in self._nodes(claims, self._leaf_places):
            header, refs = peek_refs(plain)
            self._check(claims, position, header, 0)
            tables.append(refs)
            counts.append(header.refs)
            positions.append(position)
            items += header.items
            total += header.refs
            if total >= limits.COLLECT_REFS_BATCH:
                yield to_array(b''.join(tables)), np.repeat(claims.owners[positions], counts), items
                leaves += len(tables)
                tables, counts, positions = [], [], []
                items = total = 0
        yield to_array(b''.join(tables)), np.repeat(claims.owners[positions], counts), items
        assert leaves + len(tables) == len(claims), 'P10: a leaf was not read'

    def _locate(self, claims: Claims) -> Places:
        locate = self._reader.locate_either if self._either else self._reader.locate
        places = locate(claims.ids)
        for position in places.missing.tolist():
            id, name = to_bytes(claims.ids[position]), self._names(int(claims.owners[position]))
            if self._on_missing is not None:
                self._on_missing(id, name)
            raise Corrupt(f'node {id.hex()} of {name} is not in the index')
        return places

    def _nodes(self, claims: Claims, places: Places) -> Iterator[tuple[int, bytes]]:
        count = read = 0
        for position, plain in self._reader.nodes(claims.ids, places):
            yield position, plain
            count += 1
            read += 1
            if count == limits.COLLECT_TICK_NODES:
                self._tick(count)
                count = 0
        self._tick(count)
        # A reader that took an error for the end of what there is would cut off whole subtrees unseen (L1).
        assert read == len(claims), 'P10: a node was not read'

    def _check(self, claims: Claims, position: int, header: NodeHeader, level: int) -> None:
        """Compare a node's own header with what was claimed about it."""
        items, refs = int(claims.items[position]), int(claims.refs[position])
        good = header.level == level and (header.kind == LEAF) == (level == 0)
        if good and items in (UNKNOWN, header.items_below) and refs in (UNKNOWN, header.refs_below):
            return
        id, name = to_bytes(claims.ids[position]).hex(), self._names(int(claims.owners[position]))
        raise Corrupt(
            f'node {id} of {name}: level {header.level}, {header.items_below} items and '
            f'{header.refs_below} references; claimed: level {level}, {items} and {refs}'
        )
