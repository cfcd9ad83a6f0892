"""Model, writer: the steps of writers, commits, snapshots and persons, and the crash. A table at the end."""

from __future__ import annotations

from collections.abc import Iterator

from tests.model.machine import DROPPING, Machine, Step, uncommitted
from tests.model.state import (
    ABSENT,
    COMMITTING,
    CONDEMNED,
    CONFIRMED,
    COPY,
    DROP_OUT,
    FLIGHT,
    FLIGHT_STEP,
    FLIGHT_VOLUME,
    FREED_EARLY,
    FRESH,
    FROZEN,
    GONE,
    HEAD,
    HORIZON,
    IDLE,
    IN_BATCH,
    JOURNAL,
    LEFTOVER,
    LOGGED,
    LOOKED_HIT,
    LOOKED_MISS,
    MEM,
    NONE,
    OPEN,
    ORPHAN,
    PACK,
    PHASE,
    PIN,
    PLANNED,
    RECEIPTED,
    RECORD,
    RECORDED_SINCE,
    REPACK_FROM,
    REPACK_IDS,
    REPACK_TO,
    REQUESTED,
    RETURNED,
    ROW,
    SEALED,
    SNAP,
    SNAP_TREE,
    STANDING,
    Draft,
    State,
    masks,
    turn,
)


# --- put and flush: the content of a file goes into a pack, then its id into the memtable -----------------
def no_flight(m: Machine, s: State) -> bool:
    return not s[FLIGHT]


def put_looks_up(m: Machine, s: State) -> Iterator[Draft]:
    """Record the id, ask the index. Quarantine is not asked."""
    for v in m.volumes:
        for tree in m.trees:
            if s[MEM + v] == tree:
                continue
            t = Draft(s)
            if m.rules.record_before_look_up:
                m.record(t, m.data[tree])
            t[FLIGHT], t[FLIGHT_VOLUME], t[FLIGHT_STEP] = tree, v, m.lookup_kind(t, m.data[tree])
            if m.config.split_put or put_returned(m, t):
                yield t


def put_under_way(m: Machine, s: State) -> bool:
    return s[FLIGHT_STEP] == LOOKED_HIT or s[FLIGHT_STEP] == LOOKED_MISS


def put_returned(m: Machine, t: Draft) -> bool:
    """Second half of a put: append what was missed. False when the model has no room."""
    ids = m.data[t[FLIGHT]]
    if not m.rules.record_before_look_up:
        m.record(t, ids)
    missed = t[FLIGHT_STEP] == LOOKED_MISS
    t[FLIGHT_STEP] = RETURNED
    return not missed or m.append(t, ids)


def put_returns(m: Machine, s: State) -> Iterator[Draft]:
    t = Draft(s)
    if put_returned(m, t):
        yield t


def flush_can_end(m: Machine, s: State) -> bool:
    return s[FLIGHT_STEP] == RETURNED


def flush_ends(m: Machine, s: State) -> Iterator[Draft]:
    """The EXTENT item enters the memtable."""
    t = Draft(s)
    t[MEM + s[FLIGHT_VOLUME]] = s[FLIGHT]
    t[FLIGHT] = t[FLIGHT_VOLUME] = t[FLIGHT_STEP] = 0
    yield t


def any_content(m: Machine, s: State) -> bool:
    return any(s[MEM + v] for v in m.volumes)


def file_removed(m: Machine, s: State) -> Iterator[Draft]:
    for v in m.volumes:
        if s[MEM + v]:
            t = Draft(s)
            t[MEM + v] = 0
            yield t


# --- journal and commit ------------------------------------------------------------------------------------
def fsync_has_news(m: Machine, s: State) -> bool:
    return FRESH in s[COPY:] or any(
        s[MEM + v] != (s[HEAD + v] if s[JOURNAL + v] == NONE else s[JOURNAL + v]) for v in m.volumes
    )


def fsync(m: Machine, s: State) -> Iterator[Draft]:
    """Packs are synced, then one journal record of all volumes: contents, and where their new chunks are."""
    t = Draft(s)
    for v in m.volumes:
        t[JOURNAL + v] = t[MEM + v]
    if s[FROZEN] != NONE:
        t[RECORDED_SINCE] = 1
    named = 3 if m.rules.abandoned_nodes_get_no_row else 15  # contents; a replay builds its nodes anew
    turn(t, named, (FRESH,), LOGGED)
    yield t


def commit_has_news(m: Machine, s: State) -> bool:
    return s[FROZEN] == NONE and (
        any(s[MEM + v] != s[HEAD + v] or s[JOURNAL + v] != NONE for v in m.volumes) or uncommitted(s)
    )


def freeze(m: Machine, t: Draft) -> bool:
    """Freeze the memtables and put the nodes of the new trees. False when the model has no room."""
    for v in m.volumes:
        tree = t[FROZEN + v] = t[MEM + v]
        if tree != t[HEAD + v] and not m.put_many(t, m.node[tree]):
            return False
    return True


def transact(m: Machine, t: Draft) -> None:
    """The commit's one transaction: roots, rows of all chunks put, a request with what was dropped."""
    have = masks(t)
    dropped = reached = held = 0
    for v in m.volumes:
        dropped |= m.reach[t[HEAD + v]] & ~m.reach[t[FROZEN + v]]
        t[HEAD + v] = t[FROZEN + v]
        t[FROZEN + v] = NONE
        reached |= m.reach[t[HEAD + v]]
        held |= m.data[t[MEM + v]]
        if not t[RECORDED_SINCE]:
            t[JOURNAL + v] = NONE
    t[RECORDED_SINCE] = 0
    if t[FLIGHT_STEP] == RETURNED:
        held |= m.data[t[FLIGHT]]
    if m.rules.abandoned_nodes_get_no_row:
        turn(t, 12 & ~reached, (FRESH, LOGGED), LEFTOVER)
        have = masks(t)
    dropped |= have.fresh & ~have.row & ~reached & ~held  # put, and superseded before any root named it
    t[DROP_OUT] |= dropped
    t[ORPHAN] = (t[ORPHAN] | (have.fresh & ~have.row & held)) & ~reached & ~dropped
    turn(t, have.fresh & have.row, (FRESH, LOGGED), LEFTOVER)  # the index has a row already: it stays
    turn(t, have.fresh & ~have.row, (FRESH, LOGGED), ROW)


def commit(m: Machine, s: State) -> Iterator[Draft]:
    """The nodes of a commit are built and put; without nodes, the whole commit."""
    t = Draft(s)
    if freeze(m, t):
        if not m.config.nodes:
            transact(m, t)
        yield t


def commit_under_way(m: Machine, s: State) -> bool:
    return s[FROZEN] != NONE


def commit_transaction(m: Machine, s: State) -> Iterator[Draft]:
    t = Draft(s)
    transact(m, t)
    if t[PHASE] == COMMITTING:
        t[PHASE] = HORIZON
    yield t


# --- snapshots and persons ----------------------------------------------------------------------------------
def clean(m: Machine, s: State) -> bool:
    """Nothing since the last commit: taking a snapshot commits first, here as a step of its own."""
    return s[FROZEN] == NONE and not commit_has_news(m, s)


def snapshot_taken(m: Machine, s: State) -> Iterator[Draft]:
    for n in m.snapshots:
        if s[SNAP + n] == ABSENT:
            for v in m.volumes:
                if s[HEAD + v]:
                    t = Draft(s)
                    t[SNAP + n], t[SNAP_TREE + n] = STANDING, s[HEAD + v]
                    yield t
            return


def some_snapshot(m: Machine, s: State) -> bool:
    return STANDING in s[SNAP:SNAP_TREE]


def deletion_requested(m: Machine, s: State) -> Iterator[Draft]:
    """The row moves to the requests. With pins: also while a handle on the snapshot's view is open."""
    for n in m.snapshots:
        if s[SNAP + n] == STANDING:
            t = Draft(s)
            t[SNAP + n] = REQUESTED
            yield t
            if m.config.pins and not s[PIN]:
                t = Draft(t)
                t[PIN] = s[SNAP_TREE + n]
                yield t


def has_pin(m: Machine, s: State) -> bool:
    return s[PIN] != 0


def handle_closed(m: Machine, s: State) -> Iterator[Draft]:
    t = Draft(s)
    t[PIN] = 0
    yield t


def some_request(m: Machine, s: State) -> bool:
    return REQUESTED in s[SNAP:SNAP_TREE] or IN_BATCH in s[SNAP:SNAP_TREE]


def undelete(m: Machine, s: State) -> Iterator[Draft]:
    """Outside a batch: the row moves back. In one: the plan ends, or the quarantined batch is restored."""
    for n in m.snapshots:
        if s[SNAP + n] not in (REQUESTED, IN_BATCH):
            continue
        t = Draft(s)
        t[SNAP + n] = STANDING
        if s[SNAP + n] == IN_BATCH:
            phase = s[PHASE]
            if phase == RECEIPTED and m.rules.undelete_refused_after_receipt:
                continue
            if phase in DROPPING or phase == FREED_EARLY:
                if m.rules.undelete_restores_batch:
                    m.restore(t, t[CONDEMNED], freed=phase == FREED_EARLY)
                    m.release(t)
            elif phase <= PLANNED and m.rules.undelete_ends_plan:
                m.release(t)
        yield t


def can_roll_back(m: Machine, s: State) -> bool:
    return m.config.rollback and some_snapshot(m, s) and not s[FLIGHT] and clean(m, s)


def rolled_back(m: Machine, s: State) -> Iterator[Draft]:
    """A head gets the root of a snapshot, without any put; into an empty second volume this is a clone."""
    for n in m.snapshots:
        if s[SNAP + n] == STANDING:
            for v in m.volumes:
                if s[HEAD + v] != s[SNAP_TREE + n]:
                    t = Draft(s)
                    t[HEAD + v] = t[MEM + v] = s[SNAP_TREE + n]
                    t[DROP_OUT] |= m.reach[s[HEAD + v]] & ~m.reach[s[SNAP_TREE + n]]
                    yield t


# --- crash -----------------------------------------------------------------------------------------------
def always(m: Machine, s: State) -> bool:
    return True


def crash(m: Machine, s: State) -> Iterator[Draft]:
    """Memory goes; the journal is replayed. Records that no table names are lost, or left over."""
    t = Draft(s)
    for v in m.volumes:
        t[MEM + v] = s[HEAD + v] if s[JOURNAL + v] == NONE else s[JOURNAL + v]
        t[FROZEN + v] = NONE
    t[RECORDED_SINCE] = 0
    t[FLIGHT] = t[FLIGHT_VOLUME] = t[FLIGHT_STEP] = t[PIN] = t[RECORD] = 0
    t[REPACK_FROM] = t[REPACK_TO] = t[REPACK_IDS] = 0
    phase = s[PHASE]
    if IDLE < phase < PLANNED or (phase == PLANNED and m.rules.plan_dies_in_crash):
        m.release(t)
    elif phase == CONFIRMED:
        t[PHASE] = CONFIRMED - 1  # recount 2 is made again
    if m.config.packs:
        for column in range(m.columns):
            if t[PACK + column] == OPEN:
                t[PACK + column] = SEALED
    if m.config.leftovers and FRESH in s[COPY:]:
        left = Draft(t)
        turn(left, 15, (FRESH,), LEFTOVER)
        yield left
    turn(t, 15, (FRESH,), GONE)
    yield t


WRITER = (
    Step('put: look-up', no_flight, put_looks_up),
    Step('put: returns', put_under_way, put_returns),
    Step('flush ends', flush_can_end, flush_ends),
    Step('file removed', any_content, file_removed),
    Step('fsync', fsync_has_news, fsync),
    Step('commit', commit_has_news, commit),
    Step('commit: transaction', commit_under_way, commit_transaction),
    Step('snapshot taken', clean, snapshot_taken),
    Step('deletion requested', some_snapshot, deletion_requested),
    Step('handle closed', has_pin, handle_closed),
    Step('undelete', some_request, undelete),
    Step('rollback or clone', can_roll_back, rolled_back),
    Step('crash', always, crash),
)
