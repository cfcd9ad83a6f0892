"""The survey of a tree: memory follows what is lost, and not the tree."""

from __future__ import annotations

import tracemalloc
from types import SimpleNamespace
from typing import Any

from snapfs import limits
from snapfs.errors import Corrupt
from snapfs.format.ids import node_id
from snapfs.format.items import Value
from snapfs.format.keys import dirent_key, extent_key
from snapfs.format.nodes import encode_branch, encode_leaf
from snapfs.rescue.survey import _Survey

DIRECTORY = 4


class Tree:
    """Nodes, and a survey of them without a store."""

    def __init__(self, leaves: list[list[tuple[bytes, Value]]], per_branch: int = 100) -> None:
        self.nodes: dict[bytes, bytes] = {}
        level = [
            (rows[0][0], self._keep(encode_leaf([key for key, _ in rows], [value for _, value in rows])))
            for rows in leaves
        ]
        height = 0
        while len(level) > 1:
            height += 1
            above = []
            for start in range(0, len(level), per_branch):
                part = level[start : start + per_branch]
                keys = [b'', *(key for key, _ in part[1:])]
                ones = [1] * len(part)
                above.append(
                    (part[0][0], self._keep(encode_branch(height, keys, [id for _, id in part], ones, ones)))
                )
            level = above
        self.top = level[0][1]

    def _keep(self, plain: bytes) -> bytes:
        self.nodes[node_id(plain)] = plain
        return node_id(plain)

    def survey(self) -> _Survey:
        reader: Any = SimpleNamespace(places_of_many=lambda ids: {}, query=lambda text: [], pack_ends=dict)
        spec: Any = SimpleNamespace(root=self.top, depth=0)
        made = _Survey(reader, spec, lambda done, known: None)
        made._presence = SimpleNamespace(plain=self._plain)  # type: ignore[assignment]
        return made

    def _plain(self, id: bytes, place: Any) -> bytes:
        if id not in self.nodes:
            raise Corrupt('it is lost')
        return self.nodes[id]


def directories(count: int) -> list[list[tuple[bytes, Value]]]:
    """So many directories, each in the one before it down to ten, then at the top again."""
    first = limits.INO_FIRST
    rows: list[tuple[bytes, Value]] = []
    for number in range(count):
        at = first + number - 1 if number % 10 else limits.INO_ROOT
        rows.append((dirent_key(at, number + 1), ((b'directory %d' % number, first + number, DIRECTORY),)))
    rows.sort()
    return [rows[start : start + 100] for start in range(0, count, 100)]


def test_paths_are_found():
    survey = Tree(directories(1_000)).survey()
    wanted = {
        limits.INO_FIRST + 2: '/directory 0/directory 1/directory 2',
        limits.INO_FIRST + 5_000: f'/(inode {limits.INO_FIRST + 5_000})',
        limits.INO_ROOT: '/',
    }
    assert survey._paths(set(wanted)) == wanted


def peak(count: int) -> int:
    survey = Tree(directories(count)).survey()
    tracemalloc.start()
    try:
        assert survey._paths({limits.INO_FIRST})
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_does_not_grow_with_the_names_of_directories():
    """250 bytes for each of them were held. Both sizes are above what a table takes before it writes."""
    small, large = peak(25_000), peak(60_000)
    assert large - small < 2 << 20, (small, large)


def test_leaves_are_seen_from_left_to_right_and_a_lost_node_is_told_with_its_keys():
    rows = [(extent_key(limits.INO_FIRST + number, 0), (1, b'i' * 32)) for number in range(60)]
    tree = Tree([[row] for row in rows], per_branch=4)
    gone = node_id(encode_leaf([rows[7][0]], [rows[7][1]]))
    del tree.nodes[gone]
    survey, seen = tree.survey(), []
    for _ in survey._leaves(lambda leaf: seen.extend(leaf.keys)):
        pass
    assert seen == [key for key, _ in rows[:7] + rows[8:]]
    (lost,) = survey._lost.values()
    assert (lost.id, lost.low, lost.high) == (gone, rows[7][0], rows[8][0])
