"""The operations on files that words are made of (alphabet.py), on a volume and its full model."""

from __future__ import annotations

import os
import random
import stat
from collections.abc import Iterator
from typing import Any, ClassVar

from snapfs import limits
from snapfs.volume.head import Head
from tests.crash.attributes import BORN, Full, FullPair, TickWorld, freeze_full
from tests.crash.oracle import Tree
from tests.crash.run import Run

FILE = stat.S_IFREG | 0o644
DIRECTORY = stat.S_IFDIR | 0o755
SET_NS = 1_000_000_000_123_456_789  # a time that somebody sets
MAIN = 1  # stable number of the volume that operations are about


class CannotApply(Exception):
    """This operation has nothing to work on."""


class WordFiles(Run):
    """The half of a run that is about files. `a` and `b`: inode numbers of files A and B; `d`: of the
    directory."""

    pair_type = FullPair
    freeze = staticmethod(freeze_full)
    owner: ClassVar[tuple[int, int]] = (os.getuid(), os.getgid())
    empty: ClassVar[Tree] = ('dir', DIRECTORY, (), (), (limits.INO_ROOT, owner, 0, BORN))
    volumes_max = 20
    world: TickWorld
    a = b = d = 0
    open_file: tuple[Head, Any] | None = None  # one without a name

    # --- what operations are about -----------------------------------------------------------------------
    @property
    def main(self) -> FullPair:
        """The volume that files are changed in."""
        found = self.pairs[MAIN]
        assert isinstance(found, FullPair)
        return found

    def _paths(self) -> Iterator[tuple[list[bytes], Full]]:
        def below(path: list[bytes], node: Any) -> Iterator[tuple[list[bytes], Full]]:
            for name, child in node.entries.items():
                yield [*path, name], child
                if child.is_directory():
                    yield from below([*path, name], child)

        yield from below([], self.main.root)

    def _paths_of(self, ino: int) -> list[list[bytes]]:
        found = sorted(path for path, node in self._paths() if node.ino == ino)
        if not found:
            raise CannotApply(self.steps[-1])
        return found

    def _empties(self) -> list[list[bytes]]:
        found = [(node.ino, path) for path, node in self._paths() if node.is_directory() and not node.entries]
        return [path for _, path in sorted(found)]

    def _new_name(self) -> bytes:
        return self._unused('n').encode()

    def _directory(self) -> list[bytes]:
        """Where the directory is that `rename tree` moves. B is in it: without B it may have been renamed."""
        return self._paths_of(self.d)[0]

    async def _do(self, change: Any) -> None:
        await change
        self._record()

    # --- files -------------------------------------------------------------------------------------------
    async def _create(self) -> None:
        await self._do(self.main.make([], self._new_name(), FILE))

    async def _mkdir(self) -> None:
        await self._do(self.main.make([], self._new_name(), DIRECTORY))

    async def _symlink(self) -> None:
        await self._do(self.main.make([], self._new_name(), stat.S_IFLNK | 0o777, b'to/where'))

    async def _fifo(self) -> None:
        await self._do(self.main.make([], self._new_name(), stat.S_IFIFO | 0o600))

    async def _write_new(self) -> None:
        name = self._new_name()
        await self._do(self.main.make([], name, FILE))
        await self._do(self.main.write([name], 0, noise(name, 5000)))

    async def _overwrite_A(self) -> None:
        await self._write_A(len(self.main.node(self._paths_of(self.a)[0]).data) // 3, 3000)

    async def _append_A(self) -> None:
        await self._write_A(len(self.main.node(self._paths_of(self.a)[0]).data), 1500)

    async def _write_A(self, offset: int, count: int) -> None:
        await self._do(self.main.write(self._paths_of(self.a)[0], offset, noise(len(self.steps), count)))

    async def _shrink_A(self) -> None:
        path = self._paths_of(self.a)[0]
        await self._do(self.main.truncate(path, len(self.main.node(path).data) // 2))

    async def _grow_A(self) -> None:
        path = self._paths_of(self.a)[0]
        await self._do(self.main.truncate(path, len(self.main.node(path).data) + 30_000))

    async def _overwrite_B(self) -> None:
        await self._do(self.main.write(self._paths_of(self.b)[0], 100, noise(len(self.steps), 200)))

    async def _unlink_A(self) -> None:
        *path, name = self._paths_of(self.a)[-1]
        await self._do(self.main.unlink(path, name))

    async def _unlink_B(self) -> None:
        *path, name = self._paths_of(self.b)[-1]
        await self._do(self.main.unlink(path, name))

    async def _rmdir(self) -> None:
        *path, name = self._empties()[-1]
        await self._do(self.main.unlink(path, name))

    async def _link_A(self) -> None:
        await self._do(self.main.link(self._paths_of(self.a)[0], [], self._new_name()))

    async def _rename_A(self) -> None:
        *path, name = self._paths_of(self.a)[0]
        await self._do(self.main.rename(path, name, path, self._new_name()))

    async def _rename_A_to_B(self) -> None:
        *path, name = self._paths_of(self.a)[0]
        *new_path, new_name = self._paths_of(self.b)[0]
        await self._do(self.main.rename(path, name, new_path, new_name))

    async def _rename_A_to_A(self) -> None:
        (*path, name), (*new_path, new_name) = self._paths_of(self.a)[:2]
        await self._do(self.main.rename(path, name, new_path, new_name))

    async def _rename_A_across(self) -> None:
        *path, name = self._paths_of(self.a)[0]
        await self._do(self.main.rename(path, name, [] if path else self._directory(), self._new_name()))

    async def _rename_directory_to_directory(self) -> None:
        (*path, name), *_, (*new_path, new_name) = self._empties()
        await self._do(self.main.rename(path, name, new_path, new_name))

    async def _rename_tree(self) -> None:
        *path, name = self._directory()
        await self._do(self.main.rename(path, name, [] if path else [b't'], name))

    async def _exchange_A_and_B(self) -> None:
        (*path, name), (*other_path, other) = self._paths_of(self.a)[0], self._paths_of(self.b)[0]
        await self._do(self.main.exchange(path, name, other_path, other))

    async def _chmod_A(self) -> None:
        path = self._paths_of(self.a)[0]
        await self._do(self.main.attributes(path, mode=(self.main.node(path).mode & 0o7777) ^ 0o111))

    async def _chown_directory(self) -> None:
        await self._do(self.main.attributes(self._directory(), uid=len(self.steps), gid=7))

    async def _utimes_A(self) -> None:
        times = {'atime_ns': SET_NS + len(self.steps), 'mtime_ns': SET_NS // 2}
        await self._do(self.main.attributes(self._paths_of(self.a)[0], **times))

    async def _set_xattr_A(self) -> None:
        name = b'user.' + self._new_name()
        await self._do(self.main.set_xattr(self._paths_of(self.a)[0], name, noise(name, 30)))

    async def _set_long_xattr_A(self) -> None:
        name = b'user.' + self._new_name()
        await self._do(self.main.set_xattr(self._paths_of(self.a)[0], name, noise(name, 3000)))

    async def _remove_xattr_A(self) -> None:
        path = self._paths_of(self.a)[0]
        await self._do(self.main.remove_xattr(path, list(self.main.node(path).xattrs)[-1]))

    async def _write_to_unlinked_A(self) -> None:
        paths = self._paths_of(self.a)
        inode = await self.main.hold(paths[0])
        self.open_file = (self.main.head, inode)
        for *path, name in paths:
            await self._do(self.main.unlink(path, name))
        await self.main.head.write(inode, 5, noise('nobody will read this', 2000))

    async def _close(self) -> None:
        if self.open_file is None or self.open_file[0] is not self.main.head:
            raise CannotApply('close')  # nobody has it open since it went
        head, inode = self.open_file
        head.forgotten(inode.ino)
        self.open_file = None


def noise(seed: object, count: int) -> bytes:
    """Bytes that nothing else has."""
    return random.Random(str(seed)).randbytes(count)
