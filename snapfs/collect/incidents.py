"""L4 incidents: the latch of the collector, its evidence, and who is told. Blocking; the owner of the
store, any thread.

A flag is a stop, by machine (L7), at the moment it is raised (L8). In this order: the latch in memory, the
evidence (files under STORE/incidents/N/, durable), the row that holds the latch over a restart, the audit
line, the hook command. Each is tried whatever became of the one before: a disk that takes no evidence must
not keep the latch from falling. Only a person, naming the incident, lets the collector run again."""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from snapfs import limits
from snapfs.errors import Invalid, Latched, Refused
from snapfs.store.owed import owe
from snapfs.store.rows import IncidentRow, clean_text
from snapfs.store.store import Store

log = logging.getLogger('snapfs.collect')

SCOPE = 'collector'
_NAME = re.compile(r'[a-z0-9][a-z0-9.-]{0,59}\.json')
_ENVIRONMENT_CHARACTERS_MAX = 4096
T = TypeVar('T')


class Alarm(Latched):
    """A guard of the collector fell: whoever sees it restores every batch that can be and opens an incident.
    `evidence`: name of a file, and what goes into it as JSON."""

    def __init__(
        self, message: str, evidence: Mapping[str, Any] | None = None, batch: int | None = None
    ) -> None:
        super().__init__(message)
        self.evidence = dict(evidence or {})
        self.batch = batch


@dataclass(frozen=True, slots=True)
class Incident:
    """An incident with the names of its evidence files, in `directory`."""

    row: IncidentRow
    directory: Path
    files: tuple[str, ...]


class Incidents:
    """The incidents of one open store. `hook` returns the command to start, as a list, or an empty one."""

    def __init__(self, store: Store, hook: Callable[[], Sequence[str]]) -> None:
        self._store = store
        self._hook = hook
        self._lock = threading.Lock()
        self._falling: str | None = None  # a latch that has no row (yet)

    # --- the latch ---------------------------------------------------------------------------------------
    def latched(self) -> str | None:
        """Why the collector stands still, or None. An incident of any scope is a reason."""
        if self._falling is not None:
            return self._falling
        for row in self._store.catalog.incidents():
            return f'incident {row.number}: {row.reason}'
        return None

    def check(self) -> None:
        """Raise Latched when the collector must stand still."""
        reason = self.latched()
        if reason is not None:
            raise Latched(
                f'the collector stands still: {reason}',
                advice='Look at it with: snapfs incident list. Reading and writing go on.',
            )

    def open(self, reason: str, evidence: Mapping[str, Any], batch: int | None = None) -> IncidentRow | None:
        """Let the latch fall. Never raises; None when the row could not be written: then the latch holds
        for this process, and the next opening writes the row. `evidence`: file name ('mentions.json') to
        what JSON can hold."""
        with self._lock:
            self._falling = clean_text(reason)
            log.critical('the collector stops: %s', reason)
            store = self._store
            expected = _attempt('number', lambda: store.catalog.setting('next_incident')) or 0
            directory = _attempt('evidence', lambda: self._write_evidence(expected, reason, evidence, batch))
            row = _attempt(
                'incident', lambda: store.catalog.incident_add(SCOPE, reason, store.world.time_ns(), batch)
            )
            if row is not None and row.number != expected:  # another one came in between
                number = row.number
                directory = _attempt(
                    'evidence', lambda: self._write_evidence(number, reason, evidence, batch)
                )
            event = {
                'event': 'incident', 'incident': row.number if row else None, 'batch': batch,
                'reason': self._falling[: limits.SETTING_CHARACTERS_MAX],
            }  # fmt: skip
            _attempt('audit line', lambda: store.audit.append(event))
            _attempt('hook', lambda: self._start_hook(row, reason, directory))
            if row is not None:
                self._falling = None
            else:
                owe(store.disk, store.path, SCOPE, self._falling, store.world.time_ns())
        return row

    def _write_evidence(
        self, number: int, reason: str, evidence: Mapping[str, Any], batch: int | None
    ) -> Path:
        """Write the files of what will be incident `number`; return their directory."""
        disk = self._store.disk
        root = self._store.path / 'incidents'
        if disk.mkdir(root):
            disk.sync_directory(root.parent)
        directory = root / str(number)
        if disk.mkdir(directory):
            disk.sync_directory(root)
        about = {
            'incident': number, 'batch': batch, 'reason': clean_text(reason),
            'opened_ns': self._store.world.time_ns(), 'epoch': self._store.catalog.epoch,
            'files': sorted(evidence),
        }  # fmt: skip
        for name, value in (('incident.json', about), *list(evidence.items())[: limits.EVIDENCE_FILES_MAX]):
            assert _NAME.fullmatch(name), f'{name!r} is no name of an evidence file'
            disk.write_file(directory / name, encode_evidence(value))
        return directory

    def _start_hook(self, row: IncidentRow | None, reason: str, directory: Path | None) -> None:
        argv = list(self._hook())
        if not argv:
            return
        text = clean_text(reason).replace('\0', ' ')[:_ENVIRONMENT_CHARACTERS_MAX]
        environment = {
            **{key: os.environ[key] for key in ('PATH', 'HOME', 'LANG', 'TZ') if key in os.environ},
            'SNAPFS_STORE': str(self._store.path),
            'SNAPFS_INCIDENT': str(row.number) if row else '',
            'SNAPFS_REASON': text,
            'SNAPFS_EVIDENCE': str(directory) if directory else '',
        }
        self._store.world.start_process(argv, environment)

    # --- what a person does ------------------------------------------------------------------------------
    def listed(self, in_force: bool = True) -> list[IncidentRow]:
        """Return the incidents in force, or all, oldest first."""
        return self._store.catalog.incidents(in_force=in_force)

    def show(self, number: int) -> Incident:
        """Return one incident. Refused(ENOENT) when there is none of that number."""
        for row in self._store.catalog.incidents(in_force=False):
            if row.number == number:
                directory = self._store.path / 'incidents' / str(number)
                return Incident(row, directory, tuple(self._store.disk.listdir(directory)))
        raise Refused(errno.ENOENT, f'there is no incident {number}')

    def evidence(self, number: int, name: str) -> bytes:
        """Return an evidence file of an incident. Refused(ENOENT) when there is no such file."""
        incident = self.show(number)
        if name not in incident.files:
            raise Refused(errno.ENOENT, f'incident {number} has no file {name!r}')
        return self._store.disk.read_file(incident.directory / name, limits.EVIDENCE_BYTES_MAX)

    def acknowledge(self, number: int, who: str, note: str) -> IncidentRow:
        """A person has looked: the incident is in force no more. Invalid without a name; Refused(ENOENT)
        when it is not in force; Latched when this process has met what stopped all writing. The audit line,
        with the note, comes first. A store that was stopped is written again from its next opening on."""
        name, text = clean_text(who), clean_text(note)
        if not name:
            raise Invalid('an incident is acknowledged by a person, who has a name')
        if len(text) > limits.SETTING_CHARACTERS_MAX:
            raise Invalid(f'the note has {len(text)} characters, more than {limits.SETTING_CHARACTERS_MAX}')
        catalog, now_ns = self._store.catalog, self._store.world.time_ns()
        with self._lock:
            if all(row.number != number for row in catalog.incidents()):
                raise Refused(errno.ENOENT, f'no incident {number} is in force')
            event = {'event': 'incident-ack', 'incident': number, 'who': name, 'note': text}
            if self._store.latched is None:
                self._store.audit.append(event)
            else:
                self._store.append_while_stopped(event)
            catalog.incident_acknowledge(number, name, now_ns)
        return self.show(number).row


def encode_evidence(value: Any) -> bytes:
    """Return JSON for an evidence file: ids in hexadecimal, sets sorted. What is too long is replaced by its
    beginning."""

    def plain(odd: Any) -> Any:
        if isinstance(odd, bytes):
            return odd.hex()
        return sorted(odd) if isinstance(odd, frozenset | set) else str(odd)

    data = json.dumps(value, indent=1, default=plain).encode('utf-8') + b'\n'
    if len(data) > limits.EVIDENCE_BYTES_MAX:
        beginning = data[: limits.EVIDENCE_BYTES_MAX // 4].decode('utf-8', 'replace')
        return json.dumps({'cut_off_after': beginning, 'whole_bytes': len(data)}).encode() + b'\n'
    return data


def _attempt(what: str, step: Callable[[], T]) -> T | None:
    """Do one part of an incident; its failure is logged and stops none of the others."""
    try:
        return step()
    except Exception as error:
        log.critical('the %s could not be written or started: %s', what, error)
        return None
