"""L4 commit: moments, journal records and commits; what makes changes durable. Event loop; waits in threads.

A *moment* is a point of time between two requests: with no await, every head's newest layer is completed and
set
aside. A journal record is durable proof of one moment; so is a commit. Because each moment takes all volumes
and all
files, what survives a crash is a state that really was (P5): nothing is reordered, no file has a size without
its
bytes. `core.flush_lock` makes moments follow one another; `commit_lock` does the same for commits. Order:
commit_lock
first.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import trio

from snapfs import limits
from snapfs.errors import Corrupt, Refused
from snapfs.format.journal import NewChunk, VolumeDelta, encode_record_frames
from snapfs.format.records import RecordKind
from snapfs.store.rows import Commit, HeadUpdate, RequestPart
from snapfs.tree import Applied, Built, Need, apply
from snapfs.volume.core import Core
from snapfs.volume.flush import Job, flush, freeze, is_full, thaw
from snapfs.volume.head import Head
from snapfs.volume.inode import Inode
from snapfs.volume.memtable import Layer

NODES_PER_BATCH = 16
ITEMS_PER_SLICE = 500


@dataclass(slots=True)
class Moment:
    """One head as of one moment."""

    head: Head
    layer: Layer
    inodes: list[Inode]
    writes: list[tuple[int, int, bytes]]
    next_ino: int


@dataclass(frozen=True, slots=True)
class NewTree:
    """A new tree that no catalog row names yet."""

    head: Head
    applied: Applied
    layer: Layer
    next_ino: int


class Committer:
    """Records and commits of one store. `heads` returns the volumes there are now."""

    def __init__(self, core: Core, heads: Callable[[], Iterable[Head]]) -> None:
        self.core = core
        self._heads = heads
        self.commit_lock = trio.Lock()
        self._moments = 0  # moments begun
        self._durable = 0  # the latest moment that is durable
        self._untold: list[NewChunk] = []  # durable chunks that the journal does not name yet
        self.last_commit = core.world.monotonic()
        self.counts = {'records': 0, 'commits': 0, 'flushes': 0, 'fsyncs': 0}

    # --- fsync -------------------------------------------------------------------------------------------
    async def sync(self) -> None:
        """Make everything that was done before this call durable. Callers that wait together share one
        record.

        Latched after a failed sync, now and ever; Refused(ENOSPC) when the bytes have no place.
        """
        self.counts['fsyncs'] += 1
        before = self._moments
        with trio.CancelScope(shield=True), self.core.latching():
            async with self.core.flush_lock:
                if self._durable > before:
                    return
                fitted = await self._record()
            if not fitted:
                await self.commit()

    async def _record(self, *, whole: bool = False, journal: bool = True) -> bool:
        """Make a moment and write its journal record; return whether it is in the journal now.

        The caller holds `flush_lock`. `whole`: bring all bytes into packs, as a commit needs it. False means
        that the
        journal is full (or `journal` is False): the moment's changes are in memory only and a commit has to
        follow.
        """
        self._refuse_when_stopped()
        self._moments += 1
        number = self._moments
        moments = self._take_moment(whole)
        if moments is None:
            self._durable = number
            return True
        try:
            for moment in moments:
                if moment.inodes:
                    await flush(self.core, Job(moment.head, moment.layer, moment.inodes))
            fitted = journal and await self._write_record(moments)
        except BaseException:
            self._undo(moments)
            raise
        for moment in moments:
            head = moment.head
            if fitted or whole:
                head.logged.absorb(moment.layer)
                if not fitted:
                    head.logged.drops += moment.layer.drops  # no record has them, should the commit fail
                head.recording = None
                head.stack()
        if not fitted and not whole:
            self._undo(moments)
        if fitted:
            self._durable = number
        return fitted

    def _take_moment(self, whole: bool) -> list[Moment] | None:
        """Set aside the changes of all heads as of now; None when there are none. No await."""
        heads = list(self._heads())
        unlogged = sum(
            inode.buffer.fresh_bytes() for head in heads for inode in head.buffered.values() if inode.buffer
        )
        inline = not whole and unlogged <= limits.JOURNAL_INLINE_BYTES_MAX
        moments = []
        for head in heads:
            inodes: list[Inode] = []
            writes: list[tuple[int, int, bytes]] = []
            if not inline:
                inodes = freeze(head)
            elif unlogged:
                for inode in head.buffered.values():
                    if inode.buffer is not None and inode.buffer.fresh:
                        writes += [(inode.ino, start, data) for start, data in inode.buffer.take_fresh()]
            head.settle()
            if head.fresh.empty() and not writes and not inodes:
                continue
            head.recording, head.fresh = head.fresh, Layer()
            head.stack()
            moments.append(Moment(head, head.recording, inodes, writes, head.next_ino))
        return moments or None

    def _undo(self, moments: list[Moment]) -> None:
        """Put the changes of moments that came to nothing back under what was changed since."""
        for moment in moments:
            head = moment.head
            # The flush of another head failed, and the turn of this one never came.
            thaw(head, moment.inodes)
            if head.recording is moment.layer:
                moment.layer.absorb(head.fresh)
                moment.layer.drops += head.fresh.drops
                head.fresh, head.recording = moment.layer, None
                head.stack()
            for ino, start, data in moment.writes:
                inode = head.buffered.get(ino)
                if inode is not None and inode.buffer is not None:
                    inode.buffer.unlog(start, start + len(data))

    async def _write_record(self, moments: list[Moment]) -> bool:
        """Sync packs, then write and sync the record (P4); return False when the journal has no
        room for it.
        """
        store = self.core.store
        if store.chunks.unsynced:
            await self._durably(store.chunks.sync)
        self._untold += store.chunks.take_new()
        chunks = list(self._untold)
        deltas = []
        for moment in moments:
            items: list[tuple[bytes, Any]] = []
            for item in moment.layer.changes():
                items.append(item)
                if len(items) % ITEMS_PER_SLICE == 0:
                    await self.core.breathe()
            layer = moment.layer
            deltas.append(
                VolumeDelta(
                    moment.head.number, moment.next_ino, layer.spans(), items, layer.drops, moment.writes
                )
            )
        sequence = store.journal.last_sequence + 1
        frames = []
        for frame in encode_record_frames(sequence, chunks, deltas, store.superblock.uuid):
            frames.append(frame)
            await self.core.breathe()
        if sum(map(len, frames)) > store.journal.free_bytes:
            return False
        await self._durably(self._append, sequence, frames)
        self._untold = self._untold[len(chunks) :]
        self.counts['records'] += 1
        return True

    def _append(self, sequence: int, frames: list[bytes]) -> None:
        self.core.store.journal.append(sequence, frames)
        self.core.store.journal.sync()

    async def _durably(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call something that syncs, in a thread. A failure stops all writing for good (P5)."""
        with self.core.latching():
            return await self.core.world.run_in_thread(function, *arguments)

    def _refuse_when_stopped(self) -> None:
        if self.core.budget.stopped is not None:
            raise self.core.budget.stopped

    # --- background flush --------------------------------------------------------------------------------
    async def flush(self) -> None:
        """Bring all buffered bytes into packs; nothing becomes durable by it. Refused(ENOSPC) when the disk
        is full.
        """
        with trio.CancelScope(shield=True), self.core.latching():
            async with self.core.flush_lock:
                self.counts['flushes'] += 1
                for head in list(self._heads()):
                    inodes = freeze(head)
                    if inodes:
                        await flush(self.core, Job(head, head.fresh, inodes))

    # --- commit ------------------------------------------------------------------------------------------
    async def commit(self, *, always: bool = False) -> None:
        """Make new roots of everything done before this call, current in the catalog in one transaction.

        `always`: commit also when nothing changed, and so supersede every journal record. Errors as `sync`.
        """
        with trio.CancelScope(shield=True), self.core.latching():
            async with self.commit_lock:
                await self._commit(keep_lock=False, always=always)

    async def commit_alone(self) -> None:
        """Commit without a journal record, when nobody can ask for an fsync meanwhile; also when nothing
        changed.

        After a replay, and at the end.
        """
        with trio.CancelScope(shield=True), self.core.latching():
            async with self.commit_lock:
                await self._commit(keep_lock=True, always=True)
                self.core.flush_lock.release()

    async def commit_and_hold(self) -> None:
        """Commit and return with both locks held: no change becomes durable until `let_go`. For rollback and
        deletion.
        """
        # Shielded: a commit that is durable and then cancelled would be undone in memory, and only there.
        with trio.CancelScope(shield=True), self.core.latching():
            await self.commit_lock.acquire()
            try:
                held = await self._commit(keep_lock=True)
                assert held
            except BaseException:
                self.commit_lock.release()
                raise

    def let_go(self) -> None:
        """Release what `commit_and_hold` holds."""
        self.core.flush_lock.release()
        self.commit_lock.release()

    async def _commit(self, *, keep_lock: bool, always: bool = False) -> bool:
        """Commit, or do nothing when nothing changed, unless `always`; the caller holds `commit_lock`. Return
        whether `flush_lock` is held at the end.
        """
        lock = self.core.flush_lock
        await lock.acquire()
        held = True
        try:
            fitted = await self._record(whole=True, journal=not keep_lock)
            sequence = self.core.store.journal.last_sequence
            changed = [head for head in self._heads() if not head.logged.empty()]
            if changed or always:
                number = self._moments
                next_inos = {head.number: head.next_ino for head in changed}
                try:
                    left = self._leave_journal()
                    self._freeze(changed)
                    if fitted and not keep_lock:
                        lock.release()
                        held = False
                    await self._build(changed, sequence, next_inos)
                except BaseException:
                    if held:
                        self._unlog(changed)
                    raise
                self._durable = max(self._durable, number)
                self.core.store.journal.release(left)
            self.last_commit = self.core.world.monotonic()
        except BaseException:
            if held:
                lock.release()
            raise
        if held and not keep_lock:
            lock.release()
            held = False
        return held

    def _freeze(self, heads: list[Head]) -> None:
        """Set aside what the new trees are built from. No await; `_build` gives it back when it fails."""
        for head in heads:
            assert head.frozen is None, 'two commits at once'
            head.frozen, head.logged = head.logged, Layer()
            head.stack()

    def _leave_journal(self) -> int:
        """Let later records go to the other journal file; return the file that this commit makes
        superfluous.
        """
        journal = self.core.store.journal
        try:
            return journal.switch()
        except Refused as error:
            if error.errno != errno.EBUSY:
                raise
            return 1 - journal.active  # left by a commit that failed; this one supersedes it as well

    def _unlog(self, heads: list[Head]) -> None:
        """A commit failed whose moment is not in the journal: its changes belong into the next record."""
        for head in heads:
            head.logged.absorb(head.fresh)
            head.logged.drops += head.fresh.drops
            head.fresh, head.logged = head.logged, Layer()
            head.stack()

    async def _build(self, heads: list[Head], sequence: int, next_inos: dict[int, int]) -> None:
        """Build the new trees and make them current; undone in memory when that fails."""
        try:
            built = [await self._build_reported(head, next_inos[head.number]) for head in heads]
            await self._make_current(built, sequence)
        except BaseException:
            for head in heads:
                if head.frozen is not None:
                    head.frozen.absorb(head.logged)
                    head.logged, head.frozen = head.frozen, None
                    head.stack()
            raise
        for one in built:
            one.head.root = one.applied.root
            one.head.frozen = None
            one.head.stack()
        self.counts['commits'] += 1
        self.core.budget.items = sum(head.items() for head in self._heads())
        self.core.budget.make_room()

    async def _build_reported(self, head: Head, next_ino: int) -> NewTree:
        try:
            return await self._build_tree(head, next_ino)
        except Corrupt as error:
            # Nothing can be committed any more: that must not be in the log alone.
            self.core.report_damage(f'{head.name}, the next commit: {error}', head.number)
            raise

    async def _build_tree(self, head: Head, next_ino: int) -> NewTree:
        layer = head.frozen
        assert layer is not None
        changes: list[tuple[bytes, Any]] = []
        for change in layer.changes():
            changes.append(change)
            if len(changes) % ITEMS_PER_SLICE == 0:
                await self.core.breathe()
        steps = apply(head.root, layer.ranges(), changes)
        answer: list[Any] | None = None
        waiting: list[tuple[bytes, bytes]] = []
        while True:
            try:
                step = steps.send(answer)
            except StopIteration as stop:
                applied: Applied = stop.value
                break
            answer = None
            if isinstance(step, Need):
                self._store_nodes(waiting)
                answer = [await self.core.nodes.node(node_id) for node_id in step.ids]
            elif isinstance(step, Built):
                waiting += step.nodes
                if len(waiting) >= NODES_PER_BATCH:
                    self._store_nodes(waiting)
            await self.core.breathe()
        self._store_nodes(waiting)
        return NewTree(head, applied, layer, next_ino)

    def _store_nodes(self, nodes: list[tuple[bytes, bytes]]) -> None:
        if not nodes:
            return
        plains = [plain for _, plain in nodes]
        chunks = self.core.store.chunks
        try:
            chunks.put_batch(RecordKind.NODE, plains)
        except Refused as error:
            if not is_full(error) or not self.core.store.give_up_reserve():
                raise
            chunks.put_batch(RecordKind.NODE, plains)
        nodes.clear()

    async def _make_current(self, built: list[NewTree], sequence: int) -> None:
        store = self.core.store
        await self._durably(store.chunks.sync)
        rows = store.chunks.commit_rows()
        heads = [
            HeadUpdate(one.head.row.volume, root.id, root.items, root.refs, one.next_ino)
            for one in built
            for root in (one.applied.root,)
        ]
        dropped = [
            RequestPart(
                one.head.row.volume,
                tuple(one.applied.dropped) + tuple(one.layer.superseded),
                tuple(one.applied.dropped_subtrees),
            )
            for one in built
            if one.applied.dropped or one.layer.superseded or one.applied.dropped_subtrees
        ]
        commit = Commit(heads, rows.chunks, rows.packs, dropped, sequence, self.core.world.time_ns())
        try:
            await self._durably(store.catalog.commit, commit)
        except Refused as error:
            if not is_full(error) or not store.give_up_reserve():
                raise
            await self._durably(store.catalog.commit, commit)
        store.chunks.committed(rows)
        store.record_damage()
        if self._untold:
            # The journal must not name them any more: they may be freed before its file is.
            done = {row.id for row in rows.chunks}
            self._untold = [chunk for chunk in self._untold if chunk.id not in done]
