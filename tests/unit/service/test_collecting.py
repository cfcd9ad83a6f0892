"""A deletion from the request to the bytes that come back, and everything that stops it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from snapfs import limits
from snapfs.collect.incidents import Alarm
from snapfs.collect.states import batches
from snapfs.errors import Held, Invalid, Latched
from snapfs.service.collecting import Collecting, Waiting
from snapfs.store import damage
from tests.support.collecting import (
    DAY,
    collected,
    forget,
    noise,
    pack_bytes,
    read_tree,
    remove_file,
    write_file,
)


@pytest.fixture
async def collecting(tmp_path: Path) -> AsyncIterator[Collecting]:
    async with collected(tmp_path / 'store') as made:
        await made.engine.volume_create('home', 0, 0)
        yield made


async def past(collecting: Collecting) -> dict[bytes, bytes]:
    """Files, a snapshot that alone holds half of them, and its deletion; return the files as they were."""
    engine = collecting.engine
    for n in range(10):
        await write_file(engine, f'old{n}', noise(n))
    await engine.snapshot_create('home', 'monday', 'ann')
    view = engine.snapshot_view(engine.snapshot_find('home', 'monday').number)
    was = await read_tree(view)
    for n in range(8):
        await remove_file(engine, f'old{n}')
    for n in range(30):
        await write_file(engine, f'new{n}', noise(100 + n))
    await engine.snapshot_delete('home', 'monday', 'ann')
    await engine.commit()
    return was


def let_time_pass(collecting: Collecting, seconds: float) -> None:
    collecting.world.advance(seconds)  # type: ignore[attr-defined]


def states(collecting: Collecting) -> list[str]:
    return [row.state for row in batches(collecting.engine.store.catalog)]


async def test_space_comes_back_and_nothing_else_goes(collecting: Collecting) -> None:
    engine = collecting.engine
    await past(collecting)
    live = await read_tree(engine.head('home'))
    before = pack_bytes(engine)
    report = await collecting.collect()
    assert [row.state for row in report['quarantined']] == ['QUARANTINED'] * 2
    assert pack_bytes(engine) >= before, 'nothing goes in its grace'
    let_time_pass(collecting, 2 * 3600)
    report = await collecting.collect()
    assert [row.grace_class for row in report['freed']] == ['dropped']
    let_time_pass(collecting, 7 * DAY)
    report = await collecting.collect()
    assert 'kept' in [row.grace_class for row in report['freed']]
    assert pack_bytes(engine) < before - 100_000
    forget(engine)
    assert await read_tree(engine.head('home')) == live
    assert collecting.collector.incidents.latched() is None


async def test_what_is_known_to_be_lost_stops_nothing_and_goes_when_it_is_freed(
    collecting: Collecting,
) -> None:
    """Else health would say for ever that a chunk is lost that nobody has any more."""
    engine = collecting.engine
    await past(collecting)
    store = engine.store
    view = engine.snapshot_view(engine.request_list()[-1].view)
    assert view is not None
    inode = await view.lookup(await view.inode(limits.INO_ROOT), b'old0')
    assert inode is not None
    lost = {extent[2]: 'gone' for extent in await view.extents(inode.ino, 0, inode.size)}
    other = bytes(31) + b'x'  # in no index: it is not freed, and stays known
    damage.record(store.catalog, {**lost, other: 'gone'}, damage.READ, 1)
    store.chunks.unreadable |= {*lost, other}
    for _ in range(2):
        assert engine.health().startswith(f'damaged: {len(lost) + 1} chunks are known to be lost')
        await collecting.collect()
        let_time_pass(collecting, 8 * DAY)
    assert store.chunks.unreadable == {other}
    assert damage.known(store.catalog, {*lost, other}) == {other}
    assert engine.health().startswith('damaged: 1 chunk is known to be lost')


async def test_a_request_is_taken_back_out_of_quarantine(collecting: Collecting) -> None:
    engine = collecting.engine
    was = await past(collecting)
    await collecting.collect()
    (request,) = engine.request_list()
    assert request.batch is not None
    assert engine.snapshot_view(request.view) is None, 'looking at it would be an alarm'
    await engine.snapshot_undelete(request.number)
    forget(engine)
    view = engine.snapshot_view(engine.snapshot_find('home', 'monday').number)
    assert await read_tree(view) == was
    assert collecting.collector.incidents.latched() is None
    let_time_pass(collecting, 30 * DAY)
    await collecting.collect()
    let_time_pass(collecting, 30 * DAY)
    await collecting.collect()
    forget(engine)
    assert await read_tree(view) == was


async def test_once_its_receipt_is_written_it_is_too_late(collecting: Collecting) -> None:
    engine = collecting.engine
    await past(collecting)
    await collecting.collect()
    (request,) = engine.request_list()
    with engine.store.catalog.transaction() as db:
        db.execute(
            "UPDATE batch SET state = 'CONFIRMED', receipt = ? WHERE number = ?", (bytes(32), request.batch)
        )
    with pytest.raises(Held, match='being freed'):
        await engine.snapshot_undelete(request.number)


async def test_reading_what_is_condemned_restores_it_and_stops_the_collector(collecting: Collecting) -> None:
    engine = collecting.engine
    await past(collecting)
    await collecting.collect()
    (id,) = engine.store.catalog.query('SELECT id FROM quarantine WHERE kind = 1 LIMIT 1')[0]
    assert engine.store.chunks.get(id)
    assert 'was read from quarantine' in str(collecting.collector.incidents.latched())
    await collecting._tick()
    assert set(states(collecting)) == {'RESTORED'}
    assert engine.store.catalog.query('SELECT count(*) FROM quarantine') == [(0,)]
    with pytest.raises(Latched, match='stands still'):
        await collecting.collect()
    await write_file(engine, 'still', b'writable')
    await engine.sync()
    (incident,) = collecting.collector.incidents.listed()
    assert 'read.json' in collecting.collector.incidents.show(incident.number).files
    collecting.collector.incidents.acknowledge(incident.number, 'ann', 'looked at it')
    report = await collecting.collect()
    assert len(report['quarantined']) == 2


async def test_a_plan_above_the_limits_waits_for_a_person(collecting: Collecting) -> None:
    engine = collecting.engine
    for n in range(10):
        await write_file(engine, f'old{n}', noise(n))
    await engine.snapshot_create('home', 'monday', 'ann')
    for n in range(10):
        await remove_file(engine, f'old{n}')
    await engine.snapshot_delete('home', 'monday', 'ann')
    report = await collecting.collect()
    waiting = [one for one in report['waiting'] if isinstance(one, Waiting)]
    assert waiting
    assert 'L19' in waiting[0].reasons[0]
    report = await collecting.collect()
    assert report['quarantined'] == [], 'it waits on'
    with pytest.raises(Invalid, match='no plan waits'):
        await collecting.approve(bytes(32), 'bob')
    for one in waiting:
        answer = await collecting.approve(one.plan.digest, 'bob')
        assert answer['what'] == 'limits'
    report = await collecting.collect()
    assert len(report['quarantined']) == len(waiting)
    (row, *_) = report['quarantined']
    assert (await collecting.approve(row.digest, 'bob'))['what'] == 'grace'
    report = await collecting.collect()
    assert [one.number for one in report['freed']] == [row.number]


async def test_taking_back_ends_a_plan_that_waits(collecting: Collecting) -> None:
    engine = collecting.engine
    for n in range(10):
        await write_file(engine, f'old{n}', noise(n))
    await engine.snapshot_create('home', 'monday', 'ann')
    view = engine.snapshot_view(engine.snapshot_find('home', 'monday').number)
    was = await read_tree(view)
    for n in range(10):
        await remove_file(engine, f'old{n}')
    await engine.snapshot_delete('home', 'monday', 'ann')
    await collecting.collect()
    waiting = collecting.waiting['kept']
    (request,) = engine.request_list()
    await engine.snapshot_undelete(request.number)
    assert 'kept' not in collecting.waiting
    with pytest.raises(Invalid, match='no plan waits'):
        await collecting.approve(waiting.plan.digest, 'bob')
    assert waiting.record not in engine.store.chunks._records
    await collecting.collect()
    forget(engine)
    view = engine.snapshot_view(engine.snapshot_find('home', 'monday').number)
    assert await read_tree(view) == was


async def test_what_is_put_while_a_plan_waits_is_not_condemned(collecting: Collecting) -> None:
    engine = collecting.engine
    for n in range(10):
        await write_file(engine, f'old{n}', noise(n))
    await engine.snapshot_create('home', 'monday', 'ann')
    for n in range(10):
        await remove_file(engine, f'old{n}')
    await engine.snapshot_delete('home', 'monday', 'ann')
    await collecting.collect()
    assert collecting.waiting
    await write_file(engine, 'again', noise(3))
    await engine.commit()
    for one in list(collecting.waiting.values()):
        await collecting.approve(one.plan.digest, 'bob')
    await collecting.collect()
    assert set(states(collecting)) == {'QUARANTINED'}
    forget(engine)
    assert (await read_tree(engine.head('home')))[b'again'] == noise(3)
    assert collecting.collector.incidents.latched() is None
    for _ in range(2):
        let_time_pass(collecting, 8 * DAY)
        await collecting.collect()
    forget(engine)
    assert (await read_tree(engine.head('home')))[b'again'] == noise(3)
    assert collecting.collector.incidents.latched() is None


async def test_a_recount_that_sees_a_live_chunk_in_quarantine_is_an_alarm(collecting: Collecting) -> None:
    engine = collecting.engine
    await past(collecting)
    await collecting.collect()
    with engine.store.catalog.transaction() as db:
        db.execute(
            'INSERT INTO quarantine SELECT *, (SELECT max(number) FROM batch) FROM chunk WHERE kind = 1 '
            'AND id NOT IN (SELECT id FROM quarantine) LIMIT 40'
        )
        db.execute('DELETE FROM chunk WHERE id IN (SELECT id FROM quarantine)')
    await write_file(engine, 'more', b'x')
    await engine.snapshot_create('home', 'tuesday', 'ann')
    await engine.snapshot_delete('home', 'tuesday', 'ann')
    with pytest.raises(Alarm):
        await collecting.collect()
    assert 'QUARANTINED' not in states(collecting)
    assert collecting.collector.incidents.latched() is not None


async def test_a_bug_in_bringing_back_ends_no_daemon(
    collecting: Collecting, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The latch falls first; what cannot be brought back (here a row of quarantine that has lost its id) is
    logged, and readers go on (P7)."""
    was = await past(collecting)
    engine = collecting.engine
    await collecting.collect()
    assert 'QUARANTINED' in states(collecting)
    with engine.store.catalog.transaction() as db:
        db.execute("UPDATE quarantine SET id = x'' WHERE id = (SELECT min(id) FROM quarantine)")

    async def fail() -> None:
        raise AssertionError('a bug')

    await collecting._guarded(fail)
    assert collecting.collector.incidents.latched() is not None
    assert 'the collector stands still all the same' in caplog.text
    head = engine.head('home')
    assert head is not None
    now = await read_tree(head)
    assert {name: now[name] for name in (b'old8', b'old9')} == {
        name: was[name] for name in (b'old8', b'old9')
    }
