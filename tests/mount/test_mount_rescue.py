"""What the README says about damage, run as written, on a real mount."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from snapfs.format.keys import DIRENT, EXTENT, INODE, suffix_number
from snapfs.format.nodes import Leaf, decode_node
from snapfs.format.records import decode_header, decode_payload
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


def spoil_leaves(store: Path) -> set[int]:
    """Turn a byte round in a leaf of a snapshot that begins in the middle of a file, and in one that begins
    with a file; neither knows names. Return the kinds of key that they begin with. Second copies go."""
    with sqlite3.connect(f'file:{store / "catalog.sqlite"}?mode=ro', uri=True) as db:
        text = (
            'SELECT c.id, p.name, c.offset, c.stored FROM chunk c JOIN pack p USING (pack) WHERE c.kind = 2'
        )
        places = {id: place for id, *place in db.execute(text)}
        todo = [root for (root,) in db.execute('SELECT root FROM snapshot')]
    spoilt: set[int] = set()
    while todo:
        name, offset, stored = places[todo.pop()]
        pack = store / 'packs' / 'meta' / name.hex()[:2] / name.hex()
        data = bytearray(pack.read_bytes())
        plain = decode_payload(decode_header(data, offset), data[offset + 52 : offset + 52 + stored])
        node = decode_node(plain)
        if not isinstance(node, Leaf):
            todo += node.children
            continue
        kind = node.keys[0][8]
        wanted = kind == INODE or (kind == EXTENT and suffix_number(node.keys[0]) > 0)
        nameless = not any(key[8] == DIRENT for key in node.keys)
        if kind not in spoilt and nameless and wanted:
            spoilt.add(kind)
            data[offset + 52 + stored // 2] ^= 1
            pack.write_bytes(data)
    shutil.rmtree(store / 'mirror')
    return spoilt


@pytest.mark.slow
def test_each_file_of_a_sibling_that_is_not_as_it_was_is_named(mounted: Mount) -> None:
    """Zeros that nobody tells of are the worst that a recovery can do."""
    home, rng = mounted.path / 'home', random.Random(5)
    (home / 'big').write_bytes(rng.randbytes(24 << 20))
    (home / 'hard link').hardlink_to(home / 'big')
    for number in range(400):
        (home / f'small {number}').write_bytes(rng.randbytes(100))
    (home / '.snapshots' / 'monday').mkdir()
    wanted = {path.name: path.read_bytes() for path in home.iterdir()}
    mounted.stop()
    assert spoil_leaves(mounted.store) == {INODE, EXTENT}
    mounted.expected += ['damaged: ', 'another id', 'was recovered as', 'found no donor']
    mounted.start()
    told = run_program(SNAPFS, 'recover', 'home@monday', '--store', mounted.store, fails=True)
    sibling = home / '.snapshots' / 'monday-recovered'
    report = json.loads((sibling / 'DAMAGE.json').read_text())
    ranges = [one for lost in report['lost'] for one in lost['ranges']]
    named = {one['path'] for one in ranges} | set(report['names_lost'])
    named |= {one['other'] for one in report['also_named']}
    there = {path.name: path.read_bytes() for path in sibling.iterdir() if path.is_file()}
    wrong = {name for name, data in wanted.items() if there.get(name) != data}
    assert {'big', 'hard link'} <= wrong and len(wrong) > 2
    assert named == {f'/{name}' for name in wrong}
    assert all(path in told for path in named)
    (hole,) = ranges
    zeros = bytes(hole['end'] - hole['start'])
    assert there['big'] == wanted['big'][: hole['start']] + zeros + wanted['big'][hole['end'] :]
    mounted.stop()
    fsck = run_program(SNAPFS, 'fsck', mounted.store, fails=True)
    assert 'monday-recovered' not in fsck, 'nothing is wrong with the sibling'
