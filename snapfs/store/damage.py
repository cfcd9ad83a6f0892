"""L2 damage: the rows of the table `damage`: chunks that were found missing or wrong. Blocking; any thread.

A chunk is noted in memory by whoever reads it, and written down soon: with the mark on its snapshot, or by
the next commit. Rows keep nothing alive and free nothing. Losing one only means that the loss is found
again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from snapfs import limits
from snapfs.store.catalog import Catalog

READ, SCRUB, RECOVERY = 'read', 'scrub', 'recovery'
_REASON_CHARACTERS = 500
_FREED = 'SELECT id FROM damage WHERE id IN (SELECT id FROM freed) AND id NOT IN (SELECT id FROM chunk)'


def load(catalog: Catalog) -> set[bytes]:
    """Return the ids of all chunks that are known to be lost, but for those that have been freed. Only reads:
    a store that has stopped, or cannot be written, is opened too."""
    return {id for (id,) in catalog.query(f'SELECT id FROM damage WHERE id NOT IN ({_FREED})')}


def forget_freed(catalog: Catalog) -> set[bytes]:
    """Take away the rows of chunks that have been freed, and return their ids. Called before the pack of such
    a chunk goes, and its row in `freed` with it."""
    if not catalog.query(f'{_FREED} LIMIT 1'):
        return set()
    with catalog.transaction() as db:
        found = {id for (id,) in db.execute(_FREED)}
        db.executemany('DELETE FROM damage WHERE id = ?', [(id,) for id in found])
    return found


def record(catalog: Catalog, changes: Mapping[bytes, str | None], by: str, now_ns: int) -> None:
    """Write down what was found: by id the reason why a chunk is lost, or None for one that is whole again.

    Beyond UNREADABLE_CHUNKS_MAX rows nothing is added. Refused(ENOSPC) when the disk is full."""
    lost = [(id, now_ns, by, why[:_REASON_CHARACTERS]) for id, why in changes.items() if why is not None]
    whole = [(id,) for id, why in changes.items() if why is None]
    with catalog.transaction() as db:
        db.executemany('DELETE FROM damage WHERE id = ?', whole)
        room = limits.UNREADABLE_CHUNKS_MAX - db.execute('SELECT count(*) FROM damage').fetchone()[0]
        db.executemany('INSERT OR IGNORE INTO damage VALUES (?, ?, ?, ?)', lost[: max(0, room)])


def known(catalog: Catalog, ids: Iterable[bytes]) -> set[bytes]:
    """Return those of some ids that are known to be lost."""
    found: set[bytes] = set()
    wanted = list(ids)
    for start in range(0, len(wanted), limits.LOCATE_IDS_MAX):
        part = wanted[start : start + limits.LOCATE_IDS_MAX]
        marks = ','.join('?' * len(part))
        found |= {id for (id,) in catalog.query(f'SELECT id FROM damage WHERE id IN ({marks})', part)}
    return found
