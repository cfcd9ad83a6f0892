"""L4 nodes: decoded tree nodes in bounded memory, and how asynchronous code calls the synchronous tree.

Event loop only. `load` answers from memory or from the page cache without leaving the loop; what would block
raises NotCached, and `walk` fetches that node in a thread and calls the tree function again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from snapfs import limits
from snapfs.errors import Corrupt
from snapfs.format.nodes import Branch, Leaf, decode_node
from snapfs.store.chunks import ChunkStore
from snapfs.tree import NotCached
from snapfs.world import World

T = TypeVar('T')
Node = Leaf | Branch

# An estimate of how many times its encoded size a decoded node takes in Python objects.
MEMORY_FACTOR = 4


class NodeCache:
    """Nodes by id in two generations: what is used moves to the young one, the old one is dropped whole."""

    def __init__(self, chunks: ChunkStore, world: World, bytes_max: int = limits.NODE_CACHE_BYTES) -> None:
        self._chunks = chunks
        self._world = world
        self._half = bytes_max // 2
        self._young: dict[bytes, Node] = {}
        self._old: dict[bytes, Node] = {}
        self._young_bytes = 0
        self.loads = 0
        self.on_damage: Callable[[bytes, Corrupt], None] = lambda node_id, error: None

    def forget(self) -> None:
        """Drop every node from memory."""
        self._young, self._old, self._young_bytes = {}, {}, 0

    def load(self, node_id: bytes) -> Node:
        """Return a node; raise NotCached when getting it would block, Corrupt when it is not what
        was stored.
        """
        node = self._young.get(node_id)
        if node is not None:
            return node
        node = self._old.pop(node_id, None)
        if node is None:
            try:
                plain = self._chunks.get_nowait(node_id)
                if plain is None:
                    raise NotCached(node_id)
                node = decode_node(plain)
            except Corrupt as error:
                self.on_damage(node_id, error)
                raise
            self.loads += 1
            size = len(plain)
        else:
            size = limits.NODE_BYTES_TARGET  # close enough: most nodes are about the target
        self._keep(node_id, node, size)
        return node

    def _keep(self, node_id: bytes, node: Node, size: int) -> None:
        self._young[node_id] = node
        self._young_bytes += size * MEMORY_FACTOR
        if self._young_bytes > self._half:
            self._old = self._young
            self._young = {}
            self._young_bytes = 0

    async def fetch(self, node_id: bytes) -> None:
        """Read a node in a thread and keep it."""
        try:
            plain = await self._world.run_in_thread(self._chunks.get, node_id)
            self._keep(node_id, decode_node(plain), len(plain))
        except Corrupt as error:
            self.on_damage(node_id, error)
            raise

    async def walk(self, function: Callable[[], T]) -> T:
        """Call `function`, which reads the tree through `load`, until every node it needs is in memory."""
        while True:
            try:
                return function()
            except NotCached as missing:
                await self.fetch(missing.id)

    async def node(self, node_id: bytes) -> Node:
        """Return one node, from wherever it is."""
        try:
            return self.load(node_id)
        except NotCached:
            await self.fetch(node_id)
            return self.load(node_id)
