"""The control socket: who is served, what hostile clients get, and how it ends."""

import contextlib
import os
import socket
import stat
from functools import partial

import pytest
import trio
import trio.testing

from snapfs import limits
from snapfs.errors import Held, Invalid, Unavailable
from snapfs.service import client, control, sockets, wire

HELLO = control.Hello(os.getpid(), '/s', '/s/control.sock', '/m', '0:57', 'token', None, None, 5)


async def answer(request, peer):
    if request.command == 'held':
        raise Held('no')
    if request.command == 'bug':
        raise ZeroDivisionError('oops')
    return {'command': request.command, 'who': peer.uid, **request.arguments}


@contextlib.asynccontextmanager
async def serving(store, handler=answer):
    server = control.ControlServer(store, HELLO, handler)
    async with trio.open_nursery() as nursery:
        await nursery.start(server.serve)
        yield server
        await server.stop_listening()
        server.finish(clean=True)


async def ask(store, command, device=None, **arguments):
    def blocking():
        with client.Connection(store, 10.0) as connection:
            return connection.ask(wire.Request(command, arguments, device))

    return await trio.to_thread.run_sync(blocking)


async def test_a_request_is_answered(store):
    async with serving(store):
        assert await ask(store, 'x', a=1) == {'command': 'x', 'who': os.geteuid(), 'a': 1}
        assert (await ask(store, 'hello'))['pid'] == os.getpid()


async def test_errors_arrive_and_bugs_are_logged(store, caplog):
    async with serving(store):
        with pytest.raises(Held, match='no'):
            await ask(store, 'held')
        with pytest.raises(Unavailable, match='oops'):
            await ask(store, 'bug')
        assert await ask(store, 'x') == {'command': 'x', 'who': os.geteuid()}
    assert 'ZeroDivisionError' in caplog.text


async def test_another_mount_is_not_meant(store):
    async with serving(store):
        assert await ask(store, 'x', device='0:57')
        with pytest.raises(Unavailable, match='0:58'):
            await ask(store, 'x', device='0:58')


async def test_only_its_owner_may_connect(store):
    async with serving(store) as server:
        path = store / 'control.sock'
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        server.allowed.clear()
        with pytest.raises(Invalid, match='only root'):
            await ask(store, 'x')


async def test_the_owner_may_command_what_root_has_mounted(store):
    if os.geteuid() != 0:
        return  # the socket of a user is his own anyway: the test above
    os.chown(store, 4711, 4712)
    async with serving(store) as server:
        status = (store / 'control.sock').stat()
        assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (4711, 4712, 0o600)
        assert server.allowed == {0, 4711}


async def test_a_long_name_is_no_obstacle(tmp_path):
    store = tmp_path / ('x' * 120) / ('y' * 100)
    store.mkdir(parents=True)
    async with serving(store):
        assert (store / 'control.sock').exists()
        assert await ask(store, 'x')
    assert not (store / 'control.sock').exists()


async def test_a_dead_daemons_socket_is_replaced(store):
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(store / 'control.sock'))
    with pytest.raises(client.NoDaemon):
        client.Connection(store)
    async with serving(store):
        assert await ask(store, 'x')


async def raw(store, data):
    """Send bytes, and return all that comes back."""
    stream = await trio.open_unix_socket(str(store / 'control.sock'))
    async with stream:
        with contextlib.suppress(trio.BrokenResourceError):
            await stream.send_all(data)
        collected = b''
        with contextlib.suppress(trio.BrokenResourceError):
            async for part in stream:
                collected += part
                if collected.count(b'\n') > data.count(b'\n') or b'too long' in collected:
                    return collected
                if data.endswith(b'\n') and collected.count(b'\n') == data.count(b'\n'):
                    return collected
        return collected


async def test_hostile_clients_get_a_line(store):
    async with serving(store):
        assert b'not JSON' in await raw(store, b'\x00\xff\n')
        assert b'no JSON object' in await raw(store, b'[]\n')
        two = await raw(store, b'{}\n{"command": "x"}\n')
        assert two.count(b'\n') == 2 and b'names no command' in two
        assert b'too long' in await raw(store, b'x' * (limits.CONTROL_REQUEST_BYTES_MAX + 1))
        assert await ask(store, 'x')


async def test_an_idle_client_is_let_go(store, autojump_clock):
    async with serving(store):
        stream = await trio.open_unix_socket(str(store / 'control.sock'))
        before = trio.current_time()
        assert await stream.receive_some(1) == b''
        assert trio.current_time() - before == pytest.approx(limits.CONTROL_IDLE_SECONDS)


async def test_only_so_many_at_a_time(store):
    async with serving(store):
        streams = [
            await trio.open_unix_socket(str(store / 'control.sock'))
            for _ in range(limits.CONTROL_CONNECTIONS_MAX)
        ]
        for stream in streams:
            await stream.send_all(b'{"command": "x"}\n')
            assert await stream.receive_some(10)
        late = await trio.open_unix_socket(str(store / 'control.sock'))
        await late.send_all(b'{"command": "x"}\n')
        with trio.move_on_after(0.05) as scope:
            await late.receive_some(1)
        assert scope.cancelled_caught
        await streams[0].aclose()
        assert await late.receive_some(10)


async def test_the_end_is_told_to_those_who_wait(store):
    told = []

    def wait():
        with client.Connection(store, 10.0) as connection:
            told.append(connection.ask(wire.Request('closed', {})))
            trio.from_thread.run_sync(waiting.set)
            told.append(connection.receive())

    waiting = trio.Event()
    async with trio.open_nursery() as nursery, serving(store):
        nursery.start_soon(partial(trio.to_thread.run_sync, wait))
        await waiting.wait()
        # `serving` has ended: the answer is out before the server is gone.
    assert told[0]['mountpoint'] == '/m'
    assert told[1] == {'clean': True}


async def test_commands_under_way_are_waited_for(store):
    gate, inside, ended = trio.Event(), trio.Event(), []

    async def slow(request, peer):
        inside.set()
        await gate.wait()
        return 'done'

    server = control.ControlServer(store, HELLO, slow)
    async with trio.open_nursery() as nursery:
        await nursery.start(server.serve)
        nursery.start_soon(ask, store, 'x')
        await inside.wait()

        async def end():
            await server.stop_listening()
            ended.append(True)
            server.finish(clean=True)

        nursery.start_soon(end)
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert not ended
        assert not (store / 'control.sock').exists()
        gate.set()
    assert ended


def test_the_peer_is_what_the_kernel_says():
    left, right = socket.socketpair(socket.AF_UNIX)
    with left, right:
        peer = sockets.peer_of(left)
    assert peer == sockets.Peer(os.getpid(), os.geteuid(), os.getegid()) == sockets.this_process()
    assert sockets.user_name(0) == 'root'
    assert sockets.user_name(4_000_000_000) == '4000000000'


async def test_who_hangs_up_is_noticed_while_he_is_served_and_who_only_says_no_more_is_not(store):
    served, left = [], []
    came, go_on = trio.Event(), trio.Event()

    async def wait(request, peer):
        served.append(peer)
        with peer.asker.ends(lambda: left.append(request.command)):
            came.set()
            await go_on.wait()
        return {'gone': peer.asker.gone}

    async with serving(store, wait):
        stream = await trio.open_unix_socket(str(store / 'control.sock'))
        await stream.send_all(wire.encode_request(wire.Request('half', {})))
        await came.wait()
        await stream.send_eof()
        await trio.testing.wait_all_tasks_blocked()
        go_on.set()
        assert b'"gone": false' in await stream.receive_some()
        await stream.aclose()
        assert left == []

        came, go_on = trio.Event(), trio.Event()
        stream = await trio.open_unix_socket(str(store / 'control.sock'))
        await stream.send_all(wire.encode_request(wire.Request('whole', {})))
        await came.wait()
        await stream.aclose()
        while not left:
            await trio.testing.wait_all_tasks_blocked()
        go_on.set()
    assert left == ['whole'] and [peer.asker.gone for peer in served] == [False, True]


def test_what_only_looks_does_not_begin_for_one_who_has_left():
    ended = []
    asker = sockets.Asker()
    asker.leave()
    with asker.ends(lambda: ended.append(1)):
        assert ended == [1]
    asker.leave()
    assert ended == [1], 'what has ended is not ended again'
