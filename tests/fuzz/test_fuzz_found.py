"""What fuzzing found, input by input: each was another exception than the documented one, or was taken though
it is not what it claims to be. Seeds and mutations may change; these stay."""

from __future__ import annotations

import json
from typing import Any

import pytest

from snapfs.cli.output import parse_until
from snapfs.errors import Invalid
from tools.fuzz.messages import NOW
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
