"""Packs go only when each record in them is accounted for; what must stay is carried out first."""

from __future__ import annotations

import os
import random

import pytest

from snapfs import limits
from snapfs.collect import repack as module
from snapfs.collect.collector import Collector
from snapfs.collect.files import BatchFiles
from snapfs.collect.receipts import Receipts
from snapfs.collect.repack import LEAK, choose, plan_moves, repack
from snapfs.collect.sweep import PackUse, census, last_look, read_pack, retire, seal_wasteful, unlink
from snapfs.errors import Corrupt
from snapfs.format.receipts import ReceiptRow
from snapfs.format.records import RecordKind
from snapfs.store.catalog import write_packs
from snapfs.store.durable import Disk
from snapfs.store.packs import pack_path
from snapfs.store.rows import PackRow
from snapfs.store.store import Store
from tests.sim.world import SimWorld
from tests.unit.store.kit import commit

PLAN = b'p' * 32


@pytest.fixture
def store(tmp_path, monkeypatch):
    for name, size in (('JOURNAL_BYTES', 256), ('RESERVE_BYTES', 64), ('FREE_BYTES_MIN', 64)):
        monkeypatch.setattr(limits, name, size * limits.KIB)
    store = Store.create(tmp_path / 'store', Disk(), SimWorld(1))
    for writer in store.chunks.writers.values():
        writer.bytes_max = 20_000
    yield store
    store.close(clean=False)


def fill(store, seed, count=30):
    """Put and commit incompressible chunks; return {id: plain}. About six fill a pack."""
    chance = random.Random(seed)
    plains = [chance.randbytes(3000) for _ in range(count)]
    ids = store.chunks.put_batch(RecordKind.DATA, plains)
    commit(store)
    return dict(zip(ids, plains, strict=True))


def in_pack(store, pack):
    rows = store.catalog.query('SELECT id FROM chunk WHERE pack = ? ORDER BY offset', (pack,))
    return [id for (id,) in rows]


def free(store, ids, number=1, receipt=True, moved=True):
    """Do to chunks what a batch does: a receipt, then rows from `chunk` to `freed`."""
    files = BatchFiles(store.disk, store.path, store.superblock.uuid)
    files.make(number)
    rows = []
    for id in sorted(ids):
        location = store.catalog.locate([id])[id]
        name = store.catalog.query('SELECT name FROM pack WHERE pack = ?', (location.pack,))[0][0]
        rows.append(ReceiptRow(id, name, location.offset, location.stored_length))
    if not receipt:
        rows = rows[1:]
    digest = files.write_receipt(number, PLAN, len(rows), [rows])
    columns = 'number, state, class, horizon, digest, chunks, bytes, grace_ns, planned_ns, receipt, freed'
    with store.catalog.transaction() as db:
        db.execute(
            f"INSERT INTO batch ({columns}) VALUES (?, 'CONFIRMED', 'kept', 1, ?, 0, 0, 0, 9, ?, 0)",
            (number, PLAN, digest),
        )
        for id in ids if moved else ():
            db.execute('INSERT INTO freed SELECT *, ? FROM chunk WHERE id = ?', (number, id))
            db.execute('DELETE FROM chunk WHERE id = ?', (id,))
    store.chunks.forget(ids)


def sealed(store):
    return [use for use in census(store.catalog, store.chunks.busy_packs()) if use.row.state == 'sealed']


def path_of(store, row: PackRow):
    return pack_path(store.path / 'packs', row.kind, row.name)


@pytest.fixture
def receipts(store):
    receipts = Receipts(store)
    yield receipts
    receipts.close()


def test_the_census_counts_rows_and_bytes(store):
    fill(store, 1)
    uses = sealed(store)
    assert len(uses) == 4
    for use in uses:
        assert (use.live, use.quarantined, use.freed) == (use.row.records, 0, 0)
        assert 0 <= use.waste < 0.05
    gone = in_pack(store, uses[0].row.pack)
    free(store, gone[:3])
    with store.catalog.transaction() as db:
        db.execute('INSERT INTO quarantine SELECT *, 1 FROM chunk WHERE pack = ?', (uses[1].row.pack,))
        db.execute('DELETE FROM chunk WHERE pack = ?', (uses[1].row.pack,))
    first, second = sealed(store)[:2]
    assert (first.live, first.freed) == (first.row.records - 3, 3)
    assert 0.4 < first.waste < 0.6
    assert (second.live, second.quarantined) == (0, second.row.records)
    assert 0 <= second.waste < 0.05


def test_packs_that_memory_names_are_left_out(store):
    chance = random.Random(3)
    store.chunks.put_batch(RecordKind.DATA, [chance.randbytes(3000) for _ in range(20)])
    busy = store.chunks.busy_packs()
    assert len(busy) == 4
    store.chunks.sync()
    assert store.chunks.busy_packs() == busy
    assert census(store.catalog, busy) == []


def test_a_pack_with_receipts_for_all_goes(store, receipts):
    fill(store, 1)
    use = sealed(store)[0]
    row, ids = use.row, in_pack(store, use.row.pack)
    free(store, ids)
    retire(store, row)
    assert unlink(store, row, receipts) is None
    assert not path_of(store, row).exists()
    assert row.pack not in [pack.pack for pack in store.catalog.packs()]
    assert store.catalog.query('SELECT count(*) FROM freed') == [(0,)]
    line = store.audit.tail(1)[0].event
    assert (line['event'], line['pack'], line['receipts'], line['copies']) == (
        'pack-gone',
        row.name.hex(),
        len(ids),
        0,
    )
    with pytest.raises(Corrupt, match='neither in the index nor in quarantine'):
        store.chunks.get(ids[0])


@pytest.mark.parametrize('missing', ['receipt', 'row', 'all'])
def test_a_record_without_a_receipt_keeps_its_pack(store, receipts, missing):
    fill(store, 1)
    use = sealed(store)[0]
    ids = sorted(in_pack(store, use.row.pack))
    if missing == 'all':
        with store.catalog.transaction() as db:  # a catalog that went back in time knows none of them
            db.execute('DELETE FROM chunk WHERE pack = ?', (use.row.pack,))
    else:
        free(store, ids, receipt=missing != 'receipt')
    if missing == 'row':
        with store.catalog.transaction() as db:
            db.execute('DELETE FROM freed WHERE id = ?', (ids[0],))
    assert retire(store, use.row)
    look = unlink(store, use.row, receipts)
    assert look is not None
    assert [id for _, id in look.unaccounted] == (ids[:1] if missing != 'all' else in_order(store, use.row))
    assert path_of(store, use.row).exists()


def in_order(store, row):
    return [header.id for _, header in read_pack(store, row)]


def test_an_open_pack_that_is_mostly_waste_is_ended(store, monkeypatch, receipts):
    store.chunks.writers[RecordKind.DATA].bytes_max = 1 << 20
    known = fill(store, 1)
    assert sealed(store) == []
    (use,) = census(store.catalog, frozenset(), ('open',))
    assert use.live == len(known)
    assert seal_wasteful(store, 0.5) == 0
    left = list(known)[:4]
    free(store, list(known)[4:])
    assert seal_wasteful(store, 0.5) == 0, 'not worth it'
    monkeypatch.setattr(limits, 'SEAL_WASTE_BYTES_MIN', 50_000)
    assert seal_wasteful(store, 0.99) == 0, 'not wasteful enough'
    assert seal_wasteful(store, 0.5) == 1
    more = fill(store, 2, 3)  # a commit makes it known; what is put meanwhile goes into the next one
    (done,) = sealed(store)
    assert (done.row.pack, done.row.records) == (use.row.pack, len(known))
    assert repack(store, choose(sealed(store), 0.5), receipts) == len(left)
    assert retire(store, done.row)
    assert unlink(store, done.row, receipts) is None
    store.chunks.forget([*known, *more])
    for id, plain in {**{id: known[id] for id in left}, **more}.items():
        assert store.chunks.get(id) == plain


def test_a_pack_that_is_named_is_not_retired(store):
    fill(store, 1)
    first, second = sealed(store)[:2]
    free(store, in_pack(store, first.row.pack)[:-1])
    with store.catalog.transaction() as db:
        db.execute('INSERT INTO quarantine SELECT *, 1 FROM chunk WHERE pack = ?', (second.row.pack,))
        db.execute('DELETE FROM chunk WHERE pack = ?', (second.row.pack,))
    for use in (first, second):
        assert not retire(store, use.row)
    assert len(sealed(store)) == 4


def test_a_pack_that_only_memory_names_is_not_retired(store):
    """A full pack whose chunks no commit has: the catalog may know the pack, and names nothing in it."""
    chance = random.Random(3)
    store.chunks.put_batch(RecordKind.DATA, [chance.randbytes(3000) for _ in range(20)])
    store.chunks.sync()
    rows = store.chunks.commit_rows()
    store.catalog.put_packs(rows.packs)
    uses = sealed(store)
    assert uses == []
    full = next(row for row in rows.packs if row.state == 'sealed')
    assert not retire(store, full)
    assert full in store.catalog.packs()


def two_copies(store):
    """Store one content twice, as happens when it is put again while it is condemned; return its old pack."""
    known = fill(store, 1)
    use = sealed(store)[0]
    ids = in_pack(store, use.row.pack)
    with store.catalog.transaction() as db:
        db.execute('DELETE FROM chunk WHERE id = ?', (ids[0],))
    store.chunks.forget(ids[:1])
    store.chunks.put_batch(RecordKind.DATA, [known[ids[0]]])
    commit(store)
    free(store, ids[1:])
    assert retire(store, use.row)
    return use.row, ids[0], known[ids[0]]


def test_a_copy_elsewhere_accounts_for_a_record_if_it_is_whole(store, receipts):
    row, id, plain = two_copies(store)
    look = last_look(store, row, receipts)
    assert (look.receipts, look.copies, look.unaccounted) == (row.records - 1, 1, ())
    assert unlink(store, row, receipts) is None
    assert store.chunks.get(id) == plain


@pytest.mark.parametrize('damage', ['payload', 'header', 'missing', 'shorter'])
def test_a_damaged_copy_accounts_for_nothing(store, receipts, damage):
    row, id, _ = two_copies(store)
    location = store.catalog.locate([id])[id]
    name, kind = store.catalog.query('SELECT name, kind FROM pack WHERE pack = ?', (location.pack,))[0]
    path = pack_path(store.path / 'packs', kind, name)
    if damage == 'missing':
        path.rename(path.with_suffix('.away'))
    elif damage == 'shorter':
        os.truncate(path, location.offset + 100)
    else:
        with path.open('r+b') as file:
            file.seek(location.offset + (5 if damage == 'header' else 500))
            file.write(b'\xaa\x55\xaa')
    look = unlink(store, row, receipts)
    assert look is not None
    assert [one for _, one in look.unaccounted] == [id]
    assert path_of(store, row).exists()


@pytest.mark.parametrize('damage', ['record', 'footer', 'shorter', 'other'])
def test_a_pack_that_cannot_be_read_to_its_end_stays(store, receipts, damage):
    fill(store, 1)
    first, second = sealed(store)[:2]
    free(store, in_pack(store, first.row.pack))
    assert retire(store, first.row)
    path = path_of(store, first.row)
    if damage == 'shorter':
        os.truncate(path, first.row.bytes - 1)
    elif damage == 'other':
        path.write_bytes(path_of(store, second.row).read_bytes())
    else:
        with path.open('r+b') as file:
            file.seek(48 + 3 if damage == 'record' else first.row.bytes - 60)
            file.write(b'\xaa\x55\xaa')
    with pytest.raises(Corrupt):
        unlink(store, first.row, receipts)
    assert path.exists()
    assert first.row.pack in [pack.pack for pack in store.catalog.packs()]


def test_a_receipt_that_was_altered_counts_for_nothing(store, receipts):
    fill(store, 1)
    use = sealed(store)[0]
    free(store, in_pack(store, use.row.pack))
    assert retire(store, use.row)
    path = store.path / 'batches' / '1' / 'receipt'
    path.write_bytes(path.read_bytes()[:-1] + b'\x07')
    with pytest.raises(Corrupt, match='not the one its row names'):
        unlink(store, use.row, receipts)
    path.unlink()
    with pytest.raises(Corrupt, match='is missing'):
        unlink(store, use.row, receipts)
    assert path_of(store, use.row).exists()


@pytest.mark.parametrize('state', ['QUARANTINED', 'RESTORED'])
def test_only_a_confirmed_batch_has_a_receipt(store, receipts, state):
    fill(store, 1)
    use = sealed(store)[0]
    free(store, in_pack(store, use.row.pack))
    with store.catalog.transaction() as db:
        db.execute('UPDATE batch SET state = ?', (state,))
    assert retire(store, use.row)
    with pytest.raises(Corrupt, match='no receipt'):
        unlink(store, use.row, receipts)


def test_a_crash_after_the_unlink_is_finished(store, receipts):
    fill(store, 1)
    use = sealed(store)[0]
    free(store, in_pack(store, use.row.pack))
    assert retire(store, use.row)
    path_of(store, use.row).unlink()
    assert unlink(store, use.row, receipts) is None
    assert use.row.pack not in [pack.pack for pack in store.catalog.packs()]
    assert store.catalog.query('SELECT count(*) FROM freed') == [(0,)]


def test_a_sealed_pack_that_vanished_is_no_finished_unlink(store, receipts):
    fill(store, 1)
    use = sealed(store)[0]
    path_of(store, use.row).unlink()
    free(store, in_pack(store, use.row.pack))
    with pytest.raises(Corrupt, match='has vanished'):
        retire(store, use.row)
    with pytest.raises(AssertionError, match='not retired'):
        unlink(store, use.row, receipts)


# --- repack ------------------------------------------------------------------------------------------------
def waste_of(store, seed=1, keep=2):
    """Free all but `keep` chunks of each sealed pack; return what is left as {id: plain}."""
    known = fill(store, seed)
    gone = [id for use in sealed(store) for id in in_pack(store, use.row.pack)[keep:]]
    free(store, gone)
    return {id: plain for id, plain in known.items() if id not in gone}


def test_packs_are_chosen_by_waste_and_fill_one_new_pack(store):
    waste_of(store, keep=1)
    uses = sealed(store)
    assert choose(uses, 0.95) == []
    assert {use.row.pack for use in choose(uses, 0.5)} == {use.row.pack for use in uses}
    big = [PackUse(PackRow(n, bytes(16), 1, 'sealed', 60 << 20, 9), 5, 20 << 20, 0, 0, 4) for n in range(9)]
    assert len(choose(big, 0.5)) == 3, '64 MiB at most'
    assert choose([PackUse(use.row, 5, 20 << 20, 4, 20 << 20, 0) for use in big], 0.5) == [], (
        'it may come back'
    )
    assert len(choose([PackUse(use.row, 0, 0, 5, 20 << 20, 4) for use in big], 0.5)) == 3
    assert choose([PackUse(use.row, 0, 0, 0, 0, 9) for use in big], 0.5) == [], (
        'nothing to carry: it just goes'
    )


def test_what_lives_moves_and_the_old_packs_go(store, receipts):
    left = waste_of(store)
    before = sealed(store)
    moved = repack(store, choose(before, 0.5), receipts)
    assert moved == 2 * len(before)
    store.chunks._plains.__init__(store.chunks._plains._max)
    for use in before:
        assert retire(store, use.row)
        assert unlink(store, use.row, receipts) is None
    for id, plain in left.items():
        assert store.chunks.get(id) == plain
    (new,) = [use for use in sealed(store) if use.row.pack not in [old.row.pack for old in before]]
    assert new.live == new.row.records == moved
    assert list(read_pack(store, new.row))


def test_a_reader_that_knew_the_old_place_finds_the_new_one(store, receipts):
    left = waste_of(store)
    id = in_pack(store, sealed(store)[0].row.pack)[0]
    assert store.chunks.get(id) == left[id]
    location = store.chunks._locations.get(id)
    before = sealed(store)
    repack(store, choose(before, 0.5), receipts)
    for use in before:
        assert retire(store, use.row)
        unlink(store, use.row, receipts)
    store.chunks._plains.remove(id)
    store.chunks._locations.put(id, location)  # it had looked it up just before
    assert store.chunks.get(id) == left[id]


def test_leaks_are_carried_along_and_become_known(store, receipts):
    waste_of(store)
    use = sealed(store)[0]
    leaked = in_pack(store, use.row.pack)[0]
    with store.catalog.transaction() as db:
        db.execute('DELETE FROM chunk WHERE id = ?', (leaked,))
    moves = plan_moves(store, use.row, receipts)
    assert [(move.id == leaked, move.table) for move in moves] == [(True, LEAK), (False, 'chunk')]
    repack(store, [use], receipts)
    assert store.catalog.locate([leaked])[leaked].pack != use.row.pack
    assert retire(store, use.row)
    assert unlink(store, use.row, receipts) is None
    store.chunks.forget([leaked])
    assert store.chunks.get(leaked)


def test_what_is_in_quarantine_moves_as_well(store, receipts):
    """It may still come back, and must not keep a whole pack on the disk until then."""
    left = waste_of(store)
    before = sealed(store)
    rest = in_pack(store, before[0].row.pack)
    with store.catalog.transaction() as db:
        db.execute('INSERT INTO quarantine SELECT *, 2 FROM chunk WHERE pack = ?', (before[0].row.pack,))
        db.execute('DELETE FROM chunk WHERE pack = ?', (before[0].row.pack,))
    store.chunks.forget(rest)
    assert repack(store, choose(sealed(store), 0.5), receipts) == 2 * len(before)
    for use in before:
        assert retire(store, use.row)
        assert unlink(store, use.row, receipts) is None
    assert store.catalog.query('SELECT id FROM quarantine ORDER BY offset') == [(id,) for id in rest]
    for id, plain in left.items():
        store.chunks.forget([id])
        assert store.chunks.get(id) == plain


def test_what_was_restored_meanwhile_keeps_its_old_pack(store, receipts, monkeypatch):
    waste_of(store)
    use = sealed(store)[0]
    with store.catalog.transaction() as db:
        db.execute('INSERT INTO quarantine SELECT *, 2 FROM chunk WHERE pack = ?', (use.row.pack,))
        db.execute('DELETE FROM chunk WHERE pack = ?', (use.row.pack,))
    real = module.copy

    def slow(*arguments):
        done = real(*arguments)
        with store.catalog.transaction() as db:
            columns = 'id, pack, offset, stored, plain, codec, kind, epoch'
            db.execute(f'INSERT INTO chunk SELECT {columns} FROM quarantine')
            db.execute('DELETE FROM quarantine')
        return done

    monkeypatch.setattr(module, 'copy', slow)
    assert repack(store, [use], receipts) == 0
    assert not retire(store, use.row)


def test_a_chunk_that_was_condemned_meanwhile_is_not_repointed(store, receipts, monkeypatch):
    waste_of(store)
    before = sealed(store)
    chosen = choose(before, 0.5)
    id = in_pack(store, chosen[0].row.pack)[0]
    real = module.copy

    def slow(*arguments):
        done = real(*arguments)
        with store.catalog.transaction() as db:
            db.execute('INSERT INTO quarantine SELECT *, 2 FROM chunk WHERE id = ?', (id,))
            db.execute('DELETE FROM chunk WHERE id = ?', (id,))
        return done

    monkeypatch.setattr(module, 'copy', slow)
    assert repack(store, chosen, receipts) == 2 * len(chosen) - 1
    assert store.catalog.locate([id]) == {}
    assert store.catalog.query('SELECT pack FROM quarantine WHERE id = ?', (id,)) == [(chosen[0].row.pack,)]
    assert not retire(store, chosen[0].row)


def test_a_damaged_record_ends_the_repacking_and_changes_nothing(store, receipts):
    waste_of(store)
    chosen = choose(sealed(store), 0.5)
    location = store.catalog.query('SELECT offset FROM chunk WHERE pack = ?', (chosen[-1].row.pack,))[0][0]
    with path_of(store, chosen[-1].row).open('r+b') as file:
        file.seek(location + 500)
        file.write(b'\xaa\x55\xaa')
    files = {path for path in (store.path / 'packs').rglob('*') if path.is_file()}
    rows = store.catalog.query('SELECT * FROM chunk')
    with pytest.raises(Corrupt):
        repack(store, chosen, receipts)
    assert store.catalog.query('SELECT * FROM chunk') == rows
    assert {path for path in (store.path / 'packs').rglob('*') if path.is_file()} == files


def test_a_pack_that_is_gone_ends_the_repacking_as_a_damaged_one_does(store, receipts):
    """A part of what it had came back elsewhere, so it is wasteful; the collector must not die of it."""
    waste_of(store)
    chosen = choose(sealed(store), 0.5)
    path_of(store, chosen[0].row).unlink()
    rows = store.catalog.query('SELECT * FROM chunk')
    with pytest.raises(Corrupt, match='has vanished'):
        repack(store, chosen, receipts)
    assert store.catalog.query('SELECT * FROM chunk') == rows


def test_a_crash_before_the_new_pack_is_known_loses_nothing(store, receipts, monkeypatch):
    left = waste_of(store)

    class Crash(Exception):
        pass

    def crash(*_):
        raise Crash

    monkeypatch.setattr(module, 'take_over', crash)
    with pytest.raises(Crash):
        repack(store, choose(sealed(store), 0.5), receipts)
    receipts.close()
    store.close(clean=False)
    again = Store.open(store.path, store.disk, store.world)
    try:
        for id, plain in left.items():
            assert again.chunks.get(id) == plain
        found = Receipts(again)
        spare = [use for use in sealed(again) if not use.live and not use.freed]
        assert [use.row.records for use in spare] == [8], 'the copy of what lived in four packs'
        for use in spare:  # all copies: it goes through the same door
            assert retire(again, use.row)
            assert unlink(again, use.row, found) is None
        found.close()
        for id, plain in left.items():
            again.chunks.forget([id])
            assert again.chunks.get(id) == plain
    finally:
        again.close(clean=False)


def nowhere(db, rows):
    """A pack that does not become known."""


def elsewhere(db, rows):
    """A pack that becomes known, and a row that is repointed to a wrong place in it."""
    write_packs(db, rows)
    db.execute(
        'CREATE TEMP TRIGGER wrong AFTER UPDATE OF pack ON chunk BEGIN UPDATE chunk SET offset = offset + 1 '
        'WHERE id = new.id; END'
    )


@pytest.mark.parametrize('mistake', [nowhere, elsewhere])
def test_nothing_moves_to_where_it_cannot_be_found(store, receipts, monkeypatch, mistake):
    left = waste_of(store)
    monkeypatch.setattr(module, 'write_packs', mistake)
    with pytest.raises(AssertionError, match='P1'):
        repack(store, choose(sealed(store), 0.5), receipts)
    store.chunks._plains.__init__(store.chunks._plains._max)
    store.chunks._locations.__init__(store.chunks._locations._max)
    for id, plain in left.items():
        assert store.chunks.get(id) == plain


@pytest.mark.parametrize('lost', [0, 1, 2])
def test_a_copy_is_read_back_before_anybody_is_sent_there(store, receipts, monkeypatch, lost):
    """A write that did nothing: of the header, the records, the footer."""
    left = waste_of(store)
    rows = store.catalog.query('SELECT * FROM chunk ORDER BY id')
    real, calls = store.disk.pwrite, []

    def forgets(fd, buffers, offset):
        calls.append(offset)
        if len(calls) - 1 != lost:
            real(fd, buffers, offset)

    monkeypatch.setattr(store.disk, 'pwrite', forgets)
    with pytest.raises(Corrupt):
        repack(store, choose(sealed(store), 0.5)[:1], receipts)
    assert store.catalog.query('SELECT * FROM chunk ORDER BY id') == rows
    for id, plain in left.items():
        assert store.chunks.get(id) == plain


def test_a_lost_pack_that_nothing_needs_is_told_once_and_in_plain_words(store, caplog):
    fill(store, 1)
    use = sealed(store)[0]
    name = use.row.name.hex()
    path_of(store, use.row).unlink()
    free(store, in_pack(store, use.row.pack))
    collector = Collector(store, store.world)
    for _ in range(3):
        assert name in collector.sweep(lambda: None).kept
    lines = [line.getMessage() for line in caplog.records if name in line.getMessage()]
    assert lines == [f'pack {name} is not on the disk, and nothing needs it: only its row stays']


def test_a_pack_that_cannot_be_read_is_told_once(store, caplog):
    fill(store, 1)
    use = sealed(store)[0]
    free(store, in_pack(store, use.row.pack))
    with path_of(store, use.row).open('r+b') as handle:
        handle.truncate(100)
    collector = Collector(store, store.world)
    for _ in range(3):
        collector.sweep(lambda: None)
    lines = [line for line in caplog.records if f'pack {use.row.name.hex()} stays' in line.getMessage()]
    assert len(lines) == 1, lines
