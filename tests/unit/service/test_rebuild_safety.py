"""A rebuild, and the opening after it, never make things worse: what is there stays, whatever is damaged."""

from __future__ import annotations

import itertools
import shutil
import sqlite3
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from snapfs import limits
from snapfs.errors import Corrupt, Refused
from snapfs.format.packs import PACK_HEADER_BYTES, TRAILER_BYTES
from snapfs.format.records import HEADER_BYTES, decode_header
from snapfs.format.superblock import decode_superblock
from snapfs.rescue.rebuild_install import install, refuse_whole
from snapfs.service.collecting import Collecting
from snapfs.store import backup
from snapfs.store.durable import Disk
from snapfs.store.store import Store
from snapfs.volume.engine import Engine
from tests.images.image import make
from tests.mutants.setting import StepWorld, content, small
from tests.support.collecting import read_tree, write_file
from tests.support.fsck import report_of
from tests.support.lives import on
from tests.unit.service.test_rebuild import lose, rebuilt, trees
from tools.breakit import break_it


@pytest.fixture(scope='module')
def image(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A store with packs that have no footer yet and a backup: closed clean, and as a kill left it a moment
    before, with records in the journal."""
    path = tmp_path_factory.mktemp('image') / 'store'
    make(path)

    async def keep(collecting: Collecting) -> None:
        engine = collecting.engine
        assert engine.store.backups.write(10**18)
        for number in range(4):
            await write_file(engine, f'open {number}', content(f'open {number}', 900))
            await engine.sync()
        shutil.copytree(path, path.with_name('killed'))

    on(path, keep)
    return path, path.with_name('killed')


@pytest.fixture
def store(image: tuple[Path, Path], tmp_path: Path) -> Path:
    path = tmp_path / 'store'
    shutil.copytree(image[0], path)
    return path


@pytest.fixture
def killed(image: tuple[Path, Path], tmp_path: Path) -> Path:
    path = tmp_path / 'store'
    shutil.copytree(image[1], path)
    return path


def open_pack(store: Path, kind: int) -> Path:
    with sqlite3.connect(store / 'catalog.sqlite') as db:
        ((name,),) = db.execute("SELECT name FROM pack WHERE state = 'open' AND kind = ?", (kind,)).fetchall()
    return store / 'packs' / {1: 'data', 2: 'meta'}[kind] / name.hex()[:2] / name.hex()


def records(path: Path) -> list[tuple[int, Any]]:
    data, offset, found = path.read_bytes(), PACK_HEADER_BYTES, []
    while offset < len(data):
        try:
            header = decode_header(data, offset)
        except Corrupt:
            break
        found.append((offset, header))
        offset += HEADER_BYTES + header.stored_length
    return found


def flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 16
    path.write_bytes(data)


def is_bad(store: Path) -> list[str]:
    with small():
        found = report_of(store).findings
    return [f'{one.code} {one.place}: {one.what}' for one in found if one.severity == 'damage']


async def just_open(collecting: Collecting) -> None:
    await trio.lowlevel.checkpoint()


# --- packs -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize('where', ['header', 'payload'])
@pytest.mark.parametrize('kind', [1, 2])
def test_damage_in_a_pack_without_footer_costs_that_record_and_no_other(store, kind, where):
    path = open_pack(store, kind)
    listed = records(path)
    assert len(listed) > 3
    offset, header = listed[1]
    flip(path, offset + (10 if where == 'header' else HEADER_BYTES + header.stored_length // 2))
    before = path.read_bytes()
    lose(store)
    rebuilt(store)
    with sqlite3.connect(store / 'catalog.sqlite') as db:
        ((number, state),) = db.execute(
            'SELECT pack, state FROM pack WHERE name = ?', (bytes.fromhex(path.name),)
        )
        assert state == 'sealed', 'nobody may go on writing to it'
        place = 'SELECT 1 FROM chunk WHERE pack = ? AND offset = ?'
        assert not db.execute(place, (number, offset)).fetchone(), 'what is damaged is in the index'
    on(store, just_open)
    after = path.read_bytes()
    end = listed[-1][0] + HEADER_BYTES + listed[-1][1].stored_length
    assert after[:end] == before[:end], 'what stands behind the damage is cut off'
    with sqlite3.connect(store / 'catalog.sqlite') as db:
        for _, one in [*listed[:1], *listed[2:]]:
            assert db.execute('SELECT 1 FROM chunk WHERE id = ?', (one.id,)).fetchone(), one.id.hex()


def test_of_very_much_that_cannot_be_read_not_all_is_named(store, monkeypatch):
    path = open_pack(store, 1)
    for offset, header in records(path):
        flip(path, offset + HEADER_BYTES + header.stored_length // 2)
    count = len(records(path))
    assert count > 3
    lose(store)
    monkeypatch.setattr(limits, 'REBUILD_BAD_MAX', 2)
    told = rebuilt(store)
    assert len(told['bad']) == 2 and told['bad_count'] == count


def test_damage_in_a_sealed_pack_whose_footer_is_lost_too_costs_that_record_and_no_other(store):
    with sqlite3.connect(store / 'catalog.sqlite') as db:
        name, count = db.execute(
            "SELECT name, records FROM pack WHERE state = 'sealed' AND kind = 1 ORDER BY records DESC"
        ).fetchone()
    path = store / 'packs/data' / name.hex()[:2] / name.hex()
    listed = records(path)
    assert len(listed) == count > 3
    flip(path, listed[1][0] + 10)
    flip(path, path.stat().st_size - TRAILER_BYTES + 9)
    before = path.read_bytes()
    lose(store)
    rebuilt(store)
    on(store, just_open)
    assert path.read_bytes()[: len(before)] == before
    with sqlite3.connect(store / 'catalog.sqlite') as db:
        assert db.execute('SELECT 1 FROM chunk WHERE id = ?', (listed[-1][1].id,)).fetchone()


def test_a_pack_of_another_store_is_not_taken(store):
    break_it(store, 'pack-foreign', seed=1)
    lose(store)
    told = rebuilt(store)
    assert any('another store' in text for text in told['bad'])
    with sqlite3.connect(store / 'catalog.sqlite') as db:
        found = db.execute("SELECT count(*) FROM pack WHERE records = 0 AND state = 'sealed'").fetchone()
        assert found == (1,)
    on(store, just_open)


# --- the old catalog -------------------------------------------------------------------------------------
def with_log(store: Path) -> dict[str, bytes]:
    """Leave a catalog with a log that was not taken into it."""
    db = sqlite3.connect(store / 'catalog.sqlite', isolation_level=None)
    db.execute('PRAGMA journal_mode = WAL')
    db.execute("UPDATE settings SET value = value + 1 WHERE key = 'trusted_ns'")
    files = {name: (store / name).read_bytes() for name in ('catalog.sqlite', 'catalog.sqlite-wal')}
    db.close()
    for name, data in files.items():
        (store / name).write_bytes(data)
    return files


def test_looking_whether_the_catalog_is_whole_changes_nothing(store):
    files = with_log(store)
    with pytest.raises(Refused):
        refuse_whole(Disk(), store)
    assert {name: (store / name).read_bytes() for name in files} == files


def test_a_catalog_is_judged_together_with_its_log(store):
    files = with_log(store)
    with sqlite3.connect(store / 'catalog.sqlite') as db:
        (page,) = db.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'settings'").fetchone()
    damaged = bytearray(files['catalog.sqlite'])  # a page of which the log has a newer one
    damaged[(page - 1) * 4096 : page * 4096] = bytes(4096)
    (store / 'catalog.sqlite').write_bytes(damaged)
    (store / 'catalog.sqlite-wal').write_bytes(files['catalog.sqlite-wal'])
    with pytest.raises(Refused):
        refuse_whole(Disk(), store)


def test_the_old_catalog_is_kept_with_its_log_so_that_both_can_be_read(store):
    files = with_log(store)
    broken = bytearray(files['catalog.sqlite'])
    broken[2 * 4096 : 3 * 4096] = bytes(4096)
    (store / 'catalog.sqlite').write_bytes(broken)
    rebuilt(store)
    assert (store / 'catalog.sqlite.lost-1').read_bytes() == bytes(broken)
    assert (store / 'catalog.sqlite.lost-1-wal').read_bytes() == files['catalog.sqlite-wal']
    assert not (store / 'catalog.sqlite-wal').exists()


class Recording(Disk):
    """Remembers renames and syncs of directories."""

    def __init__(self) -> None:
        super().__init__()
        self.done: list[tuple[str, str] | None] = []

    def _sys_rename(self, old: Path, new: Path) -> None:
        super()._sys_rename(old, new)
        self.done.append((old.name, new.name))

    def _sys_fsync_directory(self, path: Path) -> None:
        super()._sys_fsync_directory(path)
        self.done.append(None)


@pytest.mark.parametrize('lost', [True, False])
def test_a_power_cut_while_it_is_put_in_place_never_joins_a_catalog_with_anothers_log(tmp_path, lost):
    names = {'catalog.new': 'new', 'catalog.sqlite-wal': 'old log', 'catalog.sqlite-shm': 'old shm'}
    if not lost:
        names['catalog.sqlite'] = 'old'
    for name, text in names.items():
        (tmp_path / name).write_text(text)
    disk = Recording()
    install(disk, tmp_path, tmp_path / 'catalog.new', bytes(16), replay=True)
    durable, waiting, states = dict(names), [], []
    for step in [*disk.done, None]:
        for count in range(len(waiting) + 1):
            states += [after(durable, some) for some in itertools.combinations(waiting, count)]
        if step is None:
            durable, waiting = after(durable, waiting), []
        else:
            waiting.append(step)
    for state in states:
        pair = state.get('catalog.sqlite'), state.get('catalog.sqlite-wal')
        assert pair in (('old', 'old log'), (None, 'old log'), (None, None), ('new', None)), state
        assert 'new' in state.values(), state
        assert lost or 'old' in state.values(), state
        assert 'old log' in state.values(), state
    assert states[-1]['catalog.sqlite'] == 'new'


def after(names: dict[str, str], renames: Any) -> dict[str, str]:
    found = dict(names)
    for old, new in renames:
        if old in found:
            found[new] = found.pop(old)
    return found


def test_what_a_power_cut_has_left_aside_gets_its_log_when_it_is_done_again(tmp_path):
    for name, text in {
        'catalog.new': 'new',
        'catalog.sqlite.lost-1': 'old',
        'catalog.sqlite-wal': 'log',
    }.items():
        (tmp_path / name).write_text(text)
    assert install(Disk(), tmp_path, tmp_path / 'catalog.new', bytes(16), replay=True) == [
        'catalog.sqlite.lost-1-wal'
    ]
    assert (tmp_path / 'catalog.sqlite.lost-1-wal').read_text() == 'log'


# --- the journal -----------------------------------------------------------------------------------------
def cut_after(tmp_path: Path, live: Callable[[Engine], Awaitable[None]]) -> tuple[Path, Any]:
    """Live in a new store, kill it, lose the catalog, rebuild; return the store and what was told."""
    path, cut = tmp_path / 'store', tmp_path / 'cut'
    with small():
        Store.create(path, Disk(), StepWorld()).close(clean=True)

    async def work(collecting: Collecting) -> None:
        await live(collecting.engine)
        shutil.copytree(path, cut)

    on(path, work)
    lose(cut)
    return cut, rebuilt(cut)


def home(store: Path) -> set[bytes]:
    return set(on(store, lambda collecting: read_tree(collecting.engine.head('home'))))


async def begin(engine: Engine) -> None:
    await engine.volume_create('home', 0, 0)
    await write_file(engine, 'a', b'a')
    await engine.commit()


def test_records_are_never_applied_to_another_tree_than_theirs(tmp_path):
    async def live(engine: Engine) -> None:
        await begin(engine)
        assert engine.store.backups.write(10**18)
        await write_file(engine, 'b', b'b')
        await engine.committer.commit_alone()  # a commit that the journal has no record of
        await write_file(engine, 'c', b'c')
        await engine.sync()

    cut, told = cut_after(tmp_path, live)
    assert home(cut) in ({b'a'}, {b'a', b'b'}, {b'a', b'b', b'c'})
    assert 'commits' in told['journal']


def test_records_that_follow_the_backup_are_replayed(tmp_path):
    async def live(engine: Engine) -> None:
        await begin(engine)
        assert engine.store.backups.write(10**18)
        await write_file(engine, 'c', b'c')
        await engine.sync()

    cut, told = cut_after(tmp_path, live)
    assert 'will be replayed' in told['journal']
    assert home(cut) == {b'a', b'c'}


def test_what_is_written_after_a_rollback_that_the_backup_does_not_know_is_not_passed_over(tmp_path):
    async def live(engine: Engine) -> None:
        await begin(engine)
        await engine.snapshot_create('home', 's', 'me')
        assert engine.store.backups.write(10**18)
        await engine.volume_rollback('home', 's', 'me')
        await write_file(engine, 'c', b'c')
        await engine.sync()

    cut, told = cut_after(tmp_path, live)
    assert b'c' in home(cut) or 'not replayed' in told['journal']


@pytest.mark.parametrize('how', ['middle', 'header', 'cut', 'gone'])
def test_a_journal_that_does_not_follow_is_kept_and_hinders_nobody(killed, how):
    shutil.rmtree(killed / 'backups')
    journal = killed / 'journal'
    fullest = max('01', key=lambda number: (journal / number).read_bytes().count(b'SfJ1'))
    if how == 'middle':
        data = (journal / fullest).read_bytes()
        assert data.count(b'SfJ1') > 2
        flip(journal / fullest, data.find(b'SfJ1', data.find(b'SfJ1') + 1) + 60)
    elif how == 'header':
        flip(journal / '0', 9)
    elif how == 'cut':
        (journal / '1').write_bytes((journal / '1').read_bytes()[:5000])
    else:
        (journal / '0').unlink()
    before = {path.name: path.read_bytes() for path in journal.iterdir()}
    lose(killed)
    told = rebuilt(killed)
    assert 'kept aside' in told['journal']
    on(killed, just_open)
    (folder,) = (path for path in killed.iterdir() if path.name.startswith('journal.lost-'))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_without_install_the_journal_that_is_there_hinders_nobody_either(killed):
    shutil.rmtree(killed / 'backups')
    lose(killed)
    rebuilt(killed, install=False)
    shutil.move(killed.with_name('catalog.new'), killed / 'catalog.sqlite')

    async def look(collecting: Collecting) -> None:
        await just_open(collecting)
        assert not collecting.engine.replayed_records

    on(killed, look)


# --- what is called whole --------------------------------------------------------------------------------
@pytest.mark.parametrize('how', ['top-flip', 'branch-flip', 'leaf-flip'])
def test_the_left_part_of_a_tree_whose_top_is_lost_is_not_called_whole(store, how):
    shutil.rmtree(store / 'backups')
    break_it(store, how, seed=1)
    lose(store)
    told = rebuilt(store)
    assert told['trees']
    on(store, just_open)
    bad = [text for text in is_bad(store) if not text.startswith(('record-', 'certificate', 'batch-'))]
    assert not bad


def test_trees_that_are_not_shown_are_told(store, monkeypatch):
    monkeypatch.setattr('snapfs.limits.REBUILD_TREES_MAX', 1)
    shutil.rmtree(store / 'backups')
    lose(store)
    told = rebuilt(store)
    assert told['trees'] == 1
    assert told['hidden'] >= 2


# --- numbers ---------------------------------------------------------------------------------------------
def test_no_number_is_given_out_twice(store):
    async def later(collecting: Collecting) -> dict[str, int]:
        engine = collecting.engine
        for number in range(3):
            await engine.snapshot_create('home', f'after {number}', 'me')
        await engine.volume_create('after', 0, 0)
        engine.store.disk.mkdir(engine.store.path / 'batches' / '7777')
        engine.store.disk.mkdir(engine.store.path / 'incidents')
        engine.store.disk.mkdir(engine.store.path / 'incidents' / '5555')
        keys = ('epoch', 'next_view', 'next_volume', 'next_batch', 'next_incident')
        return {key: engine.store.catalog.setting(key) for key in keys}

    used = on(store, later)
    for path in sorted((store / 'backups').iterdir())[1:]:
        path.unlink()  # only the oldest is left
    lose(store)
    rebuilt(store)
    with sqlite3.connect(store / 'catalog.sqlite') as db:
        now = dict(db.execute('SELECT key, value FROM settings'))
    for key, value in used.items():
        assert now[key] >= value, f'{key}: {now[key]} after {value}'
    assert now['next_batch'] > 7777
    assert now['next_incident'] > 5555


# --- backups ---------------------------------------------------------------------------------------------
async def test_a_clean_end_leaves_a_backup_of_the_last_commit(tmp_path):
    path, world = tmp_path / 'store', StepWorld()
    Store.create(path, Disk(), world).close(clean=True)
    engine = await Engine.open(path, Disk(), world)
    await engine.volume_create('home', 0, 0)
    engine.store.backups.write(1)
    await write_file(engine, 'late', b'written just before the end')
    await engine.close()
    newest = backup.newest(Disk(), path, engine.store.superblock.uuid)
    assert newest is not None
    with sqlite3.connect(path / 'catalog.sqlite') as db:
        assert [tuple(row) for row in newest.tables['volume']] == db.execute(
            'SELECT * FROM volume'
        ).fetchall()


def test_a_clock_that_was_set_back_makes_no_old_backup_the_newest(store):
    async def write(collecting: Collecting) -> None:
        await write_file(collecting.engine, 'later', b'by an earlier clock')
        await collecting.engine.commit()
        assert collecting.engine.store.backups.write(5)
        shutil.copytree(store, store.with_name('copy'))

    on(store, write)
    uuid = decode_superblock((store / 'superblock').read_bytes()).uuid
    newest = backup.newest(Disk(), store.with_name('copy'), uuid)
    assert newest is not None
    assert newest.made_ns == 5
    names = [path.name for path in (store / 'backups').iterdir()]
    assert newest.path.name not in backup.expired(names)


def test_opening_and_closing_without_a_change_pushes_no_backup_out(store):
    on(store, just_open)
    before = sorted(path.name for path in (store / 'backups').iterdir())
    for _ in range(3):
        on(store, just_open)
    assert sorted(path.name for path in (store / 'backups').iterdir()) == before


def test_a_file_written_before_a_clean_end_is_there_after_the_catalog_was_lost(store):
    async def write(collecting: Collecting) -> None:
        await write_file(collecting.engine, 'late', b'written just before the end')

    on(store, write)
    wanted = trees(store)
    lose(store)
    rebuilt(store)
    found = trees(store)
    assert {name: found[name] for name in wanted} == wanted
