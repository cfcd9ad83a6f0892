"""L4 rebuild, sums: is what looks like a tree all of one? Pure.

A tree is sorted by inode number, so the left part of a tree whose top is lost looks like a tree: it begins
with the top directory, and all it refers to is there. But what its files and directories say of themselves
only adds up over all of it: the entries that directories count, the bytes that files count, and no entry
leads behind the last inode."""

from __future__ import annotations

from snapfs.format.items import EXTENT_LENGTH, INODE_ALLOCATED, INODE_MODE, INODE_SIZE
from snapfs.format.keys import DIRENT, EXTENT, INODE, KIND_POSITION
from snapfs.format.nodes import Leaf

_TYPE, _DIRECTORY = 0o170000, 0o040000


class Sums:
    """Sums over the leaves of one tree."""

    def __init__(self) -> None:
        self._entries = self._sizes = self._bytes = self._allocated = 0
        self._inode = 0  # the greatest number of one
        self._child = 0  # that an entry leads to

    def add(self, leaf: Leaf) -> None:
        """Add a leaf."""
        for key, value in zip(leaf.keys, leaf.values, strict=True):
            kind = key[KIND_POSITION]
            if kind == INODE:
                self._inode = max(self._inode, int.from_bytes(key[:8], 'big'))
                self._allocated += value[INODE_ALLOCATED]
                if value[INODE_MODE] & _TYPE == _DIRECTORY:
                    self._sizes += value[INODE_SIZE]
            elif kind == DIRENT:
                self._entries += len(value)
                self._child = max(self._child, *(one[1] for one in value))
            elif kind == EXTENT:
                self._bytes += value[EXTENT_LENGTH]

    def are_whole(self) -> bool:
        """Return whether they are those of a whole tree."""
        balanced = self._entries == self._sizes and self._bytes == self._allocated
        return balanced and self._child <= self._inode
