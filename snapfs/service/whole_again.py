"""L6 whole again: takes back what was said of losses, where there are none any more. Event loop only.

A disk that did not give some bytes may give them later, and a person may bring a pack back by hand. Nobody is
believed for it: what is known to be lost is read and hashed once more, each chunk by itself. Only then its
row goes, and the marks of all whose trees are whole without it."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator

from snapfs.errors import Corrupt
from snapfs.rescue.presence import is_whole
from snapfs.rescue.reader import Reader
from snapfs.rescue.recover_values import Whole, WholeSpec
from snapfs.service.collecting import Collecting
from snapfs.service.sockets import Asker
from snapfs.store import damage

log = logging.getLogger('snapfs.rescue')

MARKED = (
    'SELECT number, root FROM snapshot WHERE damaged_ns IS NOT NULL AND root IS NOT NULL '
    'UNION ALL SELECT number, root FROM volume WHERE damaged_ns IS NOT NULL AND root IS NOT NULL'
)


class WholeAgain:
    """Looks again, in one store. `asker`: when he leaves, looking ends."""

    def __init__(self, collecting: Collecting, asker: Asker | None = None) -> None:
        self._collecting = collecting
        self._asker = asker
        self._engine = collecting.engine
        self._world = collecting.world

    async def look(self, ids: Iterable[bytes]) -> int:
        """Read these chunks once more, which are known to be lost; return how many are whole. Nothing is
        changed where the store is read-only."""
        store = self._engine.store
        wanted = tuple(ids)
        if not wanted or store.latched is not None:
            return 0
        whole = await self._world.run_in_thread(self._read, wanted)
        if whole:
            store.chunks.unreadable.difference_update(whole)
            gone = dict.fromkeys(whole)
            await self._world.run_in_thread(
                damage.record, store.catalog, gone, damage.READ, self._world.time_ns()
            )
            self._engine.core.nodes.forget()
            log.warning('%d chunks that were known to be lost are whole again', len(whole))
        return len(whole)

    def _read(self, ids: tuple[bytes, ...]) -> list[bytes]:
        store = self._engine.store
        try:
            reader = Reader(store.path, store.superblock.uuid, still=store.still)
        except Corrupt as error:
            log.warning('what was lost is not looked at again: %s', error)
            return []
        try:
            return list(_whole(reader, ids, self._asker))
        finally:
            reader.close()

    def unmark(self, view: int) -> None:
        """A volume or snapshot has lost nothing any more: take its mark away."""
        with self._engine.store.catalog.transaction() as db:
            db.execute('UPDATE snapshot SET damaged_ns = NULL WHERE number = ?', (view,))
            db.execute('UPDATE volume SET damaged_ns = NULL WHERE number = ?', (view,))
        self._engine.note_damage(view, None)
        self._engine.core.forget_damage(view)

    async def unmark_whole(self) -> None:
        """Look whether what came back was all that marked volumes and snapshots had lost."""
        store = self._engine.store
        await self._world.run_in_thread(store.lost_packs.look)
        marked: list[tuple[int, bytes]] = []
        known: set[bytes] = set()

        def ask() -> WholeSpec:
            known.update(store.chunks.unreadable)
            marked.extend(store.catalog.query(MARKED))
            return WholeSpec(store.path, store.superblock.uuid, tuple(root for _, root in marked))

        found: Whole = await self._collecting.look('survey', ask)
        for (view, _), whole in zip(marked, found.whole, strict=True):
            # What was found lost meanwhile may be theirs.
            if whole and store.chunks.unreadable <= known:
                self.unmark(view)
        if not store.chunks.unreadable:
            self._engine.core.forget_damage(0)  # what was told of no view in particular


def _whole(reader: Reader, ids: tuple[bytes, ...], asker: Asker | None) -> Iterator[bytes]:
    for id in ids:
        if asker is not None and asker.gone:
            return
        if any(is_whole(reader, place) for place in reader.places_of(id)):
            yield id
