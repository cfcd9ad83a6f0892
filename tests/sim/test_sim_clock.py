"""The wall clock jumps, by seconds or by decades, forwards and back. Nothing but the times may change."""

from __future__ import annotations

import errno
import os
import random
import stat
from pathlib import Path
from typing import Any

import pytest
import trio

from snapfs import limits
from snapfs.errors import Held, Refused
from snapfs.mount.control import utc_text
from snapfs.store.durable import Disk
from snapfs.store.store import Store
from snapfs.volume.engine import Engine
from tests.sim.world import START_NS, SimWorld

SEEDS = int(os.environ.get('SNAPFS_SEEDS', '10'))
FILE = stat.S_IFREG | 0o644
YEAR = 365.25 * 86400
JUMPS = (0.0, 1.0, -1.0, 3600.0, -3600.0, YEAR, -YEAR, 30 * YEAR, -30 * YEAR)
LAST_NS = int(250 * YEAR * 1e9)  # Linux takes no later time; its clock begins in 1970


def jump(world: SimWorld, seconds: float) -> None:
    """Set the clock, as far as Linux lets anybody do that."""
    now = world.time_ns()
    world.jump((min(max(now + seconds * 1e9, 0), LAST_NS) - now) / 1e9)


async def make_engine(path: Path, world: SimWorld) -> Engine:
    Store.create(path, Disk(), world).close(clean=True)
    return await Engine.open(path, Disk(), world)


class History:
    """A volume, and what is known of it."""

    def __init__(self, engine: Engine, world: SimWorld, seed: int) -> None:
        self.engine = engine
        self.world = world
        self.chance = random.Random(seed)
        self.seed = seed
        self.files: dict[bytes, tuple[bytes, int]] = {}  # content, mtime
        self.snapshots: list[tuple[str, dict[bytes, tuple[bytes, int]]]] = []  # oldest first

    async def write(self) -> None:
        head = self.engine.head('home')
        assert head is not None
        name = b'%d' % self.chance.randrange(8)
        root = await head.inode(limits.INO_ROOT)
        file = await head.lookup(root, name) or await head.make(root, name, FILE, 0, 0)
        before = self.world.time_ns()
        await head.truncate(file, 0)
        data = self.chance.randbytes(self.chance.randrange(1, 30_000))
        await head.write(file, 0, data)
        assert before < file.mtime_ns < self.world.time_ns(), f'seed {self.seed}: not the time of the write'
        self.files[name] = data, file.mtime_ns

    async def snapshot(self) -> None:
        name = f's{len(self.snapshots)}'
        await self.engine.snapshot_create('home', name, 'test')
        self.snapshots.append((name, dict(self.files)))

    async def reopen(self) -> None:
        path = self.engine.store.path
        if self.chance.random() < 0.5:
            await self.engine.close()
        else:
            await self.engine.sync()
            self.engine.closed = True
            self.engine.store.close(clean=False)
        jump(self.world, self.chance.choice(JUMPS))
        self.engine = await Engine.open(path, Disk(), self.world)

    async def check_view(self, view: Any, wanted: dict[bytes, tuple[bytes, int]]) -> None:
        root = await view.inode(limits.INO_ROOT)
        listed = await view.list_directory(root, 0, 100)
        assert {entry[1] for entry in listed} == wanted.keys(), f'seed {self.seed}'
        for name, (data, mtime_ns) in wanted.items():
            inode = await view.lookup(root, name)
            assert await view.read(inode, 0, inode.size) == data, f'seed {self.seed}: {name!r}'
            assert inode.mtime_ns == mtime_ns, f'seed {self.seed}: {name!r}'

    async def check(self) -> None:
        await self.check_view(self.engine.head('home'), self.files)
        rows = self.engine.snapshot_list('home')
        assert [row.name for row in rows] == [name for name, _ in self.snapshots], f'seed {self.seed}: order'
        for row, (_, wanted) in zip(rows, self.snapshots, strict=True):
            await self.check_view(self.engine.snapshot_view(row.number), wanted)


@pytest.mark.parametrize('seed', range(SEEDS))
async def test_a_history_under_a_clock_that_jumps(tmp_path: Path, seed: int) -> None:
    world = SimWorld(seed)
    history = History(await make_engine(tmp_path / 'store', world), world, seed)
    await history.engine.volume_create('home', 0, 0)
    for _ in range(25):
        jump(world, history.chance.choice(JUMPS))
        step = history.chance.choice(('write', 'write', 'write', 'snapshot', 'reopen'))
        await getattr(history, step)()
    await history.check()
    await history.reopen()
    await history.check()
    assert history.engine.health() == 'ok', f'seed {seed}'
    await history.engine.close()


@pytest.fixture
async def held(tmp_path: Path) -> Any:
    """An engine with the snapshot home@s, and its world."""
    world = SimWorld(1)
    engine = await make_engine(tmp_path / 'store', world)
    await engine.volume_create('home', 0, 0)
    await engine.snapshot_create('home', 's', 'test')
    yield engine, world
    await engine.close()


async def test_a_hold_with_an_end_under_a_clock_that_jumps(held: tuple[Engine, SimWorld]) -> None:
    engine, world = held
    await engine.hold_add('home', 's', 'day', 'test', '', world.time_ns() + int(86400e9))
    await engine.hold_add('home', 's', 'ever', 'test', '')
    for seconds in (-40 * YEAR, 40 * YEAR, 30 * YEAR):
        world.jump(seconds)
        with pytest.raises(Held, match='ever'):
            await engine.snapshot_delete('home', 's', 'test')
    await engine.hold_release('home', 's', 'ever')
    world.jump(-30 * YEAR)
    with pytest.raises(Held, match='day'):
        await engine.snapshot_delete('home', 's', 'test')
    world.jump(-10 * YEAR)
    with pytest.raises(Held, match='day'):
        await engine.snapshot_delete('home', 's', 'test')


async def test_what_a_wrong_clock_let_go_can_be_taken_back(held: tuple[Engine, SimWorld]) -> None:
    """A clock decades ahead ends a hold that has an end. The deletion is a request as ever."""
    engine, world = held
    await engine.hold_add('home', 's', 'day', 'test', 'why', world.time_ns() + int(86400e9))
    world.jump(30 * YEAR)
    request = await engine.snapshot_delete('home', 's', 'test')
    world.jump(-30 * YEAR)
    await engine.snapshot_undelete(request.number)
    assert [row.name for row in engine.snapshot_list('home')] == ['s']


async def test_rollbacks_in_one_second_keep_a_safety_snapshot_each(held: tuple[Engine, SimWorld]) -> None:
    engine, world = held
    for _ in range(4):
        world.jump((START_NS - world.time_ns()) / 1e9)
        await engine.volume_rollback('home', 's', 'test')
    names = [row.name for row in engine.snapshot_list('home')]
    assert len(set(names)) == 5, names


async def test_what_is_due_by_the_time_that_passes_is_done_whatever_the_clock_says(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    """A clock that went back by decades must not keep changes from the journal for decades."""
    world = SimWorld(1)
    engine = await make_engine(tmp_path / 'store', world)
    head = await engine.volume_create('home', 0, 0)
    await engine.commit()
    async with trio.open_nursery() as nursery:
        await nursery.start(engine.run)
        records = engine.committer.counts['records']
        for number, seconds in enumerate((-40 * YEAR, 30 * YEAR, -1.0)):
            world.jump(seconds)
            await head.make(await head.inode(limits.INO_ROOT), b'%d' % number, FILE, 0, 0)
            await trio.sleep(2 * limits.JOURNAL_SECONDS_MAX)
            assert engine.committer.counts['records'] > records, f'nothing recorded after a jump by {seconds}'
            records = engine.committer.counts['records']
        commits = engine.committer.counts['commits']
        await trio.sleep(2 * limits.COMMIT_SECONDS_MAX)
        assert engine.committer.counts['commits'] > commits
        nursery.cancel_scope.cancel()
    await engine.close()


async def test_times_of_any_age_are_kept_or_refused(held: tuple[Engine, SimWorld]) -> None:
    engine, _ = held
    head = engine.head('home')
    assert head is not None
    file = await head.make(await head.inode(limits.INO_ROOT), b'f', FILE, 0, 0)
    for time_ns in (-(1 << 63), -1, 0, (1 << 63) - 1):
        await head.set_attributes(file, mtime_ns=time_ns)
        await engine.commit()
        assert file.mtime_ns == time_ns
    for time_ns in (1 << 63, -(1 << 63) - 1, 1 << 90):
        try:
            await head.set_attributes(file, mtime_ns=time_ns)
        except Refused as error:
            assert error.errno in (errno.EINVAL, errno.EOVERFLOW, errno.ERANGE)
        await engine.sync()
        assert abs(file.mtime_ns) <= 1 << 63


def test_the_time_of_a_request_can_be_told_whatever_the_clock_said() -> None:
    assert utc_text(0) == '1970-01-01 00:00:00 UTC'
    assert utc_text(LAST_NS).startswith('2220-')
    assert utc_text((1 << 63) - 1).startswith('2262-')
