"""L6 recovering: a damaged snapshot becomes whole again, or gets a sibling that is. Event loop only.

Nodes that the mirror has are put back first, whoever they belong to (putting_back.py), and what the disk
gives again is lost no more (whole_again.py).

Survey, plan, execution. The survey runs in a process of its own, while the collector stands still; what it
found is the plan, and the execution decides nothing. Donors first: what they have goes back to everybody
who shares it. A lost node hides what is below, so a survey follows each healing until nothing more comes
back. Only then are parts given up, in a sibling; the original is held, and stays as it is.

Where backups of the catalog have another tree for a snapshot (rescue/kept_rows.py), its row is what is
damaged, and the sibling is made of that tree. No root keeps it alive before that: so the collector stands
still from the first look until the sibling has its row."""

from __future__ import annotations

import logging
import os
import stat
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from snapfs import limits
from snapfs.errors import Invalid, Refused, SnapfsError, Unavailable
from snapfs.rescue import sibling
from snapfs.rescue.kept_rows import KeptRow, kept_rows, proves_itself
from snapfs.rescue.recover_values import Depth, Donor, Lost, Survey, SurveySpec, Use
from snapfs.service.collecting import Collecting
from snapfs.service.mounts import read_mounts
from snapfs.service.planting import plant
from snapfs.service.putting_back import PutBack, PuttingBack
from snapfs.service.runtime import find_entry
from snapfs.service.sockets import Asker
from snapfs.service.whole_again import WholeAgain
from snapfs.store import damage
from snapfs.store.catalog import take_number
from snapfs.store.registry import check_name
from snapfs.store.rows import SnapshotRow
from snapfs.tree import Root

log = logging.getLogger('snapfs.rescue')

Object = dict[str, Any]
HOLD = 'recovery'


@dataclass(frozen=True, slots=True)
class Wish:
    """What somebody wants recovered: `name` of the sibling (None: NAME-recovered), directories with donors,
    whether to read all data first, and whether only to say what would be done. `known_only`: do not even look
    whether the records of its data are there."""

    volume: str
    snapshot: str
    name: str | None
    donors: tuple[Path, ...]
    verify: bool
    dry_run: bool
    who: str
    known_only: bool = False

    @property
    def depth(self) -> Depth:
        """How closely to look at data."""
        if self.known_only:
            return Depth.KNOWN
        return Depth.READ if self.verify else Depth.PRESENT


@dataclass(frozen=True, slots=True)
class Healed:
    """What a tree had lost at first, what of it is lost for good, and which donor the rest came from."""

    first: Survey
    rest: Survey
    donors: dict[bytes, Donor]


class Recovering:
    """Recovers snapshots of one store."""

    def __init__(self, collecting: Collecting, asker: Asker | None = None) -> None:
        """`asker`: when he leaves, looking ends, and so does the recovery that waits for it."""
        self._collecting = collecting
        self._asker = asker
        self._putting_back = PuttingBack(collecting, asker)
        self._whole_again = WholeAgain(collecting, asker)
        self._put_back = PutBack()
        self._came_back = 0  # chunks that were known to be lost, and are read again
        self._engine = collecting.engine
        self._world = collecting.world

    async def run(self, wish: Wish) -> Object:
        """Recover one snapshot; return what was found, brought back and given up. Latched, Refused: nothing
        was changed but what donors gave back."""
        with self._engine.core.latching():  # health says so at once
            told = await self._run(wish)
            if told['lost'] and not wish.dry_run:
                async with self._collecting.still():
                    await plant(self._engine, self._world)  # the canary may have lost bytes as well
            return told

    async def _run(self, wish: Wish) -> Object:
        store = self._engine.store
        row = self._engine.snapshot_find(wish.volume, wish.snapshot)
        await self._refuse(wish)
        # First, and of everybody's nodes: what comes back whole is not given up.
        every_node = wish.verify or bool(store.chunks.mirrored)
        self._put_back = await self._putting_back.run(every_node, wish.dry_run)
        if not wish.dry_run:
            self._came_back = await self._whole_again.look(store.chunks.unreadable)
        kept = await self._world.run_in_thread(kept_rows, store.disk, store.path, store.superblock.uuid, row)
        if not kept:
            return await self._recover(row, wish, None)
        async with nullcontext() if wish.dry_run else self._collecting.still():
            for one in kept:
                told = await self._recover_kept(row, one, wish)
                if told is not None:
                    return told
            why = 'its top node is lost as well, or has other counts'
            return await self._recover(row, wish, _source(row, kept[0], why))

    async def _recover(self, row: SnapshotRow, wish: Wish, source: Object | None) -> Object:
        """Recover the tree that the catalog has for a snapshot."""
        found, wish = await self._look(row, wish)
        healed = await self._heal(row, wish, found)
        told = {**self._told(row, wish, healed), 'source': source, 'sibling': None}
        if wish.dry_run:
            return told
        if not healed.rest.lost:
            self._whole_again.unmark(row.number)
        if healed.donors or self._put_back or self._came_back:
            await self._whole_again.unmark_whole()
        if healed.rest.lost:
            await self._note_lost(row, told['snapshot'], healed.rest)
            told['sibling'] = await self._make(row, healed.rest, told, wish)
        return told

    async def _recover_kept(self, row: SnapshotRow, kept: KeptRow, wish: Wish) -> Object | None:
        """Recover the tree that a backup has for a snapshot. None when its top is not to be had, or is that
        of another tree: then nothing was changed but what donors gave back."""
        found, wish = await self._look(kept.row, wish)
        healed = await self._heal(kept.row, wish, found)
        top = [one for one in healed.rest.lost if one.id == kept.row.root]
        if top and not (wish.dry_run and top[0].donors):
            return None
        if not top and not await self._world.run_in_thread(proves_itself, self._engine.store, kept.row):
            return None
        told = {**self._told(kept.row, wish, healed), 'source': _source(row, kept, None), 'sibling': None}
        if not wish.dry_run:
            if healed.donors or self._put_back or self._came_back:
                await self._whole_again.unmark_whole()
            if healed.rest.lost:
                await self._note_lost(row, told['snapshot'], healed.rest)
            told['sibling'] = await self._make(kept.row, healed.rest, told, wish)
        return told

    async def _look(self, row: SnapshotRow, wish: Wish) -> tuple[Survey, Wish]:
        """Look at a tree for the first time; return what was found, and how to go on looking. Damage seldom
        comes alone: where something is lost, everything is read and hashed, so that what is said to be whole
        then is."""
        found = await self._survey(row, wish)
        if wish.depth is Depth.PRESENT and found.unhashed and (found.lost or self._put_back):
            wish = replace(wish, verify=True)
            found = await self._survey(row, wish)
        return found, wish

    async def _heal(self, row: SnapshotRow, wish: Wish, found: Survey) -> Healed:
        """Bring back what donors have of what was found lost, until nothing more comes back. A dry run only
        looks."""
        first = found
        if not wish.dry_run and any(one.kind == 2 for one in found.lost):
            # Where one node is lost, others are that nobody has looked at yet.
            more_back = await self._putting_back.run(every_node=True)
            if more_back:
                self._put_back = self._put_back.and_also(more_back)
                first = found = await self._survey(row, wish)
        donors: dict[bytes, Donor] = {}
        if wish.dry_run:
            return Healed(first, first, donors)
        while True:
            # What came back and is lost again is not helped by coming back once more.
            rest_now = [one for one in found.lost if one.id not in donors]
            more = await self._world.run_in_thread(sibling.heal, self._engine.store, rest_now)
            donors.update(more)
            if not more:
                break
            self._engine.core.nodes.forget()
            if not any(one.kind == 2 and one.id in more for one in found.lost):
                break  # no node came back: nothing that was hidden can be seen now
            found = await self._survey(row, wish)
            new = [one for one in found.lost if one.id not in {other.id for other in first.lost}]
            first = replace(first, lost=(*first.lost, *new))
        rest = replace(found, lost=tuple(one for one in found.lost if one.id not in more))
        for one in rest.lost:
            donors.pop(one.id, None)
        return Healed(first, rest, donors)

    async def _refuse(self, wish: Wish) -> None:
        """Refuse where a recovery could make things worse."""
        store = self._engine.store
        if wish.verify and wish.known_only:
            raise Invalid('to read all data and to look at none exclude each other: verify, known-only')
        if store.latched is not None and not wish.dry_run:
            error = store.disk.refusal('the store is read-only, and a recovery writes: ')
            error.advice = 'Copy the store to a disk that works, and recover there.'
            if store.stopped_before:  # a copy has the incident as well
                error.advice = (
                    'When its disk works again, or in a copy on one that does: snapfs incident list, snapfs '
                    'incident ack NUMBER; then recover.'
                )
            raise error
        if not wish.dry_run and store.free_bytes() < limits.FREE_BYTES_MIN:
            raise Refused(28, f'a recovery needs {limits.FREE_BYTES_MIN // limits.MIB} MiB of free space')
        if wish.name is not None:
            check_name(wish.name, 'snapshot')
            if wish.name in self._engine.snapshots_of(self._volume(wish)):
                raise Refused(17, f'there is a snapshot {wish.volume}@{wish.name} already')
        # In a thread: a directory of the mount itself would wait for this very loop, for ever.
        await self._world.run_in_thread(_check_donors, wish.donors, store.path)

    def _volume(self, wish: Wish) -> int:
        head = self._engine.head(wish.volume)
        assert head is not None
        return head.row.volume

    async def _survey(self, row: SnapshotRow, wish: Wish) -> Survey:
        store = self._engine.store
        depth = int(wish.depth)
        spec = SurveySpec(store.path, store.superblock.uuid, row.root, depth, wish.donors, store.still)
        found: Survey = await self._collecting.look('survey', lambda: spec, self._asker)
        return found

    def _told(self, row: SnapshotRow, wish: Wish, healed: Healed) -> Object:
        """Say what was found, as DAMAGE.json has it."""
        return {
            'snapshot': f'{wish.volume}@{wish.snapshot}',
            'lost': [_told_one(one, healed.donors) for one in healed.first.lost],
            'names_lost': list(healed.rest.names),
            'also_named': [{'path': path, 'other': other} for path, other in healed.first.also],
            'put_back': {'packs': self._put_back.packs, 'nodes': len(self._put_back.nodes)},
            'nodes_read': healed.first.nodes,
            'references': healed.first.references,
            'looked': wish.depth.name.lower(),
            'unhashed': healed.rest.unhashed,
            'verified_percent': self._engine.coverage().of(row.epoch).percent,
            'dry_run': wish.dry_run,
        }

    def _free_name(self, row: SnapshotRow, snapshot: str) -> str:
        taken, ending, count = self._engine.snapshots_of(row.volume), '-recovered', 1
        while True:
            room = limits.VOLUME_NAME_BYTES_MAX - len(ending)
            stored, start = snapshot.encode('utf-8', 'surrogateescape'), snapshot
            if len(stored) > room:  # cut behind a whole letter
                start = stored[:room].decode('utf-8', 'ignore')
            if start + ending not in taken:
                return start + ending
            count += 1
            ending = f'-recovered-{count}'

    async def _note_lost(self, row: SnapshotRow, title: str, rest: Survey) -> None:
        """Write down what nobody has: by chunk, so that nothing new is shared with it, and by snapshot."""
        store, now = self._engine.store, self._world.time_ns()
        lost: dict[bytes, str | None] = {one.id: one.why for one in rest.lost}
        store.chunks.unreadable.update(lost)
        await self._world.run_in_thread(damage.record, store.catalog, lost, damage.RECOVERY, now)
        self._engine.core.report_damage(
            f'a recovery of {title} found no donor for {len(lost)} chunks', row.number
        )

    async def _make(self, row: SnapshotRow, rest: Survey, told: Object, wish: Wish) -> str:
        """Make the sibling, and hold the original; return what it is called."""
        engine, store = self._engine, self._engine.store
        name = wish.name or self._free_name(row, wish.snapshot)
        held = any(one.name == HOLD for one in engine.hold_list(wish.volume, wish.snapshot))
        if not held:
            await engine.hold_add(wish.volume, wish.snapshot, HOLD, wish.who, f'recovered as {name}')
        root = Root(row.root, row.root_items, row.root_refs)
        maker = sibling.Sibling(store, root, row.next_ino, rest, self._world.time_ns())
        try:
            made: Root = await self._world.run_in_thread(maker.make, told)
            await engine.commit(always=True)  # nodes are durable, and in the index, before a row names them
            await self._world.run_in_thread(self._enter, row, name, made, maker.next_ino, wish.who)
        except SnapfsError:
            if not held:
                await self._release(wish)
            raise
        await engine.registry_changed(row.volume, name)
        log.warning('%s was recovered as %s', told['snapshot'], name)
        return f'{wish.volume}@{name}'

    async def _release(self, wish: Wish) -> None:
        """Take back the hold for a sibling that could not be made. Where that fails as well, it stays: all it
        does is to keep what is there."""
        try:
            await self._engine.hold_release(wish.volume, wish.snapshot, HOLD)
        except SnapfsError as error:
            log.warning('the hold %s of %s@%s stays: %s', HOLD, wish.volume, wish.snapshot, error)

    def _enter(self, row: SnapshotRow, name: str, root: Root, next_ino: int, who: str) -> None:
        store = self._engine.store
        with store.catalog.transaction() as db:
            found = db.execute('SELECT 1 FROM chunk WHERE id = ?', (root.id,)).fetchone()
            assert found is not None, 'P1: the root of a recovered snapshot is not in the index'
            number = take_number(db, 'next_view')
            if number > limits.VIEW_MAX:
                raise Unavailable('the store has used up its view numbers')
            db.execute(
                'INSERT INTO snapshot VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, NULL)',
                (number, row.volume, name.encode('utf-8', 'surrogateescape'), root.id, root.items, root.refs,
                 next_ino, store.catalog.epoch, self._world.time_ns(), who),
            )  # fmt: skip


def _source(row: SnapshotRow, kept: KeptRow, refused: str | None) -> Object:
    """Say that a backup has another tree for a snapshot; `refused`: why it was not taken."""
    return {
        'backup': kept.backup,
        'epoch': kept.row.epoch,
        'root': _tree(kept.row),
        'root_in_catalog': _tree(row),
        'refused': refused,
    }


def _tree(row: SnapshotRow) -> Object:
    return {'id': row.root.hex() if row.root else None, 'items': row.root_items, 'references': row.root_refs}


def _told_one(one: Lost, healed: dict[bytes, Donor]) -> Object:
    donor, unknown = healed.get(one.id), None
    source = 'zeros' if one.kind == 1 else None
    if one.kind == 2:
        end = f'to {_ino(one.high)}' if _ino(one.high) <= limits.INO_MAX else 'on'
        unknown = f'names and files of inodes {_ino(one.low)} {end}'
    return {
        'chunk': one.id.hex(),
        'kind': 'node' if one.kind == 2 else 'data',
        'why': one.why,
        'donor': source if donor is None else f'{donor.path} at {donor.offset}',
        'offered': [f'{found.path} at {found.offset}' for found in one.donors],
        'ranges': [_range(use) for use in _joined(one.uses)],
        'unknown': unknown,
    }


def _joined(uses: tuple[Use, ...]) -> list[Use]:
    """Return the uses of a chunk, those that follow each other in a file as one: content that repeats itself
    is one chunk many times."""
    joined: list[Use] = []
    for use in uses:
        before = joined[-1] if joined else None
        if before and before.end and use.end and (before.ino, before.end) == (use.ino, use.start):
            joined[-1] = replace(before, end=use.end)
        else:
            joined.append(use)
    return joined


def _range(use: Use) -> Object:
    name = bytes.fromhex(use.name).decode('utf-8', 'replace') if use.name else None
    start, end = (use.start, use.end) if use.end else (None, None)
    return {'path': use.path, 'start': start, 'end': end, 'attribute': name}


def _ino(key: bytes) -> int:
    return int.from_bytes(key[:8], 'big')


def _check_donors(donors: tuple[Path, ...], store: Path) -> None:
    """Refused for what is no directory, or lies in a mount of this store: it has nothing that the store has
    not, and whoever reads it in the daemon waits for the daemon. Blocking."""
    entries = [find_entry(mount) for mount in read_mounts() if mount.is_snapfs]
    devices = {one.device for one in entries if one is not None and one.store == str(store)}
    for path in donors:
        try:
            status = path.stat()
        except OSError as error:
            raise Refused(2, f'{path} cannot be searched: {error.strerror}') from None
        if not stat.S_ISDIR(status.st_mode):
            raise Refused(2, f'{path} is not a directory')
        if f'{os.major(status.st_dev)}:{os.minor(status.st_dev)}' in devices:
            raise Refused(22, f'{path} lies in a mount of this store; donors are files elsewhere')
