"""L6 composition: the one place that puts the engine, the adapter and the session loop together.

The daemon and the command line know the lower layers only through here; tests put their own `Parts` in.
Imports of the heavy layers happen inside the functions.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import trio

from snapfs import limits
from snapfs.errors import SnapfsError, Unavailable
from snapfs.service import collect_commands, commands, rescue_commands, sockets, wire  # noqa: F401
from snapfs.world import World

if TYPE_CHECKING:
    import pyfuse3

    from snapfs.mount.adapter import Adapter
    from snapfs.service.collecting import Collecting
    from snapfs.service.options import MountOptions
    from snapfs.service.scrubbing import Scrubbing
    from snapfs.volume.engine import Engine


@dataclass(frozen=True, slots=True)
class MountRequest:
    """What a daemon is to mount. Paths are absolute; `fsname` is the source that the mount shows."""

    store: Path
    volume: str | None
    mountpoint: str
    fsname: str
    options: MountOptions
    log: Path | None


class Parts(Protocol):
    """What a daemon is made of."""

    async def open_engine(self, store: Path, wait_seconds: float) -> Engine:
        """Open the store; wait so long for another owner to let go of it."""
        ...

    def operations(self, engine: Engine, request: MountRequest) -> pyfuse3.Operations:
        """Return the handlers of the mount. Invalid when the volume asked for does not exist."""
        ...

    def collecting(self, engine: Engine) -> Collecting | None:
        """Return the collector of the engine; its schedule does not run yet."""
        ...

    def scrubbing(self, collecting: Collecting) -> Scrubbing:
        """Return what verifies the store; its schedule does not run yet."""
        ...

    def mounted(self, engine: Engine, request: MountRequest) -> None:
        """Let others know where the store is mounted. Never raises: it is information only."""
        ...

    async def serve(self) -> None:
        """Answer the kernel until the mount is gone, or `terminate` was called."""
        ...

    async def settled(self) -> None:
        """Return when the kernel knows what a command has changed."""
        ...

    def terminate(self) -> None:
        """Make `serve` return although the mount is still there."""
        ...


class RealParts:
    """The parts of a real daemon. Made for one mount."""

    def __init__(self, reading: bool = False) -> None:
        """`reading`: the store is opened without writing a byte, as on a filesystem that is read-only."""
        self._reading = reading
        self._adapter: Adapter | None = None

    async def open_engine(self, store: Path, wait_seconds: float) -> Engine:
        from snapfs.store.durable import Disk
        from snapfs.store.readonly import ReadingDisk
        from snapfs.volume.engine import Engine

        disk = ReadingDisk() if self._reading and not Disk().is_read_only(store) else Disk()
        if self._reading and not disk.exists(store / 'lock'):
            raise Unavailable(
                f'{store / "lock"} is missing, and a dry run makes no file',
                advice=f'Make an empty one: touch {store / "lock"}.',
            )
        return await Engine.open(store, disk, World(), wait_seconds=wait_seconds)

    def operations(self, engine: Engine, request: MountRequest) -> pyfuse3.Operations:
        from snapfs.mount.adapter import Adapter

        options = request.options
        self._adapter = Adapter(engine, volume=request.volume, uid=options.uid, gid=options.gid)
        engine.mounted_volume = self._adapter.namespace.mounted
        return self._adapter

    def collecting(self, engine: Engine) -> Collecting | None:
        from snapfs.service.collecting import Collecting
        from snapfs.service.workers import run_in_process

        adapter = self._adapter
        pinned = frozenset if adapter is None else adapter.namespace.pinned
        return Collecting(engine, World(), run_in_process, pinned)

    def scrubbing(self, collecting: Collecting) -> Scrubbing:
        from snapfs.service.scrubbing import Scrubbing

        return Scrubbing(collecting)

    def mounted(self, engine: Engine, request: MountRequest) -> None:
        with contextlib.suppress(SnapfsError):  # a full or a latched disk: the lock holds all the same
            engine.store.lock.describe(request.mountpoint)

    async def serve(self) -> None:
        from snapfs.mount import session

        assert self._adapter is not None, 'nothing is mounted'
        await session.serve()
        await self._adapter.stop()

    async def settled(self) -> None:
        if self._adapter is not None:
            await self._adapter.invalidator.settled()

    def terminate(self) -> None:
        from snapfs.mount import session

        session.terminate()


def create_store(path: Path) -> None:
    """Make a new store at `path`. Invalid when something is there already. Blocking."""
    from snapfs.store.durable import Disk
    from snapfs.store.store import Store

    Store.create(path, Disk(), World())


def only_looks(request: wire.Request) -> bool:
    """Whether a command was promised to change nothing. (A plan of the collector begins with a commit.)"""
    return request.command == 'recover' and request.arguments.get('dry_run') is True


async def call_engine(
    store: Path,
    request: wire.Request,
    peer: sockets.Peer,
    parts: Parts | None = None,
    watch: Callable[[Any], None] | None = None,
) -> object:
    """Open the store in this process, carry one command out, close the store. Entry point for trio.run.
    `watch` is told of the collector's progress now and then."""
    parts = parts or RealParts(reading=only_looks(request))
    engine = await parts.open_engine(store, 1.0)
    # The nursery would wrap what goes wrong into a group; the caller wants the error itself.
    outcome: object = None
    failure: Exception | None = None
    collecting: Collecting | None = None
    async with trio.open_nursery() as background:
        await background.start(engine.run)
        try:
            collecting = parts.collecting(engine)
            if collecting is not None:
                await collecting.begin()
                if watch is not None:
                    background.start_soon(_tell_progress, collecting, watch)
            outcome = await commands.dispatch(engine, request, peer, None, collecting)
        except Exception as error:
            failure = error
        if collecting is not None:
            await collecting.stop()
        await engine.close()
        background.cancel_scope.cancel()
    if failure is not None:
        raise failure
    return outcome


async def _tell_progress(collecting: Collecting, watch: Callable[[Any], None]) -> None:
    from snapfs.service.space import moving

    while True:
        watch(moving(collecting))
        await collecting.world.sleep(limits.PROGRESS_SECONDS)
