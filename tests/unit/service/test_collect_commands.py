"""What can be asked of the collector by name: results, mistakes, and that a mistake changes nothing."""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from snapfs import limits
from snapfs.errors import Corrupt, Held, Invalid, Latched, Refused, Unavailable
from snapfs.format.records import RecordKind
from snapfs.service import collect_commands, commands
from snapfs.service.collecting import Collecting
from snapfs.service.sockets import Peer
from snapfs.service.wire import Request
from tests.support.collecting import DAY, collected, noise, remove_file, write_file

ROOT = Peer(1, 0, 0)
SOMEBODY = Peer(1, 54321, 54321)  # has no name
Ask = Callable[..., Awaitable[Any]]
assert collect_commands  # whose import enters the commands


@pytest.fixture
async def collecting(tmp_path: Path) -> AsyncIterator[Collecting]:
    async with collected(tmp_path / 'store') as made:
        await made.engine.volume_create('home', 0, 0)
        yield made


@pytest.fixture
def ask(collecting: Collecting) -> Ask:
    async def asked(name: str, /, peer: Peer = ROOT, daemon: bool = True, **arguments: Any) -> Any:
        service = {'pid': 1} if daemon else None
        return await commands.dispatch(collecting.engine, Request(name, arguments), peer, service, collecting)

    return asked


async def fill(collecting: Collecting, files: int = 40) -> None:
    """Files that stay, and a snapshot `home@s` that alone holds one more."""
    engine = collecting.engine
    for n in range(files):
        await write_file(engine, f'keep{n}', noise(100 + n))
    await write_file(engine, 'old', noise(1))
    await engine.snapshot_create('home', 's', 'ann')
    await remove_file(engine, 'old')
    await engine.commit()


def lines(collecting: Collecting) -> int:
    return collecting.engine.store.audit.sequence


# --- from a dry run to the end ---------------------------------------------------------------------------
async def test_a_dry_run_promises_what_a_run_does(collecting: Collecting, ask: Ask) -> None:
    await fill(collecting)
    await ask('snapshot.delete', snapshot='home@s')
    before = lines(collecting)
    dry = await ask('collect.plan')
    plans = {one['class']: one for one in dry['plans']}
    assert (dry['stopped'], dry['due'], dry['resting']) == (None, [], [])
    assert [one['what'] for one in plans['kept']['requests']] == ['home@s']
    assert plans['kept']['bytes'] > len(noise(1))
    assert plans['kept']['kept'][0]['name'] == 'home'
    assert plans['kept']['reasons'] == []
    assert lines(collecting) == before, 'it changed nothing'
    report = await ask('collect.run')
    done = {one['class']: one for one in report['quarantined']}
    assert {key: one['bytes'] for key, one in done.items()} == {
        key: one['bytes'] for key, one in plans.items()
    }
    assert done['kept']['requests'] == [
        {'number': plans['kept']['requests'][0]['number'], 'what': 'snapshot home@s'}
    ]
    listed = await ask('quarantine.list')
    assert [one['batch'] for one in listed] == [one['batch'] for one in report['quarantined']]
    numbers = [one['batch'] for one in listed]
    kept = next(one for one in listed if one['class'] == 'kept')
    assert kept['earliest_ns'] - kept['quarantined_ns'] == pytest.approx(kept['grace_ns'], abs=60 * 10**9)
    assert (await ask('request.list'))[0]['batch'] == kept['batch']
    dry = await ask('collect.plan')
    assert ([one['batch'] for one in dry['resting']], dry['due'], dry['plans']) == (numbers, [], [])
    collecting.world.advance(8 * DAY)  # type: ignore[attr-defined]
    dry = await ask('collect.plan')
    assert [one['batch'] for one in dry['due']] == numbers
    report = await ask('collect.run')
    assert [one['state'] for one in report['freed']] == ['FREED', 'FREED']
    assert (await ask('quarantine.list')) == []
    events = [one['event'] for one in await ask('audit.list', batch=kept['batch'])]
    assert events == ['batch-begin', 'batch-quarantined', 'batch-confirmed', 'batch-freed', 'certificate']


async def test_a_plan_that_waits_is_shown_with_its_digest_and_kept(collecting: Collecting, ask: Ask) -> None:
    await fill(collecting, files=1)
    await ask('snapshot.delete', snapshot='home@s')
    dry = await ask('collect.plan')
    plan = next(one for one in dry['plans'] if one['class'] == 'kept')
    assert plan['digest'] is None and 'L19' in plan['reasons'][0]
    report = await ask('collect.run')
    waiting = next(one for one in report['waiting'] if one['class'] == 'kept')
    assert report['lasting'] and 'L19' in waiting['reasons'][0]
    dry = await ask('collect.plan')
    assert [one['digest'] for one in dry['plans'] if one['class'] == 'kept'] == [waiting['digest']]
    assert (await ask('status'))['collector']['waiting'][0]['digest'] in {
        one['digest'] for one in report['waiting']
    }
    given = await ask('collect.approve', digest=waiting['digest'].upper())
    assert (given['what'], given['who']) == ('limits', 'root')
    report = await ask('collect.run', daemon=False)
    assert waiting['digest'] in {one['digest'] for one in report['quarantined']}
    assert not report['lasting']


async def test_one_person_is_not_two_by_another_name(collecting: Collecting, ask: Ask) -> None:
    await ask('config.set', name='second-person', value='on')
    await fill(collecting)
    await collecting.engine.snapshot_delete('home', 's', f'uid {SOMEBODY.uid}')  # as the mount writes it
    await ask('collect.run')
    digest = next(one['digest'] for one in await ask('quarantine.list') if one['class'] == 'kept')
    with pytest.raises(Held, match='a second person must'):
        await ask('collect.approve', SOMEBODY, digest=digest)
    assert (await ask('collect.approve', digest=digest))['who'] == 'root'


@pytest.mark.parametrize('digest', ['', 'xyz', 'a' * 63, 'a' * 65, 'g' * 64, '0x' + 'a' * 62, 'ä' * 64])
async def test_what_is_no_digest(ask: Ask, digest: str) -> None:
    with pytest.raises(Invalid, match='is not the digest of a plan'):
        await ask('collect.approve', digest=digest)


async def test_a_foreign_or_altered_digest_approves_nothing(collecting: Collecting, ask: Ask) -> None:
    await fill(collecting)
    await ask('snapshot.delete', snapshot='home@s')
    await ask('collect.run')
    digest = (await ask('quarantine.list'))[0]['digest']
    before = lines(collecting)
    with pytest.raises(Invalid, match='no plan waits'):
        await ask('collect.approve', digest='0' * 64)
    with pytest.raises(Invalid, match='no plan waits'):
        await ask('collect.approve', digest=digest[:-1] + ('0' if digest[-1] != '0' else '1'))
    assert lines(collecting) == before


async def test_an_approval_that_finds_another_plan_approves_nothing(
    collecting: Collecting, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mutant: who looks the plan up takes the first that has another digest."""
    await fill(collecting)
    await ask('snapshot.delete', snapshot='home@s')
    await ask('collect.run')
    digest = next(one['digest'] for one in await ask('quarantine.list') if one['class'] == 'kept')
    monkeypatch.setattr('snapfs.collect.approvals.find', lambda catalog, waiting, digest: waiting[0])
    with pytest.raises(AssertionError, match='L10'):
        await collecting.approve(bytes.fromhex('0' * 64), 'root')
    monkeypatch.undo()
    assert (await ask('collect.approve', digest=digest))['what'] == 'grace'
    count = collecting.engine.store.catalog.query('SELECT count(*) FROM approval')
    assert count == [(1,)]


async def test_an_expired_approval_frees_nothing(collecting: Collecting, ask: Ask) -> None:
    await fill(collecting)
    await ask('snapshot.delete', snapshot='home@s')
    await ask('collect.run')
    kept = next(one for one in await ask('quarantine.list') if one['class'] == 'kept')
    await ask('collect.approve', digest=kept['digest'])
    collecting.world.advance(4 * DAY)  # type: ignore[attr-defined]
    report = await ask('collect.run')
    assert kept['digest'] not in {one['digest'] for one in report['freed']}, 'it counted for three days'
    assert kept['batch'] in {one['batch'] for one in await ask('quarantine.list')}


async def test_a_run_tells_what_the_one_before_it_did(collecting: Collecting, ask: Ask) -> None:
    """Who comes while a collection runs waits for it, and hears of it."""
    await fill(collecting)
    await ask('snapshot.delete', snapshot='home@s')
    reports: list[Any] = []

    async def run() -> None:
        reports.append(await ask('collect.run'))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(collecting.collect)
        while collecting.move is None:
            await trio.sleep(0)
        moving = (await ask('collect.progress'))['moving']
        assert moving['what'] == 'recount 1' and moving['batch'] is None
        assert (await ask('status'))['collector']['moving'] is not None
        nursery.start_soon(run)
    assert sorted(one['class'] for one in reports[0]['quarantined']) == ['dropped', 'kept']
    assert (await ask('collect.progress')) == {'moving': None, 'stopped': None}
    assert (await ask('collect.run'))['quarantined'] == [], 'told once'


async def test_after_its_end_nothing_begins(collecting: Collecting, ask: Ask) -> None:
    await fill(collecting)
    await ask('snapshot.delete', snapshot='home@s')
    await collecting.stop()
    with pytest.raises(Unavailable, match='being closed'):
        await ask('collect.run')
    with pytest.raises(Unavailable, match='being closed'):
        await ask('snapshot.space', snapshots=[await a_snapshot(ask)])


async def a_snapshot(ask: Ask) -> str:
    return str((await ask('snapshot.create', snapshot='home@new'))['snapshot'])


# --- leaks -----------------------------------------------------------------------------------------------
async def test_leaks_are_counted_and_go_only_by_request(collecting: Collecting, ask: Ask) -> None:
    engine = collecting.engine
    await fill(collecting)
    assert await ask('collect.leaks', request=True) == {
        'chunks': 0,
        'bytes': 0,
        'rowless': 0,
        'request': None,
    }
    (id,) = engine.store.chunks.put_batch(RecordKind.DATA, [noise(77)])
    await engine.commit(always=True)
    found = await ask('collect.leaks')
    assert (found['chunks'], found['request']) == (1, None)
    assert found['bytes'] >= len(noise(77))
    assert (await ask('space'))['leaked']['chunks'] == 1
    for days in (0, 8, 8):
        collecting.world.advance(days * DAY)  # type: ignore[attr-defined]
        await ask('collect.run')
    assert engine.store.chunks.get(id) == noise(77), 'nobody asked'
    found = await ask('collect.leaks', SOMEBODY, request=True)
    assert found['request'] is not None
    line = next(one for one in await ask('audit.list') if one['event'] == 'leaks-request')
    assert (line['chunks'], line['who']) == (1, '54321')
    assert (await ask('collect.leaks'))['chunks'] == 0, 'it is in a request now'
    plan = next(one for one in (await ask('collect.plan'))['plans'] if one['class'] == 'kept')
    assert [(one['kind'], one['who']) for one in plan['requests']] == [('leaked', '54321')]
    await ask('collect.run')
    collecting.world.advance(8 * DAY)  # type: ignore[attr-defined]
    report = await ask('collect.run')
    assert [one['chunks'] for one in report['freed'] if one['class'] == 'kept'] == [1]


# --- space -----------------------------------------------------------------------------------------------
async def test_what_a_snapshot_alone_holds_and_what_a_set_holds(collecting: Collecting, ask: Ask) -> None:
    engine = collecting.engine
    await fill(collecting)
    await engine.volume_clone('home', 's', 'copy')
    await engine.snapshot_create('copy', 'c', 'ann')
    alone = await ask('snapshot.show', snapshot='home@s', space=True)
    assert alone['space']['bytes'] < limits.KIB * 10, 'the clone has the same'
    assert 'space' not in await ask('snapshot.show', snapshot='home@s')
    head = engine.head('copy')
    assert head is not None
    await remove_file(engine, 'old', 'copy')
    await engine.commit()
    one = await ask('snapshot.space', snapshots=['home@s'])
    other = await ask('snapshot.space', snapshots=['copy@c'])
    both = await ask('snapshot.space', snapshots=['home@s', 'copy@c'])
    assert one['bytes'] < len(noise(1)) and other['bytes'] < len(noise(1)), 'each keeps it for the other'
    assert both['bytes'] > len(noise(1))
    again = await ask('snapshot.space', snapshots=['home@s', 'copy@c', 'home@s'])
    assert again['bytes'] == both['bytes'], 'named twice it counts once'
    await ask('snapshot.delete-all', snapshots=['home@s', 'copy@c'])
    pending = await ask('space')
    assert pending['pending']['bytes'] >= both['bytes']
    assert pending['quarantined_bytes'] == 0
    report = await ask('collect.run')
    rest = await ask('space')
    assert rest['quarantined_bytes'] == sum(one['bytes'] for one in report['quarantined'])
    assert rest['pending'] == {'requests': 0, 'chunks': 0, 'bytes': 0}


async def test_a_snapshot_is_shown_also_when_nothing_can_be_counted(
    collecting: Collecting, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(collecting)

    async def broken(*_: object) -> None:
        raise Corrupt('a node is missing')

    monkeypatch.setattr(collecting, 'what_if', broken)
    shown = await ask('snapshot.show', snapshot='home@s', space=True)
    assert shown['space']['bytes'] is None and 'a node is missing' in shown['space']['why']


# --- deleting --------------------------------------------------------------------------------------------
async def test_several_are_deleted_or_none(collecting: Collecting, ask: Ask) -> None:
    for name in ('a', 'b', 'c'):
        await ask('snapshot.create', snapshot=f'home@{name}')
    await ask('hold.add', SOMEBODY, snapshot='home@c', hold='audit', why='tax')
    before = lines(collecting)
    with pytest.raises(Held, match="'audit' of 54321"):
        await ask('snapshot.delete-all', snapshots=['home@a', 'home@b', 'home@c'])
    with pytest.raises(Refused, match='there is no snapshot home@x') as caught:
        await ask('snapshot.delete-all', snapshots=['home@a', 'home@x'])
    assert caught.value.errno == errno.ENOENT
    with pytest.raises(Refused, match="there is no volume 'nix'"):
        await ask('snapshot.delete-all', snapshots=['home@a', 'nix@x'])
    with pytest.raises(Invalid, match='named twice'):
        await ask('snapshot.delete-all', snapshots=['home@a', 'home@a'])
    with pytest.raises(Invalid, match='is not a snapshot'):
        await ask('snapshot.delete-all', snapshots=['home@a', 'home'])
    for wrong in ('home@a', [1], None):
        with pytest.raises(Invalid, match='wrong type'):
            await ask('snapshot.delete-all', snapshots=wrong)
    assert lines(collecting) == before
    assert len(await ask('snapshot.list')) == 3
    requests = await ask('snapshot.delete-all', snapshots=['home@a', 'home@b'])
    assert [one['what'] for one in requests] == ['home@a', 'home@b']
    with pytest.raises(Refused, match=f'home@a was deleted already, by request {requests[0]["number"]}'):
        await ask('snapshot.delete', snapshot='home@a')


async def test_a_hold_that_has_ended_holds_nothing(collecting: Collecting, ask: Ask) -> None:
    for name in ('a', 'b'):
        await ask('snapshot.create', snapshot=f'home@{name}')
    until = collecting.world.time_ns() + 10**9
    await ask('hold.add', snapshot='home@a', hold='short', why='x', until_ns=until)
    with pytest.raises(Held):
        await ask('snapshot.delete-all', snapshots=['home@b', 'home@a'])
    collecting.world.advance(2)  # type: ignore[attr-defined]
    assert len(await ask('snapshot.delete-all', snapshots=['home@b', 'home@a'])) == 2


@pytest.mark.parametrize('name', ['a/b', 'a\nb', 'x' * 256, 'ü' * 128, '.', '..', '.snapshots', 'a@b', ''])
async def test_names_that_no_snapshot_can_have(collecting: Collecting, ask: Ask, name: str) -> None:
    with pytest.raises((Invalid, Refused)):
        await ask('snapshot.delete', snapshot=f'home@{name}')
    with pytest.raises(Invalid):
        await ask('snapshot.create', snapshot=f'home@{name}')
    assert await ask('snapshot.list') == []


async def test_what_was_freed_does_not_come_back(collecting: Collecting, ask: Ask) -> None:
    await fill(collecting)
    number = (await ask('snapshot.delete', snapshot='home@s'))['number']
    await ask('collect.run')
    collecting.world.advance(8 * DAY)  # type: ignore[attr-defined]
    await ask('collect.run')
    for text in (str(number), 'home@s'):
        with pytest.raises(Invalid, match='nothing that was deleted is'):
            await ask('snapshot.undelete', request=text)


async def test_the_volume_that_is_mounted_alone_stays(collecting: Collecting, ask: Ask) -> None:
    await ask('volume.create', name='work')
    collecting.engine.mounted_volume = collecting.engine.heads()['work'].row.volume
    before = lines(collecting)
    with pytest.raises(Held, match="volume 'work' is mounted"):
        await ask('volume.delete', name='work')
    assert lines(collecting) == before
    await ask('volume.delete', name='home')
    assert 'work' in collecting.engine.heads()


# --- why -------------------------------------------------------------------------------------------------
async def test_why(collecting: Collecting, ask: Ask) -> None:
    engine = collecting.engine
    await fill(collecting)
    by_path = await ask('why', target='home:/keep3')
    assert [(one['kind'], one['name'], one['files']) for one in by_path['keepers']] == [
        ('volume', 'home', ['/keep3']), ('snapshot', 'home@s', []),
    ]  # fmt: skip
    snapshot = await ask('why', target='home@s:/old')
    assert [one['kind'] for one in snapshot['keepers']] == ['snapshot', 'dropped']
    head = engine.head('home')
    assert head is not None
    inode = await head.lookup(await head.inode(limits.INO_ROOT), b'keep3')
    assert inode is not None
    assert await ask('why', node=head.number << 40 | inode.ino) == by_path
    view = (await ask('snapshot.show', snapshot='home@s'))['number']
    assert await ask('why', node=1 << 60 | view << 40 | inode.ino) == by_path
    (id,) = engine.store.catalog.query('SELECT id FROM chunk WHERE kind = 1 LIMIT 1')[0]
    assert (await ask('why', target=id.hex()))['chunks'] == 1
    request = await ask('snapshot.delete', snapshot='home@s')
    deleted = await ask('why', node=1 << 60 | view << 40 | inode.ino)
    assert ('request', request['number']) in {(one['kind'], one['number']) for one in deleted['keepers']}


@pytest.mark.parametrize(
    ('arguments', 'word'),
    [
        ({}, 'name one file or chunk'),
        ({'target': 'home:/a', 'node': 5}, 'name one file or chunk'),
        ({'target': 'home'}, 'no file in a mount'),
        ({'target': 'a' * 63}, 'no file in a mount'),
        ({'target': 'home:a'}, 'no file in a mount'),
        ({'target': 'nix:/a'}, 'there is no volume'),
        ({'target': 'home:/nix'}, 'there is no /nix'),
        ({'target': 'home:/f/g'}, 'there is no /f/g'),
        ({'target': 'home:/'}, 'is a directory'),
        ({'node': 1}, 'no file of a volume'),
        ({'node': 0}, 'no file of this mount'),
        ({'node': 1 << 62}, 'no file of this mount'),
        ({'node': 3 << 60 | 1 << 40 | 1}, 'no file of a volume'),
        ({'node': 999 << 40 | 5}, 'no file of a volume'),
        ({'node': 1 << 60 | 999 << 40 | 5}, 'no file of a volume'),
    ],
)
async def test_why_what(collecting: Collecting, ask: Ask, arguments: dict[str, Any], word: str) -> None:
    await write_file(collecting.engine, 'f', b'x')
    with pytest.raises(Invalid, match=word):
        await ask('why', **arguments)


# --- incidents, settings, audit --------------------------------------------------------------------------
async def test_incidents(collecting: Collecting, ask: Ask) -> None:
    assert await ask('incident.list') == []
    incidents = collecting.collector.incidents
    incidents.open('a reason', {'what.json': {'id': 'x' * limits.EVIDENCE_SHOWN_BYTES_MAX}})
    incidents.open('another', {})
    (first, second) = await ask('incident.list')
    assert (first['reason'], first['scope'], first['acknowledged_ns']) == ('a reason', 'collector', None)
    shown = await ask('incident.show', number=first['number'])
    assert sorted(shown['evidence']) == ['incident.json', 'what.json']
    assert len(shown['evidence']['what.json']) == limits.EVIDENCE_SHOWN_BYTES_MAX
    assert (await ask('collect.plan'))['stopped'].startswith('incident 1')
    with pytest.raises(Latched):
        await ask('collect.run')
    with pytest.raises(Refused, match='no incident 77'):
        await ask('incident.ack', number=77)
    acknowledged = await ask('incident.ack', number=first['number'], note='looked')
    assert (acknowledged['acknowledged_by'], acknowledged['left']) == ('root', [second['number']])
    with pytest.raises(Refused):
        await ask('incident.ack', number=first['number'])
    with pytest.raises(Invalid, match='the note has'):
        await ask('incident.ack', number=second['number'], note='x' * 5000)
    assert (await ask('incident.ack', number=second['number']))['left'] == []
    assert await ask('incident.list') == []
    assert len(await ask('incident.list', all=True)) == 2
    await ask('collect.run')


async def test_settings(collecting: Collecting, ask: Ask) -> None:
    listed = {one['name']: one for one in await ask('config.list')}
    assert (listed['grace-kept']['value'], listed['grace-kept']['set']) == ('7d', False)
    assert await ask('config.set', name='grace-kept', value='336h') == {'name': 'grace-kept', 'value': '14d'}
    assert (await ask('config.get', name='grace-kept'))['value'] == '14d'
    assert {one['name'] for one in await ask('config.list') if one['set']} == {'grace-kept'}
    before = lines(collecting)
    for name, value in (('grace-kept', '1s'), ('grace-kept', ''), ('nix', '1'), ('hook', '["relative"]')):
        with pytest.raises(Invalid):
            await ask('config.set', name=name, value=value)
    for command in ('config.get', 'config.reset'):
        with pytest.raises(Invalid, match="there is no setting 'nix'"):
            await ask(command, name='nix')
    assert lines(collecting) == before
    assert (await ask('config.reset', name='grace-kept'))['value'] == '7d'
    (last,) = await ask('audit.list', last=1)
    assert (last['event'], last['who'], last['default']) == ('config', 'root', True)


async def test_the_audit_log(collecting: Collecting, ask: Ask) -> None:
    await fill(collecting)
    await ask('snapshot.delete', SOMEBODY, snapshot='home@s')
    line = (await ask('audit.list', last=1))[0]
    assert (line['event'], line['who'], line['name']) == ('snapshot-delete', '54321', 'home@s')
    verified = await ask('audit.verify')
    assert (verified['lines'], verified['since_line'], verified['broken']) == (lines(collecting), 1, None)
    for last in (0, -1, limits.AUDIT_LINES_SHOWN_MAX + 1):
        with pytest.raises(Invalid, match='lines can be shown'):
            await ask('audit.list', last=last)
    with pytest.raises(Refused, match='there is no batch 9'):
        await ask('audit.list', batch=9)
    log = collecting.engine.store.path / 'audit.log'
    data = log.read_bytes()
    assert b'"name":"home@s"' in data
    log.write_bytes(data.replace(b'"name":"home@s"', b'"name":"home@t"'))
    with pytest.raises(Corrupt, match='audit log'):
        await ask('audit.verify')
    log.write_bytes(data)
    await ask('audit.verify')
