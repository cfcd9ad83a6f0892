"""L3 drafts: the content of a node to be, before it is cut to size and encoded. One apply owns them.

A draft knows about how many bytes it will take. Two classes with one face: LeafDraft holds items (ids in
place), BranchDraft holds entries for the nodes one level lower.
"""

from __future__ import annotations

from bisect import bisect_left
from itertools import accumulate, pairwise
from typing import NamedTuple

from snapfs import limits
from snapfs.format.items import item_size
from snapfs.format.nodes import Branch, Leaf, encode_branch, encode_leaf, peek_refs
from snapfs.tree.root import Key, Node, Value


class Entry(NamedTuple):
    """What a parent knows of a child: lower bound of its keys, id, items and references in its subtree."""

    key: Key
    id: bytes
    items: int
    refs: int


def even_cuts(sizes: list[int], target: int) -> list[int]:
    """Return the positions (with 0 and the end) that cut things of these sizes into parts of about `target`
    bytes, all alike: at least two parts, none empty."""
    sums = list(accumulate(sizes))
    total = sums[-1]
    parts = max(2, round(total / target))
    cuts = [0]
    for part in range(1, parts):
        goal = total * part // parts
        cut = bisect_left(sums, goal)
        before = sums[cut - 1] if cut else 0
        if sums[cut] - goal <= goal - before:
            cut += 1
        if cuts[-1] < cut < len(sizes):
            cuts.append(cut)
    cuts.append(len(sizes))
    return cuts


class LeafDraft:
    """Items of a leaf to be. `size` is in bytes, an estimate; 0 only when empty."""

    __slots__ = ('keys', 'size', 'values')

    def __init__(self) -> None:
        self.keys: list[Key] = []
        self.values: list[Value] = []
        self.size = 0

    def recount(self) -> None:
        """Add the size up anew, item by item."""
        self.size = sum(map(item_size, self.keys, self.values))

    def extend(self, other: LeafDraft) -> None:
        """Append the items of `other`."""
        self.keys += other.keys
        self.values += other.values
        self.size += other.size

    def prepend(self, node: Node, lo: Key) -> None:
        """Put the items of a stored leaf first."""
        assert isinstance(node, Leaf)
        self.keys[:0] = node.keys
        self.values[:0] = node.values_with_ids()
        self.size += node.plain_bytes

    def divide(self, target: int) -> list[LeafDraft]:
        """Cut into parts of about `target` bytes each."""
        sizes = list(map(item_size, self.keys, self.values))
        cuts = even_cuts(sizes, target)
        parts = []
        for first, last in pairwise(cuts):
            part = LeafDraft()
            part.keys = self.keys[first:last]
            part.values = self.values[first:last]
            part.size = sum(sizes[first:last])
            parts.append(part)
        return parts

    def encode(self) -> tuple[int, int, bytes]:
        """Return (items, references, encoded bytes) of the leaf."""
        plain = encode_leaf(self.keys, self.values)
        return len(self.keys), peek_refs(plain)[0].refs_below, plain


class BranchDraft:
    """Entries of a branch to be. `size` is in bytes, an estimate; 0 only when empty."""

    __slots__ = ('child_items', 'child_refs', 'children', 'keys', 'level', 'size')

    def __init__(self, level: int) -> None:
        self.level = level
        self.keys: list[Key] = []
        self.children: list[bytes] = []
        self.child_items: list[int] = []
        self.child_refs: list[int] = []
        self.size = 0

    def append(self, entry: Entry) -> None:
        """Append one child."""
        self.keys.append(entry.key)
        self.children.append(entry.id)
        self.child_items.append(entry.items)
        self.child_refs.append(entry.refs)
        self.size += len(entry.key) + limits.BRANCH_ENTRY_BYTES

    def append_slice(self, branch: Branch, first: int, last: int, lo: Key) -> None:
        """Append the children first..last-1 of a branch whose own lower bound is `lo`."""
        keys = list(branch.keys[first:last])
        if first == 0:
            keys[0] = lo
        self.keys += keys
        self.children += branch.children[first:last]
        self.child_items += branch.child_items[first:last]
        self.child_refs += branch.child_refs[first:last]
        self.size += sum(map(len, keys)) + limits.BRANCH_ENTRY_BYTES * len(keys)

    def pop(self) -> Entry:
        """Take the last child away."""
        key = self.keys.pop()
        self.size -= len(key) + limits.BRANCH_ENTRY_BYTES
        return Entry(key, self.children.pop(), self.child_items.pop(), self.child_refs.pop())

    def extend(self, other: BranchDraft) -> None:
        """Append the children of `other`."""
        self.keys += other.keys
        self.children += other.children
        self.child_items += other.child_items
        self.child_refs += other.child_refs
        self.size += other.size

    def prepend(self, node: Node, lo: Key) -> None:
        """Put the children of a stored branch, whose lower bound is `lo`, first."""
        assert isinstance(node, Branch)
        left = BranchDraft(self.level)
        left.append_slice(node, 0, len(node.keys), lo)
        left.extend(self)
        self.keys, self.children = left.keys, left.children
        self.child_items, self.child_refs, self.size = left.child_items, left.child_refs, left.size

    def divide(self, target: int) -> list[BranchDraft]:
        """Cut into parts of about `target` bytes each."""
        sizes = [len(key) + limits.BRANCH_ENTRY_BYTES for key in self.keys]
        cuts = even_cuts(sizes, target)
        parts = []
        for first, last in pairwise(cuts):
            part = BranchDraft(self.level)
            part.keys = self.keys[first:last]
            part.children = self.children[first:last]
            part.child_items = self.child_items[first:last]
            part.child_refs = self.child_refs[first:last]
            part.size = sum(sizes[first:last])
            parts.append(part)
        return parts

    def encode(self) -> tuple[int, int, bytes]:
        """Return (items below, references below, encoded bytes) of the branch."""
        keys = [b'', *self.keys[1:]]
        plain = encode_branch(self.level, keys, self.children, self.child_items, self.child_refs)
        return sum(self.child_items), sum(self.child_refs) + len(self.children), plain


Draft = LeafDraft | BranchDraft
