"""L3 verify: does a tree keep all its rules? Pure and synchronous; for tests and tools, reads every node.

The rules: keys ascend strictly, over node borders too; separators bound their children; levels fall by one;
every parent repeats its children's totals; a branch has at least two children, a leaf at least one item;
sizes stay within the limits that build.py states.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

from snapfs import limits
from snapfs.errors import Corrupt
from snapfs.format.nodes import Branch, Leaf
from snapfs.tree.apply import KEY_END
from snapfs.tree.root import Key, Load, Node, Root


@dataclass(slots=True)
class Shape:
    """What verify saw: nodes per level (leaves first), their bytes, and all ids, in key order."""

    nodes: list[int] = field(default_factory=list)
    node_bytes: list[int] = field(default_factory=list)
    node_ids: list[bytes] = field(default_factory=list)
    data_ids: list[bytes] = field(default_factory=list)


def verify(
    root: Root, load: Load, *, target_bytes: int = limits.NODE_BYTES_TARGET, item_bytes_max: int = 0
) -> Shape:
    """Read the whole tree and check the rules. Raises Corrupt at the first broken one.

    A node can miss the size limits by `item_bytes_max`: give the size of the largest item when some are
    larger than a third of a node.
    """
    shape = Shape()
    if root.id is None:
        _demand(root == Root(None, 0, 0), b'', 'an empty tree with totals')
        return shape
    top = load(root.id)
    _demand((top.items_below, top.refs_below) == (root.items, root.refs), root.id, 'totals unlike the root')
    _demand(top.level < limits.TREE_LEVELS_MAX, root.id, 'too many levels')
    shape.nodes = [0] * (top.level + 1)
    shape.node_bytes = [0] * (top.level + 1)
    # Nodes are cut by estimates, which are up to a quarter too high.
    low_inside = target_bytes // 2 * 3 // 4 - item_bytes_max
    low_edge = target_bytes // 4 * 3 // 4 - item_bytes_max
    high = 2 * target_bytes + item_bytes_max
    stack: list[tuple[bytes, Node, Key, Key]] = [(root.id, top, b'', KEY_END)]
    while stack:
        id, node, lo, hi = stack.pop()
        shape.nodes[node.level] += 1
        shape.node_bytes[node.level] += node.plain_bytes
        shape.node_ids.append(id)
        _demand(node.plain_bytes <= high, id, f'{node.plain_bytes} bytes, more than {high}')
        low = 0 if id == root.id else low_edge if hi == KEY_END else low_inside
        _demand(node.plain_bytes >= low, id, f'{node.plain_bytes} bytes, less than {low}')
        if isinstance(node, Leaf):
            _check_leaf(id, node, lo, hi)
            shape.data_ids += node.ref_ids()
        else:
            stack.extend(reversed(_children(id, node, lo, hi, load)))
    return shape


def _demand(condition: bool, id: bytes, message: str) -> None:
    if not condition:
        raise Corrupt(f'node {id.hex()}: {message}')


def _check_leaf(id: bytes, leaf: Leaf, lo: Key, hi: Key) -> None:
    keys = leaf.keys
    _demand(len(keys) > 0, id, 'an empty leaf')
    _demand(all(a < b for a, b in pairwise(keys)), id, 'keys do not ascend')
    _demand(lo <= keys[0] and keys[-1] < hi, id, 'keys outside the bounds its parent gives')


def _children(id: bytes, branch: Branch, lo: Key, hi: Key, load: Load) -> list[tuple[bytes, Node, Key, Key]]:
    keys = branch.keys
    _demand(len(keys) >= 2, id, 'a branch with one child')
    _demand(keys[0] == b'', id, 'a first separator that is not empty')
    _demand(all(a < b for a, b in pairwise(keys)), id, 'separators do not ascend')
    _demand(lo < keys[1] and keys[-1] < hi, id, 'separators outside the bounds its parent gives')
    bounds = [lo, *keys[1:], hi]
    found = []
    for position, child_id in enumerate(branch.children):
        child = load(child_id)
        _demand(child.level == branch.level - 1, child_id, 'a level that does not fit its parent')
        totals = (branch.child_items[position], branch.child_refs[position])
        _demand((child.items_below, child.refs_below) == totals, child_id, 'totals unlike its parent says')
        found.append((child_id, child, bounds[position], bounds[position + 1]))
    return found
