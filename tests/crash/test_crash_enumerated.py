"""Every workload of a few operations: all of one, a sample of two and three; and the search can fail."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from snapfs.store.chunks import ChunkStore
from snapfs.store.durable import Disk
from snapfs.store.journal import Journal
from snapfs.volume.files import Files
from snapfs.volume.head import Head
from tests.crash.alphabet import OPERATIONS, Word, words
from tests.crash.enumerate import Enumeration, Outcome, chosen, main, parser, replay, small
from tests.crash.test_crash_workloads import SEEDS

SAMPLE = 2  # words of two and of three operations for each seed


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """What is done to a store on purpose is nothing to tell."""
    logging.disable()
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture(scope='module')
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp('words')


def run_all(scratch: Path, seed: int, some: list[Word]) -> list[Outcome]:
    with small(scratch):
        enumeration = Enumeration(scratch / f'seed-{seed}', seed)
        return [enumeration.run(word) for word in some]


def check(outcomes: list[Outcome]) -> None:
    for one in outcomes:
        assert one.failure is None, f'{one.failure}\n  {replay(one)}'


@pytest.mark.slow
def test_all_words_of_one_operation(scratch: Path) -> None:
    outcomes = run_all(scratch, 0, list(words(1)))
    check(outcomes)
    assert len(outcomes) > 40
    assert all(one.applied for one in outcomes), [one.word for one in outcomes if not one.applied]
    assert all(one.images + one.repeated >= 2 for one in outcomes if one.word != ('reopen',))


@pytest.mark.slow
@pytest.mark.parametrize('length', [2, 3])
@pytest.mark.parametrize('seed', range(SEEDS))
def test_some_words_of_more_operations(scratch: Path, length: int, seed: int) -> None:
    arguments = parser().parse_args(['--length', f'{length}', '--sample', f'{SAMPLE}', '--seed', f'{seed}'])
    check(run_all(scratch / f'{length}', seed, chosen(arguments)))


def test_the_list_is_canonical() -> None:
    for length in (1, 2):
        every = list(words(length))
        assert len(set(every)) == len(every)
    assert ('unlink A', 'append A') not in every, 'A has no name any more'
    assert ('create', 'sync') in every
    assert ('sync', 'create') not in every, 'there is nothing to sync yet'
    assert ('hold', 'delete snapshot') not in every, 'it is held'
    assert ('rename A to B', 'overwrite B') not in every, 'B is gone'
    assert {name for word in words(3) for name in word} == set(OPERATIONS)


def test_parts_are_the_whole() -> None:
    parts = [chosen(parser().parse_args(['--length', '2', '--shard', f'{n}/7'])) for n in range(1, 8)]
    assert sorted(word for part in parts for word in part) == sorted(words(2))


@pytest.mark.slow
def test_a_run_goes_on_where_it_was_interrupted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / 'out'
    asked = ['--length', '2', '--shard', '1/41', '--out', str(out), '--seed', '3']
    every = chosen(parser().parse_args(asked))
    line = {
        'word': every[0],
        'seed': 3,
        'cuts': 5,
        'images': 7,
        'repeated': 1,
        'applied': True,
        'failure': None,
    }
    out.write_text(json.dumps(line) + '\n' + '{"word": ["cre')
    assert main([*asked, '--words', '2']) == 0
    found = [json.loads(text) for text in out.read_text().splitlines()]
    assert [tuple(one['word']) for one in found] == every[:3]
    assert f'3 of {len(every)} words' in capsys.readouterr().out


def _nothing(*arguments: Any, **more: Any) -> None:
    return None


def _without(one: Any, name: str) -> Callable[[pytest.MonkeyPatch], None]:
    return lambda patch: patch.setattr(one, name, _nothing)


def _utimes_unmarked(patch: pytest.MonkeyPatch) -> None:
    real = Files.set_attributes

    async def broken(self: Files, inode: Any, **values: Any) -> None:
        changed, mark = inode.changed, self.mark
        self.mark = _nothing  # type: ignore[method-assign]
        await real(self, inode, **values)
        self.mark = mark  # type: ignore[method-assign]
        inode.changed = changed

    patch.setattr(Files, 'set_attributes', broken)


async def _no_orphans(self: Head) -> None:
    return None


BROKEN: dict[str, tuple[Word, Callable[[pytest.MonkeyPatch], None]]] = {
    'the journal is not synced': (('create', 'sync'), _without(Journal, 'sync')),
    'packs are not synced': (('overwrite A', 'commit'), _without(ChunkStore, 'sync')),
    'names are not synced': (('overwrite A', 'commit'), _without(Disk, 'sync_directory')),
    'times are not kept': (('utimes A', 'sync'), _utimes_unmarked),
    'what has no name is not removed': (
        ('write to unlinked A', 'commit'),
        lambda patch: patch.setattr(Head, 'remove_orphans', _no_orphans),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize('what', BROKEN)
def test_a_rule_that_is_broken_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    word, break_it = BROKEN[what]
    with small(tmp_path):
        enumeration = Enumeration(tmp_path / 'words', 0)
        check([enumeration.run(word)])
        enumeration.forget()
        break_it(monkeypatch)
        assert enumeration.run(word).failure is not None
