"""Tool: a store opened for looking only: no lock, no byte changed, also while a daemon has it. One thread.

The disk is latched before anything else, so that every write below raises. SQLite gets the catalog in one of
three ways, because even `mode=ro` makes or changes files beside a database in WAL mode: with a `-shm` file it
is told to take that read-only; with a WAL but no `-shm` (a copied store) it reads a temporary copy; without
a WAL the file cannot change under us and is `immutable`.
"""

from __future__ import annotations

import shutil
import sqlite3
import stat
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from snapfs import limits
from snapfs.errors import Corrupt, Invalid
from snapfs.format.journal import JOURNAL_HEADER_BYTES, NewChunk, decode_journal_header, scan_frames
from snapfs.format.nodes import Branch, Leaf, decode_node
from snapfs.format.packs import PACK_HEADER_BYTES, TRAILER_BYTES, footer_offset
from snapfs.format.records import HEADER_BYTES, RecordHeader, RecordKind, decode_header, decode_payload
from snapfs.format.superblock import SUPERBLOCK_BYTES, Superblock, decode_superblock
from snapfs.store import schema
from snapfs.store.durable import Disk
from snapfs.store.packs import FOLDERS, pack_path, scan_records
from tools.dump.report import Report

CHUNK_TABLES = ('chunk', 'quarantine', 'freed')
MATCHES_MAX = 100


class Place(NamedTuple):
    """Where a chunk is: `source` is the table that says so, 'journal' or 'pack'; epoch -1 outside tables."""

    source: str
    id: bytes
    kind: int
    pack_name: bytes
    offset: int
    stored: int
    plain: int
    codec: int
    epoch: int


class Source:
    """The parts of a store, each read when it is asked for."""

    def __init__(self, path: Path, report: Report) -> None:
        if not path.is_dir():
            raise Invalid(f'{path} is not a directory')
        self.path = path.resolve()
        self.report = report
        self.disk = Disk()
        self.disk.latch('a tool that only looks')
        self.superblock: Superblock | None = None
        self._db: sqlite3.Connection | None = None
        self._copy: tempfile.TemporaryDirectory[str] | None = None
        self._packs: dict[int, tuple[int, bytes]] | None = None
        self._journal: list[NewChunk] | None = None
        with report.guard('superblock'):
            raw = self.disk.read_file(self.path / 'superblock', SUPERBLOCK_BYTES)
            self.superblock = decode_superblock(raw)

    def close(self) -> None:
        """Close the catalog and remove the copy, if one was needed."""
        if self._db is not None:
            self._db.close()
        if self._copy is not None:
            self._copy.cleanup()

    # --- files -------------------------------------------------------------------------------------------
    @contextmanager
    def opened(self, path: Path) -> Iterator[tuple[int, int]]:
        """Open a regular file, no link, and yield (descriptor, size in bytes)."""
        fd = self.disk.open_read(path)
        try:
            yield fd, self.disk.size(fd)
        finally:
            self.disk.close(fd)

    def read(self, path: Path, bytes_max: int) -> bytes:
        """Return a whole file. Corrupt when it is longer than `bytes_max`."""
        with self.opened(path) as (fd, size):
            if size > bytes_max:
                raise Corrupt(f'{path.name} has {size} bytes, limit {bytes_max}')
            return bytes(self.disk.pread(fd, size, 0))

    def pack_names(self) -> list[tuple[RecordKind, bytes]]:
        """Return (kind, name) of every pack on disk, sorted. What is in the wrong place is an oddity."""
        found = []
        for kind, folder in FOLDERS.items():
            top = self.path / 'packs' / folder
            for short in self.disk.listdir(top):
                with self.report.guard(f'packs/{folder}/{short}'):
                    for text in self.disk.listdir(top / short):
                        name = _pack_name(text)
                        if name is None or text[:2] != short:
                            self.report.oddity(
                                f'packs/{folder}/{short}', f'{text!r} is no pack of this place'
                            )
                        else:
                            found.append((kind, name))
        return found

    # --- the catalog -------------------------------------------------------------------------------------
    def query(self, text: str, values: Sequence[Any] = ()) -> Iterator[tuple[Any, ...]]:
        """Yield rows of the catalog. Corrupt or sqlite3.Error when it cannot be read."""
        if self._db is None:
            self._db = self._connect()
        yield from self._db.execute(text, values)

    def _connect(self) -> sqlite3.Connection:
        path = self.path / 'catalog.sqlite'
        there = {suffix: _regular_bytes(Path(f'{path}{suffix}')) for suffix in ('', '-wal', '-shm')}
        if there[''] is None:
            raise Corrupt('catalog.sqlite is not there')
        options = 'immutable=1'
        if there['-shm'] is not None:
            options = 'readonly_shm=1'
        elif there['-wal']:
            self._copy = tempfile.TemporaryDirectory(prefix='snapfs-dump-')
            for suffix in ('', '-wal'):
                shutil.copyfile(f'{path}{suffix}', f'{self._copy.name}/catalog.sqlite{suffix}')
            path, options = Path(self._copy.name) / 'catalog.sqlite', 'cache=private'
        db = sqlite3.connect(f'file:{quote(str(path))}?mode=ro&{options}', uri=True, isolation_level=None)
        db.text_factory = lambda raw: raw.decode('utf-8', 'backslashreplace')
        for pragma in (
            'trusted_schema = OFF',
            'cell_size_check = ON',
            'temp_store = MEMORY',
            'query_only = ON',
        ):
            db.execute(f'PRAGMA {pragma}')
        # Only real tables under our names: a view that somebody slipped in would run for ever if it liked.
        found = dict(db.execute("SELECT name, sql FROM sqlite_schema WHERE type = 'table'"))
        wrong = [
            name for name, text in schema.TABLES.items() if (found.get(name) or '').strip() != text.strip()
        ]
        for name in sorted(wrong):
            self.report.oddity('catalog', f'table {name} is missing or not the one of this version')
        if wrong:
            db.close()
            raise Corrupt('catalog: not the tables of a snapfs store')
        return db

    def settings(self) -> dict[str, int]:
        """Return the table `settings`."""
        return dict(self.query('SELECT key, value FROM settings'))

    def packs(self) -> dict[int, tuple[int, bytes]]:
        """Return pack number -> (kind, name), as the catalog has it."""
        if self._packs is None:
            self._packs = {number: (kind, name) for number, kind, name in self.query(_PACKS)}
        return self._packs

    # --- chunks ------------------------------------------------------------------------------------------
    def journal_chunks(self) -> list[NewChunk]:
        """Return the chunks that the journal's frames name, of both files, as far as they can be read."""
        if self._journal is None:
            self._journal = []
            for number in (0, 1):
                with self.report.guard(f'journal/{number}'):
                    data = self.read(self.path / 'journal' / str(number), limits.JOURNAL_BYTES)
                    head = decode_journal_header(data)
                    for placed in scan_frames(
                        data, head.store_uuid, JOURNAL_HEADER_BYTES, head.first_sequence
                    ):
                        self._journal += placed.frame.chunks
        return self._journal

    def places(self, prefix: str, scan: bool = False) -> list[Place]:
        """Return every place of the chunks whose id begins with these hexadecimal digits, at most
        MATCHES_MAX: by the catalog; else by the journal; else, with `scan`, by the records of all packs."""
        low = bytes.fromhex(prefix.ljust(2 * limits.ID_BYTES, '0'))
        high = bytes.fromhex(prefix.ljust(2 * limits.ID_BYTES, 'f'))
        found: list[Place] = []
        with self.report.guard('catalog'):
            for table in CHUNK_TABLES:
                text = _CHUNKS.format(table=table)
                for id, kind, pack, offset, stored, plain, codec, epoch in self.query(text, (low, high)):
                    name = self.packs().get(pack, (0, b''))[1]
                    found.append(Place(table, id, kind, name, offset, stored, plain, codec, epoch))
        if found:
            return found
        named = {one for one in self.journal_chunks() if low <= one.id <= high}
        found = [
            Place('journal', one.id, one.kind, one.pack_name, *one[3:], epoch=-1) for one in sorted(named)
        ]
        if not found and scan:
            found = list(self._scanned(low, high))
        return found[:MATCHES_MAX]

    def _scanned(self, low: bytes, high: bytes) -> Iterator[Place]:
        for kind, name in self.pack_names():
            with (
                self.report.guard(f'pack {name.hex()}'),
                self.opened(self.pack_file(kind, name)) as (fd, size),
            ):
                for offset, head in records(self.disk, fd, size):
                    if low <= head.id <= high:
                        lengths = (head.stored_length, head.plain_length, int(head.codec))
                        yield Place('pack', head.id, kind, name, offset, *lengths, epoch=-1)

    def pack_file(self, kind: int, name: bytes) -> Path:
        """Return the path of a pack. Corrupt when kind or name cannot be."""
        if kind not in (RecordKind.DATA, RecordKind.NODE) or len(name) != limits.PACK_NAME_BYTES:
            raise Corrupt(f'a pack of kind {kind} with the name {name.hex() or "-"}')
        return pack_path(self.path / 'packs', kind, name)

    def record(self, place: Place) -> tuple[RecordHeader, bytes]:
        """Return the header of a chunk's record and its payload, as stored. Corrupt unless the header names
        this chunk."""
        if not PACK_HEADER_BYTES <= place.offset < 1 << 40:
            raise Corrupt(f'a record at offset {place.offset}')
        with self.opened(self.pack_file(place.kind, place.pack_name)) as (fd, _):
            header = decode_header(self.disk.pread(fd, HEADER_BYTES, place.offset))
            if (header.id, header.kind) != (place.id, place.kind):
                raise Corrupt(f'at offset {place.offset} stands a record of {header.id.hex()}')
            payload = self.disk.pread(
                fd, min(header.stored_length, limits.STORED_BYTES_MAX), place.offset + HEADER_BYTES
            )
        return header, bytes(payload)

    def plain(self, id: bytes) -> bytes:
        """Return the verified plain bytes of a chunk, from the first place that has them, or Corrupt."""
        places = self.places(id.hex())
        if not places:
            raise Corrupt(f'chunk {id.hex()} is nowhere')
        for place in places[:-1]:
            with self.report.guard(f'chunk {id.hex()}'):
                return decode_payload(*self.record(place))
        return decode_payload(*self.record(places[-1]))

    def node(self, id: bytes) -> Leaf | Branch:
        """Return the decoded node. Corrupt when it is missing or malformed."""
        return decode_node(self.plain(id))


_PACKS = 'SELECT pack, kind, name FROM pack ORDER BY pack'
_CHUNKS = (
    'SELECT id, kind, pack, offset, stored, plain, codec, epoch FROM {table} '
    f'WHERE id BETWEEN ? AND ? ORDER BY id LIMIT {MATCHES_MAX}'
)


def records(disk: Disk, fd: int, size: int) -> Iterator[tuple[int, RecordHeader]]:
    """Yield (offset, header) of a pack's records: up to its footer, or to the end of a file without one."""
    end = records_end(disk, fd, size)
    yield from scan_records(disk, fd, end)


def records_end(disk: Disk, fd: int, size: int) -> int:
    """Return where the records of a pack end: at the footer, or at the end of the file when there is none."""
    try:
        return footer_offset(disk.pread(fd, TRAILER_BYTES, max(0, size - TRAILER_BYTES)), size)
    except Corrupt:
        return size


def _regular_bytes(path: Path) -> int | None:
    """Return the size of a regular file, None when there is none. Corrupt for anything else: SQLite would
    follow a link."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(status.st_mode):
        raise Corrupt(f'{path.name} is not a regular file')
    return status.st_size


def _pack_name(text: str) -> bytes | None:
    if len(text) != 2 * limits.PACK_NAME_BYTES or set(text) - set('0123456789abcdef'):
        return None
    return bytes.fromhex(text)
