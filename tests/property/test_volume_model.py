"""A volume against plain dictionaries: any operations, with flushes, records, commits and remounts
between them.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from snapfs.volume.engine import Engine
from tests.support.model import Pair, freeze_view
from tests.support.stores import fresh_engine, reopen
from tests.support.workload import Workload


async def _between(engine: Engine, pair: Pair, chance: random.Random) -> Engine:
    """Do one of the things that must never change what a volume holds."""
    what = chance.choice(['flush', 'sync', 'commit', 'reopen', 'forget', 'check'])
    if what == 'flush':
        await engine.committer.flush()
    elif what == 'sync':
        await engine.sync()
    elif what == 'commit':
        await engine.commit()
    elif what == 'reopen':
        engine = await reopen(engine)
        head = engine.head('home')
        assert head is not None
        pair.head = head
    elif what == 'forget':
        pair.head._inodes_max = 2
        pair.head._forget_half()
        pair.head._inodes_max = 4
    else:
        await pair.check()
    return engine


@pytest.mark.parametrize('seed', range(12))
async def test_a_volume_is_what_the_model_is(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    engine = await fresh_engine(tmp_path / 'store')
    head = await engine.volume_create('home', 0, 0)
    pair = Pair(head)
    workload = Workload(pair, seed, sizes=chance.choice([3000, 60_000, 400_000]))
    snapshots = {}
    for step in range(150):
        await workload.step()
        if chance.random() < 0.2:
            engine = await _between(engine, pair, chance)
        if chance.random() < 0.03:
            await engine.snapshot_create('home', f's{step}', 'test')
            snapshots[f's{step}'] = pair.root.freeze()
    await pair.check()
    engine = await reopen(engine)
    head = engine.head('home')
    assert head is not None
    pair.head = head
    await pair.check()
    for name, frozen in snapshots.items():
        view = engine.snapshot_view(engine.snapshot_find('home', name).number)
        assert view is not None
        found = await freeze_view(view)
        assert found == frozen, f'seed {seed}: snapshot {name} is not what it was (P6)'
    await engine.close()
