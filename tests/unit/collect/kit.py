"""What tests of deletion share: real stores, cheaply made of store and tree, and a recount by brute force."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from pathlib import Path

from snapfs import limits
from snapfs.collect.recount_values import RecountSpec
from snapfs.collect.roots import RootSet, root_set
from snapfs.format.ids import data_id
from snapfs.format.nodes import Branch, decode_node
from snapfs.format.records import RecordKind
from snapfs.store.catalog import Commit, HeadUpdate, take_number
from snapfs.store.durable import Disk
from snapfs.store.rows import RequestPart, RequestRow, SnapshotRow
from snapfs.store.store import Store
from snapfs.tree import EMPTY, Root, apply, run_apply
from tests.sim.tree_kit import SLOTS, TARGET, item_at, key_at
from tests.sim.world import SimWorld

ID = limits.ID_BYTES


def content_of(number: int) -> bytes:
    """The data chunk with this number."""
    return b'content %d ' % number * 110


def small_limits(monkeypatch) -> None:
    """A store of a few hundred KiB instead of 48 MiB."""
    monkeypatch.setattr(limits, 'JOURNAL_BYTES', 256 * limits.KIB)
    monkeypatch.setattr(limits, 'RESERVE_BYTES', 64 * limits.KIB)
    monkeypatch.setattr(limits, 'FREE_BYTES_MIN', 64 * limits.KIB)


class Kit:
    """A store whose volumes hold rows of items; small nodes make high trees. Call small_limits() first."""

    def __init__(self, path: Path, disk: Disk | None = None) -> None:
        self.store = Store.create(path, disk or Disk(), SimWorld(1))
        self.roots: dict[int, Root] = {}
        self.control: tuple[bytes, ...] = ()
        self._ticks = 0

    def close(self) -> None:
        self.store.close(clean=True)

    # --- trees -------------------------------------------------------------------------------------------
    def volume(self, name: str, origin: SnapshotRow | None = None) -> int:
        """A new volume: empty, or a clone. Returns its stable number."""
        row = self.store.registry.volume_add(name, self.now(), origin)
        self.roots[row.volume] = Root(row.root, row.root_items, row.root_refs)
        return row.volume

    def write(self, volume: int, contents: dict[int, int | None]) -> None:
        """Set items by index: to content number n, or away (None). Commits, with the request for what was
        dropped."""
        changes = []
        for index, number in sorted(contents.items()):
            if number is None:
                changes.append((key_at(index), None))
                continue
            key, value = item_at(index, number)
            if index % SLOTS in (2, 3, 5):
                id = self.put(number)
                value = (*value[:-1], id)
            changes.append((key, value))
        applied = self._apply(self.roots[volume], changes)
        self.roots[volume] = applied.root
        dropped = RequestPart(volume, tuple(applied.dropped), tuple(applied.dropped_subtrees))
        named = (dropped,) if applied.dropped or applied.dropped_subtrees else ()
        self.commit({volume: applied.root}, named)

    def put(self, number: int) -> bytes:
        return self.store.chunks.put_batch(RecordKind.DATA, [content_of(number)])[0]

    def _apply(self, root: Root, changes: Sequence) -> object:
        chunks = self.store.chunks

        def keep(nodes: Sequence[tuple[bytes, bytes]]) -> None:
            chunks.put_batch(RecordKind.NODE, [plain for _, plain in nodes])

        def load(ids: Sequence[bytes]) -> list:
            return [decode_node(plain) for plain in chunks.get_many(ids)]

        return run_apply(apply(root, (), changes, target_bytes=TARGET), load, keep)

    def commit(self, roots: dict[int, Root] | None = None, dropped: Sequence[RequestPart] = ()) -> int:
        """Commit new roots; returns the epoch."""
        chunks, catalog = self.store.chunks, self.store.catalog
        chunks.sync()
        rows = chunks.commit_rows()
        heads = [HeadUpdate(v, *root, next_ino=limits.INO_FIRST) for v, root in (roots or {}).items()]
        sequence = self.store.journal.last_sequence
        epoch = catalog.commit(Commit(heads, rows.chunks, rows.packs, dropped, sequence, self.now()))
        chunks.committed(rows)
        return epoch

    def now(self) -> int:
        self._ticks += 1
        return 10**18 + self._ticks

    # --- rows --------------------------------------------------------------------------------------------
    def snapshot(self, volume: int, name: str) -> SnapshotRow:
        return self.store.registry.snapshot_add(volume, name, 'somebody', self.now())

    def delete(self, snapshot: SnapshotRow) -> RequestRow:
        """Delete a snapshot; returns the request."""
        return self.store.registry.snapshot_delete(snapshot.number, 'somebody', self.now())

    def request(self, kind: str, chunks: Iterable[bytes] = (), subtrees: Iterable[bytes] = ()) -> int:
        """A request that the collector makes: 'returned', 'leaked' or 'dropped'. Returns its number."""
        with self.store.catalog.transaction() as db:
            number = take_number(db, 'next_request')
            db.execute(
                "INSERT INTO request VALUES (?, ?, 0, x'', x'', 0, NULL, 0, 0, 0, 0, 0, '', NULL, 0, '', ?, "
                'NULL, NULL, NULL, NULL)',
                (number, kind, self.store.catalog.epoch),
            )
            for part, (what, ids) in enumerate((('chunks', chunks), ('subtrees', subtrees))):
                joined = b''.join(ids)
                if joined:
                    db.execute('INSERT INTO request_part VALUES (?, ?, ?, ?)', (number, part, what, joined))
        return number

    def requests(self, kind: str | None = None) -> list[RequestRow]:
        return [row for row in self.store.registry.requests() if kind in (None, row.kind)]

    def batch(self, requests: Iterable[int], ids: Iterable[bytes], state: str = 'QUARANTINED') -> int:
        """A batch by hand: these requests, with these chunks moved from `chunk` to quarantine."""
        with self.store.catalog.transaction() as db:
            number = take_number(db, 'next_batch')
            names = [row[1] for row in db.execute('PRAGMA table_info(batch)')]
            values = dict.fromkeys(names)
            values |= {'number': number, 'state': state, 'class': 'kept', 'horizon': 0, 'digest': bytes(ID)}
            values |= {'chunks': 0, 'bytes': 0, 'grace_ns': 0, 'planned_ns': 0, 'freed': 0}
            marks = ', '.join('?' * len(names))
            db.execute(f'INSERT INTO batch VALUES ({marks})', [values[name] for name in names])
            for request in requests:
                db.execute('UPDATE request SET batch = ? WHERE number = ?', (number, request))
            for id in ids:
                db.execute('INSERT INTO quarantine SELECT *, ? FROM chunk WHERE id = ?', (number, id))
                db.execute('DELETE FROM chunk WHERE id = ?', (id,))
        return number

    def plant(self) -> None:
        """Plant a canary by hand."""
        applied = self._apply(
            EMPTY, [(key_at(2), (1100, self.put(10**9))), (key_at(3), (1100, self.put(10**9 + 1)))]
        )
        self.control = (data_id(content_of(10**9)), data_id(content_of(10**9 + 1)))
        self.commit()
        with self.store.catalog.transaction() as db:
            db.execute('INSERT INTO canary VALUES (1, ?, ?, ?, 0)', applied.root)

    def sql(self, text: str, *values: object) -> list:
        """Change the catalog behind everybody's back."""
        with self.store.catalog.transaction() as db:
            return db.execute(text, values).fetchall()

    # --- what to compare with ----------------------------------------------------------------------------
    def root_set(self) -> RootSet:
        with self.store.catalog.transaction() as db:
            return root_set(lambda text, values=(): db.execute(text, values).fetchall())

    def spec(self, deleted: Iterable[int] = (), mode: str = 'batch', **changes: object) -> RecountSpec:
        """What a recount of a batch of these requests is given."""
        out = self.store.path / 'batches' / 'test'
        out.mkdir(exist_ok=True)
        values = {
            'store': self.store.path,
            'uuid': self.store.superblock.uuid,
            'expected': self.root_set(),
            'deleted': tuple(('request', number) for number in deleted),
            'control': self.control,
            'out': out,
            'mode': mode,
        }
        return RecountSpec(**(values | changes))  # type: ignore[arg-type]

    def reach(self, top: bytes | None, stop: frozenset[bytes] | set[bytes] = frozenset()) -> set[bytes]:
        """Everything below a node, itself included, found by decoding every item; not beyond `stop`."""
        found: set[bytes] = set()
        todo = [] if top is None else [top]
        while todo:
            id = todo.pop()
            if id in found or id in stop:
                continue
            found.add(id)
            node = decode_node(self.store.chunks.get(id))
            if isinstance(node, Branch):
                todo += node.children
            else:
                found.update(node.value(n)[-1] for n in range(len(node.keys)) if _refers(node, n))
        return found

    def reach_of_request(
        self, row: RequestRow, stop: frozenset[bytes] | set[bytes] = frozenset()
    ) -> set[bytes]:
        """Everything that a request reaches, not beyond `stop`."""
        if row.kind in ('snapshot', 'volume'):
            return self.reach(row.root, stop)
        part = self.store.registry.request_part(row.number)
        return set(part.chunks).union(*(self.reach(id, stop) for id in part.subtrees))

    def alive(self, without: Iterable[int] = ()) -> set[bytes]:
        """Everything that a root reaches, these requests left out. What a commit dropped, nobody can take
        back."""
        registry, gone = self.store.registry, set(without)
        found: set[bytes] = set()
        for row in [*registry.volumes(), *registry.snapshots()]:
            found |= self.reach(row.root)
        for request in registry.requests():
            if request.number not in gone and request.kind in ('snapshot', 'volume'):
                found |= self.reach_of_request(request)
        for (root,) in self.store.catalog.query('SELECT root FROM canary'):
            found |= self.reach(root)
        return found

    def alive_but(self, snapshots: Iterable[int]) -> set[bytes]:
        """Everything that a root reaches, these snapshots left out."""
        rows = [row for row in self.store.registry.snapshots() if row.number not in set(snapshots)]
        found = set().union(*(self.reach(row.root) for row in [*rows, *self.store.registry.volumes()]))
        for request in self.requests():
            if request.kind in ('snapshot', 'volume'):
                found |= self.reach_of_request(request)
        for (root,) in self.store.catalog.query('SELECT root FROM canary'):
            found |= self.reach(root)
        return found

    def alive_nodes_of_trees(self, without: Iterable[int]) -> set[bytes]:
        """The nodes that a recount without these requests reads: what requests name alone is not walked."""
        gone = set(without)
        tops = [row.root for row in [*self.store.registry.volumes(), *self.store.registry.snapshots()]]
        tops += [row[0] for row in self.store.catalog.query('SELECT root FROM canary')]
        for request in self.requests():
            if request.number not in gone:
                tops.append(request.root)
        reached = set().union(*(self.reach(top) for top in tops))
        nodes = {row[0] for row in self.store.catalog.query('SELECT id FROM chunk WHERE kind = 2')}
        return reached & nodes

    def condemned(self, requests: Iterable[int]) -> set[bytes]:
        """What a recount of these requests has to condemn."""
        numbers = set(requests)
        rows = [row for row in self.requests() if row.number in numbers]
        assert len(rows) == len(numbers)
        reached = set().union(*(self.reach_of_request(row) for row in rows))
        return reached - self.alive(numbers)

    def stored(self, ids: Iterable[bytes]) -> int:
        """Bytes of these chunks in packs, record headers included."""
        sizes = dict(self.store.catalog.query('SELECT id, stored FROM chunk'))
        return sum(sizes[id] + 52 for id in ids)


def _refers(node: object, index: int) -> bool:
    key, value = node.keys[index], node.values[index]  # type: ignore[attr-defined]
    return key[8] == 3 or (key[8] == 4 and value[0] == 1)


def random_kit(path: Path, seed: int, steps: int = 12) -> Kit:
    """A store with a random past: shared contents and subtrees, snapshots, clones, deletions, a canary."""
    chance = random.Random(seed)
    kit = Kit(path)
    kit.plant()
    volumes = [kit.volume('first')]
    kit.write(volumes[0], {index: index % 40 for index in range(150)})
    for step in range(steps):
        volume = chance.choice(volumes)
        action = chance.random()
        snapshots = kit.store.registry.snapshots()
        if action < 0.45:
            first, count = chance.randrange(200), chance.choice([1, 3, 20, 80])
            gone = chance.random() < 0.3
            kit.write(
                volume, {i: None if gone else chance.randrange(60) for i in range(first, first + count)}
            )
        elif action < 0.7:
            kit.snapshot(volume, f's{step}')
        elif action < 0.8 and snapshots:
            volumes.append(kit.volume(f'v{step}', chance.choice(snapshots)))
        elif snapshots:
            kit.delete(chance.choice(snapshots))
    return kit
