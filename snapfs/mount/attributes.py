"""L5 attributes: what the kernel is told about a file, and for how long it may believe it. Event loop only.

Timeouts. Files of volumes and snapshots are cached by the kernel without limit, for this process is the
only one that changes them; what changes behind the kernel's back is invalidated by `invalidate`. Places
that are computed (the root of a mount, `.snapshots`, `.snapfs`) have short ones.
"""

from __future__ import annotations

import errno
import stat
from typing import TYPE_CHECKING

import pyfuse3
from pyfuse3 import EntryAttributes

from snapfs import limits
from snapfs.errors import Refused

if TYPE_CHECKING:
    from snapfs.volume.inode import Inode

FOREVER = limits.KERNEL_CACHE_SECONDS


def inode_attributes(node: int, inode: Inode) -> EntryAttributes:
    """Return a new set for an inode of a volume or snapshot. It is shared: nobody changes it later."""
    attributes = EntryAttributes()
    attributes.st_ino = node
    attributes.entry_timeout = FOREVER
    attributes.attr_timeout = FOREVER
    attributes.st_mode = inode.mode
    attributes.st_nlink = inode.nlink
    attributes.st_size = inode.size
    attributes.st_blocks = inode.blocks()
    attributes.st_atime_ns = inode.atime_ns
    attributes.st_mtime_ns = inode.mtime_ns
    attributes.st_ctime_ns = inode.ctime_ns
    # These are zero in a new set, and mostly here as well.
    if inode.uid:
        attributes.st_uid = inode.uid
    if inode.gid:
        attributes.st_gid = inode.gid
    if inode.generation:
        attributes.generation = inode.generation
    if inode.rdev:
        attributes.st_rdev = inode.rdev
    return attributes


def place_attributes(
    node: int,
    mode: int,
    owner: tuple[int, int],
    time_ns: int,
    *,
    size: int = 0,
    entry_timeout: float = FOREVER,
) -> EntryAttributes:
    """Return a new set for a computed directory or text file; `owner` is (uid, gid), `size` in bytes.

    A link count of 1 tells `find` that the number of subdirectories is not known from it.
    """
    attributes = EntryAttributes()
    attributes.st_ino = node
    attributes.entry_timeout = entry_timeout
    attributes.attr_timeout = limits.PLACE_ATTRIBUTES_SECONDS if stat.S_ISDIR(mode) else 0.0
    attributes.st_mode = mode
    attributes.st_uid, attributes.st_gid = owner
    attributes.st_size = size
    attributes.st_atime_ns = attributes.st_mtime_ns = attributes.st_ctime_ns = time_ns
    return attributes


def unreadable_attributes(node: int, owner: tuple[int, int], time_ns: int) -> EntryAttributes:
    """Return what a listing says of a directory that cannot be read: its name, and nothing that is kept.

    Whoever wants more asks again, and gets the error. Without this one damaged tree would make the whole
    listing unreadable, and hide its neighbours (P7).
    """
    attributes = place_attributes(node, stat.S_IFDIR, owner, time_ns, entry_timeout=0.0)
    attributes.attr_timeout = 0.0
    return attributes


def closed_attributes(node: int, owner: tuple[int, int], time_ns: int) -> EntryAttributes:
    """Return what stands for a volume's top directory that cannot be read, so that the kernel walks through
    it to the snapshots, which may be whole (P7).

    Nobody knows any more whom it let in: it lets in `owner` alone, and root. Asked for again soon, for it may
    come back.
    """
    return place_attributes(node, stat.S_IFDIR | 0o500, owner, time_ns, entry_timeout=0.0)


def missing_entry(timeout_seconds: float) -> EntryAttributes:
    """Return the answer 'there is no such name', which the kernel may believe for so long."""
    attributes = EntryAttributes()
    attributes.st_ino = 0
    attributes.entry_timeout = timeout_seconds
    return attributes


def dot_entry(node: int) -> EntryAttributes:
    """Return what a listing says of `.` and `..`: only the number and the kind count."""
    attributes = EntryAttributes()
    attributes.st_ino = node
    attributes.st_mode = stat.S_IFDIR
    return attributes


def absent(name: bytes, answer: EntryAttributes) -> EntryAttributes:
    """Return `answer`, which says that there is no such name. Refused(ENAMETOOLONG) when there cannot be."""
    if len(name) > limits.NAME_BYTES_MAX:  # the kernel lets up to 1024 bytes through
        raise Refused(errno.ENAMETOOLONG)
    return answer


MISSING = missing_entry(FOREVER)
MISSING_NOW = missing_entry(0.0)

assert pyfuse3.ROOT_INODE == 1
