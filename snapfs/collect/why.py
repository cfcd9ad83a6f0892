"""L4 why: who keeps these bytes alive? Answers a person, decides nothing. Blocking; in a process of its own.

All roots are walked together, level by level, so that a node that many of them share is read once. For each
node it is then known which of the wanted chunks are below it, leaves first; so a root's answer is that of its
top node. Only volumes are gone into once more, for the names of the files. Memory: the children of every
branch (32 bytes for each node) and a number for each node with a wanted chunk below it.

A chunk that no root reaches is not garbage by that: this answers about one moment, and no batch asks it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np

from snapfs import limits
from snapfs.collect.idsets import find, sort_order, to_array, to_bytes
from snapfs.collect.reading import PACK, STORED, TABLES, Places, StoreReader
from snapfs.collect.roots import RootRow, every, part_ids
from snapfs.collect.why_values import Keeper, Where, Why, WhySpec
from snapfs.errors import Corrupt, Invalid
from snapfs.format.items import ref_of
from snapfs.format.keys import DIRENT, decode_key, ino_range
from snapfs.format.nodes import Branch, Leaf, decode_node, peek_header, peek_refs, split_refs
from snapfs.format.records import HEADER_BYTES
from snapfs.store.durable import Disk

Progress = Callable[[int, int], None]
DIRECTORY_TYPE = 4


def why(spec: WhySpec, progress: Progress = lambda done, known: None, disk: Disk | None = None) -> Why:
    """Answer. Corrupt when a node is missing or unreadable; Invalid when root or file are not there."""
    with StoreReader(spec.store, spec.uuid, disk) as reader:
        with reader.transaction():
            roots = every(reader.query)
            epoch = int(reader.query("SELECT value FROM settings WHERE key = 'epoch'")[0][0])
        return _Why(reader, roots, progress).answer(spec, epoch)


class _Why:
    def __init__(self, reader: StoreReader, roots: tuple[RootRow, ...], progress: Progress) -> None:
        self._reader = reader
        self._roots = roots
        self._progress = progress
        self._done = 0
        self._children: dict[bytes, bytes] = {}  # branch: the ids of its children, back to back
        self._levels: list[set[bytes]] = [set() for _ in range(limits.TREE_LEVELS_MAX + 1)]
        self._below: dict[bytes, int] = {}  # node: a bit for each wanted chunk that is it, or below it

    def answer(self, spec: WhySpec, epoch: int) -> Why:
        ids = set(spec.ids)
        if spec.root is not None:
            ids = self._chunks_of(self._root(spec.root), spec.ino)
        whole = len(ids) <= limits.WHY_CHUNKS_MAX
        wanted = to_array(b''.join(sorted(ids)[: limits.WHY_CHUNKS_MAX]))
        self._wanted = wanted[sort_order(wanted)]
        self._sizes = np.zeros(len(self._wanted), dtype=np.int64)
        where = self._where()
        if len(self._wanted):
            self._walk([row for row in self._roots if row.kind != 'dropped'], strict=True)
            # What commits dropped only asks: other batches may have freed a part of it.
            self._walk([row for row in self._roots if row.kind == 'dropped'], strict=False)
            self._mark()
        keepers = tuple(keeper for row in self._roots if (keeper := self._keeper(row)) is not None)
        return Why(epoch, len(self._wanted), whole, where, keepers)

    def _root(self, name: tuple[str, int]) -> RootRow:
        for row in self._roots:
            if (row.kind, row.number) == name:
                return row
        raise Invalid(f'there is no {name[0]} {name[1]} any more')

    def _where(self) -> tuple[Where, ...]:
        """Look every chunk up in every table; its size is that of the first place."""
        found = []
        for table in TABLES:
            numbers = self._reader.locate(self._wanted, table).numbers
            there = numbers[:, PACK] >= 0
            sizes = np.where(there, numbers[:, STORED] + HEADER_BYTES, 0)
            self._sizes = np.where(self._sizes == 0, sizes, self._sizes)
            if there.any():
                found.append(Where(table, int(there.sum()), int(sizes.sum())))
        return tuple(found)

    # --- nodes -------------------------------------------------------------------------------------------
    def _nodes(self, ids: Iterable[bytes], strict: bool = True) -> Iterator[tuple[bytes, bytes]]:
        """Yield (id, plain bytes) of these nodes, in the order in which they lie. Corrupt when one is not
        there, unless not `strict`: then it is left out."""
        array = to_array(b''.join(sorted(ids)))
        places = self._reader.locate_either(array)
        if len(places.missing) and strict:
            id = to_bytes(array[places.missing[:1]])
            raise Corrupt(f'node {id.hex()} is not in the index')
        there = places.numbers[:, PACK] >= 0
        array, places = array[there], Places(places.numbers[there])
        for position, plain in self._reader.nodes(array, places):
            yield to_bytes(array[position : position + 1]), plain

    def _chunks_of(self, row: RootRow, ino: int) -> set[bytes]:
        """Return the chunks that the items of one inode refer to."""
        low, high = ino_range(ino)
        found: set[bytes] = set()
        items, pending = 0, {row.id} if row.id is not None else set()
        while pending:
            below: set[bytes] = set()
            for _, plain in self._nodes(pending):
                node = decode_node(plain)
                if isinstance(node, Branch):
                    ends = [*node.keys[1:], None]
                    for start, end, child in zip(node.keys, ends, node.children, strict=True):
                        if start < high and (end is None or end > low):
                            below.add(child)
                else:
                    for key, id in _references(node):
                        if low <= key < high:
                            items += 1
                            found |= {id} if id is not None else set()
            pending = below
        if not items:
            raise Invalid(f'{row.name} has no inode {ino} any more')
        return found

    def _tops(self, row: RootRow) -> list[bytes]:
        tops = [] if row.id is None else [row.id]
        if row.subtrees:
            for ids in part_ids(self._reader.query, row.number, 'subtrees'):
                tops += split_refs(ids)
        return tops

    def _walk(self, rows: Iterable[RootRow], strict: bool) -> None:
        """Read every node below these roots that was not read yet; look into the refs tables of leaves."""
        pending: list[set[bytes]] = [set() for _ in self._levels]
        tops = {id for row in rows for id in self._tops(row)}
        for id, plain in self._nodes(tops, strict):
            pending[peek_header(plain).level].add(id)
        for level in range(limits.TREE_LEVELS_MAX, -1, -1):
            fresh = pending[level] - self._levels[level]
            for id, plain in self._nodes(fresh, strict):
                header, refs = peek_refs(plain)
                if header.level != level:
                    raise Corrupt(f'node {id.hex()} is of level {header.level}, not {level}')
                self._levels[level].add(id)
                if level:
                    self._children[id] = refs
                    pending[level - 1].update(split_refs(refs))
                else:
                    self._note(id, refs)
                self._done += 1
                if self._done % limits.COLLECT_TICK_NODES == 0:
                    self._progress(self._done, max(self._done, sum(map(len, pending))))
            self._note_nodes(fresh)

    def _note(self, id: bytes, refs: bytes) -> None:
        """Note which wanted chunks a leaf refers to."""
        for place in set(find(self._wanted, to_array(refs)).tolist()) - {-1}:
            self._below[id] = self._below.get(id, 0) | 1 << place

    def _note_nodes(self, ids: set[bytes]) -> None:
        """A wanted chunk may itself be a node."""
        joined = b''.join(ids)
        for position, place in enumerate(find(self._wanted, to_array(joined)).tolist()):
            if place >= 0:
                id = joined[position * limits.ID_BYTES : (position + 1) * limits.ID_BYTES]
                self._below[id] = self._below.get(id, 0) | 1 << place

    def _mark(self) -> None:
        """Tell every branch what is below it, from the lowest to the highest."""
        for ids in self._levels[1:]:
            for id in ids:
                bits = self._below.get(id, 0)
                for child in split_refs(self._children[id]):
                    bits |= self._below.get(child, 0)
                if bits:
                    self._below[id] = bits

    # --- who ---------------------------------------------------------------------------------------------
    def _keeper(self, row: RootRow) -> Keeper | None:
        bits = 0
        for id in self._tops(row):
            bits |= self._below.get(id, 0)
        if row.chunks:
            for ids in part_ids(self._reader.query, row.number, 'chunks'):
                for place in set(find(self._wanted, to_array(ids)).tolist()) - {-1}:
                    bits |= 1 << place
        if not bits:
            return None
        places = [place for place in range(len(self._wanted)) if bits >> place & 1]
        files = self._files(row) if row.kind == 'volume' else ()
        size = int(self._sizes[places].sum())
        return Keeper(row.kind, row.number, row.name, row.batch, len(places), size, files)

    def _leaves(self, top: bytes, only: bool) -> Iterator[Leaf]:
        """Yield the leaves below a node; `only`: those with a wanted chunk."""
        level = {top}
        leaves: set[bytes] = set()
        while level:
            leaves |= {id for id in level if id not in self._children}
            below = {child for id in level - leaves for child in split_refs(self._children[id])}
            level = {id for id in below if not only or id in self._below}
        for _, plain in self._nodes(leaves):
            node = decode_node(plain)
            assert isinstance(node, Leaf)
            yield node

    def _files(self, row: RootRow) -> tuple[str, ...]:
        """Return paths of files of a volume that need a wanted chunk."""
        assert row.id is not None
        inos: set[int] = set()
        for leaf in self._leaves(row.id, only=True):
            named = [(key, id) for key, id in _references(leaf) if id is not None]
            places = find(self._wanted, to_array(b''.join(id for _, id in named))).tolist()
            inos |= {decode_key(key)[0] for (key, _), place in zip(named, places, strict=True) if place >= 0}
        wanted = set(sorted(inos)[: limits.WHY_FILES_MAX])
        return tuple(sorted(self._names(row.id, wanted))[: limits.WHY_FILES_MAX]) if wanted else ()

    def _names(self, top: bytes, wanted: set[int]) -> Iterator[str]:
        """Yield a path for every name of these inodes. A file does not know its names: they are looked for in
        every directory."""
        above: dict[int, tuple[int, bytes]] = {}
        names: list[tuple[int, bytes]] = []
        for leaf in self._leaves(top, only=False):
            for key, value in zip(leaf.keys, leaf.values, strict=True):
                directory, kind, _ = decode_key(key)
                for name, ino, type_ in value if kind == DIRENT else ():
                    if type_ == DIRECTORY_TYPE:
                        above[ino] = directory, name
                    if ino in wanted:
                        names.append((directory, name))
        for directory, name in names:
            parts = [name]
            while directory in above and len(parts) < limits.PATH_PARTS_MAX:
                directory, part = above[directory]
                parts.append(part)
            yield '/' + b'/'.join(reversed(parts)).decode('utf-8', 'backslashreplace')


def _references(leaf: Leaf) -> Iterator[tuple[bytes, bytes | None]]:
    """Yield (key, the chunk that its value refers to, or None) of every item."""
    for key, value in zip(leaf.keys, leaf.values_with_ids(), strict=True):
        yield key, ref_of(key, value)
