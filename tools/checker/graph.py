"""Tool fsck, graph: all nodes of a store and who is whose child, as arrays. One thread.

About 100 bytes for each node, of which there is one for some 200 chunks; references to data are not in it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tools.checker.findings import Report
from tools.checker.leaves import LeafFacts
from tools.checker.nodes import CHILDREN, NODES, NODES_MAX, OWNER_SHIFT, NodeTable
from tools.checker.spill import text_of, words

NOBODY = -1
STRICT, RESTING, ASKED = 1, 2, 4
Indexes = NDArray[np.int64]


def search(table: NDArray[np.uint64], wanted: NDArray[np.uint64]) -> Indexes:
    """Return where each wanted number would stand in a table that ascends. In order they are looked up three
    times as fast as in none, sorting them included: the processor guesses where to look."""
    order = np.argsort(wanted)
    found = np.empty(len(wanted), dtype=np.int64)
    found[order] = np.searchsorted(table, wanted[order])
    return found


def find(
    a: NDArray[np.uint64], b: NDArray[np.uint64], wanted_a: NDArray[np.uint64], wanted_b: NDArray[np.uint64]
) -> Indexes:
    """Return where each wanted id is in a table that ascends by `a`, or NOBODY."""
    if not len(a):
        return np.full(len(wanted_a), NOBODY, dtype=np.int64)
    at = search(a, wanted_a)
    clipped = np.minimum(at, len(a) - 1)
    good = (a[clipped] == wanted_a) & (b[clipped] == wanted_b)
    found = np.where(good, clipped, NOBODY)
    # Ids that share their first number: look further, one by one. There are none by chance.
    again = np.flatnonzero(~good & (a[clipped] == wanted_a))
    for index in again:
        other = int(at[index]) + 1
        while other < len(a) and a[other] == wanted_a[index]:
            if b[other] == wanted_b[index]:
                found[index] = other
                break
            other += 1
    return found


class Graph:
    """The nodes, each once, ascending by id."""

    def __init__(self, tables: Sequence[NodeTable], facts: Sequence[LeafFacts]) -> None:
        nodes = np.concatenate([one.nodes for one in tables] or [np.zeros(0, dtype=NODES)])
        children = np.concatenate([one.children for one in tables] or [np.zeros(0, dtype=CHILDREN)])
        keys = [key for one in tables for key in one.keys]
        starts = np.cumsum(nodes['children'], dtype=np.int64) - nodes['children']
        order = np.lexsort((nodes['own'], nodes['b'], nodes['a']))
        ordered = nodes[order]
        first = np.r_[True, (ordered['a'][1:] != ordered['a'][:-1]) | (ordered['b'][1:] != ordered['b'][:-1])]
        first = first[: len(ordered)]
        self.nodes = ordered[first]
        self.start = starts[order][first]
        self.declared = children
        self.keys = keys
        self.child = find(self.nodes['a'], self.nodes['b'], children['a'], children['b'])
        self._by_owner(nodes['own'], self.nodes['own'])
        self.flags = np.zeros(len(self.nodes), dtype=np.uint8)
        # Facts of a doubled leaf are those of its first record.
        by_owner = {one.owner: one for one in facts}
        self.facts = [by_owner.get(int(own)) for own in self.nodes['own']] if facts else []

    def _by_owner(self, every: NDArray[np.uint32], own: NDArray[np.uint32]) -> None:
        """Note which node has which number. Those of a pack go from 0 on, without a gap."""
        self._counts = np.bincount(every >> OWNER_SHIFT)
        self._first = np.cumsum(self._counts) - self._counts
        self._nodes = np.full(len(every) + 1, NOBODY, dtype=np.int64)  # the last: of a number that none has
        self._nodes[self._at(own)] = np.arange(len(own))

    def _at(self, owners: NDArray[np.uint32]) -> Indexes:
        packs, numbers = owners >> OWNER_SHIFT, owners & (NODES_MAX - 1)
        if len(packs) and int(packs.max()) >= len(self._counts):
            numbers = np.where(packs < len(self._counts), numbers, NODES_MAX)
            packs = np.where(packs < len(self._counts), packs, 0)
        if not len(self._counts):
            return np.full(len(owners), len(self._nodes) - 1, dtype=np.int64)
        found: Indexes = np.where(
            numbers < self._counts[packs], self._first[packs] + numbers, len(self._nodes) - 1
        )
        return found

    def by_owner(self, owners: NDArray[np.uint32]) -> Indexes:
        """Return the nodes of these numbers; NOBODY for one that none has, and for a second copy of a node,
        whose references are told by the first."""
        found: Indexes = self._nodes[self._at(owners)]
        return found

    def find_ids(self, ids: bytes) -> Indexes:
        """Return the nodes of ids that stand back to back, NOBODY for one that there is not."""
        return find(self.nodes['a'], self.nodes['b'], *words(ids))

    def slots(self, nodes: Indexes) -> Indexes:
        """Return the places of all children of these nodes among the children, node after node, in order."""
        counts = self.nodes['children'][nodes].astype(np.int64)
        ends = np.cumsum(counts)
        inside = np.arange(int(ends[-1]) if len(ends) else 0, dtype=np.int64) - np.repeat(
            ends - counts, counts
        )
        return np.repeat(self.start[nodes], counts) + inside

    def reach(self, tops: Indexes, flag: int) -> None:
        """Mark everything below these nodes."""
        frontier = np.unique(tops[tops != NOBODY])
        while len(frontier):
            frontier = frontier[self.flags[frontier] & flag == 0]
            self.flags[frontier] |= flag
            below = self.child[self.slots(frontier)]
            frontier = np.unique(below[below != NOBODY])

    def has_holes(self) -> bool:
        """Return whether somebody reaches a branch that has lost a child."""
        live = np.flatnonzero((self.nodes['children'] > 0) & (self.flags & (STRICT | RESTING) > 0))
        return bool((self.child[self.slots(live)] == NOBODY).any())

    def leaves(self, top: int) -> tuple[Indexes, bool]:
        """Return the leaves below a node, in the order of their keys, and whether all are there."""
        line = np.array([top], dtype=np.int64)
        whole = True
        while True:
            counts = self.nodes['children'][line]
            if not counts.any():
                return line, whole
            if not counts.all():  # levels are mixed up, which is told elsewhere
                line, whole = line[counts > 0], False
            below = self.child[self.slots(line)]
            whole = whole and not bool((below == NOBODY).any())
            line = below[below != NOBODY]

    def check_edges(self, report: Report) -> None:
        """Compare what parents say of their children with these, where somebody reaches them."""
        live = np.flatnonzero((self.nodes['children'] > 0) & (self.flags & (STRICT | RESTING) > 0))
        if not len(live):
            return
        slots = self.slots(live)
        parents = np.repeat(live, self.nodes['children'][live])
        child = self.child[slots]
        there = child != NOBODY
        slots, parents, child = slots[there], parents[there], child[there]
        told, seen = self.declared[slots], self.nodes[child]
        odd = (told['items'] != seen['items']) | (told['refs'] != seen['refs'])
        odd |= self.nodes['level'][parents] != seen['level'] + 1
        for index in np.flatnonzero(odd):
            here, above = seen[index], self.nodes[parents[index]]
            report.add(
                'node-totals',
                f'node {text_of(here["a"])}',
                f'level {here["level"]}, {here["items"]} items and {here["refs"]} references below; '
                f'its parent {text_of(above["a"])} of level {above["level"]} says '
                f'{told["items"][index]} and {told["refs"][index]}',
            )

    def check_order(self, report: Report) -> None:
        """See that every leaf has the keys that its parents leave it. Full checks only."""
        count = len(self.nodes)
        first: list[bytes | None] = [None] * count
        last: list[bytes | None] = [None] * count
        for index, one in enumerate(self.facts):
            if one is not None:
                first[index], last[index] = one.first, one.last
        branches = np.flatnonzero(self.nodes['children'] > 0)
        for index in branches[np.argsort(self.nodes['level'][branches], kind='stable')]:
            start, number = int(self.start[index]), int(self.nodes['children'][index])
            below = [int(one) for one in self.child[start : start + number]]
            keys = self.keys[start : start + number]
            for place, node in enumerate(below):
                low = first[node] if node != NOBODY else None
                high = last[node] if node != NOBODY else None
                if low is None or high is None or not self.flags[index] & (STRICT | RESTING):
                    continue
                if low < keys[place] or (place + 1 < number and high >= keys[place + 1]):
                    one = self.nodes[node]
                    report.add(
                        'node-order',
                        f'node {text_of(one["a"])}',
                        f'has keys from {low.hex()} to {high.hex()}, which are not its own',
                    )
            ends = [(first[node], last[node]) for node in below if node != NOBODY and first[node] is not None]
            if ends:
                first[index], last[index] = ends[0][0], ends[-1][1]
