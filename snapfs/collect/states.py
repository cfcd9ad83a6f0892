"""L4 states: the rows of batches and approvals as values, read only. Any thread.

PLANNED → QUARANTINED → CONFIRMED → FREED, or from the first two to RESTORED. A batch in the first two that
has a `reason` already is being restored: that goes on until it is done, whatever happens in between."""

from __future__ import annotations

import errno
import sqlite3
from dataclasses import dataclass
from typing import Any

from snapfs import limits
from snapfs.errors import Corrupt, Refused
from snapfs.store.catalog import Catalog
from snapfs.store.rows import check_row

PLANNED, QUARANTINED, CONFIRMED = 'PLANNED', 'QUARANTINED', 'CONFIRMED'
FREED, RESTORED = 'FREED', 'RESTORED'
RESTING = (PLANNED, QUARANTINED)  # these can be restored
ENDED = (FREED, RESTORED)


@dataclass(frozen=True, slots=True)
class BatchRow:
    """A row of the table `batch`; schema.py says what each column means. Times in ns, sizes in bytes."""

    number: int
    state: str
    grace_class: str
    horizon: int
    digest: bytes
    chunks: int
    stored_bytes: int
    grace_ns: int
    planned_ns: int
    quarantined_ns: int | None
    quarantined_trusted_ns: int | None
    quarantined_epoch: int | None
    released_by: str | None
    confirmed_ns: int | None
    receipt: bytes | None
    freed: int
    ended_ns: int | None
    reason: str | None

    @property
    def restoring(self) -> bool:
        """Whether its rows are on their way back."""
        return self.reason is not None and self.state in RESTING

    @property
    def due_trusted_ns(self) -> int | None:
        """The trusted time at which its grace ends; None before it is quarantined."""
        return None if self.quarantined_trusted_ns is None else self.quarantined_trusted_ns + self.grace_ns


def batch_row(values: tuple[Any, ...]) -> BatchRow:
    """Return a checked row of the batch table."""
    row = BatchRow(*values)
    # A page of the catalog that rotted may have anything in any column, whatever the schema says.
    whole = (row.number, row.horizon, row.chunks, row.stored_bytes, row.grace_ns, row.planned_ns, row.freed)
    good = all(type(value) is int for value in whole) and type(row.digest) is bytes
    if not good or not (isinstance(row.state, str) and isinstance(row.grace_class, str)):
        raise Corrupt(f'catalog: impossible row of batch {row.number}')
    sizes = (row.chunks, row.stored_bytes, row.grace_ns, row.freed)
    if len(row.digest) != limits.ID_BYTES or min(sizes) < 0 or row.freed > row.chunks:
        raise Corrupt(f'catalog: impossible row of batch {row.number}')
    rests = (row.quarantined_ns, row.quarantined_trusted_ns, row.quarantined_epoch)
    if row.state in (QUARANTINED, CONFIRMED, FREED) and None in rests:
        raise Corrupt(f'catalog: batch {row.number} is {row.state} and was never quarantined')
    if row.state in (CONFIRMED, FREED) and (
        not isinstance(row.receipt, bytes) or len(row.receipt) != limits.ID_BYTES
    ):
        raise Corrupt(f'catalog: batch {row.number} is {row.state} without a receipt')
    return row


def batches(catalog: Catalog, *states: str) -> list[BatchRow]:
    """Return the batches in these states (none given: all), oldest first."""
    rows = map(batch_row, catalog.query('SELECT * FROM batch ORDER BY number'))
    return [row for row in rows if not states or row.state in states]


def batch(catalog: Catalog, number: int) -> BatchRow:
    """Return one batch. Refused(ENOENT) when there is none of that number."""
    rows = catalog.query('SELECT * FROM batch WHERE number = ?', (number,))
    if not rows:
        raise Refused(errno.ENOENT, f'there is no batch {number}')
    return batch_row(rows[0])


def batch_inside(db: sqlite3.Connection, number: int) -> BatchRow | None:
    """Return one batch as the caller's transaction sees it."""
    row = db.execute('SELECT * FROM batch WHERE number = ?', (number,)).fetchone()
    return None if row is None else batch_row(row)


@dataclass(frozen=True, slots=True)
class ApprovalRow:
    """A person's word for one plan. It counts while trusted time is below `until_trusted_ns`."""

    digest: bytes
    what: str
    who: str
    given_ns: int
    until_trusted_ns: int


def approvals(catalog: Catalog, digest: bytes | None = None) -> list[ApprovalRow]:
    """Return the approvals of a plan, or all."""
    if digest is None:
        rows = catalog.query('SELECT * FROM approval ORDER BY given_ns')
    else:
        rows = catalog.query('SELECT * FROM approval WHERE digest = ? ORDER BY given_ns', (digest,))
    found = [ApprovalRow(*row) for row in rows]
    for one in found:
        check_row(one)
    return found
