"""Tool fsck, leaves: what one leaf says about files, boiled down. Pure.

The rules of POSIX speak of a whole tree: a file has as many names as it says. To check them for many
snapshots that share most leaves, each leaf gives *sums* instead of lists. Every fact adds f(inode) times a
number, and every fact that must answer it takes the same away, where f mixes the inode's number into 64
bits (splitmix64, Steele, Lea and Flood 2014, with a constant for each rule). Over all leaves of a sound
tree each sum is zero modulo 2^64; a tree that is not sound escapes with a chance of 2^-64, unless somebody
made it for that. Where a sum is not zero, the tree's leaves are read again and compared fact by fact
(posix.py).

Items of one inode may go on from leaf to leaf. So a leaf also tells of its *head*, the items before its first
inode, and of its *tail*, its last inode: neighbours are compared by these."""

from __future__ import annotations

import stat
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from snapfs import limits
from snapfs.errors import Corrupt
from snapfs.format.items import (
    EXTENT_WHOLE,
    INODE_ALLOCATED,
    INODE_FLAGS,
    INODE_MODE,
    INODE_NLINK,
    INODE_PARENT,
    INODE_SIZE,
    Value,
    check_item,
)
from snapfs.format.keys import DIRENT, EXTENT, INODE, ORPHAN, XATTR, decode_key, name_hash, suffix_number
from snapfs.format.nodes import Leaf

LINKS, PARENTS, SIZES, SUBDIRECTORIES, ALLOCATED, UNLINKED = range(6)  # the sums
SUMS = 6
DIRECTORY = stat.S_IFDIR >> 12
HAS_XATTRS = 1
Words = NDArray[np.uint64]


def mix(values: Words, rule: int) -> Words:
    """Return splitmix64 of each value, another function for each rule."""
    with np.errstate(over='ignore'):
        z = values + np.uint64((0x9E3779B97F4A7C15 * (2 * rule + 1)) & 0xFFFFFFFFFFFFFFFF)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


@dataclass(slots=True)
class LeafFacts:
    """What a leaf says. `head`: inode of the items before its first INODE, 0 for none; with it the kinds
    among these, and the first byte and the byte behind the last of its extents (-1: none). `tail`: its last
    inode (0: it has none), size, type, flags, and the byte behind the last extent (0: none). `odd`: (code,
    inode, what)."""

    owner: int
    first: bytes
    last: bytes
    sums: tuple[int, ...]
    ino_most: int
    head: tuple[int, frozenset[int], int, int]
    tail: tuple[int, int, int, int, int]
    directories: NDArray[np.uint64]  # pairs (directory, the one it says it is in)
    odd: list[tuple[str, int, str]]


class Rows:
    """The facts of a leaf as lists: what sums are made of, and what an exact comparison uses."""

    __slots__ = ('entries', 'extents', 'inodes', 'odd', 'orphans')

    def __init__(self, leaf: Leaf, name_key: bytes) -> None:
        self.inodes: list[tuple[int, Value]] = []
        self.entries: list[tuple[int, int, int, bytes]] = []  # directory, child, type, name
        self.extents: list[tuple[int, int, int]] = []  # inode, offset, length
        self.orphans: list[int] = []
        self.odd: list[tuple[str, int, str]] = []
        for index, key in enumerate(leaf.keys):
            try:
                ino, kind, _ = decode_key(key)
                value = leaf.value(index)
                check_item(key, value)
            except Corrupt as error:
                self.odd.append(('item-bad', int.from_bytes(key[:8], 'big'), str(error)))
                continue
            if kind == INODE:
                self.inodes.append((ino, value))
            elif kind == DIRENT:
                number = suffix_number(key)
                for name, child, child_type in value:
                    self.entries.append((ino, child, child_type, name))
                    if name_hash(name_key, name) != number:
                        self.odd.append(('name-hash', ino, f'the entry {name!r} stands under another hash'))
            elif kind == EXTENT:
                self.extents.append((ino, suffix_number(key), value[0]))
            elif kind == ORPHAN:
                self.orphans.append(suffix_number(key))


LENGTH_NONE = (1 << 32) - 1


def expected_lengths(leaf: Leaf) -> list[int]:
    """Return the plain length that each reference's chunk must have, in the order of the refs table. One that
    no chunk can have is LENGTH_NONE, which none has."""
    found = []
    for key, value in zip(leaf.keys, leaf.values, strict=True):
        if key[8] == EXTENT:
            found.append(value[EXTENT_WHOLE] if len(value) == 4 else value[0])
        elif key[8] == XATTR and len(value) == 3:
            found.append(value[1])
    return [one if 0 <= one <= limits.PLAIN_BYTES_MAX else LENGTH_NONE for one in found]


def facts_of(leaf: Leaf, owner: int, name_key: bytes) -> LeafFacts:
    """Boil a leaf down."""
    rows = Rows(leaf, name_key)
    directories = [
        (ino, value[INODE_PARENT])
        for ino, value in rows.inodes
        if stat.S_ISDIR(value[INODE_MODE]) and value[INODE_NLINK]
    ]
    head, tail = _ends(leaf, rows)
    return LeafFacts(
        owner,
        leaf.keys[0],
        leaf.keys[-1],
        _sums(rows),
        max((ino for ino, _ in rows.inodes), default=0),
        head,
        tail,
        np.array(directories, dtype=np.uint64).reshape(-1, 2),
        rows.odd,
    )


def _sums(rows: Rows) -> tuple[int, ...]:
    inodes = _table([(ino, *_facts(value)) for ino, value in rows.inodes], 6)
    entries = _table([row[:3] for row in rows.entries], 3)
    extents = _table([(ino, length) for ino, _, length in rows.extents], 2)
    orphans = _table([(ino,) for ino in rows.orphans], 1)
    ino, kind, nlink, size, allocated, parent = inodes.T
    is_directory = kind == DIRECTORY
    named = is_directory & (nlink > 0) & (ino != limits.INO_ROOT)
    living = is_directory & (nlink > 0)
    at, child, child_type = entries.T
    to_directory = child_type == DIRECTORY
    with np.errstate(over='ignore'):
        both = ino[~is_directory] << np.uint64(4) | kind[~is_directory]
        other = child[~to_directory] << np.uint64(4) | child_type[~to_directory]
        links = _sum(mix(both, LINKS) * nlink[~is_directory]) - _sum(mix(other, LINKS))
        parents = _sum(mix(mix(ino[named], PARENTS) + parent[named], PARENTS)) - _sum(
            mix(mix(child[to_directory], PARENTS) + at[to_directory], PARENTS)
        )
        sizes = _sum(mix(ino[is_directory], SIZES) * size[is_directory]) - _sum(mix(at, SIZES))
        below = _sum(mix(ino[living], SUBDIRECTORIES) * (nlink[living] - np.uint64(2))) - _sum(
            mix(at[to_directory], SUBDIRECTORIES)
        )
        bytes_in = _sum(mix(ino, ALLOCATED) * allocated) - _sum(mix(extents[:, 0], ALLOCATED) * extents[:, 1])
        unlinked = _sum(mix(ino[nlink == 0], UNLINKED)) - _sum(mix(orphans[:, 0], UNLINKED))
    return tuple(int(one) & 0xFFFFFFFFFFFFFFFF for one in (links, parents, sizes, below, bytes_in, unlinked))


def _facts(value: Value) -> tuple[int, int, int, int, int]:
    return (
        value[INODE_MODE] >> 12,
        value[INODE_NLINK],
        value[INODE_SIZE],
        value[INODE_ALLOCATED],
        value[INODE_PARENT],
    )


def _table(rows: list[tuple[int, ...]], width: int) -> Words:
    return np.array(rows, dtype=np.uint64).reshape(-1, width)


def _sum(values: Words) -> int:
    return int(np.add.reduce(values, dtype=np.uint64))


def _ends(
    leaf: Leaf, rows: Rows
) -> tuple[tuple[int, frozenset[int], int, int], tuple[int, int, int, int, int]]:
    """Return head and tail, and note what does not fit within the leaf."""
    head_ino, head_kinds, head_first, head_end = 0, set(), -1, -1
    current: tuple[int, int, int, int] | None = None  # inode, size, type, flags
    end = 0
    for index, key in enumerate(leaf.keys):
        ino, kind = int.from_bytes(key[:8], 'big'), key[8]
        if kind == ORPHAN:
            continue
        if kind == INODE:
            value = leaf.values[index]
            current = (ino, value[INODE_SIZE], value[INODE_MODE] >> 12, value[INODE_FLAGS])
            end = 0
            continue
        if current is None and head_ino in (0, ino):
            head_ino = ino
            head_kinds.add(kind)
            if kind == EXTENT:
                offset = suffix_number(key)
                if head_first < 0:
                    head_first = offset
                elif offset < head_end:
                    rows.odd.append(('extent-overlap', ino, f'at byte {offset}'))
                head_end = offset + leaf.values[index][0]
        elif current is None or current[0] != ino:
            rows.odd.append(('inode-missing', ino, 'has items and no INODE'))
        else:
            end = _within(current, kind, key, leaf.values[index], end, rows)
    tail = (*current, end) if current is not None else (0, 0, 0, 0, 0)
    return (head_ino, frozenset(head_kinds), head_first, head_end), tail


def _within(
    current: tuple[int, int, int, int], kind: int, key: bytes, value: Value, end: int, rows: Rows
) -> int:
    """Check an item beside its inode; return the byte behind the last extent."""
    ino, size, file_type, flags = current
    if kind == DIRENT and file_type != DIRECTORY:
        rows.odd.append(('item-bad', ino, 'has entries and is no directory'))
    if kind == XATTR and not flags & HAS_XATTRS:
        rows.odd.append(('xattr-flag', ino, 'has attributes, and its INODE says it has none'))
    if kind != EXTENT:
        return end
    offset = suffix_number(key)
    if file_type == DIRECTORY:
        rows.odd.append(('item-bad', ino, 'has bytes and is a directory'))
    elif offset < end:
        rows.odd.append(('extent-overlap', ino, f'at byte {offset}'))
    elif offset + value[0] > size:
        rows.odd.append(('extent-beyond', ino, f'bytes to {offset + value[0]}, its size is {size}'))
    return max(end, offset + int(value[0]))
