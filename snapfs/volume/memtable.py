"""L4 memtable: the changes of one volume since its last commit, as layers over the tree. Event loop only; no
I/O.

A volume has up to four layers, newest first: `fresh` (since the last journal record), `recording` (while a
record
is being written), `logged` (in the journal) and `frozen` (while a commit builds nodes from it). A layer hides
what
lies below it: by an item of its own (None: deleted), by `gone` (the whole inode), or by `cuts` (a range of
extents).
Deleting a file or truncating it is therefore one small entry, however many extents it had.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator
from typing import Any

from snapfs import limits
from snapfs.format import keys
from snapfs.format.keys import ItemKind
from snapfs.volume.buffer import Range, merge_ranges
from snapfs.volume.inode import InodeValue

# Items other than inodes, by (inode number << 3 | kind): suffix -> value, None = deleted. The suffix is the
# name
# hash (DIRENT), the offset (EXTENT), the attribute's name (XATTR) or the unlinked inode's number (ORPHAN).
Table = dict[Any, Any]
Drop = tuple[int, int, int]

ABSENT: Any = object()  # "this layer says nothing": look into the next one

_EXTENT_SHIFTED = int(ItemKind.EXTENT)
_XATTR = int(ItemKind.XATTR)
OFFSET_END = 1 << 63


class Layer:
    """One layer of changes. Frozen layers are read by the tree builder in slices, between other tasks."""

    __slots__ = (
        'cuts',
        'drops',
        'gone',
        'inodes',
        'items',
        'offsets',
        'orders',
        'superseded',
        'tables',
        'unsorted',
    )

    def __init__(self) -> None:
        self.inodes: dict[int, InodeValue] = {}
        self.tables: dict[int, Table] = {}
        self.gone: set[int] = set()
        self.cuts: dict[int, list[Range]] = {}
        self.drops: list[Drop] = []  # buffered bytes discarded, for the journal only
        self.superseded: list[bytes] = []  # chunk ids that were named here and never reached the tree
        self.offsets: dict[int, list[int]] = {}  # sorted extent offsets by inode, made on demand
        # Sorted suffixes by table, made on demand, and what came since; of extents, `offsets` is that.
        self.orders: dict[int, list[Any]] = {}
        self.unsorted: dict[int, list[Any]] = {}
        self.items = 0  # an upper bound of the number of items, for limits

    def empty(self) -> bool:
        """Return whether this layer changes nothing."""
        return not (self.inodes or self.tables or self.gone or self.cuts or self.drops)

    # --- changing ----------------------------------------------------------------------------------------
    def put(self, ino: int, kind: int, suffix: Any, value: Any) -> None:
        """Set one item that is not an INODE; None deletes it."""
        name = ino << 3 | kind
        table = self.tables.get(name)
        if table is None:
            table = self.tables[name] = {}
        if kind == _EXTENT_SHIFTED:
            old = table.get(suffix)
            if old is not None:
                self.superseded.append(old[-1])
            self.offsets.pop(ino, None)
        elif kind == _XATTR and suffix in table:
            self._supersede(kind, (table[suffix],))
        if self.unsorted and name in self.unsorted and suffix not in table:
            self.unsorted[name].append(suffix)
        table[suffix] = value
        self.items += 1

    def delete_inode(self, ino: int) -> None:
        """Delete the inode and every item it has, here and below."""
        self.inodes.pop(ino, None)
        for kind in ItemKind:
            table = self.tables.pop(ino << 3 | kind, None)
            if table:
                self._supersede(kind, table.values())
            if self.orders.pop(ino << 3 | kind, None) is not None:
                del self.unsorted[ino << 3 | kind]
        self.offsets.pop(ino, None)
        self.cuts.pop(ino, None)
        self.gone.add(ino)
        self.items += 1

    def cut_extents(self, ino: int, start: int, end: int) -> None:
        """Delete the extents whose offset lies in [start, end), here and below."""
        table = self.tables.get(ino << 3 | _EXTENT_SHIFTED)
        if table:
            inside = [offset for offset in table if start <= offset < end]
            self._supersede(_EXTENT_SHIFTED, [table.pop(offset) for offset in inside])
            self.offsets.pop(ino, None)
        if ino not in self.gone:
            self.cuts[ino] = merge_ranges([*self.cuts.get(ino, []), (start, end)])
        self.items += 1

    def _supersede(self, kind: int, values: Any) -> None:
        if kind == ItemKind.EXTENT:
            self.superseded.extend(value[-1] for value in values if value is not None)
        elif kind == ItemKind.XATTR:
            self.superseded.extend(value[2] for value in values if value is not None and value[0] == 1)

    def absorb(self, newer: Layer) -> None:
        """Lay a newer layer over this one; the newer one is used up."""
        for ino in newer.gone:
            self.delete_inode(ino)
        for ino, ranges in newer.cuts.items():
            for start, end in ranges:
                self.cut_extents(ino, start, end)
        self.inodes.update(newer.inodes)
        tables = self.tables
        for name, table in newer.tables.items():
            mine = tables.get(name)
            if mine is None:
                tables[name] = table
                continue
            kind = name & 7
            if kind in (ItemKind.EXTENT, ItemKind.XATTR):
                self._supersede(kind, [mine[suffix] for suffix in table if suffix in mine])
                self.offsets.pop(name >> 3, None)
            if name in self.unsorted:
                self.unsorted[name] += [suffix for suffix in table if suffix not in mine]
            mine.update(table)
        for ino in newer.offsets:
            self.offsets.pop(ino, None)
        self.superseded.extend(newer.superseded)
        self.items += newer.items

    # --- asking ------------------------------------------------------------------------------------------
    def find(self, ino: int, kind: int, suffix: Any) -> Any:
        """Return the value of an item that is not an INODE; None when deleted here, ABSENT when this layer is
        silent.
        """
        table = self.tables.get(ino << 3 | kind)
        if table is not None:
            value = table.get(suffix, ABSENT)
            if value is not ABSENT:
                return value
        if ino in self.gone:
            return None
        if kind == _EXTENT_SHIFTED and ino in self.cuts:
            for start, end in self.cuts[ino]:
                if start <= suffix < end:
                    return None
        return ABSENT

    def extents(self, ino: int, low: int, high: int) -> list[tuple[int, Any]]:
        """Return this layer's own extents with offset in [low, high), deleted ones (None) included,
        in order.
        """
        table = self.tables.get(ino << 3 | _EXTENT_SHIFTED)
        if not table:
            return []
        offsets = self._order(ino, _EXTENT_SHIFTED)
        return [
            (offset, table[offset])
            for offset in offsets[bisect_left(offsets, low) : bisect_left(offsets, high)]
        ]

    def following(self, ino: int, kind: int, after: Any, count: int) -> list[Any]:
        """Return the first `count` suffixes above `after` that this layer sets or deletes, in order.

        A listing in pages costs one sort in all, however long the table is, and a little for what changed.
        """
        if not self.tables.get(ino << 3 | kind):
            return []
        order = self._order(ino, kind)
        start = bisect_right(order, after)
        return order[start : start + count]

    def _order(self, ino: int, kind: int) -> list[Any]:
        name = ino << 3 | kind
        if kind == _EXTENT_SHIFTED:  # these also vanish one by one
            order = self.offsets.get(ino)
            if order is None:
                order = self.offsets[ino] = sorted(self.tables[name])
            return order
        order = self.orders.get(name)
        if order is None:
            order = self.orders[name] = sorted(self.tables[name])
            self.unsorted[name] = []
        elif self.unsorted[name]:
            order += sorted(self.unsorted[name])
            order.sort()  # two sorted runs: merged in one pass, without another look at their values
            self.unsorted[name] = []
        return order

    def apply_cuts(self, ino: int, extents: dict[int, Any]) -> None:
        """Remove from `extents`, which lie below this layer, those that it deletes by range."""
        for start, end in self.cuts.get(ino, ()):
            for offset in [offset for offset in extents if start <= offset < end]:
                del extents[offset]

    def hides_all(self, ino: int) -> bool:
        """Return whether nothing of this inode can be seen through this layer."""
        return ino in self.gone

    # --- for the tree builder and the journal ------------------------------------------------------------
    def spans(self) -> list[tuple[bytes, bytes]]:
        """Return the deleted key ranges, one for each inode or cut, in no order: what the journal records."""
        spans: list[tuple[bytes, bytes]] = [keys.ino_range(ino) for ino in self.gone]
        for ino, cuts in self.cuts.items():
            if ino in self.gone:
                continue
            behind = keys.kind_range(ino, ItemKind.EXTENT)[1]
            for start, end in cuts:
                spans.append(
                    (keys.extent_key(ino, start), behind if end >= OFFSET_END else keys.extent_key(ino, end))
                )
        return spans

    def replay_span(self, low: bytes, high: bytes) -> None:
        """Apply one of the ranges that `spans` returned."""
        ino = int.from_bytes(low[:8], 'big')
        if (low, high) == keys.ino_range(ino):
            self.delete_inode(ino)
            return
        end = OFFSET_END if high == keys.kind_range(ino, ItemKind.EXTENT)[1] else keys.suffix_number(high)
        self.cut_extents(ino, keys.suffix_number(low), end)

    def replay_item(self, key: bytes, value: Any) -> None:
        """Set one item as `changes` yielded it."""
        ino, kind, suffix = keys.decode_key(key)
        if kind == ItemKind.INODE:
            self.inodes[ino] = value
            self.items += 1
        else:
            self.put(ino, kind, suffix if kind == ItemKind.XATTR else keys.suffix_number(key), value)

    def ranges(self) -> list[tuple[bytes, bytes]]:
        """Return the deleted key ranges, sorted and disjoint; neighbours are joined."""
        joined: list[tuple[bytes, bytes]] = []
        for low, high in sorted(self.spans()):
            if joined and low <= joined[-1][1]:
                joined[-1] = (joined[-1][0], max(high, joined[-1][1]))
            else:
                joined.append((low, high))
        return joined

    def changes(self) -> Iterator[tuple[bytes, Any]]:
        """Yield every item as (key, value or None) in key order."""
        by_ino: dict[int, list[int]] = {}
        for name in self.tables:
            by_ino.setdefault(name >> 3, []).append(name & 7)
        for ino in sorted(self.inodes.keys() | by_ino.keys()):
            value = self.inodes.get(ino)
            if value is not None:
                yield keys.inode_key(ino), value
            for kind in sorted(by_ino.get(ino, ())):
                table = self.tables[ino << 3 | kind]
                encode = KEY_OF_KIND[kind]
                for suffix in sorted(table):
                    yield encode(ino, suffix), table[suffix]


def orphan_key(_: int, ino: int) -> bytes:
    """Return the key of the ORPHAN item of `ino`; all of them stand together under one reserved
    inode number.
    """
    return keys.orphan_key(ino)


KEY_OF_KIND: dict[int, Callable[[int, Any], bytes]] = {
    int(ItemKind.DIRENT): keys.dirent_key,
    int(ItemKind.EXTENT): keys.extent_key,
    int(ItemKind.XATTR): keys.xattr_key,
    int(ItemKind.ORPHAN): orphan_key,
}

assert limits.FILE_BYTES_MAX < OFFSET_END
