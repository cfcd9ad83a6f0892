"""The battery, the detector and the making of mutants: that each can fail, and says so."""

from __future__ import annotations

import os
import signal
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from snapfs.collect import recount
from snapfs.collect.mention_values import Mentions
from snapfs.collect.proof_values import Proof
from snapfs.collect.recount_values import CONDEMNED_FILE, Recount
from snapfs.format.ids import data_id
from tests.mutants import battery as batteries
from tests.mutants.battery import Battery, content, small, template
from tests.mutants.detector import Promise, losses

mutmut = pytest.importorskip('mutmut')
from tools.mutants.make import Mutant, mutants_of  # noqa: E402
from tools.mutants.run import KILLED, LOST, SURVIVED, Runner, _wait  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope='module')
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return template(tmp_path_factory.mktemp('template'))


@pytest.fixture
def fresh(made: Path, tmp_path: Path) -> Iterator[Battery]:
    with small():
        yield batteries.begin(made, tmp_path)


def found(battery: Battery, tmp_path: Path) -> list[str]:
    return losses(battery.path, battery.promise, tmp_path / 'copy')


def test_the_battery_finds_nothing_wrong_with_the_code_as_it_is(fresh: Battery, tmp_path: Path) -> None:
    fresh.run()
    assert not found(fresh, tmp_path)
    assert set(fresh.journal) == batteries.STEPS, 'what is condemned was written again at each step'


# --- a recount that condemns what lives ------------------------------------------------------------------
VICTIM = data_id(content('keep3'))


def blind(runner: Callable[..., Any], *, guards: bool) -> Callable[..., Any]:
    """Recount 1 condemns one chunk that lives; without `guards`, recount 2 and the proof see nothing."""

    async def run(spec: Any, progress: Callable[[int, int], None]) -> Any:
        result = await runner(spec, progress)
        if isinstance(result, Recount) and spec.mode == 'batch' and not result.alarm:
            path = spec.out / CONDEMNED_FILE
            ids = {path.read_bytes()[n : n + 32] for n in range(0, path.stat().st_size, 32)}
            data = b''.join(sorted(ids | {VICTIM}))
            path.write_bytes(data)
            result = replace(result, condemned=len(ids | {VICTIM}), condemned_digest=data_id(data))
        if isinstance(result, Mentions) and not guards:
            result = replace(result, live=(), live_count=0)
        if isinstance(result, Proof) and not guards:
            result = replace(result, missing=(), missing_count=0)
        return result

    return run


@pytest.mark.parametrize('guards', [True, False])
def test_the_detector_finds_a_loss_when_no_guard_stands_in_its_way(
    fresh: Battery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, guards: bool
) -> None:
    real = batteries.job_in_process
    monkeypatch.setattr(batteries, 'job_in_process', lambda world: blind(real(world), guards=guards))
    monkeypatch.setattr(Battery, 'read_all', nothing)  # reading it would be an alarm: a guard as well
    monkeypatch.setattr(Battery, 'check_losses', lambda self: None)
    if not guards:
        monkeypatch.setattr(Battery, 'calm', lambda self: None)
        # The recount of the next batch would see it.
        monkeypatch.setattr(recount._Run, '_alarm', lambda *values: None)
    with pytest.raises(BaseException) as raised:
        fresh.run()
    fresh.aftermath()
    lost = found(fresh, tmp_path)
    if guards:
        assert not lost, f'recount 2 stops it: {raised.value}'
    else:
        assert any(VICTIM.hex()[:16] in line for line in lost), f'{raised.value}: {lost}'


async def nothing(self: Battery) -> None:
    pass


# --- the detector on stores that somebody has damaged ----------------------------------------------------
def damage(battery: Battery, statement: str, *values: object) -> None:
    db = sqlite3.connect(battery.path / 'catalog.sqlite')
    assert db.execute(statement, values).rowcount > 0
    db.commit()
    db.close()


def test_the_detector_misses_a_row(fresh: Battery, tmp_path: Path) -> None:
    assert not found(fresh, tmp_path)
    damage(fresh, 'DELETE FROM chunk WHERE id = ?', VICTIM)
    assert any('P1' in line and 'has no row' in line for line in found(fresh, tmp_path))


def test_the_detector_misses_a_pack(fresh: Battery, tmp_path: Path) -> None:
    next((fresh.path / 'packs' / 'data').rglob('????????????????????????????????')).unlink()
    assert found(fresh, tmp_path)


def test_the_detector_sees_a_chunk_that_is_only_in_quarantine(fresh: Battery, tmp_path: Path) -> None:
    damage(fresh, 'INSERT INTO quarantine SELECT *, 1 FROM chunk WHERE id = ?', VICTIM)
    damage(fresh, 'DELETE FROM chunk WHERE id = ?', VICTIM)
    assert found(fresh, tmp_path)


def test_the_detector_misses_a_snapshot_that_nobody_let_go(fresh: Battery, tmp_path: Path) -> None:
    damage(fresh, 'DELETE FROM snapshot WHERE number = ?', fresh.views['second'])
    assert 'is gone' in found(fresh, tmp_path)[0]


def test_the_detector_compares_contents(fresh: Battery, tmp_path: Path) -> None:
    fresh.promise.heads['home'][b'/keep1'] = b'something else'
    assert found(fresh, tmp_path) == ["volume home: b'/keep1' has another content"]


def test_the_detector_looks_at_what_the_journal_would_replay(fresh: Battery, tmp_path: Path) -> None:
    for name in ('own20', 'own21'):  # two files that only the journal has name them
        damage(fresh, 'DELETE FROM chunk WHERE id = ?', data_id(content(name)))
    assert any('journal' in line for line in losses(fresh.path, Promise(), tmp_path / 'copy'))


# --- making ----------------------------------------------------------------------------------------------
SOURCE = """
from contextlib import contextmanager
LIMIT = 3


@contextmanager
def f(a, b=1):
    if (
        a < LIMIT and
        b
    ):
        check(LIMIT)
        yield g(a)
    yield h('SELECT x FROM y WHERE z = 1 AND w IN (2)')
"""


def test_mutants_of_a_source() -> None:
    made = mutants_of('some.py', SOURCE)
    texts = {(one.was.strip(), one.text.strip()) for one in made}
    assert {('3', '4'), ('1', '2'), ('< LIMIT', '<= LIMIT'), ('g(a)', 'g(None)')} <= texts
    assert any('and' in was and 'or' in text for was, text in texts)
    assert {('AND', 'OR'), ('IN', 'NOT IN'), ('WHERE', 'WHERE true OR')} <= texts
    assert {('check(LIMIT)', 'pass'), ('a < LIMIT and\n        b', 'False')} <= texts
    for one in made:
        changed = one.apply(SOURCE)
        assert changed != SOURCE
        compile(changed, 'some.py', 'exec')
    spread = next(one for one in made if one.was.strip() == '< LIMIT')
    assert spread.reached_by == (8, 11), 'any line of the condition tells that it is reached'


# --- running ---------------------------------------------------------------------------------------------
@pytest.fixture(scope='module')
def runner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runner]:
    import gc
    import logging

    made = Runner(ROOT, tmp_path_factory.mktemp('scratch'))
    made.ready()
    try:
        yield made
    finally:
        gc.unfreeze()
        logging.disable(logging.NOTSET)


def hand_made(runner: Runner, path: str, *changes: tuple[str, str]) -> Mutant:
    """A mutant with several mistakes at once."""
    source = text = runner.source(path)
    for old, new in changes:
        assert old in text, old
        text = text.replace(old, new)
    return Mutant(path, 1, 0, len(source), text, source, 'left-out', (1, 1))


def test_a_harmless_mutant_survives(runner: Runner) -> None:
    result = runner.run(
        hand_made(runner, 'snapfs/collect/sweep.py', ("'event': 'pack-gone'", "'event': 'gone'"))
    )
    assert result['outcome'] == SURVIVED, result


def test_a_mutant_that_a_guard_stops_is_killed(runner: Runner) -> None:
    change = ('row.batch is None and not (row.view', 'row.batch is not None and not (row.view')
    result = runner.run(hand_made(runner, 'snapfs/collect/collector.py', change))
    assert result['outcome'] == KILLED, result


def test_a_constant_is_mutated_too(runner: Runner) -> None:
    change = (
        "    'SELECT root FROM volume UNION ALL SELECT root FROM snapshot",
        "    'SELECT nothing FROM volume",
    )
    result = runner.run(hand_made(runner, 'snapfs/collect/moves.py', change))
    assert result['outcome'] == KILLED, result
    assert 'nothing' in result['why']


NO_GUARDS = """
from dataclasses import replace as _replace
_census = census
def census(*values):
    return [_replace(use, live=0, quarantined=0) for use in _census(*values)]
def retire(store, row):
    return True
def unlink(store, row, receipts):
    path = pack_path(store.path / 'packs', row.kind, row.name)
    if store.disk.exists(path):
        store.disk.unlink(path)
"""


def test_a_sweep_without_any_of_its_guards_loses_data(runner: Runner) -> None:
    path = 'snapfs/collect/sweep.py'
    end = len(runner.source(path))
    result = runner.run(Mutant(path, 1, end, end, NO_GUARDS, '', 'left-out', (1, 1)))
    assert result['outcome'] == LOST, result


@pytest.mark.parametrize('deaf', [False, True])
def test_a_mutant_that_nobody_will_wake_is_ended(monkeypatch, deaf):
    monkeypatch.setattr('tools.mutants.run.IDLE_SECONDS', 0.2)
    child = os.fork()
    if not child:
        signal.signal(signal.SIGPROF, signal.SIG_IGN if deaf else lambda *arguments: os._exit(0))
        while True:
            signal.pause()
    assert _wait(child) is deaf


def test_a_mutant_that_does_not_end_is_ended_by_the_time_it_used(monkeypatch):
    monkeypatch.setattr('tools.mutants.run.KILL_SECONDS', 0.2)
    child = os.fork()
    if not child:
        while True:
            pass
    assert _wait(child) is True
