"""L2 migrate: a catalog of an older version becomes one of this version. Blocking; nobody else uses it yet.

Version 1 -> 2. The tables whose text changed are made anew from the schema's text and their rows copied;
settings and tables that did not exist are added. Version 1 had no collector, so it has no batches: one with a
batch is not ours. Version 2 -> 3: tables are added. All of it is one transaction: a power cut leaves the old
version or the new one.
"""

from __future__ import annotations

import logging
import sqlite3

from snapfs.errors import Corrupt
from snapfs.store import schema

log = logging.getLogger('snapfs.store')

OLDEST_VERSION = 1
# What is copied into the tables whose text changed (a comment is enough: the text is compared).
_CHANGED = {'settings': '*', 'request': '*, NULL, NULL', 'request_part': '*', 'incident': '*, NULL'}


def migrate(db: sqlite3.Connection, version: int) -> None:
    """Bring the catalog to `schema.SCHEMA_VERSION`. Corrupt when it is not as its version says."""
    assert OLDEST_VERSION <= version < schema.SCHEMA_VERSION
    # Neither can be changed inside a transaction. Renaming must not touch the texts of other tables.
    db.execute('PRAGMA foreign_keys = OFF')
    db.execute('PRAGMA legacy_alter_table = ON')
    try:
        db.execute('BEGIN IMMEDIATE')
        try:
            if version == 1:
                _to_version_2(db)
            _add_tables(db)
            odd = db.execute('PRAGMA foreign_key_check').fetchall()
            if odd:
                raise Corrupt(f'catalog: {len(odd)} rows of version {version} refer to rows that are missing')
            db.execute(f'PRAGMA user_version = {schema.SCHEMA_VERSION}')
            db.execute('COMMIT')
        except BaseException:
            if db.in_transaction:
                db.execute('ROLLBACK')
            raise
    finally:
        db.execute('PRAGMA legacy_alter_table = OFF')
        db.execute('PRAGMA foreign_keys = ON')
    log.warning('the catalog was migrated from version %d to %d', version, schema.SCHEMA_VERSION)


def _to_version_2(db: sqlite3.Connection) -> None:
    present = {name for (name,) in db.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")}
    if not {*_CHANGED, 'batch'} <= present:
        raise Corrupt('catalog: the schema is not that of version 1')
    if db.execute('SELECT 1 FROM batch').fetchone() is not None:
        raise Corrupt('catalog: version 1 with a batch, which no program of that version can have made')
    db.execute('DROP TABLE batch')
    db.execute(schema.TABLES['batch'])
    for table, columns in _CHANGED.items():
        db.execute(f'ALTER TABLE {table} RENAME TO old_{table}')
        db.execute(schema.TABLES[table])
        db.execute(f'INSERT INTO {table} SELECT {columns} FROM old_{table}')
        db.execute(f'DROP TABLE old_{table}')
    db.executemany('INSERT OR IGNORE INTO settings VALUES (?, ?)', schema.SETTINGS_INITIAL.items())


def _add_tables(db: sqlite3.Connection) -> None:
    present = {name for (name,) in db.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")}
    for table, text in schema.TABLES.items():
        if table not in present:
            db.execute(text)
