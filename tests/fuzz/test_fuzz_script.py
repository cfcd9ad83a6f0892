"""The script of `snapfs verify --script` and hostile bytes: one line where something is due, and an end."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from random import Random
from typing import Any

import pytest

from snapfs import limits
from snapfs.cli.main import main
from tests.images.image import make
from tests.mutants.setting import small
from tests.support.lives import backup_at, on

SCRIPT = Path(__file__).parents[2] / 'tools' / 'verify_export.py'
LINE_BYTES_MAX = 1000
PIECES = (
    b'[', b'{"root":5}\n', b'\xff', b'null\n', b'[]\n', b'9' * 5000, b'[' * 3000, b'{"xattrs":5}\n',
    b'{"path":"/","chunks":[[0,1,"zz"]]}\n',
)  # fmt: skip


@pytest.fixture(scope='module')
def made(tmp_path_factory: Any) -> Path:
    path: Path = tmp_path_factory.mktemp('script')
    make(path / 'store')
    on(path / 'store', backup_at(10**18))
    with small():
        words = ('export', 'home@tuesday', '-o', str(path / 'export'), '--store', str(path / 'store'))
        assert main([*words]) == 0
    return path


@pytest.fixture
def copied(made: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made, tmp_path / 'copy')


def bounded() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (limits.GIB, limits.GIB))


def verify(path: Path, what: object) -> int:
    done = subprocess.run(
        [sys.executable, SCRIPT, path / 'export', path / 'store'],
        capture_output=True,
        timeout=20,
        check=False,
        preexec_fn=bounded,
    )
    said = done.stderr
    assert done.returncode in (0, 2, 4), (what, said)
    assert b'Traceback' not in said and said.count(b'\n') <= 1, (what, said)
    assert len(said) <= LINE_BYTES_MAX + 2 * len(os.fsencode(path)), (what, len(said))
    return done.returncode


def mutate(data: bytes, random: Random) -> bytes:
    found = bytearray(data)
    for _ in range(random.choice((1, 1, 3, 30))):
        at = random.randrange(len(found))
        way = random.randrange(3)
        if way == 0:
            found[at] ^= 1 << random.randrange(8)
        elif way == 1:
            del found[at : at + random.randrange(40)]
        else:
            found[at:at] = random.choice(PIECES)
    return bytes(found)


@pytest.mark.parametrize('seed', range(24))
def test_hostile_bytes_get_one_line(copied: Path, seed: int) -> None:
    random = Random(seed)
    packs = sorted(path for path in (copied / 'store/packs/data').rglob('*') if path.is_file())
    path = random.choice((copied / 'export', copied / 'store/catalog.sqlite', random.choice(packs)))
    path.write_bytes(mutate(path.read_bytes(), random))
    verify(copied, f'seed {seed}')


def test_a_long_line_of_an_export_is_not_told_back(copied: Path) -> None:
    """The error of a wrong byte has all of the line in it."""
    with (copied / 'export').open('ab') as file:
        file.write(b'[' * 100_000 + b'\xff\n')
    assert verify(copied, 'a long line') == 4


def test_a_pipe_in_the_place_of_a_pack_is_not_waited_for(copied: Path) -> None:
    for path in sorted((copied / 'store/packs/data').rglob('*')):
        if path.is_file():
            path.unlink()
            os.mkfifo(path)
    assert verify(copied, 'pipes') == 4


def test_that_it_has_read_the_catalog_itself_is_no_change(copied: Path) -> None:
    """The time of the last access was one of what it compared."""
    os.utime(copied / 'store/catalog.sqlite', (1, 2))
    assert verify(copied, 'access') == 0
