"""Golden bytes of format version 1, read and written for ever: a file in format_1/ per structure, in hex.

These files never change. A changed format is a new version with a directory of its own; this test stays.
Zstandard's output may differ from release to release: a compressed record is golden in reading only.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from snapfs.format import ids, journal, keys, nodes, packs, receipts, records, superblock
from snapfs.format.codec import Codec, Compressor

FILES = Path(__file__).parent / 'format_1'
UUID = bytes(range(16))
PACK = bytes(range(0xA0, 0xB0))
TEXT = b'the quick brown fox jumps over the lazy dog\n' * 20
NOW = 1_314_000_000_123_456_789
IDS = [ids.data_id(b'chunk %d' % number) for number in range(4)]

INODE_VALUE = (0o100644, 1000, 1001, 0, 65_536, 40_000, 1, 7, 0, NOW, -1, NOW + 1, NOW - 1, 1, b'')
LINK_VALUE = (0o120777, 0, 0, 0, 6, 0, 1, 1, 0, NOW, NOW, NOW, NOW, 0, b'target')
ITEMS: list[tuple[bytes, Any]] = [
    (keys.orphan_key(77), ()),
    (keys.inode_key(16), INODE_VALUE),
    (keys.dirent_key(16, 2), ((b'a', 17, 8), (b'\xff\xfe', 18, 4))),
    (keys.dirent_key(16, (1 << 63) - 1), ((b'name', 1 << 39, 10),)),
    (keys.extent_key(16, 0), (131_072, IDS[0])),
    (keys.extent_key(16, 1 << 50), (1, IDS[0])),
    (keys.xattr_key(16, b'user.large'), (1, 65_536, IDS[1])),
    (keys.xattr_key(16, b'user.small'), (0, b'value')),
    (keys.inode_key((1 << 40) - 1), LINK_VALUE),
]
LEAF = ([key for key, _ in ITEMS], [value for _, value in ITEMS])
PARTS: list[tuple[bytes, Any]] = [
    (keys.extent_key(16, 0), (4096, 0, 131_072, IDS[0])),
    (keys.extent_key(16, 4096), (100, IDS[1])),
    (keys.extent_key(16, 4196), (126_876, 4196, 131_072, IDS[0])),
]
BRANCH = (2, [b'', ITEMS[1][0], ITEMS[4][0]], IDS[:3], [3, 70_000, 1 << 33], [0, 300, 1 << 34])
ENTRIES = [
    packs.PackEntry(IDS[0], 48, 1000, 1000, Codec.PLAIN),
    packs.PackEntry(IDS[1], 1100, 17, 131_072, Codec.ZSTD),
]
DELTA = journal.VolumeDelta(
    3,
    1 << 40,
    [keys.ino_range(20), keys.kind_range(21, keys.ItemKind.EXTENT)],
    [*ITEMS, (keys.inode_key(19), None)],
    [(16, 4096, 1 << 63)],
    [(16, 1 << 40, b'written'), (16, 0, b'\0')],
)
NEW_CHUNKS = [
    journal.NewChunk(IDS[0], 1, PACK, 48, 1000, 1000, 0),
    journal.NewChunk(IDS[1], 2, PACK, 1 << 25, 17, 131_072, 1),
]
FRAMES = [
    journal.JournalFrame(1 << 32, 0, True, NEW_CHUNKS, [DELTA]),
    journal.JournalFrame(1 << 32, 1, False, [], [journal.VolumeDelta(4, 16, [], [], [], [])]),
]
BLOCK = superblock.Superblock(UUID, NOW, PACK)
ODD_BLOCK = superblock.Superblock(UUID, -1, PACK, superblock.ChunkerParameters(1, 2, 3, 0, 0))
RECEIPT_HEADER = receipts.ReceiptHeader(UUID, 1 << 40, IDS[2], 2)
RECEIPT_ROWS = [
    receipts.ReceiptRow(IDS[0], PACK, 48, 1000),
    receipts.ReceiptRow(IDS[3], UUID, 1 << 26, 131_072),
]


def encode_receipt() -> bytes:
    return receipts.encode_receipt_header(RECEIPT_HEADER) + receipts.encode_receipt_rows(sorted(RECEIPT_ROWS))


def decode_receipt(data: bytes) -> tuple[receipts.ReceiptHeader, list[receipts.ReceiptRow]]:
    header = receipts.decode_receipt_header(data, len(data))
    return header, receipts.decode_receipt_rows(data[receipts.RECEIPT_HEADER_BYTES :])


def encode_footer() -> bytes:
    return packs.encode_footer(ENTRIES, 2000, PACK)


def decode_footer(data: bytes) -> list[packs.PackEntry]:
    file_bytes = 2000 + len(data)
    assert packs.footer_offset(data[-packs.TRAILER_BYTES :], file_bytes) == 2000
    return packs.decode_footer(data, file_bytes, PACK)


def encode_plain_record() -> bytes:
    return b''.join(records.encode_record(1, ids.data_id(b'hello'), b'hello', Compressor()))


def decode_record(data: bytes) -> tuple[int, bytes, bytes]:
    header = records.decode_header(data)
    return header.kind, header.id, records.decode_payload(header, data[records.HEADER_BYTES :])


def decode_leaf(data: bytes) -> Any:
    leaf = nodes.decode_node(data)
    assert isinstance(leaf, nodes.Leaf)
    assert leaf.ref_ids() == [IDS[0], IDS[0], IDS[1]]
    return leaf.keys, leaf.values_with_ids()


def decode_parts(data: bytes) -> Any:
    leaf = nodes.decode_node(data)
    assert isinstance(leaf, nodes.Leaf)
    assert leaf.ref_ids() == [IDS[0], IDS[1], IDS[0]]
    return [(key, leaf.value(position)) for position, key in enumerate(leaf.keys)]


def decode_branch(data: bytes) -> Any:
    branch = nodes.decode_node(data)
    assert isinstance(branch, nodes.Branch)
    lists = branch.keys, branch.children, branch.child_items, branch.child_refs
    return branch.level, *(list(column) for column in lists)


def name_hashes(names: list[bytes]) -> bytes:
    return b''.join(keys.name_hash(PACK, name).to_bytes(8, 'big') for name in names)


# name of the file: (encode or None, decode or None, what it means)
Golden = tuple[Callable[[], bytes] | None, Callable[[bytes], Any] | None, Any]
GOLDEN: dict[str, Golden] = {
    'superblock': (lambda: superblock.encode_superblock(BLOCK), superblock.decode_superblock, BLOCK),
    'superblock_odd': (
        lambda: superblock.encode_superblock(ODD_BLOCK),
        superblock.decode_superblock,
        ODD_BLOCK,
    ),
    'pack_header_data': (
        lambda: packs.encode_pack_header(packs.PackHeader(UUID, PACK, records.RecordKind.DATA)),
        packs.decode_pack_header,
        packs.PackHeader(UUID, PACK, records.RecordKind.DATA),
    ),
    'pack_header_node': (
        lambda: packs.encode_pack_header(packs.PackHeader(UUID, PACK, records.RecordKind.NODE)),
        packs.decode_pack_header,
        packs.PackHeader(UUID, PACK, records.RecordKind.NODE),
    ),
    'pack_footer': (encode_footer, decode_footer, ENTRIES),
    'record_plain': (encode_plain_record, decode_record, (1, ids.data_id(b'hello'), b'hello')),
    'record_zstd': (None, decode_record, (2, ids.node_id(TEXT), TEXT)),
    'leaf': (lambda: nodes.encode_leaf(*LEAF), decode_leaf, LEAF),
    'leaf_parts': (
        lambda: nodes.encode_leaf([key for key, _ in PARTS], [value for _, value in PARTS]),
        decode_parts,
        PARTS,
    ),
    'branch': (lambda: nodes.encode_branch(*BRANCH), decode_branch, BRANCH),
    'journal_block': (
        lambda: journal.encode_journal_header(journal.JournalHeader(UUID, 1, 1 << 33)),
        journal.decode_journal_header,
        journal.JournalHeader(UUID, 1, 1 << 33),
    ),
    'journal_record': (
        lambda: b''.join(journal.encode_frame(frame, UUID) for frame in FRAMES),
        lambda data: list(journal.decode_frames(data, UUID)),
        FRAMES,
    ),
    'receipt': (encode_receipt, decode_receipt, (RECEIPT_HEADER, sorted(RECEIPT_ROWS))),
    'ids': (
        lambda: ids.data_id(b'') + ids.node_id(b'') + ids.data_id(TEXT) + ids.node_id(TEXT),
        None,
        None,
    ),
    'keys': (lambda: b''.join(key for key, _ in ITEMS), None, None),
    'name_hashes': (lambda: name_hashes([b'a', b'name', b'\xff' * 255]), None, None),
}


def read(name: str) -> bytes:
    return bytes.fromhex((FILES / f'{name}.hex').read_text())


@pytest.mark.parametrize('name', [name for name, (encode, _, _) in GOLDEN.items() if encode])
def test_writing_gives_the_golden_bytes(name: str) -> None:
    encode = GOLDEN[name][0]
    assert encode is not None
    assert encode() == read(name)


@pytest.mark.parametrize('name', [name for name, (_, decode, _) in GOLDEN.items() if decode])
def test_the_golden_bytes_are_read(name: str) -> None:
    _, decode, meaning = GOLDEN[name]
    assert decode is not None
    assert decode(read(name)) == meaning


def test_every_golden_file_has_its_test() -> None:
    assert {path.stem for path in FILES.iterdir()} == set(GOLDEN)


def test_a_stranger_reads_a_leaf_by_the_specification_alone() -> None:
    # Written from the prose of nodes.py and stream.py, with nothing of the package but the golden bytes.
    data = read('leaf')
    version, kind, level, reserved = data[:4]
    items, refs = int.from_bytes(data[4:8], 'big'), int.from_bytes(data[8:12], 'big')
    assert (version, kind, level, reserved, items, refs) == (1, 1, 0, 0, 9, 3)
    assert int.from_bytes(data[12:20], 'big') == 9
    assert int.from_bytes(data[20:28], 'big') == 3
    assert data[28 : 28 + 96] == IDS[0] + IDS[0] + IDS[1]
    stream = data[28 + 96 :]
    assert stream[:3] == b'\xdc\x00\x12'  # an array of 2 * 9 elements
    key = (2).to_bytes(8, 'big') + b'\x05' + (77).to_bytes(8, 'big')
    assert stream[3 : 3 + 2 + 17 + 1] == b'\xc4\x11' + key + b'\x90'


def test_a_stranger_reads_a_record_by_the_specification_alone() -> None:
    data = read('record_plain')
    assert data[:8] == b'SfR1\x01\x00\x00\x00'
    assert data[8:16] == (5).to_bytes(4, 'big') * 2
    assert data[16:48] == ids.data_id(b'hello')
    assert data[52:] == b'hello'
