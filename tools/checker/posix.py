"""Tool fsck, posix: whether each tree is one that a filesystem can have. One thread.

For each root, sums of its leaves are added and neighbours among them compared (leaves.py): the work for one
more snapshot is a few numbers for each leaf. Only a tree whose sums are wrong is read again, and compared
fact by fact."""

from __future__ import annotations

import stat
from collections import Counter
from collections.abc import Callable, Iterable

import numpy as np

from snapfs import limits
from snapfs.format.items import INODE_ALLOCATED, INODE_MODE, INODE_NLINK, INODE_PARENT, INODE_SIZE
from snapfs.format.keys import DIRENT, EXTENT, XATTR
from snapfs.format.nodes import Leaf
from tools.checker.catalog import Root
from tools.checker.findings import Report
from tools.checker.graph import Graph, Indexes
from tools.checker.leaves import DIRECTORY, HAS_XATTRS, SUMS, LeafFacts, Rows
from tools.checker.naming import Namer

Read = Callable[[int], Leaf]  # the leaf of a node
Say = Callable[[str, int, str], None]  # code, inode, what
SHOWN_MAX = 50  # of one kind in one tree


class Posix:
    """Checks trees, one after the other."""

    def __init__(self, graph: Graph, report: Report, namer: Namer, read: Read, name_key: bytes) -> None:
        self._graph = graph
        self._namer = namer
        self._report = report
        self._read = read
        self._name_key = name_key
        facts = graph.facts
        self._sums = np.array([one.sums if one else (0,) * SUMS for one in facts], dtype=np.uint64)
        self._most = np.array([one.ino_most if one else 0 for one in facts], dtype=np.int64)
        self._head = np.array([_head(one) for one in facts], dtype=np.int64).reshape(-1, 6)
        self._tail = np.array([one.tail if one else (0,) * 5 for one in facts], dtype=np.int64).reshape(-1, 5)
        self._odd = {index: one.odd for index, one in enumerate(facts) if one is not None and one.odd}

    def check(self, root: Root, top: int) -> None:
        """Check one tree. One with parts missing is only checked leaf by leaf."""
        leaves, whole = self._graph.leaves(top)
        counts: Counter[str] = Counter()
        said: dict[tuple[str, int, str], None] = {}

        def say(code: str, ino: int, what: str) -> None:
            counts[code] += (code, ino, what) not in said
            if counts[code] <= SHOWN_MAX:
                said[code, ino, what] = None

        for index in leaves:
            for code, ino, what in self._odd.get(int(index), ()):
                say(code, ino, what)
        if root.next_ino is not None and len(leaves) and int(self._most[leaves].max()) >= root.next_ino:
            say(
                'inode-number',
                int(self._most[leaves].max()),
                f'exists, and {root.next_ino} is the next to be given',
            )
        if whole:
            self._whole(leaves, say, said)
        for code, number in counts.items():
            if number > SHOWN_MAX:
                self._report.more(code, number - SHOWN_MAX)
        paths = self._namer.paths(top, {ino for _, ino, _ in said}) if said else {}
        for code, ino, what in said:
            self._report.add(code, f'{root.name}: inode {ino}', what, [(root.name, paths[ino], None, None)])

    def _whole(self, leaves: Indexes, say: Say, said: dict[tuple[str, int, str], None]) -> None:
        self._neighbours(leaves, say)
        with np.errstate(over='ignore'):
            sums = np.add.reduce(self._sums[leaves], axis=0, dtype=np.uint64)
        if sums.any():
            before = len(said)
            _Exact((self._rows(int(index)) for index in leaves), say).compare()
            if len(said) == before:
                # Whatever the sums have seen, a tree with wrong sums is never called sound.
                say('item-bad', limits.INO_ROOT, 'the sums of its links or bytes are wrong')
        self._connected(leaves, say)

    def _rows(self, index: int) -> Rows:
        return Rows(self._read(index), self._name_key)

    def _neighbours(self, leaves: Indexes, say: Say) -> None:
        """Compare the head of each leaf with the last inode before it."""
        head, tail = self._head[leaves], self._tail[leaves]
        number = np.arange(len(leaves))
        before = np.maximum.accumulate(np.where(tail[:, 0] > 0, number, -1))
        before = np.r_[-1, before[:-1]]
        for at in np.flatnonzero(head[:, 0] > 0):
            ino, first, end, entries, attributes, extents = (int(value) for value in head[at])
            owner = int(before[at])
            if owner < 0 or int(tail[owner, 0]) != ino:
                say('inode-missing', ino, 'has items and no INODE')
                continue
            _, size, file_type, flags, tail_end = (int(value) for value in tail[owner])
            if entries and file_type != DIRECTORY:
                say('item-bad', ino, 'has entries and is no directory')
            if attributes and not flags & HAS_XATTRS:
                say('xattr-flag', ino, 'has attributes, and its INODE says it has none')
            if not extents:
                continue
            ends = [tail_end, *(int(head[k, 2]) for k in range(owner + 1, at))]
            if first < max(ends):
                say('extent-overlap', ino, f'at byte {first}')
            if end > size:
                say('extent-beyond', ino, f'bytes to {end}, its size is {size}')

    def _connected(self, leaves: Indexes, say: Say) -> None:
        """See that each directory leads up to the top, by jumping twice as far each time."""
        parts = [one.directories for index in leaves if (one := self._graph.facts[int(index)]) is not None]
        pairs = np.concatenate(parts) if parts else np.zeros((0, 2), dtype=np.uint64)
        if not len(pairs):
            return
        inos = pairs[:, 0]
        order = np.argsort(inos)
        inos, parents = inos[order], pairs[order, 1]
        at = np.minimum(np.searchsorted(inos, parents), len(inos) - 1)
        known = inos[at] == parents
        top = int(np.searchsorted(inos, limits.INO_ROOT))
        jump = np.where(known, at, np.arange(len(inos)))
        for _ in range(len(inos).bit_length() + 1):
            jump = jump[jump]
        if top >= len(inos) or inos[top] != limits.INO_ROOT:
            say('directory-orphan', limits.INO_ROOT, 'the top directory is not there')
            return
        lost = np.flatnonzero(jump != top)
        for index in lost:
            say('directory-orphan', int(inos[index]), 'no way leads up from it to the top')


def _head(one: LeafFacts | None) -> tuple[int, ...]:
    if one is None:
        return (0,) * 6
    ino, kinds, first, end = one.head
    return ino, first, max(end, 0), DIRENT in kinds, XATTR in kinds, EXTENT in kinds


class _Exact:
    """Compares all facts of one tree. Memory grows with its inodes; only for trees known to be odd."""

    def __init__(self, rows: Iterable[Rows], say: Say) -> None:
        self._say = say
        self.inodes: dict[int, tuple[int, int, int, int, int]] = {}  # type, nlink, size, allocated, parent
        self.links: Counter[int] = Counter()
        self.named: list[tuple[int, int, int, bytes]] = []
        self.entries: Counter[int] = Counter()
        self.subdirectories: Counter[int] = Counter()
        self.bytes: Counter[int] = Counter()
        self.orphans: set[int] = set()
        for one in rows:
            for ino, value in one.inodes:
                self.inodes[ino] = (
                    stat.S_IFMT(value[INODE_MODE]) >> 12, value[INODE_NLINK], value[INODE_SIZE],
                    value[INODE_ALLOCATED], value[INODE_PARENT],
                )  # fmt: skip
            for at, child, child_type, name in one.entries:
                self.named.append((at, child, child_type, name))
                self.links[child] += 1
                self.entries[at] += 1
                self.subdirectories[at] += child_type == DIRECTORY
            for ino, _, length in one.extents:
                self.bytes[ino] += length
            self.orphans.update(one.orphans)

    def compare(self) -> None:
        """Say what does not fit."""
        for at, child, child_type, name in self.named:
            found = self.inodes.get(child)
            text = name.decode('utf-8', 'backslashreplace')
            if child == limits.INO_ROOT:
                self._say('directory-parent', at, f'its entry {text!r} leads to the top directory')
            elif found is None:
                self._say(
                    'entry-dangling', at, f'its entry {text!r} leads to inode {child}, which is not there'
                )
            elif found[0] != child_type:
                self._say(
                    'entry-dangling',
                    at,
                    f'its entry {text!r} says type {child_type}, inode {child} is {found[0]}',
                )
            elif child_type == DIRECTORY and found[4] != at:
                self._say(
                    'directory-parent', child, f'an entry of {at} leads to it, it says it is in {found[4]}'
                )
        for ino, (file_type, nlink, size, allocated, _) in self.inodes.items():
            self._inode(ino, file_type, nlink, size)
            if allocated != self.bytes[ino]:
                self._say('allocated-bytes', ino, f'says {allocated} bytes, its parts have {self.bytes[ino]}')
        for ino in self.orphans - {ino for ino, row in self.inodes.items() if row[1] == 0}:
            self._say('inode-orphan', ino, 'is listed as one without a name, and is none')

    def _inode(self, ino: int, file_type: int, nlink: int, size: int) -> None:
        names = self.links[ino]
        if nlink == 0 and ino not in self.orphans:
            self._say('inode-orphan', ino, 'has no name and is not listed as such')
        if file_type != DIRECTORY:
            if nlink and not names:
                self._say('inode-orphan', ino, f'says it has {nlink} names; none leads to it')
            elif nlink != names:
                self._say('link-count', ino, f'says {nlink}, {names} names lead to it')
            return
        if size != self.entries[ino]:
            self._say('directory-size', ino, f'says {size} entries, it has {self.entries[ino]}')
        if nlink and nlink != 2 + self.subdirectories[ino]:
            self._say(
                'link-count',
                ino,
                f'says {nlink}, and has {self.subdirectories[ino]} directories (2 more is right)',
            )
        if ino != limits.INO_ROOT and nlink and names != 1:
            code = 'directory-orphan' if not names else 'directory-parent'
            self._say(code, ino, f'{names} names lead to it')
