"""L4 rebuild, packs: which records a pack has, whatever is damaged in it. Blocking; one thread; reads only.

A good footer lists them. Where it is damaged, or was never written, the headers of the records lead on, and
behind one that is damaged the next is looked for. What is found without a footer counts only when its whole
payload has its id: there is nothing else that says so. (A record that stands inside the payload of another,
because somebody keeps a store in this store, is a true copy as well.)

A pack with damage inside and without a footer must never be opened as one that is still written to: the
next opening would end it at the damage, and cut off the good records behind. It counts as sealed, as it
is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from snapfs import limits
from snapfs.errors import Corrupt
from snapfs.format.packs import (
    PACK_HEADER_BYTES,
    TRAILER_BYTES,
    PackEntry,
    PackHeader,
    decode_footer,
    decode_pack_header,
    footer_offset,
)
from snapfs.format.records import (
    HEADER_BYTES,
    RECORD_MAGIC,
    RecordHeader,
    RecordKind,
    decode_header,
    decode_payload,
)
from snapfs.store.durable import Disk
from snapfs.store.mirror import FOLDER as MIRROR
from snapfs.store.mirror import is_linked, mirror_path
from snapfs.store.packs import Window, pack_path
from snapfs.store.recovery import PACK_FILE_BYTES_MAX, is_pack_name, packs_on_disk


class PackRecords:
    """The records of one pack. After `read`: `sealed` says whether the pack is complete as it is, `end` how
    many of its bytes are in use, `bad` at which offsets a payload has not the id of its header, `headless`
    whether its header says nothing."""

    def __init__(self, disk: Disk, fd: int, header: PackHeader) -> None:
        self._disk = disk
        self._fd = fd
        self._expected = header
        self._size = disk.size(fd)
        self._window = Window(disk, fd, self._size)
        self.sealed = True
        self.end = self._size
        self.bad: list[int] = []
        self.headless = False

    def read(self) -> list[PackEntry]:
        """Return the records; without a footer, those that are whole. Corrupt when no reader would take the
        pack."""
        if self._size > PACK_FILE_BYTES_MAX:
            raise Corrupt(f'{self._size} bytes, more than any pack has')
        self._look_at_header()
        listed = self._footer()
        return list(self._walk()) if listed is None else listed

    def _look_at_header(self) -> None:
        """Raise Corrupt for a pack of somebody else. One whose header says nothing is ours by its name, and
        each record is verified by its own hash: it is read, and counts as sealed, so that nobody ends it."""
        try:
            found = decode_pack_header(self._disk.pread(self._fd, PACK_HEADER_BYTES, 0))
        except Corrupt:
            self.headless = True
            return
        if found.store_uuid != self._expected.store_uuid:
            raise Corrupt('it is of another store')
        if found != self._expected:
            raise Corrupt(f'its header is that of pack {found.name.hex()}')

    def _footer(self) -> list[PackEntry] | None:
        if self._size < PACK_HEADER_BYTES + TRAILER_BYTES:
            return None
        try:
            trailer = self._disk.pread(self._fd, TRAILER_BYTES, self._size - TRAILER_BYTES)
            start = footer_offset(trailer, self._size)
            data = bytes(self._disk.pread(self._fd, self._size - start, start))
            return decode_footer(data, self._size, self._expected.name)
        except Corrupt:
            return None

    def _walk(self) -> Iterator[PackEntry]:
        good_end = PACK_HEADER_BYTES  # where the last whole record ends
        broken = self.headless
        offset: int | None = PACK_HEADER_BYTES
        while offset is not None and offset + HEADER_BYTES <= self._size:
            header = self._header(offset)
            if header is None:
                offset = self._next(offset + 1)
                continue
            if not self._is_whole(header, offset):
                self.bad.append(offset)
                # Its length may be what is wrong: what stands inside it is looked at as well.
                offset = self._next(offset + 1)
                continue
            broken = broken or offset != good_end
            good_end = offset + HEADER_BYTES + header.stored_length
            yield PackEntry(header.id, offset, header.stored_length, header.plain_length, header.codec)
            offset = good_end
        # A torn tail ends the pack; it is cut off, and the footer written, when the store is opened.
        self.sealed, self.end = (True, self._size) if broken else (False, good_end)

    def _header(self, offset: int) -> RecordHeader | None:
        try:
            header = decode_header(self._window.take(offset, HEADER_BYTES))
        except Corrupt:
            return None
        fits = offset + HEADER_BYTES + header.stored_length <= self._size
        return header if fits and header.kind == self._expected.kind else None

    def _is_whole(self, header: RecordHeader, offset: int) -> bool:
        try:
            decode_payload(header, self._window.take(offset + HEADER_BYTES, header.stored_length))
        except Corrupt:
            return False
        return True

    def _next(self, start: int) -> int | None:
        """Return where the next record may begin. What cannot be read is passed over."""
        while start < self._size:
            try:
                block = bytes(self._disk.pread(self._fd, limits.SCAN_WINDOW_BYTES, start))
            except Corrupt:
                block = b''
            at = block.find(RECORD_MAGIC)
            if at >= 0:
                return start + at
            start += limits.SCAN_WINDOW_BYTES - len(RECORD_MAGIC) + 1
        return None


def packs_to_read(disk: Disk, store: Path) -> list[tuple[int, bytes, Path]]:
    """Return (kind, name, path) of every pack; where a pack of nodes is gone, the path of its second copy.
    Corrupt when a directory of packs is missing or cannot be listed."""
    root = store / 'packs'
    found = packs_on_disk(disk, root, every=True)
    gone = _copied(disk, store) - {name for kind, name in found if kind == RecordKind.NODE}
    whole = [(kind, name, pack_path(root, kind, name)) for kind, name in found]
    whole += [(int(RecordKind.NODE), name, mirror_path(store, name)) for name in gone]
    return sorted(whole)


def _copied(disk: Disk, store: Path) -> set[bytes]:
    """Return the names of packs that have a second copy, as far as the disk lists them."""
    root, found = store / MIRROR, set()
    for short in disk.listdir(root) if disk.exists(root) and not is_linked(store) else ():
        with suppress(Corrupt):
            for text in disk.listdir(root / short) if len(short) == 2 else ():
                if is_pack_name(text) and text[:2] == short:
                    found.add(bytes.fromhex(text))
    return found


def expected_header(uuid: bytes, name: bytes, kind: int) -> PackHeader:
    """Return what a pack of this store must begin with."""
    return PackHeader(uuid, name, RecordKind(kind))
