"""Tool fuzz, binary: the structures of snapfs/format, with their checksums made right again. Pure."""

from __future__ import annotations

import re
from itertools import pairwise
from random import Random
from typing import Any

from crc32c import crc32c

from snapfs import limits
from snapfs.errors import Corrupt
from snapfs.format import items, journal, keys, nodes, packs, receipts, records, superblock
from snapfs.format.codec import Codec, Compressor, decompress
from snapfs.format.ids import RecordKind, chunk_id
from snapfs.format.stream import pack_stream, unpack_stream
from tools.fuzz import samples
from tools.fuzz.mutate import mutate_bytes, mutate_stream
from tools.fuzz.samples import NAME, UUID
from tools.fuzz.target import Target, must

INPUT_BYTES_LARGE = 16 << 10


def _crc(data: bytes) -> bytes:
    return crc32c(data).to_bytes(4, 'big')


# --- superblock, records, codec --------------------------------------------------------------------------
def read_superblock(data: bytes) -> None:
    """Canonical: what was read gives the same bytes."""
    must(superblock.encode_superblock(superblock.decode_superblock(data)) == data, 'superblock: other bytes')


def seal_tail(data: bytes) -> bytes:
    """Put a right CRC into the last four bytes: superblock, pack header."""
    return data[:-4] + _crc(data[:-4])


def read_record(data: bytes) -> None:
    """A payload that is taken has the id and the length that the header says."""
    header = records.decode_header(data)
    plain = records.decode_payload(header, data[records.HEADER_BYTES :])
    must(len(plain) == header.plain_length <= limits.PLAIN_BYTES_MAX, 'record: another length')
    must(chunk_id(header.kind, plain) == header.id, 'record: another id')
    again, payload = records.encode_record(header.kind, header.id, plain, Compressor())
    must(records.decode_payload(records.decode_header(again), payload) == plain, 'record: other bytes')


def seal_record(data: bytes) -> bytes:
    """Give a record the lengths and the id of the payload that it has, where it has one, and its CRC."""
    data = data.ljust(records.HEADER_BYTES, b'\0')
    fields, payload = bytearray(data[:48]), data[records.HEADER_BYTES :]
    fields[:4] = records.RECORD_MAGIC
    plain: bytes | None = payload
    if fields[5] == Codec.ZSTD:
        try:  # as many as it claims, or as many as there are
            plain = decompress(Codec.ZSTD, payload, int.from_bytes(fields[12:16], 'big'))
        except Corrupt:
            plain = None
    if plain is not None and fields[4] in (RecordKind.DATA, RecordKind.NODE):
        fields[8:12] = len(payload).to_bytes(4, 'big')
        fields[12:16] = len(plain).to_bytes(4, 'big')
        fields[16:48] = chunk_id(fields[4], plain)
    return bytes(fields) + _crc(bytes(fields)) + payload


def read_payload(data: bytes) -> None:
    """Codec in the first byte, plain length in the next four: no more memory than that length."""
    length = int.from_bytes(data[1:5], 'big')
    plain = decompress(data[0] if data else 0, data[5:], length)
    must(len(plain) == length <= limits.PLAIN_BYTES_MAX, 'payload: another length')


# --- packs, receipts -------------------------------------------------------------------------------------
def read_pack_header(data: bytes) -> None:
    """Canonical."""
    header = packs.decode_pack_header(data)
    must(packs.encode_pack_header(header) == data[: packs.PACK_HEADER_BYTES], 'pack header: other bytes')


def read_footer(data: bytes) -> None:
    """As the footer of a file that is as long as it says. Canonical."""
    claimed = int.from_bytes(data[-36:-28], 'big')
    size = claimed + len(data)
    must(packs.footer_offset(data[-packs.TRAILER_BYTES :], size) == claimed, 'footer: another offset')
    entries = packs.decode_footer(data, size, NAME)
    must(packs.encode_footer(entries, claimed, NAME) == data, 'footer: other bytes')


def seal_footer(data: bytes, name: bytes = NAME) -> bytes:
    """Count the entries, and put right CRCs in."""
    data = data.rjust(packs.TRAILER_BYTES, b'\0')
    index, trailer = data[: -packs.TRAILER_BYTES], data[-packs.TRAILER_BYTES :]
    count = (len(index) // packs.ENTRY_BYTES).to_bytes(4, 'big')
    fields = packs.TRAILER_MAGIC + count + trailer[12:20] + name + trailer[36:40] + _crc(index)
    return index + fields + _crc(fields)


def read_receipt(data: bytes) -> None:
    """Header and rows, read at once and in two pieces. Canonical."""
    header = receipts.decode_receipt_header(data[: receipts.RECEIPT_HEADER_BYTES], len(data))
    body = data[receipts.RECEIPT_HEADER_BYTES :]
    rows = receipts.decode_receipt_rows(body)
    must(len(rows) == header.rows, 'receipt: another number of rows')
    half = len(rows) // 2 * receipts.RECEIPT_ROW_BYTES
    first = receipts.decode_receipt_rows(body[:half])
    rest = receipts.decode_receipt_rows(body[half:], first[-1] if first else None)
    must(first + rest == rows, 'receipt: other rows in pieces')
    again = receipts.encode_receipt_header(header) + receipts.encode_receipt_rows(rows)
    must(again == data, 'receipt: other bytes')


def seal_receipt(data: bytes) -> bytes:
    """Count the rows, bring them into order, and put a right CRC in."""
    size, row = receipts.RECEIPT_HEADER_BYTES, receipts.RECEIPT_ROW_BYTES
    data = data.ljust(size, b'\0')
    body = data[size:]
    count = len(body) // row
    rows = sorted({body[at * row : (at + 1) * row] for at in range(count)})
    fields = receipts.RECEIPT_MAGIC + data[8:68] + len(rows).to_bytes(8, 'big')
    return fields + _crc(fields) + b''.join(rows) + body[count * row :]


# --- nodes, items, keys, streams -------------------------------------------------------------------------
def read_node(data: bytes) -> None:
    """What is taken can be used: values with ids in place, sizes, checks; and encodes to what reads the
    same."""
    header, table = nodes.peek_refs(data)
    node = nodes.decode_node(data)
    must(b''.join(node.ref_ids()) == table, 'node: another table')
    below = (header.items_below, header.refs_below)
    must((node.items_below, node.refs_below) == below, 'node: other totals')
    if isinstance(node, nodes.Branch):
        parts = (node.keys, node.children, node.child_items, node.child_refs)
        same = nodes.decode_node(nodes.encode_branch(node.level, *parts))
        good = isinstance(same, nodes.Branch) and same.level == node.level
        names = ('keys', 'children', 'child_items', 'child_refs')
        good = good and tuple(getattr(same, name) for name in names) == parts
        must(good, 'branch: reads as another one')
        return
    values = node.values_with_ids()
    must([node.value(at) for at in range(len(values))] == values, 'leaf: two ways, two values')
    found = [id for id in map(items.ref_of, node.keys, values) if id is not None]
    must(found == node.ref_ids(), 'leaf: other references')
    again = nodes.decode_node(nodes.encode_leaf(node.keys, values))
    must(isinstance(again, nodes.Leaf) and again.values_with_ids() == values, 'leaf: reads as another one')
    for key, value in zip(node.keys, values, strict=True):
        must(items.item_size(key, value) > 0, 'item: no size')
        try:
            items.check_item(key, value)
        except Corrupt:
            continue
        ino, kind, suffix = keys.decode_key(key)
        must(keys.encode_key(ino, kind, suffix) == key, 'key: other bytes')


def _node_parts(data: bytes) -> tuple[bytes, bytes, bytes]:
    size = nodes.NODE_HEADER_BYTES
    refs = int.from_bytes(data[8:12], 'big')
    end = size + min(refs, 1000) * limits.ID_BYTES
    return data[:size], data[size:end], data[end:]


def mutate_node(data: bytes, chance: Random) -> bytes:
    """Change the header or the table by bytes, or the stream by elements."""
    header, table, stream = _node_parts(data)
    way = chance.randrange(8)
    if way == 0:
        return mutate_bytes(header, chance) + table + stream
    if way == 1:
        return header + mutate_bytes(table, chance) + stream
    return header + table + mutate_stream(stream, chance)


def seal_node(data: bytes) -> bytes:
    """Make the totals of the header those of the stream: nodes have no checksum but these."""
    header, table, stream = _node_parts(data.ljust(nodes.NODE_HEADER_BYTES, b'\0'))
    try:
        elements = unpack_stream(stream, None, 'fuzz')
    except Corrupt:
        return data
    refs = len(table) // limits.ID_BYTES
    if header[1] == nodes.BRANCH:
        count = len(elements) // 3
        totals = [
            sum(one for one in elements[at::3] if isinstance(one, int) and 0 < one < 1 << 48) for at in (1, 2)
        ]
        totals[1] += count
        table = (table + bytes(count * limits.ID_BYTES))[: count * limits.ID_BYTES]
        refs = count
    else:
        count = len(elements) // 2
        totals = [count, refs]
    numbers = count.to_bytes(4, 'big') + refs.to_bytes(4, 'big')
    fields = header[:4] + numbers + b''.join((one % (1 << 64)).to_bytes(8, 'big') for one in totals)
    return fields + table + stream


def read_item(data: bytes) -> None:
    """A stream of key and value, as the journal brings it: what check_item lets pass can be stored."""
    key, value = unpack_stream(data, 2, 'item')
    items.check_item(key, value)
    must(items.item_size(key, value) > 0, 'item: no size')
    id = items.ref_of(key, value)
    leaf = nodes.decode_node(nodes.encode_leaf([key], [value]))
    must(isinstance(leaf, nodes.Leaf) and leaf.values_with_ids() == [value], 'item: reads as another one')
    must(leaf.ref_ids() == ([] if id is None else [id]), 'item: another reference')


def read_key(data: bytes) -> None:
    """Canonical."""
    ino, kind, suffix = keys.decode_key(data)
    must(keys.encode_key(ino, kind, suffix) == data, 'key: other bytes')
    if len(suffix) == 8:
        must(0 <= keys.suffix_number(data) < 1 << 63 or kind == keys.XATTR, 'key: a negative number')


def read_stream(data: bytes) -> None:
    """Within limits, whatever it holds."""
    found = unpack_stream(data, None, 'stream')
    # As text: a float may be there, which callers refuse, and one that is no number is not even like itself.
    again = unpack_stream(pack_stream(found), len(found), 'stream')
    must(repr(again) == repr(found), 'stream: reads as another one')


# --- journal ---------------------------------------------------------------------------------------------
def read_block(data: bytes) -> None:
    """Canonical; a block that is whole but for its CRC counts as cut off, not as another one."""
    header = journal.decode_journal_header(data)
    must(journal.encode_journal_header(header) == data[: journal.JOURNAL_HEADER_BYTES], 'block: other bytes')
    cut = journal.is_cut_journal_header(data, header.store_uuid, header.file_number)
    must(cut, 'block: not even cut off')


def seal_block(data: bytes) -> bytes:
    """Put a right CRC in, and fill up."""
    data = data.ljust(48, b'\0')
    return (data[:44] + _crc(data[:44]) + data[48:]).ljust(journal.JOURNAL_HEADER_BYTES, b'\0')


def read_frames(data: bytes) -> None:
    """Frames from the first byte on: one after the other, found again by searching, and encoded again."""
    found, end = [], 0
    for placed in journal.scan_frames(data, UUID):
        must(placed.offset == end < placed.end <= len(data), 'journal: a frame elsewhere')
        end = placed.end
        found.append(placed.frame)
    for one in found:
        ((again),) = journal.decode_frames(journal.encode_frame(_first(one), UUID), UUID)
        must(again == _first(one), 'journal: a frame reads as another one')
    searched = [place.sequence for _, _, place in journal.find_frames(data, UUID, 0)]
    must(searched[: len(found)] == [one.sequence for one in found], 'journal: a search finds others')
    whole = [frame for parts in journal.decode_records(data, UUID) for frame in parts]
    must(whole == found[: len(whole)], 'journal: records of other frames')
    for part in journal.decode_records(data, UUID):
        for frame in part:
            journal.split_record(frame.sequence, frame.chunks, frame.volumes)


def _first(frame: journal.JournalFrame) -> journal.JournalFrame:
    """Return the frame as the only one of its record: a later part does not stand alone."""
    return journal.JournalFrame(frame.sequence, 0, False, frame.chunks, frame.volumes)


_MAGIC = re.compile(re.escape(journal.FRAME_MAGIC))


def _pieces(data: bytes) -> list[bytes]:
    starts = [match.start() for match in _MAGIC.finditer(data)]
    return [data[at:end] for at, end in pairwise([*starts, len(data)])]


def seal_frames(data: bytes, uuid: bytes = UUID) -> bytes:
    """Make a frame of everything from one magic to the next: uuid, length and CRC are right."""
    out = []
    for piece in _pieces(data) or [journal.FRAME_MAGIC + data]:
        piece = piece.ljust(journal.FRAME_HEADER_BYTES, b'\0')
        body = piece[journal.FRAME_HEADER_BYTES :]
        more = bytes([piece[20] & 1])
        fields = piece[:4] + len(body).to_bytes(4, 'big') + piece[8:20] + more + bytes(3) + uuid
        out.append(fields + _crc(fields + body) + body)
    return b''.join(out)


def mutate_frames(data: bytes, chance: Random) -> bytes:
    """Change the stream of one frame by elements, or everything by bytes."""
    pieces: list[Any] = _pieces(data)
    if not pieces or chance.randrange(6) == 0:
        return mutate_bytes(data, chance)
    at, size = chance.randrange(len(pieces)), journal.FRAME_HEADER_BYTES
    pieces[at] = pieces[at][:size] + mutate_stream(pieces[at][size:], chance)
    return b''.join(pieces)


TARGETS = [
    Target('superblock', read_superblock, samples.superblocks, seal_tail),
    Target('record', read_record, samples.records, seal_record),
    Target('payload', read_payload, samples.payloads),
    Target('pack-header', read_pack_header, samples.pack_headers, seal_tail),
    Target('pack-footer', read_footer, samples.footers, seal_footer),
    Target('receipt', read_receipt, samples.receipts_all, seal_receipt),
    Target('node', read_node, samples.nodes, seal_node, mutate_node, bytes_max=INPUT_BYTES_LARGE),
    Target('item', read_item, samples.items, mutate=mutate_stream),
    Target('key', read_key, samples.keys_all),
    Target('stream', read_stream, samples.streams, mutate=mutate_stream),
    Target('journal-block', read_block, samples.blocks, seal_block, bytes_max=journal.JOURNAL_HEADER_BYTES),
    Target('journal', read_frames, samples.frames, seal_frames, mutate_frames, bytes_max=INPUT_BYTES_LARGE),
]
