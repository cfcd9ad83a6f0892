"""Tool fuzz, samples: whole structures, made by the encoders: what every fuzzing begins with. Pure."""

from __future__ import annotations

from typing import Any

from snapfs.format import codec, ids, journal, keys, packs, receipts, superblock
from snapfs.format import nodes as format_nodes
from snapfs.format import records as format_records
from snapfs.format.stream import pack_stream

UUID = bytes(range(16))
NAME = bytes(range(0xA0, 0xB0))
NOW = 1_314_000_000_123_456_789
TEXT = b'the quick brown fox jumps over the lazy dog\n' * 20
IDS = [ids.data_id(b'chunk %d' % number) for number in range(4)]
INODE = (0o100644, 1000, 1001, 0, 65_536, 40_000, 1, 7, 0, NOW, -1, NOW + 1, NOW - 1, 1, b'')
LINK = (0o120777, 0, 0, 0, 6, 0, 1, 1, 0, NOW, NOW, NOW, NOW, 0, b'target')
ITEMS: list[tuple[bytes, Any]] = [
    (keys.orphan_key(77), ()),
    (keys.inode_key(16), INODE),
    (keys.dirent_key(16, 2), ((b'a', 17, 8), (b'\xff\xfe', 18, 4))),
    (keys.extent_key(16, 0), (131_072, IDS[0])),
    (keys.extent_key(16, 1 << 50), (100, 4096, 131_072, IDS[1])),
    (keys.xattr_key(16, b'user.large'), (1, 65_536, IDS[2])),
    (keys.xattr_key(16, b'user.small'), (0, b'value')),
    (keys.inode_key((1 << 40) - 1), LINK),
]


def superblocks() -> list[bytes]:
    """Return two, with usual and with small pieces."""
    odd = superblock.ChunkerParameters(1, 2, 3, 0, 0)
    blocks = (superblock.Superblock(UUID, NOW, NAME), superblock.Superblock(UUID, -1, NAME, odd))
    return [superblock.encode_superblock(one) for one in blocks]


def records() -> list[bytes]:
    """Return a plain one, a compressed one, and one of a node."""
    compressor = codec.Compressor()
    leaf = nodes()[0]
    chunks = (
        (1, ids.data_id(b'hello'), b'hello'),
        (1, ids.data_id(TEXT), TEXT),
        (2, ids.node_id(leaf), leaf),
    )
    return [b''.join(format_records.encode_record(*one, compressor)) for one in chunks]


def payloads() -> list[bytes]:
    """Return payloads behind codec and plain length; one is as long as a payload may be, and says more."""
    plain = bytes([0]) + len(TEXT).to_bytes(4, 'big') + TEXT
    found = [plain]
    for text, claimed in ((TEXT, len(TEXT)), (bytes(1 << 17), 1 << 17), (bytes(1 << 17), 100)):
        used, stored = codec.Compressor().compress(text)
        found.append(bytes([used]) + claimed.to_bytes(4, 'big') + bytes(stored))
    frame = found[-1][5:]
    return [*found, bytes([1]) + (1 << 17).to_bytes(4, 'big') + frame * 100]


def pack_headers() -> list[bytes]:
    """Return one of either kind."""
    return [packs.encode_pack_header(packs.PackHeader(UUID, NAME, kind)) for kind in ids.RecordKind]


def footers() -> list[bytes]:
    """Return an empty one, and one of two records."""
    entries = [packs.PackEntry(IDS[0], 48, 1000, 1000, 0), packs.PackEntry(IDS[1], 1100, 17, 131_072, 1)]
    return [packs.encode_footer([], 48, NAME), packs.encode_footer(entries, 2000, NAME)]


def receipts_of(count: int) -> bytes:
    """Return a receipt of so many rows."""
    rows = sorted(receipts.ReceiptRow(one, NAME, 48 + at, 1000) for at, one in enumerate(IDS[:count]))
    header = receipts.ReceiptHeader(UUID, 7, IDS[2], count)
    return receipts.encode_receipt_header(header) + receipts.encode_receipt_rows(rows)


def receipts_all() -> list[bytes]:
    """Return receipts without, with one, and with several rows."""
    return [receipts_of(count) for count in (0, 1, 4)]


def nodes() -> list[bytes]:
    """Return leaves, also of one item each, and branches."""
    leaf = format_nodes.encode_leaf([key for key, _ in ITEMS], [value for _, value in ITEMS])
    single = [format_nodes.encode_leaf([key], [value]) for key, value in ITEMS]
    below = ([3, 70_000, 1 << 33], [0, 300, 1 << 34])
    branch = format_nodes.encode_branch(2, [b'', ITEMS[1][0], ITEMS[4][0]], IDS[:3], *below)
    return [leaf, branch, format_nodes.encode_branch(1, [b''], IDS[:1], [1], [0]), *single]


def items() -> list[bytes]:
    """Return a stream of key and value for every kind of item."""
    return [pack_stream([key, value]) for key, value in ITEMS]


def keys_all() -> list[bytes]:
    """Return a key of every kind."""
    return [key for key, _ in ITEMS]


def streams() -> list[bytes]:
    """Return streams of all types."""
    return [pack_stream([]), pack_stream([1, -1, b'x', None, True, (1, (b'', ())), 1 << 63])]


def blocks() -> list[bytes]:
    """Return the blocks of both files."""
    return [journal.encode_journal_header(journal.JournalHeader(UUID, n, n << 33)) for n in (0, 1)]


def frames() -> list[bytes]:
    """Return a record of two parts, two records behind each other, and an empty one."""
    delta = journal.VolumeDelta(
        3,
        1 << 40,
        [keys.ino_range(20), keys.kind_range(21, keys.ItemKind.EXTENT)],
        [*ITEMS, (keys.inode_key(19), None)],
        [(16, 4096, 1 << 63)],
        [(16, 1 << 40, b'written'), (16, 0, b'\0')],
    )
    chunks = [
        journal.NewChunk(IDS[0], 1, NAME, 48, 1000, 1000, 0),
        journal.NewChunk(IDS[1], 2, NAME, 1 << 25, 17, 131_072, 1),
    ]
    small = journal.VolumeDelta(4, 16)
    first = journal.JournalFrame(1 << 32, 0, True, chunks, [delta])
    last = journal.JournalFrame(1 << 32, 1, False, [], [small])
    after = journal.JournalFrame((1 << 32) + 9, 0, False, [], [small, small])
    several = [[first, last], [first, last, after], [journal.JournalFrame(1)]]
    return [b''.join(journal.encode_frame(frame, UUID) for frame in record) for record in several]
