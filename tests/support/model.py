"""A volume as plain dictionaries: what the real one must agree with, operation by operation."""

from __future__ import annotations

import errno
import stat
from dataclasses import dataclass, field
from typing import Any

from snapfs.errors import Refused
from snapfs.volume.head import Head
from snapfs.volume.view import View


@dataclass
class Node:
    """A file of the model. `key` tells files apart across runs."""

    mode: int
    data: bytearray = field(default_factory=bytearray)
    entries: dict[bytes, Node] = field(default_factory=dict)
    xattrs: dict[bytes, bytes] = field(default_factory=dict)
    target: bytes = b''
    nlink: int = 1

    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.mode)

    def freeze(self) -> Any:
        """Return this tree as a value that can be compared; hard links show in the link count."""
        if self.is_directory():
            return (
                'dir',
                self.mode,
                tuple(sorted(self.xattrs.items())),
                tuple(sorted((name, node.freeze()) for name, node in self.entries.items())),
            )
        xattrs = tuple(sorted(self.xattrs.items()))
        return ('file', self.mode, self.nlink, bytes(self.data), self.target, xattrs)


async def freeze_view(view: View, ino: int = 1) -> Any:
    """Return what a view holds in the form of `Node.freeze`, by reading all of it."""
    inode = await view.inode(ino)
    xattrs = tuple([(name, await view.xattr_get(inode, name)) for name in await view.xattr_list(inode)])
    if not inode.is_directory():
        data = b''
        while len(data) < inode.size and inode.is_regular():
            part = await view.read(inode, len(data), 100_000)
            assert part, 'a read inside the file returned nothing'
            data += part
        return ('file', inode.mode, inode.nlink, data, inode.target, xattrs)
    found = []
    after, count, subdirectories = 0, 0, 0
    while page := await view.list_directory(inode, after, 7):
        for cookie, name, child, kind in page:
            assert cookie > after or found, 'cookies ascend'
            frozen = await freeze_view(view, child)
            assert kind == frozen[1] >> 12
            subdirectories += frozen[0] == 'dir'
            found.append((name, frozen))
            count += 1
        after = page[-1][0]
    assert inode.size == count, f'directory {ino} counts {inode.size} entries and has {count}'
    assert inode.nlink == 2 + subdirectories
    return ('dir', inode.mode, xattrs, tuple(sorted(found)))


class Pair:
    """A head and its model, changed together. Every operation checks that both refuse alike."""

    node_type = Node

    def __init__(self, head: Head) -> None:
        self.head = head
        self.root = self.node_type(stat.S_IFDIR | 0o755, nlink=2)

    async def inode(self, path: list[bytes]) -> Any:
        inode = await self.head.inode(1)
        for name in path:
            found = await self.head.lookup(inode, name)
            if found is None:
                raise Refused(errno.ENOENT)
            inode = found
        return inode

    def node(self, path: list[bytes]) -> Node:
        node = self.root
        for name in path:
            node = node.entries[name]
        return node

    async def make(self, path: list[bytes], name: bytes, mode: int, target: bytes = b'') -> None:
        parent = self.node(path)
        directory = await self.inode(path)
        if name in parent.entries:
            await refuses(errno.EEXIST, self.head.make(directory, name, mode, 0, 0, 0, target))
            return
        await self.head.make(directory, name, mode, 0, 0, 0, target)
        parent.entries[name] = self.node_type(mode, target=target, nlink=2 if stat.S_ISDIR(mode) else 1)

    async def write(self, path: list[bytes], offset: int, data: bytes) -> None:
        await self.head.write(await self.inode(path), offset, data)
        node = self.node(path)
        if offset > len(node.data):
            node.data.extend(bytes(offset - len(node.data)))
        node.data[offset : offset + len(data)] = data

    async def truncate(self, path: list[bytes], size: int) -> None:
        await self.head.set_attributes(await self.inode(path), size=size)
        node = self.node(path)
        del node.data[size:]
        node.data.extend(bytes(size - len(node.data)))

    async def unlink(self, path: list[bytes], name: bytes) -> None:
        parent = await self.inode(path)
        node = self.node(path).entries[name]
        if node.is_directory():
            if node.entries:
                await refuses(errno.ENOTEMPTY, self.head.remove_directory(parent, name))
                return
            await self.head.remove_directory(parent, name)
        else:
            await self.head.unlink(parent, name)
            node.nlink -= 1
        del self.node(path).entries[name]

    async def link(self, source: list[bytes], path: list[bytes], name: bytes) -> None:
        node = self.node(source)
        parent = self.node(path)
        if node.is_directory() or name in parent.entries:
            return
        await self.head.link(await self.inode(source), await self.inode(path), name)
        parent.entries[name] = node
        node.nlink += 1

    async def rename(self, path: list[bytes], name: bytes, new_path: list[bytes], new_name: bytes) -> None:
        node = self.node(path).entries[name]
        new_parent = self.node(new_path)
        victim = new_parent.entries.get(new_name)
        ends = (await self.inode(path), name, await self.inode(new_path), new_name)
        if node.is_directory() and _below(node, new_parent):
            await refuses(errno.EINVAL, self.head.rename(*ends))
            return
        if victim is not None and victim is not node:
            wrong = None
            if node.is_directory() and not victim.is_directory():
                wrong = errno.ENOTDIR
            elif victim.is_directory() and not node.is_directory():
                wrong = errno.EISDIR
            elif victim.entries:
                wrong = errno.ENOTEMPTY
            if wrong is not None:
                await refuses(wrong, self.head.rename(*ends))
                return
        await self.head.rename(*ends)
        if victim is node:
            return
        if victim is not None:
            victim.nlink -= 1
        del self.node(path).entries[name]
        new_parent.entries[new_name] = node

    async def set_xattr(self, path: list[bytes], name: bytes, value: bytes) -> None:
        await self.head.xattr_set(await self.inode(path), name, value)
        self.node(path).xattrs[name] = value

    async def check(self) -> None:
        """The volume is what the model is, file by file and byte by byte."""
        assert await freeze_view(self.head) == self.root.freeze()


def _below(node: Node, other: Node) -> bool:
    return node is other or any(_below(child, other) for child in node.entries.values())


async def refuses(number: int, operation: Any) -> None:
    """Assert that an operation is refused with this errno."""
    try:
        await operation
    except Refused as error:
        assert error.errno == number, f'errno {error.errno} where {number} was expected'
    else:
        raise AssertionError(f'not refused; errno {number} was expected')
