"""The way from a mount to its store: entries are believed only where nobody else could have put them."""

import os
from dataclasses import replace

import pytest

from snapfs.service import runtime
from snapfs.service.mounts import Mount

UID = os.getuid()
MOUNT = Mount('0:57', '/mnt/x', 'fuse.snapfs', 'token', ('rw',), ('rw', f'user_id={UID}'))
ENTRY = runtime.Entry('/srv/store', '0:57', '/mnt/x', 'token', None, 4711)


@pytest.fixture
def place(tmp_path):
    return tmp_path / 'run'


def test_what_is_written_is_found(place):
    path = runtime.write_entry(ENTRY, UID, [place])
    assert path == place / '0-57.json'
    assert runtime.find_entry(MOUNT, [place]) == ENTRY
    assert place.stat().st_mode & 0o022 == 0
    again = replace(ENTRY, pid=4712)
    assert runtime.write_entry(again, UID, [place]) == path
    assert runtime.find_entry(MOUNT, [place]) == again


def test_a_daemons_umask_does_not_hide_what_root_tells(place, monkeypatch):
    before = os.umask(0o077)
    try:
        path = runtime.write_entry(ENTRY, UID, [place])
    finally:
        os.umask(before)
    shown = 0o755 if UID == 0 else 0o700
    assert (place.stat().st_mode & 0o777, path.stat().st_mode & 0o777) == (shown, shown & ~0o111)


def test_a_second_directory_stands_in(place, tmp_path):
    blocked = tmp_path / 'missing' / 'run'
    assert runtime.write_entry(ENTRY, UID, [blocked, place]) == place / '0-57.json'
    assert runtime.find_entry(MOUNT, [blocked, place]) == ENTRY
    assert runtime.write_entry(ENTRY, UID, [blocked]) is None


@pytest.mark.parametrize('mode', [0o777, 0o775, 0o757])
def test_a_directory_that_others_can_write_is_not_believed(place, mode):
    runtime.write_entry(ENTRY, UID, [place])
    place.chmod(mode)
    assert runtime.find_entry(MOUNT, [place]) is None
    assert runtime.write_entry(ENTRY, UID, [place]) is None


def test_a_file_that_others_can_write_is_not_believed(place):
    runtime.write_entry(ENTRY, UID, [place]).chmod(0o666)
    assert runtime.find_entry(MOUNT, [place]) is None


def test_another_users_entry_is_not_believed(place):
    runtime.write_entry(ENTRY, UID, [place])
    assert runtime.find_entry(replace(MOUNT, super_options=(f'user_id={UID + 1}',)), [place]) is None


def test_a_link_is_not_believed(place, tmp_path):
    runtime.write_entry(ENTRY, UID, [place])
    (tmp_path / 'link').symlink_to(place)
    assert runtime.find_entry(MOUNT, [tmp_path / 'link']) is None
    (place / 'real').write_bytes((place / '0-57.json').read_bytes())
    (place / '0-57.json').unlink()
    (place / '0-57.json').symlink_to(place / 'real')
    assert runtime.find_entry(MOUNT, [place]) is None


@pytest.mark.parametrize('data', [b'', b'{', b'[]', b'{"store": 1}', b'{"a": 2}', b'\xff'])
def test_damaged_entries_are_no_entries(place, data):
    path = runtime.write_entry(ENTRY, UID, [place])
    path.write_bytes(data)
    assert runtime.find_entry(MOUNT, [place]) is None


def test_other_mounts_are_not_ours(place):
    runtime.write_entry(ENTRY, UID, [place])
    assert runtime.find_entry(replace(MOUNT, fstype='fuse.sshfs'), [place]) is None
    assert runtime.find_entry(replace(MOUNT, mountpoint='/mnt/y'), [place]) is None
    assert runtime.find_entry(replace(MOUNT, super_options=('rw',)), [place]) is None


def test_only_the_writers_entry_is_removed(place):
    path = runtime.write_entry(ENTRY, UID, [place])
    runtime.remove_entry(path, 1)
    assert path.exists()
    runtime.remove_entry(path, ENTRY.pid)
    assert not path.exists()
    runtime.remove_entry(path, ENTRY.pid)
    runtime.write_entry(ENTRY, UID, [place])
    runtime.forget(MOUNT, [place])
    assert not path.exists()


def test_directories_by_user():
    assert [str(path) for path in runtime.runtime_directories(0)] == ['/run/snapfs']
    assert [str(path) for path in runtime.runtime_directories(7)] == ['/run/user/7/snapfs', '/tmp/snapfs-7']
