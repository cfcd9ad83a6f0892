"""Hostile bytes: every decoder answers with a value of its schema or with Corrupt, in little memory and time.

The starting points are the golden structures: truncated, flipped, overwritten, joined, with lying lengths,
then sealed again with good checksums, so that the damage gets past them.
"""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from crc32c import crc32c
from hypothesis import given, settings
from hypothesis import strategies as st

from snapfs import limits
from snapfs.errors import Corrupt
from snapfs.format import items, journal, keys, nodes, packs, records, superblock
from snapfs.format.codec import Codec, Compressor, decompress

REPEATABLE = settings(derandomize=True, deadline=None, max_examples=400)
GOLDEN = Path(__file__).parents[1] / 'golden' / 'format_1'
UUID = bytes(range(16))
PACK = bytes(range(0xA0, 0xB0))
OVERHEAD = 1 << 20  # bytes a decoder may take whatever the input
FACTOR = 64  # and per byte of input


def golden(name: str) -> bytes:
    return bytes.fromhex((GOLDEN / f'{name}.hex').read_text())


def use_node(data: bytes) -> None:
    """Decode a node as walkers, the tree and checkers do; what decode_node lets pass must be safe to use."""
    header, table = nodes.peek_refs(data)
    node = nodes.decode_node(data)
    assert b''.join(node.ref_ids()) == table
    assert (node.items_below, node.refs_below) == (header.items_below, header.refs_below)
    if isinstance(node, nodes.Branch):
        assert nodes.encode_branch(node.level, node.keys, node.children, node.child_items, node.child_refs)
        return
    values = node.values_with_ids()
    found = [id for id in map(items.ref_of, node.keys, values) if id is not None]
    assert found == node.ref_ids()
    again = nodes.decode_node(nodes.encode_leaf(node.keys, values))
    assert isinstance(again, nodes.Leaf)
    assert again.values == node.values
    for key, value in zip(node.keys, values, strict=True):
        assert items.item_size(key, value) > 0
        try:
            items.check_item(key, value)
        except Corrupt:
            pass


def use_record(data: bytes) -> None:
    header = records.decode_header(data)
    records.decode_payload(header, data[records.HEADER_BYTES :])


def use_footer(data: bytes) -> None:
    # Both as the footer of a file that is as long as it says, and of one that is not.
    packs.footer_offset(data[-packs.TRAILER_BYTES :], 2000 + len(data))
    packs.decode_footer(data, 2000 + len(data), PACK)


def use_frames(data: bytes) -> None:
    end = 0
    for found in journal.scan_frames(data, UUID):
        assert found.offset == end < found.end <= len(data)
        end = found.end
        assert journal.encode_frame(found.frame, UUID)


def reseal_tail(data: bytes) -> bytes:
    """Put a good CRC into the last 4 bytes: superblock, pack header."""
    return data[:-4] + crc32c(data[:-4]).to_bytes(4, 'big')


def reseal_record(data: bytes) -> bytes:
    return data[:48] + crc32c(data[:48]).to_bytes(4, 'big') + data[52:]


def reseal_footer(data: bytes) -> bytes:
    index, trailer = data[: -packs.TRAILER_BYTES], data[-packs.TRAILER_BYTES :]
    return index + reseal_tail(trailer[:40] + crc32c(index).to_bytes(4, 'big') + trailer[44:])


def reseal_block(data: bytes) -> bytes:
    return data[:44] + crc32c(data[:44]).to_bytes(4, 'big') + data[48:]


def reseal_frame(data: bytes) -> bytes:
    """Make all of the data one frame of the right store, with a good length and CRC."""
    body = data[44:]
    fields = b'SfJ1' + len(body).to_bytes(4, 'big') + data[8:16] + bytes(8) + UUID
    return fields + crc32c(fields + body).to_bytes(4, 'big') + body


def unsealed(data: bytes) -> bytes:
    return data


Decode = Callable[[bytes], Any]
CASES: dict[str, tuple[Decode, Callable[[bytes], bytes]]] = {
    'superblock': (superblock.decode_superblock, reseal_tail),
    'pack_header_data': (packs.decode_pack_header, reseal_tail),
    'pack_footer': (use_footer, reseal_footer),
    'record_plain': (use_record, reseal_record),
    'record_zstd': (use_record, reseal_record),
    'leaf': (use_node, unsealed),
    'branch': (use_node, unsealed),
    'journal_block': (journal.decode_journal_header, reseal_block),
    'journal_record': (use_frames, reseal_frame),
}
EVERY = pytest.mark.parametrize('name', list(CASES))


def answers(decode: Decode, data: bytes) -> bool:
    """Return whether `decode` took the bytes; its only other answer is Corrupt, in one line."""
    try:
        decode(data)
    except Corrupt as error:
        assert str(error)
        assert '\n' not in str(error)
        assert len(str(error)) < 1000
        return False
    return True


# One damage: (kind, position, bytes). Positions wrap around, so that every example hits.
damages = st.lists(
    st.tuples(
        st.sampled_from(['flip', 'overwrite', 'insert', 'delete', 'cut', 'repeat']),
        st.integers(0, 5000),
        st.binary(min_size=1, max_size=8)
        | st.sampled_from(
            [b'\xff' * 4, b'\xff' * 8, b'\xdd\xff\xff\xff\xff', b'\xdc\xff\xff', b'\x7f\xff\xff\xff']
        ),
    ),
    min_size=1,
    max_size=4,
)


def damaged(data: bytes, how: list[tuple[str, int, bytes]]) -> bytes:
    for kind, where, patch in how:
        position = where % (len(data) + 1)
        before, after = data[:position], data[position:]
        if kind == 'flip':
            data = before + bytes([after[0] ^ (1 << patch[0] % 8)]) + after[1:] if after else before
        elif kind == 'overwrite':
            data = before + patch + after[len(patch) :]
        elif kind == 'insert':
            data = before + patch + after
        elif kind == 'delete':
            data = before + after[len(patch) :]
        elif kind == 'cut':
            data = before
        else:
            data = before + data
    return data


def test_the_golden_structures_are_taken_and_resealing_keeps_them() -> None:
    for name, (decode, reseal) in CASES.items():
        assert answers(decode, golden(name)), name
        if name != 'journal_record':
            assert reseal(golden(name)) == golden(name), name


@EVERY
@given(how=damages)
@REPEATABLE
def test_damage_is_answered(name: str, how: list[tuple[str, int, bytes]]) -> None:
    decode, reseal = CASES[name]
    data = damaged(golden(name), how)
    answers(decode, data)
    answers(decode, reseal(data))


@EVERY
@given(data=st.binary(max_size=300))
@REPEATABLE
def test_any_bytes_are_answered(name: str, data: bytes) -> None:
    decode, reseal = CASES[name]
    answers(decode, data)
    answers(decode, reseal(data))
    answers(decode, golden(name)[:28] + data)


@EVERY
def test_every_truncation_and_every_flipped_bit_is_answered(name: str) -> None:
    decode, reseal = CASES[name]
    good = golden(name)[:2000] if name == 'journal_block' else golden(name)
    for length in range(len(good)):
        answers(decode, good[:length])
        answers(decode, reseal(good[:length]))
    for bit in range(len(good) * 8):
        data = bytearray(good)
        data[bit // 8] ^= 1 << bit % 8
        answers(decode, bytes(data))
        answers(decode, reseal(bytes(data)))


# Nodes have no checksum but their id, a torn journal is no error, and Zstandard has a bit without meaning.
CHECKSUMMED = [name for name in CASES if name not in ('leaf', 'branch', 'journal_record', 'record_zstd')]


@pytest.mark.parametrize('name', CHECKSUMMED)
def test_checksums_show_every_truncation_and_every_flipped_bit(name: str) -> None:
    decode, good = CASES[name][0], golden(name)
    for length in range(len(good)):
        assert not answers(decode, good[:length]), length
    for bit in range(len(good) * 8):
        data = bytearray(good)
        data[bit // 8] ^= 1 << bit % 8
        assert not answers(decode, bytes(data)), bit


def leaf_with(stream: bytes, count: int = 1) -> bytes:
    """Return a leaf without refs whose stream is these bytes, padded to the largest node."""
    numbers = count.to_bytes(4, 'big') + bytes(4) + count.to_bytes(8, 'big') + bytes(8)
    return (b'\1\1\0\0' + numbers + stream)[: limits.NODE_BYTES_MAX]


def frame_with(stream: bytes) -> bytes:
    return reseal_frame(bytes(44) + stream[: journal.FRAME_BODY_BYTES_MAX])


def bombs() -> dict[str, bytes]:
    """Return streams that claim, nest or repeat as much as msgpack can say."""
    size = limits.JOURNAL_FRAME_BYTES_MAX
    array32 = b'\xdd'
    many = array32 + size.to_bytes(4, 'big')
    key = b'\xc4\x09' + keys.inode_key(16)
    return {
        'claims 2^32 elements': array32 + b'\xff' * 4,
        'claims as many as it has bytes': many + bytes(size - 5),
        'claims nested': many + (array32 + b'\0\x10\0\0') * (size // 5),
        'claims 64 nested': many + b'\xdc\0\x40' * (size // 3),
        'arrays of one': many + b'\x91\0' * (size // 2),
        'nested arrays of one': many + (b'\x91' * 500 + b'\0') * (size // 501),
        'too deep': many + b'\x91' * size,
        'empty arrays': many + b'\x90' * size,
        'small bins': many + b'\xc4\2ab' * (size // 4),
        'wide integers': many + b'\xcd\x7f\xff' * (size // 3),
        'floats': many + b'\xcb' + bytes(size),
        'empty maps': many + b'\x80' * size,
        'maps nested': many + b'\xdf\xff\xff\xff\xff' * (size // 5),
        'extensions': many + b'\xc7\0\5' * (size // 3),
        'bin of 4 GiB': b'\x92' + key + b'\xc6' + b'\xff' * 4 + bytes(1000),
        'str of 4 GiB': b'\x92' + key + b'\xdb' + b'\xff' * 4 + bytes(1000),
        'extension of 4 GiB': b'\x92' + key + b'\xc9' + b'\xff' * 4 + bytes(1000),
    }


def variants(stream: bytes) -> list[tuple[Decode, bytes]]:
    """Return the bomb in every structure that holds a stream, with the counts that fit it best."""
    found: list[tuple[Decode, bytes]] = []
    for count in (
        1,
        (limits.NODE_BYTES_MAX - 28) // 2,
        (1 << 31) - 1,
    ):
        found.append((nodes.decode_node, leaf_with(stream, count)))
        claimed = b'\xdd' + (2 * count % (1 << 32)).to_bytes(4, 'big')
        found.append((nodes.decode_node, leaf_with(claimed + stream[5:], count)))
    found.append((use_frames, frame_with(stream)))
    length = min(len(stream), journal.FRAME_BODY_BYTES_MAX) - 5
    for each in (1, 2, 501):
        claimed = b'\xdd' + max(length // each, 0).to_bytes(4, 'big')
        found.append((use_frames, frame_with(claimed + stream[5:])))
    return found


@pytest.mark.parametrize('name', list(bombs()))
def test_bombs_take_little_memory(name: str) -> None:
    for decode, data in variants(bombs()[name]):
        tracemalloc.start()
        try:
            taken = answers(decode, data)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert not taken, name
        assert peak < OVERHEAD + FACTOR * len(data), f'{name}: {peak} bytes for {len(data)}'


def test_a_compressed_bomb_takes_no_more_than_its_plain_length() -> None:
    used, frame = Compressor().compress(bytes(limits.PLAIN_BYTES_MAX))
    assert used is Codec.ZSTD
    stored = bytes(frame) * 1000  # a thousand frames, 128 MiB plain
    tracemalloc.start()
    try:
        with pytest.raises(Corrupt):
            decompress(Codec.ZSTD, stored, limits.PLAIN_BYTES_MAX)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < OVERHEAD + 2 * len(stored)


def test_a_footer_cannot_claim_more_records_than_the_file_has_bytes() -> None:
    footer = golden('pack_footer')
    for count in (0, 3, 1 << 16, limits.PACK_RECORDS_MAX, (1 << 32) - 1):
        data = footer[:-40] + count.to_bytes(4, 'big') + footer[-36:]
        assert not answers(use_footer, reseal_footer(data))
