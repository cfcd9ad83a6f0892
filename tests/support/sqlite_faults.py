"""Lets the catalog's disk fail below SQLite, call by call, and looks afterwards what became of it.

Run it with the library of sqlite_faults.c preloaded:

    python -m tests.support.sqlite_faults PART CALL ERROR COUNT STEP DIRECTORY

For n = 0, STEP, 2 STEP, … a process does the same short work while COUNT such calls fail from the n-th on,
notes what was acknowledged, and is killed; the store is then opened without faults. Ends when the work is
done before the n-th call. Prints a JSON line per n, for a test to judge. With `open` as a last word, only the
opening of the store meets the faults.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import stat
import sys
import traceback
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import trio

from snapfs import limits
from snapfs.errors import SnapfsError
from snapfs.store.durable import Disk
from snapfs.store.store import Store
from snapfs.volume.engine import Engine
from tests.support.stores import QuietWorld

FILE = stat.S_IFREG | 0o644
CASES_MAX = 400

library = ctypes.CDLL(None)


def set_fault(part: str, call: str, error: int, after: int, count: int) -> None:
    library.fault_set(part.encode(), ctypes.c_char(call.encode()), error, after, count)


def hits() -> int:
    return ctypes.c_int.in_dll(library, 'fault_hits').value


def content(number: int) -> bytes:
    return b'file %d, ' % number * (200 * number)


class Work:
    """What one process does. `done` is what was acknowledged, `errors` what was not."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.done: list[str] = []
        self.errors: dict[str, str] = {}

    async def step(self, name: str, action: Awaitable[Any]) -> None:
        try:
            await action
        except SnapfsError as error:
            self.errors[name] = type(error).__name__
        else:
            self.done.append(name)

    async def file(self, number: int) -> None:
        head = self.engine.head('home')
        assert head is not None
        file = await head.make(await head.inode(limits.INO_ROOT), b'%d' % number, FILE, 0, 0)
        await head.write(file, 0, content(number))
        await self.engine.sync()

    async def checkpoint(self) -> None:
        self.engine.store.catalog.checkpoint()

    async def all(self) -> None:
        engine, step = self.engine, self.step
        await step('file 1', self.file(1))
        await step('snapshot a', engine.snapshot_create('home', 'a', 'test'))
        await step('snapshot b', engine.snapshot_create('home', 'b', 'test'))
        await step('hold a', engine.hold_add('home', 'a', 'keep', 'test', 'why', None))
        await step('file 2', self.file(2))
        await step('delete b', engine.snapshot_delete('home', 'b', 'test'))
        await step('commit', engine.commit())
        await step('checkpoint', self.checkpoint())
        await step('volume other', engine.volume_create('other', 0, 0))
        await step('file 3', self.file(3))
        await step('rename a', engine.snapshot_rename('home', 'a', 'aa'))
        await step('snapshot c', engine.snapshot_create('home', 'c', 'test'))


async def found(path: Path) -> dict[str, Any]:
    """Open a store as after a kill, and say what is in it."""
    engine = await Engine.open(path, Disk(), QuietWorld())
    head = engine.head('home')
    assert head is not None
    root = await head.inode(limits.INO_ROOT)
    files = []
    for number in (1, 2, 3):
        inode = await head.lookup(root, b'%d' % number)
        if inode is not None and await head.read(inode, 0, inode.size) == content(number):
            files.append(number)
    snapshots = [row.name for row in engine.snapshot_list('home')]
    result = {
        'files': files,
        'snapshots': snapshots,
        'held': [name for name in snapshots if engine.hold_list('home', name)],
        'requests': [row.name for row in engine.request_list() if row.kind == 'snapshot'],
        'volumes': sorted(engine.heads()),
        'latched': engine.store.latched,
    }
    await engine.close()
    return result


def in_process(work: Callable[[], Any]) -> Any:
    """Run `work` in a process that is killed right after, and return its result."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writer, json.dumps(work()).encode())
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader, 'rb') as pipe:
        data = pipe.read()
    os.waitpid(child, 0)
    return json.loads(data)


def one_case(fault: tuple[str, str, int, int], count: int, path: Path, opening: bool) -> dict[str, Any]:
    """Do the work in a process of its own while calls fail; then look at the store."""

    async def faulty() -> dict[str, Any]:
        if opening:
            set_fault(*fault, count)
        engine = await Engine.open(path, Disk(), QuietWorld())
        work = Work(engine)
        if not opening:
            set_fault(*fault, count)
            await work.all()
        failed = hits()
        set_fault('', 'w', 0, 0, 0)
        later = Work(engine)
        await later.step('late', engine.snapshot_create('home', 'late', 'test'))
        return {
            'done': work.done + later.done,
            'errors': work.errors | later.errors,
            'latched': engine.store.latched,
            'stopped': engine.core.budget.stopped is not None,
            'hits': failed,
        }

    said = in_process(lambda: trio.run(faulty))
    return {'after': fault[3], **said, 'found': in_process(lambda: trio.run(found, path))}


def main() -> None:
    part, call, name, count, step, directory, *opening = sys.argv[1:]
    limits.JOURNAL_BYTES, limits.RESERVE_BYTES, limits.FREE_BYTES_MIN = 2 * limits.MIB, 65536, 65536
    for after in range(0, CASES_MAX, int(step)):
        path = Path(directory) / f'{after}'

        async def prepare(path: Path = path) -> None:
            Store.create(path, Disk(), QuietWorld()).close(clean=True)
            engine = await Engine.open(path, Disk(), QuietWorld())
            await engine.volume_create('home', 0, 0)
            await engine.close()

        trio.run(prepare)
        case = one_case((part, call, getattr(errno, name), after), int(count), path, opening == ['open'])
        print(json.dumps(case), flush=True)
        if not case['hits']:
            return


if __name__ == '__main__':
    main()
