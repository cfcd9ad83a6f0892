"""tools bench: the command `python -m tools.bench`. Progress goes to standard error, the table to standard
output.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from tools.bench import groups
from tools.bench.damage import DAMAGE
from tools.bench.deletion import DELETION
from tools.bench.filesystems import REGISTRY, Failed, Filesystem, Null, Snapfs, may_drop_caches
from tools.bench.groups import EXPECTED, Job
from tools.bench.metrics import BY_NAME
from tools.bench.sample import make_sample
from tools.bench.sizes import FULL, QUICK, Sizes
from tools.bench.table import render

GROUPS = groups.GROUPS | DELETION | DAMAGE
Measured = dict[str, dict[str, list[float]]]


def say(text: str) -> None:
    """Tell the person who waits."""
    print(text, file=sys.stderr, flush=True)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog='bench', description='Measure snapfs beside its peers.')
    parser.add_argument('--quick', action='store_true', help='about a tenth of everything')
    parser.add_argument('--rounds', type=int, default=3, help='medians are taken over so many (3)')
    parser.add_argument('--only', action='append', choices=GROUPS, metavar='GROUP', help=', '.join(GROUPS))
    names = [kind.name for kind in REGISTRY]
    parser.add_argument('--filesystem', action='append', choices=names, metavar='NAME', help=', '.join(names))
    parser.add_argument(
        '--peers-once', action='store_true', help='bindfs, btrfs and zfs-fuse in the first round only'
    )
    parser.add_argument('--minutes', type=float, metavar='N', help='begin nothing more after so long')
    parser.add_argument(
        '--references',
        type=int,
        metavar='N',
        help='of the store that is recounted (2,000,000); try 20,000,000',
    )
    parser.add_argument('--directory', type=Path, help='where stores and images are made (a temporary one)')
    parser.add_argument('--json', type=Path, metavar='FILE', help='write every single value there')
    parsed = parser.parse_args(arguments)
    if parsed.rounds < 1:
        parser.error('--rounds must be at least 1')
    return parsed


class Bench:
    """One run: the filesystems that can be measured here, what was measured, what went wrong."""

    def __init__(self, directory: Path, sizes: Sizes, chosen: list[str] | None) -> None:
        self.sizes = sizes
        self.notes: list[str] = []
        self.failed: set[str] = set()
        self.filesystems: list[Filesystem] = []
        self.values: Measured = {}
        self.once: set[str] = set()  # names of those that are measured in the first round only
        for kind in REGISTRY:
            if chosen and kind.name not in chosen:
                continue
            reason = kind.missing()
            if reason is None:
                self.filesystems.append(kind(directory))
                self.values[kind.name] = {}
            else:
                self.notes.append(f'{kind.name}: {reason}')

    def attempt(self, filesystem: Filesystem, what: str, action: Callable[[], None]) -> bool:
        """Do something; when it fails, say so and go on with the others."""
        try:
            action()
            return True
        except (Failed, *EXPECTED) as error:
            self.notes.append(f'{filesystem.name}, {what}: failed, {error}')
            self.failed.add(filesystem.name)
            say(self.notes[-1])
            return False

    def measure(self, filesystem: Filesystem, group: str, job: Job) -> None:
        """Mount, run one group of workloads, unmount."""

        def work() -> None:
            for name, value in GROUPS[group](filesystem, job).items():
                assert name in BY_NAME, f'{name} has no row in the table'
                self.values[filesystem.name].setdefault(name, []).append(value)
            filesystem.weigh()

        if not self.attempt(filesystem, 'mount', filesystem.mount):
            return
        self.attempt(filesystem, group, work)
        self.attempt(filesystem, 'unmount', filesystem.unmount)

    def run(self, groups: list[str], rounds: int, job: Callable[[int], Job], seconds_max: float) -> None:
        """Measure everything, filesystem after filesystem within each group of each round."""
        begun = time.monotonic()
        for number in range(rounds):
            # New ones each round: what is stored already would be deduplicated, and is not what is measured.
            wanted = [one for one in self.filesystems if number == 0 or one.name not in self.once]
            made = [one for one in wanted if self.attempt(one, 'make', one.start)]
            for group in groups:
                for filesystem in made:
                    spent = time.monotonic() - begun
                    where = f'round {number + 1} of {rounds}: {group} on {filesystem.name}'
                    if spent > seconds_max:
                        self.notes.append(f'it ended after {spent / 60:.0f} minutes, before {where}')
                        self.finish()
                        return
                    say(f'{spent:5.0f} s: {where}')
                    self.measure(filesystem, group, job(number))
            self.finish()
        for filesystem in self.filesystems:
            if filesystem.memory_most:
                self.values[filesystem.name]['memory_most'] = [filesystem.memory_most / 1024]

    def finish(self) -> None:
        """Leave nothing mounted and nothing running."""
        for filesystem in self.filesystems:
            if os.path.ismount(filesystem.mountpoint):
                self.attempt(filesystem, 'unmount', filesystem.unmount)
            self.attempt(filesystem, 'finish', filesystem.finish)
            if not os.path.ismount(filesystem.mountpoint):
                shutil.rmtree(filesystem.directory, ignore_errors=True)


def main(arguments: list[str] | None = None) -> int:
    """Run; return 1 when something could not be measured that should have been."""
    options = parse(arguments)
    if not Path('/dev/fuse').exists():
        say('There is no /dev/fuse on this machine; nothing can be mounted.')
        return 1
    sizes = QUICK if options.quick else FULL
    if options.references:
        sizes = replace(sizes, synthetic_references=options.references)
    directory = Path(tempfile.mkdtemp(prefix='snapfs-bench-', dir=options.directory or '/var/tmp'))
    bench = Bench(directory, sizes, options.filesystem)
    if options.peers_once:
        bench.once = {one.name for one in bench.filesystems} - {Null.name, Snapfs.name}
    try:
        say('making the sample')
        sample = make_sample(directory, sizes.tree_files, sizes.sequential_bytes + sizes.random_bytes)
        bench.notes.insert(0, f'the tree: {sample.files:,} files, {sample.bytes / (1 << 20):,.0f} MiB')
        bench.notes.insert(1, 'the null filesystem keeps all file data in its memory; btrfs has no daemon')
        if not may_drop_caches():
            bench.notes.append('not root: what is called cold is read from the page cache of the disk below')
        seconds_max = 60 * options.minutes if options.minutes else math.inf
        chosen = options.only or list(GROUPS)
        bench.run(chosen, options.rounds, lambda seed: Job(sizes, sample, seed, directory), seconds_max)
    finally:
        bench.finish()
        if any(os.path.ismount(filesystem.mountpoint) for filesystem in bench.filesystems):
            say(f'something is still mounted below {directory}, which is left in place')
        else:
            shutil.rmtree(directory)
    if bench.once:
        bench.notes.append(f'{", ".join(sorted(bench.once))}: measured in one round')
    print(render(bench.values, sizes, options.rounds, bench.notes))
    if options.json:
        options.json.write_text(json.dumps({'values': bench.values, 'notes': bench.notes}, indent=1) + '\n')
    return 1 if bench.failed else 0


if __name__ == '__main__':
    try:
        sys.exit(main())
    except (Failed, subprocess.SubprocessError) as error:
        sys.exit(f'bench: {error}')
