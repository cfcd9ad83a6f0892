"""`.snapfs/pending` with what commits dropped: bounded, however many commits there were."""

from __future__ import annotations

import errno
import re
import stat
from typing import Any

from snapfs.mount.pending import GROUP_KINDS
from snapfs.mount.requests import KEPT_KINDS as SHOWN_KINDS
from snapfs.store import schema
from snapfs.store.registry import KEPT_KINDS
from tests.unit.mount.kit import ADMIN, USER, Kit, refused


async def drop(kit: Kit, volume: str, count: int) -> None:
    """Let so many commits each drop something."""
    for n in range(count):
        await kit.write(f'{volume}/f', b'%d' % n * 50_000)
        await kit.engine.commit()
        await kit.unlink(f'{volume}/f')
        await kit.engine.commit()


async def test_what_commits_dropped_is_one_entry_per_volume(kit: Kit) -> None:
    await kit.mkdir('work')
    await drop(kit, 'home', 3)
    await drop(kit, 'work', 1)
    await kit.mkdir('home/.snapshots/s')
    await kit.rmdir('home/.snapshots/s')
    snapshot = kit.trash().rpartition('/')[2].encode()
    home, work = (kit.engine.head(name).row.volume for name in ('home', 'work'))  # type: ignore[union-attr]
    names = [snapshot, b'dropped-%d' % home, b'dropped-%d' % work]
    for room in (1, 2, 100):
        assert await kit.list('.snapfs/pending', room=room) == names
    rows = [
        row for row in kit.engine.store.registry.requests() if row.kind == 'dropped' and row.volume == home
    ]
    text = (await kit.read(f'.snapfs/pending/dropped-{home}')).decode()
    assert text.startswith(
        'kind: dropped\nwhat: data of volume home that was overwritten or deleted and is in no snapshot\n'
        f'requests: {len(rows)}\n'
    )
    assert len(rows) >= 3
    assert 'bytes: unknown\n' in text
    assert await kit.list('.snapfs/trash') == [snapshot], 'nobody can take these back'
    entry = await kit.stat(f'.snapfs/pending/dropped-{home}')
    assert (entry.st_mode, entry.st_uid, entry.st_size) == (stat.S_IFREG | 0o440, USER.uid, len(text))
    assert entry.st_mtime_ns == max(row.requested_ns for row in rows)
    assert (await kit.adapter.getattr(entry.st_ino, ADMIN)).st_size == len(text)
    for name in ('dropped-999', 'dropped-', 'dropped', 'leaked-1', f'dropped-0{home}'):
        assert not await kit.exists(f'.snapfs/pending/{name}')


async def test_entries_of_a_volume_that_is_renamed_or_gone(kit: Kit) -> None:
    await drop(kit, 'home', 1)
    volume = kit.engine.head('home').row.volume  # type: ignore[union-attr]
    path = f'.snapfs/pending/dropped-{volume}'
    await kit.engine.volume_rename('home', 'house')
    assert b'of volume house that' in await kit.read(path)
    await kit.engine.volume_delete('house', 'me')
    assert b'of volume home (deleted) that' in await kit.read(path)
    assert (await kit.stat(path)).st_uid == kit.space.owner[0]


async def test_requests_of_the_collector_are_listed_too(kit: Kit) -> None:
    await drop(kit, 'home', 1)
    with kit.engine.store.catalog.transaction() as db:
        db.execute("UPDATE request SET kind = 'leaked', volume = 0, volume_name = x'', bytes = 5")
    assert await kit.list('.snapfs/pending') == [b'leaked-0']
    text = await kit.read('.snapfs/pending/leaked-0')
    assert b'crashes left behind' in text
    assert b'requests: 2\n' in text
    assert b'bytes: 10\n' in text
    node = await kit.node('.snapfs/pending/leaked-0')
    with kit.engine.store.catalog.transaction() as db:
        db.execute('DELETE FROM request_part')
        db.execute('DELETE FROM request')
    assert await kit.list('.snapfs/pending') == []
    async with refused(errno.ESTALE):
        await kit.adapter.getattr(node, ADMIN)


async def test_a_listing_costs_the_same_after_thousands_of_commits(kit: Kit, monkeypatch: Any) -> None:
    await drop(kit, 'home', 1)
    catalog = kit.engine.store.catalog
    rows: list[int] = []
    real = catalog.query
    monkeypatch.setattr(
        catalog, 'query', lambda *a: (lambda found: rows.append(len(found)) or found)(real(*a))
    )
    await kit.list('.snapfs/pending')
    few, rows[:] = sum(rows), []
    with catalog.transaction() as db:
        columns = [row[1] for row in db.execute('PRAGMA table_info(request)')][1:]
        db.execute(
            f'WITH RECURSIVE n(i) AS (SELECT 1000 UNION ALL SELECT i + 1 FROM n WHERE i < 4000) '
            f'INSERT INTO request SELECT i, {",".join(columns)} FROM request, n WHERE number = '
            '(SELECT min(number) FROM request)'
        )
    assert await kit.list('.snapfs/pending') == [b'dropped-1']
    assert sum(rows) == few
    assert b'requests: 300' in await kit.read('.snapfs/pending/dropped-1')
    kit.engine.load_registry()
    assert max(rows) < 10, 'nor does opening the store read them all'


def test_every_kind_of_request_has_its_place() -> None:
    """A kind that the schema knows and no listing shows would be a deletion that nobody can see."""
    kinds = set(re.findall(r"'(\w+)'", re.search(r'CHECK \(kind IN \((.*?)\)', schema.REQUEST).group(1)))  # type: ignore[union-attr]
    assert kinds == {*KEPT_KINDS, *GROUP_KINDS}
    assert set(KEPT_KINDS) == SHOWN_KINDS
    assert len(GROUP_KINDS) <= 4, 'group_number has two bits for the kind'
