"""Failing disks: a failed sync stops writing for ever; a full disk refuses and breaks nothing."""

from __future__ import annotations

import errno
import random
from pathlib import Path

import pytest

from snapfs import limits
from snapfs.errors import Latched, Refused, SnapfsError
from snapfs.volume.engine import Engine
from tests.crash.run import Image, Profile, Run
from tests.crash.test_crash_workloads import SEEDS
from tests.crash.verify import look, verify
from tests.sim.disk import SimDisk
from tests.sim.world import SimWorld
from tests.support.model import refuses

PROFILE = Profile(
    'faults',
    {'file': 12, 'sync': 5, 'commit': 2, 'flush': 2, 'snapshot': 2, 'delete': 1, 'undelete': 1, 'rollback': 1}
    | {'open_unlinked': 1, 'clone': 1, 'volume': 1, 'volume_delete': 1},
    steps=40,
    inline_bytes=8192,
)


async def _steps(run: Run, chance: random.Random) -> SnapfsError | None:
    """Do steps until one fails; return how."""
    names = list(run.profile.weights)
    for _ in range(4 * run.profile.steps):
        try:
            await run.step(chance.choices(names, list(run.profile.weights.values()))[0])
        except SnapfsError as error:
            return error
    return None


async def _stays_latched(run: Run) -> None:
    engine = run.engine
    for _ in range(3):
        for again in (engine.sync, engine.commit):
            with pytest.raises(Latched):
                await again()
    head = next(iter(run.pairs.values())).head
    root = await head.inode(1)
    with pytest.raises(Latched):
        await head.make(root, b'never', 0o100644, 0, 0)
    with pytest.raises(Latched):
        await engine.snapshot_create(head.name, 'never', 'test')
    assert engine.health().startswith('read-only')
    for pair in run.pairs.values():
        await pair.check()  # reading goes on, and shows everything that was done


async def _reopen_latched(image: Image) -> None:
    disk = SimDisk(image.path)
    engine = await Engine.open(image.path / 'store', disk, SimWorld(image.seed + 77))
    try:
        found = await look(engine, image.allowed)
        assert image.allowed.match(found) is not None, f'{image.note}: {image.allowed.explain(found)}'
        assert engine.health().startswith('read-only'), f'{image.note}: the incident was forgotten'
        with pytest.raises(Latched):
            await engine.sync()
    finally:
        engine.store.close(clean=False)
        disk.forget()


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['sync', 'write', 'sync_directory'])
@pytest.mark.parametrize('seed', range(SEEDS))
async def test_an_io_error_latches_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int, kind: str
) -> None:
    monkeypatch.setattr(limits, 'JOURNAL_INLINE_BYTES_MAX', PROFILE.inline_bytes)
    chance = random.Random(f'{kind} {seed}')
    run = Run(tmp_path, PROFILE, seed)
    await run.open()
    run.disk.on_event = None
    run.disk.fail(kind, errno.EIO, after=chance.randrange(3 if kind == 'sync_directory' else 25))
    error = await _steps(run, chance)
    if error is None:
        assert kind == 'sync_directory', f'seed {seed}: no {kind} failed'
        return
    assert isinstance(error, Latched), f'seed {seed}: {error!r} after {run.steps[-4:]}'
    run.steps.append(f'EIO on a {kind}')
    for copy in range(3):
        image = run.image(f'latched-{copy}', f'kept by seed {copy}', seed * 10 + copy)
        await _reopen_latched(image)
    await _stays_latched(run)
    await run.engine.close()
    run.disk.forget()


@pytest.mark.slow
@pytest.mark.parametrize('seed', range(SEEDS))
async def test_a_full_disk_refuses_and_breaks_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Writes fail for lack of space here and there; what was refused was not done, the rest is kept."""
    monkeypatch.setattr(limits, 'JOURNAL_INLINE_BYTES_MAX', PROFILE.inline_bytes)
    chance = random.Random(seed)
    run = Run(tmp_path, PROFILE, seed)
    run.options.every = 3
    await run.open()
    refused = 0
    for _ in range(5):
        run.disk.fail('write', errno.ENOSPC, after=chance.randrange(8), count=chance.randrange(2, 7))
        error = await _steps(run, chance)
        if error is None:
            break
        assert isinstance(error, Refused), f'seed {seed}: {error!r} after {run.steps[-4:]}'
        assert error.errno == errno.ENOSPC, f'seed {seed}: {error!r} after {run.steps[-4:]}'
        refused += 1
        run.steps.append('refused')
        run.oracle.pending = None
        run.disk._faults.clear()
        for pair in run.pairs.values():
            await pair.check()
        found = await look(run.engine, run.oracle.allowed())
        assert found.registry == run.oracle.registry, f'seed {seed}: refused, and done: {run.steps[-4:]}'
    assert refused, f'seed {seed}: nothing was refused'
    run.disk._faults.clear()
    await run.finish()
    for image in run.images:
        await verify(image)


@pytest.mark.slow
@pytest.mark.parametrize('seed', range(SEEDS))
async def test_deleting_is_possible_on_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.setattr(limits, 'FREE_BYTES_MIN', 300 * limits.KIB)
    chance = random.Random(seed)
    run = Run(tmp_path, PROFILE, seed)
    run.options.every = 2
    await run.open()
    run.disk.space = chance.randrange(400, 1000) * limits.KIB
    number, pair = next(iter(run.pairs.items()))
    await run.snapshot()
    for count in range(100):
        name = b'%d' % count
        try:
            await pair.make([], name, 0o100644)
            await pair.write([name], 0, chance.randbytes(30_000))
            run._record()
            if chance.random() < 0.2:
                await run.sync()
        except Refused as error:
            run._record()
            assert error.errno == errno.ENOSPC
            break
    else:
        raise AssertionError(f'seed {seed}: the disk is never full')
    await pair.check()
    run.disk.space = 1500 * limits.KIB
    await run.commit()
    assert run.engine.store.restore_reserve()
    run.disk.space = 0  # somebody else has filled it; only our reserve is left
    run.engine.core.budget.look_at_disk()
    for name in sorted(pair.root.entries)[:5]:
        await pair.unlink([], name)
        run._record()
    await run.delete()
    await run.commit()
    await refuses(errno.ENOSPC, pair.head.make(await pair.head.inode(1), b'more', 0o100644, 0, 0))
    assert number in run.oracle.registry.volumes
    run.disk.space = None
    await run.finish()
    for image in run.images:
        await verify(image)
