"""A catalog that is lost is made anew: names from a backup, chunks from packs, never less than there was."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest
import trio

from snapfs import limits
from snapfs.cli import rebuild as command
from snapfs.errors import Corrupt, Invalid, Latched, Refused
from snapfs.rescue.rebuild_install import refuse_whole
from snapfs.service.collecting import Collecting
from snapfs.service.putting_back import PuttingBack
from snapfs.store import backup
from snapfs.store.durable import Disk
from snapfs.store.store import Store
from snapfs.volume.engine import Engine
from tests.mutants.setting import StepWorld, small
from tests.support.fsck import report_of
from tests.support.lives import on, trees
from tools.breakit import break_it


@pytest.fixture
def store(kept_store: Path) -> Path:
    return kept_store


def rebuilt(path: Path, *, install: bool = True) -> Any:
    with small():
        target = path / 'catalog.new' if install else path.with_name('catalog.new')
        return command._rebuild(path, target, None, install)


def files(path: Path) -> dict[Path, bytes]:
    """All but the lock, which names its last holder."""
    return {one: one.read_bytes() for one in path.rglob('*') if one.is_file() and one.name != 'lock'}


def lose(path: Path) -> None:
    for suffix in ('', '-wal', '-shm'):
        (path / f'catalog.sqlite{suffix}').unlink(missing_ok=True)


LOST = [
    'catalog-gone',
    'catalog-garbage',
    'catalog-page',
    'catalog-schema',
    'catalog-version',
    'setting-gone',
]
LOST += ['snapshot-rootless']


@pytest.mark.parametrize('how', LOST)
def test_with_a_backup_everything_has_its_name_again(kept_image, store, tmp_path, how):
    shutil.copytree(kept_image, tmp_path / 'other')
    wanted = trees(tmp_path / 'other')
    break_it(store, how, seed=1)
    told = rebuilt(store)
    assert (told['backup'], told['volumes'], told['snapshots']) != (None, 0, 0)
    found = trees(store)
    assert {name: found[name] for name in wanted} == wanted
    with small():
        report = report_of(store)
    assert not [one for one in report.findings if one.severity == 'damage'], report.findings
    if how != 'catalog-gone':
        assert (store / 'catalog.sqlite.lost-1').exists(), 'the old one is kept'


def test_a_catalog_of_another_version_is_not_a_damaged_one(store):
    """A newer program has made it, or an older one; to make it anew would forget things."""
    for version, table in ((4, 'CREATE TABLE something_new (x)'), (2, 'DROP TABLE something_new')):
        with sqlite3.connect(store / 'catalog.sqlite') as db:
            db.execute(table)
            db.execute(f'PRAGMA user_version = {version}')
        db.close()
        before = files(store)
        with pytest.raises(Refused):
            rebuilt(store)
        assert files(store) == before


def test_from_packs_alone_every_tree_is_there(kept_image, store, tmp_path):
    shutil.copytree(kept_image, tmp_path / 'other')
    wanted = trees(tmp_path / 'other')
    lose(store)
    shutil.rmtree(store / 'backups')
    told = rebuilt(store)
    assert told['backup'] is None and told['trees'] >= 3
    found = list(trees(store).values())
    for name, tree in wanted.items():
        assert tree in found, f'{name} is not there any more'


@pytest.mark.parametrize('backup_too', [False, True])
@pytest.mark.parametrize('damage', ['top-flip', 'branch-flip', 'leaf-flip'])
def test_a_node_that_only_its_second_copy_has_is_taken_from_there(
    kept_image, store, tmp_path, damage, backup_too
):
    """Trees that need it were none, and what stood only in them had no name any more."""
    shutil.copytree(kept_image, tmp_path / 'other')
    wanted = trees(tmp_path / 'other')
    break_it(store, damage, seed=1)
    lose(store)
    if backup_too:
        shutil.rmtree(store / 'backups')
    told = rebuilt(store)
    assert [one for one in told['bad'] if one.endswith('its second copy is whole')]
    found = trees(store)
    for name, tree in wanted.items():
        assert tree in found.values() if backup_too else tree == found[name], name


@pytest.mark.parametrize('backup_too', [False, True])
@pytest.mark.parametrize('which', ['one', 'all'])
def test_packs_of_nodes_that_only_the_second_copies_have_are_known_again(
    kept_image, store, tmp_path, which, backup_too
):
    """The catalog is lost, and packs with it: trees that need them were none."""
    wanted = trees(shutil.copytree(kept_image, tmp_path / 'other'))
    packs = sorted((store / 'packs/meta').glob('*/*'))
    for path in packs if which == 'all' else packs[:1]:
        path.unlink()
    lose(store)
    if backup_too:
        shutil.rmtree(store / 'backups')
    told = rebuilt(store)
    assert all('is gone; its second copy has' in one for one in told['bad']) and told['bad']
    found = trees(store)
    for name, tree in wanted.items():
        assert tree in found.values() if backup_too else tree == found[name], name
    on(store, lambda collecting: PuttingBack(collecting).run(every_node=True))
    assert set((store / 'packs/meta').glob('*/*')) >= set(packs)
    shutil.rmtree(store / 'mirror')
    with small():
        assert not [one for one in report_of(store).findings if one.severity == 'damage']
    again = trees(store)
    assert {name: again[name] for name in found} == found


def test_a_second_copy_that_is_no_pack_is_passed_over(store):
    """Also one of another store, and what is not called like a pack."""
    path = next((store / 'packs/meta').glob('*/*'))
    path.unlink()
    copy = store / 'mirror' / path.parent.name / path.name
    copy.write_bytes(b'nonsense')
    (store / 'mirror' / 'notes').write_bytes(b'mine')
    (store / 'mirror' / 'zz').write_bytes(b'no directory')
    (copy.parent / 'notes').write_bytes(b'mine')
    lose(store)
    told = rebuilt(store)
    assert f'{path.name} is gone; its second copy has 0 nodes' in told['bad']
    on(store, lambda collecting: trio.lowlevel.checkpoint())
    with small():
        assert 'pack-missing' not in report_of(store).counts


def test_the_collector_stands_still_until_somebody_has_looked(store):
    lose(store)
    rebuilt(store)

    async def work(collecting: Collecting) -> None:
        with pytest.raises(Latched, match='rebuilt'):
            await collecting.collect()
        for incident in collecting.collector.incidents.listed():
            if incident.acknowledged_ns is None:
                collecting.collector.incidents.acknowledge(incident.number, 'ann', 'looked')
        await collecting.collect()

    on(store, work)
    with small():
        assert not [one for one in report_of(store).findings if one.severity == 'damage']


def test_nothing_is_changed_without_install(store):
    lose(store)
    before = files(store)
    rebuilt(store, install=False)
    assert files(store) == before
    assert store.with_name('catalog.new').exists()


def test_of_two_copies_the_whole_one_counts(store):
    break_it(store, 'record-doubled', seed=1)
    break_it(store, 'payload-flip', seed=2)
    lose(store)
    rebuilt(store)
    with small():
        assert not [one for one in report_of(store).findings if one.severity == 'damage']


def test_it_refuses_where_there_is_nothing_to_make(store, tmp_path):
    with pytest.raises(Refused, match='whole'):
        rebuilt(store)
    lose(store)
    (store / 'catalog.new').write_bytes(b'')
    with pytest.raises(Invalid, match='there already'):
        rebuilt(store)
    (store / 'catalog.new').unlink()
    with pytest.raises(Invalid, match='no backup'):
        command._rebuild(store, store / 'catalog.new', str(tmp_path / 'nowhere'), True)
    with pytest.raises(Invalid, match='not a snapfs store'):
        command._rebuild(tmp_path, tmp_path / 'catalog.new', None, True)
    assert not (store / 'catalog.new').exists()
    refuse_whole(Disk(), tmp_path)  # no catalog is not a whole one


def test_a_store_without_a_catalog_says_the_way_out(store):
    lose(store)
    with pytest.raises(Corrupt) as caught:
        Store.open(store, Disk(), StepWorld())
    assert 'snapfs rebuild' in caught.value.line() and '1 backups' in caught.value.line()


# --- backups ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize('at', [0.1, 0.5, 0.9])
def test_a_damaged_backup_is_none(store, at):
    (path,) = (store / 'backups').glob('*.json')
    data = bytearray(path.read_bytes())
    data[int(len(data) * at)] ^= 1
    path.write_bytes(data)
    uuid = bytes.fromhex(sqlite_uuid(store))
    with pytest.raises(Corrupt):
        backup.decode(path, bytes(data), uuid)
    assert backup.newest(Disk(), store, uuid) is None


def sqlite_uuid(store: Path) -> str:
    from snapfs.format.superblock import decode_superblock

    return decode_superblock((store / 'superblock').read_bytes()).uuid.hex()


@pytest.mark.parametrize(
    'data', [b'', b'{', b'[]', b'{}', b'null', b'{"digest":1}', b'[' * 100_000, b'\xff' * 100]
)
def test_hostile_bytes_are_no_backup(tmp_path, data):
    with pytest.raises(Corrupt):
        backup.decode(tmp_path / 'x.json', data, b'u' * 16)


def test_a_backup_of_another_store_is_none(store):
    (path,) = (store / 'backups').glob('*.json')
    with pytest.raises(Corrupt, match='backup of store'):
        backup.decode(path, path.read_bytes(), b'u' * 16)


def test_backups_rotate():
    day = backup.DAY_NS
    names = [f'{n:012d}-{n * day // 10 + 1}.json' for n in range(400)]
    gone = set(backup.expired(names))
    left = [name for name in names if name not in gone]
    assert left[-8:] == names[-8:], 'the newest stay'
    assert 15 <= len(left) <= 8 + 14
    days = {int(name.split('-')[1][:-5]) // day for name in left}
    assert len(days) == 14, 'one of each of the last days stays'
    assert backup.expired(left) == []


async def test_a_backup_that_cannot_be_written_is_told_and_hurts_nobody(tmp_path, monkeypatch):
    from tests.sim.world import SimWorld
    from tests.support.stores import fresh_engine

    engine: Engine = await fresh_engine(tmp_path / 'store', SimWorld(1))
    monkeypatch.setattr(engine.store.backups._disk, 'write_file', lambda *arguments: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        engine.store.backups.write(5)  # a bug is not hidden
    monkeypatch.setattr(engine.store.backups._disk, 'write_file', refuse)
    assert engine.store.backups.write(5) is False
    assert 'full' in engine.store.backups.problem
    monkeypatch.undo()
    assert engine.store.backups.write(6) is True
    assert engine.store.backups.problem == ''
    with sqlite3.connect(engine.store.path / 'catalog.sqlite') as db:
        assert db.execute('SELECT count(*) FROM settings').fetchone()[0] > 5
    await engine.close()


def refuse(*arguments: object) -> None:
    raise OSError(28, 'the disk is full')


# --- numbers of views ------------------------------------------------------------------------------------
def codes(path: Path) -> list[str]:
    with small():
        return [one.code for one in report_of(path).findings]


@pytest.mark.parametrize('backed', [True, False])
def test_numbers_that_a_rebuild_has_passed_over_are_accounted_for(store, backed):
    assert 'view-unaccounted' not in codes(store)
    if not backed:
        shutil.rmtree(store / 'backups')
    for name in ('new', 'newer'):  # again: what is passed over twice is counted once
        lose(store)
        rebuilt(store)
        assert 'view-unaccounted' not in codes(store)
        if backed:
            on(store, lambda collecting, name=name: collecting.engine.snapshot_create('home', name, 'ann'))
            assert 'view-unaccounted' not in codes(store)


def test_what_vanishes_after_a_rebuild_is_told(store):
    lose(store)
    rebuilt(store)
    on(store, lambda collecting: collecting.engine.snapshot_create('home', 'new', 'ann'))
    with sqlite3.connect(store / 'catalog.sqlite') as db:
        (number,) = db.execute("SELECT number FROM snapshot WHERE name = CAST('new' AS BLOB)").fetchone()
        db.execute('DELETE FROM snapshot WHERE number = ?', (number,))
    db.close()
    with small():
        (found,) = [one for one in report_of(store).findings if one.code == 'view-unaccounted']
    assert found.what == f'1 of the views {number}'


def test_a_tree_that_nobody_names_gets_a_number_that_was_never_used(store):
    """The numbers behind the backup's may have been given out, to what is gone."""
    with sqlite3.connect(store / 'catalog.sqlite') as db:
        (given,) = db.execute("SELECT value FROM settings WHERE key = 'next_view'").fetchone()
        db.execute('DELETE FROM hold')
        db.execute('DELETE FROM snapshot')
    db.close()
    on(store, idle_with_backup)
    lose(store)
    assert rebuilt(store)['trees']
    with sqlite3.connect(store / 'catalog.sqlite') as db:
        numbers = [one for (one,) in db.execute("SELECT number FROM snapshot WHERE who = 'rebuild'")]
    db.close()
    assert numbers and min(numbers) >= given + limits.REBUILD_NUMBER_GAP


async def idle_with_backup(collecting: Collecting) -> None:
    collecting.engine.store.backups.write(2 * 10**18)


@pytest.mark.parametrize('kind', ['data', 'meta'])
def test_a_pack_whose_header_says_nothing_is_read_all_the_same(kept_image, store, tmp_path, kind):
    """One bit of 48 bytes cost all that is in it. Its name and the hashes of its records say whose it is."""
    wanted = trees(shutil.copytree(kept_image, tmp_path / 'other'))
    for path in (store / f'packs/{kind}').glob('*/*'):
        data = bytearray(path.read_bytes())
        data[20] ^= 1
        path.write_bytes(data)
    shutil.rmtree(store / 'mirror')
    lose(store)
    told = rebuilt(store)
    assert all(one.endswith('its header; records are read all the same') for one in told['bad'])
    found = trees(store)
    assert {name: found[name] for name in wanted} == wanted
