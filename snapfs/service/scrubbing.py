"""L6 scrubbing: verifies the store in the background, and says how much of what was verified when. Event
loop only.

A scrub goes through its slots in passes. A pass is one job of a process of its own; the collector does not
run meanwhile (L18). At its end its slots are recorded in one transaction, so what is interrupted loses one
pass. Damage is written down, the volumes and snapshots that need it are marked, and the collector stops
until a person has looked: somebody who deletes should know first what is whole. Readers and writers go on
(P7)."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import Any

from snapfs import limits
from snapfs.collect.incidents import Alarm
from snapfs.errors import Latched, SnapfsError
from snapfs.rescue.scrub_values import SLOTS, Scrubbed, ScrubSpec
from snapfs.service.collecting import Collecting
from snapfs.service.putting_back import PutBack, PuttingBack
from snapfs.service.whole_again import WholeAgain
from snapfs.store import damage

log = logging.getLogger('snapfs.scrub')

Object = dict[str, Any]
SECOND_NS = 10**9
NAMES_TOLD = 5  # in one line of an incident; `snapfs damage` tells all


class Scrubbing:
    """The scrubs of one store. They use the collector's lock: one thing at a time looks through
    everything."""

    def __init__(self, collecting: Collecting) -> None:
        self._collecting = collecting
        self._engine = collecting.engine
        self._world = collecting.world

    async def run(
        self,
        slots: Iterable[int],
        rate: int,
        *,
        again: bool = False,
        told: Callable[[int], None] | None = None,
    ) -> Object:
        """Verify these slots; `again`: also those that were verified a moment ago. Latched while the store is
        read-only: nothing could be recorded."""
        store = self._engine.store
        if store.latched is not None:
            raise store.disk.refusal('the store is read-only: ')
        look = partial(self._collecting.collector.look_at_catalog, again=again)
        problem = await self._world.run_in_thread(look)
        wanted = tuple(slots)
        todo = list(wanted) if again else self._stale(wanted, limits.SCRUB_FRESH_NS)
        fresh = set(wanted) - set(todo)
        report: Object = {
            'slots': 0,
            'skipped': len(wanted) - len(todo),
            'chunks': 0,
            'bytes': 0,
            'bad': 0,
            'catalog': problem,
            'due_ns': self._oldest(fresh) + limits.SCRUB_FRESH_NS if fresh else None,
            'put_back': {'packs': 0, 'nodes': 0},
            'whole_again': 0,
        }
        # Nodes are about a hundredth of all that is read. Whoever was told by fsck that this puts them back
        # must not find that they were verified a moment ago.
        back = await self._put_back(every_node=len(wanted) == SLOTS)
        while todo:
            take = self._pass_slots(len(todo))
            found, more, whole = await self._pass(todo[:take], rate)
            back = back.and_also(more)
            todo = todo[take:]
            report['slots'] += len(found.slots)
            report['bad'] += found.bad_count
            report['whole_again'] += whole
            report['chunks'] += sum(one.chunks for one in found.slots)
            report['bytes'] += sum(one.bytes for one in found.slots)
            if told is not None:
                told(report['slots'])
        report['put_back'] = {'packs': back.packs, 'nodes': len(back.nodes)}
        return report

    async def schedule(self) -> None:
        """Verify what is due, for as long as the daemon runs. Nobody dies of it, and nothing is hidden."""
        while True:
            await self._world.sleep(limits.SCRUB_TICK_SECONDS)
            try:
                await self.tick()
            except Latched as error:
                log.critical('the scrub has stopped the collector: %s', error)
            except SnapfsError as error:
                log.warning('the scrub did not go on: %s', error)
            except Exception:
                log.exception('bug: the scrub failed')

    async def back_up(self) -> None:
        """Keep backups of the catalog and second copies of nodes, for as long as the daemon runs: once a
        minute, and a backup a moment after names of volumes or snapshots have changed."""
        changes = 0

        def note(what: str, volume: int, name: str, number: int) -> None:
            nonlocal changes
            changes += 1

        self._engine.on_change(note)
        store, world = self._engine.store, self._world
        kept = full = world.monotonic()
        seen, pause = 0, 0.0
        await world.run_in_thread(store.keep_copies)
        while True:
            await world.sleep(limits.BACKUP_NAMES_SECONDS)
            began = world.monotonic()
            if began - full >= limits.BACKUP_SECONDS:
                full, work = began, store.keep_copies
            elif changes != seen and began - kept >= pause:
                work = store.keep_names
            else:
                continue
            seen = changes
            await world.run_in_thread(work)
            kept = world.monotonic()
            pause = limits.BACKUP_SHARE * (kept - began)

    async def tick(self) -> None:
        """One step of the schedule, about once an hour: verify what is due. One pass, with the lowest
        rate."""
        configuration = self._collecting.collector.configuration()
        if not configuration.scrub_ns or self._engine.store.latched is not None:
            return
        await self._world.run_in_thread(self._collecting.collector.look_at_catalog)
        due = self._stale(range(SLOTS), configuration.scrub_ns)
        share = max(1, SLOTS * limits.SCRUB_TICK_SECONDS * SECOND_NS // configuration.scrub_ns + 1)
        if due:
            await self._pass(due[: min(share, self._pass_slots(len(due)))], configuration.scrub_rate)

    def _stale(self, slots: Iterable[int], age_ns: int) -> list[int]:
        """Return the slots whose last verification is older than this, or from a clock that was ahead; the
        oldest first."""
        now = self._world.time_ns()
        # Where something was bad or found lost since, it may have been recovered, or the disk gives it again.
        text = 'SELECT slot, verified_ns FROM scrubbed WHERE bad = 0'
        seen = dict(self._engine.store.catalog.query(text))
        for id in self._known_lost():
            seen.pop(_slot(id), None)
        stale = [slot for slot in slots if not now - age_ns < seen.get(slot, -1) <= now]
        return sorted(stale, key=lambda slot: seen.get(slot, -1))

    def _oldest(self, slots: set[int]) -> int:
        """Return when the first of these slots was verified."""
        rows = self._engine.store.catalog.query('SELECT slot, verified_ns FROM scrubbed')
        return min(int(verified) for slot, verified in rows if slot in slots)

    def _pass_slots(self, most: int) -> int:
        """Return how many slots a pass takes, so that it is bounded in chunks and in bytes."""
        count, stored = self._engine.store.catalog.query(
            'SELECT count(*), coalesce(sum(stored), 0) FROM chunk'
        )[0]
        by_rows = SLOTS * limits.SCRUB_ROWS_MAX // max(count, 1)
        by_bytes = SLOTS * limits.SCRUB_BYTES_PASS // max(stored, 1)
        return int(max(1, min(most, by_rows, by_bytes)))

    async def _pass(self, slots: list[int], rate: int) -> tuple[Scrubbed, PutBack, int]:
        """Read some slots; return what is bad in the end, what came back of what was, and how many chunks
        that were known to be lost are whole again."""
        store = self._engine.store
        spec = ScrubSpec(store.path, store.superblock.uuid, tuple(slots), rate)
        found: Scrubbed = await self._collecting.look('scrub', lambda: spec)
        back = PutBack()
        if found.bad_count:
            # Here and now, before anything else gets a turn: a collection that begins sees that all is not
            # well.
            self._engine.core.report_damage(f'a scrub found {found.bad_count} damaged chunks', 0)
            store.chunks.unreadable.update(one.id for one in found.bad)
            await self._world.run_in_thread(self._record_damage, found)
            if await self._world.run_in_thread(self._has_nodes, found):
                back = await self._put_back(every_node=True)
                found = self._still_bad(found)
            if found.bad_count:
                await self._damaged(found)
            else:
                self._engine.core.forget_damage(0)
        whole = await self._look_again(found)
        # Last: what was not told to the end is not verified, and is read again.
        await self._world.run_in_thread(self._record, found)
        return found, back, whole

    def _known_lost(self) -> tuple[bytes, ...]:
        # Taken at once: threads that read add to it, and a loop over it would end in their midst.
        return tuple(self._engine.store.chunks.unreadable)

    async def _look_again(self, found: Scrubbed) -> int:
        """Take back what was said of losses in these slots that are none any more."""
        slots, bad = {one.slot for one in found.slots}, {one.id for one in found.bad}
        known = [id for id in self._known_lost() if _slot(id) in slots and id not in bad]
        again = WholeAgain(self._collecting)
        whole = await again.look(known)
        if whole:
            await again.unmark_whole()
        return whole

    def _has_nodes(self, found: Scrubbed) -> bool:
        """Say whether any of what is bad is a node: only these have second copies."""
        text = 'SELECT 1 FROM chunk WHERE id = ? AND kind = 2'
        return any(self._engine.store.catalog.query(text, (one.id,)) for one in found.bad)

    def _still_bad(self, found: Scrubbed) -> Scrubbed:
        """Return what was found, without the nodes that came back since."""
        unreadable = self._engine.store.chunks.unreadable
        left = tuple(one for one in found.bad if one.id in unreadable)
        counts = Counter(_slot(one.id) for one in found.bad if one.id not in unreadable)
        slots = tuple(replace(one, bad=one.bad - counts[one.slot]) for one in found.slots)
        return replace(found, slots=slots, bad=left, bad_count=found.bad_count - counts.total())

    async def _put_back(self, *, every_node: bool) -> PutBack:
        """Put back nodes from their second copies. The collector stops when there was something to put back:
        the disk that has lost it should be looked at before anything is deleted."""
        back = await PuttingBack(self._collecting).run(every_node)
        if back:
            text = f'a scrub found {back.text()} damaged, and put back what they had from second copies'
            await self._collecting.halt(Alarm(text))
        return back

    def _record(self, found: Scrubbed) -> None:
        now, catalog = self._world.time_ns(), self._engine.store.catalog
        rows = [(one.slot, found.epoch, now, one.chunks, one.bytes, one.bad) for one in found.slots]
        with catalog.transaction() as db:
            db.executemany('INSERT OR REPLACE INTO scrubbed VALUES (?, ?, ?, ?, ?, ?)', rows)

    def _record_damage(self, found: Scrubbed) -> None:
        lost = {one.id: one.why for one in found.bad}
        damage.record(self._engine.store.catalog, lost, damage.SCRUB, self._world.time_ns())

    async def _damaged(self, found: Scrubbed) -> None:
        """Mark who needs what is lost, and stop the collector."""
        from snapfs.collect.why_values import WhySpec

        store = self._engine.store
        ids = tuple(one.id for one in found.bad[: limits.WHY_CHUNKS_MAX])
        names: list[str] = []
        nobody = 'nobody who stands is known to need it'
        try:
            why = await self._collecting.look('why', lambda: WhySpec(store.path, store.superblock.uuid, ids))
            names = [one.name for one in why.keepers if one.kind in ('volume', 'snapshot')]
            for one in why.keepers:
                self._mark(one.kind, one.number, one.name)
        except (
            Exception
        ) as error:  # a lost node: then nobody can be told apart, and the damage stands all the same
            log.error('who needs what is lost cannot be told: %s', error)
            nobody = 'who needs it cannot be told'
        where = f'in {_few_of(names)}' if names else nobody
        first = found.bad[0].why if found.bad else 'see the log'
        text = f'a scrub found {found.bad_count} damaged chunks, {where}: {first}'
        evidence = {'scrub.json': {one.id.hex(): one.why for one in found.bad[:1000]}}
        await self._collecting.halt(Alarm(text, evidence))

    def _mark(self, kind: str, number: int, name: str) -> None:
        view = number
        if kind == 'volume':
            head = self._engine.head_of_volume(number)
            if head is None:
                return
            view = head.number
        elif kind != 'snapshot':
            return
        self._engine.core.report_damage(f'a scrub found damaged chunks that {name} needs', view)


def _few_of(names: list[str]) -> str:
    more = f' and {len(names) - NAMES_TOLD} more' if len(names) > NAMES_TOLD else ''
    return ', '.join(names[:NAMES_TOLD]) + more


def _slot(id: bytes) -> int:
    return int.from_bytes(id[:2], 'big') >> 4
