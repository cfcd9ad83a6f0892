"""Apply: what is read, what is cut off, how full nodes become, and what it refuses."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest

from snapfs import limits
from snapfs.errors import Corrupt
from snapfs.format.items import Value
from snapfs.format.keys import dirent_key, ino_range, inode_key
from snapfs.format.nodes import Branch, decode_node, encode_branch
from snapfs.tree import EMPTY, Built, Need, Root, apply, bulk, get, range_items, run_apply, walk
from snapfs.tree.apply import KEY_END
from snapfs.tree.root import Applied, Node
from snapfs.tree.verify import verify
from tests.sim.tree_kit import SLOTS, TARGET, NodeStore, item_at, key_at

COUNT = 1500


@pytest.fixture
def store() -> NodeStore:
    return NodeStore()


@pytest.fixture
def root(store: NodeStore) -> Root:
    root = store.build(COUNT)
    store.loads.clear()
    return root


def nodes_of(store: NodeStore, root: Root, level: int) -> list[bytes]:
    return [id for id, node in walk(root, store.load) if node.level == level]


def children_at_level(store: NodeStore, root: Root, level: int) -> list[tuple[bytes, bytes]]:
    """(lower bound, id) of every node of a level."""
    assert root.id is not None
    found = [(b'', root.id)]
    while store.load(found[0][1]).level > level:
        below = []
        for lo, id in found:
            branch = store.load(id)
            assert isinstance(branch, Branch)
            below += zip([lo, *branch.keys[1:]], branch.children, strict=True)
        found = below
    store.loads.clear()
    return found


def test_nothing_to_do_reads_nothing(store: NodeStore, root: Root) -> None:
    assert store.apply(root) == Applied(root, [], [])
    assert store.apply(EMPTY) == Applied(EMPTY, [], [])
    assert store.loads == []


def test_the_old_tree_stays(store: NodeStore, root: Root) -> None:
    before = list(range_items(root, b'', KEY_END, store.load))
    store.apply(root, [(key_at(30), key_at(900))], [item_at(index, 1) for index in range(0, COUNT, 3)])
    assert list(range_items(root, b'', KEY_END, store.load)) == before


def test_the_same_items_again_make_the_same_tree(store: NodeStore, root: Root) -> None:
    applied = store.apply(root, changes=[item_at(index, 0) for index in range(0, COUNT, 50)])
    assert applied == Applied(root, [], [])


def test_cutting_all_off_and_storing_it_again_makes_the_same_tree(store: NodeStore, root: Root) -> None:
    applied = store.apply(root, [(b'', KEY_END)], [item_at(index, 0) for index in range(COUNT)])
    assert applied == Applied(root, [], [])


def test_deleting_what_is_not_there_changes_nothing(store: NodeStore, root: Root) -> None:
    applied = store.apply(root, changes=[(key_at(COUNT + 5), None), (key_at(COUNT + 9), None)])
    assert applied == Applied(root, [], [])


def test_deleting_all_by_range_reads_nothing(store: NodeStore, root: Root) -> None:
    assert store.apply(root, [(b'', KEY_END)]) == Applied(EMPTY, [], [root.id])
    assert store.loads == []


def test_replacing_all_by_range_reads_nothing(store: NodeStore, root: Root) -> None:
    changes = [item_at(index, 1) for index in range(100)]
    applied = store.apply(root, [(b'', KEY_END)], changes)
    assert applied.dropped_subtrees == [root.id]
    assert store.loads == []
    assert list(range_items(applied.root, b'', KEY_END, store.load)) == changes


def test_deleting_all_item_by_item_leaves_an_empty_tree(store: NodeStore, root: Root) -> None:
    applied = store.apply(root, changes=[(key_at(index), None) for index in range(COUNT)])
    assert applied.root == EMPTY
    assert applied.dropped_subtrees == []
    assert set(applied.dropped) == store.reach(root.id)


def test_a_range_reads_only_nodes_at_its_ends(store: NodeStore, root: Root) -> None:
    height = store.load(root.id).level
    store.loads.clear()
    applied = store.apply(root, [(key_at(203), key_at(1297))])
    # Two paths of nodes, and a neighbour where what is left of a boundary node is too small.
    assert len(store.loads) <= 2 * height + 4
    assert len(applied.dropped_subtrees) >= 5
    assert not set(applied.dropped_subtrees) & set(store.loads)
    assert applied.root.items == COUNT - (1297 - 203)


def test_adjacent_inodes_are_one_range(store: NodeStore, root: Root) -> None:
    first = limits.INO_ORPHANS + 20
    inos = range(first, first + 150)
    one = store.apply(root, [(ino_range(inos[0])[0], ino_range(inos[-1])[1])])
    loads = len(store.loads)
    store.loads.clear()
    many = store.apply(root, [ino_range(ino) for ino in inos])
    assert many == one
    assert len(store.loads) == loads
    assert one.root.items == COUNT - 150 * SLOTS


@pytest.mark.parametrize('level', [0, 1, 2])
def test_a_range_over_exactly_whole_nodes(store: NodeStore, root: Root, level: int) -> None:
    """What the range leaves at the right edge is too small for every level in turn: the left neighbour is
    brought back from wherever it went."""
    bounds = [lo for lo, _ in children_at_level(store, root, level)]
    before = store.reach(root.id)
    last = key_at(COUNT - 1)
    for lo in bounds[1:]:
        applied = store.apply(root, [(lo, last)])
        verify(applied.root, store.load, target_bytes=TARGET)
        assert store.dropped(applied) == before - store.reach(applied.root.id)
        kept = [key for key, _ in range_items(applied.root, b'', KEY_END, store.load)]
        assert kept == [key for key in map(key_at, range(COUNT)) if key < lo or key == last]


@pytest.mark.parametrize('level', [0, 1, 2])
@pytest.mark.parametrize('gap_items', [1, 8, 40])
def test_a_gap_of_whole_nodes_is_filled(store: NodeStore, root: Root, level: int, gap_items: int) -> None:
    """Nothing of the old tree stands beside what is put into the gap, at any level."""
    bounds = [lo for lo, _ in children_at_level(store, root, level)]
    before = store.reach(root.id)
    for lo, hi in [(bounds[0], bound) for bound in bounds[1:]] + list(pairwise(bounds)):
        first = next(index for index in range(COUNT) if key_at(index) >= lo)
        inside = [index for index in range(first, COUNT) if key_at(index) < hi][:gap_items]
        applied = store.apply(root, [(lo, hi)], [item_at(index, 1) for index in inside])
        verify(applied.root, store.load, target_bytes=TARGET)
        assert store.dropped(applied) == before - store.reach(applied.root.id)
        kept = [key for key, _ in range_items(applied.root, b'', KEY_END, store.load)]
        outside = (index for index in range(COUNT) if not lo <= key_at(index) < hi)
        assert kept == [key_at(index) for index in sorted([*outside, *inside])]


def leaf_indexes(store: NodeStore, id: bytes) -> list[int]:
    by_key = {key_at(index): index for index in range(COUNT)}
    return [by_key[key] for key in store.load(id).keys]


@pytest.mark.parametrize('place', ['inside', 'end'])
def test_a_small_rest_joins_a_changed_left_neighbour_and_spares_the_right_one(
    store: NodeStore, root: Root, place: str
) -> None:
    leaves = [id for _, id in children_at_level(store, root, 0)]
    branch = store.load(children_at_level(store, root, 1)[2][1])
    assert isinstance(branch, Branch)
    position = 2 if place == 'inside' else len(branch.children) - 2
    number = leaves.index(branch.children[position])
    changed, emptied, right = (leaf_indexes(store, id) for id in leaves[number : number + 3])
    changes = [item_at(changed[0], 1)] + [(key_at(index), None) for index in emptied[1:]]
    store.loads.clear()
    applied = store.apply(root, changes=changes)
    assert leaves[number + 2] not in store.loads
    assert applied.root.items == COUNT - len(emptied) + 1
    assert right
    verify(applied.root, store.load, target_bytes=TARGET)


def test_a_node_just_made_is_taken_back_before_anybody_sees_it(store: NodeStore) -> None:
    """A tree of small nodes, changed under a larger node size: left of the gap a small old node passed, and
    left of that stands a new one that its parent needs after all."""
    root = store.apply(EMPTY, changes=[item_at(index, 0) for index in range(2000)], target_bytes=512).root
    for lo in range(800, 840):
        store.kept.clear()
        changes = [item_at(0, 1), item_at(1999, 2)]
        applied = store.apply(root, [(key_at(lo), KEY_END)], changes, target_bytes=9000)
        after = store.reach(applied.root.id)
        assert set(store.kept) <= after
        assert store.dropped(applied) == store.reach(root.id) - after
        verify(applied.root, store.load, target_bytes=9000, item_bytes_max=9000)
        assert applied.root.items == lo + 1


def test_bulk_load_fills_nodes_to_about_the_target() -> None:
    store = NodeStore()
    items = [item_at(index, 0) for index in range(20_000)]
    applied = run_apply(apply(EMPTY, (), items), store.load_many, store.keep)
    shape = verify(applied.root, store.load)
    leaves, plain_bytes = shape.nodes[0], shape.node_bytes[0]
    assert 0.75 < plain_bytes / leaves / limits.NODE_BYTES_TARGET < 1.1
    assert set(store.plain) == set(shape.node_ids)


@pytest.mark.parametrize('batch', [1, 7, 100, 1000])
def test_appending_leaves_well_filled_nodes(store: NodeStore, batch: int) -> None:
    root = EMPTY
    for first in range(0, 3000, batch):
        root = store.apply(root, changes=[item_at(index, 0) for index in range(first, first + batch)]).root
    shape = verify(root, store.load, target_bytes=TARGET)
    leaves = [store.load(id).plain_bytes for id in nodes_of(store, root, 0)]
    assert min(leaves[:-1]) > 0.6 * TARGET
    assert shape.node_bytes[0] / shape.nodes[0] > 0.75 * TARGET


def test_random_inserts_keep_nodes_half_full_of_what_they_may_hold(store: NodeStore) -> None:
    indexes = list(range(4000))
    random.Random(5).shuffle(indexes)
    root = EMPTY
    for first in range(0, len(indexes), 20):
        chosen = sorted(indexes[first : first + 20])
        root = store.apply(root, changes=[item_at(index, 0) for index in chosen]).root
    shape = verify(root, store.load, target_bytes=TARGET)
    assert shape.node_bytes[0] / shape.nodes[0] >= TARGET


def test_replacing_items_leaves_the_leaves_as_they_are(store: NodeStore) -> None:
    """What goes and what comes are both counted: a full leaf is not cut for having been changed."""
    indexes = list(range(COUNT))
    random.Random(7).shuffle(indexes)
    root = EMPTY
    for first in range(0, COUNT, 50):
        chosen = sorted(indexes[first : first + 50])
        root = store.apply(root, changes=[item_at(index, 0) for index in chosen]).root
    before = len(nodes_of(store, root, 0))
    assert max(store.load(id).plain_bytes for id in nodes_of(store, root, 0)) > 1.9 * TARGET
    for first in range(8):
        root = store.apply(root, changes=[item_at(index, 1) for index in range(first, COUNT, 8)]).root
    assert len(nodes_of(store, root, 0)) == before


def test_random_deletions_keep_nodes_filled(store: NodeStore, root: Root) -> None:
    indexes = list(range(COUNT))
    random.Random(6).shuffle(indexes)
    for first in range(0, COUNT - 100, 20):
        chosen = sorted(indexes[first : first + 20])
        root = store.apply(root, changes=[(key_at(index), None) for index in chosen]).root
        verify(root, store.load, target_bytes=TARGET)
    assert root.items == 100
    assert len(nodes_of(store, root, 0)) <= 100 * 120 // (TARGET // 2) + 1


def test_items_as_large_as_they_can_be_still_fit() -> None:
    store = NodeStore()
    names = sorted(b'%03d' % number * 85 for number in range(limits.HASH_COLLISIONS_MAX))
    largest: Value = tuple((name, 5, 8) for name in names)
    changes: list[tuple[bytes, Value | None]] = []
    for number in range(40):
        changes.append((dirent_key(10, 100 + number), ((b'x', 5, 8),)))
        if number % 3:
            changes.append((dirent_key(10, 1000 + number), largest))
    changes.sort()
    applied = run_apply(apply(EMPTY, (), changes), store.load_many, store.keep)
    verify(applied.root, store.load, item_bytes_max=20 * limits.KIB)
    again = run_apply(
        apply(applied.root, (), [(dirent_key(10, 1000 + n), largest) for n in range(0, 40, 3)]),
        store.load_many,
        store.keep,
    )
    verify(again.root, store.load, item_bytes_max=20 * limits.KIB)
    assert again.root.items == 80


def test_one_chunk_in_two_places_is_known_where_it_can_be(store: NodeStore) -> None:
    """An id that a change brings back is not dropped, though another change gave it up."""
    (key_a, value), (key_b, _) = item_at(2, 0), item_at(3, 0)
    root = store.apply(EMPTY, changes=[(key_a, value)]).root
    applied = store.apply(root, changes=[(key_a, None), (key_b, value)])
    assert applied.dropped == [root.id]
    assert get(applied.root, key_b, store.load) == value


@pytest.mark.parametrize('target_bytes', [TARGET, limits.NODE_BYTES_TARGET])
def test_slices_are_short(store: NodeStore, target_bytes: int) -> None:
    """However many changes fall into one gap or one leaf, pauses are few nodes apart, on all levels."""
    items = [item_at(index, 0) for index in range(30_000)]
    small = store.apply(EMPTY, (), items[:10], target_bytes).root
    node_items = 2 * target_bytes // 40
    for root, changes in ((EMPTY, items), (small, items[10:])):
        slices: list[list[tuple[bytes, bytes]]] = []
        run_apply(apply(root, (), changes, target_bytes=target_bytes), store.load_many, slices.append)
        made = [sum(store_items(plain) for _, plain in nodes) for nodes in slices]
        assert max(made) <= limits.TREE_SLICE_ITEMS + 4 * node_items
        assert len(slices) >= len(changes) // limits.TREE_SLICE_ITEMS


def test_reading_ahead_is_limited(store: NodeStore) -> None:
    items = [item_at(index, 0) for index in range(10_000)]
    root = run_apply(apply(EMPTY, (), items), store.load_many, store.keep).root
    groups: list[int] = []

    def load(ids: list[bytes]) -> list[Node]:
        groups.append(len(ids))
        return store.load_many(ids)

    run_apply(apply(root, (), [item_at(index, 1) for index in range(0, 10_000, 9)]), load, store.keep)
    assert max(groups) == limits.TREE_READ_AHEAD_NODES
    assert groups.count(limits.TREE_READ_AHEAD_NODES) > 1


def store_items(plain: bytes) -> int:
    return len(decode_node(plain).keys)


def test_reads_ahead_in_groups_and_nothing_twice(store: NodeStore, root: Root) -> None:
    groups: list[list[bytes]] = []

    def load(ids: list[bytes]) -> list[Node]:
        groups.append(ids)
        return store.load_many(ids)

    changes = [item_at(index, 1) for index in range(COUNT)]
    run_apply(apply(root, (), changes, target_bytes=TARGET), load, store.keep)
    asked = [id for ids in groups for id in ids]
    assert sorted(asked) == sorted(id for id, _ in walk(root, store.load))
    assert 4 < max(map(len, groups)) <= limits.TREE_READ_AHEAD_NODES


def test_reading_ahead_stops_where_a_range_begins(store: NodeStore, root: Root) -> None:
    """Nodes the range covers are not read, though changes fall into the gap."""
    changes = [item_at(index, 1) for index in range(0, COUNT, 3)]
    applied = store.apply(root, [(key_at(500), key_at(1000))], changes)
    assert len(applied.dropped_subtrees) > 3
    assert not set(applied.dropped_subtrees) & set(store.loads)


def test_yields_only_its_two_kinds(store: NodeStore, root: Root) -> None:
    steps = apply(root, (), [item_at(0, 1)], target_bytes=TARGET)
    step = next(steps)
    assert step == Built([])
    assert steps.send(None) == Need([root.id])


@pytest.mark.parametrize('level', [0, 1])
def test_a_child_that_does_not_add_up_is_corrupt(store: NodeStore, level: int) -> None:
    root = store.build(400)
    branch = store.load(root.id)
    assert isinstance(branch, Branch)
    items, refs = list(branch.child_items), list(branch.child_refs)
    if level:
        items[0] += 1
    else:
        refs[0] += 1
    plain = encode_branch(branch.level, branch.keys, branch.children, items, refs)
    bad = Root(b'lie'.ljust(32), root.items + level, root.refs + 1 - level)
    store.plain[bad.id or b''] = plain
    with pytest.raises(Corrupt, match='its parent says'):
        store.apply(bad, changes=[item_at(0, 1)])


def test_a_root_that_does_not_add_up_is_corrupt(store: NodeStore, root: Root) -> None:
    with pytest.raises(Corrupt, match='its parent says'):
        store.apply(root._replace(items=COUNT - 1), changes=[item_at(0, 1)])


def test_a_child_of_the_wrong_level_is_corrupt(store: NodeStore, root: Root) -> None:
    branch = store.load(root.id)
    assert isinstance(branch, Branch)
    plain = encode_branch(
        branch.level + 1, branch.keys, branch.children, branch.child_items, branch.child_refs
    )
    store.plain[b'lie'.ljust(32)] = plain
    with pytest.raises(Corrupt, match='level'):
        store.apply(root._replace(id=b'lie'.ljust(32)), changes=[item_at(0, 1)])


@pytest.mark.parametrize('first', [0, limits.TREE_SLICE_ITEMS - 1, 5])
def test_changes_out_of_order_are_a_bug(store: NodeStore, first: int) -> None:
    changes = [item_at(index, 0) for index in range(limits.TREE_SLICE_ITEMS + 10)]
    changes[first], changes[first + 1] = changes[first + 1], changes[first]
    with pytest.raises(AssertionError, match='ascending'):
        store.apply(EMPTY, changes=changes)


def test_ranges_that_overlap_or_are_empty_are_a_bug(store: NodeStore, root: Root) -> None:
    with pytest.raises(AssertionError, match='overlap'):
        store.apply(root, [(key_at(1), key_at(5)), (key_at(4), key_at(9))])
    with pytest.raises(AssertionError, match='empty'):
        store.apply(root, [(key_at(1), key_at(1))])


def test_a_key_beyond_all_keys_is_a_bug(store: NodeStore) -> None:
    with pytest.raises(AssertionError):
        store.apply(EMPTY, changes=[(b'\xff' * 9, item_at(0, 0)[1])])


def test_keys_stay_below_the_end_of_keys() -> None:
    assert inode_key(limits.INO_MAX) < KEY_END
    assert ino_range(limits.INO_MAX)[1] < KEY_END


@pytest.mark.parametrize('count', [0, 1, 255, 256, 257, 3000])
def test_items_that_come_one_by_one_make_the_tree_that_apply_makes_of_all_of_them(store, count):
    items = [item_at(index, 0) for index in range(count)]
    work = bulk(iter(items), target_bytes=TARGET)
    assert run_apply(work, store.load_many, store.keep).root == store.build(count)


def test_items_that_come_one_by_one_have_to_be_in_order():
    items = [item_at(index, 0) for index in range(300)]
    for wrong in (items[::-1], items[:256] + items[255:]):
        with pytest.raises(AssertionError, match='ascending'):
            for _ in bulk(wrong):
                pass
