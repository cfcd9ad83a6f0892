"""The command: fuzz targets one after the other, tell what was seen. See the package."""

from __future__ import annotations

import argparse
import importlib.util
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from snapfs.errors import Invalid
from tools.fuzz.corpus import ROOT, keep, kept
from tools.fuzz.target import Target
from tools.fuzz.targets import find

MISSING = 'fuzz: atheris is not here; it is not a part of `make setup`: .venv/bin/pip install atheris'
INPUT_SECONDS_MAX = 10  # for one input
MEMORY_MIB_MAX = 1500  # of the process
_STATE = re.compile(r'#(\d+)\s+(INITED|DONE|NEW|REDUCE|pulse)\s+cov: (\d+) ft: (\d+) corp: (\d+)')


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one target. `inputs`: those that libFuzzer wrote down as defects; `text`: the end of what
    it said, when it found one. Coverage in edges, at the start and at the end."""

    name: str
    runs: int
    before: int
    after: int
    inputs: list[Path]
    text: str


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; 0 when nothing was found, 1 otherwise, 2 for a wrong command or without atheris."""
    parser = argparse.ArgumentParser(prog='python -m tools.fuzz', description='Fuzz the decoders of snapfs.')
    parser.add_argument('target', nargs='?', default='all', metavar='TARGET', help='one of them, or all')
    parser.add_argument('--seconds', type=int, default=60, metavar='N', help='for each target')
    parser.add_argument(
        '--corpus', type=Path, default=None, metavar='DIR', help='where inputs are kept from run to run'
    )
    parser.add_argument('--seed', type=int, default=1, metavar='N')
    parser.add_argument('--list', action='store_true', help='name the targets and stop')
    parser.add_argument(
        '--keep', action='store_true', help='write the inputs worth keeping into tests/fuzz/corpus'
    )
    options = parser.parse_args(argv)
    try:
        targets = find(options.target)
    except Invalid as error:
        print(f'fuzz: {error.line()}', file=sys.stderr)
        return 2
    if options.list:
        print('\n'.join(one.name for one in targets))
        return 0
    if options.seconds > 0 and importlib.util.find_spec('atheris') is None:
        print(MISSING, file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix='snapfs-fuzz-') as scratch:
        folder = options.corpus or Path(scratch)
        found = 0
        for target in targets:
            found += _fuzz(target, folder, options)
    return 1 if found else 0


def _fuzz(target: Target, folder: Path, options: argparse.Namespace) -> int:
    """Fuzz one target, tell of it; return how many defects were found."""
    inputs = folder / target.name
    inputs.mkdir(parents=True, exist_ok=True)
    for number, data in enumerate([*target.seeds(), *kept(target.name)]):
        (inputs / f'seed-{number}').write_bytes(data)
    defects: list[Path] = []
    if options.seconds > 0:
        done = run(target, inputs, folder, options.seconds, options.seed)
        grown = f'coverage {done.before} -> {done.after} edges'
        print(f'{done.name}: {done.runs} runs, {grown}, {len(done.inputs)} defects', flush=True)
        if done.text:
            print(done.text, flush=True)
        defects = done.inputs
    if options.keep:
        count = keep(target, (path.read_bytes() for path in inputs.iterdir()))
        print(f'{target.name}: {count} inputs kept', flush=True)
    return len(defects)


def run(target: Target, inputs: Path, folder: Path, seconds: int, seed: int) -> Outcome:
    """Run the guided fuzzer of one target in a process, to its end."""
    marks = folder / 'defects'
    marks.mkdir(exist_ok=True)
    command = [
        sys.executable, '-m', 'tools.fuzz.guided', target.name, f'-max_total_time={seconds}', f'-seed={seed}',
        f'-max_len={target.bytes_max}', f'-timeout={INPUT_SECONDS_MAX}', f'-rss_limit_mb={MEMORY_MIB_MAX}',
        f'-artifact_prefix={marks}/{target.name}-', '-print_final_stats=0', str(inputs),
    ]  # fmt: skip
    there = set(marks.iterdir())
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, errors='replace', check=False)
    said = done.stdout + done.stderr
    states = _STATE.findall(said)
    first = next((int(one[2]) for one in states if one[1] == 'INITED'), 0)
    last = max((int(one[2]) for one in states), default=0)
    runs = max((int(one[0]) for one in states), default=0)
    found = sorted(set(marks.iterdir()) - there)
    failed = bool(found) or done.returncode != 0
    # Python's own words, where there are some; libFuzzer's are about itself.
    words = said.partition('Uncaught Python exception: ===')[2] or said
    text = '\n'.join(words.splitlines()[:40] if words is not said else words.splitlines()[-20:])
    if failed and not found:
        found = [marks / f'{target.name}-unknown']
    return Outcome(target.name, runs, first, last, found, text if failed else '')


if __name__ == '__main__':
    sys.exit(main())
