"""tools bench: how much of everything is done. Pure values."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Sizes:
    """Counts and bytes of the workloads. `tree_files` is the least a real tree must have."""

    tree_files: int = 5_000
    sequential_bytes: int = 1 << 30
    random_bytes: int = 256 << 20
    random_count: int = 10_000
    fsync_count: int = 10_000
    create_count: int = 10_000
    snapshot_files: tuple[int, int] = (1_000, 100_000)
    snapshot_repeats: int = 5
    sparse_bytes: int = 10**15
    mount_repeats: int = 5


FULL = Sizes()
QUICK = Sizes(
    tree_files=500,
    sequential_bytes=128 << 20,
    random_bytes=32 << 20,
    random_count=1_000,
    fsync_count=200,
    create_count=1_000,
    snapshot_files=(100, 2_000),
    snapshot_repeats=3,
    mount_repeats=2,
)
