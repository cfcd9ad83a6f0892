"""tools bench: how much of everything is done. Pure values."""

from __future__ import annotations

from dataclasses import dataclass

MANY_PART = 5  # of the snapshots that are deleted, one in so many is deleted and freed first


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
    synthetic_references: int = 2_000_000
    beside_pairs: int = 1
    touched_bytes: int = 2 << 30  # more than an untar takes, page cache included
    release_bytes: int = 100 << 20
    many_files: int = 6_000
    many_snapshots: int = 1_000
    plain_bytes: int = 256 << 20
    plain_files: int = 1_000
    plain_pairs: int = 6
    map_files: int = 100_000
    map_snapshots: int = 50
    map_changed: int = 200  # files, between two snapshots
    map_lost: int = 1_000  # chunks

    def words(self) -> dict[str, str]:
        """Return the sizes that titles of the table name."""
        small, large = self.snapshot_files
        deleted = self.many_snapshots // 2
        first = deleted // MANY_PART
        return {
            'small': f'{small:,}',
            'large': f'{large:,}',
            'references': f'{self.synthetic_references:,}',
            'held': f'{self.release_bytes >> 20} MiB',
            'many': f'{self.many_snapshots:,}',
            'some': f'{first:,}',
            'rest': f'{deleted - first:,}',
            'map_files': f'{self.map_files:,}',
            'map_snapshots': f'{self.map_snapshots:,}',
            'map_lost': f'{self.map_lost:,}',
        }


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
    synthetic_references=100_000,
    touched_bytes=256 << 20,
    release_bytes=10 << 20,
    many_files=500,
    many_snapshots=50,
    plain_bytes=32 << 20,
    plain_files=100,
    plain_pairs=2,
    map_files=2_000,
    map_snapshots=5,
    map_changed=20,
    map_lost=50,
)
