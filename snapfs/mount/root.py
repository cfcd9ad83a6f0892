"""L5 root: the root of a mount of a whole store, one directory per volume. Event loop only.

`mkdir` makes a volume, `mv` renames one, `rmdir` of an empty one without snapshots requests its deletion,
and `mv .snapfs/trash/ID NAME` takes that back. The directory belongs to the store's owner (0755), so the
kernel lets nobody else but root do any of this.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from pyfuse3 import EntryAttributes

from snapfs import limits
from snapfs.errors import Refused
from snapfs.mount import nodeids
from snapfs.mount.attributes import place_attributes
from snapfs.mount.nodeids import Control
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
    from snapfs.volume.head import Head

SNAPSHOTS_NAME = b'.snapshots'
CONTROL_NAME = b'.snapfs'


class MountRoot(Place):
    """The directory of volumes."""

    async def attributes(self) -> EntryAttributes:
        space = self.namespace
        return place_attributes(nodeids.ROOT_NODE, directory_mode(0o755), space.owner, space.started_ns)

    async def parent_node(self) -> int:
        return nodeids.ROOT_NODE

    async def lookup(self, name: bytes) -> EntryAttributes | None:
        if name == CONTROL_NAME:
            return await self.namespace.place(nodeids.control_node(Control.DIRECTORY)).attributes()
        head = self._head(name)
        return None if head is None else await self._entry(head, name)

    async def entries(self, after: int) -> list[PlaceEntry]:
        heads = sorted(self.engine.heads().values(), key=lambda head: head.number)
        result = []
        for head in heads:
            cookie = COOKIE_FIRST + head.number
            if cookie > after:
                name = byte_name(head.name)
                result.append(PlaceEntry(cookie, name, await self._entry(head, name)))
        return result

    async def make_directory(self, name: bytes, mode: int, caller: Caller) -> EntryAttributes:
        self._not_ours(name)
        head = await self.engine.volume_create(text_name(name), caller.uid, caller.gid, mode & 0o7777)
        return await self._entry(head, name)

    async def remove_directory(self, name: bytes, caller: Caller) -> None:
        head = self._head(name)
        if head is None:
            raise Refused(errno.EPERM if name == CONTROL_NAME else errno.ENOENT)
        directory = await head.inode(limits.INO_ROOT)
        # A volume is as full as its fullest snapshot: rmdir must not be the way to lose the last trace of a
        # file.
        if await head.list_directory(directory, 0, 1) or self.engine.snapshots_of(head.row.volume):
            raise Refused(errno.ENOTEMPTY)
        await self.engine.volume_delete(head.name, caller_name(caller))

    async def receive(self, source: Place, name: bytes, new_name: bytes, caller: Caller) -> None:
        self._not_ours(new_name)
        if isinstance(source, MountRoot):
            if self._head(name) is None:
                raise Refused(errno.EPERM if name == CONTROL_NAME else errno.ENOENT)
            await self.engine.volume_rename(text_name(name), text_name(new_name))
        elif isinstance(source, Trash):
            await source.take_back_volume(name, text_name(new_name))
        else:
            raise Refused(errno.EPERM)
        head = self._head(new_name)
        if head is not None:  # nobody was quicker to rename it again
            await self._entry(head, new_name)

    def refuse_tree(self) -> Refused:
        # As between two filesystems: `mv` then copies, and `mv DIRECTORY MOUNT/NAME` makes a volume of a
        # directory.
        return Refused(errno.EXDEV)

    def _head(self, name: bytes) -> Head | None:
        return self.engine.head(text_name(name))

    def _not_ours(self, name: bytes) -> None:
        if name in (CONTROL_NAME, SNAPSHOTS_NAME):
            raise Refused(errno.EPERM)

    async def _entry(self, head: Head, name: bytes) -> EntryAttributes:
        # A damaged volume hides neither the others nor its snapshots.
        attributes = await self.namespace.tree_attributes(head, limits.INO_ROOT)
        self.namespace.give(self.node, name, attributes.st_ino)
        return attributes
