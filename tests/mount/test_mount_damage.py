"""Packs that are damaged or missing under a real mount: programs lose the bytes in them, and nothing else."""

import errno
import os
import random
import stat
import subprocess
from pathlib import Path

from tests.support.losses import lose_top_node
from tests.support.mounted import SNAPFS, Mount, names, refused, run

SIZE = 1 << 20
MIDDLE = SIZE // 2
NEW = b'new!' * 1024  # one page: the kernel reads no less


def pread(path: Path, count: int, offset: int) -> bytes:
    """Read past the page cache's idea of what else will be wanted."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
        return os.pread(fd, count, offset)
    finally:
        os.close(fd)


def write_durably(path: Path, data: bytes, offset: int) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT)
    try:
        assert os.pwrite(fd, data, offset) == len(data)
        os.fsync(fd)
    finally:
        os.close(fd)


def test_a_write_into_a_file_whose_pack_is_missing(mounted: Mount) -> None:
    home = mounted.path / 'home'
    data = random.Random(3).randbytes(SIZE)
    write_durably(home / 'lost', data, 0)
    mounted.stop()
    mounted.expected += ['is missing', 'is left as it is', 'damaged: ']
    packs = [path for path in (mounted.store / 'packs/data').rglob('*') if path.is_file()]
    for path in packs:
        path.rename(mounted.place / path.name)
    mounted.start()
    refused(errno.EIO, pread, home / 'lost', 4096, MIDDLE)
    write_durably(home / 'lost', NEW, MIDDLE)
    write_durably(home / 'other', b'other' * 100_000, 0)
    (home / '.snapshots/after').mkdir()
    assert 'damaged' in (mounted.path / '.snapfs/health').read_text()
    mounted.restart()
    for view in (home, home / '.snapshots/after'):
        assert names(view) == ['lost', 'other']
        assert (view / 'lost').stat().st_size == SIZE
        assert (view / 'other').read_bytes() == b'other' * 100_000
        assert pread(view / 'lost', len(NEW), MIDDLE) == NEW
        refused(errno.EIO, pread, view / 'lost', 1, MIDDLE - 1)
        refused(errno.EIO, pread, view / 'lost', 1, MIDDLE + len(NEW))
    mounted.stop()
    for path in packs:
        (mounted.place / path.name).rename(path)
    mounted.start()
    whole = data[:MIDDLE] + NEW + data[MIDDLE + len(NEW) :]
    assert (home / 'lost').read_bytes() == (home / '.snapshots/after/lost').read_bytes() == whole


def test_a_damaged_top_node_does_not_hide_its_neighbours(mounted: Mount) -> None:
    """P7: a listing names what cannot be read, and all the rest is there as before."""
    home = mounted.path / 'home'
    for name in ('one', 'two', 'three'):
        (home / name).write_text(name)
        (home / '.snapshots' / name).mkdir()
    (home / 'now').write_text('now')
    (mounted.path / 'other').mkdir()
    (mounted.path / 'other/file').write_text('whole')
    mounted.stop()
    lose_top_node(mounted.store, 'snapshot', 'two')
    mounted.expected += [
        'the payload has another id',
        'not a Zstandard frame',
        'damaged: ',
        'lookup: ',
        'readdir: ',
    ]
    mounted.start()
    assert names(home / '.snapshots') == ['one', 'three', 'two']
    assert names(home / '.snapshots/three') == ['one', 'three', 'two']
    refused(errno.EIO, os.stat, home / '.snapshots/two')
    mounted.stop()
    lose_top_node(mounted.store, 'volume', 'home')
    mounted.start()
    assert names(mounted.path) == ['home', 'other']
    assert (mounted.path / 'other/file').read_text() == 'whole'
    refused(errno.EIO, os.listdir, home)
    refused(errno.EIO, os.stat, home / 'now')
    the_past_is_there(home)
    mounted.restart(volume='home')
    refused(errno.EIO, os.listdir, mounted.path)
    the_past_is_there(mounted.path)
    assert (mounted.path / '.snapfs/health').read_text().startswith('damaged: ')


def the_past_is_there(volume: Path) -> None:
    """A volume whose own top node is lost still leads to its snapshots (P7)."""
    assert stat.S_IMODE(volume.stat().st_mode) == 0o500
    assert names(volume / '.snapshots') == ['one', 'three', 'two']
    assert names(volume / '.snapshots/three') == ['one', 'three', 'two']
    assert (volume / '.snapshots/three/three').read_text() == 'three'
    refused(errno.EIO, os.listdir, volume / '.snapshots/two')


def test_a_pack_that_goes_while_it_is_written_to(mounted: Mount) -> None:
    """A daemon has the newest pack open: it still has every byte, and writes them under their name again."""
    home, data = mounted.path / 'home', random.Random(4).randbytes(SIZE)
    write_durably(home / 'old', data, 0)
    mounted.restart()  # clean: the daemon goes on with the pack
    mounted.expected += ['it is put back']
    (pack,) = (path for path in (mounted.store / 'packs/data').rglob('*') if path.is_file())
    pack.unlink()
    write_durably(home / 'new', data[::-1], 0)
    assert pack.exists()
    pack.unlink()
    assert (home / 'old').read_bytes() == data and (home / 'new').read_bytes() == data[::-1]
    mounted.restart()
    assert (home / 'old').read_bytes() == data and (home / 'new').read_bytes() == data[::-1]


def test_a_catalog_that_goes_while_it_is_written_to(mounted: Mount) -> None:
    """SQLite still has it: it comes back with all that was committed, and nothing more is written."""
    home = mounted.path / 'home'
    os.mkdir(home / '.snapshots/early')
    mounted.expected += ['was deleted, or replaced', 'put back', 'read-only', 'stops writing', 'not closed']
    for path in mounted.store.glob('catalog.sqlite*'):
        path.unlink()
    refused(errno.EROFS, os.mkdir, home / '.snapshots/late')
    assert (mounted.path / '.snapfs/health').read_text().startswith('read-only: ')
    subprocess.run([SNAPFS, 'umount', mounted.path], check=False)  # 12: it did not close clean
    mounted.start()
    assert names(home / '.snapshots') == ['early']
    mounted.snapfs('incident', 'ack', '1')
    subprocess.run([SNAPFS, 'umount', mounted.path], check=False)  # 12: it did not close clean
    mounted.start()
    os.mkdir(home / '.snapshots/late')
    assert names(home / '.snapshots') == ['early', 'late']
    mounted.stop()
    assert '0 damages' in run(SNAPFS, 'fsck', mounted.store)
