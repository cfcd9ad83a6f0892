"""L4 reading: the collector's own read-only way into a store: rows and node records. Blocking; one thread.

It opens the catalog with mode=ro and packs for reading, takes no lock and goes through no cache, so that a
worker process beside the daemon can use it. Nothing it reads is believed before it is checked: a record must
stand where the index says, be a node, and have the id it is called by. Whatever is missing, unreadable or odd
is Corrupt (P10).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from snapfs import limits
from snapfs.collect.idsets import Ids, Numbers, to_bytes
from snapfs.errors import Corrupt
from snapfs.format.packs import PACK_HEADER_BYTES, PackHeader, decode_pack_header
from snapfs.format.records import HEADER_BYTES, RecordKind, decode_header, decode_payload
from snapfs.format.superblock import SUPERBLOCK_BYTES, decode_superblock
from snapfs.store import schema
from snapfs.store.durable import Disk
from snapfs.store.packs import pack_path
from snapfs.store.readonly import reading_uri, still_catalog
from snapfs.store.rows import PackRow, pack_row

TABLES = ('chunk', 'quarantine', 'freed')
# Positions in a row of `Places`.
PACK, OFFSET, STORED, PLAIN, KIND = range(5)
_LOCATE = """
WITH RECURSIVE wanted(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM wanted WHERE i + 1 < ?2)
SELECT group_concat(
  i || ' ' || pack || ' ' || offset || ' ' || stored || ' ' || plain || ' ' || found.kind, ' ')
FROM wanted CROSS JOIN {table} AS found ON found.id = substr(?1, 32 * i + 1, 32)
"""
_STATEMENTS = {table: _LOCATE.format(table=table) for table in TABLES}


@dataclass(frozen=True, slots=True)
class Places:
    """Where chunks are: a row of `numbers` per id (pack, offset, stored, plain, kind); pack -1: nowhere."""

    numbers: Numbers

    @property
    def missing(self) -> NDArray[np.intp]:
        """Return the positions of those that were not found."""
        return np.flatnonzero(self.numbers[:, PACK] < 0)


class StoreReader:
    """Reads one store. Use as a context manager. `disk` lets a test inject faults into the reads of packs."""

    def __init__(self, store: Path, uuid: bytes, disk: Disk | None = None) -> None:
        self.store = store
        self._uuid = uuid
        self._disk = disk if disk is not None else Disk()
        self._fd = -1
        self._open: int | None = None
        self._packs: dict[int, PackRow] = {}
        self.read_bytes = 0
        self._check_superblock()
        path = store / 'catalog.sqlite'
        # Where nothing can be written SQLite cannot make its index, and whoever asks has the store's lock.
        self._still = still_catalog(path) if self._disk.is_read_only(path) else None
        uri = reading_uri(path, self._still)
        try:
            self._db = sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False)
            self._db.execute('PRAGMA trusted_schema = OFF')
            self._db.execute('PRAGMA cell_size_check = ON')
            self._db.execute(f'PRAGMA cache_size = -{limits.CATALOG_CACHE_BYTES // limits.KIB}')
            version = self._db.execute('PRAGMA user_version').fetchone()[0]
        except sqlite3.Error as error:
            raise Corrupt(f'{path}: {error}') from error
        if version != schema.SCHEMA_VERSION:
            self._db.close()
            raise Corrupt(f'{path}: schema version {version}; this program reads {schema.SCHEMA_VERSION}')

    def _check_superblock(self) -> None:
        try:
            block = decode_superblock(self._disk.read_file(self.store / 'superblock', SUPERBLOCK_BYTES))
        except FileNotFoundError:
            raise Corrupt(f'{self.store} is no snapfs store') from None
        if block.uuid != self._uuid:
            raise Corrupt(f'{self.store} is another store than the one asked about')

    def __enter__(self) -> StoreReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the catalog and of the pack that is open."""
        self._close_pack()
        self._db.close()
        if self._still is not None:
            self._still.close()

    # --- the catalog -------------------------------------------------------------------------------------
    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All queries inside see one state of the catalog. Keep it short: it delays checkpoints."""
        self.query('BEGIN')
        try:
            yield
        finally:
            self.query('ROLLBACK')

    def query(self, text: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Return all rows of one statement. Corrupt."""
        try:
            return self._db.execute(text, values).fetchall()
        except sqlite3.Error as error:
            raise Corrupt(f'catalog: {error}') from error

    def rows(self, text: str, values: Sequence[Any] = ()) -> Iterator[list[tuple[Any, ...]]]:
        """Yield the rows of one statement, some thousands at a time. Corrupt."""
        try:
            cursor = self._db.execute(text, values)
            while part := cursor.fetchmany(limits.COLLECT_ROWS):
                yield part
        except sqlite3.Error as error:
            raise Corrupt(f'catalog: {error}') from error

    def locate(self, ids: Ids, table: str = 'chunk') -> Places:
        """Return where chunks are, by one table. Sorted ids are found faster."""
        numbers = np.full((len(ids), 5), -1, dtype=np.int64)
        for start in range(0, len(ids), limits.LOCATE_IDS_MAX):
            part = ids[start : start + limits.LOCATE_IDS_MAX]
            answer = self.query(_STATEMENTS[table], (to_bytes(part), len(part)))[0][0]
            if answer is not None:
                found = np.fromstring(answer, dtype=np.int64, sep=' ').reshape(-1, 6)
                numbers[start + found[:, 0]] = found[:, 1:]
        return Places(numbers)

    def locate_either(self, ids: Ids) -> Places:
        """Return where chunks are: in `chunk`, else in quarantine."""
        places = self.locate(ids)
        missing = places.missing
        if len(missing):
            places.numbers[missing] = self.locate(ids[missing], 'quarantine').numbers
        return places

    # --- packs -------------------------------------------------------------------------------------------
    def nodes(self, ids: Ids, places: Places) -> Iterator[tuple[int, bytes]]:
        """Yield (position in `ids`, plain bytes) of every node, in the order in which they lie in packs.

        Each is verified: where it stands, that it is a node, its id. Corrupt at the first that is not so.
        """
        numbers = places.numbers
        order = np.lexsort((numbers[:, OFFSET], numbers[:, PACK]))
        rows = numbers[order]
        ends = rows[:, OFFSET] + HEADER_BYTES + rows[:, STORED]
        start = 0
        while start < len(order):
            end = self._run_end(rows, ends, start)
            yield from self._read_run(ids, order[start:end], rows[start:end], int(ends[start:end].max()))
            start = end

    def _run_end(self, rows: Numbers, ends: Numbers, start: int) -> int:
        """Return the end of the run of neighbours that begins at `start`: one read gets them all."""
        pack, first = rows[start, PACK], rows[start, OFFSET]
        last = start + limits.COLLECT_RUN_RECORDS
        window, till = rows[start + 1 : last], ends[start:last]
        stop = (window[:, PACK] != pack) | (till[1:] - first > limits.READ_BYTES_MAX)
        stop |= window[:, OFFSET] - till[:-1] > limits.COLLECT_GAP_BYTES_MAX
        at = int(np.argmax(stop)) if len(stop) else 0
        return start + 1 + (at if len(stop) and stop[at] else len(window))

    def _read_run(
        self, ids: Ids, order: NDArray[np.intp], rows: Numbers, end: int
    ) -> Iterator[tuple[int, bytes]]:
        start = int(rows[0, OFFSET])
        name = self._use_pack(int(rows[0, PACK]), end)
        data = memoryview(self._disk.pread(self._fd, end - start, start))
        self.read_bytes += len(data)
        names = to_bytes(ids[order])
        for n, (position, (_, offset, stored, plain, kind)) in enumerate(
            zip(order.tolist(), rows.tolist(), strict=True)
        ):
            id = names[n * limits.ID_BYTES : (n + 1) * limits.ID_BYTES]
            at = offset - start
            try:
                header = decode_header(data[at : at + HEADER_BYTES])
                if header.id != id:
                    raise Corrupt(f'another record stands there: {header.id.hex()}')
                if kind != RecordKind.NODE or header.kind != RecordKind.NODE:
                    raise Corrupt('it is not a node')
                if header.stored_length != stored or header.plain_length != plain:
                    raise Corrupt('its lengths are not those of the index')
                payload = data[at + HEADER_BYTES : at + HEADER_BYTES + stored]
                yield position, decode_payload(header, payload)
            except Corrupt as error:
                raise Corrupt(f'node {id.hex()} in pack {name} at offset {offset}: {error}') from error

    def _use_pack(self, number: int, end: int) -> str:
        """Open the pack, checked; `end` must be within its durable bytes. Return its name."""
        row = self._packs.get(number)
        if row is None or (row.state == 'open' and row.bytes < end):
            rows = self.query('SELECT pack, name, kind, state, bytes, records FROM pack')
            self._packs = {found[0]: pack_row(found) for found in rows}
            row = self._packs.get(number)
        if row is None:
            raise Corrupt(f'the index names pack {number}, which is not in the catalog')
        name = row.name.hex()
        if row.kind != RecordKind.NODE:
            raise Corrupt(f'pack {name}: a node is said to be in a pack of data')
        if end > row.bytes:
            raise Corrupt(f'pack {name}: a record is said to end at {end}, after {row.bytes} durable bytes')
        if self._open != number:
            self._close_pack()
            path = pack_path(self.store / 'packs', row.kind, row.name)
            try:
                self._fd = self._disk.open_read(path)
            except FileNotFoundError:
                raise Corrupt(f'pack {name} is missing') from None
            self._open = number
            header = decode_pack_header(self._disk.pread(self._fd, PACK_HEADER_BYTES, 0))
            if header != PackHeader(self._uuid, row.name, RecordKind(row.kind)):
                raise Corrupt(f'pack {name}: the header is that of another pack')
        return name

    def _close_pack(self) -> None:
        if self._fd >= 0:
            self._disk.close(self._fd)
        self._fd, self._open = -1, None
