"""Records that the disk does not give: told as lost like wrong bytes, or read from their second copy."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from snapfs.errors import Corrupt
from snapfs.format.records import HEADER_BYTES, RecordKind
from snapfs.store.durable import Disk
from snapfs.store.packs import pack_path
from snapfs.store.store import Store
from tests.sim.world import SimWorld
from tests.unit.store.kit import commit
from tests.unit.store.test_store_mirror import forget

PLAINS = [b'chunk %d ' % number * 300 for number in range(9)]


class BadDisk(Disk):
    """`bad`: by inode, the offset of a byte that cannot be read. Nothing is taken from the page cache."""

    def __init__(self) -> None:
        super().__init__()
        self.bad: dict[int, int] = {}

    def _sys_pread(self, fd: int, count: int, offset: int) -> bytes:
        at = self.bad.get(os.fstat(fd).st_ino, -1)
        if offset <= at < offset + count:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return super()._sys_pread(fd, count, offset)

    def _sys_preadv_nowait(self, fd: int, buffer: bytearray, offset: int) -> int:
        raise BlockingIOError


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = Store.create(tmp_path / 'store', BadDisk(), SimWorld(1))
    yield made
    made.close(clean=True)


def put(store: Store, kind: RecordKind) -> list[bytes]:
    ids = store.chunks.put_batch(kind, PLAINS)
    commit(store)
    forget(store)
    return ids


def lose(store: Store, id: bytes) -> None:
    (location,) = store.catalog.locate([id]).values()
    name, kind = store.chunks._numbers.packs[location.pack]
    inode = pack_path(store.path / 'packs', kind, name).stat().st_ino
    store.disk.bad[inode] = location.offset + HEADER_BYTES + 3


@pytest.mark.parametrize('together', [False, True])
def test_a_node_is_read_from_its_second_copy(store: Store, together: bool) -> None:
    ids = put(store, RecordKind.NODE)
    assert store.mirror.copy()
    lose(store, ids[4])
    assert store.chunks.get_many(ids if together else ids[4:5]) == (PLAINS if together else PLAINS[4:5])
    assert store.chunks.mirrored == {ids[4]} and not store.chunks.unreadable


@pytest.mark.parametrize('together', [False, True])
def test_a_chunk_of_data_is_noted_as_lost_and_no_other(store: Store, together: bool) -> None:
    ids = put(store, RecordKind.DATA)
    lose(store, ids[4])
    with pytest.raises(Corrupt, match='Input/output error'):
        store.chunks.get_many(ids if together else ids[4:5])
    assert store.chunks.unreadable == {ids[4]}
    ((id, why),) = store.chunks.take_damage().items()
    assert id == ids[4] and 'Input/output error' in why
    assert store.chunks.get_many([*ids[:4], *ids[5:]]) == [*PLAINS[:4], *PLAINS[5:]]
    store.disk.bad.clear()
    assert store.chunks.get_many(ids) == PLAINS
    assert not store.chunks.unreadable and store.chunks.take_damage() == {ids[4]: None}
