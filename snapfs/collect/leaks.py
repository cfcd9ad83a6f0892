"""L4 leaks: what crashes left in the index and nobody reaches becomes a request when a person asks. Blocking;
the owner of the store.

A leak is kept, counted, and freed by nobody until then (P2). The request takes the way of every other: its
batch begins with a recount of its own, which keeps whatever something has begun to need in the meantime."""

from __future__ import annotations

from snapfs import limits
from snapfs.collect.files import SCRATCH, BatchFiles
from snapfs.collect.recount_values import CONDEMNED_FILE, Recount, RecountSpec
from snapfs.errors import Corrupt, Invalid
from snapfs.store.catalog import take_number
from snapfs.store.rows import clean_text
from snapfs.store.store import Store


def rowless(store: Store) -> int:
    """Return how many records of packs no row stands for: leaks that the index does not even know."""
    rows = sum(
        store.catalog.query(f'SELECT count(*) FROM {table}')[0][0]
        for table in ('chunk', 'quarantine', 'freed')
    )
    records = sum(row.records for row in store.catalog.packs())
    return max(0, int(records - rows))


def request_leaks(store: Store, files: BatchFiles, spec: RecountSpec, found: Recount, who: str) -> int:
    """Ask for what a recount of mode 'leaks' has found; return the request's number. Invalid when that is
    nothing; Corrupt when the list on the disk is not the one that was found. The audit line comes first."""
    assert spec.mode == 'leaks'
    assert spec.out == files.path(SCRATCH)
    if found.alarm:
        raise Corrupt('a recount that raised an alarm says nothing about leaks')
    if not found.condemned:
        raise Invalid('there are no leaks to ask for')
    files.check(SCRATCH, CONDEMNED_FILE, found.condemned_digest, found.condemned)
    store.audit.append({
        'event': 'leaks-request', 'chunks': found.condemned, 'bytes': found.condemned_bytes,
        'digest': found.condemned_digest.hex(), 'who': clean_text(who),
    })  # fmt: skip
    now_ns = store.world.time_ns()
    with store.catalog.transaction() as db:
        request = take_number(db, 'next_request')
        epoch = db.execute("SELECT value FROM settings WHERE key = 'epoch'").fetchone()[0]
        db.execute(
            'INSERT INTO request VALUES '
            "(?, 'leaked', 0, x'', x'', 0, NULL, 0, 0, 0, ?, ?, '', NULL, ?, ?, ?, ?, NULL, NULL, NULL)",
            (request, epoch, now_ns, now_ns, clean_text(who), epoch, found.condemned_bytes),
        )
        for part, ids in enumerate(files.ids(SCRATCH, CONDEMNED_FILE, limits.INSERT_ROWS_MAX)):
            db.execute("INSERT INTO request_part VALUES (?, ?, 'chunks', ?)", (request, part, b''.join(ids)))
    return int(request)
