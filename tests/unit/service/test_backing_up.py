"""Backups of names: a snapshot that was just taken has its name again after a rebuild."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from snapfs import limits
from snapfs.service.collecting import Collecting
from snapfs.service.scrubbing import Scrubbing
from snapfs.store import backup as backups
from snapfs.volume.engine import Engine
from tests.mutants.setting import small
from tests.support.collecting import collected, write_file
from tests.unit.service.test_rebuild import lose, rebuilt, trees


@asynccontextmanager
async def backed_up(path: Path) -> AsyncIterator[Collecting]:
    """A store whose backups are kept as a daemon keeps them; the first one has been written."""
    async with collected(path) as made, trio.open_nursery() as nursery:
        await made.engine.volume_create('home', 0, 0)
        nursery.start_soon(Scrubbing(made).back_up)
        await made.world.sleep(limits.BACKUP_NAMES_SECONDS / 2)
        yield made
        nursery.cancel_scope.cancel()


@pytest.fixture
async def collecting(tmp_path: Path) -> AsyncIterator[Collecting]:
    async with backed_up(tmp_path / 'store') as made:
        yield made


def names(engine: Engine, table: str = 'snapshot', at: int = 2) -> list[bytes]:
    """What the newest backup has."""
    store = engine.store
    found = backups.newest(store.disk, store.path, store.superblock.uuid)
    assert found is not None
    return [row[at] for row in found.tables[table]]


async def a_moment(collecting: Collecting) -> None:
    await collecting.world.sleep(limits.BACKUP_NAMES_SECONDS * 1.5)


async def test_a_name_is_in_a_backup_a_moment_later(collecting, autojump_clock):
    engine = collecting.engine
    await engine.snapshot_create('home', 'monday', 'ann')
    assert names(engine) == []
    await a_moment(collecting)
    assert names(engine) == [b'monday']
    await engine.snapshot_rename('home', 'monday', 'tuesday')
    await a_moment(collecting)
    assert names(engine) == [b'tuesday']
    await engine.snapshot_delete('home', 'tuesday', 'ann')
    await a_moment(collecting)
    assert names(engine) == [] and names(engine, 'request', 4)[-1] == b'tuesday'
    await engine.volume_create('work', 0, 0)
    await a_moment(collecting)
    assert names(engine, 'volume') == [b'home', b'work']


def test_after_a_kill_and_a_lost_catalog_a_rebuild_names_it(tmp_path):
    killed = tmp_path / 'killed'

    async def life() -> None:
        async with backed_up(tmp_path / 'store') as made:
            engine = made.engine
            await write_file(engine, 'a', b'of the first')
            await engine.snapshot_create('home', 'first', 'ann')
            await write_file(engine, 'a', b'of the second')
            await engine.snapshot_create('home', 'second', 'ann')
            await engine.snapshot_create('home', 'gone', 'ann')
            await a_moment(made)
            await engine.snapshot_delete('home', 'gone', 'ann')
            await a_moment(made)
            shutil.copytree(engine.store.path, killed)

    with small():
        trio.run(life, clock=trio.testing.MockClock(autojump_threshold=0))
    lose(killed)
    told = rebuilt(killed)
    assert told['snapshots'] == 2
    found = {name for name in trees(killed) if not name.startswith('recovered')}
    assert found == {'home', 'home@first', 'home@second'}, 'what was deleted does not come back'


async def test_where_nothing_has_changed_none_is_written_and_once_a_minute_all_is_kept(
    collecting, autojump_clock, monkeypatch
):
    done: list[str] = []
    store = collecting.engine.store
    monkeypatch.setattr(store, 'keep_names', lambda: done.append('names'))
    monkeypatch.setattr(store, 'keep_copies', lambda: done.append('copies'))
    await collecting.world.sleep(limits.BACKUP_SECONDS * 3)
    assert done == ['copies'] * 3


async def test_a_backup_that_takes_long_is_not_written_all_the_time(collecting, autojump_clock, monkeypatch):
    done: list[float] = []
    world, store = collecting.world, collecting.engine.store

    def slow() -> None:
        world.advance(0.5)
        done.append(world.monotonic())

    monkeypatch.setattr(store, 'keep_names', slow)
    for number in range(40):
        await collecting.engine.snapshot_create('home', f'{number}', 'ann')
        await world.sleep(limits.BACKUP_NAMES_SECONDS)
    gaps = [after - before for before, after in itertools.pairwise(done)]
    assert len(done) > 2 and min(gaps) >= 0.5 * limits.BACKUP_SHARE


def test_many_within_a_minute_do_not_push_out_those_before():
    minute = backups.MINUTE_NS
    older = [f'{n:012d}-{n * minute + 1}.json' for n in range(1, 5)]
    burst = [f'{n:012d}-{5 * minute + n}.json' for n in range(100, 200)]
    left = [name for name in [*older, *burst] if name not in backups.expired([*older, *burst])]
    assert left == [*older, *burst[-2:]]
