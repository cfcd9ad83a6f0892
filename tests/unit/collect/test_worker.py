"""Jobs in a process of their own: what goes in, what comes out, and every way in which it can fail."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from snapfs import errors
from snapfs.collect import worker
from snapfs.collect.recount import recount
from snapfs.collect.recount_values import Recount, RecountSpec
from snapfs.collect.worker import Lines, command, encode_job, from_json, run_job, to_json
from snapfs.errors import Corrupt, Invalid, Refused, Unavailable
from tests.sim.world import SimWorld
from tests.unit.collect.kit import random_kit, small_limits

pytestmark = pytest.mark.slow


@pytest.fixture
def kit(tmp_path, monkeypatch):
    small_limits(monkeypatch)
    kit = random_kit(tmp_path / 'store', 4)
    yield kit
    kit.store.close(clean=False)


def numbers(kit):
    return [row.number for row in kit.requests()]


def run_process(data: bytes) -> tuple[int, list[bytes], bytes]:
    environment = {**os.environ, 'PYTHONPATH': str(Path(__file__).parents[3])}
    done = subprocess.run(command(), input=data, capture_output=True, timeout=60, env=environment)
    return done.returncode, done.stdout.splitlines(), done.stderr


def outcome(code: int, output: list[bytes], progress=lambda done, known: None):
    lines = Lines('recount', progress)
    for line in output:
        lines.line(line)
    return lines.result(code)


def test_a_process_finds_what_this_one_does(kit):
    spec = kit.spec(numbers(kit))
    told = []
    code, output, noise = run_process(encode_job('recount', spec))
    assert noise == b''
    result = outcome(code, output, lambda done, known: told.append((done, known)))
    assert result == recount(spec) == run_job('recount', spec)
    assert result.condemned and told


def test_an_error_comes_out_as_what_it_is(kit):
    spec = kit.spec(numbers(kit))
    kit.sql('DELETE FROM snapshot')
    code, output, noise = run_process(encode_job('recount', spec))
    assert (code, noise) == (1, b'')
    with pytest.raises(Corrupt, match='a root is missing since the horizon: snapshot') as caught:
        outcome(code, output)
    assert caught.value.advice == Corrupt.advice


@pytest.mark.parametrize(
    'data', [b'', b'{', b'[]', b'{"job": "other", "spec": []}', b'{"job": "recount", "spec": [1]}']
)
def test_nonsense_on_standard_input_is_no_result(data):
    code, output, _ = run_process(data)
    assert code != 0
    with pytest.raises((AssertionError, Corrupt)):
        outcome(code, output)


def test_spec_and_result_survive_the_way(kit):
    spec = kit.spec(numbers(kit))
    wire = json.loads(json.dumps(to_json(spec)))
    assert from_json(RecountSpec, wire) == spec
    result = recount(spec)
    assert from_json(Recount, json.loads(json.dumps(to_json(result)))) == result


@dataclass(frozen=True, slots=True)
class Value:
    number: int
    pair: tuple[str, int]
    many: tuple[bytes, ...]
    maybe: bytes | None


@pytest.mark.parametrize(
    'wire',
    [
        [1, ['a', 2], ['00'], None, 5],
        [1, ['a', 2], ['00']],
        ['1', ['a', 2], ['00'], None],
        [True, ['a', 2], ['00'], None],
        [1, ['a'], ['00'], None],
        [1, ['a', 2], ['0'], None],
        [1, ['a', 2], [7], None],
        [1, 5, ['00'], None],
        [1, ['a', 2], ['00'], 3],
        None,
    ],
)
def test_what_is_not_of_its_type_is_corrupt(wire):
    good = [1, ['a', 2], ['00'], None]
    assert from_json(Value, good) == Value(1, ('a', 2), (b'\0',), None)
    with pytest.raises(Corrupt):
        from_json(Value, wire)


def test_a_process_that_just_ends_has_failed(kit):
    code, output, _ = run_process(encode_job('recount', kit.spec(numbers(kit))))
    assert code == 0
    with pytest.raises(Unavailable):
        outcome(0, output[:-1])
    with pytest.raises(Unavailable):
        outcome(-9, output)  # a result, and then it was killed
    with pytest.raises(Corrupt):
        outcome(0, [*output, output[-1]])
    with pytest.raises(Corrupt):
        outcome(0, [b'Traceback'])


def test_errors_of_all_kinds():
    for kind in (Corrupt, Invalid, Unavailable):
        found = worker.decode_error({'error': 'text', 'kind': kind.__name__, 'advice': 'do', 'errno': 5})
        assert type(found) is kind and found.line() == 'text. do'
    refused = worker.decode_error({'error': 'full', 'kind': 'Refused', 'advice': '', 'errno': 28})
    assert isinstance(refused, Refused) and refused.errno == 28
    for kind in ('KeyError', 'os', 'SnapfsErrors', None):
        with pytest.raises(AssertionError):
            worker.decode_error({'error': 'text', 'kind': kind})
    assert issubclass(errors.Corrupt, errors.SnapfsError)


class SleepyWorld(SimWorld):
    """The machine is suspended for some seconds between the first and the second look at the clock."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds, self.looks = seconds, 0

    def boottime(self) -> float:
        self.looks += 1
        return self.monotonic() + (self.seconds if self.looks > 1 else 0.0)


def test_a_suspend_in_between_ends_the_run(kit):
    spec = kit.spec(numbers(kit))
    with pytest.raises(Unavailable, match='suspended for 60 s'):
        run_job('recount', spec, world=SleepyWorld(60.0))
    assert run_job('recount', spec, world=SleepyWorld(0.0)) == recount(spec)


def test_the_worker_is_idle():
    code = (
        'import os; from snapfs.collect import worker; worker._be_idle(); '
        'print(os.nice(0), os.sched_getscheduler(0) == os.SCHED_IDLE)'
    )
    environment = {**os.environ, 'PYTHONPATH': str(Path(__file__).parents[3])}
    out = subprocess.run([command()[0], '-c', code], capture_output=True, timeout=60, env=environment)
    assert out.stdout.split() == [b'19', b'True'], out.stderr


def test_the_worker_is_idle_beside_other_sessions_too():
    """An idle process had a full share beside the daemon and its users: nice counts within a session only."""
    code = (
        'import os; from snapfs.collect import worker; worker._be_idle(); '
        'group = worker.AUTOGROUP; '
        'print(os.getsid(0) == os.getpid(), group.exists() and group.read_text())'
    )
    environment = {**os.environ, 'PYTHONPATH': str(Path(__file__).parents[3])}
    out = subprocess.run(
        [command()[0], '-c', code], capture_output=True, timeout=60, env=environment, text=True
    )
    own, *group = out.stdout.split()
    assert own == 'True', out.stderr
    assert group == ['False'] or group[-2:] == ['nice', '19']  # a kernel need not have autogroups
