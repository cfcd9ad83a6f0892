"""What the tests of batches share: chunks, requests and plans, made without a tree."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from snapfs.collect import roots
from snapfs.collect.batches import Batches, Recounted
from snapfs.collect.clock import TrustedClock
from snapfs.collect.configuration import load
from snapfs.collect.files import CONDEMNED, RETURNED
from snapfs.collect.plan import Counts, Found, Plan, make_plan
from snapfs.collect.states import BatchRow, batch
from snapfs.format.records import HEADER_BYTES, RecordKind
from snapfs.store.catalog import Commit, RequestPart
from snapfs.store.store import Store

HOUR_NS = 3600 * 10**9
DAY_NS = 24 * HOUR_NS
TABLES = ('chunk', 'quarantine', 'freed')


def add_chunks(store: Store, seed: int, count: int, size: int = 200) -> list[bytes]:
    """Put different contents and commit them; return their ids, ascending."""
    plains = [b'%d %d ' % (seed, n) + bytes(size) for n in range(count)]
    ids = store.chunks.put_batch(RecordKind.DATA, plains)
    commit(store)
    return sorted(ids)


def commit(store: Store, dropped: Sequence[RequestPart] = ()) -> int:
    """Commit everything put so far, and what was dropped."""
    store.chunks.sync()
    rows = store.chunks.commit_rows()
    sequence = store.journal.last_sequence
    change = Commit((), rows.chunks, rows.packs, dropped, sequence, store.world.time_ns())
    epoch = store.catalog.commit(change)
    store.chunks.committed(rows)
    return epoch


def request(store: Store, ids: Sequence[bytes]) -> int:
    """Let a commit drop these ids; return the number of its request."""
    volumes = store.registry.volumes()
    volume = volumes[0] if volumes else store.registry.volume_add('home', store.world.time_ns())
    commit(store, (RequestPart(volume.volume, tuple(ids), ()),))
    return store.catalog.setting('next_request') - 1


def all_rows(store: Store) -> dict[str, list[tuple[Any, ...]]]:
    """The three tables of chunks, and the requests."""
    found = {
        table: store.catalog.query(f'SELECT * FROM {table} ORDER BY id, pack, offset') for table in TABLES
    }
    found['request'] = store.catalog.query('SELECT * FROM request ORDER BY number')
    found['request_part'] = store.catalog.query('SELECT * FROM request_part ORDER BY request, part')
    return found


def ids_in(store: Store, table: str) -> list[bytes]:
    """The ids of one table, ascending."""
    return [row[0] for row in store.catalog.query(f'SELECT id FROM {table} ORDER BY id')]


def found_by_recount(
    store: Store, batches: Batches, numbers: Sequence[int], ids: Sequence[bytes], **changes: Any
) -> Found:
    """What recount 1 would say when it condemns `ids`; writes its two files."""
    number = batches.next_number()
    standing = roots.standing(store.catalog.query, frozenset(numbers))
    (count, stored), *_ = store.catalog.query('SELECT count(*), coalesce(sum(stored), 0) FROM chunk')
    sizes = dict(store.catalog.query('SELECT id, stored FROM chunk'))
    values: dict[str, Any] = {
        'horizon': store.catalog.epoch,
        'expected': standing,
        'roots': standing,
        'counts': Counts(len(standing), 0, 0, 0),
        'candidates': len(ids),
        'condemned': len(ids),
        'condemned_bytes': sum(sizes.get(id, 0) + HEADER_BYTES for id in ids),
        'condemned_digest': batches.files.write_ids(number, CONDEMNED, ids),
        'returned': 0,
        'returned_digest': batches.files.write_ids(number, RETURNED, ()),
        'kept': (),
        'request_bytes': {},
        'store_chunks': count,
        'store_bytes': stored + count * HEADER_BYTES,
    }
    return Found(**{**values, **changes})


def plan_for(
    store: Store, batches: Batches, numbers: Sequence[int], ids: Sequence[bytes], **changes: Any
) -> Plan:
    """A plan that condemns `ids` for these requests."""
    found = found_by_recount(store, batches, numbers, ids, **changes)
    requests = [row for row in store.registry.requests() if row.number in numbers]
    assert len(requests) == len(numbers)
    uuid, now_ns = store.superblock.uuid, store.world.time_ns()
    return make_plan(uuid, batches.next_number(), now_ns, requests, found, load(store.catalog))


def nothing(id: bytes) -> bool:
    """No chunk was put since."""
    return False


def quarantined(store: Store, batches: Batches, ids: Sequence[bytes], slice_rows: int = 4) -> BatchRow:
    """A batch that rests with exactly these chunks."""
    number = request(store, ids)
    plan = plan_for(store, batches, [number], ids)
    batches.begin(plan)
    for start in range(0, len(ids), slice_rows):
        batches.quarantine_slice(plan.batch, ids[start : start + slice_rows], nothing)
    return batches.finish_quarantine(plan.batch, store.catalog.setting('trusted_ns'))


def pass_time(store: Store, clock: TrustedClock, seconds: float) -> None:
    """Let time pass, and the trusted clock know it."""
    store.world.advance(seconds)  # type: ignore[attr-defined]
    clock.tick()
    clock.save()


def recount_2(store: Store, clock: TrustedClock) -> Recounted:
    """A recount 2 that begins now, after a commit, and finds nothing."""
    commit(store)
    return Recounted(store.catalog.epoch, clock.now_ns, {'mentions': 0})


def confirmed(store: Store, batches: Batches, clock: TrustedClock, number: int) -> BatchRow:
    """Bring a batch that rests to CONFIRMED, after its grace."""
    row = batch(store.catalog, number)
    pass_time(store, clock, row.grace_ns / 1e9)
    return batches.confirm(number, batches.write_receipt(number), recount_2(store, clock))
