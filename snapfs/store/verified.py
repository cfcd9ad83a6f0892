"""L2 verified: what the table `scrubbed` says of snapshots. Any thread.

A snapshot never changes, and its chunks lie in all slots alike. So the share of slots that were verified at
its epoch or later is the share of its chunks. Read is what the index names: that the index has lost a chunk,
fsck and the proof after each deletion find."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from snapfs import limits
from snapfs.store.catalog import Catalog


@dataclass(frozen=True, slots=True)
class Verified:
    """How much was verified: `slots` of SCRUB_SLOTS; `since_ns`: when the oldest of these was, or None."""

    slots: int
    since_ns: int | None

    @property
    def percent(self) -> int:
        """Return the share in per cent, rounded down: 100 means all of it."""
        return 100 * self.slots // limits.SCRUB_SLOTS


_WHOLE = 'SELECT epoch, verified_ns FROM scrubbed WHERE bad = 0'


class Coverage:
    """The table at one moment, for questions about many snapshots. About 100 KiB."""

    def __init__(self, catalog: Catalog) -> None:
        self._rows: Sequence[tuple[int, int]] = catalog.query(
            'SELECT epoch, verified_ns FROM scrubbed WHERE bad = 0'
        )

    def of(self, epoch: int) -> Verified:
        """Return how much of a snapshot of this epoch was verified."""
        times = [verified_ns for seen, verified_ns in self._rows if seen >= epoch]
        return Verified(len(times), min(times, default=None))
