"""Tool fsck, packs: every pack file by itself, and every record in it. Plain functions for worker
processes; each looks at one pack.

Of a data pack a quick check looks at header, footer and size, a full one reads and hashes every record. Meta
packs are always read whole: their nodes are what everything else is told by."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from snapfs import limits
from snapfs.errors import Corrupt
from snapfs.format.codec import Codec
from snapfs.format.ids import chunk_id
from snapfs.format.packs import (
    PACK_HEADER_BYTES,
    TRAILER_BYTES,
    PackEntry,
    decode_footer,
    decode_pack_header,
    footer_index,
    footer_offset,
)
from snapfs.format.records import HEADER_BYTES, RecordHeader, RecordKind, decode_header, decode_payload
from tools.checker.badrows import BadRows, BadWriter
from tools.checker.leaves import LeafFacts
from tools.checker.nodes import Nodes, NodeTable
from tools.checker.spill import RECORDS, Spill, words
from tools.checker.store import FOLDERS, Pack, Store, is_ours, read_at
from tools.checker.sums import Sums

META = 2
# An entry of a footer, as snapfs.format.packs describes it.
ENTRIES = np.dtype([('id', 'V32'), ('offset', '>u8'), ('stored', '>u4'), ('plain', '>u4'), ('codec', 'u1')])
WINDOW_BYTES = 4 * limits.MIB
BLOCK_BYTES = 4 * limits.KIB
BLOCKS_TRIED_MAX = 64  # that fail: a disk that answers none takes seconds for each
NO_ROOM = {errno.ENOSPC, errno.EDQUOT}  # for our own files
NO_PACK = {errno.ELOOP, errno.ENOTDIR, errno.ENXIO}  # something else is in its place


@dataclass(slots=True)
class PackResult:
    """What one pack showed. `bad`: records that cannot be read; `dark`: (from, to) bytes that the disk does
    not give; `end`: no record beyond this offset can be, and `lost_by` is the code to say so; `unseen`: why
    nobody let us read it; `records` that were found, `bytes` that were read; `sums`: of these records, where
    they were not listed; `tail`: bytes behind the last durable record."""

    number: int
    findings: list[tuple[str, str, str]] = field(default_factory=list)
    bad: BadRows | None = None
    dark: tuple[tuple[int, int], ...] = ()
    end: int = 0
    lost_by: str = ''
    unseen: str = ''
    records: int = 0
    bytes: int = 0
    sums: Sums | None = None
    tail: int = 0
    nodes: NodeTable | None = None
    facts: list[LeafFacts] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Task:
    """A pack to look at. `index`: its place among meta packs, which numbers its nodes. `known`: it has a row
    in the catalog. `names`: only the nodes are wanted, no record is compared. `summed`: records of a pack
    that is as it should be are added up, not listed."""

    pack: Pack
    index: int
    full: bool
    known: bool
    names: bool = False
    summed: bool = False


def look(store: Store, task: Task, spill: Spill, bad: BadWriter) -> PackResult:
    """Look at one pack. Never raises for what is on the disk. OSError when there is no room for what is
    noted."""
    pack = task.pack
    result = PackResult(pack.number)
    parts = store.pack_parts(pack.kind, pack.name)
    place = '/'.join(parts)
    bad.begin()
    try:
        with store.opened(*parts) as (fd, size):
            looking = _Look(store, task, spill, bad, result, place, fd, size)
            try:
                looking.run()
            finally:
                looking.give()
    except FileNotFoundError:
        if pack.state != 'retired':  # after its last look: the rows are on their way out
            result.findings.append(('pack-missing', place, 'is not there'))
            result.lost_by = 'pack-missing'
    except OSError as error:
        if error.errno in NO_ROOM:
            raise
        if is_ours(error):
            result.unseen = _why(error)
            return result
        result.lost_by = 'pack-missing' if error.errno in NO_PACK else 'pack-unreadable'
        result.findings.append((result.lost_by, place, f'cannot be read: {_why(error)}'))
    except Corrupt as error:
        result.findings.append(('pack-missing', place, f'cannot be read: {_why(error)}'))
        result.lost_by = 'pack-missing'
    return result


def _why(error: Exception) -> str:
    return (error.strerror or str(error)) if isinstance(error, OSError) else str(error)


class _Look:
    def __init__(
        self, store: Store, task: Task, spill: Spill, bad: BadWriter, result: PackResult, place: str, fd: int,
        size: int,
    ) -> None:  # fmt: skip
        self.store = store
        self.bad = bad
        self.task = task
        self.pack = task.pack
        self.spill = spill
        self.result = result
        self.place = place
        self.fd = fd
        self.size = size
        self.reads_all = task.full or task.pack.kind == META
        self.nodes = _nodes_for(store, task)
        self.dark: list[tuple[int, int]] = []  # from and to which byte the disk gives nothing
        self.tried = 0
        self.error = ''
        self.kept: list[NDArray[np.void]] = []  # records that may yet be added up
        self.ended = False

    def say(self, code: str, what: str) -> None:
        self.result.findings.append((code, self.place, what))

    def run(self) -> None:
        """Look, and note all in the result; `give` comes after it, whatever happened."""
        self._run()
        self.ended = True

    def give(self) -> None:
        """List the records, or where nothing at all was wrong add them up."""
        result = self.result
        if self.ended and self.task.summed and not (result.findings or result.bad or result.dark):
            result.sums = Sums()
            result.sums.add_records(self.pack.number, self.kept)
            return
        for table in self.kept:
            self.spill.add('records', table)

    def _keep(self, table: NDArray[np.void]) -> None:
        if self.task.summed:
            self.kept.append(table)
        else:
            self.spill.add('records', table)

    def _run(self) -> None:
        try:
            header = decode_pack_header(self.read_at(PACK_HEADER_BYTES, 0))
            if header.store_uuid != self.store.uuid:
                self.say('pack-foreign', f'it is a pack of store {header.store_uuid.hex()}')
            elif header.name != self.pack.name or header.kind != self.pack.kind:
                self.say('pack-misplaced', f'it is pack {header.name.hex()} of kind {int(header.kind)}')
        except Corrupt as error:
            if not self.dark:
                self.say('pack-header', str(error))
        if self.task.names and self.nodes is None:
            self.result.end = self.size
            if self.size < self.pack.bytes:
                self.say('pack-short', f'has {self.size} bytes of {self.pack.bytes}')
                self.result.lost_by = 'pack-short'
            self._dark()
            return
        if not self.reads_all and self._footer_alone():
            self._dark()
            self.result.bad = self.bad.finish()
            return
        end, entries = self._entries()
        self.result.end = end
        rows: list[PackEntry] = []
        for entry in entries:
            if self.reads_all and not self._read(entry):
                continue
            rows.append(entry)
            self.result.records += 1
            if len(rows) >= 4096:
                self._spill(rows)
                rows = []
        self._spill(rows)
        self._dark()
        self.result.bad = self.bad.finish()
        if self.nodes is not None:
            self.result.nodes = self.nodes.table(self.spill, self.pack.number)
            self.result.facts = self.nodes.facts

    def _spill(self, rows: list[PackEntry]) -> None:
        if not rows or self.task.names:
            return
        table = np.zeros(len(rows), dtype=RECORDS)
        table['a'], table['b'] = words(b''.join([row.id for row in rows]))
        numbers: NDArray[np.uint64] = np.array([row[1:] for row in rows], dtype=np.uint64)
        table['place'] = (np.uint64(self.pack.number) << np.uint64(32)) | numbers[:, 0]
        table['stored'], table['plain'] = numbers[:, 1], numbers[:, 2]
        table['what'] = np.uint64(self.pack.kind) | numbers[:, 3] << np.uint64(8)
        self._keep(table)

    def _footer_alone(self) -> bool:
        """Take the records of a sealed pack from a footer that is as it must be in every way; else False, and
        nothing was said or taken: a look at each entry will tell what is wrong."""
        pack = self.pack
        if not self.task.known or pack.state == 'open' or self.size != pack.bytes:
            return False
        try:
            start = footer_offset(self.read_at(TRAILER_BYTES, max(0, self.size - TRAILER_BYTES)), self.size)
            index = footer_index(self.read_at(self.size - start, start), self.size, pack.name)
        except Corrupt:
            return False
        rows = np.frombuffer(index, dtype=ENTRIES)
        stored, plain = rows['stored'].astype(np.uint64), rows['plain'].astype(np.uint64)
        ends = np.cumsum(stored + np.uint64(HEADER_BYTES)) + np.uint64(PACK_HEADER_BYTES)
        begins = ends - stored - np.uint64(HEADER_BYTES)
        raw = rows['codec'] == int(Codec.PLAIN)
        fits = np.where(raw, stored == plain, stored < plain) & (plain <= limits.PLAIN_BYTES_MAX)
        good = len(rows) == pack.records and bool(
            np.isin(rows['codec'], [int(codec) for codec in Codec]).all()
        )
        if not (good and bool(fits.all()) and bool((rows['offset'] == begins).all())):
            return False
        if (int(ends[-1]) if len(rows) else PACK_HEADER_BYTES) != start:
            return False
        table = np.zeros(len(rows), dtype=RECORDS)
        table['a'], table['b'] = words(rows['id'].tobytes())
        table['place'] = (np.uint64(pack.number) << np.uint64(32)) | begins
        table['stored'], table['plain'] = stored, plain
        table['what'] = np.uint64(pack.kind) | rows['codec'].astype(np.uint64) << np.uint64(8)
        self._keep(table)
        self.result.end, self.result.records = start, len(rows)
        return True

    # --- which records there are -------------------------------------------------------------------------
    def _entries(self) -> tuple[int, Iterable[PackEntry]]:
        """Return where the records end that count, and the records."""
        pack, durable = self.pack, self.pack.bytes
        if self.task.known and self.size < durable:
            self.say('pack-short', f'has {self.size} bytes of {durable}')
            self.result.lost_by = 'pack-short'
        if not self.task.known or pack.state != 'open':
            try:
                if self.task.known and self.size > durable:
                    raise Corrupt(f'the file has {self.size} bytes, the catalog says {durable}')
                start = footer_offset(
                    self.read_at(TRAILER_BYTES, max(0, self.size - TRAILER_BYTES)), self.size
                )
                entries = decode_footer(self.read_at(self.size - start, start), self.size, pack.name)
                self._back_to_back(entries, start)
                if self.task.known and len(entries) != pack.records:
                    self.say('pack-footer', f'{len(entries)} records, the catalog says {pack.records}')
                return start, entries
            except Corrupt as error:
                if self.task.known and not self.result.lost_by and not self.dark:
                    self.say('pack-footer', str(error))
            end = min(self.size, durable) if self.task.known else self.size
            # Behind as many as the catalog counts stands what is left of the footer.
            return end, islice(self._scan(end), pack.records if self.task.known else None)
        end = min(self.size, durable)
        self.result.tail = max(0, self.size - durable)
        return end, self._scan(end)

    def _back_to_back(self, entries: list[PackEntry], end: int) -> None:
        at = PACK_HEADER_BYTES
        for entry in entries:
            if entry.offset != at:
                self.say('pack-footer', f'{entry.offset - at} bytes at offset {at} are in no record')
            at = entry.offset + HEADER_BYTES + entry.stored_length
        if at != end:
            self.say('pack-footer', f'{end - at} bytes at offset {at} are in no record')

    def _scan(self, end: int) -> Iterator[PackEntry]:
        """Yield records by their headers, one after the other. Behind a damaged one the next that is whole
        is looked for: what cannot be one is passed over."""
        at = PACK_HEADER_BYTES
        while at < end:
            try:
                header = decode_header(self.read_at(HEADER_BYTES, at))
                if at + HEADER_BYTES + header.stored_length > end:
                    raise Corrupt('record: it goes on behind the end')
                if header.kind != self.pack.kind:
                    raise Corrupt(f'record: of kind {int(header.kind)} in a pack of kind {self.pack.kind}')
            except Corrupt as error:
                found = self._next_magic(at + 1, end)
                if self.task.known and self.pack.state != 'retired' and not self.result.lost_by:
                    self._bad(at, found, 'record-header', f'{error}; {found - at} bytes cannot be told')
                at = found
                continue
            yield PackEntry(header.id, at, header.stored_length, header.plain_length, int(header.codec))
            at += HEADER_BYTES + header.stored_length

    def _next_magic(self, start: int, end: int) -> int:
        for at in range(start, end, WINDOW_BYTES):
            data = self.read_at(min(WINDOW_BYTES + HEADER_BYTES, end - at), at)
            found = data.find(b'SfR1')
            while found >= 0:
                try:
                    decode_header(data, found)
                    return at + found
                except Corrupt:
                    found = data.find(b'SfR1', found + 1)
        return end

    # --- one record --------------------------------------------------------------------------------------
    def _bad(self, offset: int, end: int, code: str, what: str) -> None:
        """Note that the record from `offset` to `end` is bad, unless the disk does not give it."""
        if not any(start < end and offset < stop for start, stop in self.dark):
            self.bad.add(offset, code, what)

    def _read(self, entry: PackEntry) -> bool:
        """Read and verify a record; return whether it is good. Nodes are taken into the table."""
        end = entry.offset + HEADER_BYTES + entry.stored_length
        data = self._bytes(entry.offset, HEADER_BYTES + entry.stored_length)
        self.result.bytes += len(data)
        if self.nodes is None and entry.codec == Codec.PLAIN and self._is_whole(entry, data):
            return True
        try:
            header = decode_header(data)
        except Corrupt as error:
            self._bad(entry.offset, end, 'record-header', str(error))
            # The footer knows the record: its payload may be whole.
            header = RecordHeader(
                RecordKind(self.pack.kind),
                Codec(entry.codec),
                entry.stored_length,
                entry.plain_length,
                entry.id,
            )
        if tuple(header) != _header_of(entry, self.pack.kind):
            what = f'it is of {header.id.hex()}, the footer says otherwise'
            self._bad(entry.offset, end, 'record-header', what)
            return False
        try:
            plain = decode_payload(header, data[HEADER_BYTES:])
        except Corrupt as error:
            self._bad(entry.offset, end, 'record-payload', str(error))
            return False
        if self.nodes is not None:
            try:
                self.nodes.add(entry, plain)
            except Corrupt as error:
                self._bad(entry.offset, end, 'node-unreadable', str(error))
        return True

    def _is_whole(self, entry: PackEntry, data: memoryview) -> bool:
        """Return whether a record of data that is stored as it is is just what its entry says. Large stores
        have most of their bytes in such ones, which are hashed where they are. Of others nothing is said."""
        header = data[:HEADER_BYTES]
        if len(data) != HEADER_BYTES + entry.plain_length or entry.stored_length != entry.plain_length:
            return False
        try:
            if tuple(decode_header(header)) != _header_of(entry, self.pack.kind):
                return False
        except Corrupt:
            return False
        return chunk_id(self.pack.kind, data[HEADER_BYTES:]) == entry.id

    _window = (0, b'')

    def _bytes(self, offset: int, size: int) -> memoryview:
        start, data = self._window
        if not start <= offset <= offset + size <= start + len(data):
            start, data = offset, self.read_at(max(size, WINDOW_BYTES), offset)
            self._window = (start, data)
            # The disk goes on with what comes next while these are hashed.
            os.posix_fadvise(self.fd, start + len(data), 2 * WINDOW_BYTES, os.POSIX_FADV_WILLNEED)
        return memoryview(data)[offset - start : offset - start + size]

    # --- what the disk does not give ---------------------------------------------------------------------
    def read_at(self, size: int, offset: int) -> bytes:
        """Read as `read_at` does. Where the disk gives nothing, zeros stand, and `dark` knows it. OSError
        for what is about us."""
        try:
            return read_at(self.fd, size, offset)
        except OSError as error:
            if is_ours(error):
                raise
            self.error = self.error or _why(error)
        parts = []
        end = min(offset + size, self.size)
        while offset < end:
            stop = min(end, (offset // BLOCK_BYTES + 1) * BLOCK_BYTES)
            parts.append(self._block(offset, stop))
            offset = stop
        return b''.join(parts)

    def _block(self, start: int, stop: int) -> bytes:
        if self.tried < BLOCKS_TRIED_MAX:
            try:
                return read_at(self.fd, stop - start, start)
            except OSError as error:
                if is_ours(error):
                    raise
                self.tried += 1
        if self.dark and self.dark[-1][1] == start:
            self.dark[-1] = self.dark[-1][0], stop
        else:
            self.dark.append((start, stop))
        return bytes(stop - start)

    def _dark(self) -> None:
        """Tell that the disk does not give all. What is lost by it is told with its chunks."""
        if self.dark:
            spans = ', '.join(f'{start} to {stop}' for start, stop in sorted(set(self.dark))[:3])
            more = '; after some more like that nothing was tried' if self.tried >= BLOCKS_TRIED_MAX else ''
            self.result.dark = tuple(sorted(set(self.dark)))
            self.say('pack-unreadable', f'bytes {spans} cannot be read: {self.error}{more}')


def _nodes_for(store: Store, task: Task) -> Nodes | None:
    if task.pack.kind != META:
        return None
    assert store.superblock is not None
    return Nodes(task.index, task.full, store.superblock.name_key)


def _header_of(entry: PackEntry, kind: int) -> tuple[int, int, int, int, bytes]:
    return kind, entry.codec, entry.stored_length, entry.plain_length, entry.id


def packs_on_disk(
    store: Store,
) -> tuple[list[tuple[int, bytes]], list[tuple[str, str, str]], list[tuple[str, str]]]:
    """Return (kind, name) of every pack file, findings about what is not in its place, and folders that
    nobody let us list, and why."""
    found: list[tuple[int, bytes]] = []
    listing = _Listing(store)
    findings = listing.findings
    for kind, folder in FOLDERS.items():
        for short in listing.names('packs', folder):
            if len(short) != 2 or set(short) - set('0123456789abcdef'):
                findings.append(('entry-unknown', f'packs/{folder}/{short}', 'is no folder of packs'))
                continue
            for text in listing.names('packs', folder, short):
                place = f'packs/{folder}/{short}/{text}'
                if len(text) != 32 or set(text) - set('0123456789abcdef'):
                    findings.append(('entry-unknown', place, 'is no pack'))
                elif text[:2] != short:
                    findings.append(('pack-misplaced', place, f'belongs to packs/{folder}/{text[:2]}'))
                elif not listing.is_regular(place):
                    findings.append(('entry-odd', place, 'is not a regular file'))
                else:
                    found.append((kind, bytes.fromhex(text)))
    return found, findings, listing.unseen


class _Listing:
    """Lists folders, and notes where that does not go."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.findings: list[tuple[str, str, str]] = []
        self.unseen: list[tuple[str, str]] = []

    def names(self, *parts: str) -> list[str]:
        """Return what is in a folder; nothing when it cannot be listed."""
        try:
            return self._store.entries(*parts)
        except (OSError, Corrupt) as error:
            # What is in a directory that the disk does not give is not known, be its packs found or not.
            if is_ours(error) or (isinstance(error, OSError) and error.errno == errno.EIO):
                self.unseen.append(('/'.join(parts), _why(error)))
            else:
                self.findings.append(('entry-odd', '/'.join(parts), f'cannot be listed: {_why(error)}'))
            return []

    def is_regular(self, place: str) -> bool:
        """Return whether there is a regular file, as far as that can be seen."""
        try:
            return stat.S_ISREG(self._store.path.joinpath(place).lstat().st_mode)
        except OSError:
            return True  # whoever opens it will see
