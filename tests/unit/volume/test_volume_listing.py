"""Listing directories whose changes no commit has taken yet: right, and in time that follows their size."""

from __future__ import annotations

import random
import stat
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from snapfs import limits
from snapfs.format.keys import ItemKind
from snapfs.volume.engine import Engine
from snapfs.volume.head import Head
from snapfs.volume.inode import Inode
from snapfs.volume.memtable import Layer
from tests.support.stores import fresh_engine

FILE = stat.S_IFREG | 0o644
DIRENT = int(ItemKind.DIRENT)


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[Engine]:
    engine = await fresh_engine(tmp_path / 'store')
    await engine.volume_create('home', 0, 0)
    yield engine
    engine.store.close(clean=False)


class Counted(dict[Any, Any]):
    """A table that counts how often an item of it is touched."""

    touched = 0

    def __getitem__(self, key: Any) -> Any:
        Counted.touched += 1
        return super().__getitem__(key)

    def items(self) -> Any:
        Counted.touched += len(self)
        return super().items()

    def __iter__(self) -> Iterator[Any]:
        Counted.touched += len(self)
        return super().__iter__()


async def filled(engine: Engine, count: int, monkeypatch: pytest.MonkeyPatch) -> tuple[Head, Inode]:
    """A directory too large to be kept whole, with nothing committed."""
    monkeypatch.setattr(limits, 'DIRECTORY_COMPLETE_ENTRIES_MAX', 300)
    head = engine.head('home')
    assert head is not None
    root = await head.inode(limits.INO_ROOT)
    for n in range(count):
        await head.make(root, b'file %d' % n, FILE, 0, 0)
    head._forget_entries(root)
    head.settle()
    for layer in head.layers:
        layer.tables = {name: Counted(table) for name, table in layer.tables.items()}
    Counted.touched = 0
    return head, root


@pytest.mark.parametrize('count', [1000, 4000])
async def test_a_listing_touches_every_entry_a_few_times(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    head, root = await filled(engine, count, monkeypatch)
    after, names = 1, set()
    while page := await head.list_directory(root, after, 32):
        names |= {name for _, name, _, _ in page}
        after = page[-1][0]
    assert names == {b'file %d' % n for n in range(count)}
    assert Counted.touched < 5 * count


@pytest.mark.parametrize('count', [1000, 4000])
async def test_a_listing_that_removes_as_it_goes(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    """`rm -r` lists, removes, and lists on."""
    head, root = await filled(engine, count, monkeypatch)
    after = 1
    while page := await head.list_directory(root, after, 32):
        for _, name, _, _ in page:
            await head.unlink(root, name)
        after = page[-1][0]
    assert root.size == 0
    assert Counted.touched < 12 * count
    assert await head.list_directory(root, 1, 32) == []


@pytest.mark.parametrize('seed', range(8))
async def test_pages_of_layers_over_a_tree(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Any page size, any mixture of what is committed, logged and new: what a dictionary says."""
    monkeypatch.setattr(limits, 'DIRECTORY_COMPLETE_ENTRIES_MAX', 0)
    chance = random.Random(seed)
    head = engine.head('home')
    assert head is not None
    root = await head.inode(limits.INO_ROOT)
    there: set[bytes] = set()
    for step in range(300):
        name = b'n%d' % chance.randrange(60)
        if name in there and chance.random() < 0.6:
            await head.unlink(root, name)
            there.discard(name)
        elif name not in there:
            await head.make(root, name, FILE, 0, 0)
            there.add(name)
        if chance.random() < 0.05:
            await (engine.commit if chance.random() < 0.4 else engine.sync)()
        if chance.random() < 0.2:
            head._forget_entries(root)
            count, after, found = chance.choice([1, 2, 7, 100]), 1, []
            while page := await head.list_directory(root, after, count):
                found += page
                after = page[-1][0]
            assert [name for _, name, _, _ in found] == sorted(there, key=head.core.name_hash), (
                f'seed {seed}, step {step}, pages of {count}'
            )


def test_following_keeps_up_with_changes() -> None:
    layer, chance = Layer(), random.Random(5)
    for _ in range(400):
        layer.put(20, DIRENT, chance.randrange(2, 500), chance.choice([None, ()]))
        if chance.random() < 0.3:
            table, after = sorted(layer.tables[20 << 3 | DIRENT]), chance.randrange(500)
            assert layer.following(20, DIRENT, after, 10) == [n for n in table if n > after][:10]
        if chance.random() < 0.1:
            newer = Layer()
            for _ in range(20):
                newer.put(20, DIRENT, chance.randrange(2, 500), ())
            layer.absorb(newer)
        if chance.random() < 0.02:
            layer.delete_inode(20)
            assert layer.following(20, DIRENT, 0, 10) == []
            layer.put(20, DIRENT, 7, ())
