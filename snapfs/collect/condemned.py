"""L4 condemned: the ids of one batch, to be looked for among many references. Blocking; one thread.

The ids stay in the batch's file; in memory are 8-byte prefixes, a bitmap that most references fail at
once, and two flags per id. What a prefix finds is compared with the whole id in the file: approximations
may only keep."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt

from snapfs import limits
from snapfs.errors import Corrupt

Ids = npt.NDArray[np.uint8]  # shape (n, 32)
_ID = limits.ID_BYTES
_BLOCK_IDS = limits.MENTION_BLOCK_IDS
_BITS = limits.MENTION_FILTER_BITS
_DENSE = 16  # read up to so many ids for one that is wanted
_SHIFT = np.uint64(64 - _BITS)


def as_ids(joined: bytes | bytearray | memoryview) -> Ids:
    """Return ids that stand back to back as rows."""
    return np.frombuffer(joined, np.uint8).reshape(-1, _ID)


def prefixes_of(ids: Ids) -> npt.NDArray[np.uint64]:
    """Return the first 8 bytes of each id as a number; numbers are ordered as ids are."""
    return np.ascontiguousarray(ids[:, :8]).view('>u8').ravel().astype(np.uint64)


class Condemned:
    """What a batch condemns: the ids of its file that have a row in quarantine for it.

    `rows` says for each id of the file whether it has such a row; `fresh` whether it also has one in
    `chunk`: then whoever mentions it means that copy. A context manager: it holds the file open."""

    def __init__(self, path: Path, db: sqlite3.Connection, batch: int) -> None:
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise Corrupt(f'cannot open the condemned ids of batch {batch}: {error.strerror}') from error
        try:
            self._prefixes = self._read(batch)
            count = len(self._prefixes)
            self.rows = np.zeros(count, np.bool_)
            self.fresh = np.zeros(count, np.bool_)
            self._bits = np.zeros(1 << (_BITS - 3), np.uint8)
            self._fill_filter(self._prefixes)
            text = 'SELECT id FROM quarantine WHERE batch = ? ORDER BY id'
            self._mark(self.rows, db.execute(text, (batch,)), batch)
            text = 'SELECT id FROM quarantine WHERE batch = ? AND id IN (SELECT id FROM chunk) ORDER BY id'
            self._mark(self.fresh, db.execute(text, (batch,)), batch)
            self.count = int(self.rows.sum())
        except BaseException:
            os.close(self._fd)
            raise

    def __enter__(self) -> Condemned:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._fd)

    def _pread(self, count: int, offset: int) -> bytes:
        try:
            data = os.pread(self._fd, count, offset)
        except OSError as error:
            raise Corrupt(f'cannot read the condemned ids: {error.strerror}') from error
        if len(data) != count:
            raise Corrupt(f'the condemned ids end at {offset + len(data)}, {offset + count} expected')
        return data

    def _read(self, batch: int) -> npt.NDArray[np.uint64]:
        size = os.fstat(self._fd).st_size
        if size % _ID:
            raise Corrupt(f'batch {batch}: {size} bytes of condemned ids')
        found = np.empty(size // _ID, np.uint64)
        last = b''
        for start in range(0, len(found), _BLOCK_IDS):
            data = self._pread(min(_BLOCK_IDS, len(found) - start) * _ID, start * _ID)
            ids = np.frombuffer(data, f'S{_ID}')
            if not (ids[:-1] < ids[1:]).all() or last >= data[:_ID]:
                raise Corrupt(f'batch {batch}: the condemned ids do not ascend')
            last = data[-_ID:]
            found[start : start + len(ids)] = prefixes_of(as_ids(data))
        return found

    def _fill_filter(self, prefixes: npt.NDArray[np.uint64]) -> None:
        for start in range(0, len(prefixes), _BLOCK_IDS):
            slots = prefixes[start : start + _BLOCK_IDS] >> _SHIFT
            np.bitwise_or.at(self._bits, (slots >> np.uint64(3)).astype(np.int64), _bit(slots))

    def _mark(self, flags: npt.NDArray[np.bool_], rows: Iterable[tuple[bytes]], batch: int) -> None:
        rows = iter(rows)
        while part := list(islice(rows, _BLOCK_IDS)):
            joined = b''.join([id for (id,) in part])
            if len(joined) != len(part) * _ID:
                raise Corrupt('catalog: a row of quarantine without a chunk id')
            places = self._places(as_ids(joined))
            if (places < 0).any():
                stray = part[int(np.argmax(places < 0))][0]
                raise Corrupt(f'quarantine has {stray.hex()} for batch {batch}, which its file does not name')
            flags[places] = True

    def _places(self, ids: Ids) -> npt.NDArray[np.int64]:
        """Return the place of each id in the file, -1 where it is not there."""
        places = np.full(len(ids), -1, np.int64)
        if not len(self._prefixes) or not len(ids):
            return places
        prefixes = prefixes_of(ids)
        slots = prefixes >> _SHIFT
        maybe = np.flatnonzero(self._bits[(slots >> np.uint64(3)).astype(np.int64)] & _bit(slots))
        if not len(maybe):
            return places
        wanted = prefixes[maybe]
        at = np.searchsorted(self._prefixes, wanted)
        hits = np.flatnonzero(self._prefixes[np.minimum(at, len(self._prefixes) - 1)] == wanted)
        if len(hits) and (span := int(at[hits].max() - at[hits].min()) + 1) <= _DENSE * len(hits):
            # Many neighbours, as when the whole batch is looked up: one read instead of one for each.
            first = int(at[hits].min())
            block = as_ids(self._pread(span * _ID, first * _ID))
            same = (block[at[hits] - first] == ids[maybe[hits]]).all(axis=1)
            places[maybe[hits[same]]] = at[hits[same]]
            hits = hits[~same]
        for n in hits.tolist():
            place = int(at[n])
            id = ids[maybe[n]].tobytes()
            while place < len(self._prefixes) and self._prefixes[place] == wanted[n]:
                if self.id(place) == id:
                    places[maybe[n]] = place
                    break
                place += 1
        return places

    def find(self, ids: Ids) -> npt.NDArray[np.int64]:
        """Return for each id its place among the condemned, -1 for one that is not condemned."""
        places = self._places(ids)
        hits = np.flatnonzero(places >= 0)
        places[hits[~self.rows[places[hits]]]] = -1
        return places

    def id(self, place: int) -> bytes:
        """Return the condemned id at a place."""
        return self._pread(_ID, place * _ID)


def _bit(slots: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint8]:
    return np.left_shift(np.uint8(1), (slots & np.uint64(7)).astype(np.uint8))
