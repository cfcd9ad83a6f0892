"""L4 sibling: brings lost chunks back from donors, and makes a whole tree beside one that has lost something.
Blocking; in a thread of the store's owner. What is done was decided by a survey.

Healing: the bytes of a donor are verified against the id, stored as a new record and made durable; then one
transaction points the index there, so that everybody who shares the chunk is whole again. Nothing is
removed: the old record stays where it is.

The sibling: the same tree without its lost nodes; a lost part of a file becomes a hole, which reads as
zeros; a lost attribute goes; what has lost its name lies in lost+found; and DAMAGE.json in the top
directory tells all of it. The original stays as it is."""

from __future__ import annotations

import heapq
import json
import os
import stat
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from operator import itemgetter
from typing import Any

from snapfs import limits
from snapfs.errors import Corrupt
from snapfs.format.ids import chunk_id, data_id
from snapfs.format.items import (
    INODE_ALLOCATED,
    INODE_GID,
    INODE_MODE,
    INODE_MTIME,
    INODE_NLINK,
    INODE_PARENT,
    INODE_SIZE,
    INODE_UID,
    Value,
)
from snapfs.format.keys import dirent_key, extent_key, ino_range, inode_key, name_hash, xattr_key
from snapfs.format.nodes import Branch, Leaf, decode_node
from snapfs.format.records import HEADER_BYTES, RecordKind, decode_header, decode_payload
from snapfs.rescue.readable import readable
from snapfs.rescue.recover_values import Donor, Lost, Survey
from snapfs.store.catalog import write_packs
from snapfs.store.store import Store
from snapfs.tree import EMPTY, Root, apply, bulk, get, run_apply

FOUND = b'lost+found'
REPORT = 'DAMAGE.json'
PIECE = 64 * limits.KIB
DIRECTORY = stat.S_IFDIR >> 12


# --- healing ---------------------------------------------------------------------------------------------
def heal(store: Store, lost: Iterable[Lost]) -> dict[bytes, Donor]:
    """Bring back what donors still have; return which donor each chunk came from. Refused(ENOSPC): what was
    brought back stays. Latched when the disk failed."""
    healed: dict[bytes, Donor] = {}
    todo = [one for one in lost if one.donors]
    for start in range(0, len(todo), limits.RECOVER_SLICE):
        found: dict[int, dict[bytes, bytes]] = {1: {}, 2: {}}
        for one in todo[start : start + limits.RECOVER_SLICE]:
            for donor in one.donors:
                plain = _plain(one, donor)
                if plain is not None:
                    found[one.kind][one.id] = plain
                    healed[one.id] = donor
                    break
        for kind, chunks in found.items():
            if chunks:
                bring_back(store, RecordKind(kind), chunks)
    return healed


def _plain(lost: Lost, donor: Donor) -> bytes | None:
    """Return the plain bytes that a donor has, if they are those of the chunk."""
    try:
        fd = os.open(donor.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            data = os.pread(fd, min(donor.length, limits.STORED_BYTES_MAX + HEADER_BYTES), donor.offset)
        finally:
            os.close(fd)
        if donor.record:
            data = decode_payload(decode_header(data), data[HEADER_BYTES:])
        if chunk_id(lost.kind, data) != lost.id:
            return None
        if lost.kind == RecordKind.NODE:
            decode_node(data)  # else the very bytes that make it lost would bring it back
    except (OSError, Corrupt):
        return None
    return data


def bring_back(store: Store, kind: RecordKind, chunks: dict[bytes, bytes]) -> None:
    """Store chunks anew, and point the index there. Each is verified; a row that says otherwise by now is
    overwritten: it named bytes that are lost."""
    for id, plain in chunks.items():
        assert chunk_id(kind, plain) == id, 'P1: a donor gave other bytes'
    store.chunks.put_anew(kind, chunks)
    store.chunks.sync()
    rows = store.chunks.commit_rows()
    mine = tuple(row for row in rows.chunks if row.id in chunks)
    assert {row.id for row in mine} == set(chunks), 'P4: not all of it is durable'
    with store.catalog.transaction() as db:
        write_packs(db, rows.packs)
        for row in mine:
            db.execute(
                'INSERT INTO chunk VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET '
                'pack = excluded.pack, offset = excluded.offset, stored = excluded.stored, '
                'plain = excluded.plain, codec = excluded.codec, kind = excluded.kind',
                (*row, store.catalog.epoch),
            )
            db.execute('DELETE FROM damage WHERE id = ?', (row.id,))
    store.chunks.committed(type(rows)(mine, rows.packs))
    store.chunks.forget(chunks)
    for id in chunks:
        store.chunks.unreadable.discard(id)


# --- the tree --------------------------------------------------------------------------------------------
class Sibling:
    """Makes the tree. `root`, `next_ino`: of the original; `survey`: of what is lost for good."""

    def __init__(self, store: Store, root: Root, next_ino: int, survey: Survey, now_ns: int) -> None:
        self._store = store
        # With its top, a tree has lost everything.
        gone = any(one.id == root.id for one in survey.lost)
        self._root = EMPTY if gone else root
        self._survey = survey
        self._now_ns = now_ns
        self._changes: dict[bytes, Value | None] = {}
        self._ranges: list[tuple[bytes, bytes]] = []
        self.next_ino = next_ino

    def make(self, report: dict[str, Any]) -> Root:
        """Build and store the tree with the report in it; return its root. Durable only after a commit."""
        cut = [(one.low, one.high) for one in self._survey.lost if one.kind == 2]
        self._ranges = _joined([*cut, *map(ino_range, self._survey.mend.gone)])
        self._without_lost_data()
        self._mend()
        self._report(report)
        changes = sorted(self._changes.items())
        if not cut:
            return run_apply(apply(self._root, self._ranges, changes), self._load, self._keep).root
        # What is changed may stand where a lost node was, which cannot be read. So the tree is made anew.
        lost = frozenset(one.id for one in self._survey.lost)
        with readable(self._root.id, lost, self._load_one) as items:
            return run_apply(bulk(self._changed(items, changes)), self._load, self._keep).root

    def _changed(
        self, items: Iterator[tuple[bytes, Value]], changes: list[tuple[bytes, Value | None]]
    ) -> Iterator[tuple[bytes, Value]]:
        """Yield items and changes in order, without those of inodes that go."""
        gone = frozenset(self._survey.mend.gone)
        kept = (item for item in items if int.from_bytes(item[0][:8], 'big') not in gone)
        last = None
        for key, value in heapq.merge(changes, kept, key=itemgetter(0)):  # of the same key, the change first
            if key != last and value is not None:
                yield key, value
            last = key

    def _load_one(self, id: bytes) -> Leaf | Branch:
        return decode_node(self._store.chunks.get(id))

    def _load(self, ids: list[bytes]) -> list[Any]:
        return [decode_node(plain) for plain in self._store.chunks.get_many(ids)]

    def _keep(self, nodes: list[tuple[bytes, bytes]]) -> None:
        if nodes:
            self._store.chunks.put_batch(RecordKind.NODE, [plain for _, plain in nodes])

    def _get(self, key: bytes) -> Value | None:
        """Return an item as it will be; None when there is none, or a lost node had it."""
        if key in self._changes:
            return self._changes[key]
        place = bisect_right(self._ranges, key, key=itemgetter(0))
        if place and key < self._ranges[place - 1][1]:
            return None
        return get(self._root, key, self._load_one)

    def _set(self, ino: int, **fields: int) -> None:
        value = self._get(inode_key(ino))
        if value is None:
            return
        new = list(value)
        for name, number in fields.items():
            new[_FIELDS[name]] = number
        self._changes[inode_key(ino)] = tuple(new)

    def _without_lost_data(self) -> None:
        taken: dict[int, int] = {}
        for lost in self._survey.lost:
            for use in lost.uses:
                key = (
                    extent_key(use.ino, use.start) if use.end else xattr_key(use.ino, bytes.fromhex(use.name))
                )
                if self._get(key) is not None:
                    self._changes[key] = None
                    taken[use.ino] = taken.get(use.ino, 0) + use.end - use.start
        for ino, count in taken.items():
            value = self._get(inode_key(ino))
            if value is not None:
                self._set(ino, allocated=value[INODE_ALLOCATED] - count)

    # --- links -------------------------------------------------------------------------------------------
    def _mend(self) -> None:
        mend = self._survey.mend
        if self._get(inode_key(limits.INO_ROOT)) is None:
            self._new_inode(limits.INO_ROOT, limits.INO_ROOT)
        for at, name in mend.entries:
            self._drop_entry(at, bytes.fromhex(name))
        for ino, count in mend.links:
            self._set(ino, nlink=count)
        for ino, count in mend.sizes:
            self._set(ino, size=count)
        for ino, _, count in mend.cut:
            value = self._get(inode_key(ino))
            if value is not None:
                self._set(ino, allocated=value[INODE_ALLOCATED] - count)
        if not mend.found:
            return
        folder = self._new_directory(limits.INO_ROOT, FOUND)
        for ino, file_type in mend.found:
            self._add_entry(folder, f'inode-{ino}'.encode(), ino, file_type)
            if file_type == DIRECTORY:
                self._set(ino, parent=folder)

    def _new_inode(self, ino: int, parent: int) -> None:
        now = self._now_ns
        mode = stat.S_IFDIR | 0o700
        self._changes[inode_key(ino)] = (mode, 0, 0, 0, 0, 0, 2, 1, parent, now, now, now, now, 0, b'')

    def _take_ino(self) -> int:
        self.next_ino += 1
        return self.next_ino - 1

    def _new_directory(self, above: int, name: bytes) -> int:
        ino = self._take_ino()
        self._new_inode(ino, above)
        self._add_entry(above, self._free(above, name), ino, DIRECTORY)
        return ino

    def _entries(self, at: int, name: bytes) -> tuple[bytes, tuple[Any, ...]]:
        key = dirent_key(at, name_hash(self._store.superblock.name_key, name))
        return key, self._get(key) or ()

    def _free(self, at: int, name: bytes) -> bytes:
        wanted, count = name, 1
        while any(one[0] == wanted for one in self._entries(at, wanted)[1]):
            count += 1
            stem, dot, end = name.rpartition(b'.')
            wanted = b'%b-%d%b%b' % (stem or end, count, dot, end if stem else b'')
        return wanted

    def _add_entry(self, at: int, name: bytes, ino: int, file_type: int) -> None:
        key, entries = self._entries(at, name)
        self._changes[key] = tuple(sorted((*entries, (name, ino, file_type))))
        above = self._get(inode_key(at))
        assert above is not None
        self._set(at, size=above[INODE_SIZE] + 1, nlink=above[INODE_NLINK] + (file_type == DIRECTORY))

    def _drop_entry(self, at: int, name: bytes) -> None:
        key, entries = self._entries(at, name)
        left = tuple(one for one in entries if one[0] != name)
        if left != entries:
            self._changes[key] = left or None

    # --- the report --------------------------------------------------------------------------------------
    def _report(self, report: dict[str, Any]) -> None:
        data = (json.dumps(report, indent=2) + '\n').encode()
        ino, now = self._take_ino(), self._now_ns
        pieces = [data[start : start + PIECE] for start in range(0, len(data), PIECE)]
        self._store.chunks.put_batch(RecordKind.DATA, pieces)
        for number, piece in enumerate(pieces):
            self._changes[extent_key(ino, number * PIECE)] = (len(piece), data_id(piece))
        top = self._get(inode_key(limits.INO_ROOT))
        assert top is not None
        # It is for whom the data belongs to, and names files that not everybody may know of.
        mode = stat.S_IFREG | 0o600 | top[INODE_MODE] & 0o040
        fields = (
            mode,
            top[INODE_UID],
            top[INODE_GID],
            0,
            len(data),
            len(data),
            1,
            1,
            0,
            now,
            now,
            now,
            now,
            0,
            b'',
        )
        self._changes[inode_key(ino)] = fields
        name = self._free(limits.INO_ROOT, REPORT.encode())
        self._add_entry(limits.INO_ROOT, name, ino, stat.S_IFREG >> 12)
        self._set(limits.INO_ROOT, mtime=now)


_FIELDS = {
    'nlink': INODE_NLINK,
    'size': INODE_SIZE,
    'allocated': INODE_ALLOCATED,
    'parent': INODE_PARENT,
    'mtime': INODE_MTIME,
}


def _joined(ranges: Sequence[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Return ranges in order, those that meet or overlap as one."""
    joined: list[tuple[bytes, bytes]] = []
    for low, high in sorted(ranges):
        if joined and low <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(joined[-1][1], high))
        else:
            joined.append((low, high))
    return joined
