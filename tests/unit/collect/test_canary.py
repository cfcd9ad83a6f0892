"""Canary: planted for good, found whole, and an alarm when it is not."""

from __future__ import annotations

import pytest

from snapfs import limits
from snapfs.collect import canary, roots
from snapfs.errors import Corrupt
from snapfs.format.ids import RecordKind
from snapfs.format.keys import extent_key
from snapfs.format.nodes import encode_leaf
from tests.unit.collect.batch_kit import add_chunks, commit


@pytest.fixture
def planted(batch_store):
    found = canary.sow(batch_store.chunks, batch_store.world)
    commit(batch_store)
    assert canary.enroll(batch_store.catalog, found, 7)
    return found


def test_a_canary_counts_only_when_the_index_has_all_of_it(batch_store):
    sown = canary.sow(batch_store.chunks, batch_store.world)
    assert not canary.enroll(batch_store.catalog, sown, 7)
    assert canary.canaries(batch_store.catalog, batch_store.chunks.get) == []
    commit(batch_store)
    with batch_store.catalog.transaction() as db:
        db.execute('DELETE FROM chunk WHERE id = ?', (sown.data[-1],))
    assert not canary.enroll(batch_store.catalog, sown, 7)
    assert batch_store.catalog.query('SELECT * FROM canary') == []


def test_a_planted_canary_is_a_root_with_its_totals_and_is_found_whole(batch_store, planted):
    (found,) = canary.canaries(batch_store.catalog, batch_store.chunks.get)
    assert found == planted
    assert len(set(found.data)) == limits.CANARY_CHUNKS
    assert set(canary.control_ids([found])) == {planted.root, *planted.data}
    (root,) = [row for row in roots.standing(batch_store.catalog.query) if row.kind == 'canary']
    assert (root.id, root.items, root.refs) == (planted.root, limits.CANARY_CHUNKS, limits.CANARY_CHUNKS)
    assert canary.check(batch_store.catalog, batch_store.chunks.get) == []


def test_two_canaries_share_nothing(batch_store, planted):
    other = canary.sow(batch_store.chunks, batch_store.world)
    commit(batch_store)
    assert canary.enroll(batch_store.catalog, other, 8)
    assert not set(planted.ids) & set(other.ids)
    assert len(canary.canaries(batch_store.catalog, batch_store.chunks.get)) == 2


@pytest.mark.parametrize('which', ['root', 'data'])
def test_a_chunk_of_the_canary_that_left_the_index_is_told(batch_store, planted, which):
    id = planted.root if which == 'root' else planted.data[3]
    with batch_store.catalog.transaction() as db:
        db.execute(
            'INSERT INTO quarantine SELECT id, pack, offset, stored, plain, codec, kind, epoch, 1 FROM chunk '
            'WHERE id = ?', (id,),
        )  # fmt: skip
        db.execute('DELETE FROM chunk WHERE id = ?', (id,))
    batch_store.chunks.on_condemned = lambda id, table: None
    (line,) = canary.check(batch_store.catalog, batch_store.chunks.get)
    assert line == f'chunk {id.hex()} of the canary is not in the index'


def test_a_chunk_of_the_canary_that_cannot_be_read_is_told(batch_store, planted):
    def get(id):
        if id == planted.data[0]:
            raise Corrupt('bit rot')
        return batch_store.chunks.get(id)

    assert canary.check(batch_store.catalog, get) == [
        f'chunk {planted.data[0].hex()} of the canary cannot be read: bit rot'
    ]


def test_a_canary_whose_root_cannot_be_read_is_told(batch_store, planted):
    def get(id):
        raise Corrupt('gone')

    assert canary.check(batch_store.catalog, get) == ['the canary cannot be read: gone']


def test_a_row_that_is_not_its_leafs_is_corrupt(batch_store, planted):
    (id,) = add_chunks(batch_store, 1, 1)
    leaf = encode_leaf([extent_key(limits.INO_FIRST, 0)], [(204, id)])
    (root,) = batch_store.chunks.put_batch(RecordKind.NODE, [leaf])
    commit(batch_store)
    with batch_store.catalog.transaction() as db:
        db.execute('UPDATE canary SET root = ?', (root,))
    with pytest.raises(Corrupt, match='has not the totals of its row'):
        canary.canaries(batch_store.catalog, batch_store.chunks.get)


@pytest.mark.parametrize('which', ['root', 'data'])
def test_one_that_has_lost_bytes_is_rotten_and_can_be_dismissed(batch_store, planted, which):
    lost = planted.root if which == 'root' else planted.data[3]

    def get(id):
        if id == lost:
            raise Corrupt('bit rot')
        return batch_store.chunks.get(id)

    catalog = batch_store.catalog
    assert canary.rotten(catalog, batch_store.chunks.get) == []
    found = canary.rotten(catalog, get)
    assert found == [(1, (lost,))]
    with catalog.transaction() as db:
        db.execute("INSERT INTO damage VALUES (?, 1, 'read', 'bit rot')", (lost,))
    canary.dismiss(catalog, found)
    assert (
        catalog.query('SELECT count(*) FROM canary') == [(0,)] == catalog.query('SELECT count(*) FROM damage')
    )
    assert len(catalog.locate(planted.ids)) == len(planted.ids), 'nothing is freed'


def test_one_that_left_the_index_is_an_alarm_and_not_rotten(batch_store, planted):
    """A collector may have done that: it is not swept under a new canary."""
    with batch_store.catalog.transaction() as db:
        db.execute('DELETE FROM chunk WHERE id = ?', (planted.data[3],))
    batch_store.chunks._plains.__init__(1 << 20)
    assert canary.rotten(batch_store.catalog, batch_store.chunks.get) == []
    assert canary.check(batch_store.catalog, batch_store.chunks.get)
