"""The simulated disk itself: it must forget what was not synced and keep what was, or the crash tests prove
nothing."""

from __future__ import annotations

import errno

import pytest

from snapfs.errors import Latched, Refused
from tests.sim.disk import PowerCut, SimDisk

SEEDS = range(60)


def left_by(make, tmp_path, seed):
    """Run `make(disk, root)`, cut the power, return {name: content} of what is left."""
    root = tmp_path / f'before-{seed}'
    root.mkdir()
    disk = SimDisk(root)
    make(disk, root)
    after = disk.crash(seed, tmp_path / f'after-{seed}')
    disk.forget()
    return {
        str(path.relative_to(after)): path.read_bytes() if path.is_file() else None
        for path in after.rglob('*')
    }


def test_what_was_synced_is_always_there(tmp_path):
    def make(disk, root):
        disk.mkdir(root / 'd')
        disk.sync_directory(root)
        fd = disk.open_write(root / 'd' / 'a', create=True)
        disk.pwrite(fd, [b'x' * 5000], 0)
        disk.sync_data(fd)
        disk.sync_directory(root / 'd')
        disk.close(fd)

    for seed in SEEDS:
        assert left_by(make, tmp_path, seed) == {'d': None, 'd/a': b'x' * 5000}, f'seed {seed}'


def test_what_was_not_synced_may_be_there_in_every_way(tmp_path):
    def make(disk, root):
        fd = disk.open_write(root / 'a', create=True)
        disk.pwrite(fd, [b'x' * 1000], 0)
        disk.sync_data(fd)
        disk.sync_directory(root)
        disk.pwrite(fd, [b'y' * 2000], 500)

    seen = set()
    for seed in SEEDS:
        found = left_by(make, tmp_path, seed)['a']
        assert found[:500] == b'x' * 500, f'seed {seed}'
        seen.add((len(found), b'y' in found, b'\0' in found, b'y' in found[500:512]))
    assert (1000, False, False, False) in seen, 'dropped'
    assert (2500, True, False, True) in seen, 'kept'
    assert any(length == 2500 and zeros for length, _, zeros, _ in seen), 'zeros where data is missing'
    assert any(length < 2500 and some for length, some, _, _ in seen), 'only the beginning'
    assert any(some and not first for _, some, _, first in seen), 'a later sector without an earlier one'


def test_what_the_kernel_wrote_back_is_always_there(tmp_path):
    def make(disk, root):
        for name in 'ab':
            disk.close(disk.open_write(root / name, create=True))
        disk.sync_directory(root)
        for name in 'ab':
            fd = disk.open_write(root / name, create=False)
            disk.pwrite(fd, [b'x' * 2000], 0)
            disk.close(fd)
        events = disk.events
        disk.written_back(root / 'a')
        assert disk.events == events
        assert disk.unsynced_count() == 1

    found = [left_by(make, tmp_path, seed) for seed in SEEDS]
    assert all(one['a'] == b'x' * 2000 for one in found)
    assert not all(one['b'] == b'x' * 2000 for one in found)


def test_a_name_that_was_not_synced_may_go(tmp_path):
    def make(disk, root):
        fd = disk.open_write(root / 'a', create=True)
        disk.pwrite(fd, [b'x'], 0)
        disk.sync_data(fd)
        disk.close(fd)

    assert {bool(left_by(make, tmp_path, seed)) for seed in SEEDS} == {True, False}


def test_rename_and_unlink_may_be_undone(tmp_path):
    def make(disk, root):
        disk.write_file(root / 'a', b'old a')
        disk.write_file(root / 'b', b'b')
        disk.write_file(root / 'new', b'new a')
        disk.rename(root / 'new', root / 'a')
        disk.unlink(root / 'b')

    seen = {tuple(sorted(left_by(make, tmp_path, seed).items())) for seed in SEEDS}
    renamed, not_renamed = {'a': b'new a'}, {'a': b'old a', 'new': b'new a'}
    expected = [names | extra for names in (renamed, not_renamed) for extra in ({}, {'b': b'b'})]
    assert seen == {tuple(sorted(names.items())) for names in expected}


def test_a_replacement_is_the_old_or_the_new_file(tmp_path):
    def make(disk, root):
        disk.write_file(root / 'a', b'old' * 1000)
        disk.cut_at = disk.events + cut
        with pytest.raises(PowerCut):
            disk.write_file(root / 'a', b'new' * 1000)

    for cut in (1, 2):
        folder = tmp_path / str(cut)
        folder.mkdir()
        for seed in SEEDS:
            found = left_by(make, folder, seed)
            assert found['a'] in (b'old' * 1000, b'new' * 1000), f'seed {seed}'


def test_the_same_seed_leaves_the_same(tmp_path):
    def make(disk, root):
        fd = disk.open_write(root / 'a', create=True)
        disk.sync_directory(root)
        for n in range(20):
            disk.pwrite(fd, [bytes([n]) * 1500], n * 700)

    for seed in range(5):
        (tmp_path / 'again').mkdir(exist_ok=True)
        assert left_by(make, tmp_path, seed) == left_by(make, tmp_path / 'again', seed)


def test_after_the_cut_nothing_works(tmp_path):
    disk = SimDisk(tmp_path)
    fd = disk.open_write(tmp_path / 'a', create=True)
    disk.cut_at = 2
    disk.sync_data(fd)
    with pytest.raises(PowerCut):
        disk.sync_directory(tmp_path)
    for call in (
        lambda: disk.pwrite(fd, [b'x'], 0),
        lambda: disk.sync_data(fd),
        lambda: disk.open_write(tmp_path / 'b', create=True),
        lambda: disk.pread(fd, 1, 0),
        lambda: disk.unlink(tmp_path / 'a'),
    ):
        with pytest.raises(PowerCut):
            call()
    disk.forget()


def test_faults(tmp_path):
    disk = SimDisk(tmp_path)
    fd = disk.open_write(tmp_path / 'a', create=True)
    disk.fail('write', errno.ENOSPC, after=1)
    disk.pwrite(fd, [b'x'], 0)
    with pytest.raises(Refused):
        disk.pwrite(fd, [b'x'], 0)
    disk.pwrite(fd, [b'x'], 0)
    disk.fail('sync', errno.EIO)
    with pytest.raises(Latched):
        disk.sync_data(fd)
    disk.forget()


def test_space_runs_out_in_the_middle_of_a_write(tmp_path):
    disk = SimDisk(tmp_path)
    fd = disk.open_write(tmp_path / 'a', create=True)
    disk.pwrite(fd, [b'x' * 10], 0)
    disk.space = 100
    with pytest.raises(Refused):
        disk.pwrite(fd, [b'y' * 200], 5)
    assert disk.size(fd) == 110
    disk.pwrite(fd, [b'z' * 110], 0)
    disk.unlink(tmp_path / 'a')
    assert disk.space == 110
    disk.forget()
