"""L5 control: `.snapfs`, where deletion and health can be read with ls and cat. Event loop only.

::

    .snapfs/health             begins with `ok`, or with the reason why not; then the figures of the store
    .snapfs/pending/           what waits to be collected (pending.py)
    .snapfs/trash/ID/          a deleted snapshot or volume that can still be taken back (trash.py)
    .snapfs/quarantine/N       a batch on its way: since when, what, and when it is freed (quarantine.py)
    .snapfs/verified           how much of each snapshot was verified, since when, and if it is damaged
    .snapfs/incidents/N/       what made the collector stop, with its evidence (evidence.py)

Nothing here is cached by the kernel: every name is asked for again, every text is rendered when its file is
opened.
"""

from __future__ import annotations

import stat
from datetime import UTC, datetime

from pyfuse3 import EntryAttributes

from snapfs.mount import nodeids
from snapfs.mount.attributes import place_attributes
from snapfs.mount.nodeids import Control
from snapfs.mount.places import COOKIE_FIRST, Place, PlaceEntry, TextFile, directory_mode
from snapfs.store.rows import SnapshotRow
from snapfs.store.verified import Verified

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
    NAMES = {
        b'health': Control.HEALTH,
        b'trash': Control.TRASH,
        b'pending': Control.PENDING,
        b'incidents': Control.INCIDENTS,
        b'quarantine': Control.QUARANTINE,
        b'verified': Control.VERIFIED,
    }

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


class VerifiedFile(ControlPlace, TextFile):
    """`.snapfs/verified`: a line for each snapshot: how much of it was verified, since when, and if it is
    damaged."""

    async def attributes(self) -> EntryAttributes:
        size = len(await self.text())
        return self.describe(stat.S_IFREG | 0o444, self.namespace.owner, self.namespace.started_ns, size)

    async def text(self) -> bytes:
        engine, lines = self.engine, []
        coverage = engine.coverage()
        for volume in sorted(engine.heads()):
            for row in engine.snapshot_list(volume):
                lines.append(
                    f'{volume}@{row.name}: {verified_text(coverage.of(row.epoch))}; {damaged_text(row)}'
                )
        return ''.join(f'{line}\n' for line in lines).encode('utf-8', 'surrogateescape')


def verified_text(verified: Verified) -> str:
    """Return how much of something was verified, and since when."""
    if verified.since_ns is None:
        return 'not verified yet'
    return f'verified: {verified.percent} %, the oldest part at {utc_text(verified.since_ns)}'


def damaged_text(row: SnapshotRow) -> str:
    """Return whether a snapshot is known to be damaged."""
    return 'no damage known' if row.damaged_ns is None else f'DAMAGED, seen at {utc_text(row.damaged_ns)}'


def health_text(status: dict[str, object], unexpected_errors: int) -> str:
    """Return the text of `health`: one line of verdict, then a line per figure."""
    verdict = str(status['health'])
    if verdict == 'ok' and unexpected_errors:
        verdict = (
            f'errors: {unexpected_errors} requests met a bug since the mount; the log has the tracebacks'
        )
    return '\n'.join([verdict, *status_lines('', status)]) + '\n'


def status_lines(prefix: str, value: object) -> list[str]:
    """Return nested figures as lines `a.b: c`; of a list its length, then a line or more for each entry."""
    lines = [f'{prefix}: {len(value)}'] if isinstance(value, list) else []
    if isinstance(value, list):
        value = {str(number): one for number, one in enumerate(value, start=1)}
    if not isinstance(value, dict):
        return [f'{prefix}: {value}']
    for key, below in value.items():
        lines += status_lines(f'{prefix}.{key}' if prefix else key, below)
    return lines


def utc_text(time_ns: int) -> str:
    """Return a time as `2026-11-23 23:59:59 UTC`."""
    return datetime.fromtimestamp(time_ns // NANOSECONDS, UTC).strftime('%Y-%m-%d %H:%M:%S UTC')
