"""L4 work table: rows of a job in a file without a name, so that memory does not grow with the store.
Blocking; one thread. Nothing of it is durable, and nothing is left of it, whatever ends the job."""

from __future__ import annotations

import sqlite3
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from snapfs.errors import Unavailable

CACHE_KIB = 16 * 1024
ROWS_AT_ONCE = 20_000


class WorkTable:
    """Tables of SQL text; rows go in by `add`, in bulk, and are seen by `query`. `close` when done."""

    def __init__(self, folder: Path | None, tables: Iterable[str]) -> None:
        """`folder`: where there is room for it; None: where the system keeps what is temporary. Unavailable
        when there is none."""
        self._waiting: dict[str, list[Sequence[Any]]] = {}
        try:
            with tempfile.NamedTemporaryFile(dir=folder, prefix='snapfs-') as file:
                self._db = sqlite3.connect(file.name, isolation_level=None)
                # The file loses its name here, with the first page written: SQLite goes on with the open one.
                for text in (
                    'PRAGMA journal_mode = OFF',
                    'PRAGMA synchronous = OFF',
                    'PRAGMA locking_mode = EXCLUSIVE',
                    f'PRAGMA cache_size = -{CACHE_KIB}',
                    *tables,
                ):
                    self._db.execute(text)
        except (OSError, sqlite3.Error) as error:
            raise Unavailable(f'no room for temporary tables: {error}') from error

    def close(self) -> None:
        """Give the room back."""
        self._db.close()

    def add(self, text: str, row: Sequence[Any]) -> None:
        """Have an INSERT done, soon: those of one text in order."""
        waiting = self._waiting.setdefault(text, [])
        waiting.append(row)
        if len(waiting) >= ROWS_AT_ONCE:
            self.flush()

    def flush(self) -> None:
        """Do what waits. Unavailable when the disk is full."""
        waiting, self._waiting = self._waiting, {}
        try:
            self._db.execute('BEGIN')
            for text, rows in waiting.items():
                self._db.executemany(text, rows)
            self._db.execute('COMMIT')
        except sqlite3.Error as error:
            raise Unavailable(f'no room for temporary tables: {error}') from error

    def query(self, text: str, values: Sequence[Any] = ()) -> Iterator[tuple[Any, ...]]:
        """Yield the rows of a SELECT, of all that was added before."""
        if self._waiting:
            self.flush()
        try:
            yield from self._db.execute(text, values)
        except sqlite3.Error as error:
            raise Unavailable(f'temporary tables: {error}') from error
