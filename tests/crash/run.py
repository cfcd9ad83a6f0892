"""A short workload on a whole engine, with an image of what a power cut could leave before every event."""

from __future__ import annotations

import copy
import random
import stat
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from snapfs import limits
from snapfs.store.rows import RequestRow
from snapfs.store.store import Store
from snapfs.volume.engine import Engine
from snapfs.volume.head import Head
from snapfs.volume.view import View
from tests.crash.oracle import Allowed, Oracle, Pending, Tree
from tests.sim.disk import SimDisk
from tests.sim.world import SimWorld
from tests.support.model import Node, Pair, freeze_view
from tests.support.workload import Workload

EMPTY: Tree = Node(stat.S_IFDIR | 0o755, nlink=2).freeze()


@dataclass(frozen=True, slots=True)
class Profile:
    """What a workload does: weights of steps, sizes in bytes."""

    name: str
    weights: dict[str, int]
    steps: int = 30
    sizes: int = 20_000
    journal_bytes: int = 512 * limits.KIB
    inline_bytes: int = 64 * limits.KIB
    pack_bytes: int = 300_000


class SteppingWorld(SimWorld):
    """Every look at the clock takes two milliseconds: all long work pauses wherever it may."""

    def monotonic(self) -> float:
        self._elapsed += 0.002
        return self._elapsed


class ImagingDisk(SimDisk):
    """Tells of each event before it has an effect."""

    on_event: Callable[[str], None] | None = None

    def _event(self, what: str) -> None:
        if self.on_event is not None:
            self.on_event(what)
        super()._event(what)


@dataclass(frozen=True, slots=True)
class Image:
    """What a power cut before one event left, and what may be there."""

    path: Path
    allowed: Allowed
    note: str
    seed: int


@dataclass(slots=True)
class Options:
    """How often to cut: images of each event, and every how many events one."""

    images_per_event: int = 1
    every: int = 1
    cut_at: int | None = None


@dataclass(eq=False)
class Run:
    """One workload. `seed` decides everything."""

    folder: Path
    profile: Profile
    seed: int
    options: Options = field(default_factory=Options)

    # What a subclass sees files with, and how many volumes it wants.
    pair_type: ClassVar[type[Pair]] = Pair
    freeze: ClassVar[Callable[[View], Awaitable[Tree]]] = staticmethod(freeze_view)
    empty: ClassVar[Tree] = EMPTY
    volumes_max: ClassVar[int] = 3
    owner: ClassVar[tuple[int, int]] = (0, 0)

    def __post_init__(self) -> None:
        self.chance = random.Random(f'{self.profile.name} {self.seed}')
        self.world = self._new_world()
        self.oracle = Oracle()
        self.images: list[Image] = []
        self.pairs: dict[int, Pair] = {}
        self.workloads: dict[int, Workload] = {}
        self.steps: list[str] = []
        self.models: dict[int, Node] = {}  # by view number, of snapshots and of deleted volumes
        self._taken: set[str] = set()
        self.busy: int | None = None  # the one volume that files are changed in while other tasks run
        root = self.folder / 'root'
        root.mkdir(parents=True, exist_ok=True)
        self.disk = self._new_disk(root)
        self.path = root / 'store'
        self._first = 0

    def _new_world(self) -> SimWorld:
        return SteppingWorld(self.seed)

    def _new_disk(self, root: Path) -> ImagingDisk:
        return ImagingDisk(root, self.seed)

    async def open(self) -> None:
        """Make a store with one volume; from now on every event may be the last."""
        Store.create(self.path, self.disk, self.world).close(clean=True)
        self._first = self.disk.events
        self.disk.on_event = self._image
        if self.options.cut_at is not None:
            self.disk.cut_at = self._first + self.options.cut_at
        await self._open_engine()
        await self.volume()

    async def _open_engine(self) -> None:
        self.engine = await Engine.open(self.path, self.disk, self.world)
        for writer in self.engine.store.chunks.writers.values():
            writer.bytes_max = self.profile.pack_bytes
        self.engine.store.journal.bytes_max = self.profile.journal_bytes
        for number, pair in self.pairs.items():
            pair.head = self._head(number)

    def _head(self, number: int) -> Head:
        head = self.engine.head_of_volume(number)
        assert head is not None
        return head

    def _image(self, what: str) -> None:
        cut = self.disk.events + 1 - self._first
        if cut % self.options.every != self.seed % self.options.every:
            return
        for number in range(self.options.images_per_event):
            seed = (self.seed * 10_000 + cut) * 10 + number
            self.image(f'{cut}-{number}', f'cut {cut} (before {what}), kept by seed {seed}', seed)

    def image(self, name: str, note: str, seed: int) -> Image:
        """Write what a power cut now would leave."""
        path = self.disk.crash(seed, self.folder / f'after-{name}')
        self.disk.off = False
        last = ', '.join(self.steps[-4:])
        text = f'{self.profile.name}, seed {self.seed}, {note}; last steps: {last}'
        found = Image(path, self.oracle.allowed(), text, seed)
        self.images.append(found)
        return found

    # --- steps -------------------------------------------------------------------------------------------
    async def run(self) -> None:
        """Do the whole workload, take a last image, and end."""
        await self.open()
        names = list(self.profile.weights)
        for _ in range(self.profile.steps):
            await self.step(self.chance.choices(names, list(self.profile.weights.values()))[0])
        await self.finish()

    async def step(self, name: str) -> None:
        if name != 'file':
            self.steps.append(name)
        await getattr(self, name)()

    async def finish(self) -> None:
        """Close cleanly; the volumes are what the model is to the end."""
        for pair in self.pairs.values():
            await pair.check()
        await self.reopen()
        for pair in self.pairs.values():
            await pair.check()
        self.image('end', 'at the end', self.seed)
        self.engine.store.close(clean=False)
        self.disk.forget()

    def _record(self) -> None:
        self.oracle.record({number: pair.root.freeze() for number, pair in self.pairs.items()})

    def _add_pair(self, head: Head, root: Node | None = None) -> None:
        pair = self.pair_type(head)
        if root is not None:
            pair.root = root
        number = head.row.volume
        self.pairs[number] = pair
        self.workloads[number] = Workload(pair, self.chance.randrange(1 << 30), self.profile.sizes)

    def _some(self) -> tuple[int, Pair]:
        if self.busy is not None:
            return self.busy, self.pairs[self.busy]
        return self.chance.choice(list(self.pairs.items()))

    async def file(self) -> None:
        """Do one operation on a file."""
        number, _ = self._some()
        self.steps.append(await self.workloads[number].step())
        self._record()

    async def sync(self) -> None:
        before = self.oracle.now
        await self.engine.sync()
        self.oracle.promised(before)

    async def commit(self) -> None:
        before = self.oracle.now
        await self.engine.commit()
        self.oracle.promised(before)

    async def flush(self) -> None:
        await self.engine.committer.flush()

    async def reopen(self) -> None:
        """Close cleanly, and open again."""
        before = self.oracle.now
        await self.engine.close()
        self.oracle.promised(before)
        await self._open_engine()

    async def open_unlinked(self) -> None:
        """Remove the name of a file in use, and write on: it is gone after a crash, or after `forget`."""
        _, pair = self._some()
        name = b'in use'
        if name in pair.root.entries:
            return
        await pair.make([], name, stat.S_IFREG | 0o600)
        await pair.write([name], 0, self.chance.randbytes(self.chance.choice([10, self.profile.sizes])))
        inode = await pair.inode([name])
        pair.head.referenced(inode.ino)
        self._record()
        if self.chance.random() < 0.5:
            await self.sync()
        await pair.unlink([], name)
        self._record()
        await pair.head.write(inode, 5, b'nobody will read this')
        if self.chance.random() < 0.5:
            await self.sync()
        if self.chance.random() < 0.3:
            pair.head.forgotten(inode.ino)

    # --- administration ----------------------------------------------------------------------------------
    def _unused(self, prefix: str) -> str:
        name = f'{prefix}{len(self._taken)}'
        self._taken.add(name)
        return name

    async def volume(self) -> None:
        if len(self.pairs) >= self.volumes_max:
            return
        name = self._unused('v')
        number = self.engine.store.catalog.setting('next_volume')
        low = self.oracle.floor
        after = self.oracle.registry.with_volume(number, name)
        self.oracle.pending = Pending(after, low, births={number: self.empty})
        before = self.oracle.now
        head = await self.engine.volume_create(name, *self.owner)
        assert head.row.volume == number
        self.oracle.settled()
        self._add_pair(head)
        self._record()
        self.oracle.promised(before)

    def _volume_to_snapshot(self) -> tuple[int, Pair]:
        return self.chance.choice(list(self.pairs.items()))

    async def snapshot(self) -> None:
        number, pair = self._volume_to_snapshot()
        name = self._unused('s')
        before = self.oracle.now
        self.oracle.pending = Pending(self.oracle.registry, before, snapshot=(number, name))
        row = await self.engine.snapshot_create(pair.head.name, name, 'test')
        view = self.engine.snapshot_view(row.number)
        assert view is not None
        tree = await type(self).freeze(view)
        moments = self.oracle.history[before:]
        assert any(one[number] == tree for one in moments), f'{name} is not what it was taken of (P6)'
        self.oracle.registry = self.oracle.registry.with_snapshot(number, name, tree)
        self.oracle.pending = None
        self.oracle.promised(before)
        self.models[row.number] = copy.deepcopy(pair.root)

    def _some_snapshot(self, quiet: bool = False) -> tuple[int, str, Tree] | None:
        """Return one of the snapshots; `quiet`: of a volume that no other task is changing."""
        known = [
            (*key, tree)
            for key, tree in self.oracle.registry.snapshots.items()
            if key[0] in self.pairs and not (quiet and key[0] == self.busy)
        ]
        return self.chance.choice(known) if known else None

    async def delete(self) -> None:
        found = self._some_snapshot()
        if found is None:
            return
        number, name, tree = found
        view = self.engine.snapshot_find(self.pairs[number].head.name, name).number
        after = self.oracle.registry.without_snapshot(number, name).with_request('snapshot', view, tree)
        self.oracle.pending = Pending(after, self.oracle.floor)
        await self.engine.snapshot_delete(self.pairs[number].head.name, name, 'test')
        self.oracle.settled()

    def _some_request(self) -> RequestRow | None:
        rows = self.engine.request_list()
        return self.chance.choice(rows) if rows else None

    async def undelete(self) -> None:
        """Take back one of the requests, if there is any whose volume is there."""
        row = self._some_request()
        if row is None:
            return
        tree = self.oracle.registry.requests[row.kind, row.view]
        left = self.oracle.registry.without_request(row.kind, row.view)
        low = self.oracle.floor
        if row.kind == 'volume':
            after = left.with_volume(row.volume, row.volume_name)
            self.oracle.pending = Pending(after, low, overlay={row.volume: tree}, births={row.volume: tree})
            head = await self.engine.volume_undelete(row.number)
            self.oracle.settled()
            self._add_pair(head, copy.deepcopy(self.models[row.view]))
            self._record()
        elif row.volume in self.pairs and (row.volume, row.name) not in self.oracle.registry.snapshots:
            self.oracle.pending = Pending(left.with_snapshot(row.volume, row.name, tree), low)
            await self.engine.snapshot_undelete(row.number)
            self.oracle.settled()

    async def clone(self) -> None:
        found = self._some_snapshot(quiet=True)
        if found is None or len(self.pairs) >= self.volumes_max:
            return
        number, name, tree = found
        new_name = self._unused('c')
        new = self.engine.store.catalog.setting('next_volume')
        after = self.oracle.registry.with_volume(new, new_name)
        self.oracle.pending = Pending(after, self.oracle.floor, births={new: tree})
        origin = self.engine.snapshot_find(self.pairs[number].head.name, name).number
        head = await self.engine.volume_clone(self.pairs[number].head.name, name, new_name)
        self.oracle.settled()
        self._add_pair(head, copy.deepcopy(self.models[origin]))
        self._record()

    async def rollback(self) -> None:
        found = self._some_snapshot(quiet=True)
        if found is None:
            return
        number, name, tree = found
        pair = self.pairs[number]
        before = self.oracle.now
        # The safety snapshot's name has the time in it, which only the engine knows: any name is good.
        safety = self.oracle.registry.with_snapshot(number, 'safety', pair.root.freeze())
        self.oracle.pending = Pending(safety, before, overlay={number: tree})
        target = self.engine.snapshot_find(pair.head.name, name).number
        row = await self.engine.volume_rollback(pair.head.name, name, 'test')
        self.oracle.settled()
        plain = self.oracle.registry.without_snapshot(number, 'safety')
        self.oracle.registry = plain.with_snapshot(number, row.name, self.oracle.history[before][number])
        # Other volumes may have gone on meanwhile; this one is the snapshot at every moment since.
        self.oracle.history[before:] = [{**one, number: tree} for one in self.oracle.history[before:]]
        self.models[row.number] = pair.root
        pair.head, pair.root = self._head(number), copy.deepcopy(self.models[target])
        self.oracle.promised(before)

    def _volumes_without_snapshots(self) -> list[int]:
        kept = {self.busy} | {key[0] for key in self.oracle.registry.snapshots}
        return sorted(number for number in self.pairs if number not in kept)

    async def volume_delete(self) -> None:
        free = self._volumes_without_snapshots()
        if not free or len(self.pairs) < 2:
            return
        number = self.chance.choice(free)
        pair = self.pairs[number]
        before = self.oracle.now
        tree = pair.root.freeze()
        request = self.oracle.registry.without_volume(number).with_request('volume', pair.head.number, tree)
        self.oracle.pending = Pending(request, before)
        await self.engine.volume_delete(pair.head.name, 'test')
        self.oracle.settled()
        del self.pairs[number]
        self.workloads.pop(number, None)
        self.models[pair.head.number] = pair.root
        self.oracle.births[number] = tree
        self._record()
        self.oracle.promised(before)
