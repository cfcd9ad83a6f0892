"""Batches: every step, its order, and every guard that keeps rows where they are."""

from __future__ import annotations

import dataclasses

import pytest

from snapfs import limits
from snapfs.collect import canary
from snapfs.collect.approvals import GRACE, approve
from snapfs.collect.batches import Batches, Recounted
from snapfs.collect.clock import TrustedClock
from snapfs.collect.configuration import change
from snapfs.collect.files import CONDEMNED
from snapfs.collect.states import CONFIRMED, FREED, PLANNED, QUARANTINED, RESTORED, batch
from snapfs.errors import Corrupt, Held, Latched
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


@pytest.fixture
def batches(batch_store):
    return Batches(batch_store)


@pytest.fixture
def clock(batch_store):
    return TrustedClock(batch_store.catalog, batch_store.world)


@pytest.fixture
def ids(batch_store):
    return add_chunks(batch_store, 1, 10)


def events(store):
    return [line.event['event'] for line in store.audit.lines()]


# --- the whole way ---------------------------------------------------------------------------------------
def test_a_batch_goes_the_whole_way_and_its_requests_with_it(batch_store, batches, clock, ids):
    store = batch_store
    row = quarantined(store, batches, ids[:7])
    assert (row.state, row.chunks) == (QUARANTINED, 7)
    assert ids_in(store, 'chunk') == ids[7:]
    assert ids_in(store, 'quarantine') == ids[:7]
    row = confirmed(store, batches, clock, row.number)
    assert row.state == CONFIRMED
    assert ids_in(store, 'quarantine') == ids[:7]
    assert batches.free_all(row.number).freed == 7
    assert ids_in(store, 'freed') == ids[:7]
    row = batches.finish(row.number, ids[8:])
    assert (row.state, row.ended_ns is not None) == (FREED, True)
    (back,) = store.registry.requests()
    assert (back.kind, back.origin, back.batch) == ('returned', row.number, None)
    assert store.registry.request_part(back.number).chunks == tuple(ids[8:])
    assert events(store) == ['batch-begin', 'batch-quarantined', 'batch-confirmed', 'batch-freed']
    store.audit.verify()
    assert batches.finish(row.number, ids) == row  # once more changes nothing
    assert len(store.registry.requests()) == 1


def test_the_audit_line_of_a_free_says_who_wanted_it_what_it_was_and_what_was_checked(
    batch_store, batches, clock, ids
):
    row = quarantined(batch_store, batches, ids[:3])
    row = confirmed(batch_store, batches, clock, row.number)
    (event,) = [line.event for line in batch_store.audit.lines() if line.event['event'] == 'batch-confirmed']
    assert event['digest'] == row.digest.hex()
    assert event['receipt'] == row.receipt.hex()
    assert (event['freed_chunks'], event['freed_bytes']) == (row.chunks, row.stored_bytes)
    assert event['checks'] == {'mentions': 0}
    assert event['requested_by'] == {'': 1}


def test_restoring_brings_every_row_and_request_back_as_it_was(batch_store, batches, ids):
    number = request(batch_store, ids[:6])
    before = all_rows(batch_store)
    plan = plan_for(batch_store, batches, [number], ids[:6])
    batches.begin(plan)
    batches.quarantine_slice(plan.batch, ids[:6], nothing)
    batches.finish_quarantine(plan.batch, 0)
    assert all_rows(batch_store) != before
    row = batches.restore(plan.batch, 'somebody wants it back')
    assert (row.state, row.reason) == (RESTORED, 'somebody wants it back')
    assert all_rows(batch_store) == before
    assert batches.restore(plan.batch, 'again') == row


def test_a_planned_batch_can_be_restored_half_way(batch_store, batches, ids):
    number = request(batch_store, ids)
    before = all_rows(batch_store)
    plan = plan_for(batch_store, batches, [number], ids)
    batches.begin(plan)
    batches.quarantine_slice(plan.batch, ids[:4], nothing)
    batches.restore(plan.batch, 'no more')
    assert all_rows(batch_store) == before


def test_a_chunk_stored_anew_keeps_its_new_location_when_its_batch_is_restored(batch_store, batches, ids):
    store = batch_store
    row = quarantined(store, batches, ids)
    add_chunks(store, 1, 3)  # the same contents as the first three
    fresh = store.catalog.query('SELECT * FROM chunk ORDER BY id')
    assert len(fresh) == 3
    batches.restore(row.number, 'back')
    assert ids_in(store, 'chunk') == ids
    assert ids_in(store, 'quarantine') == []
    assert set(fresh) <= set(store.catalog.query('SELECT * FROM chunk'))


def test_restoring_takes_as_many_slices_as_it_needs(batch_store, batches, ids, monkeypatch):
    row = quarantined(batch_store, batches, ids)
    other = quarantined(batch_store, batches, add_chunks(batch_store, 2, 5))
    monkeypatch.setattr(limits, 'BATCH_SLICE_ROWS_MAX', 3)
    batches.restore(row.number, 'back')
    assert ids_in(batch_store, 'chunk') == ids
    assert len(ids_in(batch_store, 'quarantine')) == 5
    assert batch(batch_store.catalog, other.number).state == QUARANTINED


def test_an_alarm_restores_every_batch_that_can_be(batch_store, batches, clock, ids):
    store = batch_store
    ended = quarantined(store, batches, ids[:2])
    confirmed(store, batches, clock, ended.number)
    batches.free_all(ended.number)
    batches.finish(ended.number, ())
    numbers = [quarantined(store, batches, part).number for part in (ids[2:4], ids[4:6])]
    assert [row.number for row in batches.restore_all('P7: a read')] == numbers
    assert ids_in(store, 'chunk') == ids[2:]
    assert batch(store.catalog, ended.number).state == FREED


# --- what stays ------------------------------------------------------------------------------------------
def test_chunks_put_since_the_horizon_stay_in_the_index(batch_store, batches, ids):
    number = request(batch_store, ids)
    plan = plan_for(batch_store, batches, [number], ids)
    batches.begin(plan)
    moved = batches.quarantine_slice(plan.batch, ids, lambda id: id in ids[2:5])
    assert moved.moved == tuple(ids[:2] + ids[5:])
    assert moved.excluded == tuple(ids[2:5])
    assert ids_in(batch_store, 'chunk') == ids[2:5]
    assert batches.finish_quarantine(plan.batch, 0).chunks == 7


def test_a_row_younger_than_the_horizon_stays_whoever_says_it_was_not_put(batch_store, batches, ids):
    number = request(batch_store, ids)
    young = add_chunks(batch_store, 2, 1)
    both = sorted(ids + young)
    horizon = batch_store.catalog.epoch - 1
    plan = plan_for(batch_store, batches, [number], both, horizon=horizon)
    batches.begin(plan)
    moved = batches.quarantine_slice(plan.batch, both, nothing)
    assert moved.excluded == tuple(young)
    assert ids_in(batch_store, 'chunk') == young


def test_a_slice_with_a_root_moves_nothing(batch_store, batches, ids):
    store = batch_store
    planted = canary.sow(store.chunks, store.world)
    commit(store)
    assert canary.enroll(store.catalog, planted, 1)
    number = request(store, ids)
    wrong = sorted([*ids, planted.root])
    plan = plan_for(store, batches, [number], wrong)
    batches.begin(plan)
    before = all_rows(store)
    with pytest.raises(Corrupt, match=r'P1.*root'):
        batches.quarantine_slice(plan.batch, wrong, nothing)
    assert all_rows(store) == before


def test_a_slice_with_an_id_that_has_no_row_moves_nothing(batch_store, batches, ids):
    number = request(batch_store, ids)
    wrong = sorted([*ids, b'x' * 32])
    plan = plan_for(batch_store, batches, [number], wrong, store_chunks=99)
    batches.begin(plan)
    before = all_rows(batch_store)
    with pytest.raises(Corrupt, match=r'P10.*1 chunks that have no row'):
        batches.quarantine_slice(plan.batch, wrong, nothing)
    assert all_rows(batch_store) == before


@pytest.mark.parametrize('odd', ['twice', 'unsorted', 'short', 'many'])
def test_a_slice_that_is_not_one_is_a_bug(batch_store, batches, ids, odd, monkeypatch):
    number = request(batch_store, ids)
    plan = plan_for(batch_store, batches, [number], ids)
    batches.begin(plan)
    wrong = {'twice': [ids[0], ids[0]], 'unsorted': ids[::-1], 'short': [b'x'], 'many': ids}[odd]
    if odd == 'many':
        monkeypatch.setattr(limits, 'BATCH_SLICE_ROWS_MAX', 9)
    with pytest.raises(AssertionError):
        batches.quarantine_slice(plan.batch, wrong, nothing)
    assert ids_in(batch_store, 'chunk') == ids


def test_chunks_that_leave_a_batch_go_back_and_are_requested_anew(batch_store, batches, clock, ids):
    store = batch_store
    row = quarantined(store, batches, ids)
    add_chunks(store, 1, 1)  # one of them has a fresh copy
    assert batches.drop_from_batch(row.number, ids[:3], 'a leftover mentions them') == 3
    assert set(ids[:3]) <= set(ids_in(store, 'chunk'))
    assert ids_in(store, 'quarantine') == ids[3:]
    (back,) = [row for row in store.registry.requests() if row.kind == 'returned']
    assert (back.batch, store.registry.request_part(back.number).chunks) == (None, tuple(ids[:3]))
    assert batches.drop_from_batch(row.number, ids[:3], 'again') == 0
    row = confirmed(store, batches, clock, row.number)
    assert row.chunks == 7
    assert batches.free_all(row.number).freed == 7
    batches.finish(row.number, ())
    assert [row.number for row in store.registry.requests()] == [back.number]


# --- begin -----------------------------------------------------------------------------------------------
def refused(store, batches, plan, error, match):
    before, number = all_rows(store), batches.next_number()
    lines = events(store)
    with pytest.raises(error, match=match):
        batches.begin(plan)
    assert all_rows(store) == before
    assert (batches.next_number(), events(store)) == (number, lines)


def test_no_batch_begins_when_a_request_of_its_plan_was_taken_back(batch_store, batches, ids):
    store = batch_store
    volume = store.registry.volume_add('other', 1)
    snapshot = store.registry.snapshot_add(volume.volume, 'a', 'ann', 1)
    wish = store.registry.snapshot_delete(snapshot.number, 'ann', 2)
    plan = plan_for(store, batches, [wish.number], ids)
    store.registry.snapshot_undelete(wish.number)
    refused(store, batches, plan, Held, 'was taken back')


def test_no_batch_begins_with_a_request_of_another_batch(batch_store, batches, ids):
    number = request(batch_store, ids)
    first = plan_for(batch_store, batches, [number], ids[:2])
    batches.begin(first)
    batches.quarantine_slice(first.batch, ids[:2], nothing)
    batches.finish_quarantine(first.batch, 0)
    second = dataclasses.replace(plan_for(batch_store, batches, [number], ids[2:]), made_ns=5)
    refused(batch_store, batches, second, Held, 'is in batch 1 already')


def test_one_batch_moves_at_a_time(batch_store, batches, clock, ids):
    store = batch_store
    one, two = request(store, ids[:4]), request(store, ids[4:8])
    batches.begin(plan_for(store, batches, [one], ids[:4]))
    plan = plan_for(store, batches, [two], ids[4:8])
    refused(store, batches, plan, Held, 'batch 1 is PLANNED and moves')
    batches.quarantine_slice(1, ids[:4], nothing)
    batches.finish_quarantine(1, store.catalog.setting('trusted_ns'))
    confirmed(store, batches, clock, 1)
    refused(store, batches, plan, Held, 'batch 1 is CONFIRMED and moves')


def test_no_batch_begins_beside_one_on_its_way_back(batch_store, batches, ids):
    row = quarantined(batch_store, batches, ids[:4])
    batches.restore_begin(row.number, 'back')
    number = request(batch_store, ids[4:])
    plan = plan_for(batch_store, batches, [number], ids[4:])
    refused(batch_store, batches, plan, Held, 'batch 1 is QUARANTINED and moves')


def test_only_so_many_batches_rest(batch_store, batches, ids, monkeypatch):
    quarantined(batch_store, batches, ids[:2])
    monkeypatch.setattr(limits, 'BATCHES_RESTING_MAX', 1)
    plan = plan_for(batch_store, batches, [request(batch_store, ids[2:])], ids[2:])
    refused(batch_store, batches, plan, Held, '1 batches rest')


@pytest.mark.parametrize('scope', ['collector', 'store'])
def test_an_incident_in_force_stops_every_step_forwards(batch_store, batches, clock, ids, scope):
    store = batch_store
    row = quarantined(store, batches, ids[:2])
    plan = plan_for(store, batches, [request(store, ids[2:])], ids[2:])
    incident = store.catalog.incident_add(scope, 'seen', 1)
    refused(store, batches, plan, Latched, 'incident 1: seen')
    with pytest.raises(Latched, match='incident 1'):
        confirmed(store, batches, clock, row.number)
    assert batch(store.catalog, row.number).state == QUARANTINED
    store.catalog.incident_acknowledge(incident.number, 'ann', 2)
    assert batches.begin(plan).state == PLANNED


def test_a_list_that_is_not_the_plans_condemns_nothing(batch_store, batches, ids):
    plan = plan_for(batch_store, batches, [request(batch_store, ids[:4])], ids[:4])
    batches.files.write_ids(plan.batch, CONDEMNED, ids[:5])
    refused(batch_store, batches, plan, Corrupt, 'not the one that the plan names')
    batch_store.disk.unlink(batches.files.path(plan.batch, CONDEMNED))
    refused(batch_store, batches, plan, Corrupt, 'condemned is missing')


def test_a_request_that_is_not_what_the_plan_says_begins_nothing(batch_store, batches, ids):
    plan = plan_for(batch_store, batches, [request(batch_store, ids[:4])], ids[:4])
    other = dataclasses.replace(plan.requests[0], root=b'r' * 32)
    refused(batch_store, batches, dataclasses.replace(plan, requests=(other,)), Corrupt, 'P6')
    odd = dataclasses.replace(plan, grace_class='kept')
    refused(batch_store, batches, odd, AssertionError, 'another grace')


def test_a_plan_for_another_number_begins_nothing(batch_store, batches, ids):
    plan = plan_for(batch_store, batches, [request(batch_store, ids[:4])], ids[:4])
    batches.files.make(9)
    for name in ('condemned', 'returned'):
        batches.files.path(9, name).write_bytes(batches.files.path(plan.batch, name).read_bytes())
    with pytest.raises(AssertionError, match='batch 9 was planned, 1 is next'):
        batches.begin(dataclasses.replace(plan, batch=9))
    assert batches.next_number() == 1
    assert batch_store.catalog.query('SELECT * FROM batch') == []


# --- fences ----------------------------------------------------------------------------------------------
def test_every_step_refuses_a_batch_in_another_state(batch_store, batches, clock, ids):
    store = batch_store
    evidence = Recounted(0, 0, {})
    receipt = bytes(32)
    row = quarantined(store, batches, ids[:4])
    steps = {
        'slice': lambda: batches.quarantine_slice(row.number, ids[4:6], nothing),
        'finish': lambda: batches.finish_quarantine(row.number, 0),
        'free': lambda: batches.free_slice(row.number, [next(iter(rows))[0]]),
        'drop': lambda: batches.drop_from_batch(row.number, ids[:1], 'why'),
        'restore': lambda: batches.restore(row.number, 'why'),
    }
    receipt = batches.write_receipt(row.number)
    rows = list(batches.files.receipt(row.number, receipt, row.digest))
    before = all_rows(store)
    for name in ('slice', 'finish', 'free'):
        with pytest.raises(Held, match='batch 1 is QUARANTINED'):
            steps[name]()
    confirmed(store, batches, clock, row.number)
    for name in ('slice', 'finish', 'drop', 'restore'):
        with pytest.raises(Held, match='batch 1 is CONFIRMED'):
            steps[name]()
    with pytest.raises(Held, match='batch 1 is CONFIRMED'):
        batches.confirm(row.number, receipt, evidence)
    assert all_rows(store)['quarantine'] == before['quarantine']
    batches.free_all(row.number)
    batches.finish(row.number, ())
    for name in ('slice', 'finish', 'free', 'drop', 'restore'):
        with pytest.raises(Held, match='batch 1 is FREED'):
            steps[name]()


def test_a_batch_on_its_way_back_goes_nowhere_else(batch_store, batches, clock, ids):
    row = quarantined(batch_store, batches, ids)
    batches.restore_begin(row.number, 'back')
    with pytest.raises(Held, match='being restored'):
        confirmed(batch_store, batches, clock, row.number)
    with pytest.raises(Held, match='being restored'):
        batches.drop_from_batch(row.number, ids[:1], 'why')
    with pytest.raises(AssertionError, match='still in quarantine'):
        batches.restore_end(row.number)
    assert batches.recover() == []
    assert batch(batch_store.catalog, row.number).state == RESTORED


def test_slices_of_a_batch_that_is_not_being_restored_do_not_go_back(batch_store, batches, ids):
    row = quarantined(batch_store, batches, ids)
    for step in (lambda: batches.restore_slice(row.number, b''), lambda: batches.restore_end(row.number)):
        with pytest.raises(AssertionError, match='not being restored'):
            step()
    assert ids_in(batch_store, 'quarantine') == ids


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
