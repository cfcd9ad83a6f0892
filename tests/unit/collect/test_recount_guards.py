"""Guards of recount 1 that stand behind others: each is met alone here."""

from __future__ import annotations

import shutil

import pytest

from snapfs.collect import recount as module
from snapfs.collect.recount import recount
from snapfs.errors import Corrupt
from snapfs.format.nodes import Branch, decode_node
from tests.unit.collect.kit import Kit, random_kit, small_limits


@pytest.fixture(autouse=True)
def small(monkeypatch):
    small_limits(monkeypatch)


@pytest.fixture
def kit(tmp_path):
    kit = Kit(tmp_path / 'store')
    kit.plant()
    yield kit
    kit.store.close(clean=False)


@pytest.fixture
def two(kit):
    """Two volumes that share nothing; the second is deleted. Returns kit, request, data of the first."""
    live, other = kit.volume('live'), kit.volume('other')
    kit.write(live, dict(enumerate(range(150))))
    kit.write(other, {index: 5000 + index for index in range(30)})
    row = kit.store.registry.volume_delete(other, 'somebody', kit.now())
    node = decode_node(kit.store.chunks.get(kit.roots[live].id))
    while isinstance(node, Branch):
        node = decode_node(kit.store.chunks.get(node.children[1]))
    return kit, row.number, node.ref_ids()[1]


@pytest.mark.parametrize('table', ['quarantine', 'freed'])
def test_a_leaf_that_refers_to_what_is_only_condemned(two, table):
    """The chunk is no candidate: only looking at every live reference finds it."""
    kit, number, id = two
    assert recount(kit.spec([number])).alarm == ()
    kit.batch([], [id])
    if table == 'freed':
        kit.sql('INSERT INTO freed SELECT * FROM quarantine')
        kit.sql('DELETE FROM quarantine')
    result = recount(kit.spec([number]))
    assert {(alarm.what, alarm.id, alarm.who) for alarm in result.alarm} == {(table, id, 'live')}
    assert result.condemned == 0


def test_a_fresh_copy_that_comes_while_the_recount_runs_is_no_alarm(two, monkeypatch):
    """Exact look-ups decide, and not what was so at the beginning; a shared prefix alone is no evidence."""
    kit, number, id = two
    kit.batch([], [id])
    trips = module._Run._quarantined_only

    def later(self):
        found = trips(self)
        kit.sql(
            'INSERT INTO chunk SELECT id, pack, offset, stored, plain, codec, kind, epoch FROM quarantine'
        )
        return found

    monkeypatch.setattr(module._Run, '_quarantined_only', later)
    result = recount(kit.spec([number]))
    assert result.alarm == () and result.condemned > 0


def test_a_pack_with_the_content_of_another(two):
    """The same bytes at the same place, under another name: a copy that somebody put there."""
    kit, number, _ = two
    name = kit.store.catalog.query('SELECT name FROM pack WHERE kind = 2')[0][0]
    folder = kit.store.path / 'packs' / 'meta'
    other = bytes(15) + b'\x01'
    (folder / '00').mkdir()
    shutil.copy(folder / name.hex()[:2] / name.hex(), folder / '00' / other.hex())
    kit.sql('UPDATE pack SET name = ? WHERE kind = 2', other)
    with pytest.raises(Corrupt, match='the header is that of another pack'):
        recount(kit.spec([number]))


def test_a_list_of_ids_that_ends_early(kit, monkeypatch):
    """The registry says how many ids a request has; reading fewer of them is not having fewer of them."""
    volume = kit.volume('v')
    kit.write(volume, {index: index for index in range(150)})
    kit.write(volume, {index: 1000 + index for index in range(60)})
    number = kit.requests('dropped')[0].number
    assert recount(kit.spec([number])).condemned
    parts = module.part_ids
    monkeypatch.setattr(module, 'part_ids', lambda *arguments: (ids[:-32] for ids in parts(*arguments)))
    with pytest.raises(Corrupt, match='it names'):
        recount(kit.spec([number]))


@pytest.mark.parametrize('seed', range(4))
def test_each_request_is_told_what_it_frees_first(tmp_path, seed, monkeypatch):
    """What several requests of the batch reach counts for the first of them, and for no other."""
    kit = random_kit(tmp_path / 'random', seed, steps=20)
    rows = [row for row in kit.requests() if row.kind == 'snapshot']
    rows += [row for row in kit.requests() if row.kind == 'dropped']
    result = recount(kit.spec([row.number for row in rows]))
    condemned = kit.condemned([row.number for row in rows])
    expected = {}
    for row in rows:
        mine = kit.reach_of_request(row) & condemned
        condemned -= mine
        if mine:
            expected[row.number] = (len(mine), kit.stored(mine))
    assert {one.number: (one.chunks, one.bytes) for one in result.requests} == expected, f'seed {seed}'
    kit.store.close(clean=False)
