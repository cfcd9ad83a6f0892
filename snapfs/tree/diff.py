"""L3 diff: what distinguishes two trees, without reading what they share. Pure and synchronous.

Two cursors go through both trees in step. Where both stand before the same node id, neither reads it: equal
ids mean equal content. Otherwise the cursor that is behind is taken apart one level; at equal positions the
higher node, so that both come down to the level where a shared node can show.
"""

from __future__ import annotations

from collections.abc import Iterator

from snapfs.format.nodes import Branch
from snapfs.tree.root import Key, Load, Root, Value

Difference = tuple[Key, Value | None, Value | None]


def diff(a: Root, b: Root, load: Load) -> Iterator[Difference]:
    """Iterate over (key, old value or None, new value or None) in key order, ids in place, for every key
    whose value differs between `a` (old) and `b` (new).

    Unlike a generator the iterator survives NotCached: fetch the node and call next() again.
    """
    return _Diff(_Cursor(a, load), _Cursor(b, load))


class _Cursor:
    """A place in a tree: before a node, before an item of an opened leaf, or at the end (`lo` is None)."""

    __slots__ = ('_load', 'id', 'index', 'keys', 'level', 'lo', 'pending', 'values')

    def __init__(self, root: Root, load: Load) -> None:
        self._load = load
        self.pending: list[tuple[Key, int, bytes]] = []  # nodes to the right: (lower bound, level, id)
        self.keys: list[Key] = []
        self.values: list[Value] = []
        self.index = 0
        self.id: bytes | None = None
        self.lo: Key | None = None
        # Nobody wrote down how high the top is; -1 stands for unknown until it is opened.
        self.level = -1
        if root.id is not None:
            self.pending.append((b'', -1, root.id))
        self._settle()

    def _settle(self) -> None:
        if self.index < len(self.keys):
            self.lo, self.id = self.keys[self.index], None
        elif self.pending:
            self.lo, self.level, self.id = self.pending[-1]
        else:
            self.lo = self.id = None

    @property
    def value(self) -> Value:
        return self.values[self.index]

    def skip(self) -> None:
        """Go past the item or the node ahead."""
        if self.id is None:
            self.index += 1
        else:
            self.pending.pop()
        self._settle()

    def open(self) -> None:
        """Take the node ahead apart. Changes nothing when `load` raises."""
        assert self.id is not None
        assert self.lo is not None
        node = self._load(self.id)
        self.pending.pop()
        if isinstance(node, Branch):
            bounds = [self.lo, *node.keys[1:]]
            level = node.level - 1
            below = [(lo, level, id) for lo, id in zip(bounds, node.children, strict=True)]
            self.pending.extend(reversed(below))
        else:
            self.keys, self.values, self.index = list(node.keys), node.values_with_ids(), 0
        self._settle()


class _Diff:
    __slots__ = ('_new', '_old')

    def __init__(self, old: _Cursor, new: _Cursor) -> None:
        self._old = old
        self._new = new

    def __iter__(self) -> _Diff:
        return self

    def __next__(self) -> Difference:
        old, new = self._old, self._new
        while True:
            if old.lo is None or new.lo is None:
                return self._only(old, new)
            if old.id is None and new.id is None:
                difference = self._items(old.lo, new.lo)
                if difference is not None:
                    return difference
            elif old.id == new.id:
                old.skip()
                new.skip()
            elif old.lo != new.lo:
                behind, is_old = (old, True) if old.lo < new.lo else (new, False)
                if behind.id is None:
                    return self._take(behind, is_old=is_old)
                behind.open()
            else:
                self._open_higher(old, new)

    def _items(self, old_key: Key, new_key: Key) -> Difference | None:
        if old_key < new_key:
            return self._take(self._old, is_old=True)
        if new_key < old_key:
            return self._take(self._new, is_old=False)
        old_value, new_value = self._old.value, self._new.value
        self._old.skip()
        self._new.skip()
        return None if old_value == new_value else (old_key, old_value, new_value)

    def _take(self, cursor: _Cursor, *, is_old: bool) -> Difference:
        key, value = cursor.lo, cursor.value
        assert key is not None
        cursor.skip()
        return (key, value, None) if is_old else (key, None, value)

    def _only(self, old: _Cursor, new: _Cursor) -> Difference:
        """One tree is at its end: all that is left in the other one differs."""
        cursor = new if old.lo is None else old
        while cursor.lo is not None:
            if cursor.id is None:
                return self._take(cursor, is_old=cursor is old)
            cursor.open()
        raise StopIteration

    @staticmethod
    def _open_higher(old: _Cursor, new: _Cursor) -> None:
        """At one position: open the higher node. An item is lower than any node."""
        old_level = -2 if old.id is None else old.level
        new_level = -2 if new.id is None else new.level
        if old_level == -1 or (old_level >= new_level and new_level != -1):
            old.open()
        else:
            new.open()
