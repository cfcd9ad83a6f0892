"""The catalog's disk fails below SQLite: a failed write or sync latches, and what was acknowledged is there.

A full disk is refused and forgotten as soon as there is room; nothing is acknowledged and then lost.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PROJECT = Path(__file__).parent.parent.parent
SECONDS = 110


@pytest.fixture(scope='session')
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library that makes calls fail, built."""
    path = tmp_path_factory.mktemp('faults') / 'sqlite_faults.so'
    source = PROJECT / 'tests/support/sqlite_faults.c'
    words = [
        'gcc',
        '-Wall',
        '-Wextra',
        '-Werror',
        '-O1',
        '-shared',
        '-fPIC',
        '-o',
        str(path),
        str(source),
        '-ldl',
    ]
    try:
        subprocess.run(words, check=True, capture_output=True, timeout=60)
    except FileNotFoundError:
        pytest.fail('this test needs gcc; `make setup` installs it')
    return path


def cases(library: Path, place: Path, fault: str, count: int, step: int, *more: str) -> list[dict[str, Any]]:
    """Return what became of the work for each call that failed, and last without any."""
    place.mkdir()
    done = subprocess.run(
        [
            sys.executable,
            '-m',
            'tests.support.sqlite_faults',
            *fault.split(),
            str(count),
            str(step),
            str(place),
            *more,
        ],
        cwd=PROJECT,
        env={**os.environ, 'LD_PRELOAD': str(library)},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) > 1, 'no call failed'
    assert not found[-1]['hits'] and not found[-1]['errors']
    return found


def check_nothing_lost(case: dict[str, Any]) -> None:
    """P5: what was acknowledged is there."""
    done, found = case['done'], case['found']
    wanted = {
        'file 1': 1 in found['files'],
        'file 2': 2 in found['files'],
        'file 3': 3 in found['files'],
        'snapshot a': {'a', 'aa'} & set(found['snapshots']),
        'hold a': found['held'],
        'delete b': 'b' not in found['snapshots'] and 'b' in found['requests'],
        'volume other': 'other' in found['volumes'],
        'rename a': 'aa' in found['snapshots'],
        'snapshot c': 'c' in found['snapshots'],
        'late': 'late' in found['snapshots'],
    }
    lost = [name for name in done if not wanted.get(name, True)]
    assert not lost, f'acknowledged and lost: {lost}: {case}'


@pytest.mark.slow
@pytest.mark.parametrize(
    ('fault', 'step'),
    [('-wal w EIO', 5), ('-wal s EIO', 1), ('catalog.sqlite w EIO', 3), ('catalog.sqlite s EIO', 1)],
)
def test_a_write_or_sync_that_fails_latches(library: Path, tmp_path: Path, fault: str, step: int):
    *failed, unharmed = cases(library, tmp_path / 'stores', fault, 1, step)
    for case in failed:
        check_nothing_lost(case)
        assert case['stopped'] and case['latched'], case
        assert 'late' in case['errors'], case
        assert case['found']['latched'], f'forgotten by the next start: {case}'
    assert unharmed['latched'] is None


@pytest.mark.slow
@pytest.mark.parametrize(
    ('fault', 'count', 'step'),
    [
        ('-wal w ENOSPC', 1, 5),
        ('-wal w ENOSPC', 1_000_000, 7),  # full until somebody makes room
        ('catalog.sqlite w ENOSPC', 1, 3),
        ('catalog.sqlite w ENOSPC', 1_000_000, 5),
    ],
)
def test_a_full_disk_is_refused_and_forgotten(
    library: Path, tmp_path: Path, fault: str, count: int, step: int
):
    for case in cases(library, tmp_path / 'stores', fault, count, step):
        check_nothing_lost(case)
        assert not case['latched'] and not case['stopped'], case
        assert set(case['errors'].values()) <= {'Refused'}, case
        assert 'late' in case['done'], case
        assert case['found']['latched'] is None


@pytest.mark.slow
def test_a_disk_that_is_dead_from_some_moment_on(library: Path, tmp_path: Path):
    """The latch cannot even be recorded. Nothing that was acknowledged is lost all the same."""
    for case in cases(library, tmp_path / 'stores', '-wal w EIO', 1_000_000, 9)[:-1]:
        check_nothing_lost(case)
        assert case['stopped'] and case['latched'], case


@pytest.mark.slow
@pytest.mark.parametrize('fault', ['-shm w ENOSPC', '-wal w ENOSPC', 'catalog.sqlite w ENOSPC'])
def test_a_store_on_a_full_disk_can_be_opened_to_delete_something(library: Path, tmp_path: Path, fault: str):
    """The reserve is there for it. Where SQLite finds no room, nobody has to look at anything."""
    for case in cases(library, tmp_path / 'stores', fault, 1, 1, 'open'):
        assert case['done'] == ['late'], case
        assert not case['latched'] and not case['stopped'], case
        check_nothing_lost(case)
