"""A filesystem that passes a directory through and fails where it is told to: a disk with bad sectors.

    python -m tests.support.passthrough DIRECTORY MOUNTPOINT

Faults come as JSON on standard input, one list a line, each list in the place of the one before; the answer
on standard output is how often each of the faults of the old list was met. Each fault is an object:

    {"on": "read", "path": "store/packs/data/*/*", "start": 4096, "end": 8192, "times": 1}

`on`: `read` or `write` of bytes between `start` and `end`, `fsync`, `open`, `list` (a directory), `lookup`
(of any name in a directory: what a directory block that cannot be read also does), `change` (of a name:
create, rename, unlink). `path` is a pattern of `fnmatch` for the whole path below DIRECTORY, where `*` also
matches a slash. `times`: met so often, it is gone.

The page cache of the kernel stands before it as before a disk: what it has is not read again. A new list
drops what is cached of files in this mount, so that from then on the faults decide. One event loop, blocking
calls: what it does depends on nothing but what it is asked. It ends, and lets go of its mountpoint, when its
input ends: no mount outlives who started it.
"""

from __future__ import annotations

import errno
import fnmatch
import functools
import json
import os
import stat
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import pyfuse3
import trio
from pyfuse3 import EntryAttributes, FileInfo, FUSEError

END = 1 << 62
DIRECTORY_FD = os.O_PATH | os.O_NOFOLLOW
FIELDS = ['mode', 'nlink', 'uid', 'gid', 'rdev', 'size', 'atime_ns', 'mtime_ns', 'ctime_ns']
FIGURES = ['bsize', 'frsize', 'blocks', 'bfree', 'bavail', 'files', 'ffree', 'favail']


@dataclass
class Fault:
    """One rule; `met` counts the calls that it has failed."""

    on: str
    path: str
    start: int = 0
    end: int = END
    times: int = END
    number: int = errno.EIO
    met: int = 0


@dataclass
class Inode:
    """What the kernel knows. Its descriptor (O_PATH) follows it through renames, and tells where it is."""

    fd: int
    lookups: int = 0


def answers(call: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """Give an error of the system to who asked."""

    @functools.wraps(call)
    async def handler(*arguments: Any) -> Any:
        try:
            return await call(*arguments)
        except OSError as error:
            raise FUSEError(error.errno or errno.EIO) from None

    return handler


class Passthrough(pyfuse3.Operations):
    """The handlers."""

    supports_dot_lookup = False
    enable_writeback_cache = False

    def __init__(self, top: str) -> None:
        super().__init__()
        self.top = os.path.realpath(top)
        self.device = os.stat(top).st_dev
        self.inodes = {pyfuse3.ROOT_INODE: Inode(os.open(top, DIRECTORY_FD), 1)}
        self.faults: list[Fault] = []

    # --- faults ------------------------------------------------------------------------------------------
    def path_of(self, fd: int) -> str:
        """Where an open file or directory is, below the top; `.` is the top itself."""
        return os.path.relpath(os.readlink(f'/proc/self/fd/{fd}'), self.top)

    def meet(self, on: str, fd: int, start: int = 0, end: int = END) -> None:
        """Fail as the first fault says that is for this call."""
        path = self.path_of(fd) if self.faults else ''
        for fault in self.faults:
            here = fault.on == on and fault.met < fault.times
            if here and start < fault.end and fault.start < end and fnmatch.fnmatchcase(path, fault.path):
                fault.met += 1
                raise OSError(fault.number, os.strerror(fault.number))

    def replace(self, line: bytes) -> str:
        """Take a new list of faults; return how often the old ones were met."""
        old, self.faults = self.faults, [Fault(**one) for one in json.loads(line)]
        return json.dumps([fault.met for fault in old])

    def forget_pages(self) -> None:
        """Drop what the kernel has cached. In a thread: it may wait for requests that we answer."""
        for number in list(self.inodes):
            try:
                pyfuse3.invalidate_inode(number)
            except OSError:
                pass  # forgotten meanwhile

    # --- names -------------------------------------------------------------------------------------------
    def above(self, number: int) -> int:
        """The descriptor of a directory."""
        return self.inodes[number].fd

    def file(self, number: int) -> str:
        """A name that leads to an inode wherever it is now."""
        return f'/proc/self/fd/{self.inodes[number].fd}'

    def attributes(self, fd: int) -> EntryAttributes:
        found = os.stat(fd)
        entry = EntryAttributes()
        for name in FIELDS:
            setattr(entry, f'st_{name}', getattr(found, f'st_{name}'))
        top = os.path.samestat(found, os.stat(self.inodes[pyfuse3.ROOT_INODE].fd))
        entry.st_ino = pyfuse3.ROOT_INODE if top else found.st_ino
        entry.st_blocks, entry.st_blksize = found.st_blocks, 4096
        entry.entry_timeout = entry.attr_timeout = 0.0
        entry.generation = 0
        return entry

    def found(self, above: int, name: bytes) -> EntryAttributes:
        """An entry of a directory, which the kernel knows from now on."""
        fd = os.open(name, DIRECTORY_FD, dir_fd=self.above(above))
        entry = self.attributes(fd)
        inode = self.inodes.get(entry.st_ino)
        if inode is None:
            inode = self.inodes[entry.st_ino] = Inode(fd)
        else:
            os.close(fd)
        inode.lookups += 1
        return entry

    @answers
    async def lookup(self, above: int, name: bytes, ctx: Any) -> EntryAttributes:
        self.meet('lookup', self.above(above))
        return self.found(above, name)

    async def forget(self, numbers: Any) -> None:
        for number, count in numbers:
            inode = self.inodes[number]
            inode.lookups -= count
            if not inode.lookups:
                os.close(self.inodes.pop(number).fd)

    @answers
    async def mknod(self, above: int, name: bytes, mode: int, rdev: int, ctx: Any) -> EntryAttributes:
        self.meet('change', self.above(above))
        os.mknod(name, mode & ~ctx.umask, rdev, dir_fd=self.above(above))
        return self.found(above, name)

    @answers
    async def mkdir(self, above: int, name: bytes, mode: int, ctx: Any) -> EntryAttributes:
        self.meet('change', self.above(above))
        os.mkdir(name, mode & ~ctx.umask, dir_fd=self.above(above))
        return self.found(above, name)

    @answers
    async def symlink(self, above: int, name: bytes, target: bytes, ctx: Any) -> EntryAttributes:
        os.symlink(target, name, dir_fd=self.above(above))
        return self.found(above, name)

    @answers
    async def link(self, number: int, above: int, name: bytes, ctx: Any) -> EntryAttributes:
        os.link(self.file(number), name, dst_dir_fd=self.above(above), follow_symlinks=True)
        return self.found(above, name)

    @answers
    async def unlink(self, above: int, name: bytes, ctx: Any) -> None:
        self.meet('change', self.above(above))
        os.unlink(name, dir_fd=self.above(above))

    @answers
    async def rmdir(self, above: int, name: bytes, ctx: Any) -> None:
        os.rmdir(name, dir_fd=self.above(above))

    @answers
    async def rename(self, old: int, name: bytes, new: int, to: bytes, flags: int, ctx: Any) -> None:
        if flags:
            raise OSError(errno.EINVAL, 'no flags here')
        self.meet('change', self.above(old))
        os.rename(name, to, src_dir_fd=self.above(old), dst_dir_fd=self.above(new))

    @answers
    async def readlink(self, number: int, ctx: Any) -> bytes:
        return os.fsencode(os.readlink(b'', dir_fd=self.inodes[number].fd))

    # --- directories -------------------------------------------------------------------------------------
    @answers
    async def opendir(self, number: int, ctx: Any) -> int:
        self.meet('list', self.above(number))
        return number

    @answers
    async def readdir(self, number: int, start: int, token: Any) -> None:
        self.meet('list', self.above(number))
        names = sorted(os.listdir(self.file(number)))
        for position in range(start, len(names)):
            name = os.fsencode(names[position])
            entry = self.found(number, name)
            if not pyfuse3.readdir_reply(token, name, entry, position + 1):
                await self.forget([(entry.st_ino, 1)])
                break

    # --- attributes --------------------------------------------------------------------------------------
    @answers
    async def getattr(self, number: int, ctx: Any) -> EntryAttributes:
        return self.attributes(self.inodes[number].fd)

    @answers
    async def setattr(self, number: int, new: Any, fields: Any, fh: Any, ctx: Any) -> EntryAttributes:
        path = self.file(number)
        if fields.update_size:
            self.meet('write', self.inodes[number].fd, new.st_size, END)
            os.truncate(path, new.st_size)
        if fields.update_mode:
            os.chmod(path, stat.S_IMODE(new.st_mode))
        if fields.update_uid or fields.update_gid:
            os.chown(path, new.st_uid if fields.update_uid else -1, new.st_gid if fields.update_gid else -1)
        if fields.update_atime or fields.update_mtime:
            now = os.stat(path)
            atime = new.st_atime_ns if fields.update_atime else now.st_atime_ns
            os.utime(path, ns=(atime, new.st_mtime_ns if fields.update_mtime else now.st_mtime_ns))
        return self.attributes(self.inodes[number].fd)

    @answers
    async def statfs(self, ctx: Any) -> pyfuse3.StatvfsData:
        found, answer = os.statvfs(self.top), pyfuse3.StatvfsData()
        for name in FIGURES:
            setattr(answer, f'f_{name}', getattr(found, f'f_{name}'))
        answer.f_namemax = 255
        return answer

    # --- files -------------------------------------------------------------------------------------------
    @answers
    async def create(self, above: int, name: bytes, mode: int, flags: int, ctx: Any) -> tuple[Any, Any]:
        self.meet('change', self.above(above))
        kept = flags & ~os.O_NOFOLLOW | os.O_CREAT
        fd = os.open(name, kept, mode & ~ctx.umask, dir_fd=self.above(above))
        return FileInfo(fh=fd, keep_cache=True), self.found(above, name)

    @answers
    async def open(self, number: int, flags: int, ctx: Any) -> FileInfo:
        self.meet('open', self.inodes[number].fd)
        kept = flags & ~(os.O_NOFOLLOW | os.O_CREAT | os.O_EXCL | os.O_APPEND)
        return FileInfo(fh=os.open(self.file(number), kept), keep_cache=True)

    @answers
    async def read(self, fd: int, offset: int, size: int) -> bytes:
        # The end of the file is what counts, not how far the kernel reads ahead.
        self.meet('read', fd, offset, min(offset + size, os.stat(fd).st_size))
        return os.pread(fd, size, offset)

    @answers
    async def write(self, fd: int, offset: int, data: bytes) -> int:
        self.meet('write', fd, offset, offset + len(data))
        return os.pwrite(fd, data, offset)

    @answers
    async def fsync(self, fd: int, datasync: bool) -> None:
        self.meet('fsync', fd)

    @answers
    async def fsyncdir(self, number: int, datasync: bool) -> None:
        self.meet('fsync', self.above(number))

    @answers
    async def release(self, fd: int) -> None:
        os.close(fd)


async def obey(operations: Passthrough) -> None:
    """Take lists of faults until there are no more; then end."""
    buffer = b''
    async with trio.lowlevel.FdStream(os.dup(0)) as orders:
        async for data in orders:
            *lines, buffer = (buffer + data).split(b'\n')
            for line in lines:
                answer = operations.replace(line)
                await trio.to_thread.run_sync(operations.forget_pages)
                print(answer, flush=True)
    pyfuse3.terminate()


async def serve(top: str, mountpoint: str) -> None:
    """Mount, say so, serve until the input ends or somebody unmounts it."""
    operations = Passthrough(top)
    options = set(pyfuse3.default_options) | {'fsname=passthrough', 'default_permissions'}
    if os.geteuid() == 0:
        options |= {'allow_other', 'suid', 'dev'}
    pyfuse3.init(operations, mountpoint, options)
    print('ready', flush=True)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(obey, operations)
            await pyfuse3.main()
            nursery.cancel_scope.cancel()
    finally:
        pyfuse3.close(unmount=True)


if __name__ == '__main__':
    trio.run(serve, sys.argv[1], sys.argv[2])
