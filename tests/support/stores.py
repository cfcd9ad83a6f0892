"""Stores for tests."""

from __future__ import annotations

from pathlib import Path

from snapfs.store.durable import Disk
from snapfs.store.store import Store
from snapfs.volume.engine import Engine
from snapfs.world import World


class QuietWorld(World):
    """The real world without threads: what runs is decided by the test alone."""

    async def run_in_thread(self, function, *args):  # type: ignore[no-untyped-def]
        await self.checkpoint()
        return function(*args)


async def fresh_engine(path: Path, world: World | None = None) -> Engine:
    """Make a store at `path` and open it."""
    world = world or QuietWorld()
    disk = Disk()
    Store.create(path, disk, world).close(clean=True)
    return await Engine.open(path, disk, world)


async def reopen(engine: Engine) -> Engine:
    """Close an engine cleanly and open its store again."""
    await engine.close()
    return await Engine.open(engine.store.path, engine.store.disk, engine.world)
