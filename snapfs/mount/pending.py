"""L5 pending: `.snapfs/pending`, what waits to be collected and is in no batch yet. Event loop only.

::

    .snapfs/pending/ID         what each waiting request for a snapshot or volume is (a text file)
    .snapfs/pending/dropped-N  what commits dropped from volume number N, all together: there may be thousands
"""

from __future__ import annotations

import contextlib
import errno
import stat
from typing import TYPE_CHECKING

from pyfuse3 import EntryAttributes

from snapfs import limits
from snapfs.errors import Refused, SnapfsError
from snapfs.mount import nodeids
from snapfs.mount.control import ControlPlace, utc_text
from snapfs.mount.nodeids import Control
from snapfs.mount.places import COOKIE_FIRST, PlaceEntry, TextFile
from snapfs.mount.requests import RequestFile, Requests

if TYPE_CHECKING:
    from snapfs.store.rows import RequestGroup, RequestRow

GROUP_TEXTS = {
    'dropped': 'data of volume {volume} that was overwritten or deleted and is in no snapshot',
    'returned': 'data that a batch put back because something still mentioned it',
    'leaked': 'data that crashes left behind, which somebody asked to free',
}
GROUP_KINDS = tuple(GROUP_TEXTS)
GROUP_COOKIE = COOKIE_FIRST + (1 << limits.INO_BITS)  # behind every request's


class Pending(Requests):
    """`.snapfs/pending`: requests one by one, and behind them those of commits, an entry per volume."""

    entry = Control.PENDING_REQUEST
    mode = 0o755

    def shows(self, row: RequestRow) -> bool:
        return super().shows(row) and row.batch is None

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


class PendingRequest(RequestFile):
    """`.snapfs/pending/ID`."""

    above = Control.PENDING


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
