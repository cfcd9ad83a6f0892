"""L2 audit: the hash-chained log of who asked for what and what was freed. Blocking; any thread, one line at
a time.

audit.log holds one JSON object per line: {"sequence", "time_ns", "previous", "event", "hash"}, keys in this
order, no spaces. `hash` is the BLAKE3-256 of the line without it (`...,"event":{...}}`), `previous` is the
hash of the line before (64 zeros in the first), sequence counts from 1. A line is durable before the effect
it speaks of, so the effect of a line that a power cut has torn never happened: opening the log cuts off one
torn line at its end. Any other oddity stays where it is, for `verify` to report.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from snapfs import limits
from snapfs.errors import Corrupt, Refused
from snapfs.format.ids import data_id
from snapfs.store.durable import Disk
from snapfs.world import World

FIRST_PREVIOUS = '0' * 64
HASH_SUFFIX_BYTES = len(',"hash":"') + 64 + len('"}')


@dataclass(frozen=True, slots=True)
class AuditLine:
    """One verified line."""

    sequence: int
    time_ns: int
    previous: str
    event: dict[str, Any]
    hash: str


class AuditLog:
    """The audit log of one store. The owner of the store's lock writes it; anybody may read."""

    def __init__(self, disk: Disk, path: Path, world: World) -> None:
        self._disk = disk
        self._path = path
        self._world = world
        self._lock = threading.Lock()
        self._fd = -1
        self._bytes = 0
        self.sequence = 0
        self.head = FIRST_PREVIOUS

    @classmethod
    def create(cls, disk: Disk, path: Path, world: World) -> AuditLog:
        """Make an empty log and open it. The caller syncs the directory."""
        disk.close(disk.open_write(path, create=True))
        return cls.open(disk, path, world)

    @classmethod
    def open(cls, disk: Disk, path: Path, world: World) -> AuditLog:
        """Open the log for appending; cut off a torn last line. FileNotFoundError when there is none."""
        log = cls(disk, path, world)
        log._fd = disk.open_read(path) if disk.latched else disk.open_write(path, create=False)
        try:
            log._find_end()
        except BaseException:
            log.close()
            raise
        return log

    def close(self) -> None:
        """Close the file."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            self._disk.close(fd)

    def append(self, event: dict[str, Any]) -> AuditLine:
        """Add a line and make it durable. Refused(ENOSPC) leaves the log as it was; Latched when the sync
        failed."""
        with self._lock:
            sequence = self.sequence + 1
            time_ns = self._world.time_ns()
            body = {'sequence': sequence, 'time_ns': time_ns, 'previous': self.head, 'event': event}
            text = json.dumps(body, separators=(',', ':'), allow_nan=False).encode()
            line_hash = data_id(text).hex()
            line = text[:-1] + f',"hash":"{line_hash}"}}\n'.encode()
            assert len(line) <= limits.AUDIT_LINE_BYTES_MAX, 'details belong into a file of their own'
            try:
                self._disk.pwrite(self._fd, [line], self._bytes)
            except Refused:
                # What was written of it must not look like a torn line in the middle of the log later on.
                self._disk.truncate(self._fd, self._bytes)
                raise
            self._disk.sync_data(self._fd)
            self._bytes += len(line)
            self.sequence = sequence
            written = AuditLine(sequence, time_ns, self.head, event, line_hash)
            self.head = line_hash
            return written

    def lines(self) -> Iterator[AuditLine]:
        """Every line from the first, verified; Corrupt at the first that does not follow from the one
        before."""
        previous, sequence, offset, rest = FIRST_PREVIOUS, 0, 0, b''
        end = self._disk.size(self._fd)
        while offset < end:
            block = bytes(self._disk.pread(self._fd, min(limits.MIB, end - offset), offset))
            if not block:
                break
            offset += len(block)
            *whole, rest = (rest + block).split(b'\n')
            if len(rest) > limits.AUDIT_LINE_BYTES_MAX:
                raise Corrupt(f'audit log: line {sequence + 1} does not end')
            for text in whole:
                line = decode_line(text)
                if line is None or line.previous != previous or line.sequence != sequence + 1:
                    raise Corrupt(f'audit log: the chain breaks at line {sequence + 1}')
                previous, sequence = line.hash, line.sequence
                yield line
        if rest:
            raise Corrupt(f'audit log: line {sequence + 1} does not end')

    def verify(self) -> tuple[int, str]:
        """Read the whole log; return (number of lines, hash of the last). Corrupt when the chain is
        broken."""
        previous, sequence = FIRST_PREVIOUS, 0
        for line in self.lines():
            previous, sequence = line.hash, line.sequence
        return sequence, previous

    def tail(self, count: int = 20) -> list[AuditLine]:
        """Return the last lines, oldest first, as far as they can be read; unlike `verify` it reads only the
        end."""
        assert 0 < count <= 1000
        start = max(0, self._bytes - count * limits.AUDIT_LINE_BYTES_MAX)
        texts = bytes(self._disk.pread(self._fd, self._bytes - start, start)).split(b'\n')[:-1]
        return [line for line in map(decode_line, texts[-count:]) if line is not None]

    def _find_end(self) -> None:
        """Find the last good line; cut off what follows it if that can be one torn line."""
        size = self._disk.size(self._fd)
        start = max(0, size - 3 * limits.AUDIT_LINE_BYTES_MAX)
        data = bytes(self._disk.pread(self._fd, size - start, start)) if size else b''
        *texts, rest = data.split(b'\n')
        if start:
            texts = texts[1:]  # it began before the window
        good = len(texts)
        while good and decode_line(texts[good - 1]) is None:
            good -= 1
        torn = sum(len(text) + 1 for text in texts[good:]) + len(rest)
        if torn > limits.AUDIT_LINE_BYTES_MAX or (not good and start):
            raise Corrupt(f'audit log: no good line in the last {len(data)} bytes')
        if good:
            line = decode_line(texts[good - 1])
            assert line is not None
            self.sequence, self.head = line.sequence, line.hash
        self._bytes = size - torn
        if torn and self._disk.latched is None:
            self._disk.truncate(self._fd, self._bytes)
            self._disk.sync_data(self._fd)


def decode_line(text: bytes) -> AuditLine | None:
    """Return one line (without its newline) as a value; None when it is not a line or its hash is wrong."""
    body = text[:-HASH_SUFFIX_BYTES] + b'}'
    try:
        value = json.loads(text)
        line = AuditLine(*(value[key] for key in ('sequence', 'time_ns', 'previous', 'event', 'hash')))
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    if not isinstance(line.sequence, int) or not isinstance(line.event, dict):
        return None
    return line if data_id(body).hex() == line.hash else None
