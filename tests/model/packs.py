"""Model, packs: copies that share packs. A table at the end.

A pack is a column of the copies; it is sealed, repacked, retired and unlinked as a whole.
"""

from __future__ import annotations

from collections.abc import Iterator

from tests.model.machine import Machine, Step
from tests.model.state import (
    COLUMNS,
    COPY,
    FREED,
    FRESH,
    GONE,
    IDS,
    LEFTOVER,
    LOGGED,
    NO_PACK,
    OPEN,
    PACK,
    QUARANTINE,
    REPACK_FROM,
    REPACK_IDS,
    REPACK_TO,
    RETIRED,
    ROW,
    SEALED,
    SIZE,
    Draft,
    State,
    masks,
)


def column_of(s: State | Draft, column: int) -> bytes | bytearray:
    """The records of a pack, one an id."""
    return s[COPY + column : SIZE : COLUMNS]


def has_open(m: Machine, s: State) -> bool:
    return OPEN in s[PACK : PACK + COLUMNS]


def has_sealed(m: Machine, s: State) -> bool:
    return SEALED in s[PACK : PACK + COLUMNS]


def has_retired(m: Machine, s: State) -> bool:
    return RETIRED in s[PACK : PACK + COLUMNS]


def pack_sealed(m: Machine, s: State) -> Iterator[Draft]:
    for column in range(m.columns):
        if s[PACK + column] == OPEN and any(column_of(s, column)):
            t = Draft(s)
            t[PACK + column] = SEALED
            yield t


def pack_retired(m: Machine, s: State) -> Iterator[Draft]:
    """A sealed pack in which the catalog has no live or quarantined record, and the memory no put."""
    for column in range(m.columns):
        if s[PACK + column] != SEALED:
            continue
        records = column_of(s, column)
        if m.rules.retire_asks_catalog and (ROW in records or QUARANTINE in records):
            continue
        if m.rules.fresh_packs_stand and (FRESH in records or LOGGED in records):
            continue
        if m.rules.repack_target_stands and s[REPACK_TO] == column + 1:
            continue
        t = Draft(s)
        t[PACK + column] = RETIRED
        yield t


def pack_unlinked(m: Machine, s: State) -> Iterator[Draft]:
    """The last look, and the unlink in the same breath."""
    for column in range(m.columns):
        if s[PACK + column] == RETIRED and (not m.rules.last_look or passes_last_look(m, s, column)):
            t = Draft(s)
            t[PACK + column] = NO_PACK
            for i in range(IDS):
                t[COPY + COLUMNS * i + column] = GONE
            yield t


def passes_last_look(m: Machine, s: State, column: int) -> bool:
    """Each record has a receipt for this location, or a copy elsewhere that counts."""
    for i, record in enumerate(column_of(s, column)):
        if record in (GONE, FREED):
            continue
        copies = s[COPY + COLUMNS * i : COPY + COLUMNS * (i + 1)]
        others = [copy for at, copy in enumerate(copies) if at != column]
        if ROW in others:
            continue
        leak = record == LEFTOVER and LEFTOVER in others and not masks(s).readable >> i & 1
        if leak or (not m.rules.last_look_counts_rows and any(others)):
            continue
        return False
    return True


def can_repack(m: Machine, s: State) -> bool:
    return not s[REPACK_FROM] and SEALED in s[PACK : PACK + COLUMNS] and NO_PACK in s[PACK : PACK + m.columns]


def repack_copies(m: Machine, s: State) -> Iterator[Draft]:
    """Live records and leaks of a wasteful pack are copied to a new pack, synced; no row changes yet."""
    target = s[PACK : PACK + m.columns].index(NO_PACK)
    for column in range(m.columns):
        if s[PACK + column] != SEALED:
            continue
        records = column_of(s, column)
        if ROW not in records and LEFTOVER not in records:
            continue
        t = Draft(s)
        t[REPACK_FROM], t[REPACK_TO], t[PACK + target] = column + 1, target + 1, SEALED
        for i, record in enumerate(records):
            if record == ROW or (record == LEFTOVER and not masks(s).readable >> i & 1):
                t[COPY + COLUMNS * i + target] = LEFTOVER
            if record == ROW:
                t[REPACK_IDS] |= 1 << i
        yield t


def repacking(m: Machine, s: State) -> bool:
    return s[REPACK_FROM] != 0


def repack_repoints(m: Machine, s: State) -> Iterator[Draft]:
    """One transaction: each row that still says the old location says the new one."""
    t = Draft(s)
    source, target = s[REPACK_FROM] - 1, s[REPACK_TO] - 1
    for i in range(IDS):
        if not s[REPACK_IDS] >> i & 1:
            continue
        base = COPY + COLUMNS * i
        if s[base + source] == ROW:
            t[base + source], t[base + target] = LEFTOVER, ROW if s[base + target] else GONE
        elif not m.rules.repoint_if_row_unchanged:
            for at in range(base, base + COLUMNS):
                if t[at] == ROW:
                    t[at] = LEFTOVER
            t[base + target] = ROW if s[base + target] else GONE
    t[REPACK_FROM] = t[REPACK_TO] = t[REPACK_IDS] = 0
    yield t


PACKING = (
    Step('pack sealed', has_open, pack_sealed),
    Step('pack retired', has_sealed, pack_retired),
    Step('last look and unlink', has_retired, pack_unlinked),
    Step('repack copies', can_repack, repack_copies),
    Step('repack repoints', repacking, repack_repoints),
)
