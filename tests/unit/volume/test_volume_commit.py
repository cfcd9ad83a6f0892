"""Commits that fail early or are cancelled: what is in memory agrees with what is durable."""

from __future__ import annotations

import errno

import pytest
import trio

from snapfs.errors import Refused
from snapfs.volume.engine import Engine
from tests.support.model import refuses
from tests.unit.volume.test_volume_faults import FILE, content, crashed, engine, read, volume

__all__ = ['engine']


@pytest.mark.parametrize('hold', [False, True])
async def test_a_commit_that_cannot_leave_the_journal_gives_everything_back(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, hold: bool
) -> None:
    head, root = await volume(engine)
    await head.write(await head.make(root, b'f', FILE, 0, 0), 0, b'first' * 100)

    def switch() -> int:
        raise Refused(errno.ENOSPC)

    with monkeypatch.context() as patch:
        patch.setattr(engine.store.journal, 'switch', switch)
        await refuses(errno.ENOSPC, engine.committer.commit_and_hold() if hold else engine.commit())
    assert head.frozen is None
    await head.write(await head.make(root, b'g', FILE, 0, 0), 0, b'second' * 100)
    await engine.commit()
    epoch = engine.store.catalog.epoch
    await engine.commit()
    assert engine.store.catalog.epoch == epoch, 'nothing was left to commit'
    await head.write(await head.make(root, b'h', FILE, 0, 0), 0, b'third' * 100)
    await engine.sync()
    engine = await crashed(engine)
    found = [await read(engine, name) for name in (b'f', b'g', b'h')]
    assert found == [b'first' * 100, b'second' * 100, b'third' * 100]
    await engine.close()


async def test_a_rollback_or_deletion_is_not_cancelled_in_the_middle_of_its_commit(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    head, root = await volume(engine)
    await head.write(await head.make(root, b'f', FILE, 0, 0), 0, b'abc' * 100)
    real = engine.store.chunks.sync
    scope, done = trio.CancelScope(), False

    def sync() -> None:
        scope.cancel()
        real()

    monkeypatch.setattr(engine.store.chunks, 'sync', sync)
    with scope:
        await engine.committer.commit_and_hold()
        done = True
        await trio.lowlevel.checkpoint()
        raise AssertionError('not cancelled')
    assert done, 'cancelled half way'
    row = next(row for row in engine.store.registry.volumes() if row.name == 'home')
    assert head.root.id == row.root
    assert head.frozen is None
    assert engine.committer.commit_lock.locked()
    assert engine.core.flush_lock.locked()
    engine.committer.let_go()
    monkeypatch.undo()
    await engine.commit()
    engine = await crashed(engine)
    assert await read(engine, b'f') == b'abc' * 100
    assert content(engine).root.id == row.root
    await engine.close()
