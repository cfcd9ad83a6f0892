"""Drives the adapter as the kernel would, without a kernel."""

from __future__ import annotations

import errno
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyfuse3
import pytest

from snapfs.mount.adapter import Adapter
from snapfs.mount.invalidate import Outdated
from snapfs.volume.engine import Engine
from tests.support.stores import fresh_engine

ROOT = 1


@dataclass(frozen=True)
class Caller:
    uid: int = 0
    gid: int = 0
    pid: int = 1
    umask: int = 0o022


USER = Caller(uid=1000, gid=1000)
ADMIN = Caller()


@dataclass
class Token:
    """Stands in for a ReaddirToken: takes so many entries per answer."""

    room: int
    entries: list[tuple[bytes, int, int]] = field(default_factory=list)


def reply(token: Token, name: bytes, attributes: pyfuse3.EntryAttributes, position: int) -> bool:
    if token.room == 0:
        return False
    token.room -= 1
    assert 0 < position < 1 << 63
    token.entries.append((name, attributes.st_ino, position))
    return True


class RecordingSender:
    """Takes notifications and sends them nowhere."""

    def __init__(self) -> None:
        self.sent: list[Outdated] = []

    def send(self, outdated: Outdated) -> None:
        self.sent.append(outdated)

    def close(self) -> None:
        pass


class Kit:
    """One mount: the adapter, and its requests with the arguments that matter."""

    def __init__(self, engine: Engine, volume: str | None = None) -> None:
        for (
            head
        ) in engine.heads().values():  # made by another kit: a process has one mount, a test may have two
            for inode in head.inodes.values():
                inode.attributes = None
        self.engine = engine
        self.adapter = Adapter(engine, volume=volume)
        self.space = self.adapter.namespace

    async def node(self, path: str) -> int:
        """Walk a path from the root, as the kernel does, and return the node id."""
        node = ROOT
        for name in path.split('/'):
            if name:
                entry = await self.adapter.lookup(node, name.encode(), ADMIN)
                assert entry.st_ino, f'{name} of {path} is not there'
                node = entry.st_ino
        return node

    async def parent(self, path: str) -> tuple[int, bytes]:
        above, _, name = path.rpartition('/')
        return await self.node(above), name.encode()

    async def exists(self, path: str) -> bool:
        node, name = await self.parent(path)
        return (await self.adapter.lookup(node, name, ADMIN)).st_ino != 0

    async def stat(self, path: str) -> pyfuse3.EntryAttributes:
        return await self.adapter.getattr(await self.node(path), ADMIN)

    async def mkdir(self, path: str, who: Caller = ADMIN, mode: int = 0o755) -> int:
        node, name = await self.parent(path)
        return (await self.adapter.mkdir(node, name, stat.S_IFDIR | mode, who)).st_ino

    async def rmdir(self, path: str, who: Caller = ADMIN) -> None:
        await self.adapter.rmdir(*await self.parent(path), who)

    async def unlink(self, path: str) -> None:
        await self.adapter.unlink(*await self.parent(path), ADMIN)

    async def write(self, path: str, data: bytes, who: Caller = ADMIN) -> int:
        """Create a file and write it; return its node id."""
        node, name = await self.parent(path)
        info, entry = await self.adapter.create(node, name, stat.S_IFREG | 0o644, 0, who)
        assert await self.adapter.write(info.fh, 0, data) == len(data)
        await self.adapter.release(info.fh)
        return entry.st_ino

    async def read(self, path: str) -> bytes:
        info = await self.adapter.open(await self.node(path), 0, ADMIN)
        data = await self.adapter.read(info.fh, 0, 1 << 20)
        await self.adapter.release(info.fh)
        return data

    async def rename(self, old: str, new: str, flags: int = 0) -> None:
        source, target = await self.parent(old), await self.parent(new)
        await self.adapter.rename(*source, *target, flags, ADMIN)

    async def setattr(self, node: int, **values: Any) -> pyfuse3.EntryAttributes:
        names = ('atime', 'mtime', 'ctime', 'mode', 'uid', 'gid', 'size')
        fields = SimpleNamespace(**{f'update_{name}': name in values for name in names})
        attributes = pyfuse3.EntryAttributes()
        for name, value in values.items():
            setattr(attributes, f'st_{name}_ns' if name.endswith('time') else f'st_{name}', value)
        return await self.adapter.setattr(node, attributes, fields, None, ADMIN)

    async def list(self, path: str, room: int = 24) -> list[bytes]:
        """Return the names in a directory, `.` and `..` left out, with so many entries per answer."""
        return [
            name
            for name, _, _ in await self.entries(await self.node(path), room)
            if name not in (b'.', b'..')
        ]

    def trash(self) -> str:
        """Return the path of the newest deletion that can be taken back. (Commits use up numbers too.)"""
        return f'.snapfs/trash/{self.engine.request_list()[-1].number}'

    async def entries(self, node: int, room: int = 24) -> list[tuple[bytes, int, int]]:
        handle = await self.adapter.opendir(node, ADMIN)
        found: list[tuple[bytes, int, int]] = []
        while True:
            token = Token(room)
            await self.adapter.readdir(handle, found[-1][2] if found else 0, token)
            if not token.entries:
                return found
            found += token.entries


@asynccontextmanager
async def refused(code: int) -> AsyncIterator[None]:
    """Expect a FUSEError with this errno."""
    with pytest.raises(pyfuse3.FUSEError) as caught:
        yield
    assert caught.value.errno == code, errno.errorcode[caught.value.errno]


@asynccontextmanager
async def open_kit(path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Kit]:
    """A mount of a fresh store with one volume `home` that belongs to user 1000."""
    monkeypatch.setattr(pyfuse3, 'readdir_reply', reply)
    engine = await fresh_engine(path)
    await engine.volume_create('home', USER.uid, USER.gid)
    yield Kit(engine)
    await engine.close()
