"""Tool fsck, losses: what one part of the ids has lost, and which nodes refer to it. Plain; for worker
processes.

What is told one by one is bounded. What is beyond is counted: findings by their code, references by the node
that has them, so that nothing is said to be whole for want of room."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from tools.checker.graph import NOBODY, RESTING, STRICT, find

PAIRS_MAX = 150_000  # references to bad chunks that are kept, to name files by
PACK, RECORD, CHUNK, TOP, ASKED_FOR = range(5)  # what a finding is about
ANY, STRICT_ONLY, RESTING_ONLY = range(3)  # to whom it is a loss
HARMLESS = 'chunk-named'
# A reference to a bad chunk: number of the finding, the chunk, the number of the node's record.
LOST = np.dtype([('key', 'u4'), ('a', 'u8'), ('b', 'u8'), ('owner', 'u4')])
Key = tuple[str, int, int]  # code, what it is about, and its number: pack, place, first number of the id
What = str | Callable[[], str]


@dataclass(frozen=True, slots=True)
class Loss:
    """A finding of one part: `chunks` of it are concerned; `needed`: something that stands refers to one."""

    key: Key
    what: str
    chunks: int
    needed: bool


@dataclass(slots=True)
class PartLosses:
    """What a part has lost. `rows`: references that are kept, by the place of their finding in `told`;
    `left_out`: by code, findings that are only counted; `skipped`: numbers of nodes, and how many of their
    references to bad chunks are not in `rows`; `hurt`: numbers of all nodes that have lost something;
    `tops`: ids of lost tops of roots, with the finding (-1: not kept) and to whom it is a loss."""

    told: list[Loss] = field(default_factory=list)
    rows: NDArray[np.void] = field(default_factory=lambda: np.zeros(0, dtype=LOST))
    left_out: dict[str, int] = field(default_factory=dict)
    skipped: tuple[NDArray[np.uint32], NDArray[np.int64]] = field(
        default_factory=lambda: (np.zeros(0, dtype=np.uint32), np.zeros(0, dtype=np.int64))
    )
    hurt: NDArray[np.uint32] = field(default_factory=lambda: np.zeros(0, dtype=np.uint32))
    tops: list[tuple[int, int, int, int]] = field(default_factory=list)


class Marks:
    """Collects the bad chunks of one part. `shown_max`: findings of each code that are kept; those about
    packs all are, there are not many."""

    def __init__(self, shown_max: int) -> None:
        self._shown_max = shown_max
        self._keys: dict[Key, int] = {}  # its place in `_what`, or -1: only counted
        self._kept: dict[str, int] = {}
        self._what: list[str] = []
        self._numbers: list[Key] = []
        self._marks: dict[tuple[int, int, int], tuple[int, bool]] = {}

    def add(self, key: Key, what: What, a: int, b: int, who: int = ANY) -> None:
        """Mark a chunk as bad. One that two findings tell of is marked for both."""
        number = self._keys.get(key)
        if number is None:
            number = self._keys[key] = self._number(key, what)
        self._marks.setdefault((number, a, b), (who, key[0] != HARMLESS))

    def _number(self, key: Key, what: What) -> int:
        if key[1] != PACK:
            self._kept[key[0]] = self._kept.get(key[0], 0) + 1
            if self._kept[key[0]] > self._shown_max:
                return -1
        self._what.append(what if isinstance(what, str) else what())
        self._numbers.append(key)
        return len(self._what) - 1

    def resolve(
        self, refs: NDArray[np.void], node: NDArray[np.int64], flag: NDArray[np.uint8], tops: NDArray[np.void]
    ) -> PartLosses:
        """Return all losses. `refs`: every reference of the part, of which nodes, reached by what kinds of
        root; `tops`: ids of roots in the part, with their kind."""
        result = PartLosses()
        for key, number in self._keys.items():
            if number < 0:
                result.left_out[key[0]] = result.left_out.get(key[0], 0) + 1
        if not self._marks:
            return result
        marks = np.array(
            [(*mark, *value) for mark, value in self._marks.items()],
            dtype=[('key', 'i8'), ('a', 'u8'), ('b', 'u8'), ('who', 'u1'), ('harm', '?')],
        )
        marks = marks[np.lexsort((marks['b'], marks['a']))]
        new = (marks['a'][1:] != marks['a'][:-1]) | (marks['b'][1:] != marks['b'][:-1])
        starts = np.flatnonzero(np.r_[True, new])
        counts = np.diff(np.r_[starts, len(marks)])
        there = np.flatnonzero((node != NOBODY) & (flag & (STRICT | RESTING) > 0))
        ref, mark = _joined(marks, starts, counts, refs['a'][there], refs['b'][there])
        ref = there[ref]
        good = _concerns(marks['who'][mark], flag[ref])
        self._references(result, marks[mark[good]], refs['owner'][ref[good]])
        top, mark = _joined(marks, starts, counts, tops['a'], tops['b'])
        good = _concerns(marks['who'][mark], tops['flag'][top])
        lost = marks[mark[good]]
        result.tops = [(key, a, b, who) for key, a, b, who, harm in lost.tolist() if harm or key >= 0]
        needed = {key for key, *_ in result.tops} | set(np.unique(result.rows['key']).tolist())
        needed |= self._needed
        chunks = np.bincount(marks['key'][marks['key'] >= 0], minlength=len(self._what)).tolist()
        result.told = [
            Loss(key, what, chunks[number], number in needed)
            for number, (key, what) in enumerate(zip(self._numbers, self._what, strict=True))
        ]
        return result

    def _references(self, result: PartLosses, marks: NDArray[np.void], owner: NDArray[np.uint32]) -> None:
        told = np.flatnonzero(marks['key'] >= 0)
        self._needed = set(np.unique(marks['key'][told]).tolist())
        kept = told[:PAIRS_MAX]
        result.rows = np.zeros(len(kept), dtype=LOST)
        for column in ('key', 'a', 'b'):
            result.rows[column] = marks[column][kept]
        result.rows['owner'] = owner[kept]
        rest = np.ones(len(marks), dtype=bool)
        rest[kept] = False
        owners, counts = np.unique(owner[rest], return_counts=True)
        result.skipped = owners, counts.astype(np.int64)
        result.hurt = np.unique(owner[marks['harm']])


def _joined(
    marks: NDArray[np.void],
    starts: NDArray[np.int64],
    counts: NDArray[np.int64],
    a: NDArray[np.uint64],
    b: NDArray[np.uint64],
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return (number of the id, number of the mark) of all marks of these ids. `starts`, `counts`: where the
    marks of each id are, which stand together."""
    at = find(marks['a'][starts], marks['b'][starts], a, b)
    ids = np.flatnonzero(at != NOBODY)
    many = counts[at[ids]]
    inside = np.arange(int(many.sum()), dtype=np.int64) - np.repeat(np.cumsum(many) - many, many)
    return np.repeat(ids, many), np.repeat(starts[at[ids]], many) + inside


def _concerns(who: NDArray[np.uint8], flag: NDArray[np.uint8]) -> NDArray[np.bool_]:
    strict, resting = flag & STRICT > 0, flag & RESTING > 0
    only_strict, only_resting = (who != RESTING_ONLY) & strict, resting & ~strict
    return np.where(who == ANY, strict | resting, (only_strict & (who == STRICT_ONLY)) | (
        only_resting & (who == RESTING_ONLY)))  # fmt: skip
