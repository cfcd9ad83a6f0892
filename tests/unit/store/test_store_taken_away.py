"""Packs that somebody deletes, or replaces, while they are open here: every byte is still there, and gets its
name again before anything is called durable."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from snapfs.errors import Latched, Refused
from snapfs.format.records import RecordKind
from snapfs.store.durable import Disk
from snapfs.store.packs import pack_path
from snapfs.store.store import Store
from tests.support.fsck import report_of
from tests.unit.store.kit import commit, plains_of, put, record, replayed

KINDS = [RecordKind.DATA, RecordKind.NODE]
NO_NODES = {RecordKind.DATA: [], RecordKind.NODE: ['node-unreadable']}  # they are not, in these tests


def packs(store: Store, kind: RecordKind = RecordKind.DATA) -> list[Path]:
    return [
        pack_path(store.path / 'packs', row.kind, row.name)
        for row in store.catalog.packs()
        if row.kind == kind
    ]


def reopened(store: Store, clean: bool = True) -> Store:
    store.close(clean=clean)
    return Store.open(store.path, Disk(), store.world)


def sound(store: Store, *more: str) -> None:
    store.close(clean=True)
    assert set(report_of(store.path).counts) == {'leaked', *more}  # nothing names chunks here


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('how', ['file', 'directory above'])
def test_what_is_synced_later_is_found(store, kind, how):
    ids = put(store, plains_of(1, 3), kind)
    commit(store)
    (path,) = packs(store, kind)
    shutil.rmtree(path.parent) if how == 'directory above' else path.unlink()
    ids += put(store, plains_of(2, 3), kind)
    record(store, 7)
    assert path.exists()
    store = reopened(store, clean=False)  # a power cut, as far as this process knows
    replayed(store)
    commit(store)
    assert store.chunks.get_many(ids) == plains_of(1, 3) + plains_of(2, 3)
    sound(store, *NO_NODES[kind])


@pytest.mark.parametrize('kind', KINDS)
def test_a_clean_close_puts_it_back_with_nothing_to_sync(store, kind):
    ids = put(store, plains_of(1, 3), kind)
    commit(store)
    (path,) = packs(store, kind)
    path.unlink()
    store = reopened(store)
    assert store.chunks.get_many(ids) == plains_of(1, 3)
    sound(store, *NO_NODES[kind])


def test_a_reader_gets_it_at_once(store):
    ids = put(store, plains_of(1, 3))
    commit(store)
    (path,) = packs(store)
    store.chunks._files.clear()
    store.chunks._plains.__init__(1 << 20)
    path.unlink()
    assert store.chunks.get_many(ids) == plains_of(1, 3)
    assert path.exists() and not store.chunks.unreadable
    sound(store)


def test_what_is_appended_afterwards_is_read(store):
    """Readers open the file that has the name now."""
    ids = put(store, plains_of(1, 3))
    commit(store)
    assert store.chunks.get_many(ids) == plains_of(1, 3)
    (path,) = packs(store)
    path.unlink()
    ids += put(store, plains_of(2, 3))
    store.chunks.sync()
    ids += put(store, plains_of(3, 3))
    store.chunks.sync()
    store.chunks._plains.__init__(1 << 20)
    assert store.chunks.get_many(ids) == plains_of(1, 3) + plains_of(2, 3) + plains_of(3, 3)
    commit(store)
    sound(store)


def test_what_has_the_name_meanwhile_is_kept(store):
    ids = put(store, plains_of(1, 3))
    commit(store)
    (path,) = packs(store)
    path.unlink()
    path.write_bytes(b'an older copy')
    ids += put(store, plains_of(2, 3))
    store.chunks.sync()
    assert path.with_name(f'{path.name}.lost-1').read_bytes() == b'an older copy'
    commit(store)
    assert store.chunks.get_many(ids) == plains_of(1, 3) + plains_of(2, 3)
    sound(store, 'entry-unknown')


def test_a_sealed_pack_that_is_open_to_be_read_comes_back(store):
    ids = put(store, plains_of(1, 3))
    store.chunks.seal_pack(RecordKind.DATA, store.chunks._recall(ids[0]).pack)
    commit(store)
    store = reopened(store)
    assert store.chunks.get_many(ids) == plains_of(1, 3)
    (path,) = packs(store)
    data = path.read_bytes()
    path.unlink()
    assert store.chunks.put_back() == 1
    assert path.read_bytes() == data
    assert store.chunks.put_back() == 0
    path.unlink()
    path.write_bytes(b'a better one, perhaps')
    assert store.chunks.put_back() == 0
    assert path.read_bytes() == b'a better one, perhaps'
    path.write_bytes(data)
    sound(store)


def test_without_room_nothing_is_lost(store, monkeypatch):
    ids = put(store, plains_of(1, 3))
    commit(store)
    (path,) = packs(store)
    path.unlink()
    ids += put(store, plains_of(2, 3))

    def full(*_: Any) -> None:
        raise Refused(errno.ENOSPC, 'no room')

    with monkeypatch.context() as patch:
        patch.setattr(Disk, 'write_blocks', full)
        for _ in range(2):
            with pytest.raises(Refused):
                store.chunks.sync()
        assert store.chunks.unsynced
        with pytest.raises(Refused):
            store.chunks.put_back()
    store.chunks.sync()
    assert store.latched is None
    commit(store)
    assert store.chunks.get_many(ids) == plains_of(1, 3) + plains_of(2, 3)
    sound(store)


@pytest.mark.parametrize('how', ['gone', 'another disk'])
def test_nothing_is_made_where_the_packs_are_gone_as_a_whole(store, monkeypatch, how):
    """It is unmounted, or another disk is mounted over it: one does not write there."""
    put(store, plains_of(1, 3))
    commit(store)
    (path,) = packs(store)
    (store.path / 'packs').rename(store.path / 'away')
    with monkeypatch.context() as patch:
        if how == 'another disk':
            (store.path / 'packs' / 'data').mkdir(parents=True)
            patch.setattr(Disk, 'on_same_disk', lambda *_: False)
        assert store.chunks.put_back() == 0
        assert not path.exists()
    shutil.rmtree(store.path / 'packs', ignore_errors=True)
    (store.path / 'away').rename(store.path / 'packs')
    sound(store)


def test_another_disk_is_another_one(tmp_path):
    fd = os.open(tmp_path / 'file', os.O_RDWR | os.O_CREAT)
    try:
        assert Disk().on_same_disk(fd, tmp_path) and not Disk().on_same_disk(fd, Path('/proc'))
        assert not Disk().on_same_disk(fd, tmp_path / 'nothing')
        assert Disk().is_at(fd, tmp_path / 'file') and not Disk().is_at(fd, tmp_path / 'other')
        (tmp_path / 'link').symlink_to('file')
        assert not Disk().is_at(fd, tmp_path / 'link')
    finally:
        os.close(fd)


def test_a_disk_that_tells_nothing_any_more_takes_nothing_away(store, monkeypatch):
    """A power cut under xfs: even `fstat` fails. What was synced is synced, and the next record may come."""
    put(store, plains_of(1, 3))
    commit(store)

    def dead(*_: Any, **__: Any) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        for name in ('lstat', 'stat', 'fstat'):
            patch.setattr(os, name, dead)
        assert store.chunks.writers[RecordKind.DATA].put_back() == 0
        assert store.catalog._places.taken_away() == ''
        record(store, 7)
        record(store, 8)
    assert store.latched is None


def test_a_journal_that_was_deleted_stops_the_store(store):
    """Its records would be synced, and never found."""
    record(store, 7)
    for number in (0, 1):
        (store.path / 'journal' / str(number)).unlink()
    with pytest.raises(Latched, match=r'journal/. was deleted while it was written'):
        record(store, 8)


# --- the catalog -----------------------------------------------------------------------------------------
TAKEN = ['catalog.sqlite', 'catalog.sqlite-wal']


@pytest.mark.parametrize('how', ['deleted', 'replaced'])
@pytest.mark.parametrize('name', TAKEN)
def test_a_catalog_that_is_taken_away_comes_back_and_the_store_stops(store, name, how):
    """With all that was committed, also what only its log had."""
    ids = put(store, plains_of(1, 3))
    commit(store)
    epoch = store.catalog.epoch
    (store.path / name).unlink()
    if how == 'replaced':
        (store.path / name).write_bytes(b'another one')
    more = put(store, plains_of(2, 3))
    with pytest.raises(Latched, match=f'{name} was deleted, or replaced, while the store was open'):
        commit(store)
    assert store.chunks.get_many(ids) == plains_of(1, 3), 'readers go on'
    store = reopened(store)
    assert f'{name} was deleted' in store.latched
    assert store.catalog.setting('epoch') == epoch
    assert store.chunks.get_many(ids) == plains_of(1, 3)
    if how == 'replaced':
        assert b'another one' in [one.read_bytes() for one in store.path.glob('catalog.sqlite.lost-1*')]
    (row,) = store.catalog.incidents('store')
    store.catalog.incident_acknowledge(row.number, 'ann', 9)
    store = reopened(store)
    assert store.latched is None
    more = put(store, plains_of(2, 3))
    commit(store)
    assert store.chunks.get_many(ids + more) == plains_of(1, 3) + plains_of(2, 3)
    sound(store)


def test_one_that_cannot_be_put_back_stops_the_store_all_the_same(store, monkeypatch):
    commit(store)
    (store.path / 'catalog.sqlite').unlink()

    def full(*_: Any, **__: Any) -> None:
        raise Refused(errno.ENOSPC, 'no room')

    monkeypatch.setattr(Disk, 'open_write', full)
    with pytest.raises(Latched, match='was deleted'):
        commit(store)
    assert not (store.path / 'catalog.sqlite').exists()


def test_a_catalog_that_the_disk_does_not_show_is_not_gone(store, monkeypatch):
    commit(store)

    def blind(*_: Any) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(os, 'lstat', blind)
        assert store.catalog._places.taken_away() == ''
    commit(store)
    assert store.latched is None
