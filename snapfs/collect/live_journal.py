"""L4 live journal: chunk ids in journal records that no commit has superseded, for the second recount.
Blocking.

After a crash these records are replayed: what they refer to would be needed then. The commit at the
horizon supersedes all that came before; whatever is newer must not name a condemned chunk, unless it
brings its own copy."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from snapfs import limits
from snapfs.collect.catalog_ids import has_entry
from snapfs.collect.meta_packs import read_bytes
from snapfs.errors import Corrupt
from snapfs.format.items import check_item, ref_of
from snapfs.format.journal import (
    JOURNAL_HEADER_BYTES,
    JournalFrame,
    decode_journal_header,
    decode_records,
    is_cut_journal_header,
)


class JournalId(NamedTuple):
    """An id that a record names. `pack`, `offset`: where the record says that the chunk is; b'' and 0 for
    an item that refers to it."""

    id: bytes
    row: str
    pack: bytes
    offset: int


def live_ids(store: Path, store_uuid: bytes, committed: int) -> Iterator[JournalId]:
    """Yield every id in the complete records above the sequence `committed`. Corrupt when a file cannot be
    read."""
    for number in (0, 1):
        path = store / 'journal' / str(number)
        size = has_entry(path)
        if size != limits.JOURNAL_BYTES:
            raise Corrupt(f'journal/{number} is missing or has not {limits.JOURNAL_BYTES} bytes')
        data = read_bytes(path, 0, size)
        if not is_cut_journal_header(data, store_uuid, number):
            header = decode_journal_header(data)
            raise Corrupt(
                f'journal/{number} is of store {header.store_uuid.hex()}, file {header.file_number}'
            )
        for record in decode_records(data, store_uuid, JOURNAL_HEADER_BYTES, 0):
            if record[0].sequence > committed:
                for frame in record:
                    yield from _frame_ids(frame)


def _frame_ids(frame: JournalFrame) -> Iterator[JournalId]:
    row = f'journal record {frame.sequence}'
    for chunk in frame.chunks:
        yield JournalId(chunk.id, row, chunk.pack_name, chunk.offset)
    for delta in frame.volumes:
        for key, value in delta.items:
            if value is not None:
                check_item(key, value)
                id = ref_of(key, value)
                if id is not None:
                    yield JournalId(id, row, b'', 0)
