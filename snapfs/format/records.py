"""L1 records: a chunk as it lies in a pack. Pure; safe from any thread, a Compressor by its own thread only.

Specification. A record is a header of 52 bytes, then the payload (`stored length` bytes). Records stand
back to back.

====== ====== ============= ==================================================================
offset bytes  field         meaning
====== ====== ============= ==================================================================
0      4      magic         ``SfR1``
4      1      kind          1 DATA, 2 NODE
5      1      codec         0 PLAIN, 1 ZSTD (codec.py)
6      2      reserved      0
8      4      stored length bytes of payload that follow
12     4      plain length  bytes after decompression, at most 131,072
16     32     id            of the plain bytes, by kind (ids.py)
48     4      CRC           of bytes 0 to 47
====== ====== ============= ==================================================================

The payload has no checksum of its own: its id is one. A record is good when its header's CRC is, and the
decompressed payload has the id that the header names. The header alone is enough to rebuild an index.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from crc32c import crc32c

from snapfs import errors, limits
from snapfs.format.codec import Codec, Compressor, decompress
from snapfs.format.ids import Buffer, chunk_id
from snapfs.format.ids import RecordKind as RecordKind


class RecordHeader(NamedTuple):
    """The header of one record, checked. Lengths in bytes."""

    kind: RecordKind
    codec: Codec
    stored_length: int
    plain_length: int
    id: bytes


RECORD_MAGIC = b'SfR1'
_FIELDS = struct.Struct('>4sBBHII32s')
_CRC = struct.Struct('>I')
HEADER_BYTES = _FIELDS.size + _CRC.size
_KINDS = {int(kind): kind for kind in RecordKind}
_CODECS = {int(codec): codec for codec in Codec}

assert HEADER_BYTES == limits.RECORD_HEADER_BYTES


def encode_record(kind: int, id: bytes, plain: Buffer, compressor: Compressor) -> tuple[bytes, Buffer]:
    """Return (header, payload), which joined are the record. The payload may be `plain` itself."""
    assert len(id) == limits.ID_BYTES
    assert len(plain) <= limits.PLAIN_BYTES_MAX
    codec, payload = compressor.compress(plain)
    fields = _FIELDS.pack(RECORD_MAGIC, kind, codec, 0, len(payload), len(plain), id)
    return fields + _CRC.pack(crc32c(fields)), payload


def decode_header(buffer: Buffer, offset: int = 0) -> RecordHeader:
    """Return the checked header at `offset`. Raises Corrupt. Does not look at the payload."""
    if offset < 0 or len(buffer) - offset < HEADER_BYTES:
        raise errors.Corrupt(
            f'record: {max(len(buffer) - offset, 0)} bytes where a header of {HEADER_BYTES} stands'
        )
    magic, kind, codec, reserved, stored, plain, id = _FIELDS.unpack_from(buffer, offset)
    if magic != RECORD_MAGIC:
        raise errors.Corrupt(f'record: wrong magic {magic.hex()}')
    fields_end = offset + _FIELDS.size
    if _CRC.unpack_from(buffer, fields_end)[0] != crc32c(buffer[offset:fields_end]):
        raise errors.Corrupt('record: wrong CRC of the header')
    record_kind, record_codec = _KINDS.get(kind), _CODECS.get(codec)
    if record_kind is None or record_codec is None or reserved:
        raise errors.Corrupt(f'record: unknown kind {kind}, codec {codec} or reserved {reserved}')
    check_lengths(codec, stored, plain)
    return RecordHeader(record_kind, record_codec, stored, plain, id)


def check_lengths(codec: int, stored: int, plain: int) -> None:
    """Raise Corrupt unless a payload of this codec can have these two lengths."""
    if plain > limits.PLAIN_BYTES_MAX:
        raise errors.Corrupt(f'record: plain length {plain}, limit {limits.PLAIN_BYTES_MAX}')
    if stored != plain if codec == Codec.PLAIN else stored >= plain:
        raise errors.Corrupt(f'record: stored length {stored} cannot be, with plain length {plain}')


def decode_payload(header: RecordHeader, payload: Buffer) -> bytes:
    """Return the plain bytes of the payload, verified against the id in the header. Raises Corrupt."""
    if len(payload) != header.stored_length:
        raise errors.Corrupt(
            f'record {header.id.hex()}: {len(payload)} of {header.stored_length} payload bytes'
        )
    plain = decompress(header.codec, payload, header.plain_length)
    if chunk_id(header.kind, plain) != header.id:
        raise errors.Corrupt(f'record {header.id.hex()}: the payload has another id')
    return plain
