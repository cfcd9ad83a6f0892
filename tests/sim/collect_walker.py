"""A loss detector of its own: everything that stands is looked for in the packs, by SQL and byte decoders.

It shares no code with snapfs.collect, with the chunk store or with the tree. What it says is what a reader
who knows the format would find on the disk.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from snapfs.errors import Corrupt
from snapfs.format.nodes import Leaf, decode_node
from snapfs.format.packs import PACK_HEADER_BYTES, TRAILER_BYTES, footer_offset
from snapfs.format.records import HEADER_BYTES, RecordKind, decode_header, decode_payload

FOLDERS = {1: 'data', 2: 'meta'}
Place = tuple[bytes, int]  # pack name, offset


@dataclass(frozen=True, slots=True)
class Standing:
    """A root: `resting` when its request is in a batch that may still go back."""

    name: str
    root: bytes | None
    items: int
    refs: int
    resting: bool


@dataclass(slots=True)
class Walk:
    """What a walk found. `lost`: by id, what is wrong and who needs it."""

    live: set[bytes] = field(default_factory=set)
    resting: set[bytes] = field(default_factory=set)
    lost: dict[bytes, str] = field(default_factory=dict)
    rows: dict[bytes, Place] = field(default_factory=dict)  # of the table chunk
    condemned: dict[bytes, list[Place]] = field(default_factory=dict)
    freed: set[tuple[bytes, Place]] = field(default_factory=set)


class Walker:
    """Walks one store again and again; what it has verified once is remembered until `forget`."""

    def __init__(self) -> None:
        self._verified: dict[tuple[bytes, Place], list[tuple[bytes, bool]]] = {}

    def forget(self) -> None:
        """The bytes on the disk may have changed."""
        self._verified.clear()

    def walk(self, store: Path) -> Walk:
        """Look for everything that standing roots reach in `chunk`, and for what the requests of resting
        batches reach in `chunk` or quarantine."""
        found, kinds, roots = self._tables(store)
        for resting in (False, True):
            for root in roots:
                if root.resting == resting and root.root is not None:
                    self._reach(store, kinds, found, root)
        return found

    def _tables(self, store: Path) -> tuple[Walk, dict[bytes, int], list[Standing]]:
        """Return what the catalog says: rows, kinds of packs, roots."""
        found = Walk()
        db = sqlite3.connect(f'file:{store / "catalog.sqlite"}?mode=ro', uri=True)
        try:
            packs = db.execute('SELECT pack, name, kind FROM pack').fetchall()
            names = {pack: (name, kind) for pack, name, kind in packs}
            for id, pack, offset in db.execute('SELECT id, pack, offset FROM chunk'):
                found.rows[id] = (names.get(pack, (b'', 0))[0], offset)
            for id, pack, offset in db.execute('SELECT id, pack, offset FROM quarantine'):
                found.condemned.setdefault(id, []).append((names.get(pack, (b'', 0))[0], offset))
            for id, pack, offset in db.execute('SELECT id, pack, offset FROM freed'):
                found.freed.add((id, (names.get(pack, (b'', 0))[0], offset)))
            roots = list(_roots(db))
        finally:
            db.close()
        kinds = dict(names.values())
        return found, kinds, roots

    def reach(self, store: Path, roots: Iterable[bytes | None]) -> set[bytes]:
        """Return what these top nodes reach. AssertionError when something is not there."""
        found, kinds, _ = self._tables(store)
        for id in roots:
            if id is not None:
                self._reach(store, kinds, found, Standing('it', id, 0, 0, True))
        assert not found.lost, found.lost
        return found.resting

    def _reach(self, store: Path, kinds: dict[bytes, int], found: Walk, root: Standing) -> None:
        assert root.root is not None
        seen = found.resting if root.resting else found.live
        todo = [(root.root, True)]
        while todo:
            id, is_node = todo.pop()
            if id in seen or (root.resting and id in found.live):
                continue
            seen.add(id)
            places = [found.rows[id]] if id in found.rows else []
            if root.resting:
                places += found.condemned.get(id, [])
            why = 'has no row'
            for place in places:
                try:
                    children = self._children(store, kinds, id, place, is_node)
                except (Corrupt, OSError) as error:
                    why = str(error)
                    continue
                todo += children
                break
            else:
                found.lost[id] = f'chunk {id.hex()[:16]} of {root.name}: {why}'

    def _children(
        self, store: Path, kinds: dict[bytes, int], id: bytes, place: Place, is_node: bool
    ) -> list[tuple[bytes, bool]]:
        """Verify the record at a place; return what it refers to and whether these are nodes. Corrupt."""
        name, offset = place
        path = store / 'packs' / FOLDERS.get(kinds.get(name, 0), 'none') / name.hex()[:2] / name.hex()
        if (id, place) in self._verified:
            if not path.exists():
                raise Corrupt(f'pack {name.hex()} is gone')
            return self._verified[id, place]
        with path.open('rb') as file:
            file.seek(offset)
            header = decode_header(file.read(HEADER_BYTES))
            plain = decode_payload(header, file.read(header.stored_length))
        if header.id != id or header.kind != (RecordKind.NODE if is_node else RecordKind.DATA):
            raise Corrupt(f'another record stands at {offset} in pack {name.hex()}')
        children: list[tuple[bytes, bool]] = []
        if is_node:
            node = decode_node(plain)
            leaf = isinstance(node, Leaf)
            children = [(child, not leaf) for child in (node.ref_ids() if leaf else node.children)]
        self._verified[id, place] = children
        return children


def _roots(db: sqlite3.Connection) -> Iterator[Standing]:
    states = dict(db.execute('SELECT number, state FROM batch'))
    for name, root, items, refs in db.execute('SELECT name, root, root_items, root_refs FROM volume'):
        yield Standing(f'volume {name.decode()}', root, items, refs, False)
    for name, root, items, refs in db.execute('SELECT name, root, root_items, root_refs FROM snapshot'):
        yield Standing(f'snapshot {name.decode()}', root, items, refs, False)
    for number, root, items, refs in db.execute('SELECT number, root, root_items, root_refs FROM canary'):
        yield Standing(f'canary {number}', root, items, refs, False)
    text = 'SELECT number, kind, root, root_items, root_refs, batch FROM request'
    for number, kind, root, items, refs, batch in db.execute(text):
        if kind not in ('snapshot', 'volume'):
            continue
        if batch is None or states[batch] in ('PLANNED', 'QUARANTINED', 'RESTORED'):
            yield Standing(f'request {number}', root, items, refs, batch is not None)


def records_on_disk(store: Path) -> dict[bytes, list[tuple[Place, int, bool]]]:
    """Return every whole record of every pack file: id to (place, bytes with header, the pack is sealed)."""
    found: dict[bytes, list[tuple[Place, int, bool]]] = {}
    for path in sorted((store / 'packs').rglob('*')):
        if not path.is_file():
            continue
        data, name = path.read_bytes(), bytes.fromhex(path.name)
        end, sealed = len(data), False
        try:
            end, sealed = footer_offset(data[-TRAILER_BYTES:], len(data)), True
        except Corrupt:
            pass
        offset = PACK_HEADER_BYTES
        while offset + HEADER_BYTES <= end:
            try:
                header = decode_header(data[offset : offset + HEADER_BYTES])
            except Corrupt:
                break
            size = HEADER_BYTES + header.stored_length
            found.setdefault(header.id, []).append(((name, offset), size, sealed))
            offset += size
    return found
