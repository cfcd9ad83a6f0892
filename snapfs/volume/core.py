"""L4 core: what all views of a store share: chunks, nodes, the budget for dirty bytes, the reason to stop
writing.

Event loop only.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import trio

from snapfs import limits
from snapfs.errors import Corrupt, Latched, Refused, SnapfsError
from snapfs.format import keys
from snapfs.format.ids import chunk_id
from snapfs.format.records import RecordKind
from snapfs.store.store import Store
from snapfs.volume.cutter import Cutter
from snapfs.volume.nodes import NodeCache
from snapfs.world import World

log = logging.getLogger(__name__)

Buffer = bytes | bytearray | memoryview

# The name hashes 0 and 1 are not used: a directory is listed from the position 0, and no entry may stand
# there.
COOKIE_MIN = 3


class Budget:
    """How many bytes writers may still hand over: by memory, by the disk below, and by the state of the
    store.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self.dirty = 0  # what all buffers cost, in bytes
        self.items = 0  # items in memtables, as of the last look
        self.allowance = 0  # bytes that may be taken before the disk below is looked at again
        self.full = False  # the last flush or commit found no room on the disk below
        self.failed: SnapfsError | None = None  # why the last flush or commit could not be done, if not so
        self.stopped: SnapfsError | None = None  # why nothing is written any more
        self.flush_wanted = trio.Event()
        self._room = trio.Event()

    def taken(self, cost: int) -> None:
        """Account for bytes that were buffered (or, negative, discarded)."""
        self.dirty += cost
        if self.dirty > limits.DIRTY_BYTES_FLUSH:
            self.flush_wanted.set()
        if cost < 0:
            self.make_room()

    def given_back(self, cost: int) -> None:
        """Account for bytes that are in packs now, and let waiting writers go on."""
        self.dirty -= cost
        assert self.dirty >= 0, 'more bytes flushed than were dirty'
        self.make_room()

    def make_room(self) -> None:
        """Wake the writers that wait; each looks again."""
        self._room.set()
        self._room = trio.Event()

    def tight(self, count: int) -> bool:
        """Return whether a write of `count` bytes has to go through `admit`."""
        return (
            self.dirty + count > limits.DIRTY_BYTES_MAX
            or self.allowance < count
            or self.items > limits.MEMTABLE_ITEMS_MAX
            or self.stopped is not None
        )

    async def admit(self, count: int) -> None:
        """Wait for memory; Refused(ENOSPC) when the disk below has no room, Latched when writing
        has stopped.
        """
        while True:
            if self.stopped is not None:
                raise self.stopped
            if (
                self.dirty + count <= limits.DIRTY_BYTES_MAX + limits.KIB
                and self.items <= limits.MEMTABLE_ITEMS_MAX
            ):
                break
            if self.dirty <= 0 and self.items <= limits.MEMTABLE_ITEMS_MAX:
                break  # a single write larger than the limit
            if self.full:
                raise Refused(errno.ENOSPC)
            if self.failed is not None:
                raise self.failed
            self.flush_wanted.set()
            await self._room.wait()
        if self.allowance < count:
            self.look_at_disk()
            if self.allowance < count:
                raise Refused(errno.ENOSPC)

    def look_at_disk(self) -> None:
        """Ask the disk below how much it has: what is dirty will need a place, and a reserve is kept."""
        self.allowance = self._store.free_bytes() - limits.FREE_BYTES_MIN - 2 * self.dirty

    def stop(self, reason: SnapfsError) -> None:
        """Write nothing from now on; every writer is answered `reason`."""
        if self.stopped is None:
            self.stopped = reason
        self.make_room()


# Regions of fewer bytes than this are cut and stored on the event loop: a thread would cost more than it
# saves.
THREAD_BYTES_MIN = 64 * limits.KIB
SLICE_SECONDS = 0.001


class Core:
    """The services under every view of one open store."""

    def __init__(self, store: Store, world: World) -> None:
        self.store = store
        self.world = world
        self.nodes = NodeCache(store.chunks, world)
        self.budget = Budget(store)
        self.on_damaged: Callable[[int, int | None], None] = lambda view, since_ns: None  # a mark changed
        self.damaged: dict[str, int] = {}  # what was found broken since the start; the view, 0 = not known
        self.nodes.on_damage = lambda id, error: self.report_damage(f'node {id.hex()}: {error}', 0)
        self.flush_lock = (
            trio.Lock()
        )  # held by whoever turns buffers into extents, or shortens a flushed file
        self._name_key = store.superblock.name_key
        if store.latched is not None:
            self.budget.stop(store.disk.refusal('the store is read-only: '))
        self._cutter = Cutter(store.superblock.chunker)
        self._slice_end = 0.0

    def name_hash(self, name: bytes) -> int:
        """Return the 63-bit hash of a directory entry's name: its place in the directory."""
        cookie = keys.name_hash(self._name_key, name)
        return cookie if cookie >= COOKIE_MIN else cookie + COOKIE_MIN

    async def chunk(self, chunk_id: bytes) -> bytes:
        """Return one verified data chunk; Corrupt when it is missing or not what was stored."""
        return (await self.chunks_of([chunk_id]))[0]

    async def chunks_of(self, ids: Sequence[bytes]) -> Sequence[bytes]:
        """Return verified data chunks in the order of `ids`; Corrupt when one is missing or not what was
        stored.
        """
        if not ids:
            return ()
        plains = self.store.chunks.get_many_nowait(ids)
        if plains is None:
            plains = await self.world.run_in_thread(self.store.chunks.get_many, ids)
        return plains

    async def breathe(self) -> None:
        """Let other tasks run when this one has had its millisecond. Called between small steps of
        long work.
        """
        if self.world.monotonic() > self._slice_end:
            await self.world.checkpoint()
            self._slice_end = self.world.monotonic() + SLICE_SECONDS

    async def put_regions(self, regions: Sequence[Buffer]) -> list[list[tuple[int, bytes]]]:
        """Cut regions of files into chunks and store them; return (length, chunk id) of each region's chunks.

        The caller holds `flush_lock`. Refused(ENOSPC) when the disk below is full, its reserve included.
        """
        with self.latching():
            if sum(map(len, regions)) < THREAD_BYTES_MIN:
                return self._put_regions(regions)
            return await self.world.run_in_thread(self._put_regions, regions)

    def _put_regions(self, regions: Sequence[Buffer]) -> list[list[tuple[int, bytes]]]:
        cuts = [self._cutter.cut(region) for region in regions]
        if self.store.chunks.unreadable:
            cuts = [[part for plain in cut for part in self._readable(plain)] for cut in cuts]
        ids = iter(self._put([plain for cut in cuts for plain in cut]))
        return [[(len(plain), next(ids)) for plain in cut] for cut in cuts]

    def _readable(self, plain: memoryview) -> list[memoryview]:
        """Return parts of a chunk that are none of those known to be lost: whoever writes lost bytes again
        must not be given the lost copy. A single byte cannot be parted.
        """
        if len(plain) == 1 or chunk_id(RecordKind.DATA, plain) not in self.store.chunks.unreadable:
            return [plain]
        middle = len(plain) // 2
        return self._readable(plain[:middle]) + self._readable(plain[middle:])

    def _put(self, plains: Sequence[Buffer]) -> list[bytes]:
        try:
            return self.store.chunks.put_batch(RecordKind.DATA, plains)
        except Refused as error:
            if error.errno != errno.ENOSPC or not self.store.give_up_reserve():
                raise
            return self.store.chunks.put_batch(RecordKind.DATA, plains)

    def put_whole(self, plain: bytes) -> bytes:
        """Store one chunk, uncut, and return its id. On the event loop: for a few KiB.

        Errors as `put_regions`; Corrupt when just these bytes are lost: a new copy would be shared with that.
        """
        with self.latching():
            if chunk_id(RecordKind.DATA, plain) in self.store.chunks.unreadable:
                raise Corrupt('the same bytes are stored already, and cannot be read')
            return self._put([plain])[0]

    def report_damage(self, what: str, view: int) -> None:
        """Record and log that bytes on disk are not what was written; readers of other bytes go on (P7).
        `view` 0: the node may be in any."""
        if what in self.damaged or len(self.damaged) >= limits.DAMAGE_REPORTS_MAX:
            return
        log.error('damaged: %s', what)
        known = view in self.damaged.values()
        self.damaged[what] = view
        if view and not known and self.budget.stopped is None:
            now = self.world.time_ns()
            try:
                self.store.registry.mark_damaged(view, now)
                self.store.record_damage()
                self.on_damaged(view, now)
            except Refused as error:  # a full disk: neither the reader nor the flush that found it may fail
                log.warning('not recorded in the catalog: %s', error)

    def forget_damage(self, view: int) -> None:
        """A volume or snapshot has lost nothing any more; what is told of no view may be just that."""
        self.damaged = {what: found for what, found in self.damaged.items() if found not in (view, 0)}

    @contextmanager
    def latching(self) -> Iterator[None]:
        """Around all that writes: when the disk below latches, writing stops, and that is recorded."""
        try:
            yield
        except Latched as error:
            self.fail(error)
            raise

    def fail(self, error: Latched) -> None:
        """Stop writing for good: a sync failed or a promise cannot be kept (P5)."""
        if not isinstance(self.budget.stopped, Latched):
            log.critical('the store is read-only from now on: %s', error)
            self.budget.stopped = None
            self.budget.stop(error)
            self.store.latch(str(error))
