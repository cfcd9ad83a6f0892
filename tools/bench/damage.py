"""tools bench: the groups of workloads about verification and recovery. Blocking; one thread, and one more
that looks at the memory of a program and its workers.

As the groups of `groups`: each is a function of a filesystem, mounted, and a `Job`. Only snapfs has them.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from snapfs.format.records import HEADER_BYTES, RecordKind
from snapfs.store.packs import pack_path
from tools.bench.deletion import FILES_PER_DIRECTORY, synthetic_store
from tools.bench.filesystems import BIN, Failed, Filesystem, Snapfs, drop_caches, used_bytes
from tools.bench.groups import MIB, Job, Values, Watch, shell, sync_home

LOOK_SECONDS = 0.1
FILE_BYTES = (1_000, 5_000)
OK, DAMAGED = 0, 4
FSCK = Path(__file__).resolve().parents[1] / 'fsck.py'


@dataclass(frozen=True, slots=True)
class Done:
    """A program that has ended: its answer, seconds, and the most memory it and its workers had at once, in
    bytes; pages that processes share are counted once."""

    value: Any
    seconds: float
    memory_bytes: int


def measured(command: list[str | Path], code: int = OK) -> Done:
    """Run a program that answers in JSON and must end with this code. Raises Failed."""
    with Watch() as watch:
        # As it is installed: with the bytecode that Python keeps, whatever a developer has set.
        settings = {key: value for key, value in os.environ.items() if key != 'PYTHONDONTWRITEBYTECODE'}
        process = subprocess.Popen([str(word) for word in command], stdout=subprocess.PIPE, env=settings)
        most = Most(process.pid)
        with most:
            assert process.stdout is not None
            text = process.stdout.read()
            process.wait()
    if process.returncode != code:
        words = ' '.join(str(word) for word in command)
        raise Failed(f'{words}: ended with {process.returncode}, not {code}: {text[-500:]!r}')
    return Done(json.loads(text), watch.seconds, most.bytes)


class Most:
    """The most memory that a process and those it started have at once, inside a `with` block. It looks ten
    times a second."""

    def __init__(self, pid: int) -> None:
        self.bytes = 0
        self._pid = pid
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> Most:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._ended.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._ended.wait(LOOK_SECONDS):
            self.bytes = max(self.bytes, sum(map(_proportional_bytes, _family(self._pid))))


def _family(pid: int) -> list[int]:
    found = [pid]
    with contextlib.suppress(OSError):
        for task in Path(f'/proc/{pid}/task').iterdir():
            for child in (task / 'children').read_text().split():
                found += _family(int(child))
    return found


def _proportional_bytes(pid: int) -> int:
    with contextlib.suppress(OSError):
        found = re.search(r'^Pss:\s+(\d+) kB$', Path(f'/proc/{pid}/smaps_rollup').read_text(), re.MULTILINE)
        return int(found[1]) * 1024 if found else 0
    return 0


def fsck(filesystem: Filesystem, job: Job) -> Values:
    """A quick check of a store with very many references; a full one of a store with a tree and a big file
    that does not compress, mounted, its bytes not in memory."""
    if not isinstance(filesystem, Snapfs):
        return {}
    store = synthetic_store(job)
    quick = measured([sys.executable, FSCK, '--quick', '--json', '--scratch', job.directory, store])
    filesystem.renew()
    shell('tar -xf "$1" -C "$2"; cp "$3" "$2/big"', job.sample.tar, filesystem.home, job.sample.noise)
    filesystem.go_cold()
    full = measured([sys.executable, FSCK, '--json', '--scratch', job.directory, filesystem.store])
    stored = used_bytes(filesystem.store / 'packs')
    filesystem.renew()
    return {
        'fsck_quick': quick.value['balance']['references'] / quick.seconds / 1e6,
        'fsck_quick_memory': quick.memory_bytes / MIB,
        'fsck_full': stored / full.seconds / 1e6,
        'fsck_full_memory': full.memory_bytes / MIB,
    }


def lost(filesystem: Filesystem, job: Job) -> Values:
    """Many files in many snapshots; some of their chunks rot and a scrub finds them. How long it takes to
    name the files, to recover one snapshot, and to make a new catalog of it all."""
    if not isinstance(filesystem, Snapfs):
        return {}
    filesystem.renew()
    names = _history(filesystem, job)
    values = {'recover_clean': _recover(filesystem, f'home@{names[0]}')}
    _rot(filesystem, job)
    measured([BIN / 'snapfs', 'scrub', '--json', '--store', filesystem.store], DAMAGED)
    filesystem.go_cold()
    shown = measured([BIN / 'snapfs', 'damage', '--json', filesystem.store], DAMAGED)
    told = [one for one in shown.value['damage'] if one['code'] == 'damage-known']
    if len(told) != job.sizes.map_lost:
        raise Failed(f'the map names {len(told)} lost chunks of {job.sizes.map_lost}')
    values['damage_map'] = shown.seconds
    values['damage_map_memory'] = shown.memory_bytes / MIB
    values['damage_ranges'] = sum(len(one['files']) for one in told)
    values['recover'] = _recover(filesystem, f'home@{names[0]}', DAMAGED)
    filesystem.unmount()
    values['rebuild'] = _rebuild(filesystem, job)
    filesystem.mount()
    filesystem.renew()
    return values


def _recover(filesystem: Snapfs, snapshot: str, code: int = OK) -> float:
    return measured(
        [BIN / 'snapfs', 'recover', snapshot, '--json', '--store', filesystem.store], code
    ).seconds


def _rebuild(filesystem: Snapfs, job: Job) -> float:
    """Make a catalog anew, while the true one is elsewhere: beside a sound one there would be no need."""
    catalog, made = filesystem.store / 'catalog.sqlite', job.directory / 'rebuilt.sqlite'
    catalog.rename(job.directory / 'catalog.sqlite')
    drop_caches()
    try:
        done = measured([BIN / 'snapfs', 'rebuild', '--json', filesystem.store, made])
    finally:
        (job.directory / 'catalog.sqlite').rename(catalog)
    made.unlink()
    return done.seconds


def _history(filesystem: Snapfs, job: Job) -> list[str]:
    """Write many small files, and take snapshots while some of them change; return their names."""
    chance, sizes = random.Random(job.seed), job.sizes
    paths = [
        filesystem.home / f'{number // FILES_PER_DIRECTORY:04}' / f'{number:06}'
        for number in range(sizes.map_files)
    ]
    for path in paths:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(chance.randbytes(chance.randrange(*FILE_BYTES)))
    names = [f's{number:03}' for number in range(sizes.map_snapshots)]
    for name in names:
        for path in chance.sample(paths, sizes.map_changed):
            path.write_bytes(chance.randbytes(chance.randrange(*FILE_BYTES)))
        filesystem.take_snapshot(name)
    sync_home(filesystem)
    return names


def _rot(filesystem: Snapfs, job: Job) -> None:
    """Turn a bit round in the bytes of some chunks of files, chosen at random."""
    with contextlib.closing(
        sqlite3.connect(f'file:{filesystem.store}/catalog.sqlite?mode=ro', uri=True)
    ) as db:
        rows = db.execute(
            'SELECT pack.name, chunk.offset FROM chunk JOIN pack ON chunk.pack = pack.pack '
            'WHERE chunk.kind = ? ORDER BY chunk.id',
            (RecordKind.DATA,),
        ).fetchall()
    for name, offset in random.Random(job.seed).sample(rows, job.sizes.map_lost):
        path = pack_path(filesystem.store / 'packs', RecordKind.DATA, name)
        with path.open('r+b') as file:
            file.seek(offset + HEADER_BYTES)
            byte = file.read(1)[0]
            file.seek(offset + HEADER_BYTES)
            file.write(bytes([byte ^ 1]))


DAMAGE: dict[str, Callable[[Filesystem, Job], Values]] = {'fsck': fsck, 'lost': lost}
