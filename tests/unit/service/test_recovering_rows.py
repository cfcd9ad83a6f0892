"""A snapshot's row in the catalog is damaged, and its nodes are not: backups know its tree."""

from __future__ import annotations

import json
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from snapfs import limits
from snapfs.rescue.kept_rows import kept_rows
from snapfs.service.collecting import Collecting
from snapfs.service.recovering import Recovering, Wish
from snapfs.store import backup as backups
from snapfs.store.durable import Disk
from tests.mutants.setting import small
from tests.support.fsck import report_of
from tests.support.lives import backup_at, on
from tests.support.model import freeze_view
from tools.breakit import break_it

DAY = 86_400 * 10**9


@pytest.fixture
def store(kept_store: Path) -> Path:
    return kept_store


def wish(dry_run: bool = False, verify: bool = True) -> Wish:
    return Wish('home', 'monday', None, (), verify, dry_run, 'ann')


def rows_of(path: Path) -> list[Any]:
    with sqlite3.connect(path / 'catalog.sqlite') as db:
        return db.execute('SELECT * FROM snapshot ORDER BY number').fetchall()


def tree_of(path: Path, name: str = 'monday') -> Any:
    async def look(collecting: Collecting) -> Any:
        row = collecting.engine.snapshot_find('home', name)
        return await freeze_view(collecting.engine.snapshot_view(row.number))

    return on(path, look)


def recovered(path: Path, **how: Any) -> Any:
    """Recover; return what was told, and the sibling's tree, and the report in it apart."""

    async def work(collecting: Collecting) -> Any:
        told = await Recovering(collecting).run(wish(**how))
        if told['sibling'] is None:
            return told, None, None
        engine = collecting.engine
        view = engine.snapshot_view(engine.snapshot_find('home', told['sibling'].split('@')[1]).number)
        inode = await view.lookup(await view.inode(limits.INO_ROOT), b'DAMAGE.json')
        return told, await freeze_view(view), json.loads(await view.read(inode, 0, inode.size))

    return on(path, work)


def swap_whole(path: Path, other: bytes = b'base') -> None:
    """Another valid tree, with counts that are right: nothing in the catalog tells."""
    with sqlite3.connect(path / 'catalog.sqlite') as db:
        text = 'SELECT root, root_items, root_refs FROM snapshot WHERE name = ?'
        tree = db.execute(text, (other,)).fetchone()
        text = 'UPDATE snapshot SET root = ?, root_items = ?, root_refs = ? WHERE name = ?'
        db.execute(text, (*tree, b'monday'))


def damage(path: Path, how: str) -> None:
    if how == 'swapped':
        swap_whole(path)
    else:
        break_it(path, how, seed=1)


def without_report(tree: Any) -> Any:
    """What a sibling has more than its original is one file."""
    *rest, entries = tree
    left = tuple(one for one in entries if one[0] != b'DAMAGE.json')
    assert len(left) == len(entries) - 1
    return (*rest, left)


@pytest.mark.parametrize('how', ['snapshot-other-root', 'snapshot-root-end', 'swapped'])
def test_the_sibling_has_the_tree_that_the_backup_knows(store, tmp_path, how):
    shutil.copytree(store, tmp_path / 'other')
    wanted = tree_of(tmp_path / 'other')
    damage(store, how)
    before = rows_of(store)
    told, tree, report = recovered(store)
    assert told['sibling'] == 'home@monday-recovered' and not told['lost']
    assert report['source'] == told['source'] != None  # noqa: E711
    assert told['source']['refused'] is None
    assert told['source']['root']['id'] != told['source']['root_in_catalog']['id']
    assert told['source']['backup'] in {path.name for path in (store / 'backups').iterdir()}
    assert without_report(tree) == wanted
    assert rows_of(store)[: len(before)] == before, 'the original row is as it was'
    with sqlite3.connect(store / 'catalog.sqlite') as db:
        held = db.execute('SELECT count(*) FROM hold WHERE name = ?', (b'recovery',)).fetchone()[0]
    assert held == 1
    with small():
        found = report_of(store)
    assert not [file for one in found.findings for file in one.files if 'recovered' in file[0]]
    assert not any('monday-recovered' in str(one) for one in found.findings)


def test_a_later_backup_of_the_damaged_row_is_not_believed(store, tmp_path):
    shutil.copytree(store, tmp_path / 'other')
    wanted = tree_of(tmp_path / 'other')
    swap_whole(store)
    on(store, backup_at(10**18 + DAY))
    swap_whole(store, b'tuesday')  # and another time
    told, tree, _ = recovered(store)
    assert told['source']['backup'].endswith(f'-{10**18}.json')
    assert without_report(tree) == wanted


@pytest.mark.parametrize('verify', [True, False])
def test_what_the_tree_has_lost_is_brought_back_or_told(store, tmp_path, verify):
    shutil.copytree(store, tmp_path / 'other')
    wanted = tree_of(tmp_path / 'other')
    break_it(store, 'payload-flip', seed=1)
    break_it(store, 'leaf-flip', seed=1)
    break_it(store, 'snapshot-root-end', seed=1)
    told, tree, report = recovered(store, verify=verify)
    assert {one['kind'] for one in told['lost']} == {'data'}
    assert told['put_back'] == {'packs': 0, 'nodes': 1}
    assert [one['donor'] for one in told['lost'] if one['kind'] == 'data'] == ['zeros']
    assert report['lost'] == told['lost'] and told['source']['refused'] is None
    assert tree is not None and [one[0] for one in without_report(tree)[3]] == [one[0] for one in wanted[3]]


def test_a_tree_whose_top_is_lost_is_not_taken(store):
    break_it(store, 'mirror-gone-top-flip', seed=1)
    damage(store, 'swapped')
    told, tree, _ = recovered(store)
    assert told['source']['refused'] and told['sibling'] is None and tree is None
    assert not told['lost'], 'the tree in the catalog is whole'
    assert len(rows_of(store)) == 3, 'nothing was made'


def test_counts_that_are_not_those_of_the_top_are_no_proof(store):
    """Whoever wrote that backup read something else than what the snapshot had."""
    (path,) = (store / 'backups').glob('*.json')
    data = path.read_bytes()
    uuid = json.loads(data)['store']
    found = backups.decode(path, data, bytes.fromhex(uuid))
    for row in found.tables['snapshot']:
        if row[2] == b'monday':
            row[4] += 1
    path.write_bytes(backups.encode(found.store, found.epoch, found.made_ns, found.tables))
    told, _, _ = recovered(store)
    assert told['source']['refused'] and told['sibling'] is None


def test_another_snapshot_under_the_same_number_is_none(store):
    (path,) = (store / 'backups').glob('*.json')
    uuid = bytes.fromhex(json.loads(path.read_bytes())['store'])
    found = backups.decode(path, path.read_bytes(), uuid)
    for row in found.tables['snapshot']:
        row[8] += 1  # made at another time
    path.write_bytes(backups.encode(found.store, found.epoch, found.made_ns, found.tables))
    damage(store, 'swapped')
    told, _, _ = recovered(store)
    assert told['source'] is None and told['sibling'] is None


def test_a_new_name_is_no_other_snapshot(store):
    async def rename(collecting: Collecting) -> None:
        await collecting.engine.snapshot_rename('home', 'tuesday', 'wednesday')
        row = collecting.engine.snapshot_find('home', 'wednesday')
        store = collecting.engine.store
        assert not kept_rows(Disk(), store.path, store.superblock.uuid, row)

    on(store, rename)


def test_a_dry_run_says_it_and_changes_nothing(store):
    damage(store, 'swapped')
    before = rows_of(store)
    told, _, _ = recovered(store, dry_run=True)
    assert told['dry_run'] and told['sibling'] is None and told['source']['refused'] is None
    assert rows_of(store) == before


def test_no_plan_that_waits_outlives_it(store):
    """It knew nothing of a tree that no row named."""
    damage(store, 'swapped')

    async def work(collecting: Collecting) -> Any:
        ended: list[bool] = []
        true = collecting.end_plans

        def end_plans(request: int | None) -> None:
            ended.append(collecting._lock.locked())
            true(request)

        collecting.end_plans = end_plans  # type: ignore[method-assign]
        recovering = Recovering(collecting)
        make_sibling = recovering._make

        async def make(*arguments: Any) -> str:
            assert collecting._lock.locked(), 'no batch may move before the sibling has its row'
            return await make_sibling(*arguments)

        recovering._make = make  # type: ignore[method-assign]
        await recovering.run(wish(dry_run=True))
        assert not ended
        await recovering.run(wish())
        assert ended == [True] and not collecting._lock.locked()

    on(store, work)
