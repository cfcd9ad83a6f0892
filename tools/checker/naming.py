"""Tool fsck, naming: which files of which snapshots a lost chunk is in, and which of their bytes. One thread.

From the nodes that refer to lost chunks the way leads up through the graph to roots, and for names down again
through the entries of directories. A leaf that many snapshots share is read once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from snapfs import limits
from snapfs.format.keys import DIRENT, EXTENT, XATTR, decode_key, suffix_number
from snapfs.format.nodes import Leaf
from tools.checker.catalog import Root, printable
from tools.checker.graph import Graph, Indexes
from tools.checker.leaves import DIRECTORY
from tools.checker.spill import words

Read = Callable[[int], Leaf | None]
File = tuple[str, str, int | None, int | None]
FILES_MAX = 1_000_000  # of one finding; what is beyond is told as left out


@dataclass(frozen=True, slots=True)
class Hit:
    """Bytes `start` to `end` of an inode are concerned (None: it is not about bytes). `what`: of an attribute
    or a lost part of a tree, what it is."""

    ino: int
    start: int | None
    end: int | None
    what: str = ''


class Namer:
    """Names what is below nodes; a file with several names by one of them. Keeps what it read of leaves:
    the names of directories and of wanted files."""

    def __init__(self, graph: Graph, roots: Sequence[tuple[Root, int]], read: Read) -> None:
        self._graph = graph
        self._roots = roots
        self._read = read

    def hits(self, node: int, ids: set[tuple[int, int]]) -> list[Hit]:
        """Return what a node loses with chunks of these ids (their `words_of`)."""
        graph = self._graph
        count = int(graph.nodes['children'][node])
        if count:
            start = int(graph.start[node])
            found = []
            for slot in range(start, start + count):
                child = graph.declared[slot]
                if (int(child['a']), int(child['b'])) in ids:
                    low = int.from_bytes(graph.keys[slot][:8] or b'\x01', 'big')
                    high = graph.keys[slot + 1][:8] if slot + 1 < start + count else b''
                    end = f'to {int.from_bytes(high, "big")}' if high else 'on'
                    what = f'a part of the tree, inodes {low} {end}: names below are not known'
                    found.append(Hit(low, None, None, what))
            return found
        leaf = self._read(node)
        return list(_leaf_hits(leaf, ids)) if leaf is not None else []

    def files(self, wanted: dict[int, dict[int, list[Hit]]]) -> dict[int, list[File]]:
        """Name files. `wanted`: for each finding, by node, what is hit there; the answer is by finding."""
        nodes = np.array(sorted({node for hits in wanted.values() for node in hits}), dtype=np.int64)
        inos = {hit.ino for hits in wanted.values() for some in hits.values() for hit in some}
        reached = [(root, top, *self._below(top)) for root, top in self._roots]
        concerned = [one for one in reached if bool(np.isin(nodes, one[3]).any())]
        names = self._names([one[2] for one in concerned], inos)
        found: dict[int, list[File]] = {key: [] for key in wanted}
        for root, _, leaves, line in concerned:
            here = set(nodes[np.isin(nodes, line)].tolist())
            up = _Up(names, leaves)
            for key, hits in wanted.items():
                for node in sorted(here & hits.keys()):
                    for hit in hits[node]:
                        if len(found[key]) < FILES_MAX:
                            found[key].append((root.name, up.path(hit), hit.start, hit.end))
                        elif len(found[key]) == FILES_MAX:
                            found[key].append((root.name, '(more files are left out)', None, None))
        return {key: sorted(set(some), key=str) for key, some in found.items()}

    def paths(self, top: int, inos: set[int]) -> dict[int, str]:
        """Return the paths of inodes of one tree, as far as they can be told."""
        leaves, _ = self._below(top)
        up = _Up(self._names([leaves], inos), leaves)
        return {ino: up.path(Hit(ino, None, None)) for ino in inos}

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

    def _names(self, lines: Sequence[Indexes], inos: set[int]) -> dict[int, list[tuple[int, int, bytes]]]:
        """Return, by leaf, its entries that lead to directories or to wanted files: (child, directory,
        name)."""
        every = np.unique(np.concatenate(lines)) if lines else np.zeros(0, dtype=np.int64)
        names: dict[int, list[tuple[int, int, bytes]]] = {}
        for node in every.tolist():
            leaf = self._read(node)
            if leaf is None:
                continue
            for key, value in zip(leaf.keys, leaf.values, strict=True):
                if key[8] != DIRENT:
                    continue
                for name, child, child_type in value:
                    if child_type == DIRECTORY or child in inos:
                        at = int.from_bytes(key[:8], 'big')
                        names.setdefault(node, []).append((child, at, name))
        return names


def _leaf_hits(leaf: Leaf, ids: set[tuple[int, int]]) -> Iterable[Hit]:
    first, rest = words(leaf.refs)
    pairs = list(zip(first.tolist(), rest.tolist(), strict=True))
    for index, key in enumerate(leaf.keys):
        value = leaf.values[index]
        if key[8] == EXTENT:
            position = value[-1]
        elif key[8] == XATTR and len(value) == 3:
            position = value[2]
        else:
            continue
        if pairs[position] not in ids:
            continue
        ino, _, suffix = decode_key(key)
        if key[8] == EXTENT:
            start = suffix_number(key)
            yield Hit(ino, start, start + value[0])
        else:
            yield Hit(ino, None, None, f'attribute {printable(suffix)}')


class _Up:
    """Leads from inodes up to the top of one tree."""

    def __init__(self, names: dict[int, list[tuple[int, int, bytes]]], leaves: Indexes) -> None:
        self._above: dict[int, tuple[int, bytes]] = {}
        for node in leaves.tolist():
            for child, at, name in names.get(node, ()):
                # Of several names of a file the first one will do.
                self._above.setdefault(child, (at, name))

    def path(self, hit: Hit) -> str:
        """Return the path of an inode, as far as it can be told."""
        parts: list[str] = []
        seen: set[int] = set()
        ino = hit.ino
        while ino != limits.INO_ROOT:
            found = self._above.get(ino)
            if found is None or ino in seen:  # a damaged directory may be its own parent
                parts.append(f'(inode {ino})')
                break
            seen.add(ino)
            ino = found[0]
            parts.append(printable(found[1]))
        text = '/' + '/'.join(reversed(parts))
        return f'{text} ({hit.what})' if hit.what else text
