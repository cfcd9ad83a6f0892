"""L2 SQLite errors: what they mean for a store. Any thread."""

from __future__ import annotations

import errno
import sqlite3

from snapfs.errors import Corrupt, Refused, SnapfsError, Unavailable
from snapfs.store.durable import MAKE_ROOM, Disk

# Reads that failed: nothing was promised. CORRUPTFS is what SQLite makes of EIO, and of reads only.
READS = (sqlite3.SQLITE_IOERR_READ, sqlite3.SQLITE_IOERR_CORRUPTFS)


def sqlite_error(error: sqlite3.Error, disk: Disk) -> SnapfsError:
    """Return the error of ours for one of SQLite's. A failed write or sync below it latches the disk."""
    code = getattr(error, 'sqlite_errorcode', 0) or 0
    primary = code & 0xFF
    # SHMSIZE: the index of the log could not grow. It is made anew at each start and promises nothing.
    if primary == sqlite3.SQLITE_FULL or code == sqlite3.SQLITE_IOERR_SHMSIZE:
        return Refused(errno.ENOSPC, 'catalog: no space left on the disk below', advice=MAKE_ROOM)
    if primary == sqlite3.SQLITE_IOERR and code not in READS:
        return disk.latch(f'catalog: {error}')
    if primary == sqlite3.SQLITE_BUSY:
        return Unavailable(
            'catalog: another program keeps it locked', advice='End that program and try again.'
        )
    return Corrupt(f'catalog: {error}')
