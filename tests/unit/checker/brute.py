"""A damage map made by walking: every standing root, node by node and item by item, and for every reference
a look whether its bytes can be had. Shares the byte decoders with fsck and nothing else; slow and plain."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from snapfs import limits
from snapfs.errors import Corrupt
from snapfs.format.keys import DIRENT, EXTENT, INODE, XATTR, decode_key, suffix_number
from snapfs.format.nodes import Branch, Leaf, decode_node
from snapfs.format.packs import PACK_HEADER_BYTES
from snapfs.format.records import HEADER_BYTES, decode_header, decode_payload

FOLDERS = {1: 'data', 2: 'meta'}
Loss = tuple[bytes, str, int, int | None, int | None, str]  # chunk, root, inode, range, what
IN_LOST_PART = 'in a part of the tree that is lost'
Shown = tuple[str, str, int | None, int | None]  # as fsck names it: root, path, range


@dataclass
class Tree:
    """What is seen below one root."""

    name: str
    resting: bool
    losses: set[Loss] = field(default_factory=set)
    entries: dict[int, list[tuple[int, str]]] = field(default_factory=dict)  # by child: directory, name
    parts: list[tuple[bytes, int, int]] = field(default_factory=list)  # lost: id, inodes above and below

    def paths(self, ino: int, seen: frozenset[int] = frozenset()) -> list[str]:
        """Every path that leads to an inode, as far as it can be told."""
        if ino == limits.INO_ROOT:
            return ['']
        if ino in seen or ino not in self.entries:
            return [f'/(inode {ino})']
        return [
            f'{above}/{name}'
            for at, name in self.entries[ino]
            for above in self.paths(at, seen | {ino})
        ]  # fmt: skip


class Brute:
    """The map of a store. `full`: every data record is read; else it is only seen whether it can be there,
    and those that are `known` to be lost are not."""

    def __init__(self, path: Path, full: bool, known: frozenset[bytes] = frozenset()) -> None:
        self._path = path
        self._full = full
        self._known = known
        db = sqlite3.connect(f'file:{path}/catalog.sqlite?mode=ro', uri=True)
        self._packs = {row[0]: row[1:] for row in db.execute('SELECT pack, name, kind FROM pack')}
        place = 'SELECT id, pack, offset, stored, kind FROM'
        self._index = {row[0]: row[1:] for row in db.execute(f'{place} chunk')}
        self._quarantine = {row[0]: row[1:] for row in db.execute(f'{place} quarantine')}
        self._anywhere = dict(self._nodes_in_packs())
        self.trees = [self._tree(*root) for root in _standing(db)]
        db.close()

    # --- bytes -------------------------------------------------------------------------------------------
    def _file(self, pack: int) -> Path:
        name, kind = self._packs[pack]
        return self._path / 'packs' / FOLDERS[kind] / name.hex()[:2] / name.hex()

    def _nodes_in_packs(self) -> Iterator[tuple[bytes, Leaf | Branch]]:
        """Every node that any pack of the catalog still has."""
        for pack, (_, kind) in self._packs.items():
            if kind != 2 or not self._file(pack).exists():
                continue
            data, at = self._file(pack).read_bytes(), PACK_HEADER_BYTES
            while at + HEADER_BYTES <= len(data):
                try:
                    header = decode_header(data[at : at + HEADER_BYTES])
                except Corrupt:
                    break
                at += HEADER_BYTES + header.stored_length
                try:
                    payload = data[at - header.stored_length : at]
                    yield header.id, decode_node(decode_payload(header, payload))
                except Corrupt:
                    continue

    def _can_be_had(self, id: bytes, resting: bool) -> bool:
        return self._good(id, self._index.get(id)) or (resting and self._good(id, self._quarantine.get(id)))

    def _good(self, id: bytes, place: tuple[int, int, int, int] | None) -> bool:
        if place is None:
            return False
        pack, offset, stored, kind = place
        end = offset + HEADER_BYTES + stored
        if not self._file(pack).exists() or self._file(pack).stat().st_size < end:
            return False
        if kind == 1 and not self._full:
            return id not in self._known
        record = self._file(pack).read_bytes()[offset:end]
        try:
            header = decode_header(record)
            decode_payload(header, record[HEADER_BYTES:])
        except Corrupt:
            return False
        return header.id == id

    # --- trees -------------------------------------------------------------------------------------------
    def _tree(self, name: str, top: bytes, resting: bool) -> Tree:
        tree = Tree(name, resting)
        if not self._can_be_had(top, resting):
            tree.losses.add((top, name, limits.INO_ROOT, None, None, 'the whole tree'))
        self._walk(tree, top)
        for id, low, until in tree.parts:
            for child in tree.entries:
                if low < child < until:
                    tree.losses.add((id, name, child, None, None, IN_LOST_PART))
        return tree

    def _walk(self, tree: Tree, id: bytes) -> None:
        node = self._anywhere.get(id)
        if isinstance(node, Leaf):
            self._leaf(tree, node)
        if not isinstance(node, Branch):
            return
        for place, child in enumerate(node.children):
            if not self._can_be_had(child, tree.resting):
                low = int.from_bytes(node.keys[place][:8], 'big') if node.keys[place] else limits.INO_ROOT
                last = place + 1 == len(node.children)
                to = 'on' if last else f'to {int.from_bytes(node.keys[place + 1][:8], "big")}'
                what = f'a part of the tree, inodes {low} {to}: names below are not known'
                tree.losses.add((child, tree.name, low, None, None, what))
                high = limits.INO_MAX + 1
                if not last:  # an inode whose INODE item stands behind the lost part has not lost it
                    ino, kind, _ = decode_key(node.keys[place + 1])
                    high = ino + (kind != INODE)
                tree.parts.append((child, low, high))
            self._walk(tree, child)

    def _leaf(self, tree: Tree, leaf: Leaf) -> None:
        for index, key in enumerate(leaf.keys):
            ino, kind, suffix = decode_key(key)
            value = leaf.value(index)
            if kind == DIRENT:
                for name, child, _ in value:
                    tree.entries.setdefault(child, []).append((ino, name.decode()))
            elif kind == EXTENT and not self._can_be_had(value[-1], tree.resting):
                start = suffix_number(key)
                tree.losses.add((value[-1], tree.name, ino, start, start + value[0], ''))
            elif kind == XATTR and len(value) == 3 and not self._can_be_had(value[2], tree.resting):
                tree.losses.add((value[2], tree.name, ino, None, None, f'attribute {suffix.decode()}'))

    # --- the map -----------------------------------------------------------------------------------------
    def losses(self) -> set[Loss]:
        """Everything that is lost."""
        return {loss for tree in self.trees for loss in tree.losses}

    def shown(self) -> dict[Shown, set[Loss]]:
        """What each line that fsck may print means: a file with several names may be told by any of them."""
        found: dict[Shown, set[Loss]] = {}
        for tree in self.trees:
            for loss in tree.losses:
                _, root, ino, start, end, what = loss
                for path in tree.paths(ino):
                    text = f'{path or "/"} ({what})' if what else path or '/'
                    found.setdefault((root, text, start, end), set()).add(loss)
        return found


def _standing(db: sqlite3.Connection) -> Iterator[tuple[str, bytes, bool]]:
    """Every root that somebody may still want: (name, id of the top, whether quarantine will do)."""
    volumes = {row[0]: row[1].decode() for row in db.execute('SELECT volume, name FROM volume')}
    for name, root in db.execute('SELECT name, root FROM volume WHERE root IS NOT NULL'):
        yield name.decode(), root, False
    for volume, name, root in db.execute('SELECT volume, name, root FROM snapshot WHERE root IS NOT NULL'):
        yield f'{volumes[volume]}@{name.decode()}', root, False
    for number, root in db.execute('SELECT number, root FROM canary'):
        yield f'canary {number}', root, False
    states = dict(db.execute('SELECT number, state FROM batch'))
    rows = 'SELECT number, kind, volume_name, name, root, batch FROM request '
    rows += "WHERE kind IN ('snapshot', 'volume')"
    for number, kind, volume, name, root, batch in db.execute(rows).fetchall():
        state = states.get(batch)
        if root is None or state in ('CONFIRMED', 'FREED'):
            continue
        title = volume.decode() + (f'@{name.decode()}' if kind == 'snapshot' else '')
        yield f'request {number} ({title})', root, state in ('PLANNED', 'QUARANTINED')
