"""L4 links: what becomes of what lost nodes have left behind in a tree. Blocking; one thread.

The links of the whole tree go into tables of a file without a name, so that memory follows what has to
change, and not the tree."""

from __future__ import annotations

import stat
from collections.abc import Iterable, Iterator

from snapfs import limits
from snapfs.format.items import INODE_ALLOCATED, INODE_MODE, INODE_NLINK, INODE_SIZE
from snapfs.format.keys import DIRENT, EXTENT, INODE, ORPHAN, suffix_number
from snapfs.format.nodes import Leaf
from snapfs.rescue.recover_values import Mend
from snapfs.rescue.work_table import WorkTable

DIRECTORY = stat.S_IFDIR >> 12
FILE = stat.S_IFREG >> 12
TABLES = (
    'CREATE TABLE inode (ino INTEGER PRIMARY KEY, kind INTEGER, nlink INTEGER, size INTEGER)',
    'CREATE TABLE entry (at INTEGER, child INTEGER, name BLOB, kind INTEGER)',
    'CREATE TABLE items_of (ino INTEGER PRIMARY KEY)',
    'CREATE TABLE orphan (ino INTEGER PRIMARY KEY)',
    'CREATE INDEX entry_at ON entry (at)',
    'CREATE INDEX entry_child ON entry (child)',
)
ADD_INODE = 'INSERT OR REPLACE INTO inode VALUES (?, ?, ?, ?)'
ADD_ENTRY = 'INSERT INTO entry VALUES (?, ?, ?, ?)'
ADD_ITEMS = 'INSERT OR IGNORE INTO items_of VALUES (?)'
ADD_ORPHAN = 'INSERT OR IGNORE INTO orphan VALUES (?)'
GONE = 'SELECT ino FROM items_of WHERE ino NOT IN (SELECT ino FROM inode) AND ino != ? ORDER BY ino'
DANGLING = (
    'SELECT at, name FROM entry WHERE child NOT IN (SELECT ino FROM inode) '
    'AND at IN (SELECT ino FROM inode) ORDER BY rowid'
)
# Kept are entries of a directory that is there which lead to an inode that is there.
COUNTS = (
    'SELECT ino, kind, nlink, size, '
    '(SELECT count(*) FROM entry e WHERE e.child = i.ino AND e.at IN (SELECT ino FROM inode)), '
    '(SELECT count(*) FROM entry e WHERE e.at = i.ino AND e.child IN (SELECT ino FROM inode)), '
    '(SELECT count(*) FROM entry e WHERE e.at = i.ino AND e.kind = ? AND e.child IN (SELECT ino FROM inode)) '
    'FROM inode i WHERE ino NOT IN (SELECT ino FROM orphan) ORDER BY ino'
)


class Links:
    """The links of a tree: give it every leaf that can be read, then call `mend`. `close` when done.
    Unavailable when there is no room for temporary files."""

    def __init__(self, cut: Iterable[int] = ()) -> None:
        """`cut`: inodes that may have lost a part of their items."""
        self._cut: dict[int, list[int]] = {ino: [] for ino in cut}  # size and bytes, of those that are files
        self._parts = dict.fromkeys(self._cut, 0)
        self._table = WorkTable(None, TABLES)

    def close(self) -> None:
        """Give the room back."""
        self._table.close()

    def see(self, leaf: Leaf) -> None:
        """Take a leaf."""
        add = self._table.add
        for key, value in zip(leaf.keys, leaf.values, strict=True):
            ino = int.from_bytes(key[:8], 'big')
            if key[8] == INODE:
                add(ADD_INODE, (ino, value[INODE_MODE] >> 12, value[INODE_NLINK], value[INODE_SIZE]))
                if ino in self._cut and value[INODE_MODE] >> 12 == FILE:
                    self._cut[ino] = [value[INODE_SIZE], value[INODE_ALLOCATED]]
            elif key[8] == ORPHAN:
                add(ADD_ORPHAN, (suffix_number(key),))
            else:
                add(ADD_ITEMS, (ino,))
                if key[8] == EXTENT and ino in self._cut:
                    self._parts[ino] += value[0]
                for name, child, child_type in value if key[8] == DIRENT else ():
                    add(ADD_ENTRY, (ino, child, name, child_type))

    def mend(self) -> Mend:
        """Decide. Whatever has an inode is kept: under its name, or, when that is lost, as found."""
        query = self._table.query
        gone = tuple(ino for (ino,) in query(GONE, (limits.INO_ORPHANS,)))
        entries = tuple((at, bytes(name).hex()) for at, name in query(DANGLING))
        link_counts, sizes, found = [], [], []
        for ino, kind, nlink, old_size, names, size, below in query(COUNTS, (DIRECTORY,)):
            # What no name leads to gets one below lost+found.
            right = 2 + below if kind == DIRECTORY else max(1, names)
            if nlink != right:
                link_counts.append((ino, right))
            if kind == DIRECTORY and old_size != size:
                sizes.append((ino, size))
            if ino != limits.INO_ROOT and not names:
                found.append((ino, kind))
        return Mend(gone, entries, tuple(link_counts), tuple(sizes), tuple(found), tuple(self._what_is_cut()))

    def _what_is_cut(self) -> Iterator[tuple[int, int, int]]:
        for ino, inode in sorted(self._cut.items()):
            if inode and inode[1] > self._parts[ino]:
                yield ino, inode[0], inode[1] - self._parts[ino]
