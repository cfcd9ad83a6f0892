"""L5 snapshots: `.snapshots`, which every directory of a volume has and none lists. Event loop only.

In the volume's root directory it holds all snapshots of the volume. In a deeper directory it holds those in
which this directory existed, found by inode number, so a directory that was renamed since keeps its past;
behind each name is the same directory as it was then. (It is one directory that can be entered by two
paths, so the kernel moves it to where it was last entered: `pwd` inside may change. Network filesystems
with snapshots do the same.)

Making, renaming and removing snapshots is possible only in the volume's root: a snapshot is of the whole
volume, and who may write in a deep directory need not be somebody who may decide that. The directory has
owner and mode of the live one it lies in (without the w bits when deep), so the kernel checks who may.

The past is never more open than it was. From the volume's `.snapshots` the kernel passes every directory on
the way and sees its mode of then. From a deeper one it does not: the directory may have lain below a closed
one then, and below an open one now. So `admit` looks at those directories instead.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import pyfuse3
from pyfuse3 import EntryAttributes

from snapfs import limits
from snapfs.errors import Corrupt, Refused
from snapfs.mount import nodeids
from snapfs.mount.attributes import (
    closed_attributes,
    inode_attributes,
    place_attributes,
    unreadable_attributes,
)
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
from snapfs.mount.trash import Trash

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
        if live is None:
            return closed_attributes(self.node, self.namespace.owner, self.namespace.started_ns)
        # Sticky too: where all may make files and none may touch another's, that goes for snapshots as well.
        mode = live.mode & 0o1777 if self._top() else live.mode & 0o777 & ~WRITE_BITS
        owner = live.uid, live.gid
        return place_attributes(self.node, directory_mode(mode), owner, live.btime_ns)

    async def parent_node(self) -> int:
        return self.namespace.tree_node(self._head(), self.ino)

    async def lookup(self, name: bytes) -> EntryAttributes | None:
        await self._live()
        row = self._find(name)
        return None if row is None else await self._entry(row, name)

    async def admit(self, name: bytes, caller: Caller) -> None:
        row = None if self._top() or caller.uid == 0 else self._find(name)
        view = None if row is None else self.namespace.snapshot(row.number)
        if view is None:
            return
        try:
            directory = await view.inode(self.ino)
        except Refused:
            return  # it did not exist then, which the look-up will say
        groups: set[int] | None = None
        while directory.ino != limits.INO_ROOT:
            directory = await view.inode(directory.parent)
            if directory.uid != caller.uid and groups is None:
                groups = groups_of(caller)
            if not may_pass(directory, caller.uid, groups or set()):
                raise Refused(errno.EACCES)

    async def entries(self, after: int) -> list[PlaceEntry]:
        await self._live()
        result = []
        for row in self.engine.snapshot_list(self._head().name):
            cookie = COOKIE_FIRST + row.number
            if cookie > after:
                name = byte_name(row.name)
                try:
                    attributes = await self._entry(row, name)
                except Corrupt:  # a damaged snapshot must not hide the others
                    node = nodeids.encode_node(NodeKind.SNAPSHOT, row.number, self.ino)
                    attributes = unreadable_attributes(node, self.namespace.owner, row.created_ns)
                if attributes is not None:
                    result.append(PlaceEntry(cookie, name, attributes))
        return result

    async def make_directory(self, name: bytes, mode: int, caller: Caller) -> EntryAttributes:
        self._only_at_top()
        volume = self._head().name
        await self._head().inode(self.ino)  # nobody wants a snapshot of what cannot be read
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

    async def _live(self) -> Inode | None:
        """Return the live directory, or None for a volume's top directory that cannot be read: it is there,
        and what it was in the past may be whole."""
        try:
            inode = await self._head().inode(self.ino)
        except Corrupt:
            if not self._top():
                raise
            return None
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


def groups_of(caller: Caller) -> set[int]:
    """Return the groups of the process that asks; its main one alone where the others cannot be known."""
    try:
        return {caller.gid, *pyfuse3.get_sup_groups(caller.pid)}
    except (OSError, RuntimeError, ValueError):
        return {caller.gid}


def may_pass(directory: Inode, uid: int, groups: set[int]) -> bool:
    """Say whether the mode of a directory lets a user look names up in it, as the kernel would decide."""
    if uid == directory.uid:
        return bool(directory.mode & 0o100)
    return bool(directory.mode & (0o010 if directory.gid in groups else 0o001))
