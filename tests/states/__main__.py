"""All cells: python -m tests.states [--size 2] [--shard 1/2] [--only STATE,STATE] [--commands NAME,NAME]

Prints a line for each cell that is wrong; with --said also the sentences that were said, at the end."""

from __future__ import annotations

import argparse
import collections
import random
import re
import sys
import tempfile
from pathlib import Path

from tests.states.cells import Setting, all_names, walk


def main() -> int:
    """Entry point; 1 when a cell is wrong."""
    parser = argparse.ArgumentParser(prog='python -m tests.states', description='Every pair, every command.')
    parser.add_argument('--size', type=int, default=2, help='so many states together')
    parser.add_argument('--shard', default='1/1', metavar='K/N')
    parser.add_argument('--only', default='', help='groups with all of these states')
    parser.add_argument('--commands', default='', help='only these, by commas')
    parser.add_argument('--sample', type=int, default=0, help='so many groups, by --seed')
    parser.add_argument('--seed', type=int, default=1)
    parser.add_argument('--said', action='store_true', help='print what was said, at the end')
    options = parser.parse_args()
    part, parts = map(int, options.shard.split('/'))
    only = {one for one in options.only.split(',') if one}
    groups = [names for names in all_names(options.size) if only <= set(names)]
    random.Random(options.seed).shuffle(groups)  # so that a part of a run is a fair sample
    groups = groups[: options.sample or None]
    names_wanted = {one for one in options.commands.split(',') if one}
    said: collections.Counter[str] = collections.Counter()
    bad = cells = 0
    with tempfile.TemporaryDirectory(prefix='snapfs-states-') as folder:
        setting = Setting(Path(folder))
        for names, command, told, wrong in walk(
            setting, groups[part - 1 :: parts], lambda _, one: not names_wanted or one.name in names_wanted
        ):
            cells += 1
            bad += bool(wrong)
            for text in wrong:
                print(f'{" + ".join(names)}: {command}: {text}', flush=True)
            for line in told.err.splitlines():
                text = re.sub(r'[0-9a-f]{16,}', 'HEX', line.replace(folder, ''))
                said[f'{told.code} {re.sub(r"[0-9]+", "N", text)}'] += 1
    if options.said:
        for text, count in said.most_common():
            print(f'said {count}: {text}')
    print(f'{cells} cells in {len(groups[part - 1 :: parts])} groups of states, {bad} wrong')
    return 1 if bad else 0


if __name__ == '__main__':
    sys.exit(main())
