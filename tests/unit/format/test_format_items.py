"""Keys and items: order, ranges, and every oddity that the schema refuses."""

from __future__ import annotations

from typing import Any

import pytest

from snapfs import limits
from snapfs.errors import Corrupt
from snapfs.format import items, keys
from snapfs.format.items import check_item, item_size, ref_of
from snapfs.format.keys import ItemKind, decode_key

INO = 16
ID = b'i' * 32
NOW = 1_600_000_000_000_000_000
REGULAR = (0o100644, 0, 0, 0, 0, 0, 1, 1, 0, NOW, NOW, NOW, NOW, 0, b'')
LINK = (0o120777, *REGULAR[1:14], b'there')


def test_items_of_an_inode_stand_together_in_kind_order() -> None:
    ordered = [
        keys.inode_key(INO),
        keys.dirent_key(INO, 2),
        keys.dirent_key(INO, (1 << 63) - 1),
        keys.extent_key(INO, 0),
        keys.extent_key(INO, 1 << 59),
        keys.xattr_key(INO, b'a'),
        keys.xattr_key(INO, b'\xff' * 255),
        keys.inode_key(INO + 1),
        keys.extent_key(limits.INO_MAX, 0),
    ]
    assert ordered == sorted(ordered)
    lo, hi = keys.ino_range(INO)
    assert [lo <= key < hi for key in ordered] == [True] * 7 + [False] * 2
    lo, hi = keys.kind_range(INO, ItemKind.EXTENT)
    assert [lo <= key < hi for key in ordered] == [False] * 3 + [True] * 2 + [False] * 4
    lo, hi = keys.ino_range(limits.INO_MAX)
    assert lo <= ordered[-1] < hi


def test_orphans_stand_together() -> None:
    lo, hi = keys.kind_range(limits.INO_ORPHANS, ItemKind.ORPHAN)
    for ino in (1, INO, limits.INO_MAX):
        key = keys.orphan_key(ino)
        assert lo <= key < hi
        assert decode_key(key) == (limits.INO_ORPHANS, ItemKind.ORPHAN, ino.to_bytes(8, 'big'))
        assert keys.suffix_number(key) == ino


@pytest.mark.parametrize(
    ('key', 'parts'),
    [
        (keys.inode_key(INO), (INO, ItemKind.INODE, b'')),
        (keys.dirent_key(INO, 77), (INO, ItemKind.DIRENT, (77).to_bytes(8, 'big'))),
        (keys.extent_key(INO, 77), (INO, ItemKind.EXTENT, (77).to_bytes(8, 'big'))),
        (keys.xattr_key(INO, b'user.a'), (INO, ItemKind.XATTR, b'user.a')),
    ],
)
def test_key_comes_back(key: bytes, parts: tuple[int, ItemKind, bytes]) -> None:
    assert decode_key(key) == parts
    assert keys.encode_key(*parts) == key


@pytest.mark.parametrize(
    ('key', 'message'),
    [
        (b'', '0 bytes'),
        (keys.inode_key(INO)[:-1], '8 bytes'),
        (keys.inode_key(INO) + b'x', 'suffix'),
        (bytes(8) + b'\1', 'out of range'),
        ((1 << 40).to_bytes(8, 'big') + b'\1', 'out of range'),
        (INO.to_bytes(8, 'big') + b'\0', 'unknown kind 0'),
        (INO.to_bytes(8, 'big') + b'\6', 'unknown kind 6'),
        (keys.dirent_key(INO, 1), 'suffix'),
        (keys.dirent_key(INO, 1 << 63), 'suffix'),
        (keys.dirent_key(INO, 2)[:-1], 'suffix'),
        (keys.extent_key(INO, limits.FILE_BYTES_MAX), 'suffix'),
        (keys.extent_key(INO, 0)[:-1], 'suffix'),
        (keys.encode_key(INO, ItemKind.XATTR), 'suffix'),
        (keys.encode_key(INO, ItemKind.XATTR, b'a\0'), 'suffix'),
        (INO.to_bytes(8, 'big') + b'\4' + b'a' * 256, '265 bytes'),
        (keys.encode_key(limits.INO_ORPHANS, ItemKind.ORPHAN), 'suffix'),
        (keys.encode_key(limits.INO_ORPHANS, ItemKind.ORPHAN, bytes(8)), 'suffix'),
        (keys.encode_key(INO, ItemKind.ORPHAN, INO.to_bytes(8, 'big')), 'ORPHAN of inode 16'),
        (keys.inode_key(limits.INO_ORPHANS), 'INODE of inode 2'),
    ],
)
def test_key_refused(key: bytes, message: str) -> None:
    with pytest.raises(Corrupt, match=message):
        decode_key(key)


def test_name_hash_is_keyed_63_bit_and_never_0_or_1(monkeypatch: pytest.MonkeyPatch) -> None:
    hashes = {keys.name_hash(key, name) for key in (b'k' * 16, b'l' * 16) for name in (b'a', b'b')}
    assert len(hashes) == 4
    assert all(2 <= value < 1 << 63 for value in hashes)

    class Low:
        def __init__(self, *_: object, **__: object) -> None:
            pass

        def digest(self) -> bytes:
            return b'\0' * 7 + b'\3'

    monkeypatch.setattr(keys, 'blake2b', Low)
    assert keys.name_hash(b'k' * 16, b'a') == 3


GOOD: list[tuple[bytes, Any]] = [
    (keys.inode_key(INO), REGULAR),
    (keys.inode_key(INO), LINK),
    (keys.inode_key(INO), (0o040755, *REGULAR[1:9], -(1 << 63), (1 << 63) - 1, 0, 0, 1, b'')),
    (keys.dirent_key(INO, 5), ((b'a', 1, 8),)),
    (keys.dirent_key(INO, 5), tuple((b'%02d' % n, n + 1, 4) for n in range(64))),
    (keys.dirent_key(INO, 5), ((b'n' * 255, limits.INO_MAX, 12),)),
    (keys.extent_key(INO, 0), (1, ID)),
    (keys.extent_key(INO, limits.FILE_BYTES_MAX - 131_072), (131_072, ID)),
    (keys.extent_key(INO, 0), (1, 0, 2, ID)),
    (keys.extent_key(INO, 0), (1, 131_071, 131_072, ID)),
    (keys.xattr_key(INO, b'user.a'), (0, b'')),
    (keys.xattr_key(INO, b'user.a'), (0, b'v' * 1024)),
    (keys.xattr_key(INO, b'user.a'), (1, 1025, ID)),
    (keys.xattr_key(INO, b'user.a'), (1, 65_536, ID)),
    (keys.orphan_key(INO), ()),
]


@pytest.mark.parametrize(('key', 'value'), GOOD)
def test_good_items_pass(key: bytes, value: Any) -> None:
    check_item(key, value)


@pytest.mark.parametrize(('key', 'value'), GOOD)
def test_every_good_value_is_refused_under_another_kind(key: bytes, value: Any) -> None:
    for other in GOOD:
        if other[0][8] != key[8]:
            with pytest.raises(Corrupt):
                check_item(other[0], value)


def changed(position: int, value: object) -> tuple[object, ...]:
    return (*REGULAR[:position], value, *REGULAR[position + 1 :])


BAD: list[tuple[int, object, str]] = [
    (1, REGULAR[:-1], '14 fields'),
    (1, (*REGULAR, 0), '16 fields'),
    (1, changed(0, 0o200644), 'mode'),
    (1, changed(0, 0o000644), 'type 0'),
    (1, changed(0, 0o170644), 'type 15'),
    (1, changed(1, 1 << 32), 'uid'),
    (1, changed(2, -1), 'gid'),
    (1, changed(3, 1 << 64), 'rdev'),
    (1, changed(4, limits.FILE_BYTES_MAX + 1), 'size'),
    (1, changed(5, -1), 'allocated'),
    (1, changed(6, limits.NLINK_MAX + 1), 'nlink'),
    (1, changed(7, True), 'generation'),
    (1, changed(8, limits.INO_MAX + 1), 'parent'),
    (1, changed(9, 1 << 63), 'atime'),
    (1, changed(10, 1.0), 'mtime'),
    (1, changed(11, None), 'ctime'),
    (1, changed(12, -(1 << 63) - 1), 'btime'),
    (1, changed(13, b''), 'flags'),
    (1, changed(14, b'x'), 'target'),
    (1, changed(14, ''), 'target'),
    (1, (*LINK[:14], b''), 'target'),
    (1, (*LINK[:14], b'x' * 4096), 'target'),
    (1, list(REGULAR), 'type list'),
    (1, None, 'NoneType'),
    (2, (), '0 entries'),
    (2, tuple((b'%02d' % n, n + 1, 4) for n in range(65)), '65 entries'),
    (2, ((b'a', 1),), 'malformed'),
    (2, ([b'a', 1, 8],), 'malformed'),
    (2, ((b'', 1, 8),), 'name'),
    (2, ((b'n' * 256, 1, 8),), 'name'),
    (2, ((b'a/b', 1, 8),), 'name'),
    (2, ((b'a\0', 1, 8),), 'name'),
    (2, (('a', 1, 8),), 'name'),
    (2, ((b'.', 1, 8),), 'directory'),
    (2, ((b'..', 1, 8),), 'directory'),
    (2, ((b'b', 1, 8), (b'a', 1, 8)), 'out of order'),
    (2, ((b'a', 1, 8), (b'a', 2, 8)), 'out of order'),
    (2, ((b'a', 0, 8),), 'inode number'),
    (2, ((b'a', 1 << 40, 8),), 'inode number'),
    (2, ((b'a', 1, 3),), 'type'),
    (2, ((b'a', 1, ()),), 'type'),
    (3, (1,), '1 fields'),
    (3, (0, ID), 'length'),
    (3, (131_073, ID), 'length'),
    (3, (True, ID), 'length'),
    (3, (1, ID[:-1]), 'chunk id'),
    (3, (1, 0), 'chunk id'),
    (3, (1, 0, ID), '3 fields'),
    (3, (1, 0, 1, ID), 'length of its chunk'),
    (3, (1, 0, 131_073, ID), 'length of its chunk'),
    (3, (1, 0, None, ID), 'length of its chunk'),
    (3, (1, -1, 9, ID), 'skip'),
    (3, (1, 9, 9, ID), 'skip'),
    (3, (1, True, 9, ID), 'skip'),
    (3, (1, 0, 2, 0), 'chunk id'),
    (4, (), 'form'),
    (4, (False, b''), 'form'),
    (4, (2, b''), 'form'),
    (4, (0, b'v' * 1025), 'inline'),
    (4, (0, b'', b''), 'inline'),
    (4, (0, 5), 'inline'),
    (4, (1, ID), 'fields'),
    (4, (1, 1024, ID), 'length'),
    (4, (1, 65_537, ID), 'length'),
    (4, (1, 2000, 0), 'chunk id'),
    (5, (0,), '1 fields'),
]
KEYS = {
    1: keys.inode_key(INO),
    2: keys.dirent_key(INO, 5),
    3: keys.extent_key(INO, 4096),
    4: keys.xattr_key(INO, b'user.a'),
    5: keys.orphan_key(INO),
}


@pytest.mark.parametrize(('kind', 'value', 'message'), BAD)
def test_bad_items_are_refused(kind: int, value: Any, message: str) -> None:
    with pytest.raises(Corrupt, match=message):
        check_item(KEYS[kind], value)


def test_an_extent_ends_within_the_largest_file_and_keys_are_bytes() -> None:
    with pytest.raises(Corrupt, match='beyond'):
        check_item(keys.extent_key(INO, limits.FILE_BYTES_MAX - 1), (2, ID))
    with pytest.raises(Corrupt, match='type str'):
        check_item('key', ())  # type: ignore[arg-type]


def test_refs_stand_in_extents_and_large_xattrs_only() -> None:
    found = [ref_of(key, value) for key, value in GOOD]
    assert found == [None] * 6 + [ID] * 4 + [None] * 2 + [ID, ID] + [None]
    assert set(items.REF_KINDS) == {ItemKind.EXTENT, ItemKind.XATTR}


@pytest.mark.parametrize(('key', 'value'), GOOD)
def test_size_estimate_is_enough(key: bytes, value: Any) -> None:
    from snapfs.format.nodes import NODE_HEADER_BYTES, encode_leaf

    real = len(encode_leaf([key], [value])) - NODE_HEADER_BYTES - 1
    estimate = item_size(key, value)
    assert real <= estimate * (5 / 4 if key[8] == keys.INODE else 1)
    assert estimate <= real * 3
