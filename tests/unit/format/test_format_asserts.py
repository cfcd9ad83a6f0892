"""A bug is caught before its bytes leave: every encoder asserts what its decoder demands."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from snapfs import limits
from snapfs.format import journal, keys, nodes, packs, records, superblock
from snapfs.format.codec import Compressor

UUID = b'u' * 16
ID = b'i' * 32
TOO_LARGE = limits.INO_MAX + 1
BLOCK = superblock.Superblock(UUID, 0, UUID)
HEADER = packs.PackHeader(UUID, UUID, records.RecordKind.DATA)


class Many(list[packs.PackEntry]):
    """Says that it has more entries than a pack may have."""

    def __len__(self) -> int:
        return limits.PACK_RECORDS_MAX + 1


BUGS: dict[str, Callable[[], Any]] = {
    'encode_key inode 0': lambda: keys.encode_key(0, 1),
    'encode_key suffix': lambda: keys.encode_key(1, 4, b'x' * 256),
    'inode_key': lambda: keys.inode_key(TOO_LARGE),
    'dirent_key inode': lambda: keys.dirent_key(TOO_LARGE, 5),
    'dirent_key hash': lambda: keys.dirent_key(1, (1 << 63) + 1),
    'extent_key inode': lambda: keys.extent_key(TOO_LARGE, 0),
    'extent_key offset': lambda: keys.extent_key(1, 1 << 63),
    'xattr_key inode': lambda: keys.xattr_key(TOO_LARGE, b'a'),
    'xattr_key name': lambda: keys.xattr_key(1, b''),
    'orphan_key inode': lambda: keys.orphan_key(TOO_LARGE),
    'orphan_key of the orphans': lambda: keys.orphan_key(limits.INO_ORPHANS),
    'ino_range': lambda: keys.ino_range(TOO_LARGE),
    'kind_range': lambda: keys.kind_range(TOO_LARGE, 1),
    'branch of unequal columns': lambda: nodes.encode_branch(1, [b'', b'k'], [ID, ID], [1], [0, 0]),
    'record id': lambda: records.encode_record(1, b'short', b'', Compressor()),
    'record length': lambda: records.encode_record(1, ID, bytes(limits.PLAIN_BYTES_MAX + 1), Compressor()),
    'pack uuid': lambda: packs.encode_pack_header(HEADER._replace(store_uuid=b'')),
    'pack name': lambda: packs.encode_pack_header(HEADER._replace(name=b'')),
    'footer name': lambda: packs.encode_footer([], 48, b''),
    'footer entries': lambda: packs.encode_footer(Many(), 48, UUID),
    'superblock version': lambda: superblock.encode_superblock(dataclasses.replace(BLOCK, version=2)),
    'superblock uuid': lambda: superblock.encode_superblock(dataclasses.replace(BLOCK, uuid=b'')),
    'superblock name key': lambda: superblock.encode_superblock(dataclasses.replace(BLOCK, name_key=b'')),
    'journal uuid': lambda: journal.encode_journal_header(journal.JournalHeader(b'', 0)),
    'frame uuid': lambda: journal.encode_frame(journal.JournalFrame(1), b''),
}


@pytest.mark.parametrize('bug', list(BUGS))
def test_bug_is_caught(bug: str) -> None:
    with pytest.raises(AssertionError):
        BUGS[bug]()


def test_bounds_of_ranges_are_no_bugs() -> None:
    assert keys.dirent_key(1, 1 << 63) > keys.dirent_key(1, (1 << 63) - 1)
    assert keys.extent_key(1, (1 << 63) - 1) > keys.extent_key(1, limits.FILE_BYTES_MAX)
    assert keys.dirent_key(1, 0) < keys.dirent_key(1, 2)
