"""Every workload of a few operations, with a power cut at every event: `python -m tests.crash.enumerate`.

A word is cut at each event of its last operation and at its end; the events before are those of shorter
words. Unless it is run `--alone` a commit follows, and is cut too: that is the word with `commit` behind it,
whose images are the same to the byte (but for what chance decides: what is kept, what goes inline). So the
words of N with a commit reach beyond N, and the words of N alone are all there is of N.

    --length N            of words; all of 1 and 2 take minutes, those of 3 hours
    --shard K/M           the K-th of M parts, spread evenly; all parts are all words
    --sample N            so many of them, chosen by the seed
    --only 'A, B, C'      one word; with --whole cut in all of its operations. Replays a failure
    --alone               not in the commit that follows each word: that is a word of one operation more
    --seed N              what is kept of what was not synced, and sizes; odd: on a store that is in use
    --words N             stop after so many; --seconds N: after so long
    --out FILE            a line of JSON for each word; a run that finds the file goes on behind it

Exits with 1 when there is a failure; each is told with a command that replays it.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import os
import random
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import trio
from trio._core import _run as scheduler

from snapfs import limits
from snapfs.collect import reading, recount
from snapfs.store import horizon
from snapfs.tree import apply
from tests.crash.alphabet import OPERATIONS, Word, words
from tests.crash.oracle import Found
from tests.crash.remembered import remembering
from tests.crash.word_files import CannotApply
from tests.crash.word_run import Base, WordRun, make_base
from tests.crash.word_verify import verify_left

SMALL = {
    'RESERVE_BYTES': 4 * limits.KIB,
    'JOURNAL_BYTES': 64 * limits.KIB,
    'JOURNAL_INLINE_BYTES_MAX': 0,
    'PUT_RECORD_BITS': 16,
    'QUARANTINE_SLICE_ROWS': 7,
    'BATCH_SLICE_ROWS_MAX': 9,
    'CANARY_SLICE_PART': 4,
    'SEAL_WASTE_BYTES_MIN': 4096,
}
INLINE_BYTES = (0, 4 * limits.KIB, 64 * limits.KIB)
NODE_BYTES = 700
KNOWN_MAX = 500
TIDY_WORDS = 25  # Python's own collector runs after so many: by itself it takes an eighth of all time


@dataclass(slots=True)
class Outcome:
    """What became of one word. `failure`: None, or what is wrong."""

    word: Word
    seed: int
    cuts: int = 0
    images: int = 0  # verified
    repeated: int = 0  # of the same bytes as one before, and held against that one's state
    applied: bool = True
    alone: bool = False  # no commit followed
    failure: str | None = None


@contextmanager
def small(scratch: Path) -> Iterator[None]:
    """Small stores, high trees, a fixed order of tasks; what is temporary is in `scratch`."""
    place, tempfile.tempdir = tempfile.tempdir, str(scratch)
    before = {name: getattr(limits, name) for name in SMALL}
    shift, node_bytes = horizon._SHIFT, apply.__kwdefaults__['target_bytes']
    disks = [(module, module.Disk) for module in (reading, recount)]  # type: ignore[attr-defined]
    steady = scheduler._ALLOW_DETERMINISTIC_SCHEDULING
    for name, value in SMALL.items():
        setattr(limits, name, value)
    horizon._SHIFT = 64 - SMALL['PUT_RECORD_BITS']
    apply.__kwdefaults__['target_bytes'] = NODE_BYTES
    scheduler._ALLOW_DETERMINISTIC_SCHEDULING = True
    try:
        with remembering():
            yield
    finally:
        for name, value in before.items():
            setattr(limits, name, value)
        horizon._SHIFT, apply.__kwdefaults__['target_bytes'] = shift, node_bytes
        tempfile.tempdir = place
        for module, disk in disks:
            module.Disk = disk
        scheduler._ALLOW_DETERMINISTIC_SCHEDULING = steady


class Enumeration:
    """Words one after the other, on copies of one base store. Used inside `small()`."""

    def __init__(self, scratch: Path, seed: int) -> None:
        self.scratch = scratch
        self.seed = seed
        self._known: dict[bytes, Found] = {}
        scheduler._r.seed(0)
        self.base: Base = trio.run(make_base, scratch / 'base')

    def forget(self) -> None:
        """Verify every image anew from here on."""
        self._known.clear()

    def run(self, word: Word, *, whole: bool = False, alone: bool = False) -> Outcome:
        """Run one word and verify every image of it."""
        outcome = Outcome(word, self.seed, alone=alone)
        scheduler._r.seed(0)
        folder = self.scratch / 'word'
        try:
            trio.run(self._run, folder, outcome, whole)
        except CannotApply:
            outcome.applied = False
        except Exception as error:
            parts = error.exceptions if isinstance(error, ExceptionGroup) else [error]
            outcome.failure = (
                f'{parts[0]}'
                if isinstance(parts[0], AssertionError) and f'{parts[0]}'
                else (''.join(traceback.format_exception(parts[0])))
            )
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        return outcome

    async def _run(self, folder: Path, outcome: Outcome, whole: bool) -> None:
        inline = random.Random(f'{outcome.word} {self.seed}').choice(INLINE_BYTES)
        run = WordRun(folder, self.base, self.seed, inline)
        try:
            await run.run_word(outcome.word, whole=whole, alone=outcome.alone)
        finally:
            run.end()
        outcome.cuts = run.cuts
        for digest, left in run.left.items():
            found = self._known.get(digest)
            if found is not None and all(allowed.match(found) is not None for allowed, _ in left.allowed):
                outcome.repeated += 1
                continue
            self._known[digest] = await verify_left(left)
            outcome.images += 1
        while len(self._known) > KNOWN_MAX:
            del self._known[next(iter(self._known))]


def place() -> Path | None:
    """Return where stores are made: in memory, where there is such a place. Nothing is really synced."""
    memory = Path('/dev/shm')
    return memory if os.access(memory, os.W_OK) else None


def parser() -> argparse.ArgumentParser:
    """Return what reads the command line."""
    found = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument('--length', type=int, default=2)
    found.add_argument('--shard', default='1/1')
    found.add_argument('--sample', type=int)
    found.add_argument('--only')
    found.add_argument('--whole', action='store_true')
    found.add_argument('--alone', action='store_true')
    found.add_argument('--seed', type=int, default=0)
    found.add_argument('--out', type=Path)
    found.add_argument('--seconds', type=float, default=float('inf'))
    found.add_argument('--words', type=int, default=1 << 40)
    return found


def chosen(arguments: argparse.Namespace) -> list[Word]:
    """Return the words that are asked for."""
    if arguments.only:
        word = tuple(part.strip() for part in arguments.only.split(','))
        unknown = [name for name in word if name not in OPERATIONS]
        if unknown:
            raise SystemExit(f'no such operation: {unknown[0]}; there are: {", ".join(OPERATIONS)}')
        return [word]
    number, _, count = arguments.shard.partition('/')
    every = list(words(arguments.length))
    # Words that begin alike stay together: many of their images are equal. Each part is a fair sample.
    beginnings = sorted({word[:-1] for word in every})
    random.Random('shards').shuffle(beginnings)
    mine = set(beginnings[int(number) - 1 :: int(count)]) if arguments.length > 1 else {()}
    found = [word for word in every if word[:-1] in mine]
    if arguments.sample is not None:
        found = random.Random(arguments.seed).sample(found, min(arguments.sample, len(found)))
    return found


def replay(outcome: Outcome) -> str:
    """Return the command that shows a failure again."""
    return f"python -m tests.crash.enumerate --seed {outcome.seed} --only '{', '.join(outcome.word)}'"


def _done(out: Path | None) -> set[Word]:
    if out is None or not out.exists():
        return set()
    lines = out.read_text().splitlines(keepends=True)
    whole = [line for line in lines if line.endswith('\n')]
    if whole != lines:  # it was interrupted in the middle of one
        out.write_text(''.join(whole))
    return {tuple(json.loads(line)['word']) for line in whole}


def _totals(out: Path | None, outcomes: Sequence[dict[str, object]]) -> Counter[str]:
    found = Counter[str]()
    every = [json.loads(line) for line in out.read_text().splitlines()] if out is not None else outcomes
    for one in every:
        found['words'] += 1
        found['inapplicable'] += not one['applied']
        found['cuts'] += one['cuts']
        found['images'] += one['images']
        found['repeated'] += one['repeated']
        found['failures'] += one['failure'] is not None
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is asked for; return 1 when something failed."""
    arguments = parser().parse_args(argv)
    logging.disable()
    done = _done(arguments.out)
    every = chosen(arguments)
    todo = [word for word in every if word not in done]
    outcomes: list[dict[str, object]] = []
    began = time.monotonic()
    with tempfile.TemporaryDirectory(dir=place(), prefix='snapfs-words-') as scratch, small(Path(scratch)):
        enumeration = Enumeration(Path(scratch), arguments.seed)
        gc.disable()
        for number, word in enumerate(todo[: arguments.words]):
            if number % TIDY_WORDS == 0:
                gc.collect()
                gc.freeze()  # what stays (modules, base, what is remembered) is not looked at again
            if time.monotonic() - began > arguments.seconds:
                break
            outcome = enumeration.run(word, whole=arguments.whole, alone=arguments.alone)
            outcomes.append(asdict(outcome))
            if arguments.out is not None:
                with arguments.out.open('a') as file:
                    file.write(json.dumps(asdict(outcome)) + '\n')
            if outcome.failure is not None:
                print(f'FAILED {outcome.failure}\n  {replay(outcome)}', flush=True)
    gc.enable()
    seconds = time.monotonic() - began
    totals = _totals(arguments.out, outcomes)
    print(
        f'{totals["words"]} of {len(every)} words ({totals["inapplicable"]} could not apply), '
        f'{totals["cuts"]} cuts, {totals["images"]} images verified '
        f'(and {totals["repeated"]} like one before), {totals["failures"]} failures; '
        f'{len(outcomes) / seconds:.2f} words/s in this run'
    )
    return 1 if totals['failures'] else 0


if __name__ == '__main__':
    sys.exit(main())
