"""P9: when nobody wants anything back any more, all that nothing reaches goes, and its bytes with it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from snapfs import limits
from snapfs.collect.leaks import request_leaks
from snapfs.collect.states import batches
from snapfs.format.nodes import Leaf, decode_node
from snapfs.format.records import HEADER_BYTES, decode_header, decode_payload
from tests.sim.collect_walker import records_on_disk
from tests.support.collecting import DAY

if TYPE_CHECKING:
    from tests.sim.collect_history import History

WASTE = 0.5
ROUNDS = 6
ASKED = 3  # records that no row stood for become known when their pack is rewritten, and are asked for then


async def settle(history: History) -> None:
    """Let graces and cycles pass, and look at what is left. Leaks, which only crashes and failures make, go
    when they are asked for; what a record that no row stands for mentions stays as long as that record."""
    await history.reopen()
    history.configure_to('limit-share', '100%')
    history.configure_to('repack-waste', '50%')
    faultless = history.kind == 'calm'
    left = await _rounds(history)
    for id in left if faultless else ():
        assert id in _written_twice(history), f'{history.note()}: P9: chunk {id.hex()} is left'
    for _ in range(ASKED):
        if _unreached(history):
            await _ask_for_leaks(history)
            left = await _rounds(history)
    kept = left and _mentioned_by_leftovers(history)
    history.count('kept by leftovers', len(left))
    for id in left:
        assert id in kept, f'{history.note()}: P9: chunk {id.hex()} is left, which nothing reaches'
    _bounded(history, faultless)


async def _rounds(history: History) -> set[bytes]:
    """Collect until nothing is due any more; return what is left of what nothing reaches."""
    catalog = history.engine.store.catalog
    for _ in range(ROUNDS):
        history.world.advance(31 * DAY)
        await history.collect()
        await history.approve()
    history.reconcile()
    rows = catalog.query("SELECT number, kind, batch FROM request WHERE kind != 'returned'")
    assert not rows, f'{history.note()}: P9: requests are left: {rows[:5]}; {history.errors[-3:]}'
    moving = batches(catalog, 'PLANNED', 'CONFIRMED')
    assert not moving, f'{history.note()}: P9: batches are left: {moving[:2]}'
    left = set(_unreached(history))
    for (ids,) in catalog.query('SELECT ids FROM request_part'):
        left |= {ids[n : n + limits.ID_BYTES] for n in range(0, len(ids), limits.ID_BYTES)}
    return left | {id for (id,) in catalog.query('SELECT id FROM quarantine')}


def _unreached(history: History) -> list[bytes]:
    walk = history.walker.walk(history.path)
    return [id for id in walk.rows if id not in walk.live]


def _written_twice(history: History) -> set[bytes]:
    """Return what may have been written anew while it was condemned, before its batch went back: one of the
    two copies has no row any more, and counts as a leak when the other one is freed."""
    found: set[bytes] = set()
    for (number,) in history.engine.store.catalog.query("SELECT number FROM batch WHERE state = 'RESTORED'"):
        path = history.path / 'batches' / str(number) / 'condemned'
        ids = path.read_bytes() if path.exists() else b''
        found |= {ids[n : n + limits.ID_BYTES] for n in range(0, len(ids), limits.ID_BYTES)}
    return found


def _mentioned_by_leftovers(history: History) -> set[bytes]:
    """Return what nodes mention that stand in packs and that nothing reaches."""
    walk = history.walker.walk(history.path)
    found: set[bytes] = set()
    for id, copies in records_on_disk(history.path).items():
        for (name, offset), size, _ in copies:
            path = history.path / 'packs' / 'meta' / name.hex()[:2] / name.hex()
            if id not in walk.live and path.exists():
                record = path.read_bytes()[offset : offset + size]
                node = decode_node(
                    decode_payload(decode_header(record[:HEADER_BYTES]), record[HEADER_BYTES:])
                )
                found.update(node.ref_ids() if isinstance(node, Leaf) else node.children)
    return found


async def _ask_for_leaks(history: History) -> None:
    collecting = history.collecting
    specs = []

    def make() -> object:
        specs.append(collecting.collector.what_if([], 'leaks'))
        return specs[0]

    found = await collecting.look('leaks', make)
    assert not found.alarm, f'{history.note()}: {found.alarm}'
    request_leaks(history.engine.store, collecting.collector.batches.files, specs[0], found, 'ann')
    history.count('leaks', found.condemned)


def _bounded(history: History, faultless: bool) -> None:
    """Every record on the disk is live, or freed in a pack whose waste is bounded."""
    walk = history.walker.walk(history.path)
    twice = _written_twice(history)
    whole: dict[bytes, int] = {}
    useful: dict[bytes, int] = {}
    for id, copies in records_on_disk(history.path).items():
        for place, size, sealed in copies:
            live = walk.rows.get(id) == place
            accounted = live or (id, place) in walk.freed
            # A copy that was repacked or written again stays where it was until its pack goes.
            assert accounted or not faultless or id in walk.rows or id in twice, (
                f'{history.note()}: P9: a record of chunk {id.hex()} has no row and no receipt'
            )
            if sealed:
                kept = live or (id in twice and not accounted)
                whole[place[0]] = whole.get(place[0], 0) + size
                useful[place[0]] = useful.get(place[0], 0) + (size if kept else 0)
    for name, size in whole.items():
        waste = 1 - useful[name] / size
        assert waste <= WASTE + 0.05 or not faultless, (
            f'{history.note()}: P9: pack {name.hex()} wastes {waste:.0%}'
        )
