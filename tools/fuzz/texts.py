"""Tool fuzz, texts: JSON files of a store. Files that are read by their path lie in a scratch directory of
this process."""

from __future__ import annotations

import atexit
import json
import shutil
import tempfile
from pathlib import Path
from random import Random
from typing import Any

from snapfs.collect.certificate import encode_certificate
from snapfs.collect.plan import Certified, Plan, Since, check_limits, decode_plan
from snapfs.errors import Corrupt, Invalid
from snapfs.format.annotations import fits
from snapfs.format.ids import data_id
from snapfs.rescue import recheck
from snapfs.rescue.export import Line
from snapfs.rescue.merkle import Merkle
from snapfs.store import audit, backup, lock
from snapfs.store.durable import Disk
from snapfs.world import World
from tools import certificate
from tools.fuzz import samples_text
from tools.fuzz.mutate import mutate_json, mutate_json_lines
from tools.fuzz.samples import UUID
from tools.fuzz.target import Target, must

SHARED_MEMORY = Path('/dev/shm')
_scratch: list[Path] = []


def scratch(name: str, data: bytes) -> Path:
    """Return a file of this name with this content; the one before is gone."""
    if not _scratch:
        folder = SHARED_MEMORY if SHARED_MEMORY.is_dir() else None
        _scratch.append(Path(tempfile.mkdtemp(prefix='snapfs-fuzz-', dir=folder)))
        atexit.register(shutil.rmtree, _scratch[0], ignore_errors=True)
    path = _scratch[0] / name
    path.write_bytes(data)
    return path


def canonical(value: Any) -> bytes:
    """Return JSON as plans, certificates and backups have it."""
    return (json.dumps(value, sort_keys=True, separators=(',', ':')) + '\n').encode()


def seal_digest(data: bytes) -> bytes:
    """Bring a JSON object into its canonical form, and put the right digest in."""
    try:
        found = json.loads(data)
        if not isinstance(found, dict):
            return data
        found.pop('digest', None)
        return canonical({**found, 'digest': data_id(canonical(found)).hex()})
    except (ValueError, RecursionError):
        return data


def seal_canonical(data: bytes) -> bytes:
    """Bring JSON into its canonical form."""
    try:
        return canonical(json.loads(data))
    except (ValueError, RecursionError):
        return data


# --- files of a store ------------------------------------------------------------------------------------
def seal_audit(data: bytes) -> bytes:
    """Make a chain of all lines that are events in JSON objects."""
    out, previous, sequence = [], audit.FIRST_PREVIOUS, 0
    *lines, rest = data.split(b'\n')
    for line in lines:
        event = samples_text.event_of(line)
        if event is None:
            out.append(line)
            continue
        sequence += 1
        line, previous = samples_text.audit_line(sequence, previous, event)
        out.append(line)
    return b'\n'.join([*out, rest])


def mutate_audit(data: bytes, chance: Random) -> bytes:
    """Change the log, or its head as the catalog has it: the first line."""
    head, _, log = data.partition(b'\n')
    if chance.randrange(5) == 0:
        return mutate_json(head, chance).replace(b'\n', b' ') + b'\n' + log
    return head + b'\n' + mutate_json_lines(log, chance)


def _place(value: Any) -> audit.Place:
    bytes_, lines, hash_ = value
    if not (type(bytes_) is type(lines) is int and isinstance(hash_, str)):
        raise ValueError
    if not (0 <= bytes_ < 1 << 63 and 0 <= lines < 1 << 63):
        raise ValueError
    hash_.encode()  # what SQLite cannot hold does not come out of it
    return audit.Place(bytes_, lines, hash_)


def read_audit(data: bytes) -> None:
    """First line: the head that the catalog has, or null. What opens as whole is whole in every way of
    reading; and a log that is not can be begun again."""
    text, _, log = data.partition(b'\n')
    try:
        value = json.loads(text)
        head = None if value is None else audit.AuditHead(_place(value[0]), _place(value[1]))
    except (ValueError, TypeError, KeyError, IndexError, RecursionError):
        head = None
    for line in log.split(b'\n'):
        audit.decode_line(line)
    path = scratch('audit.log', log)
    try:
        opened = audit.AuditLog.open(Disk(), path, World(), head)
    except Corrupt:
        opened = audit.AuditLog.begin_again(Disk(), path, World(), head)
        _use_audit(opened)
        raise
    _use_audit(opened)


def _use_audit(opened: audit.AuditLog) -> None:
    try:
        before = opened.known
        opened.tail(20)
        try:
            for _ in opened.lines():
                pass
        except Corrupt:
            pass
        line = opened.append({'event': 'fuzz'})
        must(opened.known.end.lines == before.end.lines + 1, 'audit: another number')
        must([one.hash for one in opened.tail(1)] == [line.hash], 'audit: what was added is not there')
        must(
            opened.verify_against(opened.known) == opened.known.end, 'audit: no chain after a line was added'
        )
    finally:
        opened.close()


def seal_audit_and_head(data: bytes) -> bytes:
    """Make the log a chain; the head stays as it is."""
    head, feed, log = data.partition(b'\n')
    return head + feed + seal_audit(log)


def read_plan(data: bytes) -> None:
    """A plan that is taken has the types of its fields, and can be held against the limits."""
    plan = decode_plan(data)
    must(plan.encode() == data, 'plan: other bytes')
    must(fits(plan, Plan), 'plan: fields of other types')
    must(plan.digest == data_id(data) and plan.requesters is not None, 'plan: another digest')
    check_limits(plan, Certified(1, plan.roots, plan.store_bytes), Since())


def read_certificate(data: bytes) -> None:
    """A certificate that is taken can be held against what stands."""
    found = certificate.load(scratch('certificate.json', data), UUID)
    roots = found['roots']
    list(certificate.changes(roots, [certificate.Root('volume', 1, 'home', 'aa', 1, 1, None)]))
    list(certificate.changes(roots, roots))
    must(fits(found['epoch'], int) and fits(found['missing'], int), 'certificate: no numbers')
    must(all(fits(one, certificate.Root) for one in roots), 'certificate: a root of other types')


def read_backup(data: bytes) -> None:
    """A backup that is taken is canonical, and its rows go into tables of these names."""
    found = backup.decode(Path('backup.json'), data, UUID)
    again = backup.encode(UUID, found.epoch, found.made_ns, found.tables)
    must(again == data, 'backup: other bytes')
    must(type(found.epoch) is type(found.made_ns) is int, 'backup: no numbers')
    samples_text.fill(found.tables)


def read_export(data: bytes) -> None:
    """Every line of an export, and the root over them."""
    path = scratch('export', data)
    kept, merkle = recheck.Kept(path), Merkle()
    for line in kept.lines():
        must(fits(line, Line), 'export: a line of other types')
        must(all(len(ref.id) == 32 for ref in line.refs), 'export: no id')
        merkle.add(line.text)
    must(len(merkle.root()) == 32 and isinstance(kept.root, bytes), 'export: no root')


def read_holder(data: bytes) -> None:
    """What the lock's file says of its holder is information; whatever it says, it can be told."""
    path = scratch('lock', data)
    held = lock.StoreLock(Disk(), path, World())
    fd = held._open()
    try:
        str(held._holder(fd))
    finally:
        Disk().close(fd)


TARGETS = [
    Target('audit', read_audit, samples_text.audits, seal_audit_and_head, mutate_audit),
    Target('plan', read_plan, samples_text.plans, seal_canonical, mutate_json),
    Target(
        'certificate',
        read_certificate,
        lambda: [encode_certificate(one) for one in samples_text.proofs()],
        seal_digest,
        mutate_json,
        (Invalid,),
    ),
    Target('backup', read_backup, samples_text.backups, seal_digest, mutate_json, bytes_max=16 << 10),
    Target('export', read_export, samples_text.exports, mutate=mutate_json_lines, errors=(Invalid,)),
    Target('holder', read_holder, samples_text.holders, mutate=mutate_json),
]
