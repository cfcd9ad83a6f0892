"""Every workload of a few operations: all of one, a sample of two and three; and the search can fail."""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from snapfs.collect.batches import Batches
from snapfs.store.durable import Disk
from snapfs.store.journal import Journal
from snapfs.volume.administration import Administration
from snapfs.volume.engine import Engine
from snapfs.volume.files import Files
from snapfs.volume.head import Head
from tests.crash.alphabet import OPERATIONS, Word, words
from tests.crash.attributes import TickWorld
from tests.crash.enumerate import Enumeration, Outcome, chosen, main, parser, place, replay, small
from tests.crash.test_crash_workloads import SEEDS
from tests.sim.disk import SimDisk
from tests.support.fsck import damages

SAMPLE = 1  # words of two and of three operations for each seed


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """What is done to a store on purpose is nothing to tell."""
    logging.disable()
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture(autouse=True)
def small_store() -> None:
    """The sizes of these stores are those of `small`."""


@pytest.fixture(scope='module')
def enumeration() -> Iterator[Enumeration]:
    """One base store for all of these tests, in memory: it is copied thousands of times."""
    with tempfile.TemporaryDirectory(dir=place()) as scratch, small(Path(scratch)):
        yield Enumeration(Path(scratch), 0)


def run_all(enumeration: Enumeration, seed: int, some: list[Word]) -> list[Outcome]:
    enumeration.seed = seed
    return [enumeration.run(word) for word in some]


def check(outcomes: list[Outcome]) -> None:
    for one in outcomes:
        assert one.failure is None, f'{one.failure}\n  {replay(one)}'


@pytest.mark.slow
@pytest.mark.parametrize('word', list(words(1)), ids=lambda word: word[0])
def test_all_words_of_one_operation(enumeration: Enumeration, word: Word) -> None:
    (outcome,) = run_all(enumeration, 0, [word])
    check([outcome])
    assert outcome.applied
    assert outcome.images + outcome.repeated >= 2


@pytest.mark.slow
@pytest.mark.parametrize('length', [2, 3])
@pytest.mark.parametrize('seed', range(SEEDS))
def test_some_words_of_more_operations(enumeration: Enumeration, length: int, seed: int) -> None:
    arguments = parser().parse_args(['--length', f'{length}', '--sample', f'{SAMPLE}', '--seed', f'{seed}'])
    check(run_all(enumeration, seed, chosen(arguments)))


def test_the_list_is_canonical() -> None:
    for length, count in ((1, 41), (2, 1691)):
        every = list(words(length))
        assert len(set(every)) == len(every) == count, 'README.md says how many there are'
    assert ('unlink A', 'append A') not in every, 'A has no name any more'
    assert ('create', 'sync') in every
    assert ('sync', 'create') not in every, 'there is nothing to sync yet'
    assert ('hold', 'delete snapshot') not in every, 'it is held'
    assert ('rename A to B', 'overwrite B') not in every, 'B is gone'
    assert ('quarantine', 'free') in every
    assert {name for word in every for name in word} == set(OPERATIONS)


def test_parts_are_the_whole() -> None:
    parts = [chosen(parser().parse_args(['--length', '2', '--shard', f'{n}/7'])) for n in range(1, 8)]
    assert sorted(word for part in parts for word in part) == sorted(words(2))


@pytest.mark.slow
def test_a_word_alone_is_cut_in_itself(enumeration: Enumeration) -> None:
    """Without the commit that follows, a word has the cuts of its last operation and one at its end."""
    enumeration.seed = 0
    alone = enumeration.run(('create',), alone=True)
    check([alone])
    assert (alone.cuts, alone.alone) == (1, True)
    committed = enumeration.run(('create', 'commit'), alone=True)
    check([committed])
    both = enumeration.run(('create',))
    check([both])
    assert both.cuts == alone.cuts + committed.cuts
    assert both.repeated >= committed.images, 'the commit that follows is the longer word, to the byte'


@pytest.mark.slow
def test_the_text_of_the_lock_means_nothing(enumeration: Enumeration, tmp_path: Path) -> None:
    """So no image needs to be without it (WordRun._open_engine)."""
    shutil.copytree(enumeration.base.root, tmp_path / 'root')
    store = tmp_path / 'root' / 'store'
    for text in (b'', b'\0' * 4096, b'[1, "elsewhere", 2, ""]', b'\xff' * 9000):
        (store / 'lock').write_bytes(text)
        assert damages(store) == []

        async def opens() -> str:
            disk = SimDisk(store.parent)
            engine = await Engine.open(store, disk, TickWorld())
            health: str = engine.health()
            await engine.close()
            disk.forget()
            return health

        assert trio.run(opens) == 'ok'


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


def _packs_unsynced(patch: pytest.MonkeyPatch) -> None:
    real = SimDisk._sys_fdatasync

    def broken(self: SimDisk, fd: int) -> None:
        if '/packs/' not in os.readlink(f'/proc/self/fd/{fd}'):
            real(self, fd)

    patch.setattr(SimDisk, '_sys_fdatasync', broken)


def _snapshot_without_commit(patch: pytest.MonkeyPatch) -> None:
    real = Administration.snapshot_create

    async def broken(self: Administration, *arguments: Any) -> Any:
        commit, self.committer.commit = self.committer.commit, _no_commit  # type: ignore[method-assign]
        try:
            return await real(self, *arguments)
        finally:
            self.committer.commit = commit  # type: ignore[method-assign]

    patch.setattr(Administration, 'snapshot_create', broken)


async def _no_commit() -> None:
    return None


async def _no_orphans(self: Head) -> None:
    return None


# What is broken, with which word, and what has to be said of it.
BROKEN: dict[str, tuple[Word, str, Callable[[pytest.MonkeyPatch], None]]] = {
    'the journal is not synced': (('create', 'sync'), '(P5)', _without(Journal, 'sync')),
    'packs are not synced': (('overwrite A', 'commit'), 'fsck of what the crash left', _packs_unsynced),
    'names are not synced': (
        ('quarantine',),
        'fsck of what the crash left',
        _without(Disk, 'sync_directory'),
    ),
    'the journal is not replayed': (
        ('create', 'sync'),
        '(P5)',
        lambda patch: patch.setattr(Journal, 'replay', lambda self, after: iter(())),
    ),
    'a snapshot is not of a commit': (('write new', 'snapshot'), '(P6)', _snapshot_without_commit),
    'what was half decided stays so': (
        ('quarantine',),
        'stays PLANNED',
        lambda patch: patch.setattr(Batches, 'recover', lambda self: []),
    ),
    'times are not kept': (('utimes A', 'sync'), '(P5)', _utimes_unmarked),
    'what has no name is not removed': (
        ('write to unlinked A', 'commit'),
        'which no name leads to',
        lambda patch: patch.setattr(Head, 'remove_orphans', _no_orphans),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize('what', BROKEN)
def test_a_rule_that_is_broken_is_noticed(
    enumeration: Enumeration, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    word, told, break_it = BROKEN[what]
    enumeration.forget()
    break_it(monkeypatch)
    (outcome,) = run_all(enumeration, 0, [word])
    enumeration.forget()
    assert outcome.applied
    assert told in str(outcome.failure)
