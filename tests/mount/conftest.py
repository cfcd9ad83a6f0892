"""Fixtures of the mount tests: real stores under real mounts, made and ended by the command line.

`home` is a fresh volume in a mount that the tests of one worker share: for what works inside one volume.
`mounted` is a store and mount of the test's own: for what remounts, crashes, or looks at the whole store.
Both fail the test when the daemon logs a warning, an error or a traceback that the test does not expect.
"""

import itertools
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.mount.bad_disk_kit import Bad, make_image
from tests.support.mounted import IS_ROOT, Mount


@pytest.fixture(scope='session', autouse=True)
def fuse_device() -> None:
    """Without /dev/fuse no test here can say anything, and that must not look like success."""
    if not os.path.exists('/dev/fuse'):
        pytest.fail('the mount tests need /dev/fuse, and this machine has none: load the fuse module')


@pytest.fixture
def as_root() -> None:
    """For what only root may do: other users, devices, loop disks."""
    if not IS_ROOT:
        pytest.skip('only root may do this; run the tests as root as well')


def _make_place() -> Path:
    # Not pytest's tmp_path: other users must be able to pass through it.
    place = Path(tempfile.mkdtemp(prefix='snapfs-test-'))
    place.chmod(0o755)
    return place


@pytest.fixture
def place() -> Iterator[Path]:
    """An empty directory that everybody may pass through."""
    path = _make_place()
    yield path
    if not os.path.ismount(path / 'mnt'):
        shutil.rmtree(path)


@pytest.fixture
def new_mount() -> Iterator[Callable[..., Mount]]:
    """A function that makes a mount in a directory; at the end of the test all are ended and looked at."""
    made: list[Mount] = []

    def make(place: Path, options: str = '') -> Mount:
        mount = Mount(place, options)
        made.append(mount)
        return mount

    try:
        yield make
        os.chdir('/')
        for mount in made:
            if mount.running:
                mount.stop()
            mount.check_log()
    finally:
        for mount in made:
            mount.abandon()


@pytest.fixture
def mounted(place: Path, new_mount: Callable[..., Mount]) -> Iterator[Mount]:
    """A mounted store of the test's own, with the volume `home`."""
    mount = new_mount(place)
    with mount.watched():
        mount.start()
        (mount.path / 'home').mkdir()
        yield mount


@pytest.fixture(scope='session')
def shared_mount() -> Iterator[Mount]:
    place = _make_place()
    mount = Mount(place)
    mount.start()
    try:
        yield mount
        mount.stop()
    finally:
        mount.abandon()
    shutil.rmtree(place)


_numbers = itertools.count(1)


@pytest.fixture
def home(shared_mount: Mount) -> Iterator[Path]:
    """The directory of a fresh volume. Its name has no meaning."""
    if not shared_mount.running or not os.path.exists(f'/proc/{shared_mount.pid}'):
        shared_mount.abandon()  # the test before this one has failed for it
        shared_mount.start()
    path = shared_mount.path / f'volume-{next(_numbers)}'
    with shared_mount.watched():
        path.mkdir()
        path.chmod(0o755)
        try:
            yield path
        finally:
            os.chdir('/')
        shared_mount.check_log()


@pytest.fixture(scope='session')
def image() -> Iterator[Path]:
    """A store, not in use, of which tests copy what a bad disk then damages."""
    place = _make_place()
    yield make_image(place)
    shutil.rmtree(place)


@pytest.fixture
def bad(place: Path, image: Path) -> Iterator[Bad]:
    """A store on a disk that has no faults yet."""
    made = Bad(place, image)
    try:
        with made.mount.watched():
            yield made
            os.chdir('/')
        made.mount.check_log()
    finally:
        os.chdir('/')
        made.end()
