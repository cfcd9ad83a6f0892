"""snapfs as any file system: mount(8), umount(8), findmnt, lines of fstab, and the unit of systemd."""

import errno
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from daemon_kit import HELPER, INSTALL_HELPERS, PROJECT, Place, wait_for_end

BIN = PROJECT / '.venv' / 'bin'
SBIN = Path('/sbin')


@pytest.fixture(scope='module', autouse=True)
def helpers():
    """mount(8) looks for its helpers in /sbin alone. Missing ones are put there and taken away."""
    if os.geteuid() != 0:
        pytest.skip('only root may call mount(8); run the tests as root as well')
    if not os.access('/dev/fuse', os.R_OK | os.W_OK):
        pytest.fail('the mount tests need /dev/fuse, and there is none')
    missing = not (SBIN / 'mount.fuse.snapfs').exists()
    if missing:
        subprocess.run([INSTALL_HELPERS, BIN], check=True)
    yield
    if missing:
        subprocess.run([INSTALL_HELPERS, '--remove'], check=True)


@pytest.fixture
def place(tmp_path):
    made = Place(tmp_path)
    made.check('volume', 'create', 'home', '--store', made.store)
    yield made
    made.clean_up()


def system(*words):
    """Run a program; returns (exit code, standard output, standard error)."""
    done = subprocess.run([*map(str, words)], capture_output=True, text=True, timeout=100)
    assert 'Traceback' not in done.stderr, done.stderr
    return done.returncode, done.stdout, done.stderr


def findmnt(place, column):
    return system('findmnt', '-n', '-o', column, place.mnt)[1].strip()


@pytest.mark.parametrize('kind', ['fuse.snapfs', 'snapfs'])
def test_mount_and_umount_like_any_file_system(place, kind):
    options = f'source={place.store},volume=home,noatime,allow_other,_netdev,nofail,x-systemd.automount'
    assert system('mount', '-t', kind, 'my token', place.mnt, '-o', options) == (0, '', '')
    (place.mnt / 'a').write_text('hello')
    assert findmnt(place, 'SOURCE') == 'my token'
    assert findmnt(place, 'FSTYPE') == 'fuse.snapfs'
    assert {'noatime', 'rw', 'allow_other'} <= set(findmnt(place, 'OPTIONS').split(','))
    end = place.daemon()
    assert system('umount', place.mnt) == (0, '', '')
    assert system('mount', '-t', kind, 'my token', place.mnt, '-o', options) == (0, '', '')
    assert (place.mnt / 'a').read_text() == 'hello'
    wait_for_end(end)


def test_a_line_of_fstab(place, tmp_path):
    table = tmp_path / 'fstab'
    line = f'token {place.mnt} fuse.snapfs source={place.store},volume=home,ro,noexec,nofail,_netdev 0 0\n'
    table.write_text(line)
    assert system('mount', '-T', table, place.mnt) == (0, '', '')
    assert {'ro', 'noexec'} <= set(findmnt(place, 'OPTIONS').split(','))
    with pytest.raises(OSError) as caught:
        (place.mnt / 'a').write_text('x')
    assert caught.value.errno == errno.EROFS
    assert system('mount', '-a', '-T', table)[0] == 0  # it is mounted already
    assert system('umount', place.mnt) == (0, '', '')
    table.write_text(
        line.replace('token', f'{place.store}:home').replace(f'source={place.store},volume=home,', '')
    )
    assert system('mount', '-T', table, place.mnt) == (0, '', '')
    assert findmnt(place, 'SOURCE') == f'{place.store}:home'


def test_fstab_with_nofail_does_not_hold_up_the_boot(place, tmp_path):
    table = tmp_path / 'fstab'
    table.write_text(f'token {place.mnt} fuse.snapfs source={tmp_path}/none,nofail 0 0\n')
    assert system('mount', '-a', '-T', table) == (0, '', '')
    assert place.mount() is None


def test_remount(place):
    system('mount', '-t', 'fuse.snapfs', 'token', place.mnt, '-o', f'source={place.store}')
    (place.mnt / 'home' / 'a').write_text('1')
    assert system('mount', '-o', 'remount,ro', place.mnt) == (0, '', '')
    assert 'ro' in findmnt(place, 'OPTIONS').split(',')
    with pytest.raises(OSError) as caught:
        (place.mnt / 'home' / 'a').write_text('2')
    assert caught.value.errno == errno.EROFS
    assert system('mount', '-o', 'remount,rw', place.mnt) == (0, '', '')
    (place.mnt / 'home' / 'a').write_text('3')
    code, out, err = system('mount', '-o', 'remount,volume=other', place.mnt)
    assert code == 1 and out == '' and 'cannot change the volume' in err and err.count('\n') == 1


def test_suid_and_dev_as_mount_says_them(place):
    """mount(8) keeps its defaults, suid and dev, to itself: for a helper, not said means wanted."""
    options = f'source={place.store},volume=home'
    system('mount', '-t', 'fuse.snapfs', 'token', place.mnt, '-o', options + ',nosuid,nodev')
    assert {'nosuid', 'nodev'} <= set(findmnt(place, 'OPTIONS').split(','))
    system('mount', '-o', 'remount,ro', place.mnt)
    assert {'nosuid', 'nodev', 'ro'} <= set(findmnt(place, 'OPTIONS').split(','))
    system('mount', '-o', 'remount,rw,suid', place.mnt)
    assert {'nodev', 'rw'} <= set(findmnt(place, 'OPTIONS').split(','))
    assert 'nosuid' not in findmnt(place, 'OPTIONS').split(',')
    system('umount', place.mnt)
    system('mount', '-t', 'fuse.snapfs', 'token', place.mnt, '-o', options + ',suid,dev')
    assert not {'nosuid', 'nodev'} & set(findmnt(place, 'OPTIONS').split(','))
    os.mknod(place.mnt / 'zero', 0o020666, os.makedev(1, 5))
    assert (place.mnt / 'zero').open('rb').read(3) == b'\0\0\0'
    # Without mount(8) it is as with every FUSE file system.
    place.check('umount', place.mnt)
    place.check('mount', place.store, place.mnt)
    assert {'nosuid', 'nodev'} <= set(findmnt(place, 'OPTIONS').split(','))


def test_sync_makes_every_write_durable(place):
    def fsyncs():
        return place.ask('status')['counters']['fsyncs']

    system('mount', '-t', 'fuse.snapfs', 'token', place.mnt, '-o', f'source={place.store},volume=home,sync')
    with open(place.mnt / 'a', 'wb', buffering=0) as file:
        file.write(b'first')
        before = fsyncs()
        file.write(b'second')
        assert fsyncs() > before


@pytest.mark.parametrize(
    ('options', 'code', 'word'),
    [
        ('source={}/none', 1, 'there is no store at'),
        ('source={}/store,volume=none', 32, 'no volume'),
        ('source={}/store,frobnicate', 1, "unknown mount option 'frobnicate'"),
    ],
)
def test_what_fails_is_one_line_and_a_code_of_mount(place, tmp_path, options, code, word):
    found, out, err = system('mount', '-t', 'fuse.snapfs', 'token', place.mnt, '-o', options.format(tmp_path))
    assert (found, out) == (code, '') and word in err and err.count('\n') == 1
    assert place.mount() is None
    assert place.ask('volume', 'list')[0]['name'] == 'home'


def test_sloppy_and_fake(place):
    options = f'source={place.store},frobnicate'
    assert place.run('token', place.mnt, '-f', '-s', '-o', options, program=HELPER) == (0, '', '')
    assert place.mount() is None
    assert system('mount', '-s', '-t', 'fuse.snapfs', 'token', place.mnt, '-o', options) == (0, '', '')
    assert place.mount() is not None


def test_the_installer(tmp_path):
    environment = {**os.environ, 'SBIN': str(tmp_path), 'UNITS': str(tmp_path / 'units')}
    subprocess.run([INSTALL_HELPERS, BIN, 'units'], check=True, env=environment)
    assert os.readlink(tmp_path / 'mount.fuse.snapfs') == str(BIN / 'mount.fuse.snapfs')
    assert os.readlink(tmp_path / 'fsck.fuse.snapfs') == str(BIN / 'fsck.fuse.snapfs')
    unit = (tmp_path / 'units' / 'snapfs@.service').read_text()
    assert f'ExecStart={BIN}/snapfs mount --foreground' in unit and '@SNAPFS@' not in unit
    if shutil.which('systemd-analyze'):
        shutil.copy(tmp_path / 'units' / 'snapfs@.service', tmp_path / 'snapfs@x.service')
        code, _out, err = system('systemd-analyze', 'verify', '--man=no', tmp_path / 'snapfs@x.service')
        assert (code, [line for line in err.split('\n') if 'snapfs' in line]) == (0, [])
    subprocess.run([INSTALL_HELPERS, '--remove'], check=True, env=environment)
    assert [path.name for path in tmp_path.iterdir() if 'mount' in path.name or 'fsck' in path.name] == []
    found = subprocess.run(
        [INSTALL_HELPERS, tmp_path / 'none'], capture_output=True, text=True, env=environment
    )
    assert found.returncode == 1 and found.stderr.count('\n') == 1
