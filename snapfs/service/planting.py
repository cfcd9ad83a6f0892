"""L6 planting: a store has a canary, and one that is whole. Event loop only; no recount runs meanwhile.

A canary that has lost bytes (rot, a pack that is gone) is of no more use, and nobody has a copy of what was
random: another one is planted, and then the row of the first goes. Its chunks stay, as leaks: that nobody
needs them any more frees nothing. One that is not in the index any more is none of these: that may be the
work of a collector, and the next recount says so."""

from __future__ import annotations

import logging

import trio

from snapfs.collect.canary import canaries, dismiss, enroll, rotten, sow
from snapfs.volume.engine import Engine
from snapfs.world import World

log = logging.getLogger('snapfs.collect')


async def plant(engine: Engine, world: World) -> None:
    """See to it that there is a canary: without one a recount could be blind."""
    store, thread = engine.store, world.run_in_thread
    lost = await thread(rotten, store.catalog, store.chunks.get)
    there = [] if lost else await thread(canaries, store.catalog, store.chunks.get)
    if there:
        return
    with trio.CancelScope(shield=True):  # what is sown and not enrolled would be a leak
        canary = await thread(sow, store.chunks, world)
        await engine.commit(always=True)
        if await thread(enroll, store.catalog, canary, world.time_ns()) and lost:
            await thread(dismiss, store.catalog, lost)
            store.chunks.unreadable.difference_update(id for _, ids in lost for id in ids)
            log.warning('%d canaries had lost bytes; another one is planted', len(lost))
