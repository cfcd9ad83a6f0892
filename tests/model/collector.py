"""Model, collector: request to receipt. A table at the end; its order is the life of a batch."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations

from tests.model.machine import Machine, Step, clear_snapshot
from tests.model.state import (
    ALIVE,
    COMMITTING,
    CONDEMNED,
    CONFIRMED,
    COPY,
    DROP_IN,
    DROP_OUT,
    FLIGHT,
    FLIGHT_STEP,
    FREED,
    FREED_EARLY,
    FRESH,
    FROZEN,
    HEAD,
    HORIZON,
    IDLE,
    IN_BATCH,
    JOURNAL,
    KEPT,
    LATCH,
    LEFTOVER,
    LOGGED,
    MEM,
    NONE,
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
    SNAP,
    SNAP_TREE,
    STANDING,
    WALKING,
    Draft,
    State,
    copies_of,
    masks,
    turn,
)
from tests.model.writer import clean, freeze, transact


# --- recount 1 ---------------------------------------------------------------------------------------------
def can_begin(m: Machine, s: State) -> bool:
    return s[PHASE] == IDLE and (s[DROP_OUT] != 0 or REQUESTED in s[SNAP:SNAP_TREE])


def batch_begins(m: Machine, s: State) -> Iterator[Draft]:
    """Any choice of requests; from now on every put is recorded."""
    requests = [n for n in m.snapshots if s[SNAP + n] == REQUESTED]
    if s[DROP_OUT]:
        requests.append(-1)
    for size in range(1, len(requests) + 1):
        for chosen in combinations(requests, size):
            t = Draft(s)
            t[PHASE] = RECORDING
            for n in chosen:
                if n < 0:
                    t[DROP_IN], t[DROP_OUT] = s[DROP_OUT], 0
                else:
                    t[SNAP + n] = IN_BATCH
            yield t


def can_commit_horizon(m: Machine, s: State) -> bool:
    """Flushes and commits that began before the recording have been waited for."""
    if s[PHASE] != RECORDING or s[FROZEN] != NONE:
        return False
    return not m.rules.flushes_drained or not m.data[s[FLIGHT]] & ~s[RECORD]


def horizon_commit(m: Machine, s: State) -> Iterator[Draft]:
    """A commit even of clean heads: it supersedes the journal."""
    t = Draft(s)
    if not m.rules.horizon_supersedes_journal and all(s[MEM + v] == s[HEAD + v] for v in m.volumes):
        t[PHASE] = HORIZON
        yield t
    elif freeze(m, t):
        t[PHASE] = COMMITTING
        if not m.config.nodes:
            transact(m, t)
            t[PHASE] = HORIZON
        yield t


def at_horizon(m: Machine, s: State) -> bool:
    return s[PHASE] == HORIZON


def recount_1_reads_roots(m: Machine, s: State) -> Iterator[Draft]:
    """The root set of one moment; what it reaches is counted while the world goes on."""
    roots = m.roots(s)
    alive = _union(roots)
    pinned = m.pinned(s) if m.rules.pins_are_roots else 0
    others = _union(roots[:-1] if pinned else roots)
    verdicts = {alive}
    if m.rules.recount_1_forgets_id:
        verdicts |= {alive & ~(1 << i) for i in range(4)}
    if m.rules.recount_1_forgets_root:
        verdicts |= {_union(roots[:i] + roots[i + 1 :]) for i in range(len(roots))}
    for verdict in verdicts:
        t = Draft(s)
        t[PHASE], t[ALIVE], t[KEPT] = WALKING, verdict, pinned & ~others
        yield t


def _union(masks_of_roots: list[int]) -> int:
    found = 0
    for one in masks_of_roots:
        found |= one
    return found


def walking(m: Machine, s: State) -> bool:
    return s[PHASE] == WALKING


def plan(m: Machine, s: State) -> Iterator[Draft]:
    """Condemned = candidates - alive - put since recording began."""
    t = Draft(s)
    t[CONDEMNED] = m.candidates(s) & ~s[ALIVE] & ~s[RECORD]
    t[PHASE], t[ALIVE] = PLANNED, 0
    yield t


# --- quarantine and recount 2 ------------------------------------------------------------------------------
def can_quarantine(m: Machine, s: State) -> bool:
    if s[PHASE] != PLANNED:
        return False
    return not m.rules.quarantine_between_puts or s[FLIGHT_STEP] in (0, RETURNED)


def quarantine(m: Machine, s: State) -> Iterator[Draft]:
    """One transaction: subtract what was put, move the rows; what only a put or a pin kept goes back."""
    t = Draft(s)
    condemned = s[CONDEMNED] & ~s[RECORD]
    kept = m.candidates(s) & (s[RECORD] | s[KEPT])
    turn(t, condemned, (ROW,), QUARANTINE)
    if m.rules.kept_goes_back:
        t[DROP_OUT] |= kept
    t[RECORD] = t[KEPT] = 0
    t[CONDEMNED], t[PHASE] = condemned, QUARANTINED
    if not condemned:
        end_batch(m, t)
    yield t


def end_batch(m: Machine, t: Draft) -> None:
    """The batch's requests are fulfilled."""
    for n in m.snapshots:
        if t[SNAP + n] == IN_BATCH:
            clear_snapshot(t, n)
    m.forget(t)


def in_quarantine(m: Machine, s: State) -> bool:
    if s[PHASE] != QUARANTINED:
        return False
    return not m.rules.recount_2_commits_first or (not s[FLIGHT] and clean(m, s))


def recount_2(m: Machine, s: State) -> Iterator[Draft]:
    """Who mentions a condemned id that has no fresh row? A root or a live node: restore all and latch.

    A leftover node: that id leaves the batch. A condemned or freed node does not count.
    """
    if not m.rules.recount_2:
        t = Draft(s)
        t[PHASE] = CONFIRMED
        yield t
        return
    for forgotten in (0, 1, 2, 4, 8) if m.rules.recount_2_forgets else (0,):
        suspects = s[CONDEMNED] & ~masks(s).row & ~forgotten
        t = Draft(s)
        if suspects & (
            mentioned_by_catalog(m, s) | mentioned_by_journal(m, s) | mentioned_by_node(m, s, (ROW,))
        ):
            m.restore(t, s[CONDEMNED])
            m.release(t)
            t[LATCH] = 1
        else:
            leaving = suspects & mentioned_by_node(m, s, (LEFTOVER, FRESH, LOGGED))
            m.restore(t, leaving)
            t[DROP_OUT] |= leaving
            t[CONDEMNED] &= ~leaving
            t[PHASE] = CONFIRMED
            if not t[CONDEMNED]:
                end_batch(m, t)
        yield t


def mentioned_by_catalog(m: Machine, s: State) -> int:
    """Ids in every column that holds ids, except in requests of the batch; and open handles (in memory)."""
    if not m.rules.recount_2_asks_catalog:
        return 0
    found = s[DROP_OUT] | (m.mentioned[s[PIN]] if m.rules.recount_2_asks_pins else 0)
    for v in m.volumes:
        found |= m.mentioned[s[HEAD + v]]
    for n in m.snapshots:
        if s[SNAP + n] == STANDING or s[SNAP + n] == REQUESTED:
            found |= m.mentioned[s[SNAP_TREE + n]]
    return found


def mentioned_by_journal(m: Machine, s: State) -> int:
    """Ids that a replay would bring back, unless the journal itself names a fresh copy."""
    if not m.rules.recount_2_asks_journal:
        return 0
    found = 0
    for v in m.volumes:
        if s[JOURNAL + v] != NONE:
            found |= m.data[s[JOURNAL + v]]
    return found & ~masks(s).durable


def mentioned_by_node(m: Machine, s: State, states: tuple[int, ...]) -> int:
    """Contents named by node records whose own location is in one of `states`."""
    found = 0
    for tree in m.trees:
        for positions in copies_of(m.node[tree]):
            if any(s[at] in states for at in positions):
                found |= m.data[tree]
    return found


def reader_can_meet_quarantine(m: Machine, s: State) -> bool:
    return bool(wrongly_condemned(m, s))


def wrongly_condemned(m: Machine, s: State) -> int:
    """What is in use although quarantine or freed have its only copies: the verdict was wrong (P3)."""
    have = masks(s)
    return m.used(s) & (have.condemned | have.freed) & ~have.visible


def reader_alarm(m: Machine, s: State) -> Iterator[Draft]:
    """The read is served, the whole batch is restored, the collector latches."""
    t = Draft(s)
    have = masks(s)
    m.restore(t, have.condemned | have.freed & ~have.visible, freed=True)
    m.release(t)
    t[LATCH] = 1
    yield t


# --- free --------------------------------------------------------------------------------------------------
def can_write_receipt(m: Machine, s: State) -> bool:
    return s[PHASE] == (CONFIRMED if m.rules.receipt_before_free else FREED_EARLY)


def receipt(m: Machine, s: State) -> Iterator[Draft]:
    """Durable: from here a crash resumes forwards and undelete says no."""
    t = Draft(s)
    if s[PHASE] == FREED_EARLY:
        end_batch(m, t)
    else:
        t[PHASE] = RECEIPTED
    yield t


def can_free(m: Machine, s: State) -> bool:
    return s[PHASE] == (RECEIPTED if m.rules.receipt_before_free else CONFIRMED)


def rows_to_freed(m: Machine, s: State) -> Iterator[Draft]:
    """Rows of quarantine go to freed, the requests of the batch are done."""
    t = Draft(s)
    turn(t, s[CONDEMNED], (QUARANTINE,), FREED)
    if s[PHASE] == RECEIPTED:
        end_batch(m, t)
    else:
        t[PHASE] = FREED_EARLY
    yield t


def has_single_pack_to_go(m: Machine, s: State) -> bool:
    return not m.config.packs and (FREED in s[COPY:] or LEFTOVER in s[COPY:])


def single_pack_unlinked(m: Machine, s: State) -> Iterator[Draft]:
    """Every copy is a pack of its own: gone when freed, or when the index points at another copy."""
    row = masks(s).row
    for i, positions in enumerate(copies_of(15)):
        for at in positions:
            if s[at] == FREED or (s[at] == LEFTOVER and row >> i & 1):
                t = Draft(s)
                t[at] = 0
                yield t


COLLECTOR = (
    Step('batch begins', can_begin, batch_begins),
    Step('horizon commit', can_commit_horizon, horizon_commit),
    Step('recount 1 reads the roots', at_horizon, recount_1_reads_roots),
    Step('plan', walking, plan),
    Step('quarantine', can_quarantine, quarantine),
    Step('recount 2', in_quarantine, recount_2),
    Step('reader meets quarantine', reader_can_meet_quarantine, reader_alarm),
    Step('receipt', can_write_receipt, receipt),
    Step('rows to freed', can_free, rows_to_freed),
    Step('unlink', has_single_pack_to_go, single_pack_unlinked),
)
