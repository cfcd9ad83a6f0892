"""Batches: grace, confirmation, receipts and freeing, and every guard before a row is gone."""

from __future__ import annotations

import pytest

from snapfs import limits
from snapfs.collect.approvals import GRACE, approve
from snapfs.collect.batches import Recounted
from snapfs.collect.configuration import change
from snapfs.collect.states import CONFIRMED, FREED, RESTORED, BatchRow, batch
from snapfs.errors import Corrupt, Held
from snapfs.format.records import RecordKind
from tests.unit.collect.batch_kit import (
    HOUR_NS,
    add_chunks,
    all_rows,
    commit,
    confirmed,
    ids_in,
    nothing,
    pass_time,
    plan_for,
    quarantined,
    recount_2,
    request,
)


# --- grace and confirmation ------------------------------------------------------------------------------
def test_nothing_is_confirmed_before_its_grace_is_over(batch_store, batches, clock, ids):
    row = quarantined(batch_store, batches, ids[:4])
    receipt = batches.write_receipt(row.number)
    pass_time(batch_store, clock, row.grace_ns / 1e9 - 1)
    with pytest.raises(Held, match='1 s are left'):
        batches.confirm(row.number, receipt, recount_2(batch_store, clock))
    early = recount_2(batch_store, clock)
    pass_time(batch_store, clock, 1.01)
    # The grace is over, but the recount began before that: whoever wrote meanwhile was not counted.
    with pytest.raises(Held, match='not over when the recount began'):
        batches.confirm(row.number, receipt, early)
    batches.confirm(row.number, receipt, recount_2(batch_store, clock))


def test_a_wall_clock_that_jumps_ends_no_grace(batch_store, batches, clock, ids):
    row = quarantined(batch_store, batches, ids[:4])
    receipt = batches.write_receipt(row.number)
    for years in (1, -2, 10):
        batch_store.world.jump(years * 365 * 86_400)
        clock.tick()
        clock.save()
        with pytest.raises(Held, match='are left'):
            batches.confirm(row.number, receipt, recount_2(batch_store, clock))


def test_a_recount_in_the_epoch_of_the_quarantine_confirms_nothing(batch_store, batches, clock, ids):
    row = quarantined(batch_store, batches, ids[:4])
    receipt = batches.write_receipt(row.number)
    pass_time(batch_store, clock, row.grace_ns / 1e9)
    same = Recounted(row.quarantined_epoch, clock.now_ns, {})
    with pytest.raises(Held, match='no recount has begun since a commit'):
        batches.confirm(row.number, receipt, same)
    future = Recounted(batch_store.catalog.epoch + 1, clock.now_ns, {})
    with pytest.raises(Held, match='no recount has begun since a commit'):
        batches.confirm(row.number, receipt, future)


def test_a_recount_that_claims_to_have_begun_in_the_future_confirms_nothing(batch_store, batches, clock, ids):
    row = quarantined(batch_store, batches, ids[:4])
    commit(batch_store)
    lie = Recounted(batch_store.catalog.epoch, clock.now_ns + row.grace_ns, {})
    with pytest.raises(Held, match='between its quarantine and now'):
        batches.confirm(row.number, batches.write_receipt(row.number), lie)


def test_an_approval_of_exactly_this_plan_stands_in_for_the_time_and_for_nothing_else(
    batch_store, batches, clock, ids
):
    store = batch_store
    one, two = (quarantined(store, batches, part) for part in (ids[:3], ids[3:6]))
    plan = batches.files.plan(one.number, one.digest)
    approve(store.catalog, store.audit, plan, GRACE, 'ann', (1, clock.now_ns))
    receipts = {row.number: batches.write_receipt(row.number) for row in (one, two)}
    with pytest.raises(Held, match='are left'):
        batches.confirm(two.number, receipts[two.number], recount_2(store, clock))
    with pytest.raises(Held, match='no recount has begun'):
        same = Recounted(one.quarantined_epoch, clock.now_ns, {})
        batches.confirm(one.number, receipts[one.number], same)
    row = batches.confirm(one.number, receipts[one.number], recount_2(store, clock))
    assert (row.state, row.released_by) == (CONFIRMED, 'ann')


def test_an_approval_that_has_expired_frees_nothing_early(batch_store, batches, clock, ids):
    store = batch_store
    change(store.catalog, store.audit, 'approval', '1h', 'ann')
    change(store.catalog, store.audit, 'grace-dropped', '1d', 'ann')
    row = quarantined(store, batches, ids[:3])
    plan = batches.files.plan(row.number, row.digest)
    approve(store.catalog, store.audit, plan, GRACE, 'ann', (1, clock.now_ns))
    pass_time(store, clock, HOUR_NS / 1e9 + 1)
    with pytest.raises(Held, match='are left'):
        batches.confirm(row.number, batches.write_receipt(row.number), recount_2(store, clock))


def test_a_shorter_grace_set_later_does_not_shorten_what_rests(batch_store, batches, clock, ids):
    store = batch_store
    row = quarantined(store, batches, ids[:3])
    change(store.catalog, store.audit, 'grace-dropped', '10m', 'ann')
    pass_time(store, clock, 1800)
    with pytest.raises(Held, match='are left'):
        batches.confirm(row.number, batches.write_receipt(row.number), recount_2(store, clock))


def test_a_receipt_that_is_not_whole_confirms_nothing(batch_store, batches, clock, ids):
    store = batch_store
    row = quarantined(store, batches, ids[:4])
    receipt = batches.write_receipt(row.number)
    batches.drop_from_batch(row.number, ids[:1], 'why')
    pass_time(store, clock, row.grace_ns / 1e9)
    with pytest.raises(Corrupt, match='the receipt lists 4 of 3 chunks'):
        batches.confirm(row.number, receipt, recount_2(store, clock))
    with pytest.raises(Corrupt, match='not the one that the catalog names'):
        batches.confirm(row.number, bytes(32), recount_2(store, clock))
    batches.confirm(row.number, batches.write_receipt(row.number), recount_2(store, clock))


def test_a_batch_that_rested_through_an_alarm_is_restored_and_never_freed(batch_store, batches, clock, ids):
    store = batch_store
    before = quarantined(store, batches, ids[:4])
    incident = store.catalog.incident_add(
        'collector', 'an alarm that could not restore', store.world.time_ns()
    )
    store.catalog.incident_acknowledge(incident.number, 'ann', 1)
    after = quarantined(store, batches, ids[4:8])
    with pytest.raises(Held, match='rested when incident 1 was opened'):
        confirmed(store, batches, clock, before.number)
    assert [row.number for row in batches.restore_suspects()] == [before.number]
    assert ids_in(store, 'quarantine') == ids[4:8]
    assert batches.restore_suspects() == []
    assert confirmed(store, batches, clock, after.number).state == CONFIRMED


def test_an_opening_restores_what_rested_through_an_alarm(batch_store, batches, ids):
    row = quarantined(batch_store, batches, ids[:4])
    batch_store.catalog.incident_add('collector', 'an alarm', batch_store.world.time_ns())
    assert batches.recover() == []
    assert batch(batch_store.catalog, row.number).state == RESTORED


def test_a_quarantine_that_lost_a_row_confirms_nothing(batch_store, batches, clock, ids):
    store = batch_store
    row = quarantined(store, batches, ids[:4])
    receipt = batches.write_receipt(row.number)
    with store.catalog.transaction() as db:  # what no step of ours does
        db.execute('DELETE FROM quarantine WHERE id = ?', (ids[0],))
    pass_time(store, clock, row.grace_ns / 1e9)
    with pytest.raises(AssertionError, match='P8: batch 1 holds'):
        batches.confirm(row.number, receipt, recount_2(store, clock))


def test_more_chunks_in_quarantine_than_were_planned_end_no_move(batch_store, batches, ids):
    number = request(batch_store, ids)
    plan = plan_for(batch_store, batches, [number], ids[:2])
    batches.begin(plan)
    batches.quarantine_slice(plan.batch, ids[:3], nothing)
    with pytest.raises(Corrupt, match='3 chunks are in quarantine, 2 were planned'):
        batches.finish_quarantine(plan.batch, 0)


def test_an_altered_plan_confirms_nothing(batch_store, batches, clock, ids):
    row = quarantined(batch_store, batches, ids[:4])
    receipt = batches.write_receipt(row.number)
    path = batches.files.path(row.number, 'plan.json')
    path.write_bytes(path.read_bytes().replace(b'"second_person":false', b'"second_person":true'))
    pass_time(batch_store, clock, row.grace_ns / 1e9)
    with pytest.raises(Corrupt, match=r'plan\.json has been altered'):
        batches.confirm(row.number, receipt, recount_2(batch_store, clock))


# --- free ------------------------------------------------------------------------------------------------
def test_a_chunk_that_lies_elsewhere_than_its_receipt_says_is_not_freed(batch_store, batches, clock, ids):
    store = batch_store
    row = quarantined(store, batches, ids[:4])
    row = confirmed(store, batches, clock, row.number)
    (rows,) = batches.files.receipt(row.number, row.receipt, row.digest)
    for wrong in ({'offset': 60}, {'stored_length': 1}, {'pack_name': bytes(16)}):
        with pytest.raises(Corrupt, match=r'P8.*lies elsewhere'):
            batches.free_slice(row.number, [rows[0]._replace(**wrong), *rows[1:]])
    assert ids_in(store, 'freed') == []
    assert batches.free_slice(row.number, rows[:2]) == 2
    assert batches.free_slice(row.number, rows) == 2
    assert batches.free_slice(row.number, rows) == 0
    assert batch(store.catalog, row.number).freed == 4


def test_a_record_in_use_is_not_freed(batch_store, batches, clock, ids):
    store = batch_store
    row = quarantined(store, batches, ids[:2])
    with store.catalog.transaction() as db:  # what no step of ours does
        db.execute(
            'INSERT INTO chunk SELECT id, pack, offset, stored, plain, codec, kind, epoch FROM quarantine '
            'WHERE id = ?', (ids[0],),
        )  # fmt: skip
    confirmed(store, batches, clock, row.number)
    with pytest.raises(Corrupt, match=r'P1.*in use'):
        batches.free_all(row.number)
    assert ids_in(store, 'freed') == []


def test_a_fresh_copy_elsewhere_is_none_of_the_batchs_business(batch_store, batches, clock, ids):
    store = batch_store
    row = quarantined(store, batches, ids)
    again = add_chunks(store, 1, 10)
    assert again == ids
    confirmed(store, batches, clock, row.number)
    batches.free_all(row.number)
    batches.finish(row.number, ())
    assert ids_in(store, 'chunk') == ids
    assert ids_in(store, 'freed') == ids
    store.chunks.forget(ids)
    assert len(store.chunks.get_many(ids)) == 10


def test_a_batch_that_has_not_freed_everything_is_not_finished(batch_store, batches, clock, ids):
    row = quarantined(batch_store, batches, ids[:4])
    row = confirmed(batch_store, batches, clock, row.number)
    (rows,) = batches.files.receipt(row.number, row.receipt, row.digest)
    batches.free_slice(row.number, rows[:3])
    with pytest.raises(AssertionError, match='1 chunks are not freed'):
        batches.finish(row.number, ())
    with batch_store.catalog.transaction() as db:
        db.execute('DELETE FROM quarantine')
    with pytest.raises(AssertionError, match=r'P8.*3 of 4'):
        batches.finish(row.number, ())


def test_a_huge_request_is_forgotten_and_returned_in_slices(batch_store, batches, clock, ids, monkeypatch):
    store = batch_store
    monkeypatch.setattr(limits, 'INSERT_ROWS_MAX', 2)
    row = quarantined(store, batches, ids)
    assert len(all_rows(store)['request_part']) == 5
    confirmed(store, batches, clock, row.number)
    batches.free_all(row.number)
    monkeypatch.setattr(limits, 'BATCH_SLICE_PARTS', 2)
    monkeypatch.setattr(limits, 'BATCH_SLICE_ROWS_MAX', 4)
    batches.finish(row.number, ids)
    (back,) = store.registry.requests()
    assert store.registry.request_part(back.number).chunks == tuple(ids)


def test_a_batch_without_chunks_goes_the_whole_way(batch_store, batches, clock, ids):
    number = request(batch_store, ids[:2])
    plan = plan_for(batch_store, batches, [number], [])
    batches.begin(plan)
    assert batches.quarantine_slice(plan.batch, [], nothing).moved == ()
    batches.finish_quarantine(plan.batch, clock.now_ns)
    confirmed(batch_store, batches, clock, plan.batch)
    batches.free_all(plan.batch)
    assert batches.finish(plan.batch, ids[:2]).state == FREED


def test_quarantine_is_blind_to_writers_and_open_to_readers(batch_store, batches, ids):
    store = batch_store
    alarms = []
    store.chunks.on_condemned = lambda id, table: alarms.append((id, table))
    quarantined(store, batches, ids[:1])
    store.chunks.forget(ids)
    stored = store.chunks.stored_bytes
    plain = store.chunks.get(ids[0])
    assert alarms == [(ids[0], 'quarantine')]
    assert store.chunks.put_batch(RecordKind.DATA, [plain]) == ids[:1]
    assert store.chunks.stored_bytes > stored


def test_one_content_may_rest_in_two_batches_and_each_keeps_to_its_own(batch_store, batches, clock, ids):
    store = batch_store
    one = quarantined(store, batches, ids[:3])
    assert add_chunks(store, 1, 10) == ids
    two = quarantined(store, batches, ids[:3])
    places = store.catalog.query('SELECT batch, pack, offset FROM quarantine ORDER BY 1, 2, 3')
    assert [batch for batch, _, _ in places] == [1, 1, 1, 2, 2, 2]
    assert batches.drop_from_batch(one.number, ids[:1], 'mentioned') == 1
    assert len(ids_in(store, 'quarantine')) == 5
    confirmed(store, batches, clock, one.number)
    assert batches.free_all(one.number).freed == 2
    batches.finish(one.number, ())
    assert store.catalog.query('SELECT count(*) FROM quarantine WHERE batch = 2') == [(3,)]
    batches.restore(two.number, 'back')
    assert ids_in(store, 'chunk') == ids
    assert ids_in(store, 'freed') == ids[1:3]


def test_a_slip_in_the_sum_of_the_grace_frees_nothing_early(batch_store, batches, clock, ids, monkeypatch):
    """A mutant: the end of the grace lay before its beginning."""
    store = batch_store
    row = quarantined(store, batches, ids[:3])
    receipt = batches.write_receipt(row.number)
    monkeypatch.setattr(
        BatchRow, 'due_trusted_ns', property(lambda one: one.quarantined_trusted_ns - one.grace_ns)
    )
    with pytest.raises(Held, match='is QUARANTINED'):
        batches.confirm(row.number, receipt, recount_2(store, clock))
    assert ids_in(store, 'quarantine') == sorted(ids[:3])
