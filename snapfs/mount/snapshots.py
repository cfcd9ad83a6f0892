"""L5 snapshots: `.snapshots`, which every directory of a volume has and none lists. Event loop only.

In the volume's root directory it holds all snapshots of the volume. In a deeper directory it holds those in
which this directory existed, found by inode number, so a directory that was renamed since keeps its past;
behind each name is the same directory as it was then. (It is one directory that can be entered by two
paths, so the kernel moves it to where it was last entered: `pwd` inside may change. Network filesystems
with snapshots do the same.)

Making, renaming and removing snapshots is possible only in the volume's root: a snapshot is of the whole
volume, and who may write in a deep directory need not be somebody who may decide that. The directory has
owner and mode of the live one it lies in (without the w bits when deep), so the kernel checks who may.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from pyfuse3 import EntryAttributes

from snapfs import limits
from snapfs.errors import Refused
from snapfs.mount import nodeids
from snapfs.mount.attributes import inode_attributes, place_attributes
from snapfs.mount.control import Trash
from snapfs.mount.nodeids import NodeKind
from snapfs.mount.places import (
    COOKIE_FIRST,
    Caller,
    Place,
    PlaceEntry,
    byte_name,
    caller_name,
    directory_mode,
    text_name,
)

if TYPE_CHECKING:
    from snapfs.mount.namespace import Namespace
    from snapfs.store.rows import SnapshotRow
    from snapfs.volume.head import Head
    from snapfs.volume.inode import Inode

WRITE_BITS = 0o222


class SnapshotsDirectory(Place):
    """`.snapshots` of one live directory."""

    def __init__(self, namespace: Namespace, node: int) -> None:
        super().__init__(namespace, node)
        _, self.view, self.ino = nodeids.decode_node(node)

    async def attributes(self) -> EntryAttributes:
        live = await self._live()
        mode = live.mode if self._top() else live.mode & ~WRITE_BITS
        owner = live.uid, live.gid
        return place_attributes(self.node, directory_mode(mode & 0o777), owner, live.btime_ns)

    async def parent_node(self) -> int:
        return self.namespace.tree_node(self._head(), self.ino)

    async def lookup(self, name: bytes) -> EntryAttributes | None:
        await self._live()
        row = self._find(name)
        return None if row is None else await self._entry(row, name)

    async def entries(self, after: int) -> list[PlaceEntry]:
        await self._live()
        result = []
        for row in self.engine.snapshot_list(self._head().name):
            cookie = COOKIE_FIRST + row.number
            if cookie > after:
                name = byte_name(row.name)
                attributes = await self._entry(row, name)
                if attributes is not None:
                    result.append(PlaceEntry(cookie, name, attributes))
        return result

    async def make_directory(self, name: bytes, mode: int, caller: Caller) -> EntryAttributes:
        self._only_at_top()
        volume = self._head().name
        row = await self.engine.snapshot_create(volume, text_name(name), caller_name(caller))
        attributes = await self._entry(row, name)
        if attributes is None:
            raise Refused(errno.ENOENT)  # somebody was quick to delete it
        return attributes

    async def remove_directory(self, name: bytes, caller: Caller) -> None:
        self._only_at_top()
        await self.engine.snapshot_delete(self._head().name, text_name(name), caller_name(caller))

    async def receive(self, source: Place, name: bytes, new_name: bytes, caller: Caller) -> None:
        self._only_at_top()
        volume, new = self._head().name, text_name(new_name)
        if isinstance(source, Trash):
            await source.take_back_snapshot(name, volume, new)
        elif isinstance(source, SnapshotsDirectory):
            source._only_at_top()
            if source.view != self.view:
                raise Refused(errno.EXDEV)
            await self.engine.snapshot_rename(volume, text_name(name), new)
        else:
            raise Refused(errno.EPERM)
        row = self._find(new_name)
        if row is not None:  # nobody was quicker to rename it again
            await self._entry(row, new_name)

    def _top(self) -> bool:
        return self.ino == limits.INO_ROOT

    def _only_at_top(self) -> None:
        if not self._top():
            raise Refused(errno.EPERM, 'snapshots are made, renamed and removed in .snapshots of the volume')

    def _find(self, name: bytes) -> SnapshotRow | None:
        return self.engine.snapshots_of(self._head().row.volume).get(text_name(name))

    def _head(self) -> Head:
        head = self.namespace.heads.get(self.view)
        if head is None:
            raise Refused(errno.ESTALE)
        return head

    async def _live(self) -> Inode:
        inode = await self._head().inode(self.ino)
        if inode.nlink == 0 or not inode.is_directory():
            raise Refused(errno.ESTALE)
        return inode

    async def _entry(self, row: SnapshotRow, name: bytes) -> EntryAttributes | None:
        """Return the attributes of this directory in the snapshot, or None when it did not exist then."""
        view = self.namespace.views.get(nodeids.SNAPSHOT_TREE + row.number)
        if view is None:
            view = self.namespace.find_view(nodeids.encode_node(NodeKind.SNAPSHOT, row.number, self.ino))
        if view is None:
            return None
        try:
            inode = await view.inode(self.ino)
        except Refused as error:
            if error.errno != errno.ESTALE:
                raise
            return None
        attributes = self.namespace.attributes(view, inode)
        if self._top():
            self.namespace.give(self.node, name, attributes.st_ino)
            return attributes
        # The kernel sees what is done in the volume's `.snapshots` and not that the same goes away here. It
        # asks again, since it cannot be told before the program that did it goes on.
        uncached = inode_attributes(attributes.st_ino, inode)
        uncached.entry_timeout = 0.0
        return uncached
