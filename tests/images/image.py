"""A small store with one of everything, the same on every call: what precise damage is done to."""

from __future__ import annotations

import random
import stat
from pathlib import Path

import trio

from snapfs import limits
from snapfs.collect import configuration
from snapfs.service.collecting import Collecting
from snapfs.store.durable import Disk
from snapfs.store.store import Store
from snapfs.volume.engine import Engine
from snapfs.volume.inode import Inode
from tests.mutants.setting import StepWorld, content, small
from tests.support.collecting import DAY, job_in_process, small_packs, write_file

FILE, DIRECTORY = stat.S_IFREG | 0o644, stat.S_IFDIR | 0o755
LINK, FIFO = stat.S_IFLNK | 0o777, stat.S_IFIFO | 0o600


def make(path: Path) -> None:
    """Make the store at `path`; it ends as a power cut leaves it, with records in the journal."""
    with small():
        world = StepWorld()
        Store.create(path, Disk(), world).close(clean=True)
        trio.run(_live, path, world)


async def _live(path: Path, world: StepWorld) -> None:
    engine = await Engine.open(path, Disk(), world)
    small_packs(engine, 16 * limits.KIB, 6 * limits.KIB)
    collecting = Collecting(engine, world, job_in_process(world))
    await collecting.begin()
    for name, value in (('limit-share', '100%'), ('limit-drop', '100%'), ('repack-waste', '90%')):
        configuration.change(engine.store.catalog, engine.store.audit, name, value, 'ann')
    await engine.volume_create('home', 1000, 1000)
    await engine.volume_create('work', 1000, 1000)
    await _fill(engine)
    await _free_something(engine, collecting, world)
    await engine.snapshot_create('home', 'monday', 'ann')
    await engine.hold_add('home', 'monday', 'audit', 'ann', 'until it is over')
    await write_file(engine, 'of tuesday', content('of tuesday', 3000))
    await write_file(engine, 'in both', content('in both', 900), 'work')
    await engine.snapshot_create('home', 'tuesday', 'bob')
    await engine.snapshot_create('work', 'base', 'ann')
    await _condemn_something(engine, collecting)
    await write_file(engine, 'of the trash', content('of the trash', 2000))
    await engine.snapshot_create('home', 'deleted', 'ann')
    await engine.snapshot_delete('home', 'deleted', 'bob')
    await engine.commit()
    assert engine.store.mirror.copy(), 'as the daemon does each minute'
    for number in range(3):
        await write_file(engine, f'late {number}', content(f'late {number}', 700), 'work')
        await engine.sync()
    engine.store.close(clean=False)
    engine.closed = True


async def _fill(engine: Engine) -> None:
    head = engine.head('home')
    assert head is not None
    top = await head.inode(limits.INO_ROOT)
    chance = random.Random(7)
    for number in range(5):
        directory = await head.make(top, f'directory {number}'.encode(), DIRECTORY, 1000, 1000)
        below = await head.make(directory, b'below', DIRECTORY, 1000, 1000)
        for name in ('one', 'two', 'three'):
            inode = await head.make(below, name.encode(), FILE, 1000, 1000)
            await head.write(inode, 0, chance.randbytes(600) + content(f'{number}{name}', 300))
    big = await _make(engine, top, b'big', content('big', 90_000))
    await head.write(big, 1 << 20, content('far away', 500))
    await _make(engine, top, b'cut in pieces', content('cut', 30_000))
    hard = await _make(engine, top, b'hard', content('hard', 400))
    await head.link(hard, top, b'hard too')
    await head.make(top, b'symlink', LINK, 0, 0, target=b'big')
    await head.make(top, b'pipe', FIFO, 0, 0)
    await head.xattr_set(hard, b'user.short', b'a value')
    await head.xattr_set(hard, b'user.long', content('attribute', 2000))
    await write_file(engine, 'in both', content('in both', 900), 'work')


async def _make(engine: Engine, top: Inode, name: bytes, data: bytes) -> Inode:
    head = engine.head('home')
    assert head is not None
    inode = await head.make(top, name, FILE, 1000, 1000)
    await head.write(inode, 0, data)
    return inode


async def _free_something(engine: Engine, collecting: Collecting, world: StepWorld) -> None:
    """A batch that was freed, with its receipt and certificate."""
    for number in range(6):
        await write_file(engine, f'gone {number}', content(f'gone {number}', 800))
    await engine.snapshot_create('home', 'gone', 'ann')
    await _remove(engine, [f'gone {number}' for number in range(6)])
    await engine.snapshot_delete('home', 'gone', 'ann')
    await collecting.collect()
    for _ in range(2):
        world.advance(8 * DAY)
        await collecting.collect()


async def _condemn_something(engine: Engine, collecting: Collecting) -> None:
    """A batch that rests in quarantine."""
    for number in range(4):
        await write_file(engine, f'resting {number}', content(f'resting {number}', 800))
    await engine.snapshot_create('home', 'resting', 'ann')
    await _remove(engine, [f'resting {number}' for number in range(4)])
    await engine.snapshot_delete('home', 'resting', 'ann')
    await collecting.collect()


async def _remove(engine: Engine, names: list[str]) -> None:
    head = engine.head('home')
    assert head is not None
    top = await head.inode(limits.INO_ROOT)
    for name in names:
        await head.unlink(top, name.encode())
    await engine.commit()
