"""L6 system: the mount(2) family, as root by system call, else by fusermount3. Blocking: call it from a
thread."""

from __future__ import annotations

import ctypes
import errno
import os
import subprocess

from snapfs.errors import Unavailable
from snapfs.service.options import MountOptions

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_SYNCHRONOUS, MS_REMOUNT = 1, 2, 4, 8, 16, 32  # <sys/mount.h>
MS_DIRSYNC, MS_NOATIME, MS_NODIRATIME, MS_BIND, MS_RELATIME, MS_STRICTATIME = (
    128,
    1 << 10,
    1 << 11,
    1 << 12,
    1 << 21,
    1 << 24,
)
MNT_DETACH, UMOUNT_NOFOLLOW = 2, 8
FLAGS = {
    'ro': MS_RDONLY,
    'nosuid': MS_NOSUID,
    'nodev': MS_NODEV,
    'noexec': MS_NOEXEC,
    'sync': MS_SYNCHRONOUS,
    'dirsync': MS_DIRSYNC,
    'noatime': MS_NOATIME,
    'nodiratime': MS_NODIRATIME,
    'strictatime': MS_STRICTATIME,
}


def unmount(mountpoint: str, *, lazy: bool = False) -> None:
    """Unmount. Unavailable when it is busy or not allowed; `lazy` takes it out of sight whoever still uses
    it."""
    if os.geteuid() == 0:
        _umount2(mountpoint, UMOUNT_NOFOLLOW | (MNT_DETACH if lazy else 0))
        return
    command = ['fusermount3', '-u', *(['-z'] if lazy else []), '--', mountpoint]
    try:
        done = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, check=False)
    except FileNotFoundError:
        raise Unavailable('fusermount3 is not installed, and only root can unmount without it') from None
    if done.returncode:
        text = done.stderr.decode(errors='replace')
        if 'busy' in text:
            raise _busy(mountpoint)
        raise Unavailable(f'{mountpoint} cannot be unmounted: {" ".join(text.split())}')


def remount(mountpoint: str, options: MountOptions) -> None:
    """Give a mount the flags of `options`, all of them. Root only."""
    if os.geteuid() != 0:
        raise Unavailable('only root can change the options of a mount; unmount it and mount it again')
    _mount(mountpoint, MS_REMOUNT | _bits(options), 'remounted')


def set_time_flags(mountpoint: str, options: MountOptions) -> None:
    """Give a fresh mount the access time flags that libfuse has no word for. Does nothing when not root."""
    if os.geteuid() == 0 and (options.nodiratime or options.strictatime):
        _mount(mountpoint, MS_REMOUNT | MS_BIND | _bits(options), 'given its access time options')


def _bits(options: MountOptions) -> int:
    bits = 0
    for name, bit in FLAGS.items():
        if getattr(options, name):
            bits |= bit
    return bits if options.noatime or options.strictatime else bits | MS_RELATIME


def _umount2(mountpoint: str, flags: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.umount2(os.fsencode(mountpoint), flags) == 0:
        return
    code = ctypes.get_errno()
    if code == errno.EBUSY:
        raise _busy(mountpoint)
    raise Unavailable(f'{mountpoint} cannot be unmounted: {os.strerror(code)}')


def _mount(mountpoint: str, flags: int, what: str) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    target = os.fsencode(mountpoint)
    if libc.mount(b'none', target, None, ctypes.c_ulong(flags), None) != 0:
        code = ctypes.get_errno()
        hint = ': a file in it is open for writing' if code == errno.EBUSY else f': {os.strerror(code)}'
        raise Unavailable(f'{mountpoint} cannot be {what}{hint}')


def _busy(mountpoint: str) -> Unavailable:
    return Unavailable(
        f'{mountpoint} is busy',
        advice='Some process has a file open in it or stands in it; `fuser -vm` shows which.',
    )
