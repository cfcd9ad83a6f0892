"""A store that exists already, opened for a while in a world that stands still."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import trio

from snapfs.service.collecting import Collecting
from snapfs.store.durable import Disk
from snapfs.volume.engine import Engine
from tests.mutants.setting import StepWorld, small
from tests.support.collecting import job_in_process
from tests.support.model import freeze_view

LIVES = itertools.count()


def on(path: Path, work: Callable[[Collecting], Any]) -> Any:
    """Open a store in a world that stands still, do something, close it."""

    async def life() -> Any:
        world = StepWorld()
        world._random.seed(f'life {next(LIVES)}')  # no name of a pack comes twice
        engine = await Engine.open(path, Disk(), world)
        collecting = Collecting(engine, world, job_in_process(world))
        try:
            return await work(collecting)
        finally:
            await collecting.stop()
            await engine.close()

    with small():
        return trio.run(life)


def trees(path: Path) -> dict[str, Any]:
    """Everything that volumes and snapshots hold, by their names."""

    async def look(collecting: Collecting) -> Any:
        engine, found = collecting.engine, {}
        for name, head in engine.heads().items():
            found[name] = await freeze_view(head)
            for row in engine.snapshot_list(name):
                found[f'{name}@{row.name}'] = await freeze_view(engine.snapshot_view(row.number))
        return found

    return on(path, look)


def backup_at(time_ns: int) -> Callable[[Collecting], Any]:
    """Write a backup of the catalog, in which something has changed."""

    async def keep(collecting: Collecting) -> None:
        assert collecting.engine.store.backups.write(time_ns), 'something has changed'
        assert not collecting.engine.store.backups.write(time_ns + 1), 'nothing has changed'

    return keep
