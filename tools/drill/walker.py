"""Tool: walker: reads every file of everything that stands, by SQL and byte decoders alone. Blocking; one
thread.

What a drill believes in the end is what stands on the disk, not what the collector, the chunk store or the
tree say about it: nothing of theirs is used here.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

from snapfs import limits
from snapfs.errors import Corrupt
from snapfs.format.ids import RecordKind
from snapfs.format.items import ENTRY_INO, ENTRY_NAME, INODE_SIZE
from snapfs.format.keys import DIRENT, EXTENT, INODE, KIND_POSITION
from snapfs.format.nodes import Leaf, decode_node
from snapfs.format.records import HEADER_BYTES, decode_header, decode_payload

FOLDERS = {1: 'data', 2: 'meta'}
Files = dict[str, bytes]  # name to content; the trees of a drill have one directory


@dataclass(frozen=True, slots=True)
class Standing:
    """A root that stands. `resting`: its request is in a batch that may still go back."""

    kind: str
    name: str
    root: bytes | None
    resting: bool

    @property
    def title(self) -> str:
        """What messages and dictionaries call it."""
        return f'{self.kind} {self.name}'


@dataclass(slots=True)
class Reading:
    """What was read: the files of each root, by title; what could not be read; and which chunks of standing
    roots were not in the index but only where condemned ones are."""

    files: dict[str, Files] = field(default_factory=dict)
    lost: list[str] = field(default_factory=list)
    elsewhere: set[bytes] = field(default_factory=set)
    leaves: dict[str, list[bytes]] = field(default_factory=dict)  # ids of each root's leaves, in order
    pages: dict[bytes, set[bytes]] = field(default_factory=dict)  # what each leaf refers to
    sizes: dict[bytes, int] = field(default_factory=dict)  # plain bytes of each chunk
    reach: dict[str, set[bytes]] = field(default_factory=dict)  # all chunks below each root, itself included
    owners: dict[bytes, set[tuple[str, str]]] = field(default_factory=dict)  # data: (root, file)


class Walker:
    """Reads one store. Make a new one for each reading."""

    def __init__(self, store: Path) -> None:
        self._store = store
        self._found = Reading()

    def read(self) -> Reading:
        """Read everything."""
        path = quote(str(self._store / 'catalog.sqlite'))
        db = sqlite3.connect(f'file:{path}?mode=ro', uri=True)
        try:
            self._packs = {row[0]: row[1:] for row in db.execute('SELECT pack, name, kind FROM pack')}
            self._places = {table: self._places_in(db, table) for table in ('chunk', 'quarantine', 'freed')}
            roots = list(standing(db))
        finally:
            db.close()
        for root in roots:
            self._found.files[root.title] = self._read_root(root)
        return self._found

    @staticmethod
    def _places_in(db: sqlite3.Connection, table: str) -> dict[bytes, tuple[int, int]]:
        return {
            id: (pack, offset) for id, pack, offset in db.execute(f'SELECT id, pack, offset FROM {table}')
        }

    def _read_root(self, root: Standing) -> Files:
        found, title = self._found, root.title
        found.leaves[title], found.reach[title] = [], set()
        names: dict[int, str] = {}
        sizes: dict[int, int] = {}
        pieces: dict[int, list[tuple[int, bytes]]] = {}
        for leaf in self._leaves(root):
            for index, key in enumerate(leaf.keys):
                ino, kind = int.from_bytes(key[:KIND_POSITION]), key[KIND_POSITION]
                value = leaf.value(index)
                if kind == DIRENT and ino == limits.INO_ROOT:
                    names |= {entry[ENTRY_INO]: entry[ENTRY_NAME].decode() for entry in value}
                elif kind == INODE:
                    sizes[ino] = value[INODE_SIZE]
                elif kind == EXTENT:
                    pieces.setdefault(ino, []).append((int.from_bytes(key[KIND_POSITION + 1 :]), value[-1]))
        return {
            name: self._content(root, name, sizes.get(ino, 0), pieces.get(ino, []))
            for ino, name in names.items()
        }

    def _content(self, root: Standing, name: str, size: int, pieces: list[tuple[int, bytes]]) -> bytes:
        content = bytearray(size)
        for offset, id in pieces:
            self._found.owners.setdefault(id, set()).add((root.title, name))
            plain = self._chunk(root, id, RecordKind.DATA, name)
            if plain is not None:
                content[offset : offset + len(plain)] = plain
        return bytes(content)

    def _leaves(self, root: Standing) -> Iterator[Leaf]:
        todo = [] if root.root is None else [root.root]
        while todo:
            id = todo.pop()
            plain = self._chunk(root, id, RecordKind.NODE, 'its tree')
            if plain is None:
                continue
            node = decode_node(plain)
            if isinstance(node, Leaf):
                self._found.leaves[root.title].append(id)
                self._found.pages[id] = set(node.ref_ids())
                yield node
            else:
                todo += reversed(node.children)

    def _chunk(self, root: Standing, id: bytes, kind: RecordKind, what: str) -> bytes | None:
        """Return a chunk from wherever it stands; None, noted as lost, when it is nowhere whole."""
        self._found.reach[root.title].add(id)
        why = 'no table has it'
        for table in ('chunk', 'quarantine', 'freed'):
            place = self._places[table].get(id)
            if place is None:
                continue
            try:
                plain = self._record(id, kind, *place)
            except (Corrupt, OSError) as error:
                why = str(error)
                continue
            if table != 'chunk' and not root.resting:
                self._found.elsewhere.add(id)
            self._found.sizes[id] = len(plain)
            return plain
        self._found.lost.append(f'{root.title}: {what}: chunk {id.hex()[:16]}: {why}')
        return None

    def _record(self, id: bytes, kind: RecordKind, pack: int, offset: int) -> bytes:
        name, folder = self._packs.get(pack, (b'', 0))
        path = self._store / 'packs' / FOLDERS.get(folder, 'none') / name.hex()[:2] / name.hex()
        with path.open('rb') as file:
            file.seek(offset)
            header = decode_header(file.read(HEADER_BYTES))
            plain = decode_payload(header, file.read(header.stored_length))  # verifies the id
        if header.id != id or header.kind != kind:
            raise Corrupt(f'another record stands at {offset} in pack {name.hex()}')
        return plain


def standing(db: sqlite3.Connection) -> Iterator[Standing]:
    """Yield every root that stands: what somebody has, or may take back."""
    for kind in ('volume', 'snapshot'):
        for name, root in db.execute(f'SELECT name, root FROM {kind}'):
            yield Standing(kind, name.decode(), root, False)
    for number, root in db.execute('SELECT number, root FROM canary'):
        yield Standing('canary', str(number), root, False)
    text = (
        'SELECT r.name, r.root, b.state FROM request r LEFT JOIN batch b ON b.number = r.batch '
        "WHERE r.kind IN ('snapshot', 'volume')"
    )
    for name, root, state in db.execute(text):
        if state not in ('CONFIRMED', 'FREED'):
            yield Standing('request', name.decode(), root, state in ('PLANNED', 'QUARANTINED'))
