"""A history: people, a collector and accidents on one store, all decided by a seed, held against a model.

The volumes and snapshots are those of the crash tests (tests/crash/run.py), with contents that come again and
again, so that what one deletes another has. Beside that the collector takes its steps, time passes, and what
the seed's kind of accident is happens. `check` reads everything and lets the detector walk the store.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import trio

from snapfs.collect import configuration
from snapfs.collect.states import batches
from snapfs.errors import Corrupt, Held, Invalid, Latched, Refused, Unavailable
from snapfs.format.ids import data_id
from snapfs.service.collecting import Collecting
from snapfs.store.store import Store
from snapfs.volume.engine import Engine
from tests.crash.oracle import Found, Registry
from tests.crash.run import ImagingDisk, Profile
from tests.sim.collect_kit import Again, thaw
from tests.sim.collect_people import People
from tests.sim.collect_settle import settle
from tests.sim.collect_walker import Walker
from tests.sim.collect_world import StillWorld
from tests.sim.disk import PowerCut
from tests.support.collecting import DAY, forget, job_in_process, small_packs
from tests.support.fsck import damages
from tests.support.model import Node, freeze_view

YEAR = 365.25 * DAY
SAFETY = 'before-rollback-'
PEOPLE = {
    'file': 40, 'sync': 3, 'commit': 4, 'flush': 2, 'open_unlinked': 1, 'volume': 1, 'snapshot': 8,
    'delete': 7, 'undelete': 4, 'clone': 2, 'rollback': 2, 'volume_delete': 2, 'hold': 2, 'release': 2,
}  # fmt: skip
MACHINE = {
    'again': 8, 'collect': 10, 'beside': 10, 'cancelled': 3, 'approve': 5, 'release_early': 1, 'wait': 10,
    'jump': 3, 'suspend': 2,
    'configure': 2, 'reopen': 2, 'tick': 2, 'check': 1, 'ask': 1,
}  # fmt: skip
# What may happen besides, by the kind of accident.
ACCIDENTS: dict[str, dict[str, int]] = {
    'calm': {},
    'crash': {'power_cut': 5, 'killed': 4},
    'errors': {'read_errors': 6, 'full': 4},
}
PROFILE = Profile('history', PEOPLE, sizes=12_000)


class History(People):
    """One seed. `kind` is one of ACCIDENTS."""

    def __init__(self, folder: Path, kind: str, seed: int, steps: int = 60) -> None:
        super().__init__(folder, PROFILE, seed)
        self.kind = kind
        self.length = steps
        self.chance = random.Random(f'{kind} {seed}')
        self.world: StillWorld = StillWorld(seed)
        self.walker = Walker()
        self.lives = 0
        self.asked: dict[tuple[str, int], float] = {}
        self.early: set[tuple[str, int]] = set()
        self.grace = 7 * DAY  # the shortest that was ever configured
        self.crashed = False
        self.failing: int | None = None  # so many reads of a recount work, then one fails
        self.counts: dict[str, int] = {}
        self.errors: list[str] = []
        self.past: list[bytes] = []  # contents that were written once

    def note(self) -> str:
        """What to say of a failure; it replays."""
        return f'{self.kind} seed {self.seed}, after {", ".join(self.steps[-8:])}'

    def trace(self) -> str:
        """Return a digest of all that was done and of what came of it: equal seeds have equal ones."""
        rows = self.engine.store.catalog.query('SELECT hex(id) FROM chunk ORDER BY id')
        return data_id(repr((self.steps, self.counts, self.disk.history, rows)).encode()).hex()[:16]

    def count(self, what: str, number: int = 1) -> None:
        self.counts[what] = self.counts.get(what, 0) + number

    # --- lives -------------------------------------------------------------------------------------------
    async def open(self) -> None:
        Store.create(self.path, self.disk, self.world).close(clean=True)
        await self._open_engine()
        await self.volume()
        if self.chance.random() < 0.7:
            self.configure_to('limit-share', '100%')

    async def _open_engine(self) -> None:
        self.engine = await Engine.open(self.path, self.disk, self.world)
        small_packs(self.engine, *self.chance.choice([(64_000, 32_000), (20_000, 8000), (400_000, 100_000)]))
        self.engine.store.journal.bytes_max = self.profile.journal_bytes
        self.collecting = Collecting(self.engine, self.world, self._runner())
        await self.collecting.begin()
        for number, pair in self.pairs.items():
            pair.head = self._head(number)

    def _runner(self) -> Callable[..., Awaitable[Any]]:
        run = job_in_process(self.world)

        async def guarded(spec: Any, progress: Callable[[int, int], None]) -> Any:
            for _ in range(self.chance.randrange(4)):
                await trio.lowlevel.checkpoint()
            self.count(type(spec).__name__)
            return await run(spec, progress)

        return guarded

    async def reopen(self) -> None:
        before = self.oracle.now
        await self.collecting.stop()
        await self.engine.close()
        self.oracle.promised(before)
        if self.chance.random() < 0.3:
            self.world.restart_machine()
        await self._open_engine()

    def _add_pair(self, head: Any, root: Node | None = None) -> None:
        super()._add_pair(head, root)
        number = head.row.volume
        seed = self.chance.randrange(1 << 30)
        self.workloads[number] = Again(self.pairs[number], seed, self.profile.sizes, self.past)

    # --- the whole ---------------------------------------------------------------------------------------
    async def run(self) -> None:
        await self.open()
        weights = {**PEOPLE, **MACHINE, **ACCIDENTS[self.kind]}
        for _ in range(self.length):
            await self.step(self.chance.choices(list(weights), list(weights.values()))[0])
            self.reconcile()
        await self.check()
        self.fsck('in use')
        await settle(self)
        await self.check()
        self.fsck('settled')
        self.count('packs gone', self._packs_gone())
        self.traced = self.trace()
        self.engine.store.close(clean=False)
        self.fsck('closed')
        self.disk.forget()

    def fsck(self, when: str) -> None:
        """Whoever shares nothing with the store finds nothing wrong with it."""
        found = damages(self.path)
        assert not found, f'{self.note()}: fsck, {when}: {found[:3]}'

    def _packs_gone(self) -> int:
        return (self.path / 'audit.log').read_text().count('"pack-gone"')

    def reconcile(self) -> None:
        """Take notice of requests that are fulfilled: none may be before its grace has really passed."""
        standing = {(row.kind, row.view) for row in self.engine.request_list()}
        for key in list(self.oracle.registry.requests):
            self.asked.setdefault(key, self.world.passed)
            if key not in standing:
                self._fulfilled(key)
                self.oracle.registry = self.oracle.registry.without_request(*key)
        for key in list(self.asked):
            if key not in self.oracle.registry.requests:
                del self.asked[key]

    def _fulfilled(self, key: tuple[str, int]) -> None:
        waited = self.world.passed - self.asked.get(key, self.world.passed)
        assert waited >= self.grace or key in self.early, f'{self.note()}: L5: {key} after {waited} s'
        self.count('fulfilled')

    # --- the machine -------------------------------------------------------------------------------------
    async def _guarded(self, work: Callable[[], Awaitable[Any]]) -> None:
        """Let the collector do something; what it may refuse, and an alarm never."""
        try:
            report = await work()
        except Latched as error:
            raise AssertionError(f'{self.note()}: a false alarm: {error}') from error
        except (Held, Unavailable) as error:
            self.errors.append(str(error))
        except Invalid as error:  # taken back between the look at the batch and its recount
            assert 'is not in quarantine' in str(error), f'{self.note()}: {error!r}'
        except (Corrupt, Refused) as error:
            assert self.kind == 'errors', f'{self.note()}: {error!r}'
            self.errors.append(str(error))
        else:
            if isinstance(report, dict) and 'freed' in report:
                self.count('batches freed', len(report['freed']))
                self.count('batches quarantined', sum(not hasattr(r, 'plan') for r in report['quarantined']))

    async def collect(self) -> None:
        await self._guarded(self.collecting.collect)

    async def tick(self) -> None:
        await self._guarded(self.collecting._tick)

    async def file(self) -> None:
        for _ in range(self.chance.randrange(1, 5)):
            await super().file()

    async def ask(self) -> None:
        """Ask what it would free, or for a proof of nothing: neither changes anything."""
        deleted = [
            ('snapshot', row.number) for row in self.engine.snapshot_list() if self.chance.random() < 0.5
        ]
        if deleted:
            await self._guarded(lambda: self.collecting.what_if(deleted))

    async def beside(self) -> None:
        """The collector works while people do."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._guarded, self.collecting.collect)
            names = list(PEOPLE)
            for _ in range(self.chance.randrange(1, 9)):
                for _ in range(self.chance.randrange(12)):
                    await trio.lowlevel.checkpoint()
                await self.step(self.chance.choices(names, list(PEOPLE.values()))[0])

    async def cancelled(self) -> None:
        """The collector is told to stop in the middle of its work."""
        scope = trio.CancelScope()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._cancel_later, scope)
            with scope:
                await self._guarded(self.collecting.collect)

    async def _cancel_later(self, scope: trio.CancelScope) -> None:
        for _ in range(self.chance.randrange(80)):
            await trio.lowlevel.checkpoint()
        scope.cancel()

    async def approve(self) -> None:
        for waiting in list(self.collecting.waiting.values()):
            await self.collecting.approve(waiting.plan.digest, 'bob')

    async def release_early(self) -> None:
        """A person lets a batch be freed before its grace is over."""
        rows = batches(self.engine.store.catalog, 'QUARANTINED')
        if rows:
            row = self.chance.choice(rows)
            await self.collecting.approve(row.digest, 'bob')
            self.early |= {(r.kind, r.view) for r in self.engine.request_list() if r.batch == row.number}

    async def wait(self) -> None:
        self.world.advance(self.chance.choice([60.0, 3700.0, 2 * DAY, 4 * DAY, 8 * DAY]))

    async def jump(self) -> None:
        now = self.world.time_ns() / 1e9
        wanted = now + self.chance.choice([1, -1]) * self.chance.choice([1.0, 3600.0, DAY, YEAR, 30 * YEAR])
        self.world.jump(min(max(wanted, 0.0), 200 * YEAR) - now)
        await self.collect()

    async def suspend(self) -> None:
        self.world.suspend(self.chance.choice([10.0, 3600.0, DAY, 60 * DAY]))
        await self.collect()

    async def configure(self) -> None:
        name, text = self.chance.choice([
            ('grace-kept', '1d'), ('grace-kept', '30d'), ('grace-dropped', '2h'), ('limit-share', '30%'),
            ('limit-share', '100%'), ('repack-waste', '10%'), ('repack-waste', '90%'),
        ])  # fmt: skip
        self.configure_to(name, text)

    def configure_to(self, name: str, text: str) -> None:
        store = self.engine.store
        configuration.change(store.catalog, store.audit, name, text, 'ann')
        self.grace = min(self.grace, self.collecting.collector.configuration().grace_kept_ns / 1e9)

    # --- accidents ---------------------------------------------------------------------------------------
    async def power_cut(self) -> None:
        """The power goes at one of the next events, or now."""
        await self._end(lambda: self._cut_at(self.chance.choice([3, 10, 30, 80])), None)

    def _cut_at(self, count: int) -> None:
        self.disk.cut_at = self.disk.events + self.chance.randrange(1, count + 1)

    async def killed(self) -> None:
        """The process is killed; what it wrote, it wrote."""
        await self._end(self._kill_at, 1.0)

    def _kill_at(self) -> None:
        self.world.kill_at = self.world.hand_overs + self.chance.randrange(1, 60)

    async def _end(self, arm: Callable[[], None], keep: float | None) -> None:
        arm()
        try:
            try:
                await self.chance.choice([self.collect, self.beside, self.beside, self.cancelled])()
            except BaseExceptionGroup as group:
                if group.subgroup(PowerCut) is None:  # else what the other tasks met then is debris
                    raise
                raise PowerCut('in a task') from group
        except PowerCut:
            self.count('ends in the middle')
        self.disk.cut_at = self.world.kill_at = None
        await self._next_life(keep)

    async def _next_life(self, keep: float | None) -> None:
        """Go on with what the end of the process left, which may be cut again while it is opened."""
        allowed = self.oracle.allowed()
        for again in range(10):
            self._bury(keep)
            if self.chance.random() < 0.2 and again < 3:
                self.disk.cut_at = self.chance.randrange(1, 12)
            try:
                self.engine = await Engine.open(self.path, self.disk, self.world)
                self.collecting = Collecting(self.engine, self.world, self._runner())
                await self.collecting.begin()
                break
            except PowerCut:
                self.engine = None  # type: ignore[assignment]
                keep = None
        self.disk.cut_at = None
        small_packs(self.engine)
        self.engine.store.journal.bytes_max = self.profile.journal_bytes
        self.crashed = True
        await self._compare(allowed)

    def _bury(self, keep: float | None) -> None:
        self.lives += 1
        self.count('lives')
        folder = self.folder / f'life-{self.lives}'
        old, root = self.disk, self.disk.root
        old.crash(self.chance.randrange(1 << 30), folder, keep)
        if self.engine is not None:
            self.engine.closed = True
            with contextlib.suppress(PowerCut):
                self.engine.store.close(clean=False)
        old.forget()
        shutil.rmtree(root)
        self.disk = ImagingDisk(folder, self.seed + self.lives)
        self.path = folder / 'store'
        self.walker.forget()
        if keep is None and self.chance.random() < 0.7:
            self.world.restart_machine()

    async def _compare(self, allowed: Any) -> None:
        """What is there is one of the moments that a crash may leave (P5, P6); the model goes on from it."""
        found, named = await self._look(allowed)
        moment = allowed.match(found)
        assert moment is not None, f'{self.note()}: {allowed.explain(found)}'
        self.oracle.registry, self.oracle.pending = named, None
        self.pairs, self.workloads = {}, {}
        for head in self.engine.heads().values():
            self._add_pair(head, await thaw(head))
        for row in self.engine.snapshot_list():
            view = self.engine.snapshot_view(row.number)
            assert view is not None
            self.models[row.number] = await thaw(view)
        for request in self.engine.request_list():
            view = self.engine.snapshot_view(request.view)
            if view is not None:
                self.models[request.view] = await thaw(view)
            assert request.view in self.models
        self._record()
        self.oracle.births |= found.volumes
        self.oracle.promised(self.oracle.now)

    async def _look(self, allowed: Any) -> tuple[Found, Registry]:
        names, trees = {}, {}
        for head in self.engine.heads().values():
            names[head.row.volume] = head.name
            trees[head.row.volume] = await freeze_view(head)
        snapshots, named = {}, {}
        for row in self.engine.snapshot_list():
            view = self.engine.snapshot_view(row.number)
            assert view is not None
            tree = named[row.volume, row.name] = await freeze_view(view)
            unknown = row.name.startswith(SAFETY) and not allowed.names(row.volume, row.name)
            snapshots[row.volume, 'safety' if unknown else row.name] = tree
        requests = {}
        for request in self.engine.request_list():
            key = request.kind, request.view
            view = self.engine.snapshot_view(request.view)
            if view is not None:
                requests[key] = await freeze_view(view)
            else:  # condemned: reading it would be an alarm. The detector looks at it
                requests[key] = allowed.registry.requests.get(key)
        # Requests that were fulfilled before the end are there no more.
        pending = allowed.pending or allowed
        for key, tree in allowed.registry.requests.items():
            if key in requests:
                continue
            taken_back = allowed.match(Found(Registry(names, snapshots, requests), trees)) is not None
            if key in pending.registry.requests or not taken_back:
                self._fulfilled(key)
                requests[key] = tree
        standing = {(row.kind, row.view) for row in self.engine.request_list()}
        kept = {key: tree for key, tree in requests.items() if key in standing}
        return Found(Registry(names, snapshots, requests), trees), Registry(names, named, kept)

    def maybe_fail(self, what: str) -> None:
        """Called before each read of a recount."""
        if self.failing is not None:
            self.failing -= 1
            if self.failing < 0:
                self.failing = None
                self.count('read errors')
                raise OSError(errno.EIO, os.strerror(errno.EIO))

    async def read_errors(self) -> None:
        """A read of the collector fails."""
        if self.chance.random() < 0.5:
            self.failing = self.chance.randrange(15)
        else:
            self.disk.fail('read', errno.EIO, after=self.chance.randrange(100))
        await self.collect()
        self.failing = None
        self.disk._faults.clear()
        await self.reopen()

    async def full(self) -> None:
        """The disk below is full while the collector works."""
        self.disk.space = self.chance.randrange(60_000)
        await self.collect()
        self.disk.space = None
        if self.chance.random() < 0.5:
            await self.reopen()

    # --- what must be true -------------------------------------------------------------------------------
    async def check(self) -> None:
        """Everything that stands is there, by the mount's way and by the detector's; no alarm was raised."""
        self.reconcile()
        latched = self.collecting.collector.incidents.latched()
        assert latched is None, f'{self.note()}: a false alarm: {latched}'
        forget(self.engine)
        for pair in self.pairs.values():
            await pair.check()
        for row in self.engine.snapshot_list():
            view = self.engine.snapshot_view(row.number)
            promised = self.oracle.registry.snapshots[row.volume, row.name]
            assert await freeze_view(view) == promised, f'{self.note()}: {row.name} is not what it was (P6)'
        for request in self.engine.request_list():
            view = self.engine.snapshot_view(request.view)
            if view is not None:
                promised = self.oracle.registry.requests[request.kind, request.view]
                assert await freeze_view(view) == promised, f'{self.note()}: request {request.number}'
        walk = self.walker.walk(self.path)
        assert not walk.lost, f'{self.note()}: lost: {list(walk.lost.values())[:3]}'
        latched = self.collecting.collector.incidents.latched()
        assert latched is None, f'{self.note()}: a read was an alarm: {latched}'
