"""L6 collecting: drives the collector of an open store: when, where, what to tell. Event loop only.

One batch moves at a time, under `_lock`. The recounts and the proof run in worker processes; rows move in
threads, slice by slice, with a pause as long as the slice after each, for the mount's users. An undelete
ends a move. One that ends half way leaves a batch that goes back. Only what is confirmed goes on."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any, TypeVar, cast

import trio

from snapfs import limits
from snapfs.collect import approvals
from snapfs.collect.collector import Chosen, Collector, Swept
from snapfs.collect.incidents import Alarm
from snapfs.collect.plan import Plan
from snapfs.collect.recount_values import Recount, RecountSpec
from snapfs.collect.states import FREED, QUARANTINED, RESTING, BatchRow, batch, batches
from snapfs.errors import Held, Invalid, SnapfsError, Unavailable
from snapfs.service.logged import logged
from snapfs.service.moves import Move, Waiting, held
from snapfs.service.planting import plant
from snapfs.service.sockets import Asker
from snapfs.store.horizon import PutRecord
from snapfs.store.lock import without_verifiers
from snapfs.store.rows import RequestRow
from snapfs.world import World

if TYPE_CHECKING:
    from snapfs.volume.engine import Engine

__all__ = ['Collecting', 'Move', 'Waiting']

log = logging.getLogger('snapfs.collect')
T = TypeVar('T')
Runner = Callable[[Any, Callable[[int, int], None]], Awaitable[Any]]


class Collecting:
    """The collector of an engine, at work. `runner(specification, progress)` runs recounts and proofs."""

    def __init__(
        self,
        engine: Engine,
        world: World,
        runner: Runner,
        pinned: Callable[[], frozenset[int]] = frozenset,
    ) -> None:
        self.engine = engine
        self.world = world
        self.collector = Collector(engine.store, world)
        self.waiting: dict[str, Waiting] = {}
        self.move: Move | None = None
        self.last: dict[str, Any] = {}
        self.stopped = False
        self._runner = runner
        self.pinned = pinned
        self._lock = trio.Lock()
        self._running = trio.CancelScope()
        self._wake = trio.Event()
        self._alarms: list[str] = []
        self._token = trio.lowlevel.current_trio_token()
        self._next_ns = 0
        engine.take_back = self.take_back
        engine.standstill = self.collector.incidents.latched
        engine.store.chunks.on_condemned = self._read_alarm

    # --- the schedule ------------------------------------------------------------------------------------
    async def begin(self) -> None:
        """After opening: what a crash has left half decided goes back. Nobody is kept out by it (P7)."""
        await self._guarded(lambda: self._thread(self.collector.recover))
        await self._guarded(self.engine_changed)

    async def run(self, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        """Begin, and collect on the schedule until `stop`."""
        begun = False
        with self._running:
            await self.begin()
            begun = True
            task_status.started()
            self._next_ns = await self._thread(self.collector.clock.tick) + limits.COLLECT_FIRST_NS
            while True:
                with trio.move_on_after(limits.COLLECT_TICK_SECONDS):
                    await self._wake.wait()
                self._wake = trio.Event()
                await self._guarded(self._tick)
        if not begun:  # stopped before it began
            task_status.started()

    async def stop(self) -> None:
        """Before the store is closed: end what moves. What is confirmed goes on at the next opening."""
        self.stopped = True
        self._running.cancel()
        if self.move is not None:
            self.move.scope.cancel()
        async with self._lock:
            self.end_plans(None)
            if self.engine.store.latched is None:
                await self._thread(self.collector.clock.save)

    async def _tick(self) -> None:
        # In a thread: it may write, and would hold up every request until somebody else's commit is done.
        now = await self._thread(self.collector.clock.tick)
        if self._alarms:
            await self._answer_alarms()
        configuration = self.collector.configuration()
        if not configuration.automatic or self.collector.incidents.latched():
            return
        if now >= self._next_ns:
            self._next_ns = now + configuration.interval_ns
            await self.collect()
        elif await self._thread(self.collector.due):
            await self.collect(fresh=False)

    async def _guarded(self, work: Callable[[], Awaitable[object]]) -> None:
        """Do a step of background work. Nobody dies of it, and nothing is hidden."""
        try:
            await work()
        except Alarm:
            log.critical('the collector stands still until a person has looked')
        except SnapfsError as error:
            if self.last.get('error') != str(error):
                log.warning('the collector did not go on: %s', error)
            self.last['error'] = str(error)
        except Exception as error:
            log.exception('bug: the collector failed')
            with logged('not all that is condemned came back; the collector stands still all the same'):
                await self.halt(
                    Alarm(f'a bug in the collector: {error!r}', {'bug.json': {'error': repr(error)}})
                )

    # --- collecting --------------------------------------------------------------------------------------
    async def collect(self, *, fresh: bool = True) -> dict[str, Any]:
        """Do all that is due, now; `fresh`: also put new batches into quarantine. Return what was done.

        Latched, Held (L18). Alarm when a guard fell; the collector has stopped then.
        """
        async with self._lock:
            try:
                with without_verifiers(self.engine.store.disk, self.engine.store.path):
                    report = await self._collect(fresh)
            except Alarm as alarm:
                with trio.CancelScope(shield=True):
                    await self.halt(alarm)
                raise
        self.last.pop('error', None)
        self.last['report'] = report
        return report

    async def join(self) -> dict[str, Any] | None:
        """Wait for the collection that runs now, if one does; return what it did."""
        if not self._lock.locked():
            return None
        before = self.last.get('report')
        async with self._lock:
            pass
        report: dict[str, Any] | None = self.last.get('report')
        return None if report is before else report

    async def _collect(self, fresh: bool) -> dict[str, Any]:
        report: dict[str, Any] = {'freed': [], 'quarantined': [], 'waiting': [], 'swept': None}
        await self._thread(self.collector.check, self._troubles())
        # What a full disk or a crash has left half way first: one batch moves at a time.
        for row in await self._thread(self.collector.recover):
            report['freed'].append(await self._free(row))
        await self.engine_changed()
        for row in await self._thread(self._unproved):
            with self._moving('proof', frozenset(), row.number) as move:
                await self._prove(row, move, final=True)
        # Looked at again before each: one may have gone back while the batch before it was worked on.
        seen: set[object] = set()
        while rows := [row for row in await self._thread(self.collector.due) if row.number not in seen]:
            seen.add(rows[0].number)
            report['freed'].append(await self._second(rows[0]))
        if fresh:
            await plant(self.engine, self.world)
            while ways := [
                one
                for one in await self._thread(self.collector.choose, self.pinned())
                if one.grace_class not in seen
            ]:
                seen.add(ways[0].grace_class)
                done = await self._first(ways[0])
                report['quarantined' if isinstance(done, BatchRow) else 'waiting'].append(done)
        report['swept'] = await self._sweep()
        return report

    async def halt(self, alarm: Alarm) -> None:
        """A guard fell: the latch, then everything that is condemned comes back, plans included."""
        self.end_plans(None)
        await self._thread(self.collector.stop, alarm)
        await self.engine_changed()

    def end_plans(self, request: int | None) -> None:
        """End the plans that wait: all, or those with this request in them."""
        for name, waiting in list(self.waiting.items()):
            if request is None or request in waiting.chosen.numbers:
                del self.waiting[name]
                self.engine.store.chunks.stop_recording(waiting.record)
                if self.engine.store.latched is None:
                    self.collector.discard(waiting.plan.batch)

    def _troubles(self) -> list[str]:
        """Return what speaks against collecting, as far as the engine knows (L18)."""
        found = self.engine.trouble()
        return [] if found is None else [found]

    def _unproved(self) -> list[BatchRow]:
        """Return the freed batches whose last proof was broken off (L13)."""
        catalog = self.engine.store.catalog
        done = {number for (number,) in catalog.query("SELECT batch FROM receipt WHERE kind = 'certificate'")}
        return [row for row in batches(catalog, FREED) if row.number not in done]

    # --- from requests to quarantine ---------------------------------------------------------------------
    async def _first(self, chosen: Chosen) -> BatchRow | Waiting:
        """Recount 1, plan, limits, quarantine. Held when the move was ended by an undelete."""
        waiting = self.waiting.get(chosen.grace_class)
        if waiting is not None:
            reasons = await self._thread(self.collector.reasons, waiting.plan)
            if self.waiting.get(chosen.grace_class) is not waiting:
                raise _ended(waiting.chosen)  # while we looked
            if reasons or self._is_open(waiting.chosen):
                return waiting
            with self._moving('quarantine', waiting.chosen.numbers) as move:
                del self.waiting[chosen.grace_class]
                try:
                    return await self._condemn(waiting.plan, waiting.chosen, waiting.record, move)
                finally:
                    self.engine.store.chunks.stop_recording(waiting.record)
            raise _ended(waiting.chosen)
        with self._moving('recount 1', chosen.numbers) as move:
            return await self._plan_and_condemn(chosen, move)
        raise _ended(chosen)

    async def _plan_and_condemn(self, chosen: Chosen, move: Move) -> BatchRow | Waiting:
        record = await self.engine.horizon()
        keep, spec = False, None
        try:
            spec = await self._thread(self.collector.freeze, chosen)
            result: Recount = await self._run(spec, move)
            plan = await self._thread(self.collector.plan, chosen, spec, result)
            reasons = await self._thread(self.collector.reasons, plan)
            if reasons:
                waiting = Waiting(plan, chosen, record, tuple(reasons))
                self.waiting[chosen.grace_class] = waiting
                keep = True
                log.warning('a plan waits for approval: %s: %s', plan.digest.hex(), '; '.join(reasons))
                return waiting
            return await self._condemn(plan, chosen, record, move)
        finally:
            if not keep:
                self.engine.store.chunks.stop_recording(record)
                if spec is not None and self.engine.store.latched is None:
                    with trio.CancelScope(shield=True):
                        await self._thread(self.collector.discard, int(spec.out.name))

    async def _condemn(self, plan: Plan, chosen: Chosen, record: PutRecord, move: Move) -> BatchRow:
        move.stage, move.batch = 'quarantine', plan.batch
        finished = False
        try:
            self._check_open(chosen)
            await self._thread(self.collector.begin, plan)
            await self.engine_changed()
            self._check_open(chosen)  # from here on nobody can come to open anything of it
            await self._slices(self.collector.condemn(plan, record), move, plan.condemned)
            row = await self._thread(self.collector.rest, plan)
            finished = True
        finally:
            with trio.CancelScope(shield=True):
                try:
                    if not finished:
                        await self._thread(self._give_up, plan)
                finally:
                    await self.engine_changed()
        return row

    def _is_open(self, chosen: Chosen) -> bool:
        pinned = self.pinned()
        return any(row.view and row.view in pinned for row in chosen.requests)

    def _check_open(self, chosen: Chosen) -> None:
        """Reading what is condemned would be an alarm: what was opened since the choice waits."""
        if self._is_open(chosen):
            raise Held('something of a deleted snapshot is open; its batch begins when that is closed')

    def _give_up(self, plan: Plan) -> None:
        """A batch that did not get into quarantine as a whole goes back."""
        rows = self.engine.store.catalog.query(
            'SELECT 1 FROM batch WHERE number = ? AND digest = ?', (plan.batch, plan.digest)
        )
        if rows and self.engine.store.latched is None:
            self.collector.restore(plan.batch, 'its way into quarantine was interrupted')

    # --- from quarantine to freed ------------------------------------------------------------------------
    async def _second(self, row: BatchRow) -> BatchRow:
        """Recount 2, then free. Held when the move was ended by an undelete."""
        requests = frozenset(one.number for one in self.engine.request_list() if one.batch == row.number)
        confirmed = None
        with self._moving('recount 2', requests, row.number) as move:
            await self.engine.commit(always=True)
            spec, began = await self._thread(self.collector.mention_spec, row)
            result = await self._run(spec, move)
            confirmed = await self._thread(self.collector.confirm, row, began, result)
        if confirmed is None:
            raise Held(f'batch {row.number} goes back: a request of it was taken back')
        return await self._free(confirmed)

    async def _free(self, row: BatchRow) -> BatchRow:
        """Bring a confirmed batch to its end: the canary slice, a proof, the rest."""
        number = row.number
        with self._moving('free', frozenset(), number) as move:
            if not row.freed:
                await self._slices(self.collector.free(number, first=True), move, row.chunks)
            await self._prove(row, move, final=False)  # L11: also when the last attempt ended before it
            await self._slices(self.collector.free(number, first=False), move, row.chunks)
            freed = await self._thread(self.collector.finish, number)
            await self.engine_changed()
            self.last['swept'] = await self._sweep_packs()
            await self._prove(freed, move, final=True)
            return freed
        raise Unavailable(f'batch {number} was interrupted; it goes on later')

    async def _prove(self, row: BatchRow, move: Move, *, final: bool) -> None:
        """Have every reference of every root looked for (L13); the certificate is written at the end."""
        await self.engine.commit()
        stage, move.stage = move.stage, 'proof'
        spec = await self._thread(self.collector.proof_spec, row)
        result = await self._run(spec, move)
        await self._thread(self.collector.certify, row, result, final)
        move.stage = stage

    async def _sweep(self) -> Swept:
        """Remove and repack packs."""
        with self._moving('packs', frozenset()):
            return await self._sweep_packs()
        raise Unavailable('the sweep was interrupted')

    async def _sweep_packs(self) -> Swept:
        if await self._thread(self.collector.seal):
            await self.engine.commit(always=True)
        return await self._thread(self.collector.sweep, lambda: None)

    # --- steps -------------------------------------------------------------------------------------------
    @contextmanager
    def _moving(self, what: str, requests: frozenset[int], number: int | None = None) -> Iterator[Move]:
        """What is inside can be ended by an undelete of one of these requests; it then just ends."""
        if self.stopped:
            raise Unavailable('the store is being closed')
        move = Move(what, requests, number, what)
        self.move = move
        try:
            with move.scope:
                yield move
        finally:
            self.move = None
            move.done.set()

    async def _slices(self, steps: Iterator[int], move: Move, total: int) -> None:
        """Take each step in a thread, and pause as long as it took."""
        done = 0
        while True:
            began = self.world.monotonic()
            count = await self._thread(next, steps, None)
            if count is None:
                return
            done += count
            move.progress = (done, total)
            await self.world.sleep(min(self.world.monotonic() - began, limits.COLLECT_PAUSE_SECONDS_MAX))

    async def _run(self, spec: Any, move: Move) -> Any:
        """Run a recount or a proof where it disturbs nobody."""

        def progress(done: int, total: int) -> None:
            move.progress = (done, total)

        return await self._runner(spec, progress)

    async def _thread(self, function: Callable[..., T], *arguments: Any) -> T:
        return await self.world.run_in_thread(function, *arguments)

    # --- what people do ----------------------------------------------------------------------------------
    async def take_back(self, request: RequestRow) -> None:
        """Before a request is taken back: end what works on it. Held when it is too late."""
        number, move = request.number, self.move
        self.end_plans(number)
        if move is not None and number in move.requests:
            move.scope.cancel()
            await move.done.wait()
        row = await self._thread(self._batch_of, number)
        if row is not None:
            if row.state not in RESTING:
                raise Held(
                    f'request {number} cannot be taken back: batch {row.number} is being freed',
                    advice=f'What it did is in the audit log: snapfs audit --batch {row.number}.',
                )
            await self._thread(self.collector.restore, row.number, f'request {number} was taken back')
            await self.engine_changed()

    def _batch_of(self, request: int) -> BatchRow | None:
        rows = self.engine.store.catalog.query('SELECT batch FROM request WHERE number = ?', (request,))
        found = rows[0][0] if rows else None
        return None if found is None else batch(self.engine.store.catalog, found)

    async def approve(self, digest: bytes, who: str, aliases: frozenset[str] = frozenset()) -> dict[str, Any]:
        """Record a person's word for the plan or batch of this digest. Invalid, Held: nothing was changed.
        `aliases`: what else `who` may be called in a request."""
        waiting = [(one.plan, approvals.LIMITS) for one in self.waiting.values()]
        waiting += await self._thread(self._resting_plans)
        plan, what = approvals.find(self.engine.store.catalog, waiting, digest)
        assert plan.digest == digest, f'L10: {plan.digest.hex()} was found for {digest.hex()}'
        approvals.check_second(plan, aliases | {who})
        times = (self.world.time_ns(), await self._thread(self.collector.clock.tick))
        store = self.engine.store
        row = await self._thread(approvals.approve, store.catalog, store.audit, plan, what, who, times)
        self._next_ns = 0
        self._wake.set()
        return {'batch': plan.batch, 'what': what, 'who': row.who, 'until_trusted_ns': row.until_trusted_ns}

    def _resting_plans(self) -> list[tuple[Plan, str]]:
        rows = batches(self.engine.store.catalog, QUARANTINED)
        files = self.collector.batches.files
        return [(files.plan(row.number, row.digest), approvals.GRACE) for row in rows if not row.restoring]

    async def what_if(self, deleted: list[tuple[str, int]], mode: str = 'what-if') -> Recount:
        """Return what deleting ('request', number), ('snapshot', view) … would free. Changes nothing."""
        if not deleted and mode == 'what-if':
            raise Invalid('nothing was named')
        return cast(Recount, await self.look(mode, lambda: self.collector.what_if(deleted, mode)))

    async def look(self, what: str, make: Callable[[], Any], asker: Asker | None = None) -> Any:
        """Run a job that changes nothing, while no batch moves and `asker` is there; `make` specifies it as
        of now. Alarm when it saw that a recount was wrong: to ask is to look."""
        async with held(self._lock):
            if self.engine.store.latched is None:
                await plant(self.engine, self.world)
                await self.engine.commit()
            spec, result = await self._thread(make), None
            with self._moving(what, frozenset()) as move, (asker or Asker()).ends(move.scope.cancel):
                result = await self._run(spec, move)
            if result is None:
                raise Unavailable('it was interrupted')
            if isinstance(spec, RecountSpec):
                try:
                    self.collector.believe(spec, result)
                except Alarm as alarm:
                    with trio.CancelScope(shield=True):
                        await self.halt(alarm)
                    raise
            return result

    @asynccontextmanager
    async def still(self) -> AsyncIterator[None]:
        """No batch moves inside, and no plan that waits outlives it: there may be a root it knew not of."""
        async with held(self._lock):
            self.end_plans(None)
            yield

    # --- alarms ------------------------------------------------------------------------------------------
    def _read_alarm(self, id: bytes, table: str) -> None:
        """A chunk was needed that a batch had condemned. Called from any thread, in the middle of a read; the
        latch falls here and now, and what is condemned comes back as soon as the event loop gets to it."""
        self._alarms.append(f'P7: chunk {id.hex()} was read from {table}')
        if self.collector.incidents.latched() is None:
            self.collector.incidents.open(self._alarms[-1], {'read.json': {'id': id.hex(), 'table': table}})
        self._token.run_sync_soon(self._hear)

    def _hear(self) -> None:
        """End what moves and let the schedule answer."""
        if self.move is not None:
            self.move.scope.cancel()
        self._wake.set()

    async def _answer_alarms(self) -> None:
        reason, self._alarms = self._alarms[0], []
        async with self._lock:
            self.end_plans(None)
            await self._thread(self.collector.restore_all, reason)
            await self.engine_changed()

    async def engine_changed(self) -> None:
        """Tell the engine that requests have gone, or are in a batch."""
        await self.engine.reload_requests()


def _ended(chosen: Chosen) -> Held:
    return Held(f'the batch for {len(chosen.requests)} requests has ended: one of them was taken back')
