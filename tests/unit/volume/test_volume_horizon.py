"""The horizon of a recount: what a head, a flush or a replay names is in the roots of its epoch, or noted
(P3)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from snapfs import limits
from snapfs.errors import Latched
from snapfs.format.records import RecordKind
from snapfs.volume.engine import Engine
from tests.support.stores import fresh_engine
from tests.unit.volume.test_volume_faults import FILE, crashed, read, volume


@pytest.fixture
async def engine(tmp_path: Path) -> Any:
    engine = await fresh_engine(tmp_path / 'store')
    yield engine
    if not engine.closed:
        engine.store.close(clean=False)


def named(engine: Engine) -> set[bytes]:
    """The ids of all data chunks that the index has."""
    rows = engine.store.catalog.query('SELECT id FROM chunk WHERE kind = ?', (int(RecordKind.DATA),))
    return {id for (id,) in rows}


async def test_a_horizon_is_a_commit_also_when_nothing_changed(engine: Engine) -> None:
    await engine.commit()
    before = engine.store.catalog.epoch
    await engine.horizon()
    assert engine.store.catalog.epoch == before + 1


async def test_a_horizon_supersedes_the_journal(engine: Engine) -> None:
    """A journal record that is replayed after a crash would name chunks again that a batch has condemned."""
    head, root = await volume(engine)
    inode = await head.make(root, b'a', FILE, 0, 0)
    await head.write(inode, 0, b'x' * 100)
    await engine.sync()
    assert engine.store.journal.last_sequence > engine.store.committed_sequence
    await engine.horizon()
    assert engine.store.journal.last_sequence == engine.store.committed_sequence


async def test_a_horizon_waits_for_the_flush_in_flight(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A flush has put its chunks, and not yet told anybody of them, when the horizon begins: the roots of the
    horizon name them."""
    head, root = await volume(engine)
    inode = await head.make(root, b'a', FILE, 0, 0)
    await head.write(inode, 0, bytes(range(256)) * 1024)
    put, go_on = trio.Event(), trio.Event()
    real = engine.core.put_regions

    async def slow(regions):  # type: ignore[no-untyped-def]
        cut = await real(regions)
        put.set()
        await go_on.wait()
        return cut

    monkeypatch.setattr(engine.core, 'put_regions', slow)
    done: list[bool] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(engine.committer.flush)
        await put.wait()
        monkeypatch.undo()

        async def horizon() -> None:
            await engine.horizon()
            done.append(True)

        nursery.start_soon(horizon)
        await trio.testing.wait_all_tasks_blocked()
        assert done == []
        assert not named(engine)
        go_on.set()
    extents = await head.extents(inode.ino, 0, inode.size)
    assert extents
    assert {extent[2] for extent in extents} <= named(engine)
    assert head.logged.empty()
    assert head.fresh.empty()


async def test_what_is_written_after_a_horizon_is_noted(engine: Engine) -> None:
    head, root = await volume(engine)
    record = await engine.horizon()
    inode = await head.make(root, b'a', FILE, 0, 0)
    await head.write(inode, 0, b'y' * limits.CHUNK_BYTES_MIN)
    await engine.commit()
    assert all(record.has(id) for id in named(engine))


async def test_a_horizon_that_failed_notes_nothing(engine: Engine) -> None:
    head, root = await volume(engine)
    await head.make(root, b'a', FILE, 0, 0)
    engine.store.disk.latch('a test')
    with pytest.raises(Latched):
        await engine.horizon()
    assert engine.store.chunks._records == ()


async def test_a_crash_after_a_horizon_replays_nothing_older(engine: Engine) -> None:
    head, root = await volume(engine)
    inode = await head.make(root, b'a', FILE, 0, 0)
    await head.write(inode, 0, b'z' * 5000)
    await engine.sync()
    await engine.horizon()
    again = await crashed(engine)
    assert again.replayed_records == 0
    assert await read(again, b'a') == b'z' * 5000
    await again.close()


async def test_a_horizon_that_did_not_commit_is_none(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mutant: without the commit a replay named a chunk that had been freed."""

    async def nothing(*, always: bool = False) -> None:
        await trio.lowlevel.checkpoint()

    monkeypatch.setattr(engine.committer, 'commit', nothing)
    with pytest.raises(AssertionError, match='P3'):
        await engine.horizon()
    assert engine.store.chunks._records == (), 'puts are not noted then'
