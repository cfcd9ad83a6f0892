"""L4 mention values: what recount 2 is asked, and what it answers. Pure; any thread.

Apart from the recount, so that the daemon, which only asks, need not load what counts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class MentionSpec:
    """What recount 2 is to look at. Reads only; STORE/batches/BATCH/condemned and the table quarantine say
    what for.

    `horizon`: the epoch of the commit that was made for this recount; an older catalog is Corrupt.
    `control`: ids that somebody certainly mentions; a recount that does not find each of them is blind,
    hence Corrupt. `writers`: a daemon writes meanwhile, so that there may be packs on disk which the
    catalog does not have yet. They are read as far as they go and told in `Mentions.strangers`; the caller
    must know each of them as its own."""

    store: Path
    uuid: bytes
    batch: int
    horizon: int
    control: tuple[bytes, ...] = ()
    writers: bool = False


@dataclass(frozen=True, slots=True)
class Mention:
    """Who needs a condemned chunk: `by` is the mentioning node (hexadecimal) or row, `how` the rest of the
    story."""

    id: bytes
    by: str
    how: str


@dataclass(frozen=True, slots=True)
class Mentions:
    """What recount 2 saw: counts of records, items, references and bytes read, and its verdict.

    `live`: the first MENTIONS_SHOWN_MAX live mentions of `live_count`; any of them means that recount 1
    was wrong. `leftovers`: condemned ids, ascending, that must leave the batch. `condemned`: how many ids
    were looked for: the rows that quarantine had for the batch."""

    live: tuple[Mention, ...]
    live_count: int
    leftovers: tuple[bytes, ...]
    strangers: tuple[bytes, ...]
    condemned: int
    epoch: int
    packs: int
    records: int
    items: int
    references: int
    rows: int
    journal_ids: int
    bytes: int
