"""A catalog that an older program made is brought to this version, whole or not at all."""

import sqlite3

import pytest

from snapfs.errors import Corrupt
from snapfs.store import schema
from snapfs.store.catalog import Catalog
from snapfs.store.durable import Disk
from snapfs.store.registry import Registry
from tests.support.schemas import VERSION_1, VERSION_2


@pytest.fixture
def old(tmp_path):
    """A catalog as version 1 wrote it, with a row in every table that had any."""
    path = tmp_path / 'catalog.sqlite'
    db = sqlite3.connect(path, isolation_level=None)
    db.execute('PRAGMA journal_mode = WAL')
    db.execute(f'PRAGMA application_id = {schema.APPLICATION_ID}')
    db.execute('PRAGMA user_version = 1')
    for text in VERSION_1.values():
        db.execute(text)
    settings = {'epoch': 7, 'journal_sequence': 3, 'next_view': 9, 'next_volume': 2, 'next_request': 3}
    settings |= {'next_pack': 5, 'next_incident': 2, 'clean': 1}
    db.executemany('INSERT INTO settings VALUES (?, ?)', settings.items())
    root = (b'r' * 32, 5, 4)
    db.execute('INSERT INTO volume VALUES (1, 1, ?, ?, ?, ?, 77, 5, NULL, NULL)', (b'home', *root))
    db.execute('INSERT INTO snapshot VALUES (2, 1, ?, ?, ?, ?, 77, 6, 6, ?, NULL)', (b'old', *root, 'ann'))
    db.execute("INSERT INTO hold VALUES (2, x'61', 'ann', 'why', 6, NULL)")
    values = (1, 'dropped', 1, b'home', b'', 0, None, 0, 0, 0, 6, 6, '', None, 6, '', 6, None, None)
    db.execute(f'INSERT INTO request VALUES ({",".join("?" * 19)})', values)
    db.execute("INSERT INTO request_part VALUES (1, 0, 'chunks', ?)", (b'c' * 64,))
    db.execute("INSERT INTO incident VALUES (1, 'collector', 5, 'a reason', 6, 'bob')")
    db.execute('INSERT INTO chunk VALUES (?, 1, 64, 10, 10, 0, 1, 6)', (b'c' * 32,))
    yield path, db
    db.close()


def test_everything_is_carried_over(old):
    path, _ = old
    catalog = Catalog.open(Disk(), path)
    registry = Registry(catalog)
    assert [row.name for row in registry.volumes()] == ['home']
    assert [row.name for row in registry.snapshots()] == ['old']
    assert [row.name for row in registry.holds()] == ['a']
    assert [row.kind for row in registry.requests()] == ['dropped']
    assert registry.request_part(1).chunks == (b'c' * 32,) * 2
    assert [row.reason for row in catalog.incidents(in_force=False)] == ['a reason']
    assert list(catalog.locate([b'c' * 32])) == [b'c' * 32]
    assert (catalog.epoch, catalog.setting('next_pack'), catalog.setting('next_batch')) == (7, 5, 1)
    assert catalog.query('PRAGMA foreign_key_check') == []
    catalog.close()
    again = Catalog.open(Disk(), path)  # of this version now: nothing is done a second time
    assert again.epoch == 7
    again.close()


def test_all_or_nothing(old, monkeypatch):
    path, db = old
    before = list(db.iterdump())
    monkeypatch.setitem(schema.TABLES, 'canary', 'CREATE TABLE batch (oops INTEGER)')  # taken: it fails late
    with pytest.raises(Corrupt):
        Catalog.open(Disk(), path)
    assert list(db.iterdump()) == before
    assert db.execute('PRAGMA user_version').fetchone() == (1,)


def test_a_row_that_refers_to_nothing_is_not_carried_over_in_silence(old):
    path, db = old
    db.execute("INSERT INTO request_part VALUES (9, 0, 'chunks', x'00')")
    with pytest.raises(Corrupt, match='refer to rows that are missing'):
        Catalog.open(Disk(), path)
    assert db.execute('PRAGMA user_version').fetchone() == (1,)


def test_version_1_never_had_a_batch(old):
    path, db = old
    db.execute("INSERT INTO batch VALUES (1, 'FREED', 1, x'00', 1, 1, 1, 1, 1)")
    with pytest.raises(Corrupt, match='version 1 with a batch'):
        Catalog.open(Disk(), path)
    assert db.execute('SELECT count(*) FROM batch').fetchone() == (1,)


@pytest.mark.parametrize('version', [0, 4, 99])
def test_a_version_that_nobody_knows_is_refused(old, version):
    path, db = old
    db.execute(f'PRAGMA user_version = {version}')
    with pytest.raises(Corrupt, match=f'schema version {version}'):
        Catalog.open(Disk(), path)


def test_version_2_gets_the_tables_of_damage_and_scrubs_and_keeps_its_batches(tmp_path):
    path = tmp_path / 'catalog.sqlite'
    db = sqlite3.connect(path, isolation_level=None)
    db.execute('PRAGMA journal_mode = WAL')
    db.execute(f'PRAGMA application_id = {schema.APPLICATION_ID}')
    db.execute('PRAGMA user_version = 2')
    for text in VERSION_2.values():
        db.execute(text)
    settings = {**schema.SETTINGS_INITIAL, 'epoch': 7, 'next_batch': 2}
    db.executemany('INSERT INTO settings VALUES (?, ?)', settings.items())
    values = (1, 'RESTORED', 'kept', 5, b'd' * 32, 3, 99, 0, 5, 6, 6, 6, None, None, None, 0, 7, 'why')
    db.execute(f'INSERT INTO batch VALUES ({",".join("?" * 18)})', values)
    db.close()
    catalog = Catalog.open(Disk(), path)
    assert catalog.query('SELECT * FROM batch') == [values]
    assert (catalog.epoch, catalog.setting('next_batch')) == (7, 2)
    assert catalog.query('SELECT count(*) FROM damage') == catalog.query('SELECT count(*) FROM scrubbed')
    catalog.close()
