"""Configuration: every setting, what it takes, and that bad input changes nothing."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapfs.collect import configuration
from snapfs.collect.configuration import (
    SETTINGS,
    change,
    format_duration,
    format_share,
    get,
    listed,
    load,
    parse,
)
from snapfs.errors import Corrupt, Invalid, Refused

HOUR_NS = 3600 * 10**9


def test_the_defaults_are_those_promised(batch_store):
    shown = {setting.name: text for setting, text, changed in listed(batch_store.catalog) if not changed}
    assert shown == {
        'automatic': 'on', 'interval': '1h', 'grace-kept': '7d', 'grace-dropped': '1h', 'limit-share': '30%',
        'limit-dropped': '100%', 'limit-drop': '0%',
        'rate': '32MiB', 'repack-waste': '50%', 'second-person': 'off', 'approval': '3d',
        'canary': 'on', 'scrub': '30d', 'scrub-rate': '16MiB', 'hook': '',
    }  # fmt: skip
    found = load(batch_store.catalog)
    assert (found.grace_ns('kept'), found.grace_ns('dropped')) == (7 * 24 * HOUR_NS, HOUR_NS)


def test_every_setting_is_a_field_and_its_default_is_within_its_limits(batch_store):
    assert len(dataclasses.fields(configuration.Configuration)) == len(SETTINGS)
    for setting in SETTINGS.values():
        text = configuration.format_value(setting.name, setting.default)
        assert parse(setting.name, text) == setting.default
        assert len(setting.help) < 80


@pytest.mark.parametrize(
    ('name', 'text', 'stored'),
    [
        ('grace-kept', '7d', '7d'),
        ('grace-kept', ' 1d12h ', '1d12h'),
        ('grace-kept', '2w', '14d'),
        ('grace-kept', '90m', '1h30m'),
        ('grace-dropped', '3601s', '1h1s'),
        ('limit-share', '30 %', '30%'),
        ('limit-share', '12.5', '12.5%'),
        ('limit-share', '0.05%', '0.05%'),
        ('limit-share', '100', '100%'),
        ('rate', '0', '0'),
        ('rate', '64 MiB', '64MiB'),
        ('rate', '1025', '1025'),
        ('rate', '2048KiB', '2MiB'),
        ('second-person', 'ON', 'on'),
        ('second-person', 'no', 'off'),
        ('hook', '["/bin/mail", "-s", "a b", "me"]', '["/bin/mail", "-s", "a b", "me"]'),
        ('hook', '', ''),
        ('hook', 'none', ''),
        ('hook', '[]', ''),
    ],
)
def test_a_value_is_stored_in_its_canonical_form(batch_store, name, text, stored):
    assert change(batch_store.catalog, batch_store.audit, name, text, 'ann') == stored
    assert get(batch_store.catalog, name) == stored
    assert [shown for setting, shown, changed in listed(batch_store.catalog) if changed] == [stored]
    (event,) = [line.event for line in batch_store.audit.lines()]
    assert event == {'event': 'config', 'name': name, 'value': stored, 'default': False, 'who': 'ann'}


@pytest.mark.parametrize(
    ('name', 'text'),
    [
        ('grace-kept', '0s'), ('grace-kept', '59m'), ('grace-kept', '-1d'), ('grace-kept', '7'),
        ('grace-kept', '1.5d'), ('grace-kept', '4000d'), ('grace-kept', ''), ('grace-kept', 'forever'),
        ('grace-kept', '9' * 5000 + 'd'), ('grace-kept', '٣d'), ('grace-dropped', '9m'),
        ('limit-share', '101%'), ('limit-share', '-1%'), ('limit-share', '1.234%'), ('limit-share', 'nan'),
        ('limit-share', '1e1'), ('repack-waste', '0%'), ('rate', '-1'), ('rate', '1.5MiB'), ('rate', '64MB'),
        ('rate', '9999999GiB'), ('second-person', 'maybe'), ('second-person', ''), ('interval', '1s'),
        ('hook', '/bin/mail'), ('hook', '["mail"]'), ('hook', '"/bin/mail"'), ('hook', '[1]'),
        ('hook', '["/bin/a\\u0000"]'), ('hook', '["/bin/a", "x\\ny"]'), ('hook', '[' * 3000),
        ('hook', '["/bin/a"' + ', "x"' * 64 + ']'), ('hook', '{"a": 1}'), ('approval', '10m'),
    ],
)  # fmt: skip
def test_bad_input_is_one_clear_line_and_changes_nothing(batch_store, name, text):
    with pytest.raises(Invalid) as caught:
        change(batch_store.catalog, batch_store.audit, name, text, 'ann')
    line = caught.value.line()
    assert line.startswith(f'{name}: ')
    assert '\n' not in line
    assert len(line) < 300
    assert (batch_store.catalog.query('SELECT * FROM config'), batch_store.audit.sequence) == ([], 0)


def test_an_unknown_setting_names_those_there_are(batch_store):
    for call in (
        lambda: get(batch_store.catalog, 'force'),
        lambda: change(batch_store.catalog, batch_store.audit, 'force', 'on', 'ann'),
        lambda: change(batch_store.catalog, batch_store.audit, 'force', None, 'ann'),
    ):
        with pytest.raises(Invalid, match="no setting 'force'") as caught:
            call()
        assert 'grace-kept' in caught.value.line()


def test_a_setting_goes_back_to_its_default(batch_store):
    change(batch_store.catalog, batch_store.audit, 'grace-kept', '30d', 'ann')
    assert change(batch_store.catalog, batch_store.audit, 'grace-kept', None, 'ann') == '7d'
    assert not any(changed for _, _, changed in listed(batch_store.catalog))


def test_nobody_in_particular_changes_nothing(batch_store):
    with pytest.raises(Refused, match='nobody'):
        change(batch_store.catalog, batch_store.audit, 'canary', 'off', '')


@pytest.mark.parametrize(('key', 'value'), [('grace-kept', '0s'), ('grace-kept', 'x'), ('force', 'on')])
def test_a_stored_value_that_cannot_be_is_corrupt_and_not_the_default(batch_store, key, value):
    with batch_store.catalog.transaction() as db:
        db.execute('INSERT INTO config VALUES (?, ?)', (key, value))
    for call in (load, listed, lambda catalog: get(catalog, 'canary')):
        with pytest.raises(Corrupt, match='table config'):
            call(batch_store.catalog)


@given(st.integers(0, 3650 * 86_400))
def test_durations_survive_the_round_trip(seconds):
    text = format_duration(seconds * 10**9)
    assert configuration._parse_duration(text) == seconds * 10**9


@given(st.integers(0, 10_000))
def test_shares_survive_the_round_trip(share):
    assert configuration._parse_share(format_share(share)) == share


@given(st.integers(0, 1 << 40))
def test_sizes_survive_the_round_trip(size):
    assert parse('rate', configuration.format_value('rate', size)) == size


@given(st.sampled_from(sorted(SETTINGS)), st.text(max_size=60))
def test_any_text_is_taken_or_refused_in_one_line(name, text):
    try:
        value = parse(name, text)
    except Invalid as error:
        assert '\n' not in error.line()
    else:
        assert parse(name, configuration.format_value(name, value)) == value
