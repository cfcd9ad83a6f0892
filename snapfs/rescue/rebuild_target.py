"""L4 rebuild, target: may the new catalog be made there? Blocking; changes nothing. Asked before the long
work, so that nobody waits for a refusal."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from snapfs import limits
from snapfs.errors import Invalid, Refused
from snapfs.rescue.rebuild_install import LOGS
from snapfs.store.backup import Backup
from snapfs.store.durable import Disk

# What a store has, or may get, under these names, or names that begin so. A file of another kind there would
# be taken for the store's own.
STORE_NAMES = (
    'audit.log', 'backups', 'batches', 'catalog.sqlite', 'control.sock', 'daemon.log', 'incidents', 'journal',
    'lock', 'mirror', 'packs', 'reserve', 'superblock',
)  # fmt: skip


def checked_target(disk: Disk, store: Path, target: Path, install: bool) -> Path:
    """Return the path of the new catalog, links resolved; `store` is resolved. Invalid when nothing can be
    made there, or it would lie among the store's own files."""
    if target.name in ('', '.', '..'):
        raise Invalid(f'{target} is no name for a new file')
    try:
        target = target.parent.resolve(strict=True) / target.name
    except (FileNotFoundError, NotADirectoryError):
        raise Invalid(f'{target.parent} is not a directory') from None
    except (OSError, RuntimeError) as error:  # RuntimeError: links that lead to each other
        raise Invalid(f'{target.parent}: {getattr(error, "strerror", None) or error}') from None
    if not target.parent.is_dir():
        raise Invalid(f'{target.parent} is not a directory')
    _check_place(store, target, install)
    for suffix in ('', *LOGS, '-journal'):  # SQLite would bring an old log into the new catalog
        if disk.exists(Path(f'{target}{suffix}')):
            raise Invalid(
                f'{target}{suffix} is there already', advice='Name a new file, or move that one away.'
            )
    if not os.access(target.parent, os.W_OK | os.X_OK):
        elsewhere = ' Or make one elsewhere, to look at: the same without --install.' if install else ''
        raise Invalid(
            f'{target.parent}: a file cannot be made there',
            advice=f'Nothing was changed. Call again as its owner, when its disk can be written.{elsewhere}',
        )
    return target


def _check_place(store: Path, target: Path, install: bool) -> None:
    inside = target == store or store in target.parents
    example = f'snapfs rebuild {store} {store / "catalog.new"} --install'
    if inside and not install:
        raise Invalid(
            f'{target} lies in the store',
            advice=f'Name a place elsewhere, or have it put in place: {example}.',
        )
    if install and target.parent != store:
        raise Invalid(
            f'{target} cannot be put in place from there',
            advice=f'It has to be made in the store itself: {example}.',
        )
    if install and target.name.startswith(STORE_NAMES):
        raise Invalid(f"{target} has a name of the store's own", advice=f'Say: {example}.')


def check_room(disk: Disk, target: Path, chosen: Backup | None) -> None:
    """Refused(ENOSPC) when the index alone will not fit, as far as the backup tells how many records there
    are. It is what is certainly needed, and no estimate."""
    records = sum(row[5] for row in chosen.tables['pack']) if chosen is not None else 0
    needed = records * limits.INDEX_ROW_BYTES_MIN + limits.MIB
    figures = disk.statvfs(target.parent)
    free = figures.f_bavail * figures.f_frsize
    if free < needed:
        raise Refused(
            errno.ENOSPC,
            f'{target.parent} has {free // limits.MIB} MiB of room, and the new catalog needs at least '
            f'{needed // limits.MIB} MiB',
            advice='Nothing was changed. Make room, or name a place on another disk, without --install.',
        )
