"""Histories with a collector: nothing that stands is lost, what is condemned goes, no alarm is false.

A failure names its kind and seed, which replays exactly:

    SNAPFS_SEEDS=119 python -m pytest tests/sim/test_sim_collect.py -k 'test_a_history and 118-crash'
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.sim.collect_damage import DAMAGES, Damaged
from tests.sim.collect_history import ACCIDENTS, History
from tests.sim.collect_kit import prepare

SEEDS = int(os.environ.get('SNAPFS_SEEDS', '10'))


@pytest.mark.slow
@pytest.mark.parametrize('kind', ACCIDENTS)
@pytest.mark.parametrize('seed', range(SEEDS))
async def test_a_history(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, seed: int) -> None:
    history = History(tmp_path, kind, seed)
    prepare(history, monkeypatch)
    await history.run()


@pytest.mark.slow
@pytest.mark.parametrize('damage', DAMAGES)
@pytest.mark.parametrize('seed', range(-(-SEEDS // 4)))
async def test_a_damaged_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str, seed: int
) -> None:
    history = Damaged(tmp_path, damage, seed)
    prepare(history, monkeypatch)
    await history.run()


@pytest.mark.slow
@pytest.mark.parametrize('kind', ACCIDENTS)
async def test_a_seed_replays_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    traces = []
    for number in range(2):
        folder = tmp_path / str(number)
        folder.mkdir()
        history = History(folder, kind, 4)
        prepare(history, monkeypatch)
        await history.run()
        traces.append(history.traced)
    assert traces[0] == traces[1]
