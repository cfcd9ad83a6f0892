"""L4 readable: the items of a tree that can be read, in the order of their keys. Blocking; one thread.

Memory follows the height of the tree. In a tree that no disk makes, a leaf may have keys that belong
elsewhere, where nobody looks for them: a first walk notes those in a table on the disk, and the second walk
has them at their place."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from operator import itemgetter

from snapfs.format.items import Value
from snapfs.format.nodes import Leaf
from snapfs.rescue.work_table import WorkTable
from snapfs.tree.root import Key, Node

FIRST, END = b'', b'\xff'  # below and above every key
TABLE = 'CREATE TABLE stray (key BLOB PRIMARY KEY, leaf BLOB, place INTEGER) WITHOUT ROWID'
ADD = 'INSERT OR REPLACE INTO stray VALUES (?, ?, ?)'
ALL = 'SELECT key, leaf, place FROM stray ORDER BY key'
Load = Callable[[bytes], Node]
Item = tuple[Key, Value]


@contextmanager
def readable(top: bytes | None, lost: Collection[bytes], load: Load) -> Iterator[Iterator[Item]]:
    """Give the items (ids in place) of all nodes that are not `lost`, each key once, ascending. While they
    are taken: Corrupt when another node cannot be read. Unavailable: no room for temporary files."""
    strays = WorkTable(None, (TABLE,))
    try:
        for id, leaf, low, high in _leaves(top, lost, load):
            if not low <= leaf.keys[0] <= leaf.keys[-1] < high:
                for place, key in enumerate(leaf.keys):
                    if not low <= key < high:
                        strays.add(ADD, (key, id, place))
        # What readers find is worth more than what they do not.
        yield _once(
            heapq.merge(_in_place(top, lost, load), _strayed(strays, load), key=itemgetter(0)),
        )
    finally:
        strays.close()


def _once(items: Iterator[Item]) -> Iterator[Item]:
    last = None
    for key, value in items:
        if key != last:
            yield key, value
        last = key


def _in_place(top: bytes | None, lost: Collection[bytes], load: Load) -> Iterator[Item]:
    for _, leaf, low, high in _leaves(top, lost, load):
        for key, value in zip(leaf.keys, leaf.values_with_ids(), strict=True):
            if low <= key < high:
                yield key, value


def _strayed(strays: WorkTable, load: Load) -> Iterator[Item]:
    for key, id, place in strays.query(ALL):
        leaf = load(id)
        assert isinstance(leaf, Leaf)
        yield key, leaf.value(place)


def _leaves(top: bytes | None, lost: Collection[bytes], load: Load) -> Iterator[tuple[bytes, Leaf, Key, Key]]:
    """Yield each leaf with the bounds of the keys that a reader would look for in it, from left to right."""
    todo = [(top, FIRST, END)] if top is not None else []
    while todo:
        id, low, high = todo.pop()
        if id in lost:
            continue
        node = load(id)
        if isinstance(node, Leaf):
            yield id, node, low, high
            continue
        bounds = [low, *(min(max(low, key), high) for key in node.keys[1:]), high]
        todo += reversed(list(zip(node.children, bounds[:-1], bounds[1:], strict=True)))
