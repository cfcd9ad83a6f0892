"""The builder's parts by themselves: where content is cut, and how a made node is taken back."""

from __future__ import annotations

from itertools import pairwise

import pytest

from snapfs.format.nodes import decode_node
from snapfs.tree.build import Builder
from snapfs.tree.draft import LeafDraft, even_cuts
from tests.sim.tree_kit import TARGET, item_at


@pytest.mark.parametrize(
    ('sizes', 'target', 'cuts'),
    [
        ([10, 10, 10, 10], 20, [0, 2, 4]),
        ([10] * 9, 30, [0, 3, 6, 9]),
        ([15, 18, 1], 16, [0, 1, 3]),
        ([1, 18, 15], 16, [0, 2, 3]),
        ([100, 1, 1], 10, [0, 1, 3]),
        ([1, 1, 100], 10, [0, 2, 3]),
        ([50, 50], 10, [0, 1, 2]),
        ([7, 1], 100, [0, 1, 2]),
    ],
)
def test_cuts_are_even_and_no_part_is_empty(sizes: list[int], target: int, cuts: list[int]) -> None:
    assert even_cuts(sizes, target) == cuts
    assert all(first < last for first, last in pairwise(cuts))


def draft(first: int, count: int) -> LeafDraft:
    leaf = LeafDraft()
    for index in range(first, first + count):
        key, value = item_at(index, 0)
        leaf.keys.append(key)
        leaf.values.append(value)
    leaf.recount()
    return leaf


def test_a_node_taken_back_was_never_made() -> None:
    builder = Builder(TARGET)
    builder.emit(0, draft(0, 6))
    builder.leaves.open = draft(6, 2)
    entry = builder.branch_level(1).open.pop()
    assert builder.made == {entry.id}
    assert builder.take() == []
    assert builder.take_back(0, entry.id)
    assert builder.made == set()
    assert builder.take_last() == []
    assert builder.leaves.open.keys == draft(0, 8).keys
    assert builder.leaves.open.size == draft(0, 8).size


def test_an_old_node_is_not_taken_back() -> None:
    builder = Builder(TARGET)
    builder.emit(0, draft(0, 6))
    assert not builder.take_back(0, bytes(32))
    assert len(builder.take_last()) == 1


def test_only_the_last_node_of_a_level_can_be_taken_back() -> None:
    builder = Builder(TARGET)
    builder.emit(0, draft(0, 6))
    first = builder.branch_level(1).open.children[0]
    builder.emit(0, draft(6, 6))
    assert [id for id, _ in builder.take()] == [first]
    with pytest.raises(AssertionError, match='last node'):
        builder.take_back(0, first)


def test_take_gives_out_each_node_once() -> None:
    builder = Builder(TARGET)
    for first in range(0, 60, 6):
        builder.emit(0, draft(first, 6))
    nodes = builder.take()
    assert len(nodes) == 9
    last = builder.take_last()
    assert [decode_node(plain).keys[0] for _, plain in nodes + last] == [
        item_at(first, 0)[0] for first in range(0, 60, 6)
    ]
