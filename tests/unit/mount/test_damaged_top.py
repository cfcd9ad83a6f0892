"""A volume whose own top node is lost: it cannot be listed, and its snapshots can be entered (P7)."""

from __future__ import annotations

import errno
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import pyfuse3
import pytest

from snapfs import limits
from snapfs.mount import nodeids
from snapfs.mount.nodeids import NodeKind
from snapfs.volume.engine import Engine
from tests.support.losses import lose_top_node
from tests.support.stores import fresh_engine
from tests.unit.mount.kit import ADMIN, ROOT, USER, Kit, refused, reply


@pytest.fixture
async def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Engine]:
    monkeypatch.setattr(pyfuse3, 'readdir_reply', reply)
    made = await fresh_engine(tmp_path / 'store')
    await made.volume_create('home', USER.uid, USER.gid)
    kit = Kit(made)
    await kit.mkdir('home/docs')
    await kit.write('home/docs/a', b'old')
    await kit.mkdir('home/.snapshots/monday')
    await kit.write('home/docs/b', b'new')
    await made.close()
    lose_top_node(made.store.path, 'volume', 'home')
    again = await Engine.open(made.store.path, made.store.disk, made.world)
    yield again
    await again.close()


@pytest.fixture(params=[None, 'home'])
def kit(engine: Engine, request: pytest.FixtureRequest) -> Kit:
    """The whole store, and the volume alone."""
    return Kit(engine, volume=request.param)


def top(kit: Kit) -> str:
    return 'home/' if kit.space.mounted is None else ''


async def test_its_snapshots_can_be_entered_and_read(kit: Kit) -> None:
    snapshots = f'{top(kit)}.snapshots'
    assert await kit.list(snapshots) == [b'monday']
    assert await kit.list(f'{snapshots}/monday') == [b'docs']
    assert await kit.read(f'{snapshots}/monday/docs/a') == b'old'
    assert not await kit.exists(f'{snapshots}/friday')
    assert b'damaged' in await kit.read('.snapfs/health')


async def test_what_is_lost_answers_eio(kit: Kit) -> None:
    node = await kit.node(top(kit))
    for name in (b'docs', b'.other'):
        async with refused(errno.EIO):
            await kit.adapter.lookup(node, name, ADMIN)
    async with refused(errno.EIO):
        await kit.list(top(kit))
    async with refused(errno.EIO):
        await kit.adapter.mkdir(node, b'new', 0o755, ADMIN)
    home = kit.engine.heads()['home'].number
    for kind in (NodeKind.LIVE, NodeKind.SNAPSHOTS):
        async with refused(errno.EIO):
            await kit.adapter.getattr(nodeids.encode_node(kind, home, 17), ADMIN)


async def test_nobody_knows_whom_it_let_in_so_it_lets_in_the_owner_of_the_store(kit: Kit) -> None:
    """A volume that was closed must not be open because its mode is lost."""
    owner = kit.engine.store.path.stat()
    for path in (top(kit), f'{top(kit)}.snapshots'):
        found = await kit.stat(path)
        assert stat.S_ISDIR(found.st_mode) and stat.S_IMODE(found.st_mode) == 0o500
        assert (found.st_uid, found.st_gid) == (owner.st_uid, owner.st_gid)
        assert found.attr_timeout <= limits.PLACE_ATTRIBUTES_SECONDS, 'it may come back'


async def test_the_way_back_up_is_known(kit: Kit) -> None:
    snapshots = await kit.node(f'{top(kit)}.snapshots')
    above = await kit.adapter.lookup(snapshots, b'..', ADMIN)
    assert above.st_ino == await kit.node(top(kit))
    assert (await kit.adapter.lookup(above.st_ino, b'.', ADMIN)).st_ino == above.st_ino
    assert (await kit.adapter.lookup(above.st_ino, b'..', ADMIN)).st_ino == ROOT


async def test_no_snapshot_is_taken_of_what_cannot_be_read(kit: Kit) -> None:
    """`mkdir` said EIO, and had made one."""
    async with refused(errno.EIO):
        await kit.mkdir(f'{top(kit)}.snapshots/tuesday')
    assert await kit.list(f'{top(kit)}.snapshots') == [b'monday']


async def test_a_rollback_brings_it_back_to_life(engine: Engine) -> None:
    kit = Kit(engine)
    await kit.node('home')
    await engine.volume_rollback('home', 'monday', 'ann')
    assert (ROOT, b'home') in kit.space.stale(), 'the kernel is told'
    assert await kit.list('home') == [b'docs']
    assert (await kit.stat('home')).st_uid == USER.uid


async def test_a_clone_of_a_whole_snapshot_works_beside_it(engine: Engine) -> None:
    kit = Kit(engine)
    await engine.volume_clone('home', 'monday', 'copy')
    assert await kit.list('') == [b'home', b'copy']
    assert await kit.read('copy/docs/a') == b'old'


async def test_a_snapshot_whose_top_node_is_lost_has_no_stand_in(engine: Engine) -> None:
    """Nothing lies behind it that could be whole."""
    row = engine.snapshot_find('home', 'monday')
    await engine.close()
    lose_top_node(engine.store.path, 'snapshot', 'monday')
    again = await Engine.open(engine.store.path, engine.store.disk, engine.world)
    kit = Kit(again)
    assert await kit.list('home/.snapshots') == [b'monday']
    async with refused(errno.EIO):
        await kit.node('home/.snapshots/monday')
    async with refused(errno.EIO):
        await kit.adapter.getattr(nodeids.encode_node(NodeKind.SNAPSHOT, row.number, 1), ADMIN)
    await again.close()
