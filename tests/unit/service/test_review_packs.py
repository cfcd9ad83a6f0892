"""Packs that go, beside a journal that still names them, and a full disk."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from snapfs.collect.receipts import Receipts
from snapfs.collect.repack import repack
from snapfs.collect.sweep import census, retire, unlink
from snapfs.errors import Refused
from snapfs.format.records import RecordKind
from snapfs.service.collecting import Collecting
from snapfs.volume.engine import Engine
from tests.support.collecting import (
    DAY,
    collected,
    forget,
    job_in_process,
    noise,
    read_tree,
    remove_file,
    small_packs,
    write_file,
)


def carry_all(engine: Engine) -> int:
    """Rewrite every sealed pack, as if each had much waste; return how many packs went."""
    store, gone = engine.store, 0
    receipts = Receipts(store)
    for use in census(store.catalog, store.chunks.busy_packs(), ('sealed',)):
        if use.needed_bytes:
            repack(store, [use], receipts)
        assert retire(store, use.row)
        gone += unlink(store, use.row, receipts) is None
    receipts.close()
    return gone


async def test_a_journal_record_may_name_a_pack_that_has_been_rewritten_since(tmp_path: Path) -> None:
    """It was written while a commit was under way that took its chunks as well: the commit does not supersede
    it, and the chunks have rows, so their packs may be rewritten before the next commit does."""
    async with collected(tmp_path / 'store') as collecting:
        engine = collecting.engine
        await engine.volume_create('home', 0, 0)
        await write_file(engine, 'before', noise(1))
        make_current = engine.committer._make_current

        async def late(*arguments: object) -> None:
            engine.committer._make_current = make_current  # type: ignore[method-assign]
            for n in range(40):
                await write_file(engine, f'during{n}', noise(100 + n))
            await engine.committer.flush()
            await engine.sync()
            await make_current(*arguments)  # type: ignore[arg-type]

        engine.committer._make_current = late  # type: ignore[method-assign]
        await engine.commit()
        live = await read_tree(engine.head('home'))
        assert engine.store.committed_sequence < engine.store.journal.last_sequence
        assert carry_all(engine) > 3
        engine.store.close(clean=False)
        engine.closed = True
        again = await Engine.open(engine.store.path, engine.store.disk, engine.world)
        assert await read_tree(again.head('home')) == live
        await again.close()
        again = await Engine.open(engine.store.path, engine.store.disk, engine.world)
        assert await read_tree(again.head('home')) == live
        await again.close()


async def wasteful(collecting: Collecting) -> None:
    """Let there be packs that are worth rewriting: parts of each have been freed."""
    engine = collecting.engine
    await engine.volume_create('home', 0, 0)
    for n in range(30):
        await write_file(engine, f'file{n}', noise(n, 6000))
    await engine.commit()
    for n in range(1000, 1060):
        await write_file(engine, f'file{n}', noise(n))
    await engine.commit()
    for n in range(30):
        if n % 3:
            await remove_file(engine, f'file{n}')
    await engine.commit()
    await collecting.collect()
    collecting.world.advance(DAY)  # type: ignore[attr-defined]


async def test_a_copy_that_the_full_disk_broke_off_stops_no_later_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / 'store'
    async with collected(path) as collecting:
        await wasteful(collecting)
        engine = collecting.engine
        disk = engine.store.disk
        # The copy is written as a whole, and then there is no room for the row.
        failed = []

        def full(*arguments: object) -> int:
            failed.append(arguments)
            raise Refused(errno.ENOSPC, 'no space left on the disk below')

        with monkeypatch.context() as patched:
            patched.setattr('snapfs.collect.repack.take_over', full)
            with pytest.raises(Refused):
                await collecting.collect()
        assert failed
        for n in range(1000, 1010):
            await remove_file(engine, f'file{n}')
        await engine.commit()
        await collecting.collect(fresh=True)
        live = await read_tree(engine.head('home'))
        await collecting.stop()
        await engine.close()
    engine = await Engine.open(path, disk, collecting.world)
    small_packs(engine)
    collecting = Collecting(engine, collecting.world, job_in_process(collecting.world))  # type: ignore[arg-type]
    await collecting.begin()
    collecting.world.advance(DAY)  # type: ignore[attr-defined]
    report = await collecting.collect()
    assert [row.state for row in report['freed']] == ['FREED']
    forget(engine)
    assert await read_tree(engine.head('home')) == live
    await engine.close()


async def test_a_pack_that_could_not_be_removed_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with collected(tmp_path / 'store') as collecting:
        await wasteful(collecting)
        engine = collecting.engine

        def refuse(path: Path) -> None:
            raise Refused(
                errno.ENOSPC, f'unlink of {path.name}: no space left'
            )  # as on a disk that copies on write

        with monkeypatch.context() as patched:
            patched.setattr(engine.store.disk, 'unlink', refuse)
            with pytest.raises(Refused):
                await collecting.collect()
        assert ('retired',) in engine.store.catalog.query('SELECT state FROM pack')
        live = await read_tree(engine.head('home'))
        await collecting.collect()
        assert ('retired',) not in engine.store.catalog.query('SELECT state FROM pack')
        assert collecting.collector.incidents.latched() is None
        forget(engine)
        assert await read_tree(engine.head('home')) == live
        kinds = {kind for (kind,) in engine.store.catalog.query('SELECT kind FROM pack')}
        assert kinds == {int(RecordKind.DATA), int(RecordKind.NODE)}
