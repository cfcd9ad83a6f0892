"""Ids, codec and records: what is written, what comes back, what is refused."""

from __future__ import annotations

import sys

import pytest
from blake3 import blake3
from crc32c import crc32c

from snapfs import limits
from snapfs.errors import Corrupt
from snapfs.format import ids, records
from snapfs.format.codec import Codec, Compressor, decompress
from snapfs.format.records import HEADER_BYTES, RecordKind

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

TEXT = b'some text, again and again, ' * 100
NOISE = b''.join(ids.data_id(bytes([number])) for number in range(100))


def frame(plain: bytes, **options: int) -> bytes:
    """Return a Zstandard frame made without our own module."""
    parameters: dict[int, int] = {zstd.CompressionParameter[name]: value for name, value in options.items()}
    compressor = zstd.ZstdCompressor(options=parameters)
    return bytes(compressor.compress(plain, zstd.ZstdCompressor.FLUSH_FRAME))


def test_ids_are_blake3_and_kinds_never_meet() -> None:
    assert ids.data_id(TEXT) == blake3(TEXT).digest() == ids.chunk_id(RecordKind.DATA, TEXT)
    assert ids.node_id(TEXT) == ids.chunk_id(RecordKind.NODE, TEXT)
    assert ids.node_id(TEXT) != ids.data_id(TEXT)
    assert ids.node_id(memoryview(TEXT)) == ids.node_id(bytearray(TEXT)) == ids.node_id(TEXT)
    with pytest.raises(Corrupt, match='kind 3'):
        ids.chunk_id(3, TEXT)


def test_compressing_must_save_a_sixteenth() -> None:
    compressor = Compressor()
    used, stored = compressor.compress(TEXT)
    assert used is Codec.ZSTD
    assert len(stored) <= len(TEXT) * 15 // 16
    assert decompress(Codec.ZSTD, stored, len(TEXT)) == TEXT
    for plain in (NOISE, b'', b'a' * (limits.COMPRESS_BYTES_MIN - 1)):
        used, stored = compressor.compress(plain)
        assert used is Codec.PLAIN
        assert stored is plain
    # Noise with a tail that compresses to less than a sixteenth of the whole stays plain; more does not.
    assert compressor.compress(NOISE + b'a' * 150)[0] is Codec.PLAIN
    assert compressor.compress(NOISE + b'a' * 400)[0] is Codec.ZSTD


def noise(number: int, length: int) -> bytes:
    return blake3(b'noise %d' % number).digest(length=length)


def test_after_data_that_does_not_compress_a_piece_is_tried_first() -> None:
    compressor, length = Compressor(), 32_768
    # Compresses as a whole, but not in the middle: it tells which of the two was tried.
    odd = noise(0, length - 8192) + bytes(8192)
    for number in range(limits.COMPRESS_FAILURES_PROBE):
        assert compressor.compress(odd)[0] is Codec.ZSTD
        assert compressor.compress(noise(number, length))[0] is Codec.PLAIN
    for number in range(limits.COMPRESS_FAILURES_PROBE):
        assert compressor.compress(noise(number, length))[0] is Codec.PLAIN
    assert compressor.compress(odd) == (Codec.PLAIN, odd)
    assert compressor.compress(odd[:8192][-4096:] + bytes(4096))[0] is Codec.ZSTD  # small: tried whole
    for number in range(limits.COMPRESS_FAILURES_PROBE):
        assert compressor.compress(noise(number, length))[0] is Codec.PLAIN
    # What compresses in its middle is compressed at once, and what follows it is tried whole again.
    assert compressor.compress(memoryview((TEXT * 20)[:length]))[0] is Codec.ZSTD
    assert compressor.compress(odd)[0] is Codec.ZSTD
    # However long the row, the whole is tried every so often.
    for number in range(limits.COMPRESS_FAILURES_RETRY):
        assert compressor.compress(noise(number, length))[0] is Codec.PLAIN
    assert compressor.compress(odd)[0] is Codec.ZSTD


@pytest.mark.parametrize('length', [128, 129, 1000, 32_768, 131_071, 131_072])
def test_every_length_comes_back(length: int) -> None:
    plain = (TEXT * (length // len(TEXT) + 1))[:length]
    used, stored = Compressor().compress(memoryview(plain))
    assert used is Codec.ZSTD
    assert decompress(used, memoryview(stored), length) == plain


@pytest.mark.parametrize(
    ('used', 'stored', 'plain_length', 'message'),
    [
        (Codec.PLAIN, b'abc', 2, '3 bytes stored plain'),
        (2, b'abc', 3, 'codec 2'),
        (Codec.ZSTD, b'', 3, '0 bytes decompressed'),
        (Codec.ZSTD, b'abc', 3, 'not a Zstandard frame'),
        (Codec.ZSTD, b'abcdefgh', 3, 'not a Zstandard frame'),
        (Codec.ZSTD, frame(TEXT), len(TEXT) - 1, 'does not end'),
        (Codec.ZSTD, frame(TEXT), len(TEXT) + 1, 'expected'),
        (Codec.ZSTD, frame(TEXT)[:-1], len(TEXT), 'expected|does not end'),
        (Codec.ZSTD, frame(TEXT) + b'\0', len(TEXT), 'follow'),
        (Codec.ZSTD, frame(TEXT), limits.PLAIN_BYTES_MAX + 1, 'limit'),
        (Codec.ZSTD, frame(TEXT), -1, 'limit'),
        (Codec.ZSTD, frame(bytes(1 << 24)), 1000, 'not a Zstandard frame|does not end'),
    ],
)
def test_payload_refused(used: int, stored: bytes, plain_length: int, message: str) -> None:
    with pytest.raises(Corrupt, match=message):
        decompress(used, stored, plain_length)


def test_a_frame_with_a_large_window_is_refused_before_it_takes_memory() -> None:
    compressor = zstd.ZstdCompressor(options={zstd.CompressionParameter.window_log: 27})
    data = (
        compressor.compress(b'a') + compressor.flush()
    )  # streamed: the frame names its window, not its size
    with pytest.raises(Corrupt, match='not a Zstandard frame'):
        decompress(Codec.ZSTD, data, 1)
    assert zstd.decompress(data) == b'a'


@pytest.mark.parametrize('plain', [b'', b'x', TEXT, NOISE])
@pytest.mark.parametrize('kind', list(RecordKind))
def test_record_comes_back(kind: RecordKind, plain: bytes) -> None:
    id = ids.chunk_id(kind, plain)
    header_bytes, payload = records.encode_record(kind, id, plain, Compressor())
    assert len(header_bytes) == HEADER_BYTES
    header = records.decode_header(b'before' + header_bytes + payload, 6)
    assert (header.kind, header.id, header.plain_length) == (kind, id, len(plain))
    assert header.stored_length == len(payload)
    assert records.decode_payload(header, payload) == plain


def sealed_header(offset: int, patch: bytes) -> bytes:
    header = records.encode_record(1, ids.data_id(TEXT), TEXT, Compressor())[0]
    fields = header[:offset] + patch + header[offset + len(patch) : -4]
    return fields + crc32c(fields).to_bytes(4, 'big')


@pytest.mark.parametrize(
    ('offset', 'patch', 'message'),
    [
        (0, b'?', 'magic'),
        (4, b'\0', 'unknown kind 0'),
        (4, b'\3', 'unknown kind 3'),
        (5, b'\2', 'codec 2'),
        (7, b'\1', 'reserved 1'),
        (8, b'\xff' * 4, 'stored length'),
        (12, b'\0\2\0\1', 'plain length 131073'),
        (12, b'\0\0\0\1', 'stored length'),
        (5, b'\0', 'stored length'),
    ],
)
def test_record_header_refuses(offset: int, patch: bytes, message: str) -> None:
    with pytest.raises(Corrupt, match=message):
        records.decode_header(sealed_header(offset, patch))


def test_record_header_too_short_or_outside() -> None:
    header = sealed_header(0, b'')
    for buffer, offset in ((header[:-1], 0), (header, 1), (header, -1), (header, 1000), (b'', 0)):
        with pytest.raises(Corrupt, match='where a header'):
            records.decode_header(buffer, offset)
    with pytest.raises(Corrupt, match='CRC'):
        records.decode_header(header[:20] + bytes([header[20] ^ 1]) + header[21:])


def test_payload_of_another_chunk_is_corrupt() -> None:
    id = ids.data_id(NOISE)
    header_bytes, payload = records.encode_record(RecordKind.DATA, id, NOISE, Compressor())
    header = records.decode_header(header_bytes)
    with pytest.raises(Corrupt, match='another id'):
        records.decode_payload(header, bytes(payload[:-1]) + b'?')
    with pytest.raises(Corrupt, match='another id'):
        records.decode_payload(header._replace(kind=RecordKind.NODE), payload)
    with pytest.raises(Corrupt, match='payload bytes'):
        records.decode_payload(header, payload[:-1])
