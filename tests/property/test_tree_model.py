"""A tree against a dict: any sequence of applies, and after each all that can be said about the tree."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from snapfs.format.items import Value
from snapfs.tree import EMPTY, range_items
from snapfs.tree.verify import verify
from tests.sim.tree_kit import TARGET, NodeStore, item_at, items_of, key_at, refs_of

INDEX_MAX = 1200


@dataclass(frozen=True)
class Step:
    """Ranges as index pairs; changes as (first index, count, stride, version or None to delete)."""

    ranges: tuple[tuple[int, int], ...]
    runs: tuple[tuple[int, int, int, int | None], ...]


def disjoint(cuts: list[int]) -> tuple[tuple[int, int], ...]:
    ordered = sorted(set(cuts))
    return tuple(zip(ordered[0::2], ordered[1::2], strict=False))


def adjacent(bounds: list[int]) -> tuple[tuple[int, int], ...]:
    ordered = sorted(set(bounds))
    return tuple(pairwise(ordered))


indexes = st.integers(0, INDEX_MAX)
ranges = st.one_of(
    st.just(()),
    st.lists(indexes, max_size=8).map(disjoint),
    st.lists(indexes, max_size=4).map(adjacent),
)
runs = st.tuples(
    indexes,
    st.one_of(st.integers(1, 4), st.integers(1, 500)),
    st.integers(1, 7),
    st.one_of(st.none(), st.integers(1, 9)),
)
steps = st.builds(Step, ranges, st.lists(runs, max_size=4).map(tuple))
starts = st.integers(0, INDEX_MAX)


class Tree:
    """A tree and its model side by side. `fresh`: no apply stores a value that stood in the tree before."""

    def __init__(self, start: int, fresh: bool) -> None:
        self.fresh = fresh
        self.store = NodeStore()
        self.model: dict[bytes, Value] = dict(item_at(index, 0, not fresh) for index in range(start))
        self.root = self.store.apply(EMPTY, changes=items_of(self.model)).root
        self.round = 0
        self.check()

    def changes(self, step: Step) -> list[tuple[bytes, Value | None]]:
        found: dict[int, int | None] = {}
        for first, count, stride, version in step.runs:
            for index in range(first, first + count * stride, stride):
                found[index] = version
        self.round += 10 * self.fresh
        return [
            (key_at(index), None) if version is None else item_at(index, version + self.round, not self.fresh)
            for index, version in sorted(found.items())
        ]

    def step(self, step: Step, target_bytes: int = TARGET) -> None:
        cuts = [(key_at(lo), key_at(hi)) for lo, hi in step.ranges]
        changes = self.changes(step)
        before = self.store.reach(self.root.id)
        self.store.kept.clear()
        applied = self.store.apply(self.root, cuts, changes, target_bytes)
        self.root = applied.root
        self.forget(cuts)
        for key, value in changes:
            self.model.pop(key, None)
            if value is not None:
                self.model[key] = value
        self.check(sizes=target_bytes == TARGET)
        after = self.store.reach(self.root.id)
        dropped = self.store.dropped(applied)
        # Nothing is stored that the new tree does not use, and nothing twice.
        assert set(self.store.kept) <= after
        assert len(set(self.store.kept)) == len(self.store.kept)
        if self.fresh:
            assert dropped == before - after
        else:
            assert before - after <= dropped <= before
        assert len(set(applied.dropped)) == len(applied.dropped)

    def forget(self, cuts: list[tuple[bytes, bytes]]) -> None:
        for lo, hi in cuts:
            for key in [key for key in self.model if lo <= key < hi]:
                del self.model[key]

    def check(self, sizes: bool = True) -> None:
        excused = 0 if sizes else 1 << 20
        shape = verify(self.root, self.store.load, target_bytes=TARGET, item_bytes_max=excused)
        assert shape.data_ids == refs_of(self.model)
        assert list(range_items(self.root, b'', b'\xff', self.store.load)) == items_of(self.model)
        assert self.root.items == len(self.model)
        assert self.root.refs == len(shape.data_ids) + max(len(shape.node_ids) - 1, 0)
        assert (self.root.id is None) == (not self.model)
        # Two children at least per branch.
        assert len(shape.nodes) <= 1 + len(self.model).bit_length()


@settings(deadline=None, max_examples=150)
@given(starts, st.lists(steps, min_size=1, max_size=6))
def test_any_sequence(start: int, sequence: list[Step]) -> None:
    tree = Tree(start, fresh=True)
    for step in sequence:
        tree.step(step)


@settings(deadline=None, max_examples=100)
@given(starts, st.lists(steps, min_size=1, max_size=6))
def test_any_sequence_with_values_and_chunks_that_come_back(start: int, sequence: list[Step]) -> None:
    tree = Tree(start, fresh=False)
    for step in sequence:
        tree.step(step)


@settings(deadline=None, max_examples=100)
@given(starts, st.lists(st.tuples(steps, st.sampled_from((512, 1000, 3000, 9000))), min_size=1, max_size=6))
def test_nodes_that_were_cut_by_other_limits(start: int, sequence: list[tuple[Step, int]]) -> None:
    """A later version may have another node size: then nearly every old node is too small, or too large."""
    tree = Tree(start, fresh=True)
    for step, target_bytes in sequence:
        tree.step(step, target_bytes)


@settings(deadline=None, max_examples=100)
@given(starts, steps)
def test_the_result_does_not_depend_on_how_it_was_cut_into_applies(start: int, step: Step) -> None:
    """Ranges first, then changes: one apply does what two do, item for item."""
    tree = Tree(start, fresh=True)
    cuts = [(key_at(lo), key_at(hi)) for lo, hi in step.ranges]
    changes = tree.changes(step)
    once = tree.store.apply(tree.root, cuts, changes).root
    twice = tree.store.apply(tree.store.apply(tree.root, cuts).root, (), changes).root
    assert list(range_items(once, b'', b'\xff', tree.store.load)) == list(
        range_items(twice, b'', b'\xff', tree.store.load)
    )
    assert once.items == twice.items
