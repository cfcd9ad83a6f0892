"""What histories have found, each as small as it can be."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from snapfs import limits
from snapfs.collect.leaks import request_leaks
from snapfs.collect.mention_values import Mentions
from snapfs.collect.recount_values import RecountSpec
from snapfs.collect.worker import from_json, to_json
from snapfs.format.records import RecordKind
from snapfs.service.collecting import Collecting
from tests.support.collecting import DAY, collected, noise, remove_file, write_file


@pytest.fixture
async def collecting(tmp_path: Path) -> AsyncIterator[Collecting]:
    async with collected(tmp_path / 'store') as made:
        await made.engine.volume_create('home', 0, 0)
        yield made


def test_what_recount_2_says_of_leftovers_survives_the_way() -> None:
    # Its field `bytes` hid the type of those before it: a batch with a leftover could never be confirmed.
    said = Mentions((), 0, (b'\1' * 32,), (b'\2' * 16,), 1, 2, 3, 4, 5, 6, 7, 8, 9)
    assert from_json(Mentions, to_json(said)) == said


async def leaks(collecting: Collecting) -> RecountSpec:
    specs: list[RecountSpec] = []

    def make() -> RecountSpec:
        specs.append(collecting.collector.what_if([], 'leaks'))
        return specs[0]

    found = await collecting.look('leaks', make)
    assert found.condemned == 3
    request_leaks(collecting.engine.store, collecting.collector.batches.files, specs[0], found, 'ann')
    return specs[0]


async def test_leaks_go_when_they_are_asked_for(collecting: Collecting) -> None:
    engine = collecting.engine
    await write_file(engine, 'file', noise(1))
    ids = engine.store.chunks.put_batch(RecordKind.DATA, [noise(n, 5000) for n in (10, 11, 12)])
    await engine.commit()
    await leaks(collecting)
    for _ in range(3):
        await collecting.collect()
        collecting.world.advance(8 * DAY)  # type: ignore[attr-defined]
    assert not engine.store.catalog.locate(ids)
    assert collecting.collector.incidents.latched() is None


async def test_a_batch_that_went_back_while_others_were_freed_is_passed_over(collecting: Collecting) -> None:
    # Two batches are due; while recount 2 of the first runs, a request of the second is taken back.
    engine = collecting.engine
    for n in range(20):
        await write_file(engine, f'keep{n}', noise(n))
    for number in (100, 200):
        await write_file(engine, 'old', noise(number))
        await engine.snapshot_create('home', f's{number}', 'ann')
        await remove_file(engine, 'old')
        await engine.snapshot_delete('home', f's{number}', 'ann')
        await collecting.collect()
    first, second = engine.request_list()
    assert first.batch != second.batch
    collecting.world.advance(8 * DAY)  # type: ignore[attr-defined]
    run = collecting._runner

    async def and_take_back(spec: object, progress: object) -> object:
        collecting._runner = run
        await engine.snapshot_undelete(second.number)
        return await run(spec, progress)

    collecting._runner = and_take_back
    report = await collecting.collect(fresh=False)
    assert first.batch in [row.number for row in report['freed']]
    assert second.batch not in [row.number for row in report['freed']]


async def test_small_packs_are_not_rewritten_for_ever(collecting: Collecting) -> None:
    # Header and footer counted as waste: a pack of little else was rewritten in every sweep, 64 times over.
    engine = collecting.engine
    chunks = engine.store.chunks
    for n in range(3):
        await write_file(engine, f'file{n}', noise(n, 10))
        await engine.commit()
        for row in engine.store.catalog.packs():
            if row.state == 'open':
                chunks.seal_pack(row.kind, row.pack)
        await engine.commit(always=True)
    first = collecting.collector.sweep(lambda: None)
    second = collecting.collector.sweep(lambda: None)
    assert (second.packs, second.moved) == (0, 0), f'{first}, then {second}'


async def test_a_collector_that_is_stopped_leaves_no_half_planted_canary(collecting: Collecting) -> None:
    # Sown and not enrolled, its chunks were leaks: no request reaches them.
    engine = collecting.engine
    with trio.CancelScope() as scope:
        commit = engine.commit

        async def and_stop(*, always: bool = False) -> None:
            scope.cancel()
            await commit(always=always)

        engine.commit = and_stop  # type: ignore[method-assign]
        await collecting.collect()
    engine.commit = commit  # type: ignore[method-assign]
    text = 'SELECT count(*) FROM chunk WHERE plain = ?'
    planted = engine.store.catalog.query(text, (limits.CANARY_CHUNK_BYTES,))
    assert planted == [(limits.CANARY_CHUNKS,)]
    assert engine.store.catalog.query('SELECT count(*) FROM canary') == [(1,)]
