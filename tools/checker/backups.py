"""Tool fsck, backups: would the backups of catalog and superblock help? They are the last to know the names
of volumes and snapshots. One thread; memory does not grow with a backup.

A backup is one JSON object: keys sorted, no spaces, a newline at the end. "digest" is the BLAKE3-256 of the
same text without it, so that it can be verified as it is read."""

from __future__ import annotations

import re

from blake3 import blake3

from snapfs import limits
from snapfs.errors import Corrupt
from tools.checker.findings import Report
from tools.checker.store import COPIES, Store, is_ours, read_at

FOLDER = 'backups'
NAME = re.compile(r'([0-9]{12,})-([0-9]+)\.json')
HEAD = re.compile(
    rb'\{"backup":1,"digest":"([0-9a-f]{64})",'
    rb'("epoch":([0-9]{1,19}),"made_ns":([0-9]{1,19}),"schema":[0-9]{1,9},"store":"([0-9a-f]{32})",)'
)
BLOCK_BYTES = limits.MIB
QUICK_COUNT = 2  # the newest are what a rebuild would take


def check_backups(store: Store, report: Report, *, full: bool, names: bool) -> None:
    """Check the copies of the superblock, and all backups of the catalog, with `full`, or the newest; without
    these with `names`, where only what is lost is looked for. A backup that goes meanwhile is none."""
    for folder in COPIES:
        if problem := store.copy_problem(folder):
            report.add('superblock-copy', f'{folder}/superblock', problem)
    if not names:
        _check_all(store, report, full)


def _check_all(store: Store, report: Report, full: bool) -> None:
    try:
        names = [name for name in store.entries(FOLDER) if NAME.fullmatch(name)]
    except Corrupt:
        return  # something else has this name; that is told where what stands in a store is looked at
    except OSError as error:
        report.could_not(FOLDER, error.strerror or str(error))
        return
    names.sort(key=lambda name: [int(text) for text in name.removesuffix('.json').split('-')])
    for name in names if full else names[-QUICK_COUNT:]:
        try:
            with store.opened(FOLDER, name) as (fd, size):
                _verify(store, name, fd, size)
        except FileNotFoundError:
            continue
        except (OSError, Corrupt) as error:
            why = getattr(error, 'strerror', None) or str(error)
            if isinstance(error, OSError) and is_ours(error):
                report.could_not(f'{FOLDER}/{name}', why)
            else:
                report.add('backup-bad', f'{FOLDER}/{name}', why)


def _verify(store: Store, name: str, fd: int, size: int) -> None:
    head = HEAD.match(read_at(fd, min(size, BLOCK_BYTES), 0)) if size <= limits.BACKUP_BYTES_MAX else None
    if head is None:
        raise Corrupt('is no backup that this program knows, or is damaged')
    if head[5].decode() != store.uuid.hex():
        raise Corrupt(f'is a backup of store {head[5].decode()}')
    if f'{int(head[3]):012d}-{int(head[4])}.json' != name:
        raise Corrupt(f'is the backup of epoch {int(head[3])}, and is not called like it')
    hasher = blake3(b'{"backup":1,')
    for offset in range(head.start(2), size, BLOCK_BYTES):
        hasher.update(read_at(fd, min(BLOCK_BYTES, size - offset), offset))
    if hasher.hexdigest().encode() != head[1]:
        raise Corrupt('has other bytes than its digest says')
