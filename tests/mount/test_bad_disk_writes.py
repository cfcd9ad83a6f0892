"""A disk that fails writes and syncs (P5): the store turns read-only and says so, until a person has looked;
readers go on; what was synced before is there afterwards."""

from __future__ import annotations

import errno
import os
import random
from pathlib import Path

import pytest

from tests.mount.bad_disk_kit import Bad
from tests.support.bad_disk import fault
from tests.support.mounted import SNAPFS, refused

pytestmark = pytest.mark.slow

EARLY = random.Random(9).randbytes(1 << 20)
LATE = random.Random(8).randbytes(3 << 20)  # more than a journal record takes: packs first

FAULTS = [
    ('fsync', 'journal/*'),
    ('write', 'packs/data/*'),
    ('fsync', 'packs/meta/*'),
    ('write', 'catalog.sqlite-wal'),
    ('fsync', 'catalog.sqlite-wal'),
    ('fsync', 'audit.log'),
]


def write_durably(path: Path, data: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
    try:
        assert os.write(fd, data) == len(data)
        os.fsync(fd)
    finally:
        os.close(fd)


def work(home: Path) -> None:
    """What writes to every part of a store."""
    write_durably(home / 'late', LATE)
    os.mkdir(home / '.snapshots/late')
    os.rmdir(home / '.snapshots/late')


@pytest.mark.parametrize(('on', 'path'), FAULTS)
def test_what_was_synced_before_is_there_afterwards(bad: Bad, on: str, path: str) -> None:
    bad.mount.expected += ['read-only', 'stops writing', 'Input/output error', 'disk I/O error', 'clean']
    bad.mount.start()
    pid = bad.mount.pid
    write_durably(bad.home / 'early', EARLY)
    bad.disk.fail(fault(on, f'store/{path}'))
    with pytest.raises(OSError) as failed:
        work(bad.home)
    assert failed.value.errno in (errno.EIO, errno.EROFS)
    assert bad.disk.mend()[0] >= 1
    # The disk works again, and nothing is believed of it: what the kernel dropped would be missing.
    refused(errno.EROFS, write_durably, bad.home / 'again', b'again')
    assert bad.health().startswith('read-only: ')
    assert (bad.home / 'early').read_bytes() == EARLY
    assert os.listdir(bad.home / '.snapshots/monday')
    assert os.path.exists(f'/proc/{pid}')
    # Where the catalog is what fails, its table of incidents cannot have one: the next opening writes it.
    kept = not path.startswith('catalog')
    assert ('all writing' in bad.says(0, 'incident', 'list')) == kept
    assert 'the store stops writing' in (bad.real / 'daemon.log').read_text()
    assert 'not closed cleanly' in bad.call(SNAPFS, 'umount', bad.mount.path)[1]
    assert '0 damages' in bad.says(0, 'fsck')
    bad.mount.start()
    assert bad.health().startswith('read-only: the store is read-only: incident 1')
    assert 'all writing' in bad.says(0, 'incident', 'list')
    assert (bad.home / 'early').read_bytes() == EARLY
    if path in ('journal/*', 'catalog.sqlite-wal'):
        acknowledged(bad)


def acknowledged(bad: Bad) -> None:
    """Once a person has looked, the next mount writes again."""
    bad.says(0, 'incident', 'ack', '1')
    assert bad.health().startswith('read-only: ')
    bad.call(SNAPFS, 'umount', bad.mount.path)
    bad.mount.start()
    assert bad.health() == 'ok'
    write_durably(bad.home / 'again', b'again')
    bad.mount.stop()
    assert '0 damages' in bad.says(0, 'fsck', '--quick')
