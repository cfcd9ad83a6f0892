"""The search of the protocol in small: no loss with all rules, and each rule taken away is found or caught.

`make model` runs the same with more states. Steps to a finding are exact: breadth first has one answer.
"""

from __future__ import annotations

import pytest

from tests.model.cases import ACCIDENT, CASES, CONFIGS, DATA, TINY, Case
from tests.model.collector import COLLECTOR
from tests.model.packs import PACKING
from tests.model.report import as_expected, job_of, run
from tests.model.rules import Config, Rules
from tests.model.search import LATCHED, LEAK, LOSS, WRONG, Search
from tests.model.writer import WRITER

EVERYTHING = LOSS | WRONG | LATCHED | LEAK
STATES = 40_000
STATES_SAFE = 25_000


@pytest.mark.parametrize('config', CONFIGS, ids=lambda config: config.name)
def test_with_all_rules_nothing_is_lost_leaked_or_falsely_flagged(config: Config) -> None:
    """P1, P3, P9; and no alarm without a fault."""
    result = Search(config).run(STATES, EVERYTHING)
    assert result.first == {}
    assert result.complete or result.depth >= 9


@pytest.mark.parametrize('case', CASES, ids=lambda case: f'{case.config.name}: {case.title}')
def test_a_rule_taken_away_is_missed(case: Case) -> None:
    """The model can fail: without the rule the finding comes, or the guard behind it takes its place."""
    result = run(job_of(case, STATES_SAFE))
    assert as_expected(case, result), f'{case}: {result.first}'


def test_every_rule_is_taken_away_somewhere() -> None:
    removed = {name for case in CASES for name in case.removed}
    assert removed == set(Rules.__dataclass_fields__)


def test_every_step_of_the_table_happens() -> None:
    """A step whose guard never holds would make the search say nothing about it."""
    fired: set[str] = set()
    for config in (*CONFIGS, ACCIDENT[0].changed()):
        search = Search(config)
        search.run(12_000, LOSS)
        for state in search.seen:
            fired.update(name for name, _ in search.successors(state))
    assert fired == {step.name for step in WRITER + COLLECTOR + PACKING}


def test_nothing_condemned_lives_for_ever() -> None:
    """P9 on a whole graph: left alone, from every state, the batch can end and the garbage can go."""
    search = Search(TINY)
    assert search.run(200_000, EVERYTHING).complete
    assert search.dead_ends() == []


@pytest.mark.parametrize('step', ['rows to freed', 'receipt', 'recount 2', 'batch begins'])
def test_a_missing_step_leaves_dead_ends(step: str) -> None:
    search = Search(TINY, without=step)
    assert search.run(200_000, EVERYTHING).complete
    assert search.dead_ends()


def test_a_trace_is_a_path_of_the_table() -> None:
    """What is printed as the shortest way to a loss names steps, one line each, and ends in the loss."""
    case = next(case for case in CASES if case.removed == ('receipt_before_free',))
    trace = run(job_of(case, STATES_SAFE)).first['loss']
    names = {step.name for step in WRITER + COLLECTOR}
    assert all(line.split(': ')[0] in names or line.split(': ')[0] == 'put' for line in trace[1:])
    assert trace[-1] == 'unlink: A1=gone'


def test_a_search_stops_at_its_limit() -> None:
    result = Search(DATA).run(1_000)
    assert not result.complete
    assert 1_000 <= result.states < 1_100
