"""L1 keys: where an item stands in the tree. Pure; safe from any thread.

Specification. A key is 9 to 264 bytes: inode number (8 bytes, big-endian, 1 to 2^40 - 1), kind (1 byte),
suffix. Keys are compared as byte strings, so all items of an inode stand together, in this order. The inode
number of all ORPHAN keys is 2, which no file has: so they stand together, to be found at mount.

==== ======= ===================================================================================
kind name    suffix
==== ======= ===================================================================================
1    INODE   none
2    DIRENT  8 bytes: the hash of the entry's name, big-endian, 2 to 2^63 - 1; the inode is the directory
3    EXTENT  8 bytes: offset in the file in bytes, big-endian, below 2^60 - 1
4    XATTR   1 to 255 bytes: the attribute's name, with its namespace (``user.x``), no NUL
5    ORPHAN  8 bytes: an inode number; that inode is open but has no name any more
==== ======= ===================================================================================

The hash of a name: BLAKE2b with an 8-byte digest, keyed with the superblock's 16-byte name key, over the
name's bytes; the digest as a big-endian integer, shifted right by one bit; 2 is added to results 0 and 1,
which readdir needs for '.' and '..'. It is keyed so that nobody can choose names that collide.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from hashlib import blake2b

from snapfs import errors, limits


class ItemKind(IntEnum):
    """The kinds of item, in key order."""

    INODE = 1
    DIRENT = 2
    EXTENT = 3
    XATTR = 4
    ORPHAN = 5


# The same numbers as plain ints, for loops that run per item.
INODE, DIRENT, EXTENT, XATTR, ORPHAN = 1, 2, 3, 4, 5

_PLAIN = struct.Struct('>QB')
_LONG = struct.Struct('>QBQ')
KEY_BYTES_MIN = _PLAIN.size
KEY_BYTES_MAX = KEY_BYTES_MIN + limits.KEY_SUFFIX_BYTES_MAX
KIND_POSITION = 8  # key[KIND_POSITION] is the kind
_KINDS = {int(kind): kind for kind in ItemKind}
_NAME_HASH_MAX = (1 << 63) - 1


def encode_key(ino: int, kind: int, suffix: bytes = b'') -> bytes:
    """Return the key: 8 bytes inode, 1 byte kind, suffix. Big-endian, so sorting bytes sorts keys."""
    assert 0 < ino <= limits.INO_MAX
    assert len(suffix) <= limits.KEY_SUFFIX_BYTES_MAX
    return _PLAIN.pack(ino, kind) + suffix


def inode_key(ino: int) -> bytes:
    """Return the key of the INODE item."""
    assert 0 < ino <= limits.INO_MAX
    return _PLAIN.pack(ino, INODE)


def dirent_key(ino: int, name_hash: int) -> bytes:
    """Return the key of the DIRENT item in directory `ino` for this hash (or a bound of a range)."""
    assert 0 < ino <= limits.INO_MAX
    assert 0 <= name_hash <= _NAME_HASH_MAX + 1
    return _LONG.pack(ino, DIRENT, name_hash)


def extent_key(ino: int, offset: int) -> bytes:
    """Return the key of the EXTENT item that begins at `offset` bytes (or a bound of a range)."""
    assert 0 < ino <= limits.INO_MAX
    assert 0 <= offset < 1 << 63
    return _LONG.pack(ino, EXTENT, offset)


def xattr_key(ino: int, name: bytes) -> bytes:
    """Return the key of the XATTR item of this name."""
    assert 0 < ino <= limits.INO_MAX
    assert 0 < len(name) <= limits.XATTR_NAME_BYTES_MAX
    return _PLAIN.pack(ino, XATTR) + name


def orphan_key(ino: int) -> bytes:
    """Return the key of the ORPHAN item for `ino`; all are in `kind_range(limits.INO_ORPHANS, ORPHAN)`."""
    assert limits.INO_ORPHANS != ino <= limits.INO_MAX
    return _LONG.pack(limits.INO_ORPHANS, ORPHAN, ino)


def ino_range(ino: int) -> tuple[bytes, bytes]:
    """Return (lo, hi): all items of the inode have keys lo <= key < hi."""
    assert 0 < ino <= limits.INO_MAX
    return ino.to_bytes(8, 'big'), (ino + 1).to_bytes(8, 'big')


def kind_range(ino: int, kind: int) -> tuple[bytes, bytes]:
    """Return (lo, hi): all items of this kind of the inode have keys lo <= key < hi."""
    assert 0 < ino <= limits.INO_MAX
    return _PLAIN.pack(ino, kind), _PLAIN.pack(ino, kind + 1)


def decode_key(key: bytes) -> tuple[int, ItemKind, bytes]:
    """Return (ino, kind, suffix), every part checked. Raises Corrupt."""
    if not KEY_BYTES_MIN <= len(key) <= KEY_BYTES_MAX:
        raise errors.Corrupt(f'key: {len(key)} bytes, {KEY_BYTES_MIN} to {KEY_BYTES_MAX} expected')
    number, kind_number = _PLAIN.unpack_from(key)
    kind = _KINDS.get(kind_number)
    if not 0 < number <= limits.INO_MAX:
        raise errors.Corrupt(f'key {key.hex()}: inode number {number} out of range')
    if kind is None:
        raise errors.Corrupt(f'key {key.hex()}: unknown kind {kind_number}')
    suffix = key[KEY_BYTES_MIN:]
    _check_suffix(key, kind_number, suffix)
    if (kind_number == ORPHAN) != (number == limits.INO_ORPHANS):
        raise errors.Corrupt(f'key {key.hex()}: a {kind.name} of inode {number}')
    return number, kind, suffix


def _check_suffix(key: bytes, kind: int, suffix: bytes) -> None:
    if kind == DIRENT:
        good = len(suffix) == 8 and 2 <= int.from_bytes(suffix, 'big') <= _NAME_HASH_MAX
    elif kind == EXTENT:
        good = len(suffix) == 8 and int.from_bytes(suffix, 'big') < limits.FILE_BYTES_MAX
    elif kind == XATTR:
        good = 0 < len(suffix) <= limits.XATTR_NAME_BYTES_MAX and 0 not in suffix
    elif kind == ORPHAN:
        good = len(suffix) == 8 and 0 < int.from_bytes(suffix, 'big') <= limits.INO_MAX
    else:
        good = not suffix
    if not good:
        raise errors.Corrupt(f'key {key.hex()}: impossible suffix for a {ItemKind(kind).name}')


def suffix_number(key: bytes) -> int:
    """Return the suffix of a DIRENT (hash), EXTENT (offset, bytes) or ORPHAN key (ino) as a number."""
    return int.from_bytes(key[KEY_BYTES_MIN:], 'big')


def name_hash(name_key: bytes, name: bytes) -> int:
    """Return the 63-bit hash of a name in a directory, 2 or more: also the entry's readdir cookie."""
    digest = blake2b(name, digest_size=8, key=name_key).digest()
    number = int.from_bytes(digest, 'big') >> 1
    return number if number > 1 else number + 2


assert limits.INO_BITS <= 64
assert limits.XATTR_NAME_BYTES_MAX <= limits.KEY_SUFFIX_BYTES_MAX
