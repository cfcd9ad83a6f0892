"""A small disk fills up: by us, or by somebody else. ENOSPC is the only error, and nothing is lost by it."""

import errno
import hashlib
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.mounted import Mount, names, run, until

DISK_MIB = 192
FILE_BYTES = 1 << 20


@pytest.fixture(params=['tmpfs', 'ext4'])
def small_disk(as_root: None, request: pytest.FixtureRequest, place: Path) -> Iterator[Path]:
    """A disk of DISK_MIB with nothing on it, mounted where the test's stores are."""
    disk = place / 'disk'
    disk.mkdir()
    if request.param == 'tmpfs':
        run('mount', '-t', 'tmpfs', '-o', f'size={DISK_MIB}m', 'tmpfs', disk)
    else:
        run('truncate', '-s', f'{DISK_MIB}m', place / 'image')
        run('mkfs.ext4', '-q', '-F', '-m', '0', place / 'image')
        run('mount', '-o', 'loop', place / 'image', disk)
    yield disk
    run('umount', '-l', disk)


@pytest.fixture
def full(small_disk: Path, new_mount: Callable[..., Mount]) -> Iterator[Mount]:
    """A store on the small disk, with the volume `home`."""
    mount = new_mount(small_disk)
    mount.expected.append('(?i)full|no space left')
    with mount.watched():
        mount.start()
        (mount.path / 'home').mkdir()
        yield mount


def fill(home: Path, prefix: str = 'file') -> dict[str, str]:
    """Write files of noise until one is refused; return what those have that were synced."""
    written: dict[str, str] = {}
    chance = random.Random(prefix)
    for number in range(DISK_MIB * 2):
        data = chance.randbytes(FILE_BYTES)
        path = home / f'{prefix}-{number}'
        try:
            with open(path, 'xb', buffering=0) as file:
                done = 0
                while done < len(data):
                    done += file.write(data[done : done + (1 << 17)])
                os.fsync(file.fileno())
        except OSError as error:
            assert error.errno == errno.ENOSPC, error
            return written
        written[path.name] = hashlib.sha256(data).hexdigest()
    pytest.fail('the disk does not fill up')


def check(home: Path, written: dict[str, str]) -> None:
    for name, digest in written.items():
        assert hashlib.sha256((home / name).read_bytes()).hexdigest() == digest, name


def test_a_disk_that_we_fill(full: Mount):
    home = full.path / 'home'
    (home / '.snapshots/empty').mkdir()
    written = fill(home)
    assert len(written) > 20
    free = os.statvfs(home)
    assert free.f_bavail * free.f_frsize < FILE_BYTES
    with pytest.raises(OSError, match='No space left'):
        (home / 'one more').write_bytes(b'x' * FILE_BYTES)
    check(home, written)
    full.restart()
    check(home, written)
    (home / '.snapshots/empty').rmdir()
    assert names(home / '.snapshots') == []
    for name in written:
        (home / name).unlink()
    full.restart()
    assert not set(names(home)) & written.keys()
    assert full.status()['health'] in ('ok', 'full: the disk below has no room')


def test_a_disk_that_somebody_else_fills_and_empties(full: Mount, small_disk: Path):
    home = full.path / 'home'
    written = {}
    for number in range(8):
        data = random.Random(number).randbytes(FILE_BYTES)
        (home / f'early-{number}').write_bytes(data)
        written[f'early-{number}'] = hashlib.sha256(data).hexdigest()
    (home / '.snapshots/early').mkdir()
    (home / '.snapshots/spare').mkdir()
    take_everything(small_disk)
    until(lambda: os.statvfs(home).f_bavail == 0, 'no room seen')
    until(lambda: not takes_a_byte(home / 'probe'), 'writers are refused')
    for attempt in (home / 'late', home / 'early-0'):
        with pytest.raises(OSError, match='No space left'), open(attempt, 'ab', buffering=0) as file:
            file.write(b'x' * FILE_BYTES)
    check(home, written)
    (home / '.snapshots/spare').rmdir()
    for number in range(4, 8):
        (home / f'early-{number}').unlink()
    descriptor = os.open(home, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)
    full.restart()
    assert names(home / '.snapshots') == ['early']
    check(home / '.snapshots/early', written)
    gone = {f'early-{number}' for number in range(4, 8)}
    assert not gone & set(names(home))
    check(home, {name: digest for name, digest in written.items() if name not in gone})
    os.unlink(small_disk / 'ballast')
    until(lambda: os.statvfs(home).f_bavail > 0, 'room')
    run('sh', '-c', 'echo works again > after && sync after && mkdir .snapshots/after', cwd=home)
    assert (home / '.snapshots/after/after').read_text() == 'works again\n'
    assert len(fill(home, 'more')) > 5


def takes_a_byte(path: Path) -> bool:
    """Say whether there is room for one more byte."""
    try:
        with open(path, 'ab', buffering=0) as file:
            file.write(b'x')
    except OSError as error:
        assert error.errno == errno.ENOSPC, error
        return False
    return True


def take_everything(disk: Path) -> None:
    """Leave no byte to anybody."""
    size = 1 << 22
    with open(disk / 'ballast', 'wb', buffering=0) as file:
        while size >= 512:
            try:
                file.write(bytes(size))
            except OSError as error:
                assert error.errno == errno.ENOSPC, error
                size //= 2


def test_a_kill_on_a_full_disk(full: Mount, small_disk: Path):
    home = full.path / 'home'
    written = fill(home)
    take_everything(small_disk)
    full.kill()
    full.start()
    check(home, written)
    for name in list(written)[::2]:
        (home / name).unlink()
        del written[name]
    os.unlink(small_disk / 'ballast')
    full.restart()
    check(home, written)
    assert len([name for name in names(home) if name in written]) == len(written)
