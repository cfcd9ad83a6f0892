"""L4 idsets: many chunk ids in little memory, as numpy arrays. Pure; one thread owns what it changes.

An array of ids has shape (n, 4): four big-endian words read as numbers, so that the order of rows is that of
the bytes. Comparisons here are exact, all 32 bytes; only PrefixSet knows ids by their first 8 bytes, and what
it answers may keep a chunk, never free one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from snapfs import limits
from snapfs.errors import Corrupt
from snapfs.format.ids import Buffer

Ids = NDArray[np.uint64]
Numbers = NDArray[np.int64]
Owners = NDArray[np.uint32]
NOBODY = np.uint32(0xFFFFFFFF)
UNKNOWN = -1  # a claim that nobody makes: the totals of a dropped subtree
WORDS = limits.ID_BYTES // 8
_FILTER_CELLS_PER_ID = 16
_FILTER_BITS_MIN, _FILTER_BITS_MAX = 12, 24


def to_array(ids: Buffer) -> Ids:
    """Return ids that lie back to back as an array."""
    if len(ids) % limits.ID_BYTES:
        raise Corrupt(f'{len(ids)} bytes are no list of ids')
    return np.frombuffer(ids, dtype='>u8').reshape(-1, WORDS).astype(np.uint64)


def to_bytes(ids: Ids) -> bytes:
    """Return the ids of an array back to back."""
    return ids.astype('>u8').tobytes()


def no_ids() -> Ids:
    """Return an array of no ids."""
    return np.empty((0, WORDS), dtype=np.uint64)


def sort_order(ids: Ids) -> NDArray[np.intp]:
    """Return the positions of the ids in the order of their bytes."""
    first = ids[:, 0]
    order = np.argsort(first)
    ordered = first[order]
    ties = np.flatnonzero(ordered[1:] == ordered[:-1])
    # Ties are copies of one id nearly always; different ids that share 8 bytes need all four words.
    if len(ties) and not (ids[order[ties]] == ids[order[ties + 1]]).all():
        return np.lexsort((ids[:, 3], ids[:, 2], ids[:, 1], first))
    return order


def run_starts(ids: Ids) -> NDArray[np.intp]:
    """Return where each run of equal ids begins; the ids are sorted."""
    if not len(ids):
        return np.empty(0, dtype=np.intp)
    fresh = (ids[1:] != ids[:-1]).any(axis=1)
    return np.concatenate((np.zeros(1, dtype=np.intp), np.flatnonzero(fresh) + 1))


def find(ids: Ids, wanted: Ids) -> NDArray[np.intp]:
    """Return for each wanted id its position in the sorted, unique `ids`, or -1."""
    if not len(ids) or not len(wanted):
        return np.full(len(wanted), -1, dtype=np.intp)
    places = np.searchsorted(ids[:, 0], wanted[:, 0])
    found = np.full(len(wanted), -1, dtype=np.intp)
    open_ = np.arange(len(wanted))
    # Ids that share their first word stand side by side: step on through these few.
    while len(open_):
        open_ = open_[places[open_] < len(ids)]
        open_ = open_[ids[places[open_], 0] == wanted[open_, 0]]
        equal = (ids[places[open_]] == wanted[open_]).all(axis=1)
        found[open_[equal]] = places[open_[equal]]
        open_ = open_[~equal]
        places[open_] += 1
    return found


@dataclass(frozen=True, slots=True)
class Claims:
    """Nodes as their parents and roots claim them: `items` and `refs` below each (UNKNOWN: nobody says), and
    the first owner that reaches it."""

    ids: Ids
    items: Numbers
    refs: Numbers
    owners: Owners

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, which: NDArray[np.intp] | NDArray[np.bool_]) -> Claims:
        """Return some of the claims."""
        return Claims(self.ids[which], self.items[which], self.refs[which], self.owners[which])


def no_claims() -> Claims:
    """Return no claims."""
    none = np.empty(0, dtype=np.int64)
    return Claims(no_ids(), none, none, np.empty(0, dtype=np.uint32))


def claim(ids: Buffer, items: object, refs: object, owner: int) -> Claims:
    """Return the claims of one owner about ids that lie back to back."""
    array = to_array(ids)
    count = len(array)
    return Claims(
        array,
        np.broadcast_to(np.asarray(items, dtype=np.int64), count),
        np.broadcast_to(np.asarray(refs, dtype=np.int64), count),
        np.full(count, owner, dtype=np.uint32),
    )


def settle(parts: list[Claims]) -> Claims:
    """Return all claims sorted, each node once. Corrupt when two claims about one node differ (L2)."""
    if not parts:
        return no_claims()
    ids = np.concatenate([part.ids for part in parts])
    order = sort_order(ids)
    ids = ids[order]
    starts = run_starts(ids)
    lengths = np.diff(np.append(starts, len(ids)))
    totals = []
    for values in ([part.items for part in parts], [part.refs for part in parts]):
        ordered = np.concatenate(values)[order]
        highest = np.maximum.reduceat(ordered, starts) if len(starts) else ordered
        wrong = (ordered != UNKNOWN) & (ordered != np.repeat(highest, lengths))
        if wrong.any():
            at = int(np.flatnonzero(wrong)[0])
            raise Corrupt(f'two parents of node {to_bytes(ids[at]).hex()} claim different totals')
        totals.append(highest)
    owners = np.concatenate([part.owners for part in parts])[order]
    first = np.minimum.reduceat(owners, starts) if len(starts) else owners
    return Claims(ids[starts], totals[0], totals[1], first)


def divide(claims: Claims, known: Claims) -> tuple[Claims, Claims]:
    """Return the claims about nodes that are not in `known`, and what `known` has about the others; both are
    settled. Corrupt when claims about a node in both differ."""
    places = find(known.ids, claims.ids)
    both = np.flatnonzero(places >= 0)
    there = places[both]
    for ours, theirs in ((claims.items, known.items), (claims.refs, known.refs)):
        one, other = ours[both], theirs[there]
        wrong = (one != UNKNOWN) & (other != UNKNOWN) & (one != other)
        if wrong.any():
            id = to_bytes(claims.ids[both[np.flatnonzero(wrong)[0]]])
            raise Corrupt(f'two parents of node {id.hex()} claim different totals')
    return claims.take(places < 0), known.take(there)


class PrefixSet:
    """Sorted ids by their first 8 bytes, and the lowest owner that mentioned each. About 12 bytes an id."""

    def __init__(self, prefixes: NDArray[np.uint64]) -> None:
        self._prefixes = prefixes
        self.owners: Owners = np.full(len(prefixes), NOBODY, dtype=np.uint32)
        cells = max(len(prefixes) * _FILTER_CELLS_PER_ID, 1)
        bits = min(max(cells.bit_length(), _FILTER_BITS_MIN), _FILTER_BITS_MAX)
        self._shift = np.uint64(64 - bits)
        self._filter = np.zeros(1 << bits, dtype=np.bool_)
        for start in range(0, len(prefixes), limits.COLLECT_REFS_BATCH):
            self._filter[prefixes[start : start + limits.COLLECT_REFS_BATCH] >> self._shift] = True

    def __len__(self) -> int:
        return len(self._prefixes)

    def hits(self, prefixes: NDArray[np.uint64]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Return which of these prefixes are in the set, and where: the first place of each."""
        asked = np.flatnonzero(self._filter[prefixes >> self._shift])
        if not len(asked):
            return asked, asked
        wanted = prefixes[asked]
        order = np.argsort(wanted)  # neighbours in the set are neighbours in the processor's cache
        asked, wanted = asked[order], wanted[order]
        places = np.searchsorted(self._prefixes, wanted)
        places[places == len(self._prefixes)] = 0
        found = self._prefixes[places] == wanted
        return asked[found], places[found]

    def mark(self, prefixes: NDArray[np.uint64], owners: Owners | np.uint32) -> None:
        """Note that these owners mention ids with these prefixes."""
        which, places = self.hits(prefixes)
        if len(which):
            by = owners[which] if isinstance(owners, np.ndarray) else owners
            np.minimum.at(self.owners, places, by)

    def owners_of(self, start: int, end: int) -> Owners:
        """Return the owners of the ids at these places; NOBODY for those nobody has mentioned."""
        prefixes = self._prefixes[start:end]
        # Ids that share a prefix share the first one's owner: all of them are kept.
        return self.owners[np.searchsorted(self._prefixes, prefixes)]
