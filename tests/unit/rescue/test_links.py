"""What lost nodes leave behind: decided in tables as by hand, and without memory that grows with the tree."""

from __future__ import annotations

import random
import tracemalloc
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest

from snapfs import limits
from snapfs.format.keys import dirent_key, extent_key, inode_key, orphan_key
from snapfs.rescue.links import DIRECTORY, Links
from snapfs.rescue.recover_values import Mend

FILE = 8


class Tree:
    """Links of a tree, some of which are missing."""

    def __init__(self, rng: random.Random, most: int) -> None:
        numbers = [limits.INO_ROOT, *range(limits.INO_FIRST, limits.INO_FIRST + most)]
        self.inodes = {
            ino: (
                rng.choice((FILE, DIRECTORY)) if ino != limits.INO_ROOT else DIRECTORY,
                rng.randrange(4),
                rng.randrange(4),
            )
            for ino in numbers
            if rng.random() < 0.7
        }
        self.entries = [
            (at, child, b'%d' % count, rng.choice((FILE, DIRECTORY)))
            for count, (at, child) in enumerate(
                (rng.choice(numbers), rng.choice(numbers)) for _ in range(2 * most)
            )
        ]
        self.extents = {rng.choice(numbers) for _ in range(most // 2)}
        self.orphans = {rng.choice(numbers[1:]) for _ in range(most // 5)}

    def leaf(self) -> Any:
        """All of it in one leaf."""
        rows: list[tuple[bytes, Any]] = []
        for ino, (kind, nlink, size) in self.inodes.items():
            rows.append((inode_key(ino), (kind << 12, 0, 0, 0, size, 0, nlink, 1, 0, 0, 0, 0, 0, 0, b'')))
        for count, (at, child, name, kind) in enumerate(self.entries):
            rows.append((dirent_key(at, count + 1), ((name, child, kind),)))
        rows += [(extent_key(ino, 0), (1, b'')) for ino in self.extents]
        rows += [(orphan_key(ino), ()) for ino in self.orphans]
        rows.sort(key=lambda row: row[0])
        return SimpleNamespace(keys=[key for key, _ in rows], values=[value for _, value in rows])

    def mend(self) -> Mend:
        """What has to be said of it, by plain sets."""
        there, order = self.inodes, sorted(self.entries)
        items_of = {at for at, _, _, _ in order} | self.extents
        kept = [one for one in order if one[0] in there and one[1] in there]
        names = Counter(child for _, child, _, _ in kept)
        size = Counter(at for at, _, _, _ in kept)
        below = Counter(at for at, _, _, kind in kept if kind == DIRECTORY)
        told = [ino for ino in sorted(there) if ino not in self.orphans]
        right = {ino: 2 + below[ino] if there[ino][0] == DIRECTORY else max(1, names[ino]) for ino in told}
        return Mend(
            tuple(sorted(ino for ino in items_of if ino not in there)),
            tuple(
                sorted((at, name.hex()) for at, child, name, _ in order if at in there and child not in there)
            ),
            tuple((ino, right[ino]) for ino in told if there[ino][1] != right[ino]),
            tuple(
                (ino, size[ino]) for ino in told if there[ino][0] == DIRECTORY and there[ino][2] != size[ino]
            ),
            tuple((ino, there[ino][0]) for ino in told if ino != limits.INO_ROOT and not names[ino]),
        )


def mended(*leaves: Any) -> Mend:
    links = Links()
    try:
        for leaf in leaves:
            links.see(leaf)
        found = links.mend()
    finally:
        links.close()
    return Mend(found.gone, tuple(sorted(found.entries)), found.links, found.sizes, found.found)


@pytest.mark.parametrize('seed', range(60))
def test_it_is_decided_as_by_hand(seed):
    rng = random.Random(seed)
    tree = Tree(rng, rng.choice([1, 3, 8, 20]))
    assert mended(tree.leaf()) == tree.mend()


def test_memory_does_not_grow_with_a_tree_that_is_right():
    """200 bytes for each file were held; now it is what a cache takes."""
    tracemalloc.start()
    try:
        links = Links()
        top = (DIRECTORY << 12, 0, 0, 0, 40_000, 0, 2, 1, 0, 0, 0, 0, 0, 0, b'')
        links.see(SimpleNamespace(keys=[inode_key(limits.INO_ROOT)], values=[top]))
        for start in range(0, 40_000, 500):
            keys, values = [], []
            for ino in range(limits.INO_FIRST + start, limits.INO_FIRST + start + 500):
                keys += [inode_key(ino), dirent_key(limits.INO_ROOT, ino)]
                values += [
                    (FILE << 12, 0, 0, 0, 5, 0, 1, 1, 0, 0, 0, 0, 0, 0, b''),
                    ((b'%d' % ino, ino, FILE),),
                ]
            links.see(SimpleNamespace(keys=keys, values=values))
        assert links.mend() == Mend()
        links.close()
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()
