"""L4 rebuild: a catalog made anew from packs, and from a backup of the rows that packs cannot give back.
Blocking; one thread; nobody has the store open.

Nothing of the store is changed: the new catalog is a new file. Every record of every pack goes into the
index, but for those that a receipt names as freed, which go where they were. The names of volumes and
snapshots come from the newest backup that is whole. Trees that no name leads to, and of which every node
and every chunk is there, become snapshots of a volume `recovered`: so what was made after the backup is not
lost, only nameless.

Every unknown keeps data: what was condemned is in use again, what was asked to go stays, and the collector
stands still until a person has looked. Two records of one chunk: the first that is whole counts.

The journal is replayed on the heads of the backup only if it is proved that it follows them
(rebuild_journal.py). Else it goes aside, whole, under another name, when the catalog is put in place, and the
new catalog begins behind all of its records: to apply a record to another tree than the one it was made for
could destroy what is there (P5 cannot be kept any more)."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from snapfs import limits
from snapfs.errors import Corrupt, Invalid
from snapfs.format.ids import RecordKind
from snapfs.format.items import INODE_MTIME
from snapfs.format.keys import inode_key
from snapfs.format.nodes import Branch, Leaf, decode_node, peek_refs
from snapfs.format.packs import PackEntry
from snapfs.format.rebuilt import rebuilt_reason
from snapfs.format.receipts import RECEIPT_HEADER_BYTES, decode_receipt_header, decode_receipt_rows
from snapfs.format.records import HEADER_BYTES, decode_header, decode_payload
from snapfs.rescue.rebuild_journal import look
from snapfs.rescue.rebuild_names import Unproved, ended_batch
from snapfs.rescue.rebuild_nodes import Nodes
from snapfs.rescue.rebuild_numbers import next_numbers
from snapfs.rescue.rebuild_packs import PackRecords, expected_header, packs_to_read
from snapfs.rescue.rebuild_sums import Sums
from snapfs.store.backup import Backup
from snapfs.store.catalog import Catalog
from snapfs.store.cells import columns_of
from snapfs.store.durable import Disk
from snapfs.store.mirror import FOLDER as MIRROR
from snapfs.store.mirror import read_copy
from snapfs.store.recovery import packs_on_disk

VOLUME = b'recovered'
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
    bad_count: int = 0  # REBUILD_BAD_MAX of them are named in `bad`
    backup: str | None = None  # file name of the source of names: of a backup, or the catalog
    doubt: str = ''  # why the names of a damaged catalog were not taken
    backup_epoch: int | None = None
    volumes: int = 0
    snapshots: int = 0
    trees: int = 0
    incomplete: int = 0
    hidden: int = 0  # whole trees beyond those that were made snapshots
    journal: str = ''
    replay: bool = False  # the journal that is there belongs to the new catalog
    kept: list[str] = field(default_factory=list)  # where old files are, once it is put in place


class Rebuild:
    """One rebuild. `run` makes the catalog at `target`, which must not be there. Memory does not grow with
    the store: what it knows of nodes is in a file beside the target."""

    def __init__(self, disk: Disk, store: Path, uuid: bytes, target: Path, now_ns: int) -> None:
        self._disk = disk
        self._store = store
        self._uuid = uuid
        self._target = target
        self._now_ns = now_ns
        self._nodes: Nodes
        self._paths: dict[int, Path] = {}  # of packs, by their numbers
        self._ends: dict[bytes, int] = {}  # of packs, as the backup knows them
        self._skipped = 0, 0  # the first and the last number of a view that the catalog passes over
        self.result = Rebuilt()

    def run(
        self,
        chosen: Backup | None,
        progress: Progress = lambda what, done, known: None,
        prove: Iterable[tuple[str, list[Any]]] = (),
    ) -> Rebuilt:
        """Make the catalog. Invalid when the target is there; Unproved when one of `prove`, trees that the
        chosen rows name (what; root, items, references, next inode number), is not what the row says. A
        failure removes what was begun."""
        if self._target.exists():
            raise Invalid(f'{self._target} is there already')
        packs_on_disk(self._disk, self._store / 'packs', every=True)  # before the long work
        self._nodes = Nodes(self._target.parent)
        try:
            return self._run(chosen, progress, prove)
        finally:
            self._nodes.close()

    def _run(
        self, chosen: Backup | None, progress: Progress, prove: Iterable[tuple[str, list[Any]]]
    ) -> Rebuilt:
        catalog = Catalog.create(self._disk, self._target)
        try:
            self._receipts(chosen)
            self._ends = {row[1]: row[4] for row in chosen.tables['pack']} if chosen is not None else {}
            self._packs(catalog, progress)
            self._prove(prove)
            known = self._names(catalog, chosen)
            self._numbers(catalog)
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
    def _receipts(self, chosen: Backup | None) -> None:
        """Note what was freed. An unreadable receipt frees nothing."""
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
                    self._nodes.add_freed(one.id, one.pack_name, one.offset, number)
            except (OSError, Corrupt) as error:
                self._bad(f'batch {number}: {error}')

    def _bad(self, text: str) -> None:
        self.result.bad_count += 1
        if len(self.result.bad) < limits.REBUILD_BAD_MAX:
            self.result.bad.append(text)

    def _packs(self, catalog: Catalog, progress: Progress) -> None:
        found = packs_to_read(self._disk, self._store)
        for number, (kind, name, path) in enumerate(found, start=1):
            self._paths[number] = path
            all_rows: list[tuple[Any, ...]] = []
            freed = self._nodes.freed_in(name)
            end, count, sealed = self._records(number, kind, freed, all_rows)
            if path.parts[-3] == MIRROR:
                self._bad(f'{path.name} is gone; its second copy has {count} nodes')
                if not count:
                    continue  # there is no such pack any more
            gone = [(*row, freed[row[0], row[2]]) for row in all_rows if (row[0], row[2]) in freed]
            rows = [row for row in all_rows if (row[0], row[2]) not in freed] if gone else all_rows
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
        self, number: int, kind: int, freed: Container[tuple[bytes, int]], rows: list[tuple[Any, ...]]
    ) -> tuple[int, int, bool]:
        """Read a pack: rows of its whole records; where they end (with the footer, when it has one), how
        many."""
        path = self._paths[number]
        name = bytes.fromhex(path.name)
        try:
            fd = self._disk.open_read(path)
            try:
                found = PackRecords(self._disk, fd, expected_header(self._uuid, name, kind))
                entries = found.read()
                if found.headless:
                    self._bad(f'{path.name}: its header; records are read all the same')
                broken, copied = set(), set()
                for one in entries:
                    refs = self._whole(fd, kind, one)
                    if refs is None and kind == RecordKind.NODE:
                        # Readers take it from there as well; a recovery puts it back.
                        refs = self._whole_copy(name, one)
                        if refs is not None:
                            copied.add(one.offset)
                    if refs is None:
                        broken.add(one.offset)
                    elif kind == RecordKind.NODE:
                        self._know(number, one, refs, (one.id, one.offset) in freed)
            finally:
                self._disk.close(fd)
        except (Corrupt, OSError) as error:
            self._bad(f'{path.name}: {error}')
            return 48, 0, True  # sealed: nobody writes to it, or cuts off what is in it
        for one in entries:
            if one.offset not in broken:
                sizes = (one.offset, one.stored_length, one.plain_length, one.codec)
                rows.append((one.id, number, *sizes, kind))
        for offset in sorted({*found.bad, *broken, *copied}):
            whole = '; its second copy is whole' if offset in copied else ''
            self._bad(f'{path.name} at offset {offset}{whole}')
        return found.end, len(entries), found.sealed

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

    def _whole(self, fd: int, kind: int, one: PackEntry) -> bytes | None:
        """Verify a record: of data the header, of nodes all of it; return the ids of the nodes below it, None
        when it is not whole."""
        length = HEADER_BYTES + (one.stored_length if kind == RecordKind.NODE else 0)
        try:
            data = memoryview(self._disk.pread(fd, length, one.offset))
            header = decode_header(data)
            if (header.id, int(header.kind)) != (one.id, kind):
                return None
            if kind != RecordKind.NODE:
                return b''
            return _below(decode_payload(header, data[HEADER_BYTES:]))
        except (Corrupt, OSError):
            return None

    def _whole_copy(self, name: bytes, one: PackEntry) -> bytes | None:
        """As `_whole`, of the second copy of a node."""
        plain = read_copy(self._disk, self._store, name, one.offset, one.stored_length, one.id)
        try:
            return None if plain is None else _below(plain)
        except Corrupt:
            return None

    def _know(self, pack: int, one: PackEntry, refs: bytes, freed: bool) -> None:
        """Note a node that is whole. One that was freed leads nowhere."""
        if one.offset < self._ends.get(bytes.fromhex(self._paths[pack].name), 0):
            self._nodes.was_before(one.id)
        if not freed:
            below = [refs[at : at + 32] for at in range(0, len(refs), 32)]
            self._nodes.add(one.id, pack, one.offset, below)

    def _node(self, id: bytes) -> Leaf | Branch:
        pack, offset = self._nodes.place(id)
        fd = self._disk.open_read(self._paths[pack])
        stored = limits.STORED_BYTES_MAX
        try:
            header = decode_header(self._disk.pread(fd, HEADER_BYTES, offset))
            if header.id != id:
                raise Corrupt(f'node {id.hex()}: another one is in its place')
            stored = header.stored_length
            payload = self._disk.pread(fd, stored, offset + HEADER_BYTES)
            return decode_node(decode_payload(header, payload))
        except Corrupt:
            name = bytes.fromhex(self._paths[pack].name)
            plain = read_copy(self._disk, self._store, name, offset, stored, id)
            if plain is None:
                raise
            return decode_node(plain)
        finally:
            self._disk.close(fd)

    # --- names -------------------------------------------------------------------------------------------
    def _prove(self, trees: Iterable[tuple[str, list[Any]]]) -> None:
        for what, (root, items, refs, next_ino) in trees:
            if root is None:
                continue
            try:
                node = top = self._node(root)
                while isinstance(node, Branch):
                    node = self._node(node.children[-1])
            except (KeyError, Corrupt, OSError) as error:
                raise Unproved(f'{what}: its tree cannot be read') from error
            if (top.items_below, top.refs_below) != (items, refs):
                raise Unproved(f'{what} does not count what its tree counts')
            if int.from_bytes(node.keys[-1][:8], 'big') >= next_ino:
                raise Unproved(f'{what} would give out inode numbers twice')

    def _names(self, catalog: Catalog, chosen: Backup | None) -> set[bytes]:
        """Take the rows of the backup; return the roots that they name."""
        if chosen is None:
            return set()
        self.result.backup, self.result.backup_epoch = chosen.path.name, chosen.epoch
        tables = {name: [tuple(row) for row in rows] for name, rows in chosen.tables.items()}
        # What was on its way has come back; what was freed stays freed; whatever could be taken back still
        # can.
        tables['batch'] = [ended_batch(row, self._now_ns) for row in tables['batch']]
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
                marks = ','.join('?' * len(columns_of(name)))
                db.executemany(f'INSERT INTO {name} VALUES ({marks})', tables[name])
            for key, value in tables['settings']:
                if key not in ('clean', 'next_pack'):
                    db.execute('UPDATE settings SET value = max(value, ?) WHERE key = ?', (value, key))
        self.result.volumes, self.result.snapshots = len(tables['volume']), len(tables['snapshot'])
        roots = {'volume': 3, 'snapshot': 3, 'request': 6, 'canary': 1}
        return {row[at] for name, at in roots.items() for row in tables[name] if row[at] is not None}

    # --- trees that nobody names -------------------------------------------------------------------------
    def _trees(self, catalog: Catalog, known: set[bytes], progress: Progress) -> None:
        self._nodes.name(known)
        count = self._nodes.tops_count()
        found: list[Tree] = []
        for done, id in enumerate(self._nodes.tops(), start=1):
            tree = self._proved(catalog, id)
            if tree is not None:
                found.append(tree)
                self.result.trees += 1
            if len(found) >= 2 * limits.REBUILD_TREES_MAX:
                found = _newest(found)
            progress('trees', done, count)
        found = _newest(found)
        self.result.hidden = self.result.trees - len(found)
        self.result.trees = len(found)
        if found:
            self._enter(catalog, found)

    def _proved(self, catalog: Catalog, top: bytes) -> Tree | None:
        """Return the tree below a node if it is one of a volume, and all of it is there."""
        try:
            first = self._node(top)
            items = first.items_below
            refs = first.refs_below
            counted_items = counted_refs = most = 0
            branches = [0]
            mtime, sums = None, Sums()
            for leaf in self._leaves(first, branches):
                sums.add(leaf)
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
            if mtime is None or (counted_items, counted_refs + branches[0]) != (items, refs):
                raise Corrupt('its totals do not add up')
            if not sums.are_whole():
                raise Corrupt('it is the left part of a tree whose top is lost')
        except (Corrupt, KeyError, OSError):
            self.result.incomplete += 1
            return None
        return Tree(top, items, refs, max(most + 1, limits.INO_FIRST), mtime)

    def _leaves(self, node: Leaf | Branch, below: list[int]) -> Iterator[Leaf]:
        """Yield the leaves from left to right, and count in `below` the nodes under the top."""
        if isinstance(node, Leaf):
            yield node
            return
        below[0] += len(node.children)
        for child in node.children:
            yield from self._leaves(self._node(child), below)

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
        facts = look(self._store, self._uuid, after)
        why = facts.fault
        if chosen is None:
            why = 'no backup says what comes before them'
        elif not why and facts.records:
            why = self._why_not(chosen, facts.views.keys(), facts.packs)
        if not why:
            self.result.replay = True
            self.result.journal = f'{facts.records} records will be replayed'
            return
        self.result.journal = f'its records are not replayed, and are kept aside: {why}'
        with catalog.transaction() as db:
            value = max(facts.greatest, after) + limits.JOURNAL_SEQUENCE_GAP
            db.execute("UPDATE settings SET value = ? WHERE key = 'journal_sequence'", (value,))

    def _why_not(self, chosen: Backup, views: Iterable[int], packs: set[bytes]) -> str:
        """Return why records without a gap need not belong to the heads of the backup; empty: they do."""
        late = self._nodes.late()
        if late:
            return f'{late} nodes were written after the backup, perhaps by commits of which no record tells'
        known = {row[1] for row in chosen.tables['volume']}
        known |= {row[5] for row in chosen.tables['request'] if row[1] == 'volume'}
        strangers = sorted(set(views) - known)
        if strangers:
            return f'they are about view {strangers[0]}, which the backup does not know'
        there = {name for _, name in packs_on_disk(self._disk, self._store / 'packs', every=True)}
        return '' if packs <= there else 'a pack that they name is missing'

    def _numbers(self, catalog: Catalog) -> None:
        """Let every counter go on from above all that was ever given out, before anything gets a number."""
        with catalog.transaction() as db:
            text = "SELECT value FROM settings WHERE key = 'next_view'"
            first = db.execute(text).fetchone()[0]
            for key, value in next_numbers(self._disk, self._store).items():
                gap = limits.REBUILD_EPOCH_GAP if key == 'epoch' else limits.REBUILD_NUMBER_GAP
                db.execute('UPDATE settings SET value = max(value, ?) + ? WHERE key = ?', (value, gap, key))
            self._skipped = first, db.execute(text).fetchone()[0] - 1

    def _finish(self, catalog: Catalog) -> None:
        with catalog.transaction() as db:
            packs = db.execute('SELECT coalesce(max(pack), 0) + 1 FROM pack').fetchone()[0]
            db.execute("UPDATE settings SET value = ? WHERE key = 'next_pack'", (packs,))
            db.execute("UPDATE settings SET value = 0 WHERE key = 'clean'")
        catalog.incident_add('collector', rebuilt_reason(*self._skipped), self._now_ns)


def _below(plain: bytes | memoryview) -> bytes:
    """Return the ids of the nodes below a node. Corrupt when it is none."""
    head, refs = peek_refs(plain)
    return bytes(refs) if head.level else b''


def _newest(trees: list[Tree]) -> list[Tree]:
    return sorted(trees, key=lambda tree: tree.mtime_ns, reverse=True)[: limits.REBUILD_TREES_MAX]
