"""Layers: what one says alone, and what two laid over each other say."""

from __future__ import annotations

import itertools
import random

import pytest

from snapfs.format import keys
from snapfs.format.keys import ItemKind
from snapfs.volume.memtable import ABSENT, OFFSET_END, Layer

EXTENT, XATTR, DIRENT = int(ItemKind.EXTENT), int(ItemKind.XATTR), int(ItemKind.DIRENT)


def chunk(number: int) -> bytes:
    return number.to_bytes(32, 'big')


def play(layer: Layer, chance: random.Random, steps: int) -> None:
    for _ in range(steps):
        ino = chance.randrange(20, 23)
        what = chance.randrange(12)
        if what == 0:
            layer.delete_inode(ino)
        elif what < 3:
            start = chance.randrange(0, 90)
            layer.cut_extents(ino, start, chance.choice([start + 20, OFFSET_END]))
        elif what < 8:
            layer.put(ino, EXTENT, chance.randrange(0, 100, 10), (10, chunk(chance.randrange(1 << 40))))
        elif what < 10:
            layer.put(ino, XATTR, b'n%d' % chance.randrange(3), chance.choice([None, (0, b'v')]))
        else:
            layer.inodes[ino] = (*tuple(range(14)), b'')


def said(layer: Layer, ino: int) -> list[object]:
    found: list[object] = [layer.find(ino, EXTENT, offset) for offset in range(0, 100, 10)]
    found += [layer.find(ino, XATTR, b'n%d' % number) for number in range(3)]
    return [*found, layer.inodes.get(ino), layer.hides_all(ino)]


@pytest.mark.parametrize('seed', range(40))
def test_a_layer_laid_over_another_says_what_both_said(seed: int) -> None:
    chance = random.Random(seed)
    older, newer = Layer(), Layer()
    play(older, chance, 25)
    play(newer, chance, 12)
    expected = []
    for ino in range(20, 23):
        over, below = said(newer, ino), said(older, ino)
        hidden = newer.hides_all(ino)
        mixed = [b if a is ABSENT else a for a, b in zip(over[:-2], below[:-2], strict=True)]
        inode = over[-2] if over[-2] is not None or hidden else below[-2]
        expected.append([*mixed, inode, hidden or below[-1]])
    older.absorb(newer)
    assert [said(older, ino) for ino in range(20, 23)] == expected, f'seed {seed}'


@pytest.mark.parametrize('seed', range(40))
def test_a_layer_comes_back_from_the_journal(seed: int) -> None:
    layer, again = Layer(), Layer()
    play(layer, random.Random(seed), 30)
    for low, high in layer.spans():
        again.replay_span(low, high)
    for key, value in layer.changes():
        again.replay_item(key, value)
    for ino in range(20, 23):
        assert said(again, ino) == said(layer, ino), f'seed {seed}'
    assert list(again.changes()) == list(layer.changes()) == sorted(layer.changes())
    ranges = layer.ranges()
    assert all(left[1] < right[0] for left, right in itertools.pairwise(ranges))


def test_chunks_that_never_reached_the_tree_are_remembered() -> None:
    layer = Layer()
    assert layer.empty()
    layer.put(20, EXTENT, 0, (5, chunk(1)))
    layer.put(20, EXTENT, 0, (5, chunk(2)))
    layer.put(20, XATTR, b'a', (1, 2000, chunk(3)))
    layer.put(20, XATTR, b'a', (0, b'short'))
    layer.put(20, EXTENT, 5, (5, chunk(4)))
    layer.cut_extents(20, 5, OFFSET_END)
    newer = Layer()
    newer.put(20, EXTENT, 0, (5, chunk(5)))
    newer.put(21, DIRENT, 9, ((b'n', 20, 8),))
    layer.absorb(newer)
    layer.delete_inode(20)
    assert layer.superseded == [chunk(number) for number in (1, 3, 4, 2, 5)]
    assert not layer.empty()


def test_extents_come_in_order_with_the_deleted_ones() -> None:
    layer = Layer()
    for offset in (30, 10, 20):
        layer.put(20, EXTENT, offset, None if offset == 20 else (10, chunk(offset)))
    assert [offset for offset, _ in layer.extents(20, 10, 30)] == [10, 20]
    layer.put(20, EXTENT, 15, None)
    assert [offset for offset, _ in layer.extents(20, 0, 99)] == [10, 15, 20, 30]
    assert layer.extents(21, 0, 99) == []
    below = dict.fromkeys(range(0, 50, 10), 1)
    layer.cut_extents(20, 10, 25)
    layer.apply_cuts(20, below)
    assert sorted(below) == [0, 30, 40]


def test_keys_of_a_cut_end_with_the_file() -> None:
    layer = Layer()
    layer.cut_extents(20, 7, OFFSET_END)
    assert layer.ranges() == [(keys.extent_key(20, 7), keys.kind_range(20, ItemKind.EXTENT)[1])]
