"""Tool breakit, edit: a store taken apart and put together again with something wrong in it. One thread.

Uses the byte formats and SQL, nothing else of snapfs. A tree can be changed so that every hash is right and
only what it says is wrong: nodes are encoded anew, from the changed one up to the row of the root."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from snapfs import limits
from snapfs.errors import Invalid
from snapfs.format.codec import Compressor
from snapfs.format.ids import node_id
from snapfs.format.items import Value
from snapfs.format.nodes import Branch, Leaf, decode_node, encode_branch, encode_leaf
from snapfs.format.packs import (
    PACK_HEADER_BYTES,
    PackEntry,
    PackHeader,
    encode_footer,
    encode_pack_header,
)
from snapfs.format.records import HEADER_BYTES, RecordKind, decode_header, decode_payload, encode_record
from snapfs.format.superblock import SUPERBLOCK_BYTES, decode_superblock

FOLDERS = {1: 'data', 2: 'meta'}
Items = dict[bytes, Value]
LEAF_ITEMS = 12  # of the trees that are written anew


class Patient:
    """A store that is about to be damaged. Nobody else has it open. `said` collects what was done to it."""

    def __init__(self, path: Path, seed: int) -> None:
        if not (path / 'superblock').is_file():
            raise Invalid(f'{path} is not a store')
        self.path = path
        self.chance = random.Random(seed)
        self.superblock = decode_superblock((path / 'superblock').read_bytes()[:SUPERBLOCK_BYTES])
        self.db = sqlite3.connect(path / 'catalog.sqlite', isolation_level=None)
        self.db.execute('PRAGMA foreign_keys = OFF')
        self.said: list[str] = []

    def close(self) -> None:
        """Close the catalog, its log taken into it."""
        try:
            self.db.execute('PRAGMA wal_checkpoint(TRUNCATE)')
        finally:
            self.db.close()

    def say(self, text: str) -> None:
        """Note what was done."""
        self.said.append(text)

    # --- files -------------------------------------------------------------------------------------------
    def flip(self, path: Path, offset: int, bit: int = 0) -> None:
        """Turn one bit of a file round."""
        data = bytearray(path.read_bytes())
        before = data[offset]
        data[offset] ^= 1 << bit
        path.write_bytes(data)
        self.say(f'{path.relative_to(self.path)}: byte {offset} was {before:#04x}, is {data[offset]:#04x}')

    def put(self, path: Path, offset: int, data: bytes) -> None:
        """Write over a part of a file."""
        with path.open('r+b') as file:
            file.seek(offset)
            file.write(data)
        self.say(f'{path.relative_to(self.path)}: {len(data)} bytes at {offset} are others')

    def cut(self, path: Path, size: int) -> None:
        """Make a file shorter."""
        with path.open('r+b') as file:
            file.truncate(size)
        self.say(f'{path.relative_to(self.path)}: ends at byte {size}')

    def gone(self, path: Path) -> None:
        """Remove a file."""
        path.unlink()
        self.say(f'{path.relative_to(self.path)}: is gone')

    # --- the catalog -------------------------------------------------------------------------------------
    def sql(self, text: str, *values: Any) -> list[tuple[Any, ...]]:
        """Run a statement."""
        rows = self.db.execute(text, values).fetchall()
        if not text.startswith('SELECT'):
            self.say(f'catalog: {text}')
        return rows

    def pack(self, number: int) -> Path:
        """Return the path of a pack."""
        ((name, kind),) = self.db.execute('SELECT name, kind FROM pack WHERE pack = ?', (number,)).fetchall()
        return self.pack_path(kind, name)

    def pack_path(self, kind: int, name: bytes) -> Path:
        """Return where a pack of this name is."""
        return self.path / 'packs' / FOLDERS[kind] / name.hex()[:2] / name.hex()

    def place(self, id: bytes) -> tuple[int, int, int]:
        """Return (pack, offset, stored length) of an indexed chunk."""
        rows = self.db.execute('SELECT pack, offset, stored FROM chunk WHERE id = ?', (id,)).fetchall()
        if not rows:
            raise Invalid(f'chunk {id.hex()} is not in the index')
        pack, offset, stored = rows[0]
        return pack, offset, stored

    def record(self, id: bytes) -> bytes:
        """Return the whole record of a chunk."""
        pack, offset, stored = self.place(id)
        return self.pack(pack).read_bytes()[offset : offset + HEADER_BYTES + stored]

    def plain(self, id: bytes) -> bytes:
        """Return the plain bytes of a chunk."""
        record = self.record(id)
        return decode_payload(decode_header(record), record[HEADER_BYTES:])

    # --- trees -------------------------------------------------------------------------------------------
    def root(self, table: str, name: bytes) -> tuple[int, bytes]:
        """Return (key of its row, root) of a volume or snapshot."""
        key = 'volume' if table == 'volume' else 'number'
        rows = self.db.execute(f'SELECT {key}, root FROM {table} WHERE name = ?', (name,)).fetchall()
        if not rows:
            raise Invalid(f'there is no {table} {name!r}')
        return rows[0][0], rows[0][1]

    def nodes(self, root: bytes) -> Iterator[tuple[list[tuple[bytes, int]], bytes, Leaf | Branch]]:
        """Yield all nodes of a tree, tops first: (way to it as (branch, position) pairs, id, node)."""
        todo: list[tuple[list[tuple[bytes, int]], bytes]] = [([], root)]
        while todo:
            way, id = todo.pop(0)
            node = decode_node(self.plain(id))
            yield way, id, node
            if isinstance(node, Branch):
                todo += [([*way, (id, n)], child) for n, child in enumerate(node.children)]

    def items(self, root: bytes) -> Items:
        """Return all items of a tree, ids in place."""
        found: Items = {}
        for _, _, node in self.nodes(root):
            if isinstance(node, Leaf):
                found.update(zip(node.keys, node.values_with_ids(), strict=True))
        return found

    def change_items(self, table: str, name: bytes, change: Callable[[Items], None]) -> None:
        """Give a volume or snapshot a new tree with changed items: all hashes and totals are right."""
        key, root = self.root(table, name)
        items = self.items(root)
        change(items)
        level: list[tuple[bytes, bytes, int, int]] = []  # lowest key, plain bytes, items and references below
        keys = sorted(items)
        for start in range(0, len(keys), LEAF_ITEMS):
            part = keys[start : start + LEAF_ITEMS]
            plain = encode_leaf(part, [items[one] for one in part])
            node = decode_node(plain)
            level.append((part[0], plain, node.items_below, node.refs_below))
        written = [one[1] for one in level]
        height = 0
        while len(level) > 1:
            height += 1
            above = []
            for start in range(0, len(level), LEAF_ITEMS):
                part_of = level[start : start + LEAF_ITEMS]
                plain = encode_branch(
                    height,
                    [b'', *(one[0] for one in part_of[1:])],
                    [node_id(one[1]) for one in part_of],
                    [one[2] for one in part_of],
                    [one[3] for one in part_of],
                )
                node = decode_node(plain)
                above.append((part_of[0][0], plain, node.items_below, node.refs_below))
            level = above
            written += [one[1] for one in level]
        self.store_nodes(written)
        self._new_root(table, key, level[0][1])

    def _new_root(self, table: str, key: int, plain: bytes) -> None:
        column = 'volume' if table == 'volume' else 'number'
        items, refs = (int.from_bytes(plain[at : at + 8], 'big') for at in (12, 20))
        self.sql(
            f'UPDATE {table} SET root = ?, root_items = ?, root_refs = ? WHERE {column} = ?',
            node_id(plain), items, refs, key,
        )  # fmt: skip

    def replace_node(self, table: str, name: bytes, way: list[tuple[bytes, int]], plain: bytes) -> None:
        """Put other bytes in the place of a node: every branch on the way names its new child, and says of it
        what it said before."""
        key, _ = self.root(table, name)
        written = [plain]
        for id, position in reversed(way):
            above = bytearray(self.plain(id))
            start = 28 + position * limits.ID_BYTES
            above[start : start + limits.ID_BYTES] = node_id(written[-1])
            written.append(bytes(above))
        self.store_nodes(written)
        column = 'volume' if table == 'volume' else 'number'
        self.sql(f'UPDATE {table} SET root = ? WHERE {column} = ?', node_id(written[-1]), key)

    def store_nodes(self, plains: list[bytes]) -> None:
        """Store nodes in a new pack of their own, with rows in the index."""
        self.store(RecordKind.NODE, [(node_id(plain), plain) for plain in plains])

    def store(self, kind: RecordKind, chunks: list[tuple[bytes, bytes]]) -> None:
        """Store chunks (id, plain bytes) in a new sealed pack, with rows in the index where there are
        none."""
        number = int(self.sql("SELECT value FROM settings WHERE key = 'next_pack'")[0][0])
        epoch = int(self.sql("SELECT value FROM settings WHERE key = 'epoch'")[0][0])
        name, entries, data = self.chance.randbytes(16), [], b''
        compressor = Compressor()
        for id, plain in chunks:
            head, payload = encode_record(kind, id, plain, compressor)
            header = decode_header(head)
            entries.append(
                PackEntry(id, PACK_HEADER_BYTES + len(data), len(payload), len(plain), int(header.codec))
            )
            data += head + bytes(payload)
        end = PACK_HEADER_BYTES + len(data)
        whole = encode_pack_header(PackHeader(self.superblock.uuid, name, kind)) + data
        whole += encode_footer(entries, end, name)
        path = self.pack_path(kind, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(whole)
        self.db.execute(
            "INSERT INTO pack VALUES (?, ?, ?, 'sealed', ?, ?)",
            (number, name, int(kind), len(whole), len(entries)),
        )
        self.db.execute("UPDATE settings SET value = ? WHERE key = 'next_pack'", (number + 1,))
        for entry in entries:
            self.db.execute(
                'INSERT OR IGNORE INTO chunk VALUES (?, ?, ?, ?, ?, ?, ?, ?)',
                (entry.id, number, *entry[1:], int(kind), epoch),
            )
        self.say(f'pack {number} ({name.hex()}) was written, with {len(entries)} records')
