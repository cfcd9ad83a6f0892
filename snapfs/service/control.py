"""L6 control: the socket STORE/control.sock of a running daemon. One event loop (trio).

Only root, the owner of the store and the user the daemon runs as are served: the socket has mode 0600, and
SO_PEERCRED is looked at for each connection. A connection carries any number of requests, one after the
other. Two requests concern the daemon itself: `hello` tells who serves, and `closed` is answered twice,
at once like `hello`, and again when the store has been closed (so that `snapfs umount` knows what it
waited for).
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import trio

from snapfs import errors, limits
from snapfs.service import sockets, wire

log = logging.getLogger(__name__)
Handler = Callable[[wire.Request, sockets.Peer], Awaitable[object]]


@dataclass(frozen=True, slots=True)
class Hello:
    """What a daemon says of itself. `device` is the mount's 'major:minor'."""

    pid: int
    store: str
    socket: str
    mountpoint: str
    device: str
    source: str
    volume: str | None
    log: str | None
    started_ns: int
    closing: bool = False


class ControlServer:
    """Answers requests until `stop_listening`; connections live on until `finish`."""

    def __init__(self, store: Path, hello: Hello, handler: Handler) -> None:
        self.store = store
        self.hello = hello
        self.handler = handler
        self.allowed = {0, os.geteuid(), store.stat().st_uid}
        self._closed = trio.Event()
        self._clean = False
        self._busy = 0
        self._idle = trio.Event()
        self._listening = trio.CancelScope()
        self._reading: set[trio.CancelScope] = set()
        self._places = trio.Semaphore(limits.CONTROL_CONNECTIONS_MAX)

    def bind(self) -> trio.SocketListener:
        """Make the socket. The caller owns the store, so a socket file that is there belongs to nobody."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        mask = os.umask(0o177)  # mode 0600 from its first moment on
        try:
            with sockets.address(self.store) as path:
                if os.path.lexists(path):
                    os.unlink(path)
                listener.bind(path)
                if os.geteuid() == 0:  # the owner may command his store also when root has mounted it
                    owner = self.store.stat()
                    os.chown(path, owner.st_uid, owner.st_gid)
        finally:
            os.umask(mask)
        listener.listen(limits.CONTROL_CONNECTIONS_MAX)
        return trio.SocketListener(trio.socket.from_stdlib_socket(listener))

    async def serve(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Accept and answer. Returns when `finish` was called and every waiting client has been told."""
        listener = self.bind()
        async with trio.open_nursery() as connections:
            task_status.started()
            with self._listening:
                while True:
                    await self._places.acquire()
                    stream = await listener.accept()
                    connections.start_soon(self._connection, stream)
            await listener.aclose()
            await self._closed.wait()
            for scope in self._reading:
                scope.cancel()

    async def stop_listening(self) -> None:
        """Take no new client, remove the socket, and wait for the commands under way."""
        self.hello = replace(self.hello, closing=True)
        self._listening.cancel()
        with sockets.address(self.store) as path:
            # Before the lock is free: a socket found later belongs to the next daemon.
            if os.path.lexists(path):
                os.unlink(path)
        while self._busy:
            await self._idle.wait()

    def finish(self, clean: bool) -> None:
        """The store is closed: tell those who wait for it, and let `serve` return."""
        self._clean = clean
        self._closed.set()

    async def _connection(self, stream: trio.SocketStream) -> None:
        try:
            async with stream:
                peer = sockets.peer_of(stream.socket)  # type: ignore[arg-type]
                await self._converse(stream, peer)
        except trio.BrokenResourceError:
            pass  # the client went away; what it asked for has been done
        finally:
            self._places.release()

    async def _converse(self, stream: trio.SocketStream, peer: sockets.Peer) -> None:
        buffered = bytearray()
        while True:
            line = await self._read_line(stream, buffered)
            if line is None:
                return
            try:
                # After its line was read: hanging up on unread bytes would take our answer back.
                if peer.uid not in self.allowed:
                    raise errors.Invalid('only root and the owner of the store may command it')
                request = wire.decode_request(line)
                self._check_device(request)
            except errors.SnapfsError as error:
                await stream.send_all(wire.encode_error(error))
                continue
            if request.command == 'closed':
                await stream.send_all(wire.encode_result(asdict(self.hello)))
                await self._closed.wait()
                await stream.send_all(wire.encode_result({'clean': self._clean}))
                return
            async with trio.open_nursery() as beside:
                beside.start_soon(_watch_leaving, stream, peer)
                answer = await self._answer(request, peer)
                beside.cancel_scope.cancel()
            await stream.send_all(answer)

    async def _answer(self, request: wire.Request, peer: sockets.Peer) -> bytes:
        if request.command == 'hello':
            return wire.encode_result(asdict(self.hello))
        if self.hello.closing:
            return wire.encode_error(errors.Unavailable('the daemon is closing the store'))
        self._busy += 1
        try:
            return wire.encode_result(await self.handler(request, peer))
        except errors.SnapfsError as error:
            return wire.encode_error(error)
        except Exception as error:
            # A door neither hides an error nor dies of it: the client gets a line, the log gets the
            # traceback.
            log.exception('command %s failed', request.command)
            trouble = errors.Unavailable(
                f'{request.command} failed in the daemon: {error!r}; its log has more'
            )
            return wire.encode_error(trouble)
        finally:
            self._busy -= 1
            if not self._busy:
                self._idle.set()
                self._idle = trio.Event()

    def _check_device(self, request: wire.Request) -> None:
        if request.device not in (None, self.hello.device):
            raise errors.Unavailable(f'the store is now mounted as {self.hello.device}, not {request.device}')

    async def _read_line(self, stream: trio.SocketStream, buffered: bytearray) -> bytes | None:
        """Return the next line, or None: end, too slow, or (after saying so) too long."""
        with trio.CancelScope() as scope:
            scope.deadline = trio.current_time() + limits.CONTROL_IDLE_SECONDS
            self._reading.add(scope)
            try:
                while b'\n' not in buffered:
                    if len(buffered) >= limits.CONTROL_REQUEST_BYTES_MAX:
                        await stream.send_all(wire.encode_error(errors.Invalid('the request is too long')))
                        return None
                    data = await stream.receive_some(limits.CONTROL_REQUEST_BYTES_MAX - len(buffered))
                    if not data:
                        return None
                    buffered += data
            finally:
                self._reading.discard(scope)
            line, _newline, rest = bytes(buffered).partition(b'\n')
            buffered[:] = rest
            return line
        return None


async def _watch_leaving(stream: trio.SocketStream, peer: sockets.Peer) -> None:
    """Tell when a client hangs up while he is being served. Not when he has said something more meanwhile:
    it stays unread, and we would be woken for ever."""
    await trio.lowlevel.wait_readable(stream.socket)
    if sockets.has_hung_up(stream.socket):  # type: ignore[arg-type]
        peer.asker.leave()
