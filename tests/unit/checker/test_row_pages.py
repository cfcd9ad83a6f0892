"""Pages of the big tables: a quick check reads them instead of letting SQLite check them, so whatever SQLite
would complain of must be unusual here, and whatever SQLite writes must not."""

from __future__ import annotations

import random
import sqlite3
from pathlib import Path

import pytest

from tests.unit.checker.test_rows import edit, expected, make, page_of_pages, random_rows, told
from tools.checker.rows import Rows, Unusual, share_no_page


def sqlite_complains(path: Path) -> bool:
    """Return whether an integrity check of the table finds something."""
    db = sqlite3.connect(path)
    try:
        return db.execute('PRAGMA integrity_check(chunk)').fetchall() != [('ok',)]
    except sqlite3.DatabaseError:
        return True
    finally:
        db.close()


def rows_or_none(path: Path, parts: int = 4) -> list[tuple[int, ...]] | None:
    """Return all rows as a check reads them, part by part, or None when something is unusual."""
    try:
        rows = Rows(path, 'chunk', 8)
        if not share_no_page([rows], path):
            return None
        step = 256 // parts
        return [row for part in range(parts) for row in told(rows.read(part * step, part * step + step))]
    except (Unusual, sqlite3.DatabaseError):
        return None


@pytest.mark.parametrize('seed', range(12))
def test_whatever_sqlite_leaves_behind_is_read(tmp_path: Path, seed: int) -> None:
    """Rows come, go and change their length in random order, so that pages have free blocks, fragments and
    holes, and the file free pages."""
    chance = random.Random(seed)
    path = tmp_path / 'file'
    make(path, random_rows(chance, 800), page_bytes=chance.choice([512, 1024, 4096]))
    db = sqlite3.connect(path, isolation_level=None)
    marks = ', '.join('?' * 8)
    for _ in range(chance.choice([1, 5, 20])):
        db.execute('BEGIN')
        db.execute('DELETE FROM chunk WHERE substr(id, 3, 1) < ?', (bytes([chance.randrange(200)]),))
        db.executemany(f'INSERT INTO chunk VALUES ({marks})', random_rows(chance, chance.randrange(300)))
        few = bytes([chance.randrange(256)])
        db.execute('UPDATE chunk SET pack = 1, plain = 1 << 40 WHERE substr(id, 4, 1) < ?', (few,))
        db.execute('COMMIT')
    db.close()
    assert not sqlite_complains(path)
    assert rows_or_none(path) == expected(path, 0, 256)


@pytest.mark.parametrize('seed', range(40))
def test_what_sqlite_complains_of_is_unusual(tmp_path: Path, seed: int) -> None:
    """Single bytes of pages with free blocks are changed, one at a time. Where nothing is unusual and SQLite
    is content, the rows are those that SQLite reads."""
    chance = random.Random(seed)
    path = tmp_path / 'file'
    make(path, random_rows(chance, 300), page_bytes=512)
    db = sqlite3.connect(path)
    db.execute("DELETE FROM chunk WHERE substr(id, 3, 1) < x'50'")
    db.commit()
    db.close()
    rows = Rows(path, 'chunk', 8)
    assert rows_or_none(path) == expected(path, 0, 256)
    whole = path.read_bytes()
    complained = unusual = 0
    for _ in range(60):
        page = int(chance.choice(rows.pages().tolist()))
        at = chance.choice([chance.randrange(12), chance.randrange(60), chance.randrange(512)])
        value = whole[(page - 1) * 512 + at] ^ chance.choice([1, 2, 4, 16, 128, chance.randrange(1, 256)])
        edit(path, page, at, bytes([value]))
        found = rows_or_none(path)
        if sqlite_complains(path):
            complained += 1
            assert found is None, f'page {page} at {at}: {value}'
        elif found is not None:
            assert found == expected(path, 0, 256), f'page {page} at {at}: {value}'
        unusual += found is None
        path.write_bytes(whole)
    assert 10 < complained <= unusual


def test_a_page_that_two_tables_have_is_seen(tmp_path: Path) -> None:
    path = tmp_path / 'file'
    make(path, random_rows(random.Random(1), 400), page_bytes=512)
    rows = Rows(path, 'chunk', 8)
    assert share_no_page([rows], path)
    assert not share_no_page([rows, rows], path)


def test_a_page_that_is_free_too_is_seen(tmp_path: Path) -> None:
    path = tmp_path / 'file'
    make(path, random_rows(random.Random(2), 400), page_bytes=512)
    db = sqlite3.connect(path)
    db.execute("DELETE FROM chunk WHERE id < x'40'")
    db.commit()
    db.close()
    rows = Rows(path, 'chunk', 8)
    trunk = int.from_bytes(path.read_bytes()[32:36], 'big')
    assert trunk and share_no_page([rows], path)
    edit(path, trunk, 8, int(rows.pages()[-1]).to_bytes(4, 'big'))
    assert not share_no_page([rows], path)
    edit(path, trunk, 0, trunk.to_bytes(4, 'big'))  # a list without end
    with pytest.raises(Unusual):
        share_no_page([rows], path)
    edit(path, trunk, 4, b'\xff\xff\xff\xff')
    with pytest.raises(Unusual):
        share_no_page([rows], path)


def test_an_interior_page_is_accounted_for(tmp_path: Path) -> None:
    path = tmp_path / 'file'
    make(path, random_rows(random.Random(3), 400), page_bytes=512)
    page, _ = page_of_pages(path)
    edit(path, page, 7, b'\x01')
    assert sqlite_complains(path)
    with pytest.raises(Unusual):
        Rows(path, 'chunk', 8)


def leaf_with(path: Path, room: int) -> tuple[int, bytes]:
    """Return a leaf of several rows with room for more and no free block, and its bytes."""
    data = path.read_bytes()
    for page in Rows(path, 'chunk', 8).pages().tolist():
        one = data[(page - 1) * 512 : page * 512]
        count, begin = int.from_bytes(one[3:5], 'big'), int.from_bytes(one[5:7], 'big')
        if one[0] == 10 and one[1:3] == b'\0\0' and count > 2 and begin - 8 - 2 * count >= room:
            return page, one
    raise AssertionError('there is none')


def refused(path: Path) -> None:
    """See that SQLite complains of a file, and that nothing is taken from it."""
    assert sqlite_complains(path)
    assert rows_or_none(path) is None


def test_cells_that_overlap_where_others_leave_room(tmp_path: Path) -> None:
    """All sizes add up: a free block begins within a row, and as many bytes before it are nobody's."""
    path = tmp_path / 'file'
    make(path, random_rows(random.Random(4), 400), page_bytes=512)
    page, data = leaf_with(path, 24)
    begin = int.from_bytes(data[5:7], 'big')
    last = max(int.from_bytes(data[8 + 2 * at : 10 + 2 * at], 'big') for at in range(data[4]))
    assert last < 504
    # The content begins 8 bytes earlier, and the 8 bytes of the free block are the last ones of the page.
    edit(path, page, 5, (begin - 8).to_bytes(2, 'big'))
    edit(path, page, 1, (504).to_bytes(2, 'big'))
    edit(path, page, 504, b'\x00\x00\x00\x08')
    refused(path)


def test_a_leaf_without_rows_is_unusual(tmp_path: Path) -> None:
    path = tmp_path / 'file'
    make(path, random_rows(random.Random(5), 400), page_bytes=512)
    page, _ = leaf_with(path, 24)
    edit(path, page, 1, b'\x00\x00\x00\x00' + (512).to_bytes(2, 'big') + b'\x00')
    refused(path)


def test_free_blocks_that_touch_are_unusual(tmp_path: Path) -> None:
    """SQLite joins them; where they are apart somebody else wrote them."""
    path = tmp_path / 'file'
    make(path, random_rows(random.Random(6), 400), page_bytes=512)
    page, data = leaf_with(path, 24)
    begin = int.from_bytes(data[5:7], 'big')
    first = begin - 16
    edit(path, page, 5, first.to_bytes(2, 'big'))
    edit(path, page, 1, first.to_bytes(2, 'big'))
    edit(path, page, first, (first + 8).to_bytes(2, 'big') + b'\x00\x08')
    edit(path, page, first + 8, b'\x00\x00\x00\x08')
    refused(path)
