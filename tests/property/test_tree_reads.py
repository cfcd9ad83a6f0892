"""Reading and comparing trees against dicts, with a memory that forgets nodes at random."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from hypothesis import given, settings
from hypothesis import strategies as st

from snapfs.format.items import Value
from snapfs.tree import EMPTY, Need, NotCached, Root, apply, diff, get, leaf_ids, range_leaf, range_page
from snapfs.tree.diff import Difference
from snapfs.tree.root import Applied
from tests.sim.tree_kit import TARGET, ForgetfulLoad, NodeStore, item_at, items_of, key_at

T = TypeVar('T')
INDEX_MAX = 900
indexes = st.integers(0, INDEX_MAX)
seeds = st.integers(0, 2**32)
LEVELS_MAX = 6  # of the trees made here: so many nodes must fit into the memory


def until_cached(load: ForgetfulLoad, function: Callable[[], T]) -> T:
    """Call, fetch what is missing, call again: what an async caller does."""
    while True:
        try:
            return function()
        except NotCached as miss:
            load.fetch(miss.id)


def make(store: NodeStore, model: dict[bytes, Value]) -> Root:
    return store.apply(EMPTY, changes=items_of(model)).root


@settings(deadline=None, max_examples=60)
@given(st.sets(indexes), st.lists(st.tuples(indexes, indexes, st.integers(1, 40)), min_size=1), seeds)
def test_reads(stored: set[int], asked: list[tuple[int, int, int]], seed: int) -> None:
    store = NodeStore()
    model = dict(item_at(index, 0) for index in stored)
    root = make(store, model)
    load = ForgetfulLoad(store, seed, LEVELS_MAX + 40)
    for lo_index, hi_index, limit in asked:
        lo, hi = key_at(lo_index), key_at(hi_index)
        assert until_cached(load, lambda lo=lo: get(root, lo, load)) == model.get(lo)
        expected = [(key, value) for key, value in items_of(model) if lo <= key < hi]
        page = until_cached(load, lambda lo=lo, hi=hi, n=limit: range_page(root, lo, hi, n, load))
        assert page == expected[:limit]
        ids = until_cached(load, lambda lo=lo, hi=hi: leaf_ids(root, lo, hi, 10**6, load))
        in_leaves = {key for id in ids for key in store.load(id).keys}
        assert {key for key, _ in expected} <= in_leaves


@settings(deadline=None, max_examples=60)
@given(st.sets(indexes, min_size=1), indexes, indexes, seeds)
def test_a_long_scan_in_a_small_memory(stored: set[int], lo_index: int, hi_index: int, seed: int) -> None:
    """range_leaf needs one path of nodes, however long the range."""
    store = NodeStore()
    model = dict(item_at(index, 0) for index in stored)
    root = make(store, model)
    load = ForgetfulLoad(store, seed, LEVELS_MAX)
    lo: bytes | None = key_at(lo_index)
    hi = key_at(hi_index)
    expected = [(key, value) for key, value in items_of(model) if key_at(lo_index) <= key < hi]
    found = []
    while lo is not None:
        items, lo = until_cached(load, lambda lo=lo: range_leaf(root, lo, hi, load))
        found += items
    assert found == expected


def all_differences(iterator: object, load: ForgetfulLoad) -> list[Difference]:
    found: list[Difference] = []
    while True:
        difference = until_cached(load, lambda: next(iterator, None))  # type: ignore[call-overload]
        if difference is None:
            return found
        found.append(difference)


def expected_differences(old: dict[bytes, Value], new: dict[bytes, Value]) -> list[Difference]:
    return [
        (key, old.get(key), new.get(key))
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    ]


edits = st.lists(
    st.tuples(indexes, st.one_of(st.integers(1, 3), st.integers(1, 300)), st.sampled_from((None, 0, 1))),
    max_size=5,
)


@settings(deadline=None, max_examples=150)
@given(st.one_of(st.sets(indexes), st.integers(0, INDEX_MAX).map(range)), edits, seeds)
def test_diff_of_a_tree_and_its_next_version(stored: set[int], edited: list[tuple], seed: int) -> None:  # type: ignore[type-arg]
    store = NodeStore()
    old = dict(item_at(index, 0) for index in stored)
    old_root = make(store, old)
    changes: dict[bytes, Value | None] = {}
    for first, count, version in edited:
        for index in range(first, first + count):
            changes[key_at(index)] = None if version is None else item_at(index, version)[1]
    new_root = store.apply(old_root, (), sorted(changes.items())).root
    new = {key: value for key, value in (old | changes).items() if value is not None}
    load = ForgetfulLoad(store, seed, LEVELS_MAX)
    assert all_differences(diff(old_root, new_root, load), load) == expected_differences(old, new)
    assert all_differences(diff(new_root, old_root, load), load) == expected_differences(new, old)


@settings(deadline=None, max_examples=60)
@given(st.sets(indexes), st.sets(indexes), seeds)
def test_diff_of_strangers(first: set[int], second: set[int], seed: int) -> None:
    store = NodeStore()
    old = dict(item_at(index, 0) for index in first)
    new = dict(item_at(index, 0) for index in second)
    load = ForgetfulLoad(store, seed, LEVELS_MAX)
    iterator = diff(make(store, old), make(store, new), load)
    assert all_differences(iterator, load) == expected_differences(old, new)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, INDEX_MAX), indexes, indexes)
def test_apply_asks_for_old_nodes_only_and_each_once(start: int, cut: int, first: int) -> None:
    """A caller may forget a node once it has answered, and store what is built whenever it likes."""
    store = NodeStore()
    root = make(store, dict(item_at(index, 0) for index in range(start)))
    changes = [item_at(index, 1) for index in range(first, first + 100, 3)]
    steps = apply(root, [(key_at(cut), key_at(cut + 200))], changes, target_bytes=TARGET)
    old, asked, later = set(store.plain), [], []
    answer = None
    while True:
        try:
            step = steps.send(answer)
        except StopIteration as stop:
            applied: Applied = stop.value
            break
        answer = None
        if isinstance(step, Need):
            asked += step.ids
            answer = store.load_many(step.ids)
        else:
            later += step.nodes
    assert set(asked) <= old
    assert len(asked) == len(set(asked))
    store.keep(later)
    kept = {index for index in range(start) if not cut <= index < cut + 200}
    expected = dict(item_at(index, 0) for index in kept) | dict(changes)
    assert range_page(applied.root, b'', b'\xff', 10**6, store.load) == items_of(expected)
