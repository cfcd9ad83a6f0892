"""What the tests of the tree share: nodes in memory, a row of items, and a recount by brute force."""

from __future__ import annotations

import random
from collections.abc import Sequence
from hashlib import sha256

from snapfs import limits
from snapfs.format.ids import node_id
from snapfs.format.items import Value, check_item, ref_of
from snapfs.format.keys import dirent_key, extent_key, inode_key, xattr_key
from snapfs.format.nodes import Branch, decode_node
from snapfs.tree import EMPTY, Applied, NotCached, Root, apply, run_apply
from snapfs.tree.root import Change, Node, Range

TARGET = 768  # bytes; a few items per leaf and a few children per branch make trees high
SLOTS = 6  # items per inode


def key_at(index: int) -> bytes:
    """The index-th key of an endless row in key order: per inode INODE, DIRENT, 2 EXTENT, 2 XATTR."""
    ino, slot = divmod(index, SLOTS)
    ino += limits.INO_ORPHANS + 1
    if slot == 0:
        return inode_key(ino)
    if slot == 1:
        return dirent_key(ino, 1000 + index)
    if slot in (2, 3):
        return extent_key(ino, (slot - 2) * 4096)
    return xattr_key(ino, b'user.a' if slot == 4 else b'user.b')


def value_at(index: int, version: int, shared: bool = False) -> Value:
    """A value for the index-th key. Its chunk id, if any, is its own; with `shared`, one of four."""
    slot = index % SLOTS
    name = b'%d.%d' % (index, version)
    id = sha256(b'%d' % (version % 4) if shared else name).digest()
    if slot == 0:
        now = 10**18 + version
        return (0o100644, 1000, 1000, 0, 70_000 + index, 70_000, 1, 0, 0, now, now, now, now, 0, b'')
    if slot == 1:
        return ((name, 1 + index, 8),)
    if slot in (2, 3):
        return (4096, id)
    return (0, name * 5) if slot == 4 else (1, 2000, id)


def item_at(index: int, version: int, shared: bool = False) -> tuple[bytes, Value]:
    """Key and value; the schema agrees with them."""
    key, value = key_at(index), value_at(index, version, shared)
    check_item(key, value)
    return key, value


class NodeStore:
    """Nodes in memory, as bytes and decoded. `loads` and `kept` record the ids asked for and stored."""

    def __init__(self) -> None:
        self.plain: dict[bytes, bytes] = {}
        self.decoded: dict[bytes, Node] = {}
        self.loads: list[bytes] = []
        self.kept: list[bytes] = []

    def load(self, id: bytes) -> Node:
        """Never misses."""
        self.loads.append(id)
        node = self.decoded.get(id)
        if node is None:
            node = self.decoded[id] = decode_node(self.plain[id])
        return node

    def load_many(self, ids: Sequence[bytes]) -> list[Node]:
        return [self.load(id) for id in ids]

    def keep(self, nodes: Sequence[tuple[bytes, bytes]]) -> None:
        for id, plain in nodes:
            assert node_id(plain) == id
            self.plain[id] = plain
            self.kept.append(id)

    def apply(
        self,
        root: Root,
        ranges: Sequence[Range] = (),
        changes: Sequence[Change] = (),
        target_bytes: int = TARGET,
    ) -> Applied:
        """Apply with the small node size of these tests."""
        return run_apply(apply(root, ranges, changes, target_bytes=target_bytes), self.load_many, self.keep)

    def build(self, count: int) -> Root:
        """A tree of the first `count` items, version 0."""
        return self.apply(EMPTY, changes=[item_at(index, 0) for index in range(count)]).root

    def reach(self, root_id: bytes | None) -> set[bytes]:
        """All ids, of nodes and data, from a node downwards, itself included."""
        found: set[bytes] = set()
        todo = [] if root_id is None else [root_id]
        while todo:
            id = todo.pop()
            found.add(id)
            node = decode_node(self.plain[id])
            if isinstance(node, Branch):
                todo += node.children
            else:
                found.update(node.ref_ids())
        return found

    def dropped(self, applied: Applied) -> set[bytes]:
        """What an apply reports as dropped, its subtrees spelt out."""
        found = set(applied.dropped)
        for id in applied.dropped_subtrees:
            found |= self.reach(id)
        return found


class ForgetfulLoad:
    """A load that keeps few nodes and forgets at random: raises NotCached until the caller has fetched."""

    def __init__(self, store: NodeStore, seed: int, keep: int) -> None:
        self.store = store
        self.random = random.Random(seed)
        self.keep = keep
        self.held: dict[bytes, Node] = {}
        self.misses = 0

    def __call__(self, id: bytes) -> Node:
        node = self.held.get(id)
        if node is None:
            raise NotCached(id)
        return node

    def fetch(self, id: bytes) -> None:
        """What an async caller does on NotCached."""
        self.misses += 1
        while len(self.held) >= self.keep:
            del self.held[self.random.choice(sorted(self.held))]
        self.held[id] = self.store.load(id)


def items_of(model: dict[bytes, Value]) -> list[tuple[bytes, Value]]:
    return sorted(model.items())


def refs_of(model: dict[bytes, Value]) -> list[bytes]:
    found = (ref_of(key, value) for key, value in items_of(model))
    return [id for id in found if id is not None]
