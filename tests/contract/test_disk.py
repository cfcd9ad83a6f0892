"""The contract of Disk, held by the real one and by the simulated one."""

from __future__ import annotations

import errno
import os
import stat

import pytest

from snapfs.errors import Corrupt, Invalid, Latched, Refused
from snapfs.store.durable import IOV_MAX, Disk
from tests.sim.disk import SimDisk


@pytest.fixture(params=['real', 'simulated', 'simulated with short calls'])
def disk(request, tmp_path):
    if request.param == 'real':
        yield Disk()
        return
    disk = SimDisk(tmp_path, seed=7 if 'short' in request.param else None)
    yield disk
    disk.forget()


def test_what_is_written_is_read(disk, tmp_path):
    fd = disk.open_write(tmp_path / 'a', create=True)
    assert disk.pwrite(fd, [b'abc', bytearray(b'def'), memoryview(b'ghi')], 5) == 9
    assert bytes(disk.pread(fd, 100, 0)) == b'\0' * 5 + b'abcdefghi'
    for _ in range(20):
        assert bytes(disk.pread(fd, 3, 8)) == b'def'
    assert disk.size(fd) == disk.size(tmp_path / 'a') == 14
    disk.sync_data(fd)
    disk.close(fd)
    assert disk.read_file(tmp_path / 'a', 14) == b'\0' * 5 + b'abcdefghi'


def test_more_buffers_than_one_call_takes(disk, tmp_path):
    buffers = [bytes([n % 251]) * (n % 7) for n in range(2 * IOV_MAX + 5)]
    fd = disk.open_write(tmp_path / 'a', create=True)
    assert disk.pwrite(fd, buffers, 3) == sum(map(len, buffers))
    assert bytes(disk.pread(fd, 1 << 20, 3)) == b''.join(buffers)
    disk.close(fd)


def test_files_are_private(disk, tmp_path):
    old = os.umask(0)
    try:
        disk.close(disk.open_write(tmp_path / 'a', create=True))
        disk.write_file(tmp_path / 'b', b'x')
        disk.preallocate(tmp_path / 'c', 10)
        disk.mkdir(tmp_path / 'd')
    finally:
        os.umask(old)
    modes = {name: stat.S_IMODE(os.lstat(tmp_path / name).st_mode) for name in 'abcd'}
    assert modes == {'a': 0o600, 'b': 0o600, 'c': 0o600, 'd': 0o700}


def test_create_makes_a_new_file_only(disk, tmp_path):
    with pytest.raises(FileNotFoundError):
        disk.open_write(tmp_path / 'a', create=False)
    disk.close(disk.open_write(tmp_path / 'a', create=True))
    with pytest.raises(FileExistsError):
        disk.open_write(tmp_path / 'a', create=True)
    disk.close(disk.open_write(tmp_path / 'a', create=False))


@pytest.mark.parametrize('what', ['link', 'dangling', 'linked directory', 'fifo', 'directory'])
def test_nothing_but_a_regular_file_is_opened(disk, tmp_path, what):
    (tmp_path / 'target').write_bytes(b'secret')
    (tmp_path / 'folder').mkdir()
    (tmp_path / 'folder' / 'odd').write_bytes(b'secret')
    path = tmp_path / 'odd'
    if what == 'link':
        path.symlink_to(tmp_path / 'target')
    elif what == 'dangling':
        path.symlink_to(tmp_path / 'nowhere')
    elif what == 'linked directory':
        (tmp_path / 'linked').symlink_to(tmp_path / 'folder')
        path = tmp_path / 'linked' / 'odd'
    elif what == 'fifo':
        os.mkfifo(path)
    else:
        path.mkdir()
    with pytest.raises(Corrupt):
        disk.open_read(path)
    with pytest.raises(Corrupt):
        disk.open_write(path, create=False)
    assert not (tmp_path / 'nowhere').exists()


def test_a_file_without_permission_is_invalid(disk, tmp_path, monkeypatch):
    def denied(path, flags):
        raise PermissionError(errno.EACCES, 'Permission denied')

    monkeypatch.setattr(disk, '_sys_open', denied)
    with pytest.raises(Invalid, match='Permission denied'):
        disk.open_read(tmp_path / 'a')


def test_write_file_replaces_whole(disk, tmp_path):
    disk.write_file(tmp_path / 'a', b'long old content')
    (tmp_path / 'a.new').write_bytes(b'left by a crash')
    if isinstance(disk, SimDisk):
        disk.forget()
        disk = SimDisk(tmp_path)
    disk.write_file(tmp_path / 'a', b'new')
    assert disk.read_file(tmp_path / 'a', 100) == b'new'
    assert disk.listdir(tmp_path) == ['a']


def test_read_file_has_a_limit(disk, tmp_path):
    disk.write_file(tmp_path / 'a', b'x' * 100)
    with pytest.raises(Corrupt, match='100 bytes'):
        disk.read_file(tmp_path / 'a', 99)
    disk.write_file(tmp_path / 'empty', b'')
    assert disk.read_file(tmp_path / 'empty', 0) == b''


def test_preallocated_is_zero_and_stays_that_long(disk, tmp_path):
    disk.preallocate(tmp_path / 'a', 3 << 20)
    fd = disk.open_write(tmp_path / 'a', create=False)
    disk.pwrite(fd, [b'x'], 1 << 20)
    assert disk.size(fd) == 3 << 20
    assert bytes(disk.pread(fd, 3, (1 << 20) - 1)) == b'\0x\0'
    disk.close(fd)


def test_truncate(disk, tmp_path):
    fd = disk.open_write(tmp_path / 'a', create=True)
    disk.pwrite(fd, [b'abcdef'], 0)
    disk.truncate(fd, 2)
    disk.truncate(fd, 4)
    assert bytes(disk.pread(fd, 10, 0)) == b'ab\0\0'
    disk.close(fd)


def test_names(disk, tmp_path):
    assert disk.listdir(tmp_path / 'none') == []
    assert disk.mkdir(tmp_path / 'd')
    assert not disk.mkdir(tmp_path / 'd')
    disk.write_file(tmp_path / 'd' / 'x', b'1')
    disk.rename(tmp_path / 'd' / 'x', tmp_path / 'd' / 'y')
    disk.sync_directory(tmp_path / 'd')
    assert disk.listdir(tmp_path / 'd') == ['y']
    assert disk.exists(tmp_path / 'd' / 'y')
    disk.unlink(tmp_path / 'd' / 'y')
    assert not disk.exists(tmp_path / 'd' / 'y')
    with pytest.raises(FileNotFoundError):
        disk.unlink(tmp_path / 'd' / 'y')
    disk.write_file(tmp_path / 'file', b'1')
    with pytest.raises(Corrupt):
        disk.mkdir(tmp_path / 'file')
    with pytest.raises(Corrupt):
        disk.listdir(tmp_path / 'file')
    with pytest.raises(AssertionError):
        disk.rename(tmp_path / 'file', tmp_path / 'd' / 'file')


def test_nowait_returns_all_or_nothing(disk, tmp_path):
    disk.write_file(tmp_path / 'a', b'0123456789')
    fd = disk.open_read(tmp_path / 'a')
    assert disk.preadv_nowait(fd, 4, 3) in (b'3456', None)
    assert disk.preadv_nowait(fd, 8, 3) is None
    disk.close(fd)


def test_nowait_that_would_block_or_is_unknown_is_none(disk, tmp_path, monkeypatch):
    disk.write_file(tmp_path / 'a', b'0123456789')
    fd = disk.open_read(tmp_path / 'a')
    calls = []

    def answer(fd, buffer, offset):
        calls.append(offset)
        raise error

    monkeypatch.setattr(disk, '_sys_preadv_nowait', answer)
    error = BlockingIOError(errno.EAGAIN, 'would block')
    assert disk.preadv_nowait(fd, 4, 0) is None
    error = OSError(errno.EOPNOTSUPP, 'not supported')
    assert disk.preadv_nowait(fd, 4, 1) is None
    assert disk.preadv_nowait(fd, 4, 2) is None
    assert calls == [0, 1], 'a filesystem that cannot tell is asked once'
    disk.close(fd)


def test_writing_out_loses_nothing_and_never_fails(disk, tmp_path):
    fd = disk.open_write(tmp_path / 'a', create=True)
    disk.pwrite(fd, [b'0123456789'], 0)
    for _ in range(2):
        disk.write_out(fd)
        assert bytes(disk.pread(fd, 10, 0)) == b'0123456789'
    disk.sync_data(fd)
    disk.write_out(fd)
    assert bytes(disk.pread(fd, 10, 0)) == b'0123456789'
    disk.close(fd)
    disk.write_out(fd)
    assert disk.latched is None


@pytest.mark.parametrize('what', ['sync_data', 'sync_directory'])
def test_a_failed_sync_is_never_forgotten(disk, tmp_path, monkeypatch, what):
    """P5: the kernel reports a lost page once; whoever asks again would be told that all is well."""
    fd = disk.open_write(tmp_path / 'a', create=True)
    disk.pwrite(fd, [b'x'], 0)
    call = {'sync_data': '_sys_fdatasync', 'sync_directory': '_sys_fsync_directory'}[what]

    def failed(_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(disk, call, failed)
        with pytest.raises(Latched):
            getattr(disk, what)(fd if what == 'sync_data' else tmp_path)
    for _ in range(3):
        with pytest.raises(Latched):
            disk.sync_data(fd)
        with pytest.raises(Latched):
            disk.sync_directory(tmp_path)
        with pytest.raises(Latched):
            disk.pwrite(fd, [b'y'], 0)
        with pytest.raises(Latched):
            disk.write_file(tmp_path / 'b', b'')
        with pytest.raises(Latched):
            disk.unlink(tmp_path / 'a')
    assert bytes(disk.pread(fd, 1, 0)) == b'x', 'reading goes on'
    assert 'sync' in str(disk.latched)
    disk.close(fd)


@pytest.mark.parametrize('error', [errno.ENOSPC, errno.EDQUOT])
def test_lack_of_space_is_refused_and_can_be_tried_again(disk, tmp_path, monkeypatch, error):
    fd = disk.open_write(tmp_path / 'a', create=True)

    def full(fd, buffers, offset):
        raise OSError(error, os.strerror(error))

    with monkeypatch.context() as patch:
        patch.setattr(disk, '_sys_pwritev', full)
        with pytest.raises(Refused) as caught:
            disk.pwrite(fd, [b'x'], 0)
        assert caught.value.errno == errno.ENOSPC
        with pytest.raises(Refused):
            disk.write_file(tmp_path / 'b', b'x')
    assert disk.latched is None
    disk.pwrite(fd, [b'x'], 0)
    disk.write_file(tmp_path / 'b', b'x')
    disk.sync_data(fd)
    disk.close(fd)


def test_any_other_write_error_latches(disk, tmp_path, monkeypatch):
    fd = disk.open_write(tmp_path / 'a', create=True)

    def broken(fd, buffers, offset):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(disk, '_sys_pwritev', broken)
        with pytest.raises(Latched):
            disk.pwrite(fd, [b'x'], 0)
    with pytest.raises(Latched):
        disk.sync_data(fd)
    disk.close(fd)


def test_a_read_error_is_corrupt(disk, tmp_path, monkeypatch):
    disk.write_file(tmp_path / 'a', b'0123456789')
    fd = disk.open_read(tmp_path / 'a')

    def broken(fd, count, offset):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(disk, '_sys_pread', broken)
        with pytest.raises(Corrupt, match='4 bytes at 2'):
            disk.pread(fd, 4, 2)
    disk.close(fd)


def test_a_failed_preallocation_leaves_nothing(disk, tmp_path, monkeypatch):
    def full(fd, size):
        raise Refused(errno.ENOSPC)

    with monkeypatch.context() as patch:
        patch.setattr(disk, '_fill', full)
        with pytest.raises(Refused):
            disk.preallocate(tmp_path / 'a', 100)
    assert not disk.exists(tmp_path / 'a')
    disk.preallocate(tmp_path / 'a', 100)
    assert disk.size(tmp_path / 'a') == 100
