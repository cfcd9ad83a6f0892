"""Histories with a collector: nothing that stands is lost, nothing condemned lives for ever, no false alarm."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.sim.collect_history import ACCIDENTS, History, prepare

SEEDS = int(os.environ.get('SNAPFS_SEEDS', '20'))


@pytest.mark.slow
@pytest.mark.parametrize('kind', ACCIDENTS)
@pytest.mark.parametrize('seed', range(SEEDS))
async def test_a_history(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, seed: int) -> None:
    history = History(tmp_path, kind, seed)
    prepare(history, monkeypatch)
    await history.run()
    print(kind, seed, sorted(history.counts.items()))
