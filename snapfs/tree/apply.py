"""L3 apply: makes the next version of a tree from deleted ranges and changed items. A generator; event loop.

One walk from left to right over the old tree, with a stack of branches. At each child of the top branch:

- nothing concerns it, and what was put together so far may end here: it passes, by id, unread;
- a range covers it: it is cut off by id, unread, and new items that fall into the gap are put in;
- else it is read (Need). A branch goes on the stack; the items of a leaf are merged with the changes.

A node that is read is dropped, and what it holds goes through the builder, which cuts nodes to size. Nodes
left of the walk are therefore final except for the drafts of the builder, and memory follows the levels of
the tree, not of the changes. Should a new node have the id of the old one, it is not dropped after all.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Generator, Iterable, Sequence
from itertools import islice
from operator import lt

from snapfs import limits
from snapfs.errors import Corrupt
from snapfs.format.items import item_size, ref_of
from snapfs.format.nodes import Branch, Leaf
from snapfs.tree.build import Builder
from snapfs.tree.draft import BranchDraft, Entry
from snapfs.tree.root import EMPTY, Applied, Built, Change, Key, Need, Node, Range, Root, Value

Steps = Generator[Need | Built, list[Node] | None, None]
KEY_END = b'\xff'  # above every key: an inode number never fills its eight bytes


def apply(
    root: Root,
    ranges: Sequence[Range],
    changes: Sequence[Change],
    *,
    target_bytes: int = limits.NODE_BYTES_TARGET,
) -> Generator[Need | Built, list[Node] | None, Applied]:
    """Make a tree from `root` by deleting every item in `ranges`, then storing `changes` (None deletes).

    `ranges` are [lo, hi) in order and do not overlap; adjacent ones count as one. `changes` are strictly
    ascending by key, values with ids in place. Deleting what is not there is no change.

    Yields Need and Built, about a millisecond of work apart, and returns Applied; see there. Of a deleted
    range only the nodes at its two ends are read. The old tree stays as it is. Raises Corrupt when a node
    does not fit its parent (totals, level).
    """
    walk = _Apply(root, ranges, changes, target_bytes)
    yield from walk.run()
    yield Built(walk.builder.take_last())
    return walk.result()


def bulk(
    items: Iterable[tuple[Key, Value]], *, target_bytes: int = limits.NODE_BYTES_TARGET
) -> Generator[Need | Built, list[Node] | None, Applied]:
    """Make a tree of `items`, strictly ascending by key, values with ids in place: the same as `apply` makes
    of them and the empty tree. They are taken as they are needed, so memory follows the levels of the tree
    alone. Yields Built only, and returns Applied, with nothing dropped."""
    walk = _Apply(EMPTY, (), (), target_bytes)
    stream, last = iter(items), b''
    while block := list(islice(stream, limits.TREE_BLOCK_ITEMS)):
        walk.keys, walk.change = [key for key, _ in block], 0
        walk.values = [value for _, value in block]
        assert all(map(lt, [last, *walk.keys], walk.keys)), 'items are not ascending'
        last = walk.keys[-1]
        yield from walk._insert(KEY_END)
        # Nothing is dropped, so nobody asks what was kept.
        walk.gained.clear()
        walk.builder.made.clear()
    yield from walk._finish()
    yield Built(walk.builder.take_last())
    return walk.result()


def _coalesce(ranges: Sequence[Range]) -> tuple[list[Key], list[Key]]:
    los: list[Key] = []
    his: list[Key] = []
    for lo, hi in ranges:
        assert lo < hi, 'an empty range'
        if his and lo <= his[-1]:
            assert lo == his[-1], 'ranges overlap or are out of order'
            his[-1] = hi
        else:
            los.append(lo)
            his.append(hi)
    return los, his


class _Frame:
    """An old branch of which the children before `index` are done."""

    __slots__ = ('branch', 'hi', 'index', 'lo', 'ready')

    def __init__(self, branch: Branch, lo: Key, hi: Key) -> None:
        self.branch = branch
        self.lo = lo
        self.hi = hi
        self.index = 0
        self.ready: dict[bytes, Node] = {}  # read ahead


class _Apply:
    """One run: what is left to do (`change`, `cut` are the next indexes), what is dropped, what is built."""

    def __init__(self, root: Root, ranges: Sequence[Range], changes: Sequence[Change], target: int) -> None:
        self.root = root
        self.changes = changes
        self.keys: list[Key] = []
        self.values: list[Value | None] = []
        self.change = 0
        self.cut_los, self.cut_his = _coalesce(ranges)
        self.cut = 0
        self.builder = Builder(target)
        self.dropped: list[bytes] = []
        self.dropped_subtrees: list[bytes] = []
        self.gained: set[bytes] = set()
        self.top: Entry | None = None

    def result(self) -> Applied:
        """Return what was reached; what is known to stand in the new tree is not dropped."""
        kept = self.builder.made | self.gained
        if self.top is None:
            root = EMPTY
        else:
            root = Root(self.top.id, self.top.items, self.top.refs)
        dropped = [id for id in dict.fromkeys(self.dropped) if id not in kept]
        return Applied(root, dropped, [id for id in self.dropped_subtrees if id not in kept])

    def run(self) -> Steps:
        """Walk the old tree, then finish the right edge of the new one."""
        root = self.root
        yield from self._take_changes()
        if not self.keys and not self.cut_los:
            if root.id is not None:
                self.top = Entry(b'', root.id, root.items, root.refs)
            return
        if root.id is None:
            yield from self._insert(KEY_END)
        elif self._covers(b'', KEY_END):
            self.dropped_subtrees.append(root.id)
            yield from self._insert(KEY_END)
        else:
            yield from self._walk(root, root.id)
        yield from self._finish()

    def _take_changes(self) -> Steps:
        """Split the changes into keys and values: a column is searched and sliced faster than pairs are."""
        for first in range(0, len(self.changes), limits.TREE_SLICE_ITEMS):
            block = self.changes[first : first + limits.TREE_SLICE_ITEMS]
            self.keys += [change[0] for change in block]
            self.values += [change[1] for change in block]
            last = max(first - 1, 0)
            ascending = all(map(lt, self.keys[last:], self.keys[last + 1 :]))
            assert ascending, 'changes are not ascending'
            yield Built([])
        assert not self.keys or self.keys[-1] < KEY_END

    # --- the walk ----------------------------------------------------------------------------------------

    def _walk(self, root: Root, root_id: bytes) -> Steps:
        nodes = yield Need([root_id])
        assert nodes is not None
        top = nodes[0]
        _check_child(root_id, top, top.level, root.items, root.refs)
        self.dropped.append(root_id)
        if isinstance(top, Leaf):
            yield from self._leaf(top, KEY_END)
            return
        stack = [_Frame(top, b'', KEY_END)]
        while stack:
            frame = stack[-1]
            branch = frame.branch
            if frame.index == len(branch.children):
                stack.pop()
                self.builder.end_branch(branch.level)
                continue
            if self._pass(frame):
                continue
            if self._cut_off(frame):
                yield from self._insert(self._lo(frame))
                continue
            hi = self._hi(frame)
            lo = self._lo(frame)
            child = yield from self._read(frame)
            frame.index += 1
            if isinstance(child, Branch):
                stack.append(_Frame(child, lo, hi))
            else:
                yield from self._leaf(child, hi)

    @staticmethod
    def _lo(frame: _Frame) -> Key:
        """Lower bound of the next child; of what follows the branch, when there is none."""
        if frame.index == 0:
            return frame.lo
        keys = frame.branch.keys
        return keys[frame.index] if frame.index < len(keys) else frame.hi

    @staticmethod
    def _hi(frame: _Frame) -> Key:
        keys = frame.branch.keys
        return keys[frame.index + 1] if frame.index + 1 < len(keys) else frame.hi

    def _next_key(self, lo: Key) -> Key:
        """The first place at or after `lo` that a range or a change concerns; everything before is done."""
        key = self.keys[self.change] if self.change < len(self.keys) else KEY_END
        while self.cut < len(self.cut_los):
            if self.cut_his[self.cut] > lo:
                return min(key, max(lo, self.cut_los[self.cut]))
            self.cut += 1
        return key

    def _covers(self, lo: Key, hi: Key) -> bool:
        """True when the next range deletes all of [lo, hi)."""
        return self.cut < len(self.cut_los) and self.cut_los[self.cut] <= lo and hi <= self.cut_his[self.cut]

    def _pass(self, frame: _Frame) -> bool:
        """Let the children pass that nothing concerns; False when there is none, or it must be read."""
        branch, first = frame.branch, frame.index
        key = self._next_key(self._lo(frame))
        last = len(branch.children) if key >= frame.hi else bisect_right(branch.keys, key, first + 1) - 1
        if last <= first or not self.builder.passable(branch.level - 1):
            return False
        self.builder.pass_children(branch, first, last, frame.lo)
        frame.index = last
        return True

    def _cut_off(self, frame: _Frame) -> bool:
        """Cut off the children that the next range covers; False when there is none."""
        branch, first = frame.branch, frame.index
        if not self._covers(self._lo(frame), self._hi(frame)):
            return False
        hi = self.cut_his[self.cut]
        last = len(branch.children) if hi >= frame.hi else bisect_right(branch.keys, hi, first + 1) - 1
        self.dropped_subtrees += branch.children[first:last]
        frame.index = last
        return True

    def _read(self, frame: _Frame) -> Generator[Need | Built, list[Node] | None, Node]:
        """Return the next child of a branch; read some more that will be needed too, in the same Need."""
        index, branch = frame.index, frame.branch
        id = branch.children[index]
        node = frame.ready.pop(id, None)
        if node is None:
            wanted = self._wanted(frame)
            nodes = yield Need([branch.children[position] for position in wanted])
            assert nodes is not None
            for position, loaded in zip(wanted, nodes, strict=True):
                child = branch.children[position]
                items, refs = branch.child_items[position], branch.child_refs[position]
                _check_child(child, loaded, branch.level - 1, items, refs)
                frame.ready[child] = loaded
            node = frame.ready.pop(id)
        self.dropped.append(id)
        return node

    def _wanted(self, frame: _Frame) -> list[int]:
        """Indexes of the next child and of some after it that changes fall into, up to the next range."""
        keys, index = frame.branch.keys, frame.index
        wanted = [index]
        end = min(frame.hi, self.cut_los[self.cut]) if self.cut < len(self.cut_los) else frame.hi
        change = self.change
        while len(wanted) < limits.TREE_READ_AHEAD_NODES and index + 1 < len(keys):
            change = bisect_left(self.keys, keys[index + 1], change)
            if change == len(self.keys) or self.keys[change] >= end:
                break
            index = bisect_right(keys, self.keys[change], index + 1) - 1
            wanted.append(index)
        return wanted

    # --- items -------------------------------------------------------------------------------------------

    def _insert(self, hi: Key) -> Steps:
        """Put in the changes before `hi` where the old tree has nothing."""
        end = bisect_left(self.keys, hi, self.change)
        while self.change < end:
            open = self.builder.leaves.open
            block = min(end, self.change + limits.TREE_BLOCK_ITEMS)
            added = slice(self.change, block)
            for key, value in zip(self.keys[added], self.values[added], strict=True):
                if value is not None:
                    open.keys.append(key)
                    open.values.append(value)
                    open.size += item_size(key, value)
                    ref = ref_of(key, value)
                    if ref is not None:
                        self.gained.add(ref)
            self.builder.work += block - self.change
            self.change = block
            yield from self._breathe()

    def _breathe(self) -> Steps:
        """Cut nodes from too much open content; pause when this slice has been long enough."""
        if self.builder.leaves.open.size > self.builder.overfull:
            self.builder.settle(0)
        if self.builder.work >= limits.TREE_SLICE_ITEMS:
            yield Built(self.builder.take())

    def _leaf(self, leaf: Leaf, hi: Key) -> Steps:
        """Merge the items of an old leaf with what concerns them, and let its end be a possible cut."""
        keys, values = leaf.keys, leaf.values_with_ids()
        removals = self._removals(keys, hi)
        end = bisect_left(self.keys, hi, self.change)
        blocks = 0
        done = removed = 0
        while self.change < end:
            block = min(end, self.change + limits.TREE_BLOCK_ITEMS)
            done, gone = self._merge(keys, values, done, removals, block)
            removed += gone
            blocks += 1
            if block < end:
                yield from self._breathe()
        open = self.builder.leaves.open
        while removals:
            first, last = removals.pop()
            open.keys += keys[done:first]
            open.values += values[done:first]
            removed += self._remove(keys[first:last], values[first:last])
            done = last
        open.keys += keys[done:]
        open.values += values[done:]
        if blocks > 1 or removed > leaf.plain_bytes // limits.TREE_RECOUNT_SHARE:
            # item_size is never too low, so what is left after subtracting much of it could well be.
            open.recount()
        else:
            open.size += leaf.plain_bytes - removed
        self.builder.work += len(keys)
        self.builder.settle(0)
        yield from self._breathe()

    def _removals(self, keys: Sequence[Key], hi: Key) -> list[tuple[int, int]]:
        """Index pairs of the items in `keys` that ranges delete, the last pair first."""
        found: list[tuple[int, int]] = []
        for cut in range(self.cut, len(self.cut_los)):
            if self.cut_los[cut] >= hi:
                break
            first = bisect_left(keys, self.cut_los[cut])
            last = bisect_left(keys, self.cut_his[cut], first)
            if first < last:
                found.append((first, last))
        found.reverse()
        return found

    def _remove(self, keys: Sequence[Key], values: Sequence[Value]) -> int:
        """Note that these items are gone; return about how many bytes they took."""
        size = 0
        for key, value in zip(keys, values, strict=True):
            size += item_size(key, value)
            ref = ref_of(key, value)
            if ref is not None:
                self.dropped.append(ref)
        return size

    def _merge(
        self,
        keys: Sequence[Key],
        values: Sequence[Value],
        done: int,
        removals: list[tuple[int, int]],
        block: int,
    ) -> tuple[int, int]:
        """Merge changes up to index `block` into the items from `done` on. Return (done, bytes removed).

        Unchanged items go over in slices. Sizes: what is new is added here, the old leaf as a whole later.
        """
        open = self.builder.leaves.open
        out_keys, out_values = open.keys, open.values
        count, removed, added = len(keys), 0, 0
        changes = slice(self.change, block)
        for key, value in zip(self.keys[changes], self.values[changes], strict=True):
            place = bisect_left(keys, key, done)
            while removals and removals[-1][0] <= place:
                first, last = removals.pop()
                out_keys += keys[done:first]
                out_values += values[done:first]
                removed += self._remove(keys[first:last], values[first:last])
                done = last
                place = max(place, done)
            if place > done:
                out_keys += keys[done:place]
                out_values += values[done:place]
                done = place
            if place < count and keys[place] == key:
                old = values[place]
                done += 1
                removed += item_size(key, old)
                ref = ref_of(key, old)
                if ref is not None:
                    self.dropped.append(ref)
            if value is not None:
                out_keys.append(key)
                out_values.append(value)
                added += item_size(key, value)
                ref = ref_of(key, value)
                if ref is not None:
                    self.gained.add(ref)
        open.size += added
        self.builder.work += block - self.change
        self.change = block
        return done, removed

    # --- the right edge ----------------------------------------------------------------------------------

    def _finish(self) -> Steps:
        """Make nodes of all drafts, bottom-up, and set `top`."""
        builder = self.builder
        number = 0
        while True:
            level = builder.level(number)
            if level.open.size:
                if level.open.size < builder.fill and not builder.join(number):
                    small = level.open.size < builder.edge_fill
                    if small and builder.occupied_above(number):
                        yield from self._reopen(number)
                builder.close(number)
            closed, level.closed = level.closed, None
            if not builder.occupied_above(number):
                break
            if closed is not None:
                builder.emit(number, closed)
            number += 1
            yield from self._breathe()
        if closed is None:
            return
        if isinstance(closed, BranchDraft) and len(closed.keys) == 1:
            # A branch with one child is no branch: the child is the top.
            self.top = Entry(closed.keys[0], closed.children[0], closed.child_items[0], closed.child_refs[0])
        else:
            self.top = builder.encode(number, closed)

    def _reopen(self, number: int) -> Steps:
        """Put the node left of what is open on a level in front of it: it hangs at the right edge of the
        nearest higher level that holds anything."""
        builder = self.builder
        above = number + 1
        while not builder.branch_level(above).occupied:
            above += 1
        while above > number:
            level = builder.branch_level(above)
            builder.join(above)
            entry = level.open.pop()
            above -= 1
            if builder.take_back(above, entry.id):
                continue
            nodes = yield Need([entry.id])
            assert nodes is not None
            _check_child(entry.id, nodes[0], above, entry.items, entry.refs)
            self.dropped.append(entry.id)
            builder.level(above).open.prepend(nodes[0], entry.key)


def _check_child(id: bytes, node: Node, level: int, items: int, refs: int) -> None:
    """A node that was read must be what its parent says it is (P10)."""
    if node.level != level:
        raise Corrupt(f'node {id.hex()}: level {node.level} where its parent has {level}')
    if (node.items_below, node.refs_below) != (items, refs):
        raise Corrupt(
            f'node {id.hex()}: {node.items_below} items and {node.refs_below} references, '
            f'its parent says {items} and {refs}'
        )
