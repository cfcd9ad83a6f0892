"""Node ids: computed, and different for different things."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapfs import limits
from snapfs.mount import nodeids
from snapfs.mount.nodeids import Control, NodeKind, decode_node, encode_node

places = st.tuples(st.sampled_from(NodeKind), st.integers(1, limits.VIEW_MAX), st.integers(1, limits.INO_MAX))


@given(places)
def test_decode_is_the_inverse(place: tuple[NodeKind, int, int]) -> None:
    node = encode_node(*place)
    assert decode_node(node) == place
    assert 0 < node < nodeids.TEXT_HANDLE


@given(places, places)
def test_different_places_have_different_numbers(
    one: tuple[NodeKind, int, int], other: tuple[NodeKind, int, int]
) -> None:
    assert (encode_node(*one) == encode_node(*other)) == (one == other)
    assert encode_node(*one) != nodeids.ROOT_NODE


@given(places)
def test_tree_numbers_tell_volumes_and_snapshots_apart(place: tuple[NodeKind, int, int]) -> None:
    kind, view, _ = place
    tree = encode_node(*place) >> nodeids.INO_BITS
    assert (tree == view) == (kind is NodeKind.LIVE)
    assert (tree == nodeids.SNAPSHOT_TREE + view) == (kind is NodeKind.SNAPSHOT)


def test_the_root_of_a_mount_is_what_fuse_demands() -> None:
    assert encode_node(NodeKind.LIVE, 0, limits.INO_ROOT) == nodeids.ROOT_NODE == 1
    assert decode_node(1) == (NodeKind.LIVE, 0, 1)


@given(st.integers(-(1 << 70), 1 << 70))
def test_any_number_decodes_to_its_place_or_not_at_all(node: int) -> None:
    try:
        place = decode_node(node)
    except ValueError:
        return
    assert encode_node(*place) == node


@pytest.mark.parametrize('node', [0, 2, 1 << 40, 4 << 60 | 1 << 40 | 1, nodeids.TEXT_HANDLE + 1, -1])
def test_numbers_that_nobody_makes_are_refused(node: int) -> None:
    with pytest.raises(ValueError, match='not a node id'):
        decode_node(node)


@pytest.mark.parametrize(('view', 'ino'), [(0, 2), (1, 0), (limits.VIEW_MAX + 1, 1), (1, limits.INO_MAX + 1)])
def test_impossible_parts_are_a_bug(view: int, ino: int) -> None:
    with pytest.raises(AssertionError):
        encode_node(NodeKind.LIVE, view, ino)


def test_control_places_differ() -> None:
    nodes = {nodeids.control_node(control, number) for control in Control for number in (1, 2, 3)}
    assert len(nodes) == len(Control) * 3
