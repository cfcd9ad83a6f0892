"""Opens what a power cut left of a word, and holds it against every moment at which it may have been left."""

from __future__ import annotations

import random
import shutil

from snapfs.collect.states import CONFIRMED, PLANNED, QUARANTINED, batch, batches
from snapfs.errors import Held
from snapfs.volume.engine import Engine
from tests.crash.attributes import TickWorld, freeze_full
from tests.crash.oracle import Found
from tests.crash.verify import check_chunks, check_tree, is_gone, look, reachable
from tests.crash.word_run import GRACE_DAYS, Left, OneStep
from tests.sim.disk import PowerCut, SimDisk
from tests.support.collecting import DAY
from tests.support.fsck import damages

LATER = 50_000_000  # the tick of whatever is done after the crash
CUT_AGAIN, GO_ON = 0.25, 0.15


async def verify_left(left: Left) -> Found:
    """AssertionError, with what replays it, unless the image is all that it must be; removes it. Return what
    was found."""
    chance = random.Random(left.seed)
    note = left.allowed[0][1]
    disk, folder = SimDisk(left.path), left.path
    if chance.random() < CUT_AGAIN:
        disk.cut_at = chance.randrange(1, 9)
        note += f'; second cut at event {disk.cut_at} of the recovery'
    try:
        try:
            return await _check(disk, left, note, chance)
        except PowerCut:
            again = folder.with_name(folder.name + '-again')
            disk.crash(left.seed + 1, again)
            disk.forget()
            disk, folder = SimDisk(again), again
            return await _check(disk, left, note, chance)
    except AssertionError:
        raise
    except Exception as error:
        raise AssertionError(f'{note}: {error!r}') from error
    finally:
        disk.forget()
        for path in {left.path, folder}:
            shutil.rmtree(path)


async def _check(disk: SimDisk, left: Left, note: str, chance: random.Random) -> Found:
    path = disk.root / 'store'
    found = damages(path)
    assert not found, f'{note}: fsck of what the crash left: {found[:3]}'
    world = TickWorld(chance.randrange(1 << 60), LATER)  # other random names than any process before
    engine = await Engine.open(path, disk, world)
    disk.cut_at = None
    try:
        assert engine.health() == 'ok', f'{note}: {engine.health()}'
        state = await _is_allowed(engine, left, note)
        check_chunks(engine.store, note)
        for head in engine.heads().values():
            reached = await reachable(head)
            check_tree(engine.store, head.root.id, note, reached)
            assert not await head.orphans(10), f'{note}: an unlinked inode is left'
            for ino in range(16, head.next_ino):
                if ino not in reached:
                    await is_gone(head, ino, note)
        collecting = await _recovered(engine, world, note)
        if chance.random() < GO_ON:
            await _go_on(collecting, world, left, note, chance)
        return state
    finally:
        if not engine.closed:
            engine.store.close(clean=False)
            engine.closed = True


async def _is_allowed(engine: Engine, left: Left, note: str) -> Found:
    found = await look(engine, left.allowed[0][0], freeze_full)
    for number, (allowed, when) in enumerate(left.allowed):
        if number:
            found = await look(engine, allowed, freeze_full)
        assert allowed.match(found) is not None, f'{note} = {when}: {allowed.explain(found)}'
    return found


async def _recovered(engine: Engine, world: TickWorld, note: str) -> OneStep:
    """Return the collector, which begins again: nothing stays half decided."""
    collecting = OneStep(engine, world)
    await collecting.begin()
    for row in batches(engine.store.catalog, PLANNED, QUARANTINED):
        assert row.state == QUARANTINED, f'{note}: batch {row.number} stays {row.state}'
        assert not row.restoring, f'{note}: batch {row.number} stays half restored'
    return collecting


async def _go_on(collecting: OneStep, world: TickWorld, left: Left, note: str, chance: random.Random) -> None:
    """Either people take everything back, or the collector goes on to the end."""
    engine = collecting.engine
    before = await _is_allowed(engine, left, note)
    allowed = left.allowed[-1][0]
    if chance.random() < 0.5:
        await _take_back(engine, before, note)
    else:
        for _ in range(2):
            world.wait(GRACE_DAYS * int(DAY))
            await collecting.collect()
        after = await look(engine, allowed, freeze_full)
        assert after.volumes == before.volumes, f'{note}: the collector changed a volume'
        assert after.registry.snapshots == before.registry.snapshots, f'{note}: … a snapshot (P6)'
    latched = collecting.collector.incidents.latched()
    assert latched is None, f'{note}: a false alarm: {latched}'
    await collecting.stop()
    await engine.close()
    found = damages(engine.store.path)
    assert not found, f'{note}: fsck, after it went on: {found[:3]}'


async def _take_back(engine: Engine, found: Found, note: str) -> None:
    """Every deletion that has not come to its end can be taken back, byte for byte."""
    for number, row in enumerate(engine.request_list()):
        promised = found.registry.requests[row.kind, row.view]
        confirmed = row.batch is not None and batch(engine.store.catalog, row.batch).state == CONFIRMED
        try:
            if row.kind == 'volume':
                view = await engine.volume_undelete(row.number, f'back {number}')
            else:
                somewhere = next(iter(engine.heads()))
                taken = await engine.snapshot_undelete(row.number, f'back {number}', somewhere)
                view = engine.snapshot_view(taken.number)
        except Held:
            assert confirmed, f'{note}: {row.name} cannot be taken back'
            continue
        assert not confirmed, f'{note}: {row.name} was confirmed'
        assert await freeze_full(view) == promised, f'{note}: {row.name} came back as something else'
