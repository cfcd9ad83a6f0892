"""L4 files: what a batch has in STORE/batches/N/. Blocking; one writer, any number of readers.

plan.json (plan.py) · condemned, returned (ids of 32 bytes, ascending, back to back) · recount1.json,
recount2.json, certificate.json (written by those steps) · receipt (format.receipts). Each is written whole
and durably, and read only against the digest that the plan or the catalog has of it: what cannot be verified
is Corrupt, never empty (P10).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from snapfs import limits
from snapfs.collect.plan import Plan, decode_plan
from snapfs.errors import Corrupt
from snapfs.format.ids import data_id, stream_id
from snapfs.format.receipts import (
    RECEIPT_HEADER_BYTES,
    RECEIPT_ROW_BYTES,
    ReceiptHeader,
    ReceiptRow,
    decode_receipt_header,
    decode_receipt_rows,
    encode_receipt_header,
    encode_receipt_rows,
)
from snapfs.store.durable import Buffer, Disk

PLAN = 'plan.json'
CONDEMNED = 'condemned'
RETURNED = 'returned'
RECEIPT = 'receipt'
SCRATCH = 0  # in the place of a batch's number: the directory of recounts that only answer a question


class BatchFiles:
    """The directories of all batches of one store."""

    def __init__(self, disk: Disk, store: Path, uuid: bytes) -> None:
        self._disk = disk
        self._root = store / 'batches'
        self._uuid = uuid

    def path(self, batch: int, name: str = '') -> Path:
        """Return where a file (or, without a name, the directory) of a batch is, or of SCRATCH."""
        assert batch >= 0
        return self._root / (str(batch) if batch else 'what-if') / name

    def make(self, batch: int) -> Path:
        """Make the directory of a batch, durably; it may be there already."""
        if self._disk.mkdir(self.path(batch)):
            self._disk.sync_directory(self._root)
        return self.path(batch)

    def has(self, batch: int, name: str) -> bool:
        """Say whether a batch has a file of this name."""
        return self._disk.exists(self.path(batch, name))

    def make_scratch(self) -> Path:
        """Make the directory for recounts that only answer a question. Nothing in it is believed later."""
        self._disk.mkdir(self.path(SCRATCH))
        return self.path(SCRATCH)

    def remove(self, batch: int) -> None:
        """Remove the files of a plan that came to nothing: no row ever named them."""
        for name in self._disk.listdir(self.path(batch)):
            self._disk.unlink(self.path(batch, name))

    # --- plan --------------------------------------------------------------------------------------------
    def write_plan(self, plan: Plan) -> None:
        """Write plan.json, durably."""
        self.make(plan.batch)
        self._disk.write_file(self.path(plan.batch, PLAN), plan.encode())

    def plan(self, batch: int, digest: bytes) -> Plan:
        """Return the plan of a batch. Corrupt when it is missing or is not the one of this digest."""
        data = self._read(batch, PLAN, limits.PLAN_BYTES_MAX)
        if data_id(data) != digest:
            raise Corrupt(f'batch {batch}: plan.json has been altered: it is not that of {digest.hex()}')
        plan = decode_plan(data)
        if plan.batch != batch or plan.store != self._uuid:
            raise Corrupt(f'batch {batch}: plan.json is of batch {plan.batch} of store {plan.store.hex()}')
        return plan

    def _read(self, batch: int, name: str, bytes_max: int) -> bytes:
        try:
            return self._disk.read_file(self.path(batch, name), bytes_max)
        except FileNotFoundError:
            raise Corrupt(f'batch {batch}: {name} is missing') from None

    # --- lists of ids ------------------------------------------------------------------------------------
    def write_ids(self, batch: int, name: str, ids: Iterable[bytes]) -> bytes:
        """Write a list of ids, sorted, each once; return the digest of the file."""
        data = b''.join(sorted(set(ids)))
        self.make(batch)
        self._disk.write_file(self.path(batch, name), data)
        return data_id(data)

    def adopt(self, batch: int, part: str, name: str, digest: bytes) -> None:
        """Take over a file that a worker wrote as `part`: durable under its own name. Corrupt unless it is
        the one of this digest."""
        self.check(batch, part, digest)
        self._disk.rename(self.path(batch, part), self.path(batch, name))
        self._disk.sync_directory(self.path(batch))

    def digest(self, batch: int, name: str) -> bytes:
        """Return the digest of a file of a batch. Corrupt when it is missing."""
        return stream_id(self._blocks(batch, name, limits.MIB))

    def check(self, batch: int, name: str, digest: bytes, count: int | None = None) -> None:
        """Raise Corrupt unless the file has this digest and, if given, so many ids."""
        if self.digest(batch, name) != digest:
            raise Corrupt(f'batch {batch}: the file {name} is not the one that the plan names')
        if count is not None and self._disk.size(self.path(batch, name)) != count * limits.ID_BYTES:
            raise Corrupt(f'batch {batch}: the file {name} has not {count} ids')

    def ids(self, batch: int, name: str, count: int) -> Iterator[list[bytes]]:
        """Yield the ids of a file in slices of at most `count`. Corrupt unless they ascend strictly.

        Verify the file with `check` first.
        """
        last = b''
        for block in self._blocks(batch, name, count * limits.ID_BYTES):
            data = bytes(block)
            ids = [data[n : n + limits.ID_BYTES] for n in range(0, len(data), limits.ID_BYTES)]
            if len(ids[-1]) != limits.ID_BYTES or any(map(bytes.__ge__, [last, *ids], ids)):
                raise Corrupt(f'batch {batch}: the file {name} is no ascending list of ids')
            last = ids[-1]
            yield ids

    def _blocks(self, batch: int, name: str, size: int) -> Iterator[Buffer]:
        try:
            fd = self._disk.open_read(self.path(batch, name))
        except FileNotFoundError:
            raise Corrupt(f'batch {batch}: {name} is missing') from None
        try:
            end = self._disk.size(fd)
            for offset in range(0, end, size):
                wanted = min(size, end - offset)
                block = self._disk.pread(fd, wanted, offset)
                if len(block) != wanted:
                    raise Corrupt(f'batch {batch}: {name} became shorter while it was read')
                yield block
        finally:
            self._disk.close(fd)

    # --- receipt -----------------------------------------------------------------------------------------
    def write_receipt(
        self, batch: int, plan_digest: bytes, count: int, rows: Iterable[list[ReceiptRow]]
    ) -> bytes:
        """Write the receipt of `count` rows, which come ascending; return its digest. Read back and
        checked."""
        header = encode_receipt_header(ReceiptHeader(self._uuid, batch, plan_digest, count))

        def blocks() -> Iterator[bytes]:
            yield header
            for part in rows:
                yield encode_receipt_rows(part)

        self._disk.write_blocks(self.path(batch, RECEIPT), blocks())
        digest = self.digest(batch, RECEIPT)
        for _ in self.receipt(batch, digest, plan_digest):
            pass
        return digest

    def receipt(self, batch: int, digest: bytes, plan_digest: bytes) -> Iterator[list[ReceiptRow]]:
        """Yield the rows of the receipt with this digest in slices. Corrupt when it is missing, is another
        one, or is of another batch or store."""
        if self.digest(batch, RECEIPT) != digest:
            raise Corrupt(f'batch {batch}: the receipt is not the one that the catalog names')
        path = self.path(batch, RECEIPT)
        fd = self._disk.open_read(path)
        try:
            size = self._disk.size(fd)
            header = decode_receipt_header(self._disk.pread(fd, RECEIPT_HEADER_BYTES, 0), size)
            if header[:3] != (self._uuid, batch, plan_digest):
                raise Corrupt(
                    f'batch {batch}: the receipt is of batch {header.batch} of another plan or store'
                )
            previous = None
            step = limits.RECEIPT_ROWS_PER_READ * RECEIPT_ROW_BYTES
            for offset in range(RECEIPT_HEADER_BYTES, size, step):
                rows = decode_receipt_rows(self._disk.pread(fd, min(step, size - offset), offset), previous)
                previous = rows[-1]
                yield rows
        finally:
            self._disk.close(fd)
