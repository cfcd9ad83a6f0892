"""What fsck says of the backups of the catalog: each byte counts, and nothing else is said."""

from __future__ import annotations

import errno
import os
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from snapfs.store import backup
from tests.mutants.setting import small
from tests.support.lives import backup_at, on
from tools.checker import backups as module
from tools.checker.check import Options, check
from tools.checker.findings import Report

SECOND_NS = 10**9


@pytest.fixture(scope='module')
def image_with_backups(image: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three backups, of states that differ."""
    path = shutil.copytree(image, tmp_path_factory.mktemp('backups') / 'store')
    for number in range(3):

        async def change(collecting: Any, number: int = number) -> None:
            name = next(iter(collecting.engine.heads()))
            await collecting.engine.snapshot_create(name, f'one more {number}', 'ann')
            await backup_at((number + 1) * 60 * SECOND_NS)(collecting)

        on(path, change)
    return path


@pytest.fixture
def store(image_with_backups: Path, tmp_path: Path) -> Path:
    return shutil.copytree(image_with_backups, tmp_path / 'a store')


def files(path: Path) -> list[Path]:
    return sorted((path / 'backups').glob('*.json'))


def said(path: Path, *, full: bool = True) -> Report:
    report = Report()
    with small():
        check(path, Options(full=full, jobs=1), report)
    return report


def bad(path: Path, *, full: bool = True) -> list[str]:
    found = said(path, full=full)
    assert set(found.counts) <= {'backup-bad', 'leaked'}, found.findings
    return [one.place for one in found.findings if one.code == 'backup-bad']


def test_whole_backups_are_not_told(store):
    assert len(files(store)) == 3
    assert bad(store) == [] == bad(store, full=False)


def test_every_bit_counts(store):
    path, chance = files(store)[-1], random.Random(5)
    data = path.read_bytes()
    for _ in range(300):
        at, bit = chance.randrange(len(data)), chance.randrange(8)
        path.write_bytes(data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :])
        report = Report()
        taken = module.Store(store)
        taken.begin()
        module.check_backups(taken, report, full=True, names=False)
        taken.close()
        assert report.counts == {'backup-bad': 1}, f'byte {at} bit {bit}'


@pytest.mark.parametrize('how', ['empty', 'cut', 'longer', 'of another epoch', 'a folder', 'a link'])
def test_what_is_no_whole_backup_is_told(store, tmp_path, how):
    path = files(store)[-1]
    data = path.read_bytes()
    if how == 'a folder':
        path.unlink()
        path.mkdir()
    elif how == 'a link':
        path.rename(tmp_path / 'elsewhere')
        path.symlink_to(tmp_path / 'elsewhere')
    elif how == 'of another epoch':
        path = path.rename(path.with_name('000000000009-' + path.name.partition('-')[2]))
    else:
        path.write_bytes({'empty': b'', 'cut': data[:-1], 'longer': data + b'\n'}[how])
    assert bad(store) == [f'backups/{path.name}']


def test_of_another_store(store):
    path = files(store)[-1]
    whole = backup.decode(path, path.read_bytes(), said_uuid(store))
    path.write_bytes(backup.encode(b'o' * 16, whole.epoch, whole.made_ns, whole.tables))
    (finding,) = [one for one in said(store).findings if one.code == 'backup-bad']
    assert finding.what == f'is a backup of store {(b"o" * 16).hex()}'


def said_uuid(path: Path) -> bytes:
    return (path / 'superblock').read_bytes()[12:28]


def test_a_quick_check_looks_at_the_newest(store):
    old, _, new = files(store)
    old.write_bytes(b'')
    assert bad(store, full=False) == []
    assert bad(store) == [f'backups/{old.name}']
    new.write_bytes(b'')
    assert bad(store, full=False) == [f'backups/{new.name}']


def test_other_names_are_not_looked_at(store):
    (store / 'backups' / 'notes.json').write_bytes(b'mine')
    (store / 'backups' / '000000000009-1.json.new').write_bytes(b'torn')
    assert bad(store) == []


def test_a_folder_that_is_not_listed_was_not_checked(store, monkeypatch):
    real = os.listdir

    def listdir(path: Any) -> list[str]:
        if str(path) == str(store / 'backups'):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(path)

    monkeypatch.setattr(os, 'listdir', listdir)
    found = said(store)
    assert found.unchecked == ['backups: Input/output error'] and not found.counts.get('backup-bad')


def test_none_is_no_damage(store):
    shutil.rmtree(store / 'backups')
    assert bad(store) == []
