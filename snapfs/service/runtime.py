"""L6 runtime: which store stands behind a mount: a small file per mount in a runtime directory. Any thread.

The source that a mount shows is an opaque token, so the way from a mountpoint to its store is an entry
DIRECTORY/MAJOR-MINOR.json, written by the daemon. The directory belongs to the user who mounted: /run/snapfs
for root, /run/user/UID/snapfs for others, or /tmp/snapfs-UID where there is no such thing. The kernel says in
mountinfo who mounted (user_id=), so nobody can lead another user's command to a store of his choice: an entry
counts only when that user owns both the file and its directory. A stale entry harms nobody either: the daemon
compares the device that a client believes in with its own.
"""

from __future__ import annotations

import json
import os
import stat
from dataclasses import asdict, dataclass
from pathlib import Path

from snapfs import limits
from snapfs.format.annotations import fits
from snapfs.service.mounts import Mount


@dataclass(frozen=True, slots=True)
class Entry:
    """What a daemon tells about its mount. Text only; paths are absolute."""

    store: str
    device: str
    mountpoint: str
    source: str
    volume: str | None
    pid: int


def runtime_directories(uid: int) -> list[Path]:
    """Return the directories where entries of `uid` may stand, the preferred one first."""
    if uid == 0:
        return [Path('/run/snapfs')]
    return [Path(f'/run/user/{uid}/snapfs'), Path(f'/tmp/snapfs-{uid}')]


def write_entry(entry: Entry, uid: int, directories: list[Path] | None = None) -> Path | None:
    """Write the entry of a mount made by `uid`. Returns its path, or None when no directory can be used."""
    data = json.dumps(asdict(entry)).encode()
    for directory in directories or runtime_directories(uid):
        path = directory / _file_name(entry.device)
        try:
            if not directory.is_dir():
                directory.mkdir(mode=0o700)
                # Past the umask. Not only root may own a store that root mounted, and look for it here.
                directory.chmod(0o755 if uid == 0 else 0o700)
            if not _trusted(directory, uid, stat.S_ISDIR):
                continue
            path.unlink(missing_ok=True)
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644)
            with open(fd, 'wb') as file:
                os.fchmod(fd, 0o644 if uid == 0 else 0o600)
                file.write(data)
        except OSError:
            continue
        return path
    return None


def remove_entry(path: Path, pid: int) -> None:
    """Remove an entry if it is still that of `pid`. Never raises for a file that is gone."""
    entry = _read(path)
    if entry is not None and entry.pid == pid:
        try:
            path.unlink(missing_ok=True)
        except OSError:
            return


def find_entry(mount: Mount, directories: list[Path] | None = None) -> Entry | None:
    """Return what is known of a mount, or None: not ours, or no entry that can be trusted."""
    uid = mount.owner
    if uid is None or not mount.is_snapfs:
        return None
    for directory in directories or runtime_directories(uid):
        path = directory / _file_name(mount.device)
        if not _trusted(directory, uid, stat.S_ISDIR) or not _trusted(path, uid, stat.S_ISREG):
            continue
        entry = _read(path)
        if entry is not None and entry.device == mount.device and entry.mountpoint == mount.mountpoint:
            return entry
    return None


def forget(mount: Mount, directories: list[Path] | None = None) -> None:
    """Remove the entry of a mount that is no more. Only what this process may remove; never raises."""
    for directory in directories or runtime_directories(mount.owner or 0):
        try:
            (directory / _file_name(mount.device)).unlink(missing_ok=True)
        except OSError:
            continue


def _file_name(device: str) -> str:
    return device.replace(':', '-') + '.json'


def _trusted(path: Path, uid: int, is_kind: object) -> bool:
    assert callable(is_kind)
    try:
        status = os.lstat(path)
    except OSError:
        return False
    return bool(is_kind(status.st_mode)) and status.st_uid == uid and not status.st_mode & 0o022


def _read(path: Path) -> Entry | None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with open(fd, 'rb') as file:
            fields = json.loads(file.read(limits.RUNTIME_ENTRY_BYTES_MAX))
        entry = Entry(**fields)
    except (OSError, ValueError, TypeError, RecursionError):
        return None
    return entry if fits(entry, Entry) else None
