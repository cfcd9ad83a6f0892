"""Histories in which the disk changes by itself: bytes rot, files vanish, the catalog goes back in time.

What that destroys is destroyed. Everything else must be there to the end, whatever the collector does then,
and though a person acknowledges every incident without looking.
"""

from __future__ import annotations

import random
import shutil
import sqlite3
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from snapfs.errors import Corrupt, SnapfsError
from snapfs.service.collecting import Collecting
from snapfs.volume.engine import Engine
from tests.crash.run import ImagingDisk
from tests.sim.collect_history import MACHINE, PEOPLE, History
from tests.support.collecting import forget, small_packs
from tests.support.model import freeze_view

DAMAGES = ('pack', 'pack-gone', 'catalog', 'audit', 'batches', 'older')
AFTER = (
    'collect',
    'collect',
    'wait',
    'wait',
    'approve',
    'release_early',
    'tick',
    'restart',
    'take_back',
    'acknowledge',
)


class Damaged(History):
    """One seed. `damage` is one of DAMAGES."""

    def __init__(self, folder: Path, damage: str, seed: int) -> None:
        super().__init__(folder, 'calm', seed)
        self.damage = damage
        self.chance = random.Random(f'{damage} {seed}')
        self.older: Path | None = None
        self.struck = False

    def note(self) -> str:
        return f'{self.damage} seed {self.seed}, after {", ".join(self.steps[-8:])}'

    async def run(self) -> None:
        await self.open()
        weights = {**PEOPLE, **MACHINE}
        for number in range(50):
            if self.damage == 'older' and number == 30:
                await self._remember()
            await self.step(self.chance.choices(list(weights), list(weights.values()))[0])
            self.reconcile()
        await self.check()
        try:
            await self._after(await self._strike())
        except sqlite3.DatabaseError:
            assert self.damage == 'catalog', self.note()
            self.count('the catalog cannot be read')
        finally:
            self.engine.store.close(clean=False)
            self.disk.forget()

    async def _remember(self) -> None:
        await self.reopen()
        await self.engine.close()
        self.older = self.folder / 'older'
        parts = self.chance.choice([(), ('journal',), ('journal',), ('journal', 'audit.log')])
        self.older.mkdir()
        for name in ('catalog.sqlite', *parts):
            self._copy(self.path / name, self.older / name)
        await self._open_engine()

    async def _strike(self) -> set[bytes]:
        """Close the store, damage it, and open it again; return what is lost by that."""
        await self.collecting.stop()
        await self.engine.close()
        self.disk.forget()
        getattr(self, '_damage_' + self.damage.replace('-', '_'))()
        self.walker.forget()
        self.steps.append(self.damage)
        self.struck = True
        self.disk = ImagingDisk(self.disk.root, self.seed)
        return set(self._lost())

    def _lost(self) -> dict[bytes, str]:
        return self.walker.walk(self.path).lost

    def _flip(self, paths: list[Path]) -> None:
        path = self.chance.choice(sorted(paths))
        data = bytearray(path.read_bytes())
        for _ in range(self.chance.choice([1, 1, 3])):
            data[self.chance.randrange(len(data))] ^= 1 << self.chance.randrange(8)
        path.write_bytes(data)

    def _packs(self) -> list[Path]:
        return [path for path in (self.path / 'packs').rglob('*') if path.is_file()]

    def _damage_pack(self) -> None:
        self._flip(self._packs())

    def _damage_pack_gone(self) -> None:
        self.chance.choice(sorted(self._packs())).unlink()

    def _damage_catalog(self) -> None:
        self._flip([self.path / 'catalog.sqlite'])

    def _damage_audit(self) -> None:
        self._flip([self.path / 'audit.log'])

    def _damage_batches(self) -> None:
        files = [
            path for path in (self.path / 'batches').rglob('*') if path.is_file() and path.stat().st_size
        ]
        if files and self.chance.random() < 0.7:
            self._flip(files)
        elif files:
            self.chance.choice(sorted(files)).unlink()

    def _damage_older(self) -> None:
        assert self.older is not None
        for part in self.older.iterdir():
            self._copy(part, self.path / part.name)

    @staticmethod
    def _copy(old: Path, new: Path) -> None:
        if old.is_dir():
            shutil.copytree(old, new, dirs_exist_ok=True)
        else:
            shutil.copy(old, new)

    # --- and then ----------------------------------------------------------------------------------------
    async def _after(self, excused: set[bytes]) -> None:
        if not await self._try(self.restart):
            self.count('does not open')
            return
        for _ in range(25):
            name = self.chance.choice(AFTER)
            self.steps.append(name)
            if not await self._try(getattr(self, name)) and name == 'restart':
                self.count('does not open')
                return
            await self.engine.core.world.checkpoint()
            lost = {id: why for id, why in self._lost().items() if id not in excused}
            assert not lost, f'{self.note()}: lost: {list(lost.values())[:3]}'
        if self.damage in ('pack', 'pack-gone', 'audit', 'batches'):
            await self._right_or_an_error()

    async def _try(self, work: Callable[[], Awaitable[Any]]) -> bool:
        """Errors are explained now. A bug that an altered catalog leads to stops everything: that is all."""
        try:
            await work()
        except (SnapfsError, sqlite3.DatabaseError) as error:
            self.count(type(error).__name__)
            self.errors.append(str(error))
            return False
        except AssertionError:
            if self.damage not in ('catalog', 'older'):
                raise
            self.count('bugs')
            return False
        return True

    async def _guarded(self, work: Callable[[], Awaitable[Any]]) -> None:
        if self.struck:
            await work()
        else:
            await super()._guarded(work)

    async def restart(self) -> None:
        if not self.engine.closed:
            self.engine.closed = True
            self.engine.store.close(clean=False)
        self.engine = await Engine.open(self.path, self.disk, self.world)
        small_packs(self.engine)
        self.collecting = Collecting(self.engine, self.world, self._runner())
        await self.collecting.begin()

    async def take_back(self) -> None:
        rows = self.engine.request_list()
        if rows:
            row = self.chance.choice(rows)
            if row.kind == 'volume':
                await self.engine.volume_undelete(row.number, self._unused('back'))
            else:
                volume = self.chance.choice(sorted(self.engine.heads()))
                await self.engine.snapshot_undelete(row.number, self._unused('back'), volume)

    async def acknowledge(self) -> None:
        incidents = self.collecting.collector.incidents
        for row in incidents.listed():
            self.count('incidents')
            incidents.acknowledge(row.number, 'ann', 'did not look')

    async def _right_or_an_error(self) -> None:
        """What can be read is what was written."""
        forget(self.engine)
        for (volume, name), promised in self.oracle.registry.snapshots.items():
            rows = [row for row in self.engine.snapshot_list() if (row.volume, row.name) == (volume, name)]
            assert rows, f'{self.note()}: {name} is gone'
            try:
                found = await freeze_view(self.engine.snapshot_view(rows[0].number))
            except Corrupt:
                self.count('unreadable')
                continue
            assert found == promised, f'{self.note()}: {name} is something else (P6)'
