"""L2 store: the directory that holds everything, opened. Blocking. Opened and closed by one thread; parts say
their own.

Order of opening: superblock, lock, catalog, audit log, journal, packs. After an unclean stop packs are
recovered before anybody writes; the engine then replays the journal, commits, and calls `journal.restart`. A
store with an incident of scope 'store' in force opens read-only: every write raises Latched until a person
has acknowledged it. So does one on a filesystem that is mounted read-only.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from snapfs import limits
from snapfs.errors import Corrupt, Invalid, Latched, Refused, SnapfsError
from snapfs.format.records import HEADER_BYTES, RecordKind
from snapfs.format.superblock import SUPERBLOCK_BYTES, Superblock, decode_superblock, encode_superblock
from snapfs.store import damage, owed, readonly
from snapfs.store.audit import AuditLog, audit_problem
from snapfs.store.backup import Backups, keep_superblock, superblock_copies
from snapfs.store.catalog import Catalog, Commit
from snapfs.store.chunks import ChunkStore
from snapfs.store.durable import Disk
from snapfs.store.journal import Journal
from snapfs.store.lock import StoreLock
from snapfs.store.lost_packs import LostPacks
from snapfs.store.mirror import Mirror
from snapfs.store.missing import (
    DIRECTORIES,
    refuse_links,
    way_out_of_catalog,
    way_out_of_hole,
    way_out_of_journal,
)
from snapfs.store.packs import PackNumbers
from snapfs.store.recovery import Recovered, packs_on_disk, recover_pack
from snapfs.store.registry import Registry
from snapfs.store.rows import PackRow
from snapfs.world import World

log = logging.getLogger('snapfs.store')
T = TypeVar('T')


class Store:
    """An open store. Parts: `superblock`, `catalog`, `registry`, `chunks`, `journal`, `audit`, `lock`,
    `disk`, `world`.

    `was_clean` says how the last owner left it; `recovered` what became of its open packs if not.
    """

    superblock: Superblock
    catalog: Catalog
    registry: Registry
    chunks: ChunkStore
    journal: Journal
    audit: AuditLog

    def __init__(self, path: Path, disk: Disk, world: World) -> None:
        self.path = path
        self.disk = disk
        self.world = world
        self.lock = StoreLock(disk, path / 'lock', world)
        self.was_clean = True
        self.stopped_before = False  # it is read-only for what an earlier session has met, and not this one
        self.recovered: dict[bytes, Recovered] = {}
        self._parts: list[Catalog | AuditLog | Journal | ChunkStore] = []
        self._collector_stopped = False

    # --- create, open, close -----------------------------------------------------------------------------
    @classmethod
    def create(cls, path: Path, disk: Disk, world: World) -> Store:
        """Make a store in a new or empty directory (0700) and open it. Invalid when it cannot be there;
        Refused(ENOSPC) when the disk has too little room. The superblock comes last: without it, it is no
        store."""
        if not path.parent.is_dir():
            raise Invalid(f'{path.parent} is not a directory')
        path = path.parent.resolve() / path.name
        if disk.exists(path / 'superblock'):
            raise Invalid(f'{path} is a store already')
        if disk.exists(path) and (not path.is_dir() or set(disk.listdir(path)) - {'lost+found'}):
            raise Invalid(f'{path} is not an empty directory')
        if not os.access(path if path.is_dir() else path.parent, os.W_OK | os.X_OK):
            raise Invalid(f'no permission to write in {path}')
        figures = disk.statvfs(path.parent)
        needed = 2 * limits.JOURNAL_BYTES + limits.RESERVE_BYTES + limits.FREE_BYTES_MIN
        if figures.f_bavail * figures.f_frsize < needed:
            raise Refused(errno.ENOSPC, f'a store needs {needed // limits.MIB} MiB of free space')
        if not disk.mkdir(path):
            disk.restrict(path)
        cls(path, disk, world)._build()
        disk.sync_directory(path.parent)
        return cls.open(path, disk, world)

    def _build(self) -> None:
        disk, path = self.disk, self.path
        self.lock.acquire()
        try:
            block = Superblock(self.world.random_bytes(16), self.world.time_ns(), self.world.random_bytes(16))
            for name in DIRECTORIES:
                disk.mkdir(path / name)
            disk.sync_directory(path / 'packs')
            Catalog.create(disk, path / 'catalog.sqlite').close()
            AuditLog.create(disk, path / 'audit.log', self.world).close()
            Journal.create(disk, path / 'journal', block.uuid)
            disk.preallocate(path / 'reserve', limits.RESERVE_BYTES)
            disk.sync_directory(path)
            disk.write_file(path / 'superblock', encode_superblock(block))
            keep_superblock(disk, path)
        finally:
            self.lock.release()

    @classmethod
    def open(
        cls, path: Path, disk: Disk, world: World, wait_seconds: float = 0.0, mountpoint: str = ''
    ) -> Store:
        """Open a store and own it. Invalid when there is none; Unavailable, naming the holder, when another
        process has it and keeps it for `wait_seconds`; Corrupt. `mountpoint` is what others are told about
        us."""
        path = path.resolve()
        if not path.is_dir():
            raise Invalid(f'{path} is not a snapfs store')
        store = cls(path, disk, world)
        store.superblock = _superblock(disk, path)
        store.lock.acquire(wait_seconds, mountpoint)
        try:
            store._open_parts()
        except FileNotFoundError as error:
            store._release()
            raise Corrupt(f'{error.filename} is missing', advice=way_out_of_catalog(path)) from error
        except Corrupt as error:
            store._release()
            if str(error).startswith(('catalog', str(path / 'catalog.sqlite'))):
                raise Corrupt(str(error), advice=way_out_of_catalog(path)) from error
            if str(error).removeprefix('cannot open ').startswith(('journal', str(path / 'journal'))):
                raise Corrupt(str(error), advice=way_out_of_journal(path)) from error
            raise
        except BaseException:
            store._release()
            raise
        return store

    def _open_parts(self) -> None:
        disk, path, uuid = self.disk, self.path, self.superblock.uuid
        readonly.stop_writing(disk, path)
        refuse_links(path)
        for name in DIRECTORIES:
            if not disk.exists(path / name):
                # P10: it is not an empty one
                raise Corrupt(f'{path / name} is missing', advice=way_out_of_hole(path, name))
        self.catalog = self._with_reserve(lambda: Catalog.open(disk, path / 'catalog.sqlite'))
        self._parts.append(self.catalog)
        self.catalog.on_taken_away = self._catalog_taken_away
        self.registry = Registry(self.catalog)
        self.was_clean = self.catalog.setting('clean') == 1
        self._with_reserve(lambda: owed.settle(disk, path, self.catalog, self.world.time_ns()))
        in_force = self.catalog.incidents('store')
        if in_force:
            disk.latch(f'incident {in_force[0].number}: {in_force[0].reason}')
            self.stopped_before = disk.latched == f'incident {in_force[0].number}: {in_force[0].reason}'
        elif disk.latched is None:
            self._with_reserve(self._mark_unclean)
        self.backups = Backups(disk, path, uuid, self.catalog)
        self.mirror = Mirror(disk, path, self.catalog, self.was_clean)
        self._open_audit()
        committed = self.catalog.journal_sequence
        self.journal = Journal.open(disk, path / 'journal', uuid, committed, self.was_clean)
        self._parts.append(self.journal)
        rows = self.catalog.packs()
        numbers = PackNumbers(rows, self.catalog.setting('next_pack'), self.world.random_bytes)
        self.chunks = ChunkStore(disk, self.catalog, path / 'packs', uuid, numbers)
        self._parts.append(self.chunks)
        self.chunks.on_condemned = self._condemned_read
        self.chunks.unreadable.update(damage.load(self.catalog))
        self._take_packs(rows, numbers, committed)
        self.lost_packs = LostPacks(path, self.catalog, self.recovered)
        self._check_reserve()

    def keep_copies(self) -> None:
        """Write what helps after damage, where something has changed: a backup of the catalog, second copies
        of nodes. Never raises. Any thread, one at a time."""
        self.keep_names()
        self.mirror.copy()

    def keep_names(self) -> None:
        """Write a backup of the catalog, if something has changed. Never raises. Any thread, one at a
        time."""
        self.backups.write(self.world.time_ns())

    def _mark_unclean(self) -> None:
        self.catalog.set_setting('clean', 0)
        # Whoever loses the log of the catalog must not be told `clean` by what is left of it: the
        # journal would not be replayed, and synced bytes would be gone without a word (P5).
        self.catalog.checkpoint()

    def _open_audit(self) -> None:
        """Open the audit log. One that is not what the catalog knows stops the collector, not the readers
        (P7): it stays where it is, and a new segment behind it begins with the reason."""
        path, head, broken = self.path / 'audit.log', self.catalog.audit_head(), ''
        try:
            self.audit = AuditLog.open(self.disk, path, self.world, head)
        except (Corrupt, FileNotFoundError) as error:
            broken = audit_problem(path, error)
            log.critical('the collector stops: %s', broken)
            self._record_incident('collector', broken)
            self.audit = AuditLog.begin_again(self.disk, path, self.world, head)
        self._parts.append(self.audit)
        self.catalog.audit_known = lambda: self.audit.known
        if broken and self.disk.latched is None:
            event = {'event': 'audit-broken', 'reason': broken}
            try:
                self._with_reserve(lambda: self._write_break(event))
            except Refused as error:
                log.error('the audit log begins again later: %s', error)
                self.audit.owe(event)

    def _write_break(self, event: dict[str, Any]) -> None:
        self.audit.append(event)
        self.catalog.keep_audit_head()

    def _take_packs(self, rows: list[PackRow], numbers: PackNumbers, committed: int) -> None:
        """Continue the open packs of a clean stop; recover those of an unclean one, and packs the catalog
        never saw."""
        root = self.path / 'packs'
        unknown: list[PackRow] = []
        if not self.was_clean:
            for kind, name in packs_on_disk(self.disk, root):
                if name not in numbers.numbers:
                    number, _ = numbers.add(name, kind)
                    unknown.append(PackRow(number, name, kind, 'open', 0, 0))
        if self.disk.latched is not None:
            return
        opened = [row for row in rows if row.state == 'open']
        if self.was_clean:
            opened = [row for row in opened if not self.chunks.writers[RecordKind(row.kind)].resume(row)]
        if opened or unknown:
            self._with_reserve(lambda: self._recover_packs(opened + unknown, committed))

    def _recover_packs(self, packs: list[PackRow], committed: int) -> None:
        known = {row.name: row.bytes for row in packs}
        floors, named = dict(known), {name: set[int]() for name in known}  # what only the journal names
        for record in self.journal.replay(committed):
            for frame in record:
                for chunk in frame.chunks:
                    end = chunk.offset + HEADER_BYTES + chunk.stored_length
                    if end > known.get(chunk.pack_name, end):
                        floors[chunk.pack_name] = max(end, floors[chunk.pack_name])
                        named[chunk.pack_name].add(chunk.offset)
        rows = []
        for row in packs:
            floor = floors[row.name]
            self.recovered[row.name] = done = self._recover_pack(row, floor)
            if done.oddity is not None:
                log.error('pack %s is left as it is: %s', row.name.hex(), done.oddity)
            elif done.bytes:
                log.info(
                    'pack %s: %d records, %d bytes cut off', row.name.hex(), done.records, done.cut_bytes
                )
            if done.unseen and floor:
                # The next opening looks again. The journal will not be there to say what is in use.
                count = row.records + len(named[row.name])
                rows.append(PackRow(row.pack, row.name, row.kind, 'open', floor, count))
            elif done.bytes and (done.oddity is None or row.bytes or floor):
                rows.append(PackRow(row.pack, row.name, row.kind, 'sealed', done.bytes, done.records))
        self.catalog.put_packs(rows)

    def _recover_pack(self, row: PackRow, floor: int) -> Recovered:
        step = partial(recover_pack, self.disk, self.path / 'packs', self.superblock.uuid, row, floor)
        try:
            return self._with_reserve(step)
        except Refused as error:  # a full disk keeps nobody out; the next opening tries again
            return Recovered(row.bytes, row.records, 0, str(error), unseen=True)

    def close(self, clean: bool) -> None:
        """Let go of the store. `clean`: the caller has committed everything; chunks that no commit took are
        added to the index, and the next open need not recover. Otherwise nothing is written at all."""
        try:
            if clean and self.disk.latched is None:
                self._finish()
        finally:
            self._release()

    def _finish(self) -> None:
        self.chunks.put_back()
        self.chunks.sync()
        rows = self.chunks.commit_rows()
        committed = self.catalog.journal_sequence
        if rows.chunks or rows.packs:
            now_ns = self.world.time_ns()
            self.catalog.commit(Commit((), rows.chunks, rows.packs, (), committed, now_ns))
            self.chunks.committed(rows)
        if committed == self.journal.last_sequence:
            self.catalog.set_setting('clean', 1)
        else:
            log.warning('the journal has records that no commit has taken: the next open will replay them')

    def _release(self) -> None:
        try:
            for part in reversed(self._parts):
                part.close()
        finally:
            self._parts.clear()
            self.lock.release()

    @property
    def still(self) -> bool:
        """Whether the catalog is read as a file that nobody changes, and nothing is made beside it."""
        return self.catalog.still

    @property
    def committed_sequence(self) -> int:
        """The last journal record that the current roots contain; replay begins after it."""
        return self.catalog.journal_sequence

    def counters(self) -> dict[str, int]:
        """Return what has been done since the store was opened, for status and tests."""
        chunks = self.chunks
        return {
            'put_bytes': chunks.put_bytes,
            'new_bytes': chunks.new_bytes,
            'stored_bytes': chunks.stored_bytes,
            'read_bytes': chunks.read_bytes,
            'uncommitted_chunks': chunks.uncommitted,
            'device_syncs': self.disk.syncs,
        }

    def append_while_stopped(self, event: dict[str, Any]) -> None:
        """Write a line of the audit log of a store that an earlier session has stopped. Latched when this one
        has met the failure itself: what the disk says after a failed sync proves nothing (P5)."""
        if not self.stopped_before:
            raise Latched(
                str(self.disk.latched),
                advice='Unmount the store and look at the disk below it; then acknowledge.',
            )
        log = self._audit_while_stopped()
        try:
            log.append(event)
            self.audit.known = log.known  # the catalog keeps it with the effect of the line
        finally:
            log.close()

    def _audit_while_stopped(self) -> AuditLog:
        """Open the log to be written. One that is damaged or gone goes on as at an opening: in a new segment
        that begins with the reason, while an incident of its own keeps the collector stopped."""
        disk, path, head = Disk(), self.path / 'audit.log', self.catalog.audit_head()
        try:
            return AuditLog.open(disk, path, self.world, head)
        except (Corrupt, FileNotFoundError) as error:
            broken = audit_problem(self.path / 'audit.log', error)
        self._record_incident('collector', broken)
        if not self.catalog.incidents('collector'):
            raise Corrupt(f'{broken}, and that could not be written down')
        log = AuditLog.begin_again(disk, path, self.world, head)
        try:
            log.append({'event': 'audit-broken', 'reason': broken})
        except BaseException:
            log.close()
            raise
        return log

    # --- the latch ---------------------------------------------------------------------------------------
    @property
    def latched(self) -> str | None:
        """Why nothing is written any more, or None."""
        return self.disk.latched

    def latch(self, reason: str) -> None:
        """Stop all writing, now and after a restart, until a person acknowledges the incident. Never raises:
        the disk may be what has failed. A catalog that cannot be told now is told by the next opening."""
        log.critical('the store stops writing: %s', reason)
        self.disk.latch(reason)
        self._record_incident('store', reason)

    def _catalog_taken_away(self, reason: str) -> None:
        """Somebody deleted the catalog under us: put it back as it was, with the reason why all stops."""
        self._record_incident('store', reason)
        try:
            self.catalog.put_back()
        except (SnapfsError, OSError) as error:
            log.critical('the catalog could not be put back: %s', error)
            owed.owe(self.disk, self.path, 'store', reason, self.world.time_ns())
        self.disk.latch(reason)

    def record_damage(self, by: str = damage.READ) -> None:
        """Write down which chunks reads found lost or whole again since the last time. Never raises for a
        full or stopped disk: then it is found again."""
        changes = self.chunks.take_damage()
        if changes and self.disk.latched is None:
            try:
                damage.record(self.catalog, changes, by, self.world.time_ns())
            except Refused as error:
                log.warning('damage is not recorded in the catalog: %s', error)

    def forget_freed_damage(self) -> None:
        """Forget the losses of chunks that have been freed: nobody misses them."""
        self.chunks.unreadable.difference_update(damage.forget_freed(self.catalog))

    def _condemned_read(self, id: bytes, table: str) -> None:
        """P7: a chunk was needed that a batch had condemned. The verdict was wrong; deletion stops, reading
        goes on."""
        reason = f'P7: chunk {id.hex()} was read from {table}'
        log.critical('the collector stops: %s', reason)
        if not self._collector_stopped:
            self._collector_stopped = True
            self._record_incident('collector', reason)

    def _record_incident(self, scope: str, reason: str) -> None:
        try:
            in_force = self.catalog.incidents(scope)
            # The store is latched once; whoever clears the collector's latch must have seen every reason.
            if not any(scope == 'store' or row.reason == reason for row in in_force):
                self.catalog.incident_add(scope, reason, self.world.time_ns())
        except SnapfsError as error:
            log.critical('the incident could not be recorded: %s', error)
            owed.owe(self.disk, self.path, scope, reason, self.world.time_ns())

    def _with_reserve(self, step: Callable[[], T]) -> T:
        """Do what opening needs, also on a full disk: otherwise nobody could come in to delete anything."""
        try:
            return step()
        except Refused:
            if not self.give_up_reserve():
                raise
            return step()

    # --- room --------------------------------------------------------------------------------------------
    def free_bytes(self) -> int:
        """Return how many bytes the disk below has left for us, the reserve not counted."""
        figures = self.statvfs()
        return figures.f_bavail * figures.f_frsize

    def statvfs(self) -> os.statvfs_result:
        """Return the figures of the disk below, as it is."""
        return self.disk.statvfs(self.path)

    @property
    def has_reserve(self) -> bool:
        """Whether the reserve file is there."""
        return self.disk.exists(self.path / 'reserve')

    def give_up_reserve(self) -> bool:
        """Free the reserve, so that a deletion or a last commit has room. False when it is gone already."""
        if not self.has_reserve:
            return False
        self.disk.unlink(self.path / 'reserve')
        self.disk.sync_directory(self.path)
        log.warning('the disk below is full: the reserve of %d bytes is given up', limits.RESERVE_BYTES)
        return True

    def restore_reserve(self) -> bool:
        """Make the reserve anew if there is room for it and more; return whether there is one now."""
        if self.has_reserve:
            return True
        if self.free_bytes() < limits.RESERVE_BYTES + limits.FREE_BYTES_MIN:
            return False
        try:
            self.disk.preallocate(self.path / 'reserve', limits.RESERVE_BYTES)
        except Refused:
            return False
        self.disk.sync_directory(self.path)
        return True

    def _check_reserve(self) -> None:
        """Remove a reserve that a crash has left unfinished, and try to make a whole one."""
        if self.disk.latched is not None:
            return
        if self.has_reserve and self.disk.size(self.path / 'reserve') != limits.RESERVE_BYTES:
            self.disk.unlink(self.path / 'reserve')
        if not self.restore_reserve():
            log.warning('the disk below is nearly full: there is no reserve')


def _superblock(disk: Disk, path: Path) -> Superblock:
    try:
        return decode_superblock(disk.read_file(path / 'superblock', SUPERBLOCK_BYTES))
    except FileNotFoundError:
        if not any(superblock_copies(disk, path)):
            raise Invalid(f'{path} is not a snapfs store') from None
        raise Corrupt(f'{path / "superblock"} is missing', advice=_copy_is_there(path)) from None
    except Corrupt as error:
        if not any(superblock_copies(disk, path)):
            raise
        raise Corrupt(str(error), advice=_copy_is_there(path)) from error


def _copy_is_there(store: Path) -> str:
    return (
        f'The store has a copy of it. Put that in place: snapfs rebuild {store} '
        f'{store / "catalog.new"} --install.'
    )
