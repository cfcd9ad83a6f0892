"""L4 ancestry: who mentions the mentioners, up to a row of the catalog, for the second recount. Blocking;
one thread.

Works upwards, pass after pass over the branches that the recount has seen: the parents of some nodes, then
theirs, until nothing new is found. A branch stands one level above its children, so that ends."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from snapfs import limits
from snapfs.collect.catalog_ids import Claim
from snapfs.errors import Corrupt

# (id, children) of the branch at (pack, offset).
ReadBranch = Callable[[int, int], tuple[bytes, list[bytes]]]


class BranchPlaces:
    """Where every branch stands that was seen: number of the pack in the list, offset. 8 bytes each."""

    def __init__(self) -> None:
        self._places = array('Q')

    def add(self, pack: int, offset: int) -> None:
        """Note a branch."""
        self._places.append(pack << 40 | offset)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        for place in self._places:
            yield place >> 40, place & ((1 << 40) - 1)

    def __len__(self) -> int:
        return len(self._places)


@dataclass(frozen=True, slots=True)
class Keeper:
    """A row of the catalog that claims a node with all that is below it. `batch`: of its request, or
    None."""

    row: str
    batch: int | None


def parents_above(
    nodes: Iterable[bytes], branches: BranchPlaces, read: ReadBranch
) -> dict[bytes, set[bytes]]:
    """Return node -> the branches that have it for a child, for these nodes and all above them. Corrupt
    when it does not end."""
    parents: dict[bytes, set[bytes]] = {node: set() for node in nodes}
    wanted = set(parents)
    for _ in range(limits.TREE_LEVELS_MAX + 1):
        if not wanted:
            return parents
        found: set[bytes] = set()
        for pack, offset in branches:
            id, children = read(pack, offset)
            for child in wanted.intersection(children):
                parents[child].add(id)
                found.add(id)
        wanted = found - parents.keys()
        parents.update((node, set()) for node in wanted)
    if wanted:
        raise Corrupt(f'nodes above nodes without an end, at {min(wanted).hex()}')
    return parents


def keepers(reaching: Iterable[Claim], parents: dict[bytes, set[bytes]]) -> dict[bytes, frozenset[Keeper]]:
    """Return for each node the rows of the catalog among `reaching` that keep it, from above or by
    name."""
    direct: dict[bytes, set[Keeper]] = {}
    for claim in reaching:
        ids = claim.ids
        for start in range(0, len(ids), limits.ID_BYTES):
            id = ids[start : start + limits.ID_BYTES]
            if id in parents:
                direct.setdefault(id, set()).add(Keeper(claim.row, claim.batch))
    known: dict[bytes, frozenset[Keeper]] = {}
    for node in parents:
        if node not in known:
            _gather(node, parents, direct, known)
    return known


def _gather(
    node: bytes,
    parents: dict[bytes, set[bytes]],
    direct: dict[bytes, set[Keeper]],
    known: dict[bytes, frozenset[Keeper]],
) -> None:
    """Fill `known` for a node and all above it, at most TREE_LEVELS_MAX deep."""
    found = set(direct.get(node, ()))
    for parent in parents[node]:
        if parent not in known:
            _gather(parent, parents, direct, known)
        found |= known[parent]
    known[node] = frozenset(found)
