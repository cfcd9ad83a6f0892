"""What histories are made of: files whose contents come again, reads that fail, models made from views."""

from __future__ import annotations

import os
import random
from typing import TYPE_CHECKING, Any

import pytest
from trio._core import _run as scheduler

from snapfs import limits
from snapfs.collect import condemned, meta_packs, reading, recount
from snapfs.tree import apply
from snapfs.volume.view import View
from tests.support.model import Node
from tests.support.workload import Workload

if TYPE_CHECKING:
    from tests.sim.collect_history import History


class Again(Workload):
    """Few contents, written again and again, whole or in part; now and then a new one,
    which may come again when all else that had it is deleted."""

    def __init__(self, pair: Any, seed: int, sizes: int, past: list[bytes]) -> None:
        super().__init__(pair, seed, sizes)
        self.past = past
        few = random.Random(1)
        self._contents = [few.randbytes(few.choice([300, 3000, 9000, 40_000])) for _ in range(9)]

    def _bytes(self, count: int) -> bytes:
        if self.random.random() < 0.25:
            self.past.append(self.random.randbytes(self.random.randrange(1, 30_000)))
            return self.past[-1]
        if self.past and self.random.random() < 0.4:
            return self.random.choice(self.past)  # perhaps only what is on its way out has it still
        content = self.random.choice(self._contents)
        return content[: max(count, 1)] if self.random.random() < 0.4 else content

    async def _write(self) -> None:
        path = self._file()
        if path is None:
            return
        if self.random.random() < 0.7:
            await self.pair.truncate(path, 0)
            await self.pair.write(path, 0, self._bytes(1 << 20))
        else:
            await super()._write()

    async def _append(self) -> None:
        path = self._file()
        if path is not None and len(self.pair.node(path).data) < 100_000:
            await super()._append()


class FaultyOs:
    """The module `os` for the recounts, with reads that may fail."""

    def __init__(self, history: History) -> None:
        self._history = history

    def __getattr__(self, name: str) -> Any:
        if name in ('pread', 'preadv', 'open', 'lstat', 'listdir'):
            self._history.maybe_fail(name)
        return getattr(os, name)


async def thaw(view: View, ino: int = 1, known: dict[int, Node] | None = None) -> Node:
    """Return what a view holds as a model; hard links are one node."""
    known = {} if known is None else known
    if ino in known:
        return known[ino]
    inode = await view.inode(ino)
    node = known[ino] = Node(inode.mode, target=inode.target, nlink=inode.nlink)
    for name in await view.xattr_list(inode):
        node.xattrs[name] = await view.xattr_get(inode, name) or b''
    if not inode.is_directory():
        if inode.is_regular():
            node.data = bytearray(await view.read(inode, 0, inode.size))
        return node
    after = 0
    while page := await view.list_directory(inode, after, 100):
        for _, name, child, _ in page:
            node.entries[name] = await thaw(view, child, known)
        after = page[-1][0]
    return node


def prepare(history: History, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the seed decide what runs next, trees be high, and the recounts use the history's disk."""
    monkeypatch.setattr(scheduler, '_ALLOW_DETERMINISTIC_SCHEDULING', True)
    scheduler._r.seed(history.seed)
    inline = (0, 4096, 64 * limits.KIB)[history.seed % 3]
    monkeypatch.setattr(limits, 'JOURNAL_INLINE_BYTES_MAX', inline)
    monkeypatch.setattr(limits, 'SEAL_WASTE_BYTES_MIN', 4096)
    monkeypatch.setattr(limits, 'QUARANTINE_SLICE_ROWS', (3, 20, 1000)[history.seed % 3])
    monkeypatch.setitem(
        apply.__kwdefaults__, 'target_bytes', (600, 2000, limits.NODE_BYTES_TARGET)[history.seed % 3]
    )
    for module in (meta_packs, condemned):
        monkeypatch.setattr(module, 'os', FaultyOs(history))
    for module in (reading, recount):
        monkeypatch.setattr(module, 'Disk', lambda: history.disk)
