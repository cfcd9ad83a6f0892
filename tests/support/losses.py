"""Damage that tests of several layers do to a closed store."""

from __future__ import annotations

import sqlite3
from pathlib import Path


def lose_top_node(store: Path, table: str, name: str) -> None:
    """Turn a bit in both copies of the top node of a volume or a snapshot."""
    with sqlite3.connect(store / 'catalog.sqlite') as db:
        rows = dict(db.execute('SELECT CAST(name AS TEXT), root FROM ' + table).fetchall())
    db.close()
    for path in [*(store / 'packs/meta').glob('*/*'), *(store / 'mirror').glob('*/*')]:
        data = bytearray(path.read_bytes())
        at = data.find(rows[name])  # in the header of its record; the payload follows
        if at >= 0:
            data[at + 60] ^= 1
            path.write_bytes(data)
