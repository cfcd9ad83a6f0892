"""Closing when the last commit finds no room: what was written must be in the journal then."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest

from snapfs import limits
from snapfs.errors import Refused
from snapfs.format.records import RecordKind
from snapfs.volume.engine import Engine
from tests.support.model import refuses
from tests.support.stores import fresh_engine
from tests.unit.volume.test_volume_faults import FILE, fail_puts, read, volume

SMALL, LARGE = b'few bytes', b'0123456789abcdef' * (limits.JOURNAL_INLINE_BYTES_MAX // 8)


@pytest.fixture
async def engine(tmp_path: Path) -> Any:
    return await fresh_engine(tmp_path / 'store')


async def test_a_last_commit_without_room_leaves_everything_to_the_journal(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    head, root = await volume(engine)
    for name, data in ((b'small', SMALL), (b'large', LARGE)):
        await head.write(await head.make(root, name, FILE, 0, 0), 0, data)
    undo = fail_puts(monkeypatch, engine, RecordKind.NODE)
    await refuses(errno.ENOSPC, engine.close())
    undo()
    again = await Engine.open(engine.store.path, engine.store.disk, engine.world)
    assert not again.store.was_clean
    assert again.replayed_records == 1
    assert await read(again, b'small') == SMALL
    assert await read(again, b'large') == LARGE
    await again.close()


async def test_when_no_chunk_can_be_stored_few_bytes_still_go_into_the_journal(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    head, root = await volume(engine)
    await head.write(await head.make(root, b'small', FILE, 0, 0), 0, SMALL)
    fail_puts(monkeypatch, engine, RecordKind.DATA)
    await refuses(errno.ENOSPC, engine.close())
    monkeypatch.undo()
    again = await Engine.open(engine.store.path, engine.store.disk, engine.world)
    assert await read(again, b'small') == SMALL
    await again.close()


async def test_what_was_synced_before_survives_a_close_that_can_do_nothing(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    head, root = await volume(engine)
    file = await head.make(root, b'f', FILE, 0, 0)
    await head.write(file, 0, SMALL)
    await engine.sync()
    await head.write(file, 0, LARGE)
    fail_puts(monkeypatch, engine, RecordKind.DATA)

    def append(*_: object) -> None:
        raise Refused(errno.ENOSPC)

    monkeypatch.setattr(engine.store.journal, 'append', append)
    await refuses(errno.ENOSPC, engine.close())
    monkeypatch.undo()
    again = await Engine.open(engine.store.path, engine.store.disk, engine.world)
    assert await read(again, b'f') == SMALL
    await again.close()
