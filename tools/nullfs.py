"""tools nullfs: the null filesystem, the limit that snapfs is measured against. One event loop, no threads.

    python -m tools.nullfs MOUNTPOINT

A filesystem on the session loop of snapfs that keeps everything in dictionaries and stores nothing. What it
costs is what the stack itself costs: the kernel, libfuse, pyfuse3, one coroutine a request. It is honest:
it implements what tar, rsync, sqlite and fio need, and a program cannot tell it from a filesystem until it
is unmounted (there are no extended attributes). It is tuned: every inode keeps the reply to `getattr` as
pyfuse3 wants it, the kernel caches without time limit, and calls that mean nothing here are answered
ENOSYS, after which the kernel no longer makes them.
"""

from __future__ import annotations

import argparse
import errno
import gc
import logging
import os
import signal
import stat
import sys
from time import time_ns
from typing import Any, cast

import pyfuse3
import trio
from pyfuse3 import EntryAttributes, FileInfo, FUSEError, ReaddirToken, RequestContext, SetattrFields

from snapfs import limits
from snapfs.mount import session

FOREVER_SECONDS = 1e9
# What the kernel writes in one request: an aligned one is kept as it is, without a copy.
BLOCK_BYTES = 1 << 20
ZEROS = bytes(BLOCK_BYTES)


def entry(ino: int, mode: int, uid: int, gid: int, rdev: int = 0) -> EntryAttributes:
    """Return the attributes of a new inode."""
    attributes = EntryAttributes()
    attributes.st_ino = pyfuse3.InodeT(ino)
    attributes.entry_timeout = FOREVER_SECONDS
    attributes.attr_timeout = FOREVER_SECONDS
    attributes.st_mode = pyfuse3.ModeT(mode)
    attributes.st_uid = uid
    attributes.st_gid = gid
    attributes.st_rdev = rdev
    attributes.st_atime_ns = attributes.st_mtime_ns = attributes.st_ctime_ns = time_ns()
    return attributes


class Inode:
    """A file of any kind. `blocks` holds file data by block number; a short block ends in zeros."""

    __slots__ = ('attributes', 'blocks', 'children', 'lookups', 'size', 'target')

    def __init__(self, attributes: EntryAttributes, target: bytes = b'') -> None:
        self.attributes = attributes
        self.target = target
        self.lookups = 0
        self.size = len(target)
        self.blocks: dict[int, bytes | bytearray] = {}
        self.children: dict[bytes, Inode] | None = None
        if stat.S_ISDIR(attributes.st_mode):
            self.children = {}
            attributes.st_nlink = 2
        attributes.st_size = self.size

    def touch(self) -> None:
        """Say that the contents changed now."""
        attributes = self.attributes
        attributes.st_mtime_ns = attributes.st_ctime_ns = time_ns()

    def resize(self, size: int) -> None:
        """Cut or extend the file. Work follows the blocks that exist."""
        if size < self.size:
            last, keep = divmod(size, BLOCK_BYTES)
            blocks = self.blocks
            for number in [number for number in blocks if number >= last]:
                if number > last or not keep:
                    del blocks[number]
                else:
                    blocks[number] = blocks[number][:keep]
        self.set_size(size)

    def set_size(self, size: int) -> None:
        """Set the size alone."""
        self.size = size
        attributes = self.attributes
        attributes.st_size = size
        attributes.st_blocks = min(size + 511 >> 9, len(self.blocks) * (BLOCK_BYTES >> 9))

    def write(self, offset: int, data: bytes) -> None:
        """Put bytes at an offset."""
        number, start = divmod(offset, BLOCK_BYTES)
        length = len(data)
        if start + length <= BLOCK_BYTES:
            self._write_block(number, start, data)
        else:
            view = memoryview(data)
            done = 0
            while done < length:
                part = view[done : done + BLOCK_BYTES - start]
                self._write_block(number, start, part)
                done += len(part)
                number, start = number + 1, 0
        if offset + length > self.size:
            self.set_size(offset + length)

    def _write_block(self, number: int, start: int, data: bytes | memoryview) -> None:
        old = self.blocks.get(number)
        if start == 0 and (old is None or len(old) <= len(data)):
            self.blocks[number] = bytes(data)
            return
        if type(old) is not bytearray:
            old = self.blocks[number] = bytearray(old or b'')
        if len(old) < start:
            old.extend(ZEROS[: start - len(old)])
        old[start : start + len(data)] = data

    def read(self, offset: int, size: int) -> bytes | bytearray | memoryview:
        """Return the bytes of a range, fewer at the end of the file."""
        size = min(size, self.size - offset)
        if size <= 0:
            return b''
        number, start = divmod(offset, BLOCK_BYTES)
        block = self.blocks.get(number, b'')
        if start == 0 and len(block) == size:
            return block
        if len(block) >= start + size:
            return memoryview(block)[start : start + size]
        parts: list[bytes | memoryview] = []
        while size:
            count = min(size, BLOCK_BYTES - start)
            part = memoryview(self.blocks.get(number, b''))[start : start + count]
            parts += (part, ZEROS[: count - len(part)])
            size -= count
            number, start = number + 1, 0
        return b''.join(parts)


class NullOperations(pyfuse3.Operations):
    """The handlers. Each finds its inode with one dictionary look-up and returns without waiting."""

    supports_dot_lookup = False

    def __init__(self) -> None:
        super().__init__()
        root = Inode(entry(1, stat.S_IFDIR | 0o755, os.getuid(), os.getgid()))
        root.lookups = 1
        self.inodes: dict[int, Inode] = {1: root}
        self.next_ino = 2
        self.listings: dict[int, tuple[dict[bytes, Inode], list[bytes]]] = {}
        self.next_handle = 1
        # A reply with inode number 0: the kernel remembers that there is no such name.
        self.missing = EntryAttributes()
        self.missing.entry_timeout = FOREVER_SECONDS

    # --- names -------------------------------------------------------------------------------------------
    def children(self, ino: int) -> dict[bytes, Inode]:
        """Return the entries of a directory."""
        return cast(dict[bytes, Inode], self.inodes[ino].children)

    async def lookup(self, parent_inode: int, name: bytes, ctx: RequestContext) -> EntryAttributes:
        found = self.children(parent_inode).get(name)
        if found is None:
            return self.missing
        found.lookups += 1
        return found.attributes

    # A plain function: pyfuse3 runs it at once, and there is nothing to wait for.
    def forget(self, inode_list: Any) -> None:  # type: ignore[override]
        for ino, count in inode_list:
            inode = self.inodes[ino]
            inode.lookups -= count
            if not inode.lookups and not inode.attributes.st_nlink:
                del self.inodes[ino]

    def make(
        self, parent_ino: int, name: bytes, mode: int, ctx: RequestContext, rdev: int = 0, target: bytes = b''
    ) -> Inode:
        """Add a new inode to a directory."""
        parent = self.inodes[parent_ino]
        children = cast(dict[bytes, Inode], parent.children)
        if name in children:
            raise FUSEError(errno.EEXIST)
        above = parent.attributes
        gid = ctx.gid
        if above.st_mode & stat.S_ISGID:
            gid = above.st_gid
            if stat.S_ISDIR(mode):
                mode |= stat.S_ISGID
        ino = self.next_ino
        self.next_ino = ino + 1
        inode = Inode(entry(ino, mode, ctx.uid, gid, rdev), target)
        inode.lookups = 1
        self.inodes[ino] = children[name] = inode
        if inode.children is not None:
            above.st_nlink += 1
        parent.touch()
        return inode

    async def create(
        self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: RequestContext
    ) -> tuple[FileInfo, EntryAttributes]:
        inode = self.make(parent_inode, name, mode & ~ctx.umask, ctx)
        attributes = inode.attributes
        return FileInfo(fh=pyfuse3.FileHandleT(attributes.st_ino)), attributes

    async def mknod(
        self, parent_inode: int, name: bytes, mode: int, rdev: int, ctx: RequestContext
    ) -> EntryAttributes:
        return self.make(parent_inode, name, mode & ~ctx.umask, ctx, rdev).attributes

    async def mkdir(self, parent_inode: int, name: bytes, mode: int, ctx: RequestContext) -> EntryAttributes:
        return self.make(parent_inode, name, mode & ~ctx.umask, ctx).attributes

    async def symlink(
        self, parent_inode: int, name: bytes, target: bytes, ctx: RequestContext
    ) -> EntryAttributes:
        return self.make(parent_inode, name, stat.S_IFLNK | 0o777, ctx, 0, target).attributes

    async def link(
        self, inode: int, new_parent_inode: int, new_name: bytes, ctx: RequestContext
    ) -> EntryAttributes:
        found, parent = self.inodes[inode], self.inodes[new_parent_inode]
        children = cast(dict[bytes, Inode], parent.children)
        if new_name in children:
            raise FUSEError(errno.EEXIST)
        children[new_name] = found
        found.lookups += 1
        found.attributes.st_nlink += 1
        found.attributes.st_ctime_ns = time_ns()
        parent.touch()
        return found.attributes

    def drop(self, parent: Inode, name: bytes, inode: Inode) -> None:
        """Take a name away, and the inode with its last name once the kernel has forgotten it."""
        del cast(dict[bytes, Inode], parent.children)[name]
        attributes = inode.attributes
        if inode.children is not None:
            attributes.st_nlink = 0
            parent.attributes.st_nlink -= 1
        else:
            attributes.st_nlink -= 1
        attributes.st_ctime_ns = time_ns()
        parent.touch()
        if not attributes.st_nlink and not inode.lookups:
            del self.inodes[attributes.st_ino]

    async def unlink(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        parent = self.inodes[parent_inode]
        found = cast(dict[bytes, Inode], parent.children).get(name)
        if found is None:
            raise FUSEError(errno.ENOENT)
        self.drop(parent, name, found)

    async def rmdir(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        parent = self.inodes[parent_inode]
        found = cast(dict[bytes, Inode], parent.children).get(name)
        if found is None:
            raise FUSEError(errno.ENOENT)
        if found.children:
            raise FUSEError(errno.ENOTEMPTY)
        self.drop(parent, name, found)

    async def rename(
        self,
        parent_inode_old: int,
        name_old: bytes,
        parent_inode_new: int,
        name_new: bytes,
        flags: int,
        ctx: RequestContext,
    ) -> None:
        old, new = self.inodes[parent_inode_old], self.inodes[parent_inode_new]
        moved = self.children(parent_inode_old).get(name_old)
        if moved is None:
            raise FUSEError(errno.ENOENT)
        children = self.children(parent_inode_new)
        replaced = children.get(name_new)
        if flags & ~(pyfuse3.RENAME_NOREPLACE | pyfuse3.RENAME_EXCHANGE):
            raise FUSEError(errno.EINVAL)
        if flags & pyfuse3.RENAME_EXCHANGE:
            if replaced is None:
                raise FUSEError(errno.ENOENT)
            self.place(old, name_old, replaced, new)
        elif replaced is not None:
            if flags & pyfuse3.RENAME_NOREPLACE:
                raise FUSEError(errno.EEXIST)
            if replaced is moved:
                return
            if replaced.children:
                raise FUSEError(errno.ENOTEMPTY)
            self.drop(new, name_new, replaced)
        if not flags & pyfuse3.RENAME_EXCHANGE:
            del self.children(parent_inode_old)[name_old]
        self.place(new, name_new, moved, old)

    @staticmethod
    def place(directory: Inode, name: bytes, inode: Inode, source: Inode) -> None:
        """Enter an inode that comes from another directory, or the same."""
        cast(dict[bytes, Inode], directory.children)[name] = inode
        if inode.children is not None and directory is not source:
            source.attributes.st_nlink -= 1
            directory.attributes.st_nlink += 1
        inode.attributes.st_ctime_ns = time_ns()
        directory.touch()
        source.touch()

    async def readlink(self, inode: int, ctx: RequestContext) -> bytes:
        return self.inodes[inode].target

    # --- directories -------------------------------------------------------------------------------------
    async def opendir(self, inode: int, ctx: RequestContext) -> int:
        handle = self.next_handle
        self.next_handle = handle + 1
        children = self.children(inode)
        self.listings[handle] = (children, list(children))
        return handle

    async def readdir(self, fh: int, start_id: int, token: ReaddirToken) -> None:
        children, names = self.listings[fh]
        if not start_id:
            names[:] = children  # rewinddir(3) shows what is new
        reply = pyfuse3.readdir_reply
        for position in range(start_id, len(names)):
            name = names[position]
            # The kernel keeps what it is told here: it must not be a name removed since `opendir`.
            inode = children.get(name)
            if inode is not None:
                if not reply(token, name, inode.attributes, position + 1):
                    break
                inode.lookups += 1

    async def releasedir(self, fh: int) -> None:
        del self.listings[fh]

    # --- attributes --------------------------------------------------------------------------------------
    async def getattr(self, inode: int, ctx: RequestContext) -> EntryAttributes:
        return self.inodes[inode].attributes

    async def setattr(
        self,
        inode: int,
        attr: EntryAttributes,
        fields: SetattrFields,
        fh: int | None,
        ctx: RequestContext,
    ) -> EntryAttributes:
        found = self.inodes[inode]
        attributes = found.attributes
        now = time_ns()
        if fields.update_size:
            found.resize(attr.st_size)
            attributes.st_mtime_ns = now
        if fields.update_mode:
            attributes.st_mode = attr.st_mode
        if fields.update_uid:
            attributes.st_uid = attr.st_uid
        if fields.update_gid:
            attributes.st_gid = attr.st_gid
        if fields.update_atime:
            attributes.st_atime_ns = attr.st_atime_ns
        if fields.update_mtime:
            attributes.st_mtime_ns = attr.st_mtime_ns
        attributes.st_ctime_ns = attr.st_ctime_ns if fields.update_ctime else now
        return attributes

    async def statfs(self, ctx: RequestContext) -> pyfuse3.StatvfsData:
        answer = pyfuse3.StatvfsData()
        answer.f_bsize = answer.f_frsize = 4096
        answer.f_blocks = answer.f_bfree = answer.f_bavail = 1 << 28
        answer.f_files = answer.f_ffree = answer.f_favail = 1 << 30
        answer.f_namemax = limits.NAME_BYTES_MAX
        return answer

    # --- file data ---------------------------------------------------------------------------------------
    async def open(self, inode: int, flags: int, ctx: RequestContext) -> FileInfo:
        if flags & os.O_TRUNC:
            found = self.inodes[inode]
            found.resize(0)
            found.touch()
        return FileInfo(fh=pyfuse3.FileHandleT(inode))

    async def read(self, fh: int, off: int, size: int) -> Any:
        return self.inodes[fh].read(off, size)

    async def write(self, fh: int, off: int, buf: bytes) -> int:
        inode = self.inodes[fh]
        inode.write(off, buf)
        inode.touch()
        return len(buf)

    async def release(self, fh: int) -> None:
        pass

    async def fsync(self, fh: int, datasync: bool) -> None:
        pass  # stays a round trip, as it must be where data is stored

    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        pass


async def serve(mountpoint: str, options: set[str], own_loop: bool, ready: bool) -> None:
    """Mount, answer requests until unmounted or told to end by SIGTERM or SIGINT, unmount."""
    pyfuse3.init(NullOperations(), mountpoint, options)
    if ready:
        print('ready', flush=True)
    gc.collect()
    gc.freeze()
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(terminate_on_signal)
            if own_loop:
                await pyfuse3.main()
            else:
                await session.serve()
            nursery.cancel_scope.cancel()
    finally:
        pyfuse3.close(unmount=True)


async def terminate_on_signal() -> None:
    """End the session when told so."""
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for _number in signals:
            pyfuse3.terminate()


def main() -> None:
    """The command `python -m tools.nullfs`."""
    parser = argparse.ArgumentParser(prog='nullfs', description='The null filesystem, in the foreground.')
    parser.add_argument('mountpoint')
    parser.add_argument('-o', dest='options', default='', help='mount options, separated by commas')
    parser.add_argument('--own-loop', action='store_true', help="use pyfuse3's own session loop, to compare")
    parser.add_argument('--ready', action='store_true', help='print a line when mounted')
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    options = {'fsname=nullfs', 'subtype=nullfs', 'default_permissions'}
    options.update(option for option in arguments.options.split(',') if option)
    gc.set_threshold(100_000, 50, 100)
    sys.setswitchinterval(limits.SWITCH_INTERVAL_SECONDS)
    trio.run(serve, arguments.mountpoint, options, arguments.own_loop, arguments.ready)


if __name__ == '__main__':
    main()
