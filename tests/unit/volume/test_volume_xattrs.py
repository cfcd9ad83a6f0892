"""Extended attributes take a bounded amount of memory, however many there are and however long."""

from __future__ import annotations

import stat
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from snapfs import limits
from snapfs.volume.engine import Engine
from snapfs.volume.head import Head
from snapfs.volume.inode import Inode
from snapfs.volume.view import xattr_cost
from tests.support.stores import fresh_engine

FILE = stat.S_IFREG | 0o644


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[Engine]:
    engine = await fresh_engine(tmp_path / 'store')
    await engine.volume_create('home', 0, 0)
    yield engine
    await engine.close()


async def files(engine: Engine, count: int) -> tuple[Head, list[Inode]]:
    head = engine.head('home')
    assert head is not None
    root = await head.inode(limits.INO_ROOT)
    return head, [await head.make(root, b'%d' % n, FILE, 0, 0) for n in range(count)]


def kept(head: Head) -> int:
    return sum(xattr_cost(inode.xattrs) for inode in head.inodes.values() if inode.xattrs)


async def test_what_is_kept_is_bounded(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, 'XATTR_CACHE_BYTES', 20_000)
    head, inodes = await files(engine, 60)
    for inode in inodes:
        await head.xattr_set(inode, b'user.a', b'%d' % inode.ino * 100, 0)
        assert kept(head) <= 20_000
    await engine.commit()
    for _ in range(2):
        for inode in inodes:
            assert await head.xattr_get(inode, b'user.a') == b'%d' % inode.ino * 100
            assert kept(head) <= 20_000
    assert kept(head) > 0, 'and something is kept'


async def test_long_values_are_not_kept(engine: Engine) -> None:
    head, (inode,) = await files(engine, 1)
    long = bytes(range(256)) * 256
    for n in range(20):
        await head.xattr_set(inode, b'user.%d' % n, bytes([n]) + long[1:], 0)
    assert kept(head) < len(long)
    assert await head.xattr_get(inode, b'user.7') == b'\x07' + long[1:]
    assert len(await head.xattr_list(inode)) == 20


async def test_what_was_let_go_is_not_taken_for_all_there_is(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While one attribute is set, others may be let go: between the look and the change there is an await."""
    head, (inode, other) = await files(engine, 2)
    await head.xattr_set(inode, b'user.a', b'1', 0)
    await head.xattr_set(inode, b'user.b', b'2', 0)
    real = engine.core.put_whole

    def put_whole(value: bytes) -> bytes:
        inode.xattrs = None
        return real(value)

    monkeypatch.setattr(engine.core, 'put_whole', put_whole)
    await head.xattr_set(inode, b'user.c', b'3' * 5000, 0)
    assert await head.xattr_list(inode) == [b'user.a', b'user.b', b'user.c']
    inode.xattrs = None
    await head.xattr_remove(inode, b'user.a')
    assert await head.xattr_list(inode) == [b'user.b', b'user.c']
    assert await head.xattr_list(other) == []


async def test_inline_values_count_for_the_memtable(engine: Engine) -> None:
    """Else 100,000 items of 1 KiB would fit under a limit that is meant for small ones."""
    head, (inode,) = await files(engine, 1)
    before = head.items()
    await head.xattr_set(inode, b'user.a', b'x' * 1024, 0)
    assert head.items() - before >= 1024 // limits.XATTR_ITEM_BYTES
