"""L4 donors: who may still have the bytes of lost chunks. Blocking; in a process of its own.

First records: those that quarantine and `freed` name, second copies of nodes, and any other copy in any
pack, known to the catalog or not. Then files of the host: a whole small file, a piece where the store's
cutter would cut (FastCDC with the parameters of the superblock), or just the bytes at the place where the
lost chunk was. Holes of sparse files are passed over. Symbolic links are not followed, only regular files are
read, and none of another filesystem than their directory's. What is offered is verified again by whoever
takes it."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, cast

import pyfastcdc

from snapfs import limits
from snapfs.errors import Corrupt
from snapfs.format.ids import RecordKind, data_id
from snapfs.format.nodes import decode_node
from snapfs.format.packs import TRAILER_BYTES, decode_footer, footer_offset
from snapfs.format.records import HEADER_BYTES, decode_header, decode_payload
from snapfs.format.superblock import SUPERBLOCK_BYTES, ChunkerParameters, decode_superblock
from snapfs.rescue.reader import Reader
from snapfs.rescue.recover_values import Donor, Lost
from snapfs.store.durable import Disk
from snapfs.store.mirror import FOLDER as MIRROR
from snapfs.store.packs import scan_records

Progress = Callable[[int, int], None]
Offers = dict[bytes, list[Donor]]
OFFERS_MAX = 4  # of one chunk
REGION_BYTES = 64 * limits.MIB  # of a file that is cut at once


def search(
    reader: Reader, wanted: Mapping[bytes, Lost], directories: Sequence[Path], progress: Progress
) -> Offers:
    """Return offers for lost chunks, the best first. What cannot be read offers nothing."""
    offers: Offers = {}
    for folder in ('packs/data', 'packs/meta', MIRROR):
        for path in _packs(reader.store / folder):
            for id, offset, stored in _records(path):
                if id in wanted and _whole(path, offset, HEADER_BYTES + stored, wanted[id]):
                    _offer(offers, id, Donor(path, offset, HEADER_BYTES + stored, True))
    data = {id: one for id, one in wanted.items() if one.kind == 1}
    if data and directories:
        block = decode_superblock((reader.store / 'superblock').read_bytes()[:SUPERBLOCK_BYTES])
        files = _Files(data, block.chunker, offers)
        for directory in directories:
            for count, path in enumerate(_regular(directory)):
                files.look(path)
                if count % 64 == 0:
                    progress(count, 0)
    return offers


def _packs(folder: Path) -> Iterator[Path]:
    """Yield the packs below a folder, as far as the disk lists them."""
    for below in _listed(folder, 2):
        yield from _listed(below, 32)


def _listed(folder: Path, length: int) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if len(path.name) == length)
    except OSError:
        return []


def _offer(offers: Offers, id: bytes, donor: Donor) -> None:
    found = offers.setdefault(id, [])
    if len(found) < OFFERS_MAX and donor not in found:
        found.append(donor)


def _records(path: Path) -> Iterator[tuple[bytes, int, int]]:
    """Yield (id, offset, stored length) of a pack's records, by its footer, or by their headers."""
    disk = Disk()
    try:
        fd = disk.open_read(path)
    except (OSError, Corrupt):
        return
    try:
        size = disk.size(fd)
        try:
            start = footer_offset(disk.pread(fd, TRAILER_BYTES, max(0, size - TRAILER_BYTES)), size)
            entries = decode_footer(
                bytes(disk.pread(fd, size - start, start)), size, bytes.fromhex(path.name)
            )
            yield from ((one.id, one.offset, one.stored_length) for one in entries)
        except (Corrupt, ValueError):
            yield from (
                (head.id, offset, head.stored_length) for offset, head in scan_records(disk, fd, size)
            )
    except (Corrupt, OSError):
        return
    finally:
        disk.close(fd)


def _whole(path: Path, offset: int, length: int, lost: Lost) -> bool:
    """Return whether a record is what it says: the lost one itself lies there, too. A node that has its own
    hash and yet cannot be one helps nobody."""
    try:
        with path.open('rb') as file:
            file.seek(offset)
            data = file.read(length)
        header = decode_header(data)
        plain = decode_payload(header, data[HEADER_BYTES:])
        if lost.kind == RecordKind.NODE:
            decode_node(plain)
        return header.id == lost.id and header.kind == lost.kind
    except (OSError, Corrupt):
        return False


def _regular(directory: Path) -> Iterator[Path]:
    """Yield the regular files below a directory, of its own filesystem."""
    try:
        device = directory.lstat().st_dev
    except OSError:
        return
    for folder, folders, names in os.walk(directory, followlinks=False):
        folders[:] = [name for name in folders if _device(os.path.join(folder, name)) == device]
        for name in names:
            path = Path(folder, name)
            try:
                status = path.lstat()
            except OSError:
                continue
            if stat.S_ISREG(status.st_mode) and status.st_dev == device and status.st_size:
                yield path


def _device(path: str) -> int:
    try:
        return os.lstat(path).st_dev
    except OSError:
        return -1


class _Files:
    """Looks into files for lost chunks."""

    def __init__(self, wanted: Mapping[bytes, Lost], chunker: ChunkerParameters, offers: Offers) -> None:
        self._wanted = wanted
        self._whole = chunker.whole_file_max
        self._cdc = pyfastcdc.FastCDC(
            chunker.average - chunker.minimum,
            min_size=chunker.minimum,
            max_size=chunker.maximum,
            normalized_chunking=cast(Literal[0, 1, 2, 3], chunker.normalization),
        )
        self._zeros = len(next(iter(self._cdc.cut_buf(bytes(2 * chunker.maximum)))).data)  # as zeros are cut
        self._offers = offers
        self._places: dict[str, set[tuple[int, int]]] = {}  # by file name: (first byte, byte behind the last)
        for one in wanted.values():
            for use in one.uses:
                if use.end:
                    self._places.setdefault(os.path.basename(use.path), set()).add((use.start, use.end))

    def look(self, path: Path) -> None:
        """Look into one file."""
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return
        try:
            size = os.fstat(fd).st_size
            for start, end in self._places.get(path.name, ()):
                if end <= size:
                    self._try(path, start, os.pread(fd, end - start, start))
            at = 0
            while at < size and (at := self._behind_hole(fd, at, size)) < size:
                at = self._region(path, fd, at, size)
        except OSError:
            return
        finally:
            os.close(fd)

    def _behind_hole(self, fd: int, at: int, size: int) -> int:
        """Return where cutting goes on: behind those chunks of a hole that begins at `at` which have nothing
        but it in them. So what follows is cut as if the hole had been."""
        try:
            data = os.lseek(fd, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:
                return at  # the system cannot tell
            data = size  # nothing but a hole up to the end
        return at + (data - at) // self._zeros * self._zeros if data < size else size

    def _hole(self, fd: int, at: int, end: int) -> int:
        """Return where the first hole from `at` on begins that has chunks to pass over; `end` for none."""
        try:
            while at < end:
                at = hole = os.lseek(fd, at, os.SEEK_HOLE)
                at = os.lseek(fd, at, os.SEEK_DATA)
                if at - hole >= 2 * self._zeros:
                    return min(hole, end)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return min(at, end)  # a hole up to the end of the file
        return end

    def _region(self, path: Path, fd: int, start: int, size: int) -> int:
        """Look into a part of a file, up to a hole that can be passed over; return where the next begins."""
        hole = self._hole(fd, start, min(start + REGION_BYTES, size))
        # A chunk that begins in front of the hole ends in it.
        region = os.pread(fd, min(REGION_BYTES, hole + self._zeros - start, size - start), start)
        if len(region) <= self._whole and start + len(region) >= size:
            self._try(path, start, region)
            return size
        at = start
        for chunk in self._cdc.cut_buf(memoryview(region)):
            self._try(path, at, chunk.data)
            at += len(chunk.data)
            if at >= hole:
                break
        return at if at > start else size  # it has become shorter meanwhile

    def _try(self, path: Path, offset: int, data: bytes | memoryview) -> None:
        id = data_id(data)
        if id in self._wanted:
            _offer(self._offers, id, Donor(path, offset, len(data), False))
