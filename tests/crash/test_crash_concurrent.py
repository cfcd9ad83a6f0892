"""Power cut while several tasks work: files change between the slices of a commit."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
from trio._core import _run as scheduler

from snapfs import limits
from tests.crash.run import Profile, Run
from tests.crash.test_crash_workloads import SEEDS
from tests.crash.verify import verify

FILES = Profile('concurrent', {'file': 10, 'open_unlinked': 1}, sizes=12_000, steps=40)
ADMINISTRATION = [
    'snapshot',
    'snapshot',
    'volume',
    'delete',
    'undelete',
    'clone',
    'rollback',
    'volume_delete',
]


class Concurrent(Run):
    """One task changes files of the first volume, two make things durable, one administers."""

    async def run(self) -> None:
        await self.open()
        self.busy = next(iter(self.pairs))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._some_steps, list(self.profile.weights), self.profile.steps, 2)
            nursery.start_soon(self._some_steps, ['sync', 'sync', 'sync', 'flush'], 12, 6)
            nursery.start_soon(self._some_steps, ['commit'], 6, 12)
            nursery.start_soon(self._some_steps, ADMINISTRATION, 7, 10)
        self.busy = None
        await self.finish()

    async def _some_steps(self, names: list[str], count: int, pauses: int) -> None:
        for _ in range(count):
            for _ in range(self.chance.randrange(pauses)):
                await trio.lowlevel.checkpoint()
            await self.step(self.chance.choice(names))


@pytest.mark.slow
@pytest.mark.parametrize('seed', range(SEEDS))
async def test_changes_during_commits_and_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    # Which task runs next is decided by the seed as well.
    monkeypatch.setattr(scheduler, '_ALLOW_DETERMINISTIC_SCHEDULING', True)
    scheduler._r.seed(seed)
    monkeypatch.setattr(limits, 'JOURNAL_INLINE_BYTES_MAX', (0, 4096, 64 * limits.KIB)[seed % 3])
    run = Concurrent(tmp_path, FILES, seed)
    await run.run()
    assert run.engine.committer.counts['commits'] >= 0
    assert len(run.images) > 20
    for image in run.images:
        await verify(image)
