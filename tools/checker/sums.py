"""Tool fsck, sums: whether two lists of records are the same, without holding one against the other. Pure.

A pack says which records it has, and rows of the catalog say which records it should have. Each record gives
64 bits that every one of its numbers goes into, and both sides add these up, modulo 2^64, in whatever order
they come. Where number and sum of both are the same, so are the lists: two that differ agree with a chance
of 2^-64 (a multiset hash by addition, Clarke and others 2003, with a mixing function that is no secret: it
withstands accidents, and nobody who makes a store for that). Where they differ, a check begins anew and
compares this pack's records one by one."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from tools.checker.spill import Words

FACTORS = [np.uint64(one) for one in (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0xBF58476D1CE4E5B9)]
LENGTHS_FACTOR = np.uint64(0x94D049BB133111EB)
WHAT_FACTOR = np.uint64(0xD6E8FEB86659FD93)
WORD = (1 << 64) - 1


def mixed(a: Words, b: Words, place: Words, lengths: Words, what: Words) -> Words:
    """Return 64 bits for each record: of the two numbers of its id, its place, its lengths (stored << 32 |
    plain), and its kind and codec (kind | codec << 8)."""
    with np.errstate(over='ignore'):
        h = a * FACTORS[0]
        h ^= h >> np.uint64(32)
        h += b
        h *= FACTORS[1]
        h ^= h >> np.uint64(29)
        h += place * LENGTHS_FACTOR
        h ^= h >> np.uint64(32)
        h *= FACTORS[2]
        h += lengths * WHAT_FACTOR
        h += what
        h ^= h >> np.uint64(30)
        h *= FACTORS[2]
        h ^= h >> np.uint64(31)
    return h


def mixed_records(records: NDArray[np.void]) -> Words:
    """Return 64 bits for each of these rows of `spill.RECORDS`."""
    lengths = records['stored'].astype(np.uint64) << np.uint64(32) | records['plain']
    return mixed(records['a'], records['b'], records['place'], lengths, records['what'].astype(np.uint64))


@dataclass(slots=True)
class Sums:
    """Of some packs, by number: how many records, and the sum of what they give."""

    of: dict[int, tuple[int, int]] = field(default_factory=dict)

    def add(self, pack: int, count: int, total: int) -> None:
        """Count records of a pack in."""
        had = self.of.get(pack, (0, 0))
        self.of[pack] = had[0] + count, (had[1] + total) & WORD

    def add_records(self, pack: int, tables: Iterable[NDArray[np.void]]) -> None:
        """Count in records that a pack has."""
        for table in tables:
            self.add(pack, len(table), int(np.add.reduce(mixed_records(table), dtype=np.uint64)))

    def add_all(self, other: Sums) -> None:
        """Count in what somebody else has counted."""
        for pack, (count, total) in other.of.items():
            self.add(pack, count, total)

    def unlike(self, other: Sums, packs: Iterable[int]) -> frozenset[int]:
        """Return which of these packs have other records there. What is counted nowhere is none."""
        none = (0, 0)
        return frozenset(pack for pack in packs if self.of.get(pack, none) != other.of.get(pack, none))
