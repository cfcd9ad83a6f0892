"""L4 reader: rows of the index and bytes of packs, for jobs that only read, in a process of their own.
Blocking; one thread.

No read transaction outlives one function. Packs are opened as they are asked for and forgotten when there
are many: one that is gone is looked for again by its number."""

from __future__ import annotations

import os
import sqlite3
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from snapfs import limits
from snapfs.errors import Corrupt
from snapfs.format.ids import RecordKind
from snapfs.store import schema
from snapfs.store.durable import Disk
from snapfs.store.mirror import read_copy
from snapfs.store.packs import pack_path
from snapfs.store.readonly import copied_catalog, reading_uri, still_catalog

TABLES = ('chunk', 'quarantine')
_KINDS = frozenset(map(int, RecordKind))
_LISTED = 'SELECT pack, offset, stored, plain, kind, id FROM {table} WHERE id >= ? AND id < ?'
_PLACES = 'SELECT pack, offset, stored, plain, kind, id FROM {table} WHERE id = ?'


class Place(NamedTuple):
    """Where a chunk is. Ascends by place."""

    pack: int
    offset: int
    stored: int
    plain: int
    kind: int
    id: bytes


class Reader:
    """Reads a store that another process may own. `close` when done."""

    def __init__(self, store: Path, uuid: bytes, disk: Disk | None = None, still: bool = False) -> None:
        """Corrupt when the catalog is not one of this version. `still`: whoever wants it read has the store's
        lock, and changes nothing meanwhile. Nothing is made beside the catalog; of one that nobody has open
        the state at this moment is read."""
        self.store = store
        self.uuid = uuid
        self._disk = disk or Disk()
        self._files: dict[int, int] = {}
        self._packs: dict[int, tuple[int, bytes]] = {}
        path = store / 'catalog.sqlite'
        if not path.is_file() or path.is_symlink():
            raise Corrupt('catalog.sqlite is missing')
        # Where there is an index, somebody may have the store open; then it is there to be read, too.
        still = still or (self._disk.is_read_only(path) and not Path(f'{path}-shm').exists())
        self._still = still_catalog(path) if still else copied_catalog(path)
        try:
            self._db = sqlite3.connect(reading_uri(path, self._still), uri=True, isolation_level=None)
        except sqlite3.Error as error:
            # One that does not open is not proved to be damaged.
            closed = error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_CANTOPEN
            raise Corrupt(f'{path}: {error}' if closed else f'catalog: {error}') from error
        try:
            for pragma in ('trusted_schema = OFF', 'query_only = ON', 'temp_store = MEMORY'):
                self._db.execute(f'PRAGMA {pragma}')
            version = self._db.execute('PRAGMA user_version').fetchone()[0]
        except sqlite3.Error as error:
            self._db.close()
            raise Corrupt(f'catalog: {error}') from error
        if version != schema.SCHEMA_VERSION:
            self._db.close()
            raise Corrupt(f'catalog: schema version {version}; this program reads {schema.SCHEMA_VERSION}')

    def close(self) -> None:
        """Close everything."""
        for fd in self._files.values():
            self._disk.close(fd)
        self._db.close()
        if self._still is not None:
            self._still.close()

    # --- rows --------------------------------------------------------------------------------------------
    def query(self, text: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Return all rows of a SELECT. Corrupt for every error of SQLite."""
        try:
            return self._db.execute(text, values).fetchall()
        except sqlite3.Error as error:
            raise Corrupt(f'catalog: {error}') from error

    def setting(self, key: str) -> int:
        """Return a setting."""
        rows = self.query('SELECT value FROM settings WHERE key = ?', (key,))
        if not rows:
            raise Corrupt(f'catalog: setting {key} is missing')
        return int(rows[0][0])

    def listed(self, slots: Iterable[int]) -> tuple[int, list[Place]]:
        """Return the epoch, and the places of all chunks in these slots (by the first 12 bits of ids), in no
        order, as they were at that epoch."""
        self._db.execute('BEGIN')
        try:
            epoch = self.setting('epoch')
            found: list[Place] = []
            for low, high in _ranges(slots):
                for table in TABLES:
                    found += map(_place, self.query(_LISTED.format(table=table), (low, high)))
        finally:
            self._db.execute('COMMIT')
        return epoch, found

    def places_of(self, id: bytes) -> list[Place]:
        """Return where a chunk is now: in use, else in quarantine; nowhere when nobody has it."""
        for table in TABLES:
            found = self.query(_PLACES.format(table=table), (id,))
            if found:
                return list(map(_place, found))
        return []

    def places_of_many(self, ids: Iterable[bytes]) -> dict[bytes, Place]:
        """Return where each of these chunks is that the index has. Those that only quarantine has are not
        in it: whoever needs one must not take it for granted."""
        found: dict[bytes, Place] = {}
        wanted = list(ids)
        for start in range(0, len(wanted), limits.LOCATE_IDS_MAX):
            part = wanted[start : start + limits.LOCATE_IDS_MAX]
            marks = ','.join('?' * len(part))
            text = f'SELECT pack, offset, stored, plain, kind, id FROM chunk WHERE id IN ({marks})'
            found.update((row[5], _place(row)) for row in self.query(text, part))
        return found

    def pack_ends(self) -> dict[int, int]:
        """Return, by number, how many bytes each pack has on the disk that the catalog counts: 0 for one
        that is not there."""
        ends = {}
        for number, kind, name in self.query('SELECT pack, kind, name FROM pack'):
            if type(number) is not int or kind not in _KINDS or type(name) is not bytes:
                raise Corrupt('catalog: a pack that cannot be one')
            try:
                status = pack_path(self.store / 'packs', RecordKind(kind), name).lstat()
                ends[number] = status.st_size if stat.S_ISREG(status.st_mode) else 0
            except OSError:
                ends[number] = 0
        return ends

    # --- packs -------------------------------------------------------------------------------------------
    def name_of(self, pack: int) -> str:
        """Return what a pack is called."""
        kind, name = self._pack(pack)
        return f'pack {name.hex()}' if kind else f'pack number {pack}'

    def copy_of(self, place: Place) -> bytes | None:
        """Return a node's plain bytes from the second copy of its pack, verified; None: it has none."""
        _, name = self._pack(place.pack)
        return read_copy(self._disk, self.store, name, place.offset, place.stored, place.id)

    def _pack(self, number: int) -> tuple[int, bytes]:
        if number not in self._packs:
            rows = self.query('SELECT pack, kind, name FROM pack')
            if not all(kind in _KINDS and type(name) is bytes for _, kind, name in rows):
                raise Corrupt('catalog: a pack that cannot be one')
            self._packs = {pack: (kind, name) for pack, kind, name in rows}
        return self._packs.get(number, (0, b''))

    def read(self, pack: int, size: int, offset: int) -> bytes:
        """Return up to `size` bytes of a pack. Corrupt when it is not there; OSError."""
        fd = self._files.get(pack)
        if fd is None:
            kind, name = self._pack(pack)
            if not kind:
                raise Corrupt(f'there is no pack {pack}')
            try:
                fd = self._disk.open_read(pack_path(self.store / 'packs', RecordKind(kind), name))
            except FileNotFoundError:
                raise Corrupt(f'pack {name.hex()} is missing') from None
            if len(self._files) >= limits.PACK_FILES_OPEN_MAX:
                self._disk.close(self._files.pop(next(iter(self._files))))
            self._files[pack] = fd
        os.posix_fadvise(fd, offset, size, os.POSIX_FADV_NOREUSE)
        return bytes(self._disk.pread(fd, size, offset))


def _place(row: tuple[Any, ...]) -> Place:
    """Return a place from the catalog, such as a place can be: memory is spent by what it says."""
    pack, offset, stored, plain, kind, id = row
    good = type(pack) is type(offset) is type(stored) is type(plain) is int and kind in _KINDS
    good = good and type(id) is bytes and len(id) == limits.ID_BYTES
    if not (good and 0 <= offset < 1 << 62 and 0 <= stored <= limits.STORED_BYTES_MAX):
        raise Corrupt(f'catalog: a chunk at {offset!r:.40} with {stored!r:.40} bytes')
    return Place(*row)


def _ranges(slots: Iterable[int]) -> list[tuple[bytes, bytes]]:
    """Join neighbouring slots, and return (least id, what is above all ids) of each run."""
    runs: list[list[int]] = []
    for slot in sorted(slots):
        if runs and runs[-1][1] == slot:
            runs[-1][1] = slot + 1
        else:
            runs.append([slot, slot + 1])
    return [
        ((low << 4).to_bytes(2, 'big'), (high << 4).to_bytes(2, 'big') if high < 4096 else b'\xff' * 33)
        for low, high in runs
    ]
