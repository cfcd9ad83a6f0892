"""L4 view: reading one file tree, a volume's or a snapshot's. Event loop only; awaits only for the disk.

A view is a root and, for a volume, layers of newer changes over it. Everything here is reading; `Head` adds
the rest.
"""

from __future__ import annotations

import errno
from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from snapfs import limits
from snapfs.errors import Corrupt, Refused
from snapfs.format import keys
from snapfs.format.items import EXTENT_FIELDS
from snapfs.format.keys import ItemKind
from snapfs.store.rows import RequestRow, SnapshotRow, VolumeRow
from snapfs.tree import NotCached, Root, get, range_page
from snapfs.volume.inode import HAS_XATTRS, Entries, Inode, XattrValue
from snapfs.volume.memtable import ABSENT, KEY_OF_KIND, Layer

if TYPE_CHECKING:
    from snapfs.volume.core import Core

# Offset, length, chunk id, skip, length of the chunk: the part of its chunk that begins at skip.
Extent = tuple[int, int, bytes, int, int]

_DIRENT = int(ItemKind.DIRENT)
_EXTENT = int(ItemKind.EXTENT)
_XATTR = int(ItemKind.XATTR)

# A directory of up to so many entries is read whole at the first name looked up in it.
WHOLE_DIRECTORY_ENTRIES = 256
PAGE_ITEMS = 512
NO_XATTRS: dict[bytes, XattrValue] = {}
XATTR_COST = 200  # bytes of one name in memory, its value apart
HASH_END = 1 << 63


class View:
    """A file tree as it is read. `number` is the view number: part of node ids, never reused."""

    writable = False

    def __init__(self, core: Core, number: int, name: str, root: Root, inodes_max: int) -> None:
        self.core = core
        self.number = number
        self.name = name
        self.root = root
        self.layers: tuple[Layer, ...] = ()
        self.inodes: dict[int, Inode] = {}
        self._alive: WeakValueDictionary[int, Inode] = WeakValueDictionary()
        self._inodes_max = inodes_max
        self._entries_cached = 0
        self._xattr_bytes = 0  # an upper bound
        self.cached = self.inodes.get

    # --- inodes ------------------------------------------------------------------------------------------
    async def inode(self, ino: int) -> Inode:
        """Return the inode; Refused(ESTALE) when this view has none of that number."""
        inode = self.inodes.get(ino)
        if inode is not None:
            return inode
        inode = self._alive.get(ino)
        if inode is None:
            value = await self._inode_value(ino)
            inode = self.inodes.get(ino)  # somebody else may have been first
            if inode is not None:
                return inode
            inode = self._alive.get(ino) or Inode(ino, value)
        self._remember(inode)
        return inode

    async def _inode_value(self, ino: int) -> Any:
        key = keys.inode_key(ino)
        value: Any
        while True:
            for layer in self.layers:
                value = layer.inodes.get(ino)
                if value is not None:
                    return value
                if ino in layer.gone:
                    raise Refused(errno.ESTALE)
            try:
                value = get(self.root, key, self.core.nodes.load)
            except NotCached as missing:
                await self.core.nodes.fetch(missing.id)  # the layers may have changed: look there again
                continue
            if value is None:
                raise Refused(errno.ESTALE)
            return value

    def _remember(self, inode: Inode) -> None:
        inodes = self.inodes
        inodes[inode.ino] = inode
        if len(inodes) > self._inodes_max:
            self._forget_half()

    def _forget_half(self) -> None:
        """Drop the older half of the idle inodes; whoever still holds one keeps it alive and the only one."""
        for ino in list(self.inodes)[: self._inodes_max // 2]:
            inode = self.inodes[ino]
            if not inode.idle():
                self.inodes[ino] = self.inodes.pop(ino)  # busy: to the end of the line
                continue
            del self.inodes[ino]
            self._forget_entries(inode)
            self._alive[ino] = inode

    def _forget_entries(self, directory: Inode) -> None:
        if directory.entries is not None:
            self._entries_cached -= len(directory.entries)
            directory.entries = None
            directory.order = None
            directory.complete = False

    # --- the tree below the layers -----------------------------------------------------------------------
    async def _page(self, low: bytes, high: bytes, count: int) -> list[tuple[bytes, Any]]:
        root = self.root
        load = self.core.nodes.load
        return await self.core.nodes.walk(lambda: range_page(root, low, high, count, load))

    async def _find(self, ino: int, kind: int, suffix: Any, key: bytes) -> Any:
        """Return the value of one item, or None."""
        while True:
            for layer in self.layers:
                value = layer.find(ino, kind, suffix)
                if value is not ABSENT:
                    return value
            try:
                return get(self.root, key, self.core.nodes.load)
            except NotCached as missing:
                await self.core.nodes.fetch(missing.id)  # the layers may have changed: look there again

    async def _merged(
        self, ino: int, kind: int, after: Any, first: bytes, count: int
    ) -> list[tuple[Any, Any]]:
        """Return up to `count` items (suffix, value) of one inode and kind in key order, suffix > `after`.

        `first` is the least key wanted. Fewer than `count` come back only at the end.
        """
        end = keys.kind_range(ino, ItemKind(kind))[1]
        merged: list[tuple[Any, Any]] = []
        while True:
            layers = self.layers
            covered = any(layer.hides_all(ino) for layer in layers)
            page = [] if covered else await self._page(first, end, count)
            if layers is not self.layers:
                continue  # a record or a commit came between: the page may lie below layers that are gone
            result = {_suffix(kind, key): value for key, value in page}
            changed = [(layer, layer.following(ino, kind, after, count)) for layer in layers]
            # Beyond the last suffix of a source that gave all it was asked for, that source may have more.
            ends = [suffixes[-1] for _, suffixes in changed if len(suffixes) == count]
            if len(page) == count:
                ends.append(_suffix(kind, page[-1][0]))
            last = min(ends) if ends else None
            for layer, suffixes in reversed(changed):
                if layer.hides_all(ino):
                    result.clear()
                if kind == _EXTENT:
                    layer.apply_cuts(ino, result)
                if suffixes:
                    table = layer.tables[ino << 3 | kind]
                    result.update((suffix, table[suffix]) for suffix in suffixes)
            if last is not None:
                result = {suffix: value for suffix, value in result.items() if suffix <= last}
            merged += [(suffix, result[suffix]) for suffix in sorted(result) if result[suffix] is not None]
            if last is None or len(merged) >= count:
                return merged[:count]
            after, first = last, KEY_OF_KIND[kind](ino, last) + b'\0'

    # --- directories -------------------------------------------------------------------------------------
    async def lookup(self, parent: Inode, name: bytes) -> Inode | None:
        """Return the inode that `name` leads to in directory `parent`, or None."""
        entry = await self.entry(parent, name)
        if entry is None:
            return None
        inode = self.inodes.get(entry[1])
        if inode is not None:
            return inode
        return await self.inode(entry[1])

    async def entry(self, parent: Inode, name: bytes) -> tuple[bytes, int, int] | None:
        """Return the directory entry (name, inode number, type) of `name` in `parent`, or None."""
        entries = parent.entries
        cookie = self.core.name_hash(name)
        found = entries.get(cookie) if entries is not None else None
        if found is None and not parent.complete:
            found = await self.entries_at(parent, cookie)
        if found is None:
            return None
        for entry in found:
            if entry[0] == name:
                return entry
        return None

    async def entries_at(self, parent: Inode, cookie: int) -> Entries | None:
        """Return the entries of `parent` whose name has this hash, or None."""
        if not parent.complete and parent.size <= WHOLE_DIRECTORY_ENTRIES:
            await self.complete(parent)
        if parent.entries is not None:
            found = parent.entries.get(cookie)
            if found is not None or parent.complete:
                return found
        found = await self._find(parent.ino, _DIRENT, cookie, keys.dirent_key(parent.ino, cookie))
        return found or None

    async def complete(self, parent: Inode) -> None:
        """Read the whole directory into memory, unless it is too large for that."""
        self.directory(parent)
        entries: dict[int, Entries] = {}
        after = 0
        while True:
            version = self.layers, self.root
            low = keys.dirent_key(parent.ino, after + 1) if after + 1 < HASH_END else b''
            page = await self._merged(parent.ino, _DIRENT, after, low, PAGE_ITEMS) if low else []
            if parent.complete:
                return
            if version != (self.layers, self.root):  # a commit or a record came between: begin again
                entries.clear()
                after = 0
                continue
            entries.update(page)
            if len(page) < PAGE_ITEMS:
                break
            if len(entries) > limits.DIRECTORY_COMPLETE_ENTRIES_MAX:
                return
            after = page[-1][0]
        self._adopt(parent, entries)

    def _adopt(self, parent: Inode, entries: dict[int, Entries]) -> None:
        """Make `entries` the directory's own, unless a change came while they were read."""
        # What was changed while pages were read stands in the newest layer: lay it over once more, without an
        # await.
        for layer in reversed(self.layers):
            entries.update(layer.tables.get(parent.ino << 3 | _DIRENT, {}))
        self._entries_cached -= len(parent.entries or ())
        parent.entries = {cookie: found for cookie, found in entries.items() if found}
        parent.complete = True
        parent.order = None
        self._entries_cached += len(parent.entries)
        if self._entries_cached > limits.DIRECTORY_CACHE_ENTRIES:
            self._shrink_directories(parent)

    def _shrink_directories(self, keep: Inode) -> None:
        for inode in self.inodes.values():
            if inode is not keep and inode.entries is not None:
                self._forget_entries(inode)
            if self._entries_cached <= limits.DIRECTORY_CACHE_ENTRIES // 2:
                return
        # Entries of directories that were dropped from memory since were counted as well.
        self._entries_cached = sum(len(inode.entries or ()) for inode in self.inodes.values())

    def directory(self, inode: Inode) -> Inode:
        """Return `inode` if it is a directory; Refused(ENOTDIR) otherwise."""
        if inode.mode & 0o170000 != 0o040000:
            raise Refused(errno.ENOTDIR)
        return inode

    async def list_directory(
        self, parent: Inode, after: int, count: int
    ) -> list[tuple[int, bytes, int, int]]:
        """Return about `count` entries (cookie, name, inode number, type) with cookie > `after`, by cookie.

        Names that share a cookie come together. An empty list means the end. `.` and `..` are not among them.
        """
        if not parent.complete and parent.size <= limits.DIRECTORY_COMPLETE_ENTRIES_MAX:
            await self.complete(parent)
        if parent.complete and parent.entries is not None:
            order = parent.order
            if order is None:
                order = parent.order = sorted(parent.entries)
            result: list[tuple[int, bytes, int, int]] = []
            index = bisect_right(order, after)
            known = parent.entries
            while index < len(order) and len(result) < count:
                cookie = order[index]
                index += 1
                for name, ino, kind in known.get(cookie, ()):
                    result.append((cookie, name, ino, kind))
            return result
        if after + 1 >= HASH_END:
            return []
        low = keys.dirent_key(parent.ino, after + 1)
        page = await self._merged(parent.ino, _DIRENT, after, low, count)
        return [(cookie, name, ino, kind) for cookie, found in page for name, ino, kind in found]

    # --- extended attributes -----------------------------------------------------------------------------
    async def xattrs(self, inode: Inode) -> dict[bytes, XattrValue]:
        """Return the items of all extended attributes; the caller does not change the dictionary."""
        if inode.xattrs is not None:
            return inode.xattrs
        if not inode.flags & HAS_XATTRS:
            return NO_XATTRS
        low = keys.kind_range(inode.ino, ItemKind.XATTR)[0]
        found = dict(await self._merged(inode.ino, _XATTR, b'', low, limits.XATTRS_PER_INODE_MAX))
        if inode.xattrs is None:
            self.keep_xattrs(inode, found)
        return found if inode.xattrs is None else inode.xattrs

    def keep_xattrs(self, inode: Inode, items: dict[bytes, XattrValue]) -> None:
        """Keep the items of all extended attributes with their inode; when these are too many in all, those
        of all other inodes go: they can be read again."""
        inode.xattrs = items
        self._xattr_bytes += xattr_cost(items)
        if self._xattr_bytes > limits.XATTR_CACHE_BYTES:
            for other in self.inodes.values():
                if other is not inode:
                    other.xattrs = None
            self._xattr_bytes = xattr_cost(items)

    async def xattr_get(self, inode: Inode, name: bytes) -> bytes | None:
        """Return the value of an extended attribute, or None."""
        known = inode.xattrs
        if known is None:
            if not inode.flags & HAS_XATTRS:
                return None
            known = await self.xattrs(inode)
        item = known.get(name)
        if item is None:
            return None
        value: bytes = item[1] if item[0] == 0 else await self._long_value(inode, item)
        return value

    async def _long_value(self, inode: Inode, value: XattrValue) -> bytes:
        try:
            plain = await self.core.chunk(value[2])
            if len(plain) != value[1]:
                raise Corrupt(f'chunk {value[2].hex()} has {len(plain)} bytes, not the {value[1]} of a value')
        except Corrupt as error:
            self.core.report_damage(f'{self.name}, inode {inode.ino}, attributes: {error}', self.number)
            raise
        return plain

    async def xattr_list(self, inode: Inode) -> list[bytes]:
        """Return the names of all extended attributes, sorted."""
        return sorted(await self.xattrs(inode))

    # --- file data ---------------------------------------------------------------------------------------
    async def extents(self, ino: int, start: int, end: int) -> list[Extent]:
        """Return the extents that hold bytes of [start, end), in order. They never overlap."""
        low = max(start - limits.CHUNK_BYTES_MAX + 1, 0)
        layers = self.layers
        result: dict[int, Any] = {}
        if not any(layer.hides_all(ino) for layer in layers):
            first, behind = keys.extent_key(ino, low), keys.extent_key(ino, end)
            root = self.root
            load = self.core.nodes.load
            while True:
                try:
                    page = range_page(root, first, behind, limits.EXTENTS_PER_CALL_MAX, load)
                    break
                except NotCached as missing:
                    await self.core.nodes.fetch(missing.id)
            for key, value in page:
                result[_suffix(_EXTENT, key)] = value
        for layer in reversed(layers):
            if layer.hides_all(ino):
                result.clear()
            layer.apply_cuts(ino, result)
            result.update(layer.extents(ino, low, end))
        found = [
            extent_of(offset, value)
            for offset, value in sorted(result.items())
            if value is not None and offset + value[0] > start
        ]
        for left, right in pairwise(found):
            if left[0] + left[1] > right[0]:
                raise Corrupt(f'extents of inode {ino} of {self.name} overlap at offset {right[0]}')
        return found

    async def read(self, inode: Inode, offset: int, size: int) -> bytes:
        """Return the bytes of [offset, offset + size), fewer only at the end of the file. Holes read as
        zeros.
        """
        end = min(offset + size, inode.size)
        if offset >= end:
            return b''
        buffers = [
            one for one in (inode.flushing, inode.buffer) if one is not None and one.overlaps(offset, end)
        ]
        if len(buffers) == 1 and len(buffers[0].starts) == 1:
            start = buffers[0].starts[0]
            piece = buffers[0].pieces[0]
            if start <= offset and end <= start + len(piece):
                return bytes(memoryview(piece)[offset - start : end - start])
        try:
            found = await self.extents(inode.ino, offset, end)
            plains = await self.core.chunks_of([extent[2] for extent in found])
        except Corrupt as error:
            self.core.report_damage(f'{self.name}, inode {inode.ino}: {error}', self.number)
            raise
        if not buffers:
            return assemble(found, plains, offset, end)
        result = bytearray(assemble(found, plains, offset, end))
        for one in buffers:
            one.copy_into(result, offset)
        return bytes(result)


def xattr_cost(items: dict[bytes, XattrValue]) -> int:
    """Return about how many bytes of memory the items take."""
    return sum(XATTR_COST + len(name) + (len(item[1]) if item[0] == 0 else 0) for name, item in items.items())


class SnapshotView(View):
    """A snapshot: a view whose root never changes (P6)."""

    def __init__(self, core: Core, row: SnapshotRow | RequestRow) -> None:
        number = row.number if isinstance(row, SnapshotRow) else row.view
        super().__init__(core, number, row.name, root_of(row), limits.SNAPSHOT_INODE_CACHE_ENTRIES)
        self.row = row


def root_of(row: SnapshotRow | VolumeRow | RequestRow) -> Root:
    """Return the root that a catalog row names."""
    return Root(row.root, row.root_items, row.root_refs)


def extent_of(offset: int, value: Any) -> Extent:
    """Return the extent that an EXTENT item is."""
    if len(value) == EXTENT_FIELDS:
        return offset, value[0], value[1], 0, value[0]
    length, skip, whole, chunk_id = value
    return offset, length, chunk_id, skip, whole


def bytes_of(extent: Extent, chunk: bytes) -> bytes:
    """Return the bytes of an extent from its chunk. Corrupt when the chunk is not as long as it says."""
    _, length, chunk_id, skip, whole = extent
    if len(chunk) != whole:
        raise Corrupt(f'chunk {chunk_id.hex()} has {len(chunk)} bytes where an extent says {whole}')
    return chunk if length == whole else chunk[skip : skip + length]


def is_part(extent: Extent) -> bool:
    """Return whether an extent is what was left of a chunk that could not be read."""
    return extent[1] != extent[4]


def assemble(found: Sequence[Extent], plains: Sequence[bytes], start: int, end: int) -> bytes:
    """Return the bytes of [start, end) from extents and their chunks; what lies between them is zero."""
    if len(found) == 1:
        offset, length = found[0][:2]
        if offset <= start and end <= offset + length:
            plain = bytes_of(found[0], plains[0])
            return (
                plain if offset == start and end == offset + length else plain[start - offset : end - offset]
            )
    parts: list[bytes | memoryview] = []
    position = start
    for extent, chunk in zip(found, plains, strict=True):
        offset, length = extent[:2]
        plain = bytes_of(extent, chunk)
        if offset > position:
            parts.append(bytes(offset - position))
            position = offset
        stop = min(offset + length, end)
        if position == offset and stop == offset + length:
            parts.append(plain)
        else:
            parts.append(memoryview(plain)[position - offset : stop - offset])
        position = stop
    if position < end:
        parts.append(bytes(end - position))
    return b''.join(parts)


def _suffix(kind: int, key: bytes) -> Any:
    """Return what stands behind inode number and kind in a key, as the layers name it."""
    suffix = key[9:]
    return suffix if kind == _XATTR else int.from_bytes(suffix, 'big')
