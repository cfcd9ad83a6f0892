"""Random operations on a volume and its model, replayable by seed."""

from __future__ import annotations

import random
import stat

from tests.support.model import Node, Pair

NAMES = [b'a', b'b', b'c', b'dd', b'e' * 40, b'\xff\xfe']
FILE = stat.S_IFREG | 0o644
DIRECTORY = stat.S_IFDIR | 0o755


class Workload:
    """One random operation at a time. `sizes` is the scale of files in bytes."""

    def __init__(self, pair: Pair, seed: int, sizes: int = 200_000) -> None:
        self.pair = pair
        self.random = random.Random(seed)
        self.sizes = sizes

    def _paths(self, directories: bool) -> list[list[bytes]]:
        found: list[list[bytes]] = [[]] if directories else []

        def walk(node: Node, path: list[bytes]) -> None:
            for name, child in sorted(node.entries.items()):
                if child.is_directory() == directories and (directories or stat.S_ISREG(child.mode)):
                    found.append([*path, name])
                if child.is_directory():
                    walk(child, [*path, name])

        walk(self.pair.root, [])
        return found

    def _bytes(self, count: int) -> bytes:
        if self.random.random() < 0.5:
            return self.random.randbytes(count)
        return (bytes([self.random.randrange(256)]) * 50 + b'some text ').__mul__(count // 60 + 1)[:count]

    async def step(self) -> str:
        """Do one operation and return its name."""
        choice = self.random.choices(
            ['make', 'mkdir', 'write', 'append', 'truncate', 'unlink', 'link', 'rename', 'symlink', 'xattr'],
            [6, 3, 10, 5, 4, 4, 1, 4, 1, 1],
        )[0]
        await getattr(self, f'_{choice}')()
        return choice

    async def _make(self) -> None:
        await self.pair.make(self.random.choice(self._paths(True)), self.random.choice(NAMES), FILE)

    async def _mkdir(self) -> None:
        path = self.random.choice(self._paths(True))
        if len(path) < 4:
            await self.pair.make(path, self.random.choice(NAMES), DIRECTORY)

    async def _symlink(self) -> None:
        path = self.random.choice(self._paths(True))
        await self.pair.make(path, self.random.choice(NAMES), stat.S_IFLNK | 0o777, b'to/where')

    def _file(self) -> list[bytes] | None:
        files = self._paths(False)
        return self.random.choice(files) if files else None

    async def _write(self) -> None:
        path = self._file()
        if path is not None:
            size = len(self.pair.node(path).data)
            offset = self.random.randrange(size + self.sizes // 4 + 1)
            await self.pair.write(path, offset, self._bytes(self._length()))

    async def _append(self) -> None:
        path = self._file()
        if path is not None:
            await self.pair.write(path, len(self.pair.node(path).data), self._bytes(self._length()))

    def _length(self) -> int:
        return self.random.choice([1, 10, 100, 4096, self.sizes // 10, self.random.randrange(1, self.sizes)])

    async def _truncate(self) -> None:
        path = self._file()
        if path is not None:
            size = len(self.pair.node(path).data)
            await self.pair.truncate(
                path, self.random.choice([0, size, size // 2, self.random.randrange(size + 9000)])
            )

    async def _unlink(self) -> None:
        path = self.random.choice(self._paths(True))
        entries = self.pair.node(path).entries
        if entries:
            await self.pair.unlink(path, self.random.choice(sorted(entries)))

    async def _link(self) -> None:
        path = self._file()
        if path is not None:
            await self.pair.link(path, self.random.choice(self._paths(True)), self.random.choice(NAMES))

    async def _rename(self) -> None:
        path = self.random.choice(self._paths(True))
        entries = self.pair.node(path).entries
        if entries:
            name = self.random.choice(sorted(entries))
            await self.pair.rename(
                path, name, self.random.choice(self._paths(True)), self.random.choice(NAMES)
            )

    async def _xattr(self) -> None:
        paths = self._paths(False) + self._paths(True)
        name = self.random.choice([b'user.a', b'user.b'])
        await self.pair.set_xattr(
            self.random.choice(paths), name, self._bytes(self.random.choice([0, 5, 1500]))
        )
