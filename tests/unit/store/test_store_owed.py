"""An incident that the catalog could not be told is told at the next opening, and stops the store then."""

from __future__ import annotations

import os
import sqlite3
from typing import Any

import pytest

from snapfs.errors import Corrupt, Latched
from snapfs.store import owed
from snapfs.store.catalog import Catalog
from snapfs.store.durable import Disk
from snapfs.store.readonly import ReadingDisk
from snapfs.store.store import Store
from tests.unit.store.kit import commit, plains_of, put


def opened(store: Store, disk: Disk | None = None) -> Store:
    return Store.open(store.path, disk or Disk(), store.world)


def reasons(store: Store, scope: str = 'store') -> list[str]:
    return [row.reason for row in store.catalog.incidents(scope)]


@pytest.fixture
def silent(store: Store, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A store whose catalog could not be told why it stopped: the sync of its log had failed."""
    with monkeypatch.context() as patch:

        def fail(*_: Any) -> None:
            raise store.disk.latch('catalog: disk I/O error')

        patch.setattr(store.catalog, 'incident_add', fail)
        store.latch('sync failed')
        assert reasons(store) == []
    store.close(clean=True)
    return store


def test_it_stops_the_next_one(silent):
    store = opened(silent)
    assert 'sync failed' in (store.latched or '') and reasons(store) == ['sync failed']
    with pytest.raises(Latched, match='sync failed'):
        put(store, plains_of(1, 1))
    assert not (store.path / owed.NAME).exists()
    (row,) = store.catalog.incidents('store')
    store.catalog.incident_acknowledge(row.number, 'ann', 9)
    store.close(clean=True)
    store = opened(store)
    assert store.latched is None
    put(store, plains_of(1, 1))
    commit(store)
    store.close(clean=True)


def test_one_that_was_told_and_is_still_there_is_told_once(silent):
    """A crash in between."""
    text = (silent.path / owed.NAME).read_bytes()
    opened(silent).close(clean=True)
    (silent.path / owed.NAME).write_bytes(text)
    store = opened(silent)
    assert reasons(store) == ['sync failed']
    store.close(clean=True)


def test_a_store_that_is_only_read_stays_as_it_is(silent):
    before = (silent.path / owed.NAME).read_bytes()
    for _ in range(2):
        store = opened(silent, ReadingDisk())
        store.latch('something else')
        assert store.latched
        store.close(clean=False)
    assert (silent.path / owed.NAME).read_bytes() == before


@pytest.mark.parametrize(
    'text', [b'', b'nonsense', b'{"scope": "collector"}', b'[1]', b'null\n', b'\xff\xfe', b'[' * 100_000]
)
def test_what_cannot_be_read_stops_the_store(silent, text):
    (silent.path / owed.NAME).write_bytes(text)
    store = opened(silent)
    assert bool(store.latched) is bool(text)  # an empty file: its line was never written
    assert all('cannot be read' in one for one in reasons(store))
    store.close(clean=False)


def test_a_link_in_its_place_is_not_followed(store, tmp_path):
    (store.path / 'incidents').mkdir(exist_ok=True)
    (tmp_path / 'elsewhere').write_bytes(b'')
    (store.path / owed.NAME).symlink_to(tmp_path / 'elsewhere')
    owed.owe(store.disk, store.path, 'store', 'sync failed', 1)
    assert (tmp_path / 'elsewhere').read_bytes() == b''


def test_nothing_is_raised_where_it_cannot_be_written(store, caplog):
    (store.path / 'incidents').write_bytes(b'no directory')
    owed.owe(store.disk, store.path, 'store', 'sync failed', 1)
    assert 'nor could it be written down' in caplog.text


def test_what_else_is_owed_stays(store):
    for scope, reason in (('collector', 'one'), ('store', 'two')):
        owed.owe(store.disk, store.path, scope, reason, 1)
    store.close(clean=True)
    store = opened(store)
    assert (reasons(store, 'collector'), reasons(store)) == (['one'], ['two'])
    store.close(clean=False)


def test_it_stays_owed_until_the_catalog_has_it(silent, monkeypatch):
    def fail(*_: Any) -> None:
        raise Corrupt('catalog: no')

    with monkeypatch.context() as patch:
        patch.setattr(Catalog, 'incident_add', fail)
        with pytest.raises(Corrupt, match='catalog: no'):
            opened(silent)
    assert (silent.path / owed.NAME).exists()
    store = opened(silent)
    assert reasons(store) == ['sync failed']
    store.close(clean=True)


def test_the_file_is_the_owners(silent):
    assert os.stat(silent.path / owed.NAME).st_mode & 0o777 == 0o600
    with sqlite3.connect(silent.path / 'catalog.sqlite') as db:
        assert db.execute('SELECT count(*) FROM incident').fetchone() == (0,)
    db.close()
