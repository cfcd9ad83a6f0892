"""tools bench: a store of any number of references, made in minutes, to measure recounts on.

    python -m tools.bench.synthetic STORE [--references N] [--deleted PERCENT] [--snapshots N]

Nodes are real: leaves of files with INODE and EXTENT items, branches above them, in meta packs with footers.
Data is not: every reference has its row in the index, but the packs the rows point into are sparse files with
nothing but a header, a footer and the right length. So recounts and quick checks, which never read data, find
all as it should be.

The volume's head and its snapshots share nearly all leaves; one more snapshot, which is deleted, has leaves
of its own, some of whose data the head refers to as well. A canary is planted.
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from snapfs import limits
from snapfs.format.ids import node_id
from snapfs.format.items import Value
from snapfs.format.keys import extent_key, inode_key
from snapfs.format.nodes import encode_branch, encode_leaf
from snapfs.format.packs import PACK_HEADER_BYTES, PackEntry, PackHeader, encode_footer, encode_pack_header
from snapfs.format.records import HEADER_BYTES, RecordKind
from snapfs.store.catalog import Commit, HeadUpdate
from snapfs.store.durable import Disk
from snapfs.store.packs import pack_path
from snapfs.store.rows import PackRow, RequestRow
from snapfs.store.store import Store
from snapfs.world import World

EXTENTS_PER_FILE = 8
FILES_PER_LEAF = 27  # about 16 KiB
REFS_PER_LEAF = EXTENTS_PER_FILE * FILES_PER_LEAF
CHILDREN = 230  # of a branch: about 16 KiB
EXTENT_BYTES = 30_000
STORED_BYTES = 1_000  # of a data record that is not there
DATA_ROWS = 60_000  # per data pack
NODES_AT_ONCE = 500
SHARED_EVERY = 2  # of the deleted snapshot's own references, every second is to data that the head has too
ID = limits.ID_BYTES
CONTROL = tuple(hashlib.sha256(b'canary %d' % number).digest() for number in range(16))


@dataclass(frozen=True, slots=True)
class Shape:
    """How large: references in all that stands, per cent more in the deleted snapshot, snapshots."""

    references: int = 20_000_000
    deleted_percent: int = 5
    snapshots: int = 10
    seed: int = 1


@dataclass(frozen=True, slots=True)
class Made:
    """What was made. `control` are the canary's chunks, `request` the deleted snapshot's request."""

    references: int
    leaves: int
    rows: int
    control: tuple[bytes, ...]
    request: RequestRow


@dataclass(frozen=True, slots=True)
class _Node:
    """A node as its parent names it."""

    key: bytes
    id: bytes
    items: int
    refs: int


Tree = list[list[_Node]]


def commit(store: Store, heads: Sequence[HeadUpdate] = ()) -> None:
    """Commit what was put, and new heads."""
    store.chunks.sync()
    rows = store.chunks.commit_rows()
    sequence = store.journal.last_sequence
    store.catalog.commit(Commit(heads, rows.chunks, rows.packs, (), sequence, store.world.time_ns()))
    store.chunks.committed(rows)


class _Maker:
    def __init__(self, store: Store, shape: Shape) -> None:
        self.store = store
        self.shape = shape
        self._chance = np.random.default_rng(shape.seed)
        self._plains: list[bytes] = []
        self._data: list[bytes] = []  # ids, back to back, of data that has to have rows

    # --- nodes -------------------------------------------------------------------------------------------
    def leaf(self, number: int, shared: bytes = b'') -> _Node:
        """A leaf with the `number`-th files; every second reference is one of `shared`, if given."""
        table = self._chance.bytes(REFS_PER_LEAF * ID)
        if shared:
            ids = np.frombuffer(table, dtype='V32').copy()
            ids[::SHARED_EVERY] = np.frombuffer(shared, dtype='V32')[::SHARED_EVERY]
            self._data.append(ids[1::SHARED_EVERY].tobytes())
            table = ids.tobytes()
        else:
            self._data.append(table)
        keys: list[bytes] = []
        values: list[Value] = []
        at = 0
        for file in range(FILES_PER_LEAF):
            ino = limits.INO_FIRST + number * FILES_PER_LEAF + file
            size = EXTENTS_PER_FILE * EXTENT_BYTES
            now = 10**18 + ino * 1_000_003
            keys.append(inode_key(ino))
            values.append((0o100644, 1000, 1000, 0, size, size, 1, 0, 0, now, now, now, now, 0, b''))
            for extent in range(EXTENTS_PER_FILE):
                keys.append(extent_key(ino, extent * EXTENT_BYTES))
                values.append((EXTENT_BYTES, table[at : at + ID]))
                at += ID
        return self.keep(keys[0], encode_leaf(keys, values), len(keys), REFS_PER_LEAF)

    def keep(self, key: bytes, plain: bytes, items: int, refs: int) -> _Node:
        """Store a node, some time."""
        self._plains.append(plain)
        if len(self._plains) >= NODES_AT_ONCE:
            self.flush()
        return _Node(key, node_id(plain), items, refs)

    def flush(self) -> None:
        """Store what is kept."""
        self.store.chunks.put_batch(RecordKind.NODE, self._plains)
        self._plains = []
        commit(self.store)

    def branch(self, level: int, nodes: Sequence[_Node]) -> _Node:
        """A branch above these nodes."""
        keys = [b'', *(node.key for node in nodes[1:])]
        items, refs = [node.items for node in nodes], [node.refs for node in nodes]
        plain = encode_branch(level, keys, [node.id for node in nodes], items, refs)
        return self.keep(nodes[0].key, plain, sum(items), sum(refs) + len(nodes))

    def tree(self, leaves: list[_Node]) -> Tree:
        """All levels above these leaves; the last has the root alone."""
        levels = [leaves]
        while len(levels[-1]) > 1:
            below = levels[-1]
            groups = [below[start : start + CHILDREN] for start in range(0, len(below), CHILDREN)]
            levels.append([self.branch(len(levels), group) for group in groups])
        return levels

    def changed(self, tree: Tree, place: int, leaf: _Node) -> Tree:
        """The tree with another leaf in this place: only the path to it is new."""
        levels = [list(level) for level in tree]
        levels[0][place] = leaf
        for number in range(1, len(levels)):
            place //= CHILDREN
            below = levels[number - 1][place * CHILDREN : (place + 1) * CHILDREN]
            levels[number][place] = self.branch(number, below)
        return levels

    # --- rows --------------------------------------------------------------------------------------------
    def make_current(self, volume: int, tree: Tree) -> None:
        """Make this tree the volume's head."""
        self.flush()
        root = tree[-1][0]
        commit(self.store, [HeadUpdate(volume, root.id, root.items, root.refs, limits.INO_MAX)])

    def data(self) -> int:
        """Write the rows of all data, and packs for them to point into; return how many."""
        ids = np.frombuffer(b''.join(self._data), dtype='>u8').reshape(-1, ID // 8)
        self._data = []
        order = np.argsort(ids[:, 0])
        packs: list[PackRow] = []
        step = HEADER_BYTES + STORED_BYTES
        lengths = (STORED_BYTES, STORED_BYTES)
        epoch = self.store.catalog.epoch
        for start in range(0, len(ids), DATA_ROWS):
            part = ids[order[start : start + DATA_ROWS]].tobytes()
            # In the order of ids a pack has neighbours, which real packs do not; recounts do not care.
            entries = [
                PackEntry(part[n * ID : n * ID + ID], PACK_HEADER_BYTES + n * step, *lengths, 0)
                for n in range(len(part) // ID)
            ]
            row = self._pack(PACK_HEADER_BYTES + len(entries) * step, entries)
            packs.append(row)
            values = [
                (one.id, row.pack, one.offset, one.stored_length, one.plain_length, epoch) for one in entries
            ]
            with self.store.catalog.transaction() as db:
                db.executemany('INSERT INTO chunk VALUES (?, ?, ?, ?, ?, 0, 1, ?)', values)
        self.store.catalog.put_packs(packs)
        return len(ids)

    def _pack(self, end: int, entries: list[PackEntry]) -> PackRow:
        kind = RecordKind.DATA
        disk = self.store.disk
        number, name = self.store.chunks.writers[kind]._numbers.new(kind)
        path = pack_path(self.store.path / 'packs', kind, name)
        disk.mkdir(path.parent)
        fd = disk.open_write(path, create=True)
        disk.pwrite(fd, [encode_pack_header(PackHeader(self.store.superblock.uuid, name, kind))], 0)
        footer = encode_footer(entries, end, name)
        disk.pwrite(fd, [footer], end)
        disk.close(fd)
        return PackRow(number, name, kind, 'sealed', end + len(footer), len(entries))

    def canary(self) -> tuple[bytes, ...]:
        """Plant a canary; return its chunks."""
        count = len(CONTROL)
        keys = [extent_key(limits.INO_FIRST, number * EXTENT_BYTES) for number in range(count)]
        top = self.keep(keys[0], encode_leaf(keys, [(EXTENT_BYTES, id) for id in CONTROL]), count, count)
        self.flush()
        self._data.append(b''.join(CONTROL))
        with self.store.catalog.transaction() as db:
            db.execute('INSERT INTO canary VALUES (1, ?, ?, ?, 0)', (top.id, count, count))
        return CONTROL


def make(path: Path, shape: Shape) -> Made:
    """Make the store; about 100 s and 4 GiB for 20 million references."""
    store = Store.create(path, Disk(), World())
    maker = _Maker(store, shape)
    registry, now = store.registry, store.world.time_ns()
    volume = registry.volume_add('synthetic', now).volume
    count = max(shape.references // REFS_PER_LEAF, 2)
    leaves = [maker.leaf(number) for number in range(count)]
    own = max(count * shape.deleted_percent // 100, 1)
    old = [
        maker.leaf(count + number, maker._data[number])
        for number in range(own)
    ]  # fmt: skip
    maker.make_current(volume, maker.tree(leaves + old))
    deleted = registry.snapshot_add(volume, 'deleted', 'bench', now)
    tree = maker.tree(leaves)
    for number in range(shape.snapshots):
        place = (number * 7919) % count
        maker.make_current(volume, maker.changed(tree, place, maker.leaf(place)))
        registry.snapshot_add(volume, f'snapshot {number}', 'bench', now)
    maker.make_current(volume, tree)
    control = maker.canary()
    rows = maker.data()
    request = registry.snapshot_delete(deleted.number, 'bench', now)
    store.close(clean=True)
    return Made(tree[-1][0].refs, count + own, rows, control, request)


def main() -> None:
    """Make a store from the command line."""
    parser = argparse.ArgumentParser(description='make a store to measure recounts on')
    parser.add_argument('store', type=Path)
    parser.add_argument('--references', type=int, default=Shape().references)
    parser.add_argument('--deleted', type=int, default=Shape().deleted_percent, metavar='PERCENT')
    parser.add_argument('--snapshots', type=int, default=Shape().snapshots)
    options = parser.parse_args()
    made = make(options.store, Shape(options.references, options.deleted, options.snapshots))
    print(f'{made.references} references in {made.leaves} leaves, {made.rows} rows of data')


if __name__ == '__main__':
    main()
