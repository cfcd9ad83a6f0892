"""L2 missing: what of a store is seen not to be there, without reading it. Blocking; any thread. A look at
each name and size: nothing that grows with the data."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from snapfs.errors import Corrupt
from snapfs.store.packs import FOLDERS, pack_path
from snapfs.store.rows import PackRow

LINKED = 'is a symbolic link, and inside a store none is followed'
GONE = -1
DIRECTORIES = ('packs', 'batches', *(f'packs/{folder}' for folder in FOLDERS.values()))


def refuse_links(store: Path) -> None:
    """Raise Corrupt when a symbolic link stands in the place of one of the store's directories: what is
    written below it would go where nobody said."""
    for name in DIRECTORIES:
        if (store / name).is_symlink():
            raise Corrupt(
                f'{store / name} {LINKED}',
                advice='Nothing was changed. Put the directory itself there, or mount its disk there.',
            )


@dataclass(frozen=True, slots=True)
class Missing:
    """Packs that are not there, that are shorter than the catalog says, and that nobody let us look at: of
    these nothing is known (P10)."""

    gone: tuple[PackRow, ...] = ()
    short: tuple[PackRow, ...] = ()
    unseen: tuple[PackRow, ...] = ()

    def text(self) -> str:
        """Say it in a few words; nothing when nothing is missing. What was not seen is not in it."""
        parts = []
        for rows, what in ((self.gone, 'missing'), (self.short, 'too short')):
            if rows:
                count = '1 pack is' if len(rows) == 1 else f'{len(rows)} packs are'
                parts.append(f'{count} {what} ({rows[0].name.hex()}{", …" * (len(rows) > 1)})')
        return ', '.join(parts)


def size_of(store: Path, row: PackRow) -> int | None:
    """Return how many bytes a pack has: GONE when it is not there, 0 when something else is, None when nobody
    lets us look."""
    try:
        status = pack_path(store / 'packs', row.kind, row.name).lstat()
    except FileNotFoundError:
        return GONE
    except OSError:
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else 0


def missing_packs(store: Path, rows: Iterable[PackRow]) -> Missing:
    """Look for these packs, but for retired ones: those are on their way out."""
    gone, short, unseen = [], [], []
    for row in rows:
        if row.state == 'retired':
            continue
        size = size_of(store, row)
        if size is None:
            unseen.append(row)
        elif size == GONE and row.bytes:
            gone.append(row)
        elif GONE < size < row.bytes:
            short.append(row)
    return Missing(tuple(gone), tuple(short), tuple(unseen))


def way_out_of_hole(store: Path, name: str) -> str:
    """Say what helps somebody whose store lacks one of its directories."""
    recover = f'snapfs recover VOLUME@SNAPSHOT --store {store}'
    nodes = f'what {store / "mirror"} has of it comes back'
    files = f'{recover} --donors DIRECTORY, and snapfs damage {store} names the files that are lost'
    after = {
        'packs': f'{files}; of nodes {nodes}',
        'packs/data': files,
        'packs/meta': f'{recover}, or snapfs scrub --store {store}: {nodes}',
        'batches': f'snapfs fsck {store}, which says what receipts are lost',
    }[name]
    made = ' '.join(str(store / one) for one in DIRECTORIES if one.startswith(f'{name}/')) or str(
        store / name
    )
    return (
        'Nothing was changed. It may lie on a disk that is not mounted. If it is really lost: '
        f'mkdir{" -p" * (name == "packs")} {made}; {after}.'
    )


def way_out_of_journal(store: Path) -> str:
    """Say what helps somebody whose journal is gone or damaged."""
    return (
        'Nothing was changed. What the journal holds can be read with snapfs-dump. To go on without what is '
        f'damaged, which stays: snapfs rebuild {store} {store / "catalog.new"} --install --journal.'
    )


def way_out_of_catalog(store: Path) -> str:
    """Say what helps somebody whose catalog is gone or damaged."""
    advice = f'Make a new catalog: snapfs rebuild {store} {store / "catalog.new"} --install.'
    try:
        count = sum(name.endswith('.json') for name in os.listdir(store / 'backups'))
    except OSError as error:
        return f'{advice} The backups of its names cannot be listed: {error.strerror}.'
    return f'{advice} There are {count} backups of its names.'
