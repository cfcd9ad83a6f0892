"""Worker processes that end as they should not: an error of the job, never a bug of the collector."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from snapfs.collect.proof_values import ProofSpec
from snapfs.errors import Corrupt, SnapfsError, Unavailable
from snapfs.service import workers

SPEC = ProofSpec(Path('/nowhere'), bytes(16))


async def run(monkeypatch: pytest.MonkeyPatch, program: str, spec: ProofSpec = SPEC) -> BaseException:
    monkeypatch.setattr(workers, 'command', lambda: [sys.executable, '-c', program])
    with pytest.raises(BaseException) as caught:
        await workers.run_in_process(spec, lambda done, known: None)
    return caught.value


async def test_a_worker_that_is_killed_in_the_middle_of_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    error = await run(monkeypatch, 'import sys; sys.stdin.read(); print(\'{"don\', end="")')
    assert isinstance(error, Corrupt)


async def test_a_worker_that_says_what_no_worker_says(monkeypatch: pytest.MonkeyPatch) -> None:
    error = await run(monkeypatch, 'import sys; sys.stdin.read(); print("hello")')
    assert isinstance(error, Corrupt)


async def test_a_worker_that_dies_before_it_has_heard_its_job(monkeypatch: pytest.MonkeyPatch) -> None:
    """More than a pipe holds, so that the job cannot be told: as when memory runs out at the start."""
    long = ProofSpec(Path('/' + 'n' * 1_000_000), bytes(16))
    error = await run(monkeypatch, 'import os; os._exit(9)', long)
    assert isinstance(error, Unavailable)


async def test_a_worker_that_cannot_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, 'command', lambda: ['/nowhere/python'])
    with pytest.raises(SnapfsError) as caught:
        await workers.run_in_process(SPEC, lambda done, known: None)
    assert isinstance(caught.value, Unavailable)
