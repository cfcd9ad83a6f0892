"""L4 receipts: does a record have a receipt for exactly the place it is at? Blocking; one thread.

The table `freed` says which batch a record was freed by; the batch's receipt file must say the same, and
be the file whose digest the batch's row holds. Only both together account for a record (P8)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from snapfs import limits
from snapfs.errors import Corrupt
from snapfs.format.ids import stream_id
from snapfs.format.receipts import (
    RECEIPT_HEADER_BYTES,
    RECEIPT_ROW_BYTES,
    ReceiptRow,
    decode_receipt_header,
    decode_receipt_rows,
)
from snapfs.store.rows import PackRow
from snapfs.store.store import Store

# Which freed rows of one pack have these ids: position in the list, offset, batch.
_FREED = """
WITH RECURSIVE wanted(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM wanted WHERE i + 1 < ?2)
SELECT i, freed.offset, freed.batch FROM wanted
CROSS JOIN freed ON freed.id = substr(?1, 32 * i + 1, 32) AND freed.pack = ?3
"""


@dataclass(slots=True)
class _File:
    """The receipt of one batch, checked as a whole when it was opened."""

    fd: int
    rows: int


class Receipts:
    """The receipts of a store's batches. `close` when done."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._files: dict[int, _File] = {}

    def of_pack(self, row: PackRow, records: Sequence[tuple[int, bytes]]) -> set[tuple[int, bytes]]:
        """Return those of `records` (offset, id) of a pack that have a receipt. Corrupt when a receipt is not
        what its batch's row says."""
        found: set[tuple[int, bytes]] = set()
        wanted = set(records)
        ids = sorted({id for _, id in records})
        for start in range(0, len(ids), limits.LOCATE_IDS_MAX):
            part = ids[start : start + limits.LOCATE_IDS_MAX]
            rows = self._store.catalog.query(_FREED, (b''.join(part), len(part), row.pack))
            for position, offset, batch in rows:
                record = (offset, part[position])
                if record in wanted and self._covers(batch, record, row.name):
                    found.add(record)
        return found

    def _covers(self, batch: int, record: tuple[int, bytes], name: bytes) -> bool:
        """Return whether the batch's receipt has this id at this place. Bisection: rows ascend."""
        file = self._file(batch)
        wanted = (record[1], name, record[0])
        low, high = 0, file.rows
        while low < high:
            middle = (low + high) // 2
            row = self._row(file, middle)
            key = (row.id, row.pack_name, row.offset)
            if key == wanted:
                return True
            if key < wanted:
                low = middle + 1
            else:
                high = middle
        return False

    def _row(self, file: _File, index: int) -> ReceiptRow:
        at = RECEIPT_HEADER_BYTES + index * RECEIPT_ROW_BYTES
        return decode_receipt_rows(self._store.disk.pread(file.fd, RECEIPT_ROW_BYTES, at))[0]

    def _file(self, batch: int) -> _File:
        file = self._files.get(batch)
        if file is None:
            self._files[batch] = file = self._open(batch)
        return file

    def _open(self, batch: int) -> _File:
        store = self._store
        rows = store.catalog.query('SELECT state, digest, receipt FROM batch WHERE number = ?', (batch,))
        if not rows or rows[0][0] not in ('CONFIRMED', 'FREED') or rows[0][2] is None:
            raise Corrupt(f'catalog: chunks freed by batch {batch}, which has no receipt')
        _, plan_digest, digest = rows[0]
        try:
            fd = store.disk.open_read(store.path / 'batches' / str(batch) / 'receipt')
        except FileNotFoundError:
            raise Corrupt(f'the receipt of batch {batch} is missing') from None
        try:
            size = store.disk.size(fd)
            step = limits.MIB
            if (
                stream_id(store.disk.pread(fd, min(step, size - at), at) for at in range(0, size, step))
                != digest
            ):
                raise Corrupt(f'the receipt of batch {batch} is not the one its row names')
            header = decode_receipt_header(store.disk.pread(fd, RECEIPT_HEADER_BYTES, 0), size)
            if header[:3] != (store.superblock.uuid, batch, plan_digest):
                raise Corrupt(f'the receipt of batch {batch} is that of another batch or store')
        except BaseException:
            store.disk.close(fd)
            raise
        return _File(fd, header.rows)

    def close(self) -> None:
        """Close every file."""
        while self._files:
            self._store.disk.close(self._files.popitem()[1].fd)
