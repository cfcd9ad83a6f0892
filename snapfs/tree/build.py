"""L3 build: puts new nodes together, left to right, on all levels at once. Synchronous; one apply owns it.

Content of a level arrives in key order: whole nodes of the old tree pass by id, what lies between them is put
together anew. Each level keeps two drafts: `closed`, large enough and waiting only in case its right
neighbour needs a companion, and `open`, still growing. Everything to their left is settled and stands, as an
entry, in a draft one level higher; so at any moment all of the tree left of the work is in these drafts.

Sizes, in encoded bytes, with the target T: a node grows to 2 T, then falls into parts of about T. So
appended and bulk-loaded trees have nodes of about T, and random inserts leave them between T and 2 T. A node
below T / 2 takes its neighbour in; only at the right edge it may stay down to T / 4.
"""

from __future__ import annotations

from typing import Generic, TypeVar

from snapfs import limits
from snapfs.format.ids import node_id
from snapfs.format.nodes import Branch
from snapfs.tree.draft import BranchDraft, Draft, Entry, LeafDraft
from snapfs.tree.root import Key

D = TypeVar('D', LeafDraft, BranchDraft)


class Level(Generic[D]):
    """The right edge of one level: at most one complete draft, then an incomplete one. And the last node
    made, which is not given out before the next one is made: the right edge may need to have it back."""

    __slots__ = ('closed', 'last', 'open')

    def __init__(self, open: D) -> None:
        self.open: D = open
        self.closed: D | None = None
        self.last: tuple[bytes, bytes, D] | None = None  # id, encoded, what was encoded

    @property
    def occupied(self) -> bool:
        """True when a draft of this level holds anything."""
        return self.closed is not None or self.open.size > 0


class Builder:
    """Collects content and makes nodes: `made` are the ids of all, `work` counts items since a take."""

    def __init__(self, target: int) -> None:
        self.target = target
        self.full = 2 * target
        self.overfull = 4 * target
        self.fill = target // 2
        self.edge_fill = target // 4
        self.leaves: Level[LeafDraft] = Level(LeafDraft())
        self.branches: list[Level[BranchDraft]] = []  # level 1 first
        self.nodes: list[tuple[bytes, bytes]] = []
        self.made: set[bytes] = set()
        self.work = 0

    def take(self) -> list[tuple[bytes, bytes]]:
        """Return the nodes that became final since the last call."""
        nodes, self.nodes, self.work = self.nodes, [], 0
        return nodes

    def take_last(self) -> list[tuple[bytes, bytes]]:
        """Return all nodes not yet taken; nothing is made after that."""
        nodes = self.take()
        for number in range(len(self.branches) + 1):
            last = self.level(number).last
            if last is not None:
                nodes.append(last[:2])
        return nodes

    def take_back(self, number: int, id: bytes) -> bool:
        """If the node was made here, put its content in front of what is open on its level, as if it had
        never been made. False when it was not made here."""
        level = self.level(number)
        if level.last is None or level.last[0] != id:
            assert id not in self.made, 'only the last node of a level can come back'
            return False
        draft = level.last[2]
        draft.extend(level.open)  # type: ignore[arg-type]
        level.open = draft
        level.last = None
        self.made.discard(id)
        return True

    def branch_level(self, number: int) -> Level[BranchDraft]:
        """Return level `number` >= 1; it and those below come to exist."""
        while len(self.branches) < number:
            assert len(self.branches) + 1 < limits.TREE_LEVELS_MAX, 'a tree this high has no room on any disk'
            self.branches.append(Level(BranchDraft(len(self.branches) + 1)))
        return self.branches[number - 1]

    def level(self, number: int) -> Level[LeafDraft] | Level[BranchDraft]:
        """Return a level by its number, 0 for leaves."""
        return self.leaves if number == 0 else self.branch_level(number)

    def occupied_above(self, number: int) -> bool:
        """True when a level higher than `number` holds anything: there are nodes to the left."""
        return any(level.occupied for level in self.branches[number:])

    # --- making nodes ------------------------------------------------------------------------------------

    def emit(self, number: int, draft: Draft) -> None:
        """Encode a draft and give its parent level the entry."""
        entry = self.encode(number, draft)
        above = self.branch_level(number + 1)
        above.open.append(entry)
        if above.open.size > self.overfull:
            self.settle(number + 1)

    def encode(self, number: int, draft: Draft) -> Entry:
        """Make the node of a draft."""
        items, refs, plain = draft.encode()
        assert len(plain) <= limits.NODE_BYTES_MAX, f'a node of {len(plain)} bytes'
        id = node_id(plain)
        level = self.level(number)
        if level.last is not None:
            self.nodes.append(level.last[:2])
        level.last = (id, plain, draft)  # type: ignore[assignment]
        self.made.add(id)
        self.work += len(draft.keys)
        return Entry(draft.keys[0], id, items, refs)

    def settle(self, number: int) -> None:
        """Close what is open on a level when it is large enough."""
        if self.level(number).open.size >= self.fill:
            self.close(number)

    def close(self, number: int) -> None:
        """Close what is open on a level, whatever its size; it falls into parts when it is too large."""
        if number == 0:
            parts: list[Draft] = list(self._close(self.leaves, LeafDraft()))
        else:
            parts = list(self._close(self.branch_level(number), BranchDraft(number)))
        for part in parts:
            self.emit(number, part)

    def _close(self, level: Level[D], empty: D) -> list[D]:
        """The last part becomes `closed`; return what stands left of it."""
        done: list[D] = [] if level.closed is None else [level.closed]
        draft, level.open = level.open, empty
        if draft.size > self.full and len(draft.keys) > 1:
            parts: list[D] = draft.divide(self.target)
            done += parts[:-1]
            draft = parts[-1]
        level.closed = draft
        return done

    def join(self, number: int) -> bool:
        """Take `closed` back in front of what is open; False when nothing is closed."""
        level = self.level(number)
        if level.closed is None:
            return False
        closed, level.closed = level.closed, None
        closed.extend(level.open)  # type: ignore[arg-type]
        level.open = closed
        return True

    def end_branch(self, number: int) -> None:
        """An old branch of level `number` ends here: let a new one end too, if it may. Without that, entries
        would wander from branch to branch and change more nodes than necessary."""
        for below in range(number):
            level = self.level(below)
            if level.open.size:
                break
            closed, level.closed = level.closed, None
            if closed is not None:
                self.emit(below, closed)
        self.settle(number)

    # --- whole nodes of the old tree ---------------------------------------------------------------------

    def passable(self, number: int) -> bool:
        """True when an old node of level `number` can follow as it is, that is, when nothing at its level or
        lower would be left of it and too small to be a node."""
        incoming = False
        for below in range(number + 1):
            level = self.level(below)
            size = level.open.size + (limits.BRANCH_ENTRY_BYTES if incoming else 0)
            if 0 < size < self.fill and level.closed is None:
                return False
            incoming = size > 0 or level.closed is not None
        return True

    def pass_children(self, branch: Branch, first: int, last: int, lo: Key) -> None:
        """Let the children first..last-1 of an old branch with lower bound `lo` follow as they are.

        Call only when passable(branch.level - 1)."""
        self._drain(branch.level - 1)
        self.branch_level(branch.level).open.append_slice(branch, first, last, lo)

    def _drain(self, number: int) -> None:
        for below in range(number + 1):
            level = self.level(below)
            if 0 < level.open.size < self.fill:
                self.join(below)
            self.settle(below)
            assert level.open.size == 0
            closed, level.closed = level.closed, None
            if closed is not None:
                self.emit(below, closed)
