"""What broke when somebody tried to break it: real stores, real mounts."""

import subprocess
from collections.abc import Callable
from pathlib import Path

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


def test_a_store_without_its_catalog_is_damaged_not_busy(
    place: Path, new_mount: Callable[..., Mount]
) -> None:
    mount = new_mount(place)
    mount.expected.append('is missing')
    (mount.store / 'catalog.sqlite').rename(place / 'elsewhere')
    said = run(SNAPFS, 'mount', mount.store, mount.path, fails=True)
    assert said.startswith(f'snapfs: {mount.store / "catalog.sqlite"} is missing.'), said
    assert said.count('\n') == 1, said
    assert not (mount.store / 'catalog.sqlite').exists(), 'P10: what is missing must not be made anew, empty'
    (place / 'elsewhere').rename(mount.store / 'catalog.sqlite')
    mount.start()


def test_a_store_without_its_audit_log_is_read_and_written_and_deletes_nothing(
    place: Path, new_mount: Callable[..., Mount]
) -> None:
    """P7. The new log is no empty one (P10): it goes on behind the last line that the catalog knows."""
    mount = new_mount(place)
    mount.expected += ['the audit log is gone', 'the collector stops']
    (mount.store / 'audit.log').unlink()
    mount.start()
    (mount.path / 'home').mkdir(exist_ok=True)
    (mount.path / 'home' / 'file').write_text('written')
    health = (mount.path / '.snapfs' / 'health').read_text()
    assert 'the collector is stopped' in health and 'the audit log is gone' in health
    assert b'audit-broken' in (mount.store / 'audit.log').read_bytes()
