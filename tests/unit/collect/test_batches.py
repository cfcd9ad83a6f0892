"""Batches: every step, its order, and every guard that keeps rows where they are."""

from __future__ import annotations

import dataclasses

import pytest

from snapfs import limits
from snapfs.collect import canary
from snapfs.collect.batches import Recounted
from snapfs.collect.files import CONDEMNED
from snapfs.collect.states import CONFIRMED, FREED, PLANNED, QUARANTINED, RESTORED, batch
from snapfs.errors import Corrupt, Held, Latched
from tests.unit.collect.batch_kit import (
    add_chunks,
    all_rows,
    commit,
    confirmed,
    ids_in,
    nothing,
    plan_for,
    quarantined,
    request,
)


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


def test_an_alarm_decides_about_every_batch_before_it_moves_any(batch_store, batches, ids, monkeypatch):
    rows = [quarantined(batch_store, batches, part) for part in (ids[:2], ids[2:4])]

    def fail(number, after):
        raise Corrupt('the power went')

    monkeypatch.setattr(batches, 'restore_slice', fail)
    with pytest.raises(Corrupt, match='the power went'):
        batches.restore_all('P7: a read')
    assert [batch(batch_store.catalog, row.number).restoring for row in rows] == [True, True]


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


def test_a_number_that_has_a_receipt_shows_that_the_catalog_went_back_in_time(
    tmp_path, batch_store, batches, clock, ids
):
    store = batch_store
    plan = plan_for(store, batches, [request(store, ids[:4])], ids[:4])
    batches.files.path(plan.batch, 'receipt').write_bytes(b'')
    refused(store, batches, plan, Corrupt, 'the catalog is older than the store')


def test_a_horizon_that_has_not_come_yet_is_a_bug(batch_store, batches, ids):
    epoch = batch_store.catalog.epoch + 2
    plan = plan_for(batch_store, batches, [request(batch_store, ids[:4])], ids[:4], horizon=epoch)
    refused(batch_store, batches, plan, AssertionError, 'P3: horizon')


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


def test_a_receipt_is_the_point_of_no_return_and_nothing_is_written_down_of_a_vain_try(
    batch_store, batches, clock, ids
):
    row = quarantined(batch_store, batches, ids[:4])
    confirmed(batch_store, batches, clock, row.number)
    lines = events(batch_store)
    with pytest.raises(Held, match='it is too late to take it back'):
        batches.restore(row.number, 'why')
    assert events(batch_store) == lines
    assert batches.restore_all('alarm') == []


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
