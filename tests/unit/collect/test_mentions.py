"""Recount 2: which mentions count, and how much."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from snapfs import limits
from snapfs.collect.mention_values import Mentions
from snapfs.errors import Corrupt, Invalid
from snapfs.format.ids import RecordKind, node_id
from snapfs.format.journal import VolumeDelta, encode_record_frames
from snapfs.format.keys import extent_key
from tests.unit.collect.kit2 import Built, branch, build, leaf


@pytest.fixture
def built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Built]:
    """A store with a volume of two leaves, and a deleted snapshot of one leaf that is all in batch 1."""
    for name in ('JOURNAL_BYTES', 'RESERVE_BYTES', 'FREE_BYTES_MIN'):
        monkeypatch.setattr(limits, name, 64 * limits.KIB)
    made = build(tmp_path / 'store')
    yield made
    made.store.close(clean=False)


class Scene:
    """d: data of the volume, x: data of the deleted snapshot, both as ids."""

    def __init__(self, built: Built, condemn: str = 'x') -> None:
        self.d = built.put_data(*(b'data %d' % n for n in range(7)))
        self.x = built.put_data(*(b'gone %d' % n for n in range(3)))
        self.left, self.right, self.gone = leaf(self.d[:3]), leaf(self.d[3:]), leaf(self.x, 2)
        self.top = branch([self.left, self.right])
        built.put_nodes(self.left, self.right, self.top, self.gone)
        built.commit()
        built.volume(1, self.top)
        ids = [node_id(self.gone), *self.x]
        if condemn == 'wrong':
            ids.append(self.d[4])
        built.batch(1, ids)
        built.request(1, plain=self.gone, batch=1)


def only(seen: Mentions) -> tuple[bytes, str, str]:
    (mention,) = seen.live
    assert seen.live_count == 1
    return mention.id, mention.by, mention.how


def test_what_only_the_batch_itself_mentions_is_clear(built: Built) -> None:
    scene = Scene(built)
    told: list[tuple[int, int]] = []
    seen = built.mentions()
    assert (seen.live, seen.live_count, seen.leftovers, seen.strangers) == ((), 0, (), ())
    assert (seen.records, seen.references, seen.condemned) == (4, 7 + 2 + 3, 4)
    assert seen.items == 3 + 1 + 4 + 1 + 2 + 3 + 1
    assert (seen.packs, seen.rows) == (1, 2)
    assert seen.bytes == sum(path.stat().st_size for path in built.pack_files('meta'))
    from snapfs.collect.mentions import look_for_mentions

    look_for_mentions(built.spec(), lambda done, total: told.append((done, total)))
    assert told == [(seen.bytes, seen.bytes)]
    assert scene.x


def test_a_condemned_chunk_of_a_volume_is_live_and_the_evidence_names_node_pack_and_row(built: Built) -> None:
    scene = Scene(built, 'wrong')
    seen = built.mentions()
    id, by, how = only(seen)
    assert (id, by) == (scene.d[4], f'node {node_id(scene.right).hex()}')
    (pack,) = built.pack_files('meta')
    assert how.startswith(f'in pack {pack.name} at offset ')
    assert how.endswith(', which volume 1 keeps')
    assert seen.leftovers == ()


@pytest.mark.parametrize('kind', ['snapshot', 'canary', 'request', 'volume'])
def test_every_kind_of_row_keeps_what_is_below_it(built: Built, kind: str) -> None:
    """The root that recount 1 forgot: of whatever kind, its chunks must not go."""
    scene = Scene(built)
    [extra] = built.put_data(b'forgotten')
    lost = leaf([extra, scene.d[0]], 5)
    lost_top = branch([lost, leaf([scene.d[1]], 6)])
    built.put_nodes(lost, lost_top, leaf([scene.d[1]], 6))
    built.commit()
    row = {
        'snapshot': lambda: built.snapshot(7, lost_top),
        'canary': lambda: built.canary(lost_top),
        'request': lambda: built.request(7, plain=lost_top),
        'volume': lambda: built.volume(7, lost_top),
    }[kind]
    row()
    built.batch(2, [extra])
    name = {'canary': 'canary 1'}.get(kind, f'{kind} 7')
    seen = built.mentions(2)
    assert only(seen)[::2] == (extra, seen.live[0].how)
    assert seen.live[0].how.endswith(f'which {name} keeps')
    # The root itself, condemned by mistake: no node mentions it, a row does.
    built.batch(3, [node_id(lost_top)])
    assert only(built.mentions(3))[1:] == (name, 'names it')


def test_a_request_of_the_batch_keeps_nothing_of_another_batch_everything(built: Built) -> None:
    scene = Scene(built)
    shared = leaf([scene.x[0]], 9)
    built.put_nodes(shared)
    built.commit()
    built.request(2, plain=shared, batch=1)
    # Recount 1 did not condemn that leaf, and only the batch's own request comes to it: in doubt, keep.
    assert (built.mentions().live, built.mentions().leftovers) == ((), (scene.x[0],))
    built.batch_row(4, 'QUARANTINED')
    built.sql('UPDATE request SET batch = 4 WHERE number = 2')
    assert only(built.mentions())[0] == scene.x[0]
    built.sql("UPDATE batch SET state = 'FREED' WHERE number = 4")
    assert built.mentions().live == ()


@pytest.mark.parametrize('kind', ['dropped', 'returned', 'leaked'])
def test_a_request_that_nobody_takes_back_keeps_nothing(built: Built, kind: str) -> None:
    """What a commit dropped asks to go as well; without the request it is a leftover, and in doubt we
    keep."""
    scene = Scene(built)
    old = leaf([scene.x[1]], 9)
    above = branch([old, scene.left])
    built.put_nodes(old, above)
    built.commit()
    assert built.mentions().leftovers == (scene.x[1],)
    built.request(2, kind, chunks=[node_id(old), scene.x[1]])
    seen = built.mentions()
    assert (seen.live, seen.leftovers) == ((), ())
    built.sql('DELETE FROM request_part')
    built.request(3, kind, subtrees=[node_id(above)])
    seen = built.mentions()
    assert (seen.live, seen.leftovers) == ((), ())
    built.volume(9, above)  # but a root that stands keeps it all the same
    assert only(built.mentions())[0] == scene.x[1]


def test_a_record_without_a_row_is_a_leftover_unless_something_comes_to_it(built: Built) -> None:
    scene = Scene(built)
    crashed = leaf([scene.x[2], scene.x[0], scene.d[0]], 9)
    crashed_top = branch([crashed, scene.left])
    built.put_nodes(crashed, crashed_top)
    built.commit()
    built.forget_row(node_id(crashed))
    built.forget_row(node_id(crashed_top))
    seen = built.mentions()
    assert (seen.live, seen.leftovers) == ((), tuple(sorted([scene.x[0], scene.x[2]])))
    built.snapshot(7, crashed_top)
    seen = built.mentions()
    assert {one.id for one in seen.live} == {scene.x[0], scene.x[2]}
    assert seen.leftovers == ()


def test_what_a_freed_node_mentions_may_go(built: Built) -> None:
    scene = Scene(built)
    freed = leaf([scene.x[2]], 9)
    built.put_nodes(freed)
    built.commit()
    built.batch_row(3, 'FREED')
    built.move(node_id(freed), 3, 'freed')
    assert (built.mentions().live, built.mentions().leftovers) == ((), ())
    built.put_nodes(freed)  # and it came back
    built.commit()
    assert built.mentions().leftovers == (scene.x[2],)
    built.volume(2, freed)
    assert only(built.mentions())[0] == scene.x[2]


def test_a_mention_of_a_chunk_that_was_stored_afresh_means_that_copy(built: Built) -> None:
    scene = Scene(built, 'wrong')
    built.put_data(b'data 4')
    built.commit()
    seen = built.mentions()
    assert (seen.live, seen.leftovers, seen.condemned) == ((), (), 5)
    assert scene.d[4] in [id for (id,) in built.sql('SELECT id FROM chunk')]


def test_a_condemned_node_that_came_back_counts_again(built: Built) -> None:
    scene = Scene(built)
    built.put_nodes(scene.gone)
    built.commit()
    assert set(built.mentions().leftovers) == set(scene.x)
    built.volume(2, scene.gone)
    seen = built.mentions()
    assert {one.id for one in seen.live} == set(scene.x)


def test_what_another_batch_needs_is_served_by_its_own_copy_only(built: Built) -> None:
    """Stored again after batch 1, and condemned again by batch 2, whose request is a root until it is
    freed."""
    scene = Scene(built)
    again = leaf([scene.x[0]], 9)
    built.put_data(b'gone 0')
    built.put_nodes(again)
    built.commit()
    built.batch(2, [scene.x[0], node_id(again)])
    built.request(2, plain=again, batch=2)
    built.request(3, 'dropped', chunks=[scene.x[0]], batch=2)
    assert (built.mentions().live, built.mentions().leftovers) == ((), ())
    assert (built.mentions(2).live, built.mentions(2).leftovers) == ((), ())
    built.volume(2, again)  # somebody else wants it: nobody has a copy for him
    assert only(built.mentions())[0] == scene.x[0]
    built.sql('DELETE FROM volume WHERE volume = 2')
    built.sql('DELETE FROM quarantine WHERE batch = 2 AND id = ?', (scene.x[0],))
    (built.path / 'batches' / '2' / 'condemned').write_bytes(node_id(again))
    assert {one.by.split()[0] for one in built.mentions().live} == {'node'}


def journal(built: Built, ids: list[bytes], chunks: list[object] | None = None) -> None:
    items = [(extent_key(20, n * 10), (10, id)) for n, id in enumerate(ids)]
    log = built.store.journal
    sequence = log.last_sequence + 1
    delta = VolumeDelta(1, 99, items=[*items, (extent_key(21, 0), None)])
    log.append(sequence, encode_record_frames(sequence, chunks or [], [delta], built.uuid))  # type: ignore[arg-type]
    log.sync()


def test_a_live_journal_record_counts_until_a_commit_supersedes_it(built: Built) -> None:
    scene = Scene(built)
    journal(built, [scene.d[0], scene.x[1]])
    seen = built.mentions()
    assert only(seen) == (scene.x[1], 'journal record 1', 'would be replayed after a crash, and names it')
    assert seen.journal_ids == 2
    built.commit()
    assert (built.mentions().live, built.mentions().journal_ids) == ((), 0)


def test_a_journal_record_that_brings_its_own_copy_needs_no_other(built: Built) -> None:
    scene = Scene(built)
    [id] = built.put_data(b'gone 1')
    built.store.chunks.sync()
    fresh = built.store.chunks.take_new()
    assert [one.id for one in fresh] == [id] == [scene.x[1]]
    journal(built, [id], list(fresh))
    assert built.mentions().live == ()


def test_a_journal_record_that_names_the_quarantined_place_counts(built: Built) -> None:
    scene = Scene(built)
    ((pack, offset, stored, plain, codec),) = built.sql(
        'SELECT name, offset, stored, plain, codec FROM quarantine JOIN pack USING (pack) WHERE id = ?',
        (scene.x[1],),
    )
    from snapfs.format.journal import NewChunk

    journal(built, [], [NewChunk(scene.x[1], 1, pack, offset, stored, plain, codec)])  # type: ignore[arg-type]
    assert only(built.mentions())[0] == scene.x[1]


def test_ids_that_were_subtracted_when_the_rows_moved_are_not_looked_for(built: Built) -> None:
    scene = Scene(built)
    path = built.path / 'batches' / '1' / 'condemned'
    path.write_bytes(b''.join(sorted([*scene.x, node_id(scene.gone), *scene.d])))
    seen = built.mentions()
    assert (seen.live, seen.leftovers, seen.condemned) == ((), (), 4)


def test_prefixes_alone_condemn_nothing(built: Built) -> None:
    """Ids that share 8 or 31 bytes with condemned ones: the whole id decides."""
    scene = Scene(built)
    near = [scene.x[0][:8] + bytes([n]) * 24 for n in range(5)] + [scene.x[1][:31] + b'?']
    built.put_nodes(leaf(near, 9))
    built.commit()
    built.volume(2, leaf(near, 9))
    assert (built.mentions().live, built.mentions().leftovers) == ((), ())
    far = built.path / 'batches' / '1' / 'condemned'
    far.write_bytes(b''.join(sorted([*scene.x, node_id(scene.gone), *near])))
    for id in near:
        built.sql(
            'INSERT INTO quarantine SELECT ?, pack, offset, stored, plain, codec, kind, epoch, batch '
            'FROM quarantine WHERE id = ?',
            (id, scene.x[0]),
        )
    assert {one.id for one in built.mentions().live} == set(near)


def test_many_condemned_are_found_in_whatever_order_they_are_mentioned(built: Built) -> None:
    ids = built.put_data(*(b'%d' % n for n in range(5000)))
    chance = random.Random(7)
    order = ids[:]
    chance.shuffle(order)
    leaves = [leaf(order[start : start + 200], 10 + start) for start in range(0, 5000, 200)]
    built.put_nodes(*leaves, branch(leaves))
    built.commit()
    built.volume(1, branch(leaves))
    built.batch(1, ids[1::2])
    seen = built.mentions()
    assert seen.live_count == 2500
    assert len(seen.live) == limits.MENTIONS_SHOWN_MAX
    assert seen.references == 5000 + 25


def test_more_mentions_than_can_be_looked_into_are_live(
    built: Built, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = Scene(built)
    crashed = leaf(scene.x, 9)
    built.put_nodes(crashed)
    built.commit()
    built.forget_row(node_id(crashed))
    assert built.mentions().live == ()
    monkeypatch.setattr(limits, 'MENTION_PAIRS_MAX', 2)
    assert 'more than can be looked into' in only(built.mentions())[2]


def test_a_recount_that_does_not_see_what_is_certainly_there_is_blind(built: Built) -> None:
    scene = Scene(built)
    built.mentions(control=(scene.d[3], scene.d[0], node_id(scene.top)))
    shifted = (scene.d[0] + scene.d[1])[1:33]  # its bytes are there, but nowhere as an id
    for absent in (b'?' * 32, shifted):
        with pytest.raises(Corrupt, match=f'blind.*{absent.hex()}'):
            built.mentions(control=(scene.d[3], absent))


def test_only_a_batch_in_quarantine_of_this_store_and_time_is_recounted(built: Built) -> None:
    Scene(built)
    for state in ('PLANNED', 'CONFIRMED', 'FREED', 'RESTORED'):
        built.sql('UPDATE batch SET state = ?', (state,))
        with pytest.raises(Invalid, match='not in quarantine'):
            built.mentions()
    with pytest.raises(Invalid):
        built.mentions(9)
    built.sql("UPDATE batch SET state = 'QUARANTINED'")
    with pytest.raises(Corrupt, match='an old one'):
        built.mentions(horizon=built.store.catalog.epoch + 1)
    with pytest.raises(Corrupt, match='not the one'):
        built.mentions(uuid=bytes(16))


def test_sealed_retired_and_open_packs_are_all_read(built: Built) -> None:
    scene = Scene(built, 'wrong')
    built.seal()
    built.put_nodes(leaf([scene.x[0]], 9))
    built.commit()
    built.volume(2, leaf([scene.x[0]], 9))
    assert {one.id for one in built.mentions().live} == {scene.d[4], scene.x[0]}
    built.sql("UPDATE pack SET state = 'retired' WHERE state = 'sealed'")
    assert {one.id for one in built.mentions().live} == {scene.d[4], scene.x[0]}
    assert {state for (state,) in built.sql('SELECT state FROM pack WHERE kind = 2')} == {'retired', 'open'}


def test_a_closed_store_is_read_without_leaving_a_trace(built: Built) -> None:
    scene = Scene(built, 'wrong')
    built.store.close(clean=True)
    before = {path: path.stat().st_mtime_ns for path in built.path.rglob('*')}
    assert only(built.mentions())[0] == scene.d[4]
    assert {path: path.stat().st_mtime_ns for path in built.path.rglob('*')} == before


def test_packs_that_a_writer_has_just_made_are_told_and_what_they_say_keeps(built: Built) -> None:
    scene = Scene(built)
    old = built.store.chunks.writers[RecordKind.NODE]
    old.bytes_max = 0
    built.put_nodes(leaf([scene.x[0]], 9))
    built.put_data(*(random.Random(n).randbytes(3000) for n in range(3)))
    with pytest.raises(Corrupt, match='not in the catalog'):
        built.mentions()
    seen = built.mentions(writers=True)
    assert (len(seen.strangers), seen.live, seen.leftovers) == (1, (), (scene.x[0],))
    (path,) = [path for path in built.pack_files('meta') if bytes.fromhex(path.name) in seen.strangers]
    whole = path.read_bytes()
    for size in (0, 20, 48, 60, len(whole) - 1):
        path.write_bytes(whole[:size])
        assert built.mentions(writers=True).leftovers == ()
    path.write_bytes(b'?' * 100)
    with pytest.raises(Corrupt, match='wrong magic'):
        built.mentions(writers=True)
