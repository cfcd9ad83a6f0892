"""L2 audit: the hash-chained log of who asked for what and what was freed. Blocking; any thread, one line at
a time.

audit.log holds one JSON object per line: {"sequence", "time_ns", "previous", "event", "hash"}, keys in this
order, no spaces. `hash` is the BLAKE3-256 of the line without it (`...,"event":{...}}`), `previous` is the
hash of the line before (64 zeros in the first), sequence counts from 1. A line is durable before the effect
it speaks of, so the effect of a line that a power cut has torn never happened: opening the log cuts off one
torn line at its end.

Any other oddity stays where it is. Opening reads the whole chain, because a log that was cut short or
rewritten is still one: what it must contain is told by the *head* that the catalog keeps. Every catalog
transaction stores the head known then, so the log may be longer than that (a line precedes its effect), never
shorter or different. A log that cannot be believed is Corrupt; `begin_again` then goes on behind it with a
new segment, so that it stays as evidence, deletions can still be written down, and whoever reads the whole
log is told of the break for ever.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from snapfs import limits
from snapfs.errors import Corrupt, Refused
from snapfs.format.ids import data_id
from snapfs.store.durable import Disk
from snapfs.world import World

FIRST_PREVIOUS = '0' * 64
HASH_START = b',"hash":"'
HASH_END = b'"}'
HASH_SUFFIX_BYTES = len(HASH_START) + 64 + len(HASH_END)


class Place(NamedTuple):
    """A place between two lines: `bytes` from the file's start, behind line `lines`, which has `hash`."""

    bytes: int
    lines: int
    hash: str


START = Place(0, 0, FIRST_PREVIOUS)


@dataclass(frozen=True, slots=True)
class AuditHead:
    """What the catalog knows of the log: the `end` of its last line, and the `base` from which the chain
    counts: the start, or where it began again after a break."""

    end: Place
    base: Place = START


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
        self._separator = b''
        self._owed: dict[str, Any] | None = None
        self.known = AuditHead(START)  # durable; replaced after each line, for the catalog to keep

    @classmethod
    def create(cls, disk: Disk, path: Path, world: World) -> AuditLog:
        """Make an empty log and open it. The caller syncs the directory."""
        disk.close(disk.open_write(path, create=True))
        return cls.open(disk, path, world)

    @classmethod
    def open(cls, disk: Disk, path: Path, world: World, head: AuditHead | None = None) -> AuditLog:
        """Open the log for appending; verify it as `verify_against` does; cut off a torn last line.
        FileNotFoundError when there is none."""
        log = cls(disk, path, world)
        log._fd = disk.open_read(path) if disk.latched else disk.open_write(path, create=False)
        try:
            size = disk.size(log._fd)
            end = log._verify(head, size)
            log.known = AuditHead(end, head.base if head is not None else START)
            if end.bytes != size and disk.latched is None:
                disk.truncate(log._fd, end.bytes)
                disk.sync_data(log._fd)
        except BaseException:
            log.close()
            raise
        return log

    @classmethod
    def begin_again(cls, disk: Disk, path: Path, world: World, head: AuditHead | None) -> AuditLog:
        """Open a log that `open` found Corrupt or gone. Its bytes stay; the next line begins a new segment
        behind them, as the successor of the line that the catalog knows. The caller says in it what happened.
        Where nothing may be written a log that is gone stays gone.
        """
        log = cls(disk, path, world)
        before = head.end if head is not None else START
        log.known = AuditHead(before, before)
        if disk.latched is None or disk.exists(path):
            with contextlib.suppress(Refused):  # a full disk: `append` tries again
                log._begin()
        return log

    def _begin(self) -> None:
        """Open the file, or make it, for a segment that follows the line we know."""
        if not self._disk.exists(self._path):
            self._disk.write_file(self._path, b'')
        before, latched = self.known.end, self._disk.latched
        self._fd = (
            self._disk.open_read(self._path) if latched else self._disk.open_write(self._path, create=False)
        )
        self._separator = b'\n'  # the last line may have no end
        place = Place(self._disk.size(self._fd) + len(self._separator), before.lines, before.hash)
        self.known = AuditHead(place, place)

    def owe(self, event: dict[str, Any]) -> None:
        """Add a line for which there is no room before the next one."""
        self._owed = event

    def close(self) -> None:
        """Close the file."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            self._disk.close(fd)

    @property
    def sequence(self) -> int:
        """The number of the last line."""
        return self.known.end.lines

    @property
    def head(self) -> str:
        """The hash of the last line."""
        return self.known.end.hash

    def append(self, event: dict[str, Any]) -> AuditLine:
        """Add a line and make it durable. Refused(ENOSPC) leaves the log as it was; Latched when the sync
        failed."""
        with self._lock:
            if self._fd < 0:
                self._begin()
            if self._owed is not None:
                self._append(self._owed)
                self._owed = None
            return self._append(event)

    def _append(self, event: dict[str, Any]) -> AuditLine:
        end = self.known.end
        sequence = end.lines + 1
        time_ns = self._world.time_ns()
        body = {'sequence': sequence, 'time_ns': time_ns, 'previous': end.hash, 'event': event}
        text = json.dumps(body, separators=(',', ':'), allow_nan=False).encode()
        line_hash = data_id(text).hex()
        line = b''.join((text[:-1], HASH_START, line_hash.encode(), HASH_END, b'\n'))
        assert len(line) <= limits.AUDIT_LINE_BYTES_MAX, 'details belong into a file of their own'
        start = end.bytes - len(self._separator)
        try:
            self._disk.pwrite(self._fd, [self._separator, line], start)
        except Refused:
            # What was written of it must not look like a torn line in the middle of the log later on.
            self._disk.truncate(self._fd, start)
            raise
        self._disk.sync_data(self._fd)
        self._separator = b''
        self.known = AuditHead(Place(end.bytes + len(line), sequence, line_hash), self.known.base)
        return AuditLine(sequence, time_ns, end.hash, event, line_hash)

    def lines(self) -> Iterator[AuditLine]:
        """Every line from the first, verified; Corrupt at the first that does not follow from the one
        before."""
        self._demand()
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

    def verify_against(self, head: AuditHead | None) -> Place:
        """Read the log from the head's base on and return where it ends. Corrupt when the chain is broken, or
        is not the one that leads through the head; `head` None: any chain from the start will do."""
        self._demand()
        return self._verify(head, self.known.end.bytes)

    def _demand(self) -> None:
        if self._fd < 0:
            raise Corrupt('the audit log is gone')

    def _verify(self, head: AuditHead | None, size: int) -> Place:
        last, wanted = START, START
        if head is not None:
            last, wanted = head.base, head.end
        # What follows a place within a line would look like a torn one, and be cut off.
        if 0 < last.bytes <= size and bytes(self._disk.pread(self._fd, 1, last.bytes - 1)) != b'\n':
            raise Corrupt(f'audit log: line {last.lines} does not end where the catalog says')
        met = last == wanted
        for place in self._walk(last, size):
            if not met and place.bytes >= wanted.bytes:
                if place != wanted:
                    raise Corrupt(f'audit log: line {wanted.lines} is not the one that the catalog knows')
                met = True
            last = place
        if size < wanted.bytes:
            raise Corrupt(
                f'audit log: cut short: {size} bytes, but line {wanted.lines} ended at {wanted.bytes}'
            )
        if not met or not self._can_be_torn(last.bytes, size):
            raise Corrupt(f'audit log: the chain breaks at line {last.lines + 1}')
        return last

    def _walk(self, last: Place, end: int) -> Iterator[Place]:
        """Yield the place behind each line from `last` on, as long as each follows from the one before."""
        position, lines, line_hash = last
        rest, offset = b'', position
        while offset < end:
            block = bytes(self._disk.pread(self._fd, min(limits.MIB, end - offset), offset))
            offset += len(block)
            *whole, rest = (rest + block).split(b'\n')
            for text in whole:
                found = _follows(text, lines + 1, line_hash)
                if found is None:
                    return
                lines, line_hash, position = lines + 1, found, position + len(text) + 1
                yield Place(position, lines, line_hash)
            if not block or len(rest) > limits.AUDIT_LINE_BYTES_MAX:
                return

    def _can_be_torn(self, start: int, end: int) -> bool:
        """Whether all from `start` on can be one line that was never synced: lines have one newline, at the
        end."""
        if end - start > limits.AUDIT_LINE_BYTES_MAX:
            return False
        return start == end or b'\n' not in bytes(self._disk.pread(self._fd, end - start, start))[:-1]

    def tail(self, count: int = 20) -> list[AuditLine]:
        """Return the last lines, oldest first, as far as they can be read; unlike `verify` it reads only the
        end."""
        assert 0 < count <= 1000
        self._demand()
        end = self.known.end.bytes - len(self._separator)
        start = max(0, end - count * limits.AUDIT_LINE_BYTES_MAX)
        texts = bytes(self._disk.pread(self._fd, end - start, start)).split(b'\n')[:-1]
        return [line for line in map(decode_line, texts[-count:]) if line is not None]


def _follows(text: bytes, sequence: int, previous: str) -> str | None:
    """Return the hash of a line (without its newline) that is the successor of the line `previous`, None when
    it is not. What is in its event is not looked at: the hash vouches for it."""
    start = b'{"sequence":%d,"time_ns":' % sequence
    comma = text.find(b',', len(start))
    if not text.startswith(start) or not text.startswith(
        b',"previous":"%b","event":{' % previous.encode(), comma
    ):
        return None
    line_hash = data_id(text[:-HASH_SUFFIX_BYTES] + b'}').hex()
    return line_hash if text.endswith(b'%b%b%b' % (HASH_START, line_hash.encode(), HASH_END)) else None


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


def audit_problem(path: Path, error: Exception) -> str:
    """Say why a log cannot be opened."""
    if not isinstance(error, Corrupt):
        return 'the audit log is gone'
    if isinstance(error.__cause__, OSError):
        # Without the place of the read: the same failure again is no other incident.
        return f'{path} cannot be read: {error.__cause__.strerror}'
    return str(error)
