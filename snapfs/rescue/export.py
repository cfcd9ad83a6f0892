"""L4 export: the list of everything in a snapshot, with one hash over it. Blocking; in a process of its own
(collect/worker.py).

One JSON object a line, keys sorted, no spaces, ordered by path: first {"export": 1, "snapshot", "store",
"view"}, then for each name {"path", "mode", "uid", "gid", "size", "mtime_ns"} and, where there is any,
"target" (of a symbolic link), "rdev", "xattrs" ([name, value or id of its chunk]), "parts" ([first byte,
length, id of the chunk, where in it]). Paths are UTF-8 with undecodable bytes as lone surrogates in JSON's
escapes. The last line is `root` and the Merkle root of all lines before: a leaf is BLAKE3-256 of a zero
byte and the line with its newline, a parent that of a one byte and its two children; a node without a
neighbour goes up as it is (like Certificate Transparency, RFC 6962). It does
not depend on nodes, packs or compression."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from blake3 import blake3

from snapfs import limits
from snapfs.errors import Corrupt
from snapfs.format.items import (
    INODE_GID,
    INODE_MODE,
    INODE_MTIME,
    INODE_RDEV,
    INODE_SIZE,
    INODE_TARGET,
    INODE_UID,
    Value,
)
from snapfs.format.keys import DIRENT, EXTENT, INODE, XATTR, suffix_number
from snapfs.format.nodes import Branch, Leaf, decode_node
from snapfs.format.records import HEADER_BYTES, decode_header, decode_payload
from snapfs.rescue.export_values import Exported, ExportSpec
from snapfs.rescue.reader import Reader

Progress = Callable[[int, int], None]


@dataclass(slots=True)
class _Inode:
    value: Value
    parts: list[list[Any]]
    xattrs: list[list[str]]
    names: list[tuple[bytes, int]]  # of a directory


def export(spec: ExportSpec, progress: Progress = lambda done, known: None) -> Exported:
    """Write the list to `spec.out`, which must not be there. Corrupt when a node cannot be read: a list
    with holes would prove nothing. Memory grows with the metadata of the snapshot."""
    reader = Reader(spec.store, spec.uuid)
    try:
        inodes = _inodes(reader, spec.root, progress)
    finally:
        reader.close()
    head = {'export': 1, 'snapshot': spec.name, 'store': spec.uuid.hex(), 'view': spec.view}
    level: list[bytes] = []
    fd = os.open(spec.out, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with open(fd, 'wb') as file:
        for fields in (head, *_entries(inodes)):
            line = (json.dumps(fields, sort_keys=True, separators=(',', ':')) + '\n').encode()
            level.append(blake3(b'\0' + line).digest())
            file.write(line)
        root = merkle_root(level)
        file.write(f'root {root.hex()}\n'.encode())
    return Exported(root, len(level) - 1)


def merkle_root(level: Sequence[bytes]) -> bytes:
    """Return the root over leaves."""
    level = list(level)
    while len(level) > 1:
        pairs = [level[at : at + 2] for at in range(0, len(level), 2)]
        level = [blake3(b'\1' + b''.join(pair)).digest() if len(pair) == 2 else pair[0] for pair in pairs]
    return level[0]


def _inodes(reader: Reader, root: bytes | None, progress: Progress) -> dict[int, _Inode]:
    found: dict[int, _Inode] = {}
    for leaf in _leaves(reader, root):
        for index, key in enumerate(leaf.keys):
            ino, kind, value = int.from_bytes(key[:8], 'big'), key[8], leaf.value(index)
            if kind == INODE:
                found[ino] = _Inode(value, [], [], [])
            elif ino not in found:
                continue  # the list of files without a name
            elif kind == DIRENT:
                found[ino].names += [(name, child) for name, child, _ in value]
            elif kind == EXTENT:
                skip = value[1] if len(value) == 4 else 0
                found[ino].parts.append([suffix_number(key), value[0], value[-1].hex(), skip])
            elif kind == XATTR:
                found[ino].xattrs.append([_text(key[9:]), value[-1].hex()])
        progress(len(found), 0)
    return found


def _leaves(reader: Reader, root: bytes | None) -> Iterator[Leaf]:
    todo = [root] if root is not None else []
    while todo:
        id = todo.pop()
        places = reader.places_of(id)
        if not places:
            raise Corrupt(f'node {id.hex()} is missing')
        data = memoryview(reader.read(places[0].pack, HEADER_BYTES + places[0].stored, places[0].offset))
        header = decode_header(data)
        if header.id != id:
            raise Corrupt(f'node {id.hex()}: another record stands there')
        node = decode_node(decode_payload(header, data[HEADER_BYTES:]))
        if isinstance(node, Branch):
            todo += reversed(node.children)
        else:
            yield node


def _entries(inodes: dict[int, _Inode]) -> Iterator[dict[str, Any]]:
    paths: list[tuple[bytes, int]] = []
    todo = [(b'', limits.INO_ROOT)]
    seen: set[int] = set()
    while todo:
        path, ino = todo.pop()
        inode = inodes.get(ino)
        if inode is None:
            raise Corrupt(f'inode {ino} is missing')
        paths.append((path or b'/', ino))
        if stat.S_ISDIR(inode.value[INODE_MODE]):
            if ino in seen:
                raise Corrupt(f'directory {ino} is below itself')
            seen.add(ino)
            todo += [(path + b'/' + name, child) for name, child in inode.names]
    for path, ino in sorted(paths):
        yield _entry(path, inodes[ino])


def _entry(path: bytes, inode: _Inode) -> dict[str, Any]:
    value = inode.value
    fields: dict[str, Any] = {
        'path': _text(path), 'mode': value[INODE_MODE], 'uid': value[INODE_UID], 'gid': value[INODE_GID],
        'size': value[INODE_SIZE], 'mtime_ns': value[INODE_MTIME],
    }  # fmt: skip
    if value[INODE_TARGET]:
        fields['target'] = _text(value[INODE_TARGET])
    if value[INODE_RDEV]:
        fields['rdev'] = value[INODE_RDEV]
    if inode.xattrs:
        fields['xattrs'] = inode.xattrs
    if inode.parts:
        fields['parts'] = inode.parts
    return fields


def _text(raw: bytes) -> str:
    return raw.decode('utf-8', 'surrogateescape')
