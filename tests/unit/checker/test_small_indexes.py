"""Indexes of the small tables: whatever rots in them is told, and ends nobody."""

from __future__ import annotations

import random
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from tests.mutants.setting import small
from tools.checker.check import Options, check
from tools.checker.findings import Report


def pages(path: Path) -> list[tuple[str, int, int]]:
    """Return (name, where, bytes) of the first page of each index of the catalog."""
    with closing(sqlite3.connect(f'file:{path}/catalog.sqlite?mode=ro&immutable=1', uri=True)) as db:
        (size,) = db.execute('PRAGMA page_size').fetchone()
        rows = db.execute("SELECT name, rootpage FROM sqlite_schema WHERE type = 'index'").fetchall()
    return [(name, (page - 1) * size, size) for name, page in rows]


@pytest.mark.slow
@pytest.mark.parametrize('seed', range(4))
def test_a_bit_of_an_index_is_told_or_means_nothing(store: Path, seed: int) -> None:
    chance, catalog, said = random.Random(f'index {seed}'), store / 'catalog.sqlite', 0
    data = catalog.read_bytes()
    for _ in range(60):
        name, at, size = chance.choice(pages(store))
        used = at + chance.choice([chance.randrange(40), size - 1 - chance.randrange(80)])
        bit = 1 << chance.randrange(8)
        catalog.write_bytes(data[:used] + bytes([data[used] ^ bit]) + data[used + 1 :])
        report = Report()
        with small():
            check(store, Options(full=True, jobs=1), report)
        codes = {one.code for one in report.findings if one.severity == 'damage'}
        assert codes <= {'catalog-corrupt', 'catalog-row', 'catalog-unreadable'}, (
            f'{name} byte {used} {codes}'
        )
        said += bool(codes)
        catalog.write_bytes(data)
    assert said > 20
