"""Inodes without a name in heads that are new: of a clone, after a rollback, taken back, after a crash."""

from __future__ import annotations

import errno
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from snapfs import limits
from snapfs.volume.engine import Engine
from snapfs.volume.head import Head
from snapfs.volume.inode import Inode
from tests.support.model import refuses
from tests.support.stores import fresh_engine

FILE = stat.S_IFREG | 0o644


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[Engine]:
    engine = await fresh_engine(tmp_path / 'store')
    yield engine
    if not engine.closed:
        engine.store.close(clean=False)


async def volume_with_orphans(engine: Engine, count: int) -> tuple[Head, list[Inode]]:
    """A committed volume with files that are open and have no name."""
    head = await engine.volume_create('home', 0, 0)
    root = await head.inode(limits.INO_ROOT)
    found = []
    for n in range(count):
        inode = await head.make(root, b'%d' % n, FILE, 0, 0)
        head.referenced(inode.ino)
        await head.write(inode, 0, b'%d' % n * 1000)
        await head.unlink(root, b'%d' % n)
        found.append(inode)
    await engine.commit()
    return head, found


async def test_a_clone_has_none(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, 'EXTENTS_PAGE', 2)
    head, files = await volume_with_orphans(engine, 5)
    await engine.snapshot_create('home', 's', 'me')
    clone = await engine.volume_clone('home', 's', 'copy')
    assert await clone.orphans(99) == []
    for inode in files:
        await refuses(errno.ESTALE, clone.inode(inode.ino))
        assert (await head.read(inode, 0, 9))[:1].isdigit(), 'they are in use in the other volume'
    assert len(await head.orphans(99)) == 5
    await engine.commit()
    assert await clone.orphans(99) == []


async def test_a_rolled_back_volume_has_none(engine: Engine) -> None:
    _, files = await volume_with_orphans(engine, 3)
    await engine.snapshot_create('home', 's', 'me')
    await engine.volume_rollback('home', 's', 'me')
    head = engine.head('home')
    assert head is not None
    assert await head.orphans(99) == []
    await refuses(errno.ESTALE, head.inode(files[0].ino))


async def test_a_volume_taken_back_keeps_what_is_in_use(engine: Engine) -> None:
    """The kernel has two of three files open all the time. They go when it lets go of them."""
    _, files = await volume_with_orphans(engine, 3)

    def tell(what: str, volume: int, name: str, number: int) -> None:
        if what == 'volume-added':
            for inode in files[:2]:
                engine.heads()[name].referenced(inode.ino)

    engine.on_change(tell)
    request = await engine.volume_delete('home', 'me')
    head = await engine.volume_undelete(request.number)
    assert await head.orphans(99) == [inode.ino for inode in files[:2]]
    assert await head.read(await head.inode(files[1].ino), 0, 3) == b'111'
    head.forgotten(files[0].ino)
    assert await head.orphans(99) == [files[1].ino]
    await refuses(errno.ESTALE, head.inode(files[0].ino))
    head.reclaim_all()
    assert await head.orphans(99) == []


async def test_a_crash_leaves_none(engine: Engine) -> None:
    _, files = await volume_with_orphans(engine, 3)
    engine.closed = True
    engine.store.close(clean=False)
    again = await Engine.open(engine.store.path, engine.store.disk, engine.world)
    head = again.head('home')
    assert head is not None
    assert await head.orphans(99) == []
    await refuses(errno.ESTALE, head.inode(files[0].ino))
    await again.close()
