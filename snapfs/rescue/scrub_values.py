"""L4 scrub values: what a scrub is asked, and what it answers. Pure; any thread. Apart from what reads, so
that the daemon, which only asks, need not load it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from snapfs import limits

SLOTS = limits.SCRUB_SLOTS


@dataclass(frozen=True, slots=True)
class ScrubSpec:
    """Which slots of which store to read. `rate`: bytes a second at most, 0 = no limit."""

    store: Path
    uuid: bytes
    slots: tuple[int, ...]
    rate: int


@dataclass(frozen=True, slots=True)
class Slot:
    """What was read of one slot; `bytes` as stored, record headers included."""

    slot: int
    chunks: int
    bytes: int
    bad: int


@dataclass(frozen=True, slots=True)
class Bad:
    """A chunk whose bytes are missing or wrong, and why."""

    id: bytes
    why: str


@dataclass(frozen=True, slots=True)
class Scrubbed:
    """The result. `epoch`: of the store when the chunks were listed. `bad`: the first SCRUB_BAD_MAX of
    `bad_count`."""

    epoch: int
    slots: tuple[Slot, ...]
    bad: tuple[Bad, ...]
    bad_count: int


def slots_of(part: int, parts: int) -> tuple[int, ...]:
    """Return the slots of the `part`-th of `parts` equal parts, from 1. Together they are all, each once."""
    assert 1 <= part <= parts <= SLOTS
    return tuple(range(SLOTS * (part - 1) // parts, SLOTS * part // parts))
