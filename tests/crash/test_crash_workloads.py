"""Power cut at every sync and every commit of short workloads; what is left is a moment of their history."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from snapfs import limits
from tests.crash.run import Options, Profile, Run
from tests.crash.verify import verify
from tests.sim.disk import PowerCut

# `make crash` says how many; as part of all tests these few have to do, in less than a minute.
SEEDS = int(os.environ.get('SNAPFS_SEEDS', '3'))

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


def _bytes_of(root: Path) -> dict[str, bytes | None]:
    found = sorted(root.rglob('*'))
    return {str(path.relative_to(root)): path.read_bytes() if path.is_file() else None for path in found}


@pytest.mark.parametrize('cut', [3, 9, 16])
async def test_an_image_is_what_a_power_cut_leaves(tmp_path: Path, cut: int) -> None:
    """Workloads run once, and an image is made before each event; to cut for real gives the same bytes."""
    whole = Run(tmp_path / 'whole', PROFILES[2], 1)
    await whole.run()
    image = whole.images[cut - 1]
    run = Run(tmp_path / 'cut', PROFILES[2], 1)
    run.options.cut_at = cut
    run.options.images_per_event = 0
    with pytest.raises(PowerCut):
        await run.run()
    left = run.disk.crash(image.seed, tmp_path / 'left')
    run.disk.forget()
    assert _bytes_of(left) == _bytes_of(image.path), image.note
    assert run.oracle.allowed() == image.allowed, image.note
