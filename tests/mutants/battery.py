"""A battery for the collector: one short history that goes through every step of a deletion, and what must
come of it. It runs on any version of the code, a mutated one too; the detector says what was lost.

People write the same contents again at every step of every batch, take requests back in each state, keep a
snapshot open; the power goes in the middle of a commit, of a quarantine and of a free; a plan waits for
approval; leaks are asked for; at last a condemned chunk is read. Everything is decided beforehand: no
seed, no clock."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import trio

from snapfs import limits
from snapfs.collect import configuration
from snapfs.collect.leaks import request_leaks
from snapfs.collect.states import batches
from snapfs.errors import SnapfsError
from snapfs.format.ids import data_id
from snapfs.format.keys import extent_key
from snapfs.format.nodes import encode_leaf
from snapfs.format.records import RecordKind
from snapfs.service.collecting import Collecting, Waiting
from snapfs.store.durable import Disk
from snapfs.store.store import Store
from snapfs.volume.engine import Engine
from tests.mutants.detector import Promise, Tree, losses
from tests.mutants.setting import PowerCut, StepWorld, Unexpected, content, expect, small
from tests.sim.collect_walker import Walker, records_on_disk
from tests.support.collecting import (
    DAY,
    forget,
    job_in_process,
    pack_bytes,
    read_tree,
    remove_file,
    small_packs,
    write_file,
)

CLOCK = ('_random', '_elapsed', '_jumped_ns')  # what the world of the next life goes on with
ANY = 'any'
QUARANTINE = ['freeze', 'plan', 'begin', 'next', 'next', 'next', 'rest', ANY, 'sweep']
STEPS = frozenset(
    ['freeze', 'plan', 'begin', 'next', 'rest', 'mention_spec', 'confirm', 'proof_spec', 'finish', 'sweep']
)


class Battery:
    """One run. `promise` is what must be there at any moment."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.world = StepWorld()
        self.promise = Promise()
        self.heads: dict[str, Tree] = {}
        self.views: dict[str, int] = {}
        self.spare: list[tuple[str, str]] = []  # at which step what is written again
        self.again_with = 'own'
        self.count = 0
        self.cut: tuple[str, int] | None = None  # the power goes at the n-th such step
        self.pins: frozenset[int] = frozenset()
        self.journal: list[str] = []
        self.engine: Engine
        self.collecting: Collecting

    # --- what people do ----------------------------------------------------------------------------------
    def _touched(self, volume: str, name: str) -> None:
        for path in list(self.promise.heads.get(volume, ())):
            if path.split(b'\0')[0] == b'/' + name.encode():
                del self.promise.heads[volume][path]

    async def write(self, name: str, data: bytes, volume: str = 'home') -> None:
        self._touched(volume, name)
        await write_file(self.engine, name, data, volume)
        self.heads[volume][b'/' + name.encode()] = data

    async def attribute(self, name: str, value: bytes, volume: str = 'home') -> None:
        head = self.engine.head(volume)
        inode = await head.lookup(await head.inode(limits.INO_ROOT), name.encode())
        await head.xattr_set(inode, b'user.long', value)
        self.heads[volume][b'/' + name.encode() + b'\0user.long'] = value

    async def remove(self, name: str, volume: str = 'home') -> None:
        self._touched(volume, name)
        await remove_file(self.engine, name, volume)
        for path in [p for p in self.heads[volume] if p.split(b'\0')[0] == b'/' + name.encode()]:
            del self.heads[volume][path]

    async def commit(self) -> None:
        await self.engine.commit()
        self.promise.heads = {volume: dict(files) for volume, files in self.heads.items()}

    async def snapshot(self, name: str, volume: str = 'home') -> None:
        await self.commit()
        row = await self.engine.snapshot_create(volume, name, 'ann')
        self.views[name] = row.number
        self.promise.views[row.number] = dict(self.heads[volume])

    async def delete(self, name: str, volume: str = 'home') -> None:
        await self.engine.snapshot_delete(volume, name, 'ann')

    async def undelete(self, name: str) -> None:
        """Take a snapshot back: it is what it was, and lasts."""
        number = self.views[name]
        (request,) = [one for one in self.engine.request_list() if one.view == number]
        await self.engine.snapshot_undelete(request.number)
        forget(self.engine)
        found = await read_tree(self.engine.snapshot_view(number))
        wanted = {path[1:]: data for path, data in self.promise.views[number].items() if b'\0' not in path}
        expect(found == wanted, f'{name} came back as something else')

    def let_go(self, *names: str) -> None:
        """From here on these may be freed: their grace is over, or somebody released them."""
        for name in names:
            self.promise.views.pop(self.views[name], None)

    async def again(self, step: str) -> None:
        """Between two steps of the collector: the power goes, or what it is about to free is written
        again."""
        if self.cut is not None and self.cut[0] == step:
            self.cut = (step, self.cut[1] - 1)
            if self.cut[1] < 0:
                raise PowerCut(step)
        found = next((one for one in self.spare if one[0] in (step, ANY)), None)
        if found is None:
            return
        self.spare.remove(found)
        self.count += 1
        self.journal.append(step)
        name = f'again{self.count}'
        hook, self.world.step = self.world.step, None
        await self.write(name, content(found[1]))
        way = self.count % 3
        if self.cut is not None or way == 0:
            await self.engine.sync()
        elif way == 1:
            await self.engine.committer.flush()
        else:
            await self.commit()
        self.world.step = hook

    # --- lives -------------------------------------------------------------------------------------------
    async def open(self) -> None:
        self.world.step = None
        self.engine = await Engine.open(self.path, Disk(), self.world)
        small_packs(self.engine, 4 * limits.KIB, 3 * limits.KIB)
        self.collecting = Collecting(self.engine, self.world, job_in_process(self.world), lambda: self.pins)
        await self.collecting.begin()

    async def close(self) -> None:
        self.world.step = None
        await self.collecting.stop()
        await self.engine.close()

    def live(self, life: Callable[[], Any], *, cut: bool = False) -> None:
        """Run one life of the process."""
        try:
            trio.run(life)
        except PowerCut:
            expect(cut, 'the power went')
            self.engine.store.close(clean=False)
        else:
            expect(not cut, 'the power did not go where it should')
            expect(self.engine.closed, 'not closed')
        self.world.step, self.cut = None, None
        self.check_losses()

    def check_losses(self) -> None:
        found = losses(self.path, self.promise, self.path.with_name(self.path.name + '-copy'))
        expect(not found, f'LOST {found[:3]}')

    def configure(self, name: str, text: str) -> None:
        store = self.engine.store
        configuration.change(store.catalog, store.audit, name, text, 'ann')

    async def collect(self, steps: Sequence[str] = (), first: int = 0) -> dict[str, Any]:
        """Collect; before each of these steps one of the contents `own<first>`, ... is written again."""
        self.spare = [(step, f'{self.again_with}{first + n}') for n, step in enumerate(steps)]
        self.world.step = self.again
        report = await self.collecting.collect()
        self.world.step = None
        self.calm()
        return report

    def calm(self) -> None:
        latched = self.collecting.collector.incidents.latched()
        expect(latched is None, f'an alarm: {latched}')

    def states(self) -> list[str]:
        return [
            row.state for row in batches(self.engine.store.catalog) if row.state not in ('FREED', 'RESTORED')
        ]

    async def read_all(self) -> None:
        """Everything reads as promised by the mount's way, from the disk."""
        forget(self.engine)
        for name, files in self.heads.items():
            found = await read_tree(self.engine.head(name))
            wanted = {path[1:]: data for path, data in files.items() if b'\0' not in path}
            expect(found == wanted, f'volume {name} reads as something else')
        for row in self.engine.snapshot_list():
            found = await read_tree(self.engine.snapshot_view(row.number))
            wanted = {p[1:]: data for p, data in self.promise.views[row.number].items() if b'\0' not in p}
            expect(found == wanted, f'snapshot {row.name} reads as something else')
        self.calm()

    # --- the template ------------------------------------------------------------------------------------
    def make(self) -> None:
        """Life 0: volumes, a clone, snapshots; in the end the power goes in the middle of a commit."""
        Store.create(self.path, Disk(), self.world).close(clean=True)
        self.live(self._life_0, cut=True)

    async def _life_0(self) -> None:
        await self.open()
        for name in ('home', 'work'):
            await self.engine.volume_create(name, 0, 0)
            self.heads[name] = {}
        self.configure('limit-share', '100%')
        self.configure('limit-drop', '100%')
        self.configure('repack-waste', '25%')
        for n in range(12):
            await self.write(f'keep{n}', content(f'keep{n}'))
            await self.write(f'shared{n}', content(f'shared{n % 6}'))
            await self.write(f'shared{n}', content(f'shared{n % 6}'), 'work')
        await self.write('big', content('big', 50_000))
        await self.attribute('keep0', content('long attribute', 2000))
        await self.snapshot('first')
        await self.engine.volume_clone('home', 'first', 'clone')
        self.heads['clone'] = dict(self.heads['home'])
        for n in range(24):
            await self.write(f'own{n}', content(f'own{n}'))
        await self.attribute('own0', content('an attribute of own', 2000))
        await self.snapshot('second')
        for n in range(24):
            await self.remove(f'own{n}')
        for n in range(8):
            await self.write(f'other{n}', content(f'other{n}'), 'work')
        await self.snapshot('third', 'work')
        for n in range(8):
            await self.remove(f'other{n}', 'work')
        for n in range(12):
            await self.write(f'over{n}', content(f'over{n}'))
        await self.commit()
        self.world.step = self.again
        self.world.wanted = frozenset({'commit'})
        for n in (20, 21):
            await self.write(f'half{n}', content(f'own{n}'))
        leftover = encode_leaf([extent_key(99, 0)], [(300, data_id(content('own23')))])
        self.engine.store.chunks.put_batch(RecordKind.NODE, [leftover])
        self.cut = ('commit', 0)
        await self.engine.commit()

    # --- the lives that count ----------------------------------------------------------------------------
    def run(self) -> None:
        """All lives after the template."""
        self.world.wanted = STEPS
        self.live(self._life_1, cut=True)
        self.live(self._life_2, cut=True)
        self.live(self._life_3)

    async def _life_1(self) -> None:
        """Requests of both classes; what is condemned is written again; the power goes in mid-quarantine."""
        await self.open()
        await self.read_all()
        for n in range(12):
            await self.write(f'over{n}', content(f'written over {n}'))
        await self.delete('second')
        await self.delete('third', 'work')
        await self.commit()
        expect(len(self.engine.request_list()) == 2, 'two requests of people')
        self.cut = ('next', 4)
        await self.collect(['freeze', 'plan', 'next', ANY], 0)

    async def _life_2(self) -> None:
        """Both batches come to rest; one is taken back; another follows; the power goes while one is
        freed."""
        await self.open()
        expect('PLANNED' not in self.states(), 'half a quarantine was undone')
        await self.read_all()
        report = await self.collect(QUARANTINE, 4)
        expect(len(report['quarantined']) >= 1, 'batches came to rest')
        expect(not report['freed'], 'nothing is freed in its grace')
        kept = [row for row in report['quarantined'] if row.grace_class == 'kept']
        expect(len(kept) == 1 and kept[0].chunks > 10, 'what only the snapshot held is condemned')
        self.check_losses()
        await self.undelete('third')
        await self.engine.volume_delete('clone', 'ann')
        clone = next(one.view for one in self.engine.request_list() if one.kind == 'volume')
        self.views['clone'] = clone
        self.promise.views[clone] = self.heads.pop('clone')
        self.promise.heads.pop('clone')
        self.pins = frozenset({clone})
        await self.collect(['begin', 'next', 'rest', 'sweep'], 13)
        expect(self.states().count('QUARANTINED') >= 2, f'two batches rest: {self.states()}')
        self.pins = frozenset()
        self.world.advance(2 * 3600)
        self.cut = ('finish', 0)
        await self.collect(['mention_spec', 'next'], 17)

    async def _life_3(self) -> None:
        """What was confirmed goes on; a plan waits; space comes back; leaks are asked for; an alarm at
        last."""
        await self.open()
        await self.read_all()
        report = await self.collect()
        expect(len(report['freed']) >= 1, 'the confirmed batch came to its end')
        self.check_losses()
        await self._a_plan_that_waits()
        before = pack_bytes(self.engine)
        self.let_go('second', 'clone')
        self.world.advance(8 * DAY)
        await self.collect(['confirm', 'proof_spec', 'finish', 'sweep'], 19)
        self.world.advance(8 * DAY)
        await self.collect()
        expect(pack_bytes(self.engine) < before, 'space came back')
        await self._leaks()
        await self._nothing_is_left()
        await self._an_alarm()
        await self.read_all()
        await self.close()

    async def _a_plan_that_waits(self) -> None:
        self.configure('limit-share', '0.01%')
        await self.delete('third', 'work')
        report = await self.collect()
        waiting = [one for one in report['waiting'] if isinstance(one, Waiting)]
        expect(any(one.chosen.grace_class == 'kept' for one in waiting), 'a plan above its limit waits')
        await self.undelete('third')
        expect('kept' not in self.collecting.waiting, 'taking back ended the plan')
        await self.delete('third', 'work')
        await self.collect()
        await self.write('afterwards', content('other1'), 'work')
        await self.commit()
        plan = self.collecting.waiting['kept'].plan
        await self.collecting.approve(plan.digest, 'bob')
        self.again_with = 'other'
        await self.collect(['begin', 'next'], 2)
        row = next(
            row for row in batches(self.engine.store.catalog, 'QUARANTINED') if row.digest == plan.digest
        )
        expect(row.chunks, 'something is condemned')
        self.let_go('third')
        await self.collecting.approve(plan.digest, 'bob')
        report = await self.collect(['mention_spec', 'finish'], 4)
        self.again_with = 'own'
        expect(row.number in [one.number for one in report['freed']], "freed on a person's word")
        self.configure('limit-share', '100%')
        for one in list(self.collecting.waiting.values()):
            await self.collecting.approve(one.plan.digest, 'bob')
        await self.collect()
        expect(not self.collecting.waiting, 'no plan waits any more')

    async def _leaks(self) -> None:
        specs = []

        def make() -> object:
            specs.append(self.collecting.collector.what_if([], 'leaks'))
            return specs[0]

        found = await self.collecting.look('leaks', make)
        expect(not found.alarm, 'no alarm')
        if found.condemned:
            request_leaks(self.engine.store, self.collecting.collector.batches.files, specs[0], found, 'ann')
        for _ in range(2):
            self.world.advance(8 * DAY)
            await self.collect()

    async def _nothing_is_left(self) -> None:
        """P9: what nothing reaches is gone, and most of its bytes."""
        catalog = self.engine.store.catalog
        await self.commit()
        self.world.advance(8 * DAY)
        await self.collect()
        self.world.advance(8 * DAY)
        await self.collect()
        expect(not self.states(), f'P9: batches are left: {self.states()}')
        expect(catalog.query('SELECT count(*) FROM quarantine') == [(0,)], 'P9: quarantine is empty')
        requests = catalog.query('SELECT number, kind, batch FROM request')
        expect(not requests, f'P9: requests are left: {requests[:5]}')
        walk = Walker().walk(self.path)
        left = [id for id in walk.rows if id not in walk.live]
        expect(not left, f'P9: {len(left)} chunks that nothing reaches have rows')
        for id, copies in records_on_disk(self.path).items():
            accounted = id in walk.rows or all((id, place) in walk.freed for place, _, _ in copies)
            expect(accounted, 'P9: a record has no row and no receipt')
        self.engine.store.audit.verify()
        self.check_losses()

    # --- what comes after a failure ----------------------------------------------------------------------
    def aftermath(self) -> None:
        """Something failed, and a daemon does not stop for that: the store is opened again with the same
        code, a person believes that all is well, and the collector tries twice more, a grace later each
        time. What it raises is of no interest here; what it loses is."""
        self.world.step, self.cut, self.spare = None, None, []
        try:
            self.engine.store.close(clean=False)
        except Exception:
            pass
        try:
            trio.run(self._again_and_again)
        except Exception:
            pass

    async def _again_and_again(self) -> None:
        self.world.random_again()
        await self.open()
        for _ in range(2):
            standing = {row.number for row in self.engine.snapshot_list()}
            for number in {request.view for request in self.engine.request_list()} - standing:
                self.promise.views.pop(number, None)  # it may go now
            self.world.advance(8 * DAY)
            for incident in self.collecting.collector.incidents.listed():
                if incident.acknowledged_ns is None:
                    self.collecting.collector.incidents.acknowledge(incident.number, 'ann', 'nothing wrong')
            for work in (self.collecting._tick, self.collecting.collect):
                try:
                    await work()
                except Exception:
                    pass

    async def _an_alarm(self) -> None:
        """A condemned chunk is read: it is served, and everything condemned comes back."""
        for n in range(4):
            await self.write(f'own{n}', content(f'alarm{n}'))
        await self.snapshot('last')
        for n in range(4):
            await self.remove(f'own{n}')
        await self.commit()
        await self.delete('last')
        await self.collect()
        store = self.engine.store
        ids = store.catalog.query('SELECT id FROM quarantine WHERE kind = 1 LIMIT 1')
        expect(ids, 'something is condemned')
        expect(store.chunks.get(ids[0][0]), 'it is served')
        expect(self.collecting.collector.incidents.latched(), 'reading it is an alarm')
        await self.collecting._tick()
        expect(store.catalog.query('SELECT count(*) FROM quarantine') == [(0,)], 'all came back')
        try:
            await self.collecting.collect()
        except SnapfsError:
            pass
        else:
            raise Unexpected('the collector went on behind a latch')
        await self.undelete('last')
        for incident in self.collecting.collector.incidents.listed():
            self.collecting.collector.incidents.acknowledge(incident.number, 'ann', 'looked at it')


def template(folder: Path) -> Path:
    """Make the store that every run begins with, and what is promised of it, below `folder`."""
    with small():
        battery = Battery(folder / 'store')
        battery.make()
        clock = {name: getattr(battery.world, name) for name in CLOCK}
        state = (clock, battery.promise, battery.heads, battery.views)
        (folder / 'state').write_bytes(pickle.dumps(state))
    return folder


def begin(made: Path, folder: Path) -> Battery:
    """Return a battery on a copy of the template."""
    shutil.copytree(made / 'store', folder / 'store')
    battery = Battery(folder / 'store')
    state = pickle.loads((made / 'state').read_bytes())
    clock, battery.promise, battery.heads, battery.views = state
    vars(battery.world).update(clock)
    return battery
