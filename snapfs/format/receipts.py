"""L1 receipts: which records a batch has freed, and where they lay. Pure; safe from any thread.

Specification. The file STORE/batches/N/receipt is a header of 80 bytes, then rows of 60 bytes, back to back;
nothing follows. It is durable before the first of its chunks is freed. Its digest (BLAKE3-256 over the whole
file) is in the batch's row and in the audit log, so that it needs no checksum of its rows.

====== ====== ============= ==================================================================
offset bytes  header field  meaning
====== ====== ============= ==================================================================
0      8      magic         ``snapfsRC``
8      2      version       1
10     2      reserved      0
12     16     store uuid    of the superblock, so that a receipt of another store counts for nothing
28     8      batch         its number, from 1
36     32     plan digest   BLAKE3-256 of the file plan.json of the batch
68     8      rows          how many follow
76     4      CRC           of bytes 0 to 75
====== ====== ============= ==================================================================

====== ====== ============= ==================================================================
offset bytes  row field     meaning
====== ====== ============= ==================================================================
0      32     id            of the chunk
32     16     pack          name of the pack
48     8      offset        of the record's header in the pack
56     4      stored length payload bytes of the record
====== ====== ============= ==================================================================

Numbers are big-endian. Rows ascend strictly by their bytes: no record is freed twice, and a row is found by
bisection.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from itertools import chain, pairwise
from typing import NamedTuple

from crc32c import crc32c

from snapfs import errors, limits
from snapfs.format.ids import Buffer
from snapfs.format.packs import PACK_HEADER_BYTES


class ReceiptHeader(NamedTuple):
    """The header: whose receipt it is, and how many rows follow."""

    store_uuid: bytes
    batch: int
    plan_digest: bytes
    rows: int


class ReceiptRow(NamedTuple):
    """One freed record: id, name of its pack, offset of its header there, payload bytes."""

    id: bytes
    pack_name: bytes
    offset: int
    stored_length: int


RECEIPT_VERSION = 1
RECEIPT_MAGIC = b'snapfsRC'
_HEADER = struct.Struct('>8sHH16sQ32sQ')
_ROW = struct.Struct('>32s16sQI')
_CRC = struct.Struct('>I')
RECEIPT_HEADER_BYTES = _HEADER.size + _CRC.size
RECEIPT_ROW_BYTES = _ROW.size

assert (RECEIPT_HEADER_BYTES, RECEIPT_ROW_BYTES) == (80, 60)


def encode_receipt_header(header: ReceiptHeader) -> bytes:
    """Return the 80 bytes a receipt begins with."""
    assert len(header.store_uuid) == limits.UUID_BYTES
    assert len(header.plan_digest) == limits.ID_BYTES
    assert header.batch > 0
    fields = _HEADER.pack(RECEIPT_MAGIC, RECEIPT_VERSION, 0, *header)
    return fields + _CRC.pack(crc32c(fields))


def decode_receipt_header(buffer: Buffer, file_bytes: int) -> ReceiptHeader:
    """Return the checked header, given its 80 bytes and the size of the file. Raises Corrupt."""
    if len(buffer) < RECEIPT_HEADER_BYTES:
        raise errors.Corrupt(f'receipt: {len(buffer)} bytes where a header of {RECEIPT_HEADER_BYTES} stands')
    magic, version, reserved, *rest = _HEADER.unpack_from(buffer)
    if magic != RECEIPT_MAGIC:
        raise errors.Corrupt(f'receipt: wrong magic {magic.hex()}')
    if version != RECEIPT_VERSION:
        raise errors.Corrupt(f'receipt: version {version} is not {RECEIPT_VERSION}')
    if _CRC.unpack_from(buffer, _HEADER.size)[0] != crc32c(buffer[: _HEADER.size]):
        raise errors.Corrupt('receipt: wrong CRC of the header')
    header = ReceiptHeader(*rest)
    if reserved or not header.batch:
        raise errors.Corrupt(f'receipt: batch {header.batch} or reserved {reserved}')
    if RECEIPT_HEADER_BYTES + header.rows * RECEIPT_ROW_BYTES != file_bytes:
        raise errors.Corrupt(f'receipt: {header.rows} rows cannot fill a file of {file_bytes} bytes')
    return header


def encode_receipt_rows(rows: Iterable[ReceiptRow]) -> bytes:
    """Return rows as they stand in the file; the caller keeps them in order."""
    return b''.join([_ROW.pack(*row) for row in rows])


def decode_receipt_rows(buffer: Buffer, previous: ReceiptRow | None = None) -> list[ReceiptRow]:
    """Return the rows of a piece of the file that begins and ends between two rows; `previous` is the row
    before it. Raises Corrupt."""
    if len(buffer) % RECEIPT_ROW_BYTES:
        raise errors.Corrupt(f'receipt: {len(buffer)} bytes are no whole number of rows')
    rows = [ReceiptRow(*row) for row in _ROW.iter_unpack(buffer)]
    for before, after in pairwise(chain((previous,), rows) if previous is not None else rows):
        if before >= after:
            raise errors.Corrupt(f'receipt: {after.id.hex()} does not follow {before.id.hex()}')
    for row in rows:
        if (
            not PACK_HEADER_BYTES <= row.offset <= limits.PACK_DATA_BYTES_MAX
            or row.stored_length > limits.STORED_BYTES_MAX
        ):
            raise errors.Corrupt(f'receipt: impossible location {row.offset}, {row.stored_length}')
    return rows
