"""Tool: keys and values of a tree as text. Pure."""

from __future__ import annotations

from snapfs.errors import SnapfsError
from snapfs.format import items
from snapfs.format.items import Value
from snapfs.format.keys import DIRENT, EXTENT, INODE, KIND_POSITION, XATTR, decode_key, suffix_number
from tools.dump.report import Report, moment, quoted

TYPES = {1: 'fifo', 2: 'character', 4: 'directory', 6: 'block', 8: 'regular', 10: 'symlink', 12: 'socket'}


def key_text(key: bytes) -> str:
    """Return a key in words; keys that are none (bounds, damage) in hexadecimal digits."""
    try:
        ino, kind, suffix = decode_key(key)
    except SnapfsError:
        return f'key={key.hex() or "-"}'
    text = f'ino={ino} {kind.name}'
    if kind == XATTR:
        return f'{text} name={quoted(suffix)}'
    names = {DIRENT: 'hash', EXTENT: 'offset'}
    return text if not suffix else f'{text} {names.get(kind, "orphan")}={suffix_number(key)}'


def put_item(report: Report, key: bytes, value: Value, *before: object, **after: object) -> None:
    """Print one item (several lines for names that share a hash); then check it by its schema."""
    words = (*before, key_text(key))
    kind = key[KIND_POSITION] if len(key) > KIND_POSITION else 0
    if kind == INODE:
        report.fact(*words, **inode_fields(value), **after)
    elif kind == DIRENT:
        for name, ino, number in value:
            report.fact(*words, name=name, to=ino, type=TYPES.get(number, number), **after)
    elif kind == EXTENT:
        part = dict(zip(('skip', 'whole'), value[1:-1], strict=False))
        report.fact(*words, bytes=value[0], chunk=value[-1].hex(), **part, **after)
    elif kind == XATTR and value[0]:
        report.fact(*words, bytes=value[1], chunk=value[2].hex(), **after)
    elif kind == XATTR:
        report.fact(*words, value=value[1], **after)
    else:
        report.fact(*words, **after)
    with report.guard(key_text(key)):
        items.check_item(key, value)


def inode_fields(value: Value) -> dict[str, object]:
    """Return the fields of an INODE by name, readable."""
    mode = value[items.INODE_MODE]
    fields: dict[str, object] = {
        'type': TYPES.get(mode >> 12, mode >> 12),
        'mode': f'{mode & 0o7777:04o}',
        'uid': value[items.INODE_UID],
        'gid': value[items.INODE_GID],
        'size': value[items.INODE_SIZE],
        'allocated': value[items.INODE_ALLOCATED],
        'nlink': value[items.INODE_NLINK],
        'generation': value[items.INODE_GENERATION],
        'parent': value[items.INODE_PARENT],
        'rdev': value[items.INODE_RDEV],
        'flags': value[items.INODE_FLAGS],
        'atime': moment(value[items.INODE_ATIME]),
        'mtime': moment(value[items.INODE_MTIME]),
        'ctime': moment(value[items.INODE_CTIME]),
        'btime': moment(value[items.INODE_BTIME]),
    }
    if value[items.INODE_TARGET]:
        fields['target'] = value[items.INODE_TARGET]
    return fields
