"""Names and directories: every byte a name may hold, large directories while they change, every rename."""

import contextlib
import ctypes
import errno
import os
import random
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.mounted import Mount, names, refused, run, shell

MANY = 20_000
NOREPLACE, EXCHANGE, WHITEOUT = 1, 2, 4
AT_FDCWD = -100
libc = ctypes.CDLL(None, use_errno=True)


class Dirent(ctypes.Structure):
    """struct dirent of glibc on 64 bits."""

    _fields_ = (
        ('d_ino', ctypes.c_uint64),
        ('d_off', ctypes.c_int64),
        ('d_reclen', ctypes.c_uint16),
        ('d_type', ctypes.c_uint8),
        ('d_name', ctypes.c_char * 256),
    )


libc.opendir.restype = ctypes.c_void_p
libc.opendir.argtypes = [ctypes.c_char_p]
libc.readdir.restype = ctypes.POINTER(Dirent)
libc.readdir.argtypes = libc.closedir.argtypes = libc.rewinddir.argtypes = [ctypes.c_void_p]
libc.telldir.restype = ctypes.c_long
libc.telldir.argtypes = [ctypes.c_void_p]
libc.seekdir.argtypes = [ctypes.c_void_p, ctypes.c_long]


@contextlib.contextmanager
def opened(path: Path) -> Iterator[int]:
    stream = libc.opendir(os.fsencode(path))
    assert stream, os.strerror(ctypes.get_errno())
    try:
        yield stream
    finally:
        libc.closedir(stream)


def read_names(stream: int, count: int = 1 << 30) -> list[bytes]:
    found: list[bytes] = []
    while len(found) < count:
        entry = libc.readdir(stream)
        if not entry:
            break
        found.append(entry.contents.d_name)
    return found


def rename(old: Path, new: Path, flags: int) -> None:
    """renameat2; OSError as from os.rename."""
    if libc.renameat2(AT_FDCWD, os.fsencode(old), AT_FDCWD, os.fsencode(new), flags):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


# --- names -----------------------------------------------------------------------------------------------
def test_names_of_every_kind(mounted: Mount):
    home = os.fsencode(mounted.path / 'home')
    wanted = [bytes([number]) for number in range(1, 256) if number not in b'./']
    wanted += [b'n' * 255, b'\xff' * 255, 'ä'.encode() * 127, b'-rf', b'...', b'.snapshot', b'.snapshots2']
    wanted += [b'e\xcc\x81', 'é'.encode(), b'\xed\xa0\x80', b'a\nb']
    for name in wanted:
        with open(home + b'/' + name, 'xb') as file:
            file.write(name)
    for _ in range(2):
        assert sorted(os.listdir(home)) == sorted(wanted)
        for name in wanted:
            with open(home + b'/' + name, 'rb') as file:
                assert file.read() == name
        mounted.restart()


def test_names_that_are_too_long(home: Path):
    long = home / ('n' * 256)
    (home / 'file').touch()
    (home / 'directory').mkdir()
    refused(errno.ENAMETOOLONG, os.stat, long)
    refused(errno.ENAMETOOLONG, os.mkdir, long)
    refused(errno.ENAMETOOLONG, os.mknod, long)
    refused(errno.ENAMETOOLONG, os.open, long, os.O_CREAT | os.O_WRONLY)
    refused(errno.ENAMETOOLONG, os.symlink, 'target', long)
    refused(errno.ENAMETOOLONG, os.link, home / 'file', long)
    refused(errno.ENAMETOOLONG, os.rename, home / 'file', long)
    refused(errno.ENAMETOOLONG, os.rename, home / 'directory', long)
    refused(errno.ENAMETOOLONG, os.mkdir, home.parent / ('v' * 256))
    refused(errno.ENAMETOOLONG, os.mkdir, home / '.snapshots' / ('s' * 256))
    refused(errno.ENAMETOOLONG, os.symlink, 't' * 4096, home / 'link')
    os.symlink('t' * 4095, home / 'link')
    assert os.readlink(home / 'link') == 't' * 4095
    assert names(home) == ['directory', 'file', 'link']


def test_deep_paths(home: Path):
    """Deeper than a path can name, by steps; and back out by one `rm -r`."""
    fd = os.open(home, os.O_RDONLY)
    for level in range(300):
        os.mkdir('d' * 100, dir_fd=fd)
        below = os.open('d' * 100, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
        if level == 250:
            os.close(os.open('file', os.O_CREAT | os.O_WRONLY, dir_fd=fd))
    os.chdir(fd)
    os.close(fd)
    assert os.stat('../' * 300).st_ino == os.stat(home).st_ino
    os.chdir('/')
    assert run('find', home, '-name', 'file', '-printf', '%d\n').strip() == '252'
    run('rm', '-r', home / ('d' * 100))
    assert os.listdir(home) == []


# --- large directories -----------------------------------------------------------------------------------
@pytest.fixture(scope='module')
def crowd(shared_mount: Mount) -> Iterator[Path]:
    """A volume with many files in its root; the tests of this module take from it in order."""
    path = shared_mount.path / 'crowd'
    path.mkdir()
    for number in range(MANY):
        os.close(os.open(path / f'file-{number}', os.O_CREAT | os.O_WRONLY))
    yield path


def everybody(count: int = MANY) -> list[bytes]:
    return sorted([b'.', b'..', *(b'file-%d' % number for number in range(count))])


def test_a_large_directory_is_read_whole(home: Path, crowd: Path):
    with opened(crowd) as stream:
        assert sorted(read_names(stream)) == everybody()
        libc.rewinddir(stream)
        assert sorted(read_names(stream)) == everybody()
    assert len(run('find', crowd, '-type', 'f').splitlines()) == MANY


def test_every_position_of_a_listing_can_be_returned_to(home: Path, crowd: Path):
    chance = random.Random(9)
    with opened(crowd) as stream:
        order: list[bytes] = []
        positions = []
        while True:
            positions.append(libc.telldir(stream))
            found = read_names(stream, 1)
            if not found:
                break
            order += found
        assert sorted(order) == everybody()
        for index in [0, 1, 2, 3, len(order) - 1, *(chance.randrange(len(order)) for _ in range(60))]:
            libc.seekdir(stream, positions[index])
            assert read_names(stream, 3) == order[index : index + 3], f'position {index}'
    with opened(crowd) as stream:  # positions mean the same to somebody else
        libc.seekdir(stream, positions[MANY // 2])
        assert read_names(stream) == order[MANY // 2 :]


def test_a_listing_while_others_make_and_remove(home: Path, crowd: Path):
    """What is there all the time is seen exactly once, whatever comes and goes."""
    chance = random.Random(4)
    comers = 0
    gone: set[bytes] = set()
    seen: list[bytes] = []
    with opened(crowd) as stream:
        while batch := read_names(stream, 500):
            seen += batch
            for _ in range(10):
                os.close(os.open(crowd / f'new-{comers}', os.O_CREAT | os.O_WRONLY))
                comers += 1
                victim = b'file-%d' % chance.randrange(1000)
                if victim not in gone:
                    os.unlink(os.fsencode(crowd) + b'/' + victim)
                    gone.add(victim)
    stayed = [name for name in seen if name.startswith(b'file-') and name not in gone]
    assert len(stayed) == len(set(stayed)), 'a name was seen twice'
    assert set(stayed) == {b'file-%d' % number for number in range(MANY)} - gone
    assert len(seen) == len(set(seen))
    for name in gone:
        (crowd / os.fsdecode(name)).touch()
    for number in range(comers):
        (crowd / f'new-{number}').unlink()


def test_deleting_while_reading_leaves_nothing(home: Path, crowd: Path):
    before = os.stat(crowd).st_mtime_ns
    seen: list[bytes] = []
    with opened(crowd) as stream:
        while entry := libc.readdir(stream):
            name = entry.contents.d_name
            seen.append(name)
            if name not in (b'.', b'..'):
                os.unlink(os.fsencode(crowd) + b'/' + name)
    assert sorted(seen) == everybody()
    assert os.listdir(crowd) == []
    assert os.stat(crowd).st_mtime_ns > before
    crowd.rmdir()


def test_an_open_directory_that_was_removed(home: Path):
    (home / 'directory').mkdir()
    fd = os.open(home / 'directory', os.O_RDONLY)
    os.chdir(fd)
    (home / 'directory').rmdir()
    assert os.listdir(fd) == []
    assert os.fstat(fd).st_nlink == 0
    refused(errno.ENOENT, os.open, 'file', os.O_CREAT | os.O_WRONLY, dir_fd=fd)
    refused(errno.ENOENT, os.mkdir, 'below', dir_fd=fd)
    refused(errno.ENOENT, os.stat, 'anything', dir_fd=fd)
    refused(errno.ENOENT, os.getcwd)
    (home / 'directory').mkdir()
    refused(errno.ENOENT, os.open, 'file', os.O_CREAT | os.O_WRONLY, dir_fd=fd)
    os.close(fd)


def test_link_counts_of_directories(home: Path):
    assert os.stat(home).st_nlink == 2
    shell('mkdir -p a/b a/c; touch a/file; mkdir d; mv a/b d/', home)
    assert [os.stat(home / name).st_nlink for name in ('.', 'a', 'd', 'd/b')] == [4, 3, 3, 2]
    shell('rmdir a/c; rm -r d', home)
    assert [os.stat(home / name).st_nlink for name in ('.', 'a')] == [3, 2]


def test_what_rmdir_and_unlink_refuse(home: Path):
    shell('mkdir -p full/below empty; touch file full/file; ln -s empty link', home)
    refused(errno.ENOTEMPTY, os.rmdir, home / 'full')
    refused(errno.ENOTDIR, os.rmdir, home / 'file')
    refused(errno.ENOTDIR, os.rmdir, home / 'link')
    refused(errno.EISDIR, os.unlink, home / 'empty')
    refused(errno.ENOENT, os.unlink, home / 'nothing')
    refused(errno.ENOTDIR, os.stat, home / 'file/below')
    refused(errno.EINVAL, os.rmdir, f'{home}/empty/.')
    refused(errno.EPERM, os.link, home / 'empty', home / 'second name')
    refused(errno.EEXIST, os.mkdir, home / 'link')


# --- renaming --------------------------------------------------------------------------------------------
def test_rename_replaces_only_what_posix_lets_it(home: Path):
    shell('mkdir -p full/below empty other; touch file second; ln file same', home)
    refused(errno.EISDIR, os.rename, home / 'file', home / 'empty')
    refused(errno.ENOTDIR, os.rename, home / 'empty', home / 'file')
    refused(errno.ENOTEMPTY, os.rename, home / 'other', home / 'full')
    refused(errno.EINVAL, os.rename, home / 'full', home / 'full/below/here')
    refused(errno.ENOENT, os.rename, home / 'nothing', home / 'file')
    refused(errno.ENOENT, os.rename, home / 'file', home / 'nowhere/file')
    os.rename(home / 'file', home / 'same')
    assert {'file', 'same'} <= set(names(home)), 'two names of one file: nothing is done'
    os.rename(home / 'full', home / 'empty')
    os.rename(home / 'second', home / 'file')
    assert os.stat(home / 'same').st_nlink == 1
    assert names(home) == ['empty', 'file', 'other', 'same']
    assert names(home / 'empty') == ['below']


def test_rename_without_replacing(home: Path):
    (home / 'one').write_bytes(b'1')
    (home / 'two').write_bytes(b'2')
    refused(errno.EEXIST, rename, home / 'one', home / 'two', NOREPLACE)
    assert (home / 'two').read_bytes() == b'2'
    rename(home / 'one', home / 'three', NOREPLACE)
    assert names(home) == ['three', 'two']


def test_rename_exchanges(mounted: Mount):
    home = mounted.path / 'home'
    shell('mkdir -p a/inside b; echo file > b/file; ln -s x b/link', home)
    rename(home / 'a/inside', home / 'b/file', EXCHANGE)
    refused(errno.ENOENT, rename, home / 'a', home / 'nothing', EXCHANGE)
    refused(errno.EINVAL, rename, home / 'b', home / 'b/file', EXCHANGE)
    refused(errno.EINVAL, rename, home / 'a', home / 'b', EXCHANGE | NOREPLACE)
    refused(errno.EINVAL, rename, home / 'a', home / 'c', WHITEOUT)
    for _ in range(2):
        assert (home / 'a/inside').read_text() == 'file\n'
        assert stat.S_ISDIR(os.stat(home / 'b/file').st_mode)
        assert os.stat(home / 'b/file/..').st_ino == os.stat(home / 'b').st_ino
        assert [os.stat(home / name).st_nlink for name in ('a', 'b')] == [2, 3]
        mounted.restart()


def test_renaming_between_volumes_is_as_between_disks(mounted: Mount):
    (mounted.path / 'other').mkdir()
    (mounted.path / 'home/file').write_bytes(b'moves')
    refused(errno.EXDEV, os.rename, mounted.path / 'home/file', mounted.path / 'other/file')
    refused(errno.EXDEV, os.link, mounted.path / 'home/file', mounted.path / 'other/file')
    run('mv', mounted.path / 'home/file', mounted.path / 'other/file')
    assert (mounted.path / 'other/file').read_bytes() == b'moves'
    assert os.listdir(mounted.path / 'home') == []


def test_a_listing_in_the_kernel_is_the_same_after_a_remount(mounted: Mount):
    home = mounted.path / 'home'
    for number in range(700):
        (home / f'name {number}').touch()
    with opened(home) as stream:
        order = read_names(stream, 350)
        position = libc.telldir(stream)
        rest = read_names(stream)
    mounted.restart()
    with opened(home) as stream:
        libc.seekdir(stream, position)
        assert read_names(stream) == rest
        libc.rewinddir(stream)
        assert read_names(stream) == order + rest
