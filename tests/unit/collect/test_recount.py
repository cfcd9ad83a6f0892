"""Recount 1 against a brute force that decodes everything, and against all sorts of wrong input."""

from __future__ import annotations

import os
import random
from dataclasses import replace

import numpy as np
import pytest

from snapfs import limits
from snapfs.collect import idsets
from snapfs.collect.idsets import NOBODY, PrefixSet, find, settle, sort_order, to_array, to_bytes
from snapfs.collect.recount import recount
from snapfs.collect.roots import RootRow
from snapfs.errors import Corrupt, Invalid, Unavailable
from snapfs.format.ids import data_id, node_id
from snapfs.format.nodes import Branch, decode_node, encode_branch, encode_leaf
from snapfs.format.records import RecordKind
from snapfs.store.durable import Disk
from tests.unit.collect.kit import ID, Kit, content_of, random_kit, small_limits

SEEDS = int(os.environ.get('SNAPFS_SEEDS', '12'))


@pytest.fixture(autouse=True)
def small(monkeypatch):
    small_limits(monkeypatch)


@pytest.fixture
def kit(tmp_path):
    """A volume with a snapshot that holds things of its own, both deleted and not."""
    kit = Kit(tmp_path / 'store')
    kit.plant()
    volume = kit.volume('v')
    kit.write(volume, {index: index for index in range(150)})
    kit.snapshot(volume, 'kept')
    kit.write(volume, {index: 1000 + index for index in range(20, 90)})
    kit.gone = kit.snapshot(volume, 'gone')
    kit.write(volume, dict.fromkeys(range(40, 140)))
    kit.number = kit.delete(kit.gone).number
    kit.numbers = [row.number for row in kit.requests()]
    yield kit
    kit.store.close(clean=False)


def files(kit) -> list[str]:
    return sorted(os.listdir(kit.store.path / 'batches' / 'test'))


def clear(kit) -> None:
    for name in files(kit):
        os.unlink(kit.store.path / 'batches' / 'test' / name)


def ids_in(kit, name='condemned.part') -> list[bytes]:
    data = (kit.store.path / 'batches' / 'test' / name).read_bytes()
    return [data[at : at + ID] for at in range(0, len(data), ID)]


def fails(kit, match, error=Corrupt, **changes):
    """The recount refuses, and nothing is written."""
    spec = kit.spec(changes.pop('deleted', kit.numbers), **changes)
    with pytest.raises(error, match=match):
        recount(spec)
    assert files(kit) == []


def some_leaf(kit, row) -> bytes:
    """The id of a leaf below a root."""
    node = decode_node(kit.store.chunks.get(row.root))
    while isinstance(node, Branch):
        top = node.children[len(node.children) // 2]
        node = decode_node(kit.store.chunks.get(top))
    return top


def location(kit, id: bytes) -> tuple:
    """(path of the pack, offset of the record, stored)."""
    pack, offset, stored = kit.store.catalog.query(
        'SELECT pack, offset, stored FROM chunk WHERE id = ?', (id,)
    )[0]
    name, kind = kit.store.catalog.query('SELECT name, kind FROM pack WHERE pack = ?', (pack,))[0]
    folder = 'meta' if kind == 2 else 'data'
    return kit.store.path / 'packs' / folder / name.hex()[:2] / name.hex(), offset, stored


# --- right answers --------------------------------------------------------------------------------------
@pytest.mark.parametrize('seed', range(SEEDS))
def test_random_pasts_against_brute_force(tmp_path, seed, monkeypatch):
    chance = random.Random(seed)
    if seed % 2:  # through the temporary file, in several passes, in small pieces
        monkeypatch.setattr(limits, 'COLLECT_BUFFER_IDS', 20)
        monkeypatch.setattr(limits, 'COLLECT_PASS_IDS', 15)
        monkeypatch.setattr(limits, 'COLLECT_REFS_BATCH', 7)
        monkeypatch.setattr(limits, 'COLLECT_ROWS', 3)
        monkeypatch.setattr(limits, 'LOCATE_IDS_MAX', 5)
        monkeypatch.setattr(limits, 'COLLECT_RUN_RECORDS', 3)
    if seed % 3 == 0:
        monkeypatch.setattr(limits, 'COLLECT_SCAN_SHARE', 0 if seed % 2 else 1000)
    kit = random_kit(tmp_path / 'store', seed)
    mine = [row.number for row in kit.requests() if chance.random() < 0.7]
    result = recount(kit.spec(mine))
    condemned = kit.condemned(mine)
    assert ids_in(kit) == sorted(condemned), f'seed {seed}'
    assert result.alarm == ()
    assert result.condemned == len(condemned), f'seed {seed}'
    assert result.condemned_bytes == kit.stored(condemned) == sum(share.bytes for share in result.requests)
    trees = kit.alive_nodes_of_trees(mine)
    reached = pruned(kit, mine, trees)
    assert result.candidates == len(reached), f'seed {seed}'
    assert sum(share.chunks for share in result.kept) == len(reached - condemned)
    assert sum(share.bytes for share in result.kept) == kit.stored(reached - condemned)
    assert result.condemned_digest == data_id(b''.join(sorted(condemned)))
    assert result.returned == 0 and ids_in(kit, 'returned.part') == []
    assert result.nodes == len(trees), f'seed {seed}'
    assert result.references == sum(decode_refs(kit, id) for id in trees)
    kit.close()


def pruned(kit, requests, trees) -> set[bytes]:
    """What these requests reach, without going into subtrees that stay whole."""
    rows = [row for row in kit.requests() if row.number in requests]
    return set().union(*(kit.reach_of_request(row, trees) for row in rows))


def is_node(kit, id: bytes) -> bool:
    return kit.store.catalog.query('SELECT kind FROM chunk WHERE id = ?', (id,))[0][0] == RecordKind.NODE


def decode_refs(kit, id: bytes) -> int:
    return len(decode_node(kit.store.chunks.get(id)).ref_ids())


@pytest.mark.parametrize('seed', range(4))
def test_keepers_and_requesters_are_the_first(tmp_path, seed):
    kit = random_kit(tmp_path / 'store', seed, steps=16)
    mine = [row.number for row in kit.requests()][::2]
    spec = kit.spec(mine)
    result = recount(spec)
    condemned = kit.condemned(mine)
    reaches = []
    by_number = {row.number: row for row in kit.requests()}
    for row in spec.expected.roots:
        is_request = row.kind in ('request', 'dropped')
        if is_request and row.number in mine:
            continue
        reaches.append(
            (row.name, kit.reach_of_request(by_number[row.number]) if is_request else kit.reach(row.id))
        )
    candidates = pruned(kit, mine, kit.alive_nodes_of_trees(mine))
    expected: dict[str, list[bytes]] = {}
    for id in candidates - condemned:
        keeper = next(name for name, reach in reaches if id in reach)
        expected.setdefault(keeper, []).append(id)
    assert {share.name: (share.chunks, share.bytes) for share in result.kept if share.chunks} == {
        name: (len(ids), kit.stored(ids)) for name, ids in expected.items()
    }, f'seed {seed}'
    assert {share.number for share in result.requests} <= set(mine)
    assert sum(share.shared for share in result.kept) == met_references(kit, spec, set(mine)), f'seed {seed}'
    kit.close()


def met_references(kit, spec, mine) -> int:
    """References in subtrees of the batch's requests that stay whole, each subtree met counted once."""
    trees = kit.alive_nodes_of_trees(mine)
    met: set[bytes] = set()
    todo = [row.id for row in spec.expected.roots if row.number in mine and row.kind == 'request' and row.id]
    for row in kit.requests('dropped'):
        todo += kit.store.registry.request_part(row.number).subtrees if row.number in mine else ()
    while todo:
        id = todo.pop()
        node = decode_node(kit.store.chunks.get(id))
        if id in trees:
            met.add(id)
        elif isinstance(node, Branch):
            todo += node.children
    return sum(decode_node(kit.store.chunks.get(id)).refs_below + 1 for id in met)


@pytest.mark.parametrize('seed', range(4))
def test_what_if_tells_the_bytes_that_only_these_hold(tmp_path, seed):
    kit = random_kit(tmp_path / 'store', seed, steps=16)
    snapshots = kit.store.registry.snapshots()
    for some in (snapshots[:1], snapshots[:2], snapshots):
        spec = kit.spec(mode='what-if', deleted=())
        spec = replace(spec, deleted=tuple(('snapshot', row.number) for row in some))
        result = recount(spec)
        reached = set().union(*(kit.reach(row.root) for row in some))
        others = kit.alive_but([row.number for row in some])
        assert result.condemned_bytes == kit.stored(reached - others), f'seed {seed}'
        assert files(kit) == []
    kit.close()


def test_leaks_are_rows_that_nobody_reaches(kit):
    assert recount(kit.spec(mode='leaks')).condemned == 0
    leaked = [kit.put(10**6 + n) for n in range(5)]
    top = encode_leaf([b'\0' * 7 + b'\x09' + b'\x05' + b'\0' * 8], [()])
    leaked += kit.store.chunks.put_batch(RecordKind.NODE, [top])
    kit.commit()
    result = recount(kit.spec(mode='leaks'))
    assert ids_in(kit) == sorted(leaked)
    assert result.condemned_bytes == kit.stored(leaked) and result.requests == ()
    kit.request('leaked', leaked[:2])
    recount(kit.spec(mode='leaks'))
    assert ids_in(kit) == sorted(leaked[2:])  # those asked for are a request's now
    number = kit.requests('leaked')[0].number
    recount(kit.spec([number]))
    assert ids_in(kit) == sorted(leaked[:2])


def test_leaks_are_not_looked_for_among_what_came_after_the_horizon(kit):
    spec = kit.spec(mode='leaks')
    kit.put(10**6)
    kit.commit()
    assert recount(spec).condemned == 0


def test_what_only_a_resting_batch_keeps_is_returned(kit):
    """Two snapshots share chunks that nobody else has; one rests in quarantine, the other goes now."""
    volume = kit.volume('other')
    kit.write(volume, {index: 5000 + index for index in range(60)})
    first = kit.snapshot(volume, 'first')
    kit.write(volume, {index: 6000 + index for index in range(10)})
    resting = [kit.delete(first).number, *(row.number for row in kit.requests('dropped'))]
    second = kit.snapshot(volume, 'second')
    mine = [kit.delete(second).number]
    mine.append(kit.store.registry.volume_delete(volume, 'somebody', kit.now()).number)
    alone = kit.condemned(resting)
    both = set().union(*(kit.reach_of_request(row) for row in kit.requests() if row.number in resting))
    reached = set().union(*(kit.reach_of_request(row) for row in kit.requests() if row.number in mine))
    firm = kit.alive([*mine, *resting])
    back = (reached & both) - firm
    # Some of it stands in subtrees that nobody but the resting batch keeps whole.
    assert back - pruned(kit, mine, kit.alive_nodes_of_trees(mine))
    kit.batch(resting, alone)
    assert alone & both and not alone & reached
    result = recount(kit.spec(mine))
    assert result.alarm == ()
    assert ids_in(kit) == sorted(reached - firm - both) != []
    assert ids_in(kit, 'returned.part') == sorted(back) != []
    assert result.returned == len(back)
    assert result.returned_bytes == kit.stored(back)


def test_what_only_a_pin_or_a_recovery_keeps_is_returned(kit):
    root = kit.gone.root
    expected = kit.root_set()
    row = RootRow('recovery', 3, 'recovery 3', root, None, None, ('recovery', 3))
    row = replace(row, items=kit.gone.root_items, refs=kit.gone.root_refs)
    result = recount(kit.spec(kit.numbers, expected=replace(expected, roots=(*expected.roots, row))))
    back = kit.condemned(kit.numbers) & kit.reach(root)
    assert result.alarm == () and back
    assert ids_in(kit, 'returned.part') == sorted(back)
    assert ids_in(kit) == sorted(kit.condemned(kit.numbers) - back)


def test_what_was_put_afresh_is_no_alarm(kit):
    """Content that rests in quarantine was written again: another copy, which a batch may condemn anew."""
    numbers = kit.numbers
    condemned = kit.condemned(numbers)
    kit.batch(numbers, condemned)
    content = next(n for n in range(1000, 1200) if data_id(content_of(n)) in condemned)
    assert kit.put(content) in condemned
    volume = kit.volume('fresh')
    kit.write(volume, {2: content})
    kit.write(volume, {2: None})
    mine = [row.number for row in kit.requests('dropped') if row.batch is None]
    result = recount(kit.spec(mine))
    assert result.alarm == () and result.condemned > 0
    assert data_id(content_of(content)) in ids_in(kit, 'returned.part')


def test_progress_is_told(kit, monkeypatch):
    monkeypatch.setattr(limits, 'COLLECT_TICK_NODES', 2)
    told = []
    result = recount(kit.spec(kit.numbers), lambda done, known: told.append((done, known)))
    assert told == sorted(told) and len(told) > 5
    assert all(done <= known for done, known in told)
    assert told[-1][0] >= result.nodes


def test_results_of_a_crashed_worker_are_replaced(kit):
    spec = kit.spec(kit.numbers)
    (spec.out / 'condemned.part').write_bytes(b'half')
    recount(spec)
    assert ids_in(kit) == sorted(kit.condemned(kit.numbers))
    assert files(kit) == ['condemned.part', 'returned.part']


def test_heads_that_commit_meanwhile_keep_what_they_had_and_have(kit):
    volume = 1
    kit.write(volume, {5: 777})  # which the batch's requests do not reach
    spec, condemned = kit.spec(kit.numbers), kit.condemned(kit.numbers)
    kit.write(volume, dict.fromkeys(range(150)))  # a commit drops it all
    recount(spec)
    assert ids_in(kit) == sorted(condemned)


# --- what is not right ----------------------------------------------------------------------------------
def test_a_missing_node(kit):
    for row in (kit.gone, kit.store.registry.snapshots()[0]):
        leaf = some_leaf(kit, row)
        rows = kit.sql('SELECT * FROM chunk WHERE id = ?', leaf)
        kit.sql('DELETE FROM chunk WHERE id = ?', leaf)
        fails(kit, f'{leaf.hex()} of .* is not in the index')
        kit.sql('INSERT INTO chunk VALUES (?, ?, ?, ?, ?, ?, ?, ?)', *rows[0])
    assert recount(kit.spec(kit.numbers)).condemned


def test_a_missing_candidate(kit):
    id = next(id for id in sorted(kit.condemned(kit.numbers)) if not is_node(kit, id))
    kit.sql('DELETE FROM chunk WHERE id = ?', id)
    fails(kit, f'chunk {id.hex()} of request .* is not in the index')


class FaultyDisk(Disk):
    """The n-th read of a pack fails, in some way."""

    def __init__(self, at: int, how: str) -> None:
        super().__init__()
        self.at, self.how = at, how

    def _sys_pread(self, fd, count, offset):
        self.at -= 1
        data = super()._sys_pread(fd, count, offset)
        if self.at == 0:
            if self.how == 'error':
                raise OSError(5, 'Input/output error')
            if self.how == 'short':
                self.at = 1  # and no more comes
                return data[: len(data) // 2] if len(data) > 1 else b''
            middle = len(data) // 2
            return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
        return data


@pytest.mark.parametrize('how', ['error', 'short', 'flip'])
def test_every_read_that_fails_stops_the_recount(kit, how):
    spec = kit.spec(kit.numbers)
    reads = FaultyDisk(10**9, how)
    good = recount(spec, disk=reads)
    count = 10**9 - reads.at
    clear(kit)
    assert count > 6
    harmless = 0
    for at in range(1, count + 1):
        try:
            # A flipped bit between two records that are read in one call is nobody's loss.
            assert recount(spec, disk=FaultyDisk(at, how)) == good and how == 'flip', f'read {at}'
            harmless += 1
            clear(kit)
        except Corrupt:
            assert files(kit) == [], f'read {at}'
    assert harmless < count // 2


def test_a_pack_that_vanished(kit):
    path, _, _ = location(kit, kit.gone.root)
    path.rename(path.with_name('elsewhere'))
    fails(kit, 'is missing')
    path.write_bytes(b'')
    fails(kit, 'pack: 0 bytes')


def test_a_pack_of_another_store_or_of_data(kit):
    path, offset, _ = location(kit, kit.gone.root)
    data = bytearray(path.read_bytes())
    fails(kit, 'another store', uuid=bytes(16))
    kit.sql('UPDATE pack SET kind = 1, name = name WHERE kind = 2')
    fails(kit, 'in a pack of data')
    kit.sql('UPDATE pack SET kind = 2, bytes = ? WHERE name = ?', offset, bytes.fromhex(path.name))
    fails(kit, 'durable bytes')
    assert bytes(data) == path.read_bytes()


def test_an_index_that_points_elsewhere(kit):
    leaf = some_leaf(kit, kit.gone)
    other = kit.gone.root
    row = kit.sql('SELECT pack, offset, stored, plain FROM chunk WHERE id = ?', other)[0]
    mine = kit.sql('SELECT pack, offset, stored, plain, kind FROM chunk WHERE id = ?', leaf)[0]
    text = 'UPDATE chunk SET pack = ?, offset = ?, stored = ?, plain = ?, kind = ? WHERE id = ?'
    kit.sql(text, *row, 2, leaf)
    fails(kit, 'another record')
    kit.sql(text, *mine[:3], mine[3] - 1, 2, leaf)
    fails(kit, 'its lengths|cannot be')
    kit.sql(text, *mine[:4], 1, leaf)
    fails(kit, 'not a node')
    kit.sql(text, 999, *mine[1:], leaf)
    fails(kit, 'pack 999')
    kit.sql(text, *mine, leaf)
    assert recount(kit.spec(kit.numbers)).condemned


def forge(kit, plain: bytes, kind=RecordKind.NODE) -> bytes:
    """Store a node that nobody should have made; return its id."""
    id = kit.store.chunks.put_batch(kind, [plain])[0]
    kit.commit()
    return id


def test_a_data_chunk_in_the_place_of_a_node(kit):
    """Its id is right, and its kind is wrong."""
    id = kit.put(424242)
    kit.commit()
    kit.sql('UPDATE snapshot SET root = ?', id)
    fails(kit, 'not a node|in a pack of data')
    plain = kit.store.chunks.get(kit.gone.root)
    as_data = kit.store.chunks.put_batch(RecordKind.DATA, [plain])[0]
    assert as_data != node_id(plain)
    kit.commit()
    kit.sql('UPDATE snapshot SET root = ?', as_data)
    fails(kit, 'not a node|in a pack of data')


@pytest.mark.parametrize('column', ['root_items', 'root_refs'])
@pytest.mark.parametrize('table', ['volume', 'snapshot', 'request', 'canary'])
def test_a_wrong_total_in_a_row(kit, table, column):
    kit.sql(f'UPDATE {table} SET {column} = {column} + 1 WHERE root IS NOT NULL')
    fails(kit, 'claimed|claim different totals', deleted=[kit.number])


@pytest.mark.parametrize('items,refs', [(1, 0), (0, 1), (0, -1)])
def test_a_wrong_total_in_a_branch(kit, items, refs):
    """A branch that lies about a child, and whose own totals add up; as the root of a snapshot."""
    root = decode_node(kit.store.chunks.get(kit.gone.root))
    child_items, child_refs = list(root.child_items), list(root.child_refs)
    child_items[0] += items
    child_refs[0] += refs
    plain = encode_branch(root.level, root.keys, root.children, child_items, child_refs)
    forged = forge(kit, plain)
    totals = sum(child_items), sum(child_refs) + len(root.children)
    text = 'UPDATE {} SET root = ?, root_items = ?, root_refs = ? WHERE {}'
    kit.sql(text.format('request', 'number = ?'), forged, *totals, kit.number)
    fails(kit, 'claimed|claim different totals')
    kit.sql(text.format('snapshot', 'number = ?'), forged, *totals, kit.store.registry.snapshots()[0].number)
    fails(kit, 'claimed|claim different totals', deleted=[])


def test_a_child_on_the_wrong_level(kit):
    volume = kit.volume('high')
    kit.write(volume, {index: index for index in range(900)})
    row = kit.snapshot(volume, 'high')
    root = decode_node(kit.store.chunks.get(row.root))
    assert root.level >= 2
    leaf = some_leaf(kit, row)
    below = decode_node(kit.store.chunks.get(leaf))
    plain = encode_branch(
        root.level,
        root.keys,
        [leaf, *root.children[1:]],
        [below.items_below, *root.child_items[1:]],
        [below.refs_below, *root.child_refs[1:]],
    )
    found = decode_node(plain)
    text = 'UPDATE request SET root = ?, root_items = ?, root_refs = ? WHERE number = ?'
    kit.sql(text, forge(kit, plain), found.items_below, found.refs_below, kit.number)
    fails(kit, 'level 0, .*claimed: level')


def test_a_node_that_is_none(kit):
    kit.sql('UPDATE snapshot SET root = ?', forge(kit, b'nonsense' * 10))
    fails(kit, 'node: format version|node:')


def test_one_root_more_or_fewer(kit):
    expected = kit.root_set()
    for n, row in enumerate(expected.roots):
        short = replace(expected, roots=expected.roots[:n] + expected.roots[n + 1 :])
        if ('request', row.number) in kit.spec(kit.numbers).deleted and row.kind in ('request', 'dropped'):
            continue
        fails(kit, 'that was not expected', expected=short)
    more = replace(expected.roots[0], identity=('view', 99), name='extra')
    fails(kit, 'missing since the horizon', expected=replace(expected, roots=(*expected.roots, more)))


def test_a_truncated_listing_of_roots(kit, monkeypatch):
    """The worker's own query comes back short, as the listing of 2011 did."""
    spec = kit.spec(kit.numbers)
    kit.sql('DELETE FROM snapshot')
    with pytest.raises(Corrupt, match='missing since the horizon: snapshot v@kept'):
        recount(spec)
    assert files(kit) == []


def test_a_truncated_list_of_dropped_ids(kit):
    number = kit.requests('dropped')[0].number
    spec = kit.spec([kit.number])
    kit.sql('UPDATE request_part SET ids = substr(ids, 33) WHERE request = ?', number)
    kit.sql('UPDATE request_part SET ids = CAST(ids AS BLOB)')
    with pytest.raises(Corrupt, match='changed since the horizon'):
        recount(spec)
    assert files(kit) == []


def test_a_stale_catalog(kit):
    expected = kit.root_set()
    kit.sql("UPDATE settings SET value = value - 1 WHERE key = 'epoch'")
    fails(kit, 'older than the horizon', expected=expected)


def test_a_request_that_was_taken_back(kit):
    spec = kit.spec(kit.numbers)
    kit.store.registry.snapshot_undelete(kit.number)
    with pytest.raises(Unavailable, match='taken back'):
        recount(spec)
    assert files(kit) == []


def test_a_wish_that_cannot_be(kit):
    fails(kit, 'taken back', Unavailable, deleted=[999])
    fails(kit, 'no mode', Invalid, mode='guess')
    fails(kit, 'could be blind', Invalid, control=())
    fails(kit, 'another store than', uuid=b'u' * 16)


# --- alarms ---------------------------------------------------------------------------------------------
def alarmed(kit, what, **changes):
    result = recount(kit.spec(changes.pop('deleted', kit.numbers), **changes))
    assert {alarm.what for alarm in result.alarm} == {what}
    assert result.condemned == result.condemned_bytes == result.returned == 0
    assert result.requests == ()
    assert files(kit) == []
    return result.alarm


def test_a_live_reference_to_what_is_only_in_quarantine(kit):
    """An earlier batch condemned what a snapshot needs: data first, then a node."""
    row = kit.store.registry.snapshots()[0]
    mine = [row.number for row in kit.requests('dropped')]
    leaf = some_leaf(kit, row)
    data = decode_node(kit.store.chunks.get(leaf)).ref_ids()[0]
    kit.batch([kit.number], [data])
    (alarm,) = {(a.id, a.who) for a in alarmed(kit, 'quarantine', deleted=mine)}
    assert alarm[0] == data
    kit.sql('INSERT INTO chunk SELECT id, pack, offset, stored, plain, codec, kind, epoch FROM quarantine')
    assert recount(kit.spec(mine)).alarm == ()  # there is a fresh copy
    clear(kit)
    kit.sql('DELETE FROM quarantine')
    kit.batch([], [leaf])
    assert alarmed(kit, 'quarantine', deleted=mine)[0].id == leaf


def test_a_live_reference_to_what_is_freed(kit):
    row = kit.store.registry.snapshots()[0]
    for id in (decode_node(kit.store.chunks.get(some_leaf(kit, row))).ref_ids()[0], some_leaf(kit, row)):
        kit.batch([], [id])
        kit.sql('INSERT INTO freed SELECT * FROM quarantine')
        kit.sql('DELETE FROM quarantine')
        assert alarmed(kit, 'freed')[0].id == id
        kit.sql('INSERT INTO chunk SELECT id, pack, offset, stored, plain, codec, kind, epoch FROM freed')
        kit.sql('DELETE FROM freed')


def test_what_is_condemned_already_is_passed_over(kit):
    """A commit dropped what a snapshot had as well; the snapshot's batch took it."""
    volume = kit.volume('w')
    kit.write(volume, {2: 999_999})
    kit.write(volume, {2: None})
    id = data_id(content_of(999_999))
    kit.batch([], [id])
    assert recount(kit.spec([kit.number])).alarm == ()
    last = max(row.number for row in kit.requests('dropped'))
    result = recount(kit.spec([last]))
    assert result.alarm == ()
    assert id not in ids_in(kit)


def test_subtrees_that_another_batch_took_are_passed_over(kit):
    """The nodes of a dropped subtree are in quarantine, or gone: what is left of it is still found."""
    volume = kit.volume('w')
    kit.write(volume, {index: 1_000_000 + index for index in range(400)})
    root = kit.store.registry.volumes()[-1].root
    kit.write(volume, dict.fromkeys(range(400)))
    number = kit.request('dropped', [], [root])
    reach = sorted(kit.reach(root))
    nodes = [id for id in reach if is_node(kit, id)]
    assert len(nodes) > 3
    before = recount(kit.spec([number]))
    assert ids_in(kit) == sorted(kit.condemned([number]))
    assert before.condemned >= len(reach) - 40
    kit.batch([], nodes[:2])
    kit.sql('DELETE FROM chunk WHERE id = ?', nodes[2])
    after = recount(kit.spec([number]))
    assert after.alarm == ()
    assert not set(nodes[:3]) & set(ids_in(kit))


def test_a_blind_recount(kit):
    """The canary's root is forgotten; or a walk does not mark what it sees."""
    kit.sql('DELETE FROM canary')
    alarms = alarmed(kit, 'blind')
    assert {alarm.id for alarm in alarms} == set(kit.control)


def test_a_recount_that_marks_nothing_is_blind(kit, monkeypatch):
    monkeypatch.setattr(PrefixSet, 'mark', lambda *_: None)
    assert len(alarmed(kit, 'blind')) == len(kit.control)


def test_control_chunks_are_never_condemned(kit):
    """Not even when a request names them: they are found alive, or it is an alarm."""
    number = kit.request('leaked', kit.control)
    result = recount(kit.spec([number]))
    assert result.condemned == 0 and result.alarm == ()
    clear(kit)
    kit.sql('DELETE FROM canary')
    alarmed(kit, 'blind', deleted=[number])


# --- sets of ids ----------------------------------------------------------------------------------------
def id_of(*words: int) -> bytes:
    return b''.join(word.to_bytes(8, 'big') for word in words)


def test_ids_that_share_a_prefix_are_told_apart_and_kept_together():
    twins = [id_of(5, 1, 2, n) for n in range(4)]
    others = [id_of(n, 9, 9, 9) for n in (0, 4, 6, (1 << 64) - 1)]
    ids = sorted(twins + others)
    array = to_array(b''.join(reversed(ids)))
    assert to_bytes(array[sort_order(array)]) == b''.join(ids)
    array = to_array(b''.join(ids))
    wanted = to_array(b''.join([twins[2], id_of(5, 1, 2, 7), others[3], id_of(5, 0, 0, 0)]))
    assert find(array, wanted).tolist() == [ids.index(twins[2]), -1, ids.index(others[3]), -1]
    prefixes = PrefixSet(array[:, 0].copy())
    prefixes.mark(np.array([5], dtype=np.uint64), np.uint32(3))
    owners = prefixes.owners_of(0, len(ids)).tolist()
    assert [owner == 3 for owner in owners] == [id in twins for id in ids]
    assert set(owners) == {3, int(NOBODY)}
    tail = ids.index(twins[2])  # a part that begins among the twins
    assert prefixes.owners_of(tail, tail + 2).tolist() == [3, 3]


@pytest.mark.parametrize('seed', range(5))
def test_sets_of_ids_against_python(seed):
    chance = random.Random(seed)
    pool = [id_of(chance.randrange(6), 0, chance.randrange(3), chance.randrange(3)) for _ in range(60)]
    known = sorted(set(chance.sample(pool, 30)))
    found = find(to_array(b''.join(known)), to_array(b''.join(pool))).tolist()
    assert [known[at] if at >= 0 else None for at in found] == [id if id in known else None for id in pool]
    many = to_array(b''.join(pool))
    assert to_bytes(many[sort_order(many)]) == b''.join(sorted(pool)), f'seed {seed}'


def test_claims_settle_to_the_first_owner_and_must_agree():
    a, b = id_of(1, 0, 0, 0), id_of(2, 0, 0, 0)
    one = idsets.claim(a + b, [5, 6], [1, 2], 4)
    two = idsets.claim(b + a, idsets.UNKNOWN, idsets.UNKNOWN, 3)
    both = settle([one, two])
    assert to_bytes(both.ids) == a + b
    assert both.items.tolist() == [5, 6] and both.refs.tolist() == [1, 2]
    assert both.owners.tolist() == [3, 3]
    for items, refs in ((7, 2), (6, 1)):
        wrong = idsets.claim(b, items, refs, 1)
        with pytest.raises(Corrupt, match='different totals'):
            settle([one, wrong])
        with pytest.raises(Corrupt, match='different totals'):
            idsets.divide(settle([wrong]), settle([one]))
    rest, met = idsets.divide(settle([two]), settle([one]))
    assert len(rest) == 0 and met.items.tolist() == [5, 6]
    with pytest.raises(Corrupt):
        to_array(b'short')
