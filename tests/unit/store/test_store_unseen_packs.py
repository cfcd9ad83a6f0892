"""An open pack whose bytes the disk does not give after an unclean stop: nothing is said of it, nothing is
cut off, and when the disk gives them again it is as if it always had."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from snapfs.errors import Corrupt
from snapfs.format.packs import PACK_HEADER_BYTES
from snapfs.store.durable import Disk
from snapfs.store.packs import pack_path
from snapfs.store.store import Store
from tests.support.fsck import report_of
from tests.unit.store.kit import commit, plains_of, put, record, replayed


@contextmanager
def blind(path: Path, start: int, end: int) -> Iterator[None]:
    """These bytes of a file cannot be read; with nothing between, it cannot even be opened."""
    inode, read, open_ = path.stat().st_ino, Disk._sys_pread, Disk._sys_open

    def refuse(self: Disk, fd: int, count: int, offset: int) -> Any:
        if os.fstat(fd).st_ino == inode and offset < end and start < offset + count:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return read(self, fd, count, offset)

    def shut(self: Disk, where: Path, flags: int) -> int:
        if where == path and start == end:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return open_(self, where, flags)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Disk, '_sys_pread', refuse)
        patch.setattr(Disk, '_sys_open', shut)
        yield


def opened(store: Store) -> Store:
    return Store.open(store.path, Disk(), store.world)


def place(store: Store, id: bytes) -> tuple[Path, int]:
    location = store.chunks._recall(id) or store.catalog.locate([id])[id]
    name, kind = store.chunks._numbers.packs[location.pack]
    return pack_path(store.path / 'packs', kind, name), location.offset


@pytest.fixture(params=['header', 'committed', 'journalled', 'shut'])
def stopped(
    store: Store, request: Any
) -> tuple[Store, list[bytes], Path, Callable[[], AbstractContextManager[None]]]:
    """A store that has stopped unclean: its chunks, and how its pack is blinded."""
    ids = put(store, plains_of(1, 5))
    commit(store)
    ids += put(store, plains_of(2, 5))
    record(store, 7)
    path, at = place(store, ids[2 if request.param == 'committed' else 7])
    spans = {'header': (0, PACK_HEADER_BYTES), 'shut': (0, 0)}
    start, end = spans.get(request.param, (at, at + 8))
    store.close(clean=False)
    return store, ids, path, lambda: blind(path, start, end)


def test_a_pack_that_is_not_given_stays_open_until_it_is(stopped):
    store, ids, path, hide = stopped
    before = path.read_bytes()
    for _ in range(2):  # the second time the journal says nothing any more
        with hide():
            store = opened(store)
            replayed(store)
            commit(store)
            assert {row.state for row in store.catalog.packs()} == {'open'}
            store.close(clean=True)
        assert path.read_bytes() == before
    store = opened(store)
    assert store.chunks.get_many(ids) == plains_of(1, 5) + plains_of(2, 5)
    store.close(clean=True)
    assert set(report_of(store.path).counts) == {'leaked'}  # nothing names chunks here


def test_what_is_written_meanwhile_goes_elsewhere(stopped):
    store, ids, path, hide = stopped
    before = path.read_bytes()
    with hide():
        store = opened(store)
        replayed(store)
        more = put(store, plains_of(3, 5))
        commit(store)
        assert len(store.catalog.packs()) == 2
        store.close(clean=True)
    assert path.read_bytes() == before
    store = opened(store)
    ids += put(store, plains_of(4, 5))
    commit(store)
    want = plains_of(1, 5) + plains_of(2, 5) + plains_of(4, 5) + plains_of(3, 5)
    assert store.chunks.get_many(ids + more) == want
    store.close(clean=True)
    assert set(report_of(store.path).counts) == {'leaked'}  # nothing names chunks here


def test_a_bad_sector_behind_what_is_promised_is_the_end(store):
    ids = put(store, plains_of(1, 5))
    commit(store)
    late = put(store, plains_of(2, 5))
    store.chunks.sync()
    path, at = place(store, late[2])
    store.close(clean=False)
    with blind(path, at, at + 8):
        store = opened(store)
    assert store.chunks.get_many(ids) == plains_of(1, 5)
    assert [(row.state, row.records) for row in store.catalog.packs()] == [('sealed', 7)]
    store.close(clean=False)


def test_what_is_in_the_file_is_no_matter_of_the_disk(store):
    ids = put(store, plains_of(1, 5))
    commit(store)
    path, at = place(store, ids[2])
    store.close(clean=False)
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)
    store = opened(store)
    with pytest.raises(Corrupt):
        store.chunks.get(ids[2])
    assert {row.state for row in store.catalog.packs()} == {'sealed'}
    store.close(clean=False)
