"""Tool fsck, spill: rows about chunk ids in temporary files, parted by id, so that memory does not grow
with the store. Each process writes files of its own; whoever reads a part reads those of all.

An id is told by two numbers: its first 8 bytes, and a sum of the other 24. One of them changes whatever
changes in an id: a flipped bit in its last byte makes another chunk of it, as it does for whoever looks it
up. That two chunks of one store share both numbers, no accident and nobody with less than 2^64 tries will
see."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from snapfs import limits

PARTS_MAX = 256
PART_ROWS = 50_000  # of a part, about
BUFFER_ROWS = 1 << 18  # of each type, in each process: 7 MiB
Words = NDArray[np.uint64]
FACTORS = np.array([0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9], dtype=np.uint64)  # odd: no bit is lost

# A reference: the id, who has it (the number of a node's record), what the owner knows of its length (0:
# nothing).
REFS = np.dtype([('a', 'u8'), ('b', 'u8'), ('owner', 'u4'), ('plain', 'u4')])
# A record in a pack; `place` is number of the pack << 32 | offset. `what`: kind | codec << 8.
RECORDS = np.dtype(
    [('a', 'u8'), ('b', 'u8'), ('place', 'u8'), ('stored', 'u4'), ('plain', 'u4'), ('what', 'u4')]
)
ASKED = np.dtype([('a', 'u8'), ('b', 'u8')])
TYPES = {'refs': REFS, 'records': RECORDS, 'asked': ASKED}


def words(ids: bytes) -> tuple[Words, Words]:
    """Return the two numbers of each id of a table of ids."""
    table = np.frombuffer(ids, dtype='<u8').reshape(-1, limits.ID_BYTES // 8)
    with np.errstate(over='ignore'):
        rest = table[:, 1] + table[:, 2] * FACTORS[0] + table[:, 3] * FACTORS[1]
    return table[:, 0].byteswap(), rest  # the first number ascends as the ids do


def words_of(id: bytes) -> tuple[int, int]:
    """Return the two numbers of one id."""
    first, rest = words(id)
    return int(first[0]), int(rest[0])


def text_of(a: int) -> str:
    """Return the beginning of an id in hexadecimal."""
    return f'{a:016x}'


def parts_for(rows: int) -> int:
    """Return in how many parts so many rows go: a power of two."""
    return min(PARTS_MAX, 1 << (rows // PART_ROWS).bit_length())


def part_of(a: Words, parts: int) -> NDArray[np.uint8]:
    """Return the parts that ids belong to, by their first numbers."""
    return (a >> np.uint64(56)).astype(np.uint8) >> np.uint8((PARTS_MAX // parts).bit_length() - 1)


def range_of(part: int, parts: int) -> tuple[bytes, bytes]:
    """Return the least id of a part, and what is above all of its ids."""
    first, end = bytes_of(part, parts)
    return bytes([first]), bytes([end]) if part + 1 < parts else b'\xff' * 33


def bytes_of(part: int, parts: int) -> tuple[int, int]:
    """Return the first byte that ids of a part begin with, and the one behind the last."""
    step = PARTS_MAX // parts
    return part * step, (part + 1) * step


class Spill:
    """Writes rows of all types, in `parts` parts. `close` when done."""

    def __init__(self, folder: Path, parts: int) -> None:
        self._folder = folder
        self._parts = parts
        self._waiting: dict[str, list[NDArray[np.void]]] = {}
        self._rows: dict[str, int] = {}

    def add(self, kind: str, rows: NDArray[np.void]) -> None:
        """Take rows of one type."""
        if not len(rows):
            return
        self._waiting.setdefault(kind, []).append(rows)
        self._rows[kind] = self._rows.get(kind, 0) + len(rows)
        if self._rows[kind] >= BUFFER_ROWS:
            self._write(kind)

    def _write(self, kind: str) -> None:
        """Part what waits, all at once: node by node there would be a thousand little pieces."""
        del self._rows[kind]
        waiting = self._waiting.pop(kind)
        rows = np.concatenate(waiting) if len(waiting) > 1 else waiting[0]
        parts = part_of(rows['a'], self._parts)
        order = np.argsort(parts, kind='stable')  # of bytes: one pass
        ordered = rows.view(np.dtype((np.void, rows.itemsize)))[order].view(np.uint8).data
        ends = np.cumsum(np.bincount(parts, minlength=self._parts)) * rows.itemsize
        start = 0
        for part, end in enumerate(ends.tolist()):
            if end > start:
                with (self._folder / f'{kind}-{part}-{os.getpid()}').open('ab') as file:
                    file.write(ordered[start:end])
            start = end

    def close(self) -> None:
        """Write what is left."""
        for kind in list(self._waiting):
            self._write(kind)


def read_part(folder: Path, kind: str, part: int) -> NDArray[np.void]:
    """Return all rows of a type in a part, in no order."""
    names = sorted(name for name in os.listdir(folder) if name.startswith(f'{kind}-{part}-'))
    found = [np.fromfile(folder / name, dtype=TYPES[kind]) for name in names]
    return np.concatenate(found) if found else np.zeros(0, dtype=TYPES[kind])
