"""Finding the store, and one command whatever the state of the daemon."""

import fcntl
import json
import os
import threading

import pytest
import trio
from service_fakes import FakeEngine

from snapfs import limits
from snapfs.errors import Corrupt, Invalid, Refused, Unavailable
from snapfs.service import client, commands, control, mounts, runtime, wire

HELLO = control.Hello(os.getpid(), '/s', '/s/control.sock', '/m', '0:57', 'token', None, None, 5)


def test_the_store_is_named_by_option_then_environment(store, tmp_path):
    assert client.locate(str(store), {'SNAPFS_STORE': '/none'}) == client.Target(store)
    assert client.locate(None, {'SNAPFS_STORE': str(store)}) == client.Target(store)
    with pytest.raises(Invalid, match='there is no store at /none'):
        client.locate('/none', {})
    with pytest.raises(Invalid, match='Say --store'):
        client.locate(None, {}, str(tmp_path))


@pytest.mark.parametrize('part', ['catalog.sqlite', 'journal', 'backups'])
def test_a_store_without_its_superblock_is_not_told_to_be_made_anew(tmp_path, part):
    (tmp_path / part).mkdir()
    with pytest.raises(Invalid, match='there is no store'):  # it could be anybody's
        client.locate(str(tmp_path), {})
    (tmp_path / 'packs').mkdir()
    with pytest.raises(Corrupt, match='superblock is missing') as caught:
        client.locate(str(tmp_path), {})
    assert 'snapfs rebuild' in caught.value.advice and 'init' not in caught.value.advice


def test_the_store_is_found_by_the_mount_one_stands_in(monkeypatch, store, tmp_path):
    mount = mounts.Mount('0:57', str(tmp_path), 'fuse.snapfs', 't', ('rw',), (f'user_id={os.getuid()}',))
    monkeypatch.setattr(mounts, 'read_mounts', lambda: [mount])
    run = tmp_path / 'run'
    monkeypatch.setattr(runtime, 'runtime_directories', lambda uid: [run])
    with pytest.raises(Invalid, match='not known to you'):
        client.locate(None, {}, str(tmp_path / 'deep' / 'inside'))
    entry = runtime.Entry(str(store), '0:57', str(tmp_path), 't', None, 1)
    assert runtime.write_entry(entry, os.getuid()) is not None
    found = client.locate(None, {}, str(tmp_path / 'deep' / 'inside'))
    assert found == client.Target(store, '0:57')


def test_without_a_daemon_the_store_is_opened_here(store, fake_parts):
    target = client.Target(store)
    assert client.call(target, 'volume.create', {'name': 'home'})['name'] == 'home'
    assert [volume['name'] for volume in client.call(target, 'volume.list', {})] == ['home']
    assert client.lock_is_free(store)
    assert client.call(target, 'status', {})['daemon'] is None


def test_an_error_here_is_the_error_itself_and_leaves_the_store_closed(store, fake_parts):
    with pytest.raises(Refused, match="no volume 'x'"):
        client.call(client.Target(store), 'volume.delete', {'name': 'x'})
    assert client.lock_is_free(store)


class Serving:
    """A daemon without a mount, in a thread: the engine, and the control socket."""

    def __init__(self, store, start=None):
        self.store = store
        self.started = threading.Event()
        self.start = start
        self.thread = threading.Thread(target=trio.run, args=(self.main,), daemon=True)

    def __enter__(self):
        self.thread.start()
        assert self.started.wait(10)
        return self

    def __exit__(self, *exc_info):
        if self.start is not None:
            self.start.set()
        trio.from_thread.run_sync(self.stop.set, trio_token=self.token)
        self.thread.join(10)
        assert not self.thread.is_alive()

    async def main(self):
        self.token, self.stop = trio.lowlevel.current_trio_token(), trio.Event()
        engine = await FakeEngine.open(self.store, 0)

        async def handler(request, peer):
            return await commands.dispatch(engine, request, peer, {'pid': os.getpid()})

        server = control.ControlServer(self.store, HELLO, handler)
        async with trio.open_nursery() as nursery:
            if self.start is not None:
                self.started.set()
                await trio.to_thread.run_sync(self.start.wait)
            await nursery.start(server.serve)
            self.started.set()
            await self.stop.wait()
            await server.stop_listening()
            await engine.close()
            server.finish(clean=True)


def test_with_a_daemon_it_is_asked(store, fake_parts):
    with Serving(store):
        target = client.Target(store)
        assert client.call(target, 'volume.create', {'name': 'home'})['name'] == 'home'
        assert client.call(target, 'status', {})['daemon'] == {'pid': os.getpid()}
        assert not client.lock_is_free(store)
        assert client.hello_of(store)['mountpoint'] == '/m'
        with pytest.raises(Unavailable, match='0:58'):
            client.call(client.Target(store, '0:58'), 'volume.list', {})
    assert client.hello_of(store) is None
    # What was done through the daemon is there without it.
    assert client.call(client.Target(store), 'volume.list', {})[0]['name'] == 'home'


def test_a_starting_daemon_is_waited_for(store, fake_parts, monkeypatch):
    """The lock is taken and nobody listens yet."""
    start = threading.Event()
    pauses = []

    def pause(seconds):
        pauses.append(seconds)
        start.set()
        threading.Event().wait(seconds)

    monkeypatch.setattr(client, '_pause', pause)
    with Serving(store, start):
        assert client.call(client.Target(store), 'status', {})['daemon'] == {'pid': os.getpid()}
    assert pauses


def test_a_leaving_owner_is_waited_for(store, fake_parts, monkeypatch):
    fd = os.open(store / 'lock', os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(fd, fcntl.LOCK_EX)
    monkeypatch.setattr(client, '_pause', lambda seconds: os.close(fd))
    assert client.call(client.Target(store), 'volume.list', {}) == []


def test_the_wait_is_bounded_and_names_the_holder(store, fake_parts, monkeypatch):
    class Clock:
        now = 0.0

        def monotonic(self):
            return self.now

    clock = Clock()

    def pause(seconds):
        clock.now += 10.0

    fd = os.open(store / 'lock', os.O_RDWR | os.O_CREAT, 0o600)
    os.write(fd, json.dumps([4711, 'host', 0, '/mnt/x']).encode().ljust(4096))
    fcntl.flock(fd, fcntl.LOCK_EX)
    monkeypatch.setattr(client, '_pause', pause)
    try:
        with pytest.raises(Unavailable, match=r'4711.*/mnt/x'):
            client.call(client.Target(store), 'volume.list', {}, world=clock)
    finally:
        os.close(fd)
    assert clock.now >= limits.CALL_WAIT_SECONDS


def test_a_command_is_never_sent_twice(store, fake_parts, monkeypatch):
    """A daemon that dies in the middle of a command may have carried it out."""
    sent = []

    class Dying:
        def __init__(self, store, timeout=None):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *exc_info):
            pass

        def ask(self, request):
            sent.append(request.command)
            if request.command == 'hello':
                return {'closing': False}
            raise client.NoDaemon

    monkeypatch.setattr(client, 'Connection', Dying)
    with pytest.raises(Unavailable, match='look whether it was done'):
        client.call(client.Target(store), 'volume.create', {'name': 'a'})
    assert sent == ['hello', 'volume.create']


def test_a_daemon_that_closes_is_given_no_work(store, fake_parts, monkeypatch):
    asked = []

    class Closing:
        def __init__(self, store, timeout=None):
            if asked:
                raise client.NoDaemon

        def __enter__(self):
            return self

        def __exit__(self, *exc_info):
            pass

        def ask(self, request):
            asked.append(request)
            return {'closing': True}

    monkeypatch.setattr(client, 'Connection', Closing)
    assert client.call(client.Target(store), 'volume.list', {}) == []
    assert asked == [wire.Request('hello', {})]
