"""What a person is told to do next is a command that can be copied; what a wrong call of fsck is answered."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from snapfs.cli.main import main
from snapfs.store.durable import Disk
from tests.mutants.setting import small
from tools.breakit import break_it


@pytest.fixture
def store(cut_store: Path) -> Path:
    return cut_store


@pytest.fixture
def run(capsysbinary: Any) -> Any:
    """Run a command; return its exit code, and the lines that it printed and complained with."""

    def command(*words: object) -> tuple[int, list[str], list[str]]:
        with small():
            code = main([*map(str, words)])
        out, error = capsysbinary.readouterr()
        return code, out.decode().splitlines(), error.decode().splitlines()

    return command


# --- fsck ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize('words', [(), ('--bogus', 'x'), ('a', 'b'), ('--jobs', 'many', 'x'), ('--jobs',)])
def test_a_wrong_call_of_fsck_is_16(run, words):
    code, out, error = run('fsck', *words)
    assert (code, out, len(error)) == (16, [], 1)
    assert error[0].startswith('snapfs: ')


def test_and_of_any_other_command_2(run):
    assert run('recover')[0] == 2 and run('damage', '--bogus')[0] == 2
    assert run('fsck', '--help')[0] == 0


# --- rebuild ---------------------------------------------------------------------------------------------
def test_a_rebuild_that_is_not_needed_is_refused_with_3(run, store, tmp_path):
    code, _, error = run('rebuild', store, tmp_path / 'new')
    assert code == 3 and 'the catalog is whole' in error[0]


def test_and_so_is_one_that_would_give_up_the_journal(run, store, tmp_path, monkeypatch):
    monkeypatch.setattr('snapfs.rescue.small_parts.journal_problem', lambda *arguments: 'it is torn')
    monkeypatch.setattr(
        'snapfs.rescue.small_parts.position_of', lambda *arguments: type('P', (), {'clean': False})
    )
    code, _, error = run('rebuild', store, tmp_path / 'new')
    assert code == 3 and 'add --journal' in error[0]


def test_a_catalog_elsewhere_is_said_to_be_put_in_place_when_that_can_be(run, store, tmp_path, monkeypatch):
    (store / 'catalog.sqlite').unlink()
    code, out, _ = run('rebuild', store, tmp_path / 'new')
    again = f'snapfs rebuild {store} {store / "catalog.new"} --install'
    assert code == 0 and out[-1].endswith(f'To put one in place: {again}')
    monkeypatch.setattr(Disk, 'is_read_only', lambda self, path: path.is_relative_to(store))
    code, out, _ = run('rebuild', store, tmp_path / 'newer')
    assert code == 0
    assert out[-1].endswith(f'when the disk below the store can be written again: {again}')


# --- next steps ------------------------------------------------------------------------------------------
def test_a_scrub_that_finds_damage_names_the_next_commands_whole(run, store):
    break_it(store, 'payload-flip', seed=1)
    code, out, _ = run('scrub', '--store', store)
    assert code == 4
    assert f'snapfs damage --store {store}' in out[-1]
    assert out[-1].endswith(f'Next: snapfs recover VOLUME@SNAPSHOT --store {store}')


@pytest.mark.parametrize('damage', ['gone', 'no database'])
@pytest.mark.parametrize('command', ['verify', 'export'])
def test_a_lost_catalog_leads_to_rebuild(run, store, command, damage):
    (store / 'catalog.sqlite').unlink()
    if damage != 'gone':
        (store / 'catalog.sqlite').write_bytes(b'x' * 8192)
    code, _, error = run(command, 'home@monday', '--store', store)
    assert code == 13 and len(error) == 1
    assert error[0].endswith(f'snapfs rebuild {store} {store / "catalog.new"} --install.')


@pytest.mark.parametrize('name', ['packs', 'packs/meta', 'packs/data', 'batches'])
def test_it_says_what_else_is_missing_and_what_helps(run, store, tmp_path, name):
    shutil.rmtree(store / name)
    code, _, (line,) = run('rebuild', store, tmp_path / 'new')
    assert code == 3 and f'the catalog is whole, and a rebuild would only forget things; but {store}/' in line
    assert f'{store / name} is missing' in line
    assert f'If it is really lost: mkdir{" -p" * (name == "packs")} {store}' in line


def test_and_which_packs_are(run, store, tmp_path):
    packs = sorted(one for one in (store / 'packs').rglob('*') if one.is_file())
    packs[0].unlink()
    with packs[1].open('r+b') as handle:
        handle.truncate(100)
    code, _, (line,) = run('rebuild', store, tmp_path / 'new')
    assert code == 3
    assert f'but 1 pack is missing ({packs[0].name}), 1 pack is too short ({packs[1].name})' in line
    assert f'snapfs damage {store} names the files' in line and '--store' in line


# --- a store that is the top of a filesystem -------------------------------------------------------------
def test_lost_and_found_is_no_finding_and_hinders_nobody(run, tmp_path):
    top = tmp_path / 'top'
    (top / 'lost+found').mkdir(mode=0o700, parents=True)
    assert run('init', top)[0] == 0
    code, out, _ = run('fsck', top)
    assert code == 0 and 'lost+found' not in '\n'.join(out)
    (top / 'other').mkdir()
    assert 'other' in '\n'.join(run('fsck', top)[1])
    (top / 'lost+found').rmdir()
    (top / 'lost+found').write_bytes(b'')
    assert 'lost+found' in '\n'.join(run('fsck', top)[1]), 'a file of that name is none'


def test_a_rebuild_says_that_volumes_are_older_where_the_journal_is_not_replayed(run, store, tmp_path):
    assert run('snapshot', 'create', 'home@new', '--store', store)[0] == 0  # a backup is made at the end
    (store / 'catalog.sqlite').unlink()
    shutil.rmtree(store / 'journal')
    code, out, error = run('rebuild', store, tmp_path / 'new')
    assert code == 0, error
    assert any('Volumes are as they were then' in line for line in out), out
