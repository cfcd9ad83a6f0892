"""L4 copies: which nodes their packs have lost and the mirror (store/mirror.py) still has. Blocking; reads
only; in a process of its own.

Two ways back, in this order. A sealed pack of nodes that is gone, or has lost its end, can be made again
whole when its copy is: then all that names it is right again, receipts and the collector's own look through
the packs included. Of other packs single nodes come back, of those that the index names: one that is not
whole in its place, and is whole in the copy."""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from snapfs import limits
from snapfs.errors import Corrupt
from snapfs.format.ids import RecordKind
from snapfs.format.packs import (
    PACK_HEADER_BYTES,
    TRAILER_BYTES,
    PackEntry,
    PackHeader,
    decode_footer,
    decode_pack_header,
    encode_footer,
    footer_offset,
)
from snapfs.format.records import HEADER_BYTES, decode_header, decode_payload
from snapfs.rescue.presence import Presence
from snapfs.rescue.reader import Place, Reader
from snapfs.rescue.recover_values import Copies, CopiesSpec, Depth, Donor, Lost, PackCopy
from snapfs.store.durable import Disk
from snapfs.store.mirror import is_linked, mirror_path, read_copy
from snapfs.store.packs import pack_path
from snapfs.store.recovery import PACK_FILE_BYTES_MAX
from snapfs.store.rows import PackRow

Progress = Callable[[int, int], None]
PACKS_AT_ONCE = 32  # whose nodes are held in memory together: some 30,000
_PACKS = 'SELECT pack, name, kind, state, bytes, records FROM pack WHERE kind = 2 ORDER BY pack'
_NODES = 'SELECT pack, offset, stored, plain, kind, id FROM chunk WHERE kind = 2 AND pack IN ({marks})'
_NAMED = (
    'SELECT max(o) FROM (SELECT max(offset + stored) AS o FROM chunk WHERE pack = ?1 UNION ALL '
    'SELECT max(offset + stored) FROM quarantine WHERE pack = ?1 UNION ALL '
    'SELECT max(offset + stored) FROM freed WHERE pack = ?1)'
)


@dataclass(frozen=True, slots=True)
class Content:
    """What a sealed pack has to have: all its bytes, and what its footer lists."""

    data: bytes
    entries: tuple[PackEntry, ...]


def look_at_copies(spec: CopiesSpec, progress: Progress = lambda done, known: None) -> Copies:
    """Say what the mirror can give back. Corrupt when the catalog cannot be read."""
    reader = Reader(spec.store, spec.uuid, still=spec.still)
    try:
        return _Look(reader, spec, progress).run()
    finally:
        reader.close()


class _Look:
    def __init__(self, reader: Reader, spec: CopiesSpec, progress: Progress) -> None:
        self._reader = reader
        self._spec = spec
        self._progress = progress
        self._disk = Disk()

    def run(self) -> Copies:
        rows = [PackRow(*row) for row in self._reader.query(_PACKS)]
        rows = [row for row in rows if row.state != 'retired']
        whole: list[PackCopy] = []
        odd: list[PackRow] = []
        for row in rows:
            if not is_odd(self._disk, self._spec.store, row):
                continue
            if row.pack not in self._spec.writing and self._can_be_made(row):
                whole.append(PackCopy(row.pack, row.name))
            else:
                odd.append(row)
        again = {one.pack for one in whole}
        looked = rows if self._spec.every_node else odd
        nodes: list[Lost] = []
        for row_group in _groups([row for row in looked if row.pack not in again]):
            nodes += self._lost_of(row_group)
            self._progress(len(nodes), 0)
            if len(nodes) >= limits.RECOVER_LOST_MAX:
                break  # whoever brings them back asks again
        return Copies(tuple(whole), tuple(nodes))

    def _can_be_made(self, row: PackRow) -> bool:
        named = named_end(self._reader.query, row.pack)
        content = content_of(self._disk, self._spec.store, self._spec.uuid, row, named)
        return content is not None and adds_only(self._disk, self._spec.store, row, content)

    def _lost_of(self, rows: Sequence[PackRow]) -> Iterator[Lost]:
        names = {row.pack: row.name for row in rows}
        found = self._reader.query(_NODES.format(marks=','.join('?' * len(names))), list(names))
        places = {one.id: one for one in (Place(*row) for row in found)}
        for id, why in Presence(self._reader, Depth.READ).lost(places).items():
            at = places[id]
            name = names[at.pack]
            if read_copy(self._disk, self._spec.store, name, at.offset, at.stored, id) is not None:
                path = mirror_path(self._spec.store, name)
                donor = Donor(path, at.offset, HEADER_BYTES + at.stored, True)
                yield Lost(id, int(RecordKind.NODE), why, (), (donor,))


def named_end(query: Callable[[str, Sequence[int]], Sequence[Any]], pack: int) -> int:
    """Return up to where the catalog names bytes of a pack."""
    end = query(_NAMED, (pack,))[0][0]
    return HEADER_BYTES + int(end) if end is not None else 0


def is_odd(disk: Disk, store: Path, row: PackRow) -> bool:
    """Say whether a pack is seen to be damaged without reading its records: it is not there, has another
    size than the catalog says, or not the header or the footer that it should have."""
    path = pack_path(store / 'packs', row.kind, row.name)
    try:
        status = path.lstat()
        if not stat.S_ISREG(status.st_mode):
            return True
        if row.state == 'open':
            return status.st_size < row.bytes
        return status.st_size != row.bytes or not _has_both_ends(disk, path, row)
    except (OSError, Corrupt):
        return True


def _has_both_ends(disk: Disk, path: Path, row: PackRow) -> bool:
    fd = disk.open_read(path)
    try:
        head = decode_pack_header(disk.pread(fd, PACK_HEADER_BYTES, 0))
        if (head.name, int(head.kind)) != (row.name, row.kind):
            return False
        start = footer_offset(disk.pread(fd, TRAILER_BYTES, max(0, row.bytes - TRAILER_BYTES)), row.bytes)
        return (
            len(decode_footer(disk.pread(fd, row.bytes - start, start), row.bytes, row.name)) == row.records
        )
    finally:
        disk.close(fd)


def content_of(disk: Disk, store: Path, uuid: bytes, row: PackRow, named: int) -> Content | None:
    """Return what a sealed pack has to have, from its copy; None when that has not all of it. Every record is
    verified. `named`: up to where the catalog names bytes of it."""
    if is_linked(store):
        return None
    try:
        data = disk.read_file(mirror_path(store, row.name), PACK_FILE_BYTES_MAX)
        if decode_pack_header(data[:PACK_HEADER_BYTES]) != PackHeader(uuid, row.name, RecordKind.NODE):
            return None
        entries, end = _records(data)
        whole = data[:end] + encode_footer(entries, end, row.name)
    except (OSError, Corrupt):
        return None
    # An open pack that had lost its end when it was sealed has got a row with what was left, and no footer.
    exact = len(whole) == row.bytes and len(entries) == row.records
    if exact or (end >= max(named, row.bytes) and len(entries) >= row.records):
        return Content(whole, tuple(entries))
    return None


def _records(data: bytes) -> tuple[list[PackEntry], int]:
    """Return the records of a copy, each verified, up to the first that is not whole, and where they end."""
    view, entries, at = memoryview(data), [], PACK_HEADER_BYTES
    while at < len(data):
        try:
            header = decode_header(view[at : at + HEADER_BYTES])
            end = at + HEADER_BYTES + header.stored_length
            if header.kind != RecordKind.NODE or end > len(data):
                break
            decode_payload(header, view[at + HEADER_BYTES : end])
        except Corrupt:
            break
        entries.append(PackEntry(header.id, at, header.stored_length, header.plain_length, int(header.codec)))
        at = end
    return entries, at


def adds_only(disk: Disk, store: Path, row: PackRow, content: Content) -> bool:
    """Say whether nothing that is there now would be lost by making the pack again: there is no file, or one
    that is the beginning of what would be, or has no whole record that would not be."""
    path = pack_path(store / 'packs', row.kind, row.name)
    if not disk.exists(path):
        return True
    try:
        now = disk.read_file(path, PACK_FILE_BYTES_MAX)
    except (OSError, Corrupt):
        return False
    return content.data.startswith(now) or only_damaged(now, content)


def only_damaged(now: bytes, content: Content) -> bool:
    """Say whether a file is what it has to be, but for damage: where it differs, in header, footer or a
    record, that record is not whole; those of the copy are verified."""
    if len(now) > len(content.data) or content.data.startswith(now):
        return False
    for one in content.entries:
        end = one.offset + HEADER_BYTES + one.stored_length
        if now[one.offset : end] != content.data[one.offset : end] and _is_whole(now, one.offset):
            return False
    return True


def _is_whole(data: bytes, offset: int) -> bool:
    view = memoryview(data)
    try:
        header = decode_header(view[offset : offset + HEADER_BYTES])
        start = offset + HEADER_BYTES
        decode_payload(header, view[start : start + header.stored_length])
    except Corrupt:
        return False
    return True


def _groups(rows: Sequence[PackRow]) -> Iterator[Sequence[PackRow]]:
    for start in range(0, len(rows), PACKS_AT_ONCE):
        yield rows[start : start + PACKS_AT_ONCE]
