"""L6 rescue commands: verification and the way back from damage. Entered into the table of commands.py when
this is imported. Async functions, one event loop; what reads much runs in a worker."""

from __future__ import annotations

from pathlib import Path

from snapfs.errors import Invalid
from snapfs.service.commands import JSON, Call, command, find_snapshot


@command('scrub.run')
async def scrub_run(call: Call, part: int = 1, parts: int = 1, rate: int = 0, again: bool = False) -> JSON:
    """Verify a part of the store; `rate`: bytes a second, 0 = no limit."""
    from snapfs.rescue.scrub_values import SLOTS, slots_of
    from snapfs.service.scrubbing import Scrubbing

    if not 1 <= part <= parts <= SLOTS or rate < 0:
        raise Invalid(f'there is no part {part}/{parts}: 1/1 to {SLOTS}/{SLOTS}')
    return await Scrubbing(call.collecting).run(slots_of(part, parts), rate, again=again)


@command('scrub.status')
async def scrub_status(call: Call) -> JSON:
    """Say how much of the store was verified, since when, and what is known to be lost."""
    catalog = call.engine.store.catalog
    verified = call.engine.coverage().of(0)
    return {
        'verified_percent': verified.percent,
        'verified_ns': verified.since_ns,
        'lost_chunks': catalog.query('SELECT count(*) FROM damage')[0][0],
        'stopped': call.collecting.collector.incidents.latched(),
    }


@command('recover')
async def recover(
    call: Call, snapshot: str, donors: list[str], name: str | None = None,
    verify: bool = False, dry_run: bool = False, known_only: bool = False,
) -> JSON:  # fmt: skip
    """Bring back what a snapshot has lost, or make a sibling without it."""
    from snapfs.service.recovering import Recovering, Wish

    volume, row = find_snapshot(call.engine, snapshot)
    paths = tuple(Path(text) for text in donors)
    if not all(path.is_absolute() for path in paths):
        raise Invalid('directories of donors are named with their whole path')
    wish = Wish(volume, row.name, name, paths, verify, dry_run, call.peer.name, known_only)
    return await Recovering(call.collecting, call.peer.asker).run(wish)
