"""`.snapfs` while the collector works: the batch, the request in it, the way back, and what made it stop."""

from __future__ import annotations

import errno
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import pyfuse3
import pytest

from snapfs.collect.states import batches
from snapfs.service.collecting import Collecting
from tests.support.collecting import collected, forget, noise, write_file
from tests.unit.mount.kit import ADMIN, USER, Kit, refused, reply


@pytest.fixture
async def collecting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Collecting]:
    monkeypatch.setattr(pyfuse3, 'readdir_reply', reply)
    async with collected(tmp_path / 'store') as made:
        await made.engine.volume_create('home', USER.uid, USER.gid)
        yield made


async def condemned(collecting: Collecting) -> tuple[Kit, str]:
    """A mount with a snapshot in quarantine; returns it with the path of its entry in the trash."""
    engine = collecting.engine
    for n in range(40):
        await write_file(engine, f'keep{n}', noise(100 + n))
    await write_file(engine, 'old', noise(1))
    await engine.snapshot_create('home', 'monday', 'ann')
    head = engine.head('home')
    assert head is not None
    await head.unlink(await head.inode(1), b'old')
    kit = Kit(engine)
    await kit.rmdir('home/.snapshots/monday', USER)
    trash = kit.trash()
    await collecting.collect()
    assert engine.request_list()[0].batch is not None
    return kit, trash


async def test_what_is_condemned_is_shown_and_not_read(collecting: Collecting) -> None:
    kit, trash = await condemned(collecting)
    number = int(trash.rpartition('/')[2])
    rows = {row.grace_class: row for row in batches(collecting.engine.store.catalog)}
    kept = rows['kept']
    assert await kit.list('.snapfs/quarantine', room=1) == [b'%d' % row.number for row in rows.values()]
    path = f'.snapfs/quarantine/{kept.number}'
    text = (await kit.read(path)).decode()
    assert text.startswith(f'batch: {kept.number}\nstate: in quarantine\nclass: kept\nin quarantine since: ')
    assert (
        f'\nbytes that come back: {kept.stored_bytes}\nrequests: 1\nrequest {number}: snapshot home@monday\n'
        in text
    )
    assert f'\ndigest: {kept.digest.hex()}\n' in text
    entry = await kit.stat(path)
    assert (entry.st_mode, entry.st_size, entry.st_uid) == (
        stat.S_IFREG | 0o440,
        len(text),
        kit.space.owner[0],
    )
    assert await kit.list(trash) == [b'request'], 'reading its tree would be an alarm'
    assert not await kit.exists(f'{trash}/tree')
    told = (await kit.read(f'{trash}/request')).decode()
    assert f'\nbatch: {kept.number}\nstate: in quarantine\nin quarantine since: ' in told
    earliest = [line for line in text.splitlines() if line.startswith('freed at the earliest: ')]
    assert earliest and earliest[0] in told
    assert await kit.list('.snapfs/pending') == [], 'it is in a batch'
    owner = await kit.stat(trash)
    assert (owner.st_uid, owner.st_gid) == (USER.uid, USER.gid), 'he may take it back'
    assert collecting.collector.incidents.latched() is None
    async with refused(errno.ESTALE):
        await kit.adapter.getattr(3 << 60 | 13 << 40 | 999, ADMIN)
    assert not await kit.exists('.snapfs/quarantine/999')


async def test_mv_takes_it_out_of_quarantine(collecting: Collecting) -> None:
    kit, trash = await condemned(collecting)
    await kit.rename(trash, 'home/.snapshots/back')
    forget(collecting.engine)
    assert await kit.read('home/.snapshots/back/old') == noise(1)
    assert await kit.list('.snapfs/trash') == []
    kept = [row for row in batches(collecting.engine.store.catalog) if row.grace_class == 'kept']
    assert [row.state for row in kept] == ['RESTORED']
    assert b'%d' % kept[0].number not in await kit.list('.snapfs/quarantine')
    assert collecting.collector.incidents.latched() is None


async def test_a_volume_is_taken_out_of_quarantine(collecting: Collecting) -> None:
    engine = collecting.engine
    for n in range(40):
        await write_file(engine, f'keep{n}', noise(100 + n))
    await engine.volume_create('work', 77, 78)
    await write_file(engine, 'f', noise(7), 'work')
    await engine.volume_delete('work', 'ann')
    kit = Kit(engine)
    trash = kit.trash()
    await collecting.collect()
    assert await kit.list(trash) == [b'request']
    entry = await kit.stat(trash)
    assert (entry.st_uid, entry.st_gid) == (77, 78)
    await kit.rename(trash, 'again')
    forget(engine)
    assert await kit.read('again/f') == noise(7)


async def test_too_late_is_said(collecting: Collecting) -> None:
    kit, trash = await condemned(collecting)
    engine = collecting.engine
    number = engine.request_list()[0].batch
    with engine.store.catalog.transaction() as db:
        db.execute("UPDATE batch SET state = 'CONFIRMED', receipt = ? WHERE number = ?", (bytes(32), number))
    told = await kit.read(f'{trash}/request')
    assert b'state: being freed: it is too late to take it back\n' in told
    assert b'take back:' not in told
    async with refused(errno.EBUSY):
        await kit.rename(trash, 'home/.snapshots/back')


async def test_an_incident_has_its_evidence_in_the_mount(collecting: Collecting) -> None:
    kit, _ = await condemned(collecting)
    engine = collecting.engine
    assert await kit.list('.snapfs/incidents') == []
    (id,) = engine.store.catalog.query('SELECT id FROM quarantine WHERE kind = 1 LIMIT 1')[0]
    assert engine.store.chunks.get(id)
    await collecting._tick()
    first = (await kit.read('.snapfs/health')).splitlines()[0]
    assert first.startswith(b'the collector is stopped: incident 1: ')
    assert await kit.list('.snapfs/incidents', room=1) == [b'1']
    assert await kit.list('.snapfs/incidents/1', room=1) == [b'state', b'incident.json', b'read.json']
    assert id.hex().encode() in await kit.read('.snapfs/incidents/1/read.json')
    entry = await kit.stat('.snapfs/incidents/1/read.json')
    assert entry.st_size == len(await kit.read('.snapfs/incidents/1/read.json'))
    assert stat.S_IMODE((await kit.stat('.snapfs/incidents/1')).st_mode) == 0o550
    assert b'snapfs incident ack 1\n' in await kit.read('.snapfs/incidents/1/state')
    assert await kit.list('.snapfs/quarantine') == [], 'all of it is back'
    parent = await kit.adapter.lookup(entry.st_ino >> 8 << 8 | 1, b'..', ADMIN)
    assert parent.st_ino == (await kit.stat('.snapfs/incidents/1')).st_ino
    collecting.collector.incidents.acknowledge(1, 'ann', 'looked')
    assert (await kit.read('.snapfs/health')).startswith(b'ok\n')
    assert b' by ann\n' in await kit.read('.snapfs/incidents/1/state')
    assert not await kit.exists('.snapfs/incidents/2')
    assert not await kit.exists('.snapfs/incidents/1/nothing.json')
    for gone in (11 << 40 | 1 << 8 | 9, 11 << 40 | 2 << 8, 10 << 40 | 2):
        async with refused(errno.ESTALE):
            await kit.adapter.getattr(3 << 60 | gone, ADMIN)


async def test_a_latch_that_could_not_be_written_down_is_shown(collecting: Collecting) -> None:
    collecting.collector.incidents._falling = 'no disk took it'
    assert collecting.engine.health() == 'the collector is stopped: no disk took it'
