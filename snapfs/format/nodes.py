"""L1 nodes: leaf and branch of a volume's tree. Pure; safe from any thread; what is decoded is not changed.

Specification. The plain bytes of a node chunk are header (28 bytes) · refs table · stream (stream.py). At
most 131,072 bytes.

====== ====== ============= =====================================================================
offset bytes  field         meaning
====== ====== ============= =====================================================================
0      1      version       1
1      1      kind          1 leaf, 2 branch
2      1      level         0 for a leaf; for a branch 1 more than its children, at most 16
3      1      reserved      0
4      4      items         leaf: number of items; branch: number of children; at least 1
8      4      refs          number of ids in the refs table
12     8      items below   leaf: items; branch: sum of its children's
20     8      refs below    leaf: refs; branch: sum of its children's + its number of children
====== ====== ============= =====================================================================

The refs table is `refs` ids of 32 bytes, back to back. Nowhere else in a node does a chunk id stand.

Leaf: the stream is key, value, key, value, …: 2 × items elements. Keys (bin, keys.py) ascend strictly;
values are those of items.py. The k-th item that refers to a chunk (k from 0) has position k: each slot of
the table is used exactly once, in order, so a reference that a walker loses or invents is seen by counting.
refs ≤ items.

Branch: refs = items; the table has the children's ids in order. The stream is three elements per child:
lowest key, items below, refs below of that child. Lowest keys ascend strictly; the first is empty (bin of 0
bytes), so that every key belongs to a child: the last one whose lowest key is not greater.

A walker that only wants references needs header and table (`peek_refs`); one that distrusts tables decodes
all items.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from itertools import chain, islice
from operator import lt
from typing import Any, NamedTuple

from snapfs import errors, limits
from snapfs.format.ids import Buffer
from snapfs.format.items import ENTRY_FIELDS, INODE_FIELDS, INODE_TARGET, Value
from snapfs.format.keys import (
    DIRENT,
    EXTENT,
    INODE,
    KEY_BYTES_MAX,
    KEY_BYTES_MIN,
    KIND_POSITION,
    ORPHAN,
    XATTR,
)
from snapfs.format.stream import pack_stream, unpack_stream


class NodeHeader(NamedTuple):
    """The header of a node. `kind` is LEAF or BRANCH."""

    kind: int
    level: int
    items: int
    refs: int
    items_below: int
    refs_below: int


LEAF, BRANCH = 1, 2
_HEADER = struct.Struct('>BBBBIIQQ')
NODE_HEADER_BYTES = _HEADER.size
_ID = limits.ID_BYTES
_LONG_KEY_BYTES = KEY_BYTES_MIN + 8

assert NODE_HEADER_BYTES == 28


class Leaf:
    """A decoded leaf. `values` are as on disk (positions); `value(i)` has ids in place. Change no list.

    `plain_bytes` is the length of what it was decoded from, in bytes; 0 for one that was not decoded.
    """

    __slots__ = ('items_below', 'keys', 'plain_bytes', 'refs', 'refs_below', 'values')

    level = 0

    def __init__(self, keys: list[bytes], values: list[Value], refs: bytes, plain_bytes: int = 0) -> None:
        self.plain_bytes = plain_bytes
        self.keys = keys
        self.values = values
        self.refs = refs
        self.items_below = len(keys)
        self.refs_below = len(refs) // _ID

    def value(self, index: int) -> Value:
        """Return the in-memory value of item `index`: ids in place."""
        value = self.values[index]
        kind = self.keys[index][KIND_POSITION]
        if kind == EXTENT:
            return *value[:-1], self._ref(value[-1])
        if kind == XATTR and value[0]:
            return value[0], value[1], self._ref(value[2])
        return value

    def _ref(self, position: int) -> bytes:
        return self.refs[position * _ID : (position + 1) * _ID]

    def values_with_ids(self) -> list[Value]:
        """Return all values as in memory: what `encode_leaf` takes."""
        values = self.values[:]
        if not self.refs:
            return values
        ids = split_refs(self.refs)
        for index, key in enumerate(self.keys):
            kind = key[KIND_POSITION]
            if kind == EXTENT:
                value = values[index]
                values[index] = (*value[:-1], ids[value[-1]])
            elif kind == XATTR and values[index][0]:
                form, length, position = values[index]
                values[index] = (form, length, ids[position])
        return values

    def ref_ids(self) -> list[bytes]:
        """Return the refs table as a list of ids, in order."""
        return split_refs(self.refs)


class Branch:
    """A decoded branch; the four tuples have one element per child. `keys[0]` is b''.

    `plain_bytes` is the length of what it was decoded from, in bytes; 0 for one that was not decoded.
    """

    __slots__ = (
        'child_items',
        'child_refs',
        'children',
        'items_below',
        'keys',
        'level',
        'plain_bytes',
        'refs_below',
    )

    def __init__(
        self,
        level: int,
        keys: Sequence[bytes],
        children: Sequence[bytes],
        child_items: Sequence[int],
        child_refs: Sequence[int],
        plain_bytes: int = 0,
    ) -> None:
        self.level = level
        self.plain_bytes = plain_bytes
        self.keys = tuple(keys)
        self.children = tuple(children)
        self.child_items = tuple(child_items)
        self.child_refs = tuple(child_refs)
        self.items_below = sum(child_items)
        self.refs_below = sum(child_refs) + len(self.children)

    def ref_ids(self) -> list[bytes]:
        """Return the children's ids, in order."""
        return list(self.children)


def split_refs(refs: bytes) -> list[bytes]:
    """Return the ids of a refs table."""
    return [refs[start : start + _ID] for start in range(0, len(refs), _ID)]


def _ascend(keys: Sequence[bytes]) -> bool:
    return all(map(lt, keys, islice(keys, 1, None)))


def _encode(header: NodeHeader, table: Iterable[bytes], stream: list[Any]) -> bytes:
    refs = b''.join(table)
    assert len(refs) == header.refs * _ID
    fields = _HEADER.pack(
        limits.FORMAT_VERSION,
        header.kind,
        header.level,
        0,
        header.items,
        header.refs,
        header.items_below,
        header.refs_below,
    )
    plain = fields + refs + pack_stream(stream)
    assert len(plain) <= limits.NODE_BYTES_MAX, f'a node of {len(plain)} bytes'
    return plain


def encode_leaf(keys: Sequence[bytes], values: Sequence[Value]) -> bytes:
    """Return the plain bytes of a leaf. Values with ids in place; keys ascend strictly; at least one item."""
    assert len(keys) == len(values) > 0
    assert _ascend(keys)
    table: list[bytes] = []
    stream: list[Any] = [None] * (2 * len(keys))
    stream[0::2] = keys
    stream[1::2] = values
    for index, key in enumerate(keys):
        kind = key[KIND_POSITION]
        if kind == EXTENT:
            value = values[index]
            stream[2 * index + 1] = (*value[:-1], len(table))
            table.append(value[-1])
        elif kind == XATTR and values[index][0]:
            form, length, id = values[index]
            stream[2 * index + 1] = (form, length, len(table))
            table.append(id)
    count, refs = len(keys), len(table)
    return _encode(NodeHeader(LEAF, 0, count, refs, count, refs), table, stream)


def encode_branch(
    level: int,
    keys: Sequence[bytes],
    children: Sequence[bytes],
    child_items: Sequence[int],
    child_refs: Sequence[int],
) -> bytes:
    """Return the plain bytes of a branch; one element per child in each sequence; `keys[0]` is b''."""
    count = len(keys)
    assert 0 < level <= limits.TREE_LEVELS_MAX
    assert count == len(children) == len(child_items) == len(child_refs) > 0
    assert keys[0] == b''
    assert _ascend(keys)
    stream: list[Any] = [None] * (3 * count)
    stream[0::3] = keys
    stream[1::3] = child_items
    stream[2::3] = child_refs
    header = NodeHeader(BRANCH, level, count, count, sum(child_items), sum(child_refs) + count)
    return _encode(header, children, stream)


def peek_header(plain: Buffer) -> NodeHeader:
    """Return the header of a node, checked by itself and against the length of the bytes. Raises Corrupt."""
    if not NODE_HEADER_BYTES < len(plain) <= limits.NODE_BYTES_MAX:
        raise errors.Corrupt(f'node: {len(plain)} bytes')
    version, kind, level, reserved, items, refs, items_below, refs_below = _HEADER.unpack_from(plain)
    if version != limits.FORMAT_VERSION:
        raise errors.Corrupt(f'node: format version {version} is not {limits.FORMAT_VERSION}')
    if reserved or kind not in (LEAF, BRANCH):
        raise errors.Corrupt(f'node: unknown kind {kind} or reserved {reserved}')
    if not items:
        raise errors.Corrupt('node: no items')
    if NODE_HEADER_BYTES + refs * _ID >= len(plain):
        raise errors.Corrupt(f'node: {refs} refs do not fit into {len(plain)} bytes')
    if kind == LEAF:
        good = level == 0 and refs <= items and items_below == items and refs_below == refs
    else:
        good = 0 < level <= limits.TREE_LEVELS_MAX and refs == items and refs_below >= refs
        good = good and items_below >= items
    if not good:
        raise errors.Corrupt(
            f'node: level {level}, {items} items, {refs} refs, {items_below} and {refs_below} below'
        )
    return NodeHeader(kind, level, items, refs, items_below, refs_below)


def peek_refs(plain: Buffer) -> tuple[NodeHeader, bytes]:
    """Return header and refs table without decoding any item. Raises Corrupt."""
    header = peek_header(plain)
    return header, bytes(plain[NODE_HEADER_BYTES : NODE_HEADER_BYTES + header.refs * _ID])


def peek_items(plain: Buffer) -> tuple[list[Any], list[Any], bytes]:
    """Return keys, values and refs table of a leaf as they stand there, for who looks for something in many
    leaves: a third of the time of `decode_node`. Corrupt for a branch and for what is no stream. No key and
    no value is checked: keys may be of any type, values of any shape."""
    header, refs = peek_refs(plain)
    if header.kind != LEAF:
        raise errors.Corrupt('node: a branch where a leaf is looked for')
    stream = unpack_stream(memoryview(plain)[NODE_HEADER_BYTES + len(refs) :], 2 * header.items, 'leaf')
    return stream[0::2], stream[1::2], refs


def decode_node(plain: Buffer) -> Leaf | Branch:
    """Return the node. Corrupt unless all the above holds, but for ranges within values (check_item)."""
    header, refs = peek_refs(plain)
    body = memoryview(plain)[NODE_HEADER_BYTES + len(refs) :]
    if header.kind == BRANCH:
        return _decode_branch(header, refs, body)
    stream = unpack_stream(body, 2 * header.items, 'leaf')
    keys, values = stream[0::2], stream[1::2]
    _check_keys(keys, KEY_BYTES_MIN, 'leaf')
    if set(map(type, values)) != {tuple}:
        raise errors.Corrupt('leaf: a value is not an array')
    _check_values(keys, values, header.refs)
    return Leaf(keys, values, refs, len(plain))


def _check_keys(keys: list[Any], length_min: int, what: str) -> None:
    if set(map(type, keys)) != {bytes}:
        raise errors.Corrupt(f'{what}: a key is not bytes')
    lengths = set(map(len, keys))
    if min(lengths) < length_min or max(lengths) > KEY_BYTES_MAX:
        raise errors.Corrupt(f'{what}: a key of {min(lengths)} to {max(lengths)} bytes')
    if not _ascend(keys):
        raise errors.Corrupt(f'{what}: keys do not ascend')


def _check_values(keys: list[bytes], values: list[Value], refs: int) -> None:
    """Check shapes and types of all values, and positions. By columns: this runs whenever a node is read."""
    inodes: list[Value] = []
    entries: list[Any] = []
    numbers: list[Any] = []
    inline: list[Any] = []
    position = 0
    for key, value in zip(keys, values, strict=True):
        kind = key[KIND_POSITION]
        if kind == INODE:
            good = len(key) == KEY_BYTES_MIN
            inodes.append(value)
        elif kind == DIRENT:
            good = len(key) == _LONG_KEY_BYTES and len(value) > 0
            entries += value
        elif kind == EXTENT:
            good = len(key) == _LONG_KEY_BYTES and len(value) in (2, 4) and value[-1] == position
            numbers += value
            position += 1
        elif kind == XATTR:
            good = len(key) > KEY_BYTES_MIN
            if len(value) == 3:
                good = good and value[0] == 1 and value[2] == position
                numbers += value
                position += 1
            else:
                good = good and len(value) == 2 and value[0] == 0
                numbers.append(value[0] if value else None)
                inline += value[1:]
        else:
            good = kind == ORPHAN and len(key) == _LONG_KEY_BYTES and not value
        if not good:
            raise errors.Corrupt(f'leaf: malformed item {key.hex()}')
    if position != refs:
        raise errors.Corrupt(f'leaf: {position} items refer to chunks, the table has {refs} refs')
    if not (set(map(type, numbers)) <= {int} and set(map(type, inline)) <= {bytes}):
        raise errors.Corrupt('leaf: an EXTENT or XATTR of wrong types')
    _check_inodes(inodes)
    _check_entries(entries)


def _check_inodes(inodes: list[Value]) -> None:
    if not inodes:
        return
    types = list(map(type, chain.from_iterable(inodes)))
    good = set(map(len, inodes)) == {INODE_FIELDS}
    good = good and types.count(int) == INODE_TARGET * len(inodes)
    if not (good and set(types[INODE_TARGET::INODE_FIELDS]) == {bytes}):
        raise errors.Corrupt('leaf: an INODE of wrong shape')


def _check_entries(entries: list[Any]) -> None:
    if not entries:
        return
    good = set(map(type, entries)) == {tuple} and set(map(len, entries)) == {ENTRY_FIELDS}
    if good:
        types = list(map(type, chain.from_iterable(entries)))
        good = types.count(int) == 2 * len(entries) and set(types[0::ENTRY_FIELDS]) == {bytes}
    if not good:
        raise errors.Corrupt('leaf: a DIRENT of wrong shape')


def _decode_branch(header: NodeHeader, refs: bytes, body: Buffer) -> Branch:
    stream = unpack_stream(body, 3 * header.items, 'branch')
    keys, child_items, child_refs = stream[0::3], stream[1::3], stream[2::3]
    _check_keys(keys, 0, 'branch')
    if keys[0] != b'':
        raise errors.Corrupt('branch: the first key is not empty')
    if set(map(type, child_items)) != {int} or set(map(type, child_refs)) != {int}:
        raise errors.Corrupt('branch: a total is not a number')
    if min(child_items) < 1 or min(child_refs) < 0:
        raise errors.Corrupt('branch: a total out of range')
    plain_bytes = NODE_HEADER_BYTES + len(refs) + len(body)
    branch = Branch(header.level, keys, split_refs(refs), child_items, child_refs, plain_bytes)
    if branch.items_below != header.items_below or branch.refs_below != header.refs_below:
        raise errors.Corrupt('branch: the totals of its children do not add up to its own')
    return branch
