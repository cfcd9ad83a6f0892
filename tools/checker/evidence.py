"""Tool fsck, evidence: the journal, the audit log, and what each deletion left: plan, lists, receipt,
certificate. One thread; another process may look at the journal.

On a store that is in use, what was written since the catalog was copied is let pass; what had to be there
by then is not."""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from heapq import merge
from itertools import groupby, islice
from operator import itemgetter
from typing import Any

from snapfs import limits
from snapfs.errors import Corrupt
from snapfs.format.ids import data_id, stream_id
from snapfs.format.journal import (
    JOURNAL_HEADER_BYTES,
    JournalFrame,
    JournalHeader,
    NewChunk,
    decode_journal_header,
    find_frames,
    is_cut_journal_header,
    peek_frame,
    scan_frames,
)
from snapfs.format.rebuilt import views_passed_over
from snapfs.format.receipts import (
    RECEIPT_HEADER_BYTES,
    RECEIPT_ROW_BYTES,
    ReceiptRow,
    decode_receipt_header,
    decode_receipt_rows,
)
from snapfs.format.records import HEADER_BYTES, decode_header, decode_payload
from tools.checker.catalog import Catalog
from tools.checker.findings import Report
from tools.checker.store import Store, is_ours, query, read_at

RECORDS_MAX = 2 * limits.JOURNAL_BYTES // 44  # that both files together can hold
END = b'\xff' * (limits.ID_BYTES + 1)  # above all ids
START_HASH = '0' * 64
HASH_TAIL = len(',"hash":"') + 64 + len('"}')
FILE_BYTES_MAX = 256 * limits.MIB
BLOCK_BYTES = limits.MIB
TOP = {
    'superblock', 'catalog.sqlite', 'catalog.sqlite-wal', 'catalog.sqlite-shm', 'journal', 'packs', 'batches',
    'incidents', 'audit.log', 'lock', 'control.sock', 'reserve', 'daemon.log', 'daemon.log.1', 'backups',
    'mirror',
}  # fmt: skip
FOUND = 'lost+found'  # of a filesystem whose top is the store


@dataclass(slots=True)
class Journal:
    """What the journal shows: places of records that it names, names of the packs these are in, what is
    wrong, and why it could not be read."""

    places: set[int] = field(default_factory=set)
    packs: set[bytes] = field(default_factory=set)
    findings: list[tuple[str, str, str]] = field(default_factory=list)
    unseen: str = ''


class Evidence:
    """Checks what proves that the rest is right. `unknown`: packs that have no row in the catalog."""

    def __init__(
        self, store: Store, catalog: Catalog, report: Report, unknown: list[tuple[int, bytes]]
    ) -> None:
        self._store = store
        self._catalog = catalog
        self._report = report
        self._unknown = unknown
        self._freed_views: set[int] = set()
        self._freed_volumes = 0
        self._events: Counter[str] = Counter()
        self._numbers = {pack.name: pack.number for pack in catalog.packs.values()}

    def check(self) -> None:
        """Check the audit log, all batches, and what else is in the store's directory."""
        self._audit()
        for number, state, digest, receipt, _, _ in self._catalog.batches:
            self._batch(number, state, digest, receipt)
        self._unproved()
        try:
            self._views()
        except sqlite3.DatabaseError as error:  # of an index that only this query asks
            if is_ours(error):
                raise
            if not self._report.counts['catalog-corrupt']:
                self._report.add('catalog-corrupt', 'catalog.sqlite', str(error))
        for name in self._store.entries():
            if name == FOUND and (self._store.path / name).is_dir():
                continue
            if name not in TOP and not name.startswith(
                ('catalog.', 'journal.lost-', 'superblock.lost-', 'pack.lost-')
            ):
                self._report.add('entry-unknown', name, 'is not a part of a store')

    # --- journal -----------------------------------------------------------------------------------------
    def look_at_journal(self) -> Journal:
        """Check the journal. Any process may; nothing is told yet."""
        found = Journal()
        after = self._catalog.settings.get('journal_sequence', 0)
        try:
            files = [self._journal_file(number, found) for number in (0, 1)]
            last = after
            ends = [JOURNAL_HEADER_BYTES] * 2
            records = [self._journal_records(head, data, ends) for head, data in files]
            for record in merge(*records, key=lambda parts: parts[0].sequence):
                if record[0].sequence <= last:
                    continue
                if record[0].sequence != last + 1:
                    raise Corrupt(f'journal: records {last + 1} to {record[0].sequence - 1} are missing')
                last = record[0].sequence
                self._journal_chunks(record, found)
            self._nothing_behind(files, last)
            self._torn(files, last, ends, found)
        except FileNotFoundError as error:
            found.findings.append(('journal-bad', 'journal', f'{error.filename}: is not there'))
        except PermissionError as error:  # ours to look for, not the disk's: no damage, and never clean
            found.unseen = str(error.strerror)
        except OSError as error:
            found.findings.append(('journal-bad', 'journal', f'cannot be read: {error.strerror}'))
        except Corrupt as error:
            # Writers go on: a file may have been begun anew while it was read.
            if not self._store.in_use():
                found.findings.append(('journal-bad', 'journal', str(error)))
        return found

    def journal(self, found: Journal) -> frozenset[int]:
        """Tell what was found in the journal; return the places of records that it names. Those in packs the
        catalog does not know are taken off the list of strangers."""
        if found.unseen:
            self._report.could_not('the journal', found.unseen)
        for finding in found.findings:
            self._report.add(*finding)
        self._unknown[:] = [one for one in self._unknown if one[1] not in found.packs]
        return frozenset(found.places)

    def _journal_records(
        self, head: JournalHeader, data: bytes, ends: list[int]
    ) -> Iterator[list[JournalFrame]]:
        """Yield the complete records of a file, each as its frames; note where its frames end."""
        parts: list[JournalFrame] = []
        for placed in scan_frames(data, self._store.uuid, JOURNAL_HEADER_BYTES, head.first_sequence):
            ends[head.file_number] = placed.end
            parts.append(placed.frame)
            if not placed.frame.more:
                yield parts
                parts = []

    def _journal_file(self, number: int, found: Journal) -> tuple[JournalHeader, bytes]:
        data = self._store.read('journal', str(number), bytes_max=limits.JOURNAL_BYTES)
        if len(data) != limits.JOURNAL_BYTES:
            what = f'has {len(data)} bytes of {limits.JOURNAL_BYTES}'
            found.findings.append(('journal-bad', f'journal/{number}', what))
        try:
            head = decode_journal_header(data)
        except Corrupt:
            if not is_cut_journal_header(data, self._store.uuid, number):
                raise
            head = JournalHeader(self._store.uuid, number, 0)
        if (head.store_uuid, head.file_number) != (self._store.uuid, number):
            raise Corrupt(f'journal: file {number} is that of another store, or in the wrong place')
        return head, data

    def _nothing_behind(self, files: list[tuple[JournalHeader, bytes]], last: int) -> None:
        """Corrupt when something proves that the record behind the last one was durable once (P5)."""
        for head, data in files:
            if head.first_sequence > last + 1:
                raise Corrupt(f'journal: record {last + 1} is missing: file {head.file_number} follows it')
            parts, end = 0, 0
            for offset, behind, place in find_frames(data, self._store.uuid, JOURNAL_HEADER_BYTES):
                if last + 1 < place.sequence <= last + RECORDS_MAX:
                    raise Corrupt(
                        f'journal: record {last + 1} is damaged: record {place.sequence} follows it'
                    )
                if place.sequence != last + 1:
                    continue
                if place.part == 0:
                    parts, end = 0, offset
                if place.part == parts and offset == end:
                    parts, end = parts + 1, behind
                    if not place.more:
                        raise Corrupt(f'journal: record {last + 1} is whole, and nothing leads to it')

    def _torn(
        self, files: list[tuple[JournalHeader, bytes]], last: int, ends: list[int], found: Journal
    ) -> None:
        for head, data in files:
            end = ends[head.file_number]
            torn = peek_frame(data, self._store.uuid, end)
            if torn is not None and torn[0] == last + 1 and not self._store.in_use():
                place = f'journal/{head.file_number}'
                found.findings.append(('journal-torn', place, f'record {torn[0]} at byte {end}'))

    def _journal_chunks(self, record: list[JournalFrame], found: Journal) -> None:
        for frame in record:
            for chunk in frame.chunks:
                number = self._numbers.get(chunk.pack_name, 0)
                found.packs.add(chunk.pack_name)
                found.places.add(number << 32 | chunk.offset)
                why = self._read(chunk)
                if why:
                    place = f'journal record {frame.sequence}'
                    found.findings.append(('journal-chunk', place, f'chunk {chunk.id.hex()}: {why}'))

    def _read(self, chunk: NewChunk) -> str:
        try:
            with self._store.opened(*self._store.pack_parts(chunk.kind, chunk.pack_name)) as (fd, _):
                header = decode_header(read_at(fd, HEADER_BYTES, chunk.offset))
                if header.id != chunk.id:
                    return 'another record stands there'
                decode_payload(header, read_at(fd, header.stored_length, chunk.offset + HEADER_BYTES))
        except (OSError, Corrupt) as error:
            return getattr(error, 'strerror', None) or str(error)
        return ''

    # --- audit log ---------------------------------------------------------------------------------------
    def _audit(self) -> None:
        head = self._catalog.audit_head
        end = (head[0], head[1], head[2]) if head else (0, 0, START_HASH)
        base = (head[3], head[4], head[5]) if head else (0, 0, START_HASH)
        if base[0]:
            self._report.add('audit-again', 'audit.log', f'from line {base[1] + 1} on')
        try:
            with self._store.opened('audit.log') as (fd, size):
                self._chain(fd, size, base, end)
        except FileNotFoundError:
            self._report.add('audit-broken', 'audit.log', 'is not there')
        except PermissionError as error:
            self._report.could_not('audit.log', str(error.strerror))
        except (OSError, Corrupt) as error:
            self._report.add('audit-broken', 'audit.log', getattr(error, 'strerror', None) or str(error))

    def _chain(self, fd: int, size: int, base: tuple[int, int, str], end: tuple[int, int, str]) -> None:
        at, lines, previous = base
        if 0 < at <= size and read_at(fd, 1, at - 1) != b'\n':
            raise Corrupt(f'line {lines} does not end where the catalog says')
        met = base == end
        for text in _lines(fd, size, at):
            found = _hash_of(text, lines + 1, previous)
            if found is None:
                break
            lines, previous, at = lines + 1, found, at + len(text) + 1
            self._events[str(json.loads(text)['event'].get('event', ''))] += 1
            if at == end[0]:
                if (lines, previous) != end[1:]:
                    raise Corrupt(f'line {lines} is not the one that the catalog knows')
                met = True
        if size < end[0]:
            raise Corrupt(f'cut short: {size} bytes, but line {end[1]} ended at {end[0]}')
        rest = read_at(fd, min(size - at, limits.AUDIT_LINE_BYTES_MAX + 1), at)
        if not met or len(rest) > limits.AUDIT_LINE_BYTES_MAX or b'\n' in rest[:-1]:
            raise Corrupt(f'the chain breaks at line {lines + 1}')
        if rest and not self._store.in_use():
            self._report.add('pack-tail', 'audit.log', f'line {lines + 1} is torn; it never came into effect')

    # --- batches -----------------------------------------------------------------------------------------
    def _batch(self, number: int, state: str, digest: bytes, receipt: bytes | None) -> None:
        report, place = self._report, f'batches/{number}'
        plan: dict[str, Any] = {}
        try:
            raw = self._store.read('batches', str(number), 'plan.json', bytes_max=limits.PLAN_BYTES_MAX)
            if data_id(raw) != digest:
                report.add('batch-file', f'{place}/plan.json', 'is not the one whose digest the catalog has')
            else:
                plan = json.loads(raw)
                self._freed_requests(plan)
                if plan.get('store') != self._store.uuid.hex() or plan.get('batch') != number:
                    report.add('batch-file', f'{place}/plan.json', 'is of another batch or store')
        except (
            OSError,
            Corrupt,
            ValueError,
            TypeError,
            AttributeError,
            LookupError,
            RecursionError,
        ) as error:
            plan = {}  # its digest may be right, and what it says still be no plan
            report.add('batch-file', f'{place}/plan.json', getattr(error, 'strerror', None) or str(error))
        if plan and state != 'RESTORED':
            self._list(place, number, 'condemned', plan.get('condemned_digest'), plan.get('condemned'))
        if state in ('CONFIRMED', 'FREED') and receipt is not None:
            try:
                self._receipt(number, digest, receipt)
            except (OSError, Corrupt) as error:
                report.add('receipt-bad', f'{place}/receipt', getattr(error, 'strerror', None) or str(error))
        if state == 'FREED':
            self._certificate(number, place)

    def _freed_requests(self, plan: dict[str, Any]) -> None:
        for one in plan.get('requests', ()):
            if one.get('kind') == 'snapshot':
                self._freed_views.add(one['identity'][1])
            self._freed_volumes += one.get('kind') == 'volume'

    def _views(self) -> None:
        """Every view number that was given out belongs to something that stands, waits, or was freed; or a
        rebuild has passed over it, and says so in the reason of its incident."""
        db = self._store.connect()
        try:
            seen = {view for (view,) in query(
                db, 'SELECT number FROM volume UNION SELECT number FROM snapshot '
                'UNION SELECT view FROM request'
            )}  # fmt: skip
            reasons = [reason for (reason,) in query(db, 'SELECT reason FROM incident')]
        finally:
            db.close()
        given = min(self._catalog.settings.get('next_view', 1), limits.VIEW_MAX + 1)
        known = {view for view in seen | self._freed_views if type(view) is int and 0 < view < given}
        passed = [one for one in map(views_passed_over, reasons) if one]
        known = {view for view in known if not any(view in one for one in passed)}
        missing = given - 1 - len(known) - _count(passed, given)
        # A rollback gives its volume another number, and a volume that was freed is told by another one.
        unexplained = missing - self._events['rollback'] - self._freed_volumes
        if unexplained > 0:
            unseen = (
                one for one in range(1, given) if one not in known and not any(one in way for way in passed)
            )
            first = ', '.join(str(one) for one in islice(unseen, 10))
            self._report.add('view-unaccounted', 'catalog.sqlite', f'{unexplained} of the views {first}')

    def _list(self, place: str, number: int, name: str, digest: object, count: object) -> None:
        try:
            with self._store.opened('batches', str(number), name) as (fd, size):
                found = stream_id(read_at(fd, BLOCK_BYTES, at) for at in range(0, size, BLOCK_BYTES)).hex()
                if digest is not None and found != digest:
                    self._report.add('batch-file', f'{place}/{name}', 'is not the one that the plan names')
                elif count is not None and (type(count) is not int or size != count * limits.ID_BYTES):
                    self._report.add('batch-file', f'{place}/{name}', f'has {size} bytes for {count} ids')
        except (OSError, Corrupt) as error:
            self._report.add('batch-file', f'{place}/{name}', getattr(error, 'strerror', None) or str(error))

    def _receipt(self, number: int, plan: bytes, digest: bytes) -> None:
        with self._store.opened('batches', str(number), 'receipt') as (fd, size):
            found = stream_id(read_at(fd, BLOCK_BYTES, at) for at in range(0, size, BLOCK_BYTES))
            if found != digest:
                raise Corrupt('is not the one whose digest the catalog has')
            head = decode_receipt_header(read_at(fd, RECEIPT_HEADER_BYTES, 0), size)
            if head[:3] != (self._store.uuid, number, plan):
                raise Corrupt(f'is of batch {head.batch} of another plan or store')
            step, previous = limits.RECEIPT_ROWS_PER_READ * RECEIPT_ROW_BYTES, None
            db = self._store.connect()
            try:
                for at in range(RECEIPT_HEADER_BYTES, size, step):
                    rows = decode_receipt_rows(read_at(fd, min(step, size - at), at), previous)
                    previous = rows[-1]
                    self._in_use(db, number, rows)
            finally:
                db.close()

    def _in_use(self, db: Any, batch: int, rows: list[ReceiptRow]) -> None:
        """What a receipt names must be nowhere but in `freed`, or in quarantine on its way there."""
        for start in range(0, len(rows), limits.LOCATE_IDS_MAX):
            part = {
                (row.id, self._numbers.get(row.pack_name, -1), row.offset)
                for row in rows[start : start + limits.LOCATE_IDS_MAX]
            }
            marks = ','.join('?' * len(part))
            for table in ('chunk', 'quarantine'):
                text = f'SELECT id, pack, offset FROM {table} WHERE id IN ({marks})'
                if table == 'quarantine':
                    text += f' AND batch != {batch}'
                for row in query(db, text, [one[0] for one in part]):
                    if row in part:
                        self._report.add(
                            'receipt-live',
                            f'batches/{batch}/receipt',
                            f'chunk {row[0].hex()} is still in {table}',
                        )

    def _unproved(self) -> None:
        """Rows of `freed` must be in the receipt of their batch. Both ascend by id, so few are in memory."""
        db = self._store.connect()
        try:
            for (number,) in query(db, 'SELECT DISTINCT batch FROM freed'):
                self._unproved_in(db, number)
        finally:
            db.close()

    def _unproved_in(self, db: sqlite3.Connection, number: int) -> None:
        names = {pack.number: pack.name for pack in self._catalog.packs.values()}
        freed = db.execute('SELECT id, pack, offset FROM freed WHERE batch = ? ORDER BY id', (number,))
        proved, proof = _grouped(self._receipt_places(number)), (b'', [(b'', 0)])
        for id, places in _grouped((id, (names.get(pack, b''), offset)) for id, pack, offset in freed):
            while proof[0] < id:
                proof = next(proved, (END, []))
            for place in places:
                if proof[0] == id and place in proof[1]:
                    continue
                what = f'no receipt of batch {number} names it'
                self._report.add('freed-unproved', f'chunk {id.hex()}', what)

    def _receipt_places(self, number: int) -> Iterator[tuple[bytes, tuple[bytes, int]]]:
        """Yield (id, (name of the pack, offset)) of each row of a receipt, as far as it can be read."""
        try:
            with self._store.opened('batches', str(number), 'receipt') as (fd, size):
                step, previous = limits.RECEIPT_ROWS_PER_READ * RECEIPT_ROW_BYTES, None
                for at in range(RECEIPT_HEADER_BYTES, size, step):
                    rows = decode_receipt_rows(read_at(fd, min(step, size - at), at), previous)
                    previous = rows[-1]
                    for row in rows:
                        yield row.id, (row.pack_name, row.offset)
        except (OSError, Corrupt):
            pass  # the batch's own finding says so; then nothing proves the rest

    def _certificate(self, number: int, place: str) -> None:
        db = self._store.connect()
        try:
            made = query(
                db, "SELECT digest, passed FROM receipt WHERE kind = 'certificate' AND batch = ?", (number,)
            )
        finally:
            db.close()
        name = f'{place}/certificate.json'
        if not made:
            return  # a crash came before the proof, which is made again
        try:
            raw = self._store.read('batches', str(number), 'certificate.json', bytes_max=FILE_BYTES_MAX)
            fields = json.loads(raw)
            if data_id(raw) not in {one[0] for one in made}:
                self._report.add('certificate-bad', name, 'is not the one whose digest the catalog has')
            elif (fields['store'], fields['batch']) != (self._store.uuid.hex(), number):
                self._report.add('certificate-bad', name, 'is of another batch or store')
            elif not fields['passed']:
                self._report.add('certificate-bad', name, 'says that the proof failed')
        except (OSError, Corrupt, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            self._report.add(
                'certificate-bad', name, getattr(error, 'strerror', None) or f'cannot be read: {error}'
            )


def _grouped(
    rows: Iterable[tuple[bytes, tuple[bytes, int]]],
) -> Iterator[tuple[bytes, list[tuple[bytes, int]]]]:
    """Yield each id with its places; rows ascend by id."""
    for id, group in groupby(rows, key=itemgetter(0)):
        yield id, [place for _, place in group]


def _lines(fd: int, size: int, at: int) -> Iterator[bytes]:
    rest = b''
    while at < size:
        block = read_at(fd, min(BLOCK_BYTES, size - at), at)
        at += len(block)
        *whole, rest = (rest + block).split(b'\n')
        yield from whole
        if not block or len(rest) > limits.AUDIT_LINE_BYTES_MAX:
            return


def _hash_of(text: bytes, sequence: int, previous: str) -> str | None:
    """Return the hash of a line that follows the one of hash `previous`, or None when it does not."""
    body = text[:-HASH_TAIL] + b'}'
    try:
        value = json.loads(text)
        good = value['sequence'] == sequence and value['previous'] == previous
        good = good and value['hash'] == data_id(body).hex() and list(value)[-1] == 'hash'
        return value['hash'] if good and isinstance(value['event'], dict) else None
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def _count(ranges: Iterable[range], end: int) -> int:
    """Return how many numbers below `end` are in one of these ranges."""
    count = at = 0
    for one in sorted(ranges, key=lambda one: one.start):
        start, stop = max(one.start, at), min(one.stop, end)
        count += max(0, stop - start)
        at = max(at, stop)
    return count
