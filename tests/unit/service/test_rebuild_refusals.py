"""What a rebuild refuses: a catalog that nobody could look at is not a lost one, and a place where no new one
can be is told before the work."""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from snapfs.cli import rebuild as command
from snapfs.cli.main import main
from snapfs.errors import Corrupt, Invalid, Refused, SnapfsError, Unavailable
from snapfs.rescue import rebuild, rebuild_install
from snapfs.rescue.rebuild_install import catalog_is_whole
from snapfs.store.durable import Disk
from tests.mutants.setting import small
from tests.unit.service.test_rebuild import files, lose, rebuilt


@pytest.fixture
def store(kept_store: Path) -> Path:
    return kept_store


def fail_open(monkeypatch: pytest.MonkeyPatch, name: str, number: int) -> None:
    """Files of this name cannot be opened any more."""
    real = Disk._sys_open

    def refuse(self: Disk, path: Path, flags: int) -> int:
        if path.name == name:
            raise OSError(number, os.strerror(number), str(path))
        return real(self, path, flags)

    monkeypatch.setattr(Disk, '_sys_open', refuse)


def fail_read(monkeypatch: pytest.MonkeyPatch, path: Path, number: int) -> None:
    """The second half of this file cannot be read any more."""
    real, inode, half = Disk._sys_pread, path.stat().st_ino, path.stat().st_size // 2

    def refuse(self: Disk, fd: int, count: int, offset: int) -> bytes:
        if os.fstat(fd).st_ino == inode and offset + count > half:
            raise OSError(number, os.strerror(number))
        return real(self, fd, count, offset)

    monkeypatch.setattr(Disk, '_sys_pread', refuse)


# --- a catalog that nobody could look at -----------------------------------------------------------------
OPENING = [
    (errno.EACCES, Invalid),
    (errno.EIO, Corrupt),
    (errno.EMFILE, Unavailable),
    (errno.ESTALE, Corrupt),
]


@pytest.mark.parametrize('damaged', [False, True])
@pytest.mark.parametrize(('number', 'kind'), OPENING)
def test_a_catalog_that_cannot_be_opened_is_not_a_lost_one(store, monkeypatch, damaged, number, kind):
    if damaged:
        (store / 'catalog.sqlite').write_bytes(b'nonsense')
    before = files(store)
    fail_open(monkeypatch, 'catalog.sqlite', number)
    with pytest.raises(kind) as caught:
        rebuilt(store)
    assert os.strerror(number) in caught.value.line() and 'Nothing was changed' in caught.value.line()
    assert files(store) == before


def test_nor_is_one_with_a_log_that_cannot_be_opened(store, monkeypatch):
    (store / 'catalog.sqlite-wal').write_bytes(b'x')
    before = files(store)
    fail_open(monkeypatch, 'catalog.sqlite-wal', errno.EACCES)
    with pytest.raises(Invalid, match='wal: Permission denied'):
        rebuilt(store)
    assert files(store) == before


def test_one_that_cannot_be_read_to_its_end_is_damaged_and_kept(store, monkeypatch):
    old = (store / 'catalog.sqlite').read_bytes()
    fail_read(monkeypatch, store / 'catalog.sqlite', errno.EIO)
    assert rebuilt(store)['kept'][0] == 'catalog.sqlite.lost-1'
    assert (store / 'catalog.sqlite.lost-1').read_bytes() == old


def test_an_error_that_says_nothing_of_its_bytes_is_no_damage(store, monkeypatch):
    before = files(store)
    fail_read(monkeypatch, store / 'catalog.sqlite', errno.ENOMEM)
    with pytest.raises(Unavailable, match='Cannot allocate memory'):
        rebuilt(store)
    assert files(store) == before


@pytest.mark.parametrize('target', ['elsewhere', 'nowhere'])
def test_a_link_in_its_place_is_not_a_lost_one(store, tmp_path, target):
    (store / 'catalog.sqlite').rename(tmp_path / 'elsewhere')
    (store / 'catalog.sqlite').symlink_to(tmp_path / target)
    before = files(store)
    with pytest.raises(Invalid, match='symbolic link'):
        rebuilt(store)
    assert files(store) == before


CODES = [
    (sqlite3.SQLITE_CANTOPEN, True), (sqlite3.SQLITE_NOMEM, True), (sqlite3.SQLITE_IOERR_READ, True),
    (sqlite3.SQLITE_FULL, True), (sqlite3.SQLITE_BUSY, True), (sqlite3.SQLITE_PERM, True),
    (sqlite3.SQLITE_CORRUPT, False), (sqlite3.SQLITE_NOTADB, False), (sqlite3.SQLITE_ERROR, False),
    (None, False),
]  # fmt: skip


@pytest.mark.parametrize(('code', 'raised'), CODES)
def test_only_errors_about_what_is_in_it_are_damage(store, monkeypatch, code, raised):
    def fail(path: Path) -> bool:
        error = sqlite3.OperationalError('something')
        if code is not None:
            error.sqlite_errorcode = code
        raise error

    monkeypatch.setattr(rebuild_install, '_is_whole', fail)
    if raised:
        with pytest.raises(Unavailable, match='could not be checked'):
            catalog_is_whole(Disk(), store)
    else:
        assert not catalog_is_whole(Disk(), store)


@pytest.mark.parametrize('name', ['0', '1', 'audit.log'])
def test_neither_is_a_journal_or_an_audit_log_lost_because_nobody_lets_us_in(store, monkeypatch, name):
    """A journal goes aside only when it was looked at; numbers count on from what the audit log says."""
    lose(store)
    before = files(store)
    fail_open(monkeypatch, name, errno.EACCES)
    with pytest.raises(Invalid, match='Permission denied'):
        rebuilt(store)
    assert files(store) == before


@pytest.mark.parametrize('folder', ['data', 'meta'])
@pytest.mark.parametrize('number', [errno.EACCES, errno.EIO])
def test_packs_are_not_lost_because_nobody_can_list_them(store, monkeypatch, folder, number):
    """A directory with mode 000 gave a catalog without the trees in it, and a success."""
    lose(store)
    before = files(store)
    closed = next((store / 'packs' / folder).iterdir())
    real = os.listdir

    def refuse(path: Any) -> Any:
        if Path(path) == closed:
            raise OSError(number, os.strerror(number))
        return real(path)

    monkeypatch.setattr(os, 'listdir', refuse)
    with pytest.raises(Corrupt, match=os.strerror(number)) as caught:
        rebuilt(store)
    assert 'would count as lost' in caught.value.line()
    monkeypatch.undo()
    assert files(store) == before


@pytest.mark.parametrize('folder', ['data', 'meta'])
def test_nor_because_their_directory_is_missing(store, folder):
    lose(store)
    shutil.rmtree(store / 'packs' / folder)
    before = files(store)
    with pytest.raises(Corrupt, match='is missing') as caught:
        rebuilt(store)
    assert f'mkdir {store}/packs/{folder}' in caught.value.line()
    assert files(store) == before


# --- where the new one cannot be -------------------------------------------------------------------------
def never(*arguments: Any, **options: Any) -> Any:
    raise AssertionError('the long work has begun')


def refused(store: Path, target: Path, install: bool) -> SnapfsError:
    with small(), pytest.raises(SnapfsError) as caught:
        command._rebuild(store, target, None, install)
    assert '\n' not in caught.value.line()
    return caught.value


@pytest.fixture
def lost(store: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store without a catalog, of which no pack is ever read."""
    lose(store)
    monkeypatch.setattr(rebuild.Rebuild, 'run', never)
    return store


INSIDE = [
    'catalog.sqlite',
    'catalog.new',
    'packs/new',
    'packs/data/new',
    'backups/new',
    'mirror/new',
    'journal/new',
]


@pytest.mark.parametrize('name', INSIDE)
@pytest.mark.parametrize('way', ['plain', 'dots', 'link'])
def test_without_install_it_is_made_outside_of_the_store(lost, tmp_path, name, way):
    before = files(lost)
    (tmp_path / 'link').symlink_to(lost)
    root = {'plain': lost, 'dots': lost / '..' / lost.name, 'link': tmp_path / 'link'}[way]
    assert 'lies in the store' in str(refused(lost, root / name, False))
    assert files(lost) == before


@pytest.mark.parametrize(
    'name', ['catalog.sqlite', 'catalog.sqlite-wal', 'audit.log', 'reserve', 'journal.new']
)
def test_with_install_it_has_no_name_of_the_stores_own(lost, name):
    (lost / name).unlink(missing_ok=True)
    assert "a name of the store's own" in refused(lost, lost / name, True).line()


@pytest.mark.parametrize('name', ['packs/new', '../new'])
def test_what_is_to_be_put_in_place_is_made_beside_that(lost, name):
    found = refused(lost, lost / name, True)
    assert 'cannot be put in place' in str(found) and f'{lost}/catalog.new --install' in found.line()


@pytest.mark.parametrize('suffix', ['', '-wal', '-shm'])
def test_what_is_there_is_not_replaced(lost, tmp_path, suffix):
    """SQLite would bring the log of another catalog into the new one."""
    Path(f'{tmp_path}/new{suffix}').write_bytes(b'')
    assert 'is there already' in str(refused(lost, tmp_path / 'new', False))


def test_what_cannot_be_made_is_told_before_the_work(lost, tmp_path, monkeypatch):
    assert 'is not a directory' in str(refused(lost, tmp_path / 'nowhere' / 'new', False))
    (tmp_path / 'file').write_bytes(b'')
    assert 'is not a directory' in str(refused(lost, tmp_path / 'file' / 'new', False))
    (tmp_path / 'a').symlink_to('b')
    (tmp_path / 'b').symlink_to('a')
    assert str(tmp_path / 'a') in str(refused(lost, tmp_path / 'a' / 'new', False))
    monkeypatch.setattr(os, 'access', lambda path, mode: False)
    assert 'cannot be made there' in str(refused(lost, tmp_path / 'new', False))


def test_no_room_is_told_before_the_work(lost, tmp_path, monkeypatch):
    monkeypatch.setattr(Disk, 'statvfs', lambda self, path: SimpleNamespace(f_bavail=1, f_frsize=4096))
    found = refused(lost, tmp_path / 'new', False)
    assert isinstance(found, Refused) and found.errno == errno.ENOSPC and 'MiB' in str(found)


def test_a_whole_catalog_is_told_before_a_bad_place(store, tmp_path):
    assert isinstance(refused(store, tmp_path / 'nowhere' / 'new', False), Refused)


# --- the command -----------------------------------------------------------------------------------------
def test_to_list_backups_no_new_catalog_is_named(store, capsysbinary):
    assert main(['rebuild', str(store), '--list-backups']) == 0
    assert b'.json' in capsysbinary.readouterr().out
    assert main(['rebuild', str(store / 'packs'), '--list-backups']) == Invalid.exit_code
    assert main(['rebuild', str(store)]) == Invalid.exit_code
    assert b'which new catalog?' in capsysbinary.readouterr().err
