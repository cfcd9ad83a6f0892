"""What people do in a history: they delete and take back, hold and release, and write the same again."""

from __future__ import annotations

import errno
import stat
from typing import Any

import trio

from snapfs.errors import Held, Refused
from snapfs.service.collecting import Collecting
from tests.crash.oracle import Pending
from tests.crash.run import Run
from tests.support.collecting import forget
from tests.support.model import freeze_view


class People(Run):
    """The half of a history that is about people."""

    collecting: Collecting
    past: list[bytes]  # contents that were written once

    def note(self) -> str:
        raise NotImplementedError

    def count(self, what: str, number: int = 1) -> None:
        raise NotImplementedError

    async def _guarded(self, work: Any) -> None:
        raise NotImplementedError

    async def delete(self) -> None:
        try:
            await super().delete()
        except Held:
            self.oracle.pending = None
            self.count('held')

    async def undelete(self) -> None:
        before = {row.number: row for row in self.engine.request_list()}
        try:
            await super().undelete()
        except Held as error:
            assert 'being freed' in str(error), f'{self.note()}: {error}'
            self.oracle.pending = None
            self.count('too late')
            return
        except Refused as error:
            assert error.errno == errno.ENOENT, f'{self.note()}: {error}'
            self.oracle.pending = None
            return
        for number, row in before.items():
            if all(one.number != number for one in self.engine.request_list()):
                self.count(f'undeleted from {"a batch" if row.batch else "the trash"}')
                forget(self.engine)
                view = self.engine.snapshot_view(row.view)
                if view is not None:
                    promised = self.models[row.view].freeze()
                    assert await freeze_view(view) == promised, (
                        f'{self.note()}: {row.name} came back otherwise'
                    )

    async def hold(self) -> None:
        found = self._some_snapshot()
        if found is not None:
            try:
                await self.engine.hold_add(self.pairs[found[0]].head.name, found[1], 'h', 'ann', 'why')
            except Refused as error:
                assert error.errno == errno.EEXIST

    async def release(self) -> None:
        for row in self.engine.snapshot_list():
            volume = next(head.name for head in self.engine.heads().values() if head.row.volume == row.volume)
            if self.engine.hold_list(volume, row.name):
                await self.engine.hold_release(volume, row.name, 'h')
                return

    async def again(self) -> None:
        """What is only in deleted snapshots is deleted, and written anew while the collector works (P3)."""
        number, pair = self.chance.choice(list(self.pairs.items()))
        content = self.chance.randbytes(self.chance.choice([500, 20_000, 50_000]))
        self.past.append(content)
        name, other = b'one', b'two'
        for one in (name, other):
            if one not in pair.root.entries:
                await pair.make([], one, stat.S_IFREG | 0o600)
        if not pair.root.entries[name].is_directory() and not pair.root.entries[other].is_directory():
            await self._whole(number, name, content)
            await self.snapshot_of(number)
            await self._whole(number, name, b'')
            await self._whole(number, other, b'')
            await self.commit()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._guarded, self.collecting.collect)
                for _ in range(self.chance.randrange(70)):
                    await trio.lowlevel.checkpoint()
                await self._whole(number, other, content)
                await self.chance.choice([self.flush, self.sync, self.commit])()

    async def _whole(self, number: int, name: bytes, content: bytes) -> None:
        pair = self.pairs[number]
        await pair.truncate([name], 0)
        await pair.write([name], 0, content)
        self._record()

    async def snapshot_of(self, number: int) -> None:
        """Take a snapshot of one volume, and delete it."""
        pairs, self.pairs = self.pairs, {number: self.pairs[number]}
        await self.snapshot()
        self.pairs = pairs
        name = self.engine.snapshot_list(pairs[number].head.name)[-1].name
        tree = self.oracle.registry.snapshots[number, name]
        view = self.engine.snapshot_find(pairs[number].head.name, name).number
        after = self.oracle.registry.without_snapshot(number, name).with_request('snapshot', view, tree)
        self.oracle.pending = Pending(after, self.oracle.floor)
        await self.engine.snapshot_delete(pairs[number].head.name, name, 'test')
        self.oracle.settled()
