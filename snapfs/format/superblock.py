"""L1 superblock: the one file of a store that is written once and says how to read the rest. Pure.

Specification. The file STORE/superblock has exactly 80 bytes:

====== ====== =================== ==============================================================
offset bytes  field               meaning
====== ====== =================== ==============================================================
0      8      magic               ``snapfsSB``
8      2      version             of the format of the whole store: 1
10     1      hash                1 = BLAKE3-256 (ids.py)
11     1      normalization       level of FastCDC's normalised chunking, 0 to 3
12     16     store uuid          random; repeated in packs and journal, so that files cannot be mixed up
28     8      created             ns since 1970, signed
36     16     name key            random key of the directory hashes (keys.py)
52     4      chunk minimum       bytes, FastCDC
56     4      chunk average       bytes, FastCDC
60     4      chunk maximum       bytes, FastCDC
64     4      whole file maximum  bytes; a file up to this long is one chunk
68     8      reserved            0
76     4      CRC                 of bytes 0 to 75
====== ====== =================== ==============================================================

0 < minimum < average < maximum ≤ 131,072 and whole file maximum ≤ maximum. The chunker's parameters decide
only where new data is cut; nothing about old data depends on them.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

from crc32c import crc32c

from snapfs import errors, limits
from snapfs.format.ids import Buffer


@dataclass(frozen=True, slots=True)
class ChunkerParameters:
    """How file data is cut; bytes, except `normalization`, which is FastCDC's level 0 to 3."""

    minimum: int = limits.CHUNK_BYTES_MIN
    average: int = limits.CHUNK_BYTES_AVERAGE
    maximum: int = limits.CHUNK_BYTES_MAX
    normalization: int = limits.CHUNK_NORMALIZATION
    whole_file_max: int = limits.WHOLE_FILE_BYTES_MAX


@dataclass(frozen=True, slots=True)
class Superblock:
    """What never changes about a store. `uuid`, `name_key`: 16 random bytes; `created_ns`: since 1970."""

    uuid: bytes
    created_ns: int
    name_key: bytes
    chunker: ChunkerParameters = field(default_factory=ChunkerParameters)
    hash: str = 'blake3'
    version: int = limits.FORMAT_VERSION


SUPERBLOCK_MAGIC = b'snapfsSB'
_FIELDS = struct.Struct('>8sHBB16sq16sIIIIQ')
_CRC = struct.Struct('>I')
SUPERBLOCK_BYTES = _FIELDS.size + _CRC.size
_HASHES = {1: 'blake3'}
_HASH_NUMBERS = {name: number for number, name in _HASHES.items()}

assert SUPERBLOCK_BYTES == 80


def _oddity(chunker: ChunkerParameters) -> str | None:
    if not 0 < chunker.minimum < chunker.average < chunker.maximum <= limits.PLAIN_BYTES_MAX:
        return f'chunk sizes {chunker.minimum}, {chunker.average}, {chunker.maximum}'
    if not 0 <= chunker.whole_file_max <= chunker.maximum:
        return f'whole file maximum {chunker.whole_file_max}'
    if not 0 <= chunker.normalization <= limits.CHUNK_NORMALIZATION_MAX:
        return f'normalization {chunker.normalization}'
    return None


def encode_superblock(block: Superblock) -> bytes:
    """Return the 80 bytes of STORE/superblock."""
    assert block.version == limits.FORMAT_VERSION
    assert len(block.uuid) == limits.UUID_BYTES
    assert len(block.name_key) == limits.NAME_KEY_BYTES
    chunker = block.chunker
    assert _oddity(chunker) is None
    fields = _FIELDS.pack(
        SUPERBLOCK_MAGIC,
        block.version,
        _HASH_NUMBERS[block.hash],
        chunker.normalization,
        block.uuid,
        block.created_ns,
        block.name_key,
        chunker.minimum,
        chunker.average,
        chunker.maximum,
        chunker.whole_file_max,
        0,
    )
    return fields + _CRC.pack(crc32c(fields))


def is_newer_superblock(buffer: Buffer) -> bool:
    """Return whether a newer program has written this: a version that is not ours, and all else whole."""
    whole = len(buffer) == SUPERBLOCK_BYTES and bytes(buffer[:8]) == SUPERBLOCK_MAGIC
    return (
        whole
        and int.from_bytes(buffer[8:10], 'big') != limits.FORMAT_VERSION
        and _CRC.unpack_from(buffer, _FIELDS.size)[0] == crc32c(buffer[: _FIELDS.size])
    )


def decode_superblock(buffer: Buffer) -> Superblock:
    """Return the superblock. Raises Corrupt, also for a format version that this program does not know."""
    if bytes(buffer[:8]) != SUPERBLOCK_MAGIC:
        raise errors.Corrupt('superblock: wrong magic: this is not a snapfs store')
    version = int.from_bytes(buffer[8:10], 'big')
    if len(buffer) >= 10 and version != limits.FORMAT_VERSION:
        raise errors.Corrupt(
            f'superblock: format version {version}; this program reads {limits.FORMAT_VERSION}'
        )
    if len(buffer) != SUPERBLOCK_BYTES:
        raise errors.Corrupt(f'superblock: {len(buffer)} bytes, {SUPERBLOCK_BYTES} expected')
    if _CRC.unpack_from(buffer, _FIELDS.size)[0] != crc32c(buffer[: _FIELDS.size]):
        raise errors.Corrupt('superblock: wrong CRC')
    _, _, hash_number, normalization, uuid, created_ns, name_key, *sizes, reserved = _FIELDS.unpack_from(
        buffer
    )
    if hash_number not in _HASHES or reserved:
        raise errors.Corrupt(f'superblock: unknown hash {hash_number} or reserved {reserved}')
    minimum, average, maximum, whole_file_max = sizes
    chunker = ChunkerParameters(minimum, average, maximum, normalization, whole_file_max)
    oddity = _oddity(chunker)
    if oddity is not None:
        raise errors.Corrupt(f'superblock: impossible {oddity}')
    return Superblock(uuid, created_ns, name_key, chunker, _HASHES[hash_number], version)
