"""What was found lost stays known: a restart does not share new bytes with a lost copy."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from snapfs import limits
from snapfs.errors import Corrupt, Invalid
from snapfs.format.ids import data_id
from snapfs.store.durable import Disk
from snapfs.volume.engine import Engine
from tests.sim.world import SimWorld
from tests.support.collecting import forget, noise, write_file
from tests.support.stores import fresh_engine

DATA = noise(5, 12_000)

pytestmark = pytest.mark.slow


async def read(engine: Engine, name: str) -> bytes:
    head = engine.head('home')
    assert head is not None
    inode = await head.lookup(await head.inode(limits.INO_ROOT), name.encode())
    assert inode is not None
    return await head.read(inode, 0, inode.size)


async def spoil(engine: Engine, path: Path) -> None:
    """Store DATA, and turn a byte of it round on the disk."""
    await engine.volume_create('home', 0, 0)
    await write_file(engine, 'one', DATA)
    await engine.commit()
    location = engine.store.catalog.locate([data_id(DATA)])[data_id(DATA)]
    flip(path, location.offset + 1000)
    forget(engine)


def flip(path: Path, offset: int) -> None:
    (pack,) = (path / 'packs' / 'data').rglob('?' * 32)
    data = bytearray(pack.read_bytes())
    data[offset] ^= 1
    pack.write_bytes(data)


async def test_a_lost_chunk_is_known_after_a_restart(tmp_path):
    path = tmp_path / 'store'
    engine = await fresh_engine(path, SimWorld(1))
    await spoil(engine, path)
    with pytest.raises(Corrupt):
        await read(engine, 'one')
    ((id, by),) = engine.store.catalog.query('SELECT id, found_by FROM damage')
    assert (id, by) == (data_id(DATA), 'read')
    await engine.close()
    engine = await Engine.open(path, Disk(), SimWorld(2))
    await write_file(engine, 'two', DATA)
    await engine.commit()
    forget(engine)
    assert await read(engine, 'two') == DATA, 'it shares nothing with the lost copy'
    await engine.close()


async def test_what_can_be_read_again_is_lost_no_longer(tmp_path):
    path = tmp_path / 'store'
    engine = await fresh_engine(path, SimWorld(1))
    await spoil(engine, path)
    with pytest.raises(Corrupt):
        await read(engine, 'one')
    assert engine.store.catalog.query('SELECT count(*) FROM damage') == [(1,)]
    location = engine.store.catalog.locate([data_id(DATA)])[data_id(DATA)]
    flip(path, location.offset + 1000)
    forget(engine)
    assert await read(engine, 'one') == DATA
    await engine.commit(always=True)
    assert engine.store.catalog.query('SELECT count(*) FROM damage') == [(0,)]
    await engine.close()


async def test_rows_of_what_was_freed_go_and_others_stay(tmp_path):
    path = tmp_path / 'store'
    engine = await fresh_engine(path, SimWorld(1))
    await spoil(engine, path)
    with engine.store.catalog.transaction() as db:
        for letter in 'gs':
            db.execute('INSERT INTO damage VALUES (?, 1, ?, ?)', (letter.encode() * 32, 'scrub', 'a test'))
        columns = 'pack, offset, stored, plain, codec, kind, epoch'
        db.execute(f'INSERT INTO freed SELECT ?, {columns}, 1 FROM chunk LIMIT 1', (b'g' * 32,))
    await engine.close()
    engine = await Engine.open(path, Disk(), SimWorld(2))
    assert engine.store.chunks.unreadable == {b's' * 32}
    await engine.close()


def shut(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Packs of data cannot be opened any more."""
    real = Disk._sys_open

    def opened(self: Disk, path: Path, flags: int) -> int:
        if 'data' in path.parts:
            raise OSError(number, os.strerror(number), str(path))
        return real(self, path, flags)

    monkeypatch.setattr(Disk, '_sys_open', opened)


@pytest.mark.parametrize('number', [errno.EACCES, errno.EIO])
async def test_a_pack_that_cannot_be_opened_is_lost_for_now(tmp_path, monkeypatch, number):
    """It was EINVAL to the reader, with health 'ok' and nothing in the log."""
    engine = await fresh_engine(tmp_path / 'store', SimWorld(1))
    await engine.volume_create('home', 0, 0)
    await write_file(engine, 'one', DATA)
    await engine.commit()
    forget(engine)
    shut(monkeypatch, number)
    with pytest.raises(Corrupt, match=os.strerror(number)):
        await read(engine, 'one')
    assert engine.store.catalog.query('SELECT id FROM damage') == [(data_id(DATA),)]
    assert engine.status()['health'] != 'ok' and engine.status()['damaged']
    monkeypatch.undo()
    forget(engine)
    assert await read(engine, 'one') == DATA
    await engine.commit(always=True)
    assert engine.store.catalog.query('SELECT id FROM damage') == []
    await engine.close()


async def test_a_pack_that_has_to_be_written_on_and_cannot_be_opened_says_what_helps(tmp_path, monkeypatch):
    engine = await fresh_engine(tmp_path / 'store', SimWorld(1))
    await engine.volume_create('home', 0, 0)
    await write_file(engine, 'one', DATA)
    await engine.close()
    shut(monkeypatch, errno.EACCES)
    with pytest.raises(Invalid, match='packs/data') as caught:
        await Engine.open(tmp_path / 'store', Disk(), SimWorld(2))
    assert 'chmod u+rw' in caught.value.line()
    monkeypatch.undo()
    engine = await Engine.open(tmp_path / 'store', Disk(), SimWorld(3))
    assert await read(engine, 'one') == DATA
    await engine.close()
