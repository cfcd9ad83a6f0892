"""L2 horizon: which chunks have been put since a recount began. Any thread.

A recount takes time, and what writers put meanwhile must not be condemned by it (P3). So from the horizon on
every id is noted *before* it is looked up. A bitmap of id prefixes takes the same memory whatever is written;
two ids with one prefix make it keep a chunk too many, never one too few.
"""

from __future__ import annotations

from collections.abc import Iterable

from snapfs import limits
from snapfs.format.records import RecordKind

_SHIFT = 64 - limits.PUT_RECORD_BITS


class PutRecord:
    """The ids put since this was made. The chunk store adds to it inside a put, nobody else does."""

    __slots__ = ('_bits',)

    def __init__(self) -> None:
        # A byte is read, changed and written back, and data and nodes are put at the same time.
        self._bits = {kind: bytearray(1 << (limits.PUT_RECORD_BITS - 3)) for kind in RecordKind}

    def add(self, kind: RecordKind, ids: Iterable[bytes]) -> None:
        """Note ids of one kind of chunk. One caller per kind at a time."""
        bits = self._bits[kind]
        for id in ids:
            prefix = int.from_bytes(id[:8]) >> _SHIFT
            bits[prefix >> 3] |= 1 << (prefix & 7)

    def has(self, id: bytes) -> bool:
        """Return whether the id may have been put; False is certain."""
        prefix = int.from_bytes(id[:8]) >> _SHIFT
        return any(bits[prefix >> 3] >> (prefix & 7) & 1 for bits in self._bits.values())
