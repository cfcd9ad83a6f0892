"""A statement that moves too much, or nothing, ends its transaction: a slip in a WHERE must not lose a row.

What a wrong statement would do, a trigger does here, behind the back of the right one."""

from __future__ import annotations

import pytest

from snapfs.collect.receipts import Receipts
from snapfs.collect.states import CONFIRMED, QUARANTINED, batch
from snapfs.collect.sweep import census, retire, unlink
from snapfs.errors import Corrupt
from snapfs.format.records import RecordKind
from tests.unit.collect.batch_kit import all_rows, commit, confirmed, pass_time, quarantined, recount_2

NOTHING_ARRIVES = 'BEFORE INSERT ON chunk BEGIN SELECT RAISE(IGNORE); END'
NOTHING_LEAVES = 'BEFORE DELETE ON quarantine BEGIN SELECT RAISE(IGNORE); END'


def wrong(store, what: str) -> None:
    with store.catalog.transaction() as db:
        db.execute(f'CREATE TEMP TRIGGER wrong {what}')


@pytest.mark.parametrize('what', [NOTHING_ARRIVES, NOTHING_LEAVES])
def test_what_is_restored_has_arrived_before_it_leaves(batch_store, batches, ids, what):
    row = quarantined(batch_store, batches, ids[:6])
    before = all_rows(batch_store)
    wrong(batch_store, what)
    with pytest.raises(AssertionError, match='P1: 6 rows were to come back'):
        batches.restore(row.number, 'somebody wants it')
    assert all_rows(batch_store) == before


@pytest.mark.parametrize('what', [NOTHING_ARRIVES, NOTHING_LEAVES])
def test_what_leaves_a_batch_has_arrived_before_it_leaves(batch_store, batches, ids, what):
    row = quarantined(batch_store, batches, ids[:6])
    before = all_rows(batch_store)
    wrong(batch_store, what)
    with pytest.raises(AssertionError, match='P1: 2 rows were to come back'):
        batches.drop_from_batch(row.number, ids[:2], 'a leftover')
    assert all_rows(batch_store) == before


def test_a_restored_batch_releases_no_request_of_another(batch_store, batches, ids):
    first, second = (quarantined(batch_store, batches, part) for part in (ids[:4], ids[4:8]))
    change = f'UPDATE request SET batch = NULL WHERE batch = {second.number}'
    wrong(batch_store, f'AFTER UPDATE OF batch ON request BEGIN {change}; END')
    with pytest.raises(AssertionError, match='released requests of others'):
        batches.restore(first.number, 'somebody wants it')
    text = 'SELECT count(*) FROM request WHERE batch = ?'
    assert batch_store.catalog.query(text, (second.number,)) == [(1,)]
    assert batch(batch_store.catalog, second.number).state == QUARANTINED


@pytest.mark.parametrize('returned', [[], [b'r' * 32]])
def test_a_freed_batch_ends_no_request_of_another(batch_store, batches, clock, ids, returned):
    first, second = (quarantined(batch_store, batches, part) for part in (ids[:4], ids[4:8]))
    confirmed(batch_store, batches, clock, first.number)
    batches.free_all(first.number)
    own = f'SELECT number FROM request WHERE batch = {second.number}'
    change = f'DELETE FROM request_part WHERE request IN ({own}); DELETE FROM request WHERE number IN ({own})'
    wrong(batch_store, f'AFTER DELETE ON request BEGIN {change}; END')
    with pytest.raises(AssertionError, match='ended requests of others'):
        batches.finish(first.number, returned)
    assert batch(batch_store.catalog, first.number).state == CONFIRMED
    text = 'SELECT count(*) FROM request WHERE batch = ?'
    assert batch_store.catalog.query(text, (second.number,)) == [(1,)]


def test_a_pack_that_goes_takes_no_other_along(batch_store, batches, clock, ids):
    row = quarantined(batch_store, batches, ids)
    confirmed(batch_store, batches, clock, row.number)
    batches.free_all(row.number)
    batches.finish(row.number, [])
    store = batch_store
    (number,) = [row.pack for row in store.catalog.packs() if row.kind == RecordKind.DATA]
    store.chunks.seal_pack(RecordKind.DATA, number)
    commit(store)
    (use,) = [use for use in census(store.catalog, frozenset()) if use.row.kind == RecordKind.DATA]
    assert retire(store, use.row)
    wrong(store, 'BEFORE DELETE ON pack BEGIN SELECT RAISE(IGNORE); END')
    receipts = Receipts(store)
    try:
        with pytest.raises(AssertionError, match='P1: 0 packs'):
            unlink(store, use.row, receipts)
    finally:
        receipts.close()


@pytest.mark.parametrize('change', ['NULL', '(SELECT max(number) FROM batch)'])
def test_nothing_is_confirmed_that_nobody_asks_for_any_more(batch_store, batches, clock, ids, change):
    first, second = (quarantined(batch_store, batches, part) for part in (ids[:4], ids[4:8]))
    receipt = batches.write_receipt(first.number)
    pass_time(batch_store, clock, first.grace_ns / 1e9)
    with batch_store.catalog.transaction() as db:
        db.execute(
            f'UPDATE request SET batch = {change} WHERE batch IN (?, ?)', (first.number, second.number)
        )
    with pytest.raises(Corrupt, match='P2'):
        batches.confirm(first.number, receipt, recount_2(batch_store, clock))
    assert batch(batch_store.catalog, first.number).state == QUARANTINED


def test_requests_that_were_not_ended_are_not_released_either(batch_store, batches, clock, ids, monkeypatch):
    """A mutant: what was freed could be taken back, with nothing in it."""
    row = quarantined(batch_store, batches, ids[:4])
    confirmed(batch_store, batches, clock, row.number)
    batches.free_all(row.number)
    monkeypatch.setattr('snapfs.collect.moves.end_requests', lambda *arguments: None)
    batches.finish(row.number, [])
    rows = batch_store.catalog.query('SELECT count(*) FROM request WHERE batch IS NULL')
    assert rows == [(0,)]
