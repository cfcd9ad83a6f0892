"""One store, damaged again and again, and brought back as a person would do it who reads what the commands
say: fsck, rebuild, mount, recover. What a standing snapshot gives must be what it had, or an error; what a
recovery calls whole must be whole, and what its sibling lacks must be told."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from tests.support.mounted import SNAPFS

SNAPSHOTS = ('s0', 's1', 's2')
SPARED = ('lock', 'reserve', 'daemon.log')
SECONDS_MAX = 120
LONG_SECONDS = 1.2  # a recovery of this store takes about as long


class Wild:
    """The store, its mountpoint, and what its snapshots had."""

    def __init__(self, place: Path) -> None:
        self.store, self.mount, self.gold = place / 'store', place / 'mnt', place / 'gold'
        self.whole = place / 'whole'
        self.mount.mkdir()
        self._make()

    def _make(self) -> None:
        self.call('init', self.store)
        self.call('mount', self.store, self.mount)
        chance, home = random.Random(5), self.mount / 'home'
        home.mkdir()
        for name in SNAPSHOTS:
            for number in range(48):
                path = home / f'd{number % 6}' / f'f{number}'
                path.parent.mkdir(exist_ok=True)
                if chance.random() < 0.6:
                    noise = chance.randbytes(chance.randrange(1, 60_000))
                    path.write_bytes(noise if number % 2 else b'text\n' * chance.randrange(1, 3000))
            (home / '.snapshots' / name).mkdir()
        for name in SNAPSHOTS:
            shutil.copytree(home / '.snapshots' / name, self.gold / name)
        self.call('umount', self.mount)
        shutil.copytree(self.store, self.whole)

    def end(self) -> None:
        """Nothing is mounted any more."""
        subprocess.run(['umount', '-l', str(self.mount)], stderr=subprocess.DEVNULL, check=False)

    def call(self, *words: object) -> tuple[int, str]:
        """Run a command; return its exit code and what it said."""
        done = subprocess.run(
            [SNAPFS, *map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            errors='replace', timeout=SECONDS_MAX, cwd='/', check=False, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        return done.returncode, done.stdout

    def fresh(self) -> None:
        """The store is whole again."""
        self.end()
        shutil.rmtree(self.store)
        shutil.copytree(self.whole, self.store)

    # --- damage ------------------------------------------------------------------------------------------
    def damage(self, chance: random.Random) -> list[str]:
        """Break one to three things; say what."""
        said = []
        for _ in range(chance.choice([1, 1, 2, 3])):
            files = [path for path in sorted(self.store.rglob('*')) if path.is_file()]
            files = [path for path in files if path.name not in SPARED]
            path, other = chance.choice(files), chance.choice(files)
            how = chance.choice(['flip', 'flip', 'zero', 'cut', 'gone', 'swap'])
            data = bytearray(path.read_bytes())
            if how == 'gone':
                path.unlink()
            elif how == 'cut':
                path.write_bytes(data[: chance.randrange(len(data) + 1)])
            elif how == 'swap':
                path.write_bytes(other.read_bytes())
                other.write_bytes(data)
            else:
                self._spoil(data, how, chance)
                path.write_bytes(data)
            said.append(f'{how} {path.relative_to(self.store)}')
        return said

    def _spoil(self, data: bytearray, how: str, chance: random.Random) -> None:
        for _ in range(chance.choice([1, 5]) if data else 0):
            at = chance.randrange(len(data))
            if how == 'flip':
                data[at] ^= 1 << chance.randrange(8)
            else:
                data[at : at + 512] = bytes(len(data[at : at + 512]))

    def compare(self, snapshot: str, shown: str) -> tuple[list[str], list[str]]:
        """Return which files cannot be read, and which are other ones."""
        lost, other = [], []
        for path in sorted((self.gold / snapshot).rglob('*')):
            name = str(path.relative_to(self.gold / snapshot))
            if path.is_file():
                try:
                    now = (self.mount / 'home/.snapshots' / shown / name).read_bytes()
                except OSError:
                    lost.append(name)
                else:
                    other += [name] * (now != path.read_bytes())
        return lost, other

    # --- the way back ------------------------------------------------------------------------------------
    def damaged(self, seed: int) -> Iterator[str]:
        """Damage the store and go the way back; yield what must not be."""
        chance = random.Random(f'damage {seed}')
        self.fresh()
        said = self.damage(chance)
        for text in self._way_back():
            yield f'{said}: {text}'
        self.end()

    def _way_back(self) -> Iterator[str]:
        code, told = self.call('fsck', self.store)
        if 'Traceback' in told or code not in (0, 4, 8, 12):
            yield f'fsck ended with {code}: {told[-1000:]}'
        words: list[str] = []
        if 'catalog-' in told or 'superblock-bad' in told:
            words = ['rebuild', str(self.store), f'{self.store}/catalog.new', '--install']
        for _ in range(5):
            if words:
                code, told = self.call(*words)
                if 'Traceback' in told:
                    yield f'{words}: {told[-1000:]}'
                if code == 3 and '--journal' in told:
                    self.call(*words, '--journal')
            code, told = self.call('mount', self.store, self.mount)
            way = re.search(r'snapfs (rebuild \S+ \S+ --install(?: --journal)?)', told)
            if not code or way is None:
                break
            words = way[1].split()
        if code:
            yield f'no way to mount it: {code} {told}'
            return
        yield from self._recovered()
        self.call('umount', self.mount)
        code, told = self.call('fsck', self.store)
        if 'Traceback' in told or 'report this' in told:
            yield f'fsck afterwards: {told[:1000]}'

    def _recovered(self) -> Iterator[str]:
        names = os.listdir(self.mount / 'home/.snapshots') if (self.mount / 'home').is_dir() else []
        for name in (one for one in SNAPSHOTS if one in names):
            if other := self.compare(name, name)[1]:
                yield f'{name} has other bytes: {other[:5]}'
            code, told = self.call('recover', f'home@{name}', '--verify', '--store', self.store)
            if code not in (0, 4):
                yield f'recover {name} ended with {code}: {told[-500:]}'
            elif code == 0 and self.compare(name, name) != ([], []):
                yield f'{name} is called whole, and is not: {self.compare(name, name)}'
            elif code == 4:
                yield from self._untold(name)

    def _untold(self, name: str) -> Iterator[str]:
        sibling = self.mount / f'home/.snapshots/{name}-recovered'
        if not sibling.is_dir():
            return
        found = json.loads((sibling / 'DAMAGE.json').read_text())
        told = {use['path'] for one in found['lost'] for use in one['ranges']}
        told |= {*found['names_lost'], *(one['other'] for one in found['also_named'])}
        untold = [one for one in self.compare(name, sibling.name)[1] if f'/{one}' not in told]
        if untold:
            yield f'{sibling.name} has other bytes, and does not say so: {untold[:5]}'

    # --- a command that is killed ------------------------------------------------------------------------
    def killed(self, seed: int) -> Iterator[str]:
        """Kill a rebuild, a recovery or a scrub on its way, and go on: all comes back, by donors."""
        chance = random.Random(f'kill {seed}')
        which = chance.choice(['rebuild', 'recover', 'recover on a mount', 'scrub on a mount'])
        self.fresh()
        words = self._begin(which, chance)
        if 'mount' in which:
            self.call('mount', self.store, self.mount)
        self._kill(words, 'mount' in which, chance.random() * LONG_SECONDS)
        if which == 'rebuild':
            for path in self.store.glob('catalog.new*'):
                path.unlink()
            self.call(*words)
        code, told = self.call('mount', self.store, self.mount)
        if code:
            yield f'{which} was killed: no mount: {told}'
            return
        for name in SNAPSHOTS if which != 'rebuild' else ():
            code, told = self.call(*self._recover(name))
            if code:
                yield f'{which} was killed: recover {name} ended with {code}: {told[-500:]}'
        for name in SNAPSHOTS:
            if self.compare(name, name) != ([], []):
                yield f'{which} was killed: {name} is not whole: {self.compare(name, name)}'
        self.call('umount', self.mount)
        code, told = self.call('fsck', self.store)
        if code:
            yield f'{which} was killed: fsck {code}: {told[:1500]}'

    def _recover(self, name: str) -> tuple[object, ...]:
        return 'recover', f'home@{name}', '--verify', '--donors', self.gold / name, '--store', self.store

    def _begin(self, which: str, chance: random.Random) -> tuple[object, ...]:
        if which == 'rebuild':
            catalog = self.store / 'catalog.sqlite'
            data = bytearray(catalog.read_bytes())
            at = chance.randrange(4096, len(data)) // 4096 * 4096
            data[at : at + 4096] = b'\xa5' * 4096
            catalog.write_bytes(data)
            if chance.random() < 0.5:
                catalog.unlink()
            return 'rebuild', self.store, self.store / 'catalog.new', '--install'
        for path in sorted((self.store / 'packs').glob('*/*/*')):
            data = bytearray(path.read_bytes())
            for _ in range(4):
                data[chance.randrange(len(data))] ^= 4
            path.write_bytes(data)
        return self._recover('s1') if 'recover' in which else ('scrub', '--store', self.store)

    def _kill(self, words: tuple[object, ...], daemon: bool, after: float) -> None:
        begun = subprocess.Popen(
            [SNAPFS, *map(str, words)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            stdin=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        time.sleep(after)  # where it is killed is left to chance
        if daemon:
            _, told = self.call('status', '--json', '--store', self.store)
            os.kill(json.loads(told)['daemon']['pid'], signal.SIGKILL)
        else:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(begun.pid, signal.SIGKILL)
        begun.wait(SECONDS_MAX)
        self.end()
