"""File data through the kernel: mapped, appended, truncated, sparse, locked, open without a name."""

import ctypes
import errno
import fcntl
import mmap
import multiprocessing
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.mounted import Mount, refused, shell, until

HUGE_BYTES = 10**15
FILE_BYTES_MAX = (1 << 60) - 1
RESIDENT_BYTES_MAX = 150 << 20
PAGE = mmap.PAGESIZE
AT_SYMLINK_FOLLOW = 0x400
libc = ctypes.CDLL(None, use_errno=True)


def content(path: Path) -> bytes:
    return path.read_bytes()


def open_file(path: Path, flags: int = os.O_RDWR | os.O_CREAT, mode: int = 0o644) -> int:
    return os.open(path, flags, mode)


# --- mapping ---------------------------------------------------------------------------------------------
def test_a_shared_mapping_is_the_file(home: Path):
    path = home / 'mapped'
    path.write_bytes(b'a' * (3 * PAGE + 10))
    with open(path, 'r+b') as file, mmap.mmap(file.fileno(), 0) as memory:
        assert memory[3 * PAGE + 9 :] == b'a'
        memory[PAGE : PAGE + 5] = b'store'
        memory[3 * PAGE : 3 * PAGE + 4] = b'tail'
        memory.flush()
        os.fsync(file.fileno())
        assert content(path)[PAGE - 1 : PAGE + 6] == b'astorea'
        os.pwrite(file.fileno(), b'write', 2 * PAGE)
        assert memory[2 * PAGE : 2 * PAGE + 5] == b'write'
    assert len(content(path)) == 3 * PAGE + 10
    assert content(path)[3 * PAGE : 3 * PAGE + 5] == b'taila'


def test_a_mapping_outlives_its_descriptor_and_name_and_survives_a_remount(mounted: Mount):
    path = mounted.path / 'home/mapped'
    path.write_bytes(bytes(8 * PAGE))
    fd = open_file(path)
    memory = mmap.mmap(fd, 8 * PAGE)
    os.close(fd)
    memory[5 * PAGE] = 77
    memory.close()  # without msync: the kernel writes when the mapping ends or the mount does
    mounted.restart()
    assert content(path) == bytes(5 * PAGE) + b'\x4d' + bytes(3 * PAGE - 1)


def test_a_private_mapping_changes_nothing(home: Path):
    path = home / 'mapped'
    path.write_bytes(b'as it was' * 1000)
    with open(path, 'r+b') as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as memory:
        memory[:5] = b'other'
        assert content(path) == b'as it was' * 1000


def test_mapping_a_program(home: Path):
    shell('cp "$(command -v sh)" program && ./program -c "exit 3" || test $? = 3', home)
    with pytest.raises(OSError, match='Text file busy'):
        child = subprocess.Popen(
            [home / 'program', '-c', 'read forever'], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL
        )
        try:
            open_file(home / 'program', os.O_WRONLY)
        finally:
            child.communicate(b'\n', timeout=20)


# --- open flags ------------------------------------------------------------------------------------------
def test_append_from_several_writers_loses_nothing(home: Path):
    path = home / 'log'
    path.touch()
    script = 'import os,sys\nfd=os.open(sys.argv[1],os.O_WRONLY|os.O_APPEND)\n'
    script += 'for n in range(200): os.write(fd, f"{sys.argv[2]} {n}\\n".encode())'
    writers = [subprocess.Popen([sys.executable, '-c', script, path, name]) for name in 'abc']
    for writer in writers:
        assert writer.wait(timeout=30) == 0
    assert sorted(path.read_text().split('\n')[:-1]) == sorted(f'{w} {n}' for w in 'abc' for n in range(200))


def test_append_writes_at_the_end_wherever_the_position_is(home: Path):
    fd = open_file(home / 'log', os.O_RDWR | os.O_CREAT | os.O_APPEND)
    os.write(fd, b'one ')
    os.lseek(fd, 0, os.SEEK_SET)
    os.write(fd, b'two ')
    os.truncate(home / 'log', 6)
    os.write(fd, b'three')
    os.close(fd)
    assert content(home / 'log') == b'one twthree'


def test_truncate_on_open_is_seen_by_who_has_it_open(home: Path):
    path = home / 'file'
    path.write_bytes(b'long content' * 10_000)
    fd = open_file(path, os.O_RDONLY)
    assert os.pread(fd, 4, 50_000)
    os.close(open_file(path, os.O_WRONLY | os.O_TRUNC))
    assert os.fstat(fd).st_size == 0
    assert os.pread(fd, 4, 50_000) == b''
    os.close(fd)
    assert os.stat(path).st_blocks == 0


def test_exclusive_creation_has_one_winner(home: Path):
    path = home / 'only once'
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY
    os.close(open_file(path, flags))
    refused(errno.EEXIST, os.open, path, flags)
    os.symlink('nowhere', home / 'dangling')
    refused(errno.EEXIST, os.open, home / 'dangling', flags)
    refused(errno.ELOOP, os.open, home / 'dangling', os.O_RDONLY | os.O_NOFOLLOW)
    refused(errno.ENOTDIR, os.open, path, os.O_RDONLY | os.O_DIRECTORY)
    refused(errno.EISDIR, os.open, home, os.O_WRONLY)


def test_a_file_without_a_name_from_the_start(home: Path):
    """O_TMPFILE is not supported and says so, which is what programs fall back from."""
    refused(errno.EOPNOTSUPP, os.open, home, os.O_TMPFILE | os.O_RDWR, 0o600)


# --- sizes -----------------------------------------------------------------------------------------------
def test_ftruncate_grows_with_zeros_and_shrinks_for_good(home: Path):
    path = home / 'file'
    chance = random.Random(11)
    expected = bytearray()
    fd = open_file(path)
    for turn in range(60):
        size = chance.choice([0, 1, PAGE - 1, PAGE, 40_000, 131_072, 131_073, 300_000])
        if turn % 3:
            os.ftruncate(fd, size)
            expected[size:] = bytes(max(size - len(expected), 0))
        else:
            data = chance.randbytes(chance.randrange(1, 50_000))
            os.pwrite(fd, data, size)
            expected += bytes(max(size + len(data) - len(expected), 0))
            expected[size : size + len(data)] = data
        if turn % 7 == 0:
            os.fsync(fd)
        assert os.fstat(fd).st_size == len(expected), f'turn {turn}'
        assert os.pread(fd, len(expected) + 1, 0) == expected, f'turn {turn}'
    os.close(fd)


def test_shrunk_and_grown_bytes_do_not_come_back_after_a_remount(mounted: Mount):
    path = mounted.path / 'home/file'
    path.write_bytes(b'x' * 200_000)
    os.sync()
    os.truncate(path, 70_001)
    os.truncate(path, 150_000)
    mounted.restart()
    assert content(path) == b'x' * 70_001 + bytes(79_999)


def test_a_huge_sparse_file_costs_nothing(mounted: Mount):
    home = mounted.path / 'home'
    path = home / 'huge'
    before = mounted.resident_bytes()
    fd = open_file(path)
    for size in (HUGE_BYTES, HUGE_BYTES // 2 + 1, HUGE_BYTES):
        os.ftruncate(fd, size)
        os.pwrite(fd, b'end', size - 3)
        os.pwrite(fd, b'middle', size // 3)
        os.fsync(fd)
        assert os.pread(fd, 10, size - 3) == b'end'
        assert os.pread(fd, 20, size // 3 - 7) == bytes(7) + b'middle' + bytes(7)
        assert os.pread(fd, 4096, size // 5) == bytes(4096)
    assert os.fstat(fd).st_size == HUGE_BYTES
    assert os.fstat(fd).st_blocks < 1000
    os.ftruncate(fd, 5)
    os.ftruncate(fd, HUGE_BYTES)
    assert os.pread(fd, 10, HUGE_BYTES // 3) == bytes(10)
    os.close(fd)
    (home / '.snapshots/with huge').mkdir()
    os.unlink(path)
    assert os.stat(home / '.snapshots/with huge/huge').st_size == HUGE_BYTES
    mounted.snapfs('snapshot', 'create', 'home@without huge')
    assert mounted.resident_bytes(peak=True) < max(RESIDENT_BYTES_MAX, before + (16 << 20))


def test_the_largest_file(home: Path):
    path = home / 'largest'
    fd = open_file(path)
    os.ftruncate(fd, FILE_BYTES_MAX)
    refused(errno.EFBIG, os.ftruncate, fd, FILE_BYTES_MAX + 1)
    refused(errno.EFBIG, os.truncate, path, (1 << 63) - 1)
    refused(errno.EFBIG, os.pwrite, fd, b'12', FILE_BYTES_MAX - 1)
    assert os.pwrite(fd, b'1', FILE_BYTES_MAX - 1) == 1
    assert os.pread(fd, 10, FILE_BYTES_MAX - 1) == b'1'
    refused(errno.EINVAL, os.ftruncate, fd, -1)
    os.close(fd)
    os.unlink(path)


def test_fallocate_says_what_it_cannot_do(home: Path):
    """A program either gets the space by writing zeros (posix_fallocate does that), or hears ENOTSUP."""
    fd = open_file(home / 'file')
    for mode in (0, 1, 2 | 1, 8, 16):  # plain, KEEP_SIZE, PUNCH_HOLE, COLLAPSE_RANGE, ZERO_RANGE
        result = libc.fallocate(fd, mode, ctypes.c_long(0), ctypes.c_long(PAGE))
        assert (result, ctypes.get_errno()) == (-1, errno.EOPNOTSUPP), mode
    os.write(fd, b'kept')
    os.posix_fallocate(fd, 0, 100_000)
    assert os.fstat(fd).st_size == 100_000
    assert os.pread(fd, 10, 0) == b'kept' + bytes(6)
    os.close(fd)


def test_what_only_a_descriptor_of_the_right_kind_can_do(home: Path):
    reader = open_file(home / 'file', os.O_RDONLY | os.O_CREAT)
    writer = open_file(home / 'file', os.O_WRONLY)
    refused(errno.EBADF, os.write, reader, b'x')
    refused(errno.EBADF, os.read, writer, 1)
    refused(errno.EINVAL, os.ftruncate, reader, 0)
    directory = os.open(home, os.O_RDONLY)
    os.fsync(directory)
    os.fdatasync(writer)
    os.fsync(reader)
    for fd in (reader, writer, directory):
        os.close(fd)


def test_copying_within_the_kernel(home: Path):
    source, target = open_file(home / 'source'), open_file(home / 'target')
    data = random.Random(1).randbytes(300_000)
    os.pwrite(source, data, 0)
    done = 0
    while done < len(data):
        done += os.copy_file_range(source, target, len(data) - done, done, done)
    assert os.pread(target, len(data) + 1, 0) == data
    os.ftruncate(target, 0)
    os.lseek(target, 0, os.SEEK_SET)
    done = 0
    while done < len(data):
        done += os.sendfile(target, source, done, len(data) - done)
    assert os.pread(target, len(data) + 1, 0) == data
    os.close(source)
    os.close(target)


def test_direct_io(home: Path):
    fd = open_file(home / 'direct', os.O_RDWR | os.O_CREAT | os.O_DIRECT)
    with mmap.mmap(-1, 2 * PAGE) as memory:
        memory.write(b'd' * 2 * PAGE)
        assert os.pwrite(fd, memory, 0) == 2 * PAGE
        memory[:] = bytes(2 * PAGE)
        assert os.preadv(fd, [memory], 0) == 2 * PAGE
        assert memory[:] == b'd' * 2 * PAGE
    os.close(fd)
    assert content(home / 'direct') == b'd' * 2 * PAGE


# --- without a name --------------------------------------------------------------------------------------
def test_an_unlinked_file_lives_until_it_is_closed(home: Path):
    path = home / 'file'
    fd = open_file(path)
    os.write(fd, b'before' * 10_000)
    os.unlink(path)
    refused(errno.ENOENT, os.stat, path)
    assert os.fstat(fd).st_nlink == 0
    os.pwrite(fd, b'after', 100_000)
    os.ftruncate(fd, 200_000)
    os.fchmod(fd, 0o600)
    os.fsync(fd)
    assert os.pread(fd, 6, 6) == b'before'
    assert os.pread(fd, 7, 100_000) == b'after\0\0'
    path.write_bytes(b'another file of that name')
    assert os.pread(fd, 6, 0) == b'before'
    again = os.fsencode(home / 'again')
    assert libc.linkat(-1, b'/proc/self/fd/%d' % fd, -1, again, AT_SYMLINK_FOLLOW) == -1
    assert ctypes.get_errno() == errno.ENOENT
    os.close(fd)
    assert content(path) == b'another file of that name'


def test_a_file_replaced_by_rename_lives_until_it_is_closed(home: Path):
    (home / 'old').write_bytes(b'old')
    (home / 'new').write_bytes(b'new')
    fd = open_file(home / 'old')
    os.rename(home / 'new', home / 'old')
    os.pwrite(fd, b'OLD!', 0)
    assert os.pread(fd, 10, 0) == b'OLD!'
    assert content(home / 'old') == b'new'
    os.close(fd)


@pytest.mark.parametrize('ending', ['kill', 'stop'])
def test_an_unlinked_file_is_gone_after_the_mount(mounted: Mount, ending: str):
    path = mounted.path / 'home/file'
    (mounted.path / 'home/stays').write_bytes(b'stays')
    mounted.snapfs('snapshot', 'create', 'home@commit')
    fd = open_file(path)
    os.write(fd, random.Random(2).randbytes(3 << 20))
    os.fsync(fd)
    os.unlink(path)
    os.write(fd, b'more')
    os.fsync(fd)
    assert len(os.pread(fd, 4 << 20, 0)) == (3 << 20) + 4
    if ending == 'kill':
        mounted.kill_while_busy()
        os.close(fd)
        mounted.end_dead_mount()
    else:
        os.close(fd)
        mounted.stop()
    mounted.start()
    assert os.listdir(mounted.path / 'home') == ['stays']
    mounted.stop()
    assert count_inodes(mounted) == 2


def count_inodes(mount: Mount) -> int:
    """Return how many inodes the only volume has, read from the store without the daemon's help."""
    script = """
import sys, pathlib, trio
from snapfs.format.keys import ItemKind, decode_key
from snapfs.store.durable import Disk
from snapfs.volume.engine import Engine
from snapfs.world import World
async def main():
    engine = await Engine.open(pathlib.Path(sys.argv[1]), Disk(), World())
    head = next(iter(engine.heads().values()))
    kinds = [decode_key(key)[1] for key, _ in await head._page(b'', b'\\xff' * 10, 10_000)]
    print(kinds.count(ItemKind.INODE), kinds.count(ItemKind.ORPHAN))
    await engine.close()
trio.run(main)
"""
    done = subprocess.run(
        [sys.executable, '-c', script, mount.store], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    inodes, orphans = map(int, done.stdout.split())
    assert orphans == 0
    return inodes


# --- locks -----------------------------------------------------------------------------------------------
def _try_lock(path: Path, kind: str, answers) -> None:
    fd = os.open(path, os.O_RDWR)
    lock = fcntl.flock if kind == 'flock' else fcntl.lockf
    try:
        lock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        answers.put(error.errno)
    else:
        answers.put(0)
    os.close(fd)


@pytest.mark.parametrize('kind', ['flock', 'lockf'])
def test_locks_keep_other_processes_out(home: Path, kind: str):
    path = home / 'locked'
    path.write_bytes(b'0123456789')
    context = multiprocessing.get_context('spawn')
    answers = context.Queue()

    def other() -> int:
        child = context.Process(target=_try_lock, args=(path, kind, answers))
        child.start()
        child.join(20)
        assert child.exitcode == 0
        return answers.get(timeout=5)

    fd = open_file(path)
    lock = fcntl.flock if kind == 'flock' else fcntl.lockf
    lock(fd, fcntl.LOCK_EX)
    assert other() in (errno.EAGAIN, errno.EACCES)
    lock(fd, fcntl.LOCK_UN)
    assert other() == 0
    if kind == 'lockf':
        fcntl.lockf(fd, fcntl.LOCK_EX, 5, 100)
        assert other() in (errno.EAGAIN, errno.EACCES)
    os.close(fd)
    assert other() == 0


def test_a_lease_or_watch_on_the_mount_sees_changes(home: Path):
    """inotify works for what happens through this mount."""
    fd = libc.inotify_init1(os.O_NONBLOCK)
    assert libc.inotify_add_watch(fd, os.fsencode(home), 0x100 | 0x200) > 0  # IN_CREATE, IN_DELETE
    (home / 'seen').touch()
    os.unlink(home / 'seen')
    seen = b''

    def both() -> bool:
        nonlocal seen
        try:
            seen += os.read(fd, 4096)
        except BlockingIOError:
            pass
        return seen.count(b'seen') == 2

    until(both, 'two events')
    os.close(fd)
