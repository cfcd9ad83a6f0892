"""A store on a filesystem that is really mounted read-only: what only reads works, and the rest says so."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.mounted import SNAPFS, Mount, run

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason='only root may mount a directory read-only'),
]


@pytest.fixture
def store(mounted: Mount, tmp_path: Path) -> Iterator[Path]:
    (mounted.path / 'home' / 'a file').write_text('its content')
    (mounted.path / 'home' / '.snapshots' / 'monday').mkdir()
    mounted.stop()
    for suffix in ('-wal', '-shm'):  # as in a copy
        Path(f'{mounted.store}/catalog.sqlite{suffix}').unlink(missing_ok=True)
    place = tmp_path / 'read only'
    place.mkdir()
    subprocess.run(['mount', '--bind', mounted.store, place], check=True)
    try:
        subprocess.run(['mount', '-o', 'remount,bind,ro', place], check=True)
        yield place
    finally:
        subprocess.run(['umount', '-l', place], check=True)


def test_what_only_reads_works_and_the_rest_says_so(store: Path, tmp_path: Path) -> None:
    named = ('--store', store)
    assert 'home@monday' in run(SNAPFS, 'snapshot', 'list', *named)
    assert 'root' in run(SNAPFS, 'verify', 'home@monday', *named)
    run(SNAPFS, 'export', 'home@monday', '-o', tmp_path / 'kept', *named)
    run(SNAPFS, 'verify', tmp_path / 'kept', *named)
    run(SNAPFS, 'damage', store)
    run(SNAPFS, 'fsck', store)
    assert 'has lost nothing' in run(SNAPFS, 'recover', 'home@monday', '--dry-run', *named)
    assert 'catalog is whole' in run(SNAPFS, 'rebuild', store, tmp_path / 'new', fails=True)
    (tmp_path / 'mnt').mkdir()
    for words in (
        ('mount', store, tmp_path / 'mnt', '-o', 'ro'),
        ('snapshot', 'create', 'home@new', *named),
        ('scrub', *named),
    ):
        told = run(SNAPFS, *words, fails=True)
        assert (
            'read-only' in told and 'What works there: fsck, verify' in told and len(told.splitlines()) == 1
        )
