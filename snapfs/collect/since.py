"""L4 since: what a new plan is compared with: the last plan that was carried out, and what was logged
since (L9). Blocking, reads only.

The last plan is read from its file against the digest in its batch's row, so nobody can lower what is
expected. Where something cannot be told, the comparison has less to explain a loss with, and the plan
waits for a person."""

from __future__ import annotations

from snapfs import limits
from snapfs.collect.files import BatchFiles
from snapfs.collect.plan import Certified, Plan, Since
from snapfs.collect.states import CONFIRMED, FREED, QUARANTINED, BatchRow, batches
from snapfs.store.rows import decode_name
from snapfs.store.store import Store

_COMMITS = ('dropped', 'returned')


def _files(store: Store) -> BatchFiles:
    return BatchFiles(store.disk, store.path, store.superblock.uuid)


def last_plan(store: Store) -> tuple[BatchRow, Plan] | None:
    """Return the last batch that was carried out, with its plan; None before the first. Corrupt when the
    plan is not the one of its row."""
    rows = [row for row in batches(store.catalog, FREED) if row.quarantined_epoch is not None]
    if not rows:
        return None
    last = max(rows, key=lambda row: (row.horizon, row.number))
    return last, _files(store).plan(last.number, last.digest)


def certified(store: Store) -> Certified | None:
    """Return what the last plan that was carried out saw."""
    found = last_plan(store)
    if found is None:
        return None
    plan = found[1]
    return Certified(plan.horizon, plan.roots, plan.store_bytes)


def since(store: Store, trusted_ns: int, grace_class: str) -> Since:
    """Return what explains a difference to `certified`, at the trusted time `trusted_ns`, for a plan of this
    class."""
    found = last_plan(store)
    number, horizon = (found[0].number, found[1].horizon) if found is not None else (0, 0)
    began = 0 if found is None or found[0].quarantined_epoch is None else found[0].quarantined_epoch
    rows = batches(store.catalog, QUARANTINED, CONFIRMED, FREED)
    later = [row for row in rows if row.quarantined_epoch is not None and row.quarantined_epoch >= began]
    files = _files(store)
    ended, names = set(), set()
    # A batch that rested when the last plan was made has freed what that plan still saw as roots.
    for row in [row for row in rows if row.state != QUARANTINED][-2 * limits.BATCHES_RESTING_MAX :]:
        if row.number != number:
            for request in files.plan(row.number, row.digest).requests:
                ended.add(request.identity)
                if request.kind in _COMMITS:
                    names.add(request.name)
    dropped = {
        volume
        for (volume,) in store.catalog.query(
            "SELECT DISTINCT volume FROM request WHERE kind IN ('dropped', 'returned') AND epoch >= ?",
            (horizon,),
        )
    }
    for volume, name in store.catalog.query('SELECT volume, name FROM volume'):
        if decode_name(name) in names:
            dropped.add(volume)
    day = [
        row
        for row in rows
        if row.grace_class == grace_class
        and row.quarantined_trusted_ns is not None
        and trusted_ns - row.quarantined_trusted_ns < limits.COLLECT_DAY_NS
    ]
    return Since(
        dropped=frozenset(dropped),
        ended=frozenset(ended),
        moved_bytes=sum(row.stored_bytes for row in later),
        day_bytes=sum(row.stored_bytes for row in day),
    )
