"""The damage map of fsck, and of `snapfs damage`, against one that is made by walking every tree."""

from __future__ import annotations

import os
import random
import shutil
from functools import cache
from pathlib import Path

import pytest
import trio

from snapfs import limits
from snapfs.format.records import HEADER_BYTES
from snapfs.store.durable import Disk
from snapfs.store.store import Store
from snapfs.volume.engine import Engine
from tests.images.image import DIRECTORY, FILE
from tests.images.image import make as make_image
from tests.mutants.setting import StepWorld, content, small
from tests.support.collecting import small_packs
from tests.unit.checker.brute import Brute
from tools.breaking.edit import Patient
from tools.checker.check import Options, check
from tools.checker.findings import DAMAGE, Finding, Report

# 38: only a deleted snapshot needed the chunk, and its files were not named.
SEEDS = [*range(int(os.environ.get('MAP_SEEDS', '12'))), 38]
OF_BYTES = {
    'pack-missing', 'pack-short', 'record-header', 'record-payload', 'chunk-missing', 'chunk-unindexed',
    'request-incomplete', 'index-record', 'damage-known',
}  # fmt: skip


def make_random(path: Path, seed: int) -> None:
    """A store of a few volumes whose files share chunks, with snapshots, some of them deleted."""
    with small():
        world = StepWorld()
        Store.create(path, Disk(), world).close(clean=True)
        trio.run(_live, path, world, random.Random(f'store {seed}'))


async def _live(path: Path, world: StepWorld, chance: random.Random) -> None:
    engine = await Engine.open(path, Disk(), world)
    small_packs(engine, chance.choice([8, 16, 64]) * limits.KIB, chance.choice([3, 6]) * limits.KIB)
    for volume in ('home', 'work'):
        await engine.volume_create(volume, 1000, 1000)
    taken: list[tuple[str, str]] = []
    for number in range(chance.randrange(3, 7)):
        for volume in ('home', 'work'):
            await _change(engine, volume, chance)
            if chance.random() < 0.6:
                await engine.snapshot_create(volume, f's{number}', 'ann')
                taken.append((volume, f's{number}'))
    for volume, name in chance.sample(taken, len(taken) // 3):
        await engine.snapshot_delete(volume, name, 'ann')
    await engine.commit()
    await engine.close()


async def _change(engine: Engine, volume: str, chance: random.Random) -> None:
    head = engine.head(volume)
    assert head is not None
    top = await head.inode(limits.INO_ROOT)
    directory = top
    for _ in range(chance.randrange(3)):
        name = f'd{chance.randrange(3)}'.encode()
        found = await head.lookup(directory, name)
        directory = found or await head.make(directory, name, DIRECTORY, 1000, 1000)
    for _ in range(chance.randrange(1, 5)):
        name = f'f{chance.randrange(6)}'.encode()
        inode = await head.lookup(directory, name)
        if inode is not None and chance.random() < 0.3:
            await head.unlink(directory, name)
            continue
        if inode is None:
            inode = await head.make(directory, name, FILE, 1000, 1000)
        # A few contents only: the same chunk is in many files, and twice in some.
        for _ in range(chance.randrange(1, 3)):
            data = content(f'content {chance.randrange(12)}', 700)
            await head.write(inode, chance.choice([0, 0, 700, 5000, 1 << 20]), data)
        if chance.random() < 0.2:
            await head.xattr_set(inode, b'user.long', content(f'attribute {chance.randrange(3)}', 2000))
        other = f'link {chance.randrange(4)}'.encode()
        if chance.random() < 0.3 and await head.lookup(top, other) is None:
            await head.link(inode, top, other)
    await engine.commit()


def lose(patient: Patient, chance: random.Random) -> None:
    """Lose a few chunks, each in one of several ways."""
    for _ in range(chance.randrange(2, 9)):
        kind = chance.choice((1, 1, 2))
        rows = patient.db.execute(
            'SELECT id, pack, offset, stored FROM chunk WHERE kind = ? ORDER BY id', (kind,)
        )
        id, pack, offset, stored = chance.choice(rows.fetchall())
        ((state,),) = patient.db.execute('SELECT state FROM pack WHERE pack = ?', (pack,)).fetchall()
        path = patient.pack(pack)
        way = chance.choice(('row', 'row', 'flip', 'gone', 'cut', 'known'))
        if way == 'row':
            patient.sql('DELETE FROM chunk WHERE id = ?', id)
        elif way == 'known' and kind == 1:
            patient.sql("INSERT OR IGNORE INTO damage VALUES (?, 1, 'read', 'lost')", id)
        elif not path.exists() or path.stat().st_size <= offset + HEADER_BYTES + stored // 2:
            continue
        elif way == 'flip':
            patient.flip(path, offset + HEADER_BYTES + stored // 2, chance.randrange(8))
        elif way == 'gone' and chance.random() < 0.5:
            patient.gone(path)
        elif way == 'cut' and state == 'sealed':
            patient.cut(path, offset + HEADER_BYTES + stored // 2)


@cache
def _image(folder: Path) -> Path:
    make_image(folder / 'store')
    return folder / 'store'


@pytest.mark.parametrize('seed', SEEDS)
def test_the_map_is_that_of_who_walks_every_tree(
    seed: int, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    chance = random.Random(f'map {seed}')
    path = tmp_path / 'store'
    if seed % 3 == 2:  # one with quarantine, freed chunks and a canary
        shutil.copytree(_image(tmp_path_factory.getbasetemp()), path)
    else:
        make_random(path, seed)
    patient = Patient(path, seed)
    lose(patient, chance)
    known = frozenset(id for (id,) in patient.sql('SELECT id FROM damage'))
    patient.close()
    for full in (True, False):
        report = Report(shown_max=10_000)
        with small():
            check(path, Options(full=full, jobs=1, names=not full), report)
        assert not report.unchecked, f'seed {seed}'
        _compare(report, Brute(path, full, known), f'seed {seed}, full {full}, {patient.said}')


def _names_all(one: Finding, brute: Brute, where: str) -> None:
    """A file with several names is told by each of them."""
    for tree in brute.trees:
        for _, root, ino, start, end, what in tree.losses:
            lines = {
                (root, f'{path or "/"} ({what})' if what else path or '/', start, end)
                for path in tree.paths(ino)
            }
            told = lines & set(one.files)
            assert told in (set(), lines), f'{where}: {one.place} names {told}, and not {lines - told}'


def _compare(report: Report, brute: Brute, where: str) -> None:
    means = brute.shown()
    told = [one for one in report.findings if one.severity == DAMAGE and one.code in OF_BYTES]
    found = set()
    for one in told:
        _names_all(one, brute, where)
        for file in one.files:
            assert file in means, f'{where}: {one.code} {one.place} names {file}, which is whole'
            losses = means[file]
            if one.place.startswith('chunk '):
                prefix = one.place.removeprefix('chunk ')
                losses = {loss for loss in losses if loss[0].hex().startswith(prefix)}
                assert losses, f'{where}: {one.code} {one.place} names {file}, which has lost something else'
            found |= losses
        assert one.files or one.what.endswith('nothing that stands needs it'), f'{where}: {one}'
    missing = brute.losses() - found
    assert not missing, f'{where}: not told: {missing}'
    damaged = {loss[1] for loss in brute.losses()}
    assert set(report.facts.get('snapshots', ())) == damaged, where
    assert report.facts.get('files_left_out', 0) == 0, where
