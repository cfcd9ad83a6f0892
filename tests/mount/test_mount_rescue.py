"""What the README says about damage, run as written, on a real mount."""

from __future__ import annotations

import os
import random
import re
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.mounted import SNAPFS, Mount
from tests.support.mounted import run as run_program

README = Path(__file__).parents[2] / 'README.md'
HEADING = '## When something is damaged'


def section() -> str:
    text = README.read_text()
    start = text.index(HEADING)
    return text[start : text.index('\n## ', start + 10)]


def block() -> str:
    match = re.search(r'```sh\n(.*?)```', section(), re.DOTALL)
    assert match is not None
    return match[1]


def run(script: str, store: Path, donors: Path) -> list[tuple[int, str]]:
    """Run each line of a script of the README with our paths; return exit code and output of each."""
    found = []
    environment = {**os.environ, 'PATH': f'{Path(sys.executable).parent}:{os.environ["PATH"]}'}
    for line in script.splitlines():
        line = line.replace('/srv/store', str(store)).replace('/backup/home', str(donors))
        ran = subprocess.run(
            ['sh', '-c', line], capture_output=True, text=True, env=environment, cwd='/', timeout=100
        )
        assert 'Traceback' not in ran.stderr, ran.stderr
        found.append((ran.returncode, ran.stdout + ran.stderr))
    return found


def spoil(store: Path) -> None:
    """Turn a byte round in the middle of the payload of the longest record."""
    with sqlite3.connect(f'file:{store / "catalog.sqlite"}?mode=ro', uri=True) as db:
        text = 'SELECT p.name, c.offset, c.stored FROM chunk c JOIN pack p USING (pack) WHERE c.kind = 1'
        name, offset, stored = db.execute(f'{text} ORDER BY c.stored DESC, c.id LIMIT 1').fetchone()
    pack = store / 'packs' / 'data' / name.hex()[:2] / name.hex()
    data = bytearray(pack.read_bytes())
    data[offset + 52 + stored // 2] ^= 1
    pack.write_bytes(data)


@pytest.mark.slow
def test_the_commands_of_the_readme_find_the_damage_and_bring_everything_back(
    mounted: Mount, tmp_path: Path
) -> None:
    home, donors = mounted.path / 'home', tmp_path / 'donors'
    donors.mkdir()
    for number in range(20):
        data = random.Random(number).randbytes(30_000)
        (home / f'file {number}').write_bytes(data)
        (donors / f'copy {number}').write_bytes(data)
    (home / '.snapshots' / 'monday').mkdir()
    mounted.restart()
    spoil(mounted.store)
    mounted.expected += ['scrub', 'damaged: ', 'another id', 'rebuilt']
    ran = run(block(), mounted.store, donors)
    codes = [code for code, _ in ran]
    assert codes == [4, 0, 4, 0, 4, 0], [text for _, text in ran]
    full, _quick, _scrub, listed, mapped, recovered = (text for _, text in ran)
    assert 'home@monday: /file ' in full and 'record-payload' in full
    assert 'DAMAGED' in listed
    assert 'home@monday' in mapped and '/file ' in mapped
    assert 'whole again' in recovered
    for number in range(20):
        wanted = (donors / f'copy {number}').read_bytes()
        assert (home / '.snapshots' / 'monday' / f'file {number}').read_bytes() == wanted
        assert (home / f'file {number}').read_bytes() == wanted
    assert run('snapfs damage /srv/store', mounted.store, donors)[0][0] == 0


@pytest.mark.slow
def test_a_lost_catalog_comes_back_by_the_command_of_the_readme(mounted: Mount, tmp_path: Path) -> None:
    home = mounted.path / 'home'
    (home / 'a file').write_text('its content')
    (home / '.snapshots' / 'monday').mkdir()
    mounted.stop()
    for path in mounted.store.glob('catalog.sqlite*'):
        path.unlink()
    command = re.search(r'`(snapfs rebuild [^`]*)`', section())
    assert command is not None
    ((code, out),) = run(command[1], mounted.store, tmp_path)
    assert code == 0, out
    assert run('snapfs fsck /srv/store', mounted.store, tmp_path)[0][0] == 0
    mounted.start()
    assert (home / 'a file').read_text() == 'its content'
    assert (home / '.snapshots' / 'monday' / 'a file').read_text() == 'its content'


def test_donors_below_the_own_mount_are_refused_and_nobody_hangs(mounted: Mount) -> None:
    """Whoever looks at the own mount on the daemon's event loop waits for himself."""
    home = mounted.path / 'home'
    (home / 'file').write_text('content')
    (home / '.snapshots/monday').mkdir()
    words = ['recover', 'home@monday', '--store', mounted.store, '--dry-run', '--donors']
    for donors in (mounted.path, home, home / '.snapshots'):
        told = run_program(SNAPFS, *words, donors, fails=True)
        assert 'lies in a mount of this store' in told
    assert 'cannot be searched' in run_program(SNAPFS, *words, home / 'nowhere', fails=True)
    assert 'is not a directory' in run_program(SNAPFS, *words, home / 'file', fails=True)
    assert 'has lost nothing' in run_program(SNAPFS, *words, mounted.store)
