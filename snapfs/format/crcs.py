"""L1 CRCs: of many ranges of one buffer that overlap. Pure; one thread for each object.

CRCs are linear: one that is continued over k blocks of zeros is multiplied by a 32 × 32 matrix of bits (and
gets what zeros alone give). So of a range only its two ends are read, less than a block each; what lies
between is known from the CRCs of the buffer's beginnings, taken once. Without it somebody who
fills a journal with heads of frames that lie about their lengths has a MiB read for every 44 bytes."""

from __future__ import annotations

from functools import cache

from crc32c import crc32c

BLOCK_BYTES = 512
_BITS = 32
_ZEROS = bytes(BLOCK_BYTES)


class RangeCrcs:
    """CRCs of ranges of `view`, which must not change. In all it reads twice the view, and 2 blocks for each
    range."""

    def __init__(self, view: memoryview) -> None:
        self._view = view
        self._read = 0
        self._beginnings: list[int] = []

    def crc(self, start: int, end: int, before: int) -> int:
        """Return the CRC of bytes start to end, continuing from the CRC `before`."""
        view, length = self._view, end - start
        if length <= 2 * BLOCK_BYTES:
            return crc32c(view[start:end], before)
        if self._read + length <= len(view):  # as it is where nothing is wrong: ranges follow one another
            self._read += length
            return crc32c(view[start:end], before)
        if not self._beginnings:
            self._beginnings = _crcs_of_beginnings(view)
        first, last = -(-start // BLOCK_BYTES), end // BLOCK_BYTES
        crc = crc32c(view[start : first * BLOCK_BYTES], before)
        crc = _behind(crc ^ self._beginnings[first], last - first) ^ self._beginnings[last]
        return crc32c(view[last * BLOCK_BYTES : end], crc)


def _crcs_of_beginnings(view: memoryview) -> list[int]:
    found = [0]
    for start in range(0, len(view) - BLOCK_BYTES + 1, BLOCK_BYTES):
        found.append(crc32c(view[start : start + BLOCK_BYTES], found[-1]))
    return found


def _behind(crc: int, blocks: int) -> int:
    """Return the linear part of what becomes of a CRC over so many blocks."""
    power = 0
    while blocks:
        if blocks & 1:
            crc = _apply(_matrix(power), crc)
        blocks >>= 1
        power += 1
    return crc


@cache
def _matrix(power: int) -> tuple[int, ...]:
    """Return the columns of the matrix for 2 ** power blocks. As many as a length has bits."""
    if power == 0:
        zeros = crc32c(_ZEROS, 0)
        return tuple(crc32c(_ZEROS, 1 << bit) ^ zeros for bit in range(_BITS))
    half = _matrix(power - 1)
    return tuple(_apply(half, column) for column in half)


def _apply(matrix: tuple[int, ...], vector: int) -> int:
    found, bit = 0, 0
    while vector:
        if vector & 1:
            found ^= matrix[bit]
        vector >>= 1
        bit += 1
    return found
