"""Power cut at every sync and every commit of short workloads; what is left is a moment of their history."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from snapfs import limits
from tests.crash.run import Options, Profile, Run
from tests.crash.verify import verify

SEEDS = int(os.environ.get('SNAPFS_SEEDS', '4'))

PROFILES = [
    Profile('small', {'file': 10, 'sync': 6, 'commit': 1}, sizes=3000),
    Profile('large', {'file': 8, 'sync': 3, 'flush': 2, 'commit': 1}, sizes=150_000, inline_bytes=4096),
    Profile('mixed', {'file': 12, 'sync': 3, 'flush': 1, 'commit': 1, 'open_unlinked': 3, 'reopen': 1}),
    Profile('snapshots', {'file': 10, 'snapshot': 4, 'delete': 2, 'undelete': 2, 'sync': 2}),
    Profile(
        'volumes',
        {'file': 10, 'volume': 2, 'volume_delete': 3, 'snapshot': 3, 'clone': 2, 'rollback': 2}
        | {'delete': 2, 'undelete': 2, 'sync': 2},
        sizes=5000,
    ),
    Profile('full journal', {'file': 10, 'sync': 8}, sizes=9000, journal_bytes=24 * limits.KIB),
]


@pytest.mark.slow
@pytest.mark.parametrize('seed', range(SEEDS))
@pytest.mark.parametrize('profile', PROFILES, ids=lambda profile: profile.name)
async def test_a_power_cut_leaves_a_moment_of_the_history(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, profile: Profile, seed: int
) -> None:
    monkeypatch.setattr(limits, 'JOURNAL_INLINE_BYTES_MAX', profile.inline_bytes)
    run = Run(tmp_path, profile, seed, Options())
    await run.run()
    assert len(run.images) > 10
    for image in run.images:
        await verify(image)
