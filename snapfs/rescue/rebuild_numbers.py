"""L4 rebuild, numbers: the greatest number of each sort that anybody has ever mentioned. Blocking; reads
only.

A number that is given out twice makes one thing pass for another: a batch for one that was freed, a view for
one that somebody has a file handle of, an incident for one whose evidence is kept. So the new catalog counts
on from what its backup says, what the names of batches and incidents say, and what the audit log tells; and
from well above, since nobody tells of everything."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from snapfs import limits
from snapfs.errors import Corrupt
from snapfs.store.audit import AuditLine, decode_line
from snapfs.store.durable import Disk

# Fields of lines of the audit log, and what they count.
_FIELDS = {
    'epoch': 'epoch', 'horizon': 'epoch', 'view': 'next_view', 'to': 'next_view', 'origin': 'next_view',
    'snapshot': 'next_view', 'volume': 'next_volume', 'request': 'next_request', 'batch': 'next_batch',
    'incident': 'next_incident',
}  # fmt: skip
_FOLDERS = {'batches': 'next_batch', 'incidents': 'next_incident'}


def audit_lines(disk: Disk, store: Path) -> Iterator[AuditLine]:
    """Yield every line of the audit log whose hash is right, in order; nothing when there is no log. What
    cannot be read ends it. Invalid, Unavailable: we were not let in, which is no answer."""
    try:
        fd = disk.open_read(store / 'audit.log')
    except (Corrupt, FileNotFoundError):
        return
    try:
        size, offset, rest = disk.size(fd), 0, b''
        while offset < size:
            block = bytes(disk.pread(fd, min(limits.MIB, size - offset), offset))
            if not block:
                break
            offset += len(block)
            *whole, rest = (rest + block).split(b'\n')
            rest = rest if len(rest) <= limits.AUDIT_LINE_BYTES_MAX else b''
            for text in whole:
                line = decode_line(text) if len(text) <= limits.AUDIT_LINE_BYTES_MAX else None
                if line is not None:
                    yield line
    except Corrupt:
        return
    finally:
        disk.close(fd)


def next_numbers(disk: Disk, store: Path) -> dict[str, int]:
    """Return, by setting, the number behind the greatest one that files and the audit log mention."""
    found = dict.fromkeys(_FIELDS.values(), 0)
    for line in audit_lines(disk, store):
        for field, setting in _FIELDS.items():
            value = line.event.get(field)
            if type(value) is int and 0 <= value < limits.REBUILD_NUMBER_MAX:
                found[setting] = max(found[setting], value + 1)
    for folder, setting in _FOLDERS.items():
        for name in disk.listdir(store / folder):
            if name.isascii() and name.isdigit() and len(name) < 18:
                found[setting] = max(found[setting], int(name) + 1)
    return found
