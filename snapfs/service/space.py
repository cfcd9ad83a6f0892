"""L6 space: how many bytes are held by whom, and how many would come back. Event loop only.

Exact figures come from a recount that changes nothing: shared data counts as kept. It runs in a worker,
while no batch moves. Cheap figures are sums over the catalog."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from snapfs.collect.overview import on_the_way
from snapfs.errors import SnapfsError
from snapfs.format.records import HEADER_BYTES
from snapfs.service import shapes

if TYPE_CHECKING:
    from snapfs.collect.recount_values import Recount
    from snapfs.service.collecting import Collecting
    from snapfs.store.catalog import Catalog
    from snapfs.store.rows import SnapshotRow

Object = dict[str, Any]


async def overview(collecting: Collecting) -> Object:
    """Return what the collector is about, and the figures that cost little."""
    catalog = collecting.engine.store.catalog
    resting = await collecting.world.run_in_thread(on_the_way, catalog)
    return {
        'stopped': collecting.collector.incidents.latched(),
        'error': collecting.last.get('error'),
        'moving': moving(collecting),
        'waiting': [shapes.waiting(one) for one in collecting.waiting.values()],
        'batches': [shapes.resting(one) for one in resting],
        'space': await collecting.world.run_in_thread(sums, catalog),
    }


def moving(collecting: Collecting) -> Object | None:
    """Return what moves now, or None."""
    move = collecting.move
    if move is None:
        return None
    done, total = move.progress
    return {
        'what': move.what, 'stage': move.stage, 'batch': move.batch, 'requests': sorted(move.requests),
        'done': done, 'total': total,
    }  # fmt: skip


def sums(catalog: Catalog) -> Object:
    """Return bytes and counts by the tables alone; bytes of chunks count their record headers. Blocking."""
    found: Object = {}
    for table, name in (('chunk', 'live'), ('quarantine', 'quarantined'), ('freed', 'freed')):
        count, stored = catalog.query(f'SELECT count(*), coalesce(sum(stored), 0) FROM {table}')[0]
        found[f'{name}_chunks'], found[f'{name}_bytes'] = count, stored + count * HEADER_BYTES
    found['packs_bytes'] = sum(row.bytes for row in catalog.packs())
    # Of records without a row: freed, replaced by a repack, or left by a crash.
    found['reclaimable_bytes'] = max(
        0, found['packs_bytes'] - found['live_bytes'] - found['quarantined_bytes']
    )
    rows = catalog.query('SELECT kind, count(*) FROM request WHERE batch IS NULL GROUP BY kind ORDER BY kind')
    found['pending_requests'] = {kind: count for kind, count in rows}  # noqa: C416
    return found


async def exact(collecting: Collecting) -> Object:
    """Return the sums, and by recounts what all pending requests would free, and what leaked."""
    from snapfs.collect.leaks import rowless

    store, thread = collecting.engine.store, collecting.world.run_in_thread
    requests = [row.number for row in await thread(store.registry.requests) if row.batch is None]
    pending = {'requests': len(requests), 'chunks': 0, 'bytes': 0}
    if requests:
        found = await collecting.what_if([('request', number) for number in requests])
        pending |= {'chunks': found.condemned, 'bytes': found.condemned_bytes}
    leaked = await collecting.what_if([], 'leaks')
    collecting.last['leaks'] = shapes.figures(leaked)
    return {
        **await thread(sums, store.catalog),
        'pending': pending,
        'leaked': {**shapes.figures(leaked), 'rowless': await thread(rowless, store)},
    }


async def freed_by(collecting: Collecting, rows: list[SnapshotRow]) -> Recount:
    """Return the recount of what deleting these snapshots together would free."""
    return await collecting.what_if([('snapshot', row.number) for row in rows])


async def alone(collecting: Collecting, row: SnapshotRow) -> Object:
    """Return what a snapshot alone holds; when that cannot be told, why. Showing a snapshot never fails for
    it."""
    try:
        found = await freed_by(collecting, [row])
    except SnapfsError as error:
        return {'chunks': None, 'bytes': None, 'why': error.line()}
    return {**shapes.figures(found), 'why': None}
