"""L4 export: what a snapshot holds, as text that one hash stands for. Blocking; one thread; reads only.

Specification, version 1. An export is JSON, one value on each line, in ASCII, without blanks, keys in the
order given here. Strings are file names and the like: bytes that are no UTF-8 stand as lone surrogates,
U+DC80 to U+DCFF (PEP 383). Numbers are decimal, ids and values hexadecimal.

- First line: {"snapfs-export":1,"snapshot":VOLUME@NAME,"store":uuid,"created_ns":n,"epoch":n}.
- A line for each name, a directory before what is in it, names of a directory ascending by their bytes:
  "path" ("/" is the top directory), "mode" (as st_mode), "uid", "gid", "mtime_ns"; "size" of a regular file,
  "target" of a symbolic link, "rdev" of a device; "xattrs" if there are any, ascending by name, [name, value]
  up to 1,024 bytes and [name, length, id] above; "chunks" if there are any, the first 1,000, ascending.
  A further name of the same file has only "path" and "link", which is the first name.
- Each 1,000 chunks more of this file: a line {"more":[...]}.
- A chunk is [offset in the file, length, id], and where an extent is only a part of its chunk [offset,
  length, id, skip, length of the chunk]. What no chunk covers is a hole. An id is BLAKE3 of the chunk's
  plain bytes.
- Last line: {"lines":n,"root":hash}, over all lines but the first and the last, as merkle.py says.

So the root follows from what a user can see of a snapshot and from where its files are cut. It does not
depend on the snapshot's name, on inode numbers, on the shape of the tree, on packs or on compression. Not in
it are access, change and birth times, and the order in a directory.

Memory follows the entries of one path's directories, and the number of files with several names."""

from __future__ import annotations

import json
import stat
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from snapfs import limits
from snapfs.errors import Corrupt
from snapfs.format.annotations import fits
from snapfs.format.items import (
    INODE_GID,
    INODE_MODE,
    INODE_MTIME,
    INODE_NLINK,
    INODE_PARENT,
    INODE_RDEV,
    INODE_SIZE,
    INODE_TARGET,
    INODE_UID,
    Value,
)
from snapfs.format.keys import DIRENT, EXTENT, KEY_BYTES_MIN, XATTR, inode_key, kind_range, suffix_number
from snapfs.format.nodes import Branch, Leaf, decode_node
from snapfs.format.records import HEADER_BYTES, decode_header, decode_payload
from snapfs.rescue.merkle import Merkle
from snapfs.rescue.reader import Place, Reader
from snapfs.tree import Root, get, range_leaf

VERSION = 1
DEVICES = (stat.S_IFCHR, stat.S_IFBLK)
Object = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A standing snapshot, as the catalog has it. `title`: VOLUME@NAME."""

    title: str
    root: Root
    epoch: int
    created_ns: int


class Ref(NamedTuple):
    """A data chunk that a file needs: its id, and the bytes that it has when decompressed."""

    id: bytes
    length: int


class Line(NamedTuple):
    """A line of an export, without its line feed, the file that it is about, and the chunks in it."""

    path: str
    text: bytes
    refs: tuple[Ref, ...]


def find_snapshot(reader: Reader, volume: str, name: str) -> Snapshot | None:
    """Return a standing snapshot, or None. Corrupt."""
    columns = 's.root, s.root_items, s.root_refs, s.epoch, s.created_ns'
    rows = reader.query(
        f'SELECT {columns} FROM snapshot s JOIN volume v USING (volume) WHERE v.name = ? AND s.name = ?',
        [one.encode('utf-8', 'surrogateescape') for one in (volume, name)],
    )
    if not rows:
        return None
    found = Snapshot(f'{volume}@{name}', Root(*rows[0][:3]), *rows[0][3:])
    if not fits(found, Snapshot):
        raise Corrupt(f'catalog: {found.title} has columns of other types')
    return found


def first_line(snapshot: Snapshot, uuid: bytes) -> bytes:
    """Return the line that an export begins with."""
    return encode(
        {
            'snapfs-export': VERSION,
            'snapshot': snapshot.title,
            'store': uuid.hex(),
            'created_ns': snapshot.created_ns,
            'epoch': snapshot.epoch,
        }
    )


def last_line(merkle: Merkle) -> bytes:
    """Return the line that an export ends with."""
    return encode({'lines': merkle.lines, 'root': merkle.root().hex()})


def encode(value: Object) -> bytes:
    """Return a line as it stands in an export, without its line feed."""
    return json.dumps(value, separators=(',', ':')).encode('ascii')


def export_lines(reader: Reader, snapshot: Snapshot) -> Iterator[Line]:
    """Yield all lines of a snapshot but the first and the last. Corrupt, with the path, for the first thing
    that cannot be read: a root over a part would look like one over all."""
    return _Walk(reader, snapshot.root).lines()


def plain_of(reader: Reader, place: Place) -> bytes:
    """Return a chunk's plain bytes, verified. Corrupt; OSError."""
    data = memoryview(reader.read(place.pack, HEADER_BYTES + place.stored, place.offset))
    header = decode_header(data)
    if header.id != place.id:
        raise Corrupt(f'another record stands there: {header.id.hex()}')
    return decode_payload(header, data[HEADER_BYTES : HEADER_BYTES + header.stored_length])


class _Walk:
    def __init__(self, reader: Reader, root: Root) -> None:
        self._reader = reader
        self._root = root
        self._nodes: OrderedDict[bytes, Leaf | Branch] = OrderedDict()
        self._first_names: dict[int, str] = {}  # of files with several

    def lines(self) -> Iterator[Line]:
        if self._root.id is None:
            return
        yield from self._name('/', limits.INO_ROOT)
        open_directories = [self._children(limits.INO_ROOT, '/')]
        while open_directories:
            entry = next(open_directories[-1], None)
            if entry is None:
                open_directories.pop()
                continue
            path, ino, is_directory = entry
            yield from self._name(path, ino)
            if is_directory:
                open_directories.append(self._children(ino, path))

    def _children(self, directory: int, path: str) -> Iterator[tuple[str, int, bool]]:
        """Yield (path, inode number, is it a directory), by name. Every directory is in one place only, so a
        walk comes to an end also where somebody has forged a circle."""
        entries = [entry for _, value in self._items(directory, DIRENT, path) for entry in value]
        entries.sort()
        below: set[int] = set()
        for name, ino, kind in entries:
            child = f'{path.rstrip("/")}/{_text(name)}'
            is_directory = kind == stat.S_IFDIR >> 12
            if is_directory:
                inode = self._inode(child, ino)
                if inode[INODE_PARENT] != directory or ino in below or ino == limits.INO_ROOT:
                    raise Corrupt(f'{child}: a directory that belongs somewhere else')
                below.add(ino)
            yield child, ino, is_directory

    def _name(self, path: str, ino: int) -> Iterator[Line]:
        inode = self._inode(path, ino)
        kind = stat.S_IFMT(inode[INODE_MODE])
        if kind != stat.S_IFDIR and inode[INODE_NLINK] > 1:
            first = self._first_names.setdefault(ino, path)
            if first != path:
                yield Line(path, encode({'path': path, 'link': first}), ())
                return
        entry: Object = {
            'path': path,
            'mode': inode[INODE_MODE],
            'uid': inode[INODE_UID],
            'gid': inode[INODE_GID],
            'mtime_ns': inode[INODE_MTIME],
        }
        if kind == stat.S_IFREG:
            entry['size'] = inode[INODE_SIZE]
        elif kind == stat.S_IFLNK:
            entry['target'] = _text(inode[INODE_TARGET])
        elif kind in DEVICES:
            entry['rdev'] = inode[INODE_RDEV]
        refs: list[Ref] = []
        attributes = [_attribute(key, value, refs) for key, value in self._items(ino, XATTR, path)]
        if attributes:
            entry['xattrs'] = attributes
        key = 'chunks'
        for chunks, found in self._chunks(ino, path):
            refs += found
            entry[key] = chunks
            if len(chunks) == limits.EXPORT_LINE_CHUNKS:
                yield Line(path, encode(entry), tuple(refs))
                entry, refs, key = {}, [], 'more'
        if entry:
            yield Line(path, encode(entry), tuple(refs))

    def _chunks(self, ino: int, path: str) -> Iterator[tuple[list[list[Any]], list[Ref]]]:
        """Yield the chunks of a file, so many as go on one line."""
        chunks: list[list[Any]] = []
        refs: list[Ref] = []
        for key, value in self._items(ino, EXTENT, path):
            length, id = value[0], value[-1]
            part = [suffix_number(key), length, id.hex()]
            chunks.append(part if len(value) == 2 else [*part, value[1], value[2]])
            refs.append(Ref(id, length if len(value) == 2 else value[2]))
            if len(chunks) == limits.EXPORT_LINE_CHUNKS:
                yield chunks, refs
                chunks, refs = [], []
        if chunks:
            yield chunks, refs

    # --- the tree ----------------------------------------------------------------------------------------
    def _inode(self, path: str, ino: int) -> Value:
        try:
            found = get(self._root, inode_key(ino), self._load)
        except (Corrupt, OSError) as error:
            raise Corrupt(f'{path}: {_why(error)}') from error
        if found is None:
            raise Corrupt(f'{path}: inode {ino} is missing')
        return found

    def _items(self, ino: int, kind: int, path: str) -> Iterator[tuple[bytes, Any]]:
        low, high = kind_range(ino, kind)
        following: bytes | None = low
        while following is not None:
            try:
                items, following = range_leaf(self._root, following, high, self._load)
            except (Corrupt, OSError) as error:
                raise Corrupt(f'{path}: {_why(error)}') from error
            yield from items

    def _load(self, id: bytes) -> Leaf | Branch:
        node = self._nodes.get(id)
        if node is not None:
            self._nodes.move_to_end(id)
            return node
        place = self._reader.places_of_many([id]).get(id)
        if place is None:
            raise Corrupt(f'node {id.hex()} is not in the index')
        node = self._node(place)
        self._nodes[id] = node
        if len(self._nodes) > limits.EXPORT_NODES_CACHED:
            self._nodes.popitem(last=False)
        return node

    def _node(self, place: Place) -> Leaf | Branch:
        try:
            return decode_node(plain_of(self._reader, place))
        except (Corrupt, OSError) as error:
            copy = self._reader.copy_of(place)  # as every reader does
            if copy is not None:
                return decode_node(copy)
            where = f'{self._reader.name_of(place.pack)} at offset {place.offset}'
            raise Corrupt(f'node {place.id.hex()}, {where}: {_why(error)}') from error


def _attribute(key: bytes, value: Value, refs: list[Ref]) -> list[Any]:
    name = _text(key[KEY_BYTES_MIN:])
    if not value[0]:
        return [name, value[1].hex()]
    refs.append(Ref(value[2], value[1]))
    return [name, value[1], value[2].hex()]


def _text(name: bytes) -> str:
    return name.decode('utf-8', 'surrogateescape')


def _why(error: Exception) -> str:
    return (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
