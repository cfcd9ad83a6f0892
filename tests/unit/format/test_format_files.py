"""Superblock, pack header, pack footer: what a decoder refuses, field by field."""

from __future__ import annotations

import dataclasses

import pytest
from crc32c import crc32c

from snapfs import limits
from snapfs.errors import Corrupt
from snapfs.format import packs, superblock
from snapfs.format.packs import PackEntry, PackHeader
from snapfs.format.records import RecordKind

UUID = b'u' * 16
NAME = b'n' * 16
BLOCK = superblock.Superblock(UUID, 1, NAME)
HEADER = PackHeader(UUID, NAME, RecordKind.DATA)
ENTRIES = [PackEntry(b'a' * 32, 48, 10, 10, 0), PackEntry(b'b' * 32, 110, 5, 20, 1)]
INDEX_OFFSET = 110 + 52 + 5


def sealed(data: bytes, offset: int, patch: bytes) -> bytes:
    """Return `data` with a patch and the CRC that fits in its last 4 bytes: no checksum shows the damage."""
    fields = data[:offset] + patch + data[offset + len(patch) : -4]
    return fields + crc32c(fields).to_bytes(4, 'big')


def test_superblock_comes_back() -> None:
    data = superblock.encode_superblock(BLOCK)
    assert len(data) == superblock.SUPERBLOCK_BYTES
    assert superblock.decode_superblock(data) == BLOCK


@pytest.mark.parametrize(
    ('offset', 'patch', 'message'),
    [
        (0, b'SNAPFSSB', 'magic'),
        (8, b'\0\2', 'format version 2'),
        (8, b'\0\0', 'format version 0'),
        (10, b'\2', 'unknown hash 2'),
        (11, b'\4', 'normalization 4'),
        (52, bytes(4), 'chunk sizes'),
        (56, b'\0\0\0\1', 'chunk sizes'),
        (60, b'\0\2\0\1', 'chunk sizes'),
        (64, b'\0\2\0\1', 'whole file'),
        (75, b'\1', 'reserved'),
    ],
)
def test_superblock_refuses(offset: int, patch: bytes, message: str) -> None:
    data = sealed(superblock.encode_superblock(BLOCK), offset, patch)
    with pytest.raises(Corrupt, match=message):
        superblock.decode_superblock(data)


@pytest.mark.parametrize('length', [0, 7, 8, 9, 10, 79, 81])
def test_superblock_of_wrong_length(length: int) -> None:
    data = superblock.encode_superblock(BLOCK) + b'\0'
    with pytest.raises(Corrupt):
        superblock.decode_superblock(data[:length])


def test_superblock_wrong_crc() -> None:
    data = bytearray(superblock.encode_superblock(BLOCK))
    data[-1] ^= 1
    with pytest.raises(Corrupt, match='CRC'):
        superblock.decode_superblock(data)


def test_superblock_is_not_written_with_impossible_parameters() -> None:
    chunker = dataclasses.replace(BLOCK.chunker, minimum=0)
    with pytest.raises(AssertionError):
        superblock.encode_superblock(dataclasses.replace(BLOCK, chunker=chunker))


def test_pack_header_comes_back() -> None:
    data = packs.encode_pack_header(HEADER)
    assert len(data) == packs.PACK_HEADER_BYTES
    assert packs.decode_pack_header(data + b'more') == HEADER


@pytest.mark.parametrize(
    ('offset', 'patch', 'message'),
    [
        (7, b'k', 'magic'),
        (9, b'\2', 'format version 2'),
        (10, b'\0', 'unknown kind 0'),
        (10, b'\3', 'unknown kind 3'),
        (11, b'\1', 'reserved 1'),
    ],
)
def test_pack_header_refuses(offset: int, patch: bytes, message: str) -> None:
    with pytest.raises(Corrupt, match=message):
        packs.decode_pack_header(sealed(packs.encode_pack_header(HEADER), offset, patch))


def test_pack_header_wrong_crc_and_length() -> None:
    data = packs.encode_pack_header(HEADER)
    with pytest.raises(Corrupt, match='CRC'):
        packs.decode_pack_header(data[:20] + b'?' + data[21:])
    with pytest.raises(Corrupt, match='47 bytes'):
        packs.decode_pack_header(data[:-1])


def footer(entries: list[PackEntry], index_offset: int = INDEX_OFFSET) -> bytes:
    return packs.encode_footer(entries, index_offset, NAME)


@pytest.mark.parametrize('entries', [[], ENTRIES[:1], ENTRIES])
def test_footer_comes_back(entries: list[PackEntry]) -> None:
    data = footer(entries)
    file_bytes = INDEX_OFFSET + len(data)
    assert len(data) == len(entries) * packs.ENTRY_BYTES + packs.TRAILER_BYTES
    assert packs.footer_offset(data[-packs.TRAILER_BYTES :], file_bytes) == INDEX_OFFSET
    assert packs.decode_footer(data, file_bytes, NAME) == entries


@pytest.mark.parametrize(
    ('entries', 'index_offset', 'message'),
    [
        ([ENTRIES[0]._replace(offset=47)], INDEX_OFFSET, 'offset 47'),
        ([ENTRIES[0]._replace(codec=2)], INDEX_OFFSET, 'codec 2'),
        ([ENTRIES[0]._replace(stored_length=11)], INDEX_OFFSET, 'stored length 11'),
        ([ENTRIES[1]._replace(stored_length=20)], 500, 'stored length 20'),
        ([ENTRIES[1]._replace(plain_length=limits.PLAIN_BYTES_MAX + 1)], 500, 'plain length 131073'),
        ([ENTRIES[0], ENTRIES[1]._replace(offset=109)], INDEX_OFFSET, 'after 110'),
        ([ENTRIES[0], ENTRIES[0]], INDEX_OFFSET, 'after 110'),
        (ENTRIES, INDEX_OFFSET - 1, 'after the index'),
        ([], 47, 'index at 47'),
    ],
)
def test_footer_refuses(entries: list[PackEntry], index_offset: int, message: str) -> None:
    data = footer(entries, index_offset)
    with pytest.raises(Corrupt, match=message):
        packs.decode_footer(data, index_offset + len(data), NAME)


@pytest.mark.parametrize(
    ('offset', 'patch', 'message'),
    [
        (0, b'?', 'magic'),
        (8, b'\xff' * 4, 'records'),
        (8, b'\0\0\0\1', 'not in'),
        (12, b'\xff' * 8, 'not in'),
        (20, b'?', 'the footer is that of pack'),
        (39, b'\1', 'reserved 1'),
        (43, b'?', 'CRC of the index'),
    ],
)
def test_trailer_refuses(offset: int, patch: bytes, message: str) -> None:
    data = footer(ENTRIES)
    index, trailer = data[: -packs.TRAILER_BYTES], data[-packs.TRAILER_BYTES :]
    with pytest.raises(Corrupt, match=message):
        packs.decode_footer(index + sealed(trailer, offset, patch), INDEX_OFFSET + len(data), NAME)


def test_footer_of_another_length() -> None:
    data = footer(ENTRIES)
    file_bytes = INDEX_OFFSET + len(data)
    with pytest.raises(Corrupt, match='an index of'):
        packs.decode_footer(data[1:], file_bytes, NAME)
    with pytest.raises(Corrupt, match='a trailer of 3 bytes'):
        packs.footer_offset(b'abc', file_bytes)
    with pytest.raises(Corrupt, match='not in'):
        packs.footer_offset(data[-packs.TRAILER_BYTES :], file_bytes + 1)
    with pytest.raises(Corrupt, match='CRC of the trailer'):
        packs.footer_offset(data[-packs.TRAILER_BYTES : -1] + b'?', file_bytes)
