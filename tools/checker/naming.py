"""Tool fsck, naming: which files of which snapshots a lost chunk is in, and which of their bytes. One thread.

From the nodes that refer to lost chunks the way leads up through the graph to roots, and for names down again
through the entries of directories. A leaf that many snapshots share is read once for its entries, and again
for the names in it that are wanted. Of all entries only numbers are kept, 20 bytes for each directory."""

from __future__ import annotations

import operator
import sys
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from snapfs import limits
from snapfs.errors import Corrupt
from snapfs.format.keys import DIRENT, EXTENT, INODE, XATTR, decode_key, suffix_number
from snapfs.format.nodes import peek_items
from tools.checker.catalog import Root, printable
from tools.checker.graph import Graph, Indexes
from tools.checker.leaves import DIRECTORY
from tools.checker.spill import words

Read = Callable[[int], bytes | None]  # the plain bytes of a node
File = tuple[str, str, int | None, int | None]
Wanted = dict[tuple[int, int], list[int]]  # chunks, by `words_of` of their ids, and the findings about each
Spread = Callable[[Callable[[Any], Any], Sequence[Any]], Iterable[Any]]
LEAVES_AT_ONCE = 256
NAMES_MAX = 150_000  # that are kept, so that they need not be read again
IN_LOST_PART = 'in a part of the tree that is lost'
LINKS_MAX = 100  # names of one file that are told; how many more there are is told with the last
FILES_MAX = 150_000  # named in all; what is beyond is counted
# What the items of a leaf raise that is not what it should be: `peek_items` has not looked at them.
MALFORMED = (TypeError, ValueError, LookupError, OverflowError)
PATHS_BYTES_MAX = 48 * limits.MIB  # of all paths together


@dataclass(frozen=True, slots=True)
class Hit:
    """Bytes `start` to `end` of an inode are concerned (None: it is not about bytes). `what`: of an attribute
    or a lost part of a tree, what it is; of the latter, all inodes below `until` have lost theirs, too."""

    ino: int
    start: int | None
    end: int | None
    what: str = ''
    until: int = 0


@dataclass(slots=True)
class Named:
    """What was named. `files`: by finding; `left_out`: how many more there are; `damaged`: names of roots
    that have lost something."""

    files: dict[int, list[File]] = field(default_factory=dict)
    left_out: int = 0
    damaged: list[str] = field(default_factory=list)
    count: int = 0
    paths: dict[str, str] = field(default_factory=dict)
    paths_bytes: int = 0

    def add(self, finding: int, root: str, path: str, start: int | None, end: int | None) -> None:
        """Name a file, while there is room."""
        known = self.paths.get(path)
        if known is None and self.count < FILES_MAX and self.paths_bytes < PATHS_BYTES_MAX:
            self.paths[path] = known = path
            self.paths_bytes += sys.getsizeof(path)
        if known is None or self.count >= FILES_MAX:
            self.left_out += 1
            return
        self.count += 1
        self.files.setdefault(finding, []).append((root, known, start, end))

    def sorted(self, finding: int) -> list[File]:
        """Return the files of a finding, each once, and forget them."""
        return sorted(set(self.files.pop(finding, ())), key=_order)


def _order(file: File) -> tuple[str, str, int, int]:
    return file[0], file[1], -1 if file[2] is None else file[2], -1 if file[3] is None else file[3]


class Namer:
    """Names what is below nodes; a file with several names by each of them. Keeps nothing of leaves."""

    def __init__(
        self, graph: Graph, roots: Sequence[tuple[Root, int]], read: Read, spread: Spread = map
    ) -> None:
        """`spread` does work on many things, as map does, in any order."""
        self._graph = graph
        self._roots = roots
        self._read = read
        self._spread = spread
        self._wanted: set[int] = set()
        self._ranges: list[tuple[int, int]] = []  # of inodes that have lost their items

    def _hits(self, node: int, wanted: Wanted) -> Iterator[tuple[int, Hit]]:
        """Yield what a node loses with chunks, and the findings about these."""
        graph = self._graph
        count = int(graph.nodes['children'][node])
        if not count:
            yield from _leaf_hits(self._read(node), wanted)
            return
        start = int(graph.start[node])
        for slot in range(start, start + count):
            child = graph.declared[slot]
            for finding in wanted.get((int(child['a']), int(child['b'])), ()):
                low = int.from_bytes(graph.keys[slot][:8] or b'\x01', 'big')
                high = graph.keys[slot + 1] if slot + 1 < start + count else b''
                end = f'to {int.from_bytes(high[:8], "big")}' if high else 'on'
                # The last one may have lost its beginning alone.
                until = limits.INO_MAX + 1
                if high:
                    until = min(until, int.from_bytes(high[:8], 'big') + (high[8:9] > bytes([INODE])))
                what = f'a part of the tree, inodes {low} {end}: names below are not known'
                yield finding, Hit(low, None, None, what, until)

    def files(
        self, rows: NDArray[np.void], nodes: Indexes, skipped: NDArray[np.int64], hurt: NDArray[np.bool_]
    ) -> Named:
        """Name files. `rows`: references to lost chunks (losses.LOST), with the nodes that have them;
        `skipped`: by node, how many more there are; `hurt`: by node, whether it has lost something."""
        named = Named()
        skipped = skipped.copy()
        hits = self._all_hits(rows, nodes, skipped)
        wanted = np.zeros(len(self._graph.nodes), dtype=bool)
        wanted[np.array(list(hits), dtype=np.int64)] = True
        concerned = []
        for root, top in self._roots:
            leaves, line = self._below(top)
            named.left_out += int(skipped[line].sum())
            if hurt[line].any():
                named.damaged.append(root.name)
            if wanted[line].any():
                concerned.append((root, top))
        every = {hit for some in hits.values() for _, hit in some}
        inos = {hit.ino for hit in every}
        self._ranges = sorted((hit.ino, hit.until) for hit in every if hit.until)
        entries = self._entries([top for _, top in concerned], inos)
        for root, top in concerned:
            leaves, line = self._below(top)
            here = line[wanted[line]].tolist()
            mine = [pair for node in here for pair in hits[node]]
            below = {hit: entries.below(leaves, hit) for hit in {hit for _, hit in mine if hit.until}}
            up = entries.up(leaves, {hit.ino for _, hit in mine}.union(*(some for some, _ in below.values())))
            for finding, hit in mine:
                for path in up.paths(hit):
                    named.add(finding, root.name, path, hit.start, hit.end)
                some, more = below.get(hit, ((), 0))
                named.left_out += more
                for ino in some:
                    for path in up.paths(Hit(ino, None, None, IN_LOST_PART)):
                        named.add(finding, root.name, path, None, None)
        return named

    def _all_hits(
        self, rows: NDArray[np.void], nodes: Indexes, skipped: NDArray[np.int64]
    ) -> dict[int, list[tuple[int, Hit]]]:
        order = np.argsort(nodes, kind='stable')
        each, starts = np.unique(nodes[order], return_index=True)
        tables = dict(zip(each.tolist(), np.split(rows[order], starts[1:]), strict=False))
        every = list(tables.items())
        some = [every[start : start + LEAVES_AT_ONCE] for start in range(0, len(every), LEAVES_AT_ONCE)]
        # In the order of nodes, whoever was first.
        found: dict[int, list[tuple[int, Hit]]] = {node: [] for node in tables}
        for part in self._spread(self.hits, some):
            found.update(part)
        for node, table in tables.items():
            # What a node that cannot be read again would name is counted; what was counted, and is named all
            # the same (a chunk that is in one leaf several times), is not.
            skipped[node] += len(table) - len(found[node])
        return found

    def hits(self, some: list[tuple[int, NDArray[np.void]]]) -> list[tuple[int, list[tuple[int, Hit]]]]:
        """Return what some nodes lose, each with its references to lost chunks. For worker processes."""
        found = []
        for node, rows in some:
            wanted: Wanted = {}
            for finding, a, b, _ in rows.tolist():
                findings = wanted.setdefault((a, b), [])
                if finding not in findings:
                    findings.append(finding)
            found.append((node, list(self._hits(node, wanted))))
        return found

    def paths(self, top: int, inos: set[int]) -> dict[int, str]:
        """Return the paths of inodes of one tree, as far as they can be told."""
        leaves, _ = self._below(top)
        up = self._entries([top], inos).up(leaves, inos)
        return {ino: up.paths(Hit(ino, None, None))[0] for ino in inos}

    def _below(self, top: int) -> tuple[Indexes, Indexes]:
        """Return the leaves below a node, and all nodes, in order of their numbers."""
        graph = self._graph
        line, seen = np.array([top], dtype=np.int64), [np.array([top], dtype=np.int64)]
        while True:
            branches = line[graph.nodes['children'][line] > 0]
            if not len(branches):
                break
            below = graph.child[graph.slots(branches)]
            line = np.unique(below[below >= 0])
            seen.append(line)
        every = np.unique(np.concatenate(seen))
        return every[graph.nodes['children'][every] == 0], every

    def _entries(self, tops: Sequence[int], inos: set[int]) -> Entries:
        """Return all entries below these nodes that lead to directories or to wanted files."""
        wanted = np.zeros(len(self._graph.nodes), dtype=bool)
        for top in tops:
            wanted[self._below(top)[0]] = True
        nodes = np.flatnonzero(wanted).tolist()
        some = [nodes[start : start + LEAVES_AT_ONCE] for start in range(0, len(nodes), LEAVES_AT_ONCE)]
        taken: dict[int, Entries] = {}
        self._wanted = inos
        # Ascending, whoever was first: names come in the same order each time.
        for first, part in self._spread(self.look, some):
            taken[first] = part
        entries = Entries(self._read, len(wanted))
        for first in sorted(taken):
            entries.join(taken.pop(first))
        return entries

    def look(self, nodes: list[int]) -> tuple[int, Entries]:
        """Take the wanted entries of some leaves; return them with the first leaf. For worker processes."""
        entries = Entries(None, len(self._graph.nodes))
        for node in nodes:
            entries.take(node, self._read(node), self._wanted, self._ranges)
        return nodes[0], entries


Entry = tuple[int, int, bytes]  # child, directory, name


def _is_in(ino: int, ranges: Sequence[tuple[int, int]]) -> bool:
    """Return whether an inode is in one of these ranges, which are sorted."""
    place = bisect_right(ranges, (ino, 0))
    # Trees share little: few ranges begin before it and end behind it.
    return any(start < ino < until for start, until in ranges[:place])


def _named_in(
    plain: bytes | None, inos: set[int], directories: bool, ranges: Sequence[tuple[int, int]] = ()
) -> list[Entry]:
    """Return the entries of a leaf that lead to these inodes, or into these ranges, or to directories as
    well; none where the leaf cannot be read, or is none: what it is was told when its pack was read."""
    found: list[Entry] = []
    try:
        keys, values, _ = peek_items(plain or b'')
        for key, value in zip(keys, values, strict=True):
            if key[8] != DIRENT:
                continue
            for name, child, child_type in value:
                if (
                    child in inos
                    or (directories and child_type == DIRECTORY)
                    or (ranges and _is_in(child, ranges))
                ):
                    if type(name) is not bytes:
                        return []
                    if 0 < child <= limits.INO_MAX:
                        found.append((child, int.from_bytes(key[:8], 'big'), name))
    except (Corrupt, *MALFORMED):
        return []
    return found


class Entries:
    """Entries of many leaves, as numbers; a name is read again when it is wanted."""

    def __init__(self, read: Read | None, nodes: int) -> None:
        self._read = read
        self._nodes = nodes
        self._child, self._at, self._leaf = array('Q'), array('Q'), array('I')
        # By leaf and child; a file may have several names in one leaf.
        self._names: dict[tuple[int, int], tuple[bytes, ...]] = {}

    def take(self, node: int, plain: bytes | None, inos: set[int], ranges: list[tuple[int, int]]) -> None:
        """Take the entries of a leaf that lead to directories, to these inodes, or into these ranges. Leaves
        come ascending."""
        found = _named_in(plain, inos, True, ranges)
        for child, at, _ in found:
            self._child.append(child)
            self._at.append(at)
            self._leaf.append(node)
        if len(self._names) < NAMES_MAX:
            self._keep(node, found, inos)

    def _keep(self, node: int, found: list[Entry], inos: set[int]) -> None:
        names: dict[int, list[bytes]] = {}
        for child, _, name in found:
            if child in inos:
                names.setdefault(child, []).append(name)
        self._names.update({(node, child): tuple(some) for child, some in names.items()})

    def join(self, other: Entries) -> None:
        """Take what another has taken, of leaves behind these."""
        self._child += other._child
        self._at += other._at
        self._leaf += other._leaf
        if len(self._names) < NAMES_MAX:
            self._names |= other._names

    def below(self, leaves: Indexes, hit: Hit) -> tuple[list[int], int]:
        """Return the inodes in the lost part of a tree that entries of these leaves lead to, ascending; of
        very many the first, and how many more there are."""
        mine = np.zeros(self._nodes, dtype=bool)
        mine[leaves] = True
        if not self._leaf:
            return [], 0
        child = np.frombuffer(self._child, dtype=np.uint64)[mine[np.frombuffer(self._leaf, dtype=np.uint32)]]
        inside = (child > np.uint64(hit.ino)) & (child < np.uint64(hit.until))
        found = np.unique(child[inside])
        return found[:FILES_MAX].tolist(), max(0, len(found) - FILES_MAX)

    def up(self, leaves: Indexes, inos: set[int]) -> Up:
        """Return what leads from these inodes up to the top of the tree that has these leaves."""
        mine = np.zeros(self._nodes, dtype=bool)
        mine[leaves] = True
        leaf = np.frombuffer(self._leaf, dtype=np.uint32) if self._leaf else np.zeros(0, dtype=np.uint32)
        rows = np.flatnonzero(mine[leaf])
        child = np.frombuffer(self._child, dtype=np.uint64)[rows] if len(rows) else np.zeros(0, np.uint64)
        order = np.argsort(child, kind='stable')
        child, rows = child[order], rows[order]
        above: dict[int, list[tuple[int, bytes]]] = {}
        more: dict[int, int] = {}
        line, links = inos, LINKS_MAX
        while line:
            some = np.array(sorted(line), dtype=np.uint64)
            starts, ends = np.searchsorted(child, some), np.searchsorted(child, some, side='right')
            found: list[tuple[int, int]] = []
            for ino, start, end in zip(some.tolist(), starts.tolist(), ends.tolist(), strict=True):
                found += [(ino, int(row)) for row in rows[start : min(end, start + links)]]
                more[ino] = max(0, end - start - LINKS_MAX)
            self._learn([(int(leaf[row]), ino) for ino, row in found])
            met: dict[tuple[int, int], int] = {}
            for ino, row in found:
                place = int(leaf[row]), ino
                names, number = self._names.get(place, ()), met.get(place, 0)
                met[place] = number + 1
                name = names[number] if number < len(names) else b'?'
                above.setdefault(ino, []).append((self._at[row], name))
            line, links = {self._at[row] for _, row in found} - above.keys(), 1  # a directory has one name
        return Up(above, more)

    def _learn(self, wanted: list[tuple[int, int]]) -> None:
        """Read names of (leaf, child) that are not known yet."""
        missing: dict[int, set[int]] = {}
        for node, ino in wanted:
            if (node, ino) not in self._names:
                missing.setdefault(node, set()).add(ino)
        for node, inos in missing.items():
            plain = self._read(node) if self._read is not None else None
            self._keep(node, _named_in(plain, inos, False), inos)


def _leaf_hits(plain: bytes | None, wanted: Wanted) -> list[tuple[int, Hit]]:
    """Return what a leaf loses with chunks; nothing for one that cannot be read, or is none."""
    found = []
    try:
        keys, values, refs = peek_items(plain or b'')
        first, rest = words(refs)
        pairs = enumerate(zip(first.tolist(), rest.tolist(), strict=True))
        lost = {position: wanted[pair] for position, pair in pairs if pair in wanted}
        for key, value in zip(keys, values, strict=True):
            if key[8] == EXTENT:
                findings = lost.get(value[-1])
            elif key[8] == XATTR and len(value) == 3:
                findings = lost.get(value[2])
            else:
                continue
            if findings is not None:
                hit = _hit(key, value)
                found += [(finding, hit) for finding in findings]
    except (Corrupt, *MALFORMED):
        return []
    return found


def _hit(key: bytes, value: Any) -> Hit:
    ino, kind, suffix = decode_key(key)
    if type(value) is not tuple:
        raise TypeError('a value that is no array')
    if kind == EXTENT:
        start = suffix_number(key)
        return Hit(ino, start, start + operator.index(value[0]))
    return Hit(ino, None, None, f'attribute {printable(suffix)}')


class Up:
    """Leads from inodes up to the top of one tree. `above`: by inode, its directories and its names there;
    `more`: how many names it has beyond these."""

    def __init__(self, above: dict[int, list[tuple[int, bytes]]], more: dict[int, int]) -> None:
        self._above = above
        self._more = more
        self._paths: dict[int, list[str]] = {}

    def paths(self, hit: Hit) -> list[str]:
        """Return the paths of an inode, as far as they can be told; at least one."""
        texts = self._paths.get(hit.ino)
        if texts is None:
            texts = self._paths[hit.ino] = self._all(hit.ino)
        return [f'{text} ({hit.what})' for text in texts] if hit.what else texts

    def _all(self, ino: int) -> list[str]:
        if ino == limits.INO_ROOT or ino not in self._above:
            return [self._path(ino, [])]
        texts = [self._path(at, [printable(name)], ino) for at, name in self._above[ino]]
        if self._more.get(ino):
            texts[-1] += f' (and {self._more[ino]} more names)'
        return texts

    def _path(self, ino: int, parts: list[str], below: int = 0) -> str:
        seen = {below}
        while ino != limits.INO_ROOT:
            found = self._above.get(ino)
            if found is None or ino in seen:  # a damaged directory may be its own parent
                parts.append(f'(inode {ino})')
                break
            seen.add(ino)
            ino, name = found[0]
            parts.append(printable(name))
        return '/' + '/'.join(reversed(parts))
