"""Runs one word of operations (alphabet.py) on a copy of a prepared store, with images of what a power cut
could leave at every event of its last operation, at its end, and in the commit that follows.

The events before the last operation are those of shorter words. The base has files, a snapshot of them, a
snapshot and a volume whose deletion is requested, and a volume that can be deleted; the collector has been
through everything older.
"""

from __future__ import annotations

import copy
import os
import random
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blake3 import blake3

from snapfs import limits
from snapfs.collect import configuration, reading, recount
from snapfs.collect.states import CONFIRMED, QUARANTINED, batch, batches
from snapfs.service.collecting import Collecting
from snapfs.store.rows import RequestRow
from snapfs.store.store import Store
from snapfs.volume.engine import Engine
from snapfs.volume.head import Head
from tests.crash.alphabet import Word
from tests.crash.attributes import FullPair, TickWorld
from tests.crash.oracle import Allowed, Oracle, Pending, Tree
from tests.crash.run import ImagingDisk, Profile
from tests.crash.word_files import DIRECTORY, FILE, MAIN, CannotApply, WordFiles, noise
from tests.support.collecting import DAY, job_in_process
from tests.support.model import Node, Pair

SUBSETS_OF = 3  # up to so many unsynced changes, every subset of them is an image
GRACE_DAYS = 8
PROFILE = Profile('words', {}, journal_bytes=64 * limits.KIB)


class OneStep(Collecting):
    """The collector, taken step by step: a plan waits where it is told to, and so does what is confirmed."""

    plan_only = False
    confirm_only = False

    def __init__(self, engine: Engine, world: TickWorld) -> None:
        for module in (reading, recount):  # their workers use the engine's disk
            module.Disk = lambda: engine.store.disk  # type: ignore[attr-defined]
        super().__init__(engine, world, job_in_process(world))
        reasons = self.collector.reasons
        self.collector.reasons = lambda plan: (  # type: ignore[method-assign]
            ['a step at a time'] if self.plan_only else reasons(plan)
        )

    async def _free(self, row: Any) -> Any:
        return row if self.confirm_only else await super()._free(row)

    async def confirm(self, row: Any) -> None:
        """Recount 2 of a batch that has rested long enough."""
        self.confirm_only = True
        async with self._lock:
            await self._second(row)
        self.confirm_only = False


@dataclass(slots=True)
class Left:
    """What a power cut left, all that may be there, each with a note on when that is."""

    path: Path
    allowed: list[tuple[Allowed, str]]
    seed: int


@dataclass(frozen=True, slots=True)
class Base:
    """A prepared store, closed, and all that is known about it."""

    root: Path
    oracle: Oracle
    models: dict[int, Node]
    roots: dict[int, Node]
    taken: frozenset[str]
    a: int  # inode numbers of files A and B, and of the directory
    b: int
    d: int


class WordRun(WordFiles):
    """One word. `seed` decides what is kept of what was not synced."""

    collecting: OneStep

    def __init__(self, folder: Path, base: Base | None, seed: int, inline_bytes: int = 0) -> None:
        if base is not None:
            shutil.copytree(base.root, folder / 'root')
        super().__init__(folder, PROFILE, seed)
        self.inline_bytes = inline_bytes
        self.engine = None  # type: ignore[assignment]  # not open yet
        self.left: dict[bytes, Left] = {}
        self.cuts = 0
        self.word: Word = ()
        self.wanted = ''  # the kind of request that is taken back
        if base is not None:
            self.a, self.b, self.d = base.a, base.b, base.d
            self.oracle = copy.deepcopy(base.oracle)
            self.models = copy.deepcopy(base.models)
            self._taken = set(base.taken)
            for number, root in base.roots.items():
                self.pairs[number] = FullPair(None)  # type: ignore[arg-type]
                self.pairs[number].root = copy.deepcopy(root)

    def _new_world(self) -> TickWorld:
        return TickWorld(self.seed)

    def _new_disk(self, root: Path) -> ImagingDisk:
        return ImagingDisk(root)

    async def _open_engine(self) -> None:
        limits.JOURNAL_INLINE_BYTES_MAX = self.inline_bytes
        await super()._open_engine()
        # Who holds the lock is written into it and never synced: it would double every image from here on.
        # Only a process that finds the store held reads it. Power cuts before this point leave both.
        self.disk.written_back(self.path / 'lock')
        self.collecting = OneStep(self.engine, self.world)
        await self.collecting.begin()

    async def close(self) -> None:
        await self.collecting.stop()
        await self.engine.close()

    # --- one word ----------------------------------------------------------------------------------------
    async def run_word(self, word: Word, *, whole: bool = False, alone: bool = False) -> None:
        """Do it; afterwards `left` has the images. `whole`: of all operations, not only of the last.
        `alone`: no commit follows."""
        self.word = word
        self.disk.on_event = None
        await self._open_engine()
        if self.seed % 2:
            await self._busy()
        for number, name in enumerate(word):
            if whole or number == len(word) - 1:
                self.disk.on_event = self._image
            await self.operation(name)
        self._image('the end')
        if not alone:
            self.world.tick += 1
            self.steps.append('(commit)')
            await self.commit()
            self._image('the end of the commit')
        self.disk.on_event = None
        for pair in self.pairs.values():
            await pair.check()

    async def _busy(self) -> None:
        """The store is in use: there are records that no commit has taken, and bytes in no pack."""
        for path, size in (([b't', b'x'], 700), ([b'same'], 300)):
            await self._do(self.main.write(path, 50, noise(path, size)))
            await self.sync()

    def end(self) -> None:
        """Let go of everything, in the middle of what it was."""
        if self.engine is not None and not self.engine.closed:
            self.engine.closed = True
            self.engine.store.close(clean=False)
        self.disk.forget()

    async def operation(self, name: str) -> None:
        """Do one operation of the alphabet. CannotApply, before anything was done."""
        self.steps.append(name)
        self.world.tick += 1
        await getattr(self, '_' + name.replace(' ', '_'))()

    def _image(self, what: str) -> None:
        self.cuts += 1
        count = self.disk.unsynced_count()
        wanted: list[tuple[int, tuple[bool, ...] | None]] = []
        if count <= SUBSETS_OF:
            wanted += [(bits, tuple(bool(bits >> n & 1) for n in range(count))) for bits in range(1 << count)]
        else:
            wanted += [(0, (False,) * count), (1, (True,) * count)]
        if count:
            seed = random.Random(f'{self.word} {self.seed} {self.cuts}').randrange(1 << 40)
            wanted += [(seed + n, None) for n in range(1 if count <= SUBSETS_OF else 2)]
        for seed, kept in wanted:
            how = f'keeping {seed:0{max(count, 1)}b} of {count}' if kept else f'kept by seed {seed}'
            self._keep_image(f'cut {self.cuts} (before {what}), {how}', seed, kept)

    def _keep_image(self, note: str, seed: int, kept: tuple[bool, ...] | None) -> None:
        path = self.disk.crash(seed, self.folder / f'after-{self.cuts}-{seed}-{kept is None}', kept=kept)
        self.disk.off = False
        digest = digest_of(path)
        allowed = self.oracle.allowed()
        text = f'{", ".join(self.word)}; seed {self.seed}; {note}'
        known = self.left.get(digest)
        if known is None:
            seed = random.Random(f'{self.word} {self.seed} {self.cuts} {seed}').randrange(1 << 40)
            self.left[digest] = Left(path, [(allowed, text)], seed)
            return
        shutil.rmtree(path)
        if all(one != allowed for one, _ in known.allowed):
            known.allowed.append((allowed, text))

    # --- what makes it durable ---------------------------------------------------------------------------
    async def _sync(self) -> None:
        await self.sync()

    async def _flush(self) -> None:
        await self.flush()

    async def _commit(self) -> None:
        await self.commit()

    async def _reopen(self) -> None:
        before = self.oracle.now
        await self.close()
        self.oracle.promised(before)
        self.open_file = None
        await self._open_engine()

    # --- people ------------------------------------------------------------------------------------------
    def _volume_to_snapshot(self) -> tuple[int, Pair]:
        return MAIN, self.main

    def _some_snapshot(self, quiet: bool = False) -> tuple[int, str, Tree] | None:
        known = [(*key, tree) for key, tree in self.oracle.registry.snapshots.items() if key[0] == MAIN]
        return known[-1] if known else None

    def _newest(self) -> str:
        found = self._some_snapshot()
        assert found is not None
        return found[1]

    def _some_request(self) -> RequestRow | None:
        rows = [row for row in self.engine.request_list() if row.kind == self.wanted]
        if not rows or (rows[-1].batch and self._state_of(rows[-1].batch) == CONFIRMED):
            raise CannotApply(f'no request for a {self.wanted}')
        return rows[-1]

    def _state_of(self, number: int) -> str:
        return batch(self.engine.store.catalog, number).state

    def _volumes_without_snapshots(self) -> list[int]:
        return super()._volumes_without_snapshots()[-1:]

    async def _snapshot(self) -> None:
        await self.snapshot()

    async def _delete_snapshot(self) -> None:
        await self.delete()

    async def _undelete_snapshot(self) -> None:
        self.wanted = 'snapshot'
        await self.undelete()

    async def _rename_snapshot(self) -> None:
        name, new_name = self._newest(), self._unused('s')
        self.oracle.pending = Pending(
            self.oracle.registry.with_snapshot_renamed(MAIN, name, new_name), self.oracle.floor
        )
        await self.engine.snapshot_rename(self.main.head.name, name, new_name)
        self.oracle.settled()

    async def _create_volume(self) -> None:
        await self.volume()
        self.oracle.promised(self.oracle.now)  # its root directory is in the commit

    def _add_pair(self, head: Head, root: Node | None = None) -> None:
        super()._add_pair(head, root)
        if root is None:
            node = self.pairs[head.row.volume].root
            node.owner, node.times = self.owner, [self.world.tick] * 4  # type: ignore[attr-defined]

    async def _clone(self) -> None:
        await self.clone()

    async def _rollback(self) -> None:
        await self.rollback()

    async def _delete_volume(self) -> None:
        await self.volume_delete()

    async def _undelete_volume(self) -> None:
        self.wanted = 'volume'
        await self.undelete()

    async def _rename_volume(self) -> None:
        new_name = self._unused('v')
        after = self.oracle.registry.with_volume(MAIN, new_name)
        self.oracle.pending = Pending(after, self.oracle.floor)
        await self.engine.volume_rename(self.main.head.name, new_name)
        self.oracle.settled()

    async def _hold(self) -> None:
        snapshot, hold = self._newest(), self._unused('h')
        holds = self.oracle.registry.holds | {(MAIN, snapshot, hold)}
        self.oracle.pending = Pending(self.oracle.registry.with_holds(holds), self.oracle.floor)
        await self.engine.hold_add(self.main.head.name, snapshot, hold, 'ann', 'why')
        self.oracle.settled()

    async def _release(self) -> None:
        one = max(hold for hold in self.oracle.registry.holds if hold[1] == self._newest())
        self.oracle.pending = Pending(
            self.oracle.registry.with_holds(self.oracle.registry.holds - {one}), self.oracle.floor
        )
        await self.engine.hold_release(self.main.head.name, one[1], one[2])
        self.oracle.settled()

    # --- the collector -----------------------------------------------------------------------------------
    def _batches(self, *states: str) -> list[Any]:
        found = batches(self.engine.store.catalog, *states)
        if not found:
            raise CannotApply(f'no batch is {" or ".join(states)}')
        return found

    async def _collect(self, fresh: bool) -> None:
        before = self.oracle.now
        waiting = self.collecting.waiting.keys()
        horizon = any(one.grace_class not in waiting for one in self.collecting.collector.choose())
        await self.collecting.collect(fresh=fresh)
        if horizon or not fresh:  # a plan that has waited had its commit then; a proof has one of its own
            self.oracle.promised(before)

    async def _plan(self) -> None:
        if not self.collecting.collector.choose():
            raise CannotApply('nothing is requested')
        self.collecting.plan_only = True
        await self._collect(fresh=True)
        self.collecting.plan_only = False

    async def _quarantine(self) -> None:
        if not self.collecting.waiting and not self.collecting.collector.choose():
            raise CannotApply('nothing is requested')
        await self._collect(fresh=True)

    async def _confirm(self) -> None:
        self.world.wait(GRACE_DAYS * int(DAY))
        row, before = self._batches(QUARANTINED)[-1], self.oracle.now
        await self.collecting.confirm(row)
        self.oracle.promised(before)

    async def _free(self) -> None:
        going = {row.number for row in self._batches(QUARANTINED, CONFIRMED)}
        keys = [(row.kind, row.view) for row in self.engine.request_list() if row.batch in going]
        if len({row.batch for row in self.engine.request_list() if row.batch in going}) > 1:
            raise CannotApply('two batches would end one after the other')
        self.world.wait(GRACE_DAYS * int(DAY))
        after = self.oracle.registry
        for key in keys:
            after = after.without_request(*key)
        self.oracle.pending = Pending(after, self.oracle.floor)
        await self._collect(fresh=False)
        self.oracle.settled()

    async def _restore(self) -> None:
        for row in self._batches(QUARANTINED):
            self.collecting.collector.restore(row.number, 'somebody says so')
        await self.collecting.engine_changed()


def digest_of(path: Path) -> bytes:
    """Return a digest of all names and bytes below a directory."""
    total = blake3()
    begin = len(str(path))
    for folder, names, files in sorted(os.walk(path)):
        total.update(f'{folder[begin:]} {sorted(names)} '.encode())
        for name in sorted(files):
            fd = os.open(f'{folder}/{name}', os.O_RDONLY)
            try:
                size = os.fstat(fd).st_size
                total.update(f'{name} {size} '.encode())
                total.update(os.pread(fd, size, 0))
            finally:
                os.close(fd)
    return total.digest()


async def make_base(folder: Path, seed: int = 0) -> Base:
    """Prepare the store that every word begins with."""
    run = WordRun(folder, None, seed)
    Store.create(run.path, run.disk, run.world).close(clean=True)
    await run._open_engine()
    store = run.engine.store
    for name, text in (('limit-share', '100%'), ('limit-drop', '100%'), ('repack-waste', '25%')):
        configuration.change(store.catalog, store.audit, name, text, 'ann')
    await run.operation('create volume')
    main = run.main
    assert main.head.row.volume == MAIN
    for path, name in (([], b'd'), ([], b't'), ([], b'e'), ([b't'], b'e')):
        await run._do(main.make(path, name, DIRECTORY))
    for path, size in (([b'f'], 40_000), ([b'd', b'g'], 9000), ([b'same'], 9000), ([b't', b'x'], 3000)):
        await run._do(main.make(path[:-1], path[-1], FILE))
        await run._do(main.write(path, 0, noise(size, size)))
    await run._do(main.set_xattr([b'f'], b'user.a', b'value'))
    run.a, run.b, run.d = (main.node(path).ino for path in ([b'f'], [b'd', b'g'], [b'd']))
    await run.operation('create volume')
    await run.operation('create volume')
    for number in (2, 3):
        await run._do(run.pairs[number].make([], b'f', FILE))
        await run._do(run.pairs[number].write([b'f'], 0, noise(number, 12_000)))
    await run.operation('snapshot')
    await run._do(main.write([b't', b'x'], 0, noise('between', 20_000)))
    await run._do(main.write([b'f'], 4000, noise('between two snapshots', 3000)))
    await run.operation('snapshot')
    await run._do(main.write([b't', b'x'], 0, noise('after', 20_000)))
    await run._do(main.write([b'f'], 4000, noise('after both snapshots', 3000)))
    for name in ('commit', 'quarantine', 'free', 'delete snapshot', 'delete volume', 'reopen'):
        await run.operation(name)
    await run.close()
    run.oracle.promised(run.oracle.now)
    run.oracle.history[:-1] = [{}] * (len(run.oracle.history) - 1)
    run.disk.forget()
    roots = {number: pair.root for number, pair in run.pairs.items()}
    taken = frozenset(run._taken)
    return Base(run.disk.root, run.oracle, run.models, roots, taken, run.a, run.b, run.d)
