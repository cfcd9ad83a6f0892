"""Tool fsck, nodes: what the nodes of one meta pack say. Plain; one process owns each."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from snapfs import limits
from snapfs.errors import Corrupt
from snapfs.format.nodes import BRANCH, Branch, Leaf, decode_node, peek_refs
from snapfs.format.packs import PackEntry
from tools.checker.leaves import LeafFacts, expected_lengths, facts_of
from tools.checker.spill import REFS, Spill, words

OWNER_SHIFT = 16  # number of a node: place of its pack among meta packs << 16 | its number there
NODES_MAX = 1 << OWNER_SHIFT
NODES_AT_ONCE = 256

# A node. `own`: its number; `below`: totals of its header.
NODES = np.dtype(
    [
        ('a', 'u8'),
        ('b', 'u8'),
        ('items', 'u8'),
        ('refs', 'u8'),
        ('own', 'u4'),
        ('level', 'u1'),
        ('children', 'u4'),
        ('pack', 'u4'),
        ('offset', 'u4'),
    ]
)
# A child as its parent names it.
CHILDREN = np.dtype([('a', 'u8'), ('b', 'u8'), ('items', 'u8'), ('refs', 'u8')])


@dataclass(slots=True)
class NodeTable:
    """The nodes of a pack in the order of their records; the children of its branches, back to back; the
    lowest keys of these."""

    nodes: NDArray[np.void]
    children: NDArray[np.void]
    keys: list[bytes]


class Nodes:
    """Collects the nodes of one meta pack."""

    def __init__(self, index: int, full: bool, name_key: bytes = b'') -> None:
        self._first = index << OWNER_SHIFT
        self._full = full
        self.name_key = name_key
        self.facts: list[LeafFacts] = []
        self._nodes: list[tuple[int, ...]] = []
        self._ids: list[bytes] = []
        self._children: list[NDArray[np.void]] = []
        self._keys: list[bytes] = []
        self._refs: list[tuple[int, bytes, list[int]]] = []

    def add(self, entry: PackEntry, plain: bytes) -> None:
        """Take a node whose bytes are those of its id. Corrupt when it is malformed."""
        own = self._first + len(self._nodes)
        if len(self._nodes) >= NODES_MAX:
            raise Corrupt(f'pack: more than {NODES_MAX} nodes')
        header, refs = peek_refs(plain)
        lengths: list[int] = []
        if header.kind == BRANCH or self._full:
            node = decode_node(plain)
            if isinstance(node, Branch):
                self._branch(node, refs)
            else:
                lengths = self._leaf(node, own)
        self._ids.append(entry.id)
        children = header.items if header.kind == BRANCH else 0
        self._nodes.append((header.items_below, header.refs_below, own, header.level, children, entry.offset))
        self._refs.append((own, refs, lengths))

    def _branch(self, node: Branch, refs: bytes) -> None:
        table = np.zeros(len(node.children), dtype=CHILDREN)
        table['a'], table['b'] = words(refs)
        table['items'], table['refs'] = node.child_items, node.child_refs
        self._children.append(table)
        self._keys += node.keys

    def _leaf(self, node: Leaf, own: int) -> list[int]:
        self.facts.append(facts_of(node, own, self.name_key))
        return expected_lengths(node)

    def _spill_refs(self, spill: Spill, nodes: slice) -> None:
        """Write out the references of some nodes: of one by one there would be a thousand little tables."""
        owners, refs, lengths = zip(*self._refs[nodes], strict=True)
        counts = [len(one) // limits.ID_BYTES for one in refs]
        rows = np.zeros(sum(counts), dtype=REFS)
        rows['a'], rows['b'] = words(b''.join(refs))
        rows['owner'] = np.repeat(np.array(owners, dtype=np.uint32), counts)
        if self._full:
            told = [one or [0] * count for one, count in zip(lengths, counts, strict=True)]
            rows['plain'] = list(chain.from_iterable(told))
        spill.add('refs', rows)

    def table(self, spill: Spill, pack: int = 0) -> NodeTable:
        """Write all references out, and return the nodes."""
        for start in range(0, len(self._refs), NODES_AT_ONCE):
            self._spill_refs(spill, slice(start, start + NODES_AT_ONCE))
        table = np.zeros(len(self._nodes), dtype=NODES)
        if self._nodes:
            table['a'], table['b'] = words(b''.join(self._ids))
            numbers = np.array(self._nodes, dtype=np.uint64)
            for column, name in enumerate(('items', 'refs', 'own', 'level', 'children', 'offset')):
                table[name] = numbers[:, column]
            table['pack'] = pack
        children = np.concatenate(self._children) if self._children else np.zeros(0, dtype=CHILDREN)
        self._refs = []
        return NodeTable(table, children, self._keys)
