"""L4 overview: what a person wants to know of batches on their way, read only. Any thread.

The earliest time is told in time of day, although graces are measured in trusted time (clock.py): it is the
time of day at which trusted time gets there if the daemon runs from now on and no clock jumps. Otherwise it
will be later, never earlier."""

from __future__ import annotations

from dataclasses import dataclass

from snapfs.collect.states import CONFIRMED, PLANNED, QUARANTINED, BatchRow, batches
from snapfs.store.catalog import Catalog
from snapfs.store.rows import decode_name

ON_THE_WAY = (PLANNED, QUARANTINED, CONFIRMED)
NAMES_MAX = 100  # of one batch: commits make thousands of requests


@dataclass(frozen=True, slots=True)
class Resting:
    """A batch that is neither freed nor restored. `requests`: numbers and names of those in it, the first
    NAMES_MAX; `count`: all of them. `earliest_ns`: when its bytes can come back, in ns since 1970; None
    before it is in quarantine."""

    row: BatchRow
    requests: tuple[tuple[int, str], ...]
    count: int
    earliest_ns: int | None

    @property
    def state(self) -> str:
        """Where it is, in words."""
        if self.row.restoring:
            return f'going back: {self.row.reason}'
        words = {
            PLANNED: 'on its way into quarantine',
            QUARANTINED: 'in quarantine',
            CONFIRMED: 'being freed: it is too late to take it back',
        }
        return words[self.row.state]


def on_the_way(catalog: Catalog) -> list[Resting]:
    """Return the batches that are neither freed nor restored, oldest first."""
    return [_resting(catalog, row) for row in batches(catalog, *ON_THE_WAY)]


def of_batch(catalog: Catalog, number: int) -> Resting | None:
    """Return one of these, or None."""
    return next(
        (_resting(catalog, row) for row in batches(catalog, *ON_THE_WAY) if row.number == number), None
    )


def _resting(catalog: Catalog, row: BatchRow) -> Resting:
    found = catalog.query(
        'SELECT number, kind, volume_name, name FROM request WHERE batch = ? ORDER BY number LIMIT ?',
        (row.number, NAMES_MAX),
    )
    count = catalog.query('SELECT count(*) FROM request WHERE batch = ?', (row.number,))[0][0]
    requests = tuple(
        (number, request_title(kind, decode_name(volume), decode_name(name)))
        for number, kind, volume, name in found
    )
    return Resting(row, requests, count, earliest_ns(catalog, row))


def request_title(kind: str, volume: str, name: str) -> str:
    """Return what a request is about, in words."""
    if kind == 'snapshot':
        return f'snapshot {volume}@{name}'
    return f'{kind} {volume}' if volume else kind


def earliest_ns(catalog: Catalog, row: BatchRow) -> int | None:
    """Return when a batch's bytes can come back at the earliest, in ns since 1970."""
    if row.due_trusted_ns is None:
        return None
    trusted, wall = (catalog.setting(key) for key in ('trusted_ns', 'trusted_wall_ns'))
    return wall + max(0, row.due_trusted_ns - trusted)
