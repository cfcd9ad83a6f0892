"""L2 owed: incidents that the catalog could not be told, since it is what has failed. Blocking; any thread.

A sync that failed is an error for ever, also when it was that of the catalog's log: whoever opens the store
next must hear of it. STORE/incidents/owed has one JSON object a line: "scope", "reason", "opened_ns". The
next opening brings them into the catalog, and only then the file goes. What cannot be read in it is an
incident as well: one that stops the store."""

from __future__ import annotations

import contextlib
import json
import logging
from pathlib import Path

from snapfs.errors import Corrupt, SnapfsError
from snapfs.store.catalog import Catalog
from snapfs.store.durable import Disk
from snapfs.store.readonly import ReadingDisk

log = logging.getLogger('snapfs.store')

NAME = Path('incidents') / 'owed'
BYTES_MAX = 1 << 20


def owe(disk: Disk, store: Path, scope: str, reason: str, opened_ns: int) -> None:
    """Write an incident down beside the catalog, as durably as the disk still can, whose latch has fallen
    mostly; nothing by a disk that is only read. Never raises."""
    if isinstance(disk, ReadingDisk):
        return
    line = json.dumps({'scope': scope, 'reason': reason, 'opened_ns': opened_ns}) + '\n'
    beside, path = Disk(), store / NAME  # another one than that whose latch has fallen
    try:
        if beside.mkdir(path.parent):
            beside.sync_directory(store)
        told = beside.read_file(path, BYTES_MAX) if beside.exists(path) else b''
        beside.write_file(path, told + line.encode())
    except (SnapfsError, OSError) as error:
        log.critical('nor could it be written down beside the catalog: %s', error)


def settle(disk: Disk, store: Path, catalog: Catalog, now_ns: int) -> None:
    """Bring what is owed into the catalog; where that cannot be written it stays owed. What the catalog knows
    already (a crash before the file went) it is not told again."""
    path = store / NAME
    if not disk.exists(path) or disk.latched is not None:
        return
    for scope, reason, opened_ns in _read(disk, path, now_ns):
        if all(row.reason != reason for row in catalog.incidents(scope)):
            catalog.incident_add(scope, reason, opened_ns)
    with contextlib.suppress(SnapfsError, FileNotFoundError):
        disk.unlink(path)


def _read(disk: Disk, path: Path, now_ns: int) -> list[tuple[str, str, int]]:
    found = []
    try:
        for line in disk.read_file(path, 2 * BYTES_MAX).splitlines():
            one = json.loads(line)
            scope, reason, opened_ns = one['scope'], one['reason'], one['opened_ns']
            if scope not in ('store', 'collector') or type(reason) is not str or type(opened_ns) is not int:
                raise ValueError
            found.append((scope, reason, opened_ns))
    except (Corrupt, ValueError, KeyError, TypeError, RecursionError):
        found.append(('store', f'{path} tells of something that cannot be read', now_ns))
    return found
