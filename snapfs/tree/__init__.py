"""L3 tree: the copy-on-write B+tree of items. Pure functions over load(id); see root.py for the words."""

from snapfs.tree.apply import apply, bulk
from snapfs.tree.diff import diff
from snapfs.tree.driver import run_apply
from snapfs.tree.read import get, leaf_ids, locate_leaf, range_items, range_leaf, range_page, walk
from snapfs.tree.root import EMPTY, Applied, Built, Need, NotCached, Root

__all__ = [
    'EMPTY',
    'Applied',
    'Built',
    'Need',
    'NotCached',
    'Root',
    'apply',
    'bulk',
    'diff',
    'get',
    'leaf_ids',
    'locate_leaf',
    'range_items',
    'range_leaf',
    'range_page',
    'run_apply',
    'walk',
]
