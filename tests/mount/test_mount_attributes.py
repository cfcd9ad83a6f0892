"""Owners, modes, times, extended attributes and numbers of files, and who may do what, through the kernel."""

import ctypes
import errno
import os
import stat
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.mounted import NOBODY, Mount, as_user, names, refused, run, shell

UTIME_NOW, UTIME_OMIT = (1 << 30) - 1, (1 << 30) - 2
AT_FDCWD, AT_SYMLINK_NOFOLLOW = -100, 0x100
HANDLE_BYTES_MAX = 128
# Version 2; owner rwx, user 1000 r, group r, mask r, others nothing: more than a mode can say.
ACL = bytes.fromhex(
    '02000000 01000700ffffffff 02000400e8030000 04000400ffffffff 10000400ffffffff 20000000ffffffff'
)
libc = ctypes.CDLL(None, use_errno=True)


def mode(path: Path) -> int:
    return stat.S_IMODE(os.lstat(path).st_mode)


def times(path: Path) -> tuple[int, int]:
    status = os.lstat(path)
    return status.st_atime_ns, status.st_mtime_ns


# --- times -----------------------------------------------------------------------------------------------
def utimensat(path: Path, atime: tuple[int, int], mtime: tuple[int, int], flags: int = 0) -> None:
    pair = (ctypes.c_long * 4)(*atime, *mtime)
    if libc.utimensat(AT_FDCWD, os.fsencode(path), pair, flags):
        raise OSError(ctypes.get_errno(), 'utimensat')


def test_every_form_of_utimensat(mounted: Mount):
    path = mounted.path / 'home/file'
    path.touch()
    utimensat(path, (1, 999_999_999), (-5, 1))
    assert times(path) == (1_999_999_999, -4_999_999_999)
    utimensat(path, (0, UTIME_OMIT), (7, 8))
    assert times(path) == (1_999_999_999, 7_000_000_008)
    utimensat(path, (9, 10), (0, UTIME_OMIT))
    assert times(path) == (9_000_000_010, 7_000_000_008)
    before = os.stat(path).st_ctime_ns
    utimensat(path, (0, UTIME_OMIT), (0, UTIME_OMIT))
    assert os.stat(path).st_ctime_ns == before
    now = time.time_ns()
    utimensat(path, (0, UTIME_NOW), (5, 0))
    assert abs(times(path)[0] - now) < 60 * 10**9
    assert times(path)[1] == 5 * 10**9
    os.utime(path)
    assert min(times(path)) > now - 10**9
    for seconds in (-(1 << 32), 1 << 33):
        utimensat(path, (seconds, 123_456_789), (seconds, 987_654_321))
        wanted = seconds * 10**9 + 123_456_789, seconds * 10**9 + 987_654_321
        assert times(path) == wanted
        mounted.restart()
        assert times(path) == wanted


def test_times_of_a_symbolic_link_are_its_own(home: Path):
    (home / 'file').touch()
    os.symlink('file', home / 'link')
    target = times(home / 'file')
    utimensat(home / 'link', (1, 2), (3, 4), AT_SYMLINK_NOFOLLOW)
    assert times(home / 'link') == (1_000_000_002, 3_000_000_004)
    assert times(home / 'file') == target


@pytest.mark.parametrize(
    ('script', 'changed', 'modified'),
    [
        ('echo more >> directory/file', 'directory/file', True),
        ('truncate -s 3 directory/file', 'directory/file', True),
        ('touch directory/new', 'directory', True),
        ('rm directory/file', 'directory', True),
        ('mv directory/file directory/renamed', 'directory', True),
        ('mkdir directory/below', 'directory', True),
        ('chmod 600 directory/file', 'directory/file', False),
        ('ln directory/file second', 'directory/file', False),
        ('setfattr -n user.name -v value directory/file', 'directory/file', False),
    ],
)
def test_what_changes_times(home: Path, script: str, changed: str, modified: bool):
    shell('mkdir directory; echo text > directory/file; touch -d @5 directory/file directory', home)
    before = os.stat(home / changed).st_ctime_ns
    shell(script, home)
    after = os.stat(home / changed)
    assert after.st_ctime_ns > before
    assert (after.st_mtime_ns != 5 * 10**9) == modified


# --- modes and owners ------------------------------------------------------------------------------------
def test_the_umask_and_the_modes_of_what_is_made(home: Path):
    script = (
        'umask 027; touch file; mkdir directory; mkfifo fifo; umask 0; mkdir -m 1777 sticky; ln -s x link'
    )
    shell(script, home)
    found = {name: mode(home / name) for name in ('file', 'directory', 'fifo', 'sticky', 'link')}
    assert found == {'file': 0o640, 'directory': 0o750, 'fifo': 0o640, 'sticky': 0o1777, 'link': 0o777}
    for bits in range(0, 0o10000, 0o111):
        os.chmod(home / 'file', bits)
        assert mode(home / 'file') == bits


def test_setgid_directories_give_their_group(as_root: None, home: Path):
    shell('mkdir shared; chgrp 4242 shared; chmod 2775 shared', home)
    shell('touch file; mkdir -p one/two; ln -s x link; mkfifo fifo', home / 'shared')
    for name in ('file', 'one', 'one/two', 'link', 'fifo'):
        assert os.lstat(home / 'shared' / name).st_gid == 4242, name
    assert mode(home / 'shared/one/two') & 0o2000
    assert not mode(home / 'shared/file') & 0o2000


def test_setuid_and_setgid_end_with_a_change_by_others(as_root: None, home: Path):
    def fresh() -> Path:
        path = home / 'program'
        path.write_bytes(b'program')
        os.chown(path, 1000, 1000)
        os.chmod(path, 0o6777)
        assert mode(path) == 0o6777
        return path

    for script in ('echo x >> program', 'truncate -s 2 program', ': > program', 'echo x 1<> program'):
        path = fresh()
        as_user(script, home)
        assert mode(path) == 0o777, script
    path = fresh()
    os.chown(path, 1001, -1)
    assert mode(path) == 0o777
    path = fresh()
    os.chown(path, -1, 1001)
    assert mode(path) == 0o777
    path = fresh()
    os.chmod(path, 0o2767)  # setgid without x for the group is no setgid program
    os.chown(path, 1001, 1001)
    assert mode(path) == 0o2767


def test_setuid_stays_when_root_writes(as_root: None, mounted: Mount):
    """As on other Linux filesystems: the kernel knows who has CAP_FSETID and asks for what must go."""
    path = mounted.path / 'home/program'
    path.write_bytes(b'program')
    os.chmod(path, 0o6755)
    with open(path, 'ab') as file:
        file.write(b'more')
    assert mode(path) == 0o6755
    mounted.restart()
    assert mode(path) == 0o6755


def test_capabilities_of_a_program_end_with_a_write(as_root: None, home: Path):
    path = home / 'program'
    path.write_bytes(b'program')
    capability = bytes.fromhex('0100000200040000000000000000000000000000')
    os.setxattr(path, 'security.capability', capability)
    assert os.getxattr(path, 'security.capability') == capability
    with open(path, 'ab') as file:
        file.write(b'more')
    refused(errno.ENODATA, os.getxattr, path, 'security.capability')


def test_what_another_user_may_do(as_root: None, home: Path):
    shell('mkdir -m 755 mine; mkdir -m 700 closed; mkdir -m 1777 sticky; mkdir -m 711 passage', home)
    shell(
        'echo secret > mine/secret; chmod 600 mine/secret; echo open > mine/open; chmod 644 mine/open', home
    )
    shell(
        'echo x > closed/x; echo x > sticky/x; chmod 666 sticky/x; echo x > passage/known; ls > group', home
    )
    shell(f'chgrp {NOBODY} group; chmod 640 group', home)
    allowed = [
        'cat mine/open',
        'ls mine',
        'cat passage/known',
        'cat group',
        'echo y > sticky/x',
        'stat closed',
    ]
    allowed += [
        'touch sticky/own && rm sticky/own',
        'mkdir sticky/dir && rmdir sticky/dir',
        'test -r mine/open',
    ]
    denied = [
        'cat mine/secret',
        'ls closed',
        'cat closed/x',
        'ls passage',
        'touch mine/new',
        'rm -f mine/open',
    ]
    denied += [
        'echo y > mine/open',
        'echo y > group',
        'rm -f sticky/x',
        'mv sticky/x sticky/y',
        'chmod 600 sticky/x',
    ]
    denied += [f'chown {NOBODY} sticky/x', 'touch -d @1 mine/open', 'setfattr -n user.a -v b mine/open']
    denied += [
        'setfattr -n trusted.a -v b sticky/x',
        'mkdir new',
        'test -w mine/open',
        'ln mine/secret sticky/s',
    ]
    denied += ['mknod sticky/device c 1 3', 'mv mine/open sticky/', 'mkdir .snapshots/theirs']
    for script in allowed:
        as_user(script, home)
    for script in denied:
        as_user(script, home, fails=True)
    assert names(home / 'sticky') == ['x']
    assert names(home / 'mine') == ['open', 'secret']
    assert names(home / '.snapshots') == []


def test_what_an_owner_may_do_with_his_own(as_root: None, home: Path):
    shell(f'mkdir own; chown {NOBODY}:{NOBODY} own', home)
    as_user('echo x > file; chmod 4755 file; touch -d @77 file; setfattr -n user.a -v b file', home / 'own')
    assert mode(home / 'own/file') == 0o4755
    assert os.stat(home / 'own/file').st_mtime_ns == 77 * 10**9
    as_user('chown 0 file', home / 'own', fails=True)
    as_user('chgrp 0 file', home / 'own', fails=True)
    as_user(f'chgrp {NOBODY} file', home / 'own')
    os.chown(home / 'own/file', NOBODY, 12345)
    as_user('chmod 2755 file', home / 'own')
    assert mode(home / 'own/file') == 0o755, 'setgid of a group that one is not in'
    os.chown(home, NOBODY, NOBODY)
    as_user('mkdir .snapshots/of-the-owner && rmdir .snapshots/of-the-owner', home)


def test_devices_work_or_not_as_mounted(as_root: None, place: Path, new_mount: Callable[..., Mount]):
    mount = new_mount(place, 'allow_other,nodev,nosuid')
    mount.start()
    (mount.path / 'home').mkdir()
    os.mknod(mount.path / 'home/null', stat.S_IFCHR | 0o666, os.makedev(1, 3))
    refused(errno.EACCES, os.open, mount.path / 'home/null', os.O_WRONLY)
    mount.stop()
    mount.options = 'allow_other,dev'
    mount.start()
    (mount.path / 'home/null').write_bytes(b'into nothing')


# --- extended attributes ---------------------------------------------------------------------------------
def test_extended_attributes_have_limits_and_flags(mounted: Mount):
    path = mounted.path / 'home/file'
    path.touch()
    values = {
        'user.empty': b'',
        'user.large': b'\0' * 65536,
        'user.' + 'n' * 250: b'v',
        'user.1k': b'k' * 1025,
    }
    for name, value in values.items():
        os.setxattr(path, name, value)
    refused(errno.EEXIST, os.setxattr, path, 'user.empty', b'x', os.XATTR_CREATE)
    refused(errno.ENODATA, os.setxattr, path, 'user.none', b'x', os.XATTR_REPLACE)
    refused(errno.ENODATA, os.getxattr, path, 'user.none')
    refused(errno.ENODATA, os.removexattr, path, 'user.none')
    refused(errno.E2BIG, os.setxattr, path, 'user.empty', bytes(65537))
    refused(errno.ERANGE, os.setxattr, path, 'user.' + 'n' * 251, b'')
    refused(errno.EOPNOTSUPP, os.setxattr, path, 'system.posix_acl_access', ACL)
    refused(errno.EOPNOTSUPP, os.getxattr, path, 'system.posix_acl_access')
    os.setxattr(path, 'user.empty', b'no more', os.XATTR_REPLACE)
    os.removexattr(path, 'user.1k')
    wanted = {**values, 'user.empty': b'no more'}
    del wanted['user.1k']
    for _ in range(2):
        assert {name: os.getxattr(path, name) for name in os.listxattr(path)} == wanted
        mounted.restart()
    assert libc.getxattr(os.fsencode(path), b'user.large', ctypes.create_string_buffer(10), 10) == -1
    assert ctypes.get_errno() == errno.ERANGE


# --- numbers ---------------------------------------------------------------------------------------------
def test_statfs_tells_of_the_disk_below(shared_mount: Mount, home: Path):
    below, here = os.statvfs(shared_mount.store), os.statvfs(home)
    assert here.f_blocks * here.f_frsize == below.f_blocks * below.f_frsize
    free_below, free = below.f_bavail * below.f_frsize, here.f_bavail * here.f_frsize
    assert free_below - (256 << 20) < free <= free_below
    assert here.f_namemax == 255
    assert here.f_files >= here.f_ffree > 0
    assert str(shared_mount.path) in run('df', '--output=target', home)


def name_to_handle(path: Path) -> bytes:
    buffer = ctypes.create_string_buffer(8 + HANDLE_BYTES_MAX)
    ctypes.cast(buffer, ctypes.POINTER(ctypes.c_uint))[0] = HANDLE_BYTES_MAX
    mount_id = ctypes.c_int()
    if libc.name_to_handle_at(AT_FDCWD, os.fsencode(path), buffer, ctypes.byref(mount_id), 0):
        raise OSError(ctypes.get_errno(), 'name_to_handle_at')
    return buffer.raw


def open_by_handle(mount: Path, handle: bytes) -> int:
    anchor = os.open(mount, os.O_RDONLY)
    fd = libc.open_by_handle_at(anchor, ctypes.create_string_buffer(handle, len(handle)), os.O_RDONLY)
    number = ctypes.get_errno()
    os.close(anchor)
    if fd < 0:
        raise OSError(number, os.strerror(number))
    return fd


def test_numbers_and_handles_survive_a_remount(as_root: None, mounted: Mount):
    home = mounted.path / 'home'
    shell('mkdir -p a/b; echo live > a/b/file; echo gone > gone; mkdir .snapshots/then', home)
    paths = [home, home / 'a', home / 'a/b', home / 'a/b/file', home / '.snapshots', home / '.snapshots/then']
    paths += [
        home / '.snapshots/then/a/b/file',
        home / 'a/.snapshots/then/b',
        mounted.path / '.snapfs/health',
    ]
    numbers = [os.stat(path).st_ino for path in paths]
    assert len(set(numbers)) == len(numbers)
    live, past, gone = map(name_to_handle, (paths[3], paths[6], home / 'gone'))
    os.unlink(home / 'gone')
    mounted.restart()
    for handle, path in ((live, paths[3]), (past, paths[6])):
        fd = open_by_handle(mounted.path, handle)
        assert os.read(fd, 10) == b'live\n'
        assert os.fstat(fd).st_ino == numbers[paths.index(path)]
        os.close(fd)
    refused(errno.ESTALE, open_by_handle, mounted.path, gone)
    os.chmod(paths[3], 0)
    assert [os.stat(path).st_ino for path in paths] == numbers


# --- not root --------------------------------------------------------------------------------------------
OWNER_LIFE = """
    as_owner() {
        # The capability lets him read the program wherever this checkout lies, and nothing else.
        setpriv --reuid {uid} --regid {uid} --clear-groups --inh-caps=+dac_read_search \
            --ambient-caps=+dac_read_search /bin/sh -euc "$1"
    }
    # A /dev/fuse that everybody may open, as udev makes it, whatever this machine has; seen in here alone.
    mkdir devices; mount -t tmpfs devices devices; mknod -m 666 devices/fuse c 10 229
    chmod 666 devices/fuse; mount --bind devices/fuse /dev/fuse
    cd own
    as_owner 'mkdir mnt; snapfs init store; snapfs mount store mnt'
    as_owner 'mkdir mnt/home; echo text > mnt/home/file; mkdir mnt/home/.snapshots/one'
    as_owner 'test "$(stat -c %u mnt/home/file)" = {uid}; cat mnt/home/.snapshots/one/file'
    as_owner 'snapfs status --store store; snapfs volume create --store store other'
    if stat mnt/home; then echo 'not even root may, without allow_other'; exit 1; fi
    as_owner 'snapfs umount mnt; test -z "$(ls mnt)"'
    as_owner 'snapfs mount store mnt; cat mnt/home/file; ls mnt/other; snapfs umount mnt'
"""


def test_a_user_mounts_a_store_of_his_own(as_root: None, place: Path):
    own = place / 'own'
    own.mkdir()
    os.chown(own, NOBODY, NOBODY)
    script = OWNER_LIFE.replace('{uid}', str(NOBODY))
    run('unshare', '--mount', '--kill-child', '--pid', '--fork', '/bin/sh', '-euc', script, cwd=place)
    log = (own / 'store/daemon.log').read_text()
    assert log.count('closed') == 2
    assert 'ERROR' not in log, log
