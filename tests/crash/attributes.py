"""A volume's model with everything that stat(2) shows: inode numbers, owners, devices and times.

The clock of `TickWorld` moves by whole seconds, where the test says so; what a call reads between two ticks
differs in nanoseconds. So the model knows at which tick each time was set, without asking the engine. Times
before the clock's beginning were set by somebody, and count to the nanosecond.
"""

from __future__ import annotations

import stat
from dataclasses import dataclass, field
from typing import Any

from snapfs import limits
from snapfs.volume.inode import Inode
from snapfs.volume.view import View
from tests.crash.run import SteppingWorld
from tests.sim.world import START_NS
from tests.support.model import Node, Pair

SECOND_NS = 1_000_000_000
BORN = ('born',)  # the times of a top directory in which nothing has happened yet


class TickWorld(SteppingWorld):
    """Wall-clock time stands still between two ticks but for a nanosecond a call; sleeping takes no time."""

    def __init__(self, seed: int = 0, tick: int = 100) -> None:
        super().__init__(seed)
        self.tick = tick
        self._calls = 0

    def time_ns(self) -> int:
        self._calls += 1
        return START_NS + self.tick * SECOND_NS + self._calls

    def wait(self, seconds: int) -> None:
        """Let time pass for all clocks."""
        self.advance(seconds)
        self.tick += seconds

    async def sleep(self, seconds: float) -> None:
        self.advance(seconds)
        await self.checkpoint()


def tick_of(time_ns: int) -> int:
    """Return the tick at which a time was taken; a time that was set, as it is."""
    return time_ns if time_ns < START_NS else (time_ns - START_NS) // SECOND_NS


@dataclass
class Full(Node):
    """A file of the model with all its attributes. `times`: of access, change of content, change, birth."""

    ino: int = limits.INO_ROOT
    owner: tuple[int, int] = (0, 0)
    rdev: int = 0
    times: list[int] = field(default_factory=lambda: [0, 0, 0, 0])

    def touch(self, tick: int, content: bool = True) -> None:
        """The file was changed: its content, or (not `content`) what is known about it."""
        self.times[2] = tick
        if content:
            self.times[1] = tick

    def freeze(self) -> Any:
        return (*super().freeze(), _more(self.ino, self.owner, self.rdev, self.times))


def _more(ino: int, owner: tuple[int, int], rdev: int, times: list[int]) -> Any:
    born = ino == limits.INO_ROOT and len(set(times)) == 1
    return (ino, owner, rdev, BORN if born else tuple(times))


async def freeze_full(view: View, ino: int = limits.INO_ROOT) -> Any:
    """Return what a view holds in the form of `Full.freeze`, by reading all of it."""
    inode = await view.inode(ino)
    names = await view.xattr_list(inode)
    xattrs = tuple(sorted([(name, await view.xattr_get(inode, name)) for name in names]))
    times = [tick_of(t) for t in (inode.atime_ns, inode.mtime_ns, inode.ctime_ns, inode.btime_ns)]
    more = _more(ino, (inode.uid, inode.gid), inode.rdev, times)
    if not inode.is_directory():
        data = bytes(await view.read(inode, 0, inode.size)) if inode.is_regular() else b''
        assert len(data) == inode.size or not inode.is_regular()
        return ('file', inode.mode, inode.nlink, data, inode.target, xattrs, more)
    found = []
    page = await view.list_directory(inode, 0, 1000)
    for _, name, child, kind in page:
        frozen = await freeze_full(view, child)
        assert kind == frozen[1] >> 12
        found.append((name, frozen))
    assert inode.size == len(found), f'directory {ino} counts {inode.size} entries and has {len(found)}'
    assert inode.nlink == 2 + sum(frozen[0] == 'dir' for _, frozen in found)
    return ('dir', inode.mode, xattrs, tuple(sorted(found)), more)


class FullPair(Pair):
    """A head and its full model, changed together at the tick of the world."""

    node_type = Full
    root: Full

    @property
    def tick(self) -> int:
        world = self.head.core.world
        assert isinstance(world, TickWorld)
        return world.tick

    def _touch(self, *paths: list[bytes], content: bool = True) -> None:
        for path in paths:
            self.node(path).touch(self.tick, content)

    async def make(self, path: list[bytes], name: bytes, mode: int, target: bytes = b'') -> None:
        await super().make(path, name, mode, target)
        node = self.node([*path, name])
        inode = await self.inode([*path, name])
        node.ino, node.times = inode.ino, [self.tick] * 4
        self._touch(path)

    async def write(self, path: list[bytes], offset: int, data: bytes) -> None:
        await super().write(path, offset, data)
        self._touch(path)

    async def truncate(self, path: list[bytes], size: int) -> None:
        await super().truncate(path, size)
        self._touch(path)

    async def unlink(self, path: list[bytes], name: bytes) -> None:
        node = self.node([*path, name])
        await super().unlink(path, name)
        node.touch(self.tick, content=False)
        self._touch(path)

    async def link(self, source: list[bytes], path: list[bytes], name: bytes) -> None:
        await super().link(source, path, name)
        self._touch(source, content=False)
        self._touch(path)

    async def rename(self, path: list[bytes], name: bytes, new_path: list[bytes], new_name: bytes) -> None:
        node, parent = self.node([*path, name]), self.node(path)
        new_parent = self.node(new_path)
        victim = new_parent.entries.get(new_name)
        await super().rename(path, name, new_path, new_name)
        if victim is node:
            return
        for one, content in ((node, False), (victim, False), (parent, True), (new_parent, True)):
            if one is not None:
                one.touch(self.tick, content)

    async def exchange(self, path: list[bytes], name: bytes, other_path: list[bytes], other: bytes) -> None:
        """Rename with RENAME_EXCHANGE: both names stay, and lead to each other's file."""
        parent, other_parent = self.node(path), self.node(other_path)
        await self.head.rename(await self.inode(path), name, await self.inode(other_path), other, 2)
        parent.entries[name], other_parent.entries[other] = other_parent.entries[other], parent.entries[name]
        for one in (parent.entries[name], other_parent.entries[other]):
            one.touch(self.tick, content=False)
        parent.touch(self.tick)
        other_parent.touch(self.tick)

    async def attributes(self, path: list[bytes], **values: int) -> None:
        """chmod, chown, utimensat: `mode`, `uid` and `gid`, `atime_ns` and `mtime_ns`."""
        await self.head.set_attributes(await self.inode(path), **values)
        node = self.node(path)
        if 'mode' in values:
            node.mode = stat.S_IFMT(node.mode) | values['mode']
        node.owner = (values.get('uid', node.owner[0]), values.get('gid', node.owner[1]))
        node.touch(self.tick, content=False)
        for place, name in enumerate(('atime_ns', 'mtime_ns')):
            if name in values:
                node.times[place] = tick_of(values[name])

    async def set_xattr(self, path: list[bytes], name: bytes, value: bytes) -> None:
        await super().set_xattr(path, name, value)
        self._touch(path, content=False)

    async def remove_xattr(self, path: list[bytes], name: bytes) -> None:
        await self.head.xattr_remove(await self.inode(path), name)
        del self.node(path).xattrs[name]
        self._touch(path, content=False)

    async def hold(self, path: list[bytes]) -> Inode:
        """Return a file that somebody has open from now on."""
        inode: Inode = await self.inode(path)
        self.head.referenced(inode.ino)
        return inode

    async def check(self) -> None:
        found, wanted = await freeze_full(self.head), self.root.freeze()
        assert found == wanted, f'{found} instead of {wanted}'
