"""Writing into the middle of chunks that cannot be read: it hurts nothing but the bytes that are lost."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from snapfs import limits
from snapfs.errors import Corrupt
from snapfs.volume.engine import Engine
from snapfs.volume.head import Head
from snapfs.volume.inode import Inode
from snapfs.volume.view import View, is_part
from tests.support.model import freeze_view
from tests.support.stores import reopen
from tests.unit.volume.test_volume_faults import FILE, content, crashed, engine, read, volume

__all__ = ['engine']

SIZE = 20 * limits.CHUNK_BYTES_AVERAGE


class Packs:
    """The packs of data of a closed store, to be damaged and mended."""

    def __init__(self, store: Path) -> None:
        self.good = {path: path.read_bytes() for path in (store / 'packs/data').rglob('*') if path.is_file()}

    def lose(self) -> None:
        """Empty them all; a file that is only unlinked would come back from who has it open."""
        for path in self.good:
            path.write_bytes(b'')

    def spoil(self, name: bytes, offset: int) -> None:
        """Change a byte of the payload of a record."""
        path = next(path for path in self.good if path.name.startswith(name.hex()))
        data = bytearray(path.read_bytes())
        data[offset + 100] ^= 1
        path.write_bytes(data)

    def mend(self) -> None:
        """Make all as it was."""
        for path, data in self.good.items():
            now = path.read_bytes() if path.exists() else b''
            path.write_bytes(data + now[len(data) :])


async def file_of_noise(engine: Engine, seed: int = 0) -> tuple[Engine, bytes]:
    """Store a file `f` of several chunks and reopen, so that nothing of it is in memory."""
    head, root = await volume(engine)
    data = random.Random(seed).randbytes(SIZE)
    await head.write(await head.make(root, b'f', FILE, 0, 0), 0, data)
    await engine.commit()
    return await reopen(engine), data


async def opened(engine: Engine, name: bytes = b'f') -> tuple[Head, Inode]:
    head = content(engine)
    inode = await head.lookup(await head.inode(limits.INO_ROOT), name)
    assert inode is not None
    return head, inode


async def closed(engine: Engine) -> None:
    await engine.close()


async def again(engine: Engine) -> Engine:
    return await Engine.open(engine.store.path, engine.store.disk, engine.world)


async def lost(view: View, inode: Inode, start: int, end: int) -> None:
    """Both ends of a range, and all of it, cannot be read, whatever stands beside it."""
    for offset, size in ((start, 1), (end - 1, 1), (start, end - start)):
        with pytest.raises(Corrupt):
            await view.read(inode, offset, size)


async def spoil_one(engine: Engine, packs: Packs) -> tuple[int, int]:
    """Damage the chunk in the middle of the file, on the disk; return the range of the file it holds."""
    head, inode = await opened(engine)
    offset, length, chunk_id, *_ = (await head.extents(inode.ino, SIZE // 2, SIZE // 2 + 1))[0]
    place = engine.store.catalog.locate([chunk_id])[chunk_id]
    name = engine.store.catalog.query('SELECT name FROM pack WHERE pack = ?', (place.pack,))[0][0]
    packs.spoil(name, place.offset)
    return offset, offset + length


async def test_a_write_into_a_damaged_chunk_hurts_nothing_else(engine: Engine) -> None:
    engine, data = await file_of_noise(engine)
    packs = Packs(engine.store.path)
    start, end = await spoil_one(engine, packs)
    head, inode = await opened(engine)
    other = await head.make(await head.inode(limits.INO_ROOT), b'other', FILE, 0, 0)
    await head.write(inode, start + 1000, b'new' * 1000)
    await head.write(other, 0, b'something else')
    await engine.sync()
    await engine.committer.flush()
    await engine.commit()
    assert engine.core.budget.dirty == 0
    assert engine.health().startswith('damaged')
    assert any('home' in line and f'inode {inode.ino}' in line for line in engine.core.damaged)
    await lost(head, inode, start, start + 1000)
    await lost(head, inode, start + 4000, end)
    assert await head.read(inode, start + 1000, 3000) == b'new' * 1000
    row = await engine.snapshot_create('home', 'after', 'test')
    engine = await reopen(engine)
    assert engine.store.was_clean
    head, inode = await opened(engine)
    assert inode.allocated == SIZE
    expected = data[: start + 1000] + b'new' * 1000 + data[start + 4000 :]
    view = engine.snapshot_view(row.number)
    assert view is not None
    for one in (head, view):
        assert await one.read(inode, 0, start) == data[:start]
        await lost(one, inode, start, start + 1000)
        await lost(one, inode, start + 4000, end)
        assert await one.read(inode, start + 1000, 3000) == b'new' * 1000
        assert await one.read(inode, end, SIZE) == data[end:]
    assert await read(engine, b'other') == b'something else'
    packs.mend()
    assert await head.read(inode, 0, SIZE) == expected, 'what was lost comes back with the chunk'
    await engine.close()


async def test_a_damaged_range_that_is_written_over_whole_is_whole_again(engine: Engine) -> None:
    engine, data = await file_of_noise(engine)
    start, end = await spoil_one(engine, Packs(engine.store.path))
    head, inode = await opened(engine)
    new = random.Random(1).randbytes(end - start)
    await head.write(inode, start + 1000, new[1000:3000])
    await engine.commit()
    await head.write(inode, start, new[:2000])
    await engine.commit()
    found = await head.extents(inode.ino, start, end)
    assert [extent[:2] for extent in found if is_part(extent)] == [(start + 3000, end - start - 3000)]
    for offset in range(start + 3000, end, 5000):  # in pieces, none of which covers the rest
        await head.write(inode, offset, new[offset - start : offset - start + 5000])
        await engine.sync()
    await engine.commit()
    engine = await reopen(engine)
    assert await read(engine, b'f') == data[:start] + new + data[end:]
    head, inode = await opened(engine)
    assert not any(map(is_part, await head.extents(inode.ino, 0, SIZE)))
    assert inode.allocated == SIZE
    await engine.close()


@pytest.mark.parametrize('bytes_inline', [limits.JOURNAL_INLINE_BYTES_MAX, 0])
async def test_a_store_with_a_missing_pack_takes_writes_and_opens_after_a_crash(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, bytes_inline: int
) -> None:
    monkeypatch.setattr(limits, 'JOURNAL_INLINE_BYTES_MAX', bytes_inline)
    engine, data = await file_of_noise(engine)
    packs = Packs(engine.store.path)
    await closed(engine)
    packs.lose()
    engine = await again(engine)
    head, inode = await opened(engine)
    await head.write(inode, 50_000, b'abc' * 100)
    await head.write(inode, SIZE - 3, b'the end')
    await engine.sync()
    engine = await crashed(engine)
    assert engine.replayed_records == 1
    head, inode = await opened(engine)
    assert inode.size == SIZE + 4
    await lost(head, inode, 0, 50_000)
    assert await head.read(inode, 50_000, 300) == b'abc' * 100
    await lost(head, inode, 50_300, SIZE - 3)
    assert await head.read(inode, SIZE - 3, 100) == b'the end'
    await closed(engine)
    packs.mend()
    engine = await again(engine)
    assert engine.store.was_clean
    expected = data[:50_000] + b'abc' * 100 + data[50_300 : SIZE - 3] + b'the end'
    assert await read(engine, b'f') == expected
    await engine.close()


async def test_a_cut_through_a_lost_chunk_is_refused_and_one_through_what_is_left_of_it_works(
    engine: Engine,
) -> None:
    engine, data = await file_of_noise(engine)
    packs = Packs(engine.store.path)
    start, _ = await spoil_one(engine, packs)
    head, inode = await opened(engine)
    await head.write(inode, start + 1000, b'new' * 1000)
    await engine.commit()
    with pytest.raises(Corrupt):
        await head.truncate(inode, start + 500)
    assert inode.size == SIZE
    packs.mend()
    await head.truncate(inode, start + 4500)
    await engine.commit()
    expected = data[: start + 1000] + b'new' * 1000 + data[start + 4000 : start + 4500]
    engine = await reopen(engine)
    assert await read(engine, b'f') == expected
    head, inode = await opened(engine)
    assert inode.allocated == len(expected)
    await engine.close()


async def test_lost_bytes_that_are_written_again_are_stored_anew(engine: Engine) -> None:
    """Who gets a file back from elsewhere writes what was lost, to the byte: that must not be shared."""
    engine, data = await file_of_noise(engine)
    start, end = await spoil_one(engine, Packs(engine.store.path))
    head, inode = await opened(engine)
    await lost(head, inode, start, end)
    await head.truncate(inode, 0)
    await head.write(inode, 0, data)
    root = await head.inode(limits.INO_ROOT)
    await head.write(await head.make(root, b'part', FILE, 0, 0), 0, data[start:end])
    await engine.commit()
    engine = await reopen(engine)
    assert await read(engine, b'f') == data
    assert await read(engine, b'part') == data[start:end]
    await engine.close()


async def test_a_long_attribute_whose_chunk_is_lost_is_not_taken_again(engine: Engine) -> None:
    head, root = await volume(engine)
    value = random.Random(2).randbytes(3000)
    await head.xattr_set(root, b'user.a', value)
    engine = await reopen(engine)
    packs = Packs(engine.store.path)
    packs.lose()
    head = content(engine)
    root = await head.inode(limits.INO_ROOT)
    with pytest.raises(Corrupt):
        await head.xattr_get(root, b'user.a')
    assert engine.health().startswith('damaged')
    other = await head.make(root, b'f', FILE, 0, 0)
    with pytest.raises(Corrupt):
        await head.xattr_set(other, b'user.a', value)
    await head.xattr_set(other, b'user.a', value + b'!')
    await engine.commit()
    packs.mend()
    assert await head.xattr_get(root, b'user.a') == value
    await head.xattr_set(other, b'user.b', value)
    await engine.close()


async def every_extent(head: Head, inode: Inode, written: bytearray, expected: bytes) -> None:
    """Each extent is what it should be, or, if it was never written to since the damage, cannot be read."""
    position = 0
    for offset, length, *_ in await head.extents(inode.ino, 0, SIZE):
        assert offset == position
        position += length
        try:
            found = await head.read(inode, offset, length)
        except Corrupt:
            assert not any(written[offset:position]), f'{offset} to {position} were written, and are lost'
        else:
            assert found == expected[offset:position], f'{offset} to {position}'
    assert position == SIZE


@pytest.mark.parametrize('seed', range(12))
async def test_any_writes_into_any_damage(engine: Engine, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    monkeypatch.setattr(limits, 'JOURNAL_INLINE_BYTES_MAX', (0, 3000, 64 * limits.KIB)[seed % 3])
    chance = random.Random(f'writes {seed}')
    engine, data = await file_of_noise(engine, seed)
    packs = Packs(engine.store.path)
    head, inode = await opened(engine)
    for extent in await head.extents(inode.ino, 0, SIZE):
        if chance.random() < 0.5:
            place = engine.store.catalog.locate([extent[2]])[extent[2]]
            name = engine.store.catalog.query('SELECT name FROM pack WHERE pack = ?', (place.pack,))[0][0]
            packs.spoil(name, place.offset)
    expected, written = bytearray(data), bytearray(SIZE)
    for _ in range(40):
        head, inode = await opened(engine)
        length = chance.choice([1, 100, 4096, chance.randrange(1, 90_000)])
        offset = chance.randrange(SIZE - length)
        new = chance.randbytes(length)
        await head.write(inode, offset, new)
        expected[offset : offset + length] = new
        written[offset : offset + length] = b'\1' * length
        step: Any = chance.choice([None, engine.sync, engine.commit, engine.committer.flush])
        if step is not None:
            await step()
        if chance.random() < 0.1:
            await engine.sync()
            engine = await crashed(engine)
    await engine.committer.flush()
    await every_extent(*await opened(engine), written, expected)
    engine = await reopen(engine)
    head, inode = await opened(engine)
    await every_extent(head, inode, written, expected)
    assert inode.allocated == SIZE
    packs.mend()
    engine = await reopen(engine)
    assert await read(engine, b'f') == expected
    assert (await freeze_view(content(engine)))[3][0][1][3] == expected
    await engine.close()


async def test_a_tree_that_cannot_be_read_leaves_the_last_changes_to_the_journal(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A damaged node stops commits; what was written and never synced is not lost by a clean end."""
    head, root = await volume(engine)
    await engine.commit()

    async def build(*_: Any) -> Any:
        raise Corrupt('a node is damaged')

    with monkeypatch.context() as patch:
        patch.setattr(engine.committer, '_build_tree', build)
        with pytest.raises(Corrupt):
            await engine.volume_create('other', 0, 0)
        assert list(engine.heads()) == ['home']
        await head.write(await head.make(root, b'f', FILE, 0, 0), 0, b'abc')
        with pytest.raises(Corrupt):
            await engine.close()
    engine = await again(engine)
    assert not engine.store.was_clean
    assert list(engine.heads()) == ['home']
    assert await read(engine, b'f') == b'abc'
    await engine.close()
