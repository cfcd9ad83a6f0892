"""Rows of the big tables, taken from the pages of a file, against what SQLite itself says."""

from __future__ import annotations

import random
import shutil
import sqlite3
from pathlib import Path

import pytest

from tests.mutants.setting import small
from tools.breaking.edit import Patient
from tools.checker import balance
from tools.checker.catalog import _PLACE
from tools.checker.check import Options, check
from tools.checker.check import _check as check_once
from tools.checker.findings import Report
from tools.checker.rows import Columns, Rows, Unusual, can_be, query_columns
from tools.checker.spill import words
from tools.checker.store import connect

NAMES = ['pack', 'offset', 'stored', 'plain', 'codec', 'kind', 'epoch']
TABLE = ' INTEGER NOT NULL, '.join(NAMES) + ' INTEGER NOT NULL'
EDGES = [0, 1, 2, -1, 127, 128, -128, -129, 32767, 32768, 1 << 23, -(1 << 23), 1 << 31, 1 << 47, -(1 << 47)]
EDGES += [(1 << 63) - 1, -(1 << 63)]


def make(
    path: Path,
    rows: list[tuple[object, ...]],
    *,
    page_bytes: int = 4096,
    extra: bool = False,
    strict: bool = True,
) -> None:
    """Write rows into tables as a catalog has them, with `extra` a column more."""
    db = sqlite3.connect(path, isolation_level=None)
    db.execute(f'PRAGMA page_size = {page_bytes}')
    more = ', batch INTEGER NOT NULL, PRIMARY KEY (id, pack, offset)' if extra else ', PRIMARY KEY (id)'
    db.execute(f'CREATE TABLE chunk (id BLOB, {TABLE}{more}) {"STRICT, " if strict else ""}WITHOUT ROWID')
    db.execute('CREATE TABLE settings (key TEXT, value INTEGER)')
    db.execute("INSERT INTO settings VALUES ('epoch', 50)")
    db.execute('BEGIN')
    marks = ', '.join('?' * (9 if extra else 8))
    db.executemany(f'INSERT INTO chunk VALUES ({marks})', [(*row, 7) if extra else row for row in rows])
    db.execute('COMMIT')
    db.close()


def random_rows(chance: random.Random, count: int) -> list[tuple[object, ...]]:
    """Return rows of any numbers, in no order."""
    return [
        (chance.randbytes(32), *(chance.choice([*EDGES, chance.getrandbits(40)]) for _ in NAMES))
        for _ in range(count)
    ]


def expected(path: Path, low: int, high: int) -> list[tuple[int, ...]]:
    """Return (a, b, numbers …) of all rows whose ids begin with a byte from `low` to below `high`."""
    db = sqlite3.connect(path)
    rows = db.execute(f'SELECT id, {", ".join(NAMES)} FROM chunk ORDER BY id, pack, offset').fetchall()
    db.close()
    rows = [row for row in rows if low <= row[0][0] < high]
    a, b = words(b''.join(row[0] for row in rows))
    return [(int(a[at]), int(b[at]), *row[1:]) for at, row in enumerate(rows)]


def told(columns: Columns) -> list[tuple[int, ...]]:
    """Return columns as rows."""
    return list(zip(*(getattr(columns, name).tolist() for name in Columns.__slots__), strict=True))


@pytest.mark.parametrize('count', [0, 1, 3, 60, 90, 4_000])
@pytest.mark.parametrize('page_bytes', [512, 4096])
@pytest.mark.parametrize('extra', [False, True])
def test_every_row_is_read(tmp_path: Path, count: int, page_bytes: int, extra: bool) -> None:
    chance = random.Random(f'{count} {page_bytes} {extra}')
    path = tmp_path / 'file'
    make(path, random_rows(chance, count), page_bytes=page_bytes, extra=extra)
    rows = Rows(path, 'chunk', 9 if extra else 8)
    for parts in (1, 4, 64):
        for part in range(parts):
            low, high = 256 // parts * part, 256 // parts * (part + 1)
            assert told(rows.read(low, high)) == expected(path, low, high)
    slices = [row for number in range(rows.slices()) for row in told(rows.slice(number))]
    assert slices == expected(path, 0, 256)


def test_rows_in_many_slices_and_behind_deleted_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr('tools.checker.rows.PAGES_AT_ONCE', 3)
    path = tmp_path / 'file'
    make(path, random_rows(random.Random(1), 3_000), page_bytes=1024)
    db = sqlite3.connect(path)
    db.execute("DELETE FROM chunk WHERE substr(id, 2, 1) < x'80'")
    db.commit()
    db.close()
    rows = Rows(path, 'chunk', 8)
    assert rows.slices() > 50
    slices = [row for number in range(rows.slices()) for row in told(rows.slice(number))]
    assert slices == expected(path, 0, 256)
    assert told(rows.read(17, 200)) == expected(path, 17, 200)


def test_several_rows_of_one_id(tmp_path: Path) -> None:
    """In quarantine an id may stand more than once."""
    chance = random.Random(2)
    ids = [chance.randbytes(32) for _ in range(50)]
    rows = [(id, pack, chance.randrange(1 << 20), 1, 1, 0, 1, 3) for id in ids for pack in range(40)]
    make(tmp_path / 'file', rows, page_bytes=512, extra=True)
    found = Rows(tmp_path / 'file', 'chunk', 9)
    for low, high in ((0, 256), (0, 128), (128, 256)):
        rows_of_part = told(found.read(low, high))
        assert sorted(rows_of_part) == sorted(expected(tmp_path / 'file', low, high))
        assert [row[0] for row in rows_of_part] == sorted(row[0] for row in rows_of_part)


def test_a_query_says_the_same(tmp_path: Path) -> None:
    chance = random.Random(3)
    rows = [
        (chance.randbytes(32), *(chance.getrandbits(30) for _ in range(4)), chance.randrange(2), 1, 9)
        for _ in range(2_000)
    ]
    make(tmp_path / 'file', rows)
    db = connect(tmp_path / 'file')
    asked = query_columns(db, 'chunk', bytes([16]), bytes([128]))
    db.close()
    assert told(asked) == told(Rows(tmp_path / 'file', 'chunk', 8).read(16, 128)) != []


@pytest.mark.parametrize(
    'row',
    [
        (b'short', 1, 2, 3, 4, 5, 6, 7),
        (bytes(33), 1, 2, 3, 4, 5, 6, 7),
        (bytes(32), 1, 2, 3, 4, 5, 6, 'seven'),
        (bytes(32), 1.5, 2, 3, 4, 5, 6, 7),
        (bytes(32), 1, 2, bytes(200), 4, 5, 6, 7),
        (bytes(32), 1, 2, bytes(3000), 4, 5, 6, 7),
    ],
)
def test_what_is_no_such_row_is_unusual(tmp_path: Path, row: tuple[object, ...]) -> None:
    rows = random_rows(random.Random(4), 300)
    make(tmp_path / 'file', [*rows, row], strict=False)
    with pytest.raises(Unusual):
        Rows(tmp_path / 'file', 'chunk', 8).read(0, 256)


def test_other_files_and_tables_are_unusual(tmp_path: Path) -> None:
    make(tmp_path / 'file', random_rows(random.Random(5), 300))
    for table, columns in (('settings', 2), ('nothing', 8)):
        with pytest.raises(Unusual):
            Rows(tmp_path / 'file', table, columns)
    for columns in (7, 9):
        with pytest.raises(Unusual):
            Rows(tmp_path / 'file', 'chunk', columns).read(0, 256)
    (tmp_path / 'text').write_bytes(b'no database' * 1000)
    with pytest.raises(Unusual):
        Rows(tmp_path / 'text', 'chunk', 8)


@pytest.mark.parametrize('seed', range(60))
def test_hostile_pages(tmp_path: Path, seed: int) -> None:
    """Whatever stands in the pages: rows, or Unusual, and no other error; never more than there is room."""
    chance = random.Random(seed)
    path = tmp_path / 'file'
    make(path, random_rows(chance, 400), page_bytes=512)
    data = bytearray(path.read_bytes())
    for _ in range(chance.choice([1, 3, 30])):
        page = chance.randrange(1, len(data) // 512)
        at = page * 512 + chance.choice([chance.randrange(12), chance.randrange(60), chance.randrange(512)])
        data[at] = chance.choice([0, 1, 2, 5, 10, 13, 255, chance.randrange(256)])
    path.write_bytes(data[: len(data) - chance.choice([0, 0, 1, 700])])
    try:
        rows = Rows(path, 'chunk', 8)
        assert len(rows.read(0, 256)) <= len(data) // 40
        for number in range(rows.slices()):
            rows.slice(number)
    except (Unusual, sqlite3.DatabaseError):
        pass


def edit(path: Path, page: int, at: int, data: bytes) -> None:
    """Write over bytes of a page of 512."""
    with path.open('r+b') as file:
        file.seek((page - 1) * 512 + at)
        file.write(data)


def page_of_pages(path: Path) -> tuple[int, list[int]]:
    """Return a page that is above many leaves, and where its rows are."""
    data = path.read_bytes()
    for page in range(2, len(data) // 512 + 1):
        one = data[(page - 1) * 512 : page * 512]
        count = int.from_bytes(one[3:5], 'big')
        if one[0] == 2 and count > 3:
            return page, [int.from_bytes(one[12 + 2 * at : 14 + 2 * at], 'big') for at in range(count)]
    raise AssertionError('there is none')


def test_a_page_that_is_its_own_child_many_times_is_unusual(tmp_path: Path) -> None:
    path = tmp_path / 'file'
    make(path, random_rows(random.Random(7), 400), page_bytes=512)
    page, places = page_of_pages(path)
    for at in [8, *places]:
        edit(path, page, at, page.to_bytes(4, 'big'))
    with pytest.raises(Unusual):
        Rows(path, 'chunk', 8)


def test_rows_that_do_not_ascend_are_unusual(tmp_path: Path) -> None:
    path = tmp_path / 'file'
    make(path, random_rows(random.Random(8), 400), page_bytes=512)
    page, places = page_of_pages(path)
    edit(path, page, 12, b''.join(place.to_bytes(2, 'big') for place in reversed(places)))
    with pytest.raises(Unusual):
        Rows(path, 'chunk', 8)


@pytest.mark.parametrize('at', [511, 490, 460, 440])
def test_a_row_that_goes_on_behind_its_page_is_unusual(tmp_path: Path, at: int) -> None:
    path = tmp_path / 'file'
    make(path, random_rows(random.Random(9), 400), page_bytes=512)
    leaf = int(Rows(path, 'chunk', 8)._leaves[-1])
    edit(path, leaf, 8, at.to_bytes(2, 'big'))
    edit(path, leaf, at, bytes([97, 9, 76, *[6] * 7])[: 512 - at])
    with pytest.raises(Unusual):
        Rows(path, 'chunk', 8).read(0, 256)


def test_what_can_be_is_said_as_in_the_query(tmp_path: Path) -> None:
    chance = random.Random(6)
    edges = {1: [0, 1, (1 << 31) - 1, 1 << 31], 2: [47, 48, (1 << 32) - 1, 1 << 32], 7: [0, 50, 51]}
    rows = []
    for number in range(500):
        row = [number.to_bytes(2, 'big') + bytes(30), 3, 100, 50, 60, 1, chance.choice([1, 2]), 50]
        if chance.random() < 0.3:
            row[3:6] = [60, 60, 0]
        for _ in range(chance.randrange(3)):
            column = chance.randrange(1, 8)
            row[column] = chance.choice([*edges.get(column, [0, 1, 2, 3, 60, 61, 131072, 131073]), -1])
        rows.append(tuple(row))
    make(tmp_path / 'file', rows)
    db = sqlite3.connect(tmp_path / 'file')
    impossible = {id for (id,) in db.execute(f'SELECT id FROM chunk WHERE {_PLACE}')}
    db.close()
    assert 100 < len(impossible) < 400
    found = Rows(tmp_path / 'file', 'chunk', 8).read(0, 256)
    for at, row in enumerate(rows):
        one = Columns(*(getattr(found, name)[at : at + 1] for name in Columns.__slots__))
        assert can_be(one, 50) == (row[0] not in impossible), row


def quick(path: Path) -> Report:
    """Return what a quick check says."""
    report = Report()
    with small():
        check(path, Options(full=False, jobs=1), report)
    return report


def test_a_quick_check_of_a_sound_store_asks_no_query_for_rows(
    image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(balance, 'query_columns', None)
    report = quick(image)
    assert not report.findings and not report.unchecked
    assert report.facts['balance']['indexed'] > 50


@pytest.mark.parametrize(
    ('text', 'code'),
    [
        ('UPDATE chunk SET plain = 131073, stored = 1, codec = 1 WHERE id = (SELECT max(id) FROM chunk)', 1),
        ('UPDATE quarantine SET kind = 3 WHERE id = (SELECT min(id) FROM quarantine)', 1),
        ('UPDATE freed SET epoch = 1 << 40 WHERE id = (SELECT min(id) FROM freed)', 1),
        ('UPDATE chunk SET pack = 1 << 40 WHERE id = (SELECT min(id) FROM chunk)', 0),
        ("UPDATE freed SET id = x'00' WHERE id = (SELECT max(id) FROM freed)", 0),
    ],
)
def test_rows_that_cannot_be_are_told_as_when_all_are_looked_at(
    image: Path, tmp_path: Path, text: str, code: int
) -> None:
    """A quick check begins anew with nothing taken for granted; what it had found until then is forgotten."""
    path = tmp_path / 'store'
    shutil.copytree(image, path)
    patient = Patient(path, 1)
    patient.sql(text)
    patient.close()
    (path / 'backups' / 'superblock').write_bytes(b'is told before, and once')
    found = quick(path)
    assert found.counts[('catalog-corrupt', 'catalog-row')[code]] == 1
    closer = Report()
    with small():
        check_once(path, Options(full=False, jobs=1), closer, None)
    assert found.findings == closer.findings
    assert found.counts == closer.counts


def test_pages_that_are_damaged_are_told_once(image: Path, tmp_path: Path) -> None:
    path = tmp_path / 'store'
    shutil.copytree(image, path)
    db = sqlite3.connect(path / 'catalog.sqlite')
    db.execute('PRAGMA journal_mode = DELETE')
    (page,) = db.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'scrubbed'").fetchone()
    db.close()
    data = bytearray((path / 'catalog.sqlite').read_bytes())
    data[(page - 1) * 4096 + 7] ^= 1  # bytes that are free in pieces: only an integrity check looks at them
    (path / 'catalog.sqlite').write_bytes(data)
    found = quick(path)
    assert found.counts == {'catalog-corrupt': 1}
