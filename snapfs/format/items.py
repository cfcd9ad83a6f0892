"""L1 items: what stands under a key. Values are plain tuples, for speed. Pure; safe from any thread.

Specification. A value is a msgpack array; the key (keys.py) says of which kind:

- INODE: 15 elements, in this order: mode (type and permission bits, as in st_mode), uid, gid, rdev, size
  (bytes; of a directory: its number of entries), allocated (bytes in extents), nlink (0 for an orphan),
  generation, parent (of a directory: the inode number of the directory it is in), atime, mtime, ctime,
  btime (nanoseconds since 1970, signed 64-bit), flags (32 bits; 1 = there may be XATTR items, without it
  there are none; the others are not in use), target (bin: where a symbolic link points, 1 to 4,095 bytes;
  empty for others).
- DIRENT: 1 to 64 elements, the entries whose names share this hash, ascending by name. An entry is an array
  of 3: name (bin, 1 to 255 bytes, no '/' and no NUL, neither '.' nor '..'), inode number, type (the upper
  four bits of its mode).
- EXTENT: 2 elements: length (bytes, 1 to 131,072), position in the node's refs table. The chunk there is a
  data chunk of exactly that length: an extent is one whole chunk. Or 4 elements: length, skip,
  length of the chunk (bytes), position: the extent is the part of its chunk that begins at skip. Only what
  was left of a chunk that could not be read when bytes beside were written over looks so; it can be read
  again when the chunk can. What no extent covers is a hole, and reads as zeros.
- XATTR: either 2 elements: 0, the value (bin, at most 1,024 bytes); or 3 elements: 1, length of the value
  (1,025 to 65,536), position in the node's refs table of a data chunk that holds it.
- ORPHAN: 0 elements.

In memory and in the journal, the 32-byte id stands where a node has the position: EXTENT (length, id) or
(length, skip, length of the chunk, id), XATTR (1, length, id). The reference is always the last element.
"""

from __future__ import annotations

import stat
from typing import Any

from snapfs import errors, limits
from snapfs.format.keys import (
    DIRENT,
    EXTENT,
    INODE,
    KIND_POSITION,
    XATTR,
    ItemKind,
    decode_key,
    suffix_number,
)

Value = tuple[Any, ...]

# Positions in an INODE value.
INODE_MODE = 0
INODE_UID = 1
INODE_GID = 2
INODE_RDEV = 3
INODE_SIZE = 4
INODE_ALLOCATED = 5
INODE_NLINK = 6
INODE_GENERATION = 7
INODE_PARENT = 8
INODE_ATIME = 9
INODE_MTIME = 10
INODE_CTIME = 11
INODE_BTIME = 12
INODE_FLAGS = 13
INODE_TARGET = 14
INODE_FIELDS = 15

# Positions in an entry of a DIRENT value.
ENTRY_NAME = 0
ENTRY_INO = 1
ENTRY_TYPE = 2
ENTRY_FIELDS = 3

# Positions in an EXTENT value, and in the two forms of an XATTR value.
EXTENT_LENGTH = 0
EXTENT_SKIP = 1  # of the longer form
EXTENT_WHOLE = 2
EXTENT_FIELDS = 2
EXTENT_PART_FIELDS = 4
XATTR_FORM = 0
XATTR_INLINE = 1
XATTR_LENGTH = 1
XATTR_REF = 2

FORM_INLINE = 0
FORM_CHUNK = 1
ORPHAN_VALUE: Value = ()

REF_KINDS = frozenset({ItemKind.EXTENT, ItemKind.XATTR})

_U32 = (1 << 32) - 1
_U64 = (1 << 64) - 1
_TIME_MIN, _TIME_MAX = -(1 << 63), (1 << 63) - 1
_TYPES = frozenset(
    kind >> 12
    for kind in (
        stat.S_IFREG,
        stat.S_IFDIR,
        stat.S_IFLNK,
        stat.S_IFBLK,
        stat.S_IFCHR,
        stat.S_IFIFO,
        stat.S_IFSOCK,
    )
)
_TYPE_LINK = stat.S_IFLNK >> 12
_INODE_RANGES = (
    ('mode', 0, 0xFFFF),
    ('uid', 0, _U32),
    ('gid', 0, _U32),
    ('rdev', 0, _U64),
    ('size', 0, limits.FILE_BYTES_MAX),
    ('allocated', 0, limits.FILE_BYTES_MAX),
    ('nlink', 0, limits.NLINK_MAX),
    ('generation', 0, _U64),
    ('parent', 0, limits.INO_MAX),
    ('atime', _TIME_MIN, _TIME_MAX),
    ('mtime', _TIME_MIN, _TIME_MAX),
    ('ctime', _TIME_MIN, _TIME_MAX),
    ('btime', _TIME_MIN, _TIME_MAX),
    ('flags', 0, _U32),
)
# Typical encoded sizes, msgpack's own bytes included. Only INODE's is no upper bound: that would be 108.
_INODE_SIZE = 84
_ENTRY_SIZE = 9
_EXTENT_SIZE = 1 + 5 + 3 + limits.ID_BYTES
_PART_SIZE = 2 * 5
_XATTR_CHUNK_SIZE = 1 + 1 + 5 + 3 + limits.ID_BYTES
_KEY_OVERHEAD = 3


def ref_of(key: bytes, value: Value) -> bytes | None:
    """Return the chunk id that an in-memory value refers to, or None. The item must be a checked one."""
    kind = key[KIND_POSITION]
    if kind == EXTENT:
        return value[-1]  # type: ignore[no-any-return]
    if kind == XATTR and value[XATTR_FORM]:
        return value[XATTR_REF]  # type: ignore[no-any-return]
    return None


def item_size(key: bytes, value: Value) -> int:
    """Return about how many bytes the item takes in a leaf, its share of the refs table included.

    For splitting leaves and frames. Never too low, but for INODE: extreme numbers take up to a quarter more.
    """
    kind = key[KIND_POSITION]
    size = len(key) + _KEY_OVERHEAD
    if kind == EXTENT:
        return size + _EXTENT_SIZE + (_PART_SIZE if len(value) > EXTENT_FIELDS else 0)
    if kind == INODE:
        return size + _INODE_SIZE + len(value[INODE_TARGET])
    if kind == DIRENT:
        for name, _, _ in value:
            size += len(name) + 2 + 1 + _ENTRY_SIZE + 1
        return size + 3
    if kind == XATTR:
        return size + (_XATTR_CHUNK_SIZE if value[XATTR_FORM] else 5 + len(value[XATTR_INLINE]))
    return size + 1


def check_item(key: bytes, value: Value) -> None:
    """Check key and in-memory value against the whole schema; raise Corrupt at the first oddity.

    Costs about a microsecond; for replay, recounts, checkers and tests. `nodes.decode_node` checks shapes and
    types of every item itself, but not ranges.
    """
    if type(key) is not bytes:
        raise errors.Corrupt(f'item: a key of type {type(key).__name__}')
    kind = decode_key(key)[1]
    if type(value) is not tuple:
        raise errors.Corrupt(f'item {key.hex()}: a value of type {type(value).__name__}')
    oddity = _CHECKS[kind](key, value)
    if oddity is not None:
        raise errors.Corrupt(f'item {key.hex()}: {kind.name} {oddity}')


def _is_bytes(value: object, length_min: int, length_max: int) -> bool:
    return type(value) is bytes and length_min <= len(value) <= length_max


def _is_int(value: object, low: int, high: int) -> bool:
    return type(value) is int and low <= value <= high


def _inode_oddity(key: bytes, value: Value) -> str | None:
    if len(value) != INODE_FIELDS:
        return f'of {len(value)} fields'
    for number, (name, low, high) in zip(value, _INODE_RANGES, strict=False):
        if type(number) is not int or not low <= number <= high:
            return f'with an impossible {name}'
    type_number = value[INODE_MODE] >> 12
    if type_number not in _TYPES:
        return f'with an unknown type {type_number}'
    if type_number == _TYPE_LINK:
        good = _is_bytes(value[INODE_TARGET], 1, limits.SYMLINK_BYTES_MAX)
    else:
        good = value[INODE_TARGET] == b'' and type(value[INODE_TARGET]) is bytes
    return None if good else 'with an impossible target'


def _dirent_oddity(key: bytes, value: Value) -> str | None:
    if not 0 < len(value) <= limits.HASH_COLLISIONS_MAX:
        return f'of {len(value)} entries'
    previous = b''
    for entry in value:
        if type(entry) is not tuple or len(entry) != ENTRY_FIELDS:
            return 'with a malformed entry'
        name, ino, type_number = entry
        if not _is_bytes(name, 1, limits.NAME_BYTES_MAX) or b'/' in name or b'\0' in name:
            return 'with an impossible name'
        if name in (b'.', b'..'):
            return 'with a name that means a directory'
        if name <= previous:
            return 'with names out of order'
        if not _is_int(ino, 1, limits.INO_MAX):
            return 'with an impossible inode number'
        if type(type_number) is not int or type_number not in _TYPES:
            return 'with an unknown type'
        previous = name
    return None


def _extent_oddity(key: bytes, value: Value) -> str | None:
    if len(value) not in (EXTENT_FIELDS, EXTENT_PART_FIELDS):
        return f'of {len(value)} fields'
    length, id = value[0], value[-1]
    if not _is_int(length, 1, limits.PLAIN_BYTES_MAX):
        return 'with an impossible length'
    if suffix_number(key) + length > limits.FILE_BYTES_MAX:
        return 'beyond the largest file'
    if len(value) == EXTENT_PART_FIELDS:
        if not _is_int(value[EXTENT_WHOLE], length + 1, limits.PLAIN_BYTES_MAX):
            return 'with an impossible length of its chunk'
        if not _is_int(value[EXTENT_SKIP], 0, value[EXTENT_WHOLE] - length):
            return 'with an impossible skip'
    return None if _is_bytes(id, limits.ID_BYTES, limits.ID_BYTES) else 'without a chunk id'


def _xattr_oddity(key: bytes, value: Value) -> str | None:
    form = value[XATTR_FORM] if value else None
    if type(form) is not int:
        return 'without a form'
    if form == FORM_INLINE:
        good = len(value) == 2 and _is_bytes(value[XATTR_INLINE], 0, limits.XATTR_INLINE_BYTES_MAX)
        return None if good else 'with an impossible inline value'
    if form != FORM_CHUNK or len(value) != 3:
        return f'of {len(value)} fields, or of an unknown form'
    if not _is_int(value[XATTR_LENGTH], limits.XATTR_INLINE_BYTES_MAX + 1, limits.XATTR_VALUE_BYTES_MAX):
        return 'with an impossible length'
    return None if _is_bytes(value[XATTR_REF], limits.ID_BYTES, limits.ID_BYTES) else 'without a chunk id'


def _orphan_oddity(key: bytes, value: Value) -> str | None:
    return None if value == () else f'of {len(value)} fields'


_CHECKS = {
    ItemKind.INODE: _inode_oddity,
    ItemKind.DIRENT: _dirent_oddity,
    ItemKind.EXTENT: _extent_oddity,
    ItemKind.XATTR: _xattr_oddity,
    ItemKind.ORPHAN: _orphan_oddity,
}

assert len(_INODE_RANGES) == INODE_TARGET == INODE_FIELDS - 1
