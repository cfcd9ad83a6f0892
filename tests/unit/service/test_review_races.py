"""People, interruptions and full disks in the middle of the collector's steps."""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from snapfs import limits
from snapfs.collect.mention_values import MentionSpec
from snapfs.collect.proof_values import ProofSpec
from snapfs.collect.states import batches
from snapfs.errors import Corrupt, Held, Refused, SnapfsError, Unavailable
from snapfs.service.collecting import Collecting, Waiting
from tests.support.collecting import (
    DAY,
    collected,
    forget,
    noise,
    read_tree,
    remove_file,
    write_file,
)


@pytest.fixture
async def collecting(tmp_path: Path) -> AsyncIterator[Collecting]:
    async with collected(tmp_path / 'store') as made:
        await made.engine.volume_create('home', 0, 0)
        yield made


def states(collecting: Collecting) -> list[str]:
    return [row.state for row in batches(collecting.engine.store.catalog)]


def let_time_pass(collecting: Collecting, seconds: float) -> None:
    collecting.world.advance(seconds)  # type: ignore[attr-defined]


async def two_snapshots(collecting: Collecting) -> None:
    """Two deleted snapshots, each with files of its own, beside much that stays."""
    engine = collecting.engine
    for n in range(40):
        await write_file(engine, f'stays{n}', noise(1000 + n))
    for name in ('monday', 'tuesday'):
        for n in range(3):
            await write_file(engine, f'{name}{n}', noise(hash_of(name) + n))
        await engine.snapshot_create('home', name, 'ann')
        for n in range(3):
            await remove_file(engine, f'{name}{n}')
    await engine.commit()
    await collecting.collect()  # what the commits dropped is in a batch of its own, or kept by a snapshot
    for name in ('monday', 'tuesday'):
        await engine.snapshot_delete('home', name, 'ann')


def hash_of(name: str) -> int:
    return sum(name.encode()) * 100


class Gate:
    """Stops the collector in front of a step, until the test has done something else."""

    def __init__(self, collecting: Collecting, name: str, after: bool = False) -> None:
        self.reached, self.open = trio.Event(), trio.Event()
        self._thread, self._name, self._after = collecting._thread, name, after
        collecting._thread = self.thread  # type: ignore[assignment, method-assign]

    async def thread(self, function: Callable[..., Any], *arguments: Any) -> Any:
        if getattr(function, '__name__', '') != self._name or self.reached.is_set():
            return await self._thread(function, *arguments)
        result = await self._thread(function, *arguments) if self._after else None
        self.reached.set()
        await self.open.wait()
        return result if self._after else await self._thread(function, *arguments)


# --- plans that wait -------------------------------------------------------------------------------------
async def a_waiting_plan(collecting: Collecting) -> Waiting:
    engine = collecting.engine
    for n in range(10):
        await write_file(engine, f'old{n}', noise(n))
    await engine.snapshot_create('home', 'monday', 'ann')
    for n in range(10):
        await remove_file(engine, f'old{n}')
    await engine.snapshot_delete('home', 'monday', 'ann')
    await collecting.collect()
    return collecting.waiting['kept']


async def test_a_request_taken_back_while_its_waiting_plan_is_looked_at_ends_the_plan(
    collecting: Collecting,
) -> None:
    waiting = await a_waiting_plan(collecting)
    (request,) = collecting.engine.request_list()
    gate = Gate(collecting, 'reasons')

    async def collect() -> None:
        with pytest.raises(Held, match='taken back'):
            await collecting.collect()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(collect)
        await gate.reached.wait()
        await collecting.engine.snapshot_undelete(request.number)
        gate.open.set()
    assert 'kept' not in collecting.waiting, 'nothing of it can be carried out any more'
    assert waiting.record not in collecting.engine.store.chunks._records


async def test_a_waiting_plan_that_cannot_be_looked_at_now_waits_on(
    collecting: Collecting, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting = await a_waiting_plan(collecting)

    def unreadable(plan: object) -> list[str]:
        raise Corrupt('the last plan cannot be read')

    with monkeypatch.context() as patched:
        patched.setattr(collecting.collector, 'reasons', unreadable)
        with pytest.raises(Corrupt):
            await collecting.collect()
    held = [one.record for one in collecting.waiting.values()]
    assert list(collecting.engine.store.chunks._records) == held, 'puts are noted for nobody'
    assert collecting.waiting.get('kept') is waiting
    await collecting.approve(waiting.plan.digest, 'bob')
    assert len((await collecting.collect())['quarantined']) >= 1


# --- moves that end in the middle ------------------------------------------------------------------------
async def test_what_else_was_in_a_batch_can_be_looked_at_again_when_it_was_interrupted(
    collecting: Collecting, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = collecting.engine
    await two_snapshots(collecting)
    monkeypatch.setattr(limits, 'QUARANTINE_SLICE_ROWS', 2)
    gate = Gate(collecting, 'next')
    monday, tuesday = engine.request_list()
    outcome: list[SnapfsError] = []

    async def collect() -> None:
        try:
            await collecting.collect()
        except SnapfsError as error:
            outcome.append(error)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(collect)
        await gate.reached.wait()
        nursery.start_soon(engine.snapshot_undelete, monday.number)
        await trio.testing.wait_all_tasks_blocked()
        gate.open.set()
    assert isinstance(outcome[0], Held)
    (left,) = engine.request_list()
    assert left.number == tuesday.number
    assert left.batch is None, 'the batch went back'
    view = engine.snapshot_view(left.view)
    assert view is not None
    assert (await read_tree(view))[b'tuesday1'] == noise(hash_of('tuesday') + 1)
    assert collecting.collector.incidents.latched() is None


async def test_a_batch_that_could_not_be_given_up_at_once_stops_no_later_one(
    collecting: Collecting, monkeypatch: pytest.MonkeyPatch
) -> None:
    await two_snapshots(collecting)

    def full(*arguments: object) -> None:
        raise Refused(errno.ENOSPC, 'catalog: no space left on the disk below')

    with monkeypatch.context() as patched:
        patched.setattr(collecting.collector.batches, 'finish_quarantine', full)
        patched.setattr(collecting.collector.batches, 'restore_begin', full)
        with pytest.raises(Refused):
            await collecting.collect()
    assert states(collecting)[-1] == 'PLANNED'
    report = await collecting.collect()
    assert len(report['quarantined']) == 1
    assert states(collecting)[-2:] == ['RESTORED', 'QUARANTINED']


async def test_an_undelete_that_the_full_disk_broke_off_stops_no_later_batch(
    collecting: Collecting, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = collecting.engine
    await two_snapshots(collecting)
    await collecting.collect()
    request = engine.request_list()[0]

    def full(*arguments: object) -> None:
        raise Refused(errno.ENOSPC, 'catalog: no space left on the disk below')

    with monkeypatch.context() as patched:
        patched.setattr(collecting.collector.batches, 'restore_slice', full)
        with pytest.raises(Refused):
            await engine.snapshot_undelete(request.number)
    for n in range(5):
        await remove_file(engine, f'stays{n}')
    let_time_pass(collecting, 2 * 3600)
    await collecting.collect()
    rows = batches(engine.store.catalog)
    assert not any(row.restoring for row in rows), 'it went on by itself'


async def test_two_requests_of_one_batch_are_taken_back_at_once(
    collecting: Collecting, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = collecting.engine
    await two_snapshots(collecting)
    await collecting.collect()
    monkeypatch.setattr(limits, 'BATCH_SLICE_ROWS_MAX', 2)
    work = collecting.collector.batches
    (number,) = {one.batch for one in engine.request_list()}
    slices = work.restore_slice
    calls = []

    def other_first(*arguments: Any) -> bytes | None:
        calls.append(arguments)
        if len(calls) == 2:  # somebody else's restore, in another thread, comes to its end now
            work.restore(number, 'another request was taken back')
        return slices(*arguments)

    monkeypatch.setattr(work, 'restore_slice', other_first)
    assert work.restore(number, 'a request was taken back').state == 'RESTORED'
    assert len(calls) > 2


@pytest.mark.parametrize('step', ['plan', 'begin'])
async def test_what_somebody_opens_while_its_batch_is_planned_stays(tmp_path: Path, step: str) -> None:
    async with collected(tmp_path / 'store') as collecting:
        await collecting.engine.volume_create('home', 0, 0)
        await two_snapshots(collecting)
        monday = collecting.engine.request_list()[0]
        opened: set[int] = set()
        collecting.pinned = lambda: frozenset(opened)
        gate = Gate(collecting, step, after=True)
        outcome: list[SnapfsError] = []

        async def collect() -> None:
            try:
                await collecting.collect()
            except SnapfsError as error:
                outcome.append(error)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(collect)
            await gate.reached.wait()
            opened.add(monday.view)
            gate.open.set()
        assert isinstance(outcome[0], Held), 'what is open is not condemned'
        assert {one.batch for one in collecting.engine.request_list()} == {None}
        view = collecting.engine.snapshot_view(monday.view)
        assert view is not None
        forget(collecting.engine)
        assert (await read_tree(view))[b'monday1'] == noise(hash_of('monday') + 1)
        assert collecting.collector.incidents.latched() is None
        report = await collecting.collect()
        assert {row.batch for row in collecting.engine.request_list() if row.number != monday.number} != {
            None
        }, 'the others need not wait for it'
        assert report['quarantined']


async def test_a_batch_that_goes_back_while_recount_2_runs_is_no_bug(collecting: Collecting) -> None:
    """An undelete that was under way when the batch was found due: nobody ended its move."""
    await two_snapshots(collecting)
    await collecting.collect()
    let_time_pass(collecting, 8 * DAY)
    runner, number = collecting._runner, collecting.engine.request_list()[0].batch
    assert number is not None

    async def run(spec: Any, progress: Any) -> Any:
        result = await runner(spec, progress)
        if isinstance(spec, MentionSpec) and spec.batch == number:
            collecting.collector.batches.restore(number, 'a request was taken back')
        return result

    collecting._runner = run
    await collecting._guarded(lambda: collecting.collect(fresh=False))
    assert states(collecting)[number - 1] == 'RESTORED'
    assert collecting.collector.incidents.latched() is None


# --- the proof -------------------------------------------------------------------------------------------
def count_proofs(collecting: Collecting) -> list[str]:
    """Note, of each proof that ran to its end, how many chunks of its batch were freed by then."""
    runner, seen = collecting._runner, []

    async def run(spec: Any, progress: Any) -> Any:
        if isinstance(spec, ProofSpec):
            rows = [row for row in batches(collecting.engine.store.catalog) if row.number == spec.batch]
            seen.append('whole' if rows[0].freed == rows[0].chunks else 'slice')
        return await runner(spec, progress)

    collecting._runner = run
    return seen


async def break_off(collecting: Collecting, at: str) -> None:
    """Collect; the proof `at` ('slice' or 'whole') is interrupted."""
    runner = collecting._runner
    seen = []

    async def run(spec: Any, progress: Any) -> Any:
        if isinstance(spec, ProofSpec):
            rows = [row for row in batches(collecting.engine.store.catalog) if row.number == spec.batch]
            if ('whole' if rows[0].freed == rows[0].chunks else 'slice') == at:
                seen.append(spec)
                raise Unavailable('the process of a proof ended')
        return await runner(spec, progress)

    collecting._runner = run
    with pytest.raises(Unavailable):
        await collecting.collect(fresh=False)
    collecting._runner = runner
    assert seen


async def test_a_canary_slice_whose_proof_was_interrupted_is_proved_before_the_rest_goes(
    collecting: Collecting,
) -> None:
    """L11: whoever comes back after a crash must not take the slice for proved."""
    await two_snapshots(collecting)
    await collecting.collect()
    let_time_pass(collecting, 2 * 3600)
    await collecting.collect(fresh=False)
    let_time_pass(collecting, 8 * DAY)
    await break_off(collecting, 'slice')
    (row,) = batches(collecting.engine.store.catalog, 'CONFIRMED')
    assert 0 < row.freed < row.chunks
    seen = count_proofs(collecting)
    await collecting.collect(fresh=False)
    assert seen[0] == 'slice'


async def test_a_batch_whose_last_proof_was_interrupted_gets_its_certificate_later(
    collecting: Collecting,
) -> None:
    await two_snapshots(collecting)
    await collecting.collect()
    let_time_pass(collecting, 2 * 3600)
    await collecting.collect(fresh=False)
    let_time_pass(collecting, 8 * DAY)
    await break_off(collecting, 'whole')
    (*_, row) = batches(collecting.engine.store.catalog, 'FREED')
    await collecting.collect(fresh=False)
    certified = {
        number
        for (number,) in collecting.engine.store.catalog.query(
            "SELECT batch FROM receipt WHERE kind = 'certificate'"
        )
    }
    assert row.number in certified, 'L13: after every batch'
