"""L2 recovery: what an unclean stop left in packs is made whole before anybody writes. Blocking; one thread,
at open.

A pack that was open keeps its valid records and gets its footer. *Floor* is up to where catalog and journal
name bytes of the pack: below it nothing is ever cut off, whatever it looks like (the bytes were durable, so
an oddity there is damage, for fsck to judge); above it nobody was promised anything, and the first record
that is not whole ends it. Packs that nobody names are kept as well: their records are leaks, which only a
person's request frees. A pack that the disk does not give now says nothing about itself, and stays open: the
next opening looks again.
"""

from __future__ import annotations

import logging
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from snapfs import limits
from snapfs.errors import Corrupt
from snapfs.format.packs import (
    ENTRY_BYTES,
    PACK_HEADER_BYTES,
    TRAILER_BYTES,
    PackEntry,
    PackHeader,
    decode_footer,
    decode_pack_header,
    encode_footer,
    encode_pack_header,
    footer_offset,
)
from snapfs.format.records import HEADER_BYTES, RecordKind, decode_header, decode_payload
from snapfs.store.durable import Disk
from snapfs.store.packs import BYTES_MAX, FOLDERS, Window, pack_path
from snapfs.store.rows import PackRow

log = logging.getLogger('snapfs.store')

_UNSEEN = (
    'All packs in there would count as lost. Give the right back (chmod u+rwx); if the disk has lost it, '
    'move it out of the store first.'
)
_IF_LOST = 'If all packs in there are really lost: mkdir {0}, and call again.'
PACK_FILE_BYTES_MAX = (
    limits.PACK_DATA_BYTES_MAX
    + limits.STORED_BYTES_MAX
    + limits.PACK_RECORDS_MAX * ENTRY_BYTES
    + TRAILER_BYTES
)


@dataclass(frozen=True, slots=True)
class Recovered:
    """What became of one pack. `bytes` is the size of its file now; `oddity` is None, or why it was left
    alone; `unseen`: because the disk did not give its bytes, or had no room for the footer."""

    bytes: int
    records: int
    cut_bytes: int
    oddity: str | None = None
    unseen: bool = False


def _may_be_a_directory(path: Path) -> bool:
    try:
        return stat.S_ISDIR(os.lstat(path).st_mode)
    except OSError:
        return True  # what cannot be seen may be full of packs


def packs_on_disk(disk: Disk, root: Path, *, every: bool = False) -> list[tuple[int, bytes]]:
    """Return (kind, name) of every file under STORE/packs that is called like a pack; others are logged. With
    `every`, for whom a pack that is not seen is one that is lost: Corrupt when a directory is missing or
    cannot be listed (P10)."""
    found = []
    for kind, folder in FOLDERS.items():
        if every and not disk.exists(root / folder):
            raise Corrupt(f'{root / folder} is missing', advice=_IF_LOST.format(root / folder))
        for prefix in disk.listdir(root / folder):
            try:
                texts = disk.listdir(root / folder / prefix)
            except Corrupt as error:
                if every and _may_be_a_directory(root / folder / prefix):
                    raise Corrupt(str(error), advice=_UNSEEN) from error
                log.error('%s; it is left alone', error)  # a pack in there that anybody names will be missed
                continue
            for text in texts:
                if is_pack_name(text) and text[:2] == prefix:
                    found.append((int(kind), bytes.fromhex(text)))
                else:
                    log.warning(
                        'packs/%s/%s/%r is not called like a pack; it is left alone', folder, prefix, text
                    )
    return found


def is_pack_name(text: str) -> bool:
    """Return whether a file is called like a pack."""
    try:
        name = bytes.fromhex(text)
    except ValueError:
        return False
    return name.hex() == text and len(name) == limits.PACK_NAME_BYTES


def recover_pack(disk: Disk, root: Path, store_uuid: bytes, row: PackRow, floor: int) -> Recovered:
    """Seal a pack after an unclean stop: keep what is valid, cut off the torn rest above `floor`, write the
    footer, sync. Safe to repeat after a crash in the middle of it."""
    path = pack_path(root, row.kind, row.name)
    try:
        fd = disk.open_write(path, create=False)
    except (FileNotFoundError, Corrupt) as error:
        return Recovered(row.bytes, row.records, 0, str(error), _is_unseen(error))
    try:
        size, expected = disk.size(fd), PackHeader(store_uuid, row.name, RecordKind(row.kind))
        if not floor and _never_synced(disk, fd, size, expected):
            disk.unlink(path)
            disk.sync_directory(path.parent)
            return Recovered(0, 0, size)
        oddity = _header_oddity(disk, fd, size, expected)
        if oddity is None:
            return _seal(disk, fd, size, row, floor)
        return Recovered(size, row.records, 0, oddity)
    except Corrupt as error:
        if not _is_unseen(error):
            raise
        return Recovered(row.bytes, row.records, 0, str(error), unseen=True)
    finally:
        disk.close(fd)


def _is_unseen(error: Exception) -> bool:
    """Return whether it was the disk that did not answer, and not what is in the file."""
    return isinstance(error, Corrupt) and isinstance(error.__cause__, OSError)


def _never_synced(disk: Disk, fd: int, size: int, expected: PackHeader) -> bool:
    """True for a pack that nobody names and whose header never got to the disk, or not all of it: no sync of
    it ever succeeded, and there is no record, or none that could be believed."""
    if size <= PACK_HEADER_BYTES:
        return True
    there, whole = disk.pread(fd, PACK_HEADER_BYTES, 0), encode_pack_header(expected)
    return there != whole and all(now in (0, then) for now, then in zip(there, whole, strict=True))


def _header_oddity(disk: Disk, fd: int, size: int, expected: PackHeader) -> str | None:
    if size > PACK_FILE_BYTES_MAX:
        return f'{size} bytes, more than any pack has'
    try:
        found = decode_pack_header(disk.pread(fd, PACK_HEADER_BYTES, 0))
    except Corrupt as error:
        if _is_unseen(error):
            raise
        return str(error)
    return None if found == expected else f'the header is that of pack {found.name.hex()}'


def _seal(disk: Disk, fd: int, size: int, row: PackRow, floor: int) -> Recovered:
    index_offset = _find_footer(disk, fd, size, row.name)
    end = size if index_offset is None else index_offset
    entries, valid_end = _valid_records(disk, fd, end, row.kind, floor)
    if valid_end < floor or len(entries) > limits.PACK_RECORDS_MAX:
        # What the catalog counts is there, whatever became of it: with fewer nobody would look behind it.
        count = max(len(entries), row.records)
        return Recovered(size, count, 0, f'no valid record at {valid_end}, but {floor} bytes are in use')
    if index_offset == valid_end:
        disk.sync_data(fd)  # whole, but perhaps only in memory: a killed process, not a power cut
        return Recovered(size, len(entries), 0)
    disk.truncate(fd, valid_end)
    footer = encode_footer(entries, valid_end, row.name)
    disk.pwrite(fd, [footer], valid_end)
    disk.sync_data(fd)
    return Recovered(valid_end + len(footer), len(entries), end - valid_end)


def _find_footer(disk: Disk, fd: int, size: int, name: bytes) -> int | None:
    """Return where a valid footer begins, None when there is none."""
    if size < PACK_HEADER_BYTES + TRAILER_BYTES:
        return None
    try:
        offset = footer_offset(disk.pread(fd, TRAILER_BYTES, size - TRAILER_BYTES), size)
        decode_footer(disk.pread(fd, size - offset, offset), size, name)
    except Corrupt:
        return None
    return offset


def _valid_records(disk: Disk, fd: int, end: int, kind: int, floor: int) -> tuple[list[PackEntry], int]:
    """Return the records up to the first that is not whole, and where they end. Payloads are verified above
    the floor."""
    window = Window(disk, fd, end)
    entries: list[PackEntry] = []
    offset = PACK_HEADER_BYTES
    while offset < min(end, BYTES_MAX[RecordKind(kind)]):
        try:
            header = decode_header(window.take(offset, HEADER_BYTES))
            after = offset + HEADER_BYTES + header.stored_length
            if header.kind != kind or after > end:
                break
            if after > floor:
                decode_payload(header, window.take(offset + HEADER_BYTES, header.stored_length))
        except Corrupt as error:
            if _is_unseen(error) and offset < floor:
                raise
            break
        entries.append(PackEntry(header.id, offset, header.stored_length, header.plain_length, header.codec))
        offset = after
    return entries, offset
