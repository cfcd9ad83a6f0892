"""The audit log and the catalog vouch for each other: tampering stops the collector, never the readers."""

from __future__ import annotations

import logging
import re
import shutil
from pathlib import Path

import pytest

from snapfs.errors import Corrupt
from snapfs.store.durable import Disk
from snapfs.store.store import Store
from tests.sim.disk import PowerCut, SimDisk
from tests.sim.world import SimWorld
from tests.unit.store.kit import commit, plains_of, put


def reopened(store, clean=True):
    store.close(clean=clean)
    return Store.open(store.path, Disk(), store.world)


def filled(store, count=4):
    """Lines, each followed by its effect: a transaction."""
    for n in range(count):
        store.audit.append({'event': 'delete', 'n': n})
        store.catalog.set_setting('clean', 0)


def test_every_transaction_stores_the_head_of_the_audit_log(store):
    assert store.catalog.audit_head() in (None, store.audit.known)
    filled(store, 1)
    first = store.catalog.audit_head()
    assert first == store.audit.known
    assert first.end.lines == 1
    store.audit.append({'event': 'without an effect yet'})
    assert store.catalog.audit_head() == first
    put(store, plains_of(1, 3))
    commit(store)
    assert store.catalog.audit_head() == store.audit.known
    store.audit.append({})
    store.catalog.incident_add('collector', 'any', 0)
    assert store.catalog.audit_head() == store.audit.known
    store.audit.append({})
    with pytest.raises(ZeroDivisionError), store.catalog.transaction():
        1 / 0  # noqa: B018
    assert store.catalog.audit_head() != store.audit.known
    store.catalog.keep_audit_head()
    assert store.catalog.audit_head() == store.audit.known


@pytest.mark.parametrize('tamper', ['cut short', 'empty', 'line changed', 'garbage behind'])
def test_tampering_stops_the_collector_not_the_store(store, tamper, caplog):
    filled(store)
    path = store.path / 'audit.log'
    store.close(clean=True)
    data = path.read_bytes()
    data = {
        'cut short': b''.join(data.splitlines(keepends=True)[:-1]),
        'empty': b'',
        'line changed': data.replace(b'"n":1', b'"n":9'),
        'garbage behind': data + b'x\n' * 100,
    }[tamper]
    path.write_bytes(data)
    with caplog.at_level(logging.CRITICAL, 'snapfs.store'):
        again = Store.open(store.path, Disk(), store.world)
    assert 'the collector stops: audit log' in caplog.text
    assert [row.scope for row in again.catalog.incidents()] == ['collector']
    assert again.catalog.incidents()[0].reason.startswith('audit log: ')
    assert again.latched is None
    put(again, plains_of(1, 3))
    commit(again)
    assert path.read_bytes().startswith(data), 'evidence stays'
    assert again.audit.tail(1)[0].event['event'] == 'audit-broken'
    with pytest.raises(Corrupt):
        again.audit.verify()
    # Once seen by a person, it does not come back; what is tampered with later does.
    again.catalog.incident_acknowledge(again.catalog.incidents()[0].number, 'somebody', 1)
    third = reopened(again)
    assert third.catalog.incidents() == []
    filled(third)
    third.close(clean=False)
    path.write_bytes(path.read_bytes().replace(b'"n":3', b'"n":8'))
    fourth = Store.open(store.path, Disk(), store.world)
    assert [row.scope for row in fourth.catalog.incidents()] == ['collector']
    fourth.close(clean=True)


def test_each_reason_for_the_latch_is_recorded(store):
    """Who acknowledges one must not clear another one unseen."""
    filled(store)
    store.catalog.incident_add('collector', 'another reason', 1)
    store.close(clean=True)
    path = store.path / 'audit.log'
    path.write_bytes(b'')
    again = Store.open(store.path, Disk(), store.world)
    assert len(again.catalog.incidents('collector')) == 2
    again.close(clean=True)


def test_a_latched_store_with_a_broken_log_can_be_read(store):
    filled(store)
    store.latch('for the test')
    store.close(clean=False)
    path = store.path / 'audit.log'
    path.write_bytes(b'')
    again = Store.open(store.path, Disk(), store.world)
    assert sorted(row.scope for row in again.catalog.incidents()) == ['collector', 'store']
    assert path.read_bytes() == b''
    again.close(clean=False)


@pytest.mark.parametrize('broken', [False, True])
def test_a_power_cut_at_any_event_is_no_tampering(tmp_path, broken):
    """Neither of lines and their effects, nor of the new segment behind a break."""
    for cut in range(1, 100):
        root = tmp_path / str(cut)
        root.mkdir()
        disk = SimDisk(root)
        Store.create(root / 'store', disk, SimWorld()).close(clean=True)
        if broken:
            (root / 'store' / 'audit.log').write_bytes(b'x' * 70_000 + b'\n')
        disk.cut_at = disk.events + cut
        try:
            store = Store.open(root / 'store', disk, SimWorld())
            filled(store)
            store.close(clean=True)
        except PowerCut:
            pass
        else:
            break
        finally:
            after = disk.crash(cut, tmp_path / f'after-{cut}')
            disk.forget()
        for _ in range(2):
            again = Store.open(after / 'store', Disk(), SimWorld())
            assert [row.scope for row in again.catalog.incidents()] == ['collector'] * broken, f'cut {cut}'
            again.close(clean=True)
        end = again.audit.known.end
        assert end.lines >= broken
    assert cut > 10


@pytest.mark.parametrize('clean', [True, False])
@pytest.mark.parametrize('name', ['packs/data', 'packs/meta', 'packs', 'batches'])
def test_a_missing_directory_is_damage(store, name, clean):
    """P10: it is not an empty one, and not a disk that cannot be written."""
    store.close(clean=clean)
    shutil.rmtree(store.path / name)
    with pytest.raises(Corrupt, match=f'{name}.* is missing') as caught:
        Store.open(store.path, Disk(), store.world)
    assert not (store.path / name).exists()
    line = caught.value.line()
    assert 'on a disk that is not mounted' in line, 'making it anew would be wrong then'
    command = re.search(r'mkdir( -p)? ([^ ;]+( [^ ;]+)?); (snapfs [^.]*)', line)
    assert command, line
    assert str(store.path) in command[4]
    for made in command[2].split():
        Path(made).mkdir(parents=True)
    Store.open(store.path, Disk(), store.world).close(clean=True)
