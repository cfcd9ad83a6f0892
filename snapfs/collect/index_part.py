"""L4 index part: a range of the chunk index in memory, for the proof, and the packs it points into.
Blocking; one thread.

16 bytes for each row: the first half of its id. What these do not settle is looked up whole in the
catalog."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from snapfs import limits
from snapfs.collect.catalog_ids import PackFact
from snapfs.collect.condemned import Ids, as_ids
from snapfs.collect.meta_packs import has_bytes, pack_file, read_bytes
from snapfs.errors import Corrupt
from snapfs.format.packs import PACK_HEADER_BYTES, PackHeader, decode_pack_header
from snapfs.format.records import HEADER_BYTES, RecordKind, decode_header, decode_payload

_ID = limits.ID_BYTES
Miss = Callable[[bytes, str, str], None]  # id, by, why
NO_ROW = 'it has no row in the index'
_RESTING = " AND batch IN (SELECT number FROM batch WHERE state IN ('PLANNED', 'QUARANTINED'))"


class Place(NamedTuple):
    """Where a record is: pack number, offset of its header, payload bytes."""

    pack: int
    offset: int
    stored: int


def locate(db: sqlite3.Connection, ids: Ids, resting: bool) -> dict[bytes, Place]:
    """Return where chunks are, for those that have a row in chunk, or with `resting` in quarantine for a
    batch that rests: what a batch is freeing is no longer there for anybody."""
    found: dict[bytes, Place] = {}
    wanted = [row.tobytes() for row in ids]
    for table, rest in (('chunk', ''), ('quarantine', _RESTING)) if resting else (('chunk', ''),):
        if found:
            wanted = [id for id in wanted if id not in found]
        for start in range(0, len(wanted), limits.LOCATE_IDS_MAX):
            part = wanted[start : start + limits.LOCATE_IDS_MAX]
            marks = ','.join('?' * len(part))
            text = f'SELECT id, pack, offset, stored FROM {table} WHERE id IN ({marks}){rest}'
            for id, pack, offset, stored in db.execute(text, part):
                found[id] = Place(pack, offset, stored)
    return found


class Packs:
    """The packs of a store, as far as they stand: the file is there, is what it is called, and has the
    size that the catalog says, or more while it is open."""

    def __init__(self, store: Path, uuid: bytes, facts: Sequence[PackFact]) -> None:
        self._store = store
        self.uuid = uuid
        self._facts = {fact.pack: fact for fact in facts}
        self._odd: dict[int, str] = {}
        for fact in facts:
            why = self._look(fact, uuid)
            if why is not None:
                self._odd[fact.pack] = why

    @property
    def standing(self) -> int:
        """How many packs stand."""
        return len(self._facts) - len(self._odd)

    def _look(self, fact: PackFact, uuid: bytes) -> str | None:
        path = pack_file(self._store, fact)
        size = has_bytes(path)
        if size is None:
            return f'pack {path.name} is not on the disk'
        if size < fact.bytes or (fact.state != 'open' and size != fact.bytes):
            return f'pack {path.name} has {size} bytes, the catalog says {fact.bytes}'
        try:
            header = decode_pack_header(read_bytes(path, 0, PACK_HEADER_BYTES))
        except Corrupt as error:
            return f'pack {path.name}: {error}'
        if header != PackHeader(uuid, fact.name, RecordKind(fact.kind)):
            return f'pack {path.name} is another one inside'
        return None

    def oddity(self, place: Place) -> str | None:
        """Return why a record cannot be at a place, or None."""
        fact = self._facts.get(place.pack)
        if fact is None:
            return f'its pack {place.pack} is not in the catalog'
        if fact.pack in self._odd:
            return self._odd[fact.pack]
        if place.offset < PACK_HEADER_BYTES or place.offset + HEADER_BYTES + place.stored > fact.bytes:
            return f'offset {place.offset} of pack {fact.name.hex()} is not within its {fact.bytes} bytes'
        return None

    def odd_rows(self, db: sqlite3.Connection, low: bytes, high: bytes) -> list[tuple[bytes, str]]:
        """Return (id, why) of the rows of the index in a range whose place cannot be."""
        odd = ','.join(map(str, self._odd)) or 'NULL'
        text = (
            'SELECT id, chunk.pack, offset, stored FROM chunk LEFT JOIN pack ON pack.pack = chunk.pack '
            f'WHERE id >= ? AND id < ? AND (pack.pack IS NULL OR chunk.kind <> pack.kind OR offset < ? '
            f'OR offset + stored + ? > bytes OR chunk.pack IN ({odd}))'
        )
        rows = db.execute(text, (low, high, PACK_HEADER_BYTES, HEADER_BYTES))
        return [(row[0], self.oddity(Place(*row[1:])) or 'its pack is of another kind') for row in rows]

    def read(self, id: bytes, kind: int, place: Place) -> bytes:
        """Return the verified plain bytes of a chunk. Corrupt when another record stands there, or
        none."""
        return self._decode(
            id, kind, self._pread(place.pack, place.offset, HEADER_BYTES + place.stored), place
        )

    def read_many(self, places: Sequence[tuple[bytes, Place]], miss: Miss) -> Iterator[tuple[bytes, bytes]]:
        """Yield (id, plain bytes) of nodes, given in the order of packs; neighbours are read at once. What
        cannot be read is told to `miss`."""
        start = 0
        while start < len(places):
            end = self._run_end(places, start)
            first, last = places[start][1], places[end - 1][1]
            try:
                run = self._pread(
                    first.pack, first.offset, last.offset + HEADER_BYTES + last.stored - first.offset
                )
            except Corrupt:
                run = None  # one by one, to see which it is
            for id, place in places[start:end]:
                try:
                    if run is None:
                        plain = self.read(id, RecordKind.NODE, place)
                    else:
                        at = place.offset - first.offset
                        piece = run[at : at + HEADER_BYTES + place.stored]
                        plain = self._decode(id, RecordKind.NODE, piece, place)
                except Corrupt as error:
                    miss(id, f'pack {self._facts[place.pack].name.hex()}', str(error))
                    continue
                yield id, plain
            start = end

    def _run_end(self, places: Sequence[tuple[bytes, Place]], start: int) -> int:
        first = end = places[start][1]
        n = start + 1
        while n < len(places):
            place = places[n][1]
            far = place.offset + HEADER_BYTES + place.stored - first.offset > limits.READ_BYTES_MAX
            gap = place.offset - (end.offset + HEADER_BYTES + end.stored)
            if place.pack != first.pack or far or gap > limits.READ_GAP_BYTES_MAX:
                break
            end = place
            n += 1
        return n

    def _decode(self, id: bytes, kind: int, data: memoryview, place: Place) -> bytes:
        header = decode_header(data)
        if header.id != id or header.kind != kind or header.stored_length != place.stored:
            raise Corrupt(f'at offset {place.offset} stands another record, {header.id.hex()}')
        return decode_payload(header, data[HEADER_BYTES:])

    def _pread(self, pack: int, offset: int, count: int) -> memoryview:
        return read_bytes(pack_file(self._store, self._facts[pack]), offset, count)


class IndexPart:
    """The rows of `chunk` with low <= id < high, and which of them have been referred to."""

    def __init__(self, db: sqlite3.Connection, packs: Packs, low: bytes, high: bytes) -> None:
        self._db = db
        self._packs = packs
        self._bounds = (low, high)
        odd = packs.odd_rows(db, low, high)
        self._key = np.uint64(int.from_bytes(packs.uuid[:8], 'big') | 1)
        db.execute('BEGIN')
        text = 'SELECT {} FROM chunk WHERE id >= ? AND id < ?'
        self._numbers = np.empty(db.execute(text.format('count(*)'), (low, high)).fetchone()[0], np.uint64)
        cursor, filled = db.execute(text.format('id'), (low, high)), 0
        while rows := cursor.fetchmany(limits.MENTION_BLOCK_IDS):
            self._numbers[filled : filled + len(rows)] = self._number(
                as_ids(b''.join([id for (id,) in rows]))
            )
            filled += len(rows)
        db.execute('COMMIT')
        self._numbers.sort()
        self._seen = np.zeros(len(self._numbers), np.bool_)
        self._odd = dict(odd)
        self._odd_at = np.zeros(len(self._numbers) if odd else 0, np.bool_)
        if odd:
            self._odd_at[self._find(as_ids(b''.join(id for id, _ in odd)))[0]] = True

    @staticmethod
    def bounds(db: sqlite3.Connection) -> list[tuple[bytes, bytes]]:
        """Return the ranges that the index must be cut into, so that each fits into memory. Ids are
        hashes: equal ranges have about the same number of rows."""
        count = db.execute('SELECT count(*) FROM chunk').fetchone()[0]
        parts = 1
        while count > parts * limits.PROOF_INDEX_ROWS and parts < 256:
            parts += 1
        edges = [bytes([n * 256 // parts]) + bytes(_ID - 1) for n in range(parts)]
        return list(zip(edges, [*edges[1:], b'\xff' * (_ID + 1)], strict=True))

    def _find(self, ids: Ids) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
        """Return for each id where its row is, and whether that is certain."""
        numbers = self._number(ids)
        at = np.searchsorted(self._numbers, numbers)
        at = np.minimum(at, max(len(self._numbers) - 1, 0))
        if not len(self._numbers):
            return at, np.zeros(len(ids), np.bool_)
        return at, self._numbers[at] == numbers

    def _number(self, ids: Ids) -> npt.NDArray[np.uint64]:
        halves = np.ascontiguousarray(ids[:, :16]).view('>u8').reshape(-1, 2).astype(np.uint64)
        numbers: npt.NDArray[np.uint64] = halves[:, 0] ^ (halves[:, 1] * self._key)
        return numbers

    def check(self, ids: Ids, resting: bool) -> Iterator[tuple[int, bytes, str]]:
        """Yield (index, id, why) of those among `ids` that belong to this part and are not there."""
        low, high = self._bounds
        if low[0] or len(high) == _ID:
            top = 256 if len(high) > _ID else high[0]
            mine = np.flatnonzero((ids[:, 0] >= low[0]) & (ids[:, 0] < top))
        else:
            mine = np.arange(len(ids))
        at, sure = self._find(ids[mine])
        self._seen[at[sure]] = True
        bad = ~sure
        if self._odd:
            bad[sure] |= self._odd_at[at[sure]]
        wanted = mine[np.flatnonzero(bad)]
        if not len(wanted):
            return
        known = locate(self._db, np.unique(ids[wanted], axis=0), resting)
        for position in wanted.tolist():
            id = ids[position].tobytes()
            place = known.get(id)
            why = NO_ROW if place is None else self._packs.oddity(place)
            if why is None:
                why = self._odd.get(id)
            if why is not None:
                yield position, id, why

    def seen_count(self) -> int:
        """Return how many rows of this part have been referred to."""
        return int(self._seen.sum())

    def verify(self) -> Iterator[tuple[bytes, str]]:
        """Read every chunk of this part that was referred to; yield (id, why) of those that are not what
        they are called. In the order of packs, a block of rows at a time."""
        text = 'SELECT id, pack, offset, stored, kind FROM chunk WHERE id >= ? AND id < ? ORDER BY id'
        cursor = self._db.execute(text, self._bounds)
        while rows := cursor.fetchmany(limits.MENTION_BLOCK_IDS):
            at, sure = self._find(as_ids(b''.join([row[0] for row in rows])))
            wanted = sure & self._seen[at] if len(self._seen) else sure
            work = sorted((rows[n] for n in np.flatnonzero(wanted).tolist()), key=lambda row: row[1:3])
            for id, pack, offset, stored, kind in work:
                if id in self._odd:
                    continue
                try:
                    self._packs.read(id, kind, Place(pack, offset, stored))
                except Corrupt as error:
                    yield id, str(error)
