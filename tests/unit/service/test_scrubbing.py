"""Scrubs: what they verify, how they go on, and what they do about damage."""

from __future__ import annotations

import fcntl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from snapfs import limits
from snapfs.errors import Held, Latched
from snapfs.format.ids import data_id
from snapfs.rescue.scrub import scrub
from snapfs.rescue.scrub_values import SLOTS, ScrubSpec, slots_of
from snapfs.service.collecting import Collecting
from snapfs.service.scrubbing import Scrubbing, _few_of
from snapfs.store.verified import Coverage
from tests.support.collecting import DAY, collected, forget, noise, remove_file, write_file

FILES = 12
HALF = slots_of(1, 2)

pytestmark = pytest.mark.slow


@pytest.fixture
async def collecting(tmp_path: Path) -> AsyncIterator[Collecting]:
    async with collected(tmp_path / 'store') as made:
        await made.engine.volume_create('home', 0, 0)
        for number in range(FILES):
            await write_file(made.engine, f'file {number}', noise(number, 9_000))
        await made.engine.snapshot_create('home', 'monday', 'ann')
        yield made


def spoil(collecting: Collecting, number: int) -> bytes:
    """Turn a byte of a file's chunk round on the disk; return the chunk's id."""
    id = data_id(noise(number, 9_000))
    store = collecting.engine.store
    location = store.catalog.locate([id])[id]
    name = next(row.name for row in store.catalog.packs() if row.pack == location.pack)
    path = store.path / 'packs' / 'data' / name.hex()[:2] / name.hex()
    data = bytearray(path.read_bytes())
    data[location.offset + 500] ^= 4
    path.write_bytes(data)
    forget(collecting.engine)
    return id


def coverage(collecting: Collecting, name: str = 'monday') -> int:
    row = collecting.engine.snapshot_find('home', name)
    return Coverage(collecting.engine.store.catalog).of(row.epoch).slots


@pytest.mark.parametrize('parts', [1, 2, 7, 30, SLOTS])
def test_the_parts_are_everything_once(parts):
    every = [slot for part in range(1, parts + 1) for slot in slots_of(part, parts)]
    assert every == list(range(SLOTS))


async def test_every_chunk_is_read_and_the_snapshot_says_so(collecting):
    store = collecting.engine.store
    report = await Scrubbing(collecting).run(range(SLOTS), 0)
    assert report['bad'] == 0 and report['slots'] == SLOTS
    assert report['chunks'] == store.catalog.query('SELECT count(*) FROM chunk')[0][0]
    assert coverage(collecting) == SLOTS
    await write_file(collecting.engine, 'later', noise(99))
    await collecting.engine.snapshot_create('home', 'tuesday', 'ann')
    assert coverage(collecting, 'tuesday') == 0, 'what came later was not verified'
    assert coverage(collecting) == SLOTS


async def test_it_goes_on_where_it_stopped(collecting):
    scrubbing = Scrubbing(collecting)
    await scrubbing.run(HALF, 0)
    assert coverage(collecting) == SLOTS // 2
    report = await scrubbing.run(range(SLOTS), 0)
    assert (report['slots'], report['skipped']) == (SLOTS // 2, SLOTS // 2)
    assert (await scrubbing.run(range(SLOTS), 0))['slots'] == 0
    assert (await scrubbing.run(range(SLOTS), 0, again=True))['slots'] == SLOTS
    collecting.world.advance(limits.SCRUB_FRESH_NS / 1e9 + 1)
    assert (await scrubbing.run(range(SLOTS), 0))['slots'] == SLOTS


async def test_a_clock_that_was_ahead_makes_nothing_fresh(collecting):
    scrubbing = Scrubbing(collecting)
    collecting.world.jump(1000 * DAY)
    await scrubbing.run(range(SLOTS), 0)
    collecting.world.jump(-1000 * DAY)
    assert (await scrubbing.run(range(SLOTS), 0))['slots'] == SLOTS


async def test_passes_are_bounded(collecting, monkeypatch):
    monkeypatch.setattr(limits, 'SCRUB_ROWS_MAX', 4)
    told: list[int] = []
    await Scrubbing(collecting).run(range(SLOTS), 0, told=told.append)
    assert len(told) >= 3 and told[-1] == SLOTS
    assert coverage(collecting) == SLOTS


async def test_damage_is_written_down_marks_the_snapshot_and_stops_the_collector(collecting):
    id = spoil(collecting, 3)
    report = await Scrubbing(collecting).run(range(SLOTS), 0)
    assert report['bad'] == 1
    engine = collecting.engine
    assert engine.store.catalog.query('SELECT id, found_by FROM damage') == [(id, 'scrub')]
    assert engine.snapshot_find('home', 'monday').damaged_ns is not None
    assert engine.head('home').row.damaged_ns is not None
    assert id in engine.store.chunks.unreadable, 'nobody shares it'
    latched = collecting.collector.incidents.latched()
    assert latched is not None and 'home@monday' in latched
    with pytest.raises(Latched):
        await collecting.collect()
    for incident in collecting.collector.incidents.listed():
        collecting.collector.incidents.acknowledge(incident.number, 'ann', 'seen')
    with pytest.raises(Held, match='damaged'):  # until it is healed, or the store opened anew
        await collecting.collect()


async def test_only_the_part_that_was_asked_for_is_read(collecting):
    id = spoil(collecting, 3)
    slot = int.from_bytes(id[:2], 'big') >> 4
    others = [one for one in range(SLOTS) if one != slot]
    assert (await Scrubbing(collecting).run(others, 0))['bad'] == 0
    assert (await Scrubbing(collecting).run([slot], 0))['bad'] == 1


async def test_a_pack_that_is_gone_is_damage_of_each_of_its_chunks(collecting):
    store = collecting.engine.store
    number, rows = store.catalog.query('SELECT pack, count(*) FROM chunk WHERE kind = 1 GROUP BY 1 LIMIT 1')[
        0
    ]
    name = next(row.name for row in store.catalog.packs() if row.pack == number)
    (store.path / 'packs' / 'data' / name.hex()[:2] / name.hex()).unlink()
    assert (await Scrubbing(collecting).run(range(SLOTS), 0))['bad'] == rows


async def test_what_moved_or_went_meanwhile_is_no_damage(collecting, monkeypatch):
    """The places that a pass has listed are old when it comes to them."""
    engine = collecting.engine
    for number in range(FILES):
        await remove_file(engine, f'file {number}')
    await engine.snapshot_delete('home', 'monday', 'ann')
    await engine.commit()
    before = Reader_listed(monkeypatch)
    spec = ScrubSpec(engine.store.path, engine.store.superblock.uuid, tuple(range(SLOTS)), 0)
    scrub(spec)
    for _ in range(3):
        await collecting.collect()
        collecting.world.advance(8 * DAY)
    assert before.places, 'something was listed'
    before.old = True
    found = scrub(spec)
    assert found.bad_count == 0
    assert sum(one.chunks for one in found.slots) == len(before.places)


class Reader_listed:
    """Makes a reader list what it listed the first time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from snapfs.rescue.reader import Reader

        self.places: list = []
        self.old = False
        listed = Reader.listed

        def again(reader, slots):
            epoch, found = listed(reader, slots)
            if not self.old:
                self.places = list(found)
            return epoch, list(self.places)

        monkeypatch.setattr(Reader, 'listed', again)


async def test_it_keeps_to_its_rate(collecting):
    store = collecting.engine.store
    spec = ScrubSpec(store.path, store.superblock.uuid, tuple(range(SLOTS)), 10_000)
    before = collecting.world.monotonic()
    found = scrub(spec, world=collecting.world)
    read = sum(one.bytes for one in found.slots)
    assert read > 100_000
    assert collecting.world.monotonic() - before == pytest.approx(read / 10_000, rel=0.05)


async def test_the_schedule_takes_what_is_due_and_can_be_switched_off(collecting):
    from snapfs.collect import configuration

    scrubbing, store = Scrubbing(collecting), collecting.engine.store
    configuration.change(store.catalog, store.audit, 'scrub', '0s', 'ann')
    await scrubbing.tick()
    assert coverage(collecting) == 0
    configuration.change(store.catalog, store.audit, 'scrub', '1d', 'ann')
    for _ in range(int(DAY / limits.SCRUB_TICK_SECONDS)):
        await scrubbing.tick()
        collecting.world.advance(limits.SCRUB_TICK_SECONDS)
    assert coverage(collecting) == SLOTS


async def test_nothing_is_freed_while_somebody_checks_the_store(collecting):
    """fsck, in another process, has a shared lock on the superblock as long as it looks."""
    with open(collecting.engine.store.path / 'superblock', 'rb') as superblock:
        fcntl.flock(superblock, fcntl.LOCK_SH)
        with pytest.raises(Held, match='being checked'):
            await collecting.collect()
    await collecting.collect()


async def test_one_that_has_nothing_to_read_says_why_and_until_when(collecting, capsysbinary):
    from snapfs.cli.scrub import _render

    scrubbing = Scrubbing(collecting)
    first = await scrubbing.run(HALF, 0)
    assert first['due_ns'] is None
    began = collecting.world.time_ns()
    collecting.world.advance(3600)
    _render(await scrubbing.run(range(SLOTS), 0))
    assert b'50 % were verified' in capsysbinary.readouterr().out
    last = await scrubbing.run(range(SLOTS), 0)
    assert (last['slots'], last['skipped'], last['bad']) == (0, SLOTS, 0)
    assert last['due_ns'] == pytest.approx(began + limits.SCRUB_FRESH_NS, abs=10**9), 'the oldest counts'
    _render(last)
    told = capsysbinary.readouterr().out.decode()
    assert 'Nothing was read' in told and 'due again from' in told and 'snapfs scrub --again' in told
    again = await scrubbing.run(range(SLOTS), 0, again=True)
    assert (again['slots'], again['due_ns']) == (SLOTS, None)


def test_names_that_are_left_out_are_counted():
    """A list of five that breaks off says that nobody else is concerned."""
    assert _few_of([f'home@{number}' for number in range(5)]) == 'home@0, home@1, home@2, home@3, home@4'
    assert _few_of([f'home@{number}' for number in range(7)]).endswith('home@4 and 2 more')
