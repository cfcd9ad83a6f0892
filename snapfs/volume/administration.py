"""L4 administration: volumes, snapshots, requests and holds. Event loop only; each is a short catalog
transaction.

Names are str (UTF-8 with surrogateescape). `who` is free text for the record. Errors of a person come as
Refused
(EEXIST, ENOENT), Invalid or Held; nothing was changed then.
"""

from __future__ import annotations

import errno
import stat
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, TypeVar

import trio

from snapfs import limits
from snapfs.errors import Corrupt, Held, Refused, SnapfsError
from snapfs.store.rows import HoldRow, RequestGroup, RequestRow, SnapshotRow, VolumeRow
from snapfs.store.store import Store
from snapfs.volume.commit import Committer
from snapfs.volume.core import Core
from snapfs.volume.head import Head
from snapfs.volume.inode import Inode
from snapfs.volume.view import SnapshotView, View

# (what happened, stable volume number, name, view number): see `Administration.on_change`.
Listener = Callable[[str, int, str, int], None]

ROOT_MODE = stat.S_IFDIR | 0o755

T = TypeVar('T')


class Administration:
    """What a person does to volumes and snapshots. The engine is the only subclass."""

    core: Core
    store: Store
    committer: Committer

    def __init__(self) -> None:
        self._heads: dict[str, Head] = {}
        self._head_by_number: dict[int, Head] = {}
        self._snapshots: dict[int, dict[str, SnapshotRow]] = {}  # by stable volume number, then name
        self._requests: dict[int, RequestRow] = {}  # those that can be taken back
        # Called before a request is taken back; the collector lets go of it.
        self.take_back: Callable[[RequestRow], Awaitable[None]] | None = None
        self._views: dict[int, SnapshotView] = {}
        self.mounted_volume: int | None = None  # stable number of the volume that a mount shows alone
        self._listeners: list[Listener] = []
        self._turn = trio.Lock()  # one administrative change at a time

    # --- looking -----------------------------------------------------------------------------------------
    def load_registry(self) -> None:
        """Read snapshots and requests anew from the catalog."""
        registry = self.store.registry
        self._snapshots = {head.row.volume: {} for head in self._heads.values()}
        for row in registry.snapshots():
            self._snapshots.setdefault(row.volume, {})[row.name] = row
        self._requests = {row.number: row for row in registry.kept_requests()}

    async def registry_changed(self, volume: int, snapshot: str) -> None:
        """A snapshot of a volume (stable number) was entered into the catalog: show it."""
        async with self._alone():
            self.load_registry()
            row = self._snapshots[volume][snapshot]
            self._tell('snapshot-added', volume, snapshot, row.number)

    def note_damage(self, view: int, since_ns: int | None) -> None:
        """The catalog's mark of a volume or snapshot has changed: show it. None: it is whole again."""
        for head in self._heads.values():
            if head.row.number == view:
                head.row = replace(head.row, damaged_ns=since_ns)
        for rows in self._snapshots.values():
            for name, row in rows.items():
                if row.number == view:
                    rows[name] = replace(row, damaged_ns=since_ns)

    def heads(self) -> dict[str, Head]:
        """Return the volumes by name. The caller does not change the dictionary."""
        return self._heads

    def head(self, name: str) -> Head | None:
        """Return the volume of this name, or None."""
        return self._heads.get(name)

    def head_by_number(self, number: int) -> Head | None:
        """Return the volume with this view number, or None."""
        return self._head_by_number.get(number)

    def head_of_volume(self, volume: int) -> Head | None:
        """Return the volume with this stable number, or None."""
        return next((head for head in self._heads.values() if head.row.volume == volume), None)

    def snapshots_of(self, volume: int) -> dict[str, SnapshotRow]:
        """Return the snapshots of a volume (stable number) by name. The caller does not change the
        dictionary.
        """
        return self._snapshots.get(volume, {})

    def snapshot_view(self, number: int) -> SnapshotView | None:
        """Return the view of a snapshot, or of a snapshot or volume whose deletion is requested; None
        otherwise.
        """
        view = self._views.get(number)
        if view is not None:
            return view
        row: SnapshotRow | RequestRow | None = None
        for rows in self._snapshots.values():
            row = next((one for one in rows.values() if one.number == number), row)
        if row is None:
            row = next((r for r in self._requests.values() if r.view == number and r.batch is None), None)
        if row is None:
            return None
        if len(self._views) >= limits.SNAPSHOT_VIEWS_CACHED_MAX:
            del self._views[next(iter(self._views))]
        view = self._views[number] = SnapshotView(self.core, row)
        return view

    def volume_list(self) -> list[VolumeRow]:
        """Return all volumes, by name."""
        return [self._heads[name].row for name in sorted(self._heads)]

    def snapshot_list(self, volume: str | None = None) -> list[SnapshotRow]:
        """Return the snapshots of a volume, or of all, oldest first. Refused(ENOENT)."""
        if volume is None:
            found = [row for rows in self._snapshots.values() for row in rows.values()]
        else:
            found = list(self.snapshots_of(self._volume(volume).row.volume).values())
        return sorted(found, key=lambda row: row.number)

    def snapshot_find(self, volume: str, name: str) -> SnapshotRow:
        """Return one snapshot. Refused(ENOENT)."""
        row = self.snapshots_of(self._volume(volume).row.volume).get(name)
        if row is None:
            raise Refused(errno.ENOENT, f'there is no snapshot {volume}@{name}')
        return row

    def request_list(self) -> list[RequestRow]:
        """Return the deletion requests for snapshots and volumes, oldest first."""
        return [self._requests[number] for number in sorted(self._requests)]

    def request_groups(self) -> list[RequestGroup]:
        """Return the requests that nobody takes back (what commits dropped, for one), by kind and volume."""
        return self.store.registry.request_groups()

    @asynccontextmanager
    async def _alone(self) -> AsyncIterator[None]:
        """One administrative change at a time; a disk that fails under one stops all writing."""
        async with self._turn:
            with self.core.latching():
                yield

    def _with_reserve(self, step: Callable[[], T]) -> T:
        """Do a small durable step; on a full disk the reserve is given up for it, so that deleting stays
        possible.
        """
        try:
            return step()
        except Refused as error:
            if error.errno != errno.ENOSPC or not self.store.give_up_reserve():
                raise
            return step()

    def _audit(self, event: str, **details: Any) -> None:
        # The line is durable before its effect: it says what was asked for, whether or not it is granted.
        self._with_reserve(lambda: self.store.audit.append({'event': event, **details}))

    def _volume(self, name: str) -> Head:
        head = self._heads.get(name)
        if head is None:
            raise Refused(errno.ENOENT, f'there is no volume {name!r}')
        return head

    def on_change(self, listener: Listener) -> None:
        """Call `listener` after each change, on the event loop, inside the request that made it.

        What happened is one of: volume-added, volume-removed, volume-renamed (with the old name), volume-
        rolled-back
        (with the old view number), snapshot-added, snapshot-removed, snapshot-renamed (with the old name),
        request-added, request-moved (into a batch, or out of one), request-removed.
        """
        self._listeners.append(listener)

    def _tell(self, what: str, volume: int, name: str, number: int) -> None:
        for listener in self._listeners:
            listener(what, volume, name, number)

    # --- volumes -----------------------------------------------------------------------------------------
    async def volume_create(self, name: str, uid: int, gid: int, mode: int = 0o755) -> Head:
        """Make an empty volume whose root directory belongs to `uid` and `gid`."""
        async with self._alone():
            await self.core.budget.admit(limits.KIB)
            self._audit('volume-create', name=name, uid=uid)
            row = self.store.registry.volume_add(name, self.core.world.time_ns())
            head = self._adopt_head(row)
            self.make_root(head, uid, gid, mode)
            try:
                await self.committer.commit()
            except (Refused, Corrupt):
                await self._discard(head)
                raise
            self._tell('volume-added', row.volume, row.name, row.number)
        return head

    async def _discard(self, head: Head) -> None:
        """Undo the making of a volume whose first commit the full disk refused."""
        async with self.committer.commit_lock, self.core.flush_lock:  # no commit may be about to name it
            self.store.registry.volume_discard(head.row.volume)
            self._drop_head(head)
            del self._heads[head.name]

    def _adopt_head(self, row: VolumeRow) -> Head:
        head = Head(self.core, row)
        self._heads[row.name] = head
        self._head_by_number[row.number] = head
        self._snapshots.setdefault(row.volume, {})
        return head

    def make_root(self, head: Head, uid: int, gid: int, mode: int = 0o755) -> None:
        """Give a volume that has no items its root directory."""
        now = self.core.world.time_ns()
        mode = stat.S_IFDIR | (mode & 0o7777)
        root = Inode(
            limits.INO_ROOT, (mode, uid, gid, 0, 0, 0, 2, 1, limits.INO_ROOT, now, now, now, now, 0, b'')
        )
        root.entries = {}
        root.complete = True
        head.inodes[limits.INO_ROOT] = root
        head.mark(root)

    async def volume_rename(self, old: str, new: str) -> Head:
        """Give a volume another name."""
        async with self._alone():
            head = self._volume(old)
            row = self.store.registry.volume_rename(head.row.volume, new)
            del self._heads[old]
            self._heads[new] = head
            head.row, head.name = row, new
            self._tell('volume-renamed', row.volume, old, row.number)
        return head

    async def volume_delete(self, name: str, who: str) -> RequestRow:
        """Request the deletion of a volume with all its files. Held while it has snapshots, or is mounted."""
        async with self._alone():
            head = self._volume(name)
            if head.row.volume == self.mounted_volume:
                raise Held(f'volume {name!r} is mounted by itself', advice='Unmount it first.')
            owner = await self._owner(head)
            await self._hold(head)
            try:
                self._audit('volume-delete', volume=head.row.volume, name=name, who=who)
                now = self.core.world.time_ns()
                request = self._with_reserve(
                    lambda: self.store.registry.volume_delete(head.row.volume, who, now, owner)
                )
                self._drop_head(head)
                del self._heads[name]
            finally:
                self.committer.let_go()
                head.reopen()
            self._requests[request.number] = request
            self._tell('volume-removed', head.row.volume, name, head.number)
            self._tell('request-added', head.row.volume, name, request.number)
        return request

    async def _hold(self, head: Head) -> None:
        """Commit, with changes to `head` waiting from before that moment on: none is acknowledged
        and then lost.
        """
        head.shut()
        try:
            await self.committer.commit_and_hold()
        except BaseException:
            head.reopen()
            raise

    def _drop_head(self, head: Head) -> None:
        """Forget a head whose committed state is in the catalog, with what was written since."""
        del self._head_by_number[head.number]
        head.dropped = True
        for inode in head.buffered.values():
            if inode.buffer is not None:
                self.core.budget.taken(-inode.buffer.cost)
                inode.buffer = None
        head.buffered = {}

    async def volume_clone(self, volume: str, snapshot: str, new_name: str) -> Head:
        """Make a volume whose content is a snapshot's. Costs the same at any size."""
        async with self._alone():
            origin = self.snapshot_find(volume, snapshot)
            self._audit('volume-clone', name=new_name, origin=origin.number)
            row = self.store.registry.volume_add(new_name, self.core.world.time_ns(), origin)
            head = self._adopt_head(row)
            await head.remove_orphans()
            self._tell('volume-added', row.volume, row.name, row.number)
        return head

    async def volume_rollback(self, volume: str, snapshot: str, who: str) -> SnapshotRow:
        """Make a snapshot's content the volume's; what is there now is kept as a safety snapshot, which is
        returned.

        The volume gets a new view number: open files of the old state become stale.
        """
        async with self._alone():
            head = self._volume(volume)
            target = self.snapshot_find(volume, snapshot)
            await self._hold(head)
            try:
                now = self.core.world.time_ns()
                stamp = datetime.fromtimestamp(now // 10**9, UTC).strftime('%Y-%m-%dT%H.%M.%SZ')
                name = self._free_name(head.row.volume, f'before-rollback-{stamp}')
                volume_number = head.row.volume
                self._audit('rollback', volume=volume_number, to=target.number, safety=name, who=who)
                row, safety = self.store.registry.volume_rollback(
                    volume_number, target.number, name, who, now
                )
                self._drop_head(head)
                rolled_back = self._adopt_head(row)
                self._snapshots[row.volume][name] = safety
            finally:
                self.committer.let_go()
                head.reopen()
            await rolled_back.remove_orphans()
            self._tell('volume-rolled-back', row.volume, volume, head.number)
            self._tell('snapshot-added', row.volume, name, safety.number)
        return safety

    def _free_name(self, volume: int, wanted: str) -> str:
        name, count = wanted, 1
        while name in self._snapshots[volume]:
            count += 1
            name = f'{wanted}-{count}'
        return name

    # --- snapshots ---------------------------------------------------------------------------------------
    async def snapshot_create(self, volume: str, name: str, who: str) -> SnapshotRow:
        """Take a snapshot: everything written before this call is in it (P6)."""
        async with self._alone():
            head = self._volume(volume)
            if name in self.snapshots_of(head.row.volume):
                raise Refused(errno.EEXIST, f'there is a snapshot {volume}@{name} already')
            await self.core.budget.admit(limits.KIB)
            await self.committer.commit()
            row = self.store.registry.snapshot_add(head.row.volume, name, who, self.core.world.time_ns())
            self._snapshots[head.row.volume][name] = row
            self._tell('snapshot-added', row.volume, name, row.number)
        return row

    async def snapshot_rename(self, volume: str, name: str, new_name: str) -> SnapshotRow:
        """Give a snapshot another name."""
        async with self._alone():
            row = self.snapshot_find(volume, name)
            renamed = self.store.registry.snapshot_rename(row.number, new_name)
            rows = self._snapshots[row.volume]
            del rows[name]
            rows[new_name] = renamed
            view = self._views.get(row.number)
            if view is not None:
                view.row, view.name = renamed, new_name
            self._tell('snapshot-renamed', row.volume, name, row.number)
        return renamed

    async def snapshot_delete(self, volume: str, name: str, who: str) -> RequestRow:
        """Request the deletion of a snapshot. Held while a hold is on it. Costs the same at any size."""
        async with self._alone():
            row = self.snapshot_find(volume, name)
            owner = await self._owner(self.snapshot_view(row.number))
            self._audit('snapshot-delete', volume=row.volume, name=f'{volume}@{name}', who=who)
            now = self.core.world.time_ns()
            request = self._with_reserve(
                lambda: self.store.registry.snapshot_delete(row.number, who, now, owner)
            )
            del self._snapshots[row.volume][name]
            self._requests[request.number] = request
            self._tell('snapshot-removed', row.volume, name, row.number)
            self._tell('request-added', row.volume, name, request.number)
        return request

    @staticmethod
    async def _owner(view: View | None) -> tuple[int, int] | None:
        """Return (uid, gid) of a view's top directory; None when it cannot be read: that stops no
        deletion."""
        try:
            root = await view.inode(limits.INO_ROOT) if view is not None else None
        except SnapfsError:
            return None
        return None if root is None else (root.uid, root.gid)

    async def snapshot_undelete(
        self, number: int, new_name: str | None = None, new_volume: str | None = None
    ) -> SnapshotRow:
        """Take back the request for a snapshot, under its own name and volume or others. Refused(ENOENT,
        EEXIST).
        """
        await self._take_back(number, 'snapshot')
        async with self._alone():
            self._request(number, 'snapshot')
            volume = self._volume(new_volume).row.volume if new_volume is not None else None
            self._audit('snapshot-undelete', request=number, name=new_name, volume=new_volume)
            row = self.store.registry.snapshot_undelete(number, new_name, volume)
            request = self._requests.pop(number)
            self._views.pop(row.number, None)
            self._snapshots.setdefault(row.volume, {})[row.name] = row
            self._tell('request-removed', row.volume, request.name, number)
            self._tell('snapshot-added', row.volume, row.name, row.number)
        return row

    async def volume_undelete(self, number: int, new_name: str | None = None) -> Head:
        """Take back the request for a volume, under its own name or another. Refused(ENOENT, EEXIST)."""
        await self._take_back(number, 'volume')
        async with self._alone():
            request = self._request(number, 'volume')
            self._audit('volume-undelete', request=number, name=new_name)
            row = self.store.registry.volume_undelete(number, new_name)
            del self._requests[number]
            self._views.pop(row.number, None)
            head = self._adopt_head(row)
            self._tell('request-removed', row.volume, request.volume_name, number)
            self._tell('volume-added', row.volume, row.name, row.number)
            await head.remove_orphans()  # the kernel may still use some of them, and has said so by now
        return head

    async def _take_back(self, number: int, kind: str) -> None:
        """Let whoever works on a request let go of it. Not under `_alone`: that may take a while."""
        request = self._request(number, kind)
        if self.take_back is not None:
            await self.take_back(request)

    async def reload_requests(self) -> None:
        """The collector has moved requests into a batch, out of one, or fulfilled them: read them again.
        What is in a batch cannot be looked at as a tree any more: reading it would be an alarm."""
        async with self._alone():
            before, self._requests = (
                self._requests,
                {row.number: row for row in self.store.registry.kept_requests()},
            )
            for number, old in before.items():
                new = self._requests.get(number)
                if new is None or new.batch != old.batch:
                    self._views.pop(old.view, None)
                if new is None:
                    self._tell('request-removed', old.volume, old.name or old.volume_name, number)
                elif new.batch != old.batch:
                    self._tell('request-moved', old.volume, old.name or old.volume_name, number)

    def _request(self, number: int, kind: str) -> RequestRow:
        request = self._requests.get(number)
        if request is None or request.kind != kind:
            raise Refused(errno.ENOENT, f'there is no request {number} to delete a {kind}')
        return request

    # --- holds -------------------------------------------------------------------------------------------
    async def hold_add(
        self, volume: str, snapshot: str, hold: str, who: str, why: str, until_ns: int | None = None
    ) -> HoldRow:
        """Hold a snapshot: it cannot be deleted until the hold is released or `until_ns` has passed."""
        async with self._alone():
            row = self.snapshot_find(volume, snapshot)
            wanted = HoldRow(row.number, hold, who, why, self.core.world.time_ns(), until_ns)
            return self.store.registry.hold_add(wanted)

    async def hold_release(self, volume: str, snapshot: str, hold: str) -> None:
        """Release a hold. Refused(ENOENT)."""
        async with self._alone():
            row = self.snapshot_find(volume, snapshot)
            self._audit('hold-release', snapshot=row.number, hold=hold)
            self.store.registry.hold_release(row.number, hold)

    def hold_list(self, volume: str, snapshot: str) -> list[HoldRow]:
        """Return the holds of a snapshot, also those whose end has passed."""
        return self.store.registry.holds(self.snapshot_find(volume, snapshot).number)
