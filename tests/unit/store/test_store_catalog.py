"""The catalog: commits, the index, and files that are not what they should be."""

from __future__ import annotations

import errno
import os
import sqlite3
import stat
import threading

import pytest

from snapfs import limits
from snapfs.errors import Corrupt, Latched, Refused, Unavailable
from snapfs.store import schema
from snapfs.store.catalog import LOCATE_FREED, LOCATE_QUARANTINE, Catalog
from snapfs.store.durable import Disk
from snapfs.store.registry import Registry
from snapfs.store.rows import ChunkRow, Commit, HeadUpdate, Location, PackRow, RequestPart
from snapfs.store.sqlite_errors import sqlite_error
from tests.sim.disk import SimDisk

CHUNKS = [ChunkRow(os.urandom(32), 1 + n % 3, 48 + 100 * n, n, n + 5, n % 2, 1 + n % 2) for n in range(2345)]
PACK = PackRow(4, b'p' * 16, 1, 'open', 1000, 7)


@pytest.fixture
def catalog(tmp_path):
    catalog = Catalog.create(Disk(), tmp_path / 'catalog.sqlite')
    yield catalog
    catalog.close()


def commit_of(chunks=(), packs=(), heads=(), dropped=(), sequence=0):
    return Commit(heads, chunks, packs, dropped, sequence, 1000)


def reopened(catalog):
    catalog.close()
    return Catalog.open(catalog._disk, catalog._path)


def test_a_commit_is_all_there_after_reopening(catalog):
    volume = Registry(catalog).volume_add('home', 5)
    root = CHUNKS[7].id
    dropped = RequestPart(volume.volume, tuple(c.id for c in CHUNKS[:2100]), (CHUNKS[0].id,))
    head = HeadUpdate(volume.volume, root, 10, 20, 30)
    assert catalog.commit(commit_of(CHUNKS, [PACK], [head], [dropped], 77)) == 1
    again = reopened(catalog)
    assert (again.epoch, again.journal_sequence) == (1, 77)
    assert again.packs() == [PACK]
    assert again.setting('next_pack') == 5
    (row,) = Registry(again).volumes()
    assert (row.root, row.root_items, row.root_refs, row.next_ino) == (root, 10, 20, 30)
    (request,) = Registry(again).requests()
    assert (request.kind, request.volume, request.volume_name, request.epoch) == (
        'dropped',
        volume.volume,
        'home',
        1,
    )
    assert Registry(again).request_part(request.number) == dropped
    expected = {c.id: Location(c.pack, c.offset, c.stored, c.plain) for c in CHUNKS}
    assert again.locate([c.id for c in CHUNKS]) == expected
    assert again.query('SELECT count(*), min(epoch), max(epoch) FROM chunk') == [(len(CHUNKS), 1, 1)]
    again.close()


def test_locate_returns_what_there_is(catalog, monkeypatch):
    catalog.commit(commit_of(CHUNKS[:100]))
    missing = [os.urandom(32) for _ in range(50)]
    mixed = [id for pair in zip((c.id for c in CHUNKS[:50]), missing, strict=True) for id in pair]
    assert list(catalog.locate(mixed)) == [c.id for c in CHUNKS[:50]]
    assert catalog.locate(missing) == catalog.locate([]) == {}
    monkeypatch.setattr(limits, 'LOCATE_IDS_MAX', 7)
    assert list(catalog.locate(mixed)) == [c.id for c in CHUNKS[:50]]


def test_locate_is_one_statement_per_500_ids(catalog, monkeypatch):
    catalog.commit(commit_of(CHUNKS))
    calls = []
    real = catalog.query
    monkeypatch.setattr(catalog, 'query', lambda *a: calls.append(1) or real(*a))
    assert len(catalog.locate([c.id for c in CHUNKS])) == len(CHUNKS)
    assert len(calls) == 5


def test_the_tables_of_the_condemned_are_looked_up_separately(catalog):
    catalog.commit(commit_of(CHUNKS[:2]))
    with catalog.transaction() as db:
        db.execute('INSERT INTO quarantine SELECT *, 1 FROM chunk WHERE id = ?', (CHUNKS[0].id,))
        db.execute('INSERT INTO freed SELECT *, 1 FROM chunk WHERE id = ?', (CHUNKS[1].id,))
        db.execute('DELETE FROM chunk')
    ids = [c.id for c in CHUNKS[:2]]
    assert catalog.locate(ids) == {}
    assert list(catalog.locate(ids, LOCATE_QUARANTINE)) == ids[:1]
    assert list(catalog.locate(ids, LOCATE_FREED)) == ids[1:]


def test_a_second_location_of_a_chunk_changes_nothing(catalog):
    catalog.commit(commit_of(CHUNKS[:1]))
    catalog.commit(commit_of([CHUNKS[0]._replace(pack=99)]))
    assert catalog.locate([CHUNKS[0].id])[CHUNKS[0].id].pack == CHUNKS[0].pack


def test_a_commit_that_fails_changes_nothing(catalog):
    volume = Registry(catalog).volume_add('home', 5)
    before = catalog.query('SELECT * FROM settings')
    for head in (HeadUpdate(99, None, 0, 0, 5), HeadUpdate(volume.volume, b'r' * 32, 1, 1, 5)):
        with pytest.raises(AssertionError):  # no such volume; P1: a root that nobody has
            catalog.commit(commit_of(CHUNKS[:5], [PACK], [head]))
    assert catalog.query('SELECT * FROM settings') == before
    assert catalog.query('SELECT count(*) FROM chunk') == [(0,)]
    assert catalog.packs() == []
    assert catalog.epoch == 0


def test_the_journal_position_never_goes_back(catalog):
    catalog.commit(commit_of(sequence=9))
    with pytest.raises(AssertionError, match='P5'):
        catalog.commit(commit_of(sequence=8))


def test_packs_change_and_keep_their_numbers(catalog):
    catalog.put_packs([PACK])
    sealed = PackRow(4, b'p' * 16, 1, 'sealed', 2000, 9)
    catalog.commit(commit_of(packs=[sealed]))
    assert catalog.packs() == [sealed]


@pytest.mark.parametrize('thread', [False, True])
def test_readers_see_the_last_commit_and_cannot_write(catalog, thread):
    failed = []

    def read():
        catalog.query('SELECT 1')
        try:
            catalog.query("UPDATE settings SET value = 7 WHERE key = 'epoch'")
        except Corrupt as error:
            failed.append(str(error))

    with catalog.transaction() as db:
        db.execute("UPDATE settings SET value = 5 WHERE key = 'epoch'")
        assert catalog.setting('epoch') == 0, 'not committed yet'
        if thread:
            worker = threading.Thread(target=read)
            worker.start()
            worker.join()
        else:
            read()
    assert 'readonly' in failed[0]
    assert catalog.setting('epoch') == 5


def test_incidents_stay_in_force_until_somebody_has_looked(catalog):
    first = catalog.incident_add('store', 'reason \udcff', 10)
    catalog.incident_add('collector', 'other', 11)
    again = reopened(catalog)
    assert [row.scope for row in again.incidents()] == ['store', 'collector']
    assert again.incidents('store') == [first]
    again.incident_acknowledge(first.number, 'ann', 20)
    assert again.incidents('store') == []
    assert [row.acknowledged_by for row in again.incidents(in_force=False)] == ['ann', None]
    for number in (first.number, 99):
        with pytest.raises(Refused) as caught:
            again.incident_acknowledge(number, 'bob', 21)
        assert caught.value.errno == errno.ENOENT
    again.close()


def test_a_latched_disk_takes_incidents_and_nothing_else(catalog):
    catalog._disk.latch('broken')
    with pytest.raises(Latched):
        catalog.set_setting('clean', 1)
    with pytest.raises(Latched):
        catalog.commit(commit_of())
    row = catalog.incident_add('store', 'broken', 10)
    catalog.incident_acknowledge(row.number, 'ann', 11)


def test_errors_of_sqlite_are_told_apart():
    def error(code):
        found = sqlite3.OperationalError('x')
        found.sqlite_errorcode = code
        return found

    disk = Disk()
    full = sqlite_error(error(sqlite3.SQLITE_FULL), disk)
    assert isinstance(full, Refused)
    assert full.errno == errno.ENOSPC
    assert isinstance(sqlite_error(error(sqlite3.SQLITE_CORRUPT), disk), Corrupt)
    assert isinstance(sqlite_error(error(sqlite3.SQLITE_IOERR_READ), disk), Corrupt)
    assert isinstance(sqlite_error(error(sqlite3.SQLITE_BUSY), disk), Unavailable)
    shared_memory = sqlite_error(error(sqlite3.SQLITE_IOERR_SHMSIZE), disk)
    assert isinstance(shared_memory, Refused) and shared_memory.errno == errno.ENOSPC
    assert disk.latched is None
    assert isinstance(sqlite_error(error(sqlite3.SQLITE_IOERR_FSYNC), disk), Latched)
    assert disk.latched is not None, 'P5: a sync below SQLite failed; it is not tried again'


# --- files that are not what they should be
# ------------------------------------------------------------------


def changed(catalog, *statements):
    catalog.close()
    db = sqlite3.connect(catalog._path)
    for text in statements:
        db.execute(text)
    db.commit()
    db.close()


@pytest.mark.parametrize(
    'statement',
    [
        'PRAGMA application_id = 1',
        'PRAGMA user_version = 99',
        'CREATE TRIGGER t AFTER INSERT ON chunk BEGIN DELETE FROM volume; END',
        'CREATE VIEW v AS SELECT 1',
        'DROP TABLE hold',
        'ALTER TABLE hold ADD COLUMN more INTEGER',
        'CREATE INDEX i ON chunk (pack)',
        "DELETE FROM settings WHERE key = 'epoch'",
    ],
)
def test_a_catalog_that_is_not_ours_is_corrupt(catalog, statement):
    changed(catalog, statement)
    with pytest.raises(Corrupt):
        Catalog.open(Disk(), catalog._path)


@pytest.mark.parametrize('content', [b'', b'x' * 5000, None])
def test_a_file_that_is_no_database_is_corrupt(tmp_path, content):
    path = tmp_path / 'catalog.sqlite'
    if content is None:
        path.symlink_to(tmp_path / 'elsewhere')
    else:
        path.write_bytes(content)
    with pytest.raises(Corrupt):
        Catalog.open(Disk(), path)
    assert not (tmp_path / 'elsewhere').exists()


@pytest.mark.parametrize(
    'statement',
    [
        "UPDATE volume SET root = x'1234'",
        'UPDATE volume SET root_items = -1',
        'UPDATE volume SET root_items = 5',
        'UPDATE volume SET next_ino = 1 << 60',
    ],
)
def test_impossible_rows_are_corrupt(catalog, statement):
    Registry(catalog).volume_add('home', 5)
    changed(catalog, statement)
    again = Catalog.open(Disk(), catalog._path)
    with pytest.raises(Corrupt):
        Registry(again).volumes()
    again.close()


@pytest.mark.parametrize('statement', ["name = x'12'", 'kind = 3', 'bytes = -1'])
def test_impossible_packs_are_corrupt(catalog, statement):
    catalog.put_packs([PACK])
    changed(catalog, f'UPDATE pack SET {statement}')
    again = Catalog.open(Disk(), catalog._path)
    with pytest.raises(Corrupt):
        again.packs()
    again.close()


def test_a_commit_is_synced(catalog):
    again = reopened(catalog)
    assert again._writer.execute('PRAGMA synchronous').fetchone() == (2,), 'FULL'
    assert again._writer.execute('PRAGMA journal_mode').fetchone() == ('wal',)
    again.close()


def test_files_of_the_catalog_are_private(catalog):
    catalog.commit(commit_of(CHUNKS[:10]))
    names = ('catalog.sqlite', 'catalog.sqlite-wal', 'catalog.sqlite-shm')
    modes = {stat.S_IMODE(os.stat(catalog._path.with_name(name)).st_mode) for name in names}
    assert modes == {0o600}


def test_every_column_of_ids_is_named_so():
    """Whoever looks for mentions reads the columns `root`, `id` and `ids`; a new one must be found by its
    name."""
    blobs = {
        (table, line.split()[0])
        for table, text in schema.TABLES.items()
        for line in text.splitlines()
        if ' BLOB' in line and not line.strip().startswith('--')
    }
    ids = {(table, column) for table, column in blobs if column in ('root', 'id', 'ids')}
    assert blobs - ids == {
        ('volume', 'name'),
        ('snapshot', 'name'),
        ('hold', 'name'),
        ('request', 'name'),
        ('request', 'volume_name'),
        ('batch', 'digest'),
        ('pack', 'name'),
        ('receipt', 'digest'),
        ('approval', 'digest'),
        ('batch', 'receipt'),
    }
    assert {table for table, _ in ids} == {
        'canary',
        'volume',
        'snapshot',
        'request',
        'request_part',
        'chunk',
        'quarantine',
        'freed',
        'damage',
    }


def test_a_commit_survives_the_power_cut_after_it(tmp_path):
    root = tmp_path / 'root'
    root.mkdir()
    disk = SimDisk(root)
    catalog = Catalog.create(disk, root / 'catalog.sqlite')
    disk.sync_directory(root)
    catalog.commit(commit_of(CHUNKS[:10]))
    disk.cut_at = disk.events + 1
    with pytest.raises(BaseException, match='commit'):
        catalog.commit(commit_of(CHUNKS[10:20]))
    after = SimDisk(disk.crash(1, tmp_path / 'after'))
    again = Catalog.open(after, tmp_path / 'after' / 'catalog.sqlite')
    assert len(again.locate([c.id for c in CHUNKS[:20]])) == 10
    assert again.epoch == 1
    for each in (again, catalog):
        each.close()
    disk.forget()
    after.forget()
