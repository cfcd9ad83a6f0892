"""L4 worker: a long job of the collector in a process of its own, so that the daemon stays quick. Blocking.

    python -m snapfs.collect.worker     job on standard input; progress and result on standard output

Standard input is one JSON object {"job": name of JOBS, "spec": ...}, then its end. Every line of standard
output is one JSON object: {"done": n, "known": n} now and then, and as the last line {"result": ...} or
{"error": text, "kind": name of a class of errors, "advice": text}. A process that ends without a last line
has failed, whatever else it said. The exit code is 0 with a result, 1 with an error.

The process is nice, and idle for the processor and the disk as far as the system allows. A machine that was
suspended meanwhile makes the job fail (L18): the world outside may have gone on without us.

Callers make the input with `encode_job` and understand each line with `Lines`; `run_job` does a job here and
now.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import importlib
import json
import os
import sys
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from snapfs import errors, limits
from snapfs.errors import Corrupt, SnapfsError, Unavailable
from snapfs.store.cells import odd_cells
from snapfs.world import World

Progress = Callable[[int, int], None]


class Job(NamedTuple):
    """Where a job is: `module`.`function`(spec, progress); where its values are, and their classes."""

    module: str
    function: str
    values: str
    spec: str
    result: str


# What does the work loads numpy, what is asked and answered does not: the daemon only needs the latter.
JOBS = {
    'recount': Job(
        'snapfs.collect.recount', 'recount', 'snapfs.collect.recount_values', 'RecountSpec', 'Recount'
    ),
    'mentions': Job(
        'snapfs.collect.mentions',
        'look_for_mentions',
        'snapfs.collect.mention_values',
        'MentionSpec',
        'Mentions',
    ),
    'scrub': Job('snapfs.rescue.scrub', 'scrub', 'snapfs.rescue.scrub_values', 'ScrubSpec', 'Scrubbed'),
    'survey': Job('snapfs.rescue.survey', 'survey', 'snapfs.rescue.recover_values', 'SurveySpec', 'Survey'),
    'wholeness': Job(
        'snapfs.rescue.wholeness', 'wholeness', 'snapfs.rescue.recover_values', 'WholeSpec', 'Whole'
    ),
    'copies': Job(
        'snapfs.rescue.copies', 'look_at_copies', 'snapfs.rescue.recover_values', 'CopiesSpec', 'Copies'
    ),
    'why': Job('snapfs.collect.why', 'why', 'snapfs.collect.why_values', 'WhySpec', 'Why'),
    'proof': Job('snapfs.collect.proof', 'prove', 'snapfs.collect.proof_values', 'ProofSpec', 'Proof'),
}

NICENESS = 19
AUTOGROUP = Path('/proc/self/autogroup')
IOPRIO_WHO_PROCESS = 1
IOPRIO_IDLE = 3 << 13
# The number of ioprio_set(2), which the C library does not wrap.
IOPRIO_SET = {'x86_64': 251, 'aarch64': 30, 'riscv64': 30}


def command() -> list[str]:
    """Return the command of a worker process."""
    return [sys.executable, '-m', 'snapfs.collect.worker']


def encode_job(job: str, spec: object) -> bytes:
    """Return what goes to a worker's standard input."""
    assert type(spec).__name__ == JOBS[job].spec
    return json.dumps({'job': job, 'spec': to_json(spec)}).encode('ascii')


def job_of(spec: object) -> str:
    """Return the name of the job that a specification is for."""
    return next(name for name, job in JOBS.items() if job.spec == type(spec).__name__)


def run_job(
    job: str, spec: object, progress: Progress = lambda done, known: None, world: World | None = None
) -> Any:
    """Do a job in this thread; return its result. Unavailable when the machine was suspended meanwhile;
    Corrupt when it fails in whatever way on a catalog with values of wrong types."""
    world = world if world is not None else World()
    found = JOBS[job]
    before = world.boottime() - world.monotonic()
    try:
        result = getattr(importlib.import_module(found.module), found.function)(spec, progress)
    except SnapfsError:
        raise
    except Exception as error:
        # A bug, or a page of the catalog that rotted: that must stop the collector, and not the readers (P7).
        odd = odd_cells(spec.store / 'catalog.sqlite')  # type: ignore[attr-defined]
        if odd is None:
            raise
        raise Corrupt(odd) from error
    asleep = world.boottime() - world.monotonic() - before
    if abs(asleep) > limits.COLLECT_SUSPEND_SECONDS:
        raise Unavailable(
            f'the machine was suspended for {asleep:.0f} s during a {job}', advice='Begin again.'
        )
    return result


class Lines:
    """Understands the output of one worker: give it every line, then call `result`."""

    def __init__(self, job: str, progress: Progress = lambda done, known: None) -> None:
        self._job = job
        self._progress = progress
        self._last: dict[str, Any] | None = None

    def line(self, line: bytes) -> None:
        """Take one line. Corrupt when it is not one of a worker's."""
        try:
            found = json.loads(line)
        except (ValueError, RecursionError):
            found = None
        good = isinstance(found, dict) and self._last is None
        if good and 'done' in found:
            good = type(found['done']) is int and type(found.get('known')) is int
        if not good:
            raise Corrupt(f'the worker of a {self._job} says {line[:100]!r}')
        if 'done' in found:
            self._progress(found['done'], found['known'])
        else:
            self._last = found

    def result(self, exit_code: int) -> Any:
        """Return the result, or raise the error that the worker ended with. Unavailable when it just died."""
        if self._last is not None and 'error' in self._last:
            raise decode_error(self._last)
        if exit_code != 0 or self._last is None or 'result' not in self._last:
            raise Unavailable(f'the process of a {self._job} ended with {exit_code} and without a result')
        job = JOBS[self._job]
        return from_json(getattr(importlib.import_module(job.values), job.result), self._last['result'])


def decode_error(found: dict[str, Any]) -> SnapfsError:
    """Return the error that a worker ended with. AssertionError when it is none of ours: a bug."""
    kind = getattr(errors, str(found.get('kind')), None)
    if not (isinstance(kind, type) and issubclass(kind, SnapfsError)):
        raise AssertionError(f'a worker failed: {found.get("kind")}: {found["error"]}')
    text, advice = str(found['error']) or 'the worker ended without a reason', found.get('advice')
    advice = None if advice is None else str(advice)
    if kind is not errors.Refused:
        return kind(text, advice=advice)
    if type(found.get('errno')) is not int:
        return Corrupt(f'a worker was refused something, and does not say how: {text[:100]}')
    return errors.Refused(found['errno'], text, advice=advice)


# --- values as JSON --------------------------------------------------------------------------------------
def to_json(value: Any) -> Any:
    """Return a frozen value as JSON can hold it: bytes as digits, dataclasses and tuples as lists."""
    if dataclasses.is_dataclass(value):
        return [to_json(getattr(value, field.name)) for field in dataclasses.fields(value)]
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, tuple):
        return [to_json(one) for one in value]
    if isinstance(value, Path):
        return os.fspath(value)
    assert value is None or type(value) in (int, str, bool, float), f'{type(value)} cannot go to a worker'
    return value


def from_json(kind: Any, value: Any) -> Any:
    """Return what `to_json` was given, by its type. Corrupt when it cannot be that."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        if value is None:
            return None
        (kind,) = (one for one in arguments if one is not types.NoneType)
        return from_json(kind, value)
    try:
        if dataclasses.is_dataclass(kind) and isinstance(kind, type):
            # Without the names of the class itself: a field called `bytes` would hide its siblings' type.
            hints = typing.get_type_hints(kind, localns={})
            names = [field.name for field in dataclasses.fields(kind)]
            return kind(*[from_json(hints[n], one) for n, one in zip(names, value, strict=True)])
        if origin is tuple:
            each = arguments[:1] * len(value) if arguments[-1] is Ellipsis else arguments
            return tuple(from_json(one, part) for one, part in zip(each, value, strict=True))
        if kind is bytes:
            return bytes.fromhex(value)
        if kind is Path:
            return Path(value)
    except (TypeError, ValueError) as error:
        raise Corrupt(f'a worker was told {value!r:.100} where {kind} stands') from error
    if type(value) is not kind:
        raise Corrupt(f'a worker was told {value!r:.100} where {kind} stands')
    return value


# --- the process -----------------------------------------------------------------------------------------
def main() -> int:
    """Do the job on standard input; return the exit code."""
    assert __debug__, 'asserts are part of the program'
    _be_idle()
    try:
        document = json.loads(sys.stdin.buffer.read())
        job = document['job']
        found = JOBS[job]
        spec = from_json(getattr(importlib.import_module(found.values), found.spec), document['spec'])
        result = run_job(job, spec, lambda done, known: _say({'done': done, 'known': known}))
        _say({'result': to_json(result)})
    except SnapfsError as error:
        kind = type(error).__name__
        _say({'error': str(error), 'kind': kind, 'advice': error.advice, 'errno': error.errno})
        return 1
    except Exception as error:
        _say({'error': str(error), 'kind': type(error).__name__, 'advice': '', 'errno': 0})
        raise
    return 0


def _say(line: dict[str, Any]) -> None:
    sys.stdout.buffer.write(json.dumps(line).encode('ascii') + b'\n')
    sys.stdout.buffer.flush()


def _be_idle() -> None:
    """Stand back behind everybody else. Where the system does not allow it, go on as we are."""
    # With autogroups (sched(7)) nice and SCHED_IDLE count among the processes of one session only: beside
    # those of others an idle process had a full share, a fifth of two busy processors. So it gets a session
    # of its own, and that is made nice.
    with contextlib.suppress(OSError):
        os.setsid()
        AUTOGROUP.write_text(str(NICENESS))
    with contextlib.suppress(OSError):
        os.nice(NICENESS - os.nice(0))
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    number = IOPRIO_SET.get(os.uname().machine)
    if number is not None:
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).syscall(number, IOPRIO_WHO_PROCESS, 0, IOPRIO_IDLE)


if __name__ == '__main__':
    sys.exit(main())
