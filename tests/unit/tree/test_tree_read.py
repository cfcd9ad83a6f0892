"""Reading a tree: look up, scan, page, read ahead, walk; and what happens when nodes are not in memory."""

from __future__ import annotations

import pytest

from snapfs import limits
from snapfs.errors import Corrupt
from snapfs.format.nodes import Branch, Leaf, encode_branch
from snapfs.tree import (
    EMPTY,
    NotCached,
    Root,
    get,
    leaf_ids,
    locate_leaf,
    range_items,
    range_leaf,
    range_page,
    walk,
)
from snapfs.tree.apply import KEY_END
from snapfs.tree.verify import verify
from tests.sim.tree_kit import TARGET, ForgetfulLoad, NodeStore, item_at, key_at

COUNT = 900
EVERY = [item_at(index, 0) for index in range(0, 2 * COUNT, 2)]


@pytest.fixture
def store() -> NodeStore:
    return NodeStore()


@pytest.fixture
def root(store: NodeStore) -> Root:
    """Every other item of the row, so that there is a miss beside each hit."""
    root = store.apply(EMPTY, changes=EVERY).root
    assert len(verify(root, store.load, target_bytes=TARGET).nodes) == 3
    store.loads.clear()
    return root


def leaves(store: NodeStore, root: Root) -> list[bytes]:
    found = [id for id, node in walk(root, store.load) if isinstance(node, Leaf)]
    store.loads.clear()
    return found


def test_get_finds_each_item_and_nothing_else(store: NodeStore, root: Root) -> None:
    for index in range(0, 2 * COUNT, 2):
        assert get(root, key_at(index), store.load) == item_at(index, 0)[1]
        assert get(root, key_at(index + 1), store.load) is None
    assert get(root, b'', store.load) is None
    assert get(root, KEY_END, store.load) is None


def test_get_reads_one_node_per_level(store: NodeStore, root: Root) -> None:
    get(root, key_at(10), store.load)
    assert len(store.loads) == 3


def test_an_empty_tree_has_nothing(store: NodeStore) -> None:
    assert get(EMPTY, key_at(0), store.load) is None
    assert locate_leaf(EMPTY, key_at(0), store.load) is None
    assert list(range_items(EMPTY, b'', KEY_END, store.load)) == []
    assert range_page(EMPTY, b'', KEY_END, 10, store.load) == []
    assert range_leaf(EMPTY, b'', KEY_END, store.load) == ([], None)
    assert leaf_ids(EMPTY, b'', KEY_END, 10, store.load) == []
    assert list(walk(EMPTY, store.load)) == []
    assert store.loads == []


def test_locate_leaf(store: NodeStore, root: Root) -> None:
    for index in (0, 1, 777, 778, 2 * COUNT + 5):
        leaf = locate_leaf(root, key_at(index), store.load)
        assert leaf is not None
        if index % 2 == 0 and index < 2 * COUNT:
            assert key_at(index) in leaf.keys
    assert locate_leaf(root, b'', store.load) is locate_leaf(root, key_at(0), store.load)


@pytest.mark.parametrize(('lo', 'hi'), [(0, 50), (1, 51), (333, 1200), (400, 401), (401, 402), (1790, 5000)])
def test_a_range_is_half_open(store: NodeStore, root: Root, lo: int, hi: int) -> None:
    expected = [item_at(index, 0) for index in range(lo + lo % 2, min(hi, 2 * COUNT), 2)]
    assert list(range_items(root, key_at(lo), key_at(hi), store.load)) == expected
    assert range_page(root, key_at(lo), key_at(hi), 10**6, store.load) == expected


def test_an_upside_down_range_is_empty(store: NodeStore, root: Root) -> None:
    assert list(range_items(root, key_at(9), key_at(9), store.load)) == []
    assert list(range_items(root, key_at(10), key_at(2), store.load)) == []
    assert leaf_ids(root, key_at(10), key_at(10), 9, store.load) == []


@pytest.mark.parametrize('limit', [1, 2, 7, 100, COUNT, COUNT + 1])
def test_pages_add_up(store: NodeStore, root: Root, limit: int) -> None:
    found = []
    lo = b''
    while True:
        page = range_page(root, lo, KEY_END, limit, store.load)
        found += page
        assert len(page) <= limit
        if len(page) < limit:
            break
        lo = page[-1][0] + b'\0'
    assert found == EVERY


def test_range_leaf_says_where_to_go_on(store: NodeStore, root: Root) -> None:
    found, rounds = [], 0
    lo: bytes | None = b''
    while lo is not None:
        store.loads.clear()
        items, lo = range_leaf(root, lo, KEY_END, store.load)
        assert len(store.loads) == 3
        found += items
        rounds += 1
    assert found == EVERY
    assert rounds == len(leaves(store, root))


def test_range_leaf_with_a_limit_goes_on_within_the_leaf(store: NodeStore, root: Root) -> None:
    items, lo = range_leaf(root, key_at(4), key_at(100), store.load, 2)
    assert items == [item_at(4, 0), item_at(6, 0)]
    assert lo == key_at(8)


def test_leaf_ids_are_those_a_scan_reads(store: NodeStore, root: Root) -> None:
    every = leaves(store, root)
    assert leaf_ids(root, b'', KEY_END, 10**6, store.load) == every
    assert not set(store.loads) & set(every)
    store.loads.clear()
    assert leaf_ids(root, b'', KEY_END, 5, store.load) == every[:5]
    assert len(store.loads) == 2
    for lo, hi in ((0, 1), (300, 304), (500, 1300), (1795, 1796)):
        store.loads.clear()
        list(range_items(root, key_at(lo), key_at(hi), store.load))
        scanned = [id for id in every if id in set(store.loads)]
        assert leaf_ids(root, key_at(lo), key_at(hi), 10**6, store.load) == scanned


def test_leaf_ids_of_one_leaf(store: NodeStore) -> None:
    small = store.build(3)
    assert leaf_ids(small, b'', KEY_END, 5, store.load) == [small.id]


def test_leaf_ids_stop_at_a_leaf_that_stands_too_high(store: NodeStore, root: Root) -> None:
    branch = store.load(root.id)
    assert isinstance(branch, Branch)
    lie = b'lie'.ljust(limits.ID_BYTES)
    leaf = leaves(store, root)[0]
    plain = encode_branch(2, branch.keys[:1], [leaf], branch.child_items[:1], branch.child_refs[:1])
    store.plain[lie] = plain
    with pytest.raises(Corrupt, match='leaf above'):
        leaf_ids(root._replace(id=lie), b'', KEY_END, 9, store.load)


def test_walk_meets_every_node_once_parents_first(store: NodeStore, root: Root) -> None:
    seen: set[bytes] = set()
    assert root.id is not None
    expected = {root.id}
    for id, node in walk(root, store.load):
        assert id in expected
        assert id not in seen
        seen.add(id)
        if isinstance(node, Branch):
            expected.update(node.children)
    assert seen == expected == {id for id in store.reach(root.id) if id in store.plain}


def test_a_node_that_is_not_in_memory_is_named(store: NodeStore, root: Root) -> None:
    load = ForgetfulLoad(store, seed=1, keep=3)
    with pytest.raises(NotCached) as caught:
        get(root, key_at(0), load)
    assert caught.value.id == root.id
    load.fetch(caught.value.id)
    with pytest.raises(NotCached) as caught:
        get(root, key_at(0), load)
    branch = store.load(root.id)
    assert isinstance(branch, Branch)
    assert caught.value.id == branch.children[0]


def corrupt(store: NodeStore, plain: bytes, items: int, refs: int, match: str) -> None:
    lie = b'lie'.ljust(limits.ID_BYTES)
    store.plain[lie] = plain
    store.decoded.pop(lie, None)
    with pytest.raises(Corrupt, match=match):
        verify(Root(lie, items, refs), store.load, target_bytes=TARGET)


def test_verify_sees_each_broken_rule(store: NodeStore, root: Root) -> None:
    """The yardstick of the other tests is itself tried: one rule broken at a time."""
    top = store.load(root.id)
    assert isinstance(top, Branch)
    level, keys, children = top.level, list(top.keys), list(top.children)
    items, refs = list(top.child_items), list(top.child_refs)
    good = encode_branch(level, keys, children, items, refs)
    with pytest.raises(Corrupt, match='unlike the root'):
        verify(root._replace(refs=root.refs + 1), store.load, target_bytes=TARGET)
    with pytest.raises(Corrupt, match='empty tree'):
        verify(Root(None, 1, 0), store.load)
    with pytest.raises(Corrupt, match='more than'):
        verify(root, store.load, target_bytes=TARGET // 3)
    with pytest.raises(Corrupt, match='less than'):
        verify(root, store.load, target_bytes=TARGET * 4)
    verify(root, store.load, target_bytes=TARGET)
    moved = [keys[0], key_at(5), *keys[2:]]
    corrupt(store, encode_branch(level, moved, children, items, refs), root.items, root.refs, 'bounds')
    lied = [items[0] + 1, items[1] - 1, *items[2:]]
    corrupt(store, encode_branch(level, keys, children, lied, refs), root.items, root.refs, 'its parent')
    corrupt(store, encode_branch(level + 1, keys, children, items, refs), root.items, root.refs, 'level')
    one = encode_branch(level, keys[:1], children[:1], items[:1], refs[:1])
    corrupt(store, one, items[0], refs[0] + 1, 'one child')
    beyond = [*keys[:-1], KEY_END + b'x']
    corrupt(store, encode_branch(level, beyond, children, items, refs), root.items, root.refs, 'bounds')
    assert store.plain[root.id or b''] == good
