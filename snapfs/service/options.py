"""L6 mount options: what follows `-o`, from mount(8), fstab or a person. Pure functions, any thread.

A value may hold a comma as `\\,` (and a backslash as `\\\\`), or stand in double quotes. Where two options
contradict each other the later one wins, as everywhere in mount(8).
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from snapfs.errors import Invalid

FLAGS = {
    'rw': ('ro', False),
    'ro': ('ro', True),
    'suid': ('nosuid', False),
    'nosuid': ('nosuid', True),
    'dev': ('nodev', False),
    'nodev': ('nodev', True),
    'exec': ('noexec', False),
    'noexec': ('noexec', True),
    'async': ('sync', False),
    'sync': ('sync', True),
    'dirsync': ('dirsync', True),
    'atime': ('noatime', False),
    'noatime': ('noatime', True),
    'diratime': ('nodiratime', False),
    'nodiratime': ('nodiratime', True),
    'relatime': ('strictatime', False),
    'norelatime': ('strictatime', True),
    'strictatime': ('strictatime', True),
    'nostrictatime': ('strictatime', False),
    'allow_other': ('allow_other', True),
    'remount': ('remount', True),
    'nofail': ('nofail', True),
    'foreground': ('foreground', True),
}
# For mount(8), systemd or util-linux, or said by the kernel of every mount: nothing for us to do.
# Permissions are always the kernel's work here, and times are always kept in memory first.
SILENT = frozenset(
    ('default_permissions', 'defaults', 'auto', 'noauto', '_netdev', 'silent', 'loud', 'symfollow', 'user')
).union(
    ('nouser', 'users', 'nousers', 'owner', 'noowner', 'group', 'nogroup', 'mand', 'nomand', 'iversion'),
    ('noiversion', 'lazytime', 'nolazytime'),
)
SILENT_VALUES = frozenset(
    ('user', 'user_id', 'group_id', 'rootmode', 'fd', 'blksize', 'max_read', 'comment', 'helper', 'subtype')
)
NUMBER_DIGITS_MAX = 20
VALUES = frozenset(('source', 'volume', 'fsname', 'log', 'uid', 'gid'))


@dataclass(frozen=True, slots=True)
class MountOptions:
    """What a mount was asked for. `given`: the fields that were said."""

    source: str | None = None
    volume: str | None = None
    fsname: str | None = None
    log: str | None = None
    uid: int | None = None
    gid: int | None = None
    ro: bool = False
    nosuid: bool = True
    nodev: bool = True
    noexec: bool = False
    sync: bool = False
    dirsync: bool = False
    noatime: bool = False
    nodiratime: bool = False
    strictatime: bool = False
    allow_other: bool = False
    remount: bool = False
    nofail: bool = False
    foreground: bool = False
    given: frozenset[str] = frozenset()


def split_options(text: str) -> list[str]:
    """Split at the commas that are neither escaped nor quoted, and take the escapes and quotes away."""
    words: list[str] = []
    word: list[str] = []
    quoted = escaped = False
    for letter in text:
        if escaped:
            word.append(letter)
            escaped = False
        elif letter == '\\':
            escaped = True
        elif letter == '"':
            quoted = not quoted
        elif letter == ',' and not quoted:
            words.append(''.join(word))
            word = []
        else:
            word.append(letter)
    if quoted or escaped:
        raise Invalid(f'the mount options end inside a {"quotation" if quoted else "backslash"}: {text}')
    words.append(''.join(word))
    return [word for word in words if word]


def parse_options(texts: list[str] | tuple[str, ...], *, sloppy: bool = False) -> MountOptions:
    """Read every `-o` text in order. `sloppy` (mount -s) passes over the unknown; else Invalid."""
    values: dict[str, object] = {}
    for option in (option for text in texts for option in split_options(text)):
        name, equals, value = option.partition('=')
        if not equals and name in FLAGS:
            field, setting = FLAGS[name]
            values[field] = setting
        elif equals and name in VALUES:
            values[name] = _number(name, value) if name in ('uid', 'gid') else _text(name, value)
        elif (
            name.startswith(('x-', 'X-'))
            or (not equals and name in SILENT)
            or (equals and name in SILENT_VALUES)
        ):
            continue
        elif not sloppy:
            raise Invalid(_complaint(option, name, equals))
    return MountOptions(**values, given=frozenset(values))  # type: ignore[arg-type]


def fuse_arguments(options: MountOptions, fsname: str) -> set[str]:
    """Return what libfuse is told. It knows no atime option but noatime; the rest is done after the mount."""
    arguments = {'default_permissions', 'subtype=snapfs', _Text(f'fsname={escape(fsname)}')}
    arguments.add('ro' if options.ro else 'rw')
    # Said outright only when wanted: nosuid and nodev are what libfuse does when nothing is said, and
    # fusermount3 refuses a user who says suid or dev.
    arguments.update(name for name in ('noexec', 'sync', 'dirsync', 'noatime') if getattr(options, name))
    if options.allow_other:
        arguments.add('allow_other')
    if not options.nosuid:
        arguments.add('suid')
    if not options.nodev:
        arguments.add('dev')
    return arguments


class _Text(str):
    """A word for libfuse in any characters: pyfuse3 would encode it as ASCII, the kernel takes any bytes."""

    def encode(self, encoding: str = 'utf-8', errors: str = 'strict') -> bytes:
        return os.fsencode(str(self))


def escape(value: str) -> str:
    """Return `value` so that libfuse and `split_options` read it as one value."""
    return value.replace('\\', '\\\\').replace(',', '\\,')


def _number(name: str, value: str) -> int:
    # Python makes no number of a text of very many digits.
    good = value.isascii() and value.isdigit() and len(value) <= NUMBER_DIGITS_MAX
    if not good or int(value) >= (1 << 32) - 1:
        raise Invalid(f'mount option {name} wants a number, not {value[:80]!r}')
    return int(value)


def _text(name: str, value: str) -> str:
    if not value or '\0' in value or '\n' in value:
        raise Invalid(f'mount option {name} has no usable value')
    return value


def _complaint(option: str, name: str, equals: str) -> str:
    if name in VALUES:
        return f'mount option {name} needs a value: {name}=…'
    if equals and name in FLAGS:
        return f'mount option {name} takes no value: {option!r}'
    return f'unknown mount option {option!r}'
