"""What the collector needs of the chunk store: puts are noted, rows move between puts, caches forget."""

import random
import threading

import pytest

from snapfs import limits
from snapfs.format.records import RecordKind
from snapfs.store.cache import ByteCache, CountCache
from snapfs.store.catalog import Location
from snapfs.store.horizon import PutRecord
from tests.unit.store.kit import commit, plains_of, put


def quarantine(store, id):
    """Do to one chunk what a batch does."""
    with store.catalog.transaction() as db:
        db.execute('INSERT INTO quarantine SELECT *, 1 FROM chunk WHERE id = ?', (id,))
        db.execute('DELETE FROM chunk WHERE id = ?', (id,))


def test_a_record_never_forgets_a_put(monkeypatch):
    monkeypatch.setattr(limits, 'PUT_RECORD_BITS', 26)
    chance = random.Random(5)
    record = PutRecord()
    ids = [chance.randbytes(32) for _ in range(2000)]
    record.add(RecordKind.DATA, ids[:1000])
    record.add(RecordKind.NODE, ids[1000:])
    assert all(map(record.has, ids))
    others = [chance.randbytes(32) for _ in range(2000)]
    assert sum(map(record.has, others)) < 3, 'the prefixes are too short to be of use'


def test_a_put_is_noted_before_it_is_looked_up(store, monkeypatch):
    plains = plains_of(1, 3)
    ids = put(store, plains)
    commit(store)
    record = store.chunks.start_recording()
    assert not any(map(record.has, ids)), 'put before'
    seen = []
    real = store.catalog.locate
    monkeypatch.setattr(
        store.catalog,
        'locate',
        lambda wanted, *a: seen.append([record.has(i) for i in wanted]) or real(wanted),
    )
    put(store, plains)
    put(store, plains_of(2, 2), RecordKind.NODE)
    assert seen == [[True] * 3, [True] * 2]
    monkeypatch.undo()
    again = plains_of(3, 2)
    fresh = put(store, again)
    later = store.chunks.start_recording()
    assert not any(map(later.has, fresh)), 'put before'
    put(store, again)
    assert all(map(later.has, fresh)), 'also those that no commit has yet'
    store.chunks.stop_recording(record)
    last = put(store, plains_of(4, 1))
    assert (record.has(last[0]), later.has(last[0])) == (False, True)


def test_rows_move_between_puts(store):
    """A put that has been noted gets its answer before anybody is let in, and none begins meanwhile."""
    plains = plains_of(1, 1)
    (id,) = put(store, plains)
    commit(store)
    record = store.chunks.start_recording()
    inside, go_on = threading.Event(), threading.Event()
    real = store.catalog.locate

    def slow(wanted, *rest):
        inside.set()
        assert go_on.wait(10)
        return real(wanted, *rest)

    store.catalog.locate = slow
    putter = threading.Thread(target=put, args=(store, plains))
    putter.start()
    assert inside.wait(10)
    order = []

    def mover():
        with store.catalog.reserved(), store.chunks.exclusive():
            order.append(record.has(id))

    moving = threading.Thread(target=mover)
    moving.start()
    assert order == []
    go_on.set()
    putter.join(10)
    moving.join(10)
    assert order == [True]
    store.catalog.locate = real


def test_after_quarantine_writers_store_afresh_and_readers_raise_the_alarm(store):
    plains = plains_of(1, 2)
    ids = put(store, plains)
    commit(store)
    assert store.chunks.get_many(ids) == plains  # cached now
    for id in ids:
        quarantine(store, id)
    store.chunks.forget(ids)
    alarms = []
    store.chunks.on_condemned = lambda id, table: alarms.append((id, table))
    assert store.chunks.get(ids[0]) == plains[0]
    assert alarms == [(ids[0], 'quarantine')]
    stored = store.chunks.stored_bytes
    assert put(store, plains[1:]) == ids[1:]
    assert store.chunks.stored_bytes > stored, 'P3: a fresh copy'
    assert store.chunks.get(ids[1]) == plains[1]
    assert len(alarms) == 1


def test_a_pack_that_is_forgotten_is_looked_up_again(store):
    plains = plains_of(1, 2)
    ids = put(store, plains)
    commit(store)
    assert store.chunks.get_many(ids) == plains
    number = store.catalog.locate(ids)[ids[0]].pack
    store.chunks.forget(ids)
    store.chunks.forget_pack(number)
    with pytest.raises(Exception, match='is lost'):
        store.chunks.get(ids[0])


def test_caches_forget_what_they_are_told_to():
    counts = CountCache[bytes, Location](3)
    counts.put(b'a', Location(1, 2, 3, 4))
    counts.remove(b'a')
    counts.remove(b'a')
    assert counts.get(b'a') is None
    data = ByteCache(10)
    data.put(b'a', b'12345')
    data.put(b'b', b'123')
    data.remove(b'a')
    data.remove(b'a')
    assert (data.get(b'a'), data.get(b'b'), data.bytes) == (None, b'123', 3)
