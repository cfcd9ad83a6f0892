"""Model, report: `python -m tests.model [--states N] [--traces] [--cores N]` runs every search.

Exit code 1 when a search did not find what `cases` says. It prints tables in Markdown, for the README.
"""

from __future__ import annotations

import argparse
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

from tests.model.cases import ACCIDENT, CONFIGS, RULES_REMOVED, STRENGTHENED, Case
from tests.model.rules import Config
from tests.model.search import FINDINGS, LATCHED, LEAK, LOSS, WRONG, Result, Search

STATES_LONG = 700_000  # of each configuration with all rules
STATES_SAFE = 150_000  # of a case in which nothing may be lost
STATES_FOUND = 400_000  # of a case in which something must be found: it comes much sooner


@dataclass(frozen=True, slots=True)
class Job:
    """One search, small enough to send to another process."""

    config: Config
    limit: int
    until: int


def until_of(case: Case) -> int:
    """When to stop: at the finding, or, where none may lose anything, only at a loss."""
    return LOSS if case.safe or case.finding is None else FINDINGS[case.finding]


def job_of(case: Case, safe: int) -> Job:
    """The search of a case; `safe` is its limit of states when nothing may be lost."""
    return Job(case.changed(), safe if case.safe else STATES_FOUND, until_of(case))


def run(job: Job) -> Result:
    """Search in this process."""
    return Search(job.config).run(job.limit, job.until)


def as_expected(case: Case, result: Result) -> bool:
    """Whether a search saw what its case says: the finding after so many steps, and no loss if safe."""
    if case.safe and 'loss' in result.first:
        return False
    if case.finding is None:
        return not result.first
    return result.steps(case.finding) == case.steps


def outcome(case: Case, result: Result) -> str:
    """One cell: what came of it, and after how many steps."""
    if case.safe and 'loss' not in result.first:
        cut = 'all' if result.complete else f'{result.states:,} states'
        caught = result.steps('latch')
        return f'no loss ({cut}); ' + (f'latch after {caught}' if caught else 'another rule does its work')
    names = {'loss': 'loss', 'latch': 'false alarm', 'leak': 'leak', 'wrong': 'wrong verdict'}
    found = [name for name in ('loss', 'leak', 'latch') if name in result.first]
    return f'**{names[found[0]]} after {result.steps(found[0])} steps**' if found else 'nothing found'


def main() -> int:
    """Run everything; the exit code says whether all came out as expected."""
    parser = argparse.ArgumentParser(prog='python -m tests.model', description=__doc__)
    parser.add_argument('--states', type=int, default=STATES_LONG, help='limit of each configuration')
    parser.add_argument('--cores', type=int, default=2)
    parser.add_argument('--traces', action='store_true', help='print the shortest trace of every finding')
    options = parser.parse_args()
    failures = 0
    with ProcessPoolExecutor(options.cores, max_tasks_per_child=1) as pool:
        everything = LOSS | WRONG | LATCHED | LEAK
        whole = [pool.submit(run, Job(config, options.states, everything)) for config in CONFIGS]
        groups = (('rule taken away', RULES_REMOVED), ('accident', ACCIDENT), ('strengthened', STRENGTHENED))
        pending = [
            (name, case, pool.submit(run, job_of(case, STATES_SAFE)))
            for name, cases in groups
            for case in cases
        ]
        print('| all rules, configuration | states | depth | found |\n|---|---:|---:|---|')
        total = 0
        for config, future in zip(CONFIGS, whole, strict=True):
            result = future.result()
            failures += bool(result.first)
            total += result.states
            cut = 'all' if result.complete else 'cut there'
            found = ', '.join(f'{k} after {result.steps(k)}' for k in result.first) or 'nothing'
            print(f'| {config.name} | {result.states:,} ({cut}) | {result.depth} | {found} |', flush=True)
            show(result, options.traces or bool(result.first))
        print(f'| together | {total:,} | | |')
        title = ''
        for name, case, future in pending:
            if name != title:
                title = name
                print(f'\n| {name} | configuration | what came of it |\n|---|---|---|')
            result = future.result()
            good = as_expected(case, result)
            failures += not good
            mark = '' if good else f' — EXPECTED {case.finding} after {case.steps}'
            print(f'| {case.title} | {case.config.name} | {outcome(case, result)}{mark} |', flush=True)
            show(result, options.traces or not good)
    return 1 if failures else 0


def show(result: Result, wanted: bool) -> None:
    """Print the traces of a result."""
    for name, lines in result.first.items() if wanted else ():
        print(f'\n{name}:')
        for number, line in enumerate(lines):
            print(f'  {number:2} {line}')
        print()
