"""L6 daemon: the life of a mounted store in one process, from opening it to its clean end. One event loop
(trio).

Order at the start: signals, store, mount, control socket, runtime, and only then "ready". At the end:
the mount is gone, then no more commands, then the store is closed, then those who wait are told. Whatever
else ends the daemon leaves the mountpoint as it is, dead: a mountpoint that turns into an empty directory
makes a mirror job delete its copy. The daemon never looks at its own mountpoint, since only it could
answer.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import pyfuse3
import trio

from snapfs import limits
from snapfs.errors import SnapfsError, Unavailable
from snapfs.service import client, commands, control, mounts, process, runtime, sockets, system, wire
from snapfs.service.compose import MountRequest, Parts
from snapfs.service.notify import notify
from snapfs.service.options import fuse_arguments
from snapfs.world import World

if TYPE_CHECKING:
    from snapfs.service.collecting import Collecting
    from snapfs.volume.engine import Engine

log = logging.getLogger(__name__)
Ready = Callable[[control.Hello], None]


class Daemon:
    """One mount of one store. `run` is its whole life."""

    def __init__(self, request: MountRequest, parts: Parts, ready: Ready, world: World | None = None) -> None:
        self.request = request
        self.parts = parts
        self.ready = ready
        self.world = world or World()
        self._stopping = False

    async def run(self) -> None:
        """Mount, serve, close. Returns after a clean end; raises what went wrong otherwise."""
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            await self._run(await self._open_unless(signals), signals)

    async def _run(self, engine: Engine, signals: AsyncIterator[int]) -> None:
        failure: BaseException | None = None
        async with trio.open_nursery() as background:
            await background.start(engine.run)
            background.start_soon(self._trim_memory, engine)
            try:
                operations = self.parts.operations(engine, self.request)
                hello = self._attach(operations)
            except SnapfsError as error:
                failure = error  # nothing is mounted: the store is closed as if nothing had been
            else:
                self.parts.mounted(engine, self.request)
                collecting = self.parts.collecting(engine)
                if collecting is not None:
                    await background.start(collecting.run)
                    keeper = self.parts.scrubbing(collecting)
                    background.start_soon(keeper.schedule)
                    background.start_soon(keeper.back_up)
                await self._serve(engine, hello, signals, collecting)
            if failure is not None:
                await engine.close()
            background.cancel_scope.cancel()
        if failure is not None:
            raise failure

    async def _trim_memory(self, engine: Engine) -> None:
        """Give free memory back to the system when a burst of work is over."""
        trimmed: object = None
        while True:
            await self.world.sleep(limits.MALLOC_TRIM_SECONDS)
            done = engine.counters()
            if done != trimmed:
                await self.world.run_in_thread(process.trim_memory)
                trimmed = done

    async def _open_unless(self, signals: AsyncIterator[int]) -> Engine:
        """Open the store. Unavailable, with the store closed again, when a signal comes before it is open:
        that may be long, when another has it. Later ones wait for the mount, which they then end in good
        order."""
        engine: Engine | None = None
        failure: SnapfsError | None = None
        async with trio.open_nursery() as nursery:

            async def give_up() -> None:
                nonlocal failure
                number = await anext(signals)
                failure = Unavailable(f'{signal.Signals(number).name} came before anything was mounted')
                nursery.cancel_scope.cancel()

            nursery.start_soon(give_up)
            try:
                engine = await self._open()
            except SnapfsError as error:
                failure = failure or error
            nursery.cancel_scope.cancel()
        if failure is not None:
            if engine is not None:
                await engine.close()
            raise failure
        assert engine is not None
        return engine

    async def _open(self) -> Engine:
        store = self.request.store
        try:
            return await self._open_in_turn(store)
        except OSError as error:
            where = error.filename or store
            raise Unavailable(f'{store} cannot be opened: {error.strerror}: {where}') from error

    async def _open_in_turn(self, store: Path) -> Engine:
        """Open the store once the daemon before this one has finished; Unavailable if another mounts it."""
        for _ in range(round(limits.MOUNT_WAIT_SECONDS / limits.MOUNT_LOOK_SECONDS) - 1):
            try:
                return await self.parts.open_engine(store, limits.MOUNT_LOOK_SECONDS)
            except Unavailable:
                # Of several that start at once one mounts; the rest would wait for its end.
                await self.world.run_in_thread(client.refuse_second_daemon, store)
                if await self.world.run_in_thread(client.lock_is_free, store):
                    break  # freed just now, or it was not the lock: the last try will tell
        return await self.parts.open_engine(store, limits.MOUNT_LOOK_SECONDS)

    def _attach(self, operations: pyfuse3.Operations) -> control.Hello:
        """Mount, and return what the daemon will say of itself."""
        request = self.request
        with _caught_stderr() as said:
            try:
                pyfuse3.init(operations, request.mountpoint, fuse_arguments(request.options, request.fsname))
            except RuntimeError as error:
                reason = said().removeprefix('fuse: ').removeprefix('fusermount3: ') or str(error)
                raise Unavailable(f'{request.mountpoint} cannot be mounted: {reason}') from None
        system.set_time_flags(request.mountpoint, request.options)
        mount = mounts.mount_at(request.mountpoint, mounts.read_mounts())
        return control.Hello(
            pid=os.getpid(),
            store=str(request.store),
            socket=str(request.store / sockets.NAME),
            mountpoint=request.mountpoint,
            device='' if mount is None else mount.device,
            source=request.fsname,
            volume=request.volume,
            log=None if request.log is None else str(request.log),
            started_ns=self.world.time_ns(),
        )

    async def _serve(
        self,
        engine: Engine,
        hello: control.Hello,
        signals: AsyncIterator[int],
        collecting: Collecting | None,
    ) -> None:
        async def handler(call: wire.Request, peer: sockets.Peer) -> object:
            answer = await commands.dispatch(engine, call, peer, asdict(hello), collecting)
            await self.parts.settled()  # who goes on after a rollback must not meet what the kernel remembers
            return answer

        server = control.ControlServer(self.request.store, hello, handler)
        watching = trio.CancelScope()
        async with trio.open_nursery() as doors:
            await doors.start(server.serve)
            await doors.start(self._watch_signals, hello, signals, watching)
            entry = self._register(hello)
            process.freeze_garbage()
            log.info('mounted %s at %s, pid %d', hello.store, hello.mountpoint, hello.pid)
            self.ready(hello)
            await self.parts.serve()
            notify('STOPPING=1')
            log.info('%s is unmounted; closing %s', hello.mountpoint, hello.store)
            if entry is not None:
                runtime.remove_entry(entry, hello.pid)
            pyfuse3.close(unmount=False)
            if collecting is not None:
                await collecting.stop()  # first: a command that collects would be waited for
            await server.stop_listening()
            clean = engine.writable()  # else there is nothing that may still be written
            await engine.close()
            log.info('closed %s, %s', hello.store, 'clean' if clean else 'not clean')
            server.finish(clean)
            watching.cancel()

    def _register(self, hello: control.Hello) -> Path | None:
        uid = os.getuid()
        entry = runtime.Entry(
            hello.store, hello.device, hello.mountpoint, hello.source, hello.volume, hello.pid
        )
        path = runtime.write_entry(entry, uid)
        if path is None:
            log.warning('no runtime directory for uid %d: commands inside the mount need --store', uid)
        return path

    async def _watch_signals(
        self,
        hello: control.Hello,
        received: AsyncIterator[int],
        scope: trio.CancelScope,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        with scope:
            task_status.started()
            async for number in received:
                # A supervisor may repeat itself while the last commit runs; once is enough.
                if not self._stopping:
                    self._stopping = True
                    log.info('%s: unmounting %s', signal.Signals(number).name, hello.mountpoint)
                    await self._unmount(hello)

    async def _unmount(self, hello: control.Hello) -> None:
        """Unmount, under the feet of others if need be; in any case let the session end."""
        notify('STOPPING=1')
        top = mounts.mount_at(hello.mountpoint, mounts.read_mounts())
        if top is not None and top.device == hello.device:
            try:
                await trio.to_thread.run_sync(system.unmount, hello.mountpoint)
                return
            except Unavailable as error:
                log.warning('%s', error)
            try:
                await trio.to_thread.run_sync(lambda: system.unmount(hello.mountpoint, lazy=True))
            except Unavailable as error:
                log.error('%s; it stays as a dead mountpoint', error)
        self.parts.terminate()


@contextlib.contextmanager
def _caught_stderr() -> Iterator[Callable[[], str]]:
    """Catch what C code prints to standard error meanwhile: libfuse says there why a mount failed."""
    caught = os.memfd_create('stderr', os.MFD_CLOEXEC)
    saved = os.dup(2)
    os.dup2(caught, 2)

    def said() -> str:
        text = os.pread(caught, limits.KIB, 0).decode(errors='replace')
        return ' '.join(text.split())

    try:
        yield said
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(caught)
