"""The table of commands over a fake engine: results, checked arguments, and what a mistake is told."""

import errno
import inspect
from dataclasses import replace

import pytest
from service_fakes import FakeEngine

from snapfs.errors import Held, Invalid, Refused
from snapfs.service import commands
from snapfs.service.sockets import Peer
from snapfs.service.wire import Request

ROOT = Peer(1, 0, 0)


@pytest.fixture
async def engine(store):
    opened = await FakeEngine.open(store, 0)
    yield opened
    await opened.close()


@pytest.fixture
def ask(engine):
    async def asked(name, /, **arguments):
        return await commands.dispatch(engine, Request(name, arguments), ROOT, None)

    return asked


async def test_volumes(ask, engine):
    made = await ask('volume.create', name='home', mode=0o700)
    assert (made['name'], made['snapshots'], made['root']) == ('home', 0, None)
    await ask('volume.create', name='attic')
    await ask('volume.rename', old='attic', new='cellar')
    assert [volume['name'] for volume in await ask('volume.list')] == ['cellar', 'home']
    request = await ask('volume.delete', name='cellar')
    assert (request['kind'], request['what'], request['who']) == ('volume', 'cellar', 'root')
    assert 'cellar' not in engine.heads()
    back = await ask('snapshot.undelete', request='cellar', name='loft')
    assert back['volume'] == 'loft' and 'loft' in engine.heads()


async def test_snapshots(ask, engine):
    await ask('volume.create', name='home')
    assert (await ask('snapshot.create', snapshot='home@one'))['snapshot'] == 'home@one'
    await ask('snapshot.create', snapshot='home@two@x')
    listed = await ask('snapshot.list')
    assert [one['snapshot'] for one in listed] == ['home@one', 'home@two@x']
    assert await ask('snapshot.list', volume='home') == listed
    assert (await ask('snapshot.rename', snapshot='home@one', name='uno'))['snapshot'] == 'home@uno'
    assert (await ask('snapshot.show', snapshot='home@uno'))['who'] == 'root'
    assert (await ask('volume.list'))[0]['snapshots'] == 2


async def test_deletion_and_its_taking_back(ask, engine):
    await ask('volume.create', name='home')
    await ask('snapshot.create', snapshot='home@one')
    first = await ask('snapshot.delete', snapshot='home@one')
    await ask('snapshot.create', snapshot='home@one')
    second = await ask('snapshot.delete', snapshot='home@one')
    assert await ask('request.list') == [first, second]
    await ask('volume.rename', old='home', new='house')
    assert [row['what'] for row in await ask('request.list')] == ['house@one', 'house@one']
    back = await ask('snapshot.undelete', request='house@one')
    assert back['number'] == second['number']
    await ask('snapshot.undelete', request=str(first['number']), name='older')
    assert {one['name'] for one in await ask('snapshot.list')} == {'one', 'older'}
    with pytest.raises(Invalid, match='nothing that was deleted'):
        await ask('snapshot.undelete', request='house@one')


async def test_what_a_commit_dropped_cannot_be_taken_back(ask, engine):
    await ask('volume.create', name='home')
    request = await ask('volume.delete', name='home')
    engine.requests[0] = replace(engine.requests[0], kind='dropped')
    with pytest.raises(Invalid, match='nothing that was deleted'):
        await ask('snapshot.undelete', request=str(request['number']))


async def test_holds(ask, engine):
    await ask('volume.create', name='home')
    await ask('snapshot.create', snapshot='home@one')
    hold = await ask('hold.add', snapshot='home@one', hold='audit', why='tax', until_ns=99)
    assert (hold['name'], hold['why'], hold['until_ns'], hold['who']) == ('audit', 'tax', 99, 'root')
    assert await ask('hold.list', snapshot='home@one') == [hold]
    assert (await ask('snapshot.list'))[0]['holds'] == [hold]
    with pytest.raises(Held):
        await ask('snapshot.delete', snapshot='home@one')
    await ask('hold.release', snapshot='home@one', hold='audit')
    await ask('snapshot.delete', snapshot='home@one')


async def test_clone_and_rollback(ask, engine):
    await ask('volume.create', name='home')
    await ask('snapshot.create', snapshot='home@one')
    assert (await ask('volume.clone', snapshot='home@one', name='copy'))['name'] == 'copy'
    done = await ask('volume.rollback', snapshot='home@one')
    assert (done['volume'], done['safety']['snapshot']) == ('home', 'home@before-one')


async def test_status_says_who_serves(engine):
    request = Request('status', {})
    assert (await commands.dispatch(engine, request, ROOT, None))['daemon'] is None
    assert (await commands.dispatch(engine, request, ROOT, {'pid': 5}))['daemon'] == {'pid': 5}


@pytest.mark.parametrize(
    ('name', 'arguments', 'word'),
    [
        ('nonsense', {}, 'unknown command'),
        ('volume.create', {}, "needs the argument 'name'"),
        ('volume.create', {'name': 5}, 'wrong type'),
        ('volume.create', {'name': 'a', 'mode': True}, 'wrong type'),
        ('volume.create', {'name': 'a', 'call': 1}, "no argument 'call'"),
        ('volume.create', {'name': 'a@b'}, '@ and :'),
        ('volume.create', {'name': 'a:b'}, '@ and :'),
        ('snapshot.create', {'snapshot': 'home'}, 'VOLUME@NAME'),
        ('snapshot.create', {'snapshot': '@x'}, 'VOLUME@NAME'),
        ('snapshot.create', {'snapshot': 'home@'}, 'VOLUME@NAME'),
        ('hold.add', {'snapshot': 'a@b', 'hold': 'h', 'why': 'w', 'until_ns': 'x'}, 'wrong type'),
    ],
)
async def test_mistakes_are_named(ask, name, arguments, word):
    with pytest.raises(Invalid, match=word):
        await ask(name, **arguments)


@pytest.mark.parametrize(
    ('name', 'arguments'),
    [
        ('volume.delete', {'name': 'x'}),
        ('volume.rename', {'old': 'x', 'new': 'y'}),
        ('snapshot.create', {'snapshot': 'x@y'}),
        ('snapshot.list', {'volume': 'x'}),
        ('snapshot.show', {'snapshot': 'home@y'}),
        ('snapshot.delete', {'snapshot': 'home@y'}),
        ('hold.list', {'snapshot': 'x@y'}),
        ('volume.rollback', {'snapshot': 'x@y'}),
    ],
)
async def test_what_is_not_there_is_named(ask, name, arguments):
    await ask('volume.create', name='home')
    with pytest.raises(Refused, match=r'there is no (volume|snapshot)') as caught:
        await ask(name, **arguments)
    assert caught.value.errno == errno.ENOENT


def test_every_argument_of_every_command_has_a_checked_type():
    for name, function in commands.COMMANDS.items():
        for parameter in list(inspect.signature(function).parameters.values())[1:]:
            assert str(parameter.annotation) in commands.TYPES, (name, parameter)
