"""L5 session: the loop that takes requests from the kernel. All of it runs on the event loop; call it from
there.

pyfuse3's own loop asks trio before every request: a fair lock, one `epoll_ctl` and two `epoll_wait`, about
45 µs. A busy client has its next request ready long before that, so this loop looks first (one `poll`
without waiting) and asks trio only when nothing is there, or when `limits.SESSION_YIELD_SECONDS` have
passed since other tasks last ran.

It needs no fork of pyfuse3, which looks the name `trio` up in its own module at each use (its
`pyfuse3.asyncio` rests on the same): `install` puts the small stand-in of this file there. What pyfuse3
uses of trio, and what it gets:

- `Lock` (one worker reads at a time): a flag. Nothing is handed over when it is released, since the worker
  that releases it is nearly always the next that wants it; see `_drive` for when another one must be woken.
- `open_nursery` (workers): the real one, but workers run under `_drive`.
- `lowlevel.wait_readable`, `lowlevel.notify_closing`: see `_Lowlevel`.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import select
import types
from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from time import monotonic
from typing import Any

import pyfuse3
import trio
import trio.lowlevel

from snapfs import limits

log = logging.getLogger(__name__)


class _PollFd(ctypes.Structure):
    """`struct pollfd` of poll(2)."""

    _fields_ = (('fd', ctypes.c_int), ('events', ctypes.c_short), ('revents', ctypes.c_short))


# PyDLL keeps the GIL. poll(2) with timeout 0 takes a microsecond, while winning the GIL back from a busy
# thread takes up to a whole switch interval, each time.
_poll_holding_gil = ctypes.PyDLL(None).poll


class _Done:
    """An awaitable that is done already: cheaper than a coroutine that returns at once."""

    __slots__ = ()

    def __await__(self) -> Any:
        return iter(())


_DONE = _Done()


class _Lock:
    """Lets one worker at a time wait for requests.

    The others are parked, and the last to park is the first to wake: few workers, hence few read buffers,
    are in use.
    """

    __slots__ = ('held', 'parked', 'woken')

    def __init__(self) -> None:
        self.held = False
        self.parked: list[trio.lowlevel.Task] = []
        self.woken = False

    def __aenter__(self) -> Awaitable[None]:
        if self.held:
            return self._wait()
        self.held = True
        return _DONE

    def __aexit__(self, *exc_info: object) -> Awaitable[None]:
        self.held = False
        return _DONE

    async def _wait(self) -> None:
        task = trio.lowlevel.current_task()

        def abort(_raise_cancel: object) -> trio.lowlevel.Abort:
            self.parked.remove(task)
            return trio.lowlevel.Abort.SUCCEEDED

        while self.held:
            self.parked.append(task)
            await trio.lowlevel.wait_task_rescheduled(abort)
            self.woken = False
        self.held = True

    def wake(self) -> None:
        """Let one parked worker try, unless one is about to, or a worker is reading already."""
        if self.parked and not self.held and not self.woken:
            self.woken = True
            trio.lowlevel.reschedule(self.parked.pop())


@types.coroutine
def _drive(lock: _Lock, worker: Generator[Any, Any, None]) -> Generator[Any, Any, None]:
    """Run a worker, and when it goes to sleep in a handler, wake another one to read in its place.

    This is `yield from` by hand: it sees each moment at which the worker gives control to trio. If nobody
    holds the lock then, the worker sleeps in a handler (a slow fsync, say), and without a reader all other
    requests would wait for it.
    """
    send, value = worker.send, None
    try:
        while True:
            message = send(value)
            lock.wake()
            try:
                send, value = worker.send, (yield message)
            except BaseException as error:
                send, value = worker.throw, error
    except StopIteration:
        pass
    finally:
        lock.wake()


class _Nursery:
    """A trio nursery whose tasks are workers.

    Every new worker gets to run before the next request is taken: it parks, and pyfuse3, which starts a
    worker whenever it sees none waiting, sees one.
    """

    __slots__ = ('real', 'session')

    def __init__(self, session: _Session, real: trio.Nursery) -> None:
        self.session = session
        self.real = real

    def start_soon(self, function: Callable[..., Any], *args: object, name: str) -> None:
        self.session.yield_at = 0.0
        self.real.start_soon(self.session.work, function, args, name=name)


class _Session:
    """Stands in for the module `trio`, and for `trio.lowlevel`, inside pyfuse3."""

    ClosedResourceError = trio.ClosedResourceError
    current_task = staticmethod(trio.lowlevel.current_task)
    current_trio_token = staticmethod(trio.lowlevel.current_trio_token)

    def __init__(self) -> None:
        self.lowlevel = self
        self.lock = _Lock()
        self.closing = False
        self.yield_at = 0.0
        self.poll_fd = _PollFd(-1, select.POLLIN, 0)
        self.poll_ref = ctypes.byref(self.poll_fd)

    def Lock(self) -> _Lock:
        return self.lock

    @contextlib.asynccontextmanager
    async def open_nursery(self) -> AsyncIterator[_Nursery]:
        """Start anew: pyfuse3 opens one nursery for each run of its main loop."""
        self.lock = _Lock()
        self.closing = False
        self.poll_fd.fd = -1
        self.yield_at = 0.0
        async with trio.open_nursery() as nursery:
            yield _Nursery(self, nursery)

    async def work(self, function: Callable[..., Any], args: tuple[object, ...]) -> None:
        """Run one worker until pyfuse3 ends it."""
        while True:
            try:
                await _drive(self.lock, function(*args))
                return
            except (BlockingIOError, FileNotFoundError) as error:
                # The request whose arrival woke us was taken back (its caller was killed). pyfuse3 takes
                # that for the end of the world. Its worker has given up nothing but its buffer, and still
                # counts; let it begin anew.
                if 'fuse_session_receive_buf' not in str(error):
                    raise
                log.debug('a request was taken back before it was read: %s', error)

    def wait_readable(self, fd: int) -> Awaitable[None]:
        """Return when a request can be read or the connection has ended. The caller holds the lock."""
        if monotonic() < self.yield_at and _poll_holding_gil(self.poll_ref, 1, 0):
            return _DONE
        return self._wait(fd)

    async def _wait(self, fd: int) -> None:
        if self.poll_fd.fd != fd:
            # A request can be taken back between poll and read. A blocking read would then stop the whole
            # event loop.
            os.set_blocking(fd, False)
            self.poll_fd.fd = fd
        if monotonic() >= self.yield_at:
            await trio.lowlevel.checkpoint()
            if self.closing:
                raise trio.ClosedResourceError('the session ends')
            self.yield_at = monotonic() + limits.SESSION_YIELD_SECONDS
            if _poll_holding_gil(self.poll_ref, 1, 0):
                return
        await trio.lowlevel.wait_readable(fd)
        self.yield_at = monotonic() + limits.SESSION_YIELD_SECONDS
        if self.closing:
            raise trio.ClosedResourceError('the session ends')

    def notify_closing(self, fd: int) -> None:
        """Make `wait_readable` raise ClosedResourceError, now and until the next run of the main loop.

        trio's own only reaches a task that waits at this moment; ours may just be letting others run.
        """
        self.closing = True
        self.yield_at = 0.0
        trio.lowlevel.notify_closing(fd)


_session = _Session()


def install() -> None:
    """Make pyfuse3 use this loop. Call before `pyfuse3.main`; calling it again changes nothing."""
    vars(pyfuse3)['trio'] = _session


def uninstall() -> None:
    """Give pyfuse3 its own loop back (to compare the two)."""
    vars(pyfuse3)['trio'] = trio


async def serve(
    tasks_min: int = limits.SESSION_TASKS_IDLE, tasks_max: int = limits.SESSION_TASKS_MAX
) -> None:
    """Answer requests until the filesystem is unmounted, the connection is aborted, or `terminate` is called.

    Call after `pyfuse3.init`, in the task that may be cancelled to stop at once (handlers are cancelled
    too, their requests stay unanswered until `pyfuse3.close`). `tasks_max` is how many requests may sleep
    in handlers at a time; more wait in the kernel. About `tasks_min` idle workers are kept. An exception
    that escapes a handler ends the loop and is raised from here, in an exception group.
    """
    install()
    await pyfuse3.main(tasks_min, tasks_max)


def terminate() -> None:
    """Make `serve` return when the handlers now running have ended. Harmless when repeated."""
    pyfuse3.terminate()
