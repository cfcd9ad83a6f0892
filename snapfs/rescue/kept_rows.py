"""L4 kept rows: what backups of the catalog say of a snapshot. Blocking; reads only.

SQLite has no checksums: a bit that turns round in a snapshot's row makes another root of it, or other counts.
But the number of a view is never given out twice, and a snapshot never changes (P6). So a backup that has
the same number, volume and time of making, and another tree for it, proves that one of the two is wrong; and
since a later backup may be a copy of a row that was wrong already, the oldest one is believed first. Its root
must still prove itself: it is a hash, and the top node below it says the same counts.

Of a volume's head nothing of the kind can be said: it changes, and a backup has an older state of it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from snapfs.errors import Corrupt
from snapfs.format.nodes import decode_node
from snapfs.store import backup as backups
from snapfs.store.durable import Disk
from snapfs.store.rows import SnapshotRow, snapshot_row
from snapfs.store.store import Store


@dataclass(frozen=True, slots=True)
class KeptRow:
    """The row of a snapshot with the tree that a backup has for it, and the file name of that backup."""

    row: SnapshotRow
    backup: str


def kept_rows(disk: Disk, store: Path, uuid: bytes, row: SnapshotRow) -> list[KeptRow]:
    """Return the other trees that backups have for this snapshot, the oldest first, each once; nothing when
    all of them agree with the row. A backup that is damaged says nothing."""
    found: dict[tuple[bytes | None, int, int], KeptRow] = {}
    for one in backups.whole(disk, store, uuid):  # the newest first: an older one takes its place
        for values in one.tables['snapshot']:
            if values[0] != row.number:
                continue
            try:
                kept = snapshot_row(tuple(values))
            except Corrupt:
                continue
            if (kept.volume, kept.created_ns) == (row.volume, row.created_ns):
                tree = (kept.root, kept.root_items, kept.root_refs)
                found.pop(tree, None)
                # Names and marks are those of now; what else belongs to the tree comes with it.
                now = replace(kept, name=row.name, who=row.who, damaged_ns=row.damaged_ns)
                found[tree] = KeptRow(now, one.path.name)
    found.pop((row.root, row.root_items, row.root_refs), None)
    return list(reversed(found.values()))


def proves_itself(store: Store, row: SnapshotRow) -> bool:
    """Return whether the top node of a row is there and counts what the row counts."""
    if row.root is None:
        return row.root_items == row.root_refs == 0
    try:
        top = decode_node(store.chunks.get(row.root))
    except Corrupt:
        return False
    return (top.items_below, top.refs_below) == (row.root_items, row.root_refs)
