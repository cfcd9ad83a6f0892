"""Model, machine: tables of one configuration and what several steps need. Pure functions of a state."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from tests.model.rules import Config
from tests.model.state import (
    ABSENT,
    ALIVE,
    COLUMNS,
    CONDEMNED,
    COPY,
    DROP_IN,
    DROP_OUT,
    FLIGHT,
    FLIGHT_STEP,
    FREED,
    FRESH,
    FROZEN,
    GONE,
    HEAD,
    IDLE,
    IN_BATCH,
    JOURNAL,
    KEPT,
    LEFTOVER,
    LOGGED,
    LOOKED_HIT,
    LOOKED_MISS,
    MEM,
    NO_PACK,
    NONE,
    OPEN,
    PACK,
    PHASE,
    PIN,
    PLANNED,
    QUARANTINE,
    QUARANTINED,
    RECEIPTED,
    RECORD,
    RECORDING,
    REQUESTED,
    RETURNED,
    ROW,
    SEALED,
    SNAP,
    SNAP_TREE,
    STANDING,
    Draft,
    State,
    copies_of,
    masks,
    turn,
)

DROPPING = (QUARANTINED, QUARANTINED + 1)  # QUARANTINED, CONFIRMED: undelete restores the batch


class Step(NamedTuple):
    """One line of the table of steps. The guard says whether it can happen, the effect what may come."""

    name: str
    guard: Callable[[Machine, State], bool]
    effect: Callable[[Machine, State], Iterator[Draft]]


class Machine:
    """A configuration with the ids of each tree spelled out."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.rules = config.rules
        second = 1 if config.shared else 2
        self.data = [0, 1, second]  # ids of the contents of each tree
        self.node = [0, 4, 8] if config.nodes else [0, 0, 0]
        self.reach = [d | n for d, n in zip(self.data, self.node, strict=True)]
        # What a catalog row with a root mentions: the top node, or the contents where there are no nodes.
        self.mentioned = self.node if config.nodes else self.data
        self.trees = range(1, config.contents + 1)
        self.volumes = range(config.volumes)
        self.snapshots = range(config.snapshots)
        self.columns = config.columns
        self.start = self._start()

    def _start(self) -> list[State]:
        """Two beginnings: content 1 in a snapshot and no more in the head; and content 1 in the head."""
        starts = []
        for in_head in (False, True):
            t = Draft(COPY + 4 * COLUMNS)
            for v in (0, 1):
                t[JOURNAL + v] = t[FROZEN + v] = NONE
            if in_head:
                t[HEAD] = t[MEM] = 1
            else:
                t[SNAP], t[SNAP_TREE] = STANDING, 1
            for positions in copies_of(self.reach[1]):
                t[positions[0]] = ROW
            if self.config.packs:
                t[PACK] = SEALED
            starts.append(bytes(t))
        return starts

    # --- writers ---------------------------------------------------------------------------------------
    def record(self, t: Draft, ids: int) -> None:
        """Remember a put while a recount is under way; subtracted in the transaction of the quarantine."""
        if self.rules.put_is_recorded and RECORDING <= t[PHASE] <= PLANNED:
            t[RECORD] |= ids

    def hit(self, s: State | Draft, ids: int) -> bool:
        """Whether a put finds `ids` and stores nothing."""
        have = masks(s)
        seen = have.visible if self.rules.writers_blind_to_quarantine else have.visible | have.condemned
        return ids & ~seen == 0

    def append(self, t: Draft, ids: int) -> bool:
        """Store a fresh copy of each of `ids`; False when the model has no room for one more copy."""
        if self.config.packs:
            at = self._open_pack(t)
            if at is None:
                return False
            for positions in copies_of(ids):
                if t[positions[at]] != GONE:
                    return False
                t[positions[at]] = FRESH
            return True
        for positions in copies_of(ids):
            free = [at for at in positions[: self.columns] if t[at] == GONE]
            if not free:
                return False
            t[free[0]] = FRESH
        return True

    def put_many(self, t: Draft, ids: int) -> bool:
        """Record, look up and store each of `ids` in one step."""
        self.record(t, ids)
        missing = 0
        for i in range(4):
            if ids >> i & 1 and not self.hit(t, 1 << i):
                missing |= 1 << i
        return self.append(t, missing)

    def _open_pack(self, t: Draft) -> int | None:
        for column in range(self.columns):
            if t[PACK + column] == OPEN:
                return column
        for column in range(self.columns):
            if t[PACK + column] == NO_PACK:
                t[PACK + column] = OPEN
                return column
        return None

    # --- roots -----------------------------------------------------------------------------------------
    def pinned(self, s: State) -> int:
        return self.reach[s[PIN]]

    def roots(self, s: State) -> list[int]:
        """Reach of each standing root that the registry knows, pins last."""
        rules = self.rules
        found = [self.reach[s[HEAD + v]] for v in self.volumes if s[HEAD + v]]
        for n in self.snapshots:
            kind = s[SNAP + n]
            if kind == STANDING or (kind == REQUESTED and rules.outside_requests_are_roots):
                found.append(self.reach[s[SNAP_TREE + n]])
        if s[DROP_OUT] and rules.outside_requests_are_roots:
            found.append(s[DROP_OUT])
        if s[PIN] and rules.pins_are_roots:
            found.append(self.reach[s[PIN]])
        return found

    def candidates(self, s: State | Draft) -> int:
        """Reach of the batch's requests, as far as the index knows it."""
        found = s[DROP_IN]
        for n in self.snapshots:
            if s[SNAP + n] == IN_BATCH:
                found |= self.reach[s[SNAP_TREE + n]]
        return found & masks(s).row

    def used(self, s: State) -> int:
        """`used_without_requests`, and what requests outside a batch may give back."""
        found = self.used_without_requests(s)
        for n in self.snapshots:
            if s[SNAP + n] == REQUESTED:
                found |= self.reach[s[SNAP_TREE + n]]
        return found

    def used_without_requests(self, s: State) -> int:
        """What heads, memtables, journal, commits, puts that returned, snapshots and pins refer to now."""
        reach = self.reach
        found = reach[s[PIN]]
        for v in self.volumes:
            found |= reach[s[HEAD + v]] | self.data[s[MEM + v]]
            if s[JOURNAL + v] != NONE:
                found |= self.data[s[JOURNAL + v]]
            if s[FROZEN + v] != NONE:
                found |= reach[s[FROZEN + v]]
        for n in self.snapshots:
            if s[SNAP + n] == STANDING:
                found |= reach[s[SNAP_TREE + n]]
        if s[FLIGHT] and s[FLIGHT_STEP] == RETURNED:
            found |= self.data[s[FLIGHT]]
        return found

    def needed(self, s: State) -> int:
        """`used`, and what a person may still take back out of the batch."""
        found = self.used(s)
        if s[PHASE] != RECEIPTED:
            for n in self.snapshots:
                if s[SNAP + n] == IN_BATCH:
                    found |= self.reach[s[SNAP_TREE + n]]
        return found

    # --- the batch -------------------------------------------------------------------------------------
    def release(self, t: Draft) -> None:
        """The batch is no more; its requests are outside again."""
        for n in self.snapshots:
            if t[SNAP + n] == IN_BATCH:
                t[SNAP + n] = REQUESTED
        t[DROP_OUT] |= t[DROP_IN]
        self.forget(t)

    def forget(self, t: Draft) -> None:
        """No batch: what the collector knew of it is void."""
        t[PHASE], t[DROP_IN], t[RECORD], t[ALIVE], t[KEPT], t[CONDEMNED] = IDLE, 0, 0, 0, 0, 0

    def restore(self, t: Draft, ids: int, freed: bool = False) -> None:
        """Give condemned ids back to the index; where a fresh copy exists, it stays the one in use.

        `freed`: also ids that only freed has, whose pack still stands.
        """
        have = masks(t)
        superfluous = ids & (have.row if self.rules.restore_asks_catalog else have.visible)
        turn(t, superfluous, (QUARANTINE,), LEFTOVER)
        turn(t, ids & ~superfluous, (QUARANTINE,), ROW)
        if freed:
            turn(t, ids & ~superfluous & ~masks(t).row, (FREED,), ROW)

    def lookup_kind(self, t: Draft, ids: int) -> int:
        return LOOKED_HIT if self.hit(t, ids) else LOOKED_MISS


def clear_snapshot(t: Draft, n: int) -> None:
    """Forget a snapshot's row."""
    t[SNAP + n], t[SNAP_TREE + n] = ABSENT, 0


def uncommitted(s: State) -> bool:
    """Whether some copy is fresh or logged."""
    return FRESH in s[COPY:] or LOGGED in s[COPY:]
