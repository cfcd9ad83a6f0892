"""L4 spill: candidates of a recount, sorted, each once, in bounded memory; and the ids that come out.

Blocking; one thread owns each. Ids are gathered as they come, with the request that reaches each. Up to a
limit they stay in memory; beyond it they go to a nameless temporary file, in 256 parts by their first
byte, each of which can be sorted alone.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from snapfs import limits
from snapfs.collect.idsets import Ids, Owners, PrefixSet, no_ids, run_starts, sort_order, to_bytes
from snapfs.errors import Unavailable
from snapfs.format.ids import data_hasher
from snapfs.store.durable import Disk

_ROW = np.dtype([('id', np.uint64, 4), ('owner', np.uint32)])
_PARTS = 256
_PART_SHIFT = np.uint64(56)


class Candidates:
    """Ids that may be condemned. First `add`, then `finish`, then `groups` and `part`; `close` at last."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._buffer: list[NDArray[np.void]] = []
        self._buffered = 0
        self._file: IO[bytes] | None = None
        self._end = 0
        self._extents: list[list[tuple[int, int]]] = [[] for _ in range(_PARTS)]
        self._whole: NDArray[np.void] | None = None  # all of them, when they fit into memory
        self.counts: list[int] = []  # ids in each part, after `finish`

    def close(self) -> None:
        """Give the temporary file back to the disk below."""
        if self._file is not None:
            self._file.close()

    def add(self, ids: Ids, owners: Owners | int) -> None:
        """Add ids with the number of the request that reaches each."""
        rows = np.empty(len(ids), dtype=_ROW)
        rows['id'] = ids
        rows['owner'] = owners
        self._buffer.append(rows)
        self._buffered += len(rows)
        if self._buffered >= limits.COLLECT_BUFFER_IDS:
            self._flush()

    def finish(self) -> None:
        """Sort and unite; nothing is added afterwards."""
        if self._file is None:
            self._whole = _unite(self._take_buffer())
            self.counts = [len(self._whole)]
            return
        self._flush()
        for number, extents in enumerate(self._extents):
            rows = _unite(np.concatenate([self._read(*extent) for extent in extents] or [_none()]))
            self._extents[number] = [self._write(rows)]
            self.counts.append(len(rows))

    def __len__(self) -> int:
        return sum(self.counts)

    def groups(self) -> Iterator[tuple[range, PrefixSet]]:
        """Yield the parts, as many at a time as fit into memory, with a fresh set of their prefixes."""
        start = 0
        while start < len(self.counts):
            end, total = start + 1, self.counts[start]
            while end < len(self.counts) and total + self.counts[end] <= limits.COLLECT_PASS_IDS:
                total += self.counts[end]
                end += 1
            prefixes = np.empty(total, dtype=np.uint64)
            at = 0
            for number in range(start, end):
                ids = self.part(number)[0]
                prefixes[at : at + len(ids)] = ids[:, 0]
                at += len(ids)
            found = PrefixSet(prefixes)
            del prefixes
            yield range(start, end), found
            del found  # the next one is made when this one is gone
            start = end

    def part(self, number: int) -> tuple[Ids, Owners]:
        """Return the ids of a part, sorted, and for each the lowest number of a request that reaches it."""
        rows = self._whole if self._whole is not None else self._read(*self._extents[number][0])
        return rows['id'], rows['owner']

    # --- the temporary file ------------------------------------------------------------------------------
    def _take_buffer(self) -> NDArray[np.void]:
        rows = np.concatenate([*self._buffer, _none()])
        self._buffer, self._buffered = [], 0
        return rows

    def _flush(self) -> None:
        rows = self._take_buffer()
        parts = (rows['id'][:, 0] >> _PART_SHIFT).astype(np.intp)
        rows = rows[np.argsort(parts, kind='stable')]
        bounds = np.concatenate(([0], np.cumsum(np.bincount(parts, minlength=_PARTS))))
        for number in range(_PARTS):
            if bounds[number] < bounds[number + 1]:
                extent = self._write(rows[bounds[number] : bounds[number + 1]])
                self._extents[number].append(extent)

    def _write(self, rows: NDArray[np.void]) -> tuple[int, int]:
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115
            self._file.seek(self._end)
            self._file.write(rows.tobytes())
        except OSError as error:
            raise Unavailable(f'no room for the candidates in {self._folder}: {error.strerror}') from error
        extent = (self._end, len(rows))
        self._end += rows.nbytes
        return extent

    def _read(self, offset: int, count: int) -> NDArray[np.void]:
        assert self._file is not None
        try:
            self._file.seek(offset)
            data = self._file.read(count * _ROW.itemsize)
        except OSError as error:
            raise Unavailable(f'cannot read the candidates back: {error.strerror}') from error
        assert len(data) == count * _ROW.itemsize, 'the temporary file has lost candidates'
        return np.frombuffer(data, dtype=_ROW)


def _none() -> NDArray[np.void]:
    return np.empty(0, dtype=_ROW)


def _unite(rows: NDArray[np.void]) -> NDArray[np.void]:
    """Return the rows sorted by id, each id once, with its lowest owner."""
    ids = rows['id'] if len(rows) else no_ids()
    rows = rows[sort_order(ids)]
    starts = run_starts(rows['id'])
    united = rows[starts]
    if len(starts):
        united['owner'] = np.minimum.reduceat(rows['owner'], starts)
    return united


class IdFile:
    """Sorted ids on their way into a file. Nothing has a name before `write`: an error leaves nothing."""

    def __init__(self, folder: Path) -> None:
        memory = limits.COLLECT_BUFFER_IDS * limits.ID_BYTES
        self._file = tempfile.SpooledTemporaryFile(max_size=memory, dir=str(folder))  # noqa: SIM115
        self._hasher = data_hasher()
        self.count = 0

    def close(self) -> None:
        """Give the temporary file back to the disk below."""
        self._file.close()

    def add(self, ids: Ids) -> None:
        """Add ids that come after those added so far."""
        data = to_bytes(ids)
        self._hasher.update(data)
        self.count += len(ids)
        try:
            self._file.write(data)
        except OSError as error:
            raise Unavailable(f'no room for what was condemned: {error.strerror}') from error

    def digest(self) -> bytes:
        """Return the id that the file's bytes have as data."""
        return self._hasher.digest()

    def write(self, disk: Disk, path: Path) -> None:
        """Write and sync the file, replacing what a crash may have left. Its name is not durable yet."""
        if disk.exists(path):
            disk.unlink(path)
        fd = disk.open_write(path, create=True)
        try:
            self._file.seek(0)
            offset = 0
            while data := self._file.read(limits.READ_BYTES_MAX):
                offset += disk.pwrite(fd, [data], offset)
            disk.sync_data(fd)
        finally:
            disk.close(fd)
