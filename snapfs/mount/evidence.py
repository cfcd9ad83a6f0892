"""L5 evidence: `.snapfs/incidents`, what made the collector (or all writing) stop. Event loop;
files are read in a thread.

::

    .snapfs/incidents/N/state  since when, why, and who has acknowledged it
    .snapfs/incidents/N/*.json the evidence, as it was written when the latch fell

For the store's owner alone: evidence names what is in everybody's volumes.
"""

from __future__ import annotations

import errno
import stat
from typing import TYPE_CHECKING

from pyfuse3 import EntryAttributes

from snapfs.collect.incidents import Incident, Incidents
from snapfs.errors import Refused
from snapfs.mount import nodeids
from snapfs.mount.control import ControlPlace, utc_text
from snapfs.mount.nodeids import Control
from snapfs.mount.places import COOKIE_FIRST, PlaceEntry, TextFile, byte_name, directory_mode

if TYPE_CHECKING:
    from snapfs.store.rows import IncidentRow

STATE_NAME = b'state'
FILE_BITS = 8  # of the number of a file: incident number, then position; 0 is `state`
FILE_MASK = (1 << FILE_BITS) - 1


class EvidencePlace(ControlPlace):
    """Something below `.snapfs/incidents`."""

    @property
    def incidents(self) -> Incidents:
        """The incidents of the store, to be read."""
        return Incidents(self.engine.store, tuple)

    def file_node(self, number: int, position: int) -> int:
        """Return the node id of a file of an incident."""
        return nodeids.control_node(Control.INCIDENT_FILE, number << FILE_BITS | position)


class IncidentsDirectory(EvidencePlace):
    """`.snapfs/incidents`."""

    async def attributes(self) -> EntryAttributes:
        return self.describe(directory_mode(0o755), self.namespace.owner, self.namespace.started_ns)

    async def lookup(self, name: bytes) -> EntryAttributes | None:
        return next((one.attributes for one in await self.entries(0) if one.name == name), None)

    async def entries(self, after: int) -> list[PlaceEntry]:
        return [
            PlaceEntry(COOKIE_FIRST + row.number, b'%d' % row.number, self._entry(row))
            for row in self.incidents.listed(in_force=False)
            if COOKIE_FIRST + row.number > after
        ]

    def _entry(self, row: IncidentRow) -> EntryAttributes:
        node = nodeids.control_node(Control.INCIDENT, row.number)
        return IncidentDirectory(self.namespace, node).describe_incident(row)


class IncidentDirectory(EvidencePlace):
    """`.snapfs/incidents/N`."""

    above = Control.INCIDENTS

    async def attributes(self) -> EntryAttributes:
        return self.describe_incident(self._found().row)

    def describe_incident(self, row: IncidentRow) -> EntryAttributes:
        """Return the attributes of this directory for its incident, which the caller has read already."""
        return self.describe(directory_mode(0o550), self.namespace.owner, row.opened_ns)

    async def lookup(self, name: bytes) -> EntryAttributes | None:
        return next((one.attributes for one in await self.entries(0) if one.name == name), None)

    async def entries(self, after: int) -> list[PlaceEntry]:
        found = self._found()
        names = [STATE_NAME, *map(byte_name, found.files)][: FILE_MASK + 1]
        return [
            PlaceEntry(COOKIE_FIRST + position, name, await place.attributes())
            for position, name in enumerate(names)
            if COOKIE_FIRST + position > after
            for place in (EvidenceFile(self.namespace, self.file_node(found.row.number, position)),)
        ]

    def _found(self) -> Incident:
        return _incident(self.incidents, nodeids.decode_node(self.node).ino)


class EvidenceFile(EvidencePlace, TextFile):
    """`.snapfs/incidents/N/state`, or a file of evidence."""

    async def attributes(self) -> EntryAttributes:
        found, position = self._found()
        if position == 0:
            size = len(_state(found.row))
        else:
            size = self.engine.store.disk.size(found.directory / found.files[position - 1])
        return self.describe(stat.S_IFREG | 0o440, self.namespace.owner, found.row.opened_ns, size)

    async def parent_node(self) -> int:
        return nodeids.control_node(Control.INCIDENT, nodeids.decode_node(self.node).ino >> FILE_BITS)

    async def text(self) -> bytes:
        found, position = self._found()
        if position == 0:
            return _state(found.row)
        name, read = found.files[position - 1], self.incidents.evidence
        return await self.engine.core.world.run_in_thread(read, found.row.number, name)

    def _found(self) -> tuple[Incident, int]:
        number = nodeids.decode_node(self.node).ino
        found, position = _incident(self.incidents, number >> FILE_BITS), number & FILE_MASK
        if position > len(found.files):
            raise Refused(errno.ESTALE)
        return found, position


def _incident(incidents: Incidents, number: int) -> Incident:
    try:
        return incidents.show(number)
    except Refused as error:
        raise Refused(errno.ESTALE) from error


def _state(row: IncidentRow) -> bytes:
    return incident_text(row).encode('utf-8', 'surrogateescape')


def incident_text(row: IncidentRow) -> str:
    """Return what a person wants to know of an incident."""
    what = {'store': 'all writing', 'collector': 'deletion'}[row.scope]
    lines = [f'incident: {row.number}', f'stops: {what}', f'since: {utc_text(row.opened_ns)}']
    lines.append(f'why: {" ".join(row.reason.split())}')
    if row.batch is not None:
        lines.append(f'batch: {row.batch}')
    if row.acknowledged_ns is None:
        lines.append(f'in force; when you have looked: snapfs incident ack {row.number}')
    else:
        lines.append(f'acknowledged: {utc_text(row.acknowledged_ns)} by {row.acknowledged_by}')
    return '\n'.join(lines) + '\n'
