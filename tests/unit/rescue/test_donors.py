"""Files that may have lost chunks: looked into as if they were dense, without reading their holes."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import pytest

from snapfs import limits
from snapfs.format.ids import data_id
from snapfs.format.superblock import ChunkerParameters
from snapfs.rescue import donors
from snapfs.rescue.recover_values import Lost, Use

CHUNKER = ChunkerParameters(minimum=4096, average=16384, maximum=65536, normalization=2, whole_file_max=8192)
TIB = 1 << 40
NOBODY = b'x' * 32


class Tries:
    """What was looked at: (offset, id), and how many bytes were read for it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *wanted: Lost) -> None:
        self.seen: list[tuple[int, bytes]] = []
        self.read = 0
        self.largest = 0
        self.offers: dict[bytes, Any] = {}
        self.files = donors._Files({one.id: one for one in wanted}, CHUNKER, self.offers)
        true_try, true_pread = self.files._try, os.pread

        def tried(path: Path, offset: int, data: bytes) -> None:
            self.seen.append((offset, data_id(data)))
            true_try(path, offset, data)

        def pread(fd: int, count: int, offset: int) -> bytes:
            data = true_pread(fd, count, offset)
            self.read += len(data)
            self.largest = max(self.largest, len(data))
            return data

        monkeypatch.setattr(self.files, '_try', tried)
        monkeypatch.setattr(donors.os, 'pread', pread)


def write(path: Path, size: int, parts: dict[int, bytes]) -> Path:
    """Make a file with these bytes and holes."""
    with path.open('wb') as file:
        file.truncate(size)
        for offset, data in parts.items():
            os.pwrite(file.fileno(), data, offset)
    return path


def has_holes(path: Path) -> bool:
    with path.open('rb') as file:
        return os.lseek(file.fileno(), 0, os.SEEK_HOLE) < path.stat().st_size


@pytest.mark.parametrize('seed', range(12))
def test_a_file_with_holes_is_cut_as_the_same_bytes_without(tmp_path, monkeypatch, seed):
    rng = random.Random(seed)
    size = rng.choice([3 << 20, (3 << 20) + 12345, 700_001])
    parts = {
        rng.randrange(0, size - 200_000): rng.randbytes(rng.choice([1, 4096, 50_000, 150_000]))
        for _ in range(rng.choice([0, 1, 2, 5]))
    }
    if rng.random() < 0.5:
        parts[size - 100] = rng.randbytes(100)
    sparse = write(tmp_path / 'sparse', size, parts)
    dense = tmp_path / 'dense'
    dense.write_bytes(sparse.read_bytes())
    assert has_holes(sparse) and not has_holes(dense), 'this filesystem keeps no holes'
    found = []
    for path in (sparse, dense):
        tries = Tries(monkeypatch)
        tries.files.look(path)
        monkeypatch.undo()
        data = path.read_bytes()
        ends = [offset for offset, _ in tries.seen[1:]] + [size]
        assert all(
            data_id(data[offset:end]) == id
            for (offset, id), end in zip(tries.seen, ends, strict=True)
            if end - offset <= CHUNKER.maximum
        )
        found.append({one for one in tries.seen if any(data[one[0] : one[0] + CHUNKER.maximum])})
    assert found[0] >= found[1], 'a chunk with something in it was not looked at'


def test_the_holes_of_a_huge_file_are_not_read(tmp_path, monkeypatch):
    rng = random.Random(5)
    parts = {0: rng.randbytes(90_000), 3 * TIB + 8192: rng.randbytes(90_000)}
    path = write(tmp_path / 'image', 5 * TIB, parts)
    tries = Tries(monkeypatch)
    tries.files.look(path)
    assert tries.read < limits.MIB and len(tries.seen) < 100
    assert {0, 3} <= {offset // TIB for offset, _ in tries.seen}


def test_the_place_where_a_chunk_was_is_looked_at_in_a_huge_file_too(tmp_path, monkeypatch):
    data = random.Random(6).randbytes(30_000)
    at = 4 * TIB + 77
    path = write(tmp_path / 'image', 5 * TIB, {at: data})
    lost = Lost(data_id(data), 1, 'gone', (Use(20, '/vm/image', at, at + len(data)),), ())
    tries = Tries(monkeypatch, lost)
    tries.files.look(path)
    (offer,) = tries.offers[lost.id]
    assert (offer.path, offer.offset, offer.length) == (path, at, len(data))


def test_where_the_system_tells_of_no_holes_everything_is_read(tmp_path, monkeypatch):
    path = write(tmp_path / 'file', 2 << 20, {1 << 20: b'data' * 5000})
    tries = Tries(monkeypatch)
    true = os.lseek

    def lseek(fd: int, offset: int, how: int) -> int:
        if how in (os.SEEK_DATA, os.SEEK_HOLE):
            raise OSError(22, 'not here')
        return true(fd, offset, how)

    monkeypatch.setattr(donors.os, 'lseek', lseek)
    tries.files.look(path)
    assert tries.read == 2 << 20


def test_a_region_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(donors, 'REGION_BYTES', 1 << 20)
    path = tmp_path / 'dense'
    path.write_bytes(random.Random(7).randbytes(5 << 20))
    tries = Tries(monkeypatch)
    tries.files.look(path)
    assert tries.largest == 1 << 20 and tries.read == 5 << 20


def test_a_donor_is_offered_once_however_it_was_found(tmp_path, monkeypatch):
    """At the place where the lost chunk was, and where the cutter cuts: the same bytes of the same file."""
    data = random.Random(1).randbytes(5_000)
    lost = Lost(data_id(data), 1, 'gone', (Use(7, '/a file', 0, 5_000),), ())
    tries = Tries(monkeypatch, lost)
    for _ in range(2):  # as below two directories of which one lies in the other
        tries.files.look(write(tmp_path / 'a file', 5_000, {0: data}))
    assert tries.offers == {lost.id: [donors.Donor(tmp_path / 'a file', 0, 5_000, False)]}
