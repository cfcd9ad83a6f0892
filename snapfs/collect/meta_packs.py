"""L4 meta packs: every record of every pack, read front to back, for the second recount. Blocking; one
thread.

Reads the files by itself, with nothing of the chunk store: the folders are listed here, and compared with
the pack table; each meta pack is read whole, from its header to its durable end. Whatever does not fit
raises Corrupt: missing input is never empty input (P10)."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from snapfs import limits
from snapfs.collect.catalog_ids import PackFact
from snapfs.errors import Corrupt
from snapfs.format.ids import RecordKind
from snapfs.format.packs import (
    ENTRY_BYTES,
    PACK_HEADER_BYTES,
    TRAILER_BYTES,
    PackEntry,
    PackHeader,
    decode_footer,
    decode_pack_header,
    footer_offset,
)
from snapfs.format.records import HEADER_BYTES, RecordHeader, decode_header

FOLDERS = {1: 'data', 2: 'meta'}
_STRANGER = 'If it is not of snapfs, move it out of the store; else keep all as it is: snapfs fsck.'
_FILE_BYTES_MAX = (
    limits.PACK_DATA_BYTES_MAX
    + limits.STORED_BYTES_MAX
    + limits.PACK_RECORDS_MAX * ENTRY_BYTES
    + TRAILER_BYTES
)


@dataclass(frozen=True, slots=True)
class PackList:
    """Packs of the table that are all there, and names of files on disk that the table does not have
    (yet)."""

    packs: tuple[PackFact, ...]
    strangers: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class PackContent:
    """A meta pack in memory: its bytes, and (offset of the header, header) of each record, in order."""

    fact: PackFact
    data: memoryview
    records: tuple[tuple[int, RecordHeader], ...]


def pack_file(store: Path, fact: PackFact) -> Path:
    """Return the path of a pack."""
    text = fact.name.hex()
    return store / 'packs' / FOLDERS[fact.kind] / text[:2] / text


def compare_packs(store: Path, facts: Sequence[PackFact]) -> PackList:
    """Compare the files under STORE/packs with the rows, which were read before this call.

    Corrupt: a pack of the table is missing, shorter or longer than it can be; a name that no pack has; a
    folder that cannot be listed. A retired pack may be missing: a crash came between its unlink, which
    follows the last look, and the end of its row. It would be missing at every recount from then on."""
    files = {(kind, name) for kind in FOLDERS for name in _names(store / 'packs' / FOLDERS[kind])}
    rows = {(fact.kind, fact.name) for fact in facts}
    gone = {(fact.kind, fact.name) for fact in facts if fact.state == 'retired'} - files
    missing = sorted(name.hex() for _, name in rows - files - gone)
    if missing:
        raise Corrupt(f'{len(missing)} packs of the catalog are not on the disk, the first is {missing[0]}')
    facts = [fact for fact in facts if (fact.kind, fact.name) not in gone]
    for fact in facts:
        size = _size(pack_file(store, fact))
        # An open pack may have grown since the last commit, or been sealed.
        if size < fact.bytes or (fact.state != 'open' and size != fact.bytes) or size > _FILE_BYTES_MAX:
            raise Corrupt(f'pack {fact.name.hex()} has {size} bytes, the catalog says {fact.bytes}')
    return PackList(tuple(facts), tuple(sorted(name for _, name in files - rows)))


def _names(folder: Path) -> Iterator[bytes]:
    """Yield the pack names below packs/data or packs/meta."""
    for short in _listed(folder):
        for text in _listed(folder / short):
            try:
                name = bytes.fromhex(text)
            except ValueError:
                name = b''
            if len(name) != limits.PACK_NAME_BYTES or name.hex() != text or text[:2] != short:
                raise Corrupt(f'{ascii(str(folder / short / text))[1:-1]} is not a pack', advice=_STRANGER)
            yield name


def _listed(folder: Path) -> list[str]:
    try:
        if not stat.S_ISDIR(os.lstat(folder).st_mode):
            raise Corrupt(f'{ascii(str(folder))[1:-1]} is not a directory', advice=_STRANGER)
        return sorted(os.listdir(folder))
    except OSError as error:
        # Also when it is not there: a store has these folders from the beginning.
        raise Corrupt(f'cannot list {folder}: {error.strerror}') from error


def _size(path: Path) -> int:
    try:
        status = os.lstat(path)
    except OSError as error:
        raise Corrupt(f'cannot look at pack {path.name}: {error.strerror}') from error
    if not stat.S_ISREG(status.st_mode):
        raise Corrupt(f'pack {path.name} is not a regular file')
    return status.st_size


def read_bytes(path: Path, start: int, count: int) -> memoryview:
    """Return exactly these bytes of a regular file. Corrupt when any of them cannot be had."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            return _read_exactly(fd, path, start, count)
        finally:
            os.close(fd)
    except OSError as error:
        raise Corrupt(f'cannot read {path.name}: {error.strerror}') from error


def _read_exactly(fd: int, path: Path, start: int, count: int) -> memoryview:
    buffer = memoryview(bytearray(count))
    done = 0
    while done < count:
        got = os.preadv(fd, [buffer[done : done + limits.READ_BYTES_MAX]], start + done)
        if got <= 0:
            raise Corrupt(f'{path.name} ends at {start + done}, {start + count} expected')
        done += got
    return buffer


def read_meta_pack(store: Path, store_uuid: bytes, fact: PackFact) -> PackContent:
    """Read a meta pack from its header to its durable end. Corrupt unless everything fits: header, records
    back to back, their number, and for a pack that is not open its footer, entry by entry."""
    assert fact.kind == RecordKind.NODE
    path = pack_file(store, fact)
    if not PACK_HEADER_BYTES <= fact.bytes <= _FILE_BYTES_MAX:
        raise Corrupt(f'pack {path.name}: {fact.bytes} bytes cannot be')
    data = read_bytes(path, 0, fact.bytes)
    try:
        if decode_pack_header(data) != PackHeader(store_uuid, fact.name, RecordKind.NODE):
            raise Corrupt('the header is that of another pack')
        entries: list[PackEntry] | None = None
        end = fact.bytes
        if fact.state != 'open':
            end = footer_offset(data[-TRAILER_BYTES:], fact.bytes)
            entries = decode_footer(data[end:], fact.bytes, fact.name)
        records = tuple(_records(data, end))
        if len(records) != fact.records:
            raise Corrupt(f'{len(records)} records, the catalog says {fact.records}')
        if entries is not None:
            _compare(records, entries)
    except Corrupt as error:
        raise Corrupt(f'pack {path.name}: {error}') from error
    return PackContent(fact, data, records)


def _records(data: memoryview, end: int) -> Iterator[tuple[int, RecordHeader]]:
    offset = PACK_HEADER_BYTES
    while offset < end:
        try:
            header = decode_header(data[:end], offset)
        except Corrupt as error:
            raise Corrupt(f'at offset {offset}: {error}') from error
        after = offset + HEADER_BYTES + header.stored_length
        if header.kind != RecordKind.NODE or after > end:
            raise Corrupt(
                f'at offset {offset}: a record of kind {header.kind} that ends at {after}, not by {end}'
            )
        yield offset, header
        offset = after


def _compare(records: Sequence[tuple[int, RecordHeader]], entries: Sequence[PackEntry]) -> None:
    seen = [(one.id, offset, one.stored_length, one.plain_length, int(one.codec)) for offset, one in records]
    if seen != [tuple(entry) for entry in entries]:
        raise Corrupt('the footer does not list the records that are there')


def read_stranger(store: Path, store_uuid: bytes, name: bytes) -> PackContent | None:
    """Read what is whole of a pack that the catalog does not have: made by a daemon that writes meanwhile.
    None for one of data. Corrupt when it is a pack of another store."""
    text = name.hex()
    path = store / 'packs' / FOLDERS[RecordKind.NODE] / text[:2] / text
    size = has_bytes(path)
    if size is None:
        return None
    data = read_bytes(path, 0, min(size, _FILE_BYTES_MAX))
    records: list[tuple[int, RecordHeader]] = []
    if len(data) >= PACK_HEADER_BYTES:
        if decode_pack_header(data) != PackHeader(store_uuid, name, RecordKind.NODE):
            raise Corrupt(f'pack {text}: the header is that of another pack')
        try:
            for record in _records(data, len(data)):
                records.append(record)
        except Corrupt:
            pass  # its writer has not come further, or its footer stands there
    fact = PackFact(-1, name, RecordKind.NODE, 'open', len(data), len(records))
    return PackContent(fact, data, tuple(records))


def has_bytes(path: Path) -> int | None:
    """Return the size in bytes of a pack's file, None when it is not there."""
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise Corrupt(f'cannot look at pack {path.name}: {error.strerror}') from error
    return status.st_size
