"""L2 mirror: a second copy of all nodes. Blocking; one caller at a time.

A lost chunk of data costs its range; a lost node costs everything below it, and a top node a whole snapshot.
So each meta pack (about a hundredth of what is stored) has a copy at STORE/mirror/XX/NAME, the same bytes at
the same offsets, up to what the catalog counts as durable. Copies are made once a minute and at a clean
close, by adding what is new. Nothing names them: they are read when the record in the pack itself is not what
it should be, and verified like it. They keep nothing alive, and go when neither the catalog nor the disk has
their pack."""

from __future__ import annotations

import logging
from pathlib import Path

from snapfs import limits
from snapfs.errors import Corrupt, SnapfsError
from snapfs.format.packs import PACK_HEADER_BYTES, decode_pack_header
from snapfs.format.records import HEADER_BYTES, RecordKind, decode_header, decode_payload
from snapfs.store.catalog import Catalog
from snapfs.store.durable import Buffer, Disk
from snapfs.store.missing import LINKED
from snapfs.store.packs import pack_path
from snapfs.store.rows import PackRow

log = logging.getLogger('snapfs.store')

FOLDER = 'mirror'
COPY_BYTES = limits.MIB


def mirror_path(store: Path, name: bytes) -> Path:
    """Return where the copy of a meta pack is."""
    return store / FOLDER / name.hex()[:2] / name.hex()


def is_linked(store: Path) -> bool:
    """Say whether a symbolic link stands in the place of the mirror: then there is none, to read or write."""
    return (store / FOLDER).is_symlink()


def read_copy(disk: Disk, store: Path, name: bytes, offset: int, stored: int, id: bytes) -> bytes | None:
    """Return the plain bytes of a node from the copy of its pack; None when that does not have it whole."""
    if is_linked(store):
        return None
    try:
        fd = disk.open_read(mirror_path(store, name))
    except (OSError, Corrupt):
        return None
    try:
        data = memoryview(disk.pread(fd, HEADER_BYTES + stored, offset))
        header = decode_header(data)
        if header.id != id:
            return None
        return decode_payload(header, data[HEADER_BYTES : HEADER_BYTES + header.stored_length])
    except (OSError, Corrupt):
        return None
    finally:
        disk.close(fd)


class Mirror:
    """The copies of one open store."""

    def __init__(self, disk: Disk, store: Path, catalog: Catalog, was_clean: bool) -> None:
        self._disk = disk
        self._store = store
        self._catalog = catalog
        # What a power cut left of a copy that was being added to need not be what was written.
        rows = () if was_clean else catalog.packs()
        self._doubted = {row.name for row in rows if row.state == 'open'}
        self.problem = ''

    def copy(self) -> int:
        """Copy what is new, and take away what has no pack; return the bytes copied. Never raises: a store
        without the newest copies is as good as before, and says so."""
        if self._disk.latched is not None:
            return 0
        try:
            copied = self._copy()
        except (SnapfsError, OSError) as error:
            if str(error) != self.problem:
                log.warning('no second copy of nodes: %s', error)
            self.problem = str(error)
            return 0
        self.problem = ''
        return copied

    def _copy(self) -> int:
        if is_linked(self._store):
            raise Corrupt(f'{self._store / FOLDER} {LINKED}')
        figures = self._disk.statvfs(self._store)
        if figures.f_bavail * figures.f_frsize < 2 * limits.FREE_BYTES_MIN:
            self._sweep()
            return 0
        copied = 0
        for row in self._catalog.packs():
            if row.kind == RecordKind.NODE and row.state != 'retired':
                copied += self._add(row)
        self._sweep()
        return copied

    def _add(self, row: PackRow) -> int:
        """Bring the copy of one pack up to date."""
        disk, path = self._disk, mirror_path(self._store, row.name)
        there = disk.exists(path)
        if not there:
            for folder in (path.parent.parent, path.parent):
                if disk.mkdir(folder):
                    disk.sync_directory(folder.parent)
        fd = disk.open_write(path, create=not there)
        try:
            have = disk.size(fd)
            doubted = row.name in self._doubted
            if have >= row.bytes and not doubted:
                return 0
            done = self._compare(fd, row, min(have, row.bytes)) if doubted else 0
            done += self._append(fd, row, have)
            disk.sync_data(fd)
            self._doubted.discard(row.name)
        finally:
            disk.close(fd)
        if not there:
            disk.sync_directory(path.parent)
        return done

    def _compare(self, fd: int, row: PackRow, have: int) -> int:
        """Write anew what a power cut tore of a copy. Where the pack itself has rotted the copy stays: it may
        be the last that is sound."""
        source = self._disk.open_read(pack_path(self._store / 'packs', row.kind, row.name))
        at, done = PACK_HEADER_BYTES, 0
        try:
            head = self._disk.pread(source, at, 0)
            if head != self._disk.pread(fd, at, 0) and _is_head(head):
                done += self._disk.pwrite(fd, [head], 0)
            while at < row.bytes and at < have:
                sizes = [_size_at(self._disk, one, at) for one in (source, fd)]
                size = sizes[0] or sizes[1]
                if not size:
                    log.warning('second copy of pack %s: not compared from %d on', row.name.hex(), at)
                    break  # where the next record begins is not known; what is there stays
                mine, copy = (bytes(self._disk.pread(one, size, at)) for one in (source, fd))
                if mine != copy and (_is_sound(mine) or not _is_sound(copy)):
                    done += self._disk.pwrite(fd, [mine], at)
                at += size
            return done
        finally:
            self._disk.close(source)

    def _append(self, fd: int, row: PackRow, have: int) -> int:
        source = self._disk.open_read(pack_path(self._store / 'packs', row.kind, row.name))
        try:
            at = have
            while at < row.bytes:
                data = self._disk.pread(source, min(COPY_BYTES, row.bytes - at), at)
                if not data:
                    break  # it is shorter than it should be; fsck tells of it
                at += self._disk.pwrite(fd, [data], at)
            return at - have
        finally:
            self._disk.close(source)

    def _sweep(self) -> None:
        """Take away copies whose pack neither the catalog nor the disk has any more."""
        root = self._store / FOLDER
        if not self._disk.exists(root):
            return
        known = {row.name for row in self._catalog.packs()}
        for short in self._disk.listdir(root):
            if len(short) != 2:
                continue  # the copy of the superblock
            for text in self._disk.listdir(root / short):
                try:
                    name = bytes.fromhex(text)
                except ValueError:
                    continue
                pack = pack_path(self._store / 'packs', RecordKind.NODE, name)
                if name not in known and not self._disk.exists(pack):
                    self._disk.unlink(root / short / text)


def _size_at(disk: Disk, fd: int, at: int) -> int:
    """Return how long the record is that begins there; 0 when none does."""
    try:
        return HEADER_BYTES + decode_header(disk.pread(fd, HEADER_BYTES, at)).stored_length
    except Corrupt:
        return 0


def _is_sound(data: bytes) -> bool:
    try:
        decode_payload(decode_header(data), data[HEADER_BYTES:])
    except Corrupt:
        return False
    return True


def _is_head(data: Buffer) -> bool:
    try:
        decode_pack_header(data)
    except Corrupt:
        return False
    return True
