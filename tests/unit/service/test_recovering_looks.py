"""What a recovery looks at before it decides: a sibling never has files that answer EIO in secret."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest
import trio

from snapfs import limits
from snapfs.errors import Corrupt, Invalid, Unavailable
from snapfs.service.collecting import Collecting
from snapfs.service.recovering import Recovering, Wish
from snapfs.service.sockets import Asker
from tests.support.lives import on
from tests.support.model import freeze_view
from tools.breakit import break_it

ODD = ['data-pack-gone', 'pack-cut', 'header-flip', 'records-swapped', 'index-elsewhere', 'index-behind']
ODD += [
    'payload-flip',
    'record-torn',
    'index-length',
    'index-no-pack',
    'index-row-gone',
    'pack-exchanged',
    'pack-a-link',
    'zeros',
    'stored',
]


@pytest.fixture
def store(cut_store: Path) -> Path:
    return cut_store


def wish(**changes: Any) -> Wish:
    values: dict[str, Any] = {
        'volume': 'home', 'snapshot': 'monday', 'name': None, 'donors': (), 'verify': False, 'dry_run': False,
        'who': 'ann',
    }  # fmt: skip
    return Wish(**{**values, **changes})


def spoil(path: Path, how: str) -> None:
    """Make a damage that nobody has read or scrubbed yet."""
    if how not in ('zeros', 'stored', 'rot'):
        break_it(path, how, seed=1)
        return
    with sqlite3.connect(path / 'catalog.sqlite') as db:
        text = 'SELECT p.name, c.offset, c.id FROM chunk c JOIN pack p USING (pack) WHERE c.kind = 1'
        name, offset, id = db.execute(f'{text} ORDER BY c.stored DESC, c.id LIMIT 1').fetchone()
        if how == 'stored':  # readers want what the index says to be what the record says
            db.execute('UPDATE chunk SET stored = stored - 1 WHERE id = ?', (id,))
            return
    pack = path / 'packs' / 'data' / name.hex()[:2] / name.hex()
    data = bytearray(pack.read_bytes())
    if how == 'rot':
        data[offset + 1000] ^= 1
    else:
        data[offset:] = bytes(len(data) - offset)
    pack.write_bytes(data)


async def read_all(collecting: Collecting, snapshot: str) -> Any:
    engine = collecting.engine
    volume, _, name = snapshot.partition('@')
    return await freeze_view(engine.snapshot_view(engine.snapshot_find(volume, name).number))


@pytest.mark.parametrize('how', ODD)
def test_nothing_of_the_sibling_answers_eio_after_a_loss_that_nobody_has_seen_before(store, how):
    spoil(store, how)

    async def work(collecting: Collecting) -> Any:
        told = await Recovering(collecting).run(wish())
        assert told['looked'] == ('read' if told['lost'] else 'present')
        await read_all(collecting, told['sibling'] or 'home@monday')

    on(store, work)


def test_where_something_is_lost_all_contents_are_hashed(store):
    """A stretch of zeros in a pack left the header of the record at its edge, and a recovery said that all
    was whole again."""
    spoil(store, 'rot')
    spoil(store, 'header-flip')

    async def work(collecting: Collecting) -> Any:
        told = await Recovering(collecting).run(wish())
        assert told['looked'] == 'read' and told['unhashed'] == 0
        assert len(told['lost']) > 1
        await read_all(collecting, told['sibling'])

    on(store, work)


def test_contents_of_long_records_are_hashed_only_when_that_is_asked_for(store):
    spoil(store, 'rot')

    async def work(collecting: Collecting) -> Any:
        told = await Recovering(collecting).run(wish())
        assert (told['looked'], told['lost'], told['sibling']) == ('present', [], None)
        assert told['unhashed'] == 3 and 0 <= told['verified_percent'] <= 100
        with pytest.raises(Corrupt):
            await read_all(collecting, 'home@monday')
        told = await Recovering(collecting).run(wish(verify=True))
        assert told['looked'] == 'read' and told['sibling'] == 'home@monday-recovered'
        assert told['unhashed'] == 0
        await read_all(collecting, told['sibling'])

    on(store, work)


def test_whoever_has_just_scrubbed_may_have_no_record_looked_at(store):
    spoil(store, 'header-flip')

    async def work(collecting: Collecting) -> Any:
        told = await Recovering(collecting).run(wish(known_only=True))
        assert told['unhashed'] > 3
        assert (told['looked'], told['lost'], told['sibling']) == ('known', [], None)
        with pytest.raises(Invalid, match='exclude'):
            await Recovering(collecting).run(wish(known_only=True, verify=True))

    on(store, work)


@pytest.mark.parametrize(('top', 'wanted'), [(0o755, 0o640), (0o700, 0o600), (0o710, 0o600), (0o2770, 0o640)])
def test_owner_and_group_of_the_top_directory_may_read_the_report_in_it(store, top, wanted):
    """It names files, so nobody else may, and the group only where it may list the directory."""

    async def work(collecting: Collecting) -> Any:
        engine = collecting.engine
        head = engine.head('home')
        await head.set_attributes(await head.inode(limits.INO_ROOT), mode=top, uid=1000, gid=1234)
        await engine.snapshot_create('home', 'mine', 'ann')

    on(store, work)
    spoil(store, 'data-pack-gone')

    async def look(collecting: Collecting) -> Any:
        told = await Recovering(collecting).run(wish(snapshot='mine'))
        engine = collecting.engine
        view = engine.snapshot_view(engine.snapshot_find('home', told['sibling'].split('@')[1]).number)
        inode = await view.lookup(await view.inode(limits.INO_ROOT), b'DAMAGE.json')
        return inode.mode, inode.uid, inode.gid

    assert on(store, look) == (0o100000 | wanted, 1000, 1234)


@pytest.mark.parametrize('last', ['CopiesSpec', 'SurveySpec'])
def test_a_survey_ends_when_who_asked_for_it_has_gone_and_nothing_is_changed(store, last):
    spoil(store, 'data-pack-gone')

    async def work(collecting: Collecting) -> Any:
        before = [row.name for row in collecting.engine.snapshot_list()]
        asker, looked = Asker(), []
        run = collecting._runner

        async def runner(spec: Any, progress: Any) -> Any:
            looked.append(type(spec).__name__)
            if looked[-1] == last:
                asker.leave()
            await trio.lowlevel.checkpoint()
            return await run(spec, progress)

        collecting._runner = runner
        with pytest.raises(Unavailable, match='interrupted'):
            await Recovering(collecting, asker).run(wish())
        assert looked[-1] == last and collecting.move is None and not collecting._lock.locked()
        assert [row.name for row in collecting.engine.snapshot_list()] == before

    on(store, work)


def test_the_command_tells_a_recovery_who_asked(store):
    from snapfs.service.commands import Call
    from snapfs.service.rescue_commands import recover
    from snapfs.service.sockets import this_process

    async def work(collecting: Collecting) -> None:
        peer = this_process()
        call = Call(collecting.engine, peer, None, collecting)
        assert (await recover(call, 'home@monday', []))['looked'] == 'present'
        peer.asker.leave()
        with pytest.raises(Unavailable, match='interrupted'):
            await recover(call, 'home@monday', [])

    on(store, work)
