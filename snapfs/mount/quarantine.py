"""L5 quarantine: `.snapfs/quarantine`, a text file for each batch that is on its way. Event loop only."""

from __future__ import annotations

import errno
import stat

from pyfuse3 import EntryAttributes

from snapfs.collect.overview import Resting, of_batch, on_the_way
from snapfs.errors import Refused
from snapfs.mount import nodeids
from snapfs.mount.control import ControlPlace
from snapfs.mount.nodeids import Control
from snapfs.mount.places import COOKIE_FIRST, PlaceEntry, TextFile, directory_mode
from snapfs.mount.requests import times


class Quarantine(ControlPlace):
    """`.snapfs/quarantine`."""

    async def attributes(self) -> EntryAttributes:
        return self.describe(directory_mode(0o755), self.namespace.owner, self.namespace.started_ns)

    async def lookup(self, name: bytes) -> EntryAttributes | None:
        return next((one.attributes for one in await self.entries(0) if one.name == name), None)

    async def entries(self, after: int) -> list[PlaceEntry]:
        found = []
        for rests in on_the_way(self.engine.store.catalog):
            number = rests.row.number
            if COOKIE_FIRST + number > after:
                place = BatchFile(self.namespace, nodeids.control_node(Control.BATCH, number))
                found.append(PlaceEntry(COOKIE_FIRST + number, b'%d' % number, place.describe_batch(rests)))
        return found


class BatchFile(ControlPlace, TextFile):
    """`.snapfs/quarantine/N`. For the store's owner: it names what others have deleted."""

    above = Control.QUARANTINE

    async def attributes(self) -> EntryAttributes:
        return self.describe_batch(self._found())

    def describe_batch(self, rests: Resting) -> EntryAttributes:
        """Return the attributes of this file for its batch, which the caller has read already."""
        since = rests.row.quarantined_ns or rests.row.planned_ns
        size = len(_text(rests))
        return self.describe(stat.S_IFREG | 0o440, self.namespace.owner, since, size)

    async def text(self) -> bytes:
        return _text(self._found())

    def _found(self) -> Resting:
        rests = of_batch(self.engine.store.catalog, nodeids.decode_node(self.node).ino)
        if rests is None:
            raise Refused(errno.ESTALE)
        return rests


def _text(rests: Resting) -> bytes:
    return batch_text(rests).encode('utf-8', 'surrogateescape')


def batch_text(rests: Resting) -> str:
    """Return what a person wants to know of a batch on its way."""
    row = rests.row
    lines = [f'batch: {row.number}', f'state: {rests.state}', f'class: {row.grace_class}', *times(rests)]
    lines += [f'chunks: {row.chunks}', f'bytes that come back: {row.stored_bytes}']
    lines.append(f'requests: {rests.count}')
    lines += [f'request {number}: {what}' for number, what in rests.requests]
    if rests.count > len(rests.requests):
        lines.append(f'and {rests.count - len(rests.requests)} more requests')
    if row.released_by is not None:
        lines.append(f'allowed to be freed early by: {row.released_by}')
    lines.append(f'digest: {row.digest.hex()}')
    return '\n'.join(lines) + '\n'
