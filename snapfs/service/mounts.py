"""L6 mounts: what /proc/self/mountinfo says. Touches no mounted file system. Any thread."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from snapfs import limits
from snapfs.errors import Unavailable

FSTYPE = 'fuse.snapfs'


@dataclass(frozen=True, slots=True)
class Mount:
    """One line of mountinfo. `device` is 'major:minor'; `options` are those of the mount."""

    device: str
    mountpoint: str
    fstype: str
    source: str
    options: tuple[str, ...]
    super_options: tuple[str, ...]

    @property
    def is_snapfs(self) -> bool:
        return self.fstype == FSTYPE

    @property
    def owner(self) -> int | None:
        """The user who mounted it, as the kernel recorded it (user_id=), or None."""
        for option in self.super_options:
            number = option.removeprefix('user_id=')
            if number != option and number.isascii() and number.isdigit() and len(number) <= 10:
                return int(number)
        return None


def parse_mountinfo(data: bytes) -> list[Mount]:
    """Read mountinfo, oldest mount first. Lines of an unknown shape are passed over."""
    mounts = []
    for line in data.split(b'\n'):
        fields = [_unescape(field) for field in line.split(b' ')]
        if '-' not in fields[6:]:
            continue
        dash = fields.index('-', 6)
        if len(fields) < dash + 4:
            continue
        fstype, source, super_options = fields[dash + 1 : dash + 4]
        options = tuple(fields[5].split(','))
        mounts.append(Mount(fields[2], fields[4], fstype, source, options, tuple(super_options.split(','))))
    return mounts


def read_mounts() -> list[Mount]:
    """Return the mounts this process can see."""
    with open('/proc/self/mountinfo', 'rb') as file:
        data = file.read(limits.MOUNTINFO_BYTES_MAX + 1)
    if len(data) > limits.MOUNTINFO_BYTES_MAX:
        raise Unavailable('/proc/self/mountinfo is too long to be read')
    return parse_mountinfo(data)


def mount_at(mountpoint: str, mounts: list[Mount]) -> Mount | None:
    """Return the topmost mount whose mountpoint is exactly `mountpoint` (absolute), or None."""
    return next((mount for mount in reversed(mounts) if mount.mountpoint == mountpoint), None)


def enclosing_mount(path: str, mounts: list[Mount]) -> Mount | None:
    """Return the mount that holds the absolute `path`: the longest mountpoint, of equals the latest."""
    found: Mount | None = None
    for mount in mounts:
        if is_below(path, mount.mountpoint) and (
            found is None or len(mount.mountpoint) >= len(found.mountpoint)
        ):
            found = mount
    return found


def is_below(path: str, directory: str) -> bool:
    """Say whether the absolute `path` is `directory` or lies in it, going by the names alone."""
    return directory == '/' or path == directory or path.startswith(directory + '/')


def absolute(path: str | os.PathLike[str]) -> Path:
    """Return the absolute name without symbolic links, never asking the file system of the last component.

    A mountpoint whose daemon died answers no stat; its name must be usable all the same.
    """
    plain = os.path.abspath(os.fspath(path))
    parent, name = os.path.split(plain)
    if not name or not _is_link(plain):
        return Path(os.path.realpath(parent)) / name
    return Path(os.path.realpath(plain))


def _is_link(path: str) -> bool:
    try:
        os.readlink(path)
    except OSError:
        return False
    return True


def _unescape(field: bytes) -> str:
    text = os.fsdecode(field)
    if '\\' not in text:
        return text
    return os.fsdecode(re.sub(rb'\\([0-7]{3})', lambda match: bytes([int(match[1], 8) & 255]), field))
