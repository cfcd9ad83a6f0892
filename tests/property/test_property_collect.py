"""Deletion by property: what a plan promises comes back, what is taken back is the same, byte for byte, and
what a set of snapshots alone holds is what a brute force says."""

from __future__ import annotations

import os
import random
import sqlite3
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from trio._core import _run as scheduler

from snapfs import limits
from snapfs.collect.configuration import change
from snapfs.collect.states import batch
from snapfs.errors import Held, SnapfsError
from snapfs.service.collecting import Collecting
from snapfs.tree import apply
from tests.sim.collect_walker import Walker
from tests.sim.collect_world import StillWorld
from tests.support.collecting import DAY, forget, job_in_process, pack_bytes, small_packs
from tests.support.model import Pair, freeze_view
from tests.support.stores import fresh_engine
from tests.support.workload import Workload

SEEDS = int(os.environ.get('SNAPFS_SEEDS', '6'))
HEADER = 52


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """High trees, many slices, and a schedule that the seed decides."""
    monkeypatch.setitem(apply.__kwdefaults__, 'target_bytes', 700)  # type: ignore[arg-type]
    monkeypatch.setattr(limits, 'QUARANTINE_SLICE_ROWS', 5)
    monkeypatch.setattr(limits, 'SEAL_WASTE_BYTES_MIN', 1)
    monkeypatch.setattr(scheduler, '_ALLOW_DETERMINISTIC_SCHEDULING', True)


@asynccontextmanager
async def history(path: Path, seed: int, steps: int = 100) -> AsyncIterator[tuple[Collecting, random.Random]]:
    """A volume with a past: overwritten, truncated, linked and removed files, and snapshots in between."""
    scheduler._r.seed(seed)
    chance, world = random.Random(seed), StillWorld(seed)
    engine = await fresh_engine(path, world)
    small_packs(engine, 30_000, 10_000)
    collecting = Collecting(engine, world, job_in_process(world))
    change(engine.store.catalog, engine.store.audit, 'limit-share', '100%', 'ann')
    pair = Pair(await engine.volume_create('home', 0, 0))
    workload = Workload(pair, seed, sizes=chance.choice([3000, 30_000]))
    for step in range(steps):
        await workload.step()
        if chance.random() < 0.1:
            await engine.commit()
        if chance.random() < 0.08:
            await engine.snapshot_create('home', f's{step}', 'ann')
    await engine.snapshot_create('home', 'last', 'ann')
    try:
        yield collecting, chance
    finally:
        await engine.close()


def store_of(collecting: Collecting) -> Path:
    return collecting.engine.store.path


def only_held_by(
    path: Path, wanted: Iterable[bytes | None], others: Iterable[bytes | None]
) -> dict[bytes, int]:
    """Return what the wanted roots reach and the others do not, with stored bytes, by walking it all."""
    walker = Walker()
    kept = walker.reach(path, others)
    db = sqlite3.connect(f'file:{path / "catalog.sqlite"}?mode=ro', uri=True)
    try:
        sizes = {id: stored + HEADER for id, stored in db.execute('SELECT id, stored FROM chunk')}
    finally:
        db.close()
    return {id: sizes[id] for id in walker.reach(path, wanted) if id not in kept}


def roots(collecting: Collecting) -> dict[int, bytes | None]:
    """The roots of snapshots, by view number, and of volumes, by minus theirs."""
    registry = collecting.engine.store.registry
    return {
        **{row.number: row.root for row in registry.snapshots()},
        **{-row.volume: row.root for row in registry.volumes()},
    }


@pytest.mark.parametrize('seed', range(SEEDS))
async def test_what_a_set_of_snapshots_frees_is_what_a_brute_force_says(tmp_path: Path, seed: int) -> None:
    async with history(tmp_path / 'store', seed) as (collecting, chance):
        numbers = [row.number for row in collecting.engine.snapshot_list()]
        for _ in range(6):
            chosen = set(chance.sample(numbers, chance.randrange(1, len(numbers) + 1)))
            found = await collecting.what_if([('snapshot', number) for number in sorted(chosen)])
            standing = roots(collecting)
            wanted = [root for number, root in standing.items() if number in chosen]
            others = [root for number, root in standing.items() if number not in chosen]
            alone = only_held_by(store_of(collecting), wanted, others)
            said = (found.condemned, found.condemned_bytes)
            assert said == (len(alone), sum(alone.values())), f'seed {seed}: {sorted(chosen)} of {numbers}'


@pytest.mark.parametrize('seed', range(SEEDS))
async def test_the_bytes_that_a_plan_promises_come_back(tmp_path: Path, seed: int) -> None:
    async with history(tmp_path / 'store', 1000 + seed) as (collecting, chance):
        engine, catalog = collecting.engine, collecting.engine.store.catalog
        names = [row.name for row in engine.snapshot_list()]
        deleted = [
            await engine.snapshot_delete('home', name, 'ann')
            for name in chance.sample(names, chance.randrange(1, len(names)))
        ]
        promise = await collecting.what_if([('request', row.number) for row in deleted])
        alone = only_held_by(store_of(collecting), [row.root for row in deleted], roots(collecting).values())
        assert promise.condemned_bytes == sum(alone.values()), f'seed {seed}'
        report = await collecting.collect()
        (row,) = [one for one in report['quarantined'] if one.grace_class == 'kept']
        plan = collecting.collector.batches.files.plan(row.number, row.digest)
        assert plan.condemned_bytes == row.stored_bytes == promise.condemned_bytes, f'seed {seed}'
        before = {id for (id,) in catalog.query('SELECT id FROM chunk UNION SELECT id FROM quarantine')}
        packs = pack_bytes(engine)
        gone: dict[bytes, int] = {}
        for _ in range(3):
            collecting.world.advance(8 * DAY)  # type: ignore[attr-defined]
            for one in (await collecting.collect())['freed']:
                if one.number == row.number:
                    gone = freed(collecting, row.number)
        assert gone == alone, f'seed {seed}: P2'
        left = {id for (id,) in catalog.query('SELECT id FROM chunk UNION SELECT id FROM quarantine')}
        assert before - left >= alone.keys(), f'seed {seed}'
        # What the packs gave back is what was freed, but for what is not worth rewriting and what was added.
        live = catalog.query('SELECT sum(stored + ?) FROM chunk', (HEADER,))[0][0]
        around = sum(row.records * 49 + 96 for row in catalog.packs())
        assert pack_bytes(engine) - around <= live / 0.5 + 1, f'seed {seed}: {packs} before'
        assert collecting.collector.incidents.latched() is None


def freed(collecting: Collecting, number: int) -> dict[bytes, int]:
    """What a batch freed, by its receipt."""
    row = batch(collecting.engine.store.catalog, number)
    assert row.receipt is not None
    parts = collecting.collector.batches.files.receipt(number, row.receipt, row.digest)
    return {one.id: one.stored_length + HEADER for part in parts for one in part}


@pytest.mark.slow
@pytest.mark.parametrize('seed', range(max(1, SEEDS // 3)))
async def test_a_deletion_is_taken_back_at_any_moment(tmp_path: Path, seed: int) -> None:
    """The same snapshot is deleted again and again, and taken back at each hand-over of the collector in
    turn: before it begins, in recount 1, in every slice of the quarantine, in grace, in recount 2. Once the
    receipt is written, it is too late."""
    async with history(tmp_path / 'store', 2000 + seed, 40) as (collecting, _):
        engine = collecting.engine
        name = engine.snapshot_list()[0].name
        view = engine.snapshot_view(engine.snapshot_find('home', name).number)
        was = await freeze_view(view)
        states = set()
        for due in (False, True):
            moment = 0
            while True:
                request = await engine.snapshot_delete('home', name, 'ann')
                if due:
                    await collecting.collect()
                    collecting.world.advance(8 * DAY)  # type: ignore[attr-defined]
                state = await take_back_at(collecting, request.number, moment, fresh=not due)
                states.add(state)
                assert collecting.collector.incidents.latched() is None, f'seed {seed}: moment {moment}'
                if state == 'freed':
                    break
                forget(engine)
                view = engine.snapshot_view(engine.snapshot_find('home', name).number)
                assert await freeze_view(view) == was, f'seed {seed}: due {due}, moment {moment}'
                if state == 'after':
                    break
                moment += 1
        assert {'trash', 'PLANNED', 'QUARANTINED', 'freed'} <= states, f'seed {seed}: {states}'


async def take_back_at(collecting: Collecting, number: int, moment: int, fresh: bool) -> str:
    """Collect, and take the request back at hand-over `moment`; return in which state it was: 'after' when
    the collector had ended before, 'freed' when it was too late."""
    world: Any = collecting.world
    now = trio.Event()
    world.at(world.hand_overs + moment + 1, now.set)
    states = []

    async def collect() -> None:
        try:
            await collecting.collect(fresh=fresh)
        except (Held, SnapfsError) as error:
            said = ('taken back', 'goes back', 'is not in quarantine')  # whichever step noticed it
            assert any(one in str(error) for one in said), error
        if not now.is_set():
            states.append('after')
            now.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(collect)
        await now.wait()
        rows = collecting.engine.store.catalog.query(
            'SELECT b.state FROM request r LEFT JOIN batch b ON b.number = r.batch WHERE r.number = ?',
            (number,),
        )
        states.append((rows[0][0] or 'trash') if rows else 'freed')
        try:
            await collecting.engine.snapshot_undelete(number)
        except Held:
            states.insert(0, 'freed')
    return states[0]
