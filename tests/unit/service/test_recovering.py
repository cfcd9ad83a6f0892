"""Recovery: donors first, zeros last, the original untouched, and a sibling that is whole."""

from __future__ import annotations

import json
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from snapfs import limits
from snapfs.errors import Invalid, Latched, Refused
from snapfs.format.keys import inode_key
from snapfs.rescue.recover_values import Lost, Use
from snapfs.rescue.sibling import Sibling
from snapfs.rescue.survey import KEY_END
from snapfs.service.collecting import Collecting
from snapfs.service.recovering import Recovering, Wish, _told_one
from snapfs.service.whole_again import WholeAgain
from tests.images.image import make
from tests.mutants.setting import content, small
from tests.support.fsck import report_of
from tests.support.lives import on
from tests.support.model import freeze_view
from tools.breakit import break_it

LOST = ['payload-flip', 'header-flip', 'data-pack-gone', 'pack-cut', 'leaf-flip', 'branch-flip']
LOST += ['meta-pack-gone', 'child-elsewhere', 'index-no-pack']


@pytest.fixture(scope='module')
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp('whole') / 'store'
    make(path)
    return path


def wish(**changes: Any) -> Wish:
    values: dict[str, Any] = {
        'volume': 'home', 'snapshot': 'monday', 'name': None, 'donors': (), 'verify': True, 'dry_run': False,
        'who': 'ann',
    }  # fmt: skip
    return Wish(**{**values, **changes})


def promised(path: Path) -> dict[str, Any]:
    """The tree of home@monday as it was before any damage."""

    async def look(collecting: Collecting) -> Any:
        row = collecting.engine.snapshot_find('home', 'monday')
        return await freeze_view(collecting.engine.snapshot_view(row.number))

    return on(path, look)


def rows_of(path: Path) -> list[tuple[Any, ...]]:
    with sqlite3.connect(path / 'catalog.sqlite') as db:
        return db.execute('SELECT name, root, root_items FROM snapshot ORDER BY number').fetchall()


@pytest.mark.parametrize('name', LOST)
def test_the_sibling_is_whole_and_the_original_is_as_it_was(whole, tmp_path, name):
    path = tmp_path / 'store'
    shutil.copytree(whole, path)
    shutil.rmtree(path / 'mirror')  # it has all nodes: see the next test
    break_it(path, name, seed=1)
    before = rows_of(path)

    async def work(collecting: Collecting) -> Any:
        told = await Recovering(collecting).run(wish())
        engine = collecting.engine
        if told['sibling'] is None:
            return told, None, None
        assert told['sibling'] == 'home@monday-recovered'
        row = engine.snapshot_find('home', 'monday-recovered')
        assert [hold.name for hold in engine.hold_list('home', 'monday')] == ['audit', 'recovery']
        tree = await freeze_view(engine.snapshot_view(row.number))
        view = engine.snapshot_view(row.number)
        top = await view.inode(limits.INO_ROOT)
        inode = await view.lookup(top, b'DAMAGE.json')
        return told, tree, json.loads(await view.read(inode, 0, inode.size))

    told, tree, report = on(path, work)
    assert told['lost'], 'something was lost'
    if name == 'index-no-pack':
        assert tree is None, 'its record is still there'
        return
    assert tree is not None, 'nobody has it'
    assert rows_of(path)[: len(before)] == before, 'the original is as it was'
    assert report['lost'] == told['lost']
    with small():
        found = report_of(path)
    named = [one for one in found.findings for file in one.files if file[0] == 'home@monday-recovered']
    assert not named, 'the sibling has lost nothing'
    assert not found.unchecked


def test_a_pack_whose_chunks_came_back_elsewhere_is_missed_no_more(whole, tmp_path):
    path = whole_copy(whole, tmp_path)

    async def work(collecting: Collecting) -> tuple[str, bool, str]:
        store = collecting.engine.store
        row = next(one for one in store.catalog.packs() if one.kind == 1 and one.state == 'sealed')
        lost = store.lost_packs
        file = next((path / 'packs' / 'data').rglob(row.name.hex()))
        file.unlink()
        lost.look()
        before = lost.text()
        with store.catalog.transaction() as db:  # what a recovery does: its chunks are somewhere else by now
            db.execute('DELETE FROM chunk WHERE pack = ?', (row.pack,))
        await WholeAgain(collecting).unmark_whole()
        return before, file.exists(), lost.text()

    assert on(path, work) == ('1 pack is missing or too short', False, '')


@pytest.mark.parametrize('name', ['leaf-flip', 'branch-flip', 'top-flip', 'meta-pack-gone'])
def test_lost_nodes_come_back_from_their_second_copies(whole, tmp_path, name):
    path = whole_copy(whole, tmp_path)
    wanted = promised(whole_copy(whole, tmp_path / 'other'))
    break_it(path, name, seed=1)
    assert promised(path) == wanted, 'readers need not wait for a recovery'

    async def work(collecting: Collecting) -> Any:
        engine = collecting.engine
        await freeze_view(engine.snapshot_view(engine.snapshot_find('home', 'monday').number))
        assert 'second copies' in engine.health()
        told = await Recovering(collecting).run(wish())
        await freeze_view(engine.snapshot_view(engine.snapshot_find('home', 'monday').number))
        assert engine.health() == 'ok'
        return told

    told = on(path, work)
    assert told['sibling'] is None and not told['lost'], 'nothing is lost that has a second copy'
    assert told['put_back'] == (
        {'packs': 1, 'nodes': 0} if name == 'meta-pack-gone' else {'packs': 0, 'nodes': 1}
    )
    shutil.rmtree(path / 'mirror')
    assert promised(path) == wanted, 'the packs have them again'
    with small():
        found = [file[0] for one in report_of(path).findings for file in one.files]
    assert 'home@monday' not in found


def test_a_donor_heals_everybody_who_shares_it(whole, tmp_path):
    path, donors = tmp_path / 'store', tmp_path / 'donors' / 'deep'
    shutil.copytree(whole, path)
    break_it(path, 'data-pack-gone', seed=1)
    donors.mkdir(parents=True)
    (donors / 'big').write_bytes(content('big', 90_000))
    (donors / 'a link').symlink_to('/dev/zero')

    async def work(collecting: Collecting) -> Any:
        dry = await Recovering(collecting).run(wish(dry_run=True, donors=(donors.parent,)))
        told = await Recovering(collecting).run(wish(donors=(donors.parent,), name='better'))
        return dry, told

    before = rows_of(path)
    dry, told = on(path, work)
    offered = {one['chunk'] for one in dry['lost'] if one['offered']}
    healed = {one['chunk'] for one in told['lost'] if one['donor'] != 'zeros'}
    assert offered == healed
    assert rows_of(path)[: len(before)] == before
    assert told['sibling'] == 'home@better', 'others have no donor'


def test_a_copy_in_another_pack_heals_and_no_sibling_is_needed(whole, tmp_path):
    path = tmp_path / 'store'
    shutil.copytree(whole, path)
    wanted = promised(whole_copy(whole, tmp_path))
    break_it(path, 'record-doubled', seed=1)
    break_it(path, 'payload-flip', seed=2)

    async def work(collecting: Collecting) -> Any:
        told = await Recovering(collecting).run(wish())
        engine = collecting.engine
        row = engine.snapshot_find('home', 'monday')
        assert row.damaged_ns is None
        return told, await freeze_view(engine.snapshot_view(row.number)), engine.health()

    told, tree, health = on(path, work)
    assert told['sibling'] is None and len(told['lost']) == 1
    assert tree == wanted
    assert health == 'ok'
    with small():
        assert not [one for one in report_of(path).findings if one.severity == 'damage']


@pytest.mark.parametrize('name', ['totals-header', 'level-wrong', 'item-value', 'directory-cycle'])
def test_what_has_its_hash_and_cannot_be_is_given_up_not_healed_for_ever(whole, tmp_path, name):
    """Its own record was a donor of such a node: it came back, and was lost again, and so on."""
    path = whole_copy(whole, tmp_path)
    break_it(path, name, seed=1)
    told = on(path, lambda collecting: Recovering(collecting).run(wish()))
    assert all(one['donor'] in (None, 'zeros') for one in told['lost'])
    if name == 'totals-header':
        assert told['lost'] and told['sibling'] == 'home@monday-recovered'


@pytest.mark.parametrize('also', [False, True])
def test_whoever_shared_what_came_back_is_whole_again(whole, tmp_path, also):
    """Marks go where nothing is lost any more, and nowhere else."""
    path = whole_copy(whole, tmp_path)
    break_it(path, 'record-doubled', seed=1)
    break_it(path, 'payload-flip', seed=2)

    async def work(collecting: Collecting) -> Any:
        engine, recovering = collecting.engine, Recovering(collecting)
        names = {row.number: f'{row.volume}@{row.name}' for row in engine.snapshot_list()}
        names |= {head.number: head.name for head in engine.heads().values()}
        if also:  # something that only the head has, and nobody else
            head = engine.head('home')
            top = await head.inode(limits.INO_ROOT)
            inode = await head.make(top, b'lost at once', 0o100600, 0, 0)
            await head.write(inode, 0, b'these bytes go' * 500)
            await engine.commit()
            with engine.store.catalog.transaction() as db:
                (newest,) = db.execute('SELECT max(epoch) FROM chunk WHERE kind = 1').fetchone()
                assert db.execute('DELETE FROM chunk WHERE kind = 1 AND epoch = ?', (newest,)).rowcount == 1
        for view, name in names.items():
            engine.core.report_damage(f'something is lost in {name}', view)
        told = await recovering.run(wish())
        assert told['sibling'] is None and len(told['lost']) == 1
        heads = [head.row for head in engine.heads().values()]
        marked = {row.number for row in [*engine.snapshot_list(), *heads] if row.damaged_ns is not None}
        stored = engine.store.catalog.query(
            'SELECT number FROM snapshot WHERE damaged_ns IS NOT NULL '
            'UNION SELECT number FROM volume WHERE damaged_ns IS NOT NULL'
        )
        assert {number for (number,) in stored} == marked
        return marked, engine.head('home').number

    marked, home = on(path, work)
    assert marked == ({home} if also else set())


def whole_copy(whole: Path, tmp_path: Path) -> Path:
    path = tmp_path / 'copy'
    shutil.copytree(whole, path)
    return path


def test_nothing_lost_changes_nothing(whole, tmp_path):
    path = whole_copy(whole, tmp_path)
    before = rows_of(path)
    told = on(path, lambda collecting: Recovering(collecting).run(wish()))
    assert (told['lost'], told['sibling']) == ([], None)
    assert rows_of(path) == before


def test_a_dry_run_changes_nothing(whole, tmp_path):
    path = whole_copy(whole, tmp_path)
    break_it(path, 'payload-flip', seed=1)
    before = rows_of(path)
    told = on(path, lambda collecting: Recovering(collecting).run(wish(dry_run=True)))
    assert [use['path'] for one in told['lost'] for use in one['ranges']] == ['/directory 0/below/one']
    assert rows_of(path) == before


def test_where_it_could_make_things_worse_it_refuses(whole, tmp_path, monkeypatch):
    path = whole_copy(whole, tmp_path)
    break_it(path, 'payload-flip', seed=1)
    before = rows_of(path)

    async def latched(collecting: Collecting) -> None:
        collecting.engine.store.disk.latch('a sync failed')
        with pytest.raises(Latched, match='a recovery writes'):
            await Recovering(collecting).run(wish())
        assert 'a sync failed' in collecting.engine.health()

    async def full(collecting: Collecting) -> None:
        monkeypatch.setattr(collecting.engine.store, 'free_bytes', lambda: 1000)
        await Recovering(collecting).run(wish())

    async def taken(collecting: Collecting) -> None:
        await Recovering(collecting).run(wish(name='tuesday'))

    async def unknown(collecting: Collecting) -> None:
        await Recovering(collecting).run(wish(snapshot='sunday'))

    async def no_donors(collecting: Collecting) -> None:
        await Recovering(collecting).run(wish(donors=(tmp_path / 'nowhere',)))

    for work, error in ((full, Refused), (taken, Refused), (unknown, Refused), (no_donors, Refused)):
        with pytest.raises(error):
            on(path, work)
    assert rows_of(path) == before
    on(path, latched)

    async def stopped(collecting: Collecting) -> str | None:
        return collecting.engine.store.latched

    assert 'a sync failed' in on(path, stopped), 'the next opening knows of it'


def test_a_store_that_has_stopped_is_not_helped_by_a_copy_of_it(whole, tmp_path):
    """The copy has the incident as well: it refused in the same words, in a circle."""
    path = whole_copy(whole, tmp_path)

    async def stop(collecting: Collecting) -> None:
        collecting.engine.store.latch('a sync failed')

    async def recover(collecting: Collecting) -> None:
        with pytest.raises(Latched, match='a recovery writes') as refused:
            await Recovering(collecting).run(wish())
        assert 'snapfs incident ack' in str(refused.value.advice)

    with pytest.raises(Latched, match='a sync failed'):
        on(path, stop)
    on(path, recover)


def test_a_disk_that_fails_under_a_recovery_is_told_by_the_health(whole, tmp_path, monkeypatch):
    """It said `ok` until somebody else wrote."""
    path = shutil.copytree(whole, tmp_path / 'store')
    break_it(path, 'data-pack-gone', seed=1)

    async def work(collecting: Collecting) -> Any:
        store = collecting.engine.store

        def fail(*_: Any) -> None:
            raise store.disk.latch('mkdir failed')

        monkeypatch.setattr(store.chunks, 'put_back', fail)
        with pytest.raises(Latched, match='mkdir failed'):
            await Recovering(collecting).run(wish())
        assert collecting.engine.health() == 'read-only: mkdir failed'
        assert [row.reason for row in store.catalog.incidents('store')] == ['mkdir failed']

    on(path, work)


def test_a_second_sibling_gets_another_name(whole, tmp_path):
    path = whole_copy(whole, tmp_path)
    break_it(path, 'payload-flip', seed=1)
    names = [on(path, lambda collecting: Recovering(collecting).run(wish()))['sibling'] for _ in range(2)]
    assert names == ['home@monday-recovered', 'home@monday-recovered-2']


@pytest.mark.parametrize('name', ['', '.', '..', '.snapshots', '.snapfs', 'a/b', 'a@b', 'a\nb', 'x' * 256])
def test_a_sibling_gets_no_name_that_a_snapshot_cannot_have(whole, tmp_path, name):
    """It would make .snapshots unreadable, and no command could name it."""
    path = whole_copy(whole, tmp_path)
    break_it(path, 'payload-flip', seed=1)
    before = rows_of(path)
    with pytest.raises(Invalid):
        on(path, lambda collecting: Recovering(collecting).run(wish(name=name)))
    assert rows_of(path) == before


@pytest.mark.parametrize('name', ['x' * 255, 'ä' * 127, 'x' * 245])
def test_the_name_of_a_sibling_is_cut_to_what_a_name_may_have(whole, tmp_path, name):
    path = whole_copy(whole, tmp_path)
    break_it(path, 'payload-flip', seed=1)

    async def work(collecting: Collecting) -> list[str]:
        await collecting.engine.snapshot_rename('home', 'monday', name)
        told = [await Recovering(collecting).run(wish(snapshot=name)) for _ in range(2)]
        return [one['sibling'].partition('@')[2] for one in told]

    made = on(path, work)
    assert made[0].endswith('-recovered') and made[1].endswith('-recovered-2')
    for one in made:
        assert len(one.encode()) <= 255
        assert name.startswith(one.partition('-')[0])


def test_what_nobody_has_is_written_down(whole, tmp_path):
    """The list of snapshots and the map of damage say it at once, and the collector waits."""
    path = whole_copy(whole, tmp_path)
    break_it(path, 'payload-flip', seed=1)

    async def work(collecting: Collecting) -> tuple[str, Any]:
        told = await Recovering(collecting).run(wish())
        assert collecting.engine.snapshot_find('home', 'monday').damaged_ns is not None
        return told['lost'][0]['chunk'], collecting.engine.status()['health']

    lost, health = on(path, work)
    assert health.startswith('damaged')
    with sqlite3.connect(path / 'catalog.sqlite') as db:
        assert db.execute('SELECT lower(hex(id)), found_by FROM damage').fetchall() == [(lost, 'recovery')]
        marked = 'SELECT CAST(name AS TEXT) FROM snapshot WHERE damaged_ns IS NOT NULL'
        assert ('monday',) in db.execute(marked).fetchall()


def test_a_chunk_that_stands_twice_in_a_row_in_a_file_is_one_range():
    uses = (Use(7, '/a', 0, 10), Use(7, '/a', 10, 20), Use(7, '/a', 30, 40), Use(8, '/b', 40, 50))
    uses += (Use(8, '/b', 0, 0, b'user.a'.hex()), Use(8, '/b', 0, 0, b'user.b'.hex()))
    told = _told_one(Lost(b'i' * 32, 1, 'gone', uses, ()), {})
    assert [(one['path'], one['start'], one['end'], one['attribute']) for one in told['ranges']] == [
        ('/a', 0, 20, None), ('/a', 30, 40, None), ('/b', 40, 50, None),
        ('/b', None, None, 'user.a'), ('/b', None, None, 'user.b'),
    ]  # fmt: skip


def test_the_inodes_of_a_lost_node_are_told_without_a_number_that_no_inode_has():
    low, high = inode_key(17), inode_key(20)
    told = [_told_one(Lost(b'i' * 32, 2, 'gone', (), (), low, end), {})['unknown'] for end in (high, KEY_END)]
    assert told == ['names and files of inodes 17 to 20', 'names and files of inodes 17 on']


@pytest.mark.parametrize('held', [False, True])
def test_a_sibling_that_could_not_be_made_leaves_no_hold_that_says_it_was(whole, tmp_path, monkeypatch, held):
    """The disk was full: there was no sibling, and a hold with `recovered as` stayed."""
    path = whole_copy(whole, tmp_path)
    break_it(path, 'payload-flip', seed=1)

    def full(maker: Sibling, report: Any) -> None:
        raise Refused(28, 'no space left')

    async def work(collecting: Collecting) -> list[str]:
        engine = collecting.engine
        if held:  # by the recovery before
            await engine.hold_add('home', 'monday', 'recovery', 'ann', 'recovered as monday-recovered')
        with monkeypatch.context() as patch, pytest.raises(Refused, match='no space'):
            patch.setattr(Sibling, 'make', full)
            await Recovering(collecting).run(wish())
        assert 'monday-recovered' not in engine.snapshots_of(engine.head('home').row.volume)
        names = [hold.name for hold in engine.hold_list('home', 'monday')]
        assert (await Recovering(collecting).run(wish()))['sibling'] == 'home@monday-recovered'
        return names

    assert on(path, work) == (['audit', 'recovery'] if held else ['audit'])
