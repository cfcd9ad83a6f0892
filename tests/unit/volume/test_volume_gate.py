"""What meets a rollback half way is in the safety snapshot, or was refused; never acknowledged and
then lost.
"""

from __future__ import annotations

import errno
import stat
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from snapfs.errors import Refused
from tests.support.model import freeze_view
from tests.support.stores import fresh_engine, reopen
from tests.unit.volume.test_volume_faults import content

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


CHANGES: dict[str, tuple[str, Any]] = {
    'make': ('entries_at', lambda head, root, file: head.make(root, b'new', FILE, 0, 0)),
    'link': ('entries_at', lambda head, root, file: head.link(file, root, b'new')),
    'unlink': ('entries_at', lambda head, root, file: head.unlink(root, b'f')),
    'rename': ('entries_at', lambda head, root, file: head.rename(root, b'f', root, b'new')),
    'write': ('admit', lambda head, root, file: head.write(file, 0, b'new')),
    'set': ('xattrs', lambda head, root, file: head.xattr_set(file, b'user.a', b'new')),
    'set long': ('flush_lock', lambda head, root, file: head.xattr_set(file, b'user.a', b'new' * 1000)),
    'remove': ('xattrs', lambda head, root, file: head.xattr_remove(file, b'user.b')),
}


@pytest.mark.parametrize('change', CHANGES)
async def test_a_change_that_waits_when_a_rollback_begins_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    """It had passed the gate, and waited for the disk or for memory while the rollback took its moment: what
    it changed then would be in neither state.
    """
    engine = await fresh_engine(tmp_path / 'store')
    head = await engine.volume_create('home', 0, 0)
    root = await head.inode(1)
    file = await head.make(root, b'f', FILE, 0, 0)
    await head.xattr_set(file, b'user.b', b'old')
    await engine.snapshot_create('home', 'one', 'test')
    engine = await reopen(engine)
    head = content(engine)
    root = await head.inode(1)
    file = await head.inode(file.ino)
    where, call = CHANGES[change]
    here, go_on = trio.Event(), trio.Event()
    refused: list[int] = []

    async def wait() -> None:
        if not here.is_set():
            here.set()
            await go_on.wait()

    def late(real: Any) -> Any:
        async def waiting(*arguments: Any) -> Any:
            result = await real(*arguments)
            await wait()
            return result

        return waiting

    if where == 'admit':
        monkeypatch.setattr(engine.core.budget, 'tight', lambda count: True)
        monkeypatch.setattr(engine.core.budget, 'admit', late(engine.core.budget.admit))
    elif where != 'flush_lock':
        monkeypatch.setattr(head, where, late(getattr(head, where)))

    async def changing() -> None:
        try:
            await call(head, root, file)
        except Refused as error:
            refused.append(error.errno)

    async with trio.open_nursery() as nursery:
        if where == 'flush_lock':
            await engine.committer.commit_and_hold()
            nursery.start_soon(changing)
            await trio.testing.wait_all_tasks_blocked()
            engine._drop_head(head)
            engine.committer.let_go()
        else:
            nursery.start_soon(changing)
            await here.wait()
            await engine.volume_rollback('home', 'one', 'test')
            go_on.set()
    assert refused == [errno.ESTALE]
    engine.store.close(clean=False)
