"""The sibling of a tree that has lost nodes: what can be read is in it, and memory does not grow with it."""

from __future__ import annotations

import random
import tracemalloc
from types import SimpleNamespace
from typing import Any

import pytest

from snapfs import limits
from snapfs.errors import Corrupt
from snapfs.format.ids import chunk_id
from snapfs.format.keys import dirent_key, ino_range, inode_key
from snapfs.format.nodes import Branch, decode_node, encode_branch, encode_leaf
from snapfs.format.records import RecordKind
from snapfs.rescue.recover_values import Lost, Mend, Survey
from snapfs.rescue.sibling import Sibling
from snapfs.rescue.survey import KEY_END
from snapfs.tree import EMPTY, Root, apply, range_items, run_apply

FILE = 8
REPORT_INO = 1 << 30


class Chunks:
    """What a sibling wants of a store: nodes in memory, some of which are lost. What is put is kept only
    when that is asked for."""

    def __init__(self) -> None:
        self.nodes: dict[bytes, bytes] = {}
        self.lost: set[bytes] = set()
        self.keep = True

    def get(self, id: bytes) -> bytes:
        if id in self.lost:
            raise Corrupt('it is lost')
        return self.nodes[id]

    def get_many(self, ids: list[bytes]) -> list[bytes]:
        return [self.get(id) for id in ids]

    def put_batch(self, kind: RecordKind, plains: list[bytes]) -> list[bytes]:
        ids = [chunk_id(kind, plain) for plain in plains]
        if self.keep:
            self.nodes.update(zip(ids, plains, strict=True))
        return ids

    def load(self, id: bytes) -> Any:
        return decode_node(self.get(id))


def store_of(chunks: Chunks) -> Any:
    return SimpleNamespace(chunks=chunks, superblock=SimpleNamespace(name_key=b'n' * 16))


def inode(kind: int = FILE, **fields: int) -> tuple[Any, ...]:
    return (kind << 12 | 0o700, 0, 0, 0, fields.get('size', 5), 0, 1, 1, 0, 0, 0, 0, 0, 0, b'')


def items_of(files: int) -> list[tuple[bytes, Any]]:
    """The top directory with so many empty files."""
    rng = random.Random(files)
    numbers = range(limits.INO_FIRST, limits.INO_FIRST + files)
    rows: list[tuple[bytes, Any]] = [(inode_key(limits.INO_ROOT), inode(4, size=files))]
    rows += [(inode_key(ino), inode()) for ino in numbers]
    names = rng.sample(range(1, 1 << 60), files)
    rows += [
        (dirent_key(limits.INO_ROOT, name), ((b'%d' % ino, ino, FILE),))
        for name, ino in zip(names, numbers, strict=True)
    ]
    return sorted(rows)


def built(chunks: Chunks, rows: list[tuple[bytes, Any]]) -> Root:
    work = apply(EMPTY, [], rows)
    return run_apply(work, lambda ids: [chunks.load(id) for id in ids], chunks.nodes.update).root


def leaves(chunks: Chunks, root: Root) -> list[tuple[bytes, bytes, bytes]]:
    """Ids of the leaves, with the keys that they may have."""
    level = [(root.id, b'\0' * 8 + b'\x01', KEY_END)]
    while isinstance(chunks.load(level[0][0]), Branch):
        below = []
        for id, low, high in level:
            node = chunks.load(id)
            bounds = [low, *node.keys[1:], high]
            below += zip(node.children, bounds[:-1], bounds[1:], strict=True)
        level = below
    return level


def lose(chunks: Chunks, root: Root, *numbers: int) -> tuple[Survey, set[bytes]]:
    """Lose some leaves; return the survey of that, and the keys that were in them."""
    found, keys = [], set()
    for number in numbers:
        id, low, high = leaves(chunks, root)[number]
        keys |= set(chunks.load(id).keys)
        found.append(Lost(id, 2, 'it is lost', (), (), low, high))
    chunks.lost |= {one.id for one in found}
    return Survey(tuple(found), Mend(), 0, 0, 0, 0), keys


def made(chunks: Chunks, root: Root, survey: Survey) -> Root:
    return Sibling(store_of(chunks), root, REPORT_INO, survey, 1).make({'lost': []})


def peak(files: int) -> int:
    """Bytes that making the sibling of a tree with one lost leaf takes."""
    chunks = Chunks()
    root = built(chunks, items_of(files))
    survey, _ = lose(chunks, root, -2)
    chunks.keep = False
    tracemalloc.start()
    try:
        made(chunks, root, survey)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_does_not_grow_with_the_tree():
    """500 bytes for each item were held."""
    small, large = peak(2_000), peak(20_000)
    assert large - small < 2 << 20, (small, large)


@pytest.mark.parametrize('numbers', [(1,), (-1,), (3, 4, 5), (2, -3)])
def test_all_that_can_be_read_is_in_it_and_nothing_else(numbers):
    chunks = Chunks()
    rows = items_of(3_000)
    root = built(chunks, rows)
    survey, gone = lose(chunks, root, *numbers)
    new = made(chunks, root, survey)
    top = inode_key(limits.INO_ROOT)
    found = dict(range_items(new, b'', KEY_END, chunks.load))
    before = {key for key, _ in rows}
    report = {key: found.pop(key) for key in list(found) if key not in before}
    assert found.pop(top)[4] == 3_001, 'the report is counted'
    assert found == {key: value for key, value in rows if key not in gone | {top}}
    assert new.items == len(found) + 1 + len(report)
    assert {int.from_bytes(key[:8], 'big') for key in report} == {limits.INO_ROOT, REPORT_INO}


def test_items_of_inodes_that_go_are_not_in_it():
    chunks = Chunks()
    root = built(chunks, items_of(3_000))
    survey, _ = lose(chunks, root, 1)
    ino = limits.INO_FIRST + 2_990
    survey = Survey(survey.lost, Mend(gone=(ino,)), 0, 0, 0, 0)
    new = made(chunks, root, survey)
    assert not list(range_items(new, *ino_range(ino), chunks.load))


def test_an_item_that_stands_where_nobody_looks_for_it_is_kept_at_its_place():
    """A tree that no disk makes: its second leaf has a key that belongs into the first."""
    chunks = Chunks()
    first, last = limits.INO_FIRST, limits.INO_FIRST + 9
    parts = [
        [(inode_key(limits.INO_ROOT), inode(4)), (inode_key(last), inode())],
        [(inode_key(first), inode()), (inode_key(last + 2), inode())],
        [(inode_key(last + 8), inode())],
    ]
    ids = chunks.put_batch(
        RecordKind.NODE,
        [encode_leaf([key for key, _ in rows], [value for _, value in rows]) for rows in parts],
    )
    bounds = [b'', inode_key(last + 1), inode_key(last + 5)]
    (top,) = chunks.put_batch(RecordKind.NODE, [encode_branch(1, bounds, ids, [2, 2, 1], [0, 0, 0])])
    root = Root(top, 5, 3)
    survey, _ = lose(chunks, root, 2)
    new = made(chunks, root, survey)
    found = dict(range_items(new, inode_key(limits.INO_FIRST), KEY_END, chunks.load))
    there = {int.from_bytes(key[:8], 'big') for key in found}
    assert there == {first, last, last + 2, REPORT_INO}
    for ino in there:
        assert inode_key(ino) in found


def test_what_cannot_be_read_any_more_and_was_not_told_of_ends_it():
    """It would be missing in the sibling, and no report would say so."""
    chunks = Chunks()
    root = built(chunks, items_of(3_000))
    survey, _ = lose(chunks, root, 1)
    chunks.lost.add(last_leaf(chunks, root))
    with pytest.raises(Corrupt):
        made(chunks, root, survey)


def last_leaf(chunks: Chunks, root: Root) -> bytes:
    """The id of a leaf that is lost after the survey."""
    node = chunks.load(root.id)
    while isinstance(node, Branch):
        id = node.children[-1]
        node = chunks.load(id)
    return id
