"""Pages of the catalog that a disk has spoilt: the small tables are looked at when a store is opened, all of
it before anything is collected."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from snapfs import limits
from snapfs.cli.main import main
from snapfs.errors import Corrupt, Latched, Unavailable
from snapfs.service.collecting import Collecting
from snapfs.service.scrubbing import Scrubbing
from snapfs.store import schema
from snapfs.store.catalog import Catalog
from snapfs.store.durable import Disk
from tests.mutants.setting import small
from tests.support.lives import on


@pytest.fixture
def store(kept_store: Path) -> Path:
    return kept_store


def pages(store: Path, table: str) -> tuple[int, list[int]]:
    """Return the size of a page, and the numbers of a table's pages."""
    with sqlite3.connect(store / 'catalog.sqlite') as db:
        (root,) = db.execute('SELECT rootpage FROM sqlite_schema WHERE name = ?', (table,)).fetchone()
        (size,) = db.execute('PRAGMA page_size').fetchone()
    db.close()
    data = (store / 'catalog.sqlite').read_bytes()
    page, numbers = data[(root - 1) * size : root * size], [root]
    if page[0] in (2, 5):  # the root has pages below it
        cells = int.from_bytes(page[3:5], 'big')
        for n in range(cells):
            at = int.from_bytes(page[12 + 2 * n : 14 + 2 * n], 'big')
            numbers.append(int.from_bytes(page[at : at + 4], 'big'))
    return size, numbers


def spoil(store: Path, table: str) -> None:
    """Let the first two cells of the last page of a table change places: the order of keys is wrong."""
    size, numbers = pages(store, table)
    path = store / 'catalog.sqlite'
    data = bytearray(path.read_bytes())
    start = (numbers[-1] - 1) * size + (8 if data[(numbers[-1] - 1) * size] in (10, 13) else 12)
    data[start : start + 4] = data[start + 2 : start + 4] + data[start : start + 2]
    path.write_bytes(data)


def wipe(store: Path, table: str) -> None:
    size, numbers = pages(store, table)
    path = store / 'catalog.sqlite'
    data = bytearray(path.read_bytes())
    data[(numbers[0] - 1) * size : numbers[0] * size] = bytes(size)
    path.write_bytes(data)


@pytest.mark.parametrize('table', schema.SMALL)
def test_a_page_of_a_small_table_is_told_at_opening(store, table):
    wipe(store, table)
    with pytest.raises(Corrupt, match='catalog') as caught:
        on(store, nothing)
    assert 'snapfs rebuild' in caught.value.line()


@pytest.mark.parametrize('table', ['snapshot', 'settings'])
def test_an_order_that_is_wrong_is_told_too(store, table):
    spoil(store, table)
    with pytest.raises(Corrupt, match='catalog') as caught:
        on(store, nothing)
    assert 'snapfs rebuild' in caught.value.line()


async def nothing(collecting: Collecting) -> None:
    pass


def test_the_index_stops_the_collector_and_nobody_else(store):
    """It is too large to be looked at while somebody waits for a mount."""
    spoil(store, 'chunk')

    async def collect(collecting: Collecting) -> None:
        with pytest.raises(Latched, match='the catalog is damaged'):
            await collecting.collect()
        assert 'the catalog is damaged' in collecting.engine.health()
        await collecting.engine.snapshot_create('home', 'new', 'ann')
        with pytest.raises(Latched):
            await collecting.collect()
        (one,) = [row for row in collecting.collector.incidents.listed() if 'catalog' in row.reason]
        assert one.scope == 'collector'

    on(store, collect)


def test_a_scrub_looks_at_it_and_says_so(store, capsysbinary):
    async def work(collecting: Collecting) -> None:
        assert (await Scrubbing(collecting).run((), 0))['catalog'] == ''

    on(store, work)
    spoil(store, 'chunk')
    with small():
        assert main(['scrub', '--store', str(store), '--part', '1/4096']) == 4
    assert b'DAMAGED: the catalog: ' in capsysbinary.readouterr().out


def test_it_is_looked_at_once_a_day(store, monkeypatch):
    looks: list[Catalog] = []
    real = Catalog.problem

    def count(self: Catalog, *tables: object) -> str:
        looks.append(self)
        return real(self, *tables)

    async def work(collecting: Collecting) -> None:
        looks.clear()
        await collecting.collect()
        await collecting.collect()
        assert len(looks) == 1
        collecting.world.advance(limits.CATALOG_LOOK_SECONDS + 1)
        await collecting.collect()
        assert len(looks) == 2

    monkeypatch.setattr(Catalog, 'problem', count)
    on(store, work)


@pytest.mark.parametrize('change', ["snapshot SET who = x'00'", 'hold SET created_ns = NULL'])
def test_a_value_is_none_of_its_business(store, change):
    with sqlite3.connect(store / 'catalog.sqlite') as db:
        db.execute('PRAGMA writable_schema = ON')
        before = db.execute('SELECT name, sql FROM sqlite_schema WHERE sql IS NOT NULL').fetchall()
        db.execute("UPDATE sqlite_schema SET sql = replace(replace(sql, 'STRICT', ''), 'NOT NULL', '')")
    db.close()
    with sqlite3.connect(store / 'catalog.sqlite') as db:
        db.execute(f'UPDATE {change}')
        db.execute('PRAGMA writable_schema = ON')
        for name, text in before:
            db.execute('UPDATE sqlite_schema SET sql = ? WHERE name = ?', (text, name))
    db.close()
    assert Catalog(Disk(), store / 'catalog.sqlite').problem(schema.SMALL) == ''


class Busy:
    """A connection on which nothing can be looked at."""

    def execute(self, text: str) -> list[tuple[str]]:
        error = sqlite3.OperationalError('database is locked')
        error.sqlite_errorcode = sqlite3.SQLITE_BUSY
        raise error

    def close(self) -> None:
        pass


def test_what_cannot_be_looked_at_is_no_damage(store, monkeypatch):
    monkeypatch.setattr(Catalog, '_connect', lambda self, mode: Busy())
    with pytest.raises(Unavailable):
        Catalog(Disk(), store / 'catalog.sqlite').problem()
