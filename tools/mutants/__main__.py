"""The command: make mutants, run a sample, tell. See the package."""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SHARED_MEMORY = Path('/dev/shm')


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; 0 when nothing was lost, 1 otherwise, 2 for a wrong command."""
    parser = argparse.ArgumentParser(
        prog='python -m tools.mutants', description='Run mutants of the collector.'
    )
    parser.add_argument('--limit', type=int, default=0, metavar='N', help='only a sample of N; 0 = all')
    parser.add_argument('--seed', type=int, default=1, help='decides the sample')
    parser.add_argument(
        '--only', action='append', default=[], metavar='PATH', help='only files whose path begins so'
    )
    parser.add_argument(
        '--operators', choices=['standard', 'sql', 'left-out'], default=None, help='only mistakes of this set'
    )
    parser.add_argument(
        '--seconds', type=float, default=0.0, metavar='N', help='begin no mutant after N seconds'
    )
    parser.add_argument('--workers', type=int, default=2, metavar='N')
    parser.add_argument(
        '--out', type=Path, default=None, metavar='FILE', help='results; goes on with an old file'
    )
    options = parser.parse_args(argv)
    if not (ROOT / 'tests' / 'mutants').is_dir():
        print(f'mutants: {ROOT} is not a checkout of snapfs: there is no tests/mutants', file=sys.stderr)
        return 2
    os.nice(10)
    sys.path.insert(0, str(ROOT))
    scratch = Path(
        tempfile.mkdtemp(prefix='snapfs-mutants-', dir=SHARED_MEMORY if SHARED_MEMORY.is_dir() else None)
    )
    try:
        return _run(options, scratch)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _run(options: argparse.Namespace, scratch: Path) -> int:
    from tools.mutants.make import mutants_of, source_files
    from tools.mutants.run import UNREACHED, Runner

    began = time.monotonic()
    runner = Runner(ROOT, scratch)
    paths = [path for path in source_files(ROOT) if path.startswith(tuple(options.only) or '')]
    reached = runner.reached(paths)
    every = [one for path in paths for one in mutants_of(path, runner.source(path))]
    made = [one for one in every if options.operators in (None, one.operators)]
    wanted = [
        one
        for one in made
        if any(line in reached[one.path] for line in range(one.reached_by[0], one.reached_by[1] + 1))
    ]
    unreached = len(made) - len(wanted)
    random.Random(options.seed).shuffle(wanted)
    out = options.out or scratch / 'results.jsonl'
    results = {one['name']: one for one in _read(out)}
    todo = wanted[: options.limit or None]
    todo = [one for one in todo if one.name not in results]
    print(
        f'{len(made)} mutants of {len(paths)} files, {len(wanted)} on lines that the battery executes; '
        f'{len(todo)} to run',
        flush=True,
    )
    runner.ready()
    until = began + options.seconds if options.seconds else None
    workers = [_fork(runner, todo[k :: options.workers], out, until) for k in range(options.workers)]
    for child in workers:
        os.waitpid(child, 0)
    names = {one.name for one in wanted}
    done = [one for one in _read(out) if one['name'] in names]
    counts = Counter(one['outcome'] for one in done)
    counts[UNREACHED] = unreached
    return report(len(made), len(wanted), done, counts, time.monotonic() - began)


def _read(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []


def _fork(runner: Any, todo: Sequence[Any], out: Path, until: float | None) -> int:
    child = os.fork()
    if child:
        return child
    try:
        for mutant in todo:
            if until is not None and time.monotonic() > until:
                break
            line = json.dumps(runner.run(mutant)) + '\n'
            fd = os.open(out, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            os.write(fd, line.encode())
            os.close(fd)
    except BaseException as error:
        print(f'mutants: {error!r}', file=sys.stderr, flush=True)
        os._exit(1)
    os._exit(0)


def report(
    made: int, reached: int, done: Sequence[dict[str, Any]], counts: Counter[str], seconds: float
) -> int:
    """Print the table; return the exit code."""
    kinds = Counter(one['kind'] for one in done if one['outcome'] == 'killed')
    words = {
        'guard': 'by a guard in the product (assertion, Corrupt, Held)',
        'alarm': 'by an alarm: the latch fell, everything came back',
        'error': 'by another error',
        'expectation': 'by what the battery expected (space did not come back, ...)',
        'stopped': 'because it did not end',
        'lost': 'by a loss that the detector did not see again',
    }
    share = f'{len(done) / max(reached, 1):.1%} of these; {seconds:.0f} s'
    print(f'mutants                    {made:6}')
    print(f'  not executed             {counts["unreached"]:6}')
    print(f'  executed by the battery  {reached:6}')
    print(f'  run                      {len(done):6}  ({share})')
    print(f'    killed                 {counts["killed"]:6}')
    for kind, text in words.items():
        if kinds[kind]:
            print(f'      {kinds[kind]:6}  {text}')
    print(f'    survived, harmless     {counts["survived"]:6}')
    print(f'    LOST LIVE DATA         {counts["lost"]:6}')
    for one in done:
        if one['outcome'] == 'lost':
            print(f'LOST {one["name"]}\n     {one["lost"][0]}\n     {one["why"]}')
    return 1 if counts['lost'] or kinds['lost'] else 0


if __name__ == '__main__':
    sys.exit(main())
