"""Tool breakit, kinds: every kind of damage that can be made, one function each. Pure but for the patient.

The first snapshot of the store is the victim of what is done to trees: its name comes first in every list."""

from __future__ import annotations

import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from snapfs import limits
from snapfs.errors import Invalid
from snapfs.format.ids import RecordKind
from snapfs.format.items import INODE_MODE, INODE_SIZE, Value
from snapfs.format.keys import (
    DIRENT,
    EXTENT,
    INODE,
    inode_key,
)
from snapfs.format.packs import PACK_HEADER_BYTES, PackHeader, encode_pack_header
from snapfs.format.records import HEADER_BYTES
from tools.breaking.edit import Items, Patient


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of damage: its name, what it is, and how it is made."""

    name: str
    what: str
    make: Callable[[Patient], None]


KINDS: dict[str, Kind] = {}


def kind(name: str, what: str) -> Callable[[Callable[[Patient], None]], Callable[[Patient], None]]:
    """Enter a function as a kind of damage."""

    def enter(make: Callable[[Patient], None]) -> Callable[[Patient], None]:
        assert name not in KINDS, name
        KINDS[name] = Kind(name, what, make)
        return make

    return enter


# --- choosing victims ------------------------------------------------------------------------------------
def victim(p: Patient) -> tuple[str, bytes, bytes]:
    """Return (table, name, root) of the snapshot that things are done to."""
    rows = p.db.execute('SELECT name, root FROM snapshot WHERE root IS NOT NULL ORDER BY number').fetchall()
    if not rows:
        raise Invalid('the store has no snapshot to do this to')
    return 'snapshot', rows[0][0], rows[0][1]


def extents(p: Patient) -> list[tuple[bytes, Value]]:
    """Return the extents of the victim, the longest file's last."""
    _, _, root = victim(p)
    found = [(key, value) for key, value in sorted(p.items(root).items()) if key[8] == EXTENT]
    if not found:
        raise Invalid('the first snapshot has no file with bytes')
    return found


def inodes(items: Items, is_kind: Callable[[int], bool]) -> list[int]:
    """Return the numbers of inodes whose mode is of a kind, but for the top directory."""
    numbers = [int.from_bytes(key[:8], 'big') for key, value in sorted(items.items())
               if key[8] == INODE and is_kind(value[INODE_MODE])]  # fmt: skip
    return [ino for ino in numbers if ino != limits.INO_ROOT]


def files(items: Items) -> list[int]:
    """Return the numbers of regular files that have bytes."""
    return [ino for ino in inodes(items, stat.S_ISREG) if items[inode_key(ino)][INODE_SIZE]]


def directories(items: Items) -> list[int]:
    """Return the numbers of directories, but for the top."""
    return inodes(items, stat.S_ISDIR)


def set_field(items: Items, ino: int, field: int, value: int) -> None:
    """Change one field of an inode."""
    fields = list(items[inode_key(ino)])
    fields[field] = value
    items[inode_key(ino)] = tuple(fields)


def entries_of(items: Items, child: int) -> list[bytes]:
    """Return the keys of entries that lead to an inode."""
    return [key for key, value in sorted(items.items())
            if key[8] == DIRENT and any(one[1] == child for one in value)]  # fmt: skip


def tree(name: str, what: str) -> Callable[[Callable[[Items, Patient], None]], None]:
    """Enter a kind that changes items of the victim; its hashes and totals stay right."""

    def enter(change: Callable[[Items, Patient], None]) -> None:
        def make(p: Patient) -> None:
            table, victim_name, _ = victim(p)
            p.change_items(table, victim_name, lambda items: change(items, p))

        kind(name, what)(make)

    return enter


def packs_of(p: Patient, pack_kind: int, state: str = 'sealed') -> list[int]:
    """Return the packs of a kind."""
    rows = p.db.execute(
        'SELECT pack FROM pack WHERE kind = ? AND state = ? ORDER BY pack', (pack_kind, state)
    )
    return [pack for (pack,) in rows]


# --- superblock, lock and strangers ----------------------------------------------------------------------
@kind('superblock-flip', 'one bit of the superblock')
def _(p: Patient) -> None:
    p.flip(p.path / 'superblock', 30, 3)


@kind('superblock-version', 'a format version that nobody knows')
def _(p: Patient) -> None:
    p.put(p.path / 'superblock', 8, b'\0\x09')


@kind('superblock-gone', 'the superblock is gone')
def _(p: Patient) -> None:
    p.gone(p.path / 'superblock')


@kind('superblock-backups', 'the superblock is gone, and so are all backups')
def _(p: Patient) -> None:
    p.gone(p.path / 'superblock')
    for one in sorted((p.path / 'backups').iterdir()):
        p.gone(one)


@kind('superblock-mirror', 'one bit in the second copy of the superblock')
def _(p: Patient) -> None:
    p.flip(p.path / 'mirror' / 'superblock', 30, 3)


@kind('superblock-copy', 'one bit in the copy of the superblock')
def _(p: Patient) -> None:
    p.flip(p.path / 'backups' / 'superblock', 30, 3)


@kind('lock-garbage', 'nonsense in the lock file (harmless)')
def _(p: Patient) -> None:
    p.put(p.path / 'lock', 0, b'nonsense')


@kind('stray-file', 'a file that snapfs did not make (harmless)')
def _(p: Patient) -> None:
    (p.path / 'notes.txt').write_text('mine')
    p.say('notes.txt was made')


@kind('stray-pack', 'a pack that the catalog does not know (harmless)')
def _(p: Patient) -> None:
    name = p.chance.randbytes(16)
    path = p.pack_path(1, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode_pack_header(PackHeader(p.superblock.uuid, name, RecordKind.DATA)))
    p.say(f'pack {name.hex()} was made')


@kind('pack-foreign', 'a pack of another store')
def _(p: Patient) -> None:
    name = p.chance.randbytes(16)
    path = p.pack_path(1, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode_pack_header(PackHeader(p.chance.randbytes(16), name, RecordKind.DATA)))
    p.say(f'pack {name.hex()} of another store was put there')


# --- packs -----------------------------------------------------------------------------------------------
def data_place(p: Patient, which: int = 0) -> tuple[Path, int, int, int]:
    """Return (path, offset, stored length, number) of a data record of the victim."""
    pack, offset, stored = p.place(extents(p)[which][1][-1])
    return p.pack(pack), offset, stored, pack


def node_place(p: Patient, level: int) -> tuple[Path, int, int]:
    """Return (path, offset, stored length) of a node of the victim at this level."""
    for _, id, node in p.nodes(victim(p)[2]):
        if node.level == level:
            pack, offset, stored = p.place(id)
            return p.pack(pack), offset, stored
    raise Invalid(f'the first snapshot has no node of level {level}')


@kind('payload-flip', 'one bit in the bytes of a file')
def _(p: Patient) -> None:
    path, offset, stored, _ = data_place(p)
    p.flip(path, offset + HEADER_BYTES + stored // 2, 5)


@kind('payload-zeros', 'the bytes of a chunk are zeros')
def _(p: Patient) -> None:
    path, offset, stored, _ = data_place(p, 1)
    p.put(path, offset + HEADER_BYTES, bytes(stored))


@kind('header-flip', 'one bit in the header of a record')
def _(p: Patient) -> None:
    path, offset, _, _ = data_place(p)
    p.flip(path, offset + 20, 1)


@kind('record-torn', 'the second half of a record was never written')
def _(p: Patient) -> None:
    path, offset, stored, _ = data_place(p, 2)
    p.put(path, offset + HEADER_BYTES + stored // 2, bytes(stored - stored // 2))


@kind('records-swapped', "two records of the same length stand in each other's place")
def _(p: Patient) -> None:
    seen: dict[tuple[int, int], tuple[int, bytes]] = {}
    for _, value in extents(p):
        pack, offset, stored = p.place(value[-1])
        other = seen.setdefault((pack, stored), (offset, value[-1]))
        if other[1] != value[-1]:
            path = p.pack(pack)
            data = path.read_bytes()
            size = HEADER_BYTES + stored
            one, two = data[offset : offset + size], data[other[0] : other[0] + size]
            p.put(path, offset, two)
            p.put(path, other[0], one)
            return
    raise Invalid('there are no two records of the same length')


@kind('record-doubled', 'the same record stands in another pack as well (harmless)')
def _(p: Patient) -> None:
    id = extents(p)[0][1][-1]
    p.store(RecordKind.DATA, [(id, p.plain(id))])


@kind('pack-header-flip', 'one bit in the header of a pack')
def _(p: Patient) -> None:
    p.flip(data_place(p)[0], 20, 0)


@kind('pack-footer-flip', 'one bit in the list of records of a pack')
def _(p: Patient) -> None:
    path = data_place(p)[0]
    p.flip(path, path.stat().st_size - 60, 2)


@kind('pack-trailer-flip', 'one bit in the end of a pack')
def _(p: Patient) -> None:
    path = data_place(p)[0]
    p.flip(path, path.stat().st_size - 40, 2)


@kind('pack-cut', 'a pack has lost its end')
def _(p: Patient) -> None:
    path, offset, _, _ = data_place(p)
    p.cut(path, offset + HEADER_BYTES)


@kind('pack-longer', 'bytes behind the end of a sealed pack')
def _(p: Patient) -> None:
    path = data_place(p)[0]
    p.put(path, path.stat().st_size, b'more')


@kind('data-pack-gone', 'a pack of file data is gone')
def _(p: Patient) -> None:
    p.gone(data_place(p)[0])


@kind('meta-pack-gone', 'a pack of nodes is gone')
def _(p: Patient) -> None:
    p.gone(node_place(p, 0)[0])


@kind('pack-misplaced', 'a pack lies in another folder')
def _(p: Patient) -> None:
    path = data_place(p)[0]
    other = path.parent.parent / ('00' if path.parent.name != '00' else '01')
    other.mkdir(exist_ok=True)
    path.rename(other / path.name)
    p.say(f'{path.relative_to(p.path)} lies in {other.name}')


@kind('pack-exchanged', 'a pack lies there under the name of another')
def _(p: Patient) -> None:
    mine = data_place(p)[0]
    other = next(path for path in map(p.pack, packs_of(p, 1)) if path != mine)
    mine.write_bytes(other.read_bytes())
    p.say(f'{mine.name} has the bytes of {other.name}')


@kind('pack-a-link', 'a pack is a symbolic link')
def _(p: Patient) -> None:
    path = data_place(p)[0]
    path.rename(p.path / 'elsewhere')
    path.symlink_to(p.path / 'elsewhere')
    p.say(f'{path.relative_to(p.path)} is a link')


@kind('leaf-flip', 'one bit in a leaf of a tree')
def _(p: Patient) -> None:
    path, offset, stored = node_place(p, 0)
    p.flip(path, offset + HEADER_BYTES + stored // 2, 4)


@kind('branch-flip', 'one bit in a branch of a tree')
def _(p: Patient) -> None:
    path, offset, stored = node_place(p, 1)
    p.flip(path, offset + HEADER_BYTES + stored // 2, 4)


@kind('top-flip', 'one bit in the top node of a tree')
def _(p: Patient) -> None:
    pack, offset, stored = p.place(victim(p)[2])
    p.flip(p.pack(pack), offset + HEADER_BYTES + stored // 2, 4)


@kind('open-pack-flip', 'one bit in a pack that is not sealed')
def _(p: Patient) -> None:
    p.flip(p.pack(packs_of(p, 1, 'open')[0]), PACK_HEADER_BYTES + 60, 4)


# --- the index -------------------------------------------------------------------------------------------
@kind('index-row-gone', 'the index has lost a chunk of a file')
def _(p: Patient) -> None:
    p.sql('DELETE FROM chunk WHERE id = ?', extents(p)[0][1][-1])


@kind('index-node-gone', 'the index has lost a leaf')
def _(p: Patient) -> None:
    for _, id, node in p.nodes(victim(p)[2]):
        if node.level == 0:
            p.sql('DELETE FROM chunk WHERE id = ?', id)
            return


@kind('index-elsewhere', 'the index names the place of another chunk')
def _(p: Patient) -> None:
    one, two = extents(p)[0][1][-1], extents(p)[1][1][-1]
    pack, offset, _ = p.place(two)
    p.sql('UPDATE chunk SET pack = ?, offset = ? WHERE id = ?', pack, offset, one)


@kind('index-length', 'the index has another length for a chunk')
def _(p: Patient) -> None:
    p.sql('UPDATE chunk SET plain = plain + 1 WHERE id = ? AND plain < 131072', extents(p)[0][1][-1])


@kind('index-id-end', 'the last bit of an id in the index')
def _(p: Patient) -> None:
    id = extents(p)[0][1][-1]
    p.sql('UPDATE chunk SET id = ? WHERE id = ?', id[:-1] + bytes([id[-1] ^ 1]), id)


@kind('index-no-pack', 'the index names a pack that was never there')
def _(p: Patient) -> None:
    p.sql('UPDATE chunk SET pack = 9999 WHERE id = ?', extents(p)[0][1][-1])


@kind('index-behind', 'the index names a place behind the end of a pack')
def _(p: Patient) -> None:
    p.sql('UPDATE chunk SET offset = 60000000 WHERE id = ?', extents(p)[0][1][-1])
