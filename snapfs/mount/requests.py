"""L5 requests: what `trash` and `pending` have in common: an entry for each request, named by its number.
Event loop only."""

from __future__ import annotations

import errno
import stat
from typing import TYPE_CHECKING

from pyfuse3 import EntryAttributes

from snapfs import limits
from snapfs.collect.overview import Resting, of_batch
from snapfs.collect.states import CONFIRMED
from snapfs.errors import Refused, SnapfsError
from snapfs.mount import nodeids
from snapfs.mount.control import ControlPlace, utc_text
from snapfs.mount.nodeids import Control
from snapfs.mount.places import COOKIE_FIRST, PlaceEntry, TextFile, directory_mode

if TYPE_CHECKING:
    from snapfs.mount.namespace import Namespace
    from snapfs.store.rows import RequestRow

SNAPSHOT, VOLUME = 'snapshot', 'volume'  # kinds of request that can be taken back
KEPT_KINDS = frozenset((SNAPSHOT, VOLUME))


class Requests(ControlPlace):
    """A directory with an entry per request that `shows`, named by its number."""

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
            if self.shows(row) and COOKIE_FIRST + row.number > after
        ]

    def shows(self, row: RequestRow) -> bool:
        """Say whether a request is listed here."""
        return row.kind in KEPT_KINDS

    def row(self, name: bytes) -> RequestRow | None:
        """Return the request of this name, or None."""
        for row in self.engine.request_list():
            if self.shows(row) and b'%d' % row.number == name:
                return row
        return None

    async def _entry(self, row: RequestRow) -> EntryAttributes:
        place = self.namespace.place(nodeids.control_node(self.entry, row.number))
        assert isinstance(place, RequestPlace)
        return await place.describe_request(row)


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
        """Return (uid, gid) of the deleted tree's top directory; the store's owner if that is unknown."""
        if row.owner is not None:
            return row.owner  # of what is condemned nothing is read any more
        tree = None if row.kind not in KEPT_KINDS else self.engine.snapshot_view(row.view)
        if tree is None:
            return self.namespace.owner
        try:
            inode = await tree.inode(limits.INO_ROOT)
        except SnapfsError:  # a damaged tree must not make the listing unreadable
            return self.namespace.owner
        return inode.uid, inode.gid


class RequestFile(RequestPlace, TextFile):
    """`.snapfs/trash/ID/request` or `.snapfs/pending/ID`."""

    async def describe_request(self, row: RequestRow) -> EntryAttributes:
        size = len(self._render(row))
        return self.describe(stat.S_IFREG | 0o440, await self.owner(row), row.requested_ns, size)

    async def text(self) -> bytes:
        return self._render(self.request())

    def _render(self, row: RequestRow) -> bytes:
        head = self.engine.head_of_volume(row.volume)
        catalog = self.engine.store.catalog
        rests = None if row.batch is None else of_batch(catalog, row.batch)
        text = request_text(row, None if head is None else head.name, rests)
        return text.encode('utf-8', 'surrogateescape')


def request_text(row: RequestRow, volume: str | None, rests: Resting | None = None) -> str:
    """Return what a person wants to know of a request. `volume`: what its volume is called now, if any;
    `rests`: the batch that it is in."""
    was = row.volume_name
    what = {
        SNAPSHOT: f'snapshot {was}@{row.name}',
        VOLUME: f'volume {was}',
    }[row.kind]
    lines = [f'request: {row.number}', f'kind: {row.kind}', f'what: {what}']
    lines += [f'requested: {utc_text(row.requested_ns)}', f'by: {row.who}']
    lines.append(f'bytes: {"unknown" if row.bytes is None else row.bytes}')
    if rests is not None:
        lines += [f'batch: {rests.row.number}', f'state: {rests.state}', *times(rests)]
        if rests.row.state == CONFIRMED:
            return '\n'.join(lines) + '\n'
    if row.kind == SNAPSHOT and volume is not None:
        lines.append(f"take back: mv '.snapfs/trash/{row.number}' '{volume}/.snapshots/{row.name}'")
    if row.kind == VOLUME:
        lines.append(f"take back: mv '.snapfs/trash/{row.number}' '{was}'")
    return '\n'.join(lines) + '\n'


def times(rests: Resting) -> list[str]:
    """Return since when a batch rests, and when its bytes can come back at the earliest."""
    lines = []
    if rests.row.quarantined_ns is not None:
        lines.append(f'in quarantine since: {utc_text(rests.row.quarantined_ns)}')
    if rests.earliest_ns is not None and rests.row.state != CONFIRMED:
        lines.append(f'freed at the earliest: {utc_text(rests.earliest_ns)}')
    return lines
