"""Every target of tools/fuzz without atheris: the kept corpus, and mutations that a seed decides.

A reader takes the bytes or raises the error that it documents, in little memory; what it takes, it gives back
alike. `make fuzz` is the search that is guided by coverage; what it found worth keeping is in corpus/."""

from __future__ import annotations

import os
import tracemalloc
from random import Random

import pytest

from snapfs.errors import Corrupt
from tools.fuzz import __main__ as command
from tools.fuzz.corpus import KEPT, kept
from tools.fuzz.target import Target, answers, mutated
from tools.fuzz.targets import TARGETS

SEEDS = int(os.environ.get('SNAPFS_SEEDS', '20'))
MUTATIONS = 10  # for each seed and target
MEMORY_MAX, MEMORY_FACTOR = 2 << 20, 64  # whatever the input, and for each byte of it
KEPT_BYTES_MAX = 200 << 10
EVERY = pytest.mark.parametrize('name', list(TARGETS))
NOTHING_WHOLE = ('answer', 'worker', 'payload')  # some of their seeds are answered with an error


def measured(target: Target, data: bytes, what: str) -> bool:
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    try:
        taken = answers(target, data)
    except Exception as error:
        error.add_note(f'{what}: {data[:2000].hex()}')
        raise
    most = tracemalloc.get_traced_memory()[1] - before
    assert most < MEMORY_MAX + MEMORY_FACTOR * len(data), f'{what}: {most} bytes for {len(data)}'
    return taken


@pytest.fixture(autouse=True)
def traced() -> object:
    tracemalloc.start()
    yield
    tracemalloc.stop()


@EVERY
def test_what_is_whole_is_taken_and_resealing_keeps_it(name: str) -> None:
    target = TARGETS[name]
    for data in target.seeds():
        assert measured(target, data, name) or name in NOTHING_WHOLE, data
        assert measured(target, target.seal(data), name) or name in NOTHING_WHOLE, data


@EVERY
def test_the_kept_corpus_is_answered(name: str) -> None:
    target = TARGETS[name]
    for number, data in enumerate(kept(name)):
        measured(target, data, f'{name}, line {number + 1} of its corpus')


@EVERY
def test_mutations_are_answered(name: str) -> None:
    target = TARGETS[name]
    whole = [*target.seeds(), *kept(name)]
    taken = 0
    for seed in range(SEEDS * MUTATIONS):
        chance = Random(f'{name} {seed}')
        data = chance.choice(target.seeds() if chance.randrange(4) else whole)
        for _ in range(chance.randrange(1, 3)):
            data = mutated(target, data, chance)
        taken += measured(target, data, f'{name}, seed {seed}')
    assert taken > 0 or SEEDS < 20, f'{name}: no mutation gets past the checks'


def test_every_corpus_has_its_target_and_all_are_small() -> None:
    files = sorted(KEPT.iterdir())
    assert {path.stem for path in files} <= TARGETS.keys()
    assert sum(path.stat().st_size for path in files) < KEPT_BYTES_MAX


def test_another_exception_is_a_defect() -> None:
    def read(data: bytes) -> None:
        raise KeyError if data == b'key' else Corrupt('no')

    target = Target('one', read, list)
    assert not answers(target, b'')
    with pytest.raises(KeyError):
        answers(target, b'key')


def test_without_atheris_the_command_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    assert command.main(['key', '--seconds', '1']) == 2
    assert capsys.readouterr().err.count('\n') == 1


def test_an_unknown_target_is_a_wrong_call(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(['nothing']) == 2
    assert 'superblock' in capsys.readouterr().err
