"""L1 packs: the frame of a pack file, header and footer. Pure; safe from any thread.

Specification. A pack file is

    header (48 bytes) · records, back to back (records.py) · index · trailer (48 bytes), which ends the file

An open pack has no index and no trailer yet: it ends with a record, or after a crash with the beginning of
one.

====== ====== ============= =====================================================================
offset bytes  header field  meaning
====== ====== ============= =====================================================================
0      8      magic         ``snapfsPK``
8      2      version       1
10     1      kind          of every record in this pack: 1 DATA, 2 NODE
11     1      reserved      0
12     16     store uuid
28     16     pack name     the file's name in binary (the file is called by its 32 hexadecimal digits)
44     4      CRC           of bytes 0 to 43
====== ====== ============= =====================================================================

The index has one entry of 49 bytes per record, in the order of the records:

====== ====== ============= =====================================================================
0      32     id
32     8      offset        of the record's header, in bytes from the beginning of the file
40     4      stored length
44     4      plain length
48     1      codec
====== ====== ============= =====================================================================

Entries do not overlap: an offset is at least the previous one + 52 + the previous stored length.

====== ====== ============= =====================================================================
offset bytes  trailer field meaning
====== ====== ============= =====================================================================
0      8      magic         ``snapfsPE``
8      4      records       number of entries in the index
12     8      index offset  where the index begins; the file has index offset + 49 × records + 48 bytes
20     16     pack name     as in the header
36     4      reserved      0
40     4      index CRC     of the index
44     4      CRC           of bytes 0 to 43
====== ====== ============= =====================================================================

To read the footer of a file: the last 48 bytes, `footer_offset` of them, then everything from there on,
`decode_footer`. The footer is a copy of what the record headers say; where it is damaged, scanning the
records replaces it.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

from crc32c import crc32c

from snapfs import errors, limits
from snapfs.format.codec import Codec
from snapfs.format.ids import Buffer
from snapfs.format.records import HEADER_BYTES, RecordKind, check_lengths


class PackHeader(NamedTuple):
    """The first bytes of a pack: whose it is, what it is called, which kind of record it holds."""

    store_uuid: bytes
    name: bytes
    kind: RecordKind


class PackEntry(NamedTuple):
    """One record of a pack, as the footer lists it. `offset` is that of the record's header in the file."""

    id: bytes
    offset: int
    stored_length: int
    plain_length: int
    codec: int


PACK_MAGIC = b'snapfsPK'
TRAILER_MAGIC = b'snapfsPE'
_HEADER = struct.Struct('>8sHBB16s16s')
_ENTRY = struct.Struct('>32sQIIB')
_TRAILER = struct.Struct('>8sIQ16sII')
_CRC = struct.Struct('>I')
PACK_HEADER_BYTES = _HEADER.size + _CRC.size
ENTRY_BYTES = _ENTRY.size
TRAILER_BYTES = _TRAILER.size + _CRC.size
_CODECS = frozenset(int(codec) for codec in Codec)

assert (PACK_HEADER_BYTES, ENTRY_BYTES, TRAILER_BYTES) == (48, 49, 48)


def encode_pack_header(header: PackHeader) -> bytes:
    """Return the 48 bytes a pack file begins with."""
    assert len(header.store_uuid) == limits.UUID_BYTES
    assert len(header.name) == limits.PACK_NAME_BYTES
    fields = _HEADER.pack(PACK_MAGIC, limits.FORMAT_VERSION, header.kind, 0, header.store_uuid, header.name)
    return fields + _CRC.pack(crc32c(fields))


def decode_pack_header(buffer: Buffer) -> PackHeader:
    """Return the checked header of a pack from its first 48 bytes (more may follow). Raises Corrupt."""
    if len(buffer) < PACK_HEADER_BYTES:
        raise errors.Corrupt(f'pack: {len(buffer)} bytes where a header of {PACK_HEADER_BYTES} stands')
    magic, version, kind, reserved, store_uuid, name = _HEADER.unpack_from(buffer)
    if magic != PACK_MAGIC:
        raise errors.Corrupt(f'pack: wrong magic {magic.hex()}')
    # The version comes first: nobody knows where the next version keeps its CRC.
    if version != limits.FORMAT_VERSION:
        raise errors.Corrupt(f'pack: format version {version} is not {limits.FORMAT_VERSION}')
    if _CRC.unpack_from(buffer, _HEADER.size)[0] != crc32c(buffer[: _HEADER.size]):
        raise errors.Corrupt('pack: wrong CRC of the header')
    if kind not in (RecordKind.DATA, RecordKind.NODE) or reserved:
        raise errors.Corrupt(f'pack: unknown kind {kind} or reserved {reserved}')
    return PackHeader(store_uuid, name, RecordKind(kind))


def encode_footer(entries: Sequence[PackEntry], index_offset: int, name: bytes) -> bytes:
    """Return index and trailer, to be written at `index_offset`, the end of the last record of this pack."""
    assert len(name) == limits.PACK_NAME_BYTES
    assert len(entries) <= limits.PACK_RECORDS_MAX
    pack_entry = _ENTRY.pack
    index = b''.join([pack_entry(*entry) for entry in entries])
    trailer = _TRAILER.pack(TRAILER_MAGIC, len(entries), index_offset, name, 0, crc32c(index))
    return index + trailer + _CRC.pack(crc32c(trailer))


def footer_offset(trailer: Buffer, file_bytes: int) -> int:
    """Return where the footer begins, from a file's last 48 bytes and its length. Corrupt: not sealed."""
    return _decode_trailer(trailer, file_bytes)[0]


def _decode_trailer(trailer: Buffer, file_bytes: int) -> tuple[int, int, bytes, int]:
    if len(trailer) != TRAILER_BYTES:
        raise errors.Corrupt(f'pack: a trailer of {len(trailer)} bytes, {TRAILER_BYTES} expected')
    magic, records, index_offset, name, reserved, index_crc = _TRAILER.unpack_from(trailer)
    if magic != TRAILER_MAGIC:
        raise errors.Corrupt(f'pack: wrong magic {magic.hex()} of the trailer')
    if _CRC.unpack_from(trailer, _TRAILER.size)[0] != crc32c(trailer[: _TRAILER.size]):
        raise errors.Corrupt('pack: wrong CRC of the trailer')
    if reserved or records > limits.PACK_RECORDS_MAX:
        raise errors.Corrupt(f'pack: {records} records, or reserved {reserved}')
    if index_offset < PACK_HEADER_BYTES or index_offset + records * ENTRY_BYTES + TRAILER_BYTES != file_bytes:
        raise errors.Corrupt(f'pack: {records} records, index at {index_offset}: not in {file_bytes} bytes')
    return index_offset, records, name, index_crc


def footer_index(footer: Buffer, file_bytes: int, name: bytes) -> memoryview:
    """Return the entries of pack `name` as they stand, ENTRY_BYTES each, from all bytes after
    `footer_offset`: whole and of this pack, what they say not looked at. Raises Corrupt."""
    footer = memoryview(footer)
    _, records, found_name, index_crc = _decode_trailer(footer[-TRAILER_BYTES:], file_bytes)
    index = footer[:-TRAILER_BYTES]
    if len(index) != records * ENTRY_BYTES:
        raise errors.Corrupt(f'pack: an index of {len(index)} bytes for {records} records')
    if found_name != name:
        raise errors.Corrupt(f'pack {name.hex()}: the footer is that of pack {found_name.hex()}')
    if crc32c(index) != index_crc:
        raise errors.Corrupt('pack: wrong CRC of the index')
    return index


def decode_footer(footer: Buffer, file_bytes: int, name: bytes) -> list[PackEntry]:
    """Return the entries of pack `name`, from all bytes after `footer_offset`. Raises Corrupt."""
    index = footer_index(footer, file_bytes, name)
    index_offset = file_bytes - len(memoryview(footer))
    entries = [PackEntry(*fields) for fields in _ENTRY.iter_unpack(index)]
    end = PACK_HEADER_BYTES
    for _, offset, stored, plain, codec in entries:
        if codec not in _CODECS or offset < end:
            raise errors.Corrupt(f'pack: the index names codec {codec} at offset {offset}, after {end}')
        check_lengths(codec, stored, plain)
        end = offset + HEADER_BYTES + stored
    if end > index_offset:
        raise errors.Corrupt(f'pack: the last record ends at {end}, after the index at {index_offset}')
    return entries
