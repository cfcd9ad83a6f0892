"""Tool fsck, badrows: records that cannot be read, in temporary files. One process writes each file, several
read it.

However many there are, memory holds those of one pack. What is wrong with each is kept as text in a second
file; a process writes the same text once, as far as it remembers."""

from __future__ import annotations

import os
from array import array
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

CODES = ('record-header', 'record-payload', 'node-unreadable')
TEXTS_REMEMBERED = 1000
TEXT_BYTES_MAX = 1000
# `named`: a row of the index or of quarantine names it. `text`, `length`: where the text is, in bytes.
BAD = np.dtype([('offset', 'u4'), ('code', 'u1'), ('named', 'u1'), ('length', 'u2'), ('text', 'u8')])
NAMED_AT = 5  # of a row

assert BAD.itemsize == 16 and BAD.fields is not None and BAD.fields['named'][1] == NAMED_AT


@dataclass(frozen=True, slots=True)
class BadRows:
    """The bad records of one pack, ascending by offset, each offset once: `count` rows from row `start` of a
    file on."""

    path: str
    start: int
    count: int

    def read(self) -> NDArray[np.void]:
        """Return the rows. OSError."""
        return np.fromfile(self.path, dtype=BAD, count=self.count, offset=self.start * BAD.itemsize)

    def name(self, rows: NDArray[np.int64]) -> None:
        """Note that these rows, by number, are named. Other processes may do the same meanwhile. OSError."""
        fd = os.open(self.path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            for row in rows.tolist():
                os.pwrite(fd, b'\x01', (self.start + row) * BAD.itemsize + NAMED_AT)
        finally:
            os.close(fd)

    def what(self, row: NDArray[np.void]) -> str:
        """Return what is wrong with the record of a row. OSError."""
        with Path(f'{self.path}-text').open('rb') as file:
            file.seek(int(row['text']))
            return file.read(int(row['length'])).decode('utf-8', 'replace')


class BadWriter:
    """Takes the bad records of one pack after the other."""

    def __init__(self, folder: Path) -> None:
        self._path = f'{folder}/bad-{os.getpid()}'
        self._rows = 0
        self._text_bytes = 0
        self._texts: dict[str, tuple[int, int]] = {}
        self.begin()

    def begin(self) -> None:
        """Begin a pack; what was taken of one that was not finished is forgotten."""
        if len(getattr(self, '_new', b'')):
            self._texts = {}  # some of them were not written
        self._offsets, self._codes = array('I'), array('B')
        self._at, self._lengths = array('Q'), array('H')
        self._new = bytearray()

    def add(self, offset: int, code: str, what: str) -> None:
        """Take a record; of two told at one offset the later one counts."""
        place = self._texts.get(what)
        if place is None:
            text = what.encode('utf-8', 'backslashreplace')[:TEXT_BYTES_MAX]
            place = self._text_bytes + len(self._new), len(text)
            self._new += text
            if len(self._texts) < TEXTS_REMEMBERED:
                self._texts[what] = place
        self._offsets.append(offset)
        self._codes.append(CODES.index(code))
        self._at.append(place[0])
        self._lengths.append(place[1])

    def finish(self) -> BadRows | None:
        """End a pack: write its bad records, if there are any. OSError."""
        if not self._offsets:
            return None
        rows = np.zeros(len(self._offsets), dtype=BAD)
        rows['offset'], rows['code'] = self._offsets, self._codes
        rows['text'], rows['length'] = self._at, self._lengths
        rows = rows[np.argsort(rows['offset'], kind='stable')]
        rows = rows[np.r_[rows['offset'][1:] != rows['offset'][:-1], True]]
        with Path(f'{self._path}-text').open('ab') as file:
            file.write(self._new)
        with Path(self._path).open('ab') as file:
            file.write(rows.tobytes())
        done = BadRows(self._path, self._rows, len(rows))
        self._rows += len(rows)
        self._text_bytes += len(self._new)
        self._new = bytearray()
        self.begin()
        return done
