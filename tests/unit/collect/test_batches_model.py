"""Batches against a model: random steps in any order, the right ones and the wrong ones, with restarts in
between."""

from __future__ import annotations

import random

import pytest

from snapfs.collect.batches import Batches
from snapfs.collect.clock import TrustedClock
from snapfs.collect.states import CONFIRMED, FREED, PLANNED, QUARANTINED, RESTORED, batch, batches
from snapfs.errors import SnapfsError
from snapfs.store.durable import Disk
from snapfs.store.store import Store
from tests.sim.world import SimWorld
from tests.unit.collect.batch_kit import (
    TABLES,
    add_chunks,
    ids_in,
    pass_time,
    plan_for,
    recount_2,
    request,
)

SEEDS = 12
STEPS = 100
CONTENTS = 24


class Model:
    """What must be where: for each id the tables that have it; the batches with their ids; standing
    wishes."""

    def __init__(self, path, seed):
        self.chance = random.Random(seed)
        self.path = path
        self.world = SimWorld(seed)
        self.store = Store.create(path, Disk(), self.world)
        self.reopened()
        self.ids = add_chunks(self.store, 0, CONTENTS)
        self.chunk = set(self.ids)
        self.quarantine: dict[int, set[bytes]] = {}
        self.freed: list[bytes] = []
        self.states: dict[int, str] = {}
        self.rest: dict[int, list[bytes]] = {}
        self.wishes: dict[int, frozenset[bytes]] = {}
        self.done: set[str] = set()

    def reopened(self):
        self.batches = Batches(self.store)
        self.clock = TrustedClock(self.store.catalog, self.world)

    # --- steps -------------------------------------------------------------------------------------------
    def put(self):
        seed = self.chance.randrange(CONTENTS)
        self.chunk |= set(add_chunks(self.store, 0, seed + 1))

    def wish(self):
        free = sorted(self.chunk - {id for ids in self.wishes.values() for id in ids})
        if free:
            ids = sorted(self.chance.sample(free, self.chance.randint(1, len(free))))
            self.wishes[request(self.store, ids)] = frozenset(ids)

    def begin(self):
        rows = {row.number: row for row in self.store.registry.requests() if row.batch is None}
        if not rows:
            return
        number = self.chance.choice(sorted(rows))
        ids = [id for id in self.wished(number) if id in self.chunk]
        moving = [n for n, state in self.states.items() if state in (PLANNED, CONFIRMED)]
        plan = plan_for(self.store, self.batches, [number], sorted(ids))
        try:
            self.batches.begin(plan)
        except SnapfsError:
            assert moving
            return
        assert not moving
        self.states[plan.batch] = PLANNED
        self.rest[plan.batch] = sorted(ids)
        self.quarantine[plan.batch] = set()

    def wished(self, number):
        return self.store.registry.request_part(number).chunks

    def slice(self):
        number = self.any_batch()
        ids = self.rest.get(number, [])[: self.chance.randint(1, 5)]
        put = {id for id in ids if self.chance.random() < 0.2}
        try:
            moved = self.batches.quarantine_slice(number, ids, put.__contains__)
        except SnapfsError:
            assert self.states[number] != PLANNED
            return
        assert self.states[number] == PLANNED
        young = 'SELECT id FROM chunk WHERE epoch > ?'
        horizon = batch(self.store.catalog, number).horizon
        late = {row[0] for row in self.store.catalog.query(young, (horizon,))}
        assert set(moved.excluded) == {id for id in ids if id in put or id in late}
        self.rest[number] = self.rest[number][len(ids) :]
        self.quarantine[number] |= set(moved.moved)
        self.chunk -= set(moved.moved)

    def finish_quarantine(self):
        number = self.any_batch()
        if self.step(lambda: self.batches.finish_quarantine(number, self.clock.now_ns), number, PLANNED):
            self.states[number] = QUARANTINED

    def restore(self):
        number = self.any_batch()
        if self.step(lambda: self.batches.restore(number, 'model'), number, PLANNED, QUARANTINED, RESTORED):
            self.came_back(number)

    def came_back(self, number):
        self.states[number] = RESTORED
        self.chunk |= self.quarantine.pop(number, set())

    def drop(self):
        number = self.any_batch()
        ids = sorted(id for id in self.ids if self.chance.random() < 0.2)
        if ids and self.step(lambda: self.batches.drop_from_batch(number, ids, 'model'), number, QUARANTINED):
            dropped = self.quarantine[number] & set(ids)
            self.quarantine[number] -= dropped
            self.chunk |= dropped

    def confirm(self):
        number = self.any_batch()
        row = batch(self.store.catalog, number)
        if self.states[number] != QUARANTINED:
            return
        early = self.chance.random() < 0.5
        pass_time(self.store, self.clock, row.grace_ns / 1e9 * (0.4 if early else 1.0))
        if row.due_trusted_ns <= self.clock.now_ns:
            early = False
        moving = [n for n, state in self.states.items() if state in (PLANNED, CONFIRMED)]
        try:
            self.batches.confirm(
                number, self.batches.write_receipt(number), recount_2(self.store, self.clock)
            )
        except SnapfsError:
            assert early or moving
            return
        assert not early
        assert not moving
        self.states[number] = CONFIRMED

    def free(self):
        number = self.any_batch()
        if self.states[number] == CONFIRMED:
            self.batches.free_all(number)
            self.freed += self.quarantine.pop(number, set())

    def finish(self):
        number = self.any_batch()
        if self.states[number] != CONFIRMED:
            return
        if self.quarantine.get(number):
            with pytest.raises(AssertionError):
                self.batches.finish(number, ())
            return
        self.batches.finish(number, ())
        self.states[number] = FREED

    def crash(self):
        self.store.close(clean=False)
        self.store = Store.open(self.path, Disk(), self.world)
        self.reopened()
        confirmed = {row.number for row in self.batches.recover()}
        assert confirmed == {number for number, state in self.states.items() if state == CONFIRMED}
        for number, state in self.states.items():
            if state == PLANNED:
                self.came_back(number)

    def any_batch(self):
        return self.chance.choice(sorted(self.states))

    def step(self, call, number, *states):
        """Do a step that works in these states; return whether it did."""
        try:
            call()
        except SnapfsError:
            assert self.states[number] not in states
            return False
        assert self.states[number] in states
        return True

    # --- the comparison ----------------------------------------------------------------------------------
    def check(self, where):
        assert set(ids_in(self.store, 'chunk')) == self.chunk, where
        condemned = sorted(id for ids in self.quarantine.values() for id in ids)
        assert ids_in(self.store, 'quarantine') == condemned, where
        assert ids_in(self.store, 'freed') == sorted(self.freed), where
        assert {row.number: row.state for row in batches(self.store.catalog)} == self.states, where
        for row in self.store.registry.requests():
            if row.batch is not None:
                assert self.states[row.batch] in (PLANNED, QUARANTINED, CONFIRMED), where
        places = []
        for table in TABLES:
            places += self.store.catalog.query(f'SELECT pack, offset FROM {table}')
        assert len(places) == len(set(places)), where


@pytest.mark.parametrize('seed', range(SEEDS))
def test_random_steps_agree_with_the_model(tmp_path, small_limits, seed):
    model = Model(tmp_path / 'store', seed)
    always = [model.put, model.wish, model.wish, model.begin, model.begin, model.crash]
    with_batch = [
        model.slice, model.slice, model.slice, model.slice, model.finish_quarantine, model.finish_quarantine,
        model.restore, model.drop, model.confirm, model.confirm, model.confirm, model.free, model.free,
        model.finish,
    ]  # fmt: skip
    for n in range(STEPS):
        steps = always + (with_batch * 2 if model.states else [])
        step = model.chance.choice(steps)
        step()
        model.check(f'seed {seed}, step {n}: {step.__name__}')
    model.store.audit.verify()
    model.store.close(clean=False)
