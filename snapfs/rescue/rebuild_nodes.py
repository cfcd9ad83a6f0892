"""L4 rebuild, nodes: which nodes there are, where, and what is below them; and what receipts call freed.
Blocking; one thread. In a file beside the new catalog: memory does not grow with the store."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from snapfs.rescue.work_table import WorkTable

_TABLES = (
    'CREATE TABLE node (id BLOB PRIMARY KEY, pack INTEGER, offset INTEGER) WITHOUT ROWID',
    'CREATE TABLE below (id BLOB PRIMARY KEY) WITHOUT ROWID',
    'CREATE TABLE before (id BLOB PRIMARY KEY) WITHOUT ROWID',
    'CREATE TABLE named (id BLOB PRIMARY KEY) WITHOUT ROWID',
    'CREATE TABLE receipted (name BLOB, offset INTEGER, id BLOB, batch INTEGER, '
    'PRIMARY KEY (name, offset, id)) WITHOUT ROWID',
)
_NODE = 'INSERT OR IGNORE INTO node VALUES (?, ?, ?)'
_BELOW = 'INSERT OR IGNORE INTO below VALUES (?)'
_BEFORE = 'INSERT OR IGNORE INTO before VALUES (?)'
_NAMED = 'INSERT OR IGNORE INTO named VALUES (?)'
_FREED = 'INSERT OR REPLACE INTO receipted VALUES (?, ?, ?, ?)'
_TOPS_COUNT = (
    'SELECT count(*) FROM node WHERE id NOT IN (SELECT id FROM below) AND id NOT IN (SELECT id FROM named)'
)
_TOPS = (
    'SELECT id FROM node WHERE id NOT IN (SELECT id FROM below) AND id NOT IN (SELECT id FROM named) '
    'ORDER BY pack, offset'
)


class Nodes:
    """What a rebuild knows of nodes. Packs are numbers. Of two records of one node the first counts."""

    def __init__(self, folder: Path) -> None:
        self._table = WorkTable(folder, _TABLES)

    def close(self) -> None:
        """Forget it all."""
        self._table.close()

    # --- receipts ----------------------------------------------------------------------------------------
    def add_freed(self, id: bytes, name: bytes, offset: int, batch: int) -> None:
        """Note that a receipt calls this record freed; of two the last counts."""
        self._table.add(_FREED, (name, offset, id, batch))

    def freed_in(self, name: bytes) -> dict[tuple[bytes, int], int]:
        """Return what of a pack was freed: (id, offset) to batch."""
        rows = self._table.query('SELECT id, offset, batch FROM receipted WHERE name = ?', (name,))
        return {(id, offset): batch for id, offset, batch in rows}

    # --- nodes -------------------------------------------------------------------------------------------
    def add(self, id: bytes, pack: int, offset: int, children: Sequence[bytes]) -> None:
        """Note a node, and the nodes below it."""
        self._table.add(_NODE, (id, pack, offset))
        for child in children:
            self._table.add(_BELOW, (child,))

    def was_before(self, id: bytes) -> None:
        """Note that a node was there when the backup was made."""
        self._table.add(_BEFORE, (id,))

    def place(self, id: bytes) -> tuple[int, int]:
        """Return pack and offset of a node. KeyError when there is none."""
        for pack, offset in self._table.query('SELECT pack, offset FROM node WHERE id = ?', (id,)):
            return pack, offset
        raise KeyError(id)

    def name(self, ids: Iterable[bytes]) -> None:
        """Note that these are roots of the catalog. (What is below them is below a node, and so no top.)"""
        for id in ids:
            self._table.add(_NAMED, (id,))

    def tops(self) -> Iterator[bytes]:
        """Yield the nodes that no node and no name leads to, in the order of their records."""
        for (id,) in self._table.query(_TOPS):
            yield id

    def tops_count(self) -> int:
        """Return how many these are."""
        return int(next(self._table.query(_TOPS_COUNT))[0])

    def late(self) -> int:
        """Return how many nodes were not there when the backup was made."""
        text = 'SELECT count(*) FROM node WHERE id NOT IN (SELECT id FROM before)'
        return int(next(self._table.query(text))[0])
