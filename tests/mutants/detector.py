"""A loss detector that shares no code with what it judges: a copy of the store, SQL and byte decoders,
nothing else.

It is told what was promised, and looks whether a reader who knows the format would find exactly that:
every file of every tree, byte by byte; every reference of every standing root; what the journal would
replay."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from snapfs.errors import Corrupt
from snapfs.format.items import ref_of
from snapfs.format.journal import JOURNAL_HEADER_BYTES, decode_records
from snapfs.format.keys import DIRENT, EXTENT, INODE, XATTR, decode_key, suffix_number
from snapfs.format.nodes import Leaf, decode_node
from snapfs.format.records import HEADER_BYTES, RecordKind, decode_header, decode_payload
from snapfs.format.superblock import decode_superblock
from tests.sim.collect_walker import FOLDERS, Walker

Tree = dict[bytes, bytes]  # path, or path + NUL + name of an attribute, to content
ROOT_INO = 1


@dataclass
class Promise:
    """What must be there. `heads`: by volume name, files that were committed and not touched since; these
    must be there, others may. `views`: by number of the snapshot or volume, whole trees, until somebody
    lets them go."""

    heads: dict[str, Tree] = field(default_factory=dict)
    views: dict[int, Tree] = field(default_factory=dict)


class Lost(Exception):
    """A chunk that is needed cannot be read."""


class Copy:
    """A copy of a store, read with SQL and decoders."""

    def __init__(self, store: Path) -> None:
        self.store = store
        self.db = sqlite3.connect(store / 'catalog.sqlite')
        self.packs = {
            n: (name, kind) for n, name, kind in self.db.execute('SELECT pack, name, kind FROM pack')
        }
        self.rows = {id: (p, o) for id, p, o in self.db.execute('SELECT id, pack, offset FROM chunk')}
        self.resting = {id: (p, o) for id, p, o in self.db.execute('SELECT id, pack, offset FROM quarantine')}

    def read(self, id: bytes, kind: RecordKind, resting: bool) -> bytes:
        """Return the bytes of a chunk that has a row; `resting`: one in quarantine will do. Lost."""
        why = 'has no row'
        for table in (self.rows, self.resting) if resting else (self.rows,):
            if id in table:
                pack, offset = table[id]
                try:
                    return self._record(id, kind, *self.packs.get(pack, (b'', 0)), offset)
                except (Corrupt, OSError) as error:
                    why = str(error)
        raise Lost(f'chunk {id.hex()[:16]}: {why}')

    def _record(self, id: bytes, kind: RecordKind, name: bytes, folder: int, offset: int) -> bytes:
        with self._path(name, folder).open('rb') as file:
            file.seek(offset)
            header = decode_header(file.read(HEADER_BYTES))
            if header.id != id or header.kind != kind:
                raise Corrupt('another record stands there')
            return decode_payload(header, file.read(header.stored_length))

    def _path(self, name: bytes, folder: int) -> Path:
        return self.store / 'packs' / FOLDERS.get(folder, 'none') / name.hex()[:2] / name.hex()

    def tree(self, root: bytes | None, resting: bool = False) -> Tree:
        """Return all files of a tree, and their attributes. Lost."""
        names: dict[int, dict[bytes, int]] = {}
        sizes: dict[int, int] = {}
        pieces: dict[int, list[tuple[int, bytes]]] = {}
        attributes: dict[int, dict[bytes, bytes]] = {}
        for key, value in self._items(root, resting) if root is not None else ():
            ino, kind, suffix = decode_key(key)
            if kind == INODE:
                sizes[ino] = value[4]
            elif kind == DIRENT:
                names.setdefault(ino, {}).update((name, child) for name, child, _ in value)
            elif kind == EXTENT:
                plain = self.read(value[-1], RecordKind.DATA, resting)
                skip = value[1] if len(value) == 4 else 0
                pieces.setdefault(ino, []).append((suffix_number(key), plain[skip : skip + value[0]]))
            elif kind == XATTR:
                inline = value[0] == 0
                found = value[1] if inline else self.read(value[2], RecordKind.DATA, resting)
                attributes.setdefault(ino, {})[suffix] = found
        found_files: Tree = {}
        todo = [(b'', ROOT_INO)]
        while todo:
            path, ino = todo.pop()
            for name, child in names.get(ino, {}).items():
                here = path + b'/' + name
                todo.append((here, child))
                content = bytearray(sizes[child] if child not in names else 0)
                for offset, data in pieces.get(child, ()):
                    content[offset : offset + len(data)] = data
                found_files[here] = bytes(content[: sizes[child]])
                for attribute, data in attributes.get(child, {}).items():
                    found_files[here + b'\0' + attribute] = data
        return found_files

    def _items(self, root: bytes, resting: bool) -> Iterator[tuple[bytes, tuple]]:
        todo = [root]
        while todo:
            node = decode_node(self.read(todo.pop(), RecordKind.NODE, resting))
            if isinstance(node, Leaf):
                yield from zip(node.keys, node.values_with_ids(), strict=True)
            else:
                todo += node.children

    def journal(self) -> Iterator[str]:
        """Yield what a replay of the journal would need and not find."""
        uuid = decode_superblock((self.store / 'superblock').read_bytes()).uuid
        done = self.db.execute("SELECT value FROM settings WHERE key = 'journal_sequence'").fetchone()[0]
        brought: set[bytes] = set()
        for number in (0, 1):
            data = (self.store / 'journal' / str(number)).read_bytes()
            for record in decode_records(data, uuid, JOURNAL_HEADER_BYTES, 0):
                if record[0].sequence <= done:
                    continue
                for frame in record:
                    for new in frame.chunks:
                        try:
                            self._record(new.id, RecordKind(new.kind), new.pack_name, new.kind, new.offset)
                            brought.add(new.id)
                        except (Corrupt, OSError) as error:
                            yield f'journal {frame.sequence} brings {new.id.hex()[:16]}: {error}'
                    items = [item for delta in frame.volumes for item in delta.items if item[1] is not None]
                    for key, value in items:
                        id = ref_of(key, value)
                        if id is not None and id not in brought and id not in self.rows:
                            yield f'journal {frame.sequence} needs {id.hex()[:16]}, which has no row'


def losses(store: Path, promise: Promise, scratch: Path) -> list[str]:
    """Return what is lost of what was promised: one line each. `scratch` is made, and removed. The store
    may be open; nothing may write to it meanwhile."""
    shutil.copytree(store, scratch, ignore=shutil.ignore_patterns('lock', 'control.sock', 'reserve'))
    try:
        found = [f'P1: {text}' for text in Walker().walk(scratch).lost.values()]
        copy = Copy(scratch)
        try:
            found += copy.journal()
            found += _heads(copy, promise)
            found += _views(copy, promise)
        finally:
            copy.db.close()
        return found
    finally:
        shutil.rmtree(scratch)


def _heads(copy: Copy, promise: Promise) -> Iterator[str]:
    roots = {name.decode(): root for name, root in copy.db.execute('SELECT name, root FROM volume')}
    for name, files in promise.heads.items():
        if name not in roots:
            yield f'volume {name} is gone'
            continue
        try:
            yield from _differences(f'volume {name}', files, copy.tree(roots[name]))
        except (Lost, Corrupt) as error:
            yield f'volume {name}: {error}'


def _views(copy: Copy, promise: Promise) -> Iterator[str]:
    roots = {number: (root, False) for number, root in copy.db.execute('SELECT number, root FROM snapshot')}
    text = "SELECT view, root, batch FROM request WHERE kind IN ('snapshot', 'volume')"
    roots |= {view: (root, batch is not None) for view, root, batch in copy.db.execute(text)}
    for number, files in promise.views.items():
        if number not in roots:
            yield f'view {number} is gone, and nobody let it go'
            continue
        try:
            found = copy.tree(*roots[number])
        except (Lost, Corrupt) as error:
            yield f'view {number}: {error}'
            continue
        yield from _differences(f'view {number}', files, found)
        if found.keys() - files.keys():
            yield f'view {number} has {len(found.keys() - files.keys())} files too many'


def _differences(what: str, wanted: Tree, found: Tree) -> Iterator[str]:
    for path, content in wanted.items():
        if found.get(path) != content:
            state = 'is not there' if path not in found else 'has another content'
            yield f'{what}: {path!r} {state}'
