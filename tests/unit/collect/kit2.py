"""Stores for the tests of recount 2 and of the proof: real ones, made record by record, so that a test
says exactly which node refers to what, which rows there are, and what is wrong."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from snapfs import limits
from snapfs.collect.mention_values import Mentions, MentionSpec
from snapfs.collect.mentions import look_for_mentions
from snapfs.format.ids import RecordKind, data_id, node_id
from snapfs.format.items import Value
from snapfs.format.keys import extent_key, inode_key, xattr_key
from snapfs.format.nodes import Branch, Leaf, decode_node, encode_branch, encode_leaf
from snapfs.store.catalog import Commit
from snapfs.store.durable import Disk
from snapfs.store.store import Store
from tests.sim.world import SimWorld

INODE: Value = (0o100644, 0, 0, 0, 9, 9, 1, 0, 0, 1, 2, 3, 4, 0, b'')


def leaf(ids: Sequence[bytes], seed: int = 1) -> bytes:
    """A leaf with an INODE and these references, every fifth of them a large XATTR."""
    ino = limits.INO_FIRST + seed
    items: list[tuple[bytes, Value]] = [(inode_key(ino), INODE)]
    for n, id in enumerate(ids):
        if n % 5 == 4:
            items.append((xattr_key(ino, b'user.%d' % n), (1, 2000, id)))
        else:
            items.append((extent_key(ino, n * 10_000), (10_000, id)))
    items.sort()
    return encode_leaf([key for key, _ in items], [value for _, value in items])


def branch(children: Sequence[bytes]) -> bytes:
    """A branch above these nodes, given by their plain bytes."""
    nodes = [decode_node(plain) for plain in children]
    keys = [b'', *(inode_key(limits.INO_FIRST + 100_000 + n) for n in range(1, len(children)))]
    items, refs = [one.items_below for one in nodes], [one.refs_below for one in nodes]
    return encode_branch(nodes[0].level + 1, keys, [node_id(plain) for plain in children], items, refs)


def below(plain: bytes) -> tuple[int, int]:
    """The totals of a node."""
    node: Leaf | Branch = decode_node(plain)
    return node.items_below, node.refs_below


@dataclass
class Built:
    """A store that is being made. The daemon's part is played by `store`, rows are moved by hand."""

    path: Path
    store: Store
    sequence: int = 0
    data: dict[bytes, bytes] = field(default_factory=dict)

    @property
    def uuid(self) -> bytes:
        return self.store.superblock.uuid

    def put_data(self, *plains: bytes) -> list[bytes]:
        ids = self.store.chunks.put_batch(RecordKind.DATA, plains)
        self.data.update(zip(ids, plains, strict=True))
        return ids

    def put_nodes(self, *plains: bytes) -> list[bytes]:
        return self.store.chunks.put_batch(RecordKind.NODE, plains)

    def commit(self) -> int:
        """Sync and commit all that was put."""
        chunks = self.store.chunks
        chunks.sync()
        rows = chunks.commit_rows()
        sequence = self.store.journal.last_sequence
        epoch = self.store.catalog.commit(Commit((), rows.chunks, rows.packs, (), sequence, 1))
        chunks.committed(rows)
        chunks.take_new()
        return epoch

    def sql(self, text: str, values: Sequence[object] = ()) -> list[tuple[object, ...]]:
        with self.store.catalog.transaction() as db:
            return db.execute(text, values).fetchall()

    # --- roots -------------------------------------------------------------------------------------------
    def volume(self, number: int, plain: bytes) -> bytes:
        items, refs = below(plain)
        values = (number, number, b'v%d' % number, node_id(plain), items, refs, 99, 1)
        self.sql('INSERT INTO volume VALUES (?, ?, ?, ?, ?, ?, ?, ?, NULL, NULL)', values)
        return node_id(plain)

    def snapshot(self, number: int, plain: bytes, volume: int = 1) -> bytes:
        items, refs = below(plain)
        values = (number, volume, b's%d' % number, node_id(plain), items, refs, 99, 1, 1, 'test')
        self.sql('INSERT INTO snapshot VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, NULL)', values)
        return node_id(plain)

    def canary(self, plain: bytes) -> bytes:
        self.sql('INSERT INTO canary VALUES (1, ?, ?, ?, 1)', (node_id(plain), *below(plain)))
        return node_id(plain)

    def request(
        self,
        number: int,
        kind: str = 'snapshot',
        plain: bytes | None = None,
        batch: int | None = None,
        chunks: Iterable[bytes] = (),
        subtrees: Iterable[bytes] = (),
    ) -> None:
        root, totals = (None, (0, 0)) if plain is None else (node_id(plain), below(plain))
        values = (number, kind, 1, b'v', b'', 0, root, *totals, 99, 1, 1, 'x', None, 1, 'x', 1, None, batch)
        self.sql(f'INSERT INTO request VALUES ({",".join("?" * 19)}, NULL, NULL)', values)
        for part, (what, ids) in enumerate((('chunks', chunks), ('subtrees', subtrees))):
            if joined := b''.join(ids):
                self.sql('INSERT INTO request_part VALUES (?, ?, ?, ?)', (number, part, what, joined))

    # --- batches -----------------------------------------------------------------------------------------
    def batch(self, number: int, ids: Iterable[bytes], state: str = 'QUARANTINED') -> None:
        """Make a batch that condemns these ids: its file, and their rows in quarantine."""
        self.batch_row(number, state)
        condemned = sorted(set(ids))
        folder = self.path / 'batches' / str(number)
        folder.mkdir()
        (folder / 'condemned').write_bytes(b''.join(condemned))
        self.move_all(condemned, number)

    def batch_row(self, number: int, state: str) -> None:
        values = (number, state, 'kept', 1, b'', 0, 0, 0, 1, 0)
        columns = 'number, state, class, horizon, digest, chunks, bytes, grace_ns, planned_ns, freed'
        self.sql(f'INSERT INTO batch ({columns}) VALUES ({",".join("?" * 10)})', values)

    def move(self, id: bytes, batch: int, table: str = 'quarantine') -> None:
        """Move a row from `chunk` to quarantine or freed."""
        self.move_all([id], batch, table)

    def move_all(self, ids: Sequence[bytes], batch: int, table: str = 'quarantine') -> None:
        """Move rows from `chunk` to quarantine or freed."""
        columns = 'id, pack, offset, stored, plain, codec, kind, epoch'
        with self.store.catalog.transaction() as db:
            for id in ids:
                db.execute(f'INSERT INTO {table} SELECT {columns}, ? FROM chunk WHERE id = ?', (batch, id))
                db.execute('DELETE FROM chunk WHERE id = ?', (id,))
        self.store.chunks.forget(ids)

    def forget_row(self, id: bytes) -> None:
        """As after a crash: the record stays in its pack, nothing in the catalog names it."""
        self.sql('DELETE FROM chunk WHERE id = ?', (id,))
        self.store.chunks.forget([id])

    def spec(self, batch: int = 1, **changes: object) -> MentionSpec:
        values: dict[str, object] = {'store': self.path, 'uuid': self.uuid, 'batch': batch, 'horizon': 0}
        return MentionSpec(**{**values, **changes})  # type: ignore[arg-type]

    def mentions(self, batch: int = 1, **changes: object) -> Mentions:
        return look_for_mentions(self.spec(batch, **changes))

    def pack_files(self, kind: str) -> list[Path]:
        return sorted(path for path in (self.path / 'packs' / kind).rglob('*') if path.is_file())

    def seal(self, kind: RecordKind = RecordKind.NODE) -> None:
        """Seal the open pack: the next record begins another."""
        writer = self.store.chunks.writers[kind]
        old, writer.bytes_max = writer.bytes_max, 0
        plain = random.Random(
            f'{kind}{len(self.pack_files("meta"))}{len(self.pack_files("data"))}'
        ).randbytes(40)
        if kind == RecordKind.NODE:
            self.put_nodes(leaf([data_id(plain)], 777))
        else:
            self.put_data(plain)
        writer.bytes_max = old
        self.commit()


def build(path: Path) -> Built:
    """A new store."""
    return Built(path.resolve(), Store.create(path.resolve(), Disk(), SimWorld(1)))


def catalog(path: Path) -> sqlite3.Connection:
    """The catalog of a store, to be changed behind everybody's back."""
    return sqlite3.connect(path / 'catalog.sqlite', isolation_level=None)
