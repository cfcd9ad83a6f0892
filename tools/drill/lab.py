"""Tool: lab: a scratch store with its engine and collector, a model of what must be in it, and a place for
faults. Event loop only.

Recounts and proofs run in this process, through the same encoding as in one of their own, so that a fault
can be put into them: `faults[job]` are context managers around the job, `answers[job]` changes its result,
`on_step` of the world is called between the steps of the collector.
"""

from __future__ import annotations

import random
import stat
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

import trio

from snapfs import limits
from snapfs.collect.incidents import Alarm
from snapfs.collect.states import BatchRow, batches
from snapfs.collect.worker import encode_job, from_json, job_of, run_job, to_json
from snapfs.errors import SnapfsError
from snapfs.service.collecting import Collecting
from snapfs.store.durable import Disk
from snapfs.store.store import Store
from snapfs.volume.engine import Engine
from tools.drill.guards import GUARDS, guard_of
from tools.drill.walker import Files, Reading, Walker
from tools.drill.world import DrillWorld

FILE = stat.S_IFREG | 0o644
VOLUME = 'home'
Fault = Callable[[], AbstractContextManager[object]]


class Failed(Exception):
    """A drill did not end as it must."""


@contextmanager
def replaced(owner: Any, name: str, by: object) -> Iterator[None]:
    """Let `owner.name` be something else meanwhile: a faulty stand-in, usually a subclass."""
    before = getattr(owner, name)
    setattr(owner, name, by)
    try:
        yield
    finally:
        setattr(owner, name, before)


@contextmanager
def small_store() -> Iterator[None]:
    """Stores have a small journal and reserve meanwhile: openings read or write both as a whole."""
    with replaced(limits, 'JOURNAL_BYTES', limits.MIB), replaced(limits, 'RESERVE_BYTES', limits.MIB):
        yield


class Lab:
    """One scratch store. `seen`: the guards that stopped something, with what each said."""

    engine: Engine
    collecting: Collecting

    def __init__(self, path: Path, say: Callable[[str], None] = lambda line: None) -> None:
        self.path = path
        self.world = DrillWorld()
        self.say = say
        self.live: Files = {}
        self.snapshots: dict[str, Files] = {}
        self.requests: dict[str, Files] = {}
        self.faults: dict[str, list[Fault]] = {}
        self.answers: dict[str, Callable[[Any], Any]] = {}
        self.seen: list[tuple[str, str]] = []
        self._noise = random.Random(2011)

    # --- the store ---------------------------------------------------------------------------------------
    async def make(self, disk: Disk | None = None) -> None:
        """Make the store, with an empty volume."""
        Store.create(self.path, Disk(), self.world).close(clean=True)
        await self.open(disk)
        await self.engine.volume_create(VOLUME, 0, 0)

    async def open(self, disk: Disk | None = None) -> None:
        """Open the store, as a daemon does."""
        self.engine = await Engine.open(self.path, disk or Disk(), self.world)
        writers = list(self.engine.store.chunks.writers.values())
        writers[0].bytes_max, writers[1].bytes_max = 64 * limits.KIB, 32 * limits.KIB  # many packs
        self.collecting = self.new_collecting()
        await self.collecting.begin()

    def new_collecting(self) -> Collecting:
        """Return a collector on the open store."""
        return Collecting(self.engine, self.world, self._run)

    async def close(self) -> None:
        """Close the store if it is open."""
        if hasattr(self, 'engine') and not self.engine.closed:
            await self.engine.close()

    async def reopen(self) -> None:
        """Close and open it."""
        await self.close()
        await self.open()

    def drop(self) -> None:
        """Let go of the store as a killed process does: nothing is written."""
        self.engine.closed = True
        self.engine.store.close(clean=False)

    async def _run(self, spec: Any, progress: Callable[[int, int], None]) -> Any:
        job = job_of(spec)
        await trio.lowlevel.checkpoint()
        await self._step(f'before {job}')
        assert encode_job(job, spec)
        with ExitStack() as stack:
            for fault in self.faults.get(job, ()):
                stack.enter_context(fault())
            result = run_job(job, from_json(type(spec), to_json(spec)), progress, self.world)
        result = from_json(type(result), to_json(result))
        await self._step(f'after {job}')
        return self.answers.get(job, lambda same: same)(result)

    async def _step(self, name: str) -> None:
        if self.world.on_step is not None:
            await self.world.on_step(name)

    # --- what users do -----------------------------------------------------------------------------------
    def noise(self, size: int) -> bytes:
        """Return bytes that nothing else has, and that do not compress."""
        return self._noise.randbytes(size)

    async def write(self, name: str, data: bytes) -> None:
        """Make or replace a file."""
        head = self.engine.head(VOLUME)
        assert head is not None
        root = await head.inode(limits.INO_ROOT)
        inode = await head.lookup(root, name.encode())
        if inode is None:
            inode = await head.make(root, name.encode(), FILE, 0, 0)
        else:
            await head.set_attributes(inode, size=0)
        await head.write(inode, 0, data)
        self.live[name] = data

    async def remove(self, name: str) -> None:
        """Remove a file."""
        head = self.engine.head(VOLUME)
        assert head is not None
        await head.unlink(await head.inode(limits.INO_ROOT), name.encode())
        del self.live[name]

    async def snapshot(self, name: str) -> None:
        """Take a snapshot."""
        await self.engine.snapshot_create(VOLUME, name, 'ann')
        self.snapshots[name] = dict(self.live)

    async def delete(self, name: str) -> int:
        """Ask for a snapshot to be deleted; return the request's number."""
        request = await self.engine.snapshot_delete(VOLUME, name, 'ann')
        self.requests[name] = self.snapshots.pop(name)
        return request.number

    async def week(self, letters: int = 24, size: int = 4000, books: int = 20) -> None:
        """Three snapshots; Monday's deletion is asked for. Tuesday alone keeps most of the first third of
        what Monday had; the last third nobody needs but Monday."""
        third = letters // 3
        for n in range(letters):
            await self.write(f'letter-{n:03}', self.noise(size))
        for n in range(books):
            await self.write(f'book-{n:03}', self.noise(12_000))
        await self.snapshot('monday')
        # A page that two snapshots share is alive as a whole: some letters of each have to differ.
        for n in (*range(5, third, 10), *range(2 * third, letters)):
            await self.write(f'letter-{n:03}', self.noise(size))
        await self.snapshot('tuesday')
        for n in range(third):
            await self.write(f'letter-{n:03}', self.noise(size))
        await self.snapshot('wednesday')
        await self.delete('monday')
        await self.engine.commit()

    async def read_snapshot(self, name: str) -> Files:
        """Read all files of a snapshot as a user does, through the engine."""
        view = self.engine.snapshot_view(self.engine.snapshot_find(VOLUME, name).number)
        assert view is not None
        root = await view.inode(limits.INO_ROOT)
        found = {}
        for _, file, ino, _ in await view.list_directory(root, 0, 10_000):
            inode = await view.inode(ino)
            found[file.decode()] = bytes(await view.read(inode, 0, inode.size))
        return found

    # --- the collector -----------------------------------------------------------------------------------
    async def collect(self) -> dict[str, Any]:
        """Collect what is due, as a person or the schedule does it."""
        return await self.collecting.collect()

    async def collect_approved(self) -> None:
        """Collect, and where that waits for a person be that person."""
        await self.collect()
        waiting = list(self.collecting.waiting.values())
        for one in waiting:
            await self.collecting.approve(one.plan.digest, 'bob')
        if waiting:
            await self.collect()

    async def collect_all(self) -> None:
        """Collect, with graces passing, until everything that was asked for is done."""
        for _ in range(4):
            await self.collect_approved()
            self.world.advance(8 * 86_400.0)

    def batches(self, *states: str) -> list[BatchRow]:
        """Return the batches in these states."""
        return batches(self.engine.store.catalog, *states)

    def count(self, table: str) -> int:
        """Return how many rows a table has."""
        return int(self.engine.store.catalog.query(f'SELECT count(*) FROM {table}')[0][0])

    def latched(self) -> str | None:
        """Why the collector stands still, or None."""
        return self.collecting.collector.incidents.latched()

    async def answer(self) -> None:
        """Let the schedule answer the alarms of readers: it does so before anything else."""
        if self.collecting._alarms:
            await self.collecting._answer_alarms()

    async def acknowledge(self) -> None:
        """A person looks at every incident and lets the collector go on; alarms have restored by then."""
        await self.answer()
        incidents = self.collecting.collector.incidents
        for row in incidents.listed():
            incidents.acknowledge(row.number, 'ann', 'it was a drill')

    # --- what must be ------------------------------------------------------------------------------------
    def note(self, guard: str, said: str) -> None:
        """A guard did its work."""
        assert guard in GUARDS, guard
        self.seen.append((guard, said))
        self.say(f'  {guard}: {said}')

    def must(self, holds: object, what: str) -> None:
        """Failed unless it holds."""
        if not holds:
            raise Failed(what)

    @contextmanager
    def stopped_by(self, guard: str, latch: bool = False) -> Iterator[None]:
        """What is inside must be stopped by this guard; `latch`: and the collector's latch must fall."""
        assert guard in GUARDS, guard
        try:
            yield
        except (SnapfsError, AssertionError) as error:
            found = guard_of(str(error))
            if found != guard:
                raise Failed(f'{guard} was to stop it, but: {error!r}') from error
            self.note(guard, str(error))
            if latch and not (isinstance(error, Alarm) and self.latched()):
                raise Failed(f'{guard} stopped it, and the latch did not fall') from error
        else:
            raise Failed(f'nothing stopped it; {guard} was to')

    async def with_fault(self, job: str, *faults: Fault) -> None:
        """Put faults around a job, from now on."""
        self.faults[job] = list(faults)

    def mend(self) -> None:
        """Take all faults away."""
        self.faults.clear()
        self.answers.clear()
        self.world.on_step = None

    def read(self) -> Reading:
        """Read the store from its bytes."""
        return Walker(self.path).read()

    def differences(self, reading: Reading, indexed: bool = True) -> list[str]:
        """Return what is not as the model has it. `indexed`: and nothing that stands may be condemned."""
        wrong = list(reading.lost)
        wanted = {'volume home': self.live}
        wanted |= {f'snapshot {name}': files for name, files in self.snapshots.items()}
        # A request that nobody can take back any more stands no longer.
        wanted |= {
            f'request {name}': files
            for name, files in self.requests.items()
            if f'request {name}' in reading.files
        }
        for title, files in wanted.items():
            found = reading.files.get(title)
            if found is None:
                wrong.append(f'{title} is gone')
                continue
            for name in sorted(files.keys() | found.keys()):
                if files.get(name) != found.get(name):
                    wrong.append(f'{title}: {name} is not what was written')
        if indexed and reading.elsewhere:
            wrong.append(f'{len(reading.elsewhere)} chunks that are needed are still condemned')
        return wrong

    async def check(self, indexed: bool = True) -> int:
        """Every file of everything that stands must be byte-identical; return how many were read. Failed."""
        await self.engine.commit()
        reading = self.read()
        wrong = self.differences(reading, indexed)
        if wrong:
            raise Failed(f'{len(wrong)} differences: {"; ".join(wrong[:3])}')
        return sum(map(len, reading.files.values()))
