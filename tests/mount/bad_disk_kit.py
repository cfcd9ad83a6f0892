"""A store on a disk with bad sectors: made once by the real programs, copied for each test."""

from __future__ import annotations

import errno
import json
import os
import random
import sqlite3
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.support.bad_disk import BadDisk, fault
from tests.support.mounted import PROGRAM_SECONDS, SNAPFS, Mount, run

BIG = random.Random(1).randbytes(1 << 20)
PAGE = os.sysconf('SC_PAGE_SIZE')
SECTOR = 512


@dataclass
class Place:
    """Where a record is: its pack, offset and bytes stored."""

    pack: str
    offset: int
    stored: int

    def sector(self, folder: str = 'packs/data') -> dict:
        """A bad sector in its middle."""
        middle = self.offset + self.stored // 2
        return fault('read', f'store/{folder}/*/{self.pack}', middle, middle + SECTOR)


def make_image(place: Path) -> Path:
    """A store with the volume `home`, the snapshots monday and tuesday, and the request to delete another."""
    mount = Mount(place)
    mount.start()
    try:
        for words in (['automatic', 'off'], ['limit-share', '100%'], ['scrub', '0s']):
            mount.snapfs('config', *words)
        home = mount.path / 'home'
        home.mkdir()
        for number in range(4):
            (home / f'd{number}').mkdir()
            (home / f'd{number}/small').write_bytes(random.Random(number).randbytes(3000))
        (home / 'big').write_bytes(BIG)
        (home / 'old').write_bytes(random.Random('old').randbytes(50_000))
        for name in ('old', 'monday', 'tuesday'):
            (home / '.snapshots' / name).mkdir()
            (home / 'old').write_text(name)
        (home / '.snapshots/old').rmdir()
        mount.stop()
    finally:
        mount.abandon()
    (mount.store / 'daemon.log').unlink()
    return mount.store


class Bad:
    """The store on the bad disk, and programs called as a person calls them: what they say goes together
    with the exit code, and never is a traceback."""

    def __init__(self, place: Path, image: Path) -> None:
        self.place = place
        self.disk = BadDisk(place)
        run('cp', '-a', '--sparse=always', image, self.disk.real / 'store')
        self.mount = Mount(place, store=self.disk.path / 'store')
        self.store, self.real = self.mount.store, self.disk.real / 'store'
        self.home = self.mount.path / 'home'

    def end(self) -> None:
        self.mount.abandon()
        self.disk.end()

    def call(self, *words: str | Path) -> tuple[int, str]:
        """Run a program to its end; return its exit code and what it said."""
        environment = {**os.environ, 'TZ': 'UTC', 'COLUMNS': '1000'}
        done = subprocess.run(
            [str(word) for word in words],
            env=environment,
            cwd='/',
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors='replace',
            timeout=PROGRAM_SECONDS,
        )
        assert 'Traceback' not in done.stdout, f'{words}: {done.stdout}'
        return done.returncode, done.stdout

    def says(self, code: int, *words: str | Path) -> str:
        """Run a command of snapfs on the store; it ends with this exit code. Return what it said."""
        if words[0] in ('fsck', 'damage', 'rebuild'):
            ended, said = self.call(SNAPFS, words[0], self.store, *words[1:])
        else:
            ended, said = self.call(SNAPFS, *words, '--store', self.store)
        assert ended == code, f'{words} ended with {ended}: {said}'
        return said

    def health(self) -> str:
        """The first line of the health."""
        return (self.mount.path / '.snapfs/health').read_text().splitlines()[0]

    def files(self) -> dict[str, bytes]:
        """What stands in the store, but for what every program may write."""
        spared = ('lock', 'daemon.log', 'catalog.sqlite-shm', 'catalog.sqlite-wal')
        found = [path for path in self.real.rglob('*') if path.is_file() and path.name not in spared]
        return {str(path.relative_to(self.real)): path.read_bytes() for path in found}

    def pages(self, path: Path) -> dict[int, bytes | None]:
        """Read a file page by page; what answers EIO is None. Any other error is one."""
        found: dict[int, bytes | None] = {}
        fd = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
            for offset in range(0, os.fstat(fd).st_size, PAGE):
                try:
                    found[offset] = os.pread(fd, PAGE, offset)
                except OSError as error:
                    assert error.errno == errno.EIO, error
                    found[offset] = None
        finally:
            os.close(fd)
        return found

    def rows(self, text: str) -> list[tuple]:
        """What the catalog says, while nobody has the store."""
        with sqlite3.connect(f'file:{self.real}/catalog.sqlite?immutable=1', uri=True) as db:
            return db.execute(text).fetchall()

    def record(self, kind: int, place: int = 0) -> Place:
        """The longest record of a kind (1: data, 2: node), or one that is shorter."""
        text = 'SELECT p.name, c.offset, c.stored FROM chunk c JOIN pack p USING (pack) WHERE c.kind = %d'
        name, offset, stored = self.rows(f'{text % kind} ORDER BY c.stored DESC, c.id')[place]
        return Place(name.hex(), offset, stored)

    def top_node(self, snapshot: str) -> Place:
        """The top node of a snapshot."""
        text = 'SELECT p.name, c.offset, c.stored FROM chunk c JOIN pack p USING (pack) WHERE c.id IN '
        top = f"SELECT root FROM snapshot WHERE CAST(name AS TEXT) = '{snapshot}'"
        ((name, offset, stored),) = self.rows(f'{text} ({top})')
        return Place(name.hex(), offset, stored)


def damage_json(bad: Bad, snapshot: str) -> dict:
    """What a recovered snapshot says of itself."""
    return json.loads((bad.home / '.snapshots' / snapshot / 'DAMAGE.json').read_text())
