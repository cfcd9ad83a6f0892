"""`snapfs recover --dry-run` without a daemon: not a byte of the store is another afterwards."""

from __future__ import annotations

import hashlib
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from snapfs.cli.main import main
from snapfs.service import client
from tests.mutants.setting import small
from tests.unit.service.test_read_only import with_log
from tools.breakit import break_it


def all_of(path: Path) -> dict[str, tuple[str, int]]:
    """Return the name of everything below, with its hash and the time of its last change."""
    found = {}
    for one in [path, *path.rglob('*')]:
        data = one.read_bytes() if one.is_file() else b''
        found[str(one.relative_to(path))] = (hashlib.sha256(data).hexdigest(), one.stat().st_mtime_ns)
    return found


@pytest.fixture(params=['clean', 'cut', 'log', 'index'])
def store(request: Any, cut_store: Path, kept_image: Path, tmp_path: Path) -> Path:
    """A store that was closed, one that a power cut has left, and one whose catalog has a log; or an index
    of it as well, as a daemon leaves that was killed."""
    if request.param == 'clean':
        return shutil.copytree(kept_image, tmp_path / 'clean')
    if request.param == 'cut':
        return cut_store
    with_log(cut_store)
    if request.param == 'index':
        whole = {suffix: (cut_store / f'catalog.sqlite{suffix}').read_bytes() for suffix in ('', '-wal')}
        with sqlite3.connect(cut_store / 'catalog.sqlite') as db:
            db.execute('SELECT count(*) FROM chunk').fetchone()
            index = (cut_store / 'catalog.sqlite-shm').read_bytes()
        db.close()
        for suffix, data in {**whole, '-shm': index}.items():
            (cut_store / f'catalog.sqlite{suffix}').write_bytes(data)
    return cut_store


@pytest.mark.parametrize('words', [(), ('--known-only',), ('--verify',)])
def test_it_changes_nothing_in_a_whole_store(store, words, capsysbinary):
    before = all_of(store)
    with small():
        code = main(['recover', 'home@tuesday', '--dry-run', *words, '--store', str(store)])
    assert code == 0, capsysbinary.readouterr().err
    assert all_of(store) == before


@pytest.mark.parametrize('damage', ['data-pack-gone', 'meta-pack-gone', 'payload-flip', 'audit-gone'])
def test_nor_in_a_damaged_one(kept_store, damage, capsysbinary):
    if damage == 'audit-gone':
        (kept_store / 'audit.log').unlink()
    else:
        break_it(kept_store, damage, seed=1)
    before = all_of(kept_store)
    with small():
        code = main(['recover', 'home@tuesday', '--dry-run', '--verify', '--store', str(kept_store)])
    told = capsysbinary.readouterr()
    assert code == (0 if damage == 'audit-gone' else 4), told.err
    assert told.out
    assert all_of(kept_store) == before


def test_what_it_tells_is_what_a_recovery_then_does(kept_store, capsysbinary):
    break_it(kept_store, 'meta-pack-gone', seed=1)
    with small():
        assert main(['recover', 'home@tuesday', '--dry-run', '--store', str(kept_store)]) == 4
        assert b'would be put back' in capsysbinary.readouterr().out
        assert main(['recover', 'home@tuesday', '--store', str(kept_store)]) == 0
    assert b'were put back' in capsysbinary.readouterr().out


def test_it_has_the_store_for_itself_meanwhile(kept_store, monkeypatch):
    """Nobody may write into the catalog that is read as one that stays as it is."""
    free: list[bool] = []
    from snapfs.service.recovering import Recovering

    real = Recovering._survey

    async def survey(self: Any, *arguments: Any) -> Any:
        free.append(client.lock_is_free(kept_store))
        return await real(self, *arguments)

    monkeypatch.setattr(Recovering, '_survey', survey)
    with small():
        assert main(['recover', 'home@tuesday', '--dry-run', '--store', str(kept_store)]) == 0
    assert free == [False]


def test_a_store_without_a_lock_is_refused_and_gets_none(kept_store, capsysbinary):
    (kept_store / 'lock').unlink()
    before = all_of(kept_store)
    with small():
        code = main(['recover', 'home@tuesday', '--dry-run', '--store', str(kept_store)])
    assert code == 12
    (line,) = capsysbinary.readouterr().err.splitlines()
    assert f'touch {kept_store}/lock'.encode() in line
    assert all_of(kept_store) == before


def test_an_older_catalog_is_not_made_a_newer_one_by_it(kept_store, capsysbinary):
    with sqlite3.connect(kept_store / 'catalog.sqlite') as db:
        db.execute('PRAGMA user_version = 2')
    db.close()
    before = all_of(kept_store)
    with small():
        code = main(['recover', 'home@tuesday', '--dry-run', '--store', str(kept_store)])
    assert code == 12
    (line,) = capsysbinary.readouterr().err.splitlines()
    assert b'version 2' in line
    assert all_of(kept_store) == before
