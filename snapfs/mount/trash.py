"""L5 trash: `.snapfs/trash`, deleted snapshots and volumes that can still be taken back. Event loop only.

::

    .snapfs/trash/ID/request   what it is, who deleted it, when, in which batch it is, how it is taken back
    .snapfs/trash/ID/tree/     its files as they were, until it is in a batch: what is condemned is not read

`mv .snapfs/trash/ID VOLUME/.snapshots/NAME` takes the deletion of a snapshot back, `mv .snapfs/trash/ID
NAME` that of a volume; out of quarantine too, until the batch is being freed. So that the people whose files
these are can do it, `trash` is open to all but sticky, like /tmp, and each entry belongs to the owner of the
deleted tree and is closed to others.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from pyfuse3 import EntryAttributes

from snapfs import limits
from snapfs.errors import Refused
from snapfs.mount import nodeids
from snapfs.mount.nodeids import Control
from snapfs.mount.places import COOKIE_FIRST, PlaceEntry, directory_mode
from snapfs.mount.requests import SNAPSHOT, VOLUME, RequestFile, RequestPlace, Requests

if TYPE_CHECKING:
    from snapfs.store.rows import RequestRow

REQUEST_NAME = b'request'
TREE_NAME = b'tree'


class Trash(Requests):
    """`.snapfs/trash`."""

    entry = Control.TRASH_ENTRY
    mode = 0o1777

    async def take_back_snapshot(self, name: bytes, volume: str, new_name: str) -> None:
        """Undelete the snapshot `trash/NAME` as `volume`@`new_name`. Refused: ENOENT; EXDEV: another's."""
        row = self._wanted(name, SNAPSHOT)
        head = self.engine.head(volume)
        if head is None or head.row.volume != row.volume:
            raise Refused(errno.EXDEV)
        await self.engine.snapshot_undelete(row.number, new_name)

    async def take_back_volume(self, name: bytes, new_name: str) -> None:
        """Undelete the volume `trash/NAME` as `new_name`. Refused: ENOENT."""
        row = self._wanted(name, VOLUME)
        await self.engine.volume_undelete(row.number, new_name)

    def _wanted(self, name: bytes, kind: str) -> RequestRow:
        row = self.row(name)
        if row is None:
            raise Refused(errno.ENOENT)
        if row.kind != kind:
            raise Refused(errno.EPERM, f'request {row.number} is of a {row.kind}')
        return row


class TrashEntry(RequestPlace):
    """`.snapfs/trash/ID`."""

    above = Control.TRASH

    async def describe_request(self, row: RequestRow) -> EntryAttributes:
        return self.describe(directory_mode(0o700), await self.owner(row), row.requested_ns)

    async def lookup(self, name: bytes) -> EntryAttributes | None:
        row = self.request()
        if name == REQUEST_NAME:
            node = nodeids.control_node(Control.TRASH_REQUEST, row.number)
            return await self.namespace.place(node).attributes()
        return await self._tree(row) if name == TREE_NAME else None

    async def entries(self, after: int) -> list[PlaceEntry]:
        row = self.request()
        node = nodeids.control_node(Control.TRASH_REQUEST, row.number)
        found = [PlaceEntry(COOKIE_FIRST, REQUEST_NAME, await self.namespace.place(node).attributes())]
        tree = await self._tree(row)
        if tree is not None:
            found.append(PlaceEntry(COOKIE_FIRST + 1, TREE_NAME, tree))
        return [entry for entry in found if entry.cookie > after]

    async def _tree(self, row: RequestRow) -> EntryAttributes | None:
        view = None if row.batch is not None else self.namespace.snapshot(row.view)
        return None if view is None else self.namespace.attributes(view, await view.inode(limits.INO_ROOT))


class TrashRequest(RequestFile):
    """`.snapfs/trash/ID/request`."""

    async def parent_node(self) -> int:
        return nodeids.control_node(Control.TRASH_ENTRY, self.number)
