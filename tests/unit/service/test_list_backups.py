"""`snapfs rebuild STORE --list-backups` tells enough to choose one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from snapfs.cli.main import main
from snapfs.format.superblock import decode_superblock
from snapfs.store import backup


def uuid_of(store: Path) -> bytes:
    return decode_superblock((store / 'superblock').read_bytes()).uuid


@pytest.fixture
def store(kept_store: Path) -> Path:
    """A store with one more backup, of epoch 1 and the second day of 1970, without snapshots."""
    newest = next((kept_store / 'backups').glob('*.json'))
    tables = backup.decode(newest, newest.read_bytes(), uuid_of(kept_store)).tables
    text = backup.encode(uuid_of(kept_store), 1, 86_400 * 10**9 + 1, {**tables, 'snapshot': []})
    (kept_store / 'backups' / '000000000001-86400000000001.json').write_bytes(text)
    return kept_store


@pytest.fixture
def listed(store: Path, capsysbinary: Any) -> Any:
    def command(*words: str) -> list[str]:
        assert main(['rebuild', str(store), '--list-backups', *words]) == 0
        return capsysbinary.readouterr().out.decode().splitlines()

    return command


def test_date_epoch_and_counts_of_each_are_told_the_newest_first(store, listed):
    head, first, *_, last = listed()
    assert head.split() == ['made', '(UTC)', 'epoch', 'volumes', 'snapshots', 'backup']
    assert last.split()[:3] == ['1970-01-02', '00:00:00', '1'] and last.split()[4] == '0'
    path = Path(first.split()[-1])
    found = backup.decode(path, path.read_bytes(), uuid_of(store))
    counts = [found.epoch, len(found.tables['volume']), len(found.tables['snapshot'])]
    assert first.split()[2:5] == list(map(str, counts)) and all(counts)


def test_programs_are_told_the_same(store, listed):
    told = json.loads('\n'.join(listed('--json')))['backups']
    assert [one['epoch'] for one in told] == sorted((one['epoch'] for one in told), reverse=True)
    assert told[-1] == {
        'name': '000000000001-86400000000001.json',
        'path': str(store / 'backups' / '000000000001-86400000000001.json'),
        'made_ns': 86_400 * 10**9 + 1,
        'epoch': 1,
        'volumes': told[0]['volumes'],
        'snapshots': 0,
        'problem': None,
    }


def test_one_that_cannot_be_used_is_told_with_its_reason(store, listed):
    path = store / 'backups' / '000000000001-86400000000001.json'
    path.write_bytes(path.read_bytes()[:-9])
    *_, row, reason = listed()
    assert row.split() == ['unusable', '-', '-', '-', str(path)]
    assert reason.startswith('000000000001-86400000000001.json is no backup')
    problems = [one['problem'] for one in json.loads('\n'.join(listed('--json')))['backups']]
    assert problems[-1] == reason and set(problems[:-1]) == {None}


def test_a_store_without_any_says_so(store, listed):
    for one in (store / 'backups').glob('*.json'):
        one.unlink()
    assert listed() == ['There are no backups.']
    assert json.loads('\n'.join(listed('--json'))) == {'backups': []}
