"""What meets a rollback half way is in the safety snapshot, or was refused; never acknowledged and
then lost.
"""

from __future__ import annotations

import errno
import stat
from pathlib import Path

import pytest
import trio

from snapfs.errors import Refused
from tests.support.model import freeze_view
from tests.support.stores import fresh_engine

FILE = stat.S_IFREG | 0o644


async def test_changes_wait_while_a_rollback_commits(tmp_path: Path) -> None:
    engine = await fresh_engine(tmp_path / 'store')
    head = await engine.volume_create('home', 0, 0)
    root = await head.inode(1)
    await engine.snapshot_create('home', 'empty', 'test')
    acknowledged: list[bytes] = []
    refused: list[int] = []

    async def write_on() -> None:
        for number in range(10_000):
            name = b'f%d' % number
            try:
                inode = await head.make(root, name, FILE, 0, 0)
                await head.write(inode, 0, name)
            except Refused as error:
                refused.append(error.errno)
                return
            acknowledged.append(name)
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(write_on)
        while len(acknowledged) < 20:
            await trio.lowlevel.checkpoint()
        safety = await engine.volume_rollback('home', 'empty', 'test')
    assert refused == [errno.ESTALE]
    view = engine.snapshot_view(safety.number)
    assert view is not None
    kept = {name: frozen[3] for name, frozen in (await freeze_view(view))[3]}
    assert [name for name in acknowledged if kept.get(name) != name] == []
    await engine.close()


async def test_a_deletion_that_is_refused_lets_changes_go_on(tmp_path: Path) -> None:
    engine = await fresh_engine(tmp_path / 'store')
    head = await engine.volume_create('home', 0, 0)
    await engine.snapshot_create('home', 'one', 'test')
    with pytest.raises(Exception, match='snapshot'):
        await engine.volume_delete('home', 'test')
    inode = await head.make(await head.inode(1), b'a', FILE, 0, 0)
    assert await head.write(inode, 0, b'still here') == 10
    await engine.close()
