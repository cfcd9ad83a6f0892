"""L6 putting back: nodes that packs have lost come back from their second copies. Event loop only.

A plan by a process of its own, then the execution, while no batch moves. It is for everybody: heads, requests
and canaries have nodes as well, and no name that a recovery could be told."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from snapfs import limits
from snapfs.errors import Corrupt
from snapfs.format.ids import RecordKind
from snapfs.rescue import restore, sibling
from snapfs.rescue.copies import is_odd
from snapfs.rescue.recover_values import Copies, CopiesSpec, came_back
from snapfs.service.collecting import Collecting
from snapfs.service.sockets import Asker
from snapfs.store.store import Store

log = logging.getLogger('snapfs.rescue')


@dataclass(frozen=True, slots=True)
class PutBack:
    """What came back: packs that were made again, and nodes of other packs."""

    packs: int = 0
    nodes: frozenset[bytes] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.packs or self.nodes)

    def text(self) -> str:
        """Return it for people."""
        return came_back(self.packs, len(self.nodes))

    def and_also(self, other: PutBack) -> PutBack:
        """Return the sum of both."""
        return PutBack(self.packs + other.packs, self.nodes | other.nodes)


class PuttingBack:
    """Puts back the nodes of one store. `asker`: when he leaves, looking ends."""

    def __init__(self, collecting: Collecting, asker: Asker | None = None) -> None:
        self._collecting = collecting
        self._engine = collecting.engine
        self._asker = asker

    async def run(self, every_node: bool, dry_run: bool = False) -> PutBack:
        """Put back what the copies have; `every_node`: each node is read to see whether it is whole, not only
        those in packs that are seen to be damaged. `dry_run`: say what would come back."""
        if dry_run:
            return _sum(await self._look(every_node))
        with self._engine.core.latching():
            return await self._run(every_node)

    async def _run(self, every_node: bool) -> PutBack:
        all_of_it = PutBack(await self._end_odd())
        while found := await self._step(every_node):
            new = found.nodes - all_of_it.nodes
            all_of_it = all_of_it.and_also(found)
            if len(new) < limits.RECOVER_LOST_MAX:  # the look had room for all of them
                break
        return all_of_it

    async def _look(self, every_node: bool) -> Copies:
        store = self._engine.store
        writing = tuple(sorted(store.chunks.writers[RecordKind.NODE].numbers()))
        spec = CopiesSpec(store.path, store.superblock.uuid, every_node, writing, store.still)
        found: Copies = await self._collecting.look('copies', lambda: spec, self._asker)
        return found

    async def _step(self, every_node: bool) -> PutBack:
        plan = await self._look(every_node)
        if not plan.packs and not plan.nodes:
            return PutBack()
        thread, store = self._collecting.world.run_in_thread, self._engine.store
        async with self._collecting.still():
            made = await thread(restore.restore_packs, store, plan.packs)
            # A batch may have moved meanwhile; what it took is no node of the index any more.
            standing = await thread(store.catalog.locate, [one.id for one in plan.nodes])
            healed = await thread(sibling.heal, store, [one for one in plan.nodes if one.id in standing])
        self._engine.core.nodes.forget()
        if healed:
            log.warning('%d nodes were put back from their second copies', len(healed))
        return PutBack(len(made), frozenset(healed))

    async def _end_odd(self) -> int:
        """Give packs that are open here their files again where these were taken away; return how many. End
        an open pack that has lost its end all the same: what is brought back must not be put into it."""
        thread, store = self._collecting.world.run_in_thread, self._engine.store
        count = 0 if store.latched is not None else await thread(store.chunks.put_back)
        if await thread(_seal_odd, store):
            await self._engine.commit(always=True)
        return count


def _seal_odd(store: Store) -> bool:
    ended = False
    for row in store.catalog.packs():
        if row.state == 'open' and is_odd(store.disk, store.path, row):
            try:
                store.chunks.seal_pack(row.kind, row.pack)
                ended = True
            except Corrupt as error:
                log.error('pack %s cannot be ended: %s', row.name.hex(), error)
    return ended


def _sum(plan: Copies) -> PutBack:
    return PutBack(len(plan.packs), frozenset(one.id for one in plan.nodes))
