"""Incidents: the latch falls whatever else fails, keeps its evidence, and only a person lifts it."""

from __future__ import annotations

import errno
import json
import logging

import pytest

from snapfs import limits
from snapfs.collect.incidents import Alarm, Incidents, encode_evidence
from snapfs.errors import Corrupt, Invalid, Latched, Refused
from snapfs.store.durable import Disk
from snapfs.store.store import Store

HOOK = ('/bin/tell', '--loud')


@pytest.fixture
def incidents(batch_store):
    return Incidents(batch_store, lambda: HOOK)


def test_an_incident_stops_the_collector_keeps_its_evidence_and_tells(batch_store, incidents):
    assert incidents.latched() is None
    incidents.check()
    row = incidents.open('P7: chunk 00 was read', {'read.json': {'id': b'\1\2', 'n': 1}}, 3)
    assert (row.number, row.scope, row.batch) == (1, 'collector', 3)
    assert incidents.latched() == 'incident 1: P7: chunk 00 was read'
    with pytest.raises(Latched, match='incident 1'):
        incidents.check()
    shown = incidents.show(1)
    assert shown.files == ('incident.json', 'read.json')
    assert json.loads(incidents.evidence(1, 'read.json')) == {'id': '0102', 'n': 1}
    assert json.loads(incidents.evidence(1, 'incident.json'))['reason'] == 'P7: chunk 00 was read'
    ((argv, environment),) = batch_store.world.processes
    assert argv == HOOK
    assert environment['SNAPFS_INCIDENT'] == '1'
    assert environment['SNAPFS_EVIDENCE'] == str(shown.directory)
    assert environment['SNAPFS_REASON'] == 'P7: chunk 00 was read'
    assert [line.event['event'] for line in batch_store.audit.lines()] == ['incident']


def test_the_evidence_is_durable_before_the_row_and_the_row_before_the_hook(batch_store, incidents):
    order = []
    disk, catalog, world = batch_store.disk, batch_store.catalog, batch_store.world
    write, add, start = disk.write_file, catalog.incident_add, world.start_process
    disk.write_file = lambda *a: (order.append(a[0].name), write(*a))
    catalog.incident_add = lambda *a: (order.append('row'), add(*a))[1]
    world.start_process = lambda *a: (order.append('hook'), start(*a))
    incidents.open('seen', {'a.json': 1})
    assert order == ['incident.json', 'a.json', 'row', 'hook']


def test_a_latch_outlives_a_restart(tmp_path, batch_store, incidents):
    incidents.open('seen', {})
    batch_store.close(clean=True)
    store = Store.open(batch_store.path, Disk(), batch_store.world)
    again = Incidents(store, lambda: ())
    assert again.latched() == 'incident 1: seen'
    again.acknowledge(1, 'ann', 'looked')
    assert again.latched() is None
    store.close(clean=False)


def test_only_a_person_who_names_an_incident_in_force_lifts_it(batch_store, incidents):
    incidents.open('one', {})
    incidents.open('two', {})
    with pytest.raises(Refused, match='no incident 3') as caught:
        incidents.acknowledge(3, 'ann', '')
    assert caught.value.errno == errno.ENOENT
    with pytest.raises(Invalid, match='person'):
        incidents.acknowledge(1, '', '')
    with pytest.raises(Invalid, match='the note has'):
        incidents.acknowledge(1, 'ann', 'x' * 5000)
    assert len(incidents.listed()) == 2
    row = incidents.acknowledge(1, 'ann', 'a false alarm')
    assert (row.acknowledged_by, row.acknowledged_ns is not None) == ('ann', True)
    assert incidents.latched() == 'incident 2: two'
    with pytest.raises(Refused, match='no incident 1 is in force'):
        incidents.acknowledge(1, 'ann', '')
    incidents.acknowledge(2, 'ann', '')
    incidents.check()
    assert len(incidents.listed(in_force=False)) == 2
    events = [line.event for line in batch_store.audit.lines() if line.event['event'] == 'incident-ack']
    assert [(event['incident'], event['who'], event['note']) for event in events] == [
        (1, 'ann', 'a false alarm'),
        (2, 'ann', ''),
    ]


def test_the_audit_line_of_an_acknowledgement_comes_first(batch_store, incidents):
    incidents.open('one', {})

    def fail(event):
        raise Refused(errno.ENOSPC)

    batch_store.audit.append = fail
    with pytest.raises(Refused):
        incidents.acknowledge(1, 'ann', '')
    assert incidents.latched() is not None


def test_a_hook_that_cannot_be_started_changes_nothing(batch_store, incidents, caplog):
    batch_store.world.fail_processes = True
    with caplog.at_level(logging.CRITICAL):
        assert incidents.open('seen', {}).number == 1
    assert 'hook could not be' in caplog.text
    assert incidents.latched() is not None


def test_no_hook_is_no_process(batch_store):
    Incidents(batch_store, lambda: ()).open('seen', {})
    assert batch_store.world.processes == []


def test_settings_that_cannot_be_read_do_not_keep_the_latch_from_falling(batch_store, caplog):
    def broken():
        raise Corrupt('catalog: table config')

    with caplog.at_level(logging.CRITICAL):
        assert Incidents(batch_store, broken).open('seen', {}) is not None
    assert len(batch_store.catalog.incidents('collector')) == 1


def test_a_disk_that_takes_no_evidence_does_not_keep_the_latch_from_falling(batch_store, incidents, caplog):
    batch_store.disk.latch('a sync failed')
    with caplog.at_level(logging.CRITICAL):
        row = incidents.open('seen', {'a.json': 1})
    assert row is not None
    assert incidents.latched() == 'incident 1: seen'
    assert batch_store.world.processes != []


def test_a_catalog_that_takes_no_row_latches_the_process_and_no_acknowledgement_lifts_that(
    batch_store, incidents, caplog
):
    incidents.open('one', {})

    def fail(*args):
        raise Corrupt('catalog: broken')

    batch_store.catalog.incident_add = fail
    with caplog.at_level(logging.CRITICAL):
        assert incidents.open('two', {}) is None
    assert incidents.latched() == 'two'
    incidents.acknowledge(1, 'ann', '')
    with pytest.raises(Latched, match='two'):
        incidents.check()


def test_an_incident_that_came_in_between_does_not_take_the_evidence(batch_store, incidents):
    setting = batch_store.catalog.setting

    def late(key):
        number = setting(key)
        if key == 'next_incident':
            batch_store.catalog.incident_add('store', 'another', 1)
        return number

    batch_store.catalog.setting = late
    row = incidents.open('seen', {'a.json': 1})
    assert row.number == 2
    assert incidents.show(2).files == ('a.json', 'incident.json')


def test_an_unknown_incident_or_file_is_refused(incidents):
    with pytest.raises(Refused, match='there is no incident 1'):
        incidents.show(1)
    incidents.open('seen', {})
    for name in ('../superblock', 'b.json', ''):
        with pytest.raises(Refused, match='has no file'):
            incidents.evidence(1, name)


def test_an_incident_of_the_store_stops_the_collector_too(batch_store, incidents):
    batch_store.catalog.incident_add('store', 'a sync failed', 1)
    with pytest.raises(Latched, match='a sync failed'):
        incidents.check()


def test_odd_evidence_is_written_as_far_as_it_can_be(monkeypatch):
    assert json.loads(encode_evidence({'s': {3, 1}, 'b': b'\xff', 'o': object})) == {
        's': [1, 3], 'b': 'ff', 'o': str(object),
    }  # fmt: skip
    monkeypatch.setattr(limits, 'EVIDENCE_BYTES_MAX', 400)
    cut = json.loads(encode_evidence(['x' * 1000]))
    assert cut['whole_bytes'] > 1000
    assert len(encode_evidence(['x' * 1000])) <= 400


def test_an_alarm_carries_its_evidence():
    alarm = Alarm('L7: mentioned', {'mentions.json': [1]}, 4)
    assert (alarm.evidence, alarm.batch, alarm.exit_code) == ({'mentions.json': [1]}, 4, 14)
