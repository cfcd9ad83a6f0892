"""P9: when nobody wants anything back any more, all that nothing reaches goes, and its bytes with it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from snapfs.collect.leaks import request_leaks
from snapfs.collect.states import batches
from tests.sim.collect_walker import records_on_disk
from tests.support.collecting import DAY

if TYPE_CHECKING:
    from tests.sim.collect_history import History

WASTE = 0.5
ROUNDS = 6


async def settle(history: History) -> None:
    """Let graces and cycles pass, and look at what is left. Leaks, which only crashes and failures make, go
    when they are asked for."""
    await history.reopen()
    history.configure_to('limit-share', '100%')
    history.configure_to('repack-waste', '50%')
    await _rounds(history)
    left = _unreached(history)
    faultless = history.kind == 'calm'
    assert not (left and faultless), (
        f'{history.note()}: P9: {len(left)} chunks that nothing reaches have rows'
    )
    if left:
        await _ask_for_leaks(history)
        await _rounds(history)
        left = _unreached(history)
        assert not left, f'{history.note()}: P9: {len(left)} leaks have rows after they were asked for'
    _bounded(history, faultless)


async def _rounds(history: History) -> None:
    catalog = history.engine.store.catalog
    for _ in range(ROUNDS):
        history.world.advance(31 * DAY)
        await history.collect()
        await history.approve()
    history.reconcile()
    rows = catalog.query('SELECT number, kind, batch FROM request')
    assert not rows, f'{history.note()}: P9: requests are left: {rows[:5]}; {history.errors[-3:]}'
    resting = batches(catalog, 'PLANNED', 'QUARANTINED', 'CONFIRMED')
    assert not resting, f'{history.note()}: P9: batches are left: {resting[:2]}'
    assert catalog.query('SELECT count(*) FROM quarantine') == [(0,)], f'{history.note()}: P9'


def _unreached(history: History) -> list[bytes]:
    walk = history.walker.walk(history.path)
    return [id for id in walk.rows if id not in walk.live]


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
    whole: dict[bytes, int] = {}
    useful: dict[bytes, int] = {}
    for id, copies in records_on_disk(history.path).items():
        for place, size, sealed in copies:
            live = walk.rows.get(id) == place
            accounted = live or (id, place) in walk.freed
            # A copy that was repacked or written again stays where it was until its pack goes.
            assert accounted or not faultless or id in walk.rows, (
                f'{history.note()}: P9: a record of chunk {id.hex()} has no row and no receipt'
            )
            if sealed:
                whole[place[0]] = whole.get(place[0], 0) + size
                useful[place[0]] = useful.get(place[0], 0) + (size if live else 0)
    for name, size in whole.items():
        waste = 1 - useful[name] / size
        assert waste <= WASTE + 0.05 or not faultless, (
            f'{history.note()}: P9: pack {name.hex()} wastes {waste:.0%}'
        )
