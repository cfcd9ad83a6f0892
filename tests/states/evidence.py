"""What is in a store, by a reader that shares nothing with the program but the byte decoders.

Bytes count as present when a record that verifies stands anywhere in a pack or a second copy; so nothing here
depends on a catalog that is whole."""

from __future__ import annotations

import hashlib
import shutil
import sqlite3
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from snapfs.errors import Corrupt
from snapfs.format.keys import EXTENT, INODE
from snapfs.format.nodes import Leaf, decode_node
from snapfs.format.records import HEADER_BYTES, RECORD_MAGIC, RecordKind, decode_header, decode_payload

_KNOWN: dict[bytes, dict[bytes, tuple[int, bytes]]] = {}


def records(path: Path) -> dict[bytes, tuple[int, bytes]]:
    """Return (kind, plain bytes) of all records of a file that verify, by id."""
    data = path.read_bytes()
    key = hashlib.sha256(data).digest()
    if key not in _KNOWN:
        found: dict[bytes, tuple[int, bytes]] = {}
        at = data.find(RECORD_MAGIC)
        while at >= 0:
            try:
                header = decode_header(data, at)
                payload = data[at + HEADER_BYTES : at + HEADER_BYTES + header.stored_length]
                found[header.id] = (int(header.kind), decode_payload(header, payload))
            except Corrupt:
                pass
            at = data.find(RECORD_MAGIC, at + 1)
        _KNOWN[key] = found
    return _KNOWN[key]


def present(store: Path) -> dict[bytes, tuple[int, bytes]]:
    """Return all records that are anywhere in the store."""
    found: dict[bytes, tuple[int, bytes]] = {}
    for folder in ('packs', 'mirror'):
        for path in sorted((store / folder).rglob('?' * 32)):
            if path.is_file():
                found.update(records(path))
    return found


@dataclass(frozen=True, slots=True)
class Rows:
    """What a catalog says: roots by name, ids that are freed or in quarantine, incidents in force."""

    roots: dict[str, bytes | None]
    freed: frozenset[bytes]
    quarantine: frozenset[bytes]
    incidents: frozenset[int]


def rows(store: Path) -> Rows | None:
    """Read a catalog, with its log, on a copy."""
    if not (store / 'catalog.sqlite').exists():
        return None
    with tempfile.TemporaryDirectory() as folder:
        for suffix in ('', '-wal'):
            source = Path(f'{store}/catalog.sqlite{suffix}')
            if source.exists():
                shutil.copy(source, folder)
        db = sqlite3.connect(f'{folder}/catalog.sqlite')
        try:
            roots: dict[str, bytes | None] = {}
            names = dict(db.execute('SELECT volume, CAST(name AS TEXT) FROM volume').fetchall())
            for number, root in db.execute('SELECT volume, root FROM volume').fetchall():
                roots[names[number]] = root
            text = 'SELECT volume, CAST(name AS TEXT), root FROM snapshot'
            for volume, name, root in db.execute(text).fetchall():
                roots[f'{names[volume]}@{name}'] = root

            def ids(table: str) -> frozenset[Any]:
                return frozenset(one for (one,) in db.execute(f'SELECT id FROM {table}').fetchall())

            text = 'SELECT number FROM incident WHERE acknowledged_ns IS NULL'
            open_ones = frozenset(one for (one,) in db.execute(text).fetchall())
            return Rows(roots, ids('freed'), ids('quarantine'), open_ones)
        except sqlite3.Error:
            return None
        finally:
            db.close()


@dataclass(slots=True)
class Tree:
    """What a root needs: all its nodes, and the ids of data that each inode needs."""

    nodes: set[bytes]
    data: dict[int, set[bytes]]


def tree(root: bytes, bytes_of: dict[bytes, tuple[int, bytes]]) -> Tree:
    """Walk a tree that is whole."""
    found, todo = Tree(set(), {}), [root]
    while todo:
        id = todo.pop()
        found.nodes.add(id)
        kind, plain = bytes_of[id]
        assert kind == RecordKind.NODE
        node = decode_node(plain)
        if not isinstance(node, Leaf):
            todo += node.children
            continue
        for key, value in zip(node.keys, node.values_with_ids(), strict=True):
            needed = found.data.setdefault(int.from_bytes(key[:8], 'big'), set())
            if key[8] != INODE:
                needed |= {
                    one for one in value if key[8] == EXTENT and isinstance(one, bytes) and len(one) == 32
                }
        found.data.setdefault(0, set()).update(node.ref_ids())
    return found


def needs(store: Path) -> dict[str, Tree]:
    """Return what each root of a whole store needs."""
    found, bytes_of = rows(store), present(store)
    assert found is not None
    return {name: tree(root, bytes_of) for name, root in found.roots.items() if root is not None}
