"""L5 node ids: the kernel's 64-bit numbers for places, computed and never looked up. Pure; any thread.

From high bits to low::

    4 bits   kind         LIVE, SNAPSHOT, SNAPSHOTS or CONTROL
    20 bits  view         the view number of a volume or a snapshot; for CONTROL, a `Control`
    40 bits  ino          the inode number in that view; for CONTROL, a request number

- LIVE: a file or directory of a volume. SNAPSHOT: one of a snapshot.
- SNAPSHOTS: the `.snapshots` directory that lies in the live directory (view, ino).
- CONTROL: what is below `.snapfs`.

View numbers begin at 1, so (LIVE, 0, 1) is free: it is 1, which FUSE demands of the root of a mount. In a
mount of one volume that is the volume's root directory, and all other files of the volume keep the number
they have in a mount of the whole store.

`node >> INO_BITS` is the **tree number**: what the dictionaries of views are keyed by. A file handle is the
node id, so nothing is kept for an open file (but the text of a computed one, see `TEXT_HANDLE`).
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

from snapfs import limits

INO_BITS = limits.INO_BITS
INO_MASK = (1 << INO_BITS) - 1
VIEW_MASK = (1 << limits.VIEW_BITS) - 1
KIND_SHIFT = limits.INO_BITS + limits.VIEW_BITS

ROOT_NODE = 1  # of every mount
ROOT_TREE = ROOT_NODE >> INO_BITS

TEXT_HANDLE = 1 << 63  # handles of open text files are this and more
SNAPSHOT_TREE = 1 << limits.VIEW_BITS  # the tree number of a snapshot is this plus its view number


class NodeKind(IntEnum):
    """What kind of place a node id names."""

    LIVE = 0
    SNAPSHOT = 1
    SNAPSHOTS = 2
    CONTROL = 3


class Control(IntEnum):
    """What stands in the view bits of a CONTROL node id; the ino bits are 1 or what the line says."""

    DIRECTORY = 1  # .snapfs
    HEALTH = 2  # .snapfs/health
    TRASH = 3  # .snapfs/trash
    PENDING = 4  # .snapfs/pending
    TRASH_ENTRY = 5  # .snapfs/trash/ID; request number
    TRASH_REQUEST = 6  # .snapfs/trash/ID/request; request number
    PENDING_REQUEST = 7  # .snapfs/pending/ID; request number
    PENDING_GROUP = 8  # .snapfs/pending/KIND-VOLUME; see pending.group_number
    INCIDENTS = 9  # .snapfs/incidents
    INCIDENT = 10  # .snapfs/incidents/N; incident number
    INCIDENT_FILE = 11  # .snapfs/incidents/N/*; see evidence.FILE_BITS
    QUARANTINE = 12  # .snapfs/quarantine
    BATCH = 13  # .snapfs/quarantine/N; batch number
    VERIFIED = 14  # .snapfs/verified


class NodeId(NamedTuple):
    """A node id taken apart."""

    kind: NodeKind
    view: int
    ino: int


def encode_node(kind: NodeKind, view: int, ino: int) -> int:
    """Return the node id, 1 to 2^62 - 1. Different arguments give different numbers."""
    assert 0 <= view <= VIEW_MASK
    assert 0 < ino <= INO_MASK
    assert view > 0 or (kind is NodeKind.LIVE and ino == ROOT_NODE), 'view 0 is the root of the mount'
    return kind << KIND_SHIFT | view << INO_BITS | ino


def decode_node(node: int) -> NodeId:
    """Return what `encode_node` was given. ValueError for a number that it cannot have made."""
    kind = node >> KIND_SHIFT
    view = node >> INO_BITS & VIEW_MASK
    ino = node & INO_MASK
    if not 0 <= kind <= NodeKind.CONTROL or ino == 0 or (view == 0 and node != ROOT_NODE):
        raise ValueError(f'{node} is not a node id')
    return NodeId(NodeKind(kind), view, ino)


def control_node(control: Control, number: int = 1) -> int:
    """Return the node id of a place below `.snapfs`."""
    return encode_node(NodeKind.CONTROL, control, number)


assert ROOT_NODE == limits.INO_ROOT
assert (NodeKind.CONTROL + 1) << KIND_SHIFT <= 1 << 63  # a file handle may also be TEXT_HANDLE + a counter
assert NodeKind.SNAPSHOT << KIND_SHIFT == SNAPSHOT_TREE << INO_BITS
