"""tools bench: the groups of workloads. Each leaves the filesystem as empty as it found it. Blocking; one
thread.

A group is a function of a filesystem, mounted, and a `Job`; it returns values by the name of their metric.
What a
filesystem cannot do is left out of the answer.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import random
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tools.bench.filesystems import Filesystem, device_flushes, run
from tools.bench.sample import BLOCK_BYTES, Sample
from tools.bench.sizes import Sizes

SMALL_BYTES = 4096
FILES_PER_DIRECTORY = 1_000
WALKS = 10  # of a warm tree, timed together
MIB = 1 << 20
Values = dict[str, float]


@dataclass(frozen=True, slots=True)
class Job:
    """What to do, the seed of what is random in it, and a directory for what a whole run needs once."""

    sizes: Sizes
    sample: Sample
    seed: int
    directory: Path


class Watch:
    """Seconds spent in a `with` block."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __enter__(self) -> Watch:
        self.begun = time.perf_counter()
        return self

    def __exit__(self, *_error: object) -> None:
        self.seconds = time.perf_counter() - self.begun


@contextlib.contextmanager
def opened(path: Path, flags: int) -> Iterator[int]:
    """Open a file for a `with` block."""
    fd = os.open(path, flags, 0o644)
    try:
        yield fd
    finally:
        os.close(fd)


def flush(fd: int) -> None:
    """Call fsync(2), which is what the workload is about."""
    os.fsync(fd)  # noqa: TID251


def shell(script: str, *arguments: Path) -> float:
    """Run a script with its arguments in $1, $2, …; return the seconds it took."""
    with Watch() as watch:
        run('/bin/sh', '-ec', script, 'sh', *arguments)
    return watch.seconds


def sync_home(filesystem: Filesystem) -> None:
    """Make everything durable: a sync of the whole filesystem, asked for at its directory."""
    run('sync', '-f', filesystem.home)


def tree(filesystem: Filesystem, job: Job) -> Values:
    """A real tree: unpack, walk and read it warm and cold, copy it, remove it."""
    home = filesystem.home
    values = {'untar': shell('tar -xf "$1" -C "$2"', job.sample.tar, home)}
    walk = 'find "$1" -printf "%s %T@ %m\\n" > /dev/null'
    read = 'find "$1" -type f -print0 | xargs -0 cat > /dev/null'
    shell(walk, home)
    # Once takes some hundredths of a second: less than what else happens on the machine.
    values['find_warm'] = shell(f'for _ in $(seq {WALKS}); do {walk}; done', home) / WALKS
    shell(read, home)
    values['read_warm'] = shell(read, home)
    filesystem.go_cold()
    values['find_cold'] = shell(walk, home)
    filesystem.go_cold()
    values['read_cold'] = shell(read, home)
    values |= second_copy(filesystem, job)
    shell(walk, home)
    values['remove'] = shell('rm -rf "$1/tree"', home)
    return values


def second_copy(filesystem: Filesystem, job: Job) -> Values:
    """Copy the tree, and see what the store grew by."""
    if not filesystem.persists:
        return {}
    filesystem.go_cold()
    before = filesystem.stored_bytes()
    shell('cp -a --reflink=never "$1/tree" "$1/copy"', filesystem.home)
    filesystem.go_cold()
    after = filesystem.stored_bytes()
    shell('rm -rf "$1/copy"', filesystem.home)
    if before is None or after is None:
        return {}
    return {'copy_percent': 100 * (after - before) / job.sample.bytes}


def sequential(filesystem: Filesystem, job: Job) -> Values:
    """One big file of bytes that do not compress: write, read cold."""
    path = filesystem.home / 'big'
    buffer = memoryview(mmap.mmap(-1, BLOCK_BYTES))
    blocks = job.sizes.sequential_bytes // BLOCK_BYTES
    with open(job.sample.noise, 'rb', buffering=0) as source:
        for _ in range(blocks):  # into the page cache: the disk must not be what is measured
            source.readinto(buffer)
        source.seek(0)
        with opened(path, os.O_CREAT | os.O_WRONLY) as fd, Watch() as synced:
            with Watch() as written:
                for _ in range(blocks):
                    source.readinto(buffer)
                    os.write(fd, buffer)
            flush(fd)
    filesystem.go_cold()
    with opened(path, os.O_RDONLY) as fd, Watch() as read:
        while os.readv(fd, [buffer]):
            pass
    path.unlink()
    mebibytes = job.sizes.sequential_bytes / MIB
    return {
        'write': mebibytes / written.seconds,
        'write_synced': mebibytes / synced.seconds,
        'read': mebibytes / read.seconds,
    }


def small(filesystem: Filesystem, job: Job) -> Values:
    """4 KiB at random places of a file that exists: read, write with one fsync, write with many."""
    path, sizes = filesystem.home / 'small', job.sizes
    with open(job.sample.noise, 'rb') as source:  # bytes that `sequential` has not stored already
        source.seek(sizes.sequential_bytes)
        path.write_bytes(source.read(sizes.random_bytes))
    sync_home(filesystem)
    filesystem.go_cold()
    chance = random.Random(job.seed)
    pages = sizes.random_bytes // SMALL_BYTES
    places = [
        chance.randrange(pages) * SMALL_BYTES for _ in range(max(sizes.random_count, sizes.fsync_count))
    ]
    noise = chance.randbytes(SMALL_BYTES * 16)
    blocks = [noise[start : start + SMALL_BYTES] for start in range(0, SMALL_BYTES * 15, 5)]
    some, values = places[: sizes.random_count], {}
    with opened(path, os.O_RDONLY) as fd, Watch() as watch:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
        for place in some:
            os.pread(fd, SMALL_BYTES, place)
    values['random_read'] = len(some) / watch.seconds
    with opened(path, os.O_WRONLY) as fd:
        with Watch() as watch:
            for number, place in enumerate(some):
                os.pwrite(fd, blocks[number % len(blocks)], place)
            flush(fd)
        values['random_write'] = len(some) / watch.seconds
        os.sync()
        flushes = device_flushes(filesystem.directory)
        with Watch() as watch:
            for number, place in enumerate(places[: sizes.fsync_count]):
                os.pwrite(fd, blocks[-number % len(blocks)], place)
                flush(fd)
        values['fsync_write'] = sizes.fsync_count / watch.seconds
        after = device_flushes(filesystem.directory)
    if filesystem.persists and flushes is not None and after is not None:
        values['fsync_flushes'] = (after - flushes) / sizes.fsync_count
    path.unlink()
    return values


def create(filesystem: Filesystem, job: Job) -> Values:
    """Create empty files in one directory."""
    directory, count = filesystem.home / 'created', job.sizes.create_count
    directory.mkdir()
    names = [f'{directory}/file-{number:06}' for number in range(count)]
    with Watch() as watch:
        for name in names:
            os.close(os.open(name, os.O_CREAT | os.O_WRONLY | os.O_EXCL, 0o644))
    shutil.rmtree(directory)
    return {'create': count / watch.seconds}


def snapshot(filesystem: Filesystem, job: Job) -> Values:
    """Take and delete snapshots of few files and of many, when everything is stored already."""
    if not filesystem.snapshots:
        return {}
    values, made, begun = {}, 0, f'{job.seed}-{time.monotonic_ns()}'
    root = filesystem.home / 'many'
    for label, count in zip(('small', 'large'), job.sizes.snapshot_files, strict=True):
        while made < count:
            directory = root / f'{made // FILES_PER_DIRECTORY:04}'
            directory.mkdir(parents=True, exist_ok=True)
            for number in range(made, min(count, made + FILES_PER_DIRECTORY)):
                (directory / f'{number:06}').write_bytes(b'%06d\n' % number)
            made = min(count, made + FILES_PER_DIRECTORY)
        sync_home(filesystem)
        filesystem.take_snapshot(f'{label}-{begun}')  # stores what a snapshot must find stored
        filesystem.delete_snapshot(f'{label}-{begun}')
        taken, deleted = [], []
        for number in range(job.sizes.snapshot_repeats):
            with Watch() as watch:
                filesystem.take_snapshot(f'{label}-{begun}-{number}')
            taken.append(watch.seconds * 1000)
            with Watch() as watch:
                filesystem.delete_snapshot(f'{label}-{begun}-{number}')
            deleted.append(watch.seconds * 1000)
        values[f'snapshot_{label}'] = statistics.median(taken)
        values[f'snapshot_delete_{label}'] = statistics.median(deleted)
    shutil.rmtree(root)
    return values


def sparse(filesystem: Filesystem, job: Job) -> Values:
    """Grow, shrink and remove a file far larger than any disk."""
    path = filesystem.home / 'sparse'
    try:
        with Watch() as watch:
            with opened(path, os.O_CREAT | os.O_RDWR) as fd:
                os.ftruncate(fd, job.sizes.sparse_bytes)
                os.pwrite(fd, b'end', job.sizes.sparse_bytes - 3)
                os.ftruncate(fd, job.sizes.sparse_bytes // 3)
                os.ftruncate(fd, 1)
            path.unlink()
    except OSError:
        path.unlink()
        return {}  # the disk's own filesystem has no such files
    return {'sparse': watch.seconds * 1000}


def memory(filesystem: Filesystem, job: Job) -> Values:
    """Everything above once more under one daemon, then a look at its size. In the first round only."""
    if job.seed or filesystem.pid() is None:
        return {}
    filesystem.stays = True
    try:
        for work in (tree, sequential, small, create, snapshot, sparse):
            work(filesystem, job)
        filesystem.weigh()
        return {'memory_now': filesystem.memory_now / 1024}
    finally:
        filesystem.stays = False


def mounting(filesystem: Filesystem, job: Job) -> Values:
    """Unmount and mount again."""
    mounted, unmounted = [], []
    for _ in range(job.sizes.mount_repeats):
        filesystem.weigh()
        with Watch() as watch:
            filesystem.unmount()
        unmounted.append(watch.seconds * 1000)
        with Watch() as watch:
            filesystem.mount()
            os.stat(filesystem.home)
        mounted.append(watch.seconds * 1000)
    return {'mount': statistics.median(mounted), 'unmount': statistics.median(unmounted)}


GROUPS: dict[str, Callable[[Filesystem, Job], Values]] = {
    'tree': tree,
    'sequential': sequential,
    'small': small,
    'create': create,
    'snapshot': snapshot,
    'sparse': sparse,
    'memory': memory,
    'mounting': mounting,
}
EXPECTED = (OSError, subprocess.SubprocessError)
