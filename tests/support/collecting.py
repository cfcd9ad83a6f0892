"""A collector in this process, on an engine in a simulated world: what runs when is decided by the test."""

from __future__ import annotations

import random
import stat
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio

from snapfs import limits
from snapfs.collect.worker import encode_job, from_json, job_of, run_job, to_json
from snapfs.service.collecting import Collecting
from snapfs.volume.engine import Engine
from tests.sim.world import SimWorld
from tests.support.stores import fresh_engine

FILE = stat.S_IFREG | 0o644
DIRECTORY = stat.S_IFDIR | 0o755
DAY = 86_400.0


def job_in_process(world: SimWorld) -> Callable[..., Any]:
    """A runner that does the job here and now, through the same encoding as a process would."""

    async def run(spec: Any, progress: Callable[[int, int], None]) -> Any:
        await trio.lowlevel.checkpoint()
        job = job_of(spec)
        again = from_json(type(spec), to_json(spec))
        assert again == spec
        assert encode_job(job, spec)
        result = run_job(job, again, lambda done, known: progress(done, known), world)
        return from_json(type(result), to_json(result))

    return run


@asynccontextmanager
async def collected(path: Path, seed: int = 1) -> AsyncIterator[Collecting]:
    """A fresh store with small packs, its engine and collector. The schedule does not run."""
    world = SimWorld(seed)
    engine = await fresh_engine(path, world)
    small_packs(engine)
    collecting = Collecting(engine, world, job_in_process(world))
    try:
        yield collecting
    finally:
        if not engine.closed:
            await engine.close()


def small_packs(engine: Engine, data: int = 64 * limits.KIB, nodes: int = 32 * limits.KIB) -> None:
    """Let packs be full soon, so that there are many."""
    writers = list(engine.store.chunks.writers.values())
    writers[0].bytes_max, writers[1].bytes_max = data, nodes


async def write_file(engine: Engine, name: str, data: bytes, volume: str = 'home') -> None:
    """Make or replace a file in the volume's root directory."""
    head = engine.head(volume)
    assert head is not None
    root = await head.inode(limits.INO_ROOT)
    inode = await head.lookup(root, name.encode())
    if inode is None:
        inode = await head.make(root, name.encode(), FILE, 0, 0)
    else:
        await head.set_attributes(inode, size=0)
    if data:
        await head.write(inode, 0, data)


async def remove_file(engine: Engine, name: str, volume: str = 'home') -> None:
    head = engine.head(volume)
    assert head is not None
    await head.unlink(await head.inode(limits.INO_ROOT), name.encode())


async def read_tree(view: Any) -> dict[bytes, bytes]:
    """All regular files of a view's root directory."""
    root = await view.inode(limits.INO_ROOT)
    found = {}
    for _, name, ino, _kind in await view.list_directory(root, 0, 10_000):
        inode = await view.inode(ino)
        found[name] = await view.read(inode, 0, inode.size)
    return found


def noise(seed: int, size: int = 20_000) -> bytes:
    """Bytes that nothing else has, and that do not compress."""
    return random.Random(seed).randbytes(size)


def pack_bytes(engine: Engine) -> int:
    """The bytes of all packs on disk."""
    return sum(path.stat().st_size for path in (engine.store.path / 'packs').rglob('*') if path.is_file())


def forget(engine: Engine) -> None:
    """Empty the caches, so that the next read is one of the disk."""
    chunks = engine.store.chunks
    for cache in (chunks._plains, chunks._locations, chunks._files):
        cache.__init__(cache._max)  # type: ignore[misc]
