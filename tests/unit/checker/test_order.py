"""Findings come in the same order in each check, and an interrupted one tells what it has found."""

from __future__ import annotations

import random
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from tests.mutants.setting import small
from tools.checker import check as module
from tools.checker.check import Options, check
from tools.checker.findings import Report


@pytest.fixture
def damaged(store: Path) -> Path:
    for number, pack in enumerate(sorted((store / 'packs').rglob('*'))):
        if pack.is_file():
            data = bytearray(pack.read_bytes())
            data[50 + number] ^= 1
            data[20] ^= 1
            pack.write_bytes(data)
    return store


def test_however_packs_were_spread_over_processes(damaged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, 'SMALL_BYTES', 0)
    seen = []
    for jobs in (2, 3, 2, 1):
        report = Report()
        with small():
            check(damaged, Options(full=True, jobs=jobs), report)
        seen.append([(one.code, one.place, one.what, one.files) for one in report.findings])
    assert len(seen[0]) > 5
    assert all(one == seen[0] for one in seen)


def test_an_interrupted_check_tells_of_the_packs_it_has_seen(
    damaged: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = Report()
    looked = 0

    def progress(what: str, done: int, _known: int) -> None:
        nonlocal looked
        if what == 'packs':
            looked = done
            if done == 4:
                raise KeyboardInterrupt

    report.progress = progress  # type: ignore[method-assign]
    with small():
        check(damaged, Options(full=True, jobs=1), report)
    assert looked == 4 and report.partial
    assert any(one.place.startswith('packs/') for one in report.findings)


@pytest.mark.parametrize('seed', range(40))
def test_a_quick_check_of_a_damaged_catalog_says_what_a_full_one_says_of_it(store: Path, seed: int) -> None:
    """A page of zeros, a row that is missing, bytes turned round: what a quick check takes for granted is
    not there, and it ended with a traceback."""
    chance = random.Random(seed)
    catalog = store / 'catalog.sqlite'
    with closing(sqlite3.connect(catalog)) as db:
        db.execute('PRAGMA journal_mode = DELETE')
        if seed % 4 == 0:
            key = chance.choice([key for (key,) in db.execute('SELECT key FROM settings')])
            db.execute('DELETE FROM settings WHERE key = ?', (key,))
            db.commit()
    data = bytearray(catalog.read_bytes())
    pages = len(data) // 4096
    if seed % 4 == 1:
        page = chance.randrange(1, pages)
        data[page * 4096 : (page + 1) * 4096] = bytes(4096)
    elif seed % 4 == 2:
        for _ in range(chance.choice([1, 8, 64])):
            data[chance.randrange(4096, len(data))] ^= 1 << chance.randrange(8)
    elif seed % 4 == 3:
        one, other = chance.randrange(1, pages) * 4096, chance.randrange(1, pages) * 4096
        data[one : one + 4096], data[other : other + 4096] = (
            data[other : other + 4096],
            data[one : one + 4096],
        )
    catalog.write_bytes(data)
    reports = []
    for full in (False, True):
        report = Report()
        with small():
            check(store, Options(full=full, jobs=1), report)
        reports.append(report)
    quick, full_one = reports
    told = {code for code in full_one.counts if code.startswith('catalog-')}
    assert told == {code for code in quick.counts if code.startswith('catalog-')}
    assert bool(quick.unchecked) == bool(full_one.unchecked)
