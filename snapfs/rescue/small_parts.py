"""L4 small parts: a way back for a superblock and a journal that are damaged while the catalog is whole.
Blocking; the caller owns the store.

Nothing is changed in place, and nothing is thrown away: what is damaged stays as superblock.lost-N and
journal.lost-N.

*Superblock*: one of its copies (store/backup.py) is put in its place, when the store's packs or journal say
that it is theirs. *Journal*: records from the last commit up to the first that is damaged or missing are a
moment of the store's history, and are kept; what follows has a gap before it, and cannot be brought in. This
gives up what `fsync` had promised, so it is done only when it was asked for."""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
import stat
import tempfile
from contextlib import closing
from dataclasses import dataclass
from heapq import merge
from pathlib import Path
from urllib.parse import quote

from snapfs import limits
from snapfs.errors import Corrupt, Invalid, SnapfsError, Unavailable
from snapfs.format.journal import (
    JOURNAL_HEADER_BYTES,
    JournalHeader,
    decode_journal_header,
    decode_records,
    encode_journal_header,
    find_frames,
)
from snapfs.format.packs import PACK_HEADER_BYTES, decode_pack_header
from snapfs.format.superblock import (
    SUPERBLOCK_BYTES,
    Superblock,
    decode_superblock,
    encode_superblock,
    is_newer_superblock,
)
from snapfs.rescue.rebuild_install import free_name
from snapfs.store.backup import SUPERBLOCK, superblock_copies
from snapfs.store.durable import Disk
from snapfs.store.journal import FILES, Journal
from snapfs.store.recovery import packs_on_disk

NEW_JOURNAL = 'journal.new'


@dataclass(frozen=True, slots=True)
class Found:
    """The superblock that counts, and why it had to be its copy ('' when it is whole)."""

    block: Superblock
    problem: str


def find_superblock(disk: Disk, store: Path) -> Found:
    """Return the superblock, or its copy. Corrupt when neither will do; FileNotFoundError when there is
    neither."""
    data = b''
    try:
        data = disk.read_file(store / SUPERBLOCK, SUPERBLOCK_BYTES)
        return Found(decode_superblock(data), '')
    except (FileNotFoundError, Corrupt) as error:
        copies = list(superblock_copies(disk, store))
        if not copies or is_newer_superblock(data):
            raise
        owner = _owner(disk, store)
        block = next((one for one in copies if owner in (None, one.uuid)), None)
        if block is None:
            uuid = copies[0].uuid.hex()
            raise Corrupt(f'the copy of the superblock is that of store {uuid}') from error
        return Found(block, 'it is missing' if isinstance(error, FileNotFoundError) else str(error))


def _owner(disk: Disk, store: Path) -> bytes | None:
    """Return whose store it is, as the first pack or journal file that can be read says."""
    for kind, name in packs_on_disk(disk, store / 'packs') if disk.exists(store / 'packs') else ():
        path = store / 'packs' / ('data' if kind == 1 else 'meta') / name.hex()[:2] / name.hex()
        try:
            return decode_pack_header(_beginning(disk, path, PACK_HEADER_BYTES)).store_uuid
        except (Corrupt, OSError):
            continue
    for number in FILES:
        try:
            data = _beginning(disk, store / 'journal' / str(number), JOURNAL_HEADER_BYTES)
            return decode_journal_header(data).store_uuid
        except (Corrupt, OSError):
            continue
    return None


def _beginning(disk: Disk, path: Path, size: int) -> bytes:
    fd = disk.open_read(path)
    try:
        return bytes(disk.pread(fd, min(size, disk.size(fd)), 0))
    finally:
        disk.close(fd)


def restore_superblock(disk: Disk, store: Path, block: Superblock) -> list[str]:
    """Put a superblock, as `find_superblock` found it, in the place of one that is damaged or gone; return
    what is kept of that."""
    kept = []
    if disk.exists(store / SUPERBLOCK):
        kept.append(free_name(disk, store, 'superblock.lost-', ['']))
        disk.rename(store / SUPERBLOCK, store / kept[0])
        disk.sync_directory(store)
    disk.write_file(store / SUPERBLOCK, encode_superblock(block))
    return kept


# --- the journal -----------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Position:
    """What a whole catalog says of the journal: its records up to here are in the catalog; was it closed
    clean, so that there is nothing to replay."""

    committed: int
    clean: bool


def position_of(store: Path) -> Position:
    """Read it from a copy of the catalog, which is whole. Corrupt, OSError."""
    with tempfile.TemporaryDirectory(prefix='snapfs-') as folder:
        for suffix in ('', '-wal'):
            source = Path(f'{store / "catalog.sqlite"}{suffix}')
            if source.is_file():
                shutil.copyfile(source, f'{folder}/catalog.sqlite{suffix}')
        uri = f'file:{quote(folder)}/catalog.sqlite'
        try:
            with closing(sqlite3.connect(uri, uri=True)) as db:
                rows = dict(db.execute('SELECT key, value FROM settings').fetchall())
            return Position(int(rows['journal_sequence']), rows['clean'] == 1)
        except (sqlite3.Error, KeyError, ValueError, TypeError) as error:
            raise Corrupt(f'catalog: {error}') from error


def journal_problem(disk: Disk, directory: Path, uuid: bytes, position: Position) -> str:
    """Say why a store cannot be opened with this journal; nothing when it can. Invalid, Unavailable: we were
    not let in, which says nothing of it."""
    if disk.is_read_only(directory.parent):
        disk = Disk()
        disk.latch('the journal is only read')
    try:
        Journal.open(disk, directory, uuid, position.committed, position.clean).close()
    except (Invalid, Unavailable):
        raise
    except SnapfsError as error:
        return str(error)
    except OSError as error:
        return error.strerror or str(error)
    return ''


@dataclass(frozen=True, slots=True)
class Mended:
    """How many records are kept, and the name under which the damaged journal stays."""

    records: int
    kept: str


def mend_journal(disk: Disk, store: Path, uuid: bytes, position: Position) -> Mended:
    """Put a journal in place that ends before the damage. A power cut in between leaves a store that says
    what is missing; the same call goes on from there. Corrupt when what was made cannot be opened."""
    old, new = store / 'journal', store / NEW_JOURNAL
    unclean = Position(position.committed, False)  # then all of it is read
    if disk.exists(old) or not disk.exists(new) or journal_problem(disk, new, uuid, unclean):
        if disk.exists(new):
            shutil.rmtree(new)
        files = [bytearray(_whole(disk, old / str(number))) for number in FILES]
        last = _prefix_end(files, uuid, position.committed)
        for number, data in zip(FILES, files, strict=True):
            _end_after(data, uuid, number, last)
        _write(disk, new, files)
    problem = journal_problem(disk, new, uuid, unclean)
    if problem:
        raise Corrupt(f'{new} was made, and cannot be opened: {problem}')
    records = _records_in(disk, new, uuid, position.committed)
    kept = ''
    if disk.exists(old):
        kept = free_name(disk, store, 'journal.lost-', [''])
        disk.rename(old, store / kept)
        disk.sync_directory(store)
    disk.rename(new, old)
    disk.sync_directory(store)
    return Mended(records, kept)


def _whole(disk: Disk, path: Path) -> bytes:
    """Return a journal file as long as it must be: zeros where it has nothing, or something else is in its
    place. A link may lead to one, and is not followed: Corrupt."""
    data = b''
    try:
        mode = os.lstat(path).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISLNK(mode)):
            return bytes(limits.JOURNAL_BYTES)
        data = _beginning(disk, path, limits.JOURNAL_BYTES)
    except FileNotFoundError:
        pass
    except OSError as error:
        if error.errno != errno.ENOTDIR:
            raise
    return data.ljust(limits.JOURNAL_BYTES, b'\0')


def _prefix_end(files: list[bytearray], uuid: bytes, committed: int) -> int:
    """Return the last record that can be had without a gap."""
    last = committed
    streams = [decode_records(memoryview(data), uuid, JOURNAL_HEADER_BYTES, 1) for data in files]
    for record in merge(*streams, key=lambda record: record[0].sequence):
        sequence = record[0].sequence
        if sequence == last + 1:
            last = sequence
        elif sequence > last:
            break
    return last


def _end_after(data: bytearray, uuid: bytes, number: int, last: int) -> None:
    """Let a file begin with a block that is whole, and have no frame of a record above `last`."""
    places = [
        (start, end)
        for start, end, place in find_frames(memoryview(bytes(data)), uuid, JOURNAL_HEADER_BYTES)
        if place.sequence > last
    ]
    for start, end in places:
        data[start:end] = bytes(end - start)
    data[:JOURNAL_HEADER_BYTES] = encode_journal_header(JournalHeader(uuid, number, 1))


def _write(disk: Disk, directory: Path, files: list[bytearray]) -> None:
    disk.mkdir(directory)
    for number, data in zip(FILES, files, strict=True):
        disk.write_file(directory / str(number), bytes(data))
    disk.sync_directory(directory.parent)


def _records_in(disk: Disk, directory: Path, uuid: bytes, committed: int) -> int:
    journal = Journal.open(disk, directory, uuid, committed, False)
    try:
        return sum(1 for _ in journal.replay(committed))
    finally:
        journal.close()
