"""L4 rebuild: a catalog made anew from packs, and from a backup of the rows that packs cannot give back.
Blocking; one thread; nobody has the store open.

Nothing of the store is changed: the new catalog is a new file. Every record of every pack goes into the
index, but for those that a receipt names as freed, which go where they were. The names of volumes and
snapshots come from the newest backup that is whole. Trees that no name leads to, and of which every node
and every chunk is there, become snapshots of a volume `recovered`: so what was made after the backup is not
lost, only nameless.

Every unknown keeps data: what was condemned is in use again, what was asked to go stays, and the collector
stands still until a person has looked. Two records of one chunk: the first that is whole counts.

The journal is replayed on the heads of the backup only if its records follow it without a gap: the backup
says up to which record its roots contain everything, and was read in one transaction. Else the journal is
left as it is for a person, its files are copied under other names, and the new catalog begins behind all of
its records: to apply a record to another tree than the one it was made for could destroy what is there (P5
cannot be kept any more)."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from snapfs import limits
from snapfs.errors import Corrupt, Held, Invalid
from snapfs.format.ids import RecordKind
from snapfs.format.items import INODE_MTIME
from snapfs.format.journal import JOURNAL_HEADER_BYTES, decode_journal_header, decode_records
from snapfs.format.keys import inode_key
from snapfs.format.nodes import Branch, Leaf, decode_node, peek_refs
from snapfs.format.packs import PackEntry, decode_footer, footer_offset
from snapfs.format.receipts import RECEIPT_HEADER_BYTES, decode_receipt_header, decode_receipt_rows
from snapfs.format.records import HEADER_BYTES, decode_header, decode_payload
from snapfs.store import backup as backups
from snapfs.store import schema
from snapfs.store.backup import Backup
from snapfs.store.catalog import Catalog
from snapfs.store.durable import Disk
from snapfs.store.packs import pack_path, scan_records
from snapfs.store.recovery import packs_on_disk

VOLUME = b'recovered'
TRAILER = 48
# Of a catalog that nobody uses yet.
_BETTER = (
    'INSERT INTO chunk VALUES (?, ?, ?, ?, ?, ?, ?, 0) ON CONFLICT (id) DO UPDATE SET pack = excluded.pack, '
    'offset = excluded.offset, stored = excluded.stored, codec = excluded.codec'
)
Progress = Callable[[str, int, int], None]


@dataclass(slots=True)
class Tree:
    """A tree that no name leads to. `mtime_ns`: of its top directory."""

    id: bytes
    items: int
    refs: int
    next_ino: int
    mtime_ns: int


@dataclass(slots=True)
class Rebuilt:
    """What a rebuild found and made."""

    packs: int = 0
    chunks: int = 0
    freed: int = 0
    bad: list[str] = field(default_factory=list)
    backup: str | None = None
    backup_epoch: int | None = None
    volumes: int = 0
    snapshots: int = 0
    trees: int = 0
    incomplete: int = 0
    journal: str = ''


def refuse_whole(store: Path) -> None:
    """Raise Held when the catalog is whole: there is nothing to make anew, and a rebuild would forget
    things."""
    path = store / 'catalog.sqlite'
    try:
        if not path.is_file():
            return
        db = sqlite3.connect(f'{path.as_uri()}?mode=rw', uri=True)
        try:
            found = dict(db.execute('SELECT name, sql FROM sqlite_schema WHERE sql IS NOT NULL'))
            whole = db.execute('PRAGMA integrity_check(1)').fetchone() == ('ok',)
            same = {name: (text or '').strip() for name, text in found.items()} == {
                name: text.strip() for name, text in schema.TABLES.items()
            }
        finally:
            db.close()
    except sqlite3.Error:
        return
    if whole and same:
        raise Held(
            'the catalog is whole, and a rebuild would only forget things', advice='See: snapfs fsck STORE.'
        )


class Rebuild:
    """One rebuild. `run` makes the catalog at `target`, which must not be there."""

    def __init__(self, disk: Disk, store: Path, uuid: bytes, target: Path, now_ns: int) -> None:
        self._disk = disk
        self._store = store
        self._uuid = uuid
        self._target = target
        self._now_ns = now_ns
        self._nodes: dict[bytes, tuple[bytes, ...]] = {}  # branch: its children; leaf: nothing
        self._place: dict[bytes, tuple[Path, int]] = {}
        self.result = Rebuilt()

    def run(self, chosen: Backup | None, progress: Progress = lambda what, done, known: None) -> Rebuilt:
        """Make the catalog. Invalid when the target is there. A failure removes what was begun."""
        if self._target.exists():
            raise Invalid(f'{self._target} is there already')
        catalog = Catalog.create(self._disk, self._target)
        try:
            freed = self._receipts(chosen)
            self._packs(catalog, freed, progress)
            known = self._names(catalog, chosen)
            self._trees(catalog, known, progress)
            self._journal(catalog, chosen)
            self._finish(catalog)
            catalog.checkpoint()
        except BaseException:
            catalog.close()
            for suffix in ('', '-wal', '-shm'):
                Path(f'{self._target}{suffix}').unlink(missing_ok=True)
            raise
        catalog.close()
        return self.result

    # --- packs -------------------------------------------------------------------------------------------
    def _receipts(self, chosen: Backup | None) -> dict[tuple[bytes, bytes, int], int]:
        """Return what was freed: (id, pack name, offset) to batch. An unreadable receipt frees nothing."""
        found: dict[tuple[bytes, bytes, int], int] = {}
        for row in chosen.tables['batch'] if chosen is not None else ():
            number, state = row[0], row[1]
            if state not in ('CONFIRMED', 'FREED'):
                continue
            try:
                data = self._disk.read_file(self._store / 'batches' / str(number) / 'receipt', limits.GIB)
                head = decode_receipt_header(data[:RECEIPT_HEADER_BYTES], len(data))
                if head.store_uuid != self._uuid or head.batch != number:
                    raise Corrupt(f'the receipt of batch {number} is another one')
                for one in decode_receipt_rows(data[RECEIPT_HEADER_BYTES:]):
                    found[one.id, one.pack_name, one.offset] = number
            except (OSError, Corrupt) as error:
                self.result.bad.append(f'batch {number}: {error}')
        return found

    def _packs(
        self, catalog: Catalog, freed: dict[tuple[bytes, bytes, int], int], progress: Progress
    ) -> None:
        found = sorted(packs_on_disk(self._disk, self._store / 'packs'))
        for number, (kind, name) in enumerate(found, start=1):
            path = pack_path(self._store / 'packs', RecordKind(kind), name)
            rows: list[tuple[Any, ...]] = []
            gone: list[tuple[Any, ...]] = []
            end, count, sealed = self._records(path, kind, name, number, rows)
            for row in list(rows):
                batch = freed.get((row[0], name, row[2]))
                if batch is not None:
                    rows.remove(row)
                    gone.append((*row, batch))
                    if self._place.get(row[0]) == (path, row[2]):
                        del self._place[row[0]], self._nodes[row[0]]
            better = self._better(catalog, path, rows)
            with catalog.transaction() as db:
                state = 'sealed' if sealed else 'open'
                db.execute(
                    'INSERT INTO pack VALUES (?, ?, ?, ?, ?, ?)', (number, name, kind, state, end, count)
                )
                db.executemany('INSERT OR IGNORE INTO chunk VALUES (?, ?, ?, ?, ?, ?, ?, 0)', rows)
                db.executemany(_BETTER, better)
                db.executemany('INSERT OR IGNORE INTO freed VALUES (?, ?, ?, ?, ?, ?, ?, 0, ?)', gone)
            self.result.packs += 1
            self.result.chunks += len(rows)
            self.result.freed += len(gone)
            progress('packs', number, len(found))

    def _records(
        self, path: Path, kind: int, name: bytes, number: int, rows: list[tuple[Any, ...]]
    ) -> tuple[int, int, bool]:
        """Read a pack: rows of its whole records; where they end (with the footer, when it has one), how
        many."""
        fd = self._disk.open_read(path)
        try:
            size = self._disk.size(fd)
            entries, sealed = _entries(self._disk, fd, size, name)
            end, count = 48, 0
            for one in entries:
                if not self._whole(fd, path, kind, one):
                    self.result.bad.append(f'{path.name} at offset {one.offset}')
                    if not sealed:
                        break
                    count += 1
                    continue
                rows.append(
                    (one.id, number, one.offset, one.stored_length, one.plain_length, one.codec, kind)
                )
                end, count = one.offset + HEADER_BYTES + one.stored_length, count + 1
            return (size if sealed else end), count, sealed
        except (Corrupt, OSError) as error:
            self.result.bad.append(f'{path.name}: {error}')
            return 48, 0, False
        finally:
            self._disk.close(fd)

    def _better(self, catalog: Catalog, path: Path, rows: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
        """Return the rows of second copies that are whole to the last byte: who is there first was only
        looked at by its header, and may be the one that a recovery has replaced."""
        known = catalog.locate([row[0] for row in rows])
        found = []
        for row in rows:
            if row[0] in known and row[6] == RecordKind.DATA:
                fd = self._disk.open_read(path)
                try:
                    data = memoryview(self._disk.pread(fd, HEADER_BYTES + row[3], row[2]))
                    decode_payload(decode_header(data), data[HEADER_BYTES:])
                    found.append(row[:7])
                except (Corrupt, OSError):
                    pass
                finally:
                    self._disk.close(fd)
        return found

    def _whole(self, fd: int, path: Path, kind: int, one: PackEntry) -> bool:
        """Verify a record: of data the header, of nodes all of it, which are then known."""
        length = HEADER_BYTES + (one.stored_length if kind == RecordKind.NODE else 0)
        try:
            data = memoryview(self._disk.pread(fd, length, one.offset))
            header = decode_header(data)
            if (header.id, int(header.kind)) != (one.id, kind):
                return False
            if kind == RecordKind.NODE:
                head, refs = peek_refs(decode_payload(header, data[HEADER_BYTES:]))
                ids = tuple(refs[at : at + 32] for at in range(0, len(refs), 32)) if head.level else ()
                self._nodes.setdefault(one.id, ids)
                self._place.setdefault(one.id, (path, one.offset))
            return True
        except (Corrupt, OSError):
            return False

    def _node(self, id: bytes) -> Leaf | Branch:
        path, offset = self._place[id]
        fd = self._disk.open_read(path)
        try:
            header = decode_header(self._disk.pread(fd, HEADER_BYTES, offset))
            return decode_node(
                decode_payload(header, self._disk.pread(fd, header.stored_length, offset + HEADER_BYTES))
            )
        finally:
            self._disk.close(fd)

    # --- names -------------------------------------------------------------------------------------------
    def _names(self, catalog: Catalog, chosen: Backup | None) -> set[bytes]:
        """Take the rows of the backup; return the roots that they name."""
        if chosen is None:
            return set()
        self.result.backup, self.result.backup_epoch = chosen.path.name, chosen.epoch
        tables = {name: [tuple(row) for row in rows] for name, rows in chosen.tables.items()}
        # What was on its way has come back; what was freed stays freed; whatever could be taken back still
        # can.
        tables['batch'] = [_ended(row, self._now_ns) for row in tables['batch']]
        freed = {row[0] for row in tables['batch'] if row[1] == 'FREED'}
        tables['request'] = [
            (*row[:18], None, *row[19:])
            for row in tables['request']
            if row[1] in ('snapshot', 'volume') and row[18] not in freed
        ]
        order = [
            'volume',
            'snapshot',
            'hold',
            'batch',
            'request',
            'incident',
            'receipt',
            'config',
            'approval',
            'canary',
        ]
        with catalog.transaction() as db:
            for name in order:
                marks = ','.join('?' * len(schema_columns(name)))
                db.executemany(f'INSERT INTO {name} VALUES ({marks})', tables[name])
            for key, value in tables['settings']:
                if key not in ('clean', 'next_pack'):
                    db.execute('UPDATE settings SET value = max(value, ?) WHERE key = ?', (value, key))
        self.result.volumes, self.result.snapshots = len(tables['volume']), len(tables['snapshot'])
        roots = {'volume': 3, 'snapshot': 3, 'request': 6, 'canary': 1}
        return {row[at] for name, at in roots.items() for row in tables[name] if row[at] is not None}

    # --- trees that nobody names -------------------------------------------------------------------------
    def _trees(self, catalog: Catalog, known: set[bytes], progress: Progress) -> None:
        reached = self._below(known)
        below_any = {child for children in self._nodes.values() for child in children}
        tops = [id for id in self._nodes if id not in below_any and id not in reached]
        found: list[Tree] = []
        for done, id in enumerate(tops):
            tree = self._proved(catalog, id)
            if tree is not None:
                found.append(tree)
            progress('trees', done + 1, len(tops))
        found.sort(key=lambda tree: tree.mtime_ns, reverse=True)
        found = found[: limits.REBUILD_TREES_MAX]
        self.result.trees = len(found)
        if found:
            self._enter(catalog, found)

    def _below(self, ids: set[bytes]) -> set[bytes]:
        seen: set[bytes] = set()
        todo = [id for id in ids if id in self._nodes]
        while todo:
            id = todo.pop()
            if id not in seen:
                seen.add(id)
                todo += self._nodes.get(id, ())
        return seen

    def _proved(self, catalog: Catalog, top: bytes) -> Tree | None:
        """Return the tree below a node if it is one of a volume, and all of it is there."""
        try:
            first = self._node(top)
            items = first.items_below
            refs = first.refs_below
            counted_items = counted_refs = most = 0
            mtime = None
            for leaf in self._leaves(first):
                counted_items += len(leaf.keys)
                counted_refs += leaf.refs_below
                if mtime is None:
                    if leaf.keys[0] != inode_key(limits.INO_ROOT):
                        return None  # a part of a tree, cut out of one that was
                    mtime = leaf.values[0][INODE_MTIME]
                most = max(most, int.from_bytes(leaf.keys[-1][:8], 'big'))
                ids = leaf.ref_ids()
                if len(catalog.locate(ids)) != len(set(ids)):
                    raise Corrupt('data is missing')
            branches = sum(len(self._nodes[id]) for id in self._below({top}))
            if mtime is None or (counted_items, counted_refs + branches) != (items, refs):
                raise Corrupt('its totals do not add up')
        except (Corrupt, KeyError, OSError):
            self.result.incomplete += 1
            return None
        return Tree(top, items, refs, max(most + 1, limits.INO_FIRST), mtime)

    def _leaves(self, node: Leaf | Branch) -> Iterator[Leaf]:
        if isinstance(node, Leaf):
            yield node
            return
        for child in node.children:
            yield from self._leaves(self._node(child))

    def _enter(self, catalog: Catalog, found: list[Tree]) -> None:
        with catalog.transaction() as db:
            view, volume = (
                db.execute('SELECT value FROM settings WHERE key = ?', (key,)).fetchone()[0]
                for key in ('next_view', 'next_volume')
            )
            names = {name for (name,) in db.execute('SELECT name FROM volume')}
            name, count = VOLUME, 1
            while name in names:
                count += 1
                name = b'%b-%d' % (VOLUME, count)
            head = found[0]
            db.execute(
                'INSERT INTO volume VALUES (?, ?, ?, ?, ?, ?, ?, ?, NULL, NULL)',
                (volume, view, name, head.id, head.items, head.refs, head.next_ino, self._now_ns),
            )
            for number, tree in enumerate(found, start=view + 1):
                title = f'tree-{tree.items}-{tree.id.hex()[:8]}'.encode()
                db.execute(
                    "INSERT INTO snapshot VALUES (?, ?, ?, ?, ?, ?, ?, 0, ?, 'rebuild', NULL)",
                    (number, volume, title, tree.id, tree.items, tree.refs, tree.next_ino, self._now_ns),
                )
            values = [(view + 1 + len(found), 'next_view'), (volume + 1, 'next_volume')]
            db.executemany('UPDATE settings SET value = ? WHERE key = ?', values)

    # --- the end -----------------------------------------------------------------------------------------
    def _journal(self, catalog: Catalog, chosen: Backup | None) -> None:
        after = {row[0]: row[1] for row in chosen.tables['settings']}['journal_sequence'] if chosen else 0
        sequences: list[int] = []
        for number in (0, 1):
            path = self._store / 'journal' / str(number)
            try:
                data = self._disk.read_file(path, limits.JOURNAL_BYTES)
                head = decode_journal_header(data)
                for record in decode_records(data, self._uuid, JOURNAL_HEADER_BYTES, head.first_sequence):
                    sequences.append(record[0].sequence)
                sequences.append(max(0, head.first_sequence - 1))
            except (Corrupt, OSError) as error:
                self.result.bad.append(f'journal/{number}: {error}')
        last = max(sequences, default=0)
        newer = sorted({one for one in sequences if one > after})
        if chosen is not None and newer == list(range(after + 1, after + 1 + len(newer))):
            self.result.journal = f'{len(newer)} records will be replayed'
            return
        self.result.journal = 'its records belong to trees that nobody names any more, and are not replayed'
        with catalog.transaction() as db:
            value = max(last, after)
            db.execute("UPDATE settings SET value = max(value, ?) WHERE key = 'journal_sequence'", (value,))

    def _finish(self, catalog: Catalog) -> None:
        with catalog.transaction() as db:
            db.execute("UPDATE settings SET value = value + 1 WHERE key = 'epoch'")
            packs = db.execute('SELECT coalesce(max(pack), 0) + 1 FROM pack').fetchone()[0]
            db.execute("UPDATE settings SET value = ? WHERE key = 'next_pack'", (packs,))
            db.execute("UPDATE settings SET value = 0 WHERE key = 'clean'")
        catalog.incident_add(
            'collector', 'the catalog was rebuilt: look what is there before anything goes', self._now_ns
        )


def newest_backup(disk: Disk, store: Path, uuid: bytes) -> Backup | None:
    """Return the newest backup that is whole, or None."""
    return backups.newest(disk, store, uuid)


def schema_columns(table: str) -> list[str]:
    """Return the columns of a table, by its text."""
    db = sqlite3.connect(':memory:')
    try:
        for text in schema.TABLES.values():
            db.execute(text)
        return [row[0] for row in db.execute(f'SELECT name FROM pragma_table_xinfo({table!r})')]
    finally:
        db.close()


def _ended(row: tuple[Any, ...], now_ns: int) -> tuple[Any, ...]:
    """Return the row of a batch that does not move any more."""
    values = list(row)
    if values[1] in ('PLANNED', 'QUARANTINED'):
        values[1], values[16], values[17] = 'RESTORED', now_ns, 'the catalog was rebuilt'
    elif values[1] == 'CONFIRMED':
        values[1], values[15], values[16] = 'FREED', values[5], now_ns
    return tuple(values)


def _entries(disk: Disk, fd: int, size: int, name: bytes) -> tuple[list[PackEntry], bool]:
    """Return the records of a pack by its footer, or, without a good one, by their headers."""
    try:
        start = footer_offset(disk.pread(fd, TRAILER, max(0, size - TRAILER)), size)
        return decode_footer(bytes(disk.pread(fd, size - start, start)), size, name), True
    except Corrupt:
        pass
    found: list[PackEntry] = []
    try:
        for offset, head in scan_records(disk, fd, size):
            found.append(PackEntry(head.id, offset, head.stored_length, head.plain_length, int(head.codec)))
    except Corrupt:
        pass
    return found, False
