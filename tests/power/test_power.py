"""A few real power cuts, and that they would show a loss. `make power CUTS=n` does more."""

from __future__ import annotations

import copy

import pytest

from tests.power.__main__ import cut
from tests.power.disk import Unable
from tests.power.work import Done, Worker, explain
from tests.support.model import Node


@pytest.mark.slow
@pytest.mark.parametrize(('kind', 'seed'), [('ext4', 1), ('xfs', 2)])
def test_a_cut_leaves_what_was_promised(kind: str, seed: int) -> None:
    try:
        counts = cut(kind, 4, seed)
    except Unable as error:
        pytest.fail(f'cannot cut the power: {error}')
    assert counts['cuts'] == 4
    assert counts['calls'] > 40, counts


def _two_workers() -> list[Worker]:
    """One makes a and b, then the other makes c: each call ends before the next begins."""
    empty = Node(0o40755, nlink=2)
    one, two = (Worker(None, name, 0, copy.deepcopy(empty)) for name in ('one', 'two'))  # type: ignore[arg-type]
    one.done = [Done(('create', 'a'), 0, 1), Done(('create', 'b'), 2, 3)]
    two.done = [Done(('create', 'c'), 4, 5)]
    return [one, two]


def _found(workers: list[Worker], *calls: int) -> dict[str, object]:
    return {one.name: one.states()[number] for one, number in zip(workers, calls, strict=True)}


@pytest.mark.parametrize('calls', [(0, 0), (1, 0), (2, 0), (2, 1)])
def test_a_moment_is_taken(calls: tuple[int, int]) -> None:
    workers = _two_workers()
    assert explain(workers, _found(workers, *calls), -1, 100) is None


@pytest.mark.parametrize('calls', [(0, 1), (1, 1)])
def test_a_later_call_without_an_earlier_one_is_seen(calls: tuple[int, int]) -> None:
    workers = _two_workers()
    assert 'reordered' in (explain(workers, _found(workers, *calls), -1, 100) or '')


def test_what_was_promised_and_is_not_there_is_seen() -> None:
    workers = _two_workers()
    assert 'no moment' in (explain(workers, _found(workers, 1, 0), 4, 100) or '')


def test_what_never_was_is_seen() -> None:
    workers = _two_workers()
    found = _found(workers, 2, 1)
    found['two'] = Node(0o40700, nlink=2).freeze()
    assert 'none' in (explain(workers, found, -1, 100) or '')
