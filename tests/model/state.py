"""Model, state: one state is a string of bytes, one byte a field. Pure constants and small helpers.

Bytes hash and compare quickly and take little room, which is what bounds a search in Python. A step copies
the state into a bytearray, changes fields by name (`t[PHASE] = PLANNED`) and yields it.

A *tree* is what a volume or snapshot holds: 0 is the empty tree, 1 and 2 are files with one content. An
*id* is a bit: the two contents are A and B; the nodes that name them, where there are nodes, are M and N.
"""

from __future__ import annotations

from typing import NamedTuple

State = bytes
Draft = bytearray

# --- fields ----------------------------------------------------------------------------------------------
PHASE = 0  # of the one batch; below
LATCH = 1  # 1: the collector has stopped until a person acknowledges
HEAD = 2  # +volume: tree of the committed root
MEM = 4  # +volume: tree as the memtable has it
JOURNAL = 6  # +volume: tree that a replay would give, or NONE when the journal is superseded
FROZEN = 8  # +volume: tree of a commit under way (nodes built, no transaction yet), or NONE
RECORDED_SINCE = 10  # 1: the journal was written after the freeze, so the commit does not supersede it
FLIGHT = 11  # tree whose content a flush is putting, 0 = none
FLIGHT_VOLUME = 12
FLIGHT_STEP = 13  # LOOKED_HIT, LOOKED_MISS or RETURNED
SNAP = 14  # +snapshot: ABSENT, STANDING, REQUESTED, IN_BATCH
SNAP_TREE = 16  # +snapshot
PIN = 18  # tree of a deleted snapshot that an open handle still reads, 0 = none
DROP_OUT = 19  # ids of requests of kind `dropped` that are in no batch
DROP_IN = 20  # those in the batch
RECORD = 21  # ids put since recording began (in memory)
ALIVE = 22  # WALKING: what recount 1 will say is alive
KEPT = 23  # candidates that only a pin keeps
CONDEMNED = 24  # PLANNED and later: condemned ids
PACK = 25  # +column: pack states in the repack configuration
REPACK_FROM = 28  # column + 1 that a repack copies from, 0 = no repack
REPACK_TO = 29
REPACK_IDS = 30  # ids it found live there
ORPHAN = 31  # ids that got a row while only a flush in flight had them: a crash makes them leaks to report
COPY = 32  # +3 * id + column: copies, below
COLUMNS = 3
IDS = 4
SIZE = COPY + IDS * COLUMNS

NONE = 9  # no journal, no frozen tree

# --- phases of the batch ---------------------------------------------------------------------------------
IDLE = 0
RECORDING = 1  # requests chosen, puts are recorded, flushes in flight are waited for
COMMITTING = 2  # the horizon commit has built its nodes
HORIZON = 3  # the horizon commit is done
WALKING = 4  # recount 1 has read the root set
PLANNED = 5
QUARANTINED = 6
CONFIRMED = 7  # recount 2 found no mention
RECEIPTED = 8  # from here a crash resumes forwards and undelete says no
FREED_EARLY = 9  # only with a rule removed: freed, and the receipt is still to come
PHASES = (
    'IDLE', 'RECORDING', 'COMMITTING', 'HORIZON', 'WALKING',
    'PLANNED', 'QUARANTINED', 'CONFIRMED', 'RECEIPTED', 'FREED_EARLY',
)  # fmt: skip

# --- a flush ---------------------------------------------------------------------------------------------
LOOKED_HIT, LOOKED_MISS, RETURNED = 1, 2, 3

# --- snapshots -------------------------------------------------------------------------------------------
ABSENT, STANDING, REQUESTED, IN_BATCH = 0, 1, 2, 3
SNAPS = ('absent', 'standing', 'requested', 'in batch')

# --- physical copies of an id, each at its own location ---------------------------------------------------
GONE = 0  # no bytes
LEFTOVER = 1  # bytes that no table names
FRESH = 2  # put, known to the memory only
LOGGED = 3  # put and named by the journal: a replay adopts it
ROW = 4  # in table chunk
QUARANTINE = 5  # in table quarantine
FREED = 6  # in table freed: has a receipt
COPIES = ('gone', 'leftover', 'fresh', 'logged', 'chunk', 'quarantine', 'freed')

# --- packs -----------------------------------------------------------------------------------------------
NO_PACK, OPEN, SEALED, RETIRED = 0, 1, 2, 3
PACKS = ('none', 'open', 'sealed', 'retired')


class Masks(NamedTuple):
    """Which ids have a copy of a kind. Bits, one an id."""

    readable: int  # through any table: what a reader can get, alarm or not
    visible: int  # to writers: fresh, logged or in chunk
    row: int
    fresh: int  # fresh or logged
    durable: int  # logged or in chunk
    condemned: int  # in quarantine
    leftover: int  # leftover, fresh or logged: in no table
    freed: int


_masks: dict[bytes, Masks] = {}


def masks(s: State | Draft) -> Masks:
    """The masks of the copies of `s`."""
    key = bytes(s[COPY:SIZE])
    found = _masks.get(key)
    if found is None:
        have = [0] * 7
        for index, copy in enumerate(key):
            bit = 1 << index // COLUMNS
            assert copy != ROW or not have[ROW] & bit, 'an id is the key of table chunk: one row'
            have[copy] |= bit
        _, left, fresh, logged, row, quarantine, freed = have
        found = _masks[key] = Masks(
            fresh | logged | row | quarantine | freed,
            fresh | logged | row,
            row,
            fresh | logged,
            logged | row,
            quarantine,
            left | fresh | logged,
            freed,
        )
    return found


def copies_of(bits: int) -> list[range]:
    """The positions of the copies of each id in `bits`."""
    return [range(COPY + COLUMNS * i, COPY + COLUMNS * (i + 1)) for i in range(IDS) if bits >> i & 1]


def turn(t: Draft, bits: int, old: tuple[int, ...], new: int) -> None:
    """Give every copy of the ids in `bits` that is `old` the state `new`."""
    for positions in copies_of(bits):
        for at in positions:
            if t[at] in old:
                t[at] = new


def sort_copies(t: Draft) -> None:
    """Order the copies of each id: where a copy is a pack of its own, their order means nothing."""
    for at in range(COPY, SIZE, COLUMNS):
        if t[at] < t[at + 1]:
            t[at], t[at + 1] = t[at + 1], t[at]


def id_names(bits: int) -> str:
    """Ids as letters."""
    return ''.join(letter for i, letter in enumerate('ABMN') if bits >> i & 1) or '-'


def describe(old: State | None, new: State) -> str:
    """What changed between two states (or what a first state holds), in words."""
    parts = []
    for at in range(SIZE):
        before = old[at] if old else (NONE if JOURNAL <= at < RECORDED_SINCE else 0)
        if new[at] != before:
            parts.append(_field(at, new[at]))
    return ', '.join(parts)


def _field(at: int, value: int) -> str:
    if at >= COPY:
        i, column = divmod(at - COPY, COLUMNS)
        return f'{"ABMN"[i]}{column + 1}={COPIES[value]}'
    if COPY > at >= PACK and at != ORPHAN:
        name = {REPACK_FROM: 'repack from', REPACK_TO: 'repack to', REPACK_IDS: 'repack ids'}.get(at)
        return f'{name}={value}' if name else f'pack{at - PACK + 1}={PACKS[value]}'
    if at == PHASE:
        return PHASES[value]
    if SNAP <= at < SNAP_TREE:
        return f'snapshot{at - SNAP + 1} {SNAPS[value]}'
    for start, name in ((DROP_OUT, 'dropped'), (DROP_IN, 'dropped in batch'), (RECORD, 'recorded'),
                        (ALIVE, 'alive'), (KEPT, 'kept by pin'), (CONDEMNED, 'condemned')):  # fmt: skip
        if at == start:
            return f'{name}={id_names(value)}'
    for start, name in ((HEAD, 'head'), (MEM, 'memtable'), (JOURNAL, 'journal'), (FROZEN, 'frozen'),
                        (SNAP_TREE, 'snapshot tree ')):  # fmt: skip
        if start <= at < start + 2:
            return f'{name}{at - start + 1}={"none" if value == NONE else value}'
    simple = {
        LATCH: 'latch',
        FLIGHT: 'flight',
        FLIGHT_STEP: 'put step',
        PIN: 'pin',
        ORPHAN: 'orphan if crash',
        RECORDED_SINCE: 'recorded since',
        FLIGHT_VOLUME: 'of volume',
    }
    return f'{simple.get(at, at)}={value}'
