"""Running mutants: each in a forked process, on a copy of the template in memory. One mutant at a time a
worker.

A mistake inside a function is put in by exchanging the code of every function object made from it, so that
nothing has to be imported again. One outside (a constant, a default value) has the modules imported anew."""

from __future__ import annotations

import gc
import importlib
import importlib.abc
import importlib.util
import json
import logging
import os
import pickle
import resource
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import CodeType, FrameType, FunctionType, ModuleType
from typing import Any

from tools.mutants.make import Mutant

BATTERY = 'tests.mutants.battery'
DETECTOR = 'tests.mutants.detector'
# Of processor time, which other programs on the machine do not take away; a whole battery takes about one.
SECONDS_MAX = 20
KILL_SECONDS = 30
IDLE_SECONDS = 3.0  # asleep for so long, without any processor time: nobody will wake it
MEMORY_MAX = 4 << 30
FILE_MAX = 256 << 20
# Imported again for a mistake outside functions: whatever may have taken something from a mutated module.
AGAIN = (
    'snapfs.collect',
    'snapfs.store',
    'snapfs.volume',
    'snapfs.service',
    'tests.mutants.battery',
    'tests.mutants.setting',
    'tests.support',
    'tests.sim',
)

LOST, KILLED, SURVIVED, UNREACHED = 'lost', 'killed', 'survived', 'unreached'


class TooLong(BaseException):
    """The battery did not end in time."""


class Runner:
    """Runs mutants of the checkout at `root`; `scratch` is a directory in memory, made and removed by
    others."""

    def __init__(self, root: Path, scratch: Path) -> None:
        self.root = root
        self.scratch = scratch
        self.battery: Any = importlib.import_module(BATTERY)
        self.detector: Any = importlib.import_module(DETECTOR)
        logging.disable(logging.CRITICAL)
        self.template: Path = self.battery.template(_made(scratch / 'template'))
        self.sources: dict[str, str] = {}
        self._holders: dict[CodeType, list[FunctionType]] = {}

    def source(self, path: str) -> str:
        """Return the text of a file of the checkout, as it was when first asked for."""
        if path not in self.sources:
            self.sources[path] = (self.root / path).read_text()
        return self.sources[path]

    def reached(self, paths: Sequence[str]) -> dict[str, set[int]]:
        """Run the battery without a mistake; return which lines of these files it executes, imports included.
        Raises what the battery raises."""
        wanted = {str(self.root / path): path for path in paths}
        lines: dict[str, set[int]] = {path: set() for path in paths}

        def trace(frame: FrameType, event: str, argument: object) -> Callable[..., Any] | None:
            path = wanted.get(frame.f_code.co_filename)
            if path is None:
                return None
            found = lines[path]
            found.add(frame.f_lineno)

            def local(inner: FrameType, event: str, argument: object) -> Any:
                found.add(inner.f_lineno)
                return local

            return local

        folder = _made(self.scratch / 'reached')
        sys.settrace(trace)
        try:
            self._play(self.battery, folder)
        finally:
            sys.settrace(None)
            shutil.rmtree(folder)
        for path in paths:
            lines[path] |= _import_lines(self.source(path), path)
        return lines

    def ready(self) -> None:
        """Call once before the first `run`: what is in memory now is left alone by the children's
        collector of garbage, and functions are found by their code."""
        gc.collect()
        for one in gc.get_objects():
            if type(one) is FunctionType and one.__code__.co_filename.startswith(str(self.root)):
                self._holders.setdefault(one.__code__, []).append(one)
        gc.freeze()

    def _play(self, battery: Any, folder: Path) -> None:
        run = battery.begin(self.template, folder)
        try:
            with battery.small():
                try:
                    run.run()
                except BaseException as error:
                    if not isinstance(error, TooLong):
                        run.aftermath()
                    raise
        finally:
            (folder / 'promise').write_bytes(pickle.dumps((run.promise.heads, run.promise.views)))

    def run(self, mutant: Mutant) -> dict[str, Any]:
        """Run one mutant; return its result, with `outcome` and `why`."""
        folder = _made(self.scratch / f'run-{os.getpid()}')
        try:
            began = time.monotonic()
            child = os.fork()
            if not child:
                self._child(mutant, folder)
            killed = _wait(child)
            result: dict[str, Any] = {
                'outcome': KILLED,
                'kind': 'stopped',
                'why': 'it was killed' if killed else 'it died',
            }
            if (folder / 'result').exists():
                result = json.loads((folder / 'result').read_text())
            found = self._losses(folder)
            if found:
                result = {**result, 'outcome': LOST, 'lost': found[:5]}
            result['seconds'] = round(time.monotonic() - began, 2)
            return {'name': mutant.name, 'operators': mutant.operators, **result}
        finally:
            shutil.rmtree(folder)

    def _losses(self, folder: Path) -> list[str]:
        promise = self.detector.Promise()
        if (folder / 'promise').exists():
            promise.heads, promise.views = pickle.loads((folder / 'promise').read_bytes())
        if not (folder / 'store').exists():
            return []
        try:
            found: list[str] = self.detector.losses(folder / 'store', promise, folder / 'seen')
        except Exception as error:
            return [f'the detector cannot read the store: {error!r}']
        return found

    def _child(self, mutant: Mutant, folder: Path) -> None:
        """Play the battery with the mistake; write the result; never return."""
        try:
            _limit()
            try:
                battery = self._install(mutant)
                self._play(battery, folder)
                result = {'outcome': SURVIVED, 'kind': '', 'why': ''}
            except BaseException as error:
                result = {'outcome': KILLED, **_why(error)}
            signal.setitimer(signal.ITIMER_PROF, 0)
            (folder / 'result').write_text(json.dumps(result))
        finally:
            os._exit(0)

    def _install(self, mutant: Mutant) -> Any:
        """Put the mistake into this process; return the battery to play."""
        original = compile(self.source(mutant.path), str(self.root / mutant.path), 'exec', dont_inherit=True)
        text = mutant.apply(self.source(mutant.path))
        mutated = compile(text, str(self.root / mutant.path), 'exec', dont_inherit=True)
        changed = list(_changed(original, mutated, ()))
        if changed and all(names for names, _, _ in changed) and self._exchange(changed):
            return self.battery
        return _import_again(mutant.path, mutated)

    def _exchange(self, changed: Sequence[tuple[tuple[str, ...], CodeType, CodeType]]) -> bool:
        """Give every function object made from these its new code; False, nothing done, when there is
        none."""
        for _, old, new in changed:
            found = self._holders.get(old, ())
            if not found or any(len(one.__code__.co_freevars) != len(new.co_freevars) for one in found):
                return False
        for _, old, new in changed:
            for function in self._holders[old]:
                function.__code__ = new
        return True


def _made(path: Path) -> Path:
    if path.exists():
        shutil.rmtree(path)
    path.mkdir(parents=True)
    return path


def _limit() -> None:
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_MAX, MEMORY_MAX))
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_MAX, FILE_MAX))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    def stop(number: int, frame: FrameType | None) -> None:
        raise TooLong

    signal.signal(signal.SIGPROF, stop)
    # Again and again: what is raised may be caught, or land where it is ignored.
    signal.setitimer(signal.ITIMER_PROF, SECONDS_MAX, 1.0)


def _wait(child: int) -> bool:
    """Wait for a process; end it when it takes too long, and return whether it had to be killed.

    Time is that of the processor: on a busy machine a process that only waits for its turn is not ended."""
    pause, asleep_since, before = 0.001, time.monotonic(), -1.0
    while True:
        done, _ = os.waitpid(child, os.WNOHANG)
        if done:
            return False
        state, used = _progress(child)
        if state != 'S' or used != before:
            asleep_since, before = time.monotonic(), used
        idle = time.monotonic() - asleep_since
        if used > KILL_SECONDS or idle > 2 * IDLE_SECONDS:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return True
        if idle > IDLE_SECONDS:
            os.kill(child, signal.SIGPROF)
            asleep_since -= IDLE_SECONDS / 4  # it has until then to write down what was promised
        time.sleep(pause)
        pause = min(pause * 1.5, 0.05)


def _progress(process: int) -> tuple[str, float]:
    """Return the state of a process and the seconds of processor time it has used."""
    fields = Path(f'/proc/{process}/stat').read_text().rpartition(')')[2].split()
    return fields[0], (int(fields[11]) + int(fields[12])) / os.sysconf('SC_CLK_TCK')


def _why(error: BaseException) -> dict[str, str]:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    kind = type(error).__name__
    frames = traceback.extract_tb(error.__traceback__)
    place = f'{Path(frames[-1].filename).name}:{frames[-1].lineno}' if frames else ''
    text = f'{kind}: {error}'[:300]
    if kind == 'Unexpected':
        name = 'alarm' if 'alarm' in str(error) else 'lost' if 'LOST' in str(error) else 'expectation'
    elif kind in ('Alarm', 'Latched'):
        name = 'alarm'
    elif kind == 'TooLong':
        name = 'stopped'
    else:
        name = 'guard' if kind in ('AssertionError', 'Corrupt', 'Held') else 'error'
    return {'kind': name, 'why': text, 'where': place}


# --- putting a mistake in ----------------------------------------------------------------------------------
def _functions(code: CodeType) -> Iterator[CodeType]:
    return (one for one in code.co_consts if isinstance(one, CodeType))


def _changed(
    old: CodeType, new: CodeType, names: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], CodeType, CodeType]]:
    """Yield (names, old, new) of the outermost functions whose code differs; no names for what is outside."""
    before, after = list(_functions(old)), list(_functions(new))
    if [one.co_name for one in before] != [one.co_name for one in after]:
        yield (), old, new
        return
    if _shell(old) != _shell(new):
        yield (), old, new
    for one, other in zip(before, after, strict=True):
        if one == other:
            continue
        if one.co_flags & 0x1:  # optimised: a function, not a class body
            yield (*names, one.co_name), one, other
        else:
            yield from _changed(one, other, (*names, one.co_name))


def _shell(code: CodeType) -> tuple[object, ...]:
    """What a module or class body does itself, functions made there left out."""
    values = [one if not isinstance(one, CodeType) else one.co_name for one in code.co_consts]
    return code.co_code, repr(values), code.co_names, code.co_varnames


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def __init__(self, name: str, code: CodeType) -> None:
        self.name, self.code = name, code

    def find_spec(self, fullname: str, path: object, target: object = None) -> ModuleSpec | None:
        return importlib.util.spec_from_loader(fullname, self) if fullname == self.name else None

    def exec_module(self, module: ModuleType) -> None:
        module.__file__ = self.code.co_filename
        exec(self.code, module.__dict__)


def _import_again(path: str, code: CodeType) -> Any:
    sys.meta_path.insert(0, _Finder(path.removesuffix('.py').replace('/', '.'), code))
    for name in [one for one in sys.modules if one.startswith(AGAIN)]:
        del sys.modules[name]
    return importlib.import_module(BATTERY)


def _import_lines(source: str, path: str) -> set[int]:
    """Return the lines that importing a module executes."""
    lines: set[int] = set()
    todo = [compile(source, path, 'exec', dont_inherit=True)]
    while todo:
        code = todo.pop()
        lines |= {line for _, _, line in code.co_lines() if line}
        todo += [one for one in _functions(code) if not one.co_flags & 0x1]
    return lines
