"""tools bench: the groups of workloads about deletion and verification: what they cost, whom they disturb.
Blocking; one thread, and one more that keeps a recount running.

As the groups of `groups`: each is a function of a filesystem, mounted, and a `Job`. What only snapfs has is
left out for the others; where they have something like it (snapshots, and bytes that come back), it is
measured beside.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import random
import sqlite3
import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from snapfs import limits
from snapfs.format.records import RecordKind
from snapfs.format.superblock import decode_superblock
from snapfs.rescue.scrub_values import ScrubSpec, slots_of
from snapfs.store.durable import Disk
from snapfs.store.horizon import PutRecord
from snapfs.store.store import Store
from snapfs.world import World
from tools.bench import recounts, synthetic
from tools.bench.filesystems import Failed, Filesystem, Snapfs
from tools.bench.groups import MIB, Job, Values, Watch, shell, sync_home
from tools.bench.sizes import MANY_PART

BYTES_BACK_SHARE = 0.95  # of what a snapshot alone holds: the rest is for nodes and for what others write
BACK_SECONDS_MAX = 60.0
POLL_SECONDS = 0.005
FILES_PER_DIRECTORY = 100
SMALL_BYTES_MAX = 8 << 10
IDS_AT_ONCE = 64
RECORD_ROUNDS = 2_000
SCRUB_CHUNK_BYTES = 32 << 10
SCRUB_CHUNKS_AT_ONCE = 32


# --- recounts --------------------------------------------------------------------------------------------
def synthetic_store(job: Job) -> Path:
    """Return a synthetic store, made when it is first asked for."""
    path = job.directory / 'synthetic'
    if not path.exists():
        synthetic.make(path, synthetic.Shape(references=job.sizes.synthetic_references))
    return path


def counting(filesystem: Filesystem, job: Job) -> Values:
    """Both recounts and the proof, each in its worker: references per second of processor, most memory."""
    if not isinstance(filesystem, Snapfs):
        return {}
    values = {}
    for name, found in recounts.measure_all(synthetic_store(job)).items():
        word = name.replace(' ', '_')
        values[f'{word}_speed'] = found.references_per_second / 1e6
        values[f'{word}_memory'] = found.memory_bytes / MIB
    return values


class Looping:
    """A worker's job, done again and again while inside a `with` block."""

    def __init__(self, spec: object) -> None:
        self._spec = spec
        self._ended = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        self._running = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.failed = 0

    def __enter__(self) -> Looping:
        self._thread.start()
        self._running.wait()
        return self

    def __exit__(self, *_error: object) -> None:
        with self._lock:
            self._ended.set()
            if self._process is not None:
                self._process.terminate()
        self._thread.join()
        if self.failed:
            raise Failed(f'a worker that was to run beside a workload ended with {self.failed}')

    def join(self) -> None:
        """Wait until a job has failed."""
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._lock:
                if self._ended.is_set():
                    return
                self._process = recounts.start(self._spec)
            assert self._process.stdout is not None
            for _ in self._process.stdout:
                self._running.set()  # it says so when the first nodes are read
            code = self._process.wait()
            self._running.set()
            if code and not self._ended.is_set():
                self.failed = code
                return


def unpacked(filesystem: Filesystem, job: Job) -> float:
    """Unpack the tree into an empty filesystem: nothing is there already, nothing is shared."""
    filesystem.renew()
    _touch_memory(job.sizes.touched_bytes)
    return shell('tar -xf "$1" -C "$2"', job.sample.tar, filesystem.home)


def _touch_memory(size: int) -> None:
    """Use memory and give it back. A virtual machine may have to fetch it from its host first, which doubled
    the time of whatever ran on a machine that had been at rest: beside a worker everything was faster."""
    with mmap.mmap(-1, size) as memory:
        block = bytes(MIB)
        while memory.tell() < size:
            memory.write(block)


def beside(filesystem: Filesystem, job: Job) -> Values:
    """Unpack a tree alone, and while a worker recounts another, big store all the time: the speed that is
    left. On the null filesystem: what the machine itself leaves."""
    with recounts.opened(synthetic_store(job)) as store:
        spec = store.recount()
        batch = store.condemn(spec, recounts.measure(spec))
        try:
            left = _left_beside(filesystem, job, {'recount_1': spec, 'recount_2': store.mentions(batch)})
        finally:
            store.restore(batch)
    return left


def _left_beside(filesystem: Filesystem, job: Job, specs: dict[str, object]) -> Values:
    seconds: dict[str, list[float]] = {}
    for _ in range(job.sizes.beside_pairs):
        for name, spec in ({'alone': None} | specs).items():
            with Looping(spec) if spec is not None else contextlib.nullcontext():
                seconds.setdefault(name, []).append(unpacked(filesystem, job))
    alone = statistics.median(seconds['alone'])
    return {f'beside_{name}': 100 * alone / statistics.median(seconds[name]) for name in specs}


# --- scrubs ----------------------------------------------------------------------------------------------
def scrub_store(job: Job) -> Path:
    """Return a store full of data that does not compress, made when it is first asked for."""
    path = job.directory / 'scrubbed'
    if not path.exists():
        store = Store.create(path, Disk(), World())
        for _ in range(max(1, job.sizes.sequential_bytes // (SCRUB_CHUNK_BYTES * SCRUB_CHUNKS_AT_ONCE))):
            plains = [os.urandom(SCRUB_CHUNK_BYTES) for _ in range(SCRUB_CHUNKS_AT_ONCE)]
            store.chunks.put_batch(RecordKind.DATA, plains)
            synthetic.commit(store)
        store.close(clean=True)
    return path


def scrub(filesystem: Filesystem, job: Job) -> Values:
    """A scrub of another store at full rate, in its worker: bytes it verifies in a second, its memory; and
    the speed that is left to an untar while it runs all the time."""
    path = scrub_store(job)
    uuid = decode_superblock((path / 'superblock').read_bytes()).uuid
    spec = ScrubSpec(path, uuid, slots_of(1, 1), 0)
    values = _left_beside(filesystem, job, {'scrub': spec})
    if isinstance(filesystem, Snapfs):
        found = recounts.measure(spec)
        read = sum(one.bytes for one in found.result.slots)
        values['scrub_speed'] = read / found.wall_seconds / 1e6
        values['scrub_memory'] = found.memory_bytes / MIB
    return values


# --- bytes that come back --------------------------------------------------------------------------------
def release(filesystem: Filesystem, job: Job) -> Values:
    """A deleted snapshot alone holds many bytes: from the last permission until they are off the disk."""
    if not filesystem.snapshots:
        return {}
    filesystem.renew()
    path, size = filesystem.home / 'held', job.sizes.release_bytes
    chance = random.Random(job.seed)
    with path.open('wb') as file:
        for _ in range(size // MIB):
            file.write(chance.randbytes(MIB))
    sync_home(filesystem)
    filesystem.take_snapshot('held')
    path.unlink()
    sync_home(filesystem)
    filesystem.prepare_release('held')
    wanted = filesystem.held_bytes() - size * BYTES_BACK_SHARE
    with Watch() as watch:
        filesystem.release('held')
        deadline = time.monotonic() + BACK_SECONDS_MAX
        while filesystem.held_bytes() > wanted:
            if time.monotonic() > deadline:
                raise Failed(f'the bytes are not back after {BACK_SECONDS_MAX:.0f} s')
            time.sleep(POLL_SECONDS)
    return {'release': watch.seconds}


def many(filesystem: Filesystem, job: Job) -> Values:
    """Very many snapshots of a tree that changes little (always the same file, and any other); delete every
    second one. In the first round only."""
    if not filesystem.snapshots or job.seed:
        return {}
    filesystem.renew()
    chance, sizes = random.Random(job.seed), job.sizes
    paths = [
        filesystem.home / f'{number // FILES_PER_DIRECTORY:02}' / f'{number:05}'
        for number in range(sizes.many_files)
    ]
    for path in paths:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(chance.randbytes(chance.randrange(SMALL_BYTES_MAX)))
    sync_home(filesystem)
    names = [f's{number:04}' for number in range(sizes.many_snapshots)]
    taken = []
    for name in names:
        for path in (paths[0], chance.choice(paths)):
            path.write_bytes(chance.randbytes(chance.randrange(SMALL_BYTES_MAX)))
        with Watch() as watch:
            filesystem.take_snapshot(name)
        taken.append(watch.seconds * 1000)
    values = {'many_take': statistics.median(taken)}
    filesystem.collect()  # what was overwritten between snapshots, so that it does not count below
    unwanted = names[::2]
    claimed = _claimed(filesystem)
    some = unwanted[::MANY_PART]
    for label, part in (('some', some), ('rest', [name for name in unwanted if name not in some])):
        with Watch() as watch:
            filesystem.delete_snapshots(part)
        values['many_delete'] = watch.seconds * 1000 / len(part)
        with Watch() as watch:
            filesystem.collect()
        values[f'many_{label}'] = watch.seconds
        if isinstance(filesystem, Snapfs):
            values |= _work(filesystem, label, claimed)
    return values


def _claimed(filesystem: Filesystem) -> int:
    """Return the references in all snapshots, each one's counted apart: what a walk of every one sees."""
    if not isinstance(filesystem, Snapfs):
        return 0
    with contextlib.closing(
        sqlite3.connect(f'file:{filesystem.store}/catalog.sqlite?mode=ro', uri=True)
    ) as db:
        total: int = db.execute('SELECT sum(root_refs) FROM snapshot').fetchone()[0]
    return total


def _work(filesystem: Snapfs, label: str, claimed: int) -> Values:
    """Return what the last batch of deleted snapshots has cost, by its plan. `claimed`: references in all
    snapshots, before any was deleted."""
    plans = [json.loads(path.read_text()) for path in (filesystem.store / 'batches').glob('*/plan.json')]
    plan = max((one for one in plans if one['grace_class'] == 'kept'), key=lambda one: int(one['batch']))
    seen = plan['counts']['references'] + plan['candidates']
    return {
        'many_seen': 100 * seen / claimed,
        'many_candidates': plan['candidates'] / plan['condemned'],
        f'many_{label}_condemned': plan['condemned'],
    }


# --- what safety costs -----------------------------------------------------------------------------------
GUARD = 'guard'


def overhead(filesystem: Filesystem, job: Job) -> Values:
    """A plain write workload with automatic collection off, and with puts being noted for a plan that waits
    and automatic collection on; in turns. And what a collection costs the daemon that follows it."""
    if not isinstance(filesystem, Snapfs):
        return {}
    filesystem.renew()
    path = filesystem.home / GUARD
    path.write_bytes(random.Random(job.seed).randbytes(MIB))
    filesystem.take_snapshot(GUARD)
    path.unlink()
    filesystem.command('config', 'interval', '1m')
    filesystem.command('config', 'automatic', 'off')
    _plain(filesystem, job, 'first')
    ratios: dict[str, list[float]] = {'wall': [], 'processor': []}
    collections = []
    for number in range(job.sizes.plain_pairs):
        found: dict[bool, tuple[float, float]] = {}
        for safe in ((True, False), (False, True))[number % 2]:
            with _noted(filesystem) if safe else contextlib.nullcontext():
                found[safe] = _plain(filesystem, job, f'{number} {safe}')
                if safe:
                    collections.append(_collection(filesystem))
        for name, ours, theirs in zip(ratios, found[True], found[False], strict=True):
            ratios[name].append(100 * (ours / theirs - 1))
    values = {f'overhead_{name}': statistics.median(all) for name, all in ratios.items()}
    values['collection'] = statistics.median(collections)
    return values | _record_cost()


@contextlib.contextmanager
def _noted(filesystem: Snapfs) -> Iterator[None]:
    """Inside, a plan waits for approval, so that puts are noted; and the collector has just run."""
    command = filesystem.command
    filesystem.delete_snapshot(GUARD)
    command('config', 'limit-share', '0%')
    for plan in command('collect')['waiting']:
        if plan['class'] != 'kept':
            command('collect', 'approve', plan['digest'])
    waiting = command('collect')['waiting']
    if [plan['class'] for plan in waiting] != ['kept']:
        raise Failed(f'one plan should wait for approval, not {len(waiting)}')
    command('config', 'limit-share', '30%')
    command('config', 'automatic', 'on')
    # An approval makes the daemon collect at its next look: that is once a minute, not once a second's work.
    time.sleep(limits.COLLECT_TICK_SECONDS * 1.5)
    command('collect')
    yield
    command('config', 'automatic', 'off')
    command('snapshot', 'undelete', f'home@{GUARD}')


def _plain(filesystem: Snapfs, job: Job, name: str) -> tuple[float, float]:
    """Write a big file and many small ones, with content that no other run has; return seconds of wall clock
    and of the daemon's processor, until all is stored."""
    sizes, chance = job.sizes, random.Random(f'{job.seed} {name}')
    directory = filesystem.home / 'plain'
    directory.mkdir()
    blocks = [chance.randbytes(MIB) for _ in range(sizes.plain_bytes // MIB)]
    noise = memoryview(chance.randbytes(sizes.plain_files * SMALL_BYTES_MAX))
    sync_home(filesystem)
    os.sync()
    before = _processor_seconds(filesystem)
    with Watch() as watch:
        with (directory / 'big').open('wb', buffering=0) as file:
            for block in blocks:
                file.write(block)
        for number in range(sizes.plain_files):
            begin = number * SMALL_BYTES_MAX
            (directory / f'{number:05}').write_bytes(noise[begin : begin + SMALL_BYTES_MAX])
        sync_home(filesystem)
    spent = max(_processor_seconds(filesystem) - before, 1 / os.sysconf('SC_CLK_TCK'))
    shell('rm -rf "$1"', directory)
    sync_home(filesystem)
    return watch.seconds, spent


def _collection(filesystem: Snapfs) -> float:
    """Collect what a plain workload has removed; return the daemon's processor time, in milliseconds."""
    before = _processor_seconds(filesystem)
    filesystem.command('collect')
    return 1000 * (_processor_seconds(filesystem) - before)


def _processor_seconds(filesystem: Snapfs) -> float:
    fields = Path(f'/proc/{filesystem.pid()}/stat').read_text().rsplit(')', 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf('SC_CLK_TCK')


def _record_cost() -> Values:
    """Return what noting one put costs, in nanoseconds."""
    chance, record = random.Random(1), PutRecord()
    batches = [[chance.randbytes(32) for _ in range(IDS_AT_ONCE)] for _ in range(RECORD_ROUNDS)]
    with Watch() as watch:
        for ids in batches:
            record.add(RecordKind.DATA, ids)
    return {'record_put': watch.seconds * 1e9 / (IDS_AT_ONCE * RECORD_ROUNDS)}


DELETION: dict[str, Callable[[Filesystem, Job], Values]] = {
    'counting': counting,
    'beside': beside,
    'scrub': scrub,
    'release': release,
    'many': many,
    'overhead': overhead,
}
