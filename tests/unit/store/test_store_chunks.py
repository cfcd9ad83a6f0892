"""The chunk store: put, share, sync, hand over to a commit, get, verify."""

from __future__ import annotations

import errno
import random

import pytest

from snapfs import limits
from snapfs.errors import Corrupt, Latched, Refused
from snapfs.format.ids import data_id, node_id
from snapfs.format.journal import NewChunk
from snapfs.format.packs import PACK_HEADER_BYTES, PackHeader, encode_pack_header
from snapfs.format.records import HEADER_BYTES, RecordKind
from snapfs.store.packs import pack_path
from snapfs.store.rows import CommitRows
from snapfs.store.store import Store
from tests.sim.disk import SimDisk
from tests.unit.store.kit import commit, index, plains_of, put


def reopened(store):
    store.close(clean=True)
    return Store.open(store.path, store.disk, store.world)


def drop_memory(store):
    """Forget what would keep a read from the disk."""
    for cache in (store.chunks._plains, store.chunks._locations, store.chunks._files):
        cache.__init__(cache._max)


def pack_file(store, id):
    """Return (path, offset of the record) of a chunk."""
    location = store.chunks._recall(id) or store.catalog.locate([id])[id]
    name, kind = store.chunks._numbers.packs[location.pack]
    return pack_path(store.path / 'packs', kind, name), location.offset


def test_ids_are_those_of_the_kind(store):
    plains = plains_of(1, 3)
    assert put(store, plains) == [data_id(plain) for plain in plains]
    assert put(store, plains, RecordKind.NODE) == [node_id(plain) for plain in plains]
    assert store.chunks.get(data_id(plains[0])) == store.chunks.get(node_id(plains[0])) == plains[0]


def test_content_is_stored_once(store):
    plains = plains_of(1, 4)
    ids = put(store, [*plains, plains[0], plains[1]])
    assert ids == [data_id(plain) for plain in [*plains, plains[0], plains[1]]]
    stored = store.chunks.stored_bytes
    assert put(store, plains) == ids[:4], 'put since the last commit'
    commit(store)
    assert put(store, plains) == ids[:4], 'in the index'
    store = reopened(store)
    assert put(store, plains) == ids[:4]
    assert store.chunks.stored_bytes == 0 < stored
    assert (store.chunks.put_bytes, store.chunks.new_bytes) == (sum(map(len, plains)), 0)
    store.close(clean=False)


def test_any_buffer_can_be_put(store):
    plain = random.Random(1).randbytes(5000)
    ids = put(store, [memoryview(plain), bytearray(plain), plain[:100], b''])
    assert store.chunks.get_many(ids) == [plain, plain, plain[:100], b'']


@pytest.mark.parametrize('table', ['quarantine', 'freed'])
def test_writers_are_blind_to_what_is_condemned(store, table):
    """P3: nothing new ever refers to a condemned chunk, also not through a cache."""
    plains = plains_of(1, 2)
    ids = put(store, plains)
    commit(store)
    assert store.chunks.get_many(ids) == plains  # in every cache there is
    condemn(store, ids[0], table)
    stored = store.chunks.stored_bytes
    assert put(store, plains) == ids
    commit(store)
    assert store.chunks.stored_bytes > stored, 'a fresh copy'
    fresh = store.catalog.locate(ids)[ids[0]]
    old = store.catalog.query(f'SELECT pack, offset FROM {table}')[0]
    assert tuple(fresh[:2]) != old


def condemn(store, id, table):
    with store.catalog.transaction() as db:
        db.execute(f'INSERT INTO {table} SELECT *, 1 FROM chunk WHERE id = ?', (id,))
        db.execute('DELETE FROM chunk WHERE id = ?', (id,))


@pytest.mark.parametrize('table', ['quarantine', 'freed'])
def test_readers_are_served_what_is_condemned_and_that_is_an_alarm(store, table):
    plains = plains_of(1, 2)
    ids = put(store, plains)
    commit(store)
    condemn(store, ids[0], table)
    store = reopened(store)
    assert store.catalog.incidents() == []
    assert store.chunks.get(ids[1]) == plains[1]
    assert store.catalog.incidents() == []
    assert store.chunks.get(ids[0]) == plains[0]
    (incident,) = store.catalog.incidents('collector')
    assert 'P7' in incident.reason
    assert ids[0].hex() in incident.reason
    assert table in incident.reason
    assert store.latched is None, 'reading and writing go on'
    again = []
    store.chunks.on_condemned = lambda id, where: again.append((id, where))
    drop_memory(store)
    store.chunks.get_many(ids)
    store.chunks._plains = type(store.chunks._plains)(0)
    store.chunks.get_many(ids)
    assert again == [(ids[0], table)] * 2, 'no cached location hides such a read'
    store.close(clean=False)


def test_a_fresh_copy_is_read_rather_than_a_condemned_one(store):
    plain = plains_of(1, 1)
    (id,) = put(store, plain)
    commit(store)
    condemn(store, id, 'quarantine')
    put(store, plain)
    commit(store)
    store = reopened(store)
    alarms = []
    store.chunks.on_condemned = lambda id, where: alarms.append(id)
    assert store.chunks.get(id) == plain[0]
    assert alarms == []
    store.close(clean=False)


def test_nobody_has_it(store):
    missing = data_id(b'never put')
    for call in (store.chunks.get, store.chunks.get_nowait):
        with pytest.raises(Corrupt, match=missing.hex()):
            call(missing)
    with pytest.raises(Corrupt):
        store.chunks.get_many([*put(store, [b'x']), missing])


# --- durability ---------------------------------------------------------------------------------------------


def test_only_durable_chunks_are_handed_out(store):
    """P4: neither the journal nor the catalog names what a power cut could take."""
    first = put(store, plains_of(1, 3))
    assert store.chunks.unsynced
    assert store.chunks.take_new() == []
    assert store.chunks.commit_rows().chunks == ()
    store.chunks.sync()
    assert not store.chunks.unsynced
    second = put(store, plains_of(2, 2))
    assert [row.id for row in store.chunks.commit_rows().chunks] == first
    new = store.chunks.take_new()
    assert [chunk.id for chunk in new] == first
    assert store.chunks.take_new() == []
    store.chunks.sync()
    assert [chunk.id for chunk in store.chunks.take_new()] == second
    assert {row.id for row in store.chunks.commit_rows().chunks} == {*first, *second}
    names = {name for name, _ in store.chunks._numbers.packs.values()}
    assert {chunk.pack_name for chunk in new} <= names


def test_a_failed_sync_hands_out_nothing(tmp_path, world):
    disk = SimDisk(tmp_path)
    store = Store.create(tmp_path / 'store', disk, world)
    put(store, plains_of(1, 3))
    disk.fail('sync', errno.EIO)
    for _ in range(2):
        with pytest.raises(Latched):
            store.chunks.sync()
        assert store.chunks.take_new() == []
        assert store.chunks.commit_rows().chunks == ()
    with pytest.raises(Latched):
        put(store, plains_of(2, 3))
    assert store.chunks.get_many(put(store, plains_of(1, 3))) == plains_of(1, 3), 'reading goes on'
    store.close(clean=True)
    disk.forget()


def test_what_a_commit_took_is_the_catalogs(store):
    ids = put(store, plains_of(1, 3))
    store.chunks.sync()
    rows = store.chunks.commit_rows()
    late = put(store, plains_of(2, 2))
    commit(store)
    assert sorted(index(store)) == sorted(ids + late)
    store.chunks.committed(rows)  # rows that are gone already do no harm
    assert store.chunks.uncommitted == 0
    assert store.chunks.take_new() == [], 'the journal must not name them again'
    assert store.chunks.commit_rows() == CommitRows((), ())


def test_a_chunk_put_during_a_commit_stays_for_the_next(store):
    put(store, plains_of(1, 3))
    store.chunks.sync()
    rows = store.chunks.commit_rows()
    late = put(store, plains_of(2, 2))
    store.chunks.sync()
    store.chunks.committed(rows)
    assert [row.id for row in store.chunks.commit_rows().chunks] == late
    assert [chunk.id for chunk in store.chunks.take_new()] == late
    (pack,) = store.chunks.commit_rows().packs
    assert pack.records == 5


def test_adopted_chunks_are_readable_and_go_into_the_next_commit(store):
    ids = put(store, plains_of(1, 3))
    store.chunks.sync()
    chunks = store.chunks.take_new()
    store.close(clean=False)
    store = Store.open(store.path, store.disk, store.world)
    with pytest.raises(Corrupt):
        store.chunks.get(ids[0])
    store.chunks.adopt(chunks)
    assert store.chunks.get_many(ids) == plains_of(1, 3)
    assert put(store, plains_of(1, 3)) == ids
    assert store.chunks.stored_bytes == 0
    assert store.chunks.take_new() == [], 'the journal has them'
    commit(store)
    assert sorted(index(store)) == sorted(ids)
    store.close(clean=False)


def test_adopting_from_an_unknown_pack_is_corrupt(store):
    with pytest.raises(Corrupt, match='6e6e'):
        store.chunks.adopt([NewChunk(b'i' * 32, 1, b'n' * 16, 48, 10, 10, 0)])


def test_disk_full_can_be_tried_again_with_the_reserve(tmp_path, world):
    disk = SimDisk(tmp_path)
    store = Store.create(tmp_path / 'store', disk, world)
    kept = put(store, plains_of(1, 3))
    disk.space = 10_000
    with pytest.raises(Refused) as caught:
        put(store, plains_of(2, 10))
    assert caught.value.errno == errno.ENOSPC
    assert store.give_up_reserve()
    ids = put(store, plains_of(2, 10))
    commit(store)
    assert store.chunks.get_many(ids + kept) == plains_of(2, 10) + plains_of(1, 3)
    store.close(clean=True)
    disk.space = None
    store = Store.open(store.path, disk, world)
    assert store.was_clean
    assert store.chunks.get_many(ids + kept) == plains_of(2, 10) + plains_of(1, 3)
    store.close(clean=False)
    disk.forget()


# --- reading ------------------------------------------------------------------------------------------------


def test_many_are_returned_in_order_also_twice(store):
    plains = plains_of(1, 40)
    ids = put(store, plains)
    commit(store)
    drop_memory(store)
    order = random.Random(2).choices(range(40), k=100)
    assert store.chunks.get_many([ids[n] for n in order]) == [plains[n] for n in order]
    assert store.chunks.get_many([]) == []


def test_neighbours_are_read_in_one_call(store, monkeypatch):
    plains = plains_of(1, 40)
    ids = put(store, plains)
    commit(store)
    reads = []
    real = store.disk.preadv_nowait
    monkeypatch.setattr(store.disk, 'preadv_nowait', lambda fd, n, off: reads.append(n) or real(fd, n, off))
    for chosen, calls in ((ids, 1), (ids[:2] + ids[-2:], 2), ([ids[7]], 1)):
        drop_memory(store)
        reads.clear()
        store.chunks.get_many(list(reversed(chosen)))
        assert len(reads) == calls
    monkeypatch.setattr(limits, 'READ_BYTES_MAX', 10_000)
    drop_memory(store)
    reads.clear()
    assert store.chunks.get_many(ids) == plains
    assert len(reads) > 3
    assert max(reads) <= 10_000


def test_nowait_gives_up_where_the_page_cache_does(store, monkeypatch):
    plains = plains_of(1, 5)
    ids = put(store, plains)
    commit(store)
    monkeypatch.setattr(store.disk, 'preadv_nowait', lambda fd, n, off: None)
    drop_memory(store)
    assert store.chunks.get_nowait(ids[0]) is None
    assert store.chunks.get_many_nowait(ids) is None
    assert store.chunks.get(ids[0]) == plains[0]
    assert store.chunks.get_nowait(ids[0]) == plains[0], 'from memory'
    assert store.chunks.get_many_nowait(ids[:2]) is None
    assert store.chunks.get_many(ids) == plains


def test_every_read_from_disk_is_verified(store):
    plains = plains_of(1, 5)
    ids = put(store, plains)
    commit(store)
    path, offset = pack_file(store, ids[2])
    data = bytearray(path.read_bytes())
    for at in (offset + HEADER_BYTES + 1, offset + 5, offset + 20, offset + 49):
        data[at] ^= 1
        path.write_bytes(data)
        drop_memory(store)
        with pytest.raises(Corrupt) as caught:
            store.chunks.get(ids[2])
        assert path.name in str(caught.value)
        assert str(offset) in str(caught.value)
        assert store.chunks.get_many([ids[1], ids[3]]) == [plains[1], plains[3]], 'the others are served'
        data[at] ^= 1
    path.write_bytes(data)
    drop_memory(store)
    assert store.chunks.get_many(ids) == plains


def test_a_record_of_another_chunk_is_corrupt(store):
    ids = put(store, plains_of(1, 2))
    commit(store)
    with store.catalog.transaction() as db:
        offset, stored = db.execute('SELECT offset, stored FROM chunk WHERE id = ?', (ids[0],)).fetchone()
        db.execute('UPDATE chunk SET offset = ?, stored = ? WHERE id = ?', (offset, stored, ids[1]))
    drop_memory(store)
    with pytest.raises(Corrupt, match='another record'):
        store.chunks.get(ids[1])


@pytest.mark.parametrize('column', ['offset', 'stored', 'plain'])
def test_an_impossible_location_costs_no_memory(store, column):
    (id,) = put(store, plains_of(1, 1))
    commit(store)
    for value in (1 << 40, -1):
        with store.catalog.transaction() as db:
            db.execute(f'UPDATE chunk SET {column} = ?', (value,))
        drop_memory(store)
        with pytest.raises(Corrupt, match='impossible location'):
            store.chunks.get(id)


def test_a_location_behind_the_end_of_a_pack_is_corrupt(store):
    (id,) = put(store, plains_of(1, 1))
    commit(store)
    path, _ = pack_file(store, id)
    with store.catalog.transaction() as db:
        db.execute('UPDATE chunk SET offset = ?', (path.stat().st_size + 5,))
    drop_memory(store)
    with pytest.raises(Corrupt):
        store.chunks.get(id)


def test_a_pack_that_moved_is_looked_up_again_once(store):
    """Repacking may take a pack away between the look-up and the read."""
    (id,) = put(store, plains_of(1, 1))
    store.chunks.seal_pack(RecordKind.DATA, store.chunks._recall(id).pack)
    commit(store)
    old, _ = pack_file(store, id)
    drop_memory(store)
    store.chunks.prefetch_locations([id])
    old.rename(old.with_suffix('.away'))
    with pytest.raises(Corrupt, match=old.name):
        store.chunks.get(id)
    # Now the catalog says another place, and only memory is stale.
    drop_memory(store)
    store.chunks.prefetch_locations([id])
    assert store.chunks.get_nowait(id) is None
    name = bytes(15) + b'n'
    target = pack_path(store.path / 'packs', 1, name)
    target.parent.mkdir(exist_ok=True)
    data = bytearray(old.with_suffix('.away').read_bytes())
    data[:PACK_HEADER_BYTES] = encode_pack_header(PackHeader(store.superblock.uuid, name, RecordKind.DATA))
    target.write_bytes(data)
    number, _ = store.chunks._numbers.add(name, 1)
    with store.catalog.transaction() as db:
        db.execute('UPDATE chunk SET pack = ? WHERE id = ?', (number, id))
    assert store.chunks.get(id) == plains_of(1, 1)[0]


def test_a_pack_whose_first_bytes_are_wrong_is_read_all_the_same(store, caplog):
    """Its records say what they are; doubt never stops readers (P7)."""
    (id,) = put(store, plains_of(1, 1))
    commit(store)
    path, _ = pack_file(store, id)
    drop_memory(store)
    data = bytearray(path.read_bytes())
    data[20] ^= 1
    path.write_bytes(data)
    assert store.chunks.get(id) == plains_of(1, 1)[0]
    assert 'are read all the same' in caplog.text


def test_prefetched_locations_need_no_statement(store, monkeypatch):
    ids = put(store, plains_of(1, 20))
    commit(store)
    drop_memory(store)
    statements = []
    real = store.catalog.query
    monkeypatch.setattr(store.catalog, 'query', lambda *a: statements.append(a[0]) or real(*a))
    store.chunks.prefetch_locations(ids)
    assert len(statements) == 1
    for id in ids:
        store.chunks.get(id)
    assert len(statements) == 1


def test_caches_are_bounded(store, monkeypatch):
    store.chunks._plains._max = 20_000
    store.chunks._locations._max = 10
    store.chunks._files._max = 2
    for writer in store.chunks.writers.values():
        writer.bytes_max = 8_000
    plains = plains_of(1, 40)
    ids = put(store, plains)
    commit(store)
    for _ in range(2):
        for id, plain in zip(ids, plains, strict=True):
            assert store.chunks.get(id) == plain
    assert store.chunks._plains.bytes <= 20_000
    assert store.chunks._plains.bytes == sum(map(len, store.chunks._plains._entries.values()))
    assert len(store.chunks._locations) <= 10
    assert len(store.chunks._files) <= 2


def test_nodes_are_not_kept_with_the_data(store):
    ids = put(store, plains_of(1, 5), RecordKind.NODE)
    commit(store)
    store.chunks.get_many(ids)
    assert store.chunks._plains.bytes == 0
