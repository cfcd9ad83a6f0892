"""L3 root: what names a tree, and what tree code and its caller say to each other. Frozen values; any thread.

Tree functions never wait. The reading ones take `load(id)`, which returns a decoded node or raises NotCached;
an async caller fetches that node and calls again. `apply` is a generator instead, since it should not start
over: it yields Need for nodes it must see and Built for nodes it has made.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from snapfs.format.nodes import Branch, Leaf

Node: TypeAlias = Leaf | Branch
Load: TypeAlias = Callable[[bytes], Node]
Key: TypeAlias = bytes
Value: TypeAlias = tuple[object, ...]
Range: TypeAlias = tuple[Key, Key]
Change: TypeAlias = tuple[Key, Value | None]


class Root(NamedTuple):
    """Names a tree: id of the top node, items in the tree, references in the tree (the top node's own id not
    counted). An empty tree has no node: id None and both counts 0."""

    id: bytes | None
    items: int
    refs: int


EMPTY = Root(None, 0, 0)


class NotCached(Exception):
    """The node `id` is not in memory. Fetch it and call again; nothing was changed."""

    def __init__(self, id: bytes) -> None:
        super().__init__(id.hex())
        self.id = id


@dataclass(frozen=True, slots=True)
class Need:
    """apply waits for these nodes of the old tree: send back the decoded nodes, in this order."""

    ids: list[bytes]


@dataclass(frozen=True, slots=True)
class Built:
    """Nodes of the new tree made since the last slice, in no particular order: (id, encoded bytes). One may
    happen to be a node of the old tree. May be empty: a pause. Send back None."""

    nodes: list[tuple[bytes, bytes]]


@dataclass(frozen=True, slots=True)
class Applied:
    """The result of apply. `dropped` are ids of nodes and data, each once; `dropped_subtrees` are ids of
    nodes that were cut off with all below them, without being read.

    Whatever the old tree refers to and the new one does not is in one of them, and nothing that the old tree
    did not refer to. They are candidates for a recount, never a verdict: an id that also stands elsewhere in
    the new tree may be listed."""

    root: Root
    dropped: list[bytes]
    dropped_subtrees: list[bytes]
