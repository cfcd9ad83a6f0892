"""L1 journal: what an fsync makes durable without a commit. Pure; safe from any thread; decoding is lazy.

Specification. A journal file is a block of 4,096 bytes, then frames, back to back, then whatever an earlier
use of the file left there (or zeros). The block: these 48 bytes, then zeros.

====== ====== ============== ====================================================================
offset bytes  block field    meaning
====== ====== ============== ====================================================================
0      8      magic          ``snapfsJN``
8      2      version        1
10     2      reserved       0
12     16     store uuid
28     8      file number    0 or 1, as the file is called
36     8      first sequence frames with a lower sequence are not part of this file any more
44     4      CRC            of bytes 0 to 43
====== ====== ============== ====================================================================

====== ====== ============== ====================================================================
offset bytes  frame field    meaning
====== ====== ============== ====================================================================
0      4      magic          ``SfJ1``
4      4      body length    bytes of body that follow the frame's header; frame at most 1,048,576 bytes
8      8      sequence       of the record this frame belongs to
16     4      part           0, 1, 2, … within the record
20     1      more           1: another part follows; 0: this is the record's last
21     3      reserved       0
24     16     store uuid
40     4      CRC            of bytes 0 to 39 and of the body
====== ====== ============== ====================================================================

A record is frames part 0 to n of the same sequence, all but the last with more = 1. It counts only when
complete. Sequences ascend from record to record, gaps allowed. Reading stops, without an error, at the
first frame that does not fit: wrong magic, uuid, length or CRC, a part that does not follow, a sequence
that does not ascend. That is how a torn tail and the leavings of earlier use look. A frame with a good CRC
whose body is malformed is Corrupt: that cannot be a torn write, and stopping there would lose what fsync
promised (P5).

Rule for writers: a run of the program begins above every sequence that any earlier run *may* have written,
seen or not (a torn record may be followed, further on, by a frame that survived). Else a new record as long
as a torn one would be continued by an old one. So a run makes its first sequence durable in a block before
it appends.

The body is a stream (stream.py) of: number of chunks, number of volumes; per chunk an array of 7; per volume:

    volume, next ino, number of ranges R, of items I, of drops D, of writes W   (6 elements)
    R × (lo, hi)                    2 bin elements each, lo < hi
I × (key, value)                2 elements each; the value with ids in place (items.py), nil = no longer
there
    D × (ino, start, end)           3 elements each, bytes
    W × (ino, offset, bytes)        3 elements each, bytes not empty

A chunk: id, kind, pack name, offset of its record, stored length, plain length, codec. All parts of a
record are replayed in order, and within a volume: delete all items in the ranges; set or delete the items;
discard buffered file bytes in the drops; buffer the written bytes. A record may mention a volume several
times.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple

from crc32c import crc32c

from snapfs import errors, limits
from snapfs.format.codec import Codec
from snapfs.format.crcs import RangeCrcs
from snapfs.format.ids import Buffer
from snapfs.format.items import Value, check_item, item_size
from snapfs.format.keys import KEY_BYTES_MAX, decode_key
from snapfs.format.packs import PACK_HEADER_BYTES
from snapfs.format.records import RecordKind, check_lengths
from snapfs.format.stream import pack_stream, unpack_stream


class JournalHeader(NamedTuple):
    """The block a journal file begins with. Sequences below `first_sequence` do not count."""

    store_uuid: bytes
    file_number: int
    first_sequence: int = 0


class NewChunk(NamedTuple):
    """A chunk in a pack, durable, but not yet in the catalog. `offset` is that of its record's header."""

    id: bytes
    kind: int
    pack_name: bytes
    offset: int
    stored_length: int
    plain_length: int
    codec: int


@dataclass(frozen=True, slots=True)
class VolumeDelta:
    """What changed in one volume. Replayed in the order of the fields: ranges, items, drops, writes."""

    volume: int
    next_ino: int
    ranges: Sequence[tuple[bytes, bytes]] = ()
    items: Sequence[tuple[bytes, Value | None]] = ()
    drops: Sequence[tuple[int, int, int]] = ()
    writes: Sequence[tuple[int, int, bytes]] = ()


@dataclass(frozen=True, slots=True)
class JournalFrame:
    """One part of a record; `more` says that another follows."""

    sequence: int
    part: int = 0
    more: bool = False
    chunks: Sequence[NewChunk] = ()
    volumes: Sequence[VolumeDelta] = ()


class PlacedFrame(NamedTuple):
    """A frame and where it lies in the buffer: bytes offset to end."""

    offset: int
    end: int
    frame: JournalFrame


class FramePlace(NamedTuple):
    """Which part of which record a frame is; `more` says that another follows."""

    sequence: int
    part: int
    more: bool


JOURNAL_MAGIC = b'snapfsJN'
FRAME_MAGIC = b'SfJ1'
_FRAME_START = re.compile(re.escape(FRAME_MAGIC))
_BLOCK = struct.Struct('>8sHH16sQQ')
_FRAME = struct.Struct('>4sIQIB3s16s')
_CRC = struct.Struct('>I')
JOURNAL_HEADER_BYTES = limits.JOURNAL_HEADER_BYTES
FRAME_HEADER_BYTES = _FRAME.size + _CRC.size
FRAME_BODY_BYTES_MAX = limits.JOURNAL_FRAME_BYTES_MAX - FRAME_HEADER_BYTES
_CHUNK_FIELDS = 7
_CHUNK_SIZE = 1 + 34 + 1 + 18 + 9 + 5 + 5 + 1
_RANGE_SIZE = 2 * (KEY_BYTES_MAX + 3)
_NUMBER_SIZE = 9
_POSITION_MAX = 1 << 63
_CODECS = frozenset(int(codec) for codec in Codec)
_KINDS = frozenset(int(kind) for kind in RecordKind)

assert FRAME_HEADER_BYTES == 44
assert _BLOCK.size + _CRC.size == 48 <= JOURNAL_HEADER_BYTES


def encode_journal_header(header: JournalHeader) -> bytes:
    """Return the block a journal file begins with, JOURNAL_HEADER_BYTES long."""
    assert len(header.store_uuid) == limits.UUID_BYTES
    fields = _BLOCK.pack(
        JOURNAL_MAGIC,
        limits.FORMAT_VERSION,
        0,
        header.store_uuid,
        header.file_number,
        header.first_sequence,
    )
    return (fields + _CRC.pack(crc32c(fields))).ljust(JOURNAL_HEADER_BYTES, b'\0')


def decode_journal_header(buffer: Buffer) -> JournalHeader:
    """Return the checked block of a journal file (more bytes may follow it). Raises Corrupt."""
    if len(buffer) < JOURNAL_HEADER_BYTES:
        raise errors.Corrupt(f'journal: {len(buffer)} bytes where a block of {JOURNAL_HEADER_BYTES} stands')
    magic, version, reserved, store_uuid, file_number, first_sequence = _BLOCK.unpack_from(buffer)
    if magic != JOURNAL_MAGIC:
        raise errors.Corrupt(f'journal: wrong magic {magic.hex()}')
    if version != limits.FORMAT_VERSION:
        raise errors.Corrupt(f'journal: format version {version} is not {limits.FORMAT_VERSION}')
    if _CRC.unpack_from(buffer, _BLOCK.size)[0] != crc32c(buffer[: _BLOCK.size]):
        raise errors.Corrupt('journal: wrong CRC of the block')
    if reserved or file_number > 1 or any(buffer[_BLOCK.size + _CRC.size : JOURNAL_HEADER_BYTES]):
        raise errors.Corrupt(f'journal: file number {file_number}, or reserved bytes that are not zero')
    return JournalHeader(store_uuid, file_number, first_sequence)


def is_cut_journal_header(buffer: Buffer, store_uuid: bytes, file_number: int) -> bool:
    """Return whether all but the first sequence and the CRC of a block is as it must be: a write of it that
    was cut off, over an older block of the same file, leaves that."""
    if len(buffer) < JOURNAL_HEADER_BYTES:
        return False
    *fixed, _ = _BLOCK.unpack_from(buffer)
    good = fixed == [JOURNAL_MAGIC, limits.FORMAT_VERSION, 0, store_uuid, file_number]
    return good and not any(buffer[_BLOCK.size + _CRC.size : JOURNAL_HEADER_BYTES])


def encode_frame(frame: JournalFrame, store_uuid: bytes) -> bytes:
    """Return the bytes of one frame: at most JOURNAL_FRAME_BYTES_MAX, which `split_record` sees to."""
    assert len(store_uuid) == limits.UUID_BYTES
    stream: list[Any] = [len(frame.chunks), len(frame.volumes)]
    stream += frame.chunks
    for delta in frame.volumes:
        counts = len(delta.ranges), len(delta.items), len(delta.drops), len(delta.writes)
        stream += (delta.volume, delta.next_ino, *counts)
        for rows in (delta.ranges, delta.items, delta.drops, delta.writes):
            stream += chain.from_iterable(rows)
    body = pack_stream(stream)
    assert len(body) <= FRAME_BODY_BYTES_MAX, f'a frame with {len(body)} bytes of body'
    fields = _FRAME.pack(
        FRAME_MAGIC, len(body), frame.sequence, frame.part, frame.more, b'\0\0\0', store_uuid
    )
    return b''.join((fields, _CRC.pack(crc32c(body, crc32c(fields))), body))


def scan_frames(
    buffer: Buffer, store_uuid: bytes, offset: int = 0, first_sequence: int = 0
) -> Iterator[PlacedFrame]:
    """Yield the frames from `offset` on, with their places, until the first that does not fit.

    Raises Corrupt only for a frame with a good CRC and a malformed body.
    """
    view = memoryview(buffer)
    previous: JournalFrame | None = None
    while True:
        found = _decode_frame_header(view, store_uuid, offset)
        if found is None:
            return
        sequence, part, more, body = found
        if previous is not None and previous.more:
            fits = sequence == previous.sequence and part == previous.part + 1
        else:
            fits = part == 0 and sequence >= first_sequence
            fits = fits and (previous is None or sequence > previous.sequence)
        if not fits:
            return
        previous = _decode_body(sequence, part, more, body)
        end = offset + FRAME_HEADER_BYTES + len(body)
        yield PlacedFrame(offset, end, previous)
        offset = end


def decode_frames(
    buffer: Buffer, store_uuid: bytes, offset: int = 0, first_sequence: int = 0
) -> Iterator[JournalFrame]:
    """Yield the frames from `offset` on until the first that does not fit; see `scan_frames`."""
    for placed in scan_frames(buffer, store_uuid, offset, first_sequence):
        yield placed.frame


def decode_records(
    buffer: Buffer, store_uuid: bytes, offset: int = 0, first_sequence: int = 0
) -> Iterator[list[JournalFrame]]:
    """Yield the complete records from `offset` on, each as its frames in order; see `scan_frames`."""
    parts: list[JournalFrame] = []
    for frame in decode_frames(buffer, store_uuid, offset, first_sequence):
        parts.append(frame)
        if not frame.more:
            yield parts
            parts = []


def peek_frame(buffer: Buffer, store_uuid: bytes, offset: int) -> tuple[int, int] | None:
    """Return (sequence, part) of what begins like a frame of this store at `offset`, whole or not;
    None when nothing does. For tools that say why reading stopped; nothing else may go by it."""
    if len(buffer) < offset + FRAME_HEADER_BYTES:
        return None
    magic, _, sequence, part, _, _, uuid = _FRAME.unpack_from(buffer, offset)
    return (sequence, part) if magic == FRAME_MAGIC and uuid == store_uuid else None


def find_frames(buffer: Buffer, store_uuid: bytes, offset: int) -> Iterator[tuple[int, int, FramePlace]]:
    """Yield (offset, end, place) of every whole frame of this store from `offset` on, wherever it begins.

    For the question what else there is behind the place where reading stopped. A frame counts as whole by its
    CRC, and the store's uuid, which only its owner can read, keeps contents of files from posing as one;
    inside a whole frame nothing is looked for. Takes time in proportion to the buffer, whatever is in it.
    """
    view = memoryview(buffer)
    crcs = RangeCrcs(view)
    while (found := _FRAME_START.search(view, offset)) is not None:
        offset = found.start()
        frame = _decode_frame_header(view, store_uuid, offset, crcs)
        if frame is None:
            offset += 1
            continue
        sequence, part, more, body = frame
        end = offset + FRAME_HEADER_BYTES + len(body)
        yield offset, end, FramePlace(sequence, part, more)
        offset = end


def _decode_frame_header(
    view: memoryview, store_uuid: bytes, offset: int, crcs: RangeCrcs | None = None
) -> tuple[int, int, bool, memoryview] | None:
    """Return (sequence, part, more, body), or None when no good frame of this store stands at `offset`."""
    body_start = offset + FRAME_HEADER_BYTES
    if len(view) < body_start:
        return None
    magic, length, sequence, part, more, reserved, uuid = _FRAME.unpack_from(view, offset)
    if magic != FRAME_MAGIC or uuid != store_uuid or more > 1 or reserved != b'\0\0\0':
        return None
    if length > FRAME_BODY_BYTES_MAX or len(view) < body_start + length:
        return None
    body = view[body_start : body_start + length]
    crc = crc32c(view[offset : offset + _FRAME.size])
    crc = crcs.crc(body_start, body_start + length, crc) if crcs is not None else crc32c(body, crc)
    if _CRC.unpack_from(view, offset + _FRAME.size)[0] != crc:
        return None
    return sequence, part, bool(more), body


class _Cursor:
    """Takes elements from a decoded stream, one run of numbers or of rows at a time."""

    __slots__ = ('elements', 'position')

    def __init__(self, elements: list[Any]) -> None:
        self.elements = elements
        self.position = 0

    def take(self, count: int) -> list[Any]:
        taken = self.elements[self.position : self.position + count]
        if len(taken) != count:
            raise errors.Corrupt('journal: a frame ends before what it announces')
        self.position += count
        return taken

    def numbers(self, count: int) -> list[int]:
        taken = self.take(count)
        if set(map(type, taken)) != {int} or min(taken) < 0:
            raise errors.Corrupt('journal: a frame without the numbers that must stand there')
        return taken

    def rows(self, count: int, columns: int) -> list[tuple[Any, ...]]:
        taken = self.take(count * columns)
        return list(zip(*[iter(taken)] * columns, strict=True))


def _decode_body(sequence: int, part: int, more: bool, body: Buffer) -> JournalFrame:
    cursor = _Cursor(unpack_stream(body, None, 'journal'))
    chunk_count, volume_count = cursor.numbers(2)
    chunks = [_decode_chunk(row) for row in cursor.take(chunk_count)]
    volumes = []
    for _ in range(volume_count):
        volumes.append(_decode_delta(cursor))
    if cursor.position != len(cursor.elements):
        raise errors.Corrupt('journal: a frame with more than it announces')
    return JournalFrame(sequence, part, more, chunks, volumes)


def _decode_chunk(row: Any) -> NewChunk:
    if type(row) is not tuple or len(row) != _CHUNK_FIELDS:
        raise errors.Corrupt('journal: a malformed chunk')
    chunk = NewChunk(*row)
    oddity = _chunk_oddity(chunk)
    if oddity is not None:
        raise errors.Corrupt(f'journal: a chunk {oddity}')
    check_lengths(chunk.codec, chunk.stored_length, chunk.plain_length)
    return chunk


def _chunk_oddity(chunk: NewChunk) -> str | None:
    """Say what is wrong with a chunk that a frame brings; None for nothing."""
    if type(chunk.id) is not bytes or len(chunk.id) != limits.ID_BYTES:
        return 'without an id'
    if type(chunk.pack_name) is not bytes or len(chunk.pack_name) != limits.PACK_NAME_BYTES:
        return 'without a pack name'
    numbers = (chunk.kind, chunk.offset, chunk.stored_length, chunk.plain_length, chunk.codec)
    if not all(isinstance(one, int) and type(one) is not bool for one in numbers) or min(numbers) < 0:
        return 'without the numbers that must stand there'
    if chunk.kind not in _KINDS or chunk.codec not in _CODECS or chunk.offset < PACK_HEADER_BYTES:
        return f'of kind {chunk.kind}, codec {chunk.codec}, offset {chunk.offset}'
    return None


def _decode_delta(cursor: _Cursor) -> VolumeDelta:
    volume, next_ino, *counts = cursor.numbers(6)
    ranges = cursor.rows(counts[0], 2)
    items = cursor.rows(counts[1], 2)
    drops = cursor.rows(counts[2], 3)
    writes = cursor.rows(counts[3], 3)
    if not 0 < next_ino <= limits.INO_MAX + 1:
        raise errors.Corrupt(f'journal: next inode number {next_ino}')
    for lo, hi in ranges:
        if (
            type(lo) is not bytes
            or type(hi) is not bytes
            or not len(lo) <= KEY_BYTES_MAX >= len(hi)
            or lo >= hi
        ):
            raise errors.Corrupt('journal: a malformed range')
    for key, value in items:
        if value is not None:
            check_item(key, value)
        elif type(key) is not bytes:
            raise errors.Corrupt('journal: a key is not bytes')
        else:
            decode_key(key)
    for row in chain(drops, (write[:2] for write in writes)):
        if set(map(type, row)) != {int} or not 0 < row[0] <= limits.INO_MAX or row[1] < 0:
            raise errors.Corrupt('journal: a malformed drop or write')
    for _, start, end in drops:
        if not start <= end <= _POSITION_MAX:
            raise errors.Corrupt('journal: a malformed drop')
    for _, start, data in writes:
        if type(data) is not bytes or not data or start + len(data) > limits.FILE_BYTES_MAX:
            raise errors.Corrupt('journal: a malformed write')
    return VolumeDelta(volume, next_ino, ranges, items, drops, writes)


class _Splitter:
    """Fills frames with pieces of a record, up to JOURNAL_FRAME_BYTES_TARGET each."""

    def __init__(self, sequence: int) -> None:
        self.sequence = sequence
        self.frames: list[JournalFrame] = []
        self.chunks: list[NewChunk] = []
        self.volumes: list[VolumeDelta] = []
        self.size = 0

    def flush(self, more: bool) -> None:
        self.frames.append(JournalFrame(self.sequence, len(self.frames), more, self.chunks, self.volumes))
        self.chunks, self.volumes, self.size = [], [], 0

    def add_chunk(self, chunk: NewChunk) -> None:
        # Before it leaves: what cannot be read back would take every record behind it along (P5).
        oddity = _chunk_oddity(chunk)
        assert oddity is None, f'P5: the journal would bring a chunk {oddity}'
        if self.size + _CHUNK_SIZE > limits.JOURNAL_FRAME_BYTES_TARGET:
            self.flush(more=True)
        self.chunks.append(chunk)
        self.size += _CHUNK_SIZE

    def add_volume(self, delta: VolumeDelta) -> None:
        lists: tuple[list[Any], list[Any], list[Any], list[Any]] = ([], [], [], [])
        if self.size + 6 * _NUMBER_SIZE > limits.JOURNAL_FRAME_BYTES_TARGET:
            self.flush(more=True)
        self.size += 6 * _NUMBER_SIZE
        for which, size, row in _sized_rows(delta):
            if self.size + size > limits.JOURNAL_FRAME_BYTES_TARGET:
                self.volumes.append(VolumeDelta(delta.volume, delta.next_ino, *lists))
                self.flush(more=True)
                lists = ([], [], [], [])
                self.size = 6 * _NUMBER_SIZE
            lists[which].append(row)
            self.size += size
        self.volumes.append(VolumeDelta(delta.volume, delta.next_ino, *lists))


def _sized_rows(delta: VolumeDelta) -> Iterator[tuple[int, int, Any]]:
    """Yield (which list, about how many bytes, row) in the order of replay; long writes in pieces."""
    for bounds in delta.ranges:
        yield 0, _RANGE_SIZE, bounds
    for item in delta.items:
        key, value = item
        yield 1, len(key) + 4 if value is None else item_size(key, value), item
    for drop in delta.drops:
        yield 2, 3 * _NUMBER_SIZE, drop
    for ino, offset, data in delta.writes:
        for start in range(0, len(data), limits.JOURNAL_INLINE_BYTES_MAX):
            piece = data[start : start + limits.JOURNAL_INLINE_BYTES_MAX]
            yield 3, 2 * _NUMBER_SIZE + 5 + len(piece), (ino, offset + start, piece)


def split_record(
    sequence: int, chunks: Sequence[NewChunk], volumes: Sequence[VolumeDelta]
) -> list[JournalFrame]:
    """Return the frames of one record, each small enough for `encode_frame`; in order they are the whole."""
    splitter = _Splitter(sequence)
    for chunk in chunks:
        splitter.add_chunk(chunk)
    for delta in volumes:
        splitter.add_volume(delta)
    splitter.flush(more=False)
    return splitter.frames


def encode_record_frames(
    sequence: int, chunks: Sequence[NewChunk], volumes: Sequence[VolumeDelta], store_uuid: bytes
) -> list[bytes]:
    """Return the encoded frames of one record, to be appended in order."""
    return [encode_frame(frame, store_uuid) for frame in split_record(sequence, chunks, volumes)]
