"""L4 inodes: the in-memory form of an INODE item and what hangs on it. Event loop only; no I/O."""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from snapfs.volume.buffer import Buffer

# One directory entry and the value of one DIRENT item: all names that share one 63-bit hash, sorted.
Entry = tuple[bytes, int, int]
Entries = tuple[Entry, ...]

# The value of an INODE item, in the order of snapfs.format.items.
InodeValue = tuple[int, int, int, int, int, int, int, int, int, int, int, int, int, int, bytes]

# The value of an XATTR item: (0, bytes), or (1, length, chunk id).
XattrValue = tuple[Any, ...]

# Bits of the INODE item's flags.
HAS_XATTRS = 1  # some extended attribute was set once; without it nobody needs to look


class Inode:
    """One file, directory, link or special file of a view.

    There is at most one Inode object per (view, inode number) alive, so holding one across an await is safe;
    its fields may have changed by then. Directories count their entries in `size`. Fields are changed by
    `Head` only; everybody else reads.
    """

    __slots__ = (
        '__weakref__',
        'allocated',
        'atime_ns',
        'attributes',
        'btime_ns',
        'buffer',
        'changed',
        'complete',
        'ctime_ns',
        'entries',
        'flags',
        'flushing',
        'generation',
        'gid',
        'ino',
        'mode',
        'mtime_ns',
        'nlink',
        'order',
        'parent',
        'rdev',
        'size',
        'target',
        'uid',
        'xattrs',
    )

    def __init__(self, ino: int, value: InodeValue) -> None:
        self.ino = ino
        (
            self.mode,
            self.uid,
            self.gid,
            self.rdev,
            self.size,
            self.allocated,
            self.nlink,
            self.generation,
            self.parent,
            self.atime_ns,
            self.mtime_ns,
            self.ctime_ns,
            self.btime_ns,
            self.flags,
            self.target,
        ) = value
        self.attributes: Any = None  # the mount adapter's own; None after every change
        self.changed = False  # the memtable does not have the current value yet
        self.buffer: Buffer | None = None  # bytes written and not yet in packs
        self.flushing: Buffer | None = None  # frozen bytes on their way into packs
        self.entries: dict[int, Entries] | None = None  # a directory's known entries by name hash
        self.complete = False  # `entries` holds every entry
        self.order: list[int] | None = (
            None  # sorted hashes of a complete directory; may name entries gone since
        )
        # The XATTR items by name, all of them, once read: long values are named here, not kept.
        self.xattrs: dict[bytes, XattrValue] | None = None

    def value(self) -> InodeValue:
        """Return the value of the INODE item as of now."""
        return (
            self.mode,
            self.uid,
            self.gid,
            self.rdev,
            self.size,
            self.allocated,
            self.nlink,
            self.generation,
            self.parent,
            self.atime_ns,
            self.mtime_ns,
            self.ctime_ns,
            self.btime_ns,
            self.flags,
            self.target,
        )

    def is_directory(self) -> bool:
        """Return whether this is a directory."""
        return stat.S_ISDIR(self.mode)

    def is_regular(self) -> bool:
        """Return whether this is a regular file."""
        return stat.S_ISREG(self.mode)

    def blocks(self) -> int:
        """Return the allocated size in blocks of 512 bytes, bytes not yet in packs included."""
        count = self.allocated
        if self.buffer is not None:
            count += self.buffer.bytes
        if self.flushing is not None:
            count += self.flushing.bytes
        if self.size < count and self.is_regular():
            count = self.size  # bytes overwritten but not yet flushed are counted once
        return (count + 511) >> 9

    def idle(self) -> bool:
        """Return whether nothing would be lost if this object were forgotten."""
        return not self.changed and self.buffer is None and self.flushing is None
