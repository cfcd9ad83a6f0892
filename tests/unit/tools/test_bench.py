"""bench: what it makes of numbers, its sample, and one real run of a small group."""

import json
import os
import subprocess
import tarfile
from pathlib import Path

import pytest

from tools.bench import __main__ as bench
from tools.bench import recounts, sample
from tools.bench.damage import DAMAGE
from tools.bench.deletion import DELETION, Looping
from tools.bench.filesystems import REGISTRY, Failed, device_flushes, run, used_bytes
from tools.bench.metrics import BY_NAME, METRICS, Metric
from tools.bench.sizes import QUICK, Sizes
from tools.bench.table import number, render, summary

TINY = Sizes(
    tree_files=100,
    sequential_bytes=1 << 20,
    random_bytes=1 << 20,
    touched_bytes=1 << 20,
    release_bytes=4 << 20,
    many_files=50,
    many_snapshots=10,
    plain_bytes=1 << 20,
    plain_files=10,
    plain_pairs=1,
    map_files=60,
    map_snapshots=3,
    map_changed=5,
    map_lost=7,
)
ROWS_OF_DELETION = (
    'recount_1_speed',
    'recount_1_memory',
    'recount_2_speed',
    'recount_2_memory',
    'proof_speed',
    'proof_memory',
    'beside_recount_1',
    'beside_recount_2',
    'beside_scrub',
    'scrub_speed',
    'scrub_memory',
    'release',
    'many_take',
    'many_delete',
    'many_some',
    'many_some_condemned',
    'many_rest',
    'many_rest_condemned',
    'many_seen',
    'many_candidates',
    'overhead_wall',
    'overhead_processor',
    'collection',
    'record_put',
)
ROWS_OF_DAMAGE = (
    'fsck_quick',
    'fsck_quick_memory',
    'fsck_full',
    'fsck_full_memory',
    'damage_map',
    'damage_map_memory',
    'damage_ranges',
    'recover',
    'recover_clean',
    'rebuild',
)
SLOW = Metric('untar', 'untar', 's', aim=('ratio', 2.0))
FAST = Metric('write', 'write', 'MiB/s', True, ('least', 250.0))


def test_names_are_unique():
    assert len(BY_NAME) == len(METRICS)
    assert len({kind.name for kind in REGISTRY}) == len(REGISTRY)


def test_a_ratio_says_how_many_times_worse():
    assert SLOW.ratio(3.0, 1.5) == 2.0
    assert FAST.ratio(250.0, 1000.0) == 4.0


@pytest.mark.parametrize(
    ('metric', 'value', 'null', 'reached'),
    [
        (SLOW, 2.0, 1.0, True),
        (SLOW, 2.1, 1.0, False),
        (SLOW, 2.1, None, None),
        (FAST, 250.0, 9000.0, True),
        (FAST, 249.0, None, False),
        (Metric('m', 'm', 'ms', aim=('most', 20.0)), 20.0, None, True),
        (Metric('m', 'm', 'ms', aim=('most', 20.0)), 20.1, None, False),
        (Metric('m', 'm', 'ms'), 20.1, 1.0, None),
    ],
)
def test_an_aim_is_reached_or_missed(metric, value, null, reached):
    assert metric.reached(value, null) is reached


@pytest.mark.parametrize(
    ('value', 'text'),
    [(0.1234, '0.12'), (12.34, '12.3'), (123.4, '123'), (12345.6, '12,346'), (0.0, '0.00')],
)
def test_numbers_show_what_matters(value, text):
    assert number(value) == text


def test_the_table_takes_medians_and_compares_with_the_null_filesystem():
    results = {
        'null': {'untar': [1.0, 2.0, 30.0]},
        'snapfs': {'untar': [5.0, 4.0, 3.0], 'snapshot_large': [1.5]},
    }
    text = render(results, QUICK, 3, ['a note'])
    assert '| untar a real tree | 2.00 s | 4.00 s (2 ×) | ≤ 2 ×, reached |' in text
    assert f'| take a snapshot, {QUICK.snapshot_files[1]:,} files | – | 1.50 ms | ≤ 20 ms, reached |' in text
    assert 'rm -rf' not in text
    assert text.endswith('\n- a note')


def test_a_missed_aim_is_said():
    text = render({'null': {'untar': [1.0]}, 'snapfs': {'untar': [2.5]}}, QUICK, 1, [])
    assert '≤ 2 ×, **missed**' in text


def test_what_others_do_only_adds_flushes():
    flushes = BY_NAME['fsync_flushes']
    assert summary({'snapfs': {'fsync_flushes': [3.0, 1.0, 2.0]}}, 'snapfs', flushes) == 1.0


def test_every_row_of_the_measured_workloads_has_a_value():
    source = Path(bench.__file__).with_name('groups.py').read_text()
    deletion = {*ROWS_OF_DELETION, *ROWS_OF_DAMAGE}
    for metric in METRICS:
        if metric.name in deletion:
            continue  # test_deletion_is_measured, test_damage_is_measured
        word = metric.name.removesuffix('_small').removesuffix('_large')
        assert word in source or word.startswith('memory_'), metric.name


def test_the_sample_is_a_real_tree_and_noise_that_never_repeats(tmp_path: Path):
    made = sample.make_sample(tmp_path, 50, 3 << 20)
    with tarfile.open(made.tar) as archive:
        files = [member for member in archive if member.isfile()]
    assert len(files) == made.files >= 50
    assert sum(member.size for member in files) == made.bytes
    noise = made.noise.read_bytes()
    assert len(noise) == 3 << 20
    assert len({noise[start : start + 4096] for start in range(0, len(noise), 4096)}) == len(noise) // 4096


def test_too_small_a_machine_is_said(monkeypatch, tmp_path: Path):
    monkeypatch.setattr(sample, 'SOURCES', (str(tmp_path),))
    with pytest.raises(FileNotFoundError, match='only 0 files'):
        sample.find_sources(10)


def test_a_failed_command_names_itself():
    with pytest.raises(Failed, match=r'ls /nowhere: .*No such file'):
        run('ls', '/nowhere')


def test_used_bytes_are_those_on_disk(tmp_path: Path):
    (tmp_path / 'below').mkdir()
    with open(tmp_path / 'below' / 'hole', 'wb') as file:
        file.truncate(1 << 30)
    assert used_bytes(tmp_path) == 0
    (tmp_path / 'below' / 'full').write_bytes(b'x' * 8192)
    assert used_bytes(tmp_path) >= 8192


def test_a_disk_that_counts_no_flushes_is_none(tmp_path: Path):
    assert device_flushes(Path('/proc')) is None


@pytest.mark.parametrize('group', ['sparse', 'create', 'small'])
def test_a_group_runs_on_the_null_filesystem(group, tmp_path: Path, capsys):
    assert os.path.exists('/dev/fuse'), 'the mount tests need /dev/fuse'
    arguments = ['--quick', '--rounds', '1', '--only', group, '--filesystem', 'null']
    out = tmp_path / 'values.json'
    code = bench.main([*arguments, '--directory', str(tmp_path), '--json', str(out)])
    assert code == 0, capsys.readouterr().err
    values = json.loads(out.read_text())['values']['null']
    assert values, 'nothing measured'
    assert all(measured[0] > 0 for measured in values.values())
    assert list(tmp_path.iterdir()) == [out], 'something is left behind'


def measured(groups, monkeypatch, tmp_path: Path, capsys) -> dict[str, list[float]]:
    """Run groups of workloads on snapfs, tiny; return their values. Nothing else is left behind."""
    few = tmp_path / 'few'
    few.mkdir()
    for file in range(TINY.tree_files):
        (few / f'{file}').write_bytes(b'%d' % file)
    monkeypatch.setattr(sample, 'SOURCES', (str(few),))
    monkeypatch.setattr(bench, 'QUICK', TINY)
    words = [word for group in groups for word in ('--only', group)]
    out = tmp_path / 'values.json'
    arguments = ['--quick', '--rounds', '1', *words, '--filesystem', 'snapfs', '--references', '10000']
    code = bench.main([*arguments, '--directory', str(tmp_path), '--json', str(out)])
    assert code == 0, capsys.readouterr().err
    assert {*tmp_path.iterdir()} == {few, out}, 'something is left behind'
    return json.loads(out.read_text())['values']['snapfs']


@pytest.mark.slow
def test_deletion_is_measured(monkeypatch, tmp_path: Path, capsys):
    values = measured(DELETION, monkeypatch, tmp_path, capsys)
    assert set(values) - {'memory_most'} == set(ROWS_OF_DELETION)
    # Of each deleted snapshot at least its root, which is a leaf, and the file that changes every time.
    assert values['many_some_condemned'][0] >= 2 * 1
    assert values['many_rest_condemned'][0] >= 2 * 4
    assert values['many_seen'][0] < 100


@pytest.mark.slow
def test_damage_is_measured(monkeypatch, tmp_path: Path, capsys):
    values = measured(DAMAGE, monkeypatch, tmp_path, capsys)
    assert set(values) - {'memory_most'} == set(ROWS_OF_DAMAGE)
    # Each lost chunk is in the head or in a snapshot at least.
    assert values['damage_ranges'][0] >= TINY.map_lost


def test_a_job_that_fails_beside_a_workload_is_told(monkeypatch):
    monkeypatch.setattr(recounts, 'start', lambda _spec: subprocess.Popen(['false'], stdout=subprocess.PIPE))
    with pytest.raises(Failed, match='ended with 1'), Looping(None) as loop:
        loop.join()


def test_it_ends_when_its_time_is_over(tmp_path: Path, capsys):
    arguments = ['--quick', '--only', 'sparse', '--filesystem', 'null', '--minutes', '0.000001']
    assert bench.main([*arguments, '--directory', str(tmp_path)]) == 0
    assert 'it ended after 0 minutes, before round 1 of 3: sparse on null' in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_a_filesystem_that_fails_is_a_note_and_an_exit_code(monkeypatch, tmp_path: Path, capsys):
    def fail(_self) -> None:
        raise Failed('no such luck')

    monkeypatch.setattr(REGISTRY[0], 'mount', fail)
    arguments = ['--quick', '--rounds', '1', '--only', 'sparse', '--filesystem', 'null']
    assert bench.main([*arguments, '--directory', str(tmp_path)]) == 1
    assert 'null, mount: failed, no such luck' in capsys.readouterr().out
