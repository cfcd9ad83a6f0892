"""Whole stores with mutated bytes behind right checksums, handed to fsck and to the program: a clear error or
a finding, never a crash, a hang or a runaway of memory. A seed replays."""

from __future__ import annotations

import os
import random
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from snapfs.errors import SnapfsError
from snapfs.format.ids import RecordKind, node_id
from snapfs.format.nodes import Leaf
from snapfs.store.durable import Disk
from snapfs.volume.engine import Engine
from tests.images.image import make
from tests.mutants.setting import StepWorld, small
from tests.support.fsck import report_of
from tests.support.model import freeze_view
from tools.breaking.edit import Patient
from tools.breaking.kinds import victim

SEEDS = int(os.environ.get('SNAPFS_SEEDS', '20'))
MEMORY_MAX = 64 << 20


@pytest.fixture(scope='module')
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp('whole') / 'store'
    make(path)
    return path


def mutated(data: bytes, chance: random.Random) -> bytes:
    """Change some bytes, repeat or leave out a piece, put in numbers that are large or negative somewhere."""
    out = bytearray(data)
    for _ in range(chance.randrange(1, 6)):
        at = chance.randrange(len(out))
        way = chance.randrange(4)
        if way == 0:
            out[at] = chance.randrange(256)
        elif way == 1:
            out[at : at + 1] = chance.choice(
                [b'\xff' * 8, b'\0' * 8, b'\xcf' + b'\xff' * 8, b'\xdd\xff\xff\xff\xff']
            )
        elif way == 2:
            del out[at : at + chance.randrange(1, 20)]
        else:
            out[at:at] = out[at : at + chance.randrange(1, 40)]
        if not out:
            return b'\0'
    return bytes(out)


def nodes(p: Patient, chance: random.Random) -> None:
    """A node of a tree, with every hash above it right."""
    table, name, root = victim(p)
    way, id, _ = chance.choice(list(p.nodes(root)))
    p.replace_node(table, name, way, mutated(p.plain(id), chance)[:131_000])


def leaves(p: Patient, chance: random.Random) -> None:
    """A leaf behind a header that is right again: what is in its items is read."""
    table, name, root = victim(p)
    found = [(way, id) for way, id, node in p.nodes(root) if isinstance(node, Leaf)]
    way, id = chance.choice(found)
    plain = p.plain(id)
    refs = int.from_bytes(plain[8:12], 'big')
    start = 28 + 32 * refs
    p.replace_node(table, name, way, plain[:start] + mutated(plain[start:], chance)[:100_000])


def wrong_kind(p: Patient, chance: random.Random) -> None:
    """Bytes of anything, stored as a node that a root names."""
    table, name, _ = victim(p)
    plain = chance.randbytes(chance.randrange(1, 300))
    p.store(RecordKind.NODE, [(node_id(plain), plain)])
    p.sql(f'UPDATE {table} SET root = ? WHERE name = ?', node_id(plain), name)


def rows(p: Patient, chance: random.Random) -> None:
    """Values of rows, as SQLite lets them be."""
    columns = [
        ('volume', 'root_items'),
        ('volume', 'next_ino'),
        ('snapshot', 'root_refs'),
        ('snapshot', 'epoch'),
    ]
    columns += [
        ('chunk', 'offset'),
        ('chunk', 'stored'),
        ('chunk', 'plain'),
        ('chunk', 'pack'),
        ('pack', 'bytes'),
    ]
    columns += [('pack', 'records'), ('batch', 'chunks'), ('settings', 'value'), ('request', 'root_items')]
    table, column = chance.choice(columns)
    value = chance.choice([0, 1, -1, 1 << 31, (1 << 63) - 1, -(1 << 63), chance.randrange(1 << 40)])
    p.sql(f'UPDATE {table} SET {column} = ?', value)


def files(p: Patient, chance: random.Random) -> None:
    """Any file, as it is: checksums and all."""
    path = chance.choice(
        sorted(one for one in p.path.rglob('*') if one.is_file() and one.stat().st_size < 1 << 20)
    )
    if path.name.startswith('catalog'):
        p.db.execute('PRAGMA wal_checkpoint(TRUNCATE)')
    data = path.read_bytes()
    if data:
        path.write_bytes(mutated(data, chance))


WAYS = [nodes, leaves, wrong_kind, rows, files]


def use(path: Path) -> None:
    """Open the store as a daemon would, and read everything."""

    async def life() -> None:
        engine = await Engine.open(path, Disk(), StepWorld())
        try:
            for head in engine.heads().values():
                await freeze_view(head)
            for row in engine.snapshot_list():
                view = engine.snapshot_view(row.number)
                assert view is not None
                await freeze_view(view)
        finally:
            engine.store.close(clean=False)
            engine.closed = True

    trio.run(life)


@pytest.mark.slow
@pytest.mark.parametrize('way', WAYS, ids=lambda one: one.__name__)
@pytest.mark.parametrize('seed', range(SEEDS))
def test_a_mutated_store(
    whole: Path, tmp_path: Path, way: Callable[[Patient, random.Random], None], seed: int
) -> None:
    path, chance = tmp_path / 'store', random.Random(f'{way.__name__} {seed}')
    shutil.copytree(whole, path)
    patient = Patient(path, seed + 1000)  # other names of packs than the store has
    try:
        way(patient, chance)
    finally:
        patient.db.close()
    tracemalloc.start()
    try:
        with small():
            report_of(path)  # whatever it finds: it ends, and says something
            try:
                use(path)
            except (SnapfsError, OSError):
                pass
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < MEMORY_MAX, f'{way.__name__} seed {seed}: {most >> 20} MiB'
