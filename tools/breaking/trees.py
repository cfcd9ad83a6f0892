"""Tool breakit, trees: damage to trees whose hashes are all right. Pure but for the patient."""

from __future__ import annotations

import stat
from collections.abc import Callable

from snapfs import limits
from snapfs.errors import Invalid
from snapfs.format.ids import node_id
from snapfs.format.items import INODE_ALLOCATED, INODE_NLINK, INODE_PARENT, INODE_SIZE
from snapfs.format.keys import (
    EXTENT,
    XATTR,
    dirent_key,
    extent_key,
    inode_key,
    name_hash,
    suffix_number,
)
from snapfs.format.nodes import Branch, Leaf, encode_branch, encode_leaf
from tools.breaking.edit import Items, Patient
from tools.breaking.kinds import (
    directories,
    entries_of,
    files,
    kind,
    set_field,
    tree,
    victim,
)


def forged(p: Patient, change: Callable[[bytearray], None], level: int) -> None:
    """Change the bytes of a node of the victim at a level, and every hash above it."""
    table, name, root = victim(p)
    for way, id, node in p.nodes(root):
        if node.level == level:
            plain = bytearray(p.plain(id))
            change(plain)
            p.replace_node(table, name, way, bytes(plain))
            return
    raise Invalid(f'the first snapshot has no node of level {level}')


def _add(plain: bytearray, at: int) -> None:
    plain[at : at + 8] = (int.from_bytes(plain[at : at + 8], 'big') + 1).to_bytes(8, 'big')


@kind('totals-items', 'a branch says there are more items below than there are')
def _(p: Patient) -> None:
    table, name, root = victim(p)
    for way, _, node in p.nodes(root):
        if isinstance(node, Branch) and node.level == 1:
            counts = [node.child_items[0] + 1, *node.child_items[1:]]
            plain = encode_branch(1, node.keys, node.children, counts, node.child_refs)
            p.replace_node(table, name, way, plain)
            return


@kind('totals-header', 'the header of a branch says something else than its children')
def _(p: Patient) -> None:
    forged(p, lambda plain: _add(plain, 20), 1)


@kind('reference-lost', 'a leaf has lost a reference, as in 2011, and nobody above knows')
def _(p: Patient) -> None:
    table, name, root = victim(p)
    for way, _, node in p.nodes(root):
        if isinstance(node, Leaf) and node.refs:
            pairs = list(zip(node.keys, node.values_with_ids(), strict=True))
            at = next(n for n, (key, _) in enumerate(pairs) if key[8] == EXTENT)
            del pairs[at]
            p.replace_node(table, name, way, encode_leaf([k for k, _ in pairs], [v for _, v in pairs]))
            return


@kind('root-totals', 'the catalog counts fewer references than a snapshot has')
def _(p: Patient) -> None:
    p.sql('UPDATE snapshot SET root_refs = root_refs - 1 WHERE name = ?', victim(p)[1])


@kind('level-wrong', 'a branch says it is of another level')
def _(p: Patient) -> None:
    def change(plain: bytearray) -> None:
        plain[2] += 1

    forged(p, change, 1)


@kind('leaves-exchanged', "two leaves stand in each other's place")
def _(p: Patient) -> None:
    table, name, root = victim(p)
    for way, _, node in p.nodes(root):
        if isinstance(node, Branch) and node.level == 1 and len(node.children) > 2:
            order = [0, 2, 1, *range(3, len(node.children))]
            children = [node.children[n] for n in order]
            items, refs = [node.child_items[n] for n in order], [node.child_refs[n] for n in order]
            p.replace_node(table, name, way, encode_branch(1, node.keys, children, items, refs))
            return
    raise Invalid('the first snapshot is too small')


@kind('child-elsewhere', 'a branch names a node that was never there')
def _(p: Patient) -> None:
    table, name, root = victim(p)
    for way, _, node in p.nodes(root):
        if isinstance(node, Branch) and node.level == 1:
            children = [node_id(b'never there'), *node.children[1:]]
            plain = encode_branch(1, node.keys, children, node.child_items, node.child_refs)
            p.replace_node(table, name, way, plain)
            return


@tree('link-count', 'a file says it has one more name')
def _(items: Items, p: Patient) -> None:
    ino = files(items)[0]
    set_field(items, ino, INODE_NLINK, items[inode_key(ino)][INODE_NLINK] + 1)


@tree('directory-links', 'a directory says it has one more directory')
def _(items: Items, p: Patient) -> None:
    ino = directories(items)[0]
    set_field(items, ino, INODE_NLINK, items[inode_key(ino)][INODE_NLINK] + 1)


@tree('directory-size', 'a directory says it has one more entry')
def _(items: Items, p: Patient) -> None:
    ino = directories(items)[0]
    set_field(items, ino, INODE_SIZE, items[inode_key(ino)][INODE_SIZE] + 1)


@tree('entry-dangling', 'an entry leads to no file')
def _(items: Items, p: Patient) -> None:
    key = entries_of(items, files(items)[0])[0]
    items[key] = tuple((name, 999_999, file_type) for name, _, file_type in items[key])


@tree('entry-type', 'an entry says another type than its file')
def _(items: Items, p: Patient) -> None:
    key = entries_of(items, files(items)[0])[0]
    items[key] = tuple((name, ino, stat.S_IFLNK >> 12) for name, ino, _ in items[key])


@tree('inode-orphan', 'a file that no name leads to')
def _(items: Items, p: Patient) -> None:
    ino = files(items)[0]
    key = entries_of(items, ino)[0]
    above = int.from_bytes(key[:8], 'big')
    del items[key]
    set_field(items, above, INODE_SIZE, items[inode_key(above)][INODE_SIZE] - 1)


@tree('directory-cycle', 'two directories are each in the other')
def _(items: Items, p: Patient) -> None:
    upper = next(ino for ino in directories(items) if items[inode_key(ino)][INODE_PARENT] == limits.INO_ROOT)
    lower = next(ino for ino in directories(items) if items[inode_key(ino)][INODE_PARENT] == upper)
    key = entries_of(items, upper)[0]
    (entry,) = items.pop(key)
    items[dirent_key(lower, suffix_number(key))] = (entry,)
    for ino, more in ((limits.INO_ROOT, -1), (lower, 1)):
        set_field(items, ino, INODE_SIZE, items[inode_key(ino)][INODE_SIZE] + more)
        set_field(items, ino, INODE_NLINK, items[inode_key(ino)][INODE_NLINK] + more)
    set_field(items, upper, INODE_PARENT, lower)


@tree('two-parents', 'two entries lead to one directory')
def _(items: Items, p: Patient) -> None:
    one, two = directories(items)[:2]
    name = b'another way'
    items[dirent_key(one, name_hash(p.superblock.name_key, name))] = ((name, two, stat.S_IFDIR >> 12),)
    set_field(items, one, INODE_SIZE, items[inode_key(one)][INODE_SIZE] + 1)
    set_field(items, one, INODE_NLINK, items[inode_key(one)][INODE_NLINK] + 1)


@tree('top-below-itself', 'an entry of the top directory leads to the top directory')
def _(items: Items, p: Patient) -> None:
    name, ino = b'again', limits.INO_ROOT
    items[dirent_key(ino, name_hash(p.superblock.name_key, name))] = ((name, ino, stat.S_IFDIR >> 12),)
    set_field(items, ino, INODE_SIZE, items[inode_key(ino)][INODE_SIZE] + 1)
    set_field(items, ino, INODE_NLINK, items[inode_key(ino)][INODE_NLINK] + 1)


@tree('parent-wrong', 'a directory says it is in another one')
def _(items: Items, p: Patient) -> None:
    found = directories(items)
    below = next(ino for ino in found if items[inode_key(ino)][INODE_PARENT] != limits.INO_ROOT)
    other = next(ino for ino in found if ino not in (below, items[inode_key(below)][INODE_PARENT]))
    set_field(items, below, INODE_PARENT, other)


@tree('extents-overlap', 'two parts of a file claim the same bytes')
def _(items: Items, p: Patient) -> None:
    key = max(key for key in items if key[8] == EXTENT and suffix_number(key) > 0)
    ino = int.from_bytes(key[:8], 'big')
    first = next(one for one in sorted(items) if one[8] == EXTENT and one[:8] == key[:8])
    items[extent_key(ino, suffix_number(first) + 1)] = items.pop(key)


@tree('extent-beyond', 'a file has bytes behind its end')
def _(items: Items, p: Patient) -> None:
    ino = files(items)[0]
    set_field(items, ino, INODE_SIZE, items[inode_key(ino)][INODE_SIZE] - 1)


@tree('extent-length', 'a part of a file is shorter than its chunk')
def _(items: Items, p: Patient) -> None:
    key, value = next((k, v) for k, v in sorted(items.items()) if k[8] == EXTENT)
    items[key] = (value[0] - 1, value[1])
    ino = int.from_bytes(key[:8], 'big')
    set_field(items, ino, INODE_ALLOCATED, items[inode_key(ino)][INODE_ALLOCATED] - 1)


@tree('allocated', 'a file says it has other bytes than its parts')
def _(items: Items, p: Patient) -> None:
    set_field(items, files(items)[0], INODE_ALLOCATED, 7)


@tree('inode-gone', 'a file has bytes and names, and no inode')
def _(items: Items, p: Patient) -> None:
    del items[inode_key(files(items)[0])]


@tree('item-value', 'an inode has a size that cannot be')
def _(items: Items, p: Patient) -> None:
    set_field(items, files(items)[0], INODE_SIZE, 1 << 61)


@tree('xattr-hidden', 'a file has an attribute, and says it has none')
def _(items: Items, p: Patient) -> None:
    key = next(key for key in sorted(items) if key[8] == XATTR)
    set_field(items, int.from_bytes(key[:8], 'big'), 13, 0)


@tree('name-hash', 'an entry stands where nobody looks for its name')
def _(items: Items, p: Patient) -> None:
    key = entries_of(items, files(items)[0])[0]
    value = items.pop(key)
    items[dirent_key(int.from_bytes(key[:8], 'big'), suffix_number(key) ^ 8)] = value


@kind('next-ino', 'numbers of files would be given out twice')
def _(p: Patient) -> None:
    p.sql('UPDATE snapshot SET next_ino = 17 WHERE name = ?', victim(p)[1])
