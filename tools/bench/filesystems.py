"""tools bench: the filesystems under test: how each is made, mounted, snapshotted and unmounted. Blocking;
one thread.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

BIN = Path(sys.executable).parent
COMMAND_SECONDS_MAX = 600
POLL_SECONDS = 0.002
IMAGE_BYTES = 24 << 30  # sparse; for the filesystems that need a block device


class Failed(Exception):
    """A command of a filesystem under test went wrong; the text says which and how."""


def run(*command: str | Path, check: bool = True) -> str:
    """Run a command to its end and return its standard output. Raises Failed."""
    done = subprocess.run(
        [str(word) for word in command],
        capture_output=True,
        text=True,
        timeout=COMMAND_SECONDS_MAX,
        check=False,
    )
    if check and done.returncode:
        words = ' '.join(str(word) for word in command)
        raise Failed(f'{words}: {(done.stderr or done.stdout).strip() or done.returncode}')
    return done.stdout


def may_drop_caches() -> bool:
    """Tell whether `drop_caches` works."""
    return os.geteuid() == 0


def drop_caches() -> None:
    """Empty the kernel's caches, where we may."""
    os.sync()
    if may_drop_caches():
        Path('/proc/sys/vm/drop_caches').write_text('3')


def used_bytes(path: Path) -> int:
    """Return the bytes allocated below a directory."""
    return sum(
        os.lstat(os.path.join(directory, name)).st_blocks * 512
        for directory, _directories, names in os.walk(path)
        for name in names
    )


def device_flushes(path: Path) -> int | None:
    """Return how many flushes the disk below a path has done, or None when it does not count them."""
    device = os.stat(path).st_dev
    for line in Path('/proc/diskstats').read_text().splitlines():
        fields = line.split()
        if [int(fields[0]), int(fields[1])] == [os.major(device), os.minor(device)]:
            return int(fields[18]) if len(fields) > 18 and int(fields[18]) else None
    return None


class Filesystem:
    """What every filesystem under test can do. `home` is where workloads run, below `mountpoint`."""

    name: ClassVar[str]
    persists: ClassVar[bool] = True
    snapshots: ClassVar[bool] = False

    def __init__(self, directory: Path) -> None:
        self.directory = directory / self.name
        self.mountpoint = self.directory / 'mnt'
        self.home = self.mountpoint
        self.stays = False  # mounted: `go_cold` then only drops the kernel's caches
        self.memory_now = 0  # KiB, of the daemon when it was last seen
        self.memory_most = 0

    @classmethod
    def missing(cls) -> str | None:
        """Return why it cannot be measured here, or None."""
        raise NotImplementedError

    def make(self) -> None:
        """Make it, empty, and leave it unmounted."""

    def mount(self) -> None:
        """Return when it can be used."""
        raise NotImplementedError

    def unmount(self) -> None:
        """Return when all is stored and its daemon, if any, has ended."""
        raise NotImplementedError

    def pid(self) -> int | None:
        """Return its daemon's process id; None when it lives in the kernel."""
        return None

    def stored_bytes(self) -> int | None:
        """Return what it takes on disk; called just after mounting. None when that means nothing."""
        status = os.statvfs(self.mountpoint)
        return (status.f_blocks - status.f_bfree) * status.f_frsize

    def take_snapshot(self, name: str) -> None:
        """Take a snapshot of `home`."""
        raise NotImplementedError

    def delete_snapshot(self, name: str) -> None:
        """Delete it, or request that."""
        raise NotImplementedError

    def prepare_release(self, name: str) -> None:
        """Delete a snapshot, and do all that must be done before the last permission to free its bytes."""

    def release(self, name: str) -> None:
        """Give the last permission to free a snapshot's bytes."""
        self.delete_snapshot(name)

    def delete_snapshots(self, names: Sequence[str]) -> None:
        """Delete many snapshots, or request that."""
        for name in names:
            self.delete_snapshot(name)

    def collect(self) -> None:
        """Return when everything that deleted snapshots alone hold is free."""

    def held_bytes(self) -> int:
        """Return what files and snapshots take on disk, now."""
        run('sync', '-f', self.mountpoint)
        return self.stored_bytes() or 0

    def finish(self) -> None:
        """End what `make` has started; called while not mounted."""

    # --- what all share ----------------------------------------------------------------------------------
    def start(self) -> None:
        """Make the directories and the filesystem, new and empty."""
        self.mountpoint.mkdir(parents=True)
        self.make()

    def weigh(self) -> None:
        """Look at the daemon's memory."""
        pid = self.pid()
        if pid is None:
            return
        text = Path(f'/proc/{pid}/status').read_text()
        for field, kibibytes in re.findall(r'^(VmRSS|VmHWM):\s+(\d+) kB$', text, re.MULTILINE):
            if field == 'VmRSS':
                self.memory_now = int(kibibytes)
            else:
                self.memory_most = max(self.memory_most, int(kibibytes))

    def leave(self) -> None:
        """Look at the memory for the last time, and unmount."""
        self.weigh()
        self.unmount()

    def go_cold(self) -> None:
        """Forget all caches: mount anew where that keeps the files."""
        remount = self.persists and not self.stays
        if remount:
            self.leave()
        drop_caches()
        if remount:
            self.mount()

    def renew(self) -> None:
        """Begin again with an empty one, mounted."""
        self.leave()
        self.finish()
        shutil.rmtree(self.directory)
        self.start()
        self.mount()

    def wait_until_mounted(self, process: subprocess.Popen[bytes] | None = None) -> None:
        """Poll the mount table for `mountpoint`."""
        deadline = time.monotonic() + 30
        while not os.path.ismount(self.mountpoint):
            if process is not None and process.poll() is not None:
                raise Failed(f'{self.name} ended with {process.returncode} before it was mounted')
            if time.monotonic() > deadline:
                raise Failed(f'{self.name} is not mounted after 30 s')
            time.sleep(POLL_SECONDS)


class Snapfs(Filesystem):
    """What all this is about, as a user runs it."""

    name = 'snapfs'
    snapshots = True

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.store = self.directory / 'store'
        self.home = self.mountpoint / 'home'
        self.daemon: int | None = None
        self.resting: list[str] = []  # digests of batches whose grace is not over

    @classmethod
    def missing(cls) -> str | None:
        return None if (BIN / 'snapfs').exists() else f'{BIN / "snapfs"} does not exist'

    def make(self) -> None:
        run(BIN / 'snapfs', 'init', self.store)
        self.mount()
        self.home.mkdir()
        self.unmount()

    def mount(self) -> None:
        self.daemon = None
        run(BIN / 'snapfs', 'mount', self.store, self.mountpoint)

    def unmount(self) -> None:
        run(BIN / 'snapfs', 'umount', self.mountpoint)

    def pid(self) -> int | None:
        if self.daemon is None:
            status = run(BIN / 'snapfs', 'status', '--json', '--store', self.store)
            found = re.search(r'"pid": (\d+)', status)
            self.daemon = int(found[1]) if found else None
        return self.daemon

    def stored_bytes(self) -> int | None:
        return used_bytes(self.store)

    def take_snapshot(self, name: str) -> None:
        os.mkdir(self.home / '.snapshots' / name)

    def delete_snapshot(self, name: str) -> None:
        os.rmdir(self.home / '.snapshots' / name)

    def command(self, *words: str) -> Any:
        """Run a command of ours on the store; return its answer."""
        text = run(BIN / 'snapfs', *words, '--json', '--store', self.store)
        return json.loads(text) if text else None

    def into_quarantine(self) -> list[dict[str, Any]]:
        """Collect, allow what is above the limits, and collect; return the batches that rest then."""
        for plan in self.command('collect')['waiting']:
            self.command('collect', 'approve', plan['digest'])
        self.command('collect')
        batches: list[dict[str, Any]] = self.command('quarantine')
        return batches

    def prepare_release(self, name: str) -> None:
        self.delete_snapshot(name)
        self.resting = [batch['digest'] for batch in self.into_quarantine() if batch['class'] == 'kept']

    def release(self, name: str) -> None:
        for digest in self.resting:
            self.command('collect', 'approve', digest)

    def collect(self) -> None:
        for batch in self.into_quarantine():
            self.command('collect', 'approve', batch['digest'])
        self.command('collect')
        if left := self.command('quarantine'):
            raise Failed(f'{len(left)} batches rest after all permissions were given')

    def held_bytes(self) -> int:
        return used_bytes(self.store / 'packs')


class Foreground(Filesystem):
    """A FUSE filesystem whose daemon is our child."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.process: subprocess.Popen[bytes] | None = None

    def command(self) -> list[str]:
        """Return what stays in the foreground and mounts."""
        raise NotImplementedError

    def mount(self) -> None:
        self.process = subprocess.Popen(self.command(), stdout=subprocess.DEVNULL)
        self.wait_until_mounted(self.process)

    def unmount(self) -> None:
        run('fusermount3', '-u', self.mountpoint)
        if self.process is not None:
            self.process.wait(timeout=60)
            self.process = None

    def pid(self) -> int | None:
        return self.process.pid if self.process is not None else None


class Null(Foreground):
    """The limit of the stack: tools.nullfs."""

    name = 'null'
    persists = False

    @classmethod
    def missing(cls) -> str | None:
        return None

    def command(self) -> list[str]:
        return [sys.executable, '-m', 'tools.nullfs', str(self.mountpoint)]

    def stored_bytes(self) -> int | None:
        return None


class Bindfs(Foreground):
    """A pass-through FUSE filesystem in C over the disk's own filesystem."""

    name = 'bindfs'

    @classmethod
    def missing(cls) -> str | None:
        return None if shutil.which('bindfs') else 'not installed'

    def make(self) -> None:
        (self.directory / 'below').mkdir()

    def command(self) -> list[str]:
        return ['bindfs', '-f', str(self.directory / 'below'), str(self.mountpoint)]

    def stored_bytes(self) -> int | None:
        return used_bytes(self.directory / 'below')


class Btrfs(Filesystem):
    """In the kernel, on a loop device; mounted with the same compression as snapfs, zstd level 1."""

    name = 'btrfs'
    snapshots = True

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.image = self.directory / 'image'
        self.home = self.mountpoint / 'home'

    @classmethod
    def missing(cls) -> str | None:
        if not shutil.which('mkfs.btrfs'):
            return 'not installed'
        if 'btrfs' not in Path('/proc/filesystems').read_text():
            return 'not in this kernel'
        return None if os.geteuid() == 0 else 'only root may mount it'

    def make(self) -> None:
        with self.image.open('wb') as image:
            image.truncate(IMAGE_BYTES)
        run('mkfs.btrfs', '-q', self.image)
        self.mount()
        run('btrfs', 'subvolume', 'create', self.home)
        self.unmount()

    def mount(self) -> None:
        run('mount', '-t', 'btrfs', '-o', 'loop,compress=zstd:1', self.image, self.mountpoint)

    def unmount(self) -> None:
        run('umount', self.mountpoint)

    def take_snapshot(self, name: str) -> None:
        run('btrfs', 'subvolume', 'snapshot', '-r', self.home, self.mountpoint / name)

    def delete_snapshot(self, name: str) -> None:
        run('btrfs', 'subvolume', 'delete', self.mountpoint / name)

    def delete_snapshots(self, names: Sequence[str]) -> None:
        run('btrfs', 'subvolume', 'delete', *(self.mountpoint / name for name in names))

    def collect(self) -> None:
        run('btrfs', 'subvolume', 'sync', self.mountpoint)


class ZfsFuse(Filesystem):
    """ZFS in user space, in C, on a file; with compression and with the kernel's caches allowed, as the
    others have them.
    """

    name = 'zfs-fuse'
    snapshots = True

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.image = self.directory / 'image'
        self.pool = f'bench{os.getpid()}'
        self.process: subprocess.Popen[bytes] | None = None

    @classmethod
    def missing(cls) -> str | None:
        if not shutil.which('zfs-fuse'):
            return 'not installed'
        return None if os.geteuid() == 0 else 'only root may run it'

    def make(self) -> None:
        with self.image.open('wb') as image:
            image.truncate(IMAGE_BYTES)
        if self.pid() is None:  # the service of the package may be running
            command = ['zfs-fuse', '-n', '--no-kstat-mount', '-a', '3600', '-e', '3600']
            self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 30
        while True:
            try:
                run('zpool', 'create', '-m', self.mountpoint, self.pool, self.image)
                break
            except Failed:
                if time.monotonic() > deadline:
                    raise
                time.sleep(POLL_SECONDS * 10)
        run('zfs', 'set', 'compression=on', self.pool)
        self.unmount()

    def mount(self) -> None:
        run('zpool', 'import', '-d', self.directory, self.pool)
        self.wait_until_mounted()

    def unmount(self) -> None:
        run('zpool', 'export', self.pool)

    def pid(self) -> int | None:
        found = run('pidof', 'zfs-fuse', check=False).split()
        return int(found[0]) if found else None

    def take_snapshot(self, name: str) -> None:
        run('zfs', 'snapshot', f'{self.pool}@{name}')

    def delete_snapshot(self, name: str) -> None:
        run('zfs', 'destroy', f'{self.pool}@{name}')

    def held_bytes(self) -> int:
        run('sync', '-f', self.mountpoint)
        return int(run('zfs', 'get', '-Hp', '-o', 'value', 'used', self.pool))

    def finish(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait(timeout=60)


REGISTRY: tuple[type[Filesystem], ...] = (Null, Snapfs, Bindfs, Btrfs, ZfsFuse)
