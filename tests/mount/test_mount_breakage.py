"""What broke when somebody tried to break it: real stores, real mounts."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.mounted import PROGRAM_SECONDS, SNAPFS, Mount, run


def test_of_mounts_that_start_at_once_one_wins_and_the_rest_are_refused_at_once(
    place: Path, new_mount: Callable[..., Mount]
) -> None:
    mount = new_mount(place)
    mount.expected.append('is mounted already, at')  # the log is shared: the losers say there why they end
    with mount.watched():
        words = [SNAPFS, 'mount', mount.store, mount.path]
        racers = [subprocess.Popen(words, stderr=subprocess.PIPE, text=True) for _ in range(4)]
        # The limit is half of what a loser used to wait for the winner's end.
        said = [racer.communicate(timeout=PROGRAM_SECONDS)[1] for racer in racers]
        run(SNAPFS, 'umount', mount.path)
        assert sorted(racer.returncode == 0 for racer in racers) == [False, False, False, True], said
        for racer, line in zip(racers, said, strict=True):
            assert racer.returncode == 0 or ('mounted' in line and line.count('\n') == 1), line


@pytest.mark.parametrize('name', ['catalog.sqlite', 'audit.log'])
def test_a_store_without_one_of_its_files_is_damaged_not_busy(
    place: Path, new_mount: Callable[..., Mount], name: str
) -> None:
    mount = new_mount(place)
    mount.expected.append('is missing')
    (mount.store / name).rename(place / 'elsewhere')
    said = run(SNAPFS, 'mount', mount.store, mount.path, fails=True)
    assert said.startswith(f'snapfs: {mount.store / name} is missing.'), said
    assert said.count('\n') == 1, said
    assert not (mount.store / name).exists(), 'P10: what is missing must not be made anew, empty'
    (place / 'elsewhere').rename(mount.store / name)
    mount.start()
