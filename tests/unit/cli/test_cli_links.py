"""Symbolic links in the place of parts of a store: nobody follows one that he was not told to, nor writes
through it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from snapfs.cli.main import main
from tests.images.image import make
from tests.mutants.setting import small
from tools.dump.main import main as dump_main

PARTS = (
    'packs', 'packs/meta', 'packs/data', 'batches', 'journal', 'mirror', 'backups', 'incidents',
    'audit.log', 'lock', 'catalog.sqlite', 'superblock', 'reserve',
)  # fmt: skip
REFUSE = ('packs', 'packs/meta', 'packs/data', 'batches', 'journal', 'lock', 'catalog.sqlite', 'superblock')


@pytest.fixture(scope='module')
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp('whole') / 'store'
    make(path)
    (path / 'incidents').mkdir(exist_ok=True)
    return path


def content(path: Path) -> dict[str, bytes | None]:
    if path.is_file():
        return {'': path.read_bytes()}
    found = sorted(path.rglob('*'))
    return {str(one.relative_to(path)): one.read_bytes() if one.is_file() else None for one in found}


@pytest.mark.parametrize('part', PARTS)
def test_nobody_writes_through_a_link(whole: Path, tmp_path: Path, capsysbinary: Any, part: str) -> None:
    store, away = shutil.copytree(whole, tmp_path / 'store'), tmp_path / 'away'
    (store / part).rename(away)
    (store / part).symlink_to(away)
    before = content(away)
    calls: list[tuple[Any, ...]] = [
        ('snapshot', 'create', 'home@new', '--store', store),
        ('recover', 'home@monday', '--dry-run', '--store', store),
        ('fsck', store),
        ('damage', store),
        ('rebuild', store, store / 'catalog.new', '--install'),
        ('export', 'home@monday', '-o', tmp_path / 'export', '--store', store),
        ('verify', 'home@monday', '--store', store),
    ]
    said = {}
    for call in calls:
        with small():
            code = main([*map(str, call)])
        out, error = capsysbinary.readouterr()
        said[call[0]] = code, (out + error).decode()
        assert content(away) == before, f'{call[0]} has written through the link'
        assert 'Traceback' not in said[call[0]][1], said
    for what in ('usage', 'packs', 'audit', 'journal'):
        dump_main([str(store), what])
        assert 'Traceback' not in capsysbinary.readouterr().out.decode()
    assert content(away) == before
    if part != 'reserve':  # nobody reads it
        assert 'symbolic link' in said['fsck'][1], said['fsck']
    if part in REFUSE:
        assert said['snapshot'][0] == 13 and len(said['snapshot'][1].splitlines()) == 1, said['snapshot']
        assert said['fsck'][0] & 4 and said['damage'][0] == 4
    if part.startswith('packs') or part == 'batches':
        assert {said[name][0] for name in ('recover', 'rebuild', 'export', 'verify')} == {13}
