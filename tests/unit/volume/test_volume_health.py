"""What `health` and `status` say when something is wrong: nobody should need the log to learn of it."""

from __future__ import annotations

import os
import sqlite3
import stat
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from snapfs import limits
from snapfs.errors import Corrupt
from snapfs.store.packs import pack_path
from snapfs.volume.engine import Engine
from snapfs.volume.head import Head
from snapfs.volume.inode import Inode
from tests.support.losses import lose_top_node
from tests.support.stores import fresh_engine, reopen

FILE = stat.S_IFREG | 0o644


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[Engine]:
    engine = await fresh_engine(tmp_path / 'store')
    yield engine
    engine.store.close(clean=False)


async def files(engine: Engine, count: int, first: int = 0) -> tuple[Head, Inode]:
    head = engine.head('home') or await engine.volume_create('home', 0, 0)
    root = await head.inode(limits.INO_ROOT)
    for n in range(first, first + count):
        await head.make(root, b'file %d' % n, FILE, 0, 0)
    return head, root


def damage_root(engine: Engine, head: Head) -> None:
    """Flip a bit of the volume's top node on disk, and forget what is in memory of it."""
    assert head.root.id is not None
    location = engine.store.catalog.locate([head.root.id])[head.root.id]
    pack = next(row for row in engine.store.catalog.packs() if row.pack == location.pack)
    path = pack_path(engine.store.path / 'packs', pack.kind, pack.name)
    data = bytearray(path.read_bytes())
    data[location.offset + 100] ^= 1
    path.write_bytes(data)


async def test_a_damaged_node_that_a_commit_needs_is_reported(engine: Engine) -> None:
    head, _ = await files(engine, 300)
    await engine.commit()
    damage_root(engine, head)
    head.core.nodes.forget()
    assert engine.health() == 'ok'
    await files(engine, 1, 1000)
    assert engine.health() == 'ok', 'nobody has read it yet'
    for _ in range(2):
        with pytest.raises(Corrupt):
            await engine.commit()
    assert engine.health().startswith('damaged: ')
    (found,) = [line for line in engine.status()['damaged'] if 'commit' in line]
    assert found.startswith('home, the next commit: ')
    (row,) = engine.store.registry.volumes()
    assert row.damaged_ns is not None
    await engine.sync()
    assert len(list(engine.store.journal.replay(engine.store.committed_sequence))) == 1, (
        'it is durable all the same'
    )


async def test_background_work_that_fails_is_in_health(engine: Engine) -> None:
    head, _ = await files(engine, 300)
    await engine.commit()
    damage_root(engine, head)
    head.core.nodes.forget()
    await files(engine, 1, 1000)
    assert not await engine._guarded(engine.committer.commit)
    assert engine.health().startswith('failing: ')
    engine.core.budget.failed = None
    assert engine.health().startswith('damaged: ')


async def test_a_damaged_node_that_a_listing_needs_is_reported(engine: Engine) -> None:
    head, _ = await files(engine, 300)
    await engine.commit()
    await engine.snapshot_create('home', 's', 'me')
    damage_root(engine, head)
    head.core.nodes.forget()
    view = engine.snapshot_view(engine.snapshot_find('home', 's').number)
    assert view is not None
    for _ in range(2):
        with pytest.raises(Corrupt):
            await view.inode(limits.INO_ROOT)
    assert engine.health().startswith('damaged: 1 ')


async def test_a_stopped_collector_is_in_health_and_status(engine: Engine) -> None:
    assert engine.status()['incidents'] == []
    row = engine.store.catalog.incident_add('collector', 'audit log: cut short', 7)
    assert engine.health() == f'the collector is stopped: incident {row.number}: audit log: cut short'
    assert engine.status()['incidents'] == [
        {'number': row.number, 'scope': 'collector', 'opened_ns': 7, 'reason': 'audit log: cut short'}
    ]
    engine.store.catalog.incident_acknowledge(row.number, 'me', 8)
    assert engine.health() == 'ok'


async def test_a_catalog_that_cannot_be_read_is_told_and_ends_nothing(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a disk that has failed. A power cut below a real mount ended the daemon here: it trims its memory by
    these counters."""
    await files(engine, 3)

    def fail(*_arguments: object) -> None:
        raise Corrupt('catalog: database disk image is malformed')

    monkeypatch.setattr(engine.store.catalog, 'query', fail)
    status = engine.status()
    assert status['incidents'] is None  # not: there are none
    assert status['health'] == 'damaged: catalog: database disk image is malformed'
    assert engine.counters() == status['counters']
    assert engine.writable()


async def lost_file(engine: Engine) -> tuple[Engine, dict[Path, bytes]]:
    """Store a file of one chunk, empty the packs of data, and find that out; return what they were."""
    head, root = await files(engine, 0)
    await head.write(await head.make(root, b'f', FILE, 0, 0), 0, b'lost' * 1000)
    engine = await reopen(engine)
    packs = {path: path.read_bytes() for path in (engine.store.path / 'packs/data').glob('*/*')}
    for path in packs:
        path.write_bytes(b'')
    with pytest.raises(Corrupt):
        await read_file(engine)
    return engine, packs


async def read_file(engine: Engine) -> bytes:
    head = engine.head('home')
    assert head is not None
    inode = await head.lookup(await head.inode(limits.INO_ROOT), b'f')
    assert inode is not None
    return await head.read(inode, 0, inode.size)


async def test_what_was_found_lost_is_told_after_a_restart(engine: Engine) -> None:
    """It was `ok` again, while the catalog knew."""
    engine, packs = await lost_file(engine)
    assert engine.health().startswith('damaged: ')
    for _ in range(2):
        engine = await reopen(engine)
        assert engine.health() == 'damaged: 1 chunk is known to be lost; snapfs damage names the files'
    assert engine.trouble() is None, 'a person may have looked: it stops no collector'
    for path, data in packs.items():
        path.write_bytes(data)
    assert await read_file(engine) == b'lost' * 1000
    assert engine.health() == 'ok'
    await engine.commit(always=True)
    engine = await reopen(engine)
    assert engine.health() == 'ok'
    await engine.close()


async def test_more_urgent_things_are_told_first(engine: Engine) -> None:
    engine, _ = await lost_file(engine)
    engine = await reopen(engine)
    row = engine.store.catalog.incident_add('collector', 'a scrub found it', 7)
    engine.core.budget.full = True
    assert engine.health().startswith('the collector is stopped')
    assert engine.health().endswith('; and 1 chunk is known to be lost')
    assert engine.status()['known_lost'] == 1
    engine.store.catalog.incident_acknowledge(row.number, 'me', 8)
    assert engine.health().startswith('damaged: 1 chunk '), 'it stays, and a full disk does not'
    await engine.close()


async def test_a_lost_node_that_a_reader_has_met_is_remembered(engine: Engine) -> None:
    """Nothing else has changed: the last commit writes it down all the same."""
    await files(engine, 300)
    row = await engine.snapshot_create('home', 's', 'me')
    await files(engine, 1, 1000)
    await engine.close()
    lose_top_node(engine.store.path, 'snapshot', 's')
    engine = await Engine.open(engine.store.path, engine.store.disk, engine.world)
    view = engine.snapshot_view(row.number)
    assert view is not None
    with pytest.raises(Corrupt):
        await view.inode(limits.INO_ROOT)
    engine = await reopen(engine)
    assert engine.health().startswith('damaged: 1 chunk ')
    await engine.close()


async def with_packs(engine: Engine) -> list[Path]:
    """Let there be sealed packs of data, all of them needed; return them."""
    head, root = await files(engine, 0)
    inode = await head.make(root, b'big', FILE, 0, 0)
    await head.write(inode, 0, b'some bytes that are stored ' * 5000)
    await engine.commit()
    return sorted(path for path in (engine.store.path / 'packs' / 'data').rglob('*') if path.is_file())


@pytest.mark.parametrize('harm', [Path.unlink, lambda path: os.truncate(path, 60)])
async def test_packs_that_are_gone_are_told_before_anybody_reads_them(
    engine: Engine, harm: Callable[[Path], None]
) -> None:
    (path,) = await with_packs(engine)
    await engine.close()
    whole = path.read_bytes()
    harm(path)
    engine = await Engine.open(engine.store.path, engine.store.disk, engine.world)
    told = 'damaged: 1 pack is missing or too short; snapfs damage names what is lost'
    assert engine.health() == told and engine.status()['health'] == told
    assert engine.trouble() is None, 'what is lost for good must not keep the collector for ever'
    path.write_bytes(whole)
    assert engine.health() == 'ok', 'it is there again'
    await engine.close()


async def test_a_folder_that_nobody_may_look_into_has_lost_nothing(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P10, and the mount starts."""
    (path,) = await with_packs(engine)
    await engine.close()
    real = Path.lstat

    def denied(self: Path) -> os.stat_result:
        if self == path:
            raise PermissionError(13, 'Permission denied', str(self))
        return real(self)

    monkeypatch.setattr(Path, 'lstat', denied)
    engine = await Engine.open(engine.store.path, engine.store.disk, engine.world)
    assert engine.health() == 'ok'
    monkeypatch.undo()
    await engine.close()


async def test_a_pack_that_is_gone_and_that_nothing_needs_is_no_damage(engine: Engine) -> None:
    (path,) = await with_packs(engine)
    await engine.close()
    path.unlink()
    with sqlite3.connect(engine.store.path / 'catalog.sqlite') as db:
        db.execute('DELETE FROM chunk WHERE kind = 1')
    db.close()
    engine = await Engine.open(engine.store.path, engine.store.disk, engine.world)
    assert engine.health() == 'ok'
    await engine.close()
