"""What a crash left behind goes only when somebody asks, and only what was found is asked for."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from snapfs.collect.incidents import Alarm
from snapfs.collect.leaks import request_leaks, rowless
from snapfs.collect.recount import recount
from snapfs.collect.recount_values import CONDEMNED_FILE, Recount, RecountSpec
from snapfs.errors import Corrupt, Invalid
from snapfs.format.records import RecordKind
from snapfs.service.collecting import Collecting
from snapfs.service.planting import plant
from tests.support.collecting import collected, noise, remove_file, write_file


@pytest.fixture
async def collecting(tmp_path: Path) -> AsyncIterator[Collecting]:
    async with collected(tmp_path / 'store') as made:
        await made.engine.volume_create('home', 0, 0)
        await write_file(made.engine, 'f', noise(1))
        yield made


async def leaked(collecting: Collecting, count: int) -> tuple[RecountSpec, Recount]:
    engine = collecting.engine
    await plant(collecting.engine, collecting.world)
    if count:
        engine.store.chunks.put_batch(RecordKind.DATA, [noise(1000 + n, 1000) for n in range(count)])
    await engine.commit(always=True)
    spec = collecting.collector.what_if([], 'leaks')
    return spec, recount(spec)


async def test_the_request_names_what_was_found(collecting: Collecting) -> None:
    store = collecting.engine.store
    spec, found = await leaked(collecting, 2500)  # more than one part holds
    assert found.condemned == 2500
    number = request_leaks(store, collecting.collector.batches.files, spec, found, 'ann\udcff')
    (row,) = [row for row in store.registry.requests() if row.number == number]
    assert (row.kind, row.who, row.bytes, row.batch) == ('leaked', 'ann\\udcff', found.condemned_bytes, None)
    part = store.registry.request_part(number)
    assert b''.join(part.chunks) == (spec.out / CONDEMNED_FILE).read_bytes()
    assert part.subtrees == ()
    assert store.audit.tail(1)[0].event['event'] == 'leaks-request'
    again = recount(collecting.collector.what_if([], 'leaks'))
    assert again.condemned == 0, 'a request keeps what it asks for until its batch'


async def test_nothing_else_is_asked_for(collecting: Collecting) -> None:
    store, files = collecting.engine.store, collecting.collector.batches.files
    spec, none = await leaked(collecting, 0)
    assert none.condemned == 0
    with pytest.raises(Invalid, match='no leaks'):
        request_leaks(store, files, spec, none, 'ann')
    spec, found = await leaked(collecting, 3)
    with pytest.raises(Corrupt, match='raised an alarm'):
        request_leaks(store, files, spec, replace(found, alarm=(None,)), 'ann')  # type: ignore[arg-type]
    path = spec.out / CONDEMNED_FILE
    data = path.read_bytes()
    for wrong in (data[:-1] + bytes([data[-1] ^ 1]), data[:-32], data + bytes(32), b''):
        path.write_bytes(wrong)
        with pytest.raises(Corrupt, match='is not the one'):
            request_leaks(store, files, spec, found, 'ann')
    assert [row for row in store.registry.requests() if row.kind == 'leaked'] == []
    assert store.audit.sequence == 1, 'only the making of the volume'


async def test_records_that_no_row_stands_for_are_counted(collecting: Collecting) -> None:
    store = collecting.engine.store
    await collecting.engine.commit()
    assert rowless(store) == 0
    with store.catalog.transaction() as db:
        db.execute('DELETE FROM chunk WHERE kind = 1')
    assert rowless(store) == 1


async def test_to_ask_is_to_look(collecting: Collecting) -> None:
    """A recount that only answers a question, and sees that one was wrong, stops the collector too."""
    engine = collecting.engine
    for n in range(40):
        await write_file(engine, f'keep{n}', noise(100 + n))
    await write_file(engine, 'old', noise(2))
    await engine.snapshot_create('home', 's', 'ann')
    await remove_file(engine, 'old')
    await engine.snapshot_delete('home', 's', 'ann')
    await collecting.collect()
    (batch,) = {row.batch for row in engine.request_list()}
    (id,) = engine.store.catalog.query('SELECT id FROM chunk WHERE kind = 1 AND plain = 20000 LIMIT 1')[0]
    columns = 'id, pack, offset, stored, plain, codec, kind, epoch'
    with engine.store.catalog.transaction() as db:  # a live chunk is condemned
        db.execute(f'INSERT INTO quarantine SELECT {columns}, ? FROM chunk WHERE id = ?', (batch, id))
        db.execute('DELETE FROM chunk WHERE id = ?', (id,))
    await engine.snapshot_create('home', 't', 'ann')
    with pytest.raises(Alarm, match=id.hex()):
        await collecting.what_if([('snapshot', engine.snapshot_find('home', 't').number)])
    assert collecting.collector.incidents.latched() is not None
    assert engine.store.catalog.query('SELECT count(*) FROM quarantine') == [(0,)], 'all is back'
