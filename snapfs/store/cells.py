"""L2 cells: the types of the catalog's columns, and whether a catalog holds to them. Blocking; any thread.

SQLite keeps other types out of STRICT tables; a page that rotted does not ask it. Most rows are checked where
they are read. Jobs that take millions of rows at once do not look at each: when one of them fails in a way
that only a bug can explain, `odd_cells` says whether it was the catalog instead."""

from __future__ import annotations

import sqlite3
from functools import cache
from pathlib import Path
from urllib.parse import quote

from snapfs.store import schema

_TYPES: dict[str, type] = {'INTEGER': int, 'TEXT': str, 'BLOB': bytes}
_NAMES = {int: 'integer', str: 'text', bytes: 'blob'}


@cache
def columns_of(table: str) -> tuple[tuple[str, type, bool], ...]:
    """Return (name, type, may it be NULL) of each column of a table, by its text."""
    db = sqlite3.connect(':memory:')
    try:
        db.execute(schema.TABLES[table])
        rows = db.execute(f'PRAGMA table_xinfo({table})').fetchall()
    finally:
        db.close()
    return tuple((row[1], _TYPES[row[2]], not row[3] and not row[5]) for row in rows)


def odd_cells(path: Path) -> str | None:
    """Return what is wrong with the types in a catalog, None for nothing. Reads all of it. A catalog that
    cannot be read is wrong, too."""
    try:
        db = sqlite3.connect(f'file:{quote(str(path))}?mode=ro', uri=True)
        try:
            db.execute('PRAGMA trusted_schema = OFF')
            for table in schema.TABLES:
                parts = []
                for name, kind, nullable in columns_of(table):
                    also = ", 'null'" if nullable else ''
                    parts.append(f"typeof({name}) NOT IN ('{_NAMES[kind]}'{also})")
                ((count,),) = db.execute(f'SELECT count(*) FROM {table} WHERE {" OR ".join(parts)}')
                if count:
                    return f'catalog: {count} rows of {table} have columns of other types'
        finally:
            db.close()
    except (sqlite3.Error, UnicodeDecodeError) as error:  # SQLite quotes damaged names
        return f'catalog: {error}'
    return None
