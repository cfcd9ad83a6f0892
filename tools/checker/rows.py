"""Tool fsck, rows: the tables of chunks by columns, from the pages of the copied catalog. Plain; any process.

A query makes a Python object of every number, which was half of the time of a quick check. These tables have
one form when all is well: rows of at most a hundred bytes, of an id and of seven or eight numbers, in the
pages of one B-tree. So whole pages are taken apart at once, as the SQLite documentation describes them
("Database File Format": B-tree pages, record format, WITHOUT ROWID tables). Whatever has another form is
`Unusual`, and whoever asked uses a query instead; nothing is concluded from it. Sizes and page numbers from
the file are hostile: each is checked before it is used.

What is read has been seen to be sound, as SQLite's own integrity check would see it: rows ascend through the
whole table, each page is used once, and the cells and free blocks of a page fill it to the byte."""

from __future__ import annotations

import gc
import os
import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from snapfs import limits
from tools.checker.spill import Words, words
from tools.checker.store import connect, query

FILE_HEADER_BYTES = 100
MAGIC = b'SQLite format 3\0'
INTERIOR, LEAF = 2, 10
LEAF_HEADER_BYTES, INTERIOR_HEADER_BYTES, CHILD_BYTES = 8, 12, 4
LEVELS_MAX = 20
FREE_BLOCK_BYTES_MIN, FRAGMENT_BYTES_MAX = 4, 60
PAGES_AT_ONCE = 1 << 9
NUMBERS = 7  # of a row that are wanted: pack, offset, stored, plain, codec, kind, epoch
ID_TYPE = 12 + 2 * limits.ID_BYTES  # a blob of so many bytes
NUMBER_BYTES_MAX = 8
ONE = 9  # the type of a 1 that takes no room; 8 is that of a 0
# By type of a number: its bytes, and the bits that eight bytes have beyond these. Other types are no numbers.
SIZES = np.full(256, -1, dtype=np.int8)
SIZES[[1, 2, 3, 4, 5, 6, 8, ONE]] = [1, 2, 3, 4, 6, 8, 0, 0]
SHIFTS = np.where(SIZES > 0, 8 * (NUMBER_BYTES_MAX - SIZES.astype(np.int64)), 0)

Numbers = NDArray[np.int64]


class Unusual(Exception):
    """The pages are not in the one form that is read here."""


@dataclass(frozen=True, slots=True)
class Columns:
    """Rows ascending by id: the two numbers of each id (spill.py), and the numbers of the row."""

    a: Words
    b: Words
    pack: Numbers
    offset: Numbers
    stored: Numbers
    plain: Numbers
    codec: Numbers
    kind: Numbers
    epoch: Numbers

    def __len__(self) -> int:
        return len(self.a)

    def take(self, rows: Numbers) -> Columns:
        """Return some of the rows, in this order."""
        return Columns(*(column[rows] for column in self.all()))

    def all(self) -> Iterator[NDArray[Any]]:
        """Yield the columns in their order."""
        return (getattr(self, name) for name in Columns.__slots__)

    @property
    def place(self) -> Words:
        """Return pack << 32 | offset of each."""
        return (self.pack << 32 | self.offset).astype(np.uint64)


# Numbers of one row in as few as may be: each costs an object.
_ROWS = (
    'SELECT id, pack << 32 | offset, stored << 32 | plain, codec << 8 | kind, epoch FROM {table} '
    'WHERE id >= ? AND id < ? AND length(id) = 32 ORDER BY id'
)


def query_columns(db: sqlite3.Connection, table: str, low: bytes, high: bytes) -> Columns:
    """Return the rows of a table with ids from `low` to below `high` by a query. Impossible ones are gone
    from the copy by now (cells.py). sqlite3.Error."""
    collecting = gc.isenabled()
    gc.disable()  # a million little tuples, and no cycle among them
    try:
        rows = query(db, _ROWS.format(table=table), (low, high))
        ids, *columns = zip(*rows, strict=True) if rows else [()] * 5
        count = len(rows)
        del rows
        a, b = words(b''.join(ids))
        place, lengths, what, epoch = [np.fromiter(one, dtype=np.int64, count=count) for one in columns]
    finally:
        if collecting:
            gc.enable()
    low32, low8 = np.int64((1 << 32) - 1), np.int64(255)
    return Columns(
        a, b, place >> 32, place & low32, lengths >> 32, lengths & low32, what >> 8, what & low8, epoch
    )


def rows_of(copy: Path, table: str, columns: int) -> Rows | None:
    """Return the rows of a table with so many columns, or None where only a query can read them. OSError,
    sqlite3.Error."""
    try:
        return Rows(copy, table, columns)
    except Unusual:
        return None


def share_no_page(tables: Iterable[Rows], copy: Path) -> bool:
    """Return whether these tables have no page in common, nor one that is free. Unusual, OSError."""
    pages = np.concatenate([np.array(_free_pages(copy), dtype=np.int64), *(one.pages() for one in tables)])
    return len(np.unique(pages)) == len(pages)


def _free_pages(copy: Path) -> list[int]:
    found: list[int] = []
    with copy.open('rb') as file:
        head = file.read(FILE_HEADER_BYTES)
        page_bytes = int.from_bytes(head[16:18], 'big')
        trunk, count = int.from_bytes(head[32:36], 'big'), int.from_bytes(head[36:40], 'big')
        while trunk and len(found) < count:
            file.seek((trunk - 1) * page_bytes)
            page = np.frombuffer(file.read(page_bytes), dtype='>u4')
            if len(page) * 4 != page_bytes or int(page[1]) + 2 > len(page):
                raise Unusual
            found += [trunk, *page[2 : 2 + int(page[1])].tolist()]
            trunk = int(page[0])
    if trunk or len(found) != count:
        raise Unusual
    return found


def can_be(rows: Columns, epoch: int) -> bool:
    """Return whether each of these rows names a place that can be one, in a store of this epoch. What that
    means is said once more, as conditions of queries, in catalog.py."""
    good = (rows.pack >= 1) & (rows.pack < 1 << 31) & (rows.offset >= 48) & (rows.offset < 1 << 32)
    good &= (rows.stored >= 0) & (rows.plain <= limits.PLAIN_BYTES_MAX) & (rows.stored <= rows.plain)
    good &= ((rows.kind == 1) | (rows.kind == 2)) & ((rows.codec == 1) | (rows.codec == 0))
    good &= ((rows.codec == 1) | (rows.stored == rows.plain)) & (rows.epoch >= 0) & (rows.epoch <= epoch)
    return bool(good.all())


class Rows:
    """The rows of one table in a file that nobody changes. Memory: 20 bytes for each page of it."""

    def __init__(self, copy: Path, table: str, columns: int) -> None:
        """Find the pages of a table of so many columns. Unusual; OSError, sqlite3.Error."""
        self._copy = copy
        self._columns = columns
        with copy.open('rb') as file:
            head = file.read(FILE_HEADER_BYTES)
        if len(head) < FILE_HEADER_BYTES or head[:16] != MAGIC or head[20]:
            raise Unusual
        self._page_bytes = int.from_bytes(head[16:18], 'big')  # 1: 65,536, which no store has
        if self._page_bytes < 512 or self._page_bytes & (self._page_bytes - 1):
            raise Unusual
        self._pages = copy.stat().st_size // self._page_bytes
        leaves: list[NDArray[np.int64]] = []
        between: list[NDArray[np.int64]] = []  # rows of interior pages, as places in the file
        self.interior: list[int] = []  # pages
        self._walk(self._root(table), 0, leaves, between)
        self._leaves = np.concatenate(leaves)
        self._between = np.concatenate(between) if between else np.zeros(0, dtype=np.int64)
        # Between two leaves that are neighbours stands one row: where it begins, the left one has ended.
        if len(self._between) + 1 != len(self._leaves):
            raise Unusual
        between_rows = self._take_between(self._between)
        self._see_ascend(between_rows)
        self._ends = between_rows.a
        self._account_for_interior()

    def _root(self, table: str) -> int:
        db = connect(self._copy)
        try:
            found = query(
                db, "SELECT rootpage FROM sqlite_schema WHERE type = 'table' AND name = ?", (table,)
            )
        finally:
            db.close()
        if len(found) != 1:
            raise Unusual
        return int(found[0][0])

    def _read(self, numbers: list[int]) -> NDArray[np.uint8]:
        """Return these pages. Not by mapping the file: of what is mapped the kernel takes in whole
        neighbourhoods, and a part has pages all over it."""
        size = self._page_bytes
        if numbers and not 2 <= min(numbers) <= max(numbers) <= self._pages:
            raise Unusual
        data = bytearray(len(numbers) * size)
        view = memoryview(data)
        with self._copy.open('rb', buffering=0) as file:
            fd = file.fileno()
            for at, number in enumerate(numbers):
                if os.preadv(fd, [view[at * size : (at + 1) * size]], (number - 1) * size) != size:
                    raise Unusual
        return np.frombuffer(data, dtype=np.uint8).reshape(-1, size)

    # --- the tree of pages -------------------------------------------------------------------------------
    def _walk(
        self, page: int, level: int, leaves: list[NDArray[np.int64]], between: list[NDArray[np.int64]]
    ) -> None:
        """Append the leaves below a page, and the rows between them, in the order of ids."""
        data = self._read([page])[0]
        kind = int(data[0])
        if kind == LEAF and level == 0:
            leaves.append(np.array([page], dtype=np.int64))
            return
        self.interior.append(page)
        if kind != INTERIOR or level >= LEVELS_MAX or len(self.interior) > self._pages:
            raise Unusual
        count = int.from_bytes(data[3:5].tobytes(), 'big')
        begin = INTERIOR_HEADER_BYTES + 2 * count
        if not count or begin > self._page_bytes:
            raise Unusual
        cells = data[INTERIOR_HEADER_BYTES:begin].tobytes()
        places = np.frombuffer(cells, dtype='>u2').astype(np.int64)
        if int(places.min()) < begin or int(places.max()) + CHILD_BYTES >= self._page_bytes:
            raise Unusual
        left = data[places[:, None] + np.arange(CHILD_BYTES)].tobytes()
        right = data[LEAF_HEADER_BYTES:INTERIOR_HEADER_BYTES].tobytes()
        children = np.frombuffer(left + right, dtype='>u4').astype(np.int64)
        rows = (page - 1) * self._page_bytes + places + CHILD_BYTES
        if self._read(children[:1].tolist())[0, 0] == LEAF:  # then all are: a tree has one height everywhere
            leaves.append(children)
            between.append(rows)
            return
        for index, child in enumerate(children.tolist()):
            self._walk(child, level + 1, leaves, between)
            if index < count:
                between.append(rows[index : index + 1])

    def pages(self) -> NDArray[np.int64]:
        """Return all pages of the table."""
        return np.concatenate([np.array(self.interior, dtype=np.int64), self._leaves])

    def _account_for_interior(self) -> None:
        """See that cells and free blocks fill the interior pages."""
        numbers = np.array(sorted(self.interior), dtype=np.int64)
        if not len(numbers):
            return
        pages = self._read(numbers.tolist())
        at = self._between // self._page_bytes
        rows = np.searchsorted(numbers - 1, at) * self._page_bytes + self._between % self._page_bytes
        sizes = pages.ravel()[rows].astype(np.int64) + 1 + CHILD_BYTES
        order = np.argsort(rows, kind='stable')
        _account(pages, INTERIOR_HEADER_BYTES, rows[order] - CHILD_BYTES, sizes[order])

    # --- rows --------------------------------------------------------------------------------------------
    def slices(self) -> int:
        """Return in how many slices the table is best read."""
        return -(-len(self._leaves) // PAGES_AT_ONCE)

    def slice(self, number: int) -> Columns:
        """Return one of so many slices of the table. Unusual, OSError."""
        start = number * PAGES_AT_ONCE
        return self._between_leaves(start, min(start + PAGES_AT_ONCE, len(self._leaves)) - 1, last=True)

    def read(self, low: int, high: int) -> Columns:
        """Return the rows whose ids begin with a byte from `low` to below `high`. Unusual, OSError."""
        edges = [np.uint64(low << 56), np.uint64((high << 56) - 1)]
        first = int(np.searchsorted(self._ends, edges[0], side='left'))
        last = int(np.searchsorted(self._ends, edges[1], side='right'))
        found = self._between_leaves(first, last, last=False)
        start = int(np.searchsorted(found.a, edges[0], side='left'))
        stop = int(np.searchsorted(found.a, edges[1], side='right'))
        return Columns(*(column[start:stop] for column in found.all()))

    def _between_leaves(self, first: int, end: int, *, last: bool) -> Columns:
        """Return the rows of leaves from `first` to `end`, both counted, and those between them; with `last`
        the one behind them too."""
        inner = self._between[first : end + 1 if last else end]
        counts, leaves = self._take_leaves(self._leaves[first : end + 1])
        # The row behind a leaf stands behind as many rows as there are in it and before it.
        behind = (np.cumsum(counts) + np.arange(len(counts)))[: len(inner)]
        from_leaves = np.ones(len(leaves) + len(inner), dtype=bool)
        from_leaves[behind] = False
        columns: list[NDArray[Any]] = []
        for own, other in zip(leaves.all(), self._take_between(inner).all(), strict=True):
            column = np.empty(len(from_leaves), dtype=own.dtype)
            column[from_leaves], column[behind] = own, other
            columns.append(column)
        found = Columns(*columns)
        self._see_ascend(found)
        return found

    def _see_ascend(self, rows: Columns) -> None:
        """See that rows ascend. Unusual; also for two ids that share their first number, which are not there
        by chance."""
        a, b, place = rows.a, rows.b, rows.place
        fine = a[1:] > a[:-1]
        if self._columns > 1 + NUMBERS:  # of a batch: one chunk may be there with several places
            fine |= (a[1:] == a[:-1]) & (b[1:] == b[:-1]) & (place[1:] > place[:-1])
        if not bool(fine.all()):
            raise Unusual

    def _take_leaves(self, numbers: NDArray[np.int64]) -> tuple[NDArray[np.int64], Columns]:
        """Return how many rows each of these leaves has, and all rows."""
        pages = self._read(numbers.tolist())
        counts = pages[:, 3:5].astype(np.int64) @ np.array([256, 1])
        begins = LEAF_HEADER_BYTES + 2 * counts
        if bool((pages[:, 0] != LEAF).any()) or int(begins.max()) > self._page_bytes:
            raise Unusual
        if not bool(counts.all()) and len(self._leaves) > 1:
            raise Unusual
        most = int(counts.max())
        places = (
            pages[:, LEAF_HEADER_BYTES : LEAF_HEADER_BYTES + 2 * most].copy().view('>u2').astype(np.int64)
        )
        there = np.arange(most) < counts[:, None]
        if bool(((places < begins[:, None]) | (places >= self._page_bytes))[there].any()):
            raise Unusual
        rows = (places + np.arange(len(pages), dtype=np.int64)[:, None] * self._page_bytes)[there]
        found = self._take(pages.ravel(), rows)
        _account(pages, LEAF_HEADER_BYTES, rows, pages.ravel()[rows].astype(np.int64) + 1)
        return counts, found

    def _take_between(self, rows: NDArray[np.int64]) -> Columns:
        numbers, at = np.unique(rows // self._page_bytes, return_inverse=True)
        pages = self._read((numbers + 1).tolist())
        return self._take(pages.ravel(), at * self._page_bytes + rows % self._page_bytes)

    def _take(self, data: NDArray[np.uint8], rows: NDArray[np.int64]) -> Columns:
        """Take rows apart; `rows`: where each begins in `data`, which is whole pages."""
        if not len(rows):
            none = np.zeros(0, dtype=np.int64)
            return Columns(none.astype(np.uint64), none.astype(np.uint64), *[none] * NUMBERS)
        room = self._page_bytes - rows % self._page_bytes
        header = 1 + self._columns  # its own size, and a type for each column
        if int(room.min()) < 1 + header + limits.ID_BYTES:
            raise Unusual
        heads = np.ascontiguousarray(_windows(data, 1 + header)[rows].T)  # by column, as all that follows
        types = heads[3 : 3 + NUMBERS]
        sizes = SIZES[heads[3:]]
        good = (heads[1] == header) & (heads[2] == ID_TYPE) & (sizes >= 0).all(axis=0)
        # Below 128 a length is one byte. None of these rows can have more.
        in_all = sizes.sum(axis=0, dtype=np.int16) + np.int16(header + limits.ID_BYTES)
        good &= (heads[0] == in_all) & (in_all < 128) & (in_all < room)
        if not bool(good.all()):
            raise Unusual
        at = rows + (1 + header)
        a, b = words(_windows(data, limits.ID_BYTES)[at].tobytes())
        at += limits.ID_BYTES
        numbers = []
        for size, kind in zip(sizes[:NUMBERS], types, strict=True):
            at += size
            numbers.append(_numbers(data, at, size, kind))
        return Columns(a, b, *numbers)


def _account(
    pages: NDArray[np.uint8], header_bytes: int, cells: NDArray[np.int64], sizes: NDArray[np.int64]
) -> None:
    """See that cells, free blocks and fragments fill each page from where its content begins to its end, no
    byte twice. `cells`: where cells begin in all pages, page by page; `sizes`: their bytes. Unusual."""
    page_bytes = pages.shape[1]
    heads = pages[:, :LEAF_HEADER_BYTES].astype(np.int64)
    begins = heads[:, 5] << 8 | heads[:, 6]
    counts = heads[:, 3] << 8 | heads[:, 4]
    if bool((begins < header_bytes + 2 * counts).any() or (begins > page_bytes).any()):
        raise Unusual
    at = cells // page_bytes
    used = np.bincount(at, weights=sizes, minlength=len(pages)).astype(np.int64) + heads[:, 7]
    blocks, block_sizes = _free_blocks(pages, heads[:, 1] << 8 | heads[:, 2], begins)
    np.add.at(used, blocks // page_bytes, block_sizes)
    if bool((used != page_bytes - begins).any()) or bool((heads[:, 7] > FRAGMENT_BYTES_MAX).any()):
        raise Unusual
    starts, sizes = np.concatenate([cells, blocks]), np.concatenate([sizes, block_sizes])
    order = np.argsort(starts)
    starts = starts[order]
    ends = starts + sizes[order]
    if bool((ends[:-1] > starts[1:]).any()) or bool(
        (starts % page_bytes < begins[starts // page_bytes]).any()
    ):
        raise Unusual


def _free_blocks(
    pages: NDArray[np.uint8], first: NDArray[np.int64], begins: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return where free blocks begin in all pages, and their bytes; they ascend in each page. Unusual."""
    page_bytes, data = pages.shape[1], pages.ravel()
    blocks, sizes = [np.zeros(0, dtype=np.int64)], [np.zeros(0, dtype=np.int64)]
    page = np.flatnonzero(first)
    at = first[page]
    while len(page):
        if bool((at < begins[page]).any()) or bool((at + FREE_BLOCK_BYTES_MIN > page_bytes).any()):
            raise Unusual
        places = page * page_bytes + at
        following = data[places].astype(np.int64) << 8 | data[places + 1]
        size = data[places + 2].astype(np.int64) << 8 | data[places + 3]
        # A neighbour closer than that would have been joined with it.
        apart = (following == 0) | (following >= at + size + FREE_BLOCK_BYTES_MIN)
        if not bool(((size >= FREE_BLOCK_BYTES_MIN) & (at + size <= page_bytes) & apart).all()):
            raise Unusual
        blocks.append(places)
        sizes.append(size)
        page, at = page[following > 0], following[following > 0]
    return np.concatenate(blocks), np.concatenate(sizes)


def _windows(data: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    return np.lib.stride_tricks.sliding_window_view(data, size)


def _numbers(
    data: NDArray[np.uint8], ends: NDArray[np.int64], sizes: NDArray[np.int8], types: NDArray[np.uint8]
) -> Numbers:
    """Return the numbers that end before `ends`: signed, the highest byte first. A row has an id before its
    numbers, so that eight bytes can always be read."""
    some = np.flatnonzero(sizes)
    if len(some) == len(sizes):
        return _stored(data, ends, types)
    found: Numbers = (types == ONE).astype(np.int64)
    found[some] = _stored(data, ends[some], types[some])
    return found


def _stored(data: NDArray[np.uint8], ends: NDArray[np.int64], types: NDArray[np.uint8]) -> Numbers:
    every = np.ndarray((len(data) - NUMBER_BYTES_MAX + 1,), dtype='>i8', buffer=data, strides=(1,))
    found: Numbers = every[ends - NUMBER_BYTES_MAX].astype(np.int64)
    shift = SHIFTS[types]
    found <<= shift
    found >>= shift
    return found
