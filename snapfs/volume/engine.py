"""L4 engine: an open store with its volumes: opening, replay, background work, closing. Event loop only."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import trio

from snapfs import limits
from snapfs.errors import Corrupt, Invalid, Latched, Refused, SnapfsError
from snapfs.format.journal import VolumeDelta
from snapfs.store.durable import Disk
from snapfs.store.horizon import PutRecord
from snapfs.store.store import Store
from snapfs.store.verified import Coverage
from snapfs.volume.administration import Administration
from snapfs.volume.buffer import Buffer
from snapfs.volume.commit import Committer
from snapfs.volume.core import Core
from snapfs.volume.head import Head
from snapfs.world import World

log = logging.getLogger(__name__)

TICK_SECONDS = 0.5
FULL_RETRY_SECONDS = 1.0


class Engine(Administration):
    """All volumes of one store, writable, in this process."""

    def __init__(self, store: Store, world: World) -> None:
        super().__init__()
        self.store = store
        self.world = world
        self.core = Core(store, world)
        self.core.on_damaged = self.note_damage
        self.committer = Committer(self.core, self._head_by_number.values)
        # Says why nothing is deleted any more, or returns None; the collector's.
        self.standstill: Callable[[], str | None] | None = None
        self._background: trio.CancelScope | None = None
        self._last_record = world.monotonic()
        self.replayed_records = 0
        self.closed = False

    # --- opening -----------------------------------------------------------------------------------------
    @classmethod
    async def open(cls, path: Path, disk: Disk, world: World, *, wait_seconds: float = 0.0) -> Engine:
        """Open a store and bring it to the state of its last durable moment.

        Unavailable when another process owns it (after waiting `wait_seconds`), Corrupt, Latched.
        """
        store = await world.run_in_thread(lambda: Store.open(path, disk, world, wait_seconds=wait_seconds))
        engine = cls(store, world)
        try:
            await engine._load()
        except BaseException:
            store.close(clean=False)
            raise
        return engine

    async def _load(self) -> None:
        for row in self.store.registry.volumes():
            self._adopt_head(row)
        self.load_registry()
        buffers: dict[tuple[int, int], Buffer] = {}
        if not self.store.was_clean:
            for record in self.store.journal.replay(self.store.committed_sequence):
                for frame in record:
                    self.store.chunks.adopt(frame.chunks)
                    for delta in frame.volumes:
                        self._replay(delta, buffers)
                self.replayed_records += 1
        for (number, ino), buffer in buffers.items():
            await self._replay_buffer(self._head_by_number[number], ino, buffer)
        for head in self._heads.values():
            if head.root.id is None and limits.INO_ROOT not in head.logged.inodes:
                owner = os.stat(self.store.path)  # made, and then the power went before its first commit
                self.make_root(head, owner.st_uid, owner.st_gid)
            await head.remove_orphans()
        if self.replayed_records:
            log.info('replayed %d journal records', self.replayed_records)
        if self.core.budget.stopped is not None:
            return
        if not self.store.was_clean or self._changed():
            await self.committer.commit_alone()
            self.store.journal.restart(self.store.committed_sequence)

    def _replay(self, delta: VolumeDelta, buffers: dict[tuple[int, int], Buffer]) -> None:
        head = self._head_by_number.get(delta.volume)
        if head is None:
            return  # deleted or rolled back since: view numbers are never used again
        layer = head.logged
        head.next_ino = max(head.next_ino, delta.next_ino)
        for low, high in delta.ranges:
            layer.replay_span(low, high)
        for key, value in delta.items:
            layer.replay_item(key, value)
        for ino, start, end in delta.drops:
            buffer = buffers.get((head.number, ino))
            if buffer is not None:
                buffer.discard(start, end)
        for ino, start, data in delta.writes:
            buffers.setdefault((head.number, ino), Buffer()).write(start, data)

    async def _replay_buffer(self, head: Head, ino: int, buffer: Buffer) -> None:
        if not buffer.bytes:
            return
        inode = await head.inode(ino)
        if buffer.end() > inode.size:
            raise Corrupt(f'journal: bytes of inode {ino} at {buffer.end()}, behind its end at {inode.size}')
        inode.buffer = buffer
        head.buffered[ino] = inode
        self.core.budget.taken(buffer.cost)

    # --- background --------------------------------------------------------------------------------------
    async def run(self, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        """Flush, record and commit in the background until `close`."""
        with trio.CancelScope() as self._background:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._flush_when_wanted)
                nursery.start_soon(self._tick)
                task_status.started()

    async def _flush_when_wanted(self) -> None:
        budget = self.core.budget
        while True:
            await budget.flush_wanted.wait()
            if await self._guarded(self.committer.flush):
                if budget.dirty <= limits.DIRTY_BYTES_FLUSH:
                    budget.flush_wanted = trio.Event()
            else:
                await self.world.sleep(FULL_RETRY_SECONDS)

    async def _tick(self) -> None:
        while True:
            await self.world.sleep(TICK_SECONDS)
            heads = self._head_by_number.values()
            items = self.core.budget.items = sum(head.items() for head in heads)
            self.core.budget.look_at_disk()  # somebody else may be filling it
            now = self.world.monotonic()
            full = self.store.journal.used_fraction > 0.5 or items > limits.MEMTABLE_ITEMS_COMMIT
            if full or (now - self.committer.last_commit > limits.COMMIT_SECONDS_MAX and self._changed()):
                if await self._guarded(self.committer.commit) and not self.store.has_reserve:
                    await self._guarded(self._restore_reserve)
                self._last_record = now
            elif now - self._last_record > limits.JOURNAL_SECONDS_MAX:
                await self._guarded(self.committer.sync)
                self._last_record = now

    async def _restore_reserve(self) -> None:
        await self.world.run_in_thread(self.store.restore_reserve)

    def _changed(self) -> bool:
        return any(head.items() or head.buffered for head in self._head_by_number.values())

    async def _guarded(self, work: Any) -> bool:
        """Run a step of background work; return whether it was done. Nobody may die of it, nothing
        is hidden.
        """
        if self.core.budget.stopped is not None:
            await self.world.sleep(FULL_RETRY_SECONDS)
            return False
        try:
            await work()
        except Refused as error:
            self.core.budget.full = True
            self.core.budget.make_room()
            log.warning('the disk below is full: %s', error)
            return False
        except SnapfsError as error:
            log.error('background work failed: %s', error)
            self.core.budget.failed = error
            self.core.budget.make_room()  # nobody may wait for ever
            return False
        except Exception as error:
            log.exception('bug: background work failed')
            self.core.fail(Latched(f'a bug stopped the background work: {error!r}'))
            return False
        self.core.budget.full = False
        self.core.budget.failed = None
        return True

    # --- durability --------------------------------------------------------------------------------------
    async def sync(self) -> None:
        """Make everything done so far durable (P5)."""
        await self.committer.sync()

    async def commit(self, *, always: bool = False) -> None:
        """Make everything done so far current in the catalog; `always`: an epoch passes in any case."""
        await self.committer.commit(always=always)

    async def horizon(self) -> PutRecord:
        """Begin to note puts, wait out flushes in flight, and commit, whether anything changed or not; return
        the record of puts. Whatever a head, a journal record or a replay names now is named by a root of this
        commit, or is put after this began (P3). Errors as `commit`; puts are not noted then.
        """
        chunks = self.store.chunks
        record = chunks.start_recording()
        try:
            # A flush that put before the noting began holds `flush_lock`, which the commit takes.
            before = self.store.catalog.epoch
            await self.committer.commit(always=True)
            # Without it the journal's records, and a replay, would name chunks that no root of ours names.
            assert self.store.catalog.epoch > before, 'P3: the horizon is no commit'
        except BaseException:
            chunks.stop_recording(record)
            raise
        return record

    async def close(self) -> None:
        """Stop the background work, commit, and close the store. Clean unless something failed before."""
        if self.closed:
            return
        self.closed = True
        if self._background is not None:
            self._background.cancel()
        clean = False
        try:
            if self.core.budget.stopped is None:
                for head in self._head_by_number.values():
                    head.reclaim_all()
                await self._last_commit()
                # A backup from before would miss what was written since, and no record tells of that.
                self.store.keep_copies()
                clean = True
        finally:
            self.store.close(clean=clean)

    async def _last_commit(self) -> None:
        """Commit all there is. When the disk below has no room for that, or what a new tree needs of the old
        one cannot be read, at least the journal gets it.
        """
        try:
            await self.committer.commit_alone()
        except (Refused, Corrupt, Invalid):
            await self.committer.sync()
            raise

    # --- looking -----------------------------------------------------------------------------------------
    def statfs(self) -> os.statvfs_result:
        """Return the state of the disk below. What writers cannot have counts as used: what is kept free so
        that deleting and the last commit work, and the place that bytes in memory will need.
        """
        below = self.store.statvfs()
        kept = -(-(limits.FREE_BYTES_MIN + self.core.budget.dirty) // below.f_frsize)
        free, available = max(below.f_bfree - kept, 0), max(below.f_bavail - kept, 0)
        return os.statvfs_result((*below[:3], free, available, *below[5:]))

    def status(self) -> dict[str, Any]:
        """Return what is known about the store as plain values. `incidents` is None when the catalog cannot
        be read, as on a disk that has failed."""
        store, core = self.store, self.core
        stopped = core.budget.stopped
        return {
            'store': str(store.path),
            'uuid': store.superblock.uuid.hex(),
            'epoch': store.catalog.epoch,
            'health': self.health(),
            'writable': stopped is None,
            'reason': str(stopped) if stopped is not None else None,
            'damaged': sorted(core.damaged),
            'known_lost': len(store.chunks.unreadable),
            'incidents': self._incidents(),
            'volumes': len(self._heads),
            'snapshots': sum(map(len, self._snapshots.values())),
            'requests': len(self._requests),
            'dirty_bytes': core.budget.dirty,
            'memtable_items': sum(head.items() for head in self._heads.values()),
            'replayed_records': self.replayed_records,
            'counters': self.counters(),
        }

    def writable(self) -> bool:
        """Return whether writes are still taken. Asks no disk."""
        return self.core.budget.stopped is None

    def counters(self) -> dict[str, int]:
        """Return what was done since the store was opened. Asks no disk."""
        return {**self.committer.counts, **self.store.counters(), 'node_loads': self.core.nodes.loads}

    def _incidents(self) -> list[dict[str, Any]] | None:
        try:
            rows = self.store.catalog.incidents()
        except SnapfsError:
            return None  # health says why
        return [
            {'number': row.number, 'scope': row.scope, 'opened_ns': row.opened_ns, 'reason': row.reason}
            for row in rows
        ]

    def coverage(self) -> Coverage:
        """Return which part of the store was verified when."""
        return Coverage(self.store.catalog)

    def health(self) -> str:
        """Return `ok`, or in one line what is wrong."""
        found, lost = self.trouble(), len(self.store.chunks.unreadable)
        count = '1 chunk is' if lost == 1 else f'{lost} chunks are'
        if found is not None:
            more = '' if not lost or found.startswith('damaged') else f'; and {count} known to be lost'
            return found + more
        if lost:
            return f'damaged: {count} known to be lost; snapfs damage names the files'
        gone = self.store.lost_packs.text()
        if gone:
            return f'damaged: {gone}; snapfs damage names what is lost'
        if self.core.budget.full:
            return 'full: the disk below has no room'
        return 'ok'

    def trouble(self) -> str | None:
        """Return in one line what speaks against deleting anything, or None.

        That something was found lost in an earlier session does not: else it would stay for ever, for only
        the collector frees what is lost.
        """
        if self.core.budget.stopped is not None:
            return f'read-only: {self.core.budget.stopped}'
        if self.core.budget.failed is not None:
            return f'failing: {self.core.budget.failed}'
        if self.core.damaged:
            return f'damaged: {len(self.core.damaged)} reads found bytes that are missing or wrong'
        if self.store.chunks.mirrored:
            count = len(self.store.chunks.mirrored)
            return f'damaged: {count} nodes were read from their second copies; snapfs recover puts them back'
        try:
            for incident in self.store.catalog.incidents('collector'):
                return f'the collector is stopped: incident {incident.number}: {incident.reason}'
        except SnapfsError as error:
            return f'damaged: {error}'
        standstill = None if self.standstill is None else self.standstill()
        if standstill is not None:  # a latch that could not be written down
            return f'the collector is stopped: {standstill}'
        return None
