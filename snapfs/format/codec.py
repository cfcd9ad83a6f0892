"""L1 codec: how a record's payload is compressed. A Compressor belongs to one thread; `decompress` to any.

Specification. A payload is stored in one of two codecs, named in the record's header and in the pack's
footer:

- 0 PLAIN: the plain bytes themselves; stored length = plain length.
- 1 ZSTD: exactly one Zstandard frame (RFC 8878) without a dictionary, whose window is at most 128 KiB and
  which decodes to exactly `plain length` bytes; nothing follows the frame. stored length < plain length.

A writer uses ZSTD only where it saves at least one sixteenth of the plain bytes. A reader bounds its output
by the plain length of the header, so that no frame can make it spend more memory than that.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from enum import IntEnum

from snapfs import errors, limits
from snapfs.format.ids import Buffer

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd


class Codec(IntEnum):
    """How a payload is stored."""

    PLAIN = 0
    ZSTD = 1


CODEC_PLAIN = Codec.PLAIN
CODEC_ZSTD = Codec.ZSTD

_WINDOW_OPTIONS: Mapping[int, int] = {zstd.DecompressionParameter.window_log_max: limits.ZSTD_WINDOW_LOG_MAX}


class Compressor:
    """Compresses payloads, one after the other. Belongs to one thread: zstd contexts cannot be shared.

    Data that does not compress mostly follows data that did not. After a few such payloads only a piece from
    the middle of the next is tried, and the whole again when that piece compresses, or after some more
    payloads. So how a payload is stored depends on those before it; what it decodes to never does.
    """

    __slots__ = ('_failures', '_zstd')

    def __init__(self, level: int = limits.ZSTD_LEVEL) -> None:
        self._zstd = zstd.ZstdCompressor(level=level)
        self._failures = 0  # payloads in a row that were stored plain after a try

    def compress(self, plain: Buffer) -> tuple[Codec, Buffer]:
        """Return (codec, stored bytes); these are `plain` itself where compressing saves less than 1/16."""
        length = len(plain)
        if length < limits.COMPRESS_BYTES_MIN:
            return CODEC_PLAIN, plain
        failures = self._failures
        if (
            failures >= limits.COMPRESS_FAILURES_PROBE
            and length > limits.COMPRESS_PROBE_BYTES * 2
            and failures % limits.COMPRESS_FAILURES_RETRY
        ):
            middle = length >> 1
            probe = memoryview(plain)[middle : middle + limits.COMPRESS_PROBE_BYTES]
            if not _saves(self._zstd.compress(probe, zstd.ZstdCompressor.FLUSH_FRAME), len(probe)):
                self._failures = failures + 1
                return CODEC_PLAIN, plain
        stored = self._zstd.compress(plain, zstd.ZstdCompressor.FLUSH_FRAME)
        if not _saves(stored, length):
            self._failures = failures + 1
            return CODEC_PLAIN, plain
        self._failures = 0
        return CODEC_ZSTD, stored


def _saves(stored: bytes, length: int) -> bool:
    """Return whether storing these bytes instead of `length` plain ones saves enough."""
    return len(stored) <= length - (length >> limits.COMPRESS_SAVING_SHIFT)


def decompress(codec: int, stored: Buffer, plain_length: int) -> bytes:
    """Return the plain bytes, exactly `plain_length` of them, or raise Corrupt. Takes no more memory."""
    if not 0 <= plain_length <= limits.PLAIN_BYTES_MAX:
        raise errors.Corrupt(f'payload: {plain_length} plain bytes, limit {limits.PLAIN_BYTES_MAX}')
    if codec == CODEC_PLAIN:
        if len(stored) != plain_length:
            raise errors.Corrupt(f'payload: {len(stored)} bytes stored plain, {plain_length} expected')
        return bytes(stored)
    if codec != CODEC_ZSTD:
        raise errors.Corrupt(f'payload: codec {codec} is unknown')
    decompressor = zstd.ZstdDecompressor(options=_WINDOW_OPTIONS)
    try:
        plain = decompressor.decompress(stored, max_length=plain_length)
    except (zstd.ZstdError, EOFError) as error:
        raise errors.Corrupt(f'payload: not a Zstandard frame: {error}') from error
    if len(plain) != plain_length:
        raise errors.Corrupt(f'payload: {len(plain)} bytes decompressed, {plain_length} expected')
    if not decompressor.eof:
        raise errors.Corrupt(f'payload: the Zstandard frame does not end after {plain_length} bytes')
    if decompressor.unused_data:
        raise errors.Corrupt('payload: bytes follow the Zstandard frame')
    return plain
