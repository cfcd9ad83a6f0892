"""L4 recover values: what a survey is asked, and what it answers. Pure; any thread. Apart from what looks,
so that the daemon, which only asks, need not load it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path


class Depth(IntEnum):
    """How closely to look at data: presence.py says what each of them shows."""

    KNOWN = 0
    PRESENT = 1
    READ = 2


@dataclass(frozen=True, slots=True)
class SurveySpec:
    """Which tree to look through. `root`: its top, None for an empty tree. `depth`: how closely to look
    at its data (a Depth). `donors`: directories with files that may have the same
    bytes. `still`: as for a Reader."""

    store: Path
    uuid: bytes
    root: bytes | None
    depth: int
    donors: tuple[Path, ...]
    still: bool = False


@dataclass(frozen=True, slots=True)
class Use:
    """Where a file uses a lost chunk. `end` 0: it is the value of the attribute `name`, in hexadecimal."""

    ino: int
    path: str
    start: int
    end: int
    name: str = ''


@dataclass(frozen=True, slots=True)
class Donor:
    """Bytes that a lost chunk may have: `length` of them at `offset` of a file; `record`: of a record in a
    pack, payload and all. Whoever takes them verifies them."""

    path: Path
    offset: int
    length: int
    record: bool


@dataclass(frozen=True, slots=True)
class Lost:
    """A lost chunk (kind 1 data, 2 node), why, who uses it in this tree, and who may have its bytes."""

    id: bytes
    kind: int
    why: str
    uses: tuple[Use, ...]
    donors: tuple[Donor, ...]
    low: bytes = b''  # of a node: the keys that it had lie from here
    high: bytes = b''  # up to here, this one excluded


@dataclass(frozen=True, slots=True)
class Mend:
    """What has to change so that a tree with parts cut out is one that a filesystem can have. `gone`:
    inodes whose items all go; `entries`: (directory, name in hexadecimal) that lead nowhere; `links`,
    `sizes`: (inode, names) and (directory, entries) as they are then; `found`: (inode, type) that no name
    leads to any more; `cut`: files that have lost a part of their items, as (inode, size, bytes that
    went)."""

    gone: tuple[int, ...] = ()
    entries: tuple[tuple[int, str], ...] = ()
    links: tuple[tuple[int, int], ...] = ()
    sizes: tuple[tuple[int, int], ...] = ()
    found: tuple[tuple[int, int], ...] = ()
    cut: tuple[tuple[int, int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Survey:
    """The result: what is lost, and the mend for a tree without its lost nodes. Counts of what was looked at:
    `nodes` that were read, `references` that were looked up, `bytes` of data that were read and hashed, and
    chunks of data that are there, `unhashed`. `names`: paths that stand in a directory and lead to what is
    lost; `also`: a path that is named, and another name of the same file."""

    lost: tuple[Lost, ...]
    mend: Mend
    nodes: int
    references: int
    bytes: int
    unhashed: int
    names: tuple[str, ...] = ()
    also: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class WholeSpec:
    """Which trees to look through, by their tops, for whether they have lost anything that is known."""

    store: Path
    uuid: bytes
    tops: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Whole:
    """For each of the trees, in order, whether it has lost nothing; how many `nodes` were read for that."""

    whole: tuple[bool, ...]
    nodes: int


@dataclass(frozen=True, slots=True)
class CopiesSpec:
    """Whether the mirror has what packs of nodes have lost. `every_node`: read them all to see; else only
    packs that are seen to be damaged. `writing`: packs that the store is writing to, which nobody makes
    again. `still`: as for a Reader."""

    store: Path
    uuid: bytes
    every_node: bool
    writing: tuple[int, ...]
    still: bool = False


@dataclass(frozen=True, slots=True)
class PackCopy:
    """A pack that can be made again from its copy."""

    pack: int
    name: bytes


@dataclass(frozen=True, slots=True)
class Copies:
    """Packs that can be made again, and nodes of others that their copies have."""

    packs: tuple[PackCopy, ...]
    nodes: tuple[Lost, ...]


def came_back(packs: int, nodes: int) -> str:
    """Say for people how many packs of nodes were made again, and how many other nodes were put back."""
    parts = [f'{packs} packs of nodes'] * bool(packs)
    return ' and '.join(parts + [f'{nodes} nodes'] * bool(nodes))
