"""L2 integrity: what SQLite says of its own pages. Blocking; any thread.

SQLite has no checksums: a bit that turns round in a value stays unseen. What breaks the order of keys, the
links between pages, or what an index knows of its table, is seen. Values that cannot be are passed over here:
whoever reads a row checks it, and one odd value keeps nobody from the rest."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterable

_VALUE = re.compile(
    r'(NULL value in|NUMERIC value in|TEXT value in|non-[A-Z]+ value in|CHECK constraint failed) '
)
_OURS = (
    sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_FULL, sqlite3.SQLITE_INTERRUPT, sqlite3.SQLITE_PERM,
)  # fmt: skip


def problem_of(connection: sqlite3.Connection, tables: Iterable[str] = ()) -> str:
    """Return the first thing that is wrong with these tables (none: with the whole file), '' when nothing is.
    A second for a million rows. sqlite3.Error when it could not be looked at, which says nothing."""
    try:
        for arguments in [f"('{name}')" for name in tables] or ['']:
            for (text,) in connection.execute(f'PRAGMA integrity_check{arguments}'):
                if text != 'ok' and not _VALUE.match(text):
                    return ' '.join(text.split())[:200]
    except UnicodeDecodeError as error:  # it quotes damaged names, which need not be UTF-8
        return str(error)
    except sqlite3.Error as error:
        if (getattr(error, 'sqlite_errorcode', 0) or 0) & 0xFF in _OURS:
            raise
        return str(error)
    return ''
