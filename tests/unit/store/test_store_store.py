"""The store as a whole: create, open, close, latch, reserve."""

from __future__ import annotations

import errno
import logging
import os
import stat

import pytest

from snapfs import limits
from snapfs.errors import Corrupt, Invalid, Latched, Refused, Unavailable
from snapfs.format.records import RecordKind
from snapfs.store.durable import Disk
from snapfs.store.packs import pack_path
from snapfs.store.store import Store
from tests.sim.disk import SimDisk
from tests.sim.world import SimWorld
from tests.unit.store.kit import append, commit, index, plains_of, put, record, replayed


def reopened(store, clean=True):
    store.close(clean=clean)
    return Store.open(store.path, Disk(), store.world)


# --- create -------------------------------------------------------------------------------------------------


def test_a_new_store_is_private(tmp_path, world):
    old = os.umask(0)
    try:
        (tmp_path / 'store').mkdir(mode=0o777)
        store = Store.create(tmp_path / 'store', Disk(), world)
        put(store, plains_of(1, 3))
        put(store, plains_of(1, 3), RecordKind.NODE)
        commit(store)
        store.audit.append({})
        modes = {}
        for path in (store.path, *store.path.rglob('*')):
            modes[str(path.relative_to(tmp_path))] = (path.is_dir(), stat.S_IMODE(path.lstat().st_mode))
        store.close(clean=True)
    finally:
        os.umask(old)
    assert set(modes.values()) == {(True, 0o700), (False, 0o600)}, modes
    assert len(modes) > 15


def test_a_store_is_made_in_an_empty_directory_only(tmp_path, world, store):
    with pytest.raises(Invalid, match='a store already'):
        Store.create(store.path, Disk(), world)
    (tmp_path / 'file').write_bytes(b'')
    (tmp_path / 'full').mkdir()
    (tmp_path / 'full' / 'x').write_bytes(b'')
    for name in ('file', 'full', 'no/such'):
        with pytest.raises(Invalid):
            Store.create(tmp_path / name, Disk(), world)
    assert (tmp_path / 'full' / 'x').exists()


def test_a_store_needs_room(tmp_path, world):
    disk = SimDisk(tmp_path)
    disk.space = 100_000
    with pytest.raises(Refused) as caught:
        Store.create(tmp_path / 'store', disk, world)
    assert caught.value.errno == errno.ENOSPC
    assert list(tmp_path.iterdir()) == []


def test_power_cut_at_every_event_of_creating(tmp_path, world):
    """What is left is a whole store or none."""
    kinds = set()
    for cut in range(1, 100):
        root = tmp_path / f'before-{cut}'
        root.mkdir()
        disk = SimDisk(root)
        disk.cut_at = cut
        try:
            Store.create(root / 'store', disk, world).close(clean=False)
            disk.forget()
            break
        except BaseException as error:
            assert 'at event' in str(error), error
        for seed in range(8):
            after = disk.crash(seed, tmp_path / f'after-{cut}-{seed}') / 'store'
            if (after / 'superblock').exists():
                store = Store.open(after, Disk(), world)
                assert put(store, plains_of(1, 2))
                store.close(clean=False)
                kinds.add('store')
            else:
                with pytest.raises(Invalid):
                    Store.open(after, Disk(), world)
                kinds.add('none')
        disk.forget()
    assert cut > 10
    assert kinds == {'store', 'none'}


@pytest.mark.parametrize('name', ['nothing', 'empty', 'file'])
def test_what_is_no_store_is_not_opened(tmp_path, world, name):
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'file').write_bytes(b'')
    with pytest.raises(Invalid, match='not a snapfs store'):
        Store.open(tmp_path / name, Disk(), world)
    assert not list((tmp_path / 'empty').iterdir())


# --- open and close -----------------------------------------------------------------------------------------


def test_a_second_owner_is_refused(store, world):
    with pytest.raises(Unavailable, match=str(os.getpid())):
        Store.open(store.path, Disk(), world)
    store.close(clean=True)
    again = Store.open(store.path, Disk(), world, mountpoint='/mnt/a')
    assert again.lock.holder().mountpoint == '/mnt/a'
    again.close(clean=True)


def test_an_open_that_fails_lets_go_of_the_lock(store, world):
    store.close(clean=True)
    path = store.path / 'journal' / '0'
    data = path.read_bytes()
    path.write_bytes(b'')
    for _ in range(2):
        with pytest.raises(Corrupt):
            Store.open(store.path, Disk(), world)
    path.write_bytes(data)
    Store.open(store.path, Disk(), world).close(clean=True)


def test_a_clean_close_leaves_nothing_to_do(store):
    ids = put(store, plains_of(1, 5))
    nodes = put(store, plains_of(2, 5), RecordKind.NODE)
    store = reopened(store)
    assert store.was_clean
    assert store.recovered == {}
    assert sorted(index(store)) == sorted(ids + nodes)
    again = put(store, plains_of(3, 5))
    packs = {row.kind: row for row in store.catalog.packs()}
    assert len(packs) == 2
    store = reopened(store)
    assert len(store.catalog.packs()) == 2, 'the open packs are continued'
    assert store.chunks.get_many(ids + again) == plains_of(1, 5) + plains_of(3, 5)
    store.close(clean=False)


def test_a_close_before_the_journal_is_superseded_is_not_clean(store, caplog):
    ids = put(store, plains_of(1, 2))
    record(store, 7)
    store = reopened(store)
    assert not store.was_clean
    assert 'no commit has taken' in caplog.text
    assert replayed(store) == [7]
    assert store.chunks.get_many(ids) == plains_of(1, 2)
    store.close(clean=False)


def test_after_an_unclean_stop_packs_are_sealed(store):
    ids = put(store, plains_of(1, 5))
    commit(store)
    late = put(store, plains_of(2, 5))
    record(store, 7)
    leak = put(store, plains_of(3, 2), RecordKind.NODE)
    store = reopened(store, clean=False)
    assert not store.was_clean
    assert len(store.recovered) == 2
    assert {row.state for row in store.catalog.packs()} == {'sealed'}
    assert {row.kind: row.records for row in store.catalog.packs()} == {1: 10, 2: 2}
    assert replayed(store) == [7]
    assert store.chunks.get_many(ids + late) == plains_of(1, 5) + plains_of(2, 5)
    with pytest.raises(Corrupt):
        store.chunks.get(leak[0])
    assert put(store, plains_of(3, 2), RecordKind.NODE) == leak
    store.close(clean=False)


def test_unclean_again_and_again(store):
    """Recovery can be interrupted at any time, so it must also be repeatable without a change."""
    ids = put(store, plains_of(1, 5))
    record(store, 7)
    for _ in range(3):
        store = reopened(store, clean=False)
        assert replayed(store) == [7]
        assert store.chunks.get_many(ids) == plains_of(1, 5)
        assert [row.records for row in store.catalog.packs()] == [5]
    store.close(clean=False)


def test_a_damaged_pack_does_not_keep_the_store_closed(store, caplog):
    ids = put(store, plains_of(1, 5))
    nodes = put(store, plains_of(1, 5), RecordKind.NODE)
    commit(store)
    location = store.catalog.locate(ids)[ids[2]]
    name, kind = store.chunks._numbers.packs[location.pack]
    path = pack_path(store.path / 'packs', kind, name)
    data = bytearray(path.read_bytes())
    data[location.offset] ^= 1
    store.close(clean=False)
    path.write_bytes(data)
    store = Store.open(store.path, Disk(), store.world)
    assert 'left as it is' in caplog.text
    assert path.read_bytes() == data
    for n in (0, 1, 3, 4):
        assert store.chunks.get(ids[n]) == plains_of(1, 5)[n]
    with pytest.raises(Corrupt):
        store.chunks.get(ids[2])
    assert store.chunks.get_many(nodes) == plains_of(1, 5)
    assert all(row.state == 'sealed' for row in store.catalog.packs())
    store.close(clean=False)


def test_what_the_journal_names_is_never_cut_off(store):
    """P4: a header below the last record that fsync promised is damage, not the end of a torn pack."""
    put(store, plains_of(1, 2))
    commit(store)
    ids = put(store, plains_of(2, 5))
    record(store, 7)
    location = store.chunks._recall(ids[2])
    name, kind = store.chunks._numbers.packs[location.pack]
    path = pack_path(store.path / 'packs', kind, name)
    store.close(clean=False)
    data = bytearray(path.read_bytes())
    data[location.offset] ^= 1
    path.write_bytes(data)
    store = Store.open(store.path, Disk(), store.world)
    replayed(store)
    for n in (0, 1, 3, 4):
        assert store.chunks.get(ids[n]) == plains_of(2, 5)[n]
    store.close(clean=False)


def test_an_open_pack_that_vanished_is_told_and_nothing_else_suffers(store, caplog):
    ids = put(store, plains_of(1, 5))
    nodes = put(store, plains_of(1, 5), RecordKind.NODE)
    commit(store)
    store.close(clean=True)
    (path,) = (path for path in (store.path / 'packs' / 'data').rglob('*') if path.is_file())
    path.unlink()
    store = Store.open(store.path, Disk(), store.world)
    assert 'left as it is' in caplog.text
    with pytest.raises(Corrupt, match=path.name):
        store.chunks.get(ids[0])
    assert store.chunks.get_many(nodes) == plains_of(1, 5)
    store.close(clean=False)


def test_a_store_can_be_reached_through_a_link_but_has_none_inside(store, tmp_path):
    ids = put(store, plains_of(1, 3))
    store.close(clean=True)
    (tmp_path / 'link').symlink_to(store.path)
    again = Store.open(tmp_path / 'link', Disk(), store.world)
    assert again.path == store.path
    again.close(clean=True)
    journal = store.path / 'journal'
    journal.rename(tmp_path / 'away')
    journal.symlink_to(tmp_path / 'away')
    with pytest.raises(Corrupt):
        Store.open(store.path, Disk(), store.world)
    journal.unlink()
    (tmp_path / 'away').rename(journal)
    folder = next((store.path / 'packs' / 'data').iterdir())
    folder.rename(tmp_path / 'packs away')
    folder.symlink_to(tmp_path / 'packs away')
    again = Store.open(store.path, Disk(), store.world)
    with pytest.raises(Corrupt):
        again.chunks.get(ids[0])
    again.close(clean=False)


@pytest.mark.parametrize('content', [b'', b'x' * 80, b'x' * 81])
def test_a_superblock_that_is_none_is_corrupt(store, content):
    store.close(clean=True)
    (store.path / 'superblock').write_bytes(content)
    with pytest.raises(Corrupt):
        Store.open(store.path, Disk(), store.world)


# --- the latch ----------------------------------------------------------------------------------------------


def test_a_latch_holds_over_a_restart_until_somebody_has_looked(store):
    ids = put(store, plains_of(1, 3))
    commit(store)
    record(store, 5)
    store.latch('sync failed')
    assert store.latched == 'sync failed'
    for store in (store, reopened(store, clean=True)):  # noqa: B020
        assert 'sync failed' in store.latched
        assert store.chunks.get_many(ids) == plains_of(1, 3)
        for call in (
            lambda store=store: put(store, plains_of(2, 3)),
            lambda store=store: store.catalog.set_setting('clean', 1),
            lambda store=store: store.registry.volume_add('x', 1),
            lambda store=store: store.audit.append({}),
            lambda store=store: store.give_up_reserve(),
        ):
            with pytest.raises(Latched, match='sync failed'):
                call()
        store.latch('another reason')
    assert not store.was_clean
    assert replayed(store) == [5], 'what fsync promised can be read'
    (incident,) = store.catalog.incidents('store')
    store.catalog.incident_acknowledge(incident.number, 'ann', 9)
    assert store.latched, 'not before a restart'
    store = reopened(store)
    assert store.latched is None
    assert replayed(store) == [5]
    put(store, plains_of(2, 3))
    store.close(clean=False)


def test_latching_never_raises(store, monkeypatch, caplog):
    def broken(*_):
        raise Corrupt('the disk is gone')

    monkeypatch.setattr(store.catalog, 'incidents', broken)
    store.latch('sync failed')
    assert store.latched == 'sync failed'
    assert 'could not be recorded' in caplog.text


def test_a_latched_store_reads_what_was_never_recovered(store):
    """The latch may fall in the crash itself: no pack is touched then, and all the same everything is
    read."""
    ids = put(store, plains_of(1, 3))
    record(store, 5)
    store.latch('guard')
    (path,) = (path for path in (store.path / 'packs' / 'data').rglob('*') if path.is_file())
    data = path.read_bytes()
    store = reopened(store, clean=False)
    assert replayed(store) == [5]
    assert store.chunks.get_many(ids) == plains_of(1, 3)
    assert path.read_bytes() == data
    store.close(clean=False)


# --- room ---------------------------------------------------------------------------------------------------


def test_the_reserve(tmp_path, world, caplog):
    caplog.set_level(logging.WARNING)
    disk = SimDisk(tmp_path)
    store = Store.create(tmp_path / 'store', disk, world)
    assert store.has_reserve
    assert disk.size(store.path / 'reserve') == limits.RESERVE_BYTES
    disk.space = 1000
    assert store.free_bytes() < 4096
    assert store.give_up_reserve()
    assert not store.give_up_reserve()
    assert disk.space == 1000 + limits.RESERVE_BYTES
    assert not store.restore_reserve(), 'no room'
    store.close(clean=True)
    store = Store.open(store.path, disk, world)
    assert 'no reserve' in caplog.text
    assert not store.has_reserve
    disk.space = None
    disk.history.clear()
    assert store.restore_reserve()
    assert disk.history == ['sync', 'sync of directory store']
    assert disk.size(store.path / 'reserve') == limits.RESERVE_BYTES
    assert store.restore_reserve()
    store.close(clean=True)
    disk.forget()


def test_an_unfinished_reserve_is_made_anew(store):
    store.close(clean=True)
    (store.path / 'reserve').write_bytes(b'short')
    again = Store.open(store.path, Disk(), store.world)
    assert (store.path / 'reserve').stat().st_size == limits.RESERVE_BYTES
    again.close(clean=True)


def test_a_full_disk_does_not_keep_the_store_closed(tmp_path, world):
    disk = SimDisk(tmp_path)
    store = Store.create(tmp_path / 'store', disk, world)
    ids = put(store, plains_of(1, 3))
    record(store, 5)
    store.close(clean=False)
    disk.space = 10
    store = Store.open(store.path, disk, world)
    assert not store.has_reserve, 'given up for the footer of the pack'
    assert replayed(store) == [5]
    assert store.chunks.get_many(ids) == plains_of(1, 3)
    store.close(clean=False)
    disk.forget()


def test_counters(store):
    put(store, plains_of(1, 4))
    put(store, plains_of(1, 4))
    append(store, 3)
    counters = store.counters()
    assert counters['put_bytes'] == 2 * counters['new_bytes'] == 2 * sum(map(len, plains_of(1, 4)))
    assert counters['uncommitted_chunks'] == 4
    assert store.statvfs().f_bavail > 0


def test_two_stores_in_one_process_are_two(tmp_path):
    first = Store.create(tmp_path / 'a', Disk(), SimWorld(1))
    second = Store.create(tmp_path / 'b', Disk(), SimWorld(2))
    assert first.superblock.uuid != second.superblock.uuid
    put(first, [b'x'])
    assert index(second) == []
    first.close(clean=True)
    second.close(clean=True)
