"""snapfs-dump: every structure of a real store, of a live one, and of damaged ones."""

from __future__ import annotations

import importlib
import io
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

import pytest
import trio

from snapfs.errors import Corrupt
from snapfs.format.ids import data_id
from snapfs.format.keys import inode_key
from snapfs.format.nodes import decode_node, encode_branch, encode_leaf
from tests.support.stores import QuietWorld, fresh_engine
from tools.dump import main as dump_main
from tools.dump.report import Report, moment, quoted
from tools.dump.trees import Walk

NOTES = b'hello notes\n' * 4000
PROJECT = Path(__file__).parents[3]
INODE = (0o100644, 0, 0, 0, 0, 0, 1, 1, 0, 0, 0, 0, 0, 0, b'')


async def fill(engine):
    """One of everything; the last write is in the journal only."""
    await engine.volume_create('home', 0, 0)
    head = engine.head('home')
    root = await head.inode(1)
    docs = await head.make(root, b'docs', 0o40755, 0, 0)
    notes = await head.make(docs, b'notes.txt', 0o100644, 1000, 1000)
    await head.write(notes, 0, NOTES)
    await head.xattr_set(notes, b'user.colour', b'blue', 0)
    await head.make(docs, b'link\n\xff', 0o120777, 0, 0, 0, b'notes.txt')
    for number in range(400):
        await head.make(root, b'%d-%s' % (number, b'n' * 80), 0o100600, 0, 0)
    await engine.snapshot_create('home', 'monday', 'anna')
    await head.write(notes, 5, b'CHANGED')
    await engine.sync()
    return notes


@pytest.fixture(scope='module')
def template(tmp_path_factory):
    """A store as a power cut would leave it: WAL, open packs, a record to replay."""
    place = tmp_path_factory.mktemp('dump')

    async def make():
        engine = await fresh_engine(place / 'live', QuietWorld())
        await fill(engine)
        shutil.copytree(engine.store.path, place / 'unclean')
        await engine.close()

    trio.run(make)
    (place / 'unclean' / 'reserve').unlink()
    shutil.rmtree(place / 'live')
    return place / 'unclean'


@pytest.fixture
def unclean(template, tmp_path):
    """A copy of the template, for one test."""
    return Path(shutil.copytree(template, tmp_path / 'unclean'))


def fingerprint(store: Path):
    """All names in a store, with type, size, mtime and contents."""
    found = {}
    for path in sorted(store.rglob('*')):
        status = path.lstat()
        data = data_id(path.read_bytes()) if path.is_file() and not path.is_symlink() else None
        found[str(path)] = status.st_mode, status.st_size, status.st_mtime_ns, data
    return found


def dump(store: Path, *words: str, code: int = 0) -> list[str]:
    """Run the tool in this process; check its exit code and that the store is as before."""
    before = fingerprint(store)
    out = io.StringIO()
    arguments = dump_main._parser().parse_args([str(store), *words])
    found = dump_main.run(arguments, out, io.BytesIO())
    assert fingerprint(store) == before, 'the tool changed the store'
    lines = out.getvalue().splitlines()
    odd = [line for line in lines if line.startswith('ODD ')]
    assert (found, bool(odd)) == (code, code == 1), odd or lines[-20:]
    return lines


def field(lines: list[str], start: str, name: str) -> str:
    """The value of `name=` in the first line that begins so."""
    line = next(line for line in lines if line.startswith(start))
    return next(word for word in line.split() if word.startswith(f'{name}=')).partition('=')[2]


def one(lines: list[str], *parts: str) -> str:
    """The only line that has all these parts."""
    found = [line for line in lines if all(part in line for part in parts)]
    assert len(found) == 1, (parts, found)
    return found[0]


def flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 0x40
    path.write_bytes(data)


def pack_of(store: Path, folder: str) -> Path:
    (path,) = [path for path in (store / 'packs' / folder).rglob('*') if path.is_file()]
    return path


# --- good stores -----------------------------------------------------------------------------------------
def test_every_structure_of_a_store_is_shown(unclean):
    assert field(dump(unclean, 'superblock'), 'superblock version', 'version') == '1'
    summary = dump(unclean)
    assert summary == dump(unclean, 'usage')
    assert field(summary, 'volume 1', 'items') == str(2 * 400 + 9)
    assert field(summary, 'snapshot', 'name') == '"home@monday"'
    assert one(dump(unclean, 'catalog', 'snapshot'), 'snapshot number=2').count('who=anna') == 1
    tables = dump(unclean, 'catalog')
    assert one(tables, 'table pack rows=2') and not any(line.startswith('chunk ') for line in tables)
    packs = dump(unclean, 'packs')
    assert sorted(field([line], 'pack', 'kind') for line in packs) == ['data', 'node']
    for folder in ('data', 'meta'):
        lines = dump(unclean, 'pack', pack_of(unclean, folder).name[:6])
        assert sum(line.startswith('record ') for line in lines) >= 1
        assert one(lines, 'footer state=none', 'rest_bytes=0')
    assert one(dump(unclean, 'audit'), 'audit-chain', 'broken=0')
    assert one(dump(unclean, 'lock'), 'lock state=free')


def test_a_tree_is_shown_in_key_order_with_the_places_of_its_chunks(unclean):
    lines = dump(unclean, 'tree', 'home@monday')
    assert one(lines, 'seen', 'items=809', 'extents_and_xattrs=1')
    assert one(lines, 'XATTR', 'name="user.colour" value="blue"')
    assert one(lines, 'DIRENT', 'name="link\\x0a\\xff"', 'type=symlink')
    inos = [int(line.split()[1][4:]) for line in lines if line.startswith('item ')]
    assert inos == sorted(inos)
    extent = one(lines, 'EXTENT')
    assert field([extent], 'item', 'pack') == pack_of(unclean, 'data').name
    by_path = dump(unclean, 'tree', 'home@monday', '--path', '/docs/notes.txt')
    ino = field(by_path, 'entry name="notes.txt"', 'ino')
    by_ino = dump(unclean, 'tree', 'home@monday', '--ino', ino, '--nodes')
    items = [line for line in by_ino if line.startswith('item ')]
    assert items == [line for line in by_path if line.startswith('item ')] and extent in items
    assert [field([line], 'node', 'level') for line in by_ino if line.startswith('node ')] == ['1', '0']


def test_nodes_and_chunks_are_found_by_prefix(unclean):
    root = field(dump(unclean, 'tree', 'home'), 'tree home', 'root')
    lines = dump(unclean, 'node', root[:10])
    children = [line.split()[1] for line in lines if line.startswith('child ')]
    assert one(lines, 'header', 'kind=branch', 'items_below=809') and len(children) > 2
    assert [line.split()[2] for line in lines if line.startswith('ref ')] == children
    assert one(dump(unclean, 'node', children[0]), 'item ino=1 INODE', 'type=directory', 'mode=0755')
    chunk = field(dump(unclean, 'tree', 'home'), 'item ino=17 EXTENT', 'chunk')
    lines = dump(unclean, 'chunk', chunk[:9].upper())
    assert one(lines, 'chunk', chunk, 'kind=data', 'source=chunk') and one(lines, 'payload', 'state=good')


def test_raw_writes_the_plain_bytes_and_nothing_else(unclean):
    chunk = field(dump(unclean, 'tree', 'home'), 'item ino=17 EXTENT', 'chunk')
    command = [sys.executable, '-m', 'tools.dump', str(unclean), 'chunk', chunk, '--raw']
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, check=True)
    assert (done.stdout, done.stderr) == (NOTES, b'')


def test_the_journal_says_what_replay_would_apply(unclean):
    lines = dump(unclean, 'journal')
    assert one(lines, 'replay after=', 'records=1')
    assert one(lines, 'replay volume=1', 'writes=1', 'bytes=7')
    assert one(lines, 'frame', 'state=replay')
    assert one(lines, 'write', 'offset=5 bytes=7')
    assert [line for line in lines if 'state=superseded' in line]


async def test_a_store_in_use_is_shown_and_not_disturbed(tmp_path):
    store = tmp_path / 'store'
    live = await fresh_engine(store, QuietWorld())
    await fill(live)
    before = fingerprint(store)
    for words in (['tree', 'home'], ['journal'], ['lock'], ['packs'], ['usage']):
        command = [sys.executable, '-m', 'tools.dump', str(store), *words]
        done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, ''), done.stdout
        if words == ['lock']:
            assert f'lock state=held-by-{os.getpid()}\n' in done.stdout
    assert fingerprint(store) == before
    head = live.head('home')
    await head.make(await head.inode(1), b'afterwards', 0o100644, 0, 0)
    await live.commit()
    command = [sys.executable, '-m', 'tools.dump', str(store), 'tree', 'home']
    assert b'"afterwards"' in subprocess.run(command, cwd=PROJECT, capture_output=True, check=True).stdout
    await live.close()


async def test_a_cleanly_closed_store_has_no_wal_and_gets_none(tmp_path):
    engine = await fresh_engine(tmp_path / 'store', QuietWorld())
    await fill(engine)
    await engine.close()
    assert not (tmp_path / 'store' / 'catalog.sqlite-wal').exists()
    lines = dump(tmp_path / 'store', 'usage')
    assert 'setting clean=1' in lines
    assert one(dump(tmp_path / 'store', 'journal'), 'replay', 'records=0')


def test_a_wal_without_its_index_is_read_from_a_copy(unclean, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path / 'temporary'))
    (tmp_path / 'temporary').mkdir()
    (unclean / 'catalog.sqlite-shm').unlink()
    assert one(dump(unclean, 'tree', 'home'), 'seen', 'items=809')
    assert list((tmp_path / 'temporary').iterdir()) == []


# --- damaged stores --------------------------------------------------------------------------------------
def test_a_flipped_byte_in_a_data_pack_is_one_line_and_the_rest_is_shown(unclean):
    path = pack_of(unclean, 'data')
    good = dump(unclean, 'pack', path.name)
    chunk = good[2].split()[1]
    flip(path, 48 + 52 + 10)
    bad = dump(unclean, 'pack', path.name, code=1)
    assert [line for line in bad if not line.startswith('ODD')] == good
    assert one(bad, 'ODD', path.name, 'offset 48')
    assert one(dump(unclean, 'chunk', chunk, code=1), 'ODD', chunk)
    assert one(dump(unclean, 'tree', 'home'), 'seen', 'items=809')
    command = [sys.executable, '-m', 'tools.dump', str(unclean), 'chunk', chunk, '--raw']
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (1, b'') and done.stderr.startswith(b'ODD ')


def test_a_flipped_byte_in_a_leaf_costs_that_leaf_only(unclean):
    root = field(dump(unclean, 'tree', 'home'), 'tree home', 'root')
    child = [line.split()[1] for line in dump(unclean, 'node', root) if line.startswith('child ')][1]
    lines = dump(unclean, 'node', child)
    flip(pack_of(unclean, 'meta'), int(field(lines, 'node', 'offset')) + 52 + 40)
    assert one(dump(unclean, 'node', child, code=1)[:2], 'ODD node', child)
    damaged = dump(unclean, 'tree', 'home', code=1)
    assert one(damaged, 'ODD node', child)
    below = int(field(lines, 'header', 'items_below'))
    assert one(damaged, 'seen', f'items={809 - below}')


def test_a_truncated_node_is_said_to_be(unclean):
    path = pack_of(unclean, 'meta')
    lines = dump(unclean, 'node', field(dump(unclean, 'tree', 'home'), 'tree home', 'root'))
    place = int(field(lines, 'node', 'offset'))
    os.truncate(path, place + 52 + 5)
    assert one(dump(unclean, 'node', lines[0].split()[1], code=1), 'ODD', '5 of')
    assert one(dump(unclean, 'tree', 'home', code=1), 'ODD node')
    assert one(dump(unclean, 'packs', code=1), 'ODD', path.name, 'durable')
    shown = dump(unclean, 'pack', path.name, code=1)
    assert sum(line.startswith('record ') for line in shown) >= 1


def test_a_torn_journal_record_does_not_count(unclean):
    frame = next(line for line in dump(unclean, 'journal') if 'state=replay' in line)
    flip(unclean / 'journal' / field([frame], 'frame', 'file'), int(field([frame], 'frame', 'end')) - 1)
    lines = dump(unclean, 'journal', code=1)
    assert one(lines, 'ODD journal/', 'torn', f'record {frame.split()[1]}')
    assert one(lines, 'replay', 'records=0')


def test_what_earlier_use_left_in_a_journal_is_not_odd(unclean):
    frames = [line for line in dump(unclean, 'journal') if line.startswith('frame ')]
    new = next(line for line in frames if 'state=replay' in line)
    old = next(line for line in frames if 'state=superseded' in line)
    source = (unclean / 'journal' / field([old], 'frame', 'file')).read_bytes()
    path = unclean / 'journal' / field([new], 'frame', 'file')
    data, end = bytearray(path.read_bytes()), int(field([new], 'frame', 'end'))
    piece = source[int(field([old], 'frame', 'offset')) : int(field([old], 'frame', 'end'))]
    data[end : end + len(piece)] = piece
    path.write_bytes(data)
    assert one(dump(unclean, 'journal'), 'stop', f'offset={end}', 'looks=frame')


def test_a_broken_audit_log_is_shown_to_its_end(unclean):
    path = unclean / 'audit.log'
    text = path.read_bytes()
    path.write_bytes(text.replace(b'volume-create', b'volume-remove') + text + b'{"sequence":')
    lines = dump(unclean, 'audit', code=1)
    assert one(lines, 'ODD audit line 1') and one(lines, 'ODD audit line 3', 'torn')
    assert one(lines, 'audit 1', 'volume-create', 'chain=good')
    assert one(lines, 'audit-chain lines=2 broken=2')
    path.write_bytes(text + text)
    assert one(dump(unclean, 'audit', code=1), 'ODD audit line 2', 'does not follow')


def test_an_unreadable_superblock_does_not_hide_the_rest(unclean):
    flip(unclean / 'superblock', 30)
    lines = dump(unclean, 'tree', 'home', '--path', '/docs/notes.txt', code=1)
    assert one(lines, 'ODD superblock', 'CRC') and one(lines, 'EXTENT')


def test_without_a_catalog_chunks_are_found_in_the_packs(unclean):
    chunk = dump(unclean, 'pack', pack_of(unclean, 'meta').name)[2].split()[1]
    for suffix in ('', '-wal', '-shm'):
        (unclean / f'catalog.sqlite{suffix}').unlink()
    lines = dump(unclean, 'chunk', chunk, code=1)
    assert one(lines, 'ODD catalog') and one(lines, f'chunk {chunk}', 'source=pack')
    assert one(lines, 'payload', 'state=good')
    assert len(dump(unclean, 'packs', code=1)) == 3


def test_symbolic_links_are_not_followed(unclean, tmp_path):
    for path in (pack_of(unclean, 'data'), unclean / 'catalog.sqlite', unclean / 'audit.log'):
        target = tmp_path / f'elsewhere-{path.name}'
        path.rename(target)
        path.symlink_to(target)
        what = {'catalog.sqlite': 'catalog', 'audit.log': 'audit'}.get(path.name, 'packs')
        assert any(line.startswith('ODD') for line in dump(unclean, what, code=1))
    lines = dump(unclean, 'catalog', 'volume', code=1)
    assert len(lines) == 1 and 'catalog.sqlite is not a regular file' in lines[0]


def test_a_catalog_with_a_view_in_the_place_of_a_table_is_not_asked(unclean):
    with sqlite3.connect(unclean / 'catalog.sqlite') as db:
        db.execute('ALTER TABLE snapshot RENAME TO other')
        db.execute(
            'CREATE VIEW snapshot AS '
            'WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i FROM n) SELECT i FROM n'
        )
    db.close()
    lines = dump(unclean, 'catalog', 'snapshot', code=1)
    assert one(lines, 'ODD catalog: table snapshot') and not any(
        line.startswith('snapshot') for line in lines
    )


# --- parts -----------------------------------------------------------------------------------------------
def test_a_tree_that_names_one_node_many_times_is_not_walked_many_times():
    leaf = encode_leaf([inode_key(20)], [INODE])
    nodes = {data_id(leaf): decode_node(leaf)}
    id, items, refs = data_id(leaf), 1, 0
    for level in range(1, 8):
        keys = [b'', *(inode_key(number) for number in range(30, 36))]
        plain = encode_branch(level, keys, [id] * 7, [items] * 7, [refs] * 7)
        id, items, refs = data_id(plain), items * 7, refs * 7 + 7
        nodes[id] = decode_node(plain)

    class Shelf:
        asked = 0

        def node(self, id):
            self.asked += 1
            if id not in nodes:
                raise Corrupt('missing')
            return nodes[id]

    shelf = Shelf()
    report = Report(io.StringIO())
    leaves = list(Walk(shelf, report).leaves(id, b'', b'\xff' * 9))
    assert shelf.asked < 100
    assert report.oddities > 0 and len(leaves) <= 1


@pytest.mark.parametrize(
    'words',
    [
        ['tree', 'nobody'],
        ['chunk', 'xyz'],
        ['catalog', 'nothing'],
        ['pack', 'zz'],
        ['tree', 'home', '--ino', '99999'],
    ],
)
def test_a_wrong_call_ends_with_two(unclean, words, capsys):
    assert dump_main.main([str(unclean), *words]) == 2
    assert capsys.readouterr().err.startswith('snapfs-dump: ')


def test_an_ambiguous_prefix_is_no_chunk_to_write_out(unclean, capsys):
    with sqlite3.connect(unclean / 'catalog.sqlite') as db:
        for number in (1, 2):
            row = (b'\xab' * 31 + bytes([number]), 2, 48, 1, 1, 0, 1, 1)
            db.execute('INSERT INTO chunk VALUES (?,?,?,?,?,?,?,?)', row)
    db.close()
    assert dump_main.main([str(unclean), 'chunk', 'ab' * 31, '--raw']) == 2
    assert '2 chunks begin with' in capsys.readouterr().err
    assert dump_main.main([str(unclean / 'missing'), 'usage']) == 2
    assert 'not a directory' in capsys.readouterr().err


def test_text_is_on_one_line_and_times_are_exact():
    assert quoted(b'a"b\\c\n\xff\xc3\xa4') == '"a\\x22b\\x5cc\\x0a\\xffä"'
    assert quoted('\u202e\ue000') == '"\\xe2\\x80\\xae\\xee\\x80\\x80"'
    assert moment(-1) == '1969-12-31T23:59:59.999999999Z'
    assert moment(1 << 90) == f'{1 << 90}ns'
    assert moment((1 << 63) - 1) == '2262-04-11T23:47:16.854775807Z'


def test_what_is_malformed_is_one_oddity():
    out = io.StringIO()
    report = Report(out)
    with report.guard('here'):
        int('x\n')
    with report.guard('there'):
        raise Corrupt('two\nlines')
    assert report.oddities == len(out.getvalue().splitlines()) == 2


def test_the_console_script_is_there():
    scripts = tomllib.loads((PROJECT / 'pyproject.toml').read_text())['project']['scripts']
    module, _, name = scripts['snapfs-dump'].partition(':')
    assert getattr(importlib.import_module(module), name) is dump_main.main
