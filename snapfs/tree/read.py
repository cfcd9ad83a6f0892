"""L3 read: look up, scan and walk a tree. Pure and synchronous; any thread that may call `load`.

Every function may raise NotCached from `load`; the caller fetches that node and calls again. Cost in nodes:
one per level for get and locate_leaf, one per level plus one per leaf for the scans.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator

from snapfs import limits
from snapfs.errors import Corrupt
from snapfs.format.nodes import Branch, Leaf
from snapfs.tree.root import Key, Load, Node, Root, Value


def get(root: Root, key: Key, load: Load) -> Value | None:
    """Return the value stored under `key` with ids in place, or None."""
    if root.id is None:
        return None
    node = load(root.id)
    while isinstance(node, Branch):
        node = load(node.children[bisect_right(node.keys, key) - 1])
    keys = node.keys
    index = bisect_left(keys, key)
    if index < len(keys) and keys[index] == key:
        return node.value(index)
    return None


def locate_leaf(root: Root, key: Key, load: Load) -> Leaf | None:
    """Return the leaf in which `key` stands or would stand; None in an empty tree."""
    if root.id is None:
        return None
    node = load(root.id)
    while isinstance(node, Branch):
        node = load(node.children[bisect_right(node.keys, key) - 1])
    return node


def range_items(root: Root, lo: Key, hi: Key, load: Load) -> Iterator[tuple[Key, Value]]:
    """Yield (key, value) with lo <= key < hi in key order, ids in place. A NotCached ends the generator: go
    on with a new one from the last key + b'\\0'."""
    next_lo: Key | None = lo
    while next_lo is not None:
        items, next_lo = range_leaf(root, next_lo, hi, load)
        yield from items


def range_page(root: Root, lo: Key, hi: Key, limit: int, load: Load) -> list[tuple[Key, Value]]:
    """Return the first `limit` items with lo <= key < hi; fewer mean that there are no more."""
    page: list[tuple[Key, Value]] = []
    next_lo: Key | None = lo
    while next_lo is not None and len(page) < limit:
        items, next_lo = range_leaf(root, next_lo, hi, load, limit - len(page))
        page += items
    return page


def range_leaf(
    root: Root, lo: Key, hi: Key, load: Load, limit: int = limits.TREE_ITEMS_MAX
) -> tuple[list[tuple[Key, Value]], Key | None]:
    """Return the items of [lo, hi) that stand in one leaf, and where to go on (None: nothing is left).

    For async callers: it needs one path of nodes in memory, however long the range is. The list may be empty
    while there is more to come.
    """
    if root.id is None or lo >= hi:
        return [], None
    end = hi
    node = load(root.id)
    while isinstance(node, Branch):
        index = bisect_right(node.keys, lo) - 1
        if index + 1 < len(node.keys):
            end = min(end, node.keys[index + 1])
        node = load(node.children[index])
    first = bisect_left(node.keys, lo)
    last = bisect_left(node.keys, end, first)
    if last - first > limit:
        last = first + limit
        end = node.keys[last]
    value = node.value
    items = [(node.keys[index], value(index)) for index in range(first, last)]
    return items, (end if end < hi else None)


def leaf_ids(root: Root, lo: Key, hi: Key, limit: int, load: Load) -> list[bytes]:
    """Return the ids of the first `limit` leaves that may hold keys of [lo, hi), without loading leaves: what
    to fetch ahead of a scan. In a tree of one node, its id."""
    if root.id is None or lo >= hi:
        return []
    top = load(root.id)
    if not isinstance(top, Branch):
        return [root.id]
    found: list[bytes] = []
    stack = [(top, _first(top, lo))]
    while stack and len(found) < limit:
        branch, index = stack.pop()
        last = max(index, bisect_left(branch.keys, hi))
        if branch.level == 1:
            found += branch.children[index:last]
        elif index < last:
            stack.append((branch, index + 1))
            child = load(branch.children[index])
            if not isinstance(child, Branch):
                raise Corrupt(f'node {branch.children[index].hex()} is a leaf above the lowest level')
            stack.append((child, _first(child, lo)))
    return found[:limit]


def _first(branch: Branch, lo: Key) -> int:
    return max(bisect_right(branch.keys, lo) - 1, 0)


def walk(root: Root, load: Load) -> Iterator[tuple[bytes, Node]]:
    """Yield (id, node) of every node, parents first, in key order. NotCached ends the generator."""
    stack = [] if root.id is None else [root.id]
    while stack:
        id = stack.pop()
        node = load(id)
        yield id, node
        if isinstance(node, Branch):
            stack.extend(reversed(node.children))
