"""A store on a filesystem that is mounted read-only: what only reads works, and nothing is written."""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from snapfs.cli import rebuild as command
from snapfs.cli.main import main
from snapfs.errors import Invalid, Latched, Refused, Unavailable
from snapfs.format.superblock import decode_superblock
from snapfs.rescue.reader import Reader
from snapfs.service import workers
from snapfs.service.collecting import Collecting
from snapfs.service.compose import MountRequest
from snapfs.service.mounting import check_request
from snapfs.service.options import MountOptions
from snapfs.store.catalog import Catalog
from snapfs.store.durable import Disk
from snapfs.store.lock import StoreLock
from snapfs.store.store import Store
from tests.mutants.setting import StepWorld, small
from tests.support.collecting import job_in_process
from tests.support.fsck import report_of
from tests.support.lives import on, trees
from tests.unit.service.test_rebuild import files, lose
from tools.breakit import break_it


@pytest.fixture
def below(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """Let the filesystem below a directory be one that cannot be written, as far as we write ourselves."""

    def protect(path: Path) -> None:
        real = Disk._sys_open

        def opened(self: Disk, name: Path, flags: int) -> int:
            if name.is_relative_to(path) and flags & (os.O_RDWR | os.O_WRONLY | os.O_CREAT):
                raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(name))
            return real(self, name, flags)

        access = os.access
        monkeypatch.setattr(Disk, '_sys_open', opened)
        monkeypatch.setattr(Disk, 'is_read_only', lambda self, name: name.is_relative_to(path))
        monkeypatch.setattr(
            os, 'access', lambda name, mode: path not in (name, *name.parents) and access(name, mode)
        )
        for name in ('_sys_rename', '_sys_unlink', '_sys_mkdir', '_sys_pwritev', '_sys_ftruncate'):
            monkeypatch.setattr(Disk, name, refuse)

    return protect


def refuse(*arguments: Any) -> Any:
    raise OSError(errno.EROFS, os.strerror(errno.EROFS))


def with_log(store: Path) -> Path:
    """Let the last transaction be in the catalog's log alone, as a kill leaves it."""
    db = sqlite3.connect(store / 'catalog.sqlite', isolation_level=None)
    db.execute('PRAGMA journal_mode = WAL')
    db.execute("UPDATE snapshot SET name = CAST('renamed' AS BLOB) WHERE name = CAST('monday' AS BLOB)")
    data = {suffix: Path(f'{store}/catalog.sqlite{suffix}').read_bytes() for suffix in ('', '-wal')}
    db.close()
    for suffix, text in data.items():
        Path(f'{store}/catalog.sqlite{suffix}').write_bytes(text)
    return store


@pytest.fixture(params=['clean', 'cut', 'log'])
def store(request: Any, cut_store: Path, kept_image: Path, tmp_path: Path) -> Path:
    if request.param == 'cut':
        return cut_store
    return with_log(cut_store) if request.param == 'log' else shutil.copytree(kept_image, tmp_path / 'clean')


def test_all_of_it_can_be_read_and_nothing_is_written(store, tmp_path, below, monkeypatch):
    wanted = trees(shutil.copytree(store, tmp_path / 'other'))
    (tmp_path / 'temporary').mkdir()
    monkeypatch.setattr('tempfile.tempdir', str(tmp_path / 'temporary'))
    below(store)
    before = files(store)
    assert trees(store) == wanted
    assert files(store) == before, 'not even what SQLite keeps beside a catalog'
    assert not list((tmp_path / 'temporary').iterdir()), 'no copy is left'


@pytest.mark.parametrize('target', ['home@tuesday:/big', 'home:/big'])
def test_who_keeps_a_file_can_be_asked(store, below, target, monkeypatch, capsysbinary):
    """Its process wants an index beside the catalog; without one it called the store damaged."""
    monkeypatch.setattr(workers, 'run_in_process', job_in_process(StepWorld()))
    below(store)
    before = files(store)
    with small():
        assert main(['why', target, '--store', str(store)]) == 0, capsysbinary.readouterr().err
    assert b'home@tuesday' in capsysbinary.readouterr().out
    assert files(store).keys() == before.keys()


def test_what_writes_says_that_it_cannot_and_what_can(store, below):
    below(store)

    async def work(collecting: Collecting) -> None:
        for step in (
            lambda: collecting.engine.snapshot_create('home', 'new', 'ann'),
            lambda: collecting.engine.volume_create('new', 0, 0),
            lambda: collecting.collect(),
        ):
            with pytest.raises(Latched, match='read-only') as caught:
                await step()
            assert 'What works there: fsck, verify' in caught.value.line()

    on(store, work)


def test_jobs_that_only_read_read_it(store, below):
    below(store)
    before = files(store)
    reader = Reader(store, decode_superblock((store / 'superblock').read_bytes()).uuid)
    names = {name for (name,) in reader.query('SELECT name FROM snapshot')}
    reader.close()
    assert (b'renamed' in names) == ((store / 'catalog.sqlite-wal').exists()) and b'tuesday' in names
    assert files(store) == before


def test_the_lock_is_as_good_there(store, below):
    below(store)
    one, two = (StoreLock(Disk(), store / 'lock', StepWorld()) for _ in range(2))
    one.acquire()
    one.describe('/mnt')
    with pytest.raises(Unavailable, match='in use'):
        two.acquire()
    one.release()
    two.acquire()
    two.release()


def test_a_catalog_is_made_elsewhere_and_not_put_in_place(store, tmp_path, below):
    lose(store)
    below(store)
    before = files(store)
    with small():
        with pytest.raises(Invalid, match='cannot be made there'):
            command._rebuild(store, store / 'catalog.new', None, True)
        assert command._rebuild(store, tmp_path / 'new', None, False)['packs']
    assert files(store) == before and (tmp_path / 'new').exists()


@pytest.mark.parametrize(
    'words',
    [
        ('recover', 'home@tuesday'),
        ('scrub',),
        ('collect', '--dry-run'),
        ('collect',),
        ('snapshot', 'create', 'home@new'),
        ('snapshot', 'delete', 'home@tuesday'),
        ('volume', 'create', 'new'),
        ('hold', 'add', 'home@tuesday', 'audit'),
        ('config', 'scrub', '0s'),
    ],
)
def test_what_writes_is_12_there_as_a_mount_is(kept_store, below, words, capsysbinary):
    below(kept_store)
    with small():
        code = main([*words, '--store', str(kept_store)])
    (line,) = capsysbinary.readouterr().err.splitlines()
    assert code == 12, line
    assert b'read-only' in line and (b'What works there' in line or b'Copy the store' in line)


def test_an_audit_log_that_is_gone_keeps_nobody_from_reading_there(kept_store, below, capsysbinary):
    (kept_store / 'audit.log').unlink()
    below(kept_store)
    with small():
        assert main(['snapshot', 'list', '--store', str(kept_store)]) == 0
        assert b'home@tuesday' in capsysbinary.readouterr().out
        for words in ((), ('--verify',)):
            assert main(['audit', *words, '--store', str(kept_store)]) == 13
            (line,) = capsysbinary.readouterr().err.splitlines()
            assert b'audit log' in line


def test_a_store_that_has_stopped_by_itself_is_14_all_the_same(kept_store, below, capsysbinary):
    async def stop(collecting: Collecting) -> None:
        collecting.engine.store.catalog.incident_add('store', 'a sync failed', 1)

    on(kept_store, stop)
    with small():
        for words in (('recover', 'home@tuesday'), ('scrub',)):
            assert main([*words, '--store', str(kept_store)]) == 14, capsysbinary.readouterr().err


def test_a_whole_one_is_told(kept_store, tmp_path, below):
    below(kept_store)
    with small(), pytest.raises(Refused, match='the catalog is whole'):
        command._rebuild(kept_store, tmp_path / 'new', None, False)


def test_a_mount_says_in_one_line_what_works(kept_store, tmp_path, below):
    below(kept_store)
    (tmp_path / 'mnt').mkdir()
    request = MountRequest(kept_store, None, str(tmp_path / 'mnt'), 'x', MountOptions(), None)
    with pytest.raises(
        Unavailable, match='cannot be mounted: the filesystem below it is read-only'
    ) as caught:
        check_request(request)
    assert 'snapshot list' in caught.value.line()


def test_an_older_catalog_says_that_it_has_to_be_opened_once(kept_store, below):
    with sqlite3.connect(kept_store / 'catalog.sqlite') as db:
        db.execute('PRAGMA user_version = 2')
    db.close()
    below(kept_store)
    with pytest.raises(Unavailable, match='version 2') as caught:
        Catalog.open(Disk(), kept_store / 'catalog.sqlite')
    assert 'where it can be written' in caught.value.line()


def test_a_store_that_stopped_writing_can_be_looked_at(kept_store, capsysbinary):
    """Its clock is not written any more; that kept everybody out."""

    async def stop(collecting: Collecting) -> None:
        collecting.engine.store.catalog.incident_add('store', 'a sync failed', 1)

    on(kept_store, stop)
    with small():
        assert main(['snapshot', 'list', '--store', str(kept_store)]) == 0
    assert b'home@monday' in capsysbinary.readouterr().out


def test_and_acknowledged_and_is_written_again_when_it_is_opened_next(kept_store, capsysbinary):
    """The line of the audit log comes first, and could not be written: nobody came out of it."""

    async def stop(collecting: Collecting) -> None:
        for number in range(2):
            collecting.engine.store.catalog.incident_add('store', f'failure {number}', 1)

    on(kept_store, stop)
    with sqlite3.connect(kept_store / 'catalog.sqlite') as db:
        numbers = [one for (one,) in db.execute("SELECT number FROM incident WHERE scope = 'store'")]
    db.close()
    with small():
        for number in numbers:
            assert main(['snapshot', 'create', 'home@new', '--store', str(kept_store)]) == Latched.exit_code
            words = ['incident', 'ack', str(number), '--note', 'a new disk', '--store', str(kept_store)]
            assert main(words) == 0, capsysbinary.readouterr().err
        assert main(['snapshot', 'create', 'home@new', '--store', str(kept_store)]) == 0
        assert main(['audit', '--verify', '--store', str(kept_store)]) == 0
    lines = (kept_store / 'audit.log').read_text().splitlines()
    assert [('incident-ack' in line, 'a new disk' in line) for line in lines[-2:]] == [(True, True)] * 2
    with small():
        assert not [one for one in report_of(kept_store).findings if one.severity == 'damage']


def lose_log(path: Path) -> None:
    path.unlink()


def spoil_log(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-50] + b'x' * 50)


def cut_log(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


@pytest.mark.parametrize('damage', [lose_log, spoil_log, cut_log])
def test_and_without_its_audit_log_while_deletion_stays_stopped(kept_store, capsysbinary, damage):
    """Nobody came out of it: the line that says who acknowledged had no log to go to."""

    async def stop(collecting: Collecting) -> None:
        collecting.engine.store.catalog.incident_add('store', 'a sync failed', 1)

    on(kept_store, stop)
    log = kept_store / 'audit.log'
    damage(log)
    kept = log.read_bytes() if log.exists() else b''
    at_store = ['--store', str(kept_store)]
    with small():
        assert main(['snapshot', 'list', *at_store]) == 0
        assert (log.read_bytes() if log.exists() else b'') == kept, 'looking writes nothing'
        assert main(['incident', 'ack', '1', '--note', 'new disk', *at_store]) == 0
        assert b'still in force: 2' in capsysbinary.readouterr().out
        assert main(['snapshot', 'create', 'home@new', *at_store]) == 0, 'it is written again'
        assert main(['collect', *at_store]) == Latched.exit_code
        assert b'incident 2: ' in capsysbinary.readouterr().err
    assert log.read_bytes().startswith(kept), 'what was left of it stays'
    lines = log.read_bytes()[len(kept) :].splitlines()
    assert [b'audit-broken' in lines[1], b'incident-ack' in lines[2], b'new disk' in lines[2]] == [True] * 3
    with small():
        codes = {one.code for one in report_of(kept_store).findings if one.severity == 'damage'}
        assert codes <= {'incident'}
        assert main(['incident', 'ack', '2', '--note', 'looked', *at_store]) == 0
    assert b'no other is in force' in capsysbinary.readouterr().out


def test_who_has_met_the_failure_himself_cannot_acknowledge_it(kept_store):
    told: list[str] = []

    async def work(collecting: Collecting) -> None:
        store = collecting.engine.store
        store.latch('a sync failed')
        (incident,) = store.catalog.incidents('store')
        try:
            collecting.collector.incidents.acknowledge(incident.number, 'ann', '')
        except Latched as error:
            told.append(error.line())

    before = (kept_store / 'audit.log').read_bytes()
    with pytest.raises(Latched):  # the close says that it could not commit
        on(kept_store, work)
    assert told == ['a sync failed. Unmount the store and look at the disk below it; then acknowledge.']
    assert (kept_store / 'audit.log').read_bytes() == before
    with sqlite3.connect(kept_store / 'catalog.sqlite') as db:
        text = "SELECT acknowledged_ns FROM incident WHERE scope = 'store'"
        assert db.execute(text).fetchall() == [(None,)]
    db.close()


def test_no_store_is_read_only_by_itself(kept_store):
    assert not Disk().is_read_only(kept_store)
    with small():
        Store.open(kept_store, Disk(), StepWorld()).close(clean=True)


@pytest.fixture
def known_loss(kept_store: Path) -> Path:
    """A store that has lost a chunk, knows it, and knows of one that has been freed since."""
    break_it(kept_store, 'payload-flip', seed=1)
    with small():
        assert main(['scrub', '--store', str(kept_store)]) == 4
    with sqlite3.connect(kept_store / 'catalog.sqlite') as db:
        assert db.execute('SELECT count(*) FROM damage').fetchone() == (1,)
        (gone,) = db.execute('SELECT id FROM freed LIMIT 1').fetchone()
        db.execute("INSERT INTO damage VALUES (?, 1, 'read', 'x')", (gone,))
    db.close()
    return kept_store


def test_a_loss_that_is_known_keeps_nobody_out_of_a_filesystem_that_is_read_only(known_loss, below):
    below(known_loss)
    with small():
        assert main(['snapshot', 'list', '--store', str(known_loss)]) == 0
        assert main(['recover', 'home@tuesday', '--dry-run', '--store', str(known_loss)]) == 4


def test_nor_out_of_a_store_that_has_stopped(known_loss, capsysbinary):
    with sqlite3.connect(known_loss / 'catalog.sqlite') as db:
        db.execute("INSERT INTO incident (scope, reason, opened_ns) VALUES ('store', 'a sync failed', 1)")
    db.close()
    with small():
        assert main(['snapshot', 'list', '--store', str(known_loss)]) == 0
    assert b'DAMAGED' in capsysbinary.readouterr().out
