"""Exports: what they say of a snapshot, what their root depends on, and who notices what is wrong."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from snapfs import limits
from snapfs.cli.main import main
from snapfs.errors import Corrupt, Held, Invalid
from snapfs.format import keys
from snapfs.format.ids import data_id, node_id
from snapfs.format.nodes import decode_node, encode_leaf
from snapfs.rescue.export import Snapshot, _Walk, export_lines, find_snapshot
from snapfs.rescue.merkle import Merkle
from snapfs.rescue.reader import Reader
from snapfs.rescue.recheck import Kept
from snapfs.store.durable import Disk
from snapfs.store.lock import as_verifier, without_verifiers
from snapfs.tree import Root
from snapfs.volume.engine import Engine
from tests.sim.world import SimWorld
from tests.support.collecting import DIRECTORY, FILE, noise, small_packs
from tests.support.stores import fresh_engine

SECOND_NS = 10**9
BIG = 300_000  # many chunks
NAMES = [b'big', b'empty', b'small', b'stra\xdfe', b'z z']


async def fill(engine: Engine, names: list[bytes], volume: str = 'home') -> None:
    """Make the same tree, whatever the order of `names` is."""
    await engine.volume_create(volume, 0, 0)
    head = engine.head(volume)
    assert head is not None
    root = await head.inode(limits.INO_ROOT)
    below = await head.make(root, b'dir', DIRECTORY, 5, 6)
    made = [below]
    for name in names:
        inode = await head.make(below, name, FILE, 7, 8)
        size = {b'big': BIG, b'empty': 0}.get(name, 500)
        if size:
            await head.write(inode, 0, noise(NAMES.index(name), size))
        if name == b'small':
            await head.link(inode, root, b'another name')
            await head.xattr_set(inode, b'user.short', b'\0short')
            await head.xattr_set(inode, b'user.long', noise(77, 5000))
        if name == b'z z':
            await head.set_attributes(inode, size=1 << 40)
        made.append(inode)
    made.append(await head.make(root, b'way', stat.S_IFLNK | 0o777, 0, 0, target=b'dir/\xff'))
    made.append(await head.make(root, b'null', stat.S_IFCHR | 0o666, 0, 0, rdev=0x103))
    for number, inode in enumerate([root, below, *made]):
        await head.set_attributes(inode, mtime_ns=SECOND_NS * (len(made) if number < 2 else 7))


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Path]:
    """A closed store with the snapshot home@monday."""
    engine = await fresh_engine(tmp_path / 'store', SimWorld(1))
    small_packs(engine)
    await fill(engine, NAMES)
    await engine.snapshot_create('home', 'monday', 'ann')
    await engine.close()
    yield tmp_path / 'store'


def opened(store: Path) -> Reader:
    return Reader(store, b'')


def lines_of(store: Path, name: str = 'monday', volume: str = 'home') -> list[bytes]:
    reader = opened(store)
    snapshot = find_snapshot(reader, volume, name)
    assert snapshot is not None
    found = [line.text for line in export_lines(reader, snapshot)]
    reader.close()
    return found


def root_of(lines: list[bytes]) -> bytes:
    merkle = Merkle()
    for line in lines:
        merkle.add(line)
    return merkle.root()


@pytest.fixture
def cli(capsysbinary: Any, monkeypatch: pytest.MonkeyPatch, store: Path) -> Callable[..., tuple[int, str]]:
    monkeypatch.setenv('SNAPFS_STORE', str(store))

    def run(*words: object) -> tuple[int, str]:
        code = main([str(word) for word in words])
        out, err = capsysbinary.readouterr()
        return code, (out + err).decode()

    return run


def spoil(store: Path, id: bytes, by: int = 100) -> None:
    """Turn a bit of a chunk round on the disk."""
    reader = opened(store)
    (place,) = reader.places_of(id)
    name = reader.name_of(place.pack).removeprefix('pack ')
    reader.close()
    path = store / 'packs' / {1: 'data', 2: 'meta'}[place.kind] / name[:2] / name
    data = bytearray(path.read_bytes())
    data[place.offset + 52 + by] ^= 4
    path.write_bytes(data)


# --- the hash --------------------------------------------------------------------------------------------
def rfc_6962(lines: list[bytes]) -> bytes:
    if len(lines) < 2:
        return data_id(b'\0' + lines[0]) if lines else data_id(b'')
    left = 1
    while left * 2 < len(lines):
        left *= 2
    return data_id(b'\1' + rfc_6962(lines[:left]) + rfc_6962(lines[left:]))


def test_the_root_is_that_of_the_rfc():
    merkle, lines = Merkle(), []
    for number in range(70):
        assert merkle.root() == rfc_6962(lines), number
        lines.append(b'%d' % number)
        merkle.add(lines[-1])


# --- what an export says ---------------------------------------------------------------------------------
async def test_it_says_what_is_there(store):
    found = [json.loads(line) for line in lines_of(store)]
    assert [one['path'] for one in found] == [
        '/', '/another name', '/dir', '/dir/big', '/dir/empty', '/dir/small', '/dir/stra\udcdfe', '/dir/z z',
        '/null', '/way',
    ]  # fmt: skip
    by_path = {one['path']: one for one in found}
    small = noise(NAMES.index(b'small'), 500)
    assert by_path['/another name'] == {
        'path': '/another name', 'mode': FILE, 'uid': 7, 'gid': 8, 'mtime_ns': 7 * SECOND_NS, 'size': 500,
        'xattrs': [['user.long', 5000, data_id(noise(77, 5000)).hex()], ['user.short', b'\0short'.hex()]],
        'chunks': [[0, 500, data_id(small).hex()]],
    }  # fmt: skip
    assert by_path['/dir/small'] == {'path': '/dir/small', 'link': '/another name'}
    assert by_path['/way']['target'] == 'dir/\udcff'
    assert by_path['/null']['rdev'] == 0x103 and by_path['/null']['mode'] == stat.S_IFCHR | 0o666
    assert 'chunks' not in by_path['/dir/empty']
    assert by_path['/dir/z z']['size'] == 1 << 40 and len(by_path['/dir/z z']['chunks']) == 1
    chunks = by_path['/dir/big']['chunks']
    assert len(chunks) > 3
    at, data = 0, noise(NAMES.index(b'big'), BIG)
    for offset, length, id in chunks:
        assert offset == at and data_id(data[at : at + length]).hex() == id
        at += length
    assert at == BIG


async def test_a_file_of_many_chunks_takes_several_lines(store, monkeypatch):
    (whole,) = (one for one in map(json.loads, lines_of(store)) if one.get('path') == '/dir/big')
    monkeypatch.setattr(limits, 'EXPORT_LINE_CHUNKS', 2)
    found = [json.loads(line) for line in lines_of(store)]
    first = next(at for at, one in enumerate(found) if one.get('path') == '/dir/big')
    chunks = list(found[first]['chunks'])
    for one in found[first + 1 :]:
        if 'path' in one:
            break
        assert list(one) == ['more'] and len(one['more']) <= 2
        chunks += one['more']
    assert chunks == whole['chunks']


async def test_the_root_depends_on_what_a_user_sees_alone(store, tmp_path):
    """Another store, other inode numbers, another name, written in another order: the same root."""
    engine = await fresh_engine(tmp_path / 'other', SimWorld(2))
    await engine.volume_create('first', 0, 0)
    await fill(engine, NAMES[::-1], 'elsewhere')
    await engine.snapshot_create('elsewhere', 'later', 'bob')
    await engine.close()
    assert lines_of(tmp_path / 'other', 'later', 'elsewhere') == lines_of(store)


@pytest.mark.parametrize('change', ['mode', 'mtime', 'owner', 'byte', 'name', 'attribute', 'hole'])
async def test_every_change_is_another_root(store, change):
    before = root_of(lines_of(store))
    engine = await Engine.open(store, Disk(), SimWorld(3))
    head = engine.head('home')
    root = await head.inode(limits.INO_ROOT)
    below = await head.lookup(root, b'dir')
    small = await head.lookup(below, b'small')
    if change == 'mode':
        await head.set_attributes(small, mode=0o600)
    elif change == 'mtime':
        await head.set_attributes(small, mtime_ns=1)
    elif change == 'owner':
        await head.set_attributes(small, uid=9)
    elif change == 'byte':
        await head.write(small, 3, b'!')
        await head.set_attributes(small, mtime_ns=7 * SECOND_NS)
    elif change == 'name':
        await head.rename(root, b'way', root, b'path')
    elif change == 'attribute':
        await head.xattr_set(small, b'user.short', b'\1short')
    else:
        await head.set_attributes(await head.lookup(below, b'empty'), size=4096)
    await engine.snapshot_create('home', 'after', 'ann')
    await engine.close()
    assert root_of(lines_of(store, 'after')) != before
    assert root_of(lines_of(store)) == before


# --- the commands ----------------------------------------------------------------------------------------
async def test_export_and_verify(store, tmp_path, cli):
    file = tmp_path / 'kept'
    code, out = cli('export', 'home@monday', '-o', file)
    root = root_of(lines_of(store)).hex()
    assert (code, out) == (0, f'root {root}\n')
    assert cli('export', 'home@monday')[1].encode() == file.read_bytes()
    assert cli('export', 'home@monday', '-o', file)[0] != 0, 'a file that is there stays as it is'
    assert cli('verify', 'home@monday')[0] == 0
    assert cli('verify', 'home@monday', '--root', root)[0] == 0
    assert cli('verify', file, '--root', root)[0] == 0
    code, out = cli('verify', 'home@monday', '--root', '00' * 32, '--json')
    found = json.loads(out)
    assert code == 4 and not found['right'] and found['damaged'] == 0 and found['root'] == root
    assert 'WRONG' in cli('verify', file, '--root', '00' * 32)[1]


async def test_flipped_bits_are_named_by_file(store, tmp_path, cli):
    file = tmp_path / 'kept'
    cli('export', 'home@monday', '-o', file)
    spoil(store, data_id(noise(NAMES.index(b'small'), 500)))
    for what in ('home@monday', file):
        code, out = cli('verify', what)
        assert code == 4 and '/another name' in out and 'DAMAGED: 1 chunks' in out
    spoil(store, data_id(noise(77, 5000)))
    code, out = cli('verify', 'home@monday', '--json')
    assert code == 4 and [one['path'] for one in json.loads(out)['wrong']] == ['/another name'] * 2


async def test_a_lost_node_is_no_export(store, tmp_path, cli):
    reader = opened(store)
    snapshot = find_snapshot(reader, 'home', 'monday')
    reader.close()
    spoil(store, snapshot.root.id)
    shutil.rmtree(store / 'mirror', ignore_errors=True)
    file = tmp_path / 'kept'
    for words, wanted in (
        (('export', 'home@monday', '-o', file), Corrupt.exit_code),
        (('verify', 'home@monday'), 4),
    ):
        code, out = cli(*words)
        assert code == wanted and 'snapfs recover home@monday' in out
        assert len(out.splitlines()) == 1
    assert not file.exists()


@pytest.mark.parametrize(
    'words',
    [
        ['verify'],
        ['verify', 'home@tuesday'],
        ['verify', 'nowhere'],
        ['verify', 'home@monday', '--root', 'abc'],
        ['verify', 'home@monday', '--script'],
        ['export', 'home'],
        ['export', 'home@tuesday'],
    ],
)
async def test_a_mistake_is_one_line(cli, words):
    code, out = cli(*words)
    assert code not in (0, 1, 4) and len(out.splitlines()) == 1, out


async def test_a_file_that_is_not_a_whole_export_is_told(store, tmp_path, cli):
    good = tmp_path / 'good'
    cli('export', 'home@monday', '-o', good)
    text = good.read_bytes()
    lines = text.splitlines(keepends=True)
    broken = {
        'empty': b'',
        'cut off': b''.join(lines[:-1]),
        'cut off in a line': text[:-10],
        'goes on': text + lines[1],
        'no JSON': b''.join([*lines[:2], b'{\n', *lines[2:]]),
        'deep': b''.join([*lines[:2], b'[' * 100_000 + b'\n', *lines[2:]]),
        'a line too few': b''.join([*lines[:2], *lines[3:]]),
        'an id too short': text.replace(b'"]]', b'"[2:]]', 1),
        'no export': b'{}\n',
        'another version': text.replace(b'"snapfs-export":1', b'"snapfs-export":2'),
    }
    for what, data in broken.items():
        path = tmp_path / 'bad'
        path.write_bytes(data)
        code, out = cli('verify', path)
        none = what in ('empty', 'no export', 'another version')
        assert code == (Invalid.exit_code if none else 4) and len(out.splitlines()) == 1, what
    (tmp_path / 'bad').write_bytes(text.replace(b'"uid":7', b'"uid":0', 1))
    assert cli('verify', tmp_path / 'bad')[0] == 4, 'a line was changed'
    assert Kept(good).title == 'home@monday'


async def test_no_pack_goes_while_somebody_reads(store):
    with as_verifier(Disk(), store), pytest.raises(Held), without_verifiers(Disk(), store):
        pass
    with without_verifiers(Disk(), store):
        pass


async def test_what_is_only_in_quarantine_will_not_do_for_a_snapshot_that_stands(store, tmp_path, cli):
    import sqlite3

    file = tmp_path / 'kept'
    cli('export', 'home@monday', '-o', file)
    id = data_id(noise(NAMES.index(b'small'), 500))
    with sqlite3.connect(store / 'catalog.sqlite') as db:
        db.execute('INSERT INTO quarantine SELECT *, 1 FROM chunk WHERE id = ?', (id,))
        db.execute('DELETE FROM chunk WHERE id = ?', (id,))
    db.close()
    code, out = cli('verify', 'home@monday')
    assert code == 4 and 'quarantine' in out
    assert cli('verify', file)[0] == 0, 'an export may be one of a snapshot that was deleted'


def test_forged_circles_come_to_an_end():
    """A directory that is its own parent, and one with two names."""

    def inode(mode: int, parent: int) -> tuple[Any, ...]:
        return (mode, 0, 0, 0, 0, 0, 2, 0, parent, 0, 0, 0, 0, 0, b'')

    kind = stat.S_IFDIR >> 12
    for entries in ([(b'a', 1, kind)], [(b'a', 3, kind), (b'b', 3, kind)], [(b'a', 4, kind)]):
        items = {
            keys.inode_key(1): inode(DIRECTORY, 1),
            keys.dirent_key(1, 9): tuple(entries),
            keys.inode_key(3): inode(DIRECTORY, 1),
            keys.inode_key(4): inode(DIRECTORY, 3),
        }
        plain = encode_leaf(sorted(items), [items[key] for key in sorted(items)])
        walk = _Walk(None, Root(node_id(plain), len(items), 0))  # type: ignore[arg-type]
        walk._nodes[node_id(plain)] = decode_node(plain)
        with pytest.raises(Corrupt, match='somewhere else'):
            list(walk.lines())
    assert list(export_lines(None, Snapshot('a@b', Root(None, 0, 0), 1, 1))) == []  # type: ignore[arg-type]


# --- the script ------------------------------------------------------------------------------------------
@pytest.fixture
def script(tmp_path: Path, cli: Callable[..., tuple[int, str]]) -> Callable[..., tuple[int, str]]:
    """Runs the printed script where there is no snapfs."""
    libraries = tmp_path / 'libraries'
    libraries.mkdir()
    for name in ('blake3', 'backports'):
        spec = importlib.util.find_spec(name)
        if spec is not None:
            (place,) = spec.submodule_search_locations or [spec.origin]
            (libraries / Path(place).name).symlink_to(place)
    path = tmp_path / 'printed.py'
    path.write_text(cli('verify', '--script')[1])
    environment = {'PATH': os.environ['PATH'], 'PYTHONPATH': str(libraries)}

    def run(*words: object) -> tuple[int, str]:
        command = [sys.executable, '-S', *map(str, words)]
        done = subprocess.run(
            command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
        )
        return done.returncode, done.stdout + done.stderr

    assert 'No module named' in run('-c', 'import snapfs')[1]
    assert len(path.read_text().splitlines()) <= 90
    return lambda *words: run(path, *words)


async def test_the_script_says_the_same_without_snapfs(store, tmp_path, cli, script):
    file = tmp_path / 'kept'
    cli('export', 'home@monday', '-o', file)
    root = root_of(lines_of(store)).hex()
    assert script(file, store) == (0, f'0 chunks are damaged; root {root} is right\n')
    assert script(file, store, root)[0] == 0
    code, out = script(file, store, '00' * 32)
    assert code == 4 and 'is not' in out
    text = file.read_bytes()
    for changed in (text.replace(b'"uid":7', b'"uid":0', 1), b''.join(text.splitlines(keepends=True)[:-1])):
        (tmp_path / 'changed').write_bytes(changed)
        code, out = script(tmp_path / 'changed', store)
        assert code == 4 and '0 chunks are damaged' in out and 'is not' in out
    spoil(store, data_id(noise(NAMES.index(b'z z'), 500)))
    code, out = script(file, store, root)
    assert code == 4 and "'/dir/z z'" in out and '1 chunks are damaged' in out
    for path in (store / 'packs/data').rglob('*'):
        if path.is_file():
            path.unlink()
    code, out = script(file, store, root)
    assert code == 4 and "'/dir/stra\\udcdfe'" in out and "'/dir/big'" in out


async def test_a_mistake_with_the_script_is_one_line(store, tmp_path, cli, script):
    file = tmp_path / 'kept'
    cli('export', 'home@monday', '-o', file)
    for words in ((), (file,), (file, store, 'a', 'b'), (file, tmp_path), (tmp_path / 'nowhere', store)):
        code, out = script(*words)
        assert code == 2 and len(out.splitlines()) == 1, out
    (tmp_path / 'bad').write_bytes(file.read_bytes()[:100] + b'{')
    code, out = script(tmp_path / 'bad', store)
    assert code == 4 and len(out.splitlines()) == 1, out
