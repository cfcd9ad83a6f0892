"""A small tree with one of everything, and what a tree looks like to a comparison. Blocking."""

import hashlib
import os
import random
import stat
from pathlib import Path

from tests.support.mounted import IS_ROOT, NOBODY

OLD_NS = 1_000_000_007_123_456_789  # 2001, with all nine digits
EARLY_NS = -86_400_000_000_001  # before 1970
SPARSE_BYTES = 64 << 20


def make_sample(top: Path, files: int = 60) -> None:
    """Fill the empty directory `top`. Everything is the same on every call, times in ns included."""
    chance = random.Random(5)
    for number in range(files):
        directory = top / f'directory {number % 7}' / ('deep/' * (number % 4))
        directory.mkdir(parents=True, exist_ok=True)
        size = chance.choice([0, 1, 100, 4096, 5000, 20_000, 140_000])
        (directory / f'file-{number}').write_bytes(chance.randbytes(size // 2) + bytes(size - size // 2))
    odd = top / 'odd'
    odd.mkdir()
    (odd / os.fsdecode(b'not utf-8 \xff\xfe')).write_bytes(b'x')
    (odd / ('n' * 255)).write_bytes(b'long')
    (odd / 'new\nline').write_bytes(b'')
    (odd / 'link-target').write_bytes(b'two names\n' * 500)
    os.link(odd / 'link-target', top / 'hard link')
    os.symlink('odd/link-target', top / 'symlink')
    os.symlink('nowhere/' * 300, top / 'long dangling symlink')
    os.mkfifo(odd / 'fifo', 0o640)
    with open(odd / 'sparse', 'wb') as file:
        file.seek(SPARSE_BYTES // 2)
        file.write(b'in the middle')
        file.truncate(SPARSE_BYTES)
    for number, name in enumerate(('user.short', 'user.long', 'user.empty')):
        os.setxattr(odd / 'link-target', name, (b'', b'v' * 5, b'w' * 3000)[(number + 1) % 3])
    os.setxattr(odd, 'user.directory', b'\0\xff')
    if IS_ROOT:
        os.mknod(odd / 'character', stat.S_IFCHR | 0o600, os.makedev(1, 3))
        os.mknod(odd / 'block', stat.S_IFBLK | 0o660, os.makedev(7, 200))
        os.setxattr(odd / 'link-target', 'trusted.own', b'root')
        os.chown(odd / 'link-target', 12345, 54321)
        os.lchown(top / 'symlink', NOBODY, 7)
        os.chown(odd, 3000, 3001)
    os.chmod(odd / 'link-target', 0o4711)
    os.chmod(odd, 0o3775)
    os.chmod(odd / 'sparse', 0o000 if IS_ROOT else 0o400)  # whoever compares has to read it
    for directory, _, names in os.walk(top, topdown=False):
        for name in names:
            os.utime(os.path.join(directory, name), ns=(OLD_NS, OLD_NS + len(name)), follow_symlinks=False)
        os.utime(directory, ns=(EARLY_NS, OLD_NS + len(directory) - len(str(top))))
    os.utime(odd / 'new\nline', ns=(EARLY_NS, EARLY_NS))


def describe(top: Path | str) -> dict[str, tuple]:
    """Return, by relative path, all that a copy has to preserve (but atime, and ctime, which nobody
    can set).
    """
    found: dict[str, tuple] = {}
    first_names: dict[int, str] = {}
    for directory, directories, files in os.walk(top):
        directories.sort()
        for name in ['.', *sorted(files), *(one for one in directories if _is_link(directory, one))]:
            path = os.path.normpath(os.path.join(directory, name))
            relative = os.path.relpath(path, top)
            found[relative] = _describe_one(path, relative, first_names)
    return found


def _is_link(directory: str, name: str) -> bool:
    return os.path.islink(os.path.join(directory, name))


def _describe_one(path: str, relative: str, first_names: dict[int, str]) -> tuple:
    status = os.lstat(path)
    kind = stat.S_IFMT(status.st_mode)
    content: object = None
    if kind == stat.S_IFREG:
        with open(path, 'rb') as file:
            content = hashlib.file_digest(file, 'sha256').hexdigest()
    elif kind == stat.S_IFLNK:
        content = os.readlink(path)
    elif kind in (stat.S_IFCHR, stat.S_IFBLK):
        content = status.st_rdev
    size = status.st_size if kind in (stat.S_IFREG, stat.S_IFLNK) else None
    links = None
    if kind != stat.S_IFDIR:
        links = status.st_nlink, first_names.setdefault(status.st_ino, relative)
    xattrs = tuple(
        (name, os.getxattr(path, name, follow_symlinks=False))
        for name in sorted(os.listxattr(path, follow_symlinks=False))
    )
    return status.st_mode, status.st_uid, status.st_gid, size, status.st_mtime_ns, links, content, xattrs


def differences(one: Path | str, other: Path | str) -> list[str]:
    """Return the paths that are not the same in both trees, with what they are."""
    left, right = describe(one), describe(other)
    return [
        f'{path!r}: {left.get(path)} != {right.get(path)}'
        for path in sorted(left.keys() | right.keys())
        if left.get(path) != right.get(path)
    ]
