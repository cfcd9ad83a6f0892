"""L4 sweep: packs that nobody needs any more are retired and, after a last look, unlinked. Blocking; one at a
time.

A pack goes when every record in it can be accounted for. The catalog's word is not enough: the last look
reads the pack itself and demands for each record a receipt for exactly this location, or a copy elsewhere
that it has just read and verified. A record with neither (a crash left it, or a catalog that went back in
time does not know it) keeps the pack; repacking carries such records along.

Order, for a crash at any point: state 'retired' · last look · audit line · unlink · directory synced ·
rows of the pack gone. A retired pack whose file is missing is one that this order was interrupted in,
after the look."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass

from snapfs import limits
from snapfs.collect.receipts import Receipts
from snapfs.errors import Corrupt
from snapfs.format.packs import (
    ENTRY_BYTES,
    PACK_HEADER_BYTES,
    TRAILER_BYTES,
    PackHeader,
    decode_footer,
    decode_pack_header,
    footer_offset,
)
from snapfs.format.records import HEADER_BYTES, RecordHeader, decode_header, decode_payload
from snapfs.store.catalog import Catalog, checked_location
from snapfs.store.durable import Disk
from snapfs.store.packs import pack_path, scan_records
from snapfs.store.rows import Location, PackRow
from snapfs.store.store import Store

log = logging.getLogger(__name__)


class Vanished(Corrupt):
    """A pack that should be on the disk is not there."""


@dataclass(frozen=True, slots=True)
class PackUse:
    """What the catalog says about one pack: rows and stored bytes (headers included) in each table."""

    row: PackRow
    live: int
    live_bytes: int
    quarantined: int
    quarantined_bytes: int
    freed: int

    @property
    def needed_bytes(self) -> int:
        """What rows of `chunk` and `quarantine` stand for."""
        return self.live_bytes + self.quarantined_bytes

    @property
    def waste(self) -> float:
        """The share of the bytes of its records that no row of `chunk` or `quarantine` stands for. Header and
        footer are none: rewriting brings them back, and a small pack would be rewritten for ever."""
        around = PACK_HEADER_BYTES
        if self.row.state != 'open':
            around += TRAILER_BYTES + self.row.records * ENTRY_BYTES
        whole = self.row.bytes - around
        return 1 - self.needed_bytes / whole if whole > 0 else 0.0


@dataclass(frozen=True, slots=True)
class LastLook:
    """What the last look found: how many records had a receipt or a verified copy, and those with neither."""

    receipts: int
    copies: int
    unaccounted: tuple[tuple[int, bytes], ...]  # offset, id


_COUNT = 'SELECT pack, count(*), sum(stored) FROM {table} GROUP BY pack'


def census(
    catalog: Catalog, busy: frozenset[int], states: tuple[str, ...] = ('sealed', 'retired')
) -> list[PackUse]:
    """Return what is in each pack in one of these states. `busy`: packs that rows in memory name; they are
    left out."""
    counts = {}
    for table in ('chunk', 'quarantine', 'freed'):
        rows = catalog.query(_COUNT.format(table=table))
        counts[table] = {pack: (count, stored + count * HEADER_BYTES) for pack, count, stored in rows}
    return [
        PackUse(
            row,
            *counts['chunk'].get(row.pack, (0, 0)),
            *counts['quarantine'].get(row.pack, (0, 0)),
            counts['freed'].get(row.pack, (0, 0))[0],
        )
        for row in catalog.packs()
        if row.state in states and row.pack not in busy
    ]


def seal_wasteful(store: Store, waste_min: float) -> int:
    """End the open packs that have this much waste; return how many. They count as sealed after the next
    commit, which the caller makes: what has not been put by then goes into another pack."""
    count = 0
    for use in census(store.catalog, frozenset(), ('open',)):
        wasted = use.waste * use.row.bytes
        if use.waste >= waste_min and wasted >= limits.SEAL_WASTE_BYTES_MIN:
            store.chunks.seal_pack(use.row.kind, use.row.pack)
            count += 1
    return count


def retire(store: Store, row: PackRow) -> bool:
    """Give a sealed pack up; False, nothing changed, when something names it (by now). Vanished when
    its file is not there: from here on a missing file counts as one that was unlinked after a last look."""
    if not store.disk.exists(pack_path(store.path / 'packs', row.kind, row.name)):
        raise Vanished(f'pack {row.name.hex()} has vanished')
    with store.catalog.transaction() as db:
        # Asked again inside: a commit may have brought rows since the census, and memory may have some still.
        if row.pack in store.chunks.busy_packs():
            return False
        for table in ('chunk', 'quarantine'):
            if (
                db.execute(f'SELECT 1 FROM {table} WHERE pack = ? LIMIT 1', (row.pack,)).fetchone()
                is not None
            ):
                return False
        changed = db.execute(
            "UPDATE pack SET state = 'retired' WHERE pack = ? AND state = 'sealed' AND name = ?",
            (row.pack, row.name),
        ).rowcount
        assert changed == 1, f'pack {row.pack} is not sealed'
    return True


def unlink(store: Store, row: PackRow, receipts: Receipts) -> LastLook | None:
    """Take the last look at a retired pack and remove it. None: gone. Otherwise what kept it.

    Corrupt when the pack cannot be read to its end; it stays. Latched when a sync failed.
    """
    path = pack_path(store.path / 'packs', row.kind, row.name)
    state = store.catalog.query('SELECT state FROM pack WHERE pack = ? AND name = ?', (row.pack, row.name))
    assert state == [('retired',)], f'pack {row.pack} is not retired'
    if store.disk.exists(path):
        look = last_look(store, row, receipts)
        if look.unaccounted:
            log.warning('pack %s stays: %d records have no receipt', row.name.hex(), len(look.unaccounted))
            return look
        store.audit.append(
            {
                'event': 'pack-gone',
                'pack': row.name.hex(),
                'bytes': row.bytes,
                'receipts': look.receipts,
                'copies': look.copies,
            }
        )
        store.chunks.forget_pack(row.pack)
        store.disk.unlink(path)
    store.disk.sync_directory(path.parent)
    with store.catalog.transaction() as db:
        for table in ('chunk', 'quarantine'):
            named = db.execute(f'SELECT 1 FROM {table} WHERE pack = ? LIMIT 1', (row.pack,)).fetchone()
            assert named is None, f'P1: pack {row.pack} is named again, in {table}'
        db.execute('DELETE FROM freed WHERE pack = ?', (row.pack,))
        gone = db.execute("DELETE FROM pack WHERE pack = ? AND state = 'retired'", (row.pack,)).rowcount
        assert gone == 1, f'P1: {gone} packs would be forgotten with pack {row.pack}'
    return None


def last_look(store: Store, row: PackRow, receipts: Receipts) -> LastLook:
    """Read a pack and account for each record in it. Corrupt when it is not what the catalog says it is."""
    headers = list(read_pack(store, row))
    freed = receipts.of_pack(row, [(offset, header.id) for offset, header in headers])
    elsewhere = [header.id for offset, header in headers if (offset, header.id) not in freed]
    locations = store.catalog.locate(list(dict.fromkeys(elsewhere)))
    count, unaccounted = 0, []
    for offset, header in headers:
        if (offset, header.id) in freed:
            continue
        if not any(_is_there(store, header, one) for one in _elsewhere(store, row, header.id, locations)):
            unaccounted.append((offset, header.id))
        else:
            count += 1
    accounted = len(headers) - count - len(unaccounted)
    return LastLook(accounted, count, tuple(unaccounted))


def _elsewhere(store: Store, row: PackRow, id: bytes, known: dict[bytes, Location]) -> Iterator[Location]:
    """Yield where another copy should be: in use, or in quarantine, from where it may come back."""
    location = known.get(id)
    if location is not None and location.pack != row.pack:
        yield location
    text = 'SELECT pack, offset, stored, plain FROM quarantine WHERE id = ? AND pack != ?'
    for place in store.catalog.query(text, (id, row.pack)):
        yield checked_location(Location(*place))


def _is_there(store: Store, wanted: RecordHeader, location: Location) -> bool:
    """Return whether the copy elsewhere is whole: read from its pack and verified against its id, now."""
    found = store.catalog.query('SELECT name, kind FROM pack WHERE pack = ?', (location.pack,))
    if not found:
        return False
    name, kind = found[0]
    try:
        fd = store.disk.open_read(pack_path(store.path / 'packs', kind, name))
    except FileNotFoundError:
        return False
    try:
        data = memoryview(store.disk.pread(fd, HEADER_BYTES + location.stored_length, location.offset))
        header = decode_header(data[:HEADER_BYTES])
        decode_payload(header, data[HEADER_BYTES:])
    except Corrupt as error:
        log.error('the copy of chunk %s in pack %s: %s', wanted.id.hex(), name.hex(), error)
        return False
    finally:
        store.disk.close(fd)
    return header.id == wanted.id and header.kind == wanted.kind


def read_pack(store: Store, row: PackRow) -> Iterator[tuple[int, RecordHeader]]:
    """Yield (offset, header) of every record of a sealed pack; Corrupt unless it is whole, as the catalog and
    its own footer say, and Vanished when it is not there."""
    disk: Disk = store.disk
    try:
        fd = disk.open_read(pack_path(store.path / 'packs', row.kind, row.name))
    except FileNotFoundError as error:
        raise Vanished(f'pack {row.name.hex()} has vanished') from error
    try:
        size = disk.size(fd)
        if size != row.bytes or size < PACK_HEADER_BYTES + TRAILER_BYTES:
            raise Corrupt(f'pack {row.name.hex()} has {size} bytes, not {row.bytes}')
        header = decode_pack_header(disk.pread(fd, PACK_HEADER_BYTES, 0))
        if header != PackHeader(store.superblock.uuid, row.name, header.kind) or header.kind != row.kind:
            raise Corrupt(f'pack {row.name.hex()}: the header is that of pack {header.name.hex()}')
        end = footer_offset(disk.pread(fd, TRAILER_BYTES, size - TRAILER_BYTES), size)
        entries = decode_footer(disk.pread(fd, size - end, end), size, row.name)
        count = 0
        for offset, record in scan_records(disk, fd, end):
            if count >= len(entries) or entries[count][:2] != (record.id, offset):
                raise Corrupt(f'pack {row.name.hex()}: its footer does not list the record at {offset}')
            count += 1
            yield offset, record
        if count != len(entries) or count != row.records or count > limits.PACK_RECORDS_MAX:
            raise Corrupt(f'pack {row.name.hex()}: {count} records, {row.records} expected')
    finally:
        disk.close(fd)
