"""An engine without files and a file system with one directory, to test the house around them.

The fake engine keeps the contract of snapfs.volume.engine as far as the service uses it: names, rows,
requests, holds, the lock of the store. What it knows lies in STORE/fake.json: it survives its process.
"""

import errno
import fcntl
import json
import logging
import os
import signal
import stat
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import pyfuse3
import trio
import trio.testing

from snapfs.errors import Held, Invalid, Refused, Unavailable
from snapfs.store.rows import HoldRow, RequestRow, SnapshotRow, VolumeRow
from snapfs.store.verified import Verified


class FakeEngine:
    def __init__(self, store: Path, lock: int) -> None:
        self.store = store
        self.lock = lock
        self.closed = False
        self.may_write = True
        self.number = 1
        self.volumes: dict[str, VolumeRow] = {}
        self.snapshots: list[SnapshotRow] = []
        self.holds: list[HoldRow] = []
        self.requests: list[RequestRow] = []
        path = store / 'fake.json'
        if path.exists():
            state = json.loads(path.read_text())
            self.number = state['number']
            self.volumes = {row['name']: VolumeRow(**row) for row in state['volumes']}
            self.snapshots = [SnapshotRow(**row) for row in state['snapshots']]
            self.holds = [HoldRow(**row) for row in state['holds']]
            self.requests = [RequestRow(**row) for row in state['requests']]

    def coverage(self) -> SimpleNamespace:
        return SimpleNamespace(of=lambda epoch: Verified(0, None))

    @classmethod
    async def open(cls, store: Path, wait_seconds: float) -> 'FakeEngine':
        if 'FAKE_INTERRUPT' in os.environ:
            signal.raise_signal(getattr(signal, os.environ['FAKE_INTERRUPT']))
            await trio.testing.wait_all_tasks_blocked()
        lock = os.open(store / 'lock', os.O_RDWR | os.O_CREAT, 0o600)
        with trio.move_on_after(wait_seconds):
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    return cls(store, lock)
                except BlockingIOError:
                    await trio.sleep(0.005)
        os.close(lock)
        raise Unavailable(f'{store} is in use')

    async def run(self, task_status=trio.TASK_STATUS_IGNORED) -> None:
        task_status.started()
        await trio.sleep_forever()

    async def close(self) -> None:
        if 'FAKE_CLOSE_FAILS' in os.environ:
            raise Unavailable('the last commit failed')
        gate = os.environ.get('FAKE_CLOSE_GATE')
        if gate is not None:  # a named pipe: closing takes until somebody writes to it
            await trio.to_thread.run_sync(Path(gate).read_bytes)
        state = {
            'number': self.number,
            'volumes': [asdict(row) for row in self.volumes.values()],
            'snapshots': [asdict(row) for row in self.snapshots],
            'holds': [asdict(row) for row in self.holds],
            'requests': [asdict(row) for row in self.requests],
        }
        (self.store / 'fake.json').write_text(json.dumps(state))
        os.close(self.lock)
        self.closed = True

    def status(self) -> dict:
        return {
            'store': str(self.store),
            'epoch': 7,
            'writable': self.may_write,
            'counters': self.counters(),
        }

    def writable(self) -> bool:
        return self.may_write

    def counters(self) -> dict:
        return {'device_syncs': 3}

    def next(self) -> int:
        self.number += 1
        return self.number

    def heads(self) -> dict:
        return {name: SimpleNamespace(name=name, row=row) for name, row in self.volumes.items()}

    def head(self, name: str):
        return self.heads().get(name)

    async def volume_create(self, name: str, uid: int, gid: int, mode: int = 0o755):
        if name in self.volumes:
            raise Refused(errno.EEXIST)
        number = self.next()
        self.volumes[name] = VolumeRow(number, number, name, None, 0, 0, 2, number, None, None)

    async def volume_rename(self, old: str, new: str) -> None:
        row = self.volumes.pop(old)
        self.volumes[new] = replace(row, name=new)

    async def volume_delete(self, name: str, who: str) -> RequestRow:
        row = self.volumes.pop(name)
        return self._request('volume', row.volume, name, name, row.number, who)

    async def volume_clone(self, volume: str, snapshot: str, name: str):
        await self.volume_create(name, 0, 0)

    async def volume_rollback(self, volume: str, snapshot: str, who: str) -> SnapshotRow:
        self.volumes[volume] = replace(self.volumes[volume], number=self.next())
        return await self.snapshot_create(volume, f'before-{snapshot}', who)

    async def snapshot_create(self, volume: str, name: str, who: str) -> SnapshotRow:
        if any(row.name == name for row in self.snapshot_list(volume)):
            raise Refused(errno.EEXIST)
        number = self.next()
        row = SnapshotRow(number, self.volumes[volume].volume, name, None, 0, 0, 2, 7, number, who, None)
        self.snapshots.append(row)
        return row

    def snapshot_list(self, volume: str | None) -> list[SnapshotRow]:
        wanted = self.volumes[volume].volume
        return [row for row in self.snapshots if row.volume == wanted]

    def snapshot_find(self, volume: str, name: str) -> SnapshotRow:
        if volume not in self.volumes:
            raise Refused(errno.ENOENT, f'there is no volume {volume!r}')
        found = [row for row in self.snapshot_list(volume) if row.name == name]
        if not found:
            raise Refused(errno.ENOENT, f'there is no snapshot {volume}@{name}')
        return found[0]

    async def snapshot_rename(self, volume: str, name: str, new_name: str) -> None:
        row = self.snapshot_find(volume, name)
        self.snapshots[self.snapshots.index(row)] = replace(row, name=new_name)

    async def snapshot_delete(self, volume: str, name: str, who: str) -> RequestRow:
        row = self.snapshot_find(volume, name)
        if self.hold_list(volume, name):
            raise Held(f'{volume}@{name} is held')
        self.snapshots.remove(row)
        return self._request('snapshot', row.volume, volume, name, row.number, who)

    def request_list(self) -> list[RequestRow]:
        return list(self.requests)

    async def snapshot_undelete(self, number: int, new_name=None, new_volume=None):
        request = next(row for row in self.requests if row.number == number)
        self.requests.remove(request)
        name = new_name or request.name
        self.snapshots.append(
            SnapshotRow(request.view, request.volume, name, None, 0, 0, 2, 7, number, request.who, None)
        )

    async def volume_undelete(self, number: int, new_name=None):
        request = next(row for row in self.requests if row.number == number)
        self.requests.remove(request)
        name = new_name or request.name
        self.volumes[name] = VolumeRow(request.volume, request.view, name, None, 0, 0, 2, 1, None, None)

    async def hold_add(self, volume, snapshot, hold_name, who, why, until_ns=None) -> None:
        row = self.snapshot_find(volume, snapshot)
        self.holds.append(HoldRow(row.number, hold_name, who, why, self.next(), until_ns))

    async def hold_release(self, volume, snapshot, hold_name) -> None:
        found = [row for row in self.hold_list(volume, snapshot) if row.name == hold_name]
        if not found:
            raise Invalid(f'{volume}@{snapshot} has no hold {hold_name!r}')
        self.holds.remove(found[0])

    def hold_list(self, volume: str, snapshot: str) -> list[HoldRow]:
        number = self.snapshot_find(volume, snapshot).number
        return [row for row in self.holds if row.snapshot == number]

    def _request(self, kind, volume, volume_name, name, view, who) -> RequestRow:
        number = self.next()
        row = RequestRow(
            number,
            kind,
            volume,
            volume_name,
            name,
            view,
            None,
            0,
            0,
            2,
            7,
            1,
            who,
            None,
            number,
            who,
            7,
            5,
            None,
        )
        self.requests.append(row)
        return row


class OneDirectory(pyfuse3.Operations):
    """A root directory with nothing in it."""

    async def getattr(self, inode, ctx):
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = pyfuse3.ROOT_INODE
        entry.st_mode = stat.S_IFDIR | 0o755
        entry.st_uid, entry.st_gid = os.getuid(), os.getgid()
        entry.st_nlink = 2
        return entry

    async def lookup(self, parent_inode, name, ctx):
        raise pyfuse3.FUSEError(errno.ENOENT)

    async def opendir(self, inode, ctx):
        return inode

    async def readdir(self, fh, start_id, token):
        return

    async def mkdir(self, parent_inode, name, mode, ctx):
        if name == b'crash':
            os.abort()
        raise pyfuse3.FUSEError(errno.EPERM)


class FakeParts:
    """Stands in for compose.RealParts."""

    async def open_engine(self, store, wait_seconds):
        return await FakeEngine.open(store, wait_seconds)

    def operations(self, engine, request):
        if 'FAKE_BUG' in os.environ:
            raise ZeroDivisionError('a bug at the start')
        if request.volume is not None and engine.head(request.volume) is None:
            raise Invalid(f'there is no volume {request.volume!r}')
        return OneDirectory()

    async def serve(self):
        await pyfuse3.main()

    def collecting(self, engine):
        return None

    def mounted(self, engine, request):
        engine.mountpoint = request.mountpoint

    async def settled(self):
        logging.getLogger('fake').info('the kernel was told')

    def terminate(self):
        pyfuse3.terminate()


def make_store(path: Path) -> Path:
    """Make what the service takes for a store."""
    path.mkdir(parents=True)
    (path / 'superblock').write_bytes(b'fake')
    return path


def install() -> None:
    """Put the fakes in the place of the real parts, in this process."""
    from snapfs.service import compose

    for name in ('open_engine', 'operations', 'collecting', 'mounted', 'serve', 'settled', 'terminate'):
        setattr(compose.RealParts, name, getattr(FakeParts, name))
    compose.create_store = make_store
