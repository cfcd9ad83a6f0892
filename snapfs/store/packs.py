"""L2 packs: write-once files of records: append, seal, read, scan, recover. Blocking.

A PackWriter appends to the open pack of its kind, one thread at a time (its lock sees to it); readers may be
many. A pack goes through: *open* (records are appended), *sealed* (its footer is written; it never changes
again), and in the catalog later *retired*. What is durable is known per pack: `synced_bytes`. An open pack of
a cleanly closed store is continued; after an unclean stop recovery.py seals it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from snapfs import limits
from snapfs.errors import Corrupt, SnapfsError
from snapfs.format.packs import (
    PACK_HEADER_BYTES,
    PackEntry,
    PackHeader,
    decode_pack_header,
    encode_footer,
    encode_pack_header,
)
from snapfs.format.records import (
    HEADER_BYTES,
    RecordHeader,
    RecordKind,
    decode_header,
)
from snapfs.store.durable import Buffer, Disk
from snapfs.store.rows import PackRow
from snapfs.store.taken_away import put_back

FOLDERS = {RecordKind.DATA: 'data', RecordKind.NODE: 'meta'}
BYTES_MAX = {RecordKind.DATA: limits.PACK_DATA_BYTES_MAX, RecordKind.NODE: limits.PACK_META_BYTES_MAX}


def pack_path(root: Path, kind: int, name: bytes) -> Path:
    """Return the path of a pack under STORE/packs."""
    text = name.hex()
    return root / FOLDERS[RecordKind(kind)] / text[:2] / text


class PackFile:
    """An open pack to read from. Closed when the last user lets go of it, so that a full cache never pulls a
    descriptor away under a reader in another thread."""

    __slots__ = ('_disk', 'cold_end', 'fd', 'name')

    def __init__(self, disk: Disk, path: Path, name: bytes) -> None:
        self.fd = -1
        self._disk = disk
        self.name = name
        self.cold_end = -limits.READ_AHEAD_BYTES  # where the last read that had to wait ended
        self.fd = disk.open_read(path)

    def __del__(self) -> None:
        if self.fd >= 0:
            self._disk.close(self.fd)

    def pread_cold(self, count: int, offset: int) -> Buffer:
        """Read what the page cache does not have. When the last such read was near, what follows is asked for
        too:
        files are mostly read in the order they were written."""
        near = abs(offset - self.cold_end) <= limits.READ_AHEAD_BYTES
        self.cold_end = offset + count
        if near:
            self._disk.read_ahead(self.fd, offset, limits.READ_AHEAD_BYTES)
            self.cold_end = offset + limits.READ_AHEAD_BYTES
        return self._disk.pread(self.fd, count, offset)

    def check_header(self, store_uuid: bytes, kind: int) -> None:
        """Raise Corrupt unless the file is the pack it is called, of this store and kind."""
        found = decode_pack_header(self._disk.pread(self.fd, PACK_HEADER_BYTES, 0))
        if found != PackHeader(store_uuid, self.name, RecordKind(kind)):
            raise Corrupt(f'pack {self.name.hex()}: the header is that of pack {found.name.hex()}')


class PackNumbers:
    """Which pack has which number, of all packs that exist, and names and numbers for new ones. Any
    thread."""

    def __init__(
        self, rows: Sequence[PackRow], next_number: int, random_bytes: Callable[[int], bytes]
    ) -> None:
        self.packs = {row.pack: (row.name, row.kind) for row in rows}
        self.numbers = {row.name: row.pack for row in rows}
        self._next = next_number
        self._random_bytes = random_bytes
        self._lock = threading.Lock()

    def new(self, kind: int) -> tuple[int, bytes]:
        """Return number and name (128 random bits) of a new pack. Numbers that no commit has seen are used
        again after a crash: nothing durable names a pack by them."""
        return self.add(self._random_bytes(limits.PACK_NAME_BYTES), kind)

    def add(self, name: bytes, kind: int) -> tuple[int, bytes]:
        """Give a number to a pack found on disk that the catalog does not know."""
        assert name not in self.numbers
        with self._lock:
            number = self._next
            self._next += 1
            self.packs[number] = (name, kind)
            self.numbers[name] = number
        return number, name

    def remove(self, number: int) -> None:
        """Forget a pack that is gone, if it is known."""
        with self._lock:
            if number in self.packs:
                name, _ = self.packs.pop(number)
                del self.numbers[name]


@dataclass(slots=True)
class OpenPack:
    """A pack being written, or written and not yet synced. Lives in its PackWriter, under its lock."""

    number: int
    name: bytes
    kind: int
    path: Path
    fd: int
    bytes: int
    records: int
    synced_bytes: int
    synced_records: int
    entries: list[PackEntry] | None  # None: a continued pack, whose first entries are only in the file
    named: bool  # the directory entry is durable
    reach: int = 0  # a write that failed may have left bytes up to here; more than `bytes`: a dirty tail
    sealed: bool = False  # the footer is written

    def durable_row(self) -> PackRow:
        """Return the catalog row: what of this pack is durable."""
        state = 'sealed' if self.sealed and self.synced_bytes == self.bytes else 'open'
        return PackRow(self.number, self.name, self.kind, state, self.synced_bytes, self.synced_records)


class PackWriter:
    """Appends records of one kind. Any thread; one at a time gets in, and nobody waits for a sync inside."""

    def __init__(
        self,
        disk: Disk,
        root: Path,
        kind: RecordKind,
        store_uuid: bytes,
        numbers: PackNumbers,
        on_put_back: Callable[[int], None] = lambda number: None,
    ) -> None:
        self._disk = disk
        self._on_put_back = on_put_back
        self._root = root
        self._kind = kind
        self._uuid = store_uuid
        self._numbers = numbers
        self._lock = threading.Lock()
        self._open: OpenPack | None = None
        self._written: list[OpenPack] = []  # sealed, not yet synced
        self._folders: set[Path] = set()  # made, and their names not yet durable
        self.bytes_max = BYTES_MAX[kind]

    def resume(self, row: PackRow) -> bool:
        """Continue a cleanly closed open pack; False when the file is not as the row says: recovery must look
        at it."""
        path = pack_path(self._root, row.kind, row.name)
        expected = PackHeader(self._uuid, row.name, self._kind)
        try:
            fd = self._disk.open_write(path, create=False)
        except (FileNotFoundError, Corrupt):
            return False
        try:
            fits = self._open is None and self._disk.size(fd) == row.bytes >= PACK_HEADER_BYTES
            fits = fits and decode_pack_header(self._disk.pread(fd, PACK_HEADER_BYTES, 0)) == expected
        except Corrupt:
            fits = False
        if not fits:
            self._disk.close(fd)
            return False
        sizes = (row.bytes, row.records, row.bytes, row.records)
        self._open = OpenPack(row.pack, row.name, row.kind, path, fd, *sizes, entries=None, named=True)
        return True

    def append(self, records: Sequence[tuple[bytes, Buffer]]) -> Iterator[tuple[int, list[PackEntry]]]:
        """Append encoded records (header, payload); yield (pack number, entries) for each run that went into
        one pack, as soon as it is written. One write per run.

        Refused(ENOSPC) loses nothing: the runs yielded stand, the rest is as if never given, and the next
        append goes over what was written of it.
        """
        start = 0
        while start < len(records):
            with self._lock:
                pack = self._room(HEADER_BYTES + len(records[start][1]))
                entries, buffers, end = self._fit(pack, records, start)
                pack.reach = max(pack.reach, end)
                self._disk.pwrite(pack.fd, buffers, pack.bytes)
                pack.bytes = end
                pack.records += len(entries)
                if pack.entries is not None:
                    pack.entries += entries
            yield pack.number, entries
            start += len(entries)

    def _fit(
        self, pack: OpenPack, records: Sequence[tuple[bytes, Buffer]], start: int
    ) -> tuple[list[PackEntry], list[Buffer], int]:
        """Return entries and buffers of the records from `start` on that fit (at least one does), and where
        they end."""
        entries: list[PackEntry] = []
        buffers: list[Buffer] = []
        offset = pack.bytes
        slots = limits.PACK_RECORDS_FULL - pack.records
        for header_bytes, payload in records[start : start + slots]:
            end = offset + HEADER_BYTES + len(payload)
            if end > self.bytes_max and entries:
                break
            header = decode_header(header_bytes)
            assert header.kind == self._kind
            assert header.stored_length == len(payload)
            entries.append(
                PackEntry(header.id, offset, header.stored_length, header.plain_length, header.codec)
            )
            buffers += (header_bytes, payload)
            offset = end
        return entries, buffers, offset

    def _room(self, size: int) -> OpenPack:
        """Return the open pack, after sealing it and beginning another when `size` bytes do not fit."""
        pack = self._open
        if pack is not None and (
            pack.bytes + size > self.bytes_max or pack.records >= limits.PACK_RECORDS_FULL
        ):
            self._seal(pack)
            self._written.append(pack)
            self._open = pack = None
            self._write_out()
        if pack is None:
            self._open = pack = self._create()
        return pack

    def seal(self, number: int) -> None:
        """End the open pack, if it is the one with this number; the next record begins another. The
        catalog learns of it at the next commit."""
        with self._lock:
            pack = self._open
            if pack is not None and pack.number == number and pack.records:
                self._seal(pack)
                self._written.append(pack)
                self._open = None

    def put_back(self) -> int:
        """Give packs that are open here their files again where somebody has taken these away; return how
        many. Refused(ENOSPC), Corrupt: their bytes are kept as long as they are open."""
        count = 0
        with self._lock:
            for pack in (*self._written, *([self._open] if self._open else [])):
                if put_back(self._disk, pack.fd, pack.bytes, pack.path):
                    fd = self._disk.open_write(pack.path, create=False)
                    self._disk.close(pack.fd)
                    pack.fd, pack.named, pack.reach = fd, True, pack.bytes
                    self._on_put_back(pack.number)
                    count += 1
        return count

    def _create(self) -> OpenPack:
        number, name = self._numbers.new(self._kind)
        path = pack_path(self._root, self._kind, name)
        if not self._disk.exists(path.parent):
            self._disk.mkdir(path.parent)
            self._folders.add(path.parent)
        fd = self._disk.open_write(path, create=True)
        try:
            self._disk.pwrite(fd, [encode_pack_header(PackHeader(self._uuid, name, self._kind))], 0)
        except SnapfsError:
            self._disk.close(fd)
            if self._disk.latched is None:
                self._disk.unlink(path)  # nothing names it, and it would make recovery wonder
            raise
        return OpenPack(
            number, name, self._kind, path, fd, PACK_HEADER_BYTES, 0, 0, 0, entries=[], named=False
        )

    def _seal(self, pack: OpenPack) -> None:
        """Write the footer. Not synced: that happens in `sync`, before anything says that the pack is
        sealed."""
        if pack.entries is None:
            pack.entries = [
                PackEntry(header.id, offset, header.stored_length, header.plain_length, header.codec)
                for offset, header in scan_records(self._disk, pack.fd, pack.bytes)
            ]
            if len(pack.entries) != pack.records:
                raise Corrupt(f'pack {pack.name.hex()}: {len(pack.entries)} records, {pack.records} expected')
        if pack.reach > pack.bytes:
            self._disk.truncate(pack.fd, pack.bytes)
        footer = encode_footer(pack.entries, pack.bytes, pack.name)
        pack.reach = pack.bytes + len(footer)
        self._disk.pwrite(pack.fd, [footer], pack.bytes)
        pack.bytes += len(footer)
        pack.entries = []  # they are in the footer from here on
        pack.sealed = True

    def _write_out(self) -> None:
        """Bring full packs of data to disk as they come, and let go of their pages.

        The kernel has the same bytes as pages of the mounted files, so a second copy only takes memory; and a
        sync waits for no more than about two packs. Nodes stay: the tree reads them again.
        """
        if self._kind == RecordKind.DATA:
            for pack in self._written[-2:]:  # the second call for a pack finds it on disk
                self._disk.write_out(pack.fd)

    def sync(self) -> list[PackRow]:
        """Make all bytes appended so far durable, names of new packs included; return the rows of the packs
        concerned. One caller at a time. Latched when it fails."""
        with self._lock:
            packs = [*self._written, *([self._open] if self._open else [])]
            work = [
                (pack, pack.bytes, pack.records, pack.sealed)
                for pack in packs
                if pack.synced_bytes < pack.bytes or not pack.named
            ]
            folders = list(self._folders)
        if work:
            self.put_back()  # what is synced must be found by its name
        for pack, _, _, _ in work:
            self._disk.sync_data(pack.fd)
        for folder in dict.fromkeys(pack.path.parent for pack, _, _, _ in work if not pack.named):
            self._disk.sync_directory(folder)
        if folders:
            self._disk.sync_directory(self._root / FOLDERS[self._kind])
        rows = []
        with self._lock:
            self._folders.difference_update(folders)
            for pack, size, records, sealed in work:
                pack.named = True
                pack.synced_bytes, pack.synced_records = size, records
                rows.append(pack.durable_row())
                if sealed:
                    self._written.remove(pack)
                    if self._kind == RecordKind.DATA:
                        self._disk.write_out(pack.fd)
                    self._disk.close(pack.fd)
        return rows

    def numbers(self) -> frozenset[int]:
        """Return the packs that it has open: what is written there next may be ours."""
        with self._lock:
            return frozenset(pack.number for pack in (*self._written, *([self._open] if self._open else [])))

    def close(self) -> None:
        """Close the descriptors. A dirty tail is cut off, so that the pack can be continued. Syncs
        nothing."""
        with self._lock:
            packs = [*self._written, *([self._open] if self._open else [])]
            self._written.clear()
            self._open = None
            for pack in packs:
                try:
                    if pack.reach > pack.bytes and self._disk.latched is None:
                        self._disk.truncate(pack.fd, pack.bytes)
                finally:
                    self._disk.close(pack.fd)


class Window:
    """Reads a file front to back in large pieces and hands out small ones."""

    def __init__(self, disk: Disk, fd: int, end: int) -> None:
        self._disk = disk
        self._fd = fd
        self._end = end
        self._data = memoryview(b'')
        self._start = 0

    def take(self, offset: int, count: int) -> memoryview:
        """Return up to `count` bytes at `offset`, fewer only at the end. Corrupt on an I/O error."""
        if not self._start <= offset or offset + count > self._start + len(self._data):
            size = min(max(count, limits.SCAN_WINDOW_BYTES), self._end - offset)
            try:
                self._data = memoryview(self._disk.pread(self._fd, size, offset) if size > 0 else b'')
            except Corrupt:  # a bad sector, perhaps behind what is asked for
                self._data = memoryview(self._disk.pread(self._fd, min(count, size), offset))
            self._start = offset
        return self._data[offset - self._start : offset - self._start + count]


def scan_records(disk: Disk, fd: int, end: int) -> Iterator[tuple[int, RecordHeader]]:
    """Yield (offset, header) of the records of a pack that end at `end`. Corrupt, naming the offset, at the
    first that does not fit. Payloads are not looked at."""
    window = Window(disk, fd, end)
    offset = PACK_HEADER_BYTES
    while offset < end:
        try:
            header = decode_header(window.take(offset, HEADER_BYTES))
        except Corrupt as error:
            raise Corrupt(f'offset {offset}: {error}') from error
        after = offset + HEADER_BYTES + header.stored_length
        if after > end:
            raise Corrupt(f'offset {offset}: the record ends at {after}, after the last byte at {end}')
        yield offset, header
        offset = after
