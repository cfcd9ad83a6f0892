"""Every kind of damage, and what the commands of the README bring back: measured on the small store.

    python -m tests.images.ways_back [KIND...]      prints the README's table, and a line for each kind

A kind is tried twice on a copy of the store: with no donors, and with a directory that holds the files. It
goes as a person would go: fsck; when the store does not open, `rebuild`; then `recover` for each snapshot. A
file counts as read when its bytes, mode and attributes are those of before; `recovered` counts those that are
so in the snapshot, or in its sibling under whatever name."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from snapfs import limits
from snapfs.cli import rebuild as command
from snapfs.errors import SnapfsError
from snapfs.service.collecting import Collecting
from snapfs.service.recovering import Recovering, Wish
from snapfs.volume.engine import Engine
from snapfs.volume.view import View
from tests.images.image import make
from tests.mutants.setting import small
from tests.support.fsck import report_of
from tests.support.lives import on
from tools.breakit import KINDS, break_it

GROUPS = {
    'superblock, second copies, strays': 'superblock- mirror- lock- stray- hold-of damage-row incident-',
    'packs and records': 'pack- payload- header- record data-pack meta-pack leaf- branch- top-flip open-pack',
    'the index': 'index-',
    'trees that cannot be, with hashes that are right': (
        'totals- reference- root-totals level- leaves- child- link- directory- entry- inode- two- top-below '
        'parent- extent allocated item- xattr- name- next-ino'
    ),
    'the catalog': 'catalog- epoch- setting- snapshot- request-',
    'deletion': 'live- quarantine- batch- plan- receipt- certificate- condemned-',
    'journal and audit log': 'journal- audit-',
}
Files = dict[tuple[str, str], Any]
BYTES_MAX = 4 << 20  # more than any file there has


def group_of(name: str) -> str:
    """Return the group that a kind is in."""
    (found,) = [group for group, words in GROUPS.items() if name.startswith(tuple(words.split()))]
    return found


@dataclass(slots=True)
class Outcome:
    """What became of one kind: whether fsck told of it, whether the store opened as it was or after a
    rebuild; how many files of snapshots were read at once, and after recovery without donors and with
    them."""

    name: str
    found: bool
    opened: str
    read: int
    recovered: int
    with_donors: int
    files: int
    errors: list[str] = field(default_factory=list)


class Setting:
    """The store as it is before any damage, as a power cut leaves it, and closed clean with a backup; its
    files, and donors that have them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.cut, self.closed = folder / 'cut', folder / 'closed'
        make(self.cut)
        shutil.copytree(self.cut, self.closed)

        async def keep(collecting: Collecting) -> Files:
            collecting.engine.store.backups.write(10**18)
            return await files_of(collecting.engine)

        self.files: Files = on(self.closed, keep)
        self.donors = folder / 'donors'
        self.donors.mkdir()
        for number, value in enumerate(self.files.values()):
            (self.donors / str(number)).write_bytes(value[1])

    def measure(self, name: str) -> Outcome:
        """Do one kind of damage, twice, and go the ways back."""
        first = self._once(name, ())
        second = self._once(name, (self.donors,))
        first.with_donors = second.recovered
        first.errors += second.errors
        return first

    def _once(self, name: str, donors: tuple[Path, ...]) -> Outcome:
        path = self.folder / 'damaged'
        shutil.copytree(self.closed if group_of(name) == 'the catalog' else self.cut, path)
        try:
            break_it(path, name, seed=1)
            with small():
                report = report_of(path)
            found = bool(sum(report.counts.values()) or report.unchecked)
            outcome = Outcome(name, found, 'as it was', 0, 0, 0, len(self.files))
            if any(code.startswith('catalog-') for code in report.counts):
                self._rebuild(path, outcome)  # as fsck advises
            if self._open(path, outcome):
                self._recover(path, donors, outcome)
            return outcome
        finally:
            shutil.rmtree(path)

    def _rebuild(self, path: Path, outcome: Outcome) -> bool:
        try:
            with small():
                command._rebuild(path, path / 'catalog.new', None, True, True)
        except SnapfsError as error:
            outcome.errors.append(f'rebuild: {error}')
            return False
        outcome.opened = 'after a rebuild'
        return True

    def _open(self, path: Path, outcome: Outcome) -> bool:
        """Open the store; put back what it lacks when that is needed for it."""
        for _ in range(2):
            try:
                outcome.read = self._same(on(path, lambda collecting: files_of(collecting.engine)))
                return True
            except SnapfsError as error:
                outcome.errors.append(f'open: {error}')
            if not self._rebuild(path, outcome):
                break
        outcome.opened = 'no'
        return False

    def _recover(self, path: Path, donors: tuple[Path, ...], outcome: Outcome) -> None:
        async def recover(collecting: Collecting) -> Files:
            volumes = {head.row.volume: head.name for head in collecting.engine.heads().values()}
            for row in list(collecting.engine.snapshot_list()):
                wish = Wish(volumes[row.volume], row.name, None, donors, True, False, 'ann')
                try:
                    await Recovering(collecting).run(wish)
                except SnapfsError as error:
                    outcome.errors.append(f'recover {row.name}: {error}')
            return await files_of(collecting.engine)

        outcome.recovered = self._same(on(path, recover))

    def _same(self, found: Files) -> int:
        """Return how many files are as before, in the snapshot or in its sibling."""
        siblings: dict[str, list[Any]] = {}
        for (root, _), value in found.items():
            if root.endswith('-recovered'):
                siblings.setdefault(root, []).append(value)  # what has lost its name is in lost+found
        return sum(
            found.get((root, path)) == value or value in siblings.get(f'{root}-recovered', ())
            for (root, path), value in self.files.items()
        )


async def files_of(engine: Engine) -> Files:
    """Return what can be read of the files in all snapshots: (snapshot, path) and mode, bytes, attributes."""
    found: Files = {}
    volumes = {head.row.volume: head.name for head in engine.heads().values()}
    for row in engine.snapshot_list():
        view = engine.snapshot_view(row.number)
        assert view is not None
        async for path, value in _below(view, limits.INO_ROOT, '', set()):
            found[f'{volumes[row.volume]}@{row.name}', path] = value
    return found


async def _below(view: View, ino: int, path: str, seen: set[int]) -> Any:
    try:
        inode = await view.inode(ino)
        if not inode.is_directory():
            size = min(inode.size, BYTES_MAX)  # a damaged inode may say anything
            data = await view.read(inode, 0, size) if inode.is_regular() else inode.target
            names = await view.xattr_list(inode)
            yield path, (inode.mode, data, [(name, await view.xattr_get(inode, name)) for name in names])
            return
        if ino in seen:
            return
        seen.add(ino)
        entries, after = [], 0
        while page := await view.list_directory(inode, after, 100):
            entries += [(name, child) for _, name, child, _ in page]
            after = page[-1][0]
    except SnapfsError:
        return
    for name, child in entries:
        async for one in _below(view, child, f'{path}/{name.decode("utf-8", "replace")}', seen):
            yield one


def table(outcomes: Sequence[Outcome]) -> Iterator[str]:
    """Yield the lines of the table, by groups."""
    yield '| damage | kinds | told | store opens | files read at once | recovered | with donors | lost |'
    yield '|---|---:|---:|---|---:|---:|---:|---:|'
    for group in GROUPS:
        mine = [one for one in outcomes if group_of(one.name) == group]
        if not mine:
            continue
        rebuilt = sum(one.opened == 'after a rebuild' for one in mine)
        closed = sum(one.opened == 'no' for one in mine)
        opens = f'{len(mine) - rebuilt - closed}'
        opens += f', {rebuilt} after a rebuild' if rebuilt else ''
        opens += f', {closed} not' if closed else ''
        total = sum(one.files for one in mine)
        numbers = [sum(getattr(one, name) for one in mine) for name in ('read', 'recovered', 'with_donors')]
        yield (
            f'| {group} | {len(mine)} | {sum(one.found for one in mine)} | {opens} | '
            f'{numbers[0]:,} of {total:,} | {numbers[1]:,} | {numbers[2]:,} | {total - numbers[2]:,} |'
        )


def main(names: Sequence[str]) -> int:
    """Measure; print a line for each kind that lost something, then the table."""
    with tempfile.TemporaryDirectory(prefix='snapfs-ways-') as folder:
        setting = Setting(Path(folder))
        outcomes = []
        for name in names or KINDS:
            one = setting.measure(name)
            outcomes.append(one)
            if one.with_donors < one.files or not one.found or one.errors:
                print(f'{name}: found={one.found} opened={one.opened!r} read={one.read} '
                      f'recovered={one.recovered} with donors={one.with_donors} of {one.files} '
                      f'{sorted(set(one.errors))}', flush=True)  # fmt: skip
    print('\n'.join(table(outcomes)))
    return 0


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
