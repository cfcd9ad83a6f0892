"""L2 chunks: put with deduplication, get with verification. Blocking; any thread.

A chunk put is *fresh* until its pack has been synced, then *durable* until a commit has put its row into the
catalog. Only durable chunks are handed out for the journal (`take_new`) and the commit (`commit_rows`):
neither ever names bytes that a power cut could take (P4). Each kind has one writer at a time; puts of data
and of nodes, syncs and reads may overlap. Deduplication looks at chunks put since the last commit and at the
table `chunk`, and at nothing else: a writer must not see what is condemned (P3), so neither caches nor
quarantine are asked.

Reading verifies the id of everything that comes from disk. The methods named `_nowait` never wait for the
disk below a pack; they answer None when the page cache does not have it all.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from snapfs import limits
from snapfs.errors import Corrupt, Invalid, SnapfsError
from snapfs.format.codec import Compressor
from snapfs.format.ids import chunk_id
from snapfs.format.journal import NewChunk
from snapfs.format.records import HEADER_BYTES, RecordKind, decode_header, decode_payload, encode_record
from snapfs.store.cache import ByteCache, CountCache
from snapfs.store.catalog import LOCATE_FREED, LOCATE_QUARANTINE, Catalog
from snapfs.store.durable import Buffer, Disk
from snapfs.store.horizon import PutRecord
from snapfs.store.mirror import read_copy
from snapfs.store.packs import PackFile, PackNumbers, PackWriter, pack_path
from snapfs.store.rows import ChunkRow, CommitRows, Location, PackRow
from snapfs.store.taken_away import put_back_sealed

log = logging.getLogger('snapfs.store')


class _Gone(Exception):
    """The pack of a location is not there (any more)."""


class ChunkStore:
    """The chunks of one store. `on_condemned(id, table)` is called for every read served from quarantine or
    freed."""

    def __init__(
        self, disk: Disk, catalog: Catalog, root: Path, store_uuid: bytes, numbers: PackNumbers
    ) -> None:
        self._disk = disk
        self._catalog = catalog
        self._root = root
        self._uuid = store_uuid
        self._numbers = numbers
        self.writers = {
            kind: PackWriter(disk, root, kind, store_uuid, numbers, self.reopen_pack)
            for kind in (RecordKind.DATA, RecordKind.NODE)
        }
        self.on_condemned: Callable[[bytes, str], None] = _log_condemned
        self._putting = {kind: threading.Lock() for kind in self.writers}
        self._records: tuple[PutRecord, ...] = ()
        self._lock = threading.Lock()
        self._sync_lock = threading.Lock()
        self._fresh: dict[bytes, ChunkRow] = {}
        self._durable: dict[bytes, ChunkRow] = {}
        self._new: list[ChunkRow] = []
        self._pack_rows: dict[int, PackRow] = {}
        self._compressors: list[Compressor] = []
        self._plains = ByteCache(limits.CHUNK_CACHE_BYTES)
        self._locations: CountCache[bytes, Location] = CountCache(limits.LOCATION_CACHE_ENTRIES)
        self._files: CountCache[int, PackFile] = CountCache(limits.PACK_FILES_OPEN_MAX)
        # Found missing or wrong by the last read of each. What is put again under the same id is shared with
        # that, so whoever puts looks here first.
        self.unreadable: set[bytes] = set()
        self.mirrored: set[bytes] = set()  # nodes that only their second copy still has
        self._damage: dict[bytes, str | None] = {}  # not written down yet: why, or None when whole again
        self.put_bytes = 0  # plain bytes given to put_batch
        self.new_bytes = 0  # of these, plain bytes that were not there already
        self.stored_bytes = 0  # bytes appended to packs
        self.read_bytes = 0  # bytes read from packs

    @property
    def uncommitted(self) -> int:
        """How many chunks have been put (or adopted) that no commit has taken over yet."""
        return len(self._fresh) + len(self._durable)

    @property
    def unsynced(self) -> bool:
        """Whether a chunk has been put that is not durable yet, so that `sync` has work to do."""
        return bool(self._fresh)

    # --- put ---------------------------------------------------------------------------------------------
    def put_batch(self, kind: RecordKind, plains: Sequence[Buffer]) -> list[bytes]:
        """Store chunks; return their ids, in order. Content that is there already is shared.

        Refused(ENOSPC): nothing is broken, what got in stays, and the same call may be made again.
        """
        ids = [chunk_id(kind, plain) for plain in plains]
        with self._putting[kind]:
            for record in self._records:
                record.add(kind, ids)  # P3: before anything is looked up
            self._put(kind, dict(zip(ids, plains, strict=True)))
        self.put_bytes += sum(map(len, plains))
        return ids

    def _put(self, kind: RecordKind, wanted: dict[bytes, Buffer]) -> None:
        fresh, durable = self._fresh, self._durable
        # Order matters against a commit that ends meanwhile: it inserts into the catalog, then forgets here.
        unknown = [id for id in wanted if id not in fresh and id not in durable]
        if unknown:
            known = self._catalog.locate(unknown)
            chunks = [(id, wanted[id]) for id in unknown if id not in known]
            if chunks:
                self._write(kind, chunks)

    def put_anew(self, kind: RecordKind, chunks: dict[bytes, bytes]) -> None:
        """Store chunks although they may be there already: what is there is lost. The caller points the
        index to the new records once they are durable. Refused(ENOSPC) as `put_batch`."""
        with self._putting[kind]:
            for record in self._records:
                record.add(kind, list(chunks))  # P3
            with self._lock:
                waiting = self._fresh.keys() | self._durable.keys()
            missing: list[tuple[bytes, Buffer]] = [one for one in chunks.items() if one[0] not in waiting]
            if missing:
                self._write(kind, missing)
            self.mirrored.difference_update(chunks)

    def start_recording(self) -> PutRecord:
        """Note every put from now on in a new record, until `stop_recording`. For the horizon of a
        recount."""
        record = PutRecord()
        with self.exclusive():
            self._records = (*self._records, record)
        return record

    def stop_recording(self, record: PutRecord) -> None:
        """Note puts no longer in this record."""
        with self.exclusive():
            self._records = tuple(other for other in self._records if other is not record)

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """While inside, no put is between its note in the record and its answer. For moving rows out of
        `chunk`: writers wait, the event loop too, so be quick; whoever writes to the catalog inside holds
        `Catalog.reserved` outside, or writers wait for a commit."""
        with self._putting[RecordKind.DATA], self._putting[RecordKind.NODE]:
            yield

    def forget(self, ids: Iterable[bytes]) -> None:
        """Drop what the caches know of these chunks: they have moved, or reading them has become an alarm."""
        for id in ids:
            self._plains.remove(id)
            self._locations.remove(id)

    def seal_pack(self, kind: int, number: int) -> None:
        """End an open pack, so that it can be repacked or go. Refused(ENOSPC); a commit makes it known."""
        self.writers[RecordKind(kind)].seal(number)

    def new_pack(self, kind: int) -> tuple[int, bytes]:
        """Return number and name for a pack that the caller writes. `forget_pack` gives it up."""
        return self._numbers.new(kind)

    def has_pack(self, name: bytes) -> bool:
        """Return whether a pack is one of the store's, the new ones included that no commit has seen."""
        return name in self._numbers.numbers

    def busy_packs(self) -> frozenset[int]:
        """Return the packs that chunks in memory are in: the catalog does not know them all yet."""
        with self._lock:
            return frozenset(row.pack for rows in (self._fresh, self._durable) for row in rows.values())

    def reopen_pack(self, number: int) -> None:
        """A pack has another file now: readers open that."""
        self._files.remove(number)

    def put_back(self) -> int:
        """Give packs that are open here their files again where somebody took these; return how many."""
        files = {number: file.fd for number, file in self._files.items()}
        packs = [(row, pack_path(self._root, row.kind, row.name)) for row in self._catalog.packs()]
        return put_back_sealed(self._disk, packs, files) + sum(
            writer.put_back() for writer in self.writers.values()
        )

    def forget_pack(self, number: int) -> None:
        """A pack is about to go: close it, and let readers that knew it look again. May be said again."""
        self._files.remove(number)
        self._numbers.remove(number)

    def _write(self, kind: RecordKind, chunks: list[tuple[bytes, Buffer]]) -> None:
        try:
            compressor = self._compressors.pop()
        except IndexError:
            compressor = Compressor()
        records = [encode_record(kind, id, plain, compressor) for id, plain in chunks]
        self._compressors.append(compressor)
        for number, entries in self.writers[kind].append(records):
            rows = {
                e.id: ChunkRow(e.id, number, e.offset, e.stored_length, e.plain_length, e.codec, kind)
                for e in entries
            }
            with self._lock:
                self._fresh.update(rows)
            self.new_bytes += sum(entry.plain_length for entry in entries)
            self.stored_bytes += sum(HEADER_BYTES + entry.stored_length for entry in entries)

    # --- from fresh to committed -------------------------------------------------------------------------
    def sync(self) -> None:
        """Make every chunk put before this call durable. Latched when that fails."""
        with self._sync_lock:
            # First the rows, then the packs: a chunk put in between is synced now and accounted for next
            # time.
            with self._lock:
                rows = list(self._fresh.values())
            for writer in self.writers.values():
                for pack in writer.sync():
                    self._pack_rows[pack.pack] = pack
            with self._lock:
                for row in rows:
                    self._durable[row.id] = row
                    del self._fresh[row.id]
                self._new += rows

    def take_new(self) -> list[NewChunk]:
        """Return the durable chunks that the journal has not been told of, and forget that they were new."""
        with self._lock:
            rows, self._new = self._new, []
        packs = self._numbers.packs
        return [
            NewChunk(row.id, row.kind, packs[row.pack][0], row.offset, row.stored, row.plain, row.codec)
            for row in rows
        ]

    def commit_rows(self) -> CommitRows:
        """Return what the next commit must write: every durable chunk it does not have, and the packs that
        changed."""
        with self._sync_lock, self._lock:
            return CommitRows(tuple(self._durable.values()), tuple(self._pack_rows.values()))

    def committed(self, rows: CommitRows) -> None:
        """A commit has written these rows: they are the catalog's now."""
        with self._sync_lock, self._lock:
            for row in rows.chunks:
                if self._durable.get(row.id) is row:
                    del self._durable[row.id]
            if self._new:
                # The journal must not name them again: they may be freed before its file is.
                done = {row.id for row in rows.chunks}
                self._new = [row for row in self._new if row.id not in done]
            for pack in rows.packs:
                if self._pack_rows.get(pack.pack) is pack:
                    del self._pack_rows[pack.pack]
        for row in rows.chunks[-limits.LOCATION_CACHE_ENTRIES :]:
            self._locations.put(row.id, Location(row.pack, row.offset, row.stored, row.plain))

    def adopt(self, chunks: Iterable[NewChunk]) -> None:
        """Take over chunks that a journal record names: durable, not yet in the catalog. Corrupt for an
        unknown pack."""
        rows = []
        for chunk in chunks:
            number = self._numbers.numbers.get(chunk.pack_name)
            if number is None:
                # A commit has taken it although it did not supersede the record, and its pack was rewritten.
                if self._catalog.locate((chunk.id,)):
                    continue
                raise Corrupt(
                    f'journal: chunk {chunk.id.hex()} is in pack {chunk.pack_name.hex()}, which is missing'
                )
            sizes = (chunk.offset, chunk.stored_length, chunk.plain_length)
            rows.append(ChunkRow(chunk.id, number, *sizes, chunk.codec, chunk.kind))
        with self._lock:
            self._durable.update((row.id, row) for row in rows)

    # --- get ---------------------------------------------------------------------------------------------
    def get(self, id: bytes) -> bytes:
        """Return a chunk. Corrupt, naming pack and offset, when it is not what was stored; Corrupt when
        nobody has it."""
        return self.get_many((id,))[0]

    def get_nowait(self, id: bytes) -> bytes | None:
        """Return a chunk if no wait for a pack is needed, else None. Errors as `get`."""
        found = self.get_many_nowait((id,))
        return None if found is None else found[0]

    def get_many(self, ids: Sequence[bytes]) -> list[bytes]:
        """Return chunks, in order. Neighbours in a pack are read in one call. Errors as `get`."""
        found = self._get(ids, wait=True)
        assert found is not None
        return found

    def get_many_nowait(self, ids: Sequence[bytes]) -> list[bytes] | None:
        """Return chunks, in order, if no wait for a pack is needed for any of them, else None. Errors as
        `get`."""
        return self._get(ids, wait=False)

    def prefetch_locations(self, ids: Sequence[bytes]) -> None:
        """Look up in one go where these chunks are, so that single gets need not."""
        self._locate([id for id in ids if self._recall(id) is None])

    def _get(self, ids: Sequence[bytes], wait: bool) -> list[bytes] | None:
        found: dict[bytes, bytes] = {}
        places: list[tuple[Location, bytes]] = []
        unknown: list[bytes] = []
        for id in ids:
            plain = self._plains.get(id)
            if plain is not None:
                found[id] = plain
            elif (location := self._recall(id)) is not None:
                places.append((location, id))
            else:
                unknown.append(id)
        if unknown:
            places += [(location, id) for id, location in self._locate(unknown).items()]
        if places and not self._read_all(places, found, wait):
            return None
        return [found[id] for id in ids]

    def _recall(self, id: bytes) -> Location | None:
        """Return a location known in memory."""
        row = self._fresh.get(id) or self._durable.get(id)
        if row is not None:
            return Location(row.pack, row.offset, row.stored, row.plain)
        return self._locations.get(id)

    def _locate(self, ids: Sequence[bytes]) -> dict[bytes, Location]:
        """Return locations from the catalog and remember them. Corrupt for an id that no table has."""
        found = self._catalog.locate(ids)
        for id, location in found.items():
            self._locations.put(id, location)
        for statement, table in ((LOCATE_QUARANTINE, 'quarantine'), (LOCATE_FREED, 'freed')):
            missing = [id for id in ids if id not in found]
            if missing:
                condemned = self._catalog.locate(missing, statement)
                # Not remembered: the next read must be an alarm as well.
                found.update(condemned)
                for id in condemned:
                    self.on_condemned(id, table)
        for id in ids:
            if id not in found:
                raise Corrupt(f'chunk {id.hex()} is neither in the index nor in quarantine')
        return found

    # --- reading packs -----------------------------------------------------------------------------------
    def _read_all(self, places: list[tuple[Location, bytes]], found: dict[bytes, bytes], wait: bool) -> bool:
        """Read chunks into `found`; False when that needs waiting and may not."""
        if len(places) > 1:
            places.sort()
        start = 0
        while start < len(places):
            run_end, end = self._run(places, start)
            try:
                done = self._read_run(places[start:run_end], end, found, wait)
            except _Gone as gone:
                if not wait:
                    return False
                self._read_again(places[start:run_end], found, gone)
                done = True
            if not done:
                return False
            start = run_end
        return True

    def _run(self, places: list[tuple[Location, bytes]], start: int) -> tuple[int, int]:
        """Return where the run of neighbours that begins at `start` ends: index in `places`, offset in the
        pack."""
        pack, first, _, _ = places[start][0]
        end = places[start][0].end
        n = start + 1
        while n < len(places):
            location = places[n][0]
            gap, far = location.offset - end, location.end - first > limits.READ_BYTES_MAX
            if location.pack != pack or gap > limits.READ_GAP_BYTES_MAX or far:
                break
            end = max(end, location.end)
            n += 1
        return n, end

    def _read_run(
        self, run: list[tuple[Location, bytes]], end: int, found: dict[bytes, bytes], wait: bool
    ) -> bool:
        number, start = run[0][0][:2]
        file = self._file(number)
        data = self._disk.preadv_nowait(file.fd, end - start, start)
        unread = None
        if data is None:
            if not wait:
                return False
            try:
                data = file.pread_cold(end - start, start)
            except Corrupt as error:
                if len(run) > 1:  # one by one: the disk may give all but one of them
                    return all(self._read_run([one], one[0].end, found, wait) for one in run)
                data, unread = b'', error
        self.read_bytes += len(data)
        view = memoryview(data)
        for location, id in run:
            at = location.offset - start
            try:
                if unread is not None:
                    raise unread
                header = decode_header(view[at : at + HEADER_BYTES])
                if header.id != id or header.stored_length != location.stored_length:
                    raise Corrupt(f'another record stands there: {header.id.hex()}')
                plain = decode_payload(
                    header, view[at + HEADER_BYTES : at + HEADER_BYTES + header.stored_length]
                )
            except Corrupt as error:
                text = f'chunk {id.hex()} in pack {file.name.hex()} at offset {location.offset}: {error}'
                copy = self._second_copy(location, id, text)
                if copy is None:
                    log.error('%s', text)
                    self._note_unreadable(id, text)
                    raise Corrupt(text) from error
                found[id] = copy
                continue
            if id in self.unreadable:
                self._note_whole(id)
            found[id] = plain
            if header.kind == RecordKind.DATA:
                self._plains.put(id, plain)
        return True

    def _read_again(self, run: list[tuple[Location, bytes]], found: dict[bytes, bytes], gone: _Gone) -> None:
        """A pack was gone: its chunks may have moved (repacking). Look the locations up again, once."""
        ids = [id for _, id in run]
        for id, location in self._locate(ids).items():
            try:
                self._read_run([(location, id)], location.end, found, True)
            except _Gone:
                # Only now that the catalog was asked anew: a read of what was condemned has been an alarm.
                plain = self._second_copy(location, id, str(gone))
                if plain is None:
                    self._note_unreadable(id, str(gone))
                    raise Corrupt(f'chunk {id.hex()} is lost: {gone}') from gone
                found[id] = plain

    def _second_copy(self, location: Location, id: bytes, why: str) -> bytes | None:
        """Return a node that is not whole in its pack from the mirror, if that has it."""
        name, kind = self._numbers.packs.get(location.pack, (b'', 0))
        if kind != RecordKind.NODE:
            return None
        store = self._root.parent
        plain = read_copy(self._disk, store, name, location.offset, location.stored_length, id)
        if plain is not None and id not in self.mirrored:
            log.error('read from its second copy: %s', why)
            if len(self.mirrored) < limits.UNREADABLE_CHUNKS_MAX:
                self.mirrored.add(id)
        return plain

    def _note_unreadable(self, id: bytes, why: str) -> None:
        if id not in self.unreadable and len(self.unreadable) < limits.UNREADABLE_CHUNKS_MAX:
            self.unreadable.add(id)
            self._damage[id] = why

    def _note_whole(self, id: bytes) -> None:
        self.unreadable.discard(id)
        self._damage[id] = None

    def take_damage(self) -> dict[bytes, str | None]:
        """Return what was found lost (why), or whole again (None), since the last call."""
        taken, self._damage = self._damage, {}
        return taken

    def _file(self, number: int) -> PackFile:
        file = self._files.get(number)
        if file is not None:
            return file
        name, kind = self._numbers.packs.get(number, (b'', 0))
        if not name:
            raise _Gone(f'there is no pack {number}')
        path = pack_path(self._root, kind, name)
        try:
            if not self._disk.exists(path):
                with suppress(SnapfsError):
                    self.writers[RecordKind(kind)].put_back()
            file = PackFile(self._disk, path, name)
        except FileNotFoundError:
            raise _Gone(f'pack {name.hex()} is missing') from None
        except (Corrupt, Invalid) as error:
            # One that we are not let into, too: its chunks cannot be read now, and whoever asks is told so.
            raise _Gone(str(error)) from error
        try:
            file.check_header(self._uuid, kind)
        except Corrupt as error:
            # Each record says what it is, and is verified by its own hash: a pack whose first bytes are wrong
            # has lost nothing else, and doubt never stops readers (P7). fsck tells of it.
            log.error('pack %s: %s; its records are read all the same', name.hex(), error)
        self._files.put(number, file)
        return file

    def close(self) -> None:
        """Close every file. Syncs nothing."""
        for writer in self.writers.values():
            writer.close()
        self._files.clear()


def _log_condemned(id: bytes, table: str) -> None:
    log.critical('P7: chunk %s was read from %s', id.hex(), table)
