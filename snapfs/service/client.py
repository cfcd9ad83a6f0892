"""L6 client: finds the store a command is meant for, and carries the command out, mounted or not. Blocking.

A command goes through the control socket when a daemon answers there; else the store is opened in this
process and the same table of commands (commands.py) is used. Daemons start and stop meanwhile: whoever
finds neither a socket nor a free lock waits, limits.CALL_WAIT_SECONDS at most, and looks again.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from snapfs import limits
from snapfs.errors import Corrupt, Invalid, SnapfsError, Unavailable
from snapfs.service import mounts, runtime, sockets, wire
from snapfs.world import World

Watch = Callable[[Any], None]


class NoDaemon(Exception):
    """Nobody listens on the control socket. Never leaves this package."""


@dataclass(frozen=True, slots=True)
class Target:
    """The store that is meant; `device` is set when it was found through the mount with that device."""

    store: Path
    device: str | None = None


class Connection:
    """A connection to the daemon of a store. Raises NoDaemon when there is none."""

    def __init__(self, store: Path, timeout: float | None = None) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self._socket.settimeout(timeout)
        try:
            with sockets.address(store) as path:
                self._socket.connect(path)
        except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError):
            self.close()
            raise NoDaemon from None
        except PermissionError:
            self.close()
            raise Invalid(f'only root and the owner of {store} may command it') from None
        self._reader = self._socket.makefile('rb')

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Hang up."""
        self._socket.close()

    def set_timeout(self, seconds: float | None) -> None:
        """Let `receive` wait so long from now on, None for ever."""
        self._socket.settimeout(seconds)

    def wait(self, seconds: float) -> bool:
        """Wait for the beginning of an answer, or the end; return whether it has come."""
        return bool(select.select([self._socket], [], [], seconds)[0])

    def send(self, request: wire.Request) -> None:
        """Send a request. NoDaemon when the daemon hung up before it could have read it."""
        try:
            self._socket.sendall(wire.encode_request(request))
        except (BrokenPipeError, ConnectionResetError):
            raise NoDaemon from None

    def receive(self) -> object:
        """Wait for an answer and return its value, or raise its error. NoDaemon: the daemon hung up first."""
        try:
            line = self._reader.readline(limits.CONTROL_RESPONSE_BYTES_MAX)
        except ConnectionResetError:
            raise NoDaemon from None
        except TimeoutError:
            raise Unavailable('the daemon of the store does not answer') from None
        if not line.endswith(b'\n'):
            raise NoDaemon
        return wire.decode_answer(line)

    def ask(self, request: wire.Request) -> object:
        """Send a request and return the value of its answer."""
        self.send(request)
        return self.receive()


def locate(option: str | None, environment: Mapping[str, str], directory: str | None = None) -> Target:
    """Find the store: --store, else SNAPFS_STORE, else the mount that `directory` (default: here) lies in."""
    if option == '':
        raise Invalid('--store is empty; name a store')  # it would mean whatever store is found otherwise
    named = option or environment.get('SNAPFS_STORE')
    if named:
        store = Path(os.path.abspath(named))
        check_store(store)
        return Target(store)
    try:
        here = os.path.realpath(directory if directory is not None else os.getcwd())
    except FileNotFoundError:
        raise Invalid('the current directory is gone; say which store with --store') from None
    mount = mounts.enclosing_mount(here, mounts.read_mounts())
    if mount is None or not mount.is_snapfs:
        raise Invalid('which store? Say --store STORE, set SNAPFS_STORE, or stand in a mounted one')
    entry = runtime.find_entry(mount)
    if entry is None:
        raise Invalid(f'the store behind {mount.mountpoint} is not known to you; say it with --store')
    return Target(Path(entry.store), mount.device)


def is_store(path: Path) -> bool:
    """Say whether a store was made at `path`. Blocking."""
    try:
        return (path / 'superblock').is_file()
    except PermissionError:
        raise Invalid(f'{path} belongs to another user') from None


def check_store(path: Path) -> None:
    """Invalid unless there is a store at `path`; Corrupt if it is one that has lost its superblock."""
    if is_store(path):
        return
    others = ('catalog.sqlite', 'backups', 'journal')
    if (path / 'packs').is_dir() and any((path / name).exists() for name in others):
        # Never `init`: whoever follows that advice after moving things away has two halves of a store.
        raise Corrupt(
            f'{path / "superblock"} is missing',
            advice=f'Put it back from its copy: snapfs rebuild {path} {path / "catalog.new"} --install.',
        )
    raise Invalid(f'there is no store at {path}', advice=f'snapfs init {path} makes one.')


def call(
    target: Target,
    command: str,
    arguments: wire.Arguments,
    *,
    world: World | None = None,
    watch: Watch | None = None,
) -> object:
    """Carry a command out and return its JSON-able value. Raises one of the six errors. `watch` is told
    now and then what the collector moves (None: nothing), as collect.progress has it."""
    clock = world or World()
    deadline = clock.monotonic() + limits.CALL_WAIT_SECONDS
    request = wire.Request(command, arguments, target.device)
    while True:
        try:
            with Connection(target.store) as connection:
                # Asked first, so that a daemon that is about to go is known to be one before it gets work:
                # a command that may or may not have been carried out must never be sent twice.
                hello = connection.ask(wire.Request('hello', {}, target.device))
                if not (isinstance(hello, dict) and hello.get('closing')):
                    return _ask_once(connection, request, target if watch is not None else None, watch)
        except NoDaemon:
            alone = lock_is_free(target.store)
        else:
            alone = False  # it is closing
        if alone:
            return call_here(target.store, command, arguments, watch)
        if clock.monotonic() >= deadline:
            who = holder(target.store)
            raise Unavailable(f'{target.store} stayed locked for {limits.CALL_WAIT_SECONDS:.0f} s{who}')
        _pause(limits.CALL_RETRY_SECONDS)


def call_here(store: Path, command: str, arguments: wire.Arguments, watch: Watch | None = None) -> object:
    """Open the store in this process, carry the command out, close the store again."""
    import trio

    from snapfs.service import compose, process

    check_store(store)
    process.check_interpreter()
    process.check_chunker()
    request = wire.Request(command, arguments)
    return trio.run(compose.call_engine, store, request, sockets.this_process(), None, watch)


def lock_is_free(store: Path) -> bool:
    """Say whether nobody owned the store a moment ago."""
    try:
        fd = os.open(store / 'lock', os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(fd)
    return True


def holder(store: Path) -> str:
    """Return ' by PROCESS' as the lock file tells it, or nothing."""
    from snapfs.store.durable import Disk
    from snapfs.store.lock import StoreLock

    found = StoreLock(Disk(), store / 'lock', World()).holder()
    return '' if found is None else f' by {found}'


def hello_of(store: Path) -> dict[str, object] | None:
    """Return what the daemon of a store says of itself, or None when there is no daemon."""
    try:
        with Connection(store, limits.CONTROL_IDLE_SECONDS) as connection:
            answer = connection.ask(wire.Request('hello', {}))
    except NoDaemon:
        return None
    return answer if isinstance(answer, dict) else None


def refuse_second_daemon(store: Path) -> None:
    """Unavailable if the store is mounted. A daemon that comes or goes is waited for, by way of the lock."""
    hello = hello_of(store)
    if hello is None or hello.get('closing'):
        return
    standing = {mount.device for mount in mounts.read_mounts() if mount.is_snapfs}
    if hello.get('device') in standing:
        where = f'{hello.get("mountpoint")} (pid {hello.get("pid")})'
        raise Unavailable(f'{store} is mounted already, at {where}', advice='')


def _ask_once(
    connection: Connection, request: wire.Request, target: Target | None, watch: Watch | None
) -> object:
    try:
        if target is None or watch is None:
            return connection.ask(request)
        connection.send(request)
        _watch(connection, target, watch)
        return connection.receive()
    except NoDaemon:
        raise Unavailable(f'the daemon ended during {request.command}; look whether it was done') from None


def _watch(connection: Connection, target: Target, watch: Watch) -> None:
    """Until the answer comes, tell how far the daemon is. It is asked over another connection."""
    with (
        contextlib.suppress(NoDaemon, SnapfsError),
        Connection(target.store, limits.CONTROL_IDLE_SECONDS) as side,
    ):
        while not connection.wait(limits.PROGRESS_SECONDS):
            answer = side.ask(wire.Request('collect.progress', {}, target.device))
            watch(answer.get('moving') if isinstance(answer, dict) else None)


def _pause(seconds: float) -> None:
    select.select([], [], [], seconds)
