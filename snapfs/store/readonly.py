"""L2 read-only: a catalog on a filesystem that cannot be written, opened all the same. Blocking; any thread.

SQLite reads a catalog that has a log (-wal) by way of an index (-shm) that it makes beside it, also where it
only reads. On a filesystem that is mounted read-only it cannot. There the file alone is read, as one that
nobody changes; or, where its log has something in it (a crash, or a copy made in the middle of work), a copy
of both in a temporary directory. Whoever calls knows that nobody has the store open: by its lock, or because
there is no index."""

from __future__ import annotations

import errno
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from snapfs.errors import Refused, Unavailable

REASON = 'the filesystem below it is read-only'
ADVICE = (
    'What works there: fsck, verify, export, damage, snapshot list, recover --dry-run, and rebuild to '
    'another place.'
)


@dataclass(frozen=True, slots=True)
class StillCatalog:
    """How a catalog is opened that nobody changes: `uri`, without a mode. `folder` holds the copy, if one
    had to be made; `close` removes it."""

    uri: str
    options: str
    folder: tempfile.TemporaryDirectory[str] | None

    def close(self) -> None:
        """Give the room of the copy back."""
        if self.folder is not None:
            self.folder.cleanup()


def still_catalog(path: Path) -> StillCatalog:
    """Return how to open this catalog. Refused(ENOSPC) or Unavailable when a copy cannot be made."""
    log = Path(f'{path}-wal')
    if not (log.is_file() and log.stat().st_size):
        return StillCatalog(f'file:{quote(str(path))}', '&immutable=1', None)
    folder = tempfile.TemporaryDirectory(prefix='snapfs-')
    try:
        for suffix in ('', '-wal'):
            shutil.copyfile(f'{path}{suffix}', f'{folder.name}/catalog.sqlite{suffix}')
    except OSError as error:
        folder.cleanup()
        if error.errno == errno.ENOSPC:
            raise Refused(
                errno.ENOSPC, f'{folder.name}: no room for a copy of the catalog', advice='Set TMPDIR.'
            ) from error
        raise Unavailable(f'{error.filename}: {error.strerror}') from error
    return StillCatalog(f'file:{quote(folder.name)}/catalog.sqlite', '', folder)
