"""Streams and nodes: totals, positions, and what decode_node refuses although every byte is well-formed."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest

from snapfs import limits
from snapfs.errors import Corrupt
from snapfs.format import keys, nodes
from snapfs.format.nodes import Branch, Leaf, decode_node, encode_branch, encode_leaf, peek_refs
from snapfs.format.stream import pack_stream, unpack_stream

A, B, C = b'a' * 32, b'b' * 32, b'c' * 32
INODE = (0o100644, 0, 0, 0, 0, 0, 1, 1, 0, 5, 5, 5, 5, 0, b'')
KEYS = [
    keys.orphan_key(9),
    keys.inode_key(16),
    keys.dirent_key(16, 5),
    keys.extent_key(16, 0),
    keys.extent_key(16, 10),
    keys.xattr_key(16, b'user.a'),
    keys.xattr_key(16, b'user.b'),
]
VALUES: list[Any] = [(), INODE, ((b'name', 17, 8),), (10, A), (10, B), (0, b'inline'), (1, 2000, A)]
ON_DISK: list[Any] = [(), INODE, ((b'name', 17, 8),), (10, 0), (10, 1), (0, b'inline'), (1, 2000, 2)]


def node(kind: int, level: int, counts: tuple[int, int, int, int], refs: bytes, stream: object) -> bytes:
    """Return a node with any header and body: counts are items, refs, items below, refs below."""
    items, table, items_below, refs_below = counts
    header = bytes([1, kind, level, 0]) + items.to_bytes(4, 'big') + table.to_bytes(4, 'big')
    header += items_below.to_bytes(8, 'big') + refs_below.to_bytes(8, 'big')
    return header + refs + (stream if isinstance(stream, bytes) else msgpack.packb(stream))


def leaf(*items: Any, refs: bytes = b'', count: int | None = None) -> bytes:
    """Return a leaf with these (key, value as on disk) and a header that fits."""
    number, table = len(items) if count is None else count, len(refs) // 32
    stream = [part for item in items for part in item]
    return node(1, 0, (number, table, number, table), refs, stream)


def branch(*children: Any, level: int = 1, refs: bytes | None = None, counts: Any = None) -> bytes:
    """Return a branch with these (key, items, refs) and a header that fits."""
    number = len(children)
    if counts is None:
        below = sum(child[2] for child in children) + number
        counts = (number, number, sum(child[1] for child in children), below)
    stream = [part for child in children for part in child]
    return node(2, level, counts, A * number if refs is None else refs, stream)


def test_leaf_comes_back() -> None:
    plain = encode_leaf(KEYS, VALUES)
    found = decode_node(plain)
    assert isinstance(found, Leaf)
    assert (found.keys, found.values, found.refs) == (KEYS, ON_DISK, A + B + A)
    assert [found.value(index) for index in range(7)] == VALUES == found.values_with_ids()
    assert (found.level, found.items_below, found.refs_below) == (0, 7, 3)
    assert found.ref_ids() == [A, B, A]
    assert found.plain_bytes == len(plain)
    assert peek_refs(plain) == (nodes.NodeHeader(nodes.LEAF, 0, 7, 3, 7, 3), A + B + A)


def test_leaf_without_refs_comes_back() -> None:
    found = decode_node(memoryview(encode_leaf(KEYS[:3], VALUES[:3])))
    assert isinstance(found, Leaf)
    assert found.values_with_ids() == VALUES[:3]
    assert found.ref_ids() == []


def test_branch_comes_back() -> None:
    plain = encode_branch(3, [b'', KEYS[1], b'z'], [A, B, A], [1, 2, 3], [0, 5, 6])
    found = decode_node(plain)
    assert isinstance(found, Branch)
    assert (found.level, found.keys, found.children) == (3, (b'', KEYS[1], b'z'), (A, B, A))
    assert (found.child_items, found.child_refs) == ((1, 2, 3), (0, 5, 6))
    assert (found.items_below, found.refs_below) == (6, 14)
    assert found.ref_ids() == [A, B, A]
    assert found.plain_bytes == len(plain)
    assert peek_refs(plain) == (nodes.NodeHeader(nodes.BRANCH, 3, 3, 3, 6, 14), A + B + A)


GOOD_ITEM = (KEYS[1], INODE)
EXTENT = (KEYS[3], (10, 0))
BAD_LEAVES = {
    'no items': leaf(count=0),
    'claims 2 elements': leaf(GOOD_ITEM, count=2),
    'claims 4 elements': leaf(GOOD_ITEM, GOOD_ITEM, count=1),
    'keys do not ascend': leaf(GOOD_ITEM, GOOD_ITEM),
    'keys do not ascend ': leaf(GOOD_ITEM, (KEYS[0], ())),
    'key is not bytes': leaf((1, INODE)),
    'a key of 8': leaf((KEYS[1][:-1], INODE)),
    'a key of 265': leaf((KEYS[5] + b'x' * 250, (0, b''))),
    'not an array': leaf((KEYS[1], 5)),
    'not an array ': leaf((KEYS[1], None)),
    'malformed item': leaf((KEYS[1][:8] + b'\6', ())),
    'malformed item ': leaf((KEYS[1] + b'x', INODE)),
    'malformed item  ': leaf((KEYS[2][:-1], ((b'n', 1, 8),))),
    'malformed item   ': leaf((KEYS[2], ())),
    'malformed item    ': leaf((KEYS[3][:-1], (10, 0)), refs=A),
    'malformed item     ': leaf((KEYS[3], (10, 0, 0)), refs=A),
    'malformed item      ': leaf((KEYS[3], (10, 1)), refs=A),
    'malformed item       ': leaf(EXTENT, (KEYS[4], (10, 0)), refs=A + B),
    'malformed item        ': leaf((KEYS[5][:9], (0, b''))),
    'malformed item         ': leaf((KEYS[5], ())),
    'malformed item          ': leaf((KEYS[5], (1, b''))),
    'malformed item           ': leaf((KEYS[5], (1, 2000, 1)), refs=A),
    'malformed item            ': leaf((KEYS[5], (2, 2000, 0)), refs=A),
    'malformed item             ': leaf((KEYS[0], (0,))),
    'malformed item              ': leaf((KEYS[0][:9], ())),
    '1 items refer': leaf(EXTENT),
    '0 items refer': leaf(GOOD_ITEM, refs=A),
    '1 items refer ': leaf(EXTENT, GOOD_ITEM[:0] or (KEYS[5], (0, b'')), refs=A + B),
    'wrong types': leaf((KEYS[3], (10.0, 0)), refs=A),
    'wrong types ': leaf((KEYS[3], (10, False)), refs=A),
    'wrong types     ': leaf((KEYS[3], (10, 1.0, 20, 0)), refs=A),
    'wrong types  ': leaf((KEYS[5], (0, 5))),
    'wrong types   ': leaf((KEYS[5], (False, b''))),
    'wrong types    ': leaf((KEYS[5], (1, b'', 0)), refs=A),
    'INODE of wrong shape': leaf((KEYS[1], INODE[:-1])),
    'INODE of wrong shape ': leaf((KEYS[1], (*INODE[:-1], 5))),
    'INODE of wrong shape  ': leaf((KEYS[1], (b'', *INODE[1:]))),
    'INODE of wrong shape   ': leaf((KEYS[1], (True, *INODE[1:]))),
    'DIRENT of wrong shape': leaf((KEYS[2], (5,))),
    'DIRENT of wrong shape ': leaf((KEYS[2], ((b'n', 1),))),
    'DIRENT of wrong shape  ': leaf((KEYS[2], ((1, b'n', 8),))),
    'DIRENT of wrong shape   ': leaf((KEYS[2], ((b'n', 1.0, 8),))),
}
CHILD, NEXT = (b'', 3, 1), (b'k', 5, 0)
BAD_BRANCHES = {
    'no items': branch(),
    'level 0': branch(CHILD, level=0),
    'level 17': branch(CHILD, level=17),
    'first key': branch((b'a', 3, 1)),
    'do not ascend': branch(CHILD, CHILD),
    'a key of 0 to 265': branch(CHILD, (b'k' * 265, 1, 0)),
    'key is not bytes': branch((0, 3, 1)),
    'not a number': branch(CHILD, (b'k', 3.0, 0), counts=(2, 2, 6, 3)),
    'not a number ': branch(CHILD, (b'k', 3, False), counts=(2, 2, 6, 3)),
    'total out of range': branch(CHILD, (b'k', 0, 0)),
    'total out of range ': branch(CHILD, (b'k', 5, -1)),
    'add up': branch(CHILD, NEXT, counts=(2, 2, 7, 3)),
    'add up ': branch(CHILD, NEXT, counts=(2, 2, 8, 4)),
    '1 items, 2 refs': branch(CHILD, refs=A + B, counts=(1, 2, 3, 3)),
    '1 and 1 below': branch(CHILD, NEXT, counts=(2, 2, 1, 1)),
    'claims 6 elements': branch(CHILD, NEXT, refs=A, counts=(1, 1, 8, 2)),
}


def test_the_makers_of_bad_nodes_also_make_good_ones() -> None:
    assert isinstance(decode_node(leaf(GOOD_ITEM, EXTENT, refs=A)), Leaf)
    assert isinstance(decode_node(leaf((KEYS[3], (10, 5, 20, 0)), refs=A)), Leaf)
    assert isinstance(decode_node(branch(CHILD, NEXT)), Branch)


@pytest.mark.parametrize('message', list(BAD_LEAVES))
def test_leaf_refused(message: str) -> None:
    with pytest.raises(Corrupt, match=message.strip()):
        decode_node(BAD_LEAVES[message])


@pytest.mark.parametrize('message', list(BAD_BRANCHES))
def test_branch_refused(message: str) -> None:
    with pytest.raises(Corrupt, match=message.strip()):
        decode_node(BAD_BRANCHES[message])


@pytest.mark.parametrize(
    ('offset', 'patch', 'message'),
    [
        (0, b'\2', 'format version 2'),
        (1, b'\3', 'unknown kind 3'),
        (2, b'\1', 'level 1'),
        (3, b'\1', 'reserved 1'),
        (8, b'\xff' * 4, 'do not fit'),
        (12, b'\1', 'below'),
        (20, b'\1', 'below'),
    ],
)
def test_node_header_refused(offset: int, patch: bytes, message: str) -> None:
    plain = encode_leaf(KEYS, VALUES)
    plain = plain[:offset] + patch + plain[offset + len(patch) :]
    for decode in (decode_node, peek_refs):
        with pytest.raises(Corrupt, match=message):
            decode(plain)


def test_node_of_impossible_length() -> None:
    plain = encode_leaf(KEYS, VALUES)
    for data in (b'', plain[:28], plain + bytes(limits.NODE_BYTES_MAX)):
        with pytest.raises(Corrupt, match=r'node: \d+ bytes'):
            decode_node(data)
    with pytest.raises(Corrupt, match='left over'):
        decode_node(plain + b'\0')


def test_nodes_are_not_written_against_the_rules() -> None:
    for bad in (([], []), (KEYS[::-1], VALUES[::-1]), (KEYS, VALUES[:-1]), ([KEYS[3]], [(10, A[:-1])])):
        with pytest.raises(AssertionError):
            encode_leaf(*bad)
    for level, separators in ((0, [b'', b'k']), (17, [b'', b'k']), (1, [b'a', b'k']), (1, [b'', b''])):
        with pytest.raises(AssertionError):
            encode_branch(level, separators, [A, B], [1, 1], [0, 0])
    many = [keys.xattr_key(16, b'%03d' % number) for number in range(200)]
    with pytest.raises(AssertionError, match='a node of'):
        encode_leaf(many, [(0, b'v' * 1024)] * 200)


def test_stream_comes_back() -> None:
    elements = [0, -1, 1 << 63, -(1 << 63), b'', b'x' * 70_000, None, True, (), (1, (2, (b'three',)))]
    assert unpack_stream(pack_stream(elements), len(elements), 'test') == elements
    assert unpack_stream(pack_stream(elements), None, 'test') == elements


@pytest.mark.parametrize(
    ('body', 'message'),
    [
        (b'', 'empty'),
        (b'\5', 'not a msgpack stream'),
        (b'\xc1', 'not a msgpack stream'),
        (b'\xdd\xff\xff\xff\xff\0', 'claims 4294967295'),
        (b'\xdd\0\0\0\6\0', 'claims|1 elements'),
        (b'\x92\0', '1 elements'),
        (b'\x91\0\0', '1 bytes left over'),
        (b'\x91\0\x92\0', 'left over'),
        (b'\x91\xc4\x05abc', '0 elements'),
        (b'\x91\xdc\0\x41' + b'\0' * 65, 'not a msgpack stream'),
        (b'\x91\xa1a', 'not a msgpack stream'),
        (b'\x91\x80', 'not a msgpack stream'),
        (b'\x91\xc7\0\5', 'not a msgpack stream'),
        (b'\x91\x81\0\0', 'not a msgpack stream'),
        (b'\x91\xd6\xff\0\0\0\0', 'not a msgpack stream'),
        (b'\x91' * 5000, 'not a msgpack stream'),
        (b'\x91\xdb\xff\xff\xff\xff', '0 elements'),
        (b'\x91\xc6\xff\xff\xff\xff', '0 elements'),
    ],
)
def test_stream_refused(body: bytes, message: str) -> None:
    with pytest.raises(Corrupt, match=message):
        unpack_stream(body, None, 'test')


def test_stream_of_another_count() -> None:
    with pytest.raises(Corrupt, match='claims 2'):
        unpack_stream(pack_stream([1, 2]), 3, 'test')
