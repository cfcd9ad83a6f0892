"""What a store is used for, whatever is in it: each use ends, with a result or an error that it documents."""

from __future__ import annotations

import contextlib
import io
import re
import sqlite3
from collections.abc import Callable
from pathlib import Path

import trio

from snapfs import limits
from snapfs.errors import SnapfsError
from snapfs.format.superblock import decode_superblock
from snapfs.rescue import rebuild
from snapfs.rescue.export import export_lines, find_snapshot
from snapfs.rescue.reader import Reader
from snapfs.rescue.recheck import Recheck
from snapfs.rescue.recover_values import SurveySpec
from snapfs.rescue.scrub import scrub
from snapfs.rescue.scrub_values import ScrubSpec, slots_of
from snapfs.rescue.survey import survey
from snapfs.service.collecting import Collecting
from snapfs.service.recovering import Recovering, Wish
from snapfs.store import backup
from snapfs.store.durable import Disk
from snapfs.volume.engine import Engine
from snapfs.volume.view import View
from tests.mutants.setting import StepWorld
from tests.support.collecting import DAY, job_in_process
from tests.support.fsck import report_of
from tools import certificate

READ_BYTES_MAX, STEP_BYTES = 1 << 20, 100_000
NOW = 1_800_000_000 * 10**9
# Rows of quarantine that no id can name do not come back, and the guards that count them fall loudly. No
# other assertion is meant: what a store holds is no reason for one.
MEANT = re.compile(
    r'P1: \d+ rows were to come back, \d+ came, \d+ went|batch \d+: \d+ chunks are still in quarantine'
)
SNAPSHOTS = (('home', 'monday'), ('work', 'base'))


def world(number: int) -> StepWorld:
    """Return a world whose chance is not that of the store's makers: names of packs must not meet."""
    made = StepWorld()
    made._random.seed(f'uses {number}')
    return made


async def walk(view: View) -> None:
    """Read what a view holds: every name, attribute, and byte that is near the ends of a file. What says that
    it cannot be read is passed over."""
    seen: set[int] = set()
    todo = [limits.INO_ROOT]
    while todo:
        ino = todo.pop()
        if ino in seen:
            continue  # a directory that is in itself
        seen.add(ino)
        with contextlib.suppress(SnapfsError):
            inode = await view.inode(ino)
            for name in await view.xattr_list(inode):
                with contextlib.suppress(SnapfsError):
                    await view.xattr_get(inode, name)
            for start in range(0, min(inode.size, READ_BYTES_MAX), STEP_BYTES) if inode.is_regular() else ():
                with contextlib.suppress(SnapfsError):
                    await view.read(inode, start, STEP_BYTES)
                    await view.read(inode, max(0, inode.size - start - STEP_BYTES), STEP_BYTES)
            after = 0
            while inode.is_directory() and (page := await view.list_directory(inode, after, 100)):
                todo += [child for _, _, child, _ in page]
                after = page[-1][0]


def check(path: Path) -> None:
    """fsck: it says something of everything, and knows no error."""
    report_of(path)


def read(path: Path) -> None:
    """Open the store as a daemon would, and read everything."""

    async def life() -> None:
        engine = await Engine.open(path, Disk(), world(1))
        try:
            for head in engine.heads().values():
                await walk(head)
            for row in engine.snapshot_list():
                view = engine.snapshot_view(row.number)
                assert view is not None
                await walk(view)
        finally:
            engine.store.close(clean=False)
            engine.closed = True

    trio.run(life)


def recover(path: Path) -> None:
    """Recover a snapshot, on an open store; then collect, as the schedule would."""

    async def life() -> None:
        here = world(2)
        engine = await Engine.open(path, Disk(), here)
        try:
            collecting = Collecting(engine, here, job_in_process(here))
            await collecting.begin()
            for volume, name in SNAPSHOTS:
                with contextlib.suppress(SnapfsError, OSError):
                    await Recovering(collecting).run(Wish(volume, name, None, (), True, False, 'ann'))
            for _ in range(2):
                try:
                    await collecting.collect()
                except AssertionError as error:
                    if not MEANT.fullmatch(str(error)):
                        raise
                except (SnapfsError, OSError):
                    pass
                here.advance(8 * DAY)
        finally:
            engine.store.close(clean=False)
            engine.closed = True

    trio.run(life)


def rescue(path: Path) -> None:
    """Scrub, survey and export, as processes that only read."""
    uuid = decode_superblock((path / 'superblock').read_bytes()).uuid
    with contextlib.suppress(SnapfsError, OSError):
        scrub(ScrubSpec(path, uuid, slots_of(1, 1), 0), world=StepWorld())
    reader = Reader(path, uuid)
    try:
        for volume, name in SNAPSHOTS:
            found = find_snapshot(reader, volume, name)
            if found is None:
                continue
            with contextlib.suppress(SnapfsError, OSError):
                survey(SurveySpec(path, uuid, found.root.id, 2, ()))
            with contextlib.suppress(SnapfsError, OSError):
                recheck = Recheck(reader)
                for line in export_lines(reader, found):
                    recheck.add(line)
                recheck.finish()
    finally:
        reader.close()


def replay(path: Path) -> None:
    """Replay the newest certificate."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(sqlite3.Error):
        certificate.replay(path, None, True)


def anew(path: Path) -> None:
    """Make the catalog anew, from the newest backup that is whole."""
    disk, uuid = Disk(), decode_superblock((path / 'superblock').read_bytes()).uuid
    chosen = backup.newest(disk, path, uuid)
    rebuild.Rebuild(disk, path, uuid, path / 'new.sqlite', NOW).run(chosen)


USES: list[Callable[[Path], None]] = [check, rescue, replay, anew, read, recover]


def use(path: Path) -> None:
    """Do all of it. What each documents is passed over; an error of another kind names the use."""
    for one in USES:
        try:
            one(path)
        except (SnapfsError, OSError):
            pass
        except Exception as error:
            error.add_note(f'while: {one.__name__}')
            raise
