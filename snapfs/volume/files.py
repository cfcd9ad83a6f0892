"""L4 files: writing, truncating, attributes and extended attributes of a volume's inodes. Event loop only.

Every change lands in memory: in the inode, in its buffer, and in the newest layer. Nothing here waits for the
disk,
except to read what a change in the middle of a chunk needs, and to wait for memory.
"""

from __future__ import annotations

import errno
import os
import stat

import trio

from snapfs import limits
from snapfs.errors import Refused
from snapfs.format import keys
from snapfs.format.keys import ItemKind
from snapfs.store.rows import VolumeRow
from snapfs.volume.buffer import Buffer
from snapfs.volume.core import Core
from snapfs.volume.inode import HAS_XATTRS, Inode, XattrValue
from snapfs.volume.memtable import OFFSET_END, Layer
from snapfs.volume.view import Extent, View, bytes_of, extent_of, root_of

_EXTENT = int(ItemKind.EXTENT)
_XATTR = int(ItemKind.XATTR)

# What an item may need on disk, and what a write into existing data may need beside its own bytes: the rest
# of the
# chunks it touches. Upper estimates for the decision whether the disk below is full.
ITEM_BYTES_ESTIMATE = 1 * limits.KIB
REWRITE_BYTES_ESTIMATE = 64 * limits.KIB

XATTR_CREATE = 1
XATTR_REPLACE = 2


class Files(View):
    """The writable half of a head that is not about names. `core.flush_lock` keeps flushes, records and
    commits out.
    """

    writable = True

    def __init__(self, core: Core, row: VolumeRow) -> None:
        super().__init__(core, row.number, row.name, root_of(row), limits.INODE_CACHE_ENTRIES)
        self.row = row
        self.next_ino = max(row.next_ino, limits.INO_FIRST)
        self.fresh = Layer()
        self.recording: Layer | None = None
        self.logged = Layer()
        self.frozen: Layer | None = None
        self.changed: list[Inode] = []  # inodes whose value the newest layer does not have yet
        self.buffered: dict[int, Inode] = {}  # inodes with a buffer
        self.dropped = False  # deleted or rolled back: no longer the state of any volume
        self.gate: trio.Event | None = None  # changes wait for it, and then look whether the head was dropped
        self.stack()

    def shut(self) -> None:
        """Let changes wait: what is committed now is to be all there is, until `reopen`."""
        self.gate = trio.Event()

    def reopen(self) -> None:
        """Let changes go on, or be refused (ESTALE) when the head was dropped."""
        if self.gate is not None:
            self.gate.set()
            self.gate = None

    async def pass_gate(self) -> None:
        """Wait while the gate is shut. Refused(ESTALE) when the head was dropped behind it."""
        while self.gate is not None:
            await self.gate.wait()
        if self.dropped:
            raise Refused(errno.ESTALE)

    def stack(self) -> None:
        """Put the layers in order, newest first; called after any of them is exchanged."""
        layers = (self.fresh, self.recording, self.logged, self.frozen)
        self.layers = tuple(layer for layer in layers if layer is not None)

    def mark(self, inode: Inode) -> None:
        """Note that fields of `inode` changed."""
        inode.attributes = None
        if not inode.changed:
            inode.changed = True
            self.changed.append(inode)

    def settle(self) -> None:
        """Bring the newest layer up to date with the inodes. No await: this is what makes a moment."""
        inodes = self.fresh.inodes
        for inode in self.changed:
            if inode.changed:
                inode.changed = False
                inodes[inode.ino] = inode.value()
        self.fresh.items += len(self.changed)
        self.changed = []

    def items(self) -> int:
        """Return an upper bound of the items changed since the last commit."""
        return len(self.changed) + sum(layer.items for layer in self.layers)

    # --- file data ---------------------------------------------------------------------------------------
    async def write(self, inode: Inode, offset: int, data: bytes, kill_privileges: bool = True) -> int:
        """Buffer `data` at `offset` and return its length. Clears setuid and setgid unless told not to.

        Refused: EFBIG beyond the largest file, ENOSPC; waits while too much is dirty.
        """
        length = len(data)
        if not length:
            return 0
        end = offset + length
        if end > limits.FILE_BYTES_MAX:
            raise Refused(errno.EFBIG)
        need = length + (ITEM_BYTES_ESTIMATE if offset >= inode.size else REWRITE_BYTES_ESTIMATE)
        budget = self.core.budget
        if budget.tight(need):
            await budget.admit(need)
        while self.gate is not None or self.dropped:  # looked at last: it may have been shut meanwhile
            await self.pass_gate()
        budget.allowance -= need
        buffer = inode.buffer
        if buffer is None:
            if self.dropped:  # while this call waited; nobody would ever flush it
                raise Refused(errno.ESTALE)
            buffer = inode.buffer = Buffer()
            self.buffered[inode.ino] = inode
            before = 0
        else:
            before = buffer.cost
        buffer.write(offset, data)
        budget.taken(buffer.cost - before)
        if end > inode.size:
            inode.size = end
        inode.mtime_ns = inode.ctime_ns = self.core.world.time_ns()
        if kill_privileges and inode.mode & 0o6000:
            drop_privileges(inode)
        inode.attributes = None
        if not inode.changed:
            self.mark(inode)
        return length

    async def truncate(self, inode: Inode, size: int) -> None:
        """Make the file `size` bytes long. Times are the caller's. Refused: EFBIG, EISDIR, EINVAL."""
        if size > limits.FILE_BYTES_MAX:
            raise Refused(errno.EFBIG)
        if not inode.is_regular():
            raise Refused(errno.EISDIR if inode.is_directory() else errno.EINVAL)
        if size < inode.size:
            if size == 0 and inode.flushing is None:
                self._cut(inode, 0, 0)
            else:
                async with self.core.flush_lock:
                    await self._shrink(inode, size)
        inode.size = size
        self.mark(inode)

    async def _shrink(self, inode: Inode, size: int) -> None:
        """Cut the file at `size`, keeping the first part of a chunk that lies across it as buffered bytes."""
        if self.dropped:
            raise Refused(errno.ESTALE)
        if size >= inode.size:
            return
        across = (
            [one for one in await self.extents(inode.ino, size, size + 1) if one[0] < size] if size else []
        )
        head = b''
        if across:
            extent = across[0]
            head = bytes_of(extent, await self.core.chunk(extent[2]))[: size - extent[0]]
        removed = await self._allocated_from(inode, size) if size else inode.allocated
        if not inode.allocated:
            across, head = [], b''  # emptied meanwhile: what was read must not come back
        start = across[0][0] if across else size
        self._cut(inode, start, removed + len(head), keep_buffer_to=size)
        if head:
            before = inode.buffer.cost if inode.buffer is not None else 0
            kept = Buffer()
            kept.write(start, head)
            inode.buffer = kept.laid_over(inode.buffer)
            self.buffered[inode.ino] = inode
            self.core.budget.taken(inode.buffer.cost - before)

    async def _allocated_from(self, inode: Inode, size: int) -> int:
        """Return the allocated bytes of the extents that reach beyond `size`, less what lies before it."""
        total = 0
        position = size
        while position < inode.size:
            window = await self._extents_page(inode.ino, position, inode.size)
            if not window:
                break
            total += sum(offset + length - max(offset, position) for offset, length, *_ in window)
            position = window[-1][0] + window[-1][1]
        return total

    async def _extents_page(self, ino: int, start: int, end: int) -> list[Extent]:
        """Return the next extents that hold bytes at or behind `start`: what lies across it, then about a
        page.
        """
        across = await self.extents(ino, start, start + 1)
        behind = across[0][0] + across[0][1] if across else start
        page = await self._merged_extents(ino, behind, end)
        return across + page

    async def _merged_extents(self, ino: int, start: int, end: int) -> list[Extent]:
        if start >= end:
            return []
        found = await self._merged(ino, _EXTENT, start - 1, keys.extent_key(ino, start), limits.EXTENTS_PAGE)
        return [extent_of(offset, value) for offset, value in found if offset < end]

    def _cut(self, inode: Inode, start: int, removed: int, keep_buffer_to: int = 0) -> None:
        """Delete the extents from `start` on and the buffered bytes from `keep_buffer_to` on. No await."""
        budget = self.core.budget
        inode.allocated = 0 if start == 0 else max(inode.allocated - removed, 0)
        self.fresh.cut_extents(inode.ino, start, OFFSET_END)
        buffer = inode.buffer
        if buffer is None:
            return
        if buffer.logged:
            self.fresh.drops.append((inode.ino, keep_buffer_to, OFFSET_END))
        budget.taken(-buffer.cost)
        buffer.discard(keep_buffer_to, OFFSET_END)
        if buffer.bytes:
            budget.taken(buffer.cost)
        else:
            inode.buffer = None
            self.buffered.pop(inode.ino, None)

    # --- attributes --------------------------------------------------------------------------------------
    async def set_attributes(
        self,
        inode: Inode,
        *,
        mode: int | None = None,
        uid: int | None = None,
        gid: int | None = None,
        size: int | None = None,
        atime_ns: int | None = None,
        mtime_ns: int | None = None,
        ctime_ns: int | None = None,
    ) -> None:
        """Change what is not None. Changing owner, group or size clears setuid and setgid unless `mode` is
        given.

        ctime becomes now unless given; mtime too when the size is set and no mtime is given.
        """
        if self.core.budget.stopped is not None:
            raise self.core.budget.stopped
        if self.gate is not None or self.dropped:
            await self.pass_gate()
        now = self.core.world.time_ns()
        if size is not None:
            await self.truncate(inode, size)
            if mtime_ns is None:
                mtime_ns = now
        if mode is not None:
            inode.mode = stat.S_IFMT(inode.mode) | (mode & 0o7777)
        elif (uid is not None or gid is not None or size is not None) and inode.mode & 0o6000:
            drop_privileges(inode)
        if uid is not None:
            inode.uid = uid
        if gid is not None:
            inode.gid = gid
        if atime_ns is not None:
            inode.atime_ns = checked_time(atime_ns)
        if mtime_ns is not None:
            inode.mtime_ns = checked_time(mtime_ns)
        inode.ctime_ns = now if ctime_ns is None else checked_time(ctime_ns)
        self.mark(inode)

    # --- extended attributes -----------------------------------------------------------------------------
    async def xattr_set(self, inode: Inode, name: bytes, value: bytes, flags: int = 0) -> None:
        """Set an extended attribute. Refused: E2BIG/ERANGE by limit, EEXIST, ENODATA by flag, ENOSPC."""
        if not name or len(name) > limits.XATTR_NAME_BYTES_MAX:
            raise Refused(errno.ERANGE)
        if len(value) > limits.XATTR_VALUE_BYTES_MAX:
            raise Refused(errno.E2BIG)
        need = len(value) + ITEM_BYTES_ESTIMATE
        await self.core.budget.admit(need)
        known = await self._xattrs_to_change(inode)
        if flags & XATTR_CREATE and name in known:
            raise Refused(errno.EEXIST)
        if flags & XATTR_REPLACE and name not in known:
            raise Refused(errno.ENODATA)
        if name not in known and len(known) >= limits.XATTRS_PER_INODE_MAX:
            raise Refused(errno.ENOSPC)
        # A value too long to stand inline is a chunk. It is put now, so that the item can name it.
        if len(value) > limits.XATTR_INLINE_BYTES_MAX:
            async with self.core.flush_lock:
                if self.dropped:
                    raise Refused(errno.ESTALE)
                # Whole: the item names one chunk.
                self._xattr_store(inode, name, (1, len(value), self.core.put_whole(value)))
        else:
            self._xattr_store(inode, name, (0, value))
            self.fresh.items += len(value) // limits.XATTR_ITEM_BYTES

    async def _xattrs_to_change(self, inode: Inode) -> dict[bytes, XattrValue]:
        """As `xattrs`, and the gate is open then: what is changed before the next await is not lost."""
        while True:
            known = await self.xattrs(inode)
            if self.gate is None and not self.dropped:
                return known
            await self.pass_gate()

    def _xattr_store(self, inode: Inode, name: bytes, item: XattrValue | None) -> None:
        # What is kept must be all there is: if it was let go meanwhile, it is read again when asked for.
        if inode.xattrs is not None or not inode.flags & HAS_XATTRS:
            known = {**(inode.xattrs or {}), name: item}
            self.keep_xattrs(inode, {name: item for name, item in known.items() if item is not None})
        inode.flags |= HAS_XATTRS
        self.fresh.put(inode.ino, _XATTR, name, item)
        inode.ctime_ns = self.core.world.time_ns()
        self.mark(inode)

    async def xattr_remove(self, inode: Inode, name: bytes) -> None:
        """Remove an extended attribute. Refused: ENODATA when there is none of that name."""
        if self.core.budget.stopped is not None:
            raise self.core.budget.stopped
        known = await self._xattrs_to_change(inode)
        if name not in known:
            raise Refused(errno.ENODATA)
        self._xattr_store(inode, name, None)


def drop_privileges(inode: Inode) -> None:
    """Clear setuid, and setgid where it means an executable's group (not mandatory locking), as
    POSIX wants.
    """
    if inode.is_regular():
        inode.mode &= ~stat.S_ISUID
        if inode.mode & stat.S_IXGRP:
            inode.mode &= ~stat.S_ISGID


def checked_time(time_ns: int) -> int:
    """Return the time; Refused(EINVAL) when it does not fit into signed 64 bits."""
    if not -(1 << 63) <= time_ns < 1 << 63:
        raise Refused(errno.EINVAL)
    return time_ns


def check_name(name: bytes) -> None:
    """Refused when a file cannot be called `name`: ENAMETOOLONG, or EINVAL for what no directory may hold."""
    if len(name) > limits.NAME_BYTES_MAX:
        raise Refused(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
    if not name or b'/' in name or b'\0' in name or name in (b'.', b'..'):
        raise Refused(errno.EINVAL)
