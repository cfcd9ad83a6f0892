"""Tool fsck, naming: what it takes from a leaf without checking each value is what the strict decoder says,
and of a leaf that is nonsense it takes nothing that is not what it seems."""

from __future__ import annotations

import random
from typing import Any

import msgpack
import pytest

from snapfs import limits
from snapfs.errors import Corrupt
from snapfs.format import nodes
from snapfs.format.keys import (
    DIRENT,
    EXTENT,
    XATTR,
    decode_key,
    dirent_key,
    extent_key,
    inode_key,
    suffix_number,
    xattr_key,
)
from tools.checker import naming
from tools.checker.leaves import DIRECTORY
from tools.checker.spill import words_of

INODE_VALUE = (0o100644, 0, 0, 0, 10, 10, 1, 1, 1, 0, 0, 0, 0, 0, b'')
NONSENSE: list[Any] = [None, True, 1.5, -1, 1 << 63, b'', b'123456789\x02', (), ((),), (b'x',), (1, 2, 3)]


def a_leaf(chance: random.Random) -> bytes:
    found: dict[bytes, Any] = {}
    for ino in chance.sample(range(3, 60), 12):  # 2 has no items but orphans
        found[inode_key(ino)] = INODE_VALUE
        for _ in range(chance.randrange(3)):
            name, child = chance.randbytes(4).hex().encode(), chance.randrange(1, 80)
            found[dirent_key(ino, chance.randrange(2, 1 << 62))] = ((name, child, chance.choice([4, 8])),)
        for offset in range(chance.randrange(3)):
            found[extent_key(ino, offset * 100)] = (100, chance.randbytes(32))
        if chance.random() < 0.3:
            found[xattr_key(ino, b'user.a')] = (1, 5000, chance.randbytes(32))
    keys = sorted(found)
    return nodes.encode_leaf(keys, [found[key] for key in keys])


def entries_by_decoder(plain: bytes, inos: set[int]) -> list[naming.Entry]:
    leaf = nodes.decode_node(plain)
    assert isinstance(leaf, nodes.Leaf)
    return [
        (child, int.from_bytes(key[:8], 'big'), name)
        for key, value in zip(leaf.keys, leaf.values, strict=True)
        if key[8] == DIRENT
        for name, child, child_type in value
        if 0 < child <= limits.INO_MAX and (child in inos or child_type == DIRECTORY)
    ]


def hits_by_decoder(plain: bytes, wanted: naming.Wanted) -> list[tuple[int, naming.Hit]]:
    leaf = nodes.decode_node(plain)
    assert isinstance(leaf, nodes.Leaf)
    found = []
    for index, key in enumerate(leaf.keys):
        if key[8] not in (EXTENT, XATTR):
            continue
        value, ino = leaf.value(index), decode_key(key)[0]
        if key[8] == EXTENT:
            hit = naming.Hit(ino, suffix_number(key), suffix_number(key) + value[0])
        else:
            hit = naming.Hit(ino, None, None, 'attribute user.a')
        found += [(finding, hit) for finding in wanted.get(words_of(value[-1]), ())]
    return found


def some_wanted(plain: bytes, chance: random.Random) -> naming.Wanted:
    ids = nodes.split_refs(nodes.peek_refs(plain)[1])
    return {words_of(id): [number] for number, id in enumerate(ids) if chance.random() < 0.5}


@pytest.mark.parametrize('seed', range(40))
def test_it_takes_what_the_strict_decoder_gives(seed: int) -> None:
    chance = random.Random(seed)
    plain = a_leaf(chance)
    inos, wanted = set(chance.sample(range(1, 80), 30)), some_wanted(plain, chance)
    assert naming._named_in(plain, inos, directories=True) == entries_by_decoder(plain, inos)
    assert naming._leaf_hits(plain, wanted) == hits_by_decoder(plain, wanted)


def with_nonsense_inside(value: Any, chance: random.Random) -> Any:
    if not isinstance(value, tuple) or not value or chance.random() < 0.3:
        return chance.choice(NONSENSE)
    inside = list(value)
    at = chance.randrange(len(inside))
    inside[at] = with_nonsense_inside(inside[at], chance)
    return tuple(inside)


def with_nonsense(plain: bytes, chance: random.Random) -> bytes:
    """Put something else in the place of a key or of a value, or of a part of a value."""
    header, _ = nodes.peek_refs(plain)
    keys, values, _ = nodes.peek_items(plain)
    stream = [one for pair in zip(keys, values, strict=True) for one in pair]
    at = chance.randrange(len(stream))
    stream[at] = with_nonsense_inside(stream[at], chance)
    return plain[: nodes.NODE_HEADER_BYTES + header.refs * limits.ID_BYTES] + msgpack.packb(stream)


@pytest.mark.parametrize('seed', range(40))
def test_nonsense_in_a_leaf_ends_nobody(seed: int) -> None:
    chance = random.Random(seed)
    for _ in range(100):
        plain = a_leaf(chance)
        wanted, inos = some_wanted(plain, chance), set(chance.sample(range(1, 80), 30))
        bad = with_nonsense(plain, chance)
        entries = naming._named_in(bad, inos, directories=True)
        assert all(type(name) is bytes and 0 < child <= limits.INO_MAX for child, _, name in entries)
        hits = naming._leaf_hits(bad, wanted)
        assert all(hit.start is None or type(hit.start) is type(hit.end) is int for _, hit in hits)
        try:
            strict = entries_by_decoder(bad, inos), hits_by_decoder(bad, wanted)
        except (Corrupt, TypeError):
            continue
        assert (entries, hits) == strict


@pytest.mark.parametrize('plain', [None, b'', b'nonsense', bytes(300)])
def test_what_is_no_leaf_has_nothing(plain: bytes | None) -> None:
    assert naming._named_in(plain, {1}, directories=True) == []
    assert naming._leaf_hits(plain, {}) == []


def test_a_branch_is_no_leaf() -> None:
    branch = nodes.encode_branch(1, [b''], [bytes(32)], [1], [0])
    with pytest.raises(Corrupt, match='a branch where a leaf is looked for'):
        nodes.peek_items(branch)
    assert naming._named_in(branch, {1}, directories=True) == []


def test_bytes_in_place_of_an_extent_are_no_extent() -> None:
    plain = nodes.encode_leaf([extent_key(5, 0)], [(100, bytes(32))])
    head = plain[: nodes.NODE_HEADER_BYTES + limits.ID_BYTES]
    bad = head + msgpack.packb([extent_key(5, 0), b'\x64\x00'])
    wanted = {words_of(bytes(32)): [0]}
    assert naming._leaf_hits(plain, wanted) == [(0, naming.Hit(5, 0, 100))]
    assert naming._leaf_hits(bad, wanted) == []
