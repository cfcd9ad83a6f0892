"""Flushes, records and commits that fail half way, and requests that meet each other in an await."""

from __future__ import annotations

import errno
import stat
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from snapfs import limits
from snapfs.errors import Corrupt, Refused
from snapfs.format.records import RecordKind
from snapfs.volume.engine import Engine
from snapfs.volume.head import RENAME_EXCHANGE, Head
from snapfs.volume.inode import Inode
from tests.support.model import refuses
from tests.support.stores import fresh_engine, reopen

FILE = stat.S_IFREG | 0o644
DIRECTORY = stat.S_IFDIR | 0o755


@pytest.fixture
async def engine(tmp_path: Path) -> Any:
    engine = await fresh_engine(tmp_path / 'store')
    yield engine
    if not engine.closed:
        engine.store.close(clean=False)


async def volume(engine: Engine, name: str = 'home') -> tuple[Head, Inode]:
    head = await engine.volume_create(name, 0, 0)
    return head, await head.inode(limits.INO_ROOT)


async def crashed(engine: Engine) -> Engine:
    """Open the store again as after a kill."""
    engine.closed = True
    engine.store.close(clean=False)
    return await Engine.open(engine.store.path, engine.store.disk, engine.world)


def content(engine: Engine, name: str = 'home') -> Head:
    head = engine.head(name)
    assert head is not None
    return head


async def read(engine: Engine, name: bytes, volume: str = 'home') -> bytes:
    head = content(engine, volume)
    inode = await head.lookup(await head.inode(limits.INO_ROOT), name)
    assert inode is not None
    return await head.read(inode, 0, inode.size)


def fail_puts(monkeypatch: pytest.MonkeyPatch, engine: Engine, kind: RecordKind, after: int = 0) -> Any:
    """Let puts of a kind be refused for want of space, after so many more; return how to undo it."""
    real, left = engine.store.chunks.put_batch, [after]

    def put_batch(what: RecordKind, plains: Any) -> Any:
        if what == kind:
            if left[0] <= 0:
                raise Refused(errno.ENOSPC)
            left[0] -= 1
        return real(what, plains)

    monkeypatch.setattr(engine.store.chunks, 'put_batch', put_batch)
    monkeypatch.setattr(engine.store, 'give_up_reserve', lambda: False)
    return lambda: monkeypatch.setattr(engine.store.chunks, 'put_batch', real)


async def test_a_failed_flush_of_one_volume_gives_every_volume_its_bytes_back(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = bytes(range(256)) * 2000
    files = []
    for head, root in [await volume(engine, 'a'), await volume(engine, 'b')]:
        files.append((head, await head.make(root, b'f', FILE, 0, 0)))
        await head.write(files[-1][1], 0, data)
    undo = fail_puts(monkeypatch, engine, RecordKind.DATA)
    await refuses(errno.ENOSPC, engine.sync())
    undo()
    for _, inode in files:
        assert inode.flushing is None
        assert inode.buffer is not None
    await engine.sync()
    assert engine.core.budget.dirty == 0
    engine = await crashed(engine)
    assert await read(engine, b'f', 'a') == await read(engine, b'f', 'b') == data
    await engine.close()


async def test_a_failed_commit_keeps_what_the_journal_must_forget(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bytes in the journal, newer bytes in packs: a commit that fails must not let the older ones win."""
    head, root = await volume(engine)
    file = await head.make(root, b'f', FILE, 0, 0)
    gone = await head.make(root, b'g', FILE, 0, 0)
    await head.write(file, 0, b'old' * 100)
    await head.write(gone, 0, b'old' * 100)
    await engine.sync()
    await head.write(file, 0, b'new' * 100)
    await head.truncate(gone, 0)
    undo = fail_puts(monkeypatch, engine, RecordKind.NODE)
    with pytest.raises(Refused):
        await engine.committer.commit_and_hold()
    undo()
    await engine.sync()
    engine = await crashed(engine)
    assert await read(engine, b'f') == b'new' * 100
    assert await read(engine, b'g') == b''
    await engine.close()


async def test_a_record_that_did_not_fit_names_only_bytes_that_are_still_there(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    head, root = await volume(engine)
    file = await head.make(root, b'f', FILE, 0, 0)
    await head.write(file, 0, b'x' * 100)
    committer = engine.committer

    async def too_large(moments: Any) -> bool:
        await head.truncate(file, 0)
        await head.write(file, 0, b'y' * 10)
        return False

    async with engine.core.flush_lock:
        with monkeypatch.context() as patch:
            patch.setattr(committer, '_write_record', too_large)
            assert not await committer._record()
    await engine.sync()
    engine = await crashed(engine)
    assert await read(engine, b'f') == b'y' * 10
    await engine.close()


async def test_what_a_failed_flush_stored_is_counted_in_the_next_record(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a replay takes a file with extents for one without, and lays new extents over old ones."""
    head, root = await volume(engine)
    file = await head.make(root, b'f', FILE, 0, 0)
    part = b'some text, ' * 20_000
    for number in range(25):
        await head.write(file, number * len(part), part)
        await engine.sync()
    undo = fail_puts(monkeypatch, engine, RecordKind.DATA, after=1)
    await refuses(errno.ENOSPC, engine.commit())
    undo()
    assert file.allocated
    await head.make(root, b'g', FILE, 0, 0)
    await engine.sync()
    assert head.logged.inodes[file.ino][5] == file.allocated
    engine = await crashed(engine)
    assert await read(engine, b'f') == part * 25
    head = content(engine)
    assert (await head.inode(file.ino)).allocated == len(part) * 25
    await engine.close()


async def test_bytes_thrown_away_let_a_waiting_writer_go_on(
    engine: Engine, autojump_clock: trio.testing.MockClock
) -> None:
    head, root = await volume(engine)
    big = await head.make(root, b'big', FILE, 0, 0)
    small = await head.make(root, b'small', FILE, 0, 0)
    budget = engine.core.budget
    while budget.dirty < limits.DIRTY_BYTES_MAX - limits.MIB:
        await head.write(big, big.size, bytes(limits.MIB - 100_000))
    done = trio.Event()

    async def write() -> None:
        await head.write(small, 0, bytes(limits.MIB))
        done.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(write)
        await trio.testing.wait_all_tasks_blocked()
        assert not done.is_set()
        await head.unlink(root, b'big')
        with trio.move_on_after(10):
            await done.wait()
        nursery.cancel_scope.cancel()
    assert done.is_set()


@pytest.mark.parametrize('change', ['rollback', 'delete'])
async def test_a_dropped_volume_takes_no_more_bytes(engine: Engine, change: str) -> None:
    head, root = await volume(engine)
    file = await head.make(root, b'f', FILE, 0, 0)
    await head.write(file, 0, b'abc')
    if change == 'rollback':
        await engine.snapshot_create('home', 's', 'test')
        await engine.volume_rollback('home', 's', 'test')
    else:
        await engine.volume_delete('home', 'test')
    await refuses(errno.ESTALE, head.write(file, 0, b'late'))
    await refuses(errno.ESTALE, head.truncate(file, 1))
    assert engine.core.budget.dirty == 0
    await engine.close()


# --- requests that meet ----------------------------------------------------------------------------------
async def cold(engine: Engine, names: int = 400) -> tuple[Engine, Head, Inode]:
    """Return a volume, opened anew, with a directory too large to be read whole at the first look."""
    head, root = await volume(engine)
    for number in range(names):
        await head.make(root, b'%d' % number, FILE, 0, 0)
    engine = await reopen(engine)
    head = content(engine)
    return engine, head, await head.inode(limits.INO_ROOT)


def once(monkeypatch: pytest.MonkeyPatch, engine: Engine, action: Any) -> None:
    """Let the next look into the tree miss the cache, and do `action` while the node is fetched."""
    nodes = engine.core.nodes
    nodes._young.clear()
    nodes._old.clear()
    real_nowait, real_fetch = engine.store.chunks.get_nowait, nodes.fetch
    blocked = [True]

    def get_nowait(node_id: bytes) -> bytes | None:
        return None if blocked[0] else real_nowait(node_id)

    async def fetch(node_id: bytes) -> None:
        await real_fetch(node_id)
        if blocked[0]:
            blocked[0] = False
            await action()

    monkeypatch.setattr(engine.store.chunks, 'get_nowait', get_nowait)
    monkeypatch.setattr(nodes, 'fetch', fetch)


async def test_two_unlinks_of_one_name_remove_it_once(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, head, root = await cold(engine)
    once(monkeypatch, engine, lambda: head.unlink(root, b'7'))
    await refuses(errno.ENOENT, head.unlink(root, b'7'))
    assert root.size == 399
    await engine.close()


async def test_a_value_read_before_a_change_is_not_believed_after_it(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, head, root = await cold(engine)
    entry = await head.entry(root, b'7')
    assert entry is not None
    once(monkeypatch, engine, lambda: head.unlink(root, b'7'))
    await refuses(errno.ESTALE, head.inode(entry[1]))
    await engine.close()


async def test_a_truncation_that_meets_another_brings_no_old_bytes_back(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    head, root = await volume(engine)
    file = await head.make(root, b'f', FILE, 0, 0)
    await head.write(file, 0, b'old' * 3000)
    await engine.commit()

    async def meanwhile() -> None:
        await head.truncate(file, 0)
        await head.write(file, 8000, b'new' * 1000)

    real = engine.core.chunk

    async def chunk(chunk_id: bytes) -> bytes:
        await meanwhile()
        return await real(chunk_id)

    monkeypatch.setattr(engine.core, 'chunk', chunk)
    await head.truncate(file, 4000)
    assert await head.read(file, 0, 9000) == bytes(4000)
    await engine.commit()
    assert file.allocated == 0
    await engine.close()


# --- names -----------------------------------------------------------------------------------------------
async def test_exchanging_a_name_with_itself_changes_nothing(engine: Engine) -> None:
    head, root = await volume(engine)
    file = await head.make(root, b'f', FILE, 0, 0)
    assert await head.rename(root, b'f', root, b'f', RENAME_EXCHANGE) is None
    assert [entry[1] for entry in await head.list_directory(root, 0, 9)] == [b'f']
    assert (root.size, file.nlink) == (1, 1)
    await engine.close()


async def test_too_many_names_of_one_hash_are_refused_and_nothing_is_lost(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine.core, 'name_hash', lambda name: 5 if name[:1] == b'x' else 6)
    head, root = await volume(engine)
    for number in range(limits.HASH_COLLISIONS_MAX):
        await head.make(root, b'x%d' % number, FILE, 0, 0)
    other = await head.make(root, b'other', FILE, 0, 0)
    before = head.next_ino
    await refuses(errno.ENOSPC, head.make(root, b'xx', FILE, 0, 0))
    assert head.cached(before) is None, 'an inode without a name was left behind'
    await refuses(errno.ENOSPC, head.rename(root, b'other', root, b'xx'))
    assert await head.lookup(root, b'other') is other
    await head.rename(root, b'x1', root, b'xx')
    await head.rename(root, b'other', root, b'x2')
    await head.rename(root, b'x2', root, b'x3')
    assert root.size == limits.HASH_COLLISIONS_MAX - 1
    listed = await head.list_directory(root, 0, 1)
    assert len(listed) == root.size
    await engine.close()


async def test_the_known_entries_of_directories_are_bounded(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, 'DIRECTORY_COMPLETE_ENTRIES_MAX', 300)
    monkeypatch.setattr(limits, 'DIRECTORY_CACHE_ENTRIES', 500)
    head, root = await volume(engine)
    directories = [await head.make(root, b'd%d' % number, DIRECTORY, 0, 0) for number in range(4)]
    for number in range(900):
        for directory in directories:
            await head.make(directory, b'%d' % number, FILE, 0, 0)
            assert len(directory.entries or ()) <= 301
    known = sum(len(one.entries or ()) for one in head.inodes.values())
    assert head._entries_cached == known <= 501
    await engine.close()


async def test_a_long_attribute_replaced_at_once_is_given_up(engine: Engine) -> None:
    head, root = await volume(engine)
    await head.xattr_set(root, b'user.a', b'1' * 2000)
    await head.xattr_set(root, b'user.a', b'2' * 2000)
    assert len(head.fresh.superseded) == 1
    await engine.close()


async def test_writers_are_told_when_damage_keeps_bytes_from_being_stored(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    head, root = await volume(engine)
    file = await head.make(root, b'f', FILE, 0, 0)
    await head.write(file, 0, b'old' * 3000)
    await engine.commit()

    async def extents(*_: Any) -> Any:
        raise Corrupt('a node of the tree is damaged')

    with monkeypatch.context() as patch:
        patch.setattr(head, 'extents', extents)
        await head.write(file, 10, b'new')
        async with trio.open_nursery() as nursery:
            await nursery.start(engine.run)
            with pytest.raises(Corrupt), trio.fail_after(60):
                for number in range(40):
                    await head.write(file, (number + 1) * limits.MIB, bytes(limits.MIB - 100))
            nursery.cancel_scope.cancel()
    assert await engine._guarded(engine.committer.flush)
    await head.write(file, 0, b'again')
    assert engine.core.budget.failed is None
    await engine.close()
