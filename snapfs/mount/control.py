"""L5 control: `.snapfs`, where deletion and health can be read with ls and cat. Event loop only.

::

    .snapfs/health             begins with `ok`, or with the reason why not; then the figures of the store
    .snapfs/pending/ID         what each waiting request for a snapshot or volume is (a text file)
    .snapfs/pending/dropped-N  what commits dropped from volume number N, all together: there may be thousands
    .snapfs/trash/ID/          a deleted snapshot or volume that can still be taken back
    .snapfs/trash/ID/request   what it is, who deleted it, when, and the command that takes it back
    .snapfs/trash/ID/tree/     its files as they were

`mv .snapfs/trash/ID VOLUME/.snapshots/NAME` takes the deletion of a snapshot back, `mv .snapfs/trash/ID
NAME` that of a volume. So that the people whose files these are can do it too, `trash` is open to all but
sticky, like /tmp, and each entry belongs to the owner of the deleted tree and is closed to others.

Nothing here is cached by the kernel: every name is asked for again, every text is rendered when its file is
opened.
"""

from __future__ import annotations

import contextlib
import errno
import stat
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from pyfuse3 import EntryAttributes

from snapfs import limits
from snapfs.errors import Refused, SnapfsError
from snapfs.mount import nodeids
from snapfs.mount.attributes import place_attributes
from snapfs.mount.nodeids import Control
from snapfs.mount.places import (
    COOKIE_FIRST,
    Place,
    PlaceEntry,
    TextFile,
    directory_mode,
)

if TYPE_CHECKING:
    from snapfs.mount.namespace import Namespace
    from snapfs.store.rows import RequestGroup, RequestRow

SNAPSHOT, VOLUME = 'snapshot', 'volume'  # kinds of request that can be taken back
GROUP_TEXTS = {
    'dropped': 'data of volume {volume} that was overwritten or deleted and is in no snapshot',
    'returned': 'data that a batch put back because something still mentioned it',
    'leaked': 'data that crashes left behind, which somebody asked to free',
}
GROUP_KINDS = tuple(GROUP_TEXTS)
GROUP_COOKIE = COOKIE_FIRST + (1 << limits.INO_BITS)  # behind every request's
REQUEST_NAME = b'request'
TREE_NAME = b'tree'
NANOSECONDS = 1_000_000_000


class ControlPlace(Place):
    """A directory or file below `.snapfs`."""

    above = Control.DIRECTORY

    async def parent_node(self) -> int:
        return nodeids.control_node(self.above)

    def describe(self, mode: int, owner: tuple[int, int], time_ns: int, size: int = 0) -> EntryAttributes:
        """Return attributes that the kernel keeps for no moment."""
        return place_attributes(self.node, mode, owner, time_ns, size=size, entry_timeout=0.0)


class ControlDirectory(ControlPlace):
    """`.snapfs` itself."""

    # In the order of their numbers, which are the cookies.
    NAMES = {b'health': Control.HEALTH, b'trash': Control.TRASH, b'pending': Control.PENDING}

    async def attributes(self) -> EntryAttributes:
        return self.describe(directory_mode(0o755), self.namespace.owner, self.namespace.started_ns)

    async def parent_node(self) -> int:
        return nodeids.ROOT_NODE

    async def lookup(self, name: bytes) -> EntryAttributes | None:
        control = self.NAMES.get(name)
        if control is None:
            return None
        return await self.namespace.place(nodeids.control_node(control)).attributes()

    async def entries(self, after: int) -> list[PlaceEntry]:
        return [
            PlaceEntry(COOKIE_FIRST + control, name, await self.namespace.place(node).attributes())
            for name, control in self.NAMES.items()
            if COOKIE_FIRST + control > after
            for node in (nodeids.control_node(control),)
        ]


class Health(ControlPlace, TextFile):
    """`.snapfs/health`."""

    async def attributes(self) -> EntryAttributes:
        size = len(await self.text())
        return self.describe(stat.S_IFREG | 0o444, self.namespace.owner, self.namespace.started_ns, size)

    async def text(self) -> bytes:
        status = self.engine.status()
        return health_text(status, self.namespace.unexpected_errors).encode('utf-8', 'surrogateescape')


class Requests(ControlPlace):
    """A directory with an entry per request, named by its number. `kinds`: which ones."""

    kinds: frozenset[str]
    entry: Control
    mode: int

    async def attributes(self) -> EntryAttributes:
        return self.describe(directory_mode(self.mode), self.namespace.owner, self.namespace.started_ns)

    async def lookup(self, name: bytes) -> EntryAttributes | None:
        row = self.row(name)
        return None if row is None else await self._entry(row)

    async def entries(self, after: int) -> list[PlaceEntry]:
        return [
            PlaceEntry(COOKIE_FIRST + row.number, b'%d' % row.number, await self._entry(row))
            for row in self.engine.request_list()
            if row.kind in self.kinds and COOKIE_FIRST + row.number > after
        ]

    def row(self, name: bytes) -> RequestRow | None:
        """Return the request of this name, or None."""
        for row in self.engine.request_list():
            if row.kind in self.kinds and b'%d' % row.number == name:
                return row
        return None

    async def _entry(self, row: RequestRow) -> EntryAttributes:
        place = self.namespace.place(nodeids.control_node(self.entry, row.number))
        assert isinstance(place, RequestPlace)
        return await place.describe_request(row)


class Pending(Requests):
    """`.snapfs/pending`: requests one by one, and behind them those of commits, an entry per volume."""

    kinds = frozenset((SNAPSHOT, VOLUME))
    entry = Control.PENDING_REQUEST
    mode = 0o755

    async def lookup(self, name: bytes) -> EntryAttributes | None:
        for group in self.engine.request_groups() if b'-' in name else ():
            if group_name(group) == name:
                return await self._group(group)
        return await super().lookup(name)

    async def entries(self, after: int) -> list[PlaceEntry]:
        groups = [
            PlaceEntry(GROUP_COOKIE + group_number(group), group_name(group), await self._group(group))
            for group in sorted(self.engine.request_groups(), key=group_number)
            if GROUP_COOKIE + group_number(group) > after
        ]
        return [*await super().entries(after), *groups]

    async def _group(self, group: RequestGroup) -> EntryAttributes:
        place = self.namespace.place(nodeids.control_node(Control.PENDING_GROUP, group_number(group)))
        assert isinstance(place, PendingGroup)
        return await place.describe_group(group)


class PendingGroup(ControlPlace, TextFile):
    """`.snapfs/pending/dropped-N`."""

    above = Control.PENDING

    async def attributes(self) -> EntryAttributes:
        return await self.describe_group(self._found())

    async def describe_group(self, group: RequestGroup) -> EntryAttributes:
        """Return the attributes of this file for its requests, which the caller has read already. It belongs
        to the owner of the volume."""
        owner, head = self.namespace.owner, self.engine.head_of_volume(group.volume)
        if head is not None:
            with contextlib.suppress(SnapfsError):  # a damaged volume must not make the listing unreadable
                root = await head.inode(limits.INO_ROOT)
                owner = root.uid, root.gid
        return self.describe(stat.S_IFREG | 0o440, owner, group.last_ns, len(self._render(group)))

    async def text(self) -> bytes:
        return self._render(self._found())

    def _found(self) -> RequestGroup:
        number = nodeids.decode_node(self.node).ino
        for group in self.engine.request_groups():
            if group_number(group) == number:
                return group
        raise Refused(errno.ESTALE)

    def _render(self, group: RequestGroup) -> bytes:
        head = self.engine.head_of_volume(group.volume)
        return group_text(group, None if head is None else head.name).encode('utf-8', 'surrogateescape')


class Trash(Requests):
    """`.snapfs/trash`."""

    kinds = frozenset((SNAPSHOT, VOLUME))
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


class RequestPlace(ControlPlace):
    """Something that is about one request: its number is in the node id."""

    def __init__(self, namespace: Namespace, node: int) -> None:
        super().__init__(namespace, node)
        self.number = nodeids.decode_node(node).ino

    def request(self) -> RequestRow:
        """Return the request. Refused(ESTALE) when it is no more."""
        for row in self.engine.request_list():
            if row.number == self.number:
                return row
        raise Refused(errno.ESTALE)

    async def attributes(self) -> EntryAttributes:
        return await self.describe_request(self.request())

    async def describe_request(self, row: RequestRow) -> EntryAttributes:
        """Return the attributes of this place for its request, which the caller has read already."""
        raise NotImplementedError

    async def owner(self, row: RequestRow) -> tuple[int, int]:
        """Return (uid, gid) of the deleted tree's root directory; the store's owner if that is unknown."""
        tree = None if row.kind not in Trash.kinds else self.engine.snapshot_view(row.view)
        if tree is None:
            return self.namespace.owner
        try:
            inode = await tree.inode(limits.INO_ROOT)
        except SnapfsError:  # a damaged tree must not make the listing unreadable
            return self.namespace.owner
        return inode.uid, inode.gid


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
        view = self.namespace.snapshot(row.view)
        return None if view is None else self.namespace.attributes(view, await view.inode(limits.INO_ROOT))


class RequestFile(RequestPlace, TextFile):
    """`.snapfs/trash/ID/request` or `.snapfs/pending/ID`."""

    async def describe_request(self, row: RequestRow) -> EntryAttributes:
        size = len(self._render(row))
        return self.describe(stat.S_IFREG | 0o440, await self.owner(row), row.requested_ns, size)

    async def text(self) -> bytes:
        return self._render(self.request())

    def _render(self, row: RequestRow) -> bytes:
        head = self.engine.head_of_volume(row.volume)
        return request_text(row, None if head is None else head.name).encode('utf-8', 'surrogateescape')


class TrashRequest(RequestFile):
    """`.snapfs/trash/ID/request`."""

    async def parent_node(self) -> int:
        return nodeids.control_node(Control.TRASH_ENTRY, self.number)


class PendingRequest(RequestFile):
    """`.snapfs/pending/ID`."""

    above = Control.PENDING


def request_text(row: RequestRow, volume: str | None) -> str:
    """Return what a person wants to know of a request. `volume`: what its volume is called now, if any."""
    was = row.volume_name
    what = {
        SNAPSHOT: f'snapshot {was}@{row.name}',
        VOLUME: f'volume {was}',
    }[row.kind]
    lines = [f'request: {row.number}', f'kind: {row.kind}', f'what: {what}']
    lines += [f'requested: {utc_text(row.requested_ns)}', f'by: {row.who}']
    lines.append(f'bytes: {"unknown" if row.bytes is None else row.bytes}')
    if row.kind == SNAPSHOT and volume is not None:
        lines.append(f"take back: mv '.snapfs/trash/{row.number}' '{volume}/.snapshots/{row.name}'")
    if row.kind == VOLUME:
        lines.append(f"take back: mv '.snapfs/trash/{row.number}' '{was}'")
    return '\n'.join(lines) + '\n'


def group_number(group: RequestGroup) -> int:
    """Return the number of a group of requests: its volume, and in the last two bits its kind."""
    return (group.volume + 1) << 2 | GROUP_KINDS.index(group.kind)


def group_name(group: RequestGroup) -> bytes:
    """Return what the entry is called. By the volume's number: a volume's name may be as long as any name."""
    return f'{group.kind}-{group.volume}'.encode()


def group_text(group: RequestGroup, volume: str | None) -> str:
    """Return what a person wants to know of requests that a program made. `volume`: its name now, if any."""
    what = GROUP_TEXTS[group.kind].format(volume=volume or f'{group.volume_name} (deleted)')
    lines = [f'kind: {group.kind}', f'what: {what}', f'requests: {group.requests}']
    lines += [f'first: {utc_text(group.first_ns)}', f'last: {utc_text(group.last_ns)}']
    lines.append(f'bytes: {"unknown" if group.bytes is None else group.bytes}')
    return '\n'.join(lines) + '\n'


def health_text(status: dict[str, object], unexpected_errors: int) -> str:
    """Return the text of `health`: one line of verdict, then a line per figure."""
    verdict = str(status['health'])
    if verdict == 'ok' and unexpected_errors:
        verdict = (
            f'errors: {unexpected_errors} requests met a bug since the mount; the log has the tracebacks'
        )
    return '\n'.join([verdict, *status_lines('', status)]) + '\n'


def status_lines(prefix: str, value: object) -> list[str]:
    """Return nested figures as lines `a.b: c`."""
    if isinstance(value, dict):
        return [
            line
            for key, below in value.items()
            for line in status_lines(f'{prefix}.{key}' if prefix else key, below)
        ]
    return [f'{prefix}: {value}']


def utc_text(time_ns: int) -> str:
    """Return a time as `2026-11-23 23:59:59 UTC`."""
    return datetime.fromtimestamp(time_ns // NANOSECONDS, UTC).strftime('%Y-%m-%d %H:%M:%S UTC')
