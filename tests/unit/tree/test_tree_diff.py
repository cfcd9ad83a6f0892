"""Diff: what it reports and, above all, what it does not read."""

from __future__ import annotations

import pytest

from snapfs.tree import EMPTY, NotCached, diff
from tests.sim.tree_kit import ForgetfulLoad, NodeStore, item_at, key_at

COUNT = 2000


@pytest.fixture
def store() -> NodeStore:
    return NodeStore()


def test_equal_trees_are_not_read(store: NodeStore) -> None:
    root = store.build(COUNT)
    store.loads.clear()
    assert list(diff(root, root, store.load)) == []
    assert list(diff(EMPTY, EMPTY, store.load)) == []
    assert store.loads == []


def test_against_nothing_all_differs(store: NodeStore) -> None:
    root = store.build(50)
    every = [item_at(index, 0) for index in range(50)]
    assert list(diff(EMPTY, root, store.load)) == [(key, None, value) for key, value in every]
    assert list(diff(root, EMPTY, store.load)) == [(key, value, None) for key, value in every]


@pytest.mark.parametrize('index', [0, 1, 700, COUNT - 1])
def test_one_change_reads_two_paths(store: NodeStore, index: int) -> None:
    root = store.build(COUNT)
    height = store.load(root.id).level
    assert height >= 2
    changed = store.apply(root, changes=[item_at(index, 1)]).root
    store.loads.clear()
    old, new = item_at(index, 0)[1], item_at(index, 1)[1]
    assert list(diff(root, changed, store.load)) == [(key_at(index), old, new)]
    assert len(store.loads) == 2 * (height + 1)


def test_a_grown_tree_shares_what_it_had(store: NodeStore) -> None:
    """The trees have different heights, and still the old leaves are not read."""
    small = store.build(60)
    large = store.apply(small, changes=[item_at(index, 0) for index in range(60, COUNT)]).root
    assert store.load(large.id).level > store.load(small.id).level
    store.loads.clear()
    assert len(list(diff(small, large, store.load))) == COUNT - 60
    shared = store.reach(small.id) & store.reach(large.id)
    assert len(shared & set(store.plain)) >= 2
    assert not shared & set(store.loads)


def test_it_goes_on_after_a_miss(store: NodeStore) -> None:
    root = store.build(300)
    changed = store.apply(root, changes=[item_at(5, 1), item_at(290, 1)]).root
    load = ForgetfulLoad(store, seed=3, keep=1)
    iterator = diff(root, changed, load)
    found, misses = [], 0
    while len(found) < 2:
        try:
            found.append(next(iterator)[0])
        except NotCached as miss:
            misses += 1
            load.fetch(miss.id)
    assert found == [key_at(5), key_at(290)]
    assert misses >= 4
    with pytest.raises(StopIteration):
        next(iterator)
