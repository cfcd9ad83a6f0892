"""Pairs of states and commands: a seeded sample of what `python -m tests.states` tries in full."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.states.cells import Setting, all_names, walk
from tests.states.commands import COMMANDS
from tests.states.making import STATES

PAIRS, WRITING = 8, 4
# What was found by the whole of it, or had been found by chance.
FOUND = [
    (('stopped', 'known loss'), ('open', 'snapshot list', 'recover --dry-run')),
    (('cut', 'rotten volume top'), ('open', 'snapshot list')),
    (('read-only', 'known loss'), ('why', 'open')),
    (('read-only', 'meta pack gone'), ('export', 'export o', 'verify')),
    (('full', 'known loss'), ('open', 'recover', 'snapshot create')),
    (('volume top gone', 'backups gone'), ('collect',)),
    (('full', 'audit gone'), ('open', 'snapshot list', 'status')),
    (('full', 'audit damaged'), ('open', 'status')),
]


@pytest.fixture(scope='module')
def setting(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    return Setting(tmp_path_factory.mktemp('states'))


@pytest.mark.parametrize(('names', 'commands'), FOUND)
def test_pairs_that_were_wrong_once(setting, names, commands):
    for _, command, told, wrong in walk(setting, [names], lambda _, one: one.name in commands):
        assert not wrong, (names, command, wrong, told.err)


@pytest.mark.parametrize('seed', range(2))
def test_a_sample_of_pairs(setting, seed):
    chance = random.Random(seed)
    looks = [one.name for one in COMMANDS.values() if one.looks or one.still]
    others = [one.name for one in COMMANDS.values() if one.name not in looks]
    groups = chance.sample(all_names(2), PAIRS)
    wanted = {names: {*chance.sample(looks, 6), *chance.sample(others, WRITING)} for names in groups}
    for names, command, told, wrong in walk(setting, groups, lambda names, one: one.name in wanted[names]):
        assert not wrong, (seed, names, command, wrong, told.err)


def test_every_state_and_command_has_a_cell():
    """What is not named in any pair is not looked at."""
    names = {one for pair in all_names(2) for one in pair}
    assert names == set(STATES) and len(COMMANDS) > 30


def test_it_notices_what_it_has_to(setting, monkeypatch):
    """The harness itself: a command that loses a record of a live chunk, and one that dies."""
    from tests.states import cells

    def lose(command, store, new, patches):
        if command.name == 'audit':
            raise_ = cells.Told(-1, '', '', 'a traceback')
            return raise_
        for path in Path(store).glob('packs/data/*/*'):
            path.unlink()
        return cells.Told(12, '', 'snapfs: no\n')

    monkeypatch.setattr(cells, 'run', lose)
    pairs = [('clean', 'strays')]
    found = {
        name: wrong
        for _, name, _, wrong in walk(setting, pairs, lambda _, one: one.name in ('audit', 'status'))
    }
    assert any('a bug' in text for text in found['audit'])
    assert any('chunks are gone' in text for text in found['status'])
    assert any('no next step' in text for text in found['status'])
