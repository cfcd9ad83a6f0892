"""`snapfs recover` and `snapfs scrub` on a real store that is not mounted: exit codes, and the last line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from snapfs.cli import output
from snapfs.cli.main import main
from tests.mutants.setting import small
from tools.breakit import break_it


@pytest.fixture
def store(cut_store: Path) -> Path:
    return cut_store


@pytest.fixture
def run(store: Path, capsysbinary: Any) -> Any:
    """Run a command on the store; return its exit code and the lines that it printed."""

    def command(*words: object) -> tuple[int, list[str]]:
        with small():
            code = main([*map(str, words), '--store', str(store)])
        out, error = capsysbinary.readouterr()
        assert b'Traceback' not in error
        return code, out.decode().splitlines() or error.decode().splitlines()

    return command


def test_nothing_lost_is_0_and_what_was_not_hashed_is_said(run):
    code, lines = run('recover', 'home@monday')
    assert code == 0
    assert lines[-1].startswith('Contents of 3 chunks were not hashed; of what is not told above the records')
    assert ' That does: snapfs recover --verify home@monday --store /' in lines[-1]
    code, lines = run('recover', 'home@monday', '--known-only')
    assert code == 0 and 'it was not looked whether their records are there' in lines[-1]
    code, lines = run('recover', 'home@monday', '--verify')
    assert code == 0 and lines == ['home@monday has lost nothing that is known.']


def test_what_is_given_up_is_4_and_what_all_came_back_is_0(run, store, tmp_path):
    break_it(store, 'data-pack-gone', seed=1)
    code, lines = run('recover', 'home@monday', '--dry-run')
    assert code == 4
    donors = tmp_path / 'donors'
    donors.mkdir()
    code, lines = run('recover', 'home@monday', '--donors', donors)
    assert code == 4
    assert any('what is lost for good is in its DAMAGE.json' in line for line in lines)
    assert not any(
        line.startswith('Contents of ') for line in lines
    )  # where something is lost, all is hashed


def test_a_record_that_somebody_still_has_is_0(run, store):
    break_it(store, 'record-doubled', seed=1)
    break_it(store, 'payload-flip', seed=2)
    assert run('recover', 'home@monday', '--verify', '--dry-run')[0] == 4, 'it is lost now'
    code, lines = run('recover', 'home@monday', '--verify')
    assert code == 0 and 'whole again' in lines[-1]


def test_a_tree_that_a_backup_knows_and_nobody_has_is_4():
    from snapfs.cli.recover import _is_lost

    found = {'lost': [], 'dry_run': False, 'source': {'refused': 'its top node is lost as well'}}
    assert _is_lost(found)
    assert not _is_lost({**found, 'source': {'refused': None}})


def test_two_depths_at_once_are_one_clear_line(run):
    code, lines = run('recover', 'home@monday', '--verify', '--known-only')
    assert code == 2 and len(lines) == 1 and 'exclude each other' in lines[0]


def test_nodes_that_were_put_back_are_told_of_and_nothing_is_lost(run, store):
    break_it(store, 'meta-pack-gone', seed=1)
    code, lines = run('recover', 'home@monday', '--dry-run')
    assert code == 4 and lines[0].startswith('1 packs of nodes would be put back from their second copies')
    code, lines = run('recover', 'home@monday', '--verify')
    assert code == 0 and lines[0].startswith('1 packs of nodes were put back')
    assert 'whole again' in lines[-1]
    break_it(store, 'meta-pack-gone', seed=1)
    code, lines = run('scrub')
    assert code == 0 and any(line.startswith('1 packs of nodes were put back') for line in lines)
    assert any('The disk has lost something' in line for line in lines)


def test_ranges_that_meet_are_one_row_where_the_same_donor_has_them():
    ranges = [
        ('/b', 0, 10),
        ('/a', 20, 30),
        ('/a', None, None),
        ('/b', 10, 20),
        ('/a', 0, 20),
        ('/b', 21, 22),
    ]
    assert list(output.joined(ranges)) == [
        ('/b', 0, 20), ('/b', 21, 22), ('/a', 0, 30), ('/a', None, None),
    ]  # fmt: skip


def test_the_chunks_of_one_stretch_of_a_file_are_one_row(capsysbinary):
    from snapfs.cli.recover import _render

    def lost(start: int, donor: str) -> Any:
        one = {'path': '/big', 'start': start, 'end': start + 10, 'attribute': None}
        return {'ranges': [one], 'offered': [], 'donor': donor, 'unknown': None}

    found = {
        'lost': [lost(0, 'zeros'), lost(10, 'zeros'), lost(20, '/d at 0'), lost(30, 'zeros')],
        'names_lost': [], 'also_named': [],
        'dry_run': False, 'source': None, 'put_back': {}, 'sibling': 'home@new', 'snapshot': 'home@old',
        'unhashed': 0,
    }  # fmt: skip
    _render(found)
    lines = [line.split() for line in capsysbinary.readouterr().out.decode().splitlines()[1:4]]
    assert lines == [
        ['/big', '0', 'to', '20', 'zeros'],
        ['/big', '30', 'to', '40', 'zeros'],
        ['/big', '20', 'to', '30', '/d', 'at', '0'],
    ]


def test_the_map_has_one_row_for_a_stretch_of_a_file_in_a_snapshot(capsysbinary, tmp_path):
    from snapfs.cli.damage import _render
    from tools.checker.findings import Finding

    def lost(root: str, start: int) -> Finding:
        return Finding('record-header', 'a record', 'is damaged', ((root, '/big', start, start + 10),))

    _render([lost('home@a', 0), lost('home@b', 0), lost('home@a', 10), lost('home@b', 30)], tmp_path)
    lines = capsysbinary.readouterr().out.decode().splitlines()
    rows = [line.split() for line in lines if '/big' in line]
    assert rows == [
        ['home@a', '/big', '0', 'to', '20'],
        ['home@b', '/big', '0', 'to', '10'],
        ['home@b', '/big', '30', 'to', '40'],
    ]
