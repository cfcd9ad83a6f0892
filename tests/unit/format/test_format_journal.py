"""Journal: records of one and of many frames, torn tails, leavings of earlier use, malformed bodies."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest
from crc32c import crc32c

from snapfs import limits
from snapfs.errors import Corrupt
from snapfs.format import journal, keys
from snapfs.format.journal import (
    FRAME_HEADER_BYTES,
    JournalFrame,
    JournalHeader,
    NewChunk,
    VolumeDelta,
    decode_frames,
    decode_records,
    encode_frame,
    scan_frames,
    split_record,
)

UUID = b'u' * 16
ID = b'i' * 32
INODE = (0o100644, 0, 0, 0, 0, 0, 1, 1, 0, 5, 5, 5, 5, 0, b'')
CHUNK = NewChunk(ID, 1, b'p' * 16, 48, 10, 20, 1)
DELTA = VolumeDelta(
    1,
    17,
    [keys.ino_range(30)],
    [(keys.inode_key(16), INODE), (keys.extent_key(16, 0), (10, ID)), (keys.inode_key(17), None)],
    [(16, 0, 1 << 63)],
    [(16, 5, b'data')],
)


def frame(sequence: int, part: int = 0, more: bool = False) -> bytes:
    return encode_frame(JournalFrame(sequence, part, more, [CHUNK], [DELTA]), UUID)


def sequences(data: bytes, **options: int) -> list[tuple[int, int]]:
    return [(found.sequence, found.part) for found in decode_frames(data, UUID, **options)]


def test_block_comes_back() -> None:
    header = JournalHeader(UUID, 1, 1 << 40)
    data = journal.encode_journal_header(header)
    assert len(data) == journal.JOURNAL_HEADER_BYTES
    assert journal.decode_journal_header(data + b'frames') == header


def block(offset: int, patch: bytes) -> bytes:
    data = journal.encode_journal_header(JournalHeader(UUID, 0, 0))
    fields = data[:offset] + patch + data[offset + len(patch) : 44]
    return fields + crc32c(fields).to_bytes(4, 'big') + data[48:]


@pytest.mark.parametrize(
    ('data', 'message'),
    [
        (b'', '0 bytes'),
        (bytes(4096), 'magic'),
        (block(0, b'?'), 'magic'),
        (block(8, b'\0\2'), 'format version 2'),
        (block(11, b'\1'), 'reserved'),
        (block(35, b'\2'), 'file number 2'),
        (block(0, b'')[:-1], '4095 bytes'),
        (block(0, b'')[:-1] + b'\1', 'not zero'),
        (block(0, b'')[:20] + b'?' + block(0, b'')[21:], 'CRC'),
    ],
)
def test_block_refused(data: bytes, message: str) -> None:
    with pytest.raises(Corrupt, match=message):
        journal.decode_journal_header(data)


def test_frames_come_back_with_their_places() -> None:
    first, second = frame(5), encode_frame(JournalFrame(9), UUID)
    data = b'before' + first + second + bytes(100)
    found = list(scan_frames(data, UUID, 6))
    assert [place.frame for place in found] == [
        JournalFrame(5, 0, False, [CHUNK], [DELTA]),
        JournalFrame(9, 0, False, [], []),
    ]
    assert [place[:2] for place in found] == [(6, 6 + len(first)), (6 + len(first), len(data) - 100)]


@pytest.mark.parametrize(
    ('frames', 'expected'),
    [
        ([(1, 0, False), (2, 0, False)], [(1, 0), (2, 0)]),
        ([(1, 0, False), (7, 0, True), (7, 1, False)], [(1, 0), (7, 0), (7, 1)]),
        ([(2, 0, False), (2, 0, False)], [(2, 0)]),
        ([(2, 0, False), (1, 0, False)], [(2, 0)]),
        ([(2, 1, False)], []),
        ([(2, 0, True), (2, 0, False)], [(2, 0)]),
        ([(2, 0, True), (2, 2, False)], [(2, 0)]),
        ([(2, 0, True), (3, 1, False)], [(2, 0)]),
        ([(2, 0, True), (3, 0, False)], [(2, 0)]),
        ([(2, 0, False), (2, 1, False)], [(2, 0)]),
    ],
)
def test_reading_stops_at_a_frame_that_does_not_follow(
    frames: list[tuple[int, int, bool]], expected: list[tuple[int, int]]
) -> None:
    assert sequences(b''.join(frame(*one) for one in frames)) == expected


def test_reading_stops_below_the_first_sequence_and_at_another_store() -> None:
    data = frame(5) + frame(6)
    assert sequences(data, first_sequence=5) == [(5, 0), (6, 0)]
    assert sequences(data, first_sequence=6) == []
    assert list(decode_frames(data, b'v' * 16)) == []


def test_a_torn_tail_is_no_error_wherever_it_is_torn() -> None:
    whole, torn = frame(1), frame(2)
    for length in range(len(torn)):
        for rest in (b'', bytes(200)):
            data = whole + torn[:length] + rest
            if len(rest) and not any(torn[length:]):
                continue
            assert sequences(data) == [(1, 0)], length
    for position in range(len(torn)):
        flipped = bytearray(whole + torn)
        flipped[len(whole) + position] ^= 0x40
        assert sequences(bytes(flipped)) == [(1, 0)], position


def test_only_complete_records_are_records() -> None:
    data = frame(1) + frame(2, 0, True) + frame(2, 1) + frame(3, 0, True)
    assert [[part.part for part in record] for record in decode_records(data, UUID)] == [[0], [0, 1]]


def sealed(stream: object) -> bytes:
    """Return a frame of sequence 1 with any body and a good CRC."""
    body = stream if isinstance(stream, bytes) else msgpack.packb(stream)
    fields = encode_frame(JournalFrame(1), UUID)[:40]
    fields = fields[:4] + len(body).to_bytes(4, 'big') + fields[8:]
    return fields + crc32c(fields + body).to_bytes(4, 'big') + body


def delta(
    counts: tuple[int, int, int, int], *elements: Any, volume: Any = 1, next_ino: Any = 17
) -> list[Any]:
    return [0, 1, volume, next_ino, *counts, *elements]


KEY = keys.inode_key(16)
BAD_BODIES: list[tuple[Any, str]] = [
    (b'', 'empty'),
    (5, 'not a msgpack stream'),
    ([], 'ends before'),
    ([0, 0, 0], 'more than it announces'),
    ([0, None], 'numbers'),
    ([0, True], 'numbers'),
    ([-1, 0], 'numbers'),
    ([1 << 60, 0], 'ends before'),
    ([0, 1 << 60], 'ends before'),
    ([1, 0, 5], 'malformed chunk'),
    ([1, 0, CHUNK[:-1]], 'malformed chunk'),
    ([1, 0, CHUNK._replace(id=ID[1:])], 'without an id'),
    ([1, 0, CHUNK._replace(pack_name=b'')], 'pack name'),
    ([1, 0, CHUNK._replace(kind=True)], 'numbers'),
    ([1, 0, CHUNK._replace(kind=3)], 'kind 3'),
    ([1, 0, CHUNK._replace(codec=2)], 'codec 2'),
    ([1, 0, CHUNK._replace(offset=47)], 'offset 47'),
    ([1, 0, CHUNK._replace(offset=-1)], 'numbers'),
    ([1, 0, CHUNK._replace(stored_length=20)], 'stored length 20'),
    ([1, 0, CHUNK._replace(plain_length=1 << 18)], 'plain length'),
    (delta((0, 0, 0, 0), volume=b''), 'numbers'),
    (delta((0, 0, 0, 0), next_ino=0), 'next inode number 0'),
    (delta((0, 0, 0, 0), next_ino=(1 << 40) + 1), 'next inode number'),
    (delta((1, 0, 0, 0)), 'ends before'),
    (delta((1 << 62, 0, 0, 0), b'', b''), 'ends before'),
    (delta((1, 0, 0, 0), b'b', b'b'), 'range'),
    (delta((1, 0, 0, 0), b'', b'b' * 265), 'range'),
    (delta((1, 0, 0, 0), 1, 2), 'range'),
    (delta((0, 1, 0, 0), KEY, 5), 'type int'),
    (delta((0, 1, 0, 0), KEY, ()), '0 fields'),
    (delta((0, 1, 0, 0), 5, None), 'key is not bytes'),
    (delta((0, 1, 0, 0), KEY + b'x', None), 'suffix'),
    (delta((0, 1, 0, 0), keys.extent_key(16, 0), (10, 0)), 'chunk id'),
    (delta((0, 0, 1, 0), 16, 0), 'ends before'),
    (delta((0, 0, 1, 0), 16, 5, 4), 'malformed drop'),
    (delta((0, 0, 1, 0), 16, 0, (1 << 63) + 1), 'malformed drop'),
    (delta((0, 0, 1, 0), 0, 0, 4), 'malformed drop'),
    (delta((0, 0, 1, 0), 16, -1, 4), 'malformed drop'),
    (delta((0, 0, 1, 0), 16, b'', 4), 'malformed drop'),
    (delta((0, 0, 0, 1), 16, 0, b''), 'malformed write'),
    (delta((0, 0, 0, 1), 16, 0, 5), 'malformed write'),
    (delta((0, 0, 0, 1), 16, limits.FILE_BYTES_MAX, b'x'), 'malformed write'),
    (delta((0, 0, 0, 1), 1 << 40, 0, b'x'), 'drop or write'),
]


@pytest.mark.parametrize(('stream', 'message'), BAD_BODIES)
def test_a_malformed_body_under_a_good_crc_is_corrupt(stream: Any, message: str) -> None:
    # P5: such a frame cannot be torn; to stop there quietly would drop what fsync promised.
    with pytest.raises(Corrupt, match=message):
        list(decode_frames(frame(0) + sealed(stream), UUID))


def test_sealed_makes_good_frames_too() -> None:
    body = delta((1, 1, 1, 1), b'', b'z', KEY, None, 16, 0, 5, 16, 0, b'x')
    found = next(decode_frames(sealed(body), UUID))
    assert found.volumes == [VolumeDelta(1, 17, [(b'', b'z')], [(KEY, None)], [(16, 0, 5)], [(16, 0, b'x')])]


def test_a_frame_longer_than_the_limit_does_not_fit() -> None:
    assert FRAME_HEADER_BYTES == 44
    data = bytearray(sealed(b'\xc0' * (journal.FRAME_BODY_BYTES_MAX + 1)))
    assert sequences(bytes(data)) == []
    with pytest.raises(AssertionError, match='a frame with'):
        encode_frame(JournalFrame(1, volumes=[VolumeDelta(1, 17, writes=[(16, 0, bytes(1 << 20))])]), UUID)


def replayed(frames: list[JournalFrame]) -> tuple[list[NewChunk], dict[int, list[list[Any]]]]:
    """Return all chunks, and for each volume its ranges, items, drops and writes, in order of replay."""
    chunks: list[NewChunk] = []
    volumes: dict[int, list[list[Any]]] = {}
    for one in frames:
        chunks += one.chunks
        for change in one.volumes:
            lists = volumes.setdefault(change.volume, [[], [], [], []])
            rows = [change.ranges, change.items, change.drops, change.writes]
            for later, row in enumerate(rows):
                assert not row or not any(lists[later + 1 :]), 'replay would change the order of steps'
                lists[later] += row
    return chunks, volumes


def test_a_large_record_is_split_and_replays_the_same() -> None:
    items: list[tuple[bytes, Any]] = [
        (keys.inode_key(ino), (*INODE[:3], (1 << 64) - 1, *INODE[4:])) for ino in range(16, 9000)
    ]
    items += [(keys.xattr_key(9001, b'%05d' % number), (0, b'v' * 1000)) for number in range(1500)]
    writes = [(16, 0, b'x' * (3 << 20)), (17, 5, b'y')]
    ranges = [keys.ino_range(ino) for ino in range(1, 4000, 2)]
    drops = [(ino, 0, 1 << 40) for ino in range(16, 4000)]
    chunks = [CHUNK] * 12_000
    deltas = [VolumeDelta(1, 9002, ranges, items, drops, writes), VolumeDelta(2, 17)]
    deltas += [VolumeDelta(number, 17) for number in range(3, 30_000)]
    frames = split_record(7, chunks, deltas)
    encoded = journal.encode_record_frames(7, chunks, deltas, UUID)
    assert 5 < len(frames) == len(encoded) < 20
    assert max(map(len, encoded)) <= limits.JOURNAL_FRAME_BYTES_MAX
    decoded = list(decode_frames(b''.join(encoded), UUID))
    assert decoded == frames
    assert [(one.sequence, one.part, one.more) for one in frames] == [
        (7, part, part < len(frames) - 1) for part in range(len(frames))
    ]
    found_chunks, volumes = replayed(frames)
    assert found_chunks == chunks
    assert list(volumes) == list(range(1, 30_000))
    found_ranges, found_items, found_drops, found_writes = volumes[1]
    assert (found_ranges, found_items, found_drops) == (ranges, items, drops)
    assert b''.join(data for ino, _, data in found_writes if ino == 16) == writes[0][2]
    position = 0
    for ino, offset, data in found_writes[:-1]:
        assert (ino, offset) == (16, position)
        position += len(data)
    assert found_writes[-1] == writes[1]


def test_a_small_record_is_one_frame() -> None:
    assert split_record(7, [CHUNK], [DELTA]) == [JournalFrame(7, 0, False, [CHUNK], [DELTA])]
    assert split_record(7, [], []) == [JournalFrame(7, 0, False, [], [])]


@pytest.mark.parametrize(
    'change',
    [{'codec': None}, {'codec': 77}, {'id': b''}, {'pack_name': None}, {'offset': 1}, {'kind': True}],
)
def test_a_chunk_that_could_not_be_read_back_does_not_leave(change: dict[str, Any]) -> None:
    with pytest.raises(AssertionError, match='P5'):
        split_record(1, [CHUNK._replace(**change)], [])
