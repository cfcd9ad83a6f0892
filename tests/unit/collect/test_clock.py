"""Clock: trusted time never runs ahead of time that has really passed."""

from __future__ import annotations

import random
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapfs import limits
from snapfs.collect.clock import TrustedClock, gap_growth, session_growth
from snapfs.errors import Corrupt
from snapfs.store.durable import Disk
from snapfs.store.store import Store
from tests.sim.world import SimWorld

SECOND_NS = 10**9
DAY = 86_400
YEAR = 365 * DAY
NEAR_NS = 1000  # the simulated wall clock ticks a nanosecond a call

times = st.integers(-(10**18), 10**18)


def make(store):
    return TrustedClock(store.catalog, store.world)


@given(times, times)
def test_a_tick_adds_no_more_than_either_clock_and_never_less_than_nothing(wall, monotonic):
    growth = session_growth(wall, monotonic)
    assert 0 <= growth <= max(0, wall)
    assert growth <= max(0, monotonic)


@given(times, times)
def test_a_gap_adds_no_more_than_a_day_and_than_the_clocks_say(wall, boot):
    growth = gap_growth(wall, boot)
    assert 0 <= growth <= max(0, min(wall, limits.CLOCK_GAP_NS_MAX))
    if boot >= 0:
        assert growth <= boot


def test_time_that_passes_counts(batch_store):
    clock = make(batch_store)
    for _ in range(10):
        batch_store.world.advance(100)
        clock.tick()
    assert abs(clock.now_ns - 1000 * SECOND_NS) < NEAR_NS


@pytest.mark.parametrize('jump', [YEAR, -YEAR, 10 * YEAR, -10 * YEAR, 3600, -3600])
def test_a_jump_of_the_wall_clock_adds_nothing(batch_store, jump):
    clock = make(batch_store)
    batch_store.world.jump(jump)
    clock.tick()
    assert clock.now_ns <= NEAR_NS
    batch_store.world.jump(-jump)
    clock.tick()
    assert clock.now_ns <= NEAR_NS
    batch_store.world.advance(100)
    clock.tick()
    assert abs(clock.now_ns - 100 * SECOND_NS) < NEAR_NS


def test_a_suspend_adds_nothing(batch_store):
    clock = make(batch_store)
    batch_store.world.suspend(YEAR)
    clock.tick()
    assert clock.now_ns <= NEAR_NS


def test_what_was_counted_is_there_after_a_restart_and_counted_once(batch_store):
    world = batch_store.world
    clock = make(batch_store)
    world.advance(5000)
    clock.tick()
    counted = clock.now_ns
    clock = make(batch_store)
    assert 0 <= clock.now_ns - counted < NEAR_NS
    world.advance(30)  # not written down: under a minute
    clock.tick()
    clock = make(batch_store)
    assert abs(clock.now_ns - 5030 * SECOND_NS) < NEAR_NS


def test_a_gap_counts_for_a_day_at_most(batch_store):
    make(batch_store)
    batch_store.world.advance(YEAR)
    assert abs(make(batch_store).now_ns - DAY * SECOND_NS) < NEAR_NS


def test_a_jump_while_the_store_is_closed_adds_nothing_on_the_same_boot(batch_store):
    make(batch_store)
    batch_store.world.jump(YEAR)
    assert make(batch_store).now_ns <= NEAR_NS
    batch_store.world.jump(-2 * YEAR)
    assert make(batch_store).now_ns <= NEAR_NS


def test_over_a_restart_of_the_machine_a_jump_adds_a_day_at_most(batch_store):
    make(batch_store)
    batch_store.world.restart_machine()
    batch_store.world.jump(YEAR)
    assert make(batch_store).now_ns <= DAY * SECOND_NS


def test_a_clock_set_back_and_right_again_adds_nothing(batch_store):
    clock = make(batch_store)
    batch_store.world.jump(-YEAR)
    clock.tick()
    clock.save()
    batch_store.world.jump(YEAR)
    assert make(batch_store).now_ns <= NEAR_NS


def test_a_trusted_time_that_cannot_be_is_corrupt(batch_store):
    batch_store.catalog.set_setting('trusted_ns', -1)
    with pytest.raises(Corrupt, match='the trusted time is -1'):
        make(batch_store)


@pytest.mark.parametrize('seed', range(20))
def test_whatever_clocks_do_trusted_time_never_exceeds_real_time(tmp_path, small_limits, seed):
    """Real time is what the test lets pass: awake, asleep, or with the store closed. A restart of the
    machine may be worth a day more at most, for then only the wall clock speaks."""
    chance = random.Random(seed)
    world = SimWorld(seed)
    store = Store.create(tmp_path / 'store', Disk(), world)
    clock = make(store)
    real, allowed, before = 0.0, 0.0, 0
    for n in range(60):
        what = chance.choice(('pass', 'pass', 'jump', 'suspend', 'reopen', 'restart', 'tick'))
        seconds = chance.choice((0.5, 30, 4000, DAY, 30 * DAY))
        if what == 'pass':
            world.advance(seconds)
            real += seconds
        elif what == 'jump':
            world.jump(chance.choice((-1, 1)) * chance.choice((10, 3600, YEAR)))
        elif what == 'suspend':
            world.suspend(seconds)
            real += seconds
        elif what == 'reopen':
            clock, before = make(store), 0  # what was not written down yet may be lost
        elif what == 'restart':
            world.restart_machine()
            allowed += DAY
            clock, before = make(store), 0
        clock.tick()
        assert clock.now_ns >= before, f'seed {seed}, step {n}: {what}'
        assert clock.now_ns <= (real + allowed) * SECOND_NS + 1000 * NEAR_NS, f'seed {seed}, step {n}: {what}'
        before = clock.now_ns
    store.close(clean=False)


def test_two_ticks_at_once_count_no_time_twice(batch_store, monkeypatch):
    """One has read the clocks and is held up; another ticks meanwhile. What the first then writes down
    must not put the clock back to where the time since is added once more."""
    clock, world = make(batch_store), batch_store.world
    began = clock.tick()
    read, go_on = threading.Event(), threading.Event()
    real = world.boottime

    def slow():
        if threading.current_thread() is late:
            read.set()
            assert go_on.wait(10)
        return real()

    monkeypatch.setattr(world, 'boottime', slow)
    late = threading.Thread(target=clock.tick)
    late.start()
    assert read.wait(10)
    world.advance(100)
    other = threading.Thread(target=clock.tick)
    other.start()
    other.join(0.2)  # it waits, or it has ticked: both must do
    go_on.set()
    late.join(10)
    other.join(10)
    assert clock.tick() - began <= 100 * SECOND_NS + NEAR_NS
