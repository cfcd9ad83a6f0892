"""A cell: a store in some states, and a command; what has to be true of it afterwards."""

from __future__ import annotations

import functools
import re
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from snapfs.errors import SnapfsError
from tests.mutants.setting import small
from tests.states.commands import COMMANDS, Command, Told, run
from tests.states.evidence import Rows, Tree, needs, present, rows
from tests.states.making import STATES, bring, fits, images
from tests.support.fsck import report_of

CODES = {
    'snapfs': frozenset({0, 2, 3, 4, 8, 11, 12, 13, 14}),
    'open': frozenset({0, 3, 12, 13, 14}),
    'fsck': frozenset({0, 4, 8, 12}),
    'dump': frozenset({0, 1, 2}),
}
# What a person can do next, in the words of a line of advice.
NEXT = re.compile(
    r'snapfs [a-z]|[Uu]nmount|[Mm]ake |[Pp]ut |[Cc]opy |touch |[Ff]ree |[Ll]ook|[Rr]ead the log|'
    r'needs checking|add --|'
    r'[Ss]ee:|in force|[Tt]ry|Release|[Ss]ay|[Nn]ame |What works there|[Aa]cknowledge|[Oo]pen |'
    r'copy of the store'
)
WAY_OUT = Command('way out', ())
Patch = Callable[[pytest.MonkeyPatch], None]


def all_of(path: Path) -> dict[str, tuple[int, ...]]:
    """Return the name of everything below, with what no write leaves as it was. What SQLite makes beside
    a catalog to read it does not count, nor does the lock."""
    found = {}
    for one in path.rglob('*'):
        facts, name = one.lstat(), str(one.relative_to(path))
        if name in ('lock', 'catalog.sqlite-shm') or (name == 'catalog.sqlite-wal' and not facts.st_size):
            continue
        is_file = stat.S_ISREG(facts.st_mode)
        found[name] = (facts.st_size, facts.st_mtime_ns) if is_file else ()
    return found


@dataclass(slots=True)
class Facts:
    """A store before a command."""

    present: frozenset[bytes]
    rows: Rows | None
    files: dict[str, tuple[int, ...]]
    damages: frozenset[str]


@dataclass(slots=True)
class Setting:
    """The images, and what their roots need; all that cells have in common."""

    folder: Path
    bases: dict[str, Path] = field(default_factory=dict)
    needs: dict[str, dict[str, Tree]] = field(default_factory=dict)
    files: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.bases = images(self.folder)
        for name, path in self.bases.items():
            self.needs[name] = needs(path)
            copy = shutil.copytree(path, self.folder / 'read')
            told = run(COMMANDS['open'], copy, copy, [])
            assert not told.code and not told.bug, told
            self.files[name] = told.value
            shutil.rmtree(copy)


def base_of(names: Iterable[str]) -> str:
    """Return the image that states begin with."""
    return next(iter({STATES[one].base for one in names} - {'clean'}), 'clean')


class Pair:
    """A store in some states, on which commands are tried one after another."""

    def __init__(self, setting: Setting, names: tuple[str, ...]) -> None:
        self.setting, self.names = setting, names
        self.folder = setting.folder / 'pair'
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()
        self.kept, self.store = self.folder / 'kept', self.folder / 'store'
        bring(self.kept, names, setting.bases)
        self.base = base_of(names)
        self.closed = any(STATES[one].closed for one in names)
        self.patches: list[Patch] = []
        for name in names:
            patch = STATES[name].patch
            if patch is not None:
                self.patches.append(functools.partial(patch, self.store))
        shutil.copytree(self.kept, self.store, symlinks=True)
        self.before = self._facts()

    def _fresh(self) -> None:
        shutil.rmtree(self.store, ignore_errors=True)
        shutil.copytree(self.kept, self.store, symlinks=True)

    def _facts(self, check: bool = True) -> Facts:
        there = frozenset(present(self.store))
        return Facts(there, rows(self.store), all_of(self.store), self._damages() if check else frozenset())

    def _damages(self) -> frozenset[str]:
        with small():
            report = report_of(self.store)
        return frozenset(f'{one.code} {one.place}' for one in report.findings if one.severity == 'damage')

    def cell(self, command: Command) -> tuple[Told, list[str]]:
        """Try a command; return what it told, and what is wrong."""
        if all_of(self.store) != self.before.files:
            self._fresh()
            self.before.files = all_of(self.store)  # times differ
        new = self.folder / 'new'
        new.unlink(missing_ok=True)
        told = run(command, self.store, new, self.patches)
        return told, [*self._told(command, told), *self._kept(command, told)]

    def way_out(self) -> list[str]:
        """Go as a person would who does what each line says; return what is wrong at the end: that the store
        does not open, or that bytes which are there are not read."""
        self._fresh()
        said: list[str] = []
        told = run(COMMANDS['fsck'], self.store, self.folder, self.patches)
        if 'catalog-' in told.out and 'snapfs rebuild' in told.out and 'read-only' not in self.names:
            words = ('rebuild', str(self.store), f'{self.store}/catalog.new', '--install')
            told = run(Command('way', words), self.store, self.folder, self.patches)
            said.append(f'rebuild: {told.code} {told.err.strip()} {told.bug}')
        opened = run(COMMANDS['open'], self.store, self.folder, self.patches)
        for _ in range(6):
            if opened.bug:
                return [f'a bug: {opened.bug}']
            if not opened.code:
                break
            said.append(opened.err.strip())
            found = re.search(r'snapfs rebuild \S+ \S+ --install( --journal)?', opened.err)
            words = found[0].split()[1:] if found else []
            if not words or said.count(said[-1]) > 2:
                break
            told = run(Command('way', tuple(words)), self.store, self.folder, self.patches)
            if told.bug:
                return [f'a bug: {told.bug}']
            said.append(f'{" ".join(words[:1] + words[3:])}: {told.code} {told.err.strip()}')
            if told.code == 3 and '--journal' in told.err:
                words.append('--journal')
                told = run(Command('way', tuple(words)), self.store, self.folder, self.patches)
                said.append(f'with --journal: {told.code} {told.err.strip()} {told.bug}')
            opened = run(COMMANDS['open'], self.store, self.folder, self.patches)
        if opened.code:
            return [] if {'read-only', 'full'} & set(self.names) else [f'no way out: {said}']
        at = ('--store', str(self.store))
        for number in sorted(getattr(rows(self.store), 'incidents', ())):
            told = run(
                Command('way', ('incident', 'ack', str(number), *at)), self.store, self.folder, self.patches
            )
            said.append(f'ack: {told.code} {told.err.strip()} {told.bug}')
        for root in [one for one in opened.value if '@' in one and 'recovered' not in one]:
            told = run(
                Command('way', ('recover', root, '--verify', *at)), self.store, self.folder, self.patches
            )
            said.append(f'recover {root}: {told.code} {told.err.strip()} {told.bug}')
        opened = run(COMMANDS['open'], self.store, self.folder, self.patches)
        if opened.code or opened.bug:
            return [f'not open in the end: {opened.err} {opened.bug} after {said}']
        contents = {
            data for files in opened.value.values() for _, data in files.values() if isinstance(data, bytes)
        }
        wrong = []
        for root, files in self.setting.files[self.base].items():
            tree = self.setting.needs[self.base].get(root)
            if (
                tree is None
                or not tree.nodes <= self.before.present
                or ('@' not in root and self.base == 'cut')
            ):
                continue
            for path, (ino, data) in files.items():
                if tree.data.get(ino, set()) <= self.before.present and data not in contents:
                    wrong.append(f'{root}{path}')
        refused = any(re.match('rebuild: [^0]', one) for one in said)
        if 'read-only' in self.names or ('full' in self.names and refused):
            return []  # first it has to be copied elsewhere, or room be made: the commands say so
        return [f'the way out loses {wrong[:5]} ({len(wrong)}) after {said}'] if wrong else []

    # --- what was said -----------------------------------------------------------------------------------
    def _told(self, command: Command, told: Told) -> Iterator[str]:
        if told.bug:
            yield f'a bug: {told.bug}'
            return
        if told.code not in CODES[command.program]:
            yield f'exit code {told.code}: {told.err.strip()}'
        lines = told.err.splitlines()
        refused = told.code not in (0, 4, 8) if command.program == 'snapfs' else told.code > 8
        if refused and command.program in ('snapfs', 'open'):
            if len(lines) != 1:
                yield f'{len(lines)} lines: {told.err}'
            elif not NEXT.search(lines[0]):
                yield f'no next step: {told.code} {lines[0]}'
        has_to = command.looks and not self.closed and not self._may_refuse(command)
        if has_to and told.code not in (0, 4, 8) and command.program != 'fsck':
            yield f'it has to work: {told.code} {told.err.strip()}'
        if command.program == 'open' and not told.code:
            yield from self._reads(told.value)

    def _may_refuse(self, command: Command) -> bool:
        """Where README says that even looking is refused."""
        old = 'version 2' in self.names
        no_tree = {'snapshot top gone', 'rotten leaf twice'} & set(self.names)
        no_tree |= {'mirror gone'} & set(self.names) if len(self.names) > 1 else set()
        export = command.name.startswith(('export', 'verify'))
        return (old and (command.still or 'read-only' in self.names)) or (export and bool(no_tree))

    def _reads(self, found: dict[str, dict[str, Any]]) -> Iterator[str]:
        """P7: what is there can be read."""
        if 'page of the index' in self.names:
            return
        wanted, trees = self.setting.files[self.base], self.setting.needs[self.base]
        there = self.before.present
        for root, files in wanted.items():
            if root not in found:
                yield f'{root} is not there'
                continue
            moved = '@' not in root and self.base == 'cut'  # by the journal
            if root not in trees or moved or not trees[root].nodes <= there:
                continue
            for path, (ino, data) in files.items():
                whole = trees[root].data.get(ino, set()) <= there
                got = found[root].get(path, (0, 'nothing'))[1]
                if got != data and (whole or not isinstance(got, SnapfsError)):
                    yield f'{root}{path} cannot be read: {got!r}'[:300]

    # --- what is there afterwards ------------------------------------------------------------------------
    def _kept(self, command: Command, told: Told) -> Iterator[str]:
        still = command.still or 'read-only' in self.names
        files = all_of(self.store)
        if files == self.before.files:
            return
        if still:
            changed = sorted(
                name
                for name in {*files, *self.before.files}
                if files.get(name) != self.before.files.get(name)
            )
            yield f'it has changed {changed}'
        after = self._facts(not command.looks)
        live = set().union(
            *(one.nodes.union(*one.data.values()) for one in self.setting.needs[self.base].values())
        )
        lost = (live & self.before.present) - after.present
        if lost:
            yield f'{len(lost)} chunks are gone'
        fresh = {one for one in after.damages - self.before.damages if not one.startswith('catalog-')}
        fresh -= fresh if {'version 2', 'page of the index'} & set(self.names) else set()  # not told before
        if fresh and self.before.rows is not None:
            yield f'fsck finds anew: {sorted(fresh)}'
        if self.before.rows is not None:
            yield from self._rows_kept(command, self.before.rows, after.rows)

    def _rows_kept(self, command: Command, before: Rows, after: Rows | None) -> Iterator[str]:
        if after is None:
            yield 'the catalog cannot be read any more'
            return
        for name, root in before.roots.items():
            if name in command.takes:
                continue
            if name not in after.roots:
                yield f'{name} is gone'
            elif '@' in name and after.roots[name] != root:
                yield f'{name} has another tree'
        stands = [one for one in self.names if STATES[one].stands]
        if stands and not command.name.startswith(('incident', 'rebuild')):
            if after.freed - before.freed:
                yield f'{len(after.freed - before.freed)} chunks were freed while the collector stands still'
            if after.quarantine - before.quarantine:
                yield 'chunks were condemned while the collector stands still'


def all_names(size: int) -> list[tuple[str, ...]]:
    """Return all groups of so many states that can be together."""
    return [names for names in combinations(STATES, size) if fits(names)]


def walk(
    setting: Setting, groups: Sequence[tuple[str, ...]], wanted: Callable[[tuple[str, ...], Command], bool]
) -> Iterator[tuple[tuple[str, ...], str, Told, list[str]]]:
    """Try the commands that are wanted in these groups of states."""
    for names in groups:
        if wanted(names, WAY_OUT):
            yield names, WAY_OUT.name, Told(0, '', ''), Pair(setting, names).way_out()
        commands = [one for one in COMMANDS.values() if wanted(names, one)]
        if not commands:
            continue
        pair = Pair(setting, names)
        for command in commands:
            told, wrong = pair.cell(command)
            yield names, command.name, told, wrong
