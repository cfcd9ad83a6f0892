"""The audit log: a chain that shows every change, durable line by line."""

from __future__ import annotations

import errno
import json

import pytest

from snapfs.errors import Corrupt, Latched, Refused
from snapfs.store.audit import FIRST_PREVIOUS, START, AuditHead, AuditLog, Place
from tests.sim.disk import SimDisk
from tests.sim.world import SimWorld


@pytest.fixture
def sim(tmp_path):
    disk = SimDisk(tmp_path)
    AuditLog.create(disk, tmp_path / 'audit.log', SimWorld()).close()
    disk.sync_directory(tmp_path)
    yield disk
    disk.forget()


def opened(disk):
    return AuditLog.open(disk, disk.root / 'audit.log', SimWorld())


def filled(disk, count=5):
    log = opened(disk)
    lines = [log.append({'event': 'delete', 'n': n, 'who': 'Zoë \udcff\n'}) for n in range(count)]
    return log, lines


def test_lines_are_a_chain(sim):
    log, lines = filled(sim)
    assert [line.sequence for line in lines] == [1, 2, 3, 4, 5]
    assert [line.previous for line in lines] == [FIRST_PREVIOUS, *(line.hash for line in lines[:-1])]
    assert list(log.lines()) == lines
    assert log.verify() == (5, lines[-1].hash) == (log.sequence, log.head)
    assert log.tail(2) == lines[-2:]
    assert log.tail(100) == lines
    texts = (sim.root / 'audit.log').read_text().splitlines()
    assert [list(json.loads(text)) for text in texts] == [
        ['sequence', 'time_ns', 'previous', 'event', 'hash']
    ] * 5


def test_an_empty_log(sim):
    log = opened(sim)
    assert log.verify() == (0, FIRST_PREVIOUS)
    assert log.tail() == []


def test_a_line_is_durable_when_append_returns(sim):
    log, _ = filled(sim, 2)
    assert not sim.unsynced()
    events = sim.events
    log.append({})
    assert sim.events == events + 1


def test_the_chain_goes_on_after_reopening(sim):
    log, lines = filled(sim)
    log.close()
    again = opened(sim)
    assert (again.sequence, again.head) == (5, lines[-1].hash)
    assert again.append({'n': 5}).previous == lines[-1].hash
    assert again.verify()[0] == 6


@pytest.mark.parametrize('tamper', ['change', 'remove', 'insert', 'swap', 'truncate the line'])
def test_tampering_is_found(sim, tamper):
    log, _ = filled(sim)
    path = sim.root / 'audit.log'
    texts = path.read_bytes().splitlines(keepends=True)
    if tamper == 'change':
        texts[2] = texts[2].replace(b'"n":2', b'"n":7')
    elif tamper == 'remove':
        del texts[2]
    elif tamper == 'insert':
        texts.insert(2, texts[2])
    elif tamper == 'swap':
        texts[1:3] = texts[2:0:-1]
    else:
        texts[-1] = texts[-1][:-1]
    path.write_bytes(b''.join(texts))
    with pytest.raises(
        Corrupt, match=f'line {5 if "truncate" in tamper else 2 if tamper == "swap" else 3}|line 4'
    ):
        log.verify()


def test_a_torn_last_line_is_cut_off(sim, tmp_path_factory):
    log, lines = filled(sim)
    sim.cut_at = sim.events + 1
    with pytest.raises(BaseException, match='at event'):
        log.append({'n': 'torn', 'filler': 'x' * 5000})
    seen = set()
    for seed in range(40):
        after = SimDisk(sim.crash(seed, tmp_path_factory.mktemp('after') / 'root'))
        again = opened(after)
        count, _ = again.verify()
        assert count in (5, 6), f'seed {seed}'
        assert again.append({}).sequence == count + 1
        assert again.verify()[0] == count + 1
        assert list(again.lines())[:5] == lines
        seen.add(count)
        after.forget()
    assert seen == {5, 6}


def test_more_than_a_torn_line_is_not_cut_off(sim):
    filled(sim)[0].close()
    path = sim.root / 'audit.log'
    data = path.read_bytes() + b'x' * 100_000
    path.write_bytes(data)
    with pytest.raises(Corrupt):
        opened(sim)
    assert path.read_bytes() == data


def test_a_full_disk_leaves_the_log_as_it_was(sim):
    log, _ = filled(sim)
    before = (sim.root / 'audit.log').read_bytes()
    sim.space = 50
    with pytest.raises(Refused):
        log.append({'n': 5})
    assert (sim.root / 'audit.log').read_bytes() == before
    sim.space = None
    assert log.append({'n': 5}).sequence == 6
    assert log.verify()[0] == 6


def test_a_failed_sync_latches(sim):
    log, _ = filled(sim)
    sim.fail('sync', errno.EIO)
    for _ in range(2):
        with pytest.raises(Latched):
            log.append({})


def test_long_logs_are_read_in_pieces(sim):
    log = opened(sim)
    filler = 'y' * 40_000
    for n in range(60):
        log.append({'n': n, 'filler': filler})
    assert log.verify()[0] == 60
    assert [line.event['n'] for line in log.tail(3)] == [57, 58, 59]
    log.close()
    assert opened(sim).sequence == 60
    with pytest.raises(AssertionError):
        log.append({'filler': filler * 2})


# --- the head that the catalog keeps ---------------------------------------------------------------------
def texts_of(disk):
    return (disk.root / 'audit.log').read_bytes().splitlines(keepends=True)


def test_a_log_that_goes_on_behind_the_head_is_good(sim):
    """A line precedes its effect: after a crash the catalog may know less than the log has."""
    log, lines = filled(sim)
    for head in (
        None,
        AuditHead(START),
        AuditHead(Place(len(texts_of(sim)[0]), 1, lines[0].hash)),
        log.known,
    ):
        assert log.verify_against(head) == log.known.end
        again = AuditLog.open(sim, sim.root / 'audit.log', SimWorld(), head)
        assert again.known == log.known
        again.close()


@pytest.mark.parametrize(
    ('tamper', 'message'),
    [
        ('last line gone', 'cut short: .* line 5 ended at'),
        ('two lines gone', 'cut short: .* line 5 ended at'),
        ('all gone', 'cut short: 0 bytes'),
        ('a byte gone', 'cut short'),
        ('last line damaged', 'chain breaks at line 5'),
        ('line damaged', 'chain breaks at line 3'),
        ('line removed, rest chained anew', 'cut short|not the one that the catalog knows'),
        ('last line rewritten', 'line 5 is not the one that the catalog knows'),
        ('last line rewritten longer', 'line 5 is not the one that the catalog knows'),
        ('last line rewritten, more behind', 'line 5 is not the one that the catalog knows'),
    ],
)
def test_a_log_that_is_not_what_the_catalog_knows_is_corrupt(sim, tamper, message):
    """L20: a log cut short or written anew is a good chain; only the head kept elsewhere tells."""
    log, _ = filled(sim)
    log.close()
    head, path, texts = log.known, sim.root / 'audit.log', texts_of(sim)
    data = {
        'last line gone': b''.join(texts[:-1]),
        'two lines gone': b''.join(texts[:-2]),
        'all gone': b'',
        'a byte gone': b''.join(texts)[:-1],
        'last line damaged': b''.join(texts)[:-5] + b'0' * 3 + b'}\n',
        'line damaged': b''.join(texts).replace(b'"n":2', b'"n":7'),
    }.get(tamper)
    if data is None:
        keep = 2 if 'removed' in tamper else 4
        path.write_bytes(b''.join(texts[:keep]))
        forged = opened(sim)
        for n in range(3, 5) if 'removed' in tamper else [4]:
            forged.append(
                {
                    'event': 'delete',
                    'n': 7 if keep == 4 else n,
                    'who': 'x' * (90 if 'longer' in tamper else 17),
                }
            )
        if 'more' in tamper:
            forged.append({'event': 'x'})
        forged.close()
    else:
        path.write_bytes(data)
    before = path.read_bytes()
    with pytest.raises(Corrupt, match=message):
        AuditLog.open(sim, path, SimWorld(), head)
    assert path.read_bytes() == before, 'evidence stays'


def test_what_is_known_is_never_cut_off_as_a_torn_line(sim):
    log, _ = filled(sim)
    log.close()
    path = sim.root / 'audit.log'
    data = path.read_bytes()
    path.write_bytes(data + b'{"torn')
    AuditLog.open(sim, path, SimWorld(), log.known).close()
    assert path.read_bytes() == data
    path.write_bytes(data + b'{"torn\n' + b'{"sequence":7}\n')
    with pytest.raises(Corrupt, match='breaks at line 6'):
        AuditLog.open(sim, path, SimWorld(), log.known)


def test_a_broken_log_is_gone_on_with_behind_it(sim):
    """The break is told for ever by whoever reads the whole log; a new segment counts from behind it."""
    log, _ = filled(sim)
    log.close()
    path = sim.root / 'audit.log'
    broken = path.read_bytes()[:-30]
    path.write_bytes(broken)
    again = AuditLog.begin_again(sim, path, SimWorld(), log.known)
    assert again.tail(1)[0].sequence == 4
    line = again.append({'event': 'audit-broken'})
    assert (line.sequence, line.previous) == (6, log.head)
    again.append({'event': 'next'})
    assert again.verify_against(again.known).lines == 7
    assert [one.sequence for one in again.tail(2)] == [6, 7]
    with pytest.raises(Corrupt, match='line 5'):
        again.verify()
    again.close()
    assert path.read_bytes().startswith(broken + b'\n')
    third = AuditLog.open(sim, path, SimWorld(), again.known)
    assert third.known == again.known
    third.close()
    path.write_bytes(broken + b'\n')
    with pytest.raises(Corrupt, match='cut short'):
        AuditLog.open(sim, path, SimWorld(), again.known)


def test_a_full_disk_leaves_a_broken_log_as_it_was(sim):
    log, _ = filled(sim)
    log.close()
    path = sim.root / 'audit.log'
    path.write_bytes(path.read_bytes() + b'x' * 100_000)
    before = path.read_bytes()
    again = AuditLog.begin_again(sim, path, SimWorld(), log.known)
    sim.space = 50
    with pytest.raises(Refused):
        again.append({})
    assert path.read_bytes() == before
    sim.space = None
    assert again.append({}).sequence == 6
    assert again.verify_against(again.known).lines == 6
