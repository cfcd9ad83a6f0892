"""tools bench: what is measured, in the order of the table. Pure values."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Metric:
    """One row. `aim` is for snapfs: ('ratio', most times the null filesystem), ('most', value) or ('least',
    value).
    """

    name: str
    title: str
    unit: str
    more_is_better: bool = False
    aim: tuple[str, float] | None = None
    compare: bool = True  # with the null filesystem
    least: bool = False  # of the rounds, not the median: what others do on the machine only adds

    def ratio(self, value: float, null: float) -> float:
        """Return how many times worse than the null filesystem a value is: below 1 is better."""
        return null / value if self.more_is_better else value / null

    def reached(self, value: float, null: float | None) -> bool | None:
        """Tell whether a value reaches the aim; None when there is no aim, or nothing to compare with."""
        if self.aim is None:
            return None
        kind, limit = self.aim
        if kind == 'ratio':
            return None if not null else self.ratio(value, null) <= limit
        return value <= limit if kind == 'most' else value >= limit

    def aim_text(self) -> str:
        """Return the aim for a person."""
        if self.aim is None:
            return ''
        kind, limit = self.aim
        if kind == 'ratio':
            return f'≤ {limit:g} ×'
        return f'{"≤" if kind == "most" else "≥"} {limit:g} {self.unit}'.rstrip()


METADATA = ('ratio', 2.0)

METRICS = (
    Metric('untar', 'untar a real tree', 's', aim=METADATA),
    Metric('find_warm', 'find with stat, warm', 's', aim=METADATA),
    Metric('find_cold', 'find with stat, cold', 's'),
    Metric('read_warm', 'read the whole tree, warm', 's', aim=METADATA),
    Metric('read_cold', 'read the whole tree, cold', 's', aim=('ratio', 3.0)),
    Metric('copy_percent', 'a second copy of the tree adds', '%', aim=('most', 2.0)),
    Metric('remove', 'rm -rf', 's', aim=METADATA),
    Metric('create', 'create empty files', 'files/s', True, METADATA),
    Metric('write', 'write 1 MiB blocks, incompressible', 'MiB/s', True, ('least', 250.0)),
    Metric('write_synced', 'the same, with fsync at the end', 'MiB/s', True),
    Metric('read', 'read it, cold', 'MiB/s', True, ('least', 400.0)),
    Metric('random_read', '4 KiB random reads, cold', 'reads/s', True),
    Metric('random_write', '4 KiB random writes, fsync at the end', 'writes/s', True),
    Metric('fsync_write', '4 KiB random writes, fsync each time', 'writes/s', True),
    Metric('fsync_flushes', 'device flushes for one of these fsyncs', '', aim=('most', 1.1), least=True),
    Metric('snapshot_small', 'take a snapshot, {small} files', 'ms', aim=('most', 20.0)),
    Metric('snapshot_delete_small', 'request its deletion', 'ms', aim=('most', 20.0)),
    Metric('snapshot_large', 'take a snapshot, {large} files', 'ms', aim=('most', 20.0)),
    Metric('snapshot_delete_large', 'request its deletion', 'ms', aim=('most', 20.0)),
    Metric('recount_1_speed', 'recount 1, {references} references', 'M refs/s', True, ('least', 2.0)),
    Metric('recount_1_memory', 'its memory', 'MiB', aim=('most', 200.0)),
    Metric('recount_2_speed', 'recount 2', 'M refs/s', True, ('least', 0.5)),
    Metric('recount_2_memory', 'its memory', 'MiB', aim=('most', 200.0)),
    Metric('proof_speed', 'proof', 'M refs/s', True),
    Metric('proof_memory', 'its memory', 'MiB', aim=('most', 200.0)),
    Metric(
        'beside_recount_1',
        'untar while recount 1 runs: speed left',
        '%',
        True,
        ('least', 70.0),
        compare=False,
    ),
    Metric('beside_recount_2', 'while recount 2 runs', '%', True, ('least', 70.0), compare=False),
    Metric('beside_scrub', 'while a scrub runs at full rate', '%', True, ('least', 70.0), compare=False),
    Metric('scrub_speed', 'scrub, stored bytes verified', 'MB/s', True, ('least', 400.0)),
    Metric('scrub_memory', 'its memory', 'MiB'),
    Metric('fsck_quick', 'fsck --quick, {references} references', 'M refs/s', True, ('least', 1.0)),
    Metric('fsck_quick_memory', 'its memory, all processes', 'MiB', aim=('most', 250.0)),
    Metric('fsck_full', 'fsck, stored bytes read and hashed, cold', 'MB/s', True, ('least', 400.0)),
    Metric('fsck_full_memory', 'its memory, all processes', 'MiB', aim=('most', 250.0)),
    Metric(
        'damage_map',
        'map of {map_lost} lost chunks, {map_files} files, {map_snapshots} snapshots',
        's',
        aim=('most', 5.0),
    ),
    Metric('damage_map_memory', 'its memory, all processes', 'MiB'),
    Metric('damage_ranges', 'ranges of files it names', ''),
    Metric('recover', 'recover one of the snapshots: what is lost becomes zeros', 's'),
    Metric('recover_clean', 'the same with nothing lost: metadata read, data looked at', 's'),
    Metric('rebuild', 'rebuild the catalog of that store from its packs', 's'),
    Metric('release', '{held} of a deleted snapshot off the disk', 's', aim=('most', 5.0)),
    Metric('many_take', '{many} snapshots of a tree that changes a little: take one', 'ms'),
    Metric('many_delete', 'request the deletion of every second, each', 'ms', aim=('most', 20.0)),
    Metric('many_some', 'free what {some} of them hold', 's'),
    Metric('many_some_condemned', 'chunks freed', ''),
    Metric('many_rest', 'free what the other {rest} hold', 's'),
    Metric('many_rest_condemned', 'chunks freed', ''),
    Metric('many_seen', 'references that recount 1 saw, of those in all the snapshots', '%'),
    Metric('many_candidates', 'candidates for each chunk that is freed', ''),
    Metric('overhead_wall', 'a plain write workload takes longer by deletion safety', '%', aim=('most', 3.0)),
    Metric('overhead_processor', 'the same, processor time of the daemon', '%', aim=('most', 3.0)),
    Metric('collection', 'one collection after it, processor time of the daemon', 'ms'),
    Metric('record_put', 'noting one put', 'ns'),
    Metric('sparse', 'grow, shrink, remove a file of 10^15 bytes', 'ms'),
    Metric('mount', 'mount', 'ms'),
    Metric('unmount', 'unmount', 'ms'),
    Metric('memory_now', 'daemon memory after all of it (VmRSS)', 'MiB', aim=('most', 150.0), compare=False),
    Metric('memory_most', 'daemon memory at its most (VmHWM)', 'MiB', compare=False),
)
BY_NAME = {metric.name: metric for metric in METRICS}
