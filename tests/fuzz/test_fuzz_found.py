"""What fuzzing found, input by input: each was another exception than the documented one, or was taken though
it is not what it claims to be. Seeds and mutations may change; these stay."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from snapfs.cli.output import parse_until
from snapfs.collect.worker import run_job
from snapfs.errors import Corrupt, Invalid
from snapfs.format.ids import RecordKind, node_id
from snapfs.rescue import sibling
from snapfs.rescue.recover_values import Donor, Lost
from snapfs.rescue.scrub_values import ScrubSpec
from snapfs.store.durable import Disk
from snapfs.store.store import Store
from snapfs.world import World
from tests.fuzz.stores_kit import loosened
from tools.breaking.edit import Patient
from tools.fuzz.messages import NOW
from tools.fuzz.samples import UUID
from tools.fuzz.samples_text import audits, backup_tables, entries, exports, plan, proofs
from tools.fuzz.target import answers
from tools.fuzz.targets import TARGETS
from tools.fuzz.texts import encode_certificate, seal_canonical, seal_digest

DEEP = b'[' * 1500


def changed(data: bytes, *way: str | int, to: Any) -> bytes:
    """Return JSON with one value changed."""
    whole = json.loads(data)
    value = whole
    for step in way[:-1]:
        value = value[step]
    value[way[-1]] = to
    return json.dumps(whole).encode()


def a_backup(table: str, rows: Any) -> bytes:
    tables = json.loads(json.dumps(backup_tables(), default=lambda one: {'x': one.hex()}))
    fields = {'backup': 1, 'store': bytes(range(16)).hex(), 'schema': 3, 'epoch': 9, 'made_ns': 5}
    return seal_digest(json.dumps({**fields, 'tables': {**tables, table: rows}}).encode())


PLAN, CERTIFICATE, EXPORT = plan().encode(), encode_certificate(proofs()[0]), exports()[0]
BACKUP = a_backup('hold', [])
ID = json.loads(EXPORT.split(b'\n')[3])['more'][0][2].encode()
HEAD = [230, 1, '3a' * 32]
WITHIN = json.dumps([HEAD, HEAD]).encode() + b'\n' + audits()[0].partition(b'\n')[2].replace(b'\n', b' ')

REFUSED: dict[str, tuple[str, bytes]] = {
    # Right digests over wrong types: a TypeError wherever the value was used first.
    'plan: a batch that is no number': ('plan', seal_canonical(changed(PLAN, 'batch', to='7'))),
    'plan: true for a number': ('plan', seal_canonical(changed(PLAN, 'condemned', to=True))),
    'plan: a name that is a list': ('plan', seal_canonical(changed(PLAN, 'roots', 0, 'name', to=['x']))),
    'plan: a class that is none': ('plan', seal_canonical(changed(PLAN, 'grace_class', to='kep'))),
    # The head says that its segment begins, and ends, within a line: what follows looked like a torn line,
    # and was cut off.
    'audit: a segment that begins within a line': ('audit', WITHIN),
    'certificate: an epoch of text': ('certificate', seal_digest(changed(CERTIFICATE, 'epoch', to='9'))),
    'certificate: a kind that is a list': (
        'certificate',
        seal_digest(changed(CERTIFICATE, 'roots', 0, 0, to=['x'])),
    ),
    'certificate: a root that is a list': (
        'certificate',
        seal_digest(changed(CERTIFICATE, 'roots', 0, 3, to=['x'])),
    ),
    'backup: an epoch of text': ('backup', seal_digest(changed(BACKUP, 'epoch', to='9'))),
    'backup: true for its version': ('backup', seal_digest(changed(BACKUP, 'backup', to=True))),
    'backup: a table that is a number': ('backup', a_backup('volume', 7)),
    'backup: a row that is a number': ('backup', a_backup('volume', [7])),
    'backup: a row with a column too few': ('backup', a_backup('volume', [[1, 2]])),
    'backup: tables that are only names': (
        'backup',
        seal_digest(changed(BACKUP, 'tables', to=sorted(backup_tables()))),
    ),
    'backup: an integer beyond SQLite': ('backup', a_backup('settings', [['epoch', 1 << 63]])),
    'backup: text that is no UTF-8': ('backup', a_backup('config', [['\ud800', 'x']])),
    'backup: settings without the journal': ('backup', a_backup('settings', [['epoch', 1]])),
    # bytes.fromhex passes over blanks: 64 characters can be fewer than 32 bytes.
    'export: an id with blanks': ('export', EXPORT.replace(ID, b'ab ' * 21 + b' ')),
    'options: a number of 5,000 digits': ('options', b'uid=' + b'0' * 5000),
    'worker: progress without a number': ('worker', b'{"done": 1}'),
    'worker: progress that is text': ('worker', b'{"done": "x", "known": 1}'),
    'worker: progress without end': ('worker', b'{"done": Infinity, "known": 1}'),
    'worker: nested too deep': ('worker', DEEP),
    'worker: an errno that is text': ('worker', b'{"error": "x", "kind": "Refused", "errno": "x"}'),
    'answer: an errno beyond C': ('answer', b'{"error": {"kind": "Refused", "errno": 4294967296}}'),
    'answer: true for an errno': ('answer', b'{"error": {"kind": "Refused", "errno": true}}'),
    'answer: an error that says nothing': ('answer', b'{"error": {"kind": "Held"}}'),
}  # fmt: skip

# Readers that know no error: what they cannot read is nothing.
PASSED_OVER: dict[str, tuple[str, bytes]] = {
    'holder: nested too deep': ('holder', DEEP),
    'holder: a process without end': ('holder', b'[Infinity, "host", 1, "/mnt"]'),
    'holder: a time beyond the calendar': ('holder', b'[1, "host", 99999999999999999999999999999, "/mnt"]'),
    'entry: nested too deep': ('entry', DEEP),
    'entry: a path that is a number': ('entry', changed(entries()[0], 'store', to=7)),
    'mountinfo: a digit that is none': (
        'mountinfo',
        '36 35 98:0 / /mnt rw - fuse.snapfs /s rw,user_id=\u00b2\n'.encode(),
    ),
}


@pytest.mark.parametrize('case', list(REFUSED))
def test_it_is_refused(case: str) -> None:
    name, data = REFUSED[case]
    assert not answers(TARGETS[name], data)


@pytest.mark.parametrize('case', list(PASSED_OVER))
def test_it_is_passed_over(case: str) -> None:
    name, data = PASSED_OVER[case]
    assert answers(TARGETS[name], data)


def test_what_these_were_made_from_is_taken() -> None:
    for name, data in (('plan', PLAN), ('certificate', CERTIFICATE), ('export', EXPORT), ('backup', BACKUP)):
        assert answers(TARGETS[name], data), name


def test_a_span_of_5000_digits_is_refused() -> None:
    with pytest.raises(Invalid):
        parse_until('9' * 5000 + 'd', NOW)


def test_a_job_that_fails_on_wrong_types_says_so_and_any_other_failure_stays_a_bug(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(spec: object, progress: object) -> None:
        raise OverflowError

    monkeypatch.setattr('snapfs.rescue.scrub.scrub', fail)
    store = tmp_path / 'store'
    Store.create(store, Disk(), World()).close(clean=True)
    spec = ScrubSpec(store, UUID, (), 0)
    with pytest.raises(OverflowError):
        run_job('scrub', spec)
    patient = Patient(store, 1)
    with loosened(patient, 'settings'):
        patient.sql("UPDATE settings SET value = 'x' WHERE key = 'epoch'")
    patient.close()
    with pytest.raises(Corrupt, match='1 rows of settings'):
        run_job('scrub', spec)


def test_a_donor_of_a_node_has_a_node(tmp_path: Path) -> None:
    path, none = tmp_path / 'donor', bytes(60)
    path.write_bytes(none)
    lost = Lost(node_id(none), RecordKind.NODE, 'it is none', (), ())
    assert sibling._plain(lost, Donor(path, 0, len(none), False)) is None
