"""An export, and the script that rechecks it without snapfs."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from snapfs.errors import Corrupt, Invalid
from snapfs.rescue.export import merkle_root
from snapfs.service.collecting import Collecting
from snapfs.service.commands import Call
from snapfs.service.rescue_commands import export
from snapfs.service.sockets import this_process
from tests.images.image import make
from tests.unit.service.test_recovering import on
from tools.breakit import break_it

SCRIPT = Path(__file__).parents[3] / 'tools' / 'verify_export.py'


@pytest.fixture(scope='module')
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp('whole') / 'store'
    make(path)

    async def settle(collecting: Collecting) -> None:
        await collecting.engine.commit()

    on(path, settle)
    return path


@pytest.fixture
def store(whole: Path, tmp_path: Path) -> Path:
    path = tmp_path / 'store'
    shutil.copytree(whole, path)
    return path


def exported(store: Path, out: Path, snapshot: str = 'home@monday') -> Any:
    async def work(collecting: Collecting) -> Any:
        return await export(Call(collecting.engine, this_process(), None, collecting), snapshot, str(out))

    return on(store, work)


def checked(out: Path, store: Path) -> tuple[int, str]:
    """Run the script where no snapfs can be imported."""
    ran = subprocess.run(
        [sys.executable, '-I', str(SCRIPT), str(out), str(store)], capture_output=True, text=True, cwd='/'
    )
    assert not ran.stderr, ran.stderr
    return ran.returncode, ran.stdout


def test_the_script_is_short_and_needs_no_snapfs():
    text = SCRIPT.read_text()
    assert len(text.splitlines()) <= 62
    assert 'import snapfs' not in text and 'from snapfs' not in text


def test_what_was_exported_is_there(store, tmp_path):
    told = exported(store, tmp_path / 'list')
    lines = (tmp_path / 'list').read_text().splitlines()
    assert lines[-1] == f'root {told["root"]}'
    entries = [json.loads(line) for line in lines[1:-1]]
    assert len(entries) == told['entries'] == 32
    paths = [one['path'] for one in entries]
    assert paths == sorted(paths) and '/directory 0/below/one' in paths and '/hard too' in paths
    assert next(one for one in entries if one['path'] == '/symlink')['target'] == 'big'
    code, out = checked(tmp_path / 'list', store)
    assert (code, out) == (0, f'root {told["root"]} right\n')


def test_the_same_snapshot_has_the_same_root(store, tmp_path):
    one = exported(store, tmp_path / 'one')
    assert exported(store, tmp_path / 'two')['root'] == one['root']
    assert exported(store, tmp_path / 'three', 'home@tuesday')['root'] != one['root']


def test_a_flipped_bit_is_named_by_its_file(store, tmp_path):
    exported(store, tmp_path / 'list')
    break_it(store, 'payload-flip', seed=1)
    code, out = checked(tmp_path / 'list', store)
    assert code == 1
    assert 'WRONG /directory 0/below/one from byte 0' in out


@pytest.mark.parametrize('change', [('"size":900', '"size":901'), ('"mode":33188', '"mode":33261')])
def test_a_list_that_was_altered_is_told(store, tmp_path, change):
    exported(store, tmp_path / 'list')
    text = (tmp_path / 'list').read_text()
    assert change[0] in text
    (tmp_path / 'list').write_text(text.replace(*change, 1))
    code, out = checked(tmp_path / 'list', store)
    assert code == 1 and 'the list itself' in out


def test_a_tree_with_a_lost_node_is_not_exported(store, tmp_path):
    break_it(store, 'leaf-flip', seed=1)
    with pytest.raises(Corrupt):
        exported(store, tmp_path / 'list')


def test_nothing_is_written_over(store, tmp_path):
    (tmp_path / 'list').write_text('mine')
    with pytest.raises(Invalid, match='there already'):
        exported(store, tmp_path / 'list')
    with pytest.raises(Invalid, match='directory that is there'):
        exported(store, tmp_path / 'nowhere' / 'list')
    assert (tmp_path / 'list').read_text() == 'mine'


@pytest.mark.parametrize('count', [1, 2, 3, 5, 8])
def test_every_leaf_counts_in_its_place(count):
    leaves = [bytes([n]) * 32 for n in range(count)]
    root = merkle_root(leaves)
    for at in range(count):
        other = [*leaves]
        other[at] = b'x' * 32
        assert merkle_root(other) != root
    assert merkle_root([*leaves, leaves[-1]]) != root
