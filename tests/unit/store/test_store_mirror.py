"""Second copies of nodes: made of what is durable, read when a pack has lost a node, gone with their pack."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from snapfs import limits
from snapfs.errors import Corrupt
from snapfs.format.records import HEADER_BYTES, RecordKind
from snapfs.store.durable import Disk
from snapfs.store.mirror import FOLDER, mirror_path
from snapfs.store.packs import pack_path
from snapfs.store.store import Store
from tests.sim.world import SimWorld
from tests.unit.store.kit import commit

NODES = [b'node %d ' % number * 300 for number in range(20)]


@pytest.fixture
def store(tmp_path: Path):
    made = Store.create(tmp_path / 'store', Disk(), SimWorld(1))
    yield made
    if made.disk.latched is None:
        made.close(clean=True)


def put(store: Store, plains: list[bytes], kind: RecordKind = RecordKind.NODE) -> list[bytes]:
    ids = store.chunks.put_batch(kind, plains)
    commit(store)
    return ids


def copies(store: Store) -> dict[str, bytes]:
    root = store.path / FOLDER
    return {path.name: path.read_bytes() for path in root.glob('*/*')} if root.exists() else {}


def packs(store: Store, kind: RecordKind = RecordKind.NODE) -> dict[str, bytes]:
    found = {}
    for row in store.catalog.packs():
        if row.kind == kind:
            data = pack_path(store.path / 'packs', row.kind, row.name).read_bytes()
            found[row.name.hex()] = data[: row.bytes]
    return found


def forget(store: Store) -> None:
    for cache in (store.chunks._plains, store.chunks._locations, store.chunks._files):
        cache.__init__(cache._max)


def damage(store: Store, id: bytes) -> None:
    (location,) = store.catalog.locate([id]).values()
    name, kind = store.chunks._numbers.packs[location.pack]
    with pack_path(store.path / 'packs', kind, name).open('r+b') as file:
        file.seek(location.offset + HEADER_BYTES)
        file.write(b'\0' * 8)


def test_a_copy_has_the_durable_bytes_of_each_meta_pack_and_grows_with_it(store):
    put(store, NODES[:5])
    put(store, [b'data' * 500], RecordKind.DATA)
    assert store.mirror.copy() > 0
    first = copies(store)
    assert first == packs(store)
    assert store.mirror.copy() == 0, 'nothing is new'
    put(store, NODES[5:])
    grown = sum(map(len, packs(store).values())) - sum(map(len, first.values()))
    assert store.mirror.copy() == grown > 0, 'only what is new is copied'
    assert copies(store) == packs(store)


def test_a_node_that_is_damaged_or_gone_is_read_from_its_copy(store, caplog):
    ids = put(store, NODES)
    store.mirror.copy()
    damage(store, ids[3])
    forget(store)
    assert store.chunks.get_many(ids) == NODES
    assert 'read from its second copy' in caplog.text
    assert store.chunks.mirrored == {ids[3]} and not store.chunks.unreadable
    for row in store.catalog.packs():
        if row.kind == RecordKind.NODE:
            pack_path(store.path / 'packs', row.kind, row.name).unlink()
    forget(store)
    assert store.chunks.get_many(ids) == NODES


def test_what_neither_has_is_corrupt(store):
    ids = put(store, NODES)
    store.mirror.copy()
    damage(store, ids[3])
    (name,) = packs(store)
    path = mirror_path(store.path, bytes.fromhex(name))
    (location,) = store.catalog.locate([ids[3]]).values()
    with path.open('r+b') as file:
        file.seek(location.offset + HEADER_BYTES)
        file.write(b'\0' * 8)
    forget(store)
    with pytest.raises(Corrupt, match=ids[3].hex()):
        store.chunks.get(ids[3])
    assert store.chunks.get(ids[4]) == NODES[4]
    path.unlink()
    os.symlink('/dev/zero', path)
    forget(store)
    with pytest.raises(Corrupt):
        store.chunks.get(ids[3])


def test_data_has_no_copy(store):
    (id,) = put(store, [b'data' * 500], RecordKind.DATA)
    store.mirror.copy()
    damage(store, id)
    forget(store)
    with pytest.raises(Corrupt):
        store.chunks.get(id)


def test_a_read_of_what_was_freed_is_an_alarm_before_any_copy_is_looked_at(store):
    """The pack is gone and its chunks count as freed: the copy, which may still be there, hides nothing."""
    (id,) = put(store, NODES[:1])
    (location,) = store.catalog.locate([id]).values()
    store.chunks.seal_pack(RecordKind.NODE, location.pack)  # one that is open here would come back
    commit(store)
    store.mirror.copy()
    store.chunks.prefetch_locations([id])
    alarms = []
    store.chunks.on_condemned = lambda found, table: alarms.append((found, table))
    with store.catalog.transaction() as db:
        columns = 'id, pack, offset, stored, plain, codec, kind, epoch'
        db.execute(f'INSERT INTO quarantine SELECT {columns}, 1 FROM chunk WHERE id = ?', (id,))
        db.execute('DELETE FROM chunk WHERE id = ?', (id,))
    name, kind = store.chunks._numbers.packs[location.pack]
    pack_path(store.path / 'packs', kind, name).unlink()
    store.chunks._durable.clear()
    store.chunks._files.__init__(store.chunks._files._max)
    assert store.chunks.get(id) == NODES[0]
    assert alarms == [(id, 'quarantine')]


def test_a_copy_goes_only_when_neither_catalog_nor_disk_has_its_pack(store):
    put(store, NODES)
    store.mirror.copy()
    (name,) = packs(store)
    with store.catalog.transaction() as db:
        db.execute('DELETE FROM chunk')
        db.execute('DELETE FROM pack')
    store.mirror.copy()
    assert set(copies(store)) == {name}, 'the pack is still on the disk'
    pack_path(store.path / 'packs', RecordKind.NODE, bytes.fromhex(name)).unlink()
    store.mirror.copy()
    assert copies(store) == {}


def test_the_copy_of_a_pack_that_was_lost_stays(store):
    ids = put(store, NODES)
    store.mirror.copy()
    (name,) = packs(store)
    pack_path(store.path / 'packs', RecordKind.NODE, bytes.fromhex(name)).unlink()
    forget(store)
    assert store.mirror.copy() == 0
    assert set(copies(store)) == {name}
    assert store.chunks.get_many(ids) == NODES


def test_another_record_in_the_place_of_a_node_is_not_taken_for_it(store):
    ids = put(store, [NODES[0], NODES[1]])
    store.mirror.copy()
    places = store.catalog.locate(ids)
    (name,) = packs(store)
    path = mirror_path(store.path, bytes.fromhex(name))
    data = bytearray(path.read_bytes())
    first, second = (places[id] for id in ids)
    assert first.stored_length == second.stored_length
    length = HEADER_BYTES + first.stored_length
    data[first.offset : first.offset + length] = data[second.offset : second.offset + length]
    path.write_bytes(data)
    damage(store, ids[0])
    forget(store)
    with pytest.raises(Corrupt):
        store.chunks.get(ids[0])


def test_on_a_disk_that_is_nearly_full_nothing_is_copied(store, monkeypatch):
    put(store, NODES)
    monkeypatch.setattr(limits, 'FREE_BYTES_MIN', 1 << 60)
    assert store.mirror.copy() == 0
    assert copies(store) == {}


def test_a_copy_that_a_power_cut_left_unsynced_is_made_again(tmp_path):
    path = tmp_path / 'store'
    store = Store.create(path, Disk(), SimWorld(1))
    put(store, NODES[:5])
    store.mirror.copy()
    wanted = packs(store)
    store.close(clean=False)
    (name,) = wanted
    copy = mirror_path(path, bytes.fromhex(name))
    copy.write_bytes(b'\xff' * len(wanted[name]))
    store = Store.open(path, Disk(), SimWorld(2))
    # Recovery has sealed the pack by now; what its copy has is not believed.
    store.mirror.copy()
    durable = packs(store)[name]
    assert copies(store)[name][: len(durable)] == durable
    store.close(clean=True)
