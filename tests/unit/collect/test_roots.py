"""The registry of roots: nothing that can hold a chunk id is left out, and two lists of roots must agree."""

from __future__ import annotations

import sqlite3
from dataclasses import replace

import pytest

from snapfs import limits
from snapfs.collect import roots
from snapfs.collect.roots import ROOT_KINDS, RootRow, agree, part_ids, standing
from snapfs.errors import Corrupt, Unavailable
from snapfs.format.items import REF_KINDS, ref_of
from snapfs.format.keys import ItemKind, dirent_key, extent_key, inode_key, orphan_key, xattr_key
from snapfs.format.nodes import encode_leaf, peek_refs
from snapfs.store import schema
from tests.unit.collect.kit import Kit, small_limits

# BLOB columns that hold no chunk id, each with what it holds.
OTHER_BLOBS = {
    'volume.name': 'a name',
    'snapshot.name': 'a name',
    'hold.name': 'a name',
    'request.volume_name': 'a name',
    'request.name': 'a name',
    'batch.digest': 'the digest of a plan file',
    'batch.receipt': 'the digest of a receipt file',
    'pack.name': 'random',
    'receipt.digest': 'the digest of a file',
    'approval.digest': 'the digest of a plan file',
}


@pytest.fixture
def kit(tmp_path, monkeypatch):
    small_limits(monkeypatch)
    kit = Kit(tmp_path / 'store')
    yield kit
    kit.store.close(clean=False)


def query_of(kit):
    return kit.store.catalog.query


def blob_columns() -> set[str]:
    db = sqlite3.connect(':memory:')
    found = set()
    for table, text in schema.TABLES.items():
        db.execute(text)
        for row in db.execute(f'PRAGMA table_info({table})'):
            if row[2] not in ('INTEGER', 'TEXT'):
                found.add(f'{table}.{row[1]}')
    return found


def test_every_column_that_can_hold_an_id_is_walked_or_excused():
    named = set(roots.WALKED_COLUMNS) | set(roots.EXCUSED_COLUMNS)
    assert not named & set(OTHER_BLOBS)
    unknown = blob_columns() - named - set(OTHER_BLOBS)

    assert not unknown, f'no walker, no excuse: {sorted(unknown)}'
    assert named <= blob_columns(), 'a column is gone'
    assert set(roots.WALKED_COLUMNS.values()) <= set(ROOT_KINDS)
    by_name = {c for c in blob_columns() if c.rsplit('.', 1)[1] in ('root', 'id', 'ids')}
    assert by_name == named


def test_every_walker_reads_the_column_it_is_named_for(kit):
    """Put an id into each walked column, and see it come out of the kind that claims to read it."""
    kit.plant()
    volume = kit.volume('v')
    kit.write(volume, {2: 1})
    kit.delete(kit.snapshot(volume, 'gone'))
    kit.snapshot(volume, 's')
    kit.request('returned', [b'c' * 32], [b's' * 32])
    rows = {row.kind: row for row in standing(query_of(kit))}
    for column, kind in roots.WALKED_COLUMNS.items():
        table, name = column.split('.')
        stored = {row[0] for row in query_of(kit)(f'SELECT {name} FROM {table} WHERE {name} IS NOT NULL')}
        row = rows[kind]
        if kind == 'dropped':
            found = {b''.join(part_ids(query_of(kit), row.number, what)) for what in ('chunks', 'subtrees')}
        else:
            found = {row.id}
        assert found <= stored
        assert found - {b'', None}


def test_every_kind_of_item_that_refers_to_a_chunk_stands_in_the_refs_table():
    id = b'i' * 32
    inode = (0o100644, 0, 0, 0, 9, 9, 1, 0, 0, 1, 2, 3, 4, 0, b'')
    items = [
        (inode_key(7), inode, ItemKind.INODE),
        (dirent_key(7, 5), ((b'n', 9, 8),), ItemKind.DIRENT),
        (extent_key(7, 0), (100, id), ItemKind.EXTENT),
        (xattr_key(7, b'user.x'), (1, 2000, id), ItemKind.XATTR),
        (orphan_key(7), (), ItemKind.ORPHAN),
    ]
    assert {kind for _, _, kind in items} == set(ItemKind), 'a new kind of item: does it hold an id?'
    for key, value, kind in items:
        _, refs = peek_refs(encode_leaf([key], [value]))
        assert (refs == id) == (kind in REF_KINDS) == (ref_of(key, value) is not None)


def test_all_kinds_in_order(kit):
    kit.plant()
    one, two = kit.volume('one'), kit.volume('two')
    kit.write(one, {2: 1, 3: 2})
    kit.write(one, {2: 5})  # with a request for what it dropped
    old = kit.snapshot(one, 'old')
    kit.snapshot(one, 'new')
    request = kit.delete(old)
    resting = kit.delete(kit.snapshot(two, 'empty'))
    kit.batch([resting.number], [])
    pin = RootRow('pin', 1, 'pin 1', b'p' * 32, None, None, ('pin', 1))
    rows = standing(query_of(kit), extra=[pin])
    kinds = [row.kind for row in rows]
    assert kinds == ['volume', 'volume', 'snapshot', 'request', 'dropped', 'canary', 'pin', 'request']
    assert [row.name for row in rows[:3]] == ['one', 'two', 'one@new']
    assert rows[3].number == request.number and rows[3].name == f'request {request.number} (one@old)'
    assert rows[4].chunks + rows[4].subtrees > 0
    assert rows[-1].batch is not None and rows[-1].id is None
    assert [row.kind for row in standing(query_of(kit), frozenset({request.number}))].count('request') == 1


def test_requests_of_ended_batches_are_no_roots_and_restored_ones_are(kit):
    volume = kit.volume('v')
    kit.write(volume, {2: 1})
    request = kit.delete(kit.snapshot(volume, 's'))
    batch = kit.batch([request.number], [])
    for state, number in (('PLANNED', batch), ('QUARANTINED', batch), ('RESTORED', None)):
        kit.sql('UPDATE batch SET state = ?', state)
        assert [row.batch for row in standing(query_of(kit)) if row.kind == 'request'] == [number]
    for state in ('CONFIRMED', 'FREED'):
        kit.sql('UPDATE batch SET state = ?', state)
        assert not [row for row in standing(query_of(kit)) if row.kind == 'request']


@pytest.mark.parametrize(
    'change',
    [
        "UPDATE volume SET root = x'00'",
        'UPDATE volume SET root_refs = -1',
        'UPDATE volume SET root = NULL',
        'UPDATE volume SET root_items = 0',
        'UPDATE request_part SET ids = zeroblob(33)',
        "UPDATE request SET root = zeroblob(32) WHERE kind = 'dropped'",
        "UPDATE request SET kind = 'snapshot' WHERE kind = 'dropped'",
    ],
)
def test_an_impossible_row_is_corrupt(kit, change):
    volume = kit.volume('v')
    kit.write(volume, {2: 1, 3: 2})
    kit.write(volume, {2: 5})
    standing(query_of(kit))
    kit.sql(change)
    with pytest.raises(Corrupt):
        standing(query_of(kit))


# --- two lists that must agree --------------------------------------------------------------------------
@pytest.fixture
def past(kit):
    """A store with one of everything, and its roots as frozen at the horizon."""
    kit.plant()
    volume = kit.volume('v')
    kit.write(volume, {2: 1, 3: 2})
    kit.write(volume, {2: 5})
    kit.snapshot(volume, 'kept')
    kit.delete(kit.snapshot(volume, 'gone'))
    return kit, volume, kit.root_set()


def test_nothing_happened(past):
    kit, _, frozen = past
    assert agree(frozen, kit.root_set()) == frozen.roots


def test_a_commit_since_counts_both_heads(past):
    kit, volume, frozen = past
    kit.write(volume, {2: 7})
    counted = agree(frozen, kit.root_set())
    heads = [row.id for row in counted if row.kind == 'volume']
    assert len(heads) == 2 and kit.roots[volume].id in heads
    assert {row.id for row in frozen.roots} <= {row.id for row in counted}
    assert len(counted) == len(frozen.roots) + 2  # and the request for what was dropped


def test_what_people_do_meanwhile_is_no_reason_to_stop(past):
    kit, volume, frozen = past
    kept = kit.store.registry.snapshots()[0]
    kit.volume('clone', kept)
    kit.snapshot(volume, 'new')
    kit.store.registry.snapshot_rename(kept.number, 'renamed')
    kit.delete(kept)
    request = kit.requests('snapshot')[0]
    kit.store.registry.snapshot_undelete(request.number, 'back')
    counted = agree(frozen, kit.root_set())
    assert {row.identity for row in frozen.roots} < {row.identity for row in counted}


def test_a_rollback_since(past):
    kit, volume, frozen = past
    snapshot = kit.store.registry.snapshots()[0]
    kit.write(volume, {2: 8})
    before = kit.roots[volume].id
    kit.store.registry.volume_rollback(volume, snapshot.number, 'safety', 'me', kit.now())
    ids = {row.id for row in agree(frozen, kit.root_set())}
    assert {before, snapshot.root} <= ids


@pytest.mark.parametrize('kind', ['volume', 'snapshot', 'request', 'dropped', 'canary'])
def test_one_root_fewer(past, kind):
    kit, _, frozen = past
    found = kit.root_set()
    short = replace(found, roots=tuple(row for row in found.roots if row.kind != kind))
    assert len(short.roots) < len(found.roots)
    with pytest.raises(Corrupt, match=f'missing since the horizon: {kind}'):
        agree(frozen, short)


@pytest.mark.parametrize('kind', ['volume', 'snapshot', 'request', 'dropped', 'canary'])
def test_one_root_more(past, kind):
    kit, _, frozen = past
    short = replace(frozen, roots=tuple(row for row in frozen.roots if row.kind != kind))
    with pytest.raises(Corrupt, match=f'not expected: {kind}'):
        agree(short, kit.root_set())


@pytest.mark.parametrize('kind', ['snapshot', 'volume', 'request', 'dropped', 'canary'])
def test_a_root_that_became_another(past, kind):
    kit, _, frozen = past
    found = kit.root_set()
    rows = [replace(row, refs=9999) if row.kind == kind else row for row in found.roots]
    with pytest.raises(Corrupt, match='has changed since the horizon'):
        agree(frozen, replace(found, roots=tuple(rows)))


def test_an_older_catalog(past):
    kit, _, frozen = past
    with pytest.raises(Corrupt, match='older than the horizon'):
        agree(replace(frozen, epoch=frozen.epoch + 1), kit.root_set())


def test_a_batch_that_was_restored_meanwhile(past):
    kit, _, _ = past
    kit.batch([kit.requests('snapshot')[0].number], [])
    frozen = kit.root_set()
    kit.sql("UPDATE batch SET state = 'RESTORED'")
    with pytest.raises(Unavailable):
        agree(frozen, kit.root_set())


def test_an_id_twice_in_the_registry(past):
    kit, _, _ = past
    row = kit.store.registry.snapshots()[0]
    request = kit.requests('snapshot')[0]
    kit.sql('UPDATE request SET view = ? WHERE number = ?', row.number, request.number)
    with pytest.raises(Corrupt, match='twice'):
        standing(query_of(kit))


def test_the_length_of_an_id_is_known():
    assert limits.ID_BYTES == 32, 'roots.py has it in SQL'
