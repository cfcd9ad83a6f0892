"""L5 namespace: what a mount looks like: which view or place a node id means. Event loop only.

A mount shows a whole store (its root is the directory of volumes) or one volume (its root is the volume's
root directory). `.snapfs` is in the root of either, and `.snapshots` in every live directory; both can be
entered and are never listed, so that `find`, `tar`, `rsync` and `rm -r` do not stumble into them. Their
names cannot be used for anything else.

`heads` and `views` are plain dictionaries by tree number (see `nodeids`), for the adapter's one look-up per
request: `heads` has the live volumes, `views` those and the snapshots in use. What is in neither is a
place, or gone.
"""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, cast

from pyfuse3 import EntryAttributes

from snapfs import limits
from snapfs.errors import Corrupt, Refused, Unavailable
from snapfs.mount import control, evidence, nodeids, pending, quarantine, trash
from snapfs.mount.attributes import closed_attributes, inode_attributes
from snapfs.mount.nodeids import ROOT_NODE, ROOT_TREE, SNAPSHOT_TREE, Control, NodeKind
from snapfs.mount.places import Place, text_name
from snapfs.mount.root import CONTROL_NAME, SNAPSHOTS_NAME, MountRoot
from snapfs.mount.snapshots import SnapshotsDirectory

if TYPE_CHECKING:
    from snapfs.volume.engine import Engine
    from snapfs.volume.head import Head
    from snapfs.volume.inode import Inode
    from snapfs.volume.view import SnapshotView, View

RENAME_NOREPLACE = 1

CONTROL_PLACES: Mapping[int, type[Place]] = {
    Control.DIRECTORY: control.ControlDirectory,
    Control.HEALTH: control.Health,
    Control.TRASH: trash.Trash,
    Control.PENDING: pending.Pending,
    Control.TRASH_ENTRY: trash.TrashEntry,
    Control.TRASH_REQUEST: trash.TrashRequest,
    Control.PENDING_REQUEST: pending.PendingRequest,
    Control.PENDING_GROUP: pending.PendingGroup,
    Control.INCIDENTS: evidence.IncidentsDirectory,
    Control.INCIDENT: evidence.IncidentDirectory,
    Control.INCIDENT_FILE: evidence.EvidenceFile,
    Control.QUARANTINE: quarantine.Quarantine,
    Control.BATCH: quarantine.BatchFile,
    Control.VERIFIED: control.VerifiedFile,
}


class Namespace:
    """The places of one mount."""

    def __init__(
        self,
        engine: Engine,
        *,
        owner: tuple[int, int] = (0, 0),
        volume: str | None = None,
        started_ns: int = 0,
    ) -> None:
        """`owner`: (uid, gid) of the store. `volume`: mount this one alone, or Unavailable."""
        self.engine = engine
        self.owner = owner
        self.started_ns = started_ns
        self.heads: dict[int, Head] = {}
        self.views: dict[int, View] = {}
        self.unexpected_errors = 0  # in handlers; shown in .snapfs/health
        self.appeared: Callable[[Head], None] = _nobody_asks  # called for each head that was not here before
        # What the kernel was told in computed directories: directory -> name -> node id. `stale` compares.
        self.given: dict[int, dict[bytes, int]] = {}
        self._pins: Counter[int] = Counter()  # open handles by view number of a snapshot
        self.mounted: int | None = None  # stable number of the only volume
        self.root_head: Head | None = None  # the head whose root directory is the root of the mount
        if volume is not None:
            head = engine.head(volume)
            if head is None:
                raise Unavailable(f'there is no volume {volume}')
            self.mounted = head.row.volume
        self.refresh()

    # --- views -------------------------------------------------------------------------------------------
    def refresh(self) -> None:
        """Learn which volumes and snapshots there are now. Called at once after each change."""
        heads = {head.number: head for head in self.engine.heads().values()}
        self.root_head = None if self.mounted is None else self.engine.head_of_volume(self.mounted)
        if self.root_head is not None:
            heads[ROOT_TREE] = self.root_head
        kept = {
            tree: view
            for tree, view in self.views.items()
            if tree >= SNAPSHOT_TREE and self.engine.snapshot_view(tree - SNAPSHOT_TREE) is view
        }
        new = [head for tree, head in heads.items() if self.heads.get(tree) is not head]
        self.heads.clear()
        self.heads.update(heads)
        self.views.clear()
        self.views.update(kept)
        self.views.update(heads)
        for head in new:
            self.appeared(head)

    def find_view(self, node: int) -> View | None:
        """Return the view that a node id or handle is in, or None: it is a place. Refused(ESTALE): gone."""
        tree = node >> nodeids.INO_BITS
        view = self.views.get(tree)
        if view is not None or tree >= SNAPSHOT_TREE * 2 or node == ROOT_NODE:
            return view
        found = self.snapshot(tree - SNAPSHOT_TREE) if tree >= SNAPSHOT_TREE else None
        if found is None:
            raise Refused(errno.ESTALE)
        return found

    def snapshot(self, number: int) -> SnapshotView | None:
        """Return the view of a snapshot, also of one whose deletion is requested; None when there is none."""
        tree = SNAPSHOT_TREE + number
        found = self.views.get(tree)
        if found is not None:
            return cast('SnapshotView', found)
        view = self.engine.snapshot_view(number)
        if view is not None:
            if len(self.views) - len(self.heads) >= limits.SNAPSHOT_VIEWS_CACHED_MAX:
                del self.views[next(tree for tree in self.views if tree >= SNAPSHOT_TREE)]
            self.views[tree] = view
        return view

    # --- pins --------------------------------------------------------------------------------------------
    def pin(self, node: int) -> None:
        """Something of a snapshot has been opened: its chunks must stay, although the snapshot be deleted."""
        tree = node >> nodeids.INO_BITS
        if SNAPSHOT_TREE <= tree < SNAPSHOT_TREE * 2:
            self._pins[tree - SNAPSHOT_TREE] += 1

    def unpin(self, node: int) -> None:
        """It has been closed. `node` is as it was given to `pin`."""
        tree = node >> nodeids.INO_BITS
        if SNAPSHOT_TREE <= tree < SNAPSHOT_TREE * 2:
            number = tree - SNAPSHOT_TREE
            self._pins[number] -= 1
            if not self._pins[number]:
                del self._pins[number]

    def pinned(self) -> frozenset[int]:
        """Return the view numbers of snapshots, deleted ones too, of which something is open."""
        return frozenset(self._pins)

    # --- node ids ----------------------------------------------------------------------------------------
    def tree_node(self, view: View, ino: int) -> int:
        """Return the node id of a file of a volume or snapshot."""
        if not view.writable:
            return nodeids.encode_node(NodeKind.SNAPSHOT, view.number, ino)
        if ino == limits.INO_ROOT and view is self.root_head:
            return ROOT_NODE
        return view.number << nodeids.INO_BITS | ino

    def attributes(self, view: View, inode: Inode) -> EntryAttributes:
        """Return what the kernel is told of an inode, made anew only after a change."""
        known: EntryAttributes | None = inode.attributes
        if known is None:
            known = inode.attributes = inode_attributes(self.tree_node(view, inode.ino), inode)
        return known

    async def tree_attributes(self, view: View, ino: int) -> EntryAttributes:
        """Return the attributes of a file of a view, and what stands for a volume's top directory that cannot
        be read. Corrupt for all else that cannot be read, Refused(ESTALE) for what is not there."""
        try:
            return self.attributes(view, await view.inode(ino))
        except Corrupt:
            if ino != limits.INO_ROOT or not view.writable:
                raise
            return closed_attributes(self.tree_node(view, ino), self.owner, self.started_ns)

    # --- places ------------------------------------------------------------------------------------------
    def place(self, node: int) -> Place:
        """Return the place of a node id that is in no view. Refused(ESTALE): there is none."""
        try:
            kind, view, _ = nodeids.decode_node(node)
        except ValueError as error:
            raise Refused(errno.ESTALE) from error
        if kind is NodeKind.SNAPSHOTS:
            return SnapshotsDirectory(self, node)
        if kind is NodeKind.CONTROL and view in CONTROL_PLACES:
            return CONTROL_PLACES[view](self, node)
        if node == ROOT_NODE and self.mounted is None:
            return MountRoot(self, node)
        raise Refused(errno.ESTALE)

    def writable_place(self, node: int) -> Place:
        """Return the place of a node id that is in no live volume. Refused(EROFS) in a snapshot; ESTALE."""
        if self.find_view(node) is not None:
            raise Refused(errno.EROFS)
        return self.place(node)

    def rename_places(self, old_node: int, new_node: int, flags: int) -> tuple[Place, Place]:
        """Return both ends of a rename, of which at least one is in no live volume.

        Refused: EROFS from or into a snapshot, EINVAL for RENAME_EXCHANGE, else what the place answers to a
        rename between it and a volume.
        """
        ends = []
        for node in (old_node, new_node):
            view = self.find_view(node)
            if view is not None and not view.writable:
                raise Refused(errno.EROFS)
            ends.append(None if view is not None else self.place(node))
        old, new = ends
        if old is None or new is None:
            place = old or new
            assert place is not None, "a rename within a volume is the volume's"
            raise place.refuse_tree()
        if flags & ~RENAME_NOREPLACE:
            raise Refused(errno.EINVAL)
        return old, new

    def reserved(self, parent_node: int, name: bytes) -> bool:
        """Return whether `name` in a live directory means one of ours."""
        if name == SNAPSHOTS_NAME:
            return True
        return name == CONTROL_NAME and parent_node & nodeids.INO_MASK == limits.INO_ROOT

    async def lookup_reserved(self, view: View, ino: int, name: bytes) -> EntryAttributes | None:
        """Look up `.`, `..`, `.snapshots` or `.snapfs` from a directory of a view; None: no such thing.

        `.` and `..` are asked for only when a file handle from before a remount is used. `.` then is asked of
        files too.
        """
        if name == b'.':
            return await self.tree_attributes(view, ino)
        if name == b'..':
            return await self._above(view, ino)
        # A top directory is not looked at: its snapshots are there when it cannot be read.
        if ino != limits.INO_ROOT and not (await view.inode(ino)).is_directory():
            raise Refused(errno.ENOTDIR)
        if not view.writable:
            return None
        if name == SNAPSHOTS_NAME:
            node = nodeids.encode_node(NodeKind.SNAPSHOTS, view.number, ino)
            return await self.place(node).attributes()
        if name == CONTROL_NAME and ino == limits.INO_ROOT and view is self.root_head:
            return await self.place(nodeids.control_node(Control.DIRECTORY)).attributes()
        return None

    async def _above(self, view: View, ino: int) -> EntryAttributes:
        if ino == limits.INO_ROOT:
            return await self.place_or_tree(self.above_root(view))
        directory = await view.inode(ino)
        if not directory.is_directory():
            raise Refused(errno.ENOTDIR)
        return await self.tree_attributes(view, directory.parent)

    def above_root(self, view: View) -> int:
        """Return the node id of the directory that holds a view's root directory."""
        if view.writable:
            return ROOT_NODE
        row = cast('SnapshotView', view).row
        head = self.engine.head_of_volume(row.volume)
        snapshots = self.engine.snapshots_of(row.volume).values()
        if head is not None and any(one.number == view.number for one in snapshots):
            return nodeids.encode_node(NodeKind.SNAPSHOTS, head.number, limits.INO_ROOT)
        for request in self.engine.request_list():
            if request.view == view.number:
                return nodeids.control_node(Control.TRASH_ENTRY, request.number)
        raise Refused(errno.ESTALE)

    async def place_or_tree(self, node: int) -> EntryAttributes:
        """Return the attributes of any node id."""
        view = self.find_view(node)
        if view is None:
            return await self.place(node).attributes()
        return await self.tree_attributes(view, node & nodeids.INO_MASK)

    # --- what the kernel knows ---------------------------------------------------------------------------
    def give(self, parent_node: int, name: bytes, node: int) -> None:
        """Note that the kernel is told of an entry in a computed directory, and may keep it."""
        self.given.setdefault(parent_node, {})[name] = node

    def forget(self, node: int) -> None:
        """Note that the kernel has dropped a node, and with it all entries in it."""
        self.given.pop(node, None)

    def stale(self) -> list[tuple[int, bytes]]:
        """Return and forget the entries (directory, name) that the kernel may believe but that changed."""
        result = []
        for parent_node, entries in self.given.items():
            for name, node in entries.items():
                if self._now(parent_node, name) != node:
                    result.append((parent_node, name))
        for parent_node, name in result:
            del self.given[parent_node][name]
        return result

    def _now(self, parent_node: int, name: bytes) -> int | None:
        """Return the node id that `name` leads to now."""
        text = text_name(name)
        if parent_node == ROOT_NODE:
            head = self.engine.head(text)
            return None if head is None else self.tree_node(head, limits.INO_ROOT)
        _, view, ino = nodeids.decode_node(parent_node)
        head = self.heads.get(view)
        if head is None:
            return None
        row = self.engine.snapshots_of(head.row.volume).get(text)
        return None if row is None else nodeids.encode_node(NodeKind.SNAPSHOT, row.number, ino)


def _nobody_asks(head: Head) -> None:
    """The start value of `Namespace.appeared`."""
