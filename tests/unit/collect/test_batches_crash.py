"""Batches: the power goes at every sync and at every commit of a batch's life, forwards and back."""

from __future__ import annotations

import contextlib
import shutil

import pytest

from snapfs import limits
from snapfs.collect.batches import Batches
from snapfs.collect.clock import TrustedClock
from snapfs.collect.states import CONFIRMED, FREED, PLANNED, QUARANTINED, RESTORED, batches
from snapfs.store.durable import Disk
from snapfs.store.store import Store
from tests.sim.disk import PowerCut, SimDisk
from tests.sim.world import SimWorld
from tests.unit.collect.batch_kit import (
    TABLES,
    add_chunks,
    commit,
    confirmed,
    ids_in,
    nothing,
    plan_for,
    request,
)

pytestmark = pytest.mark.slow

CHUNKS = 9


@pytest.fixture
def start(tmp_path, small_limits, monkeypatch):
    """A store with chunks and requests for all but one of them, on disk; and the ids."""
    monkeypatch.setattr(limits, 'BATCH_SLICE_ROWS_MAX', 4)
    monkeypatch.setattr(limits, 'INSERT_ROWS_MAX', 2)
    monkeypatch.setattr(limits, 'BATCH_SLICE_PARTS', 2)
    store = Store.create(tmp_path / 'start', Disk(), SimWorld(1))
    ids = add_chunks(store, 1, CHUNKS)
    numbers = [request(store, ids[:5]), request(store, ids[5:])]
    store.close(clean=True)
    return tmp_path / 'start', ids, numbers


def quarantine(store, ids, numbers):
    moved = Batches(store)
    plan = plan_for(store, moved, numbers, ids[:-1])
    moved.begin(plan)
    for begin in range(0, len(ids) - 1, 4):
        moved.quarantine_slice(plan.batch, ids[begin : min(begin + 4, len(ids) - 1)], nothing)
    moved.finish_quarantine(plan.batch, store.catalog.setting('trusted_ns'))
    return moved, plan.batch


def forwards(store, ids, numbers):
    clock = TrustedClock(store.catalog, store.world)
    moved, number = quarantine(store, ids, numbers)
    moved.drop_from_batch(number, ids[:1], 'a leftover')
    confirmed(store, moved, clock, number)
    moved.free_all(number)
    moved.finish(number, ids[-1:])
    commit(store)


def back(store, ids, numbers):
    moved, number = quarantine(store, ids, numbers)
    add_chunks(store, 1, 2)  # a fresh copy of some
    moved.restore(number, 'taken back')


def after_a_cut(source, target, life, cut, seed):
    """Run a life until event `cut`; return the store as a power cut left it, or None when the life ended
    before."""
    path, ids, numbers = source
    copy = target / f'run-{cut}-{seed}'
    shutil.copytree(path, copy)
    disk = SimDisk(copy)
    store = None
    try:
        disk.cut_at = cut
        with contextlib.suppress(PowerCut):
            store = Store.open(copy, disk, SimWorld(2))
            life(store, ids, numbers)
            return None
        left = disk.crash(seed, target / f'left-{cut}-{seed}')
    finally:
        if store is not None:
            with contextlib.suppress(PowerCut):
                store.close(clean=False)
        disk.forget()
        shutil.rmtree(copy)
    return left


def check_ids(store, ids, numbers, where):
    """Every chunk is in exactly one table, and the one that its batch's state says."""
    moved = Batches(store)
    tables = {table: ids_in(store, table) for table in TABLES}
    located = sorted(set().union(*tables.values()))
    assert located == ids, where
    rows = batches(store.catalog)
    wishes = {row.number: row.batch for row in store.registry.requests() if row.number in numbers}
    if not rows or rows[0].state == RESTORED:
        assert tables['chunk'] == ids, where
        assert wishes == dict.fromkeys(numbers), where
        assert tables['quarantine'] == tables['freed'] == [], where
        return
    (row,) = rows
    assert row.state in (QUARANTINED, CONFIRMED, FREED), where
    plan = moved.files.plan(row.number, row.digest)
    assert plan.condemned == CHUNKS - 1
    begun = [line.event['event'] for line in store.audit.lines()]
    assert 'batch-quarantined' in begun, where
    if row.state == QUARANTINED:
        assert set(wishes.values()) == {row.number}, where
        assert tables['freed'] == [], where
        return
    assert 'batch-confirmed' in begun, where
    assert row.receipt is not None
    receipt = [row for rows in moved.files.receipt(row.number, row.receipt, row.digest) for row in rows]
    assert sorted(tables['quarantine'] + tables['freed']) == [row.id for row in receipt], where
    assert row.freed == len(tables['freed']), where
    if row.state == FREED:
        assert wishes == {}, where
        assert tables['quarantine'] == [], where


def check_end(store, ids, numbers, where):
    """After a recovery a confirmed batch comes to its end, and everything else can begin anew."""
    moved = Batches(store)
    for row in moved.recover():
        assert row.state == CONFIRMED, where
        moved.free_all(row.number)
        moved.finish(row.number, ids[-1:])
        kept = {id for r in store.registry.requests() for id in store.registry.request_part(r.number).chunks}
        assert kept == {ids[0], ids[-1]}, where
    states = [row.state for row in batches(store.catalog)]
    assert PLANNED not in states, where
    assert CONFIRMED not in states, where
    if states in ([], [RESTORED]):
        quarantine(store, ids, numbers)
    store.audit.verify()


@pytest.mark.parametrize('life', [forwards, back])
def test_a_power_cut_at_any_event_leaves_a_batch_that_goes_one_way(start, tmp_path, life):
    _, ids, numbers = start
    states, cut = set(), 0
    while True:
        cut += 1
        left = after_a_cut(start, tmp_path, life, cut, seed=cut)
        if left is None:
            break
        if not (left / 'superblock').exists():
            continue
        where = f'{life.__name__}, power cut at event {cut}'
        store = Store.open(left, Disk(), SimWorld(3))
        try:
            Batches(store).recover()
            check_ids(store, ids, numbers, where)
            states |= {row.state for row in batches(store.catalog)}
            check_end(store, ids, numbers, where)
        finally:
            store.close(clean=False)
        shutil.rmtree(left)
    wanted = {forwards: {QUARANTINED, CONFIRMED, FREED, RESTORED}, back: {QUARANTINED, RESTORED}}
    assert states == wanted[life]
    assert cut > 20


def test_a_restore_interrupted_anywhere_goes_on_at_the_next_opening(start, tmp_path):
    path, ids, numbers = start
    store = Store.open(path, Disk(), SimWorld(2))
    moved, number = quarantine(store, ids, numbers)
    moved.restore_begin(number, 'P7: a chunk was read')
    assert moved.restore_slice(number, b'') == ids[3]
    store.close(clean=False)
    store = Store.open(path, Disk(), SimWorld(3))
    assert Batches(store).recover() == []
    (row,) = batches(store.catalog)
    assert (row.state, row.reason) == (RESTORED, 'P7: a chunk was read')
    check_ids(store, ids, numbers, 'restored')
    store.close(clean=False)


def test_an_alarm_half_done_is_remembered_for_every_batch(start, tmp_path):
    """restore_all decides all before it moves any: a crash in between must not leave one to be freed."""
    path, ids, numbers = start
    store = Store.open(path, Disk(), SimWorld(2))
    moved, _ = quarantine(store, ids, numbers)
    more = add_chunks(store, 2, 3)
    other = plan_for(store, moved, [request(store, more)], more)
    moved.begin(other)
    moved.quarantine_slice(other.batch, more, nothing)
    moved.finish_quarantine(other.batch, 0)
    for row in batches(store.catalog, QUARANTINED):
        moved.restore_begin(row.number, 'alarm')
    store.close(clean=False)
    store = Store.open(path, Disk(), SimWorld(3))
    Batches(store).recover()
    assert [row.state for row in batches(store.catalog)] == [RESTORED, RESTORED]
    assert ids_in(store, 'chunk') == sorted(ids + more)
    store.close(clean=False)
