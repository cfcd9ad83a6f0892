"""Tool: run: plays drills on scratch stores and says how they ended. Blocking."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import trio

from snapfs import limits
from tools.drill.drill import Drill
from tools.drill.lab import Lab, small_store

Say = Callable[[str], None]
ROOM = 1024 * limits.MIB


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a drill ended. `seen`: the guards that did their work, with what they said, in order; `files`: how
    many were read in the end, every byte of them; `failure`: '' when it ended as it must."""

    name: str
    seen: tuple[tuple[str, str], ...]
    files: int
    failure: str

    @property
    def passed(self) -> bool:
        """Whether it ended as it must."""
        return not self.failure


def play(drill: Drill, say: Say = lambda line: None) -> Outcome:
    """Play one drill in a temporary directory, which is removed afterwards."""
    path = Path(tempfile.mkdtemp(prefix='snapfs-drill-', dir=scratch()))
    logger = logging.getLogger('snapfs')
    before = logger.level
    # What the collector shouts in a drill is part of the play; it would look like a real alarm.
    logger.setLevel(logging.CRITICAL + 1)
    try:
        with small_store():
            return trio.run(_play, drill, Lab(path / 'store', say))
    finally:
        logger.setLevel(before)
        shutil.rmtree(path)


def scratch() -> str | None:
    """Return where scratch stores are made: in memory, where syncs cost nothing, if there is room."""
    memory = '/dev/shm'
    if 'TMPDIR' in os.environ or not os.access(memory, os.W_OK) or shutil.disk_usage(memory).free < ROOM:
        return None  # what tempfile thinks best
    return memory


async def _play(drill: Drill, lab: Lab) -> Outcome:
    files, failure = 0, ''
    try:
        await lab.make()
        await drill.play(lab)
        lab.mend()
        await lab.acknowledge()
        files = await lab.check()
        seen = set(dict(lab.seen))
        if seen != set(drill.guards):
            failure = f'the guards {sorted(drill.guards)} were to be seen, and seen were {sorted(seen)}'
        else:
            await _go_on(lab)
    except Exception as error:
        failure = f'{type(error).__name__}: {error}'
    finally:
        with trio.CancelScope(shield=True):
            await _end(lab)
    return Outcome(drill.name, tuple(lab.seen), files, failure)


async def _go_on(lab: Lab) -> None:
    """After a drill the store must collect again, lose nothing, and have nothing left to do."""
    await lab.collect_all()
    await lab.check()
    left = [row.number for row in lab.engine.request_list()]
    lab.must(not left and not lab.latched(), f'requests {left} are not fulfilled after it: {lab.latched()}')


async def _end(lab: Lab) -> None:
    lab.mend()
    try:
        await lab.close()
    except Exception:
        lab.drop()
