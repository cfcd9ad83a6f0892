"""A filesystem on a loop device that can be shut down as a power cut does: what was not synced is gone.

Blocking. Needs root, loop devices and the filesystem's mkfs; where one is missing, `Unable` says which.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import struct
import subprocess
import time
from pathlib import Path

SHUTDOWN = 0x8004587D  # _IOR('X', 125, __u32): EXT4_IOC_SHUTDOWN, XFS_IOC_GOINGDOWN
NO_LOG_FLUSH = 2  # neither data nor the filesystem's own log
IMAGE_BYTES = 600 << 20  # sparse; xfs wants 300 MiB at least
MAKE = {'ext4': ('mkfs.ext4', '-q', '-F'), 'xfs': ('mkfs.xfs', '-q', '-f')}
PROGRAM_SECONDS = 60


class Unable(Exception):
    """This machine cannot cut the power; the message says what is missing."""


def _program(*words: str | Path) -> None:
    done = subprocess.run(
        [str(word) for word in words],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PROGRAM_SECONDS,
        check=False,
    )
    if done.returncode:
        raise Unable(f'{" ".join(map(str, words))}: {done.stderr.strip() or done.stdout.strip()}')


class LoopDisk:
    """A filesystem of one kind in the file `place`/image, mounted at `place`/disk."""

    def __init__(self, place: Path, kind: str) -> None:
        if os.geteuid() != 0:
            raise Unable('real power cuts need root: run this as root')
        if not os.path.exists('/dev/loop-control'):
            raise Unable('real power cuts need loop devices: load the loop module')
        if shutil.which(MAKE[kind][0]) is None:
            raise Unable(f'power cuts on {kind} need {MAKE[kind][0]}: `make setup` installs it')
        self.image, self.path = place / 'image', place / 'disk'
        self.path.mkdir()
        with self.image.open('wb') as file:
            file.truncate(IMAGE_BYTES)
        _program(*MAKE[kind], self.image)
        self.mount()

    def mount(self) -> None:
        """Mount it; the filesystem replays its own log where it has to."""
        _program('mount', '-o', 'loop', self.image, self.path)

    def cut(self) -> None:
        """Cut the power: from now on every call fails, and what was not synced never reaches the image."""
        fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.ioctl(fd, SHUTDOWN, struct.pack('=I', NO_LOG_FLUSH))
        finally:
            os.close(fd)

    def umount(self) -> None:
        """Unmount. A process that was just killed may hold it for a moment."""
        for _ in range(100):
            try:
                return _program('umount', self.path)
            except Unable:
                time.sleep(0.05)
        _program('umount', self.path)

    def end(self) -> None:
        """Whatever state this is in: nothing stays mounted."""
        if os.path.ismount(self.path):
            subprocess.run(
                ['umount', '-l', self.path], capture_output=True, timeout=PROGRAM_SECONDS, check=False
            )
        self.image.unlink(missing_ok=True)
