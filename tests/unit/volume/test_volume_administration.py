"""Volumes, snapshots, requests and holds by way of the engine, and what the engine says of itself."""

from __future__ import annotations

import errno
import stat
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from snapfs import limits
from snapfs.errors import Corrupt, Held, Latched
from tests.support.model import refuses
from tests.support.stores import fresh_engine, reopen

FILE = stat.S_IFREG | 0o644


@pytest.fixture
async def home(tmp_path: Path) -> Any:
    engine = await fresh_engine(tmp_path / 'store')
    head = await engine.volume_create('home', 0, 0)
    file = await head.make(await head.inode(limits.INO_ROOT), b'f', FILE, 0, 0)
    await head.write(file, 0, b'one')
    yield engine, head, file
    await engine.close()


async def first(view: Any) -> bytes:
    file = await view.lookup(await view.inode(limits.INO_ROOT), b'f')
    return await view.read(file, 0, 99)


async def test_the_life_of_a_snapshot(home: Any) -> None:
    engine, head, file = home
    told: list[str] = []
    engine.on_change(lambda what, *_: told.append(what))
    row = await engine.snapshot_create('home', 's', 'test')
    await refuses(errno.EEXIST, engine.snapshot_create('home', 's', 'test'))
    await head.write(file, 0, b'two')
    assert await first(engine.snapshot_view(row.number)) == b'one'
    await engine.snapshot_rename('home', 's', 't')
    assert [one.name for one in engine.snapshot_list()] == ['t']
    await engine.hold_add('home', 't', 'h', 'test', 'why')
    assert [one.name for one in engine.hold_list('home', 't')] == ['h']
    with pytest.raises(Held):
        await engine.snapshot_delete('home', 't', 'test')
    await engine.hold_release('home', 't', 'h')
    request = await engine.snapshot_delete('home', 't', 'test')
    assert engine.snapshot_list('home') == []
    assert engine.request_list() == [request]
    assert await first(engine.snapshot_view(request.view)) == b'one'
    await refuses(errno.ENOENT, engine.volume_undelete(request.number))
    await engine.snapshot_undelete(request.number, 'u', 'home')
    assert await first(engine.snapshot_view(engine.snapshot_find('home', 'u').number)) == b'one'
    await refuses(errno.ENOENT, engine.snapshot_undelete(request.number))
    assert engine.snapshot_view(99_999) is None
    assert told == [
        'snapshot-added',
        'snapshot-renamed',
        'snapshot-removed',
        'request-added',
        'request-removed',
        'snapshot-added',
    ]


async def test_clones_and_rollbacks(home: Any) -> None:
    engine, head, file = home
    await engine.snapshot_create('home', 's', 'test')
    clone = await engine.volume_clone('home', 's', 'copy')
    assert clone.next_ino >= head.next_ino
    copied = await clone.inode(file.ino)
    await clone.write(copied, 0, b'xyz')
    await head.write(file, 0, b'two')
    before = head.next_ino
    safety = await engine.volume_rollback('home', 's', 'test')
    again = engine.head('home')
    assert again is not head and again.number != head.number
    assert again.next_ino >= before
    assert (await first(again), await first(clone)) == (b'one', b'xyz')
    assert await first(engine.snapshot_view(safety.number)) == b'two'
    assert (await engine.volume_rollback('home', 's', 'test')).name != safety.name


async def test_the_life_of_a_volume(home: Any) -> None:
    engine, head, _ = home
    await engine.volume_rename('home', 'house')
    assert [row.name for row in engine.volume_list()] == ['house']
    await refuses(errno.ENOENT, engine.volume_rename('home', 'x'))
    request = await engine.volume_delete('house', 'test')
    assert engine.head_by_number(head.number) is None
    assert engine.head_of_volume(head.row.volume) is None
    back = await engine.volume_undelete(request.number, 'new')
    assert engine.heads() == {'new': back}
    assert await first(back) == b'one'


async def test_status_and_damage(home: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, head, file = home
    assert engine.status()['health'] == 'ok'
    assert engine.statfs().f_bsize
    await engine.commit()

    async def chunks_of(ids: Any) -> Any:
        raise Corrupt('gone')

    with monkeypatch.context() as patch:
        patch.setattr(engine.core, 'chunks_of', chunks_of)
        for _ in range(2):
            with pytest.raises(Corrupt):
                await head.read(file, 0, 9)
    assert len(engine.status()['damaged']) == 1
    assert engine.health().startswith('damaged')
    await engine.volume_create('other', 0, 0)


async def test_a_latched_engine_takes_nothing_more_and_closes(home: Any) -> None:
    engine, head, file = home
    await engine.sync()
    engine.core.fail(Latched('test'))
    engine.core.fail(Latched('again'))
    for work in (head.set_attributes(file, mode=0), head.unlink(await head.inode(1), b'f'), engine.sync()):
        with pytest.raises(Latched):
            await work
    assert await head.read(file, 0, 9) == b'one'
    assert not engine.status()['writable']
    await engine.close()
    await engine.close()


async def test_the_background_flushes_records_and_commits(
    home: Any, autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, head, file = home
    monkeypatch.setattr(engine.world, 'monotonic', trio.current_time)
    engine._last_record = engine.committer.last_commit = trio.current_time()
    async with trio.open_nursery() as nursery:
        await nursery.start(engine.run)
        await trio.sleep(limits.JOURNAL_SECONDS_MAX + 2)
        assert engine.committer.counts['records'] >= 1
        for number in range(40):
            await head.write(file, number * limits.MIB, bytes([number]) * limits.MIB)
        await trio.sleep(limits.COMMIT_SECONDS_MAX + 10)
        assert head.items() == 0
        assert engine.core.budget.dirty < limits.DIRTY_BYTES_FLUSH
        await engine.close()
    assert engine.closed


async def test_a_clean_store_comes_back_with_everything(tmp_path: Path) -> None:
    engine = await fresh_engine(tmp_path / 'store')
    await engine.volume_create('home', 0, 0)
    await engine.snapshot_create('home', 's', 'test')
    engine = await reopen(engine)
    assert engine.snapshot_find('home', 's').name == 's'
    assert engine.replayed_records == 0
    await engine.close()
