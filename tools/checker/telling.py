"""Tool fsck, telling: the losses of all parts put together, named, and told within bounds. One thread.

Kept are findings as far as the report has room, and for these PAIRS_MAX references to bad chunks. Everything
else is counted: findings by code, references by node, so that the roots that have lost something are known
however much that is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from tools.checker.catalog import Root
from tools.checker.findings import Report
from tools.checker.graph import Graph
from tools.checker.losses import ASKED_FOR, CHUNK, LOST, PACK, PAIRS_MAX, STRICT_ONLY, TOP, Key, PartLosses
from tools.checker.naming import Namer
from tools.checker.spill import text_of, words_of

COUNTED = -1
WHOLE = '/ (the whole tree)'


class Telling:
    """Takes the losses of one part after the other. `places`: by number of a pack, where it is; `wanted`: ids
    that are to be named all the same; `holes`: nodes are lost, so that more may be needed than is seen."""

    def __init__(
        self, graph: Graph, report: Report, places: Mapping[int, str], wanted: Sequence[bytes], holes: bool
    ) -> None:
        self._graph = graph
        self._holes = holes
        self._report = report
        self._places = places
        self._wanted = wanted
        self._numbers: dict[Key, int] = {}
        self._keys: list[Key] = []
        self._what: list[str] = []
        self._chunks: list[int] = []
        self._needed: set[int] = set()
        self._shown: set[int] = set()
        self._kept: Counter[str] = Counter()
        self._rows = [np.zeros(0, dtype=LOST)]
        self._pairs = 0
        self._skipped = np.zeros(len(graph.nodes), dtype=np.int64)
        self._hurt = np.zeros(len(graph.nodes), dtype=bool)
        self._tops: dict[tuple[int, int], list[tuple[int, int]]] = {}

    def take(self, part: PartLosses) -> None:
        """Take the losses of a part."""
        for code, number in part.left_out.items():
            self._report.more(code, number)
        numbers = np.full(len(part.told) + 1, COUNTED, dtype=np.int64)  # the last one is that of COUNTED
        for index, one in enumerate(part.told):
            number = self._number(one.key, one.what)
            if number == COUNTED:
                continue
            self._chunks[number] += one.chunks
            if one.needed:
                self._needed.add(number)
            if number in self._shown:
                numbers[index] = number
        rows = part.rows.copy()
        key = numbers[rows['key']]
        kept = np.flatnonzero(key != COUNTED)[: PAIRS_MAX - self._pairs]
        rest = np.ones(len(rows), dtype=bool)
        rest[kept] = False
        np.add.at(self._skipped, self._graph.by_owner(rows['owner'][rest]), 1)
        np.add.at(self._skipped, self._graph.by_owner(part.skipped[0]), part.skipped[1])
        self._hurt[self._graph.by_owner(part.hurt)] = True
        rows['key'][kept] = key[kept]
        self._rows.append(rows[kept])
        self._pairs += len(kept)
        for index, a, b, who in part.tops:
            self._tops.setdefault((a, b), []).append((int(numbers[index]), who))

    def _number(self, key: Key, what: str) -> int:
        number = self._numbers.get(key)
        if number is not None:
            return number
        room = self._report.room(key[0], self._kept[key[0]], self._kept.total())
        if not room and key[1] != PACK:
            self._report.more(key[0], 1)
            return COUNTED
        number = self._numbers[key] = len(self._keys)
        self._keys.append(key)
        self._what.append(what)
        self._chunks.append(0)
        if room:
            self._kept[key[0]] += 1
            self._shown.add(number)
        return number

    def has_told(self, code: str, pack: int) -> bool:
        """Return whether chunks were told to be lost with a pack."""
        return (code, PACK, pack) in self._numbers

    def unneeded(self, code: str) -> str:
        """Return the code for something lost that nothing needs, as far as is seen."""
        return 'pack-gone' if code == 'pack-missing' and not self._holes else code

    def tell(self, namer: Namer, roots: Sequence[Root]) -> None:
        """Report everything, with the files that are concerned."""
        rows = np.concatenate(self._rows)
        self._rows = []
        if self._keys or self._hurt.any():
            named = namer.files(rows, self._graph.by_owner(rows['owner']), self._skipped, self._hurt)
            damaged = set(named.damaged)
            for root in roots if self._tops else ():
                if not (root.strict or root.resting) or not root.tops:
                    continue
                for number, who in self._tops.get(words_of(root.tops[0]), ()):
                    if who == STRICT_ONLY and not root.strict:
                        continue
                    if number == COUNTED:
                        named.left_out += 1
                    else:
                        named.add(number, root.name, WHOLE, None, None)
                    if number == COUNTED or self._keys[number][1] != ASKED_FOR:
                        damaged.add(root.name)
            for number in range(len(self._keys)):
                self._add(number, named.sorted(number))
            order = [root.name for root in roots if root.name in damaged]
            self._report.facts['snapshots'] = list(dict.fromkeys(order))
            self._report.facts['files_left_out'] = named.left_out

    def _add(self, number: int, files: list[tuple[str, str, int | None, int | None]]) -> None:
        code, about, subject = self._keys[number]
        what = self._what[number]
        if not files and number not in self._needed:
            code, what = self.unneeded(code), f'{what}; nothing that stands needs it'
        place = self._place(about, subject)
        self._report.add(code, place, what, files, chunks=self._chunks[number])

    def _place(self, about: int, number: int) -> str:
        if about == PACK:
            return self._places.get(number, f'pack number {number}')
        if about == CHUNK:
            return f'chunk {text_of(number)}'
        if about == TOP:
            return f'node {text_of(number)}'
        if about == ASKED_FOR:
            return f'chunk {self._wanted[number].hex()}'
        return f'{self._places[number >> 32]} at offset {number & 0xFFFFFFFF}'
