"""The life of a daemon with a real mount, a fake engine and an empty directory. Needs /dev/fuse."""

import contextlib
import errno
import fcntl
import json
import os
import select
import signal
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from service_fakes import make_store

from snapfs.errors import Invalid, Unavailable
from snapfs.service import client, mounts, runtime

SNAPFS = [sys.executable, str(Path(__file__).parent / 'fake_snapfs.py')]
HELPER = [*SNAPFS, '--helper']
# Options that fusermount3 does not grant, and remounts.
for_root = pytest.mark.skipif(
    os.geteuid() != 0, reason='only root may do this; run the tests as root as well'
)


@pytest.fixture(autouse=True)
def fuse():
    if not os.access('/dev/fuse', os.R_OK | os.W_OK):
        pytest.fail('these tests mount for real, and /dev/fuse is not there for this user')


@pytest.fixture
def place(tmp_path):
    """A store (with the volume `home`) and a mountpoint; whatever is still mounted there at the end goes."""
    make_store(tmp_path / 'store')
    (tmp_path / 'mnt').mkdir()
    assert run('volume', 'create', 'home', '--store', tmp_path / 'store')[0] == 0
    yield tmp_path
    while mounts.mount_at(str(tmp_path / 'mnt'), mounts.read_mounts()):
        subprocess.run(['umount', '-l', str(tmp_path / 'mnt')], check=True)


def run(*words, program=SNAPFS, cwd=None, **environment):
    done = subprocess.run(
        [*program, *map(str, words)],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=cwd,
        env={**os.environ, **environment},
    )
    assert 'Traceback' not in done.stderr, done.stderr
    return done.returncode, done.stdout, done.stderr


def mount_of(place):
    return mounts.mount_at(str(place / 'mnt'), mounts.read_mounts())


def daemon_of(place):
    """Return a handle of the daemon's process, to wait for its end."""
    return os.pidfd_open(client.hello_of(place / 'store')['pid'])


def alive(pid):
    """Say whether a process still runs. One that nobody has waited for yet does not."""
    try:
        return Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0] != 'Z'
    except FileNotFoundError:
        return False


def wait_for_end(pidfd):
    assert select.select([pidfd], [], [], 30)[0], 'the daemon does not end'
    os.close(pidfd)


def test_mount_and_umount(place):
    assert run('mount', place / 'store', place / 'mnt') == (0, '', '')
    mount = mount_of(place)
    assert mount.is_snapfs and mount.source == str(place / 'store') and mount.owner == os.getuid()
    assert {'nosuid', 'nodev', 'rw'} <= set(mount.options)
    assert os.listdir(place / 'mnt') == []
    _code, out, _err = run('status', '--json', cwd=place / 'mnt')
    daemon = json.loads(out)['daemon']
    assert (daemon['mountpoint'], daemon['device']) == (str(place / 'mnt'), mount.device)
    assert daemon['socket'] == str(place / 'store' / 'control.sock')
    assert alive(daemon['pid'])
    assert run('volume', 'create', 'attic', cwd=place / 'mnt')[0] == 0
    log = (place / 'store/daemon.log').read_text()
    assert 'the kernel was told' in log, 'a command returned before what the kernel remembers was corrected'
    assert run('umount', place / 'mnt') == (0, '', '')
    assert mount_of(place) is None
    assert not alive(daemon['pid'])
    assert client.lock_is_free(place / 'store')
    assert not (place / 'store' / 'control.sock').exists()
    assert runtime.find_entry(mount) is None
    assert 'attic' in run('volume', 'list', '--store', place / 'store')[1]
    assert 'closed' in (place / 'store' / 'daemon.log').read_text()


def test_umount_of_others_ends_the_daemon(place):
    run('mount', place / 'store', place / 'mnt')
    end = daemon_of(place)
    subprocess.run(['umount', place / 'mnt'], check=True)
    wait_for_end(end)
    assert client.lock_is_free(place / 'store')
    assert 'clean' in (place / 'store' / 'daemon.log').read_text().splitlines()[-1]


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_cleanly(place, number):
    run('mount', place / 'store', place / 'mnt')
    end = daemon_of(place)
    signal.pidfd_send_signal(end, number)
    wait_for_end(end)
    assert mount_of(place) is None and client.lock_is_free(place / 'store')


def test_a_signal_ends_it_also_when_somebody_stands_in_it(place):
    run('mount', place / 'store', place / 'mnt')
    end = daemon_of(place)
    stands = os.open(place / 'mnt', os.O_RDONLY)
    signal.pidfd_send_signal(end, signal.SIGTERM)
    wait_for_end(end)
    assert mount_of(place) is None
    with pytest.raises(OSError):
        os.listdir(stands)
    os.close(stands)
    assert 'busy' in (place / 'store' / 'daemon.log').read_text()


def test_umount_does_not_pull_the_floor_away(place):
    run('mount', place / 'store', place / 'mnt')
    stands = os.open(place / 'mnt', os.O_RDONLY)
    code, _out, err = run('umount', place / 'mnt')
    os.close(stands)
    assert code == Unavailable.exit_code and 'is busy' in err and err.count('\n') == 1
    assert mount_of(place) is not None
    assert run('umount', place / 'mnt', '--json')[0] == 0


def test_a_crash_leaves_a_dead_mountpoint(place):
    """An empty directory there would make a mirror job delete its copy."""
    run('mount', place / 'store', place / 'mnt')
    end = daemon_of(place)
    with pytest.raises(OSError):
        os.mkdir(place / 'mnt' / 'crash')
    wait_for_end(end)
    with pytest.raises(OSError) as caught:
        os.listdir(place / 'mnt')
    assert caught.value.errno == errno.ENOTCONN
    code, _out, err = run('mount', place / 'store', place / 'mnt')
    assert code == Invalid.exit_code and 'dead mountpoint' in err and 'snapfs umount' in err
    # Commands find the store as before, and do without the daemon.
    assert 'home' in run('volume', 'list', '--store', place / 'store')[1]
    code, out, err = run('umount', place / 'mnt')
    assert (code, out) == (0, '') and 'replays the journal' in err
    assert run('mount', place / 'store', place / 'mnt') == (0, '', '')


def test_a_second_mount_is_told_at_once_who_has_the_store(place):
    run('mount', place / 'store', place / 'mnt')
    (place / 'other').mkdir()
    code, _out, err = run('mount', place / 'store', place / 'other')
    assert code == Unavailable.exit_code and f'mounted already, at {place}/mnt' in err
    code, _out, err = run('mount', place / 'store', place / 'mnt')
    assert code == Invalid.exit_code and 'already' in err


def test_a_mount_right_after_an_umount_waits(place):
    gate = place / 'gate'
    os.mkfifo(gate)
    run('mount', place / 'store', place / 'mnt', FAKE_CLOSE_GATE=str(gate))
    end = daemon_of(place)
    subprocess.run(['umount', place / 'mnt'], check=True)
    words = [*SNAPFS, 'mount', str(place / 'store'), str(place / 'mnt')]
    second = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    gate.write_bytes(b'go')  # waits until the first daemon reads: it is closing
    wait_for_end(end)
    assert second.communicate(timeout=60) == (b'', None) and second.returncode == 0
    assert mount_of(place) is not None


@pytest.mark.parametrize(
    ('words', 'code', 'word'),
    [
        (['{}/store', '{}/none'], 2, 'cannot be a mountpoint'),
        (['{}/store', '{}/store/fake.json'], 2, 'lie in each other'),
        (['{}/store', '{}/file'], 2, 'is not a directory'),
        (['{}/store', '{}'], 2, 'lie in each other'),
        (['{}/store:attic', '{}/mnt'], 2, "no volume 'attic'"),
        (['{}/store', '{}/mnt', '--log', '{}/none/log'], 12, 'cannot be written'),
    ],
)
def test_what_cannot_be_mounted_is_said_in_one_line(place, words, code, word):
    (place / 'file').write_text('')
    found, out, err = run('mount', *(text.format(place) for text in words))
    assert (found, out) == (code, '') and word in err and err.count('\n') == 1
    assert mount_of(place) is None and client.lock_is_free(place / 'store')


def test_a_mount_that_fails_closes_the_store_in_good_order(place):
    (place / 'store' / 'fake.json').unlink()  # written again by closing it
    assert run('mount', f'{place}/store:home', place / 'mnt')[0] != 0
    assert (place / 'store' / 'fake.json').exists()


def test_umount_says_when_the_store_was_not_closed_cleanly(place):
    run('mount', place / 'store', place / 'mnt', FAKE_CLOSE_FAILS='1')
    end = daemon_of(place)
    code, _out, err = run('umount', place / 'mnt')
    assert code == Unavailable.exit_code and 'not closed cleanly' in err and err.count('\n') == 1
    wait_for_end(end)
    assert 'the last commit failed' in (place / 'store' / 'daemon.log').read_text()


def test_a_bug_at_the_start_is_one_line_and_a_traceback_in_the_log(place):
    code, _out, err = run('mount', place / 'store', place / 'mnt', FAKE_BUG='1')
    assert code != 0 and 'a bug at the start' in err and err.count('\n') == 1
    assert 'Traceback' in (place / 'store' / 'daemon.log').read_text()
    assert mount_of(place) is None and client.lock_is_free(place / 'store')


def test_in_the_foreground_for_a_supervisor(place):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as supervisor:
        supervisor.bind(str(place / 'notify'))
        supervisor.settimeout(30)
        words = [*SNAPFS, 'mount', '--foreground', str(place / 'store'), str(place / 'mnt')]
        environment = {**os.environ, 'NOTIFY_SOCKET': str(place / 'notify')}
        daemon = subprocess.Popen(words, stderr=subprocess.PIPE, env=environment)
        ready = supervisor.recv(1000).decode().split('\n')
        assert ready[:2] == ['READY=1', f'MAINPID={daemon.pid}']
        assert mount_of(place) is not None
        daemon.send_signal(signal.SIGTERM)
        assert supervisor.recv(1000) == b'STOPPING=1'
        _out, err = daemon.communicate(timeout=30)
    assert daemon.returncode == 0
    assert b'mounted' in err and b'closed' in err
    assert mount_of(place) is None
    assert not (place / 'store' / 'daemon.log').exists()


@for_root
def test_the_helper_shows_the_source_as_given(place):
    source = 'my token, with ü'
    words = [source, place / 'mnt', '-o', f'rw,source={place}/store,noatime,allow_other,_netdev,nofail,x-a=b']
    assert run(*words, program=HELPER) == (0, '', '')
    shown = subprocess.run(
        ['findmnt', '-n', '-o', 'SOURCE,FSTYPE', place / 'mnt'], capture_output=True, text=True, check=True
    ).stdout
    assert shown.split() == [*source.split(), 'fuse.snapfs']
    mount = mount_of(place)
    assert 'noatime' in mount.options and 'allow_other' in mount.super_options
    assert run('umount', place / 'mnt') == (0, '', '')


@pytest.mark.parametrize(
    ('options', 'there', 'absent'),
    [
        ('ro', {'ro'}, {'rw'}),
        pytest.param('suid,dev', set(), {'nosuid', 'nodev'}, marks=for_root),
        pytest.param('rw', {'rw'}, {'nosuid', 'nodev'}, marks=for_root),
        ('noexec,nosuid,nodev', {'noexec', 'nosuid', 'nodev'}, set()),
        pytest.param('nodiratime', {'nodiratime', 'relatime'}, {'noatime'}, marks=for_root),
        pytest.param('strictatime', set(), {'relatime', 'noatime'}, marks=for_root),
        ('relatime', {'relatime'}, {'noatime'}),
        ('sync,dirsync', set(), set()),
    ],
)
def test_options_arrive_at_the_kernel(place, options, there, absent):
    assert run('token', place / 'mnt', '-o', f'source={place}/store,{options}', program=HELPER) == (0, '', '')
    mount = mount_of(place)
    assert there <= set(mount.options) and not absent & set(mount.options)
    if 'sync' in options:
        assert {'sync', 'dirsync'} <= set(mount.super_options) | set(mount.options)


@for_root
def test_remount_does_what_it_says(place):
    run('token', place / 'mnt', '-o', f'source={place}/store,noexec', program=HELPER)
    assert run('mount', 'token', place / 'mnt', '-o', 'remount,ro,nosuid') == (0, '', '')
    assert {'ro', 'noexec', 'nosuid'} <= set(mount_of(place).options)  # what was not said stays
    with pytest.raises(OSError) as caught:
        os.mkdir(place / 'mnt' / 'x')
    assert caught.value.errno == errno.EROFS
    again = f'rw,source={place}/store,nodev,user_id=0,group_id=0,default_permissions,remount'
    assert run('token', place / 'mnt', '-o', again, program=HELPER) == (0, '', '')
    assert {'rw', 'nodev'} <= set(mount_of(place).options)
    assert not {'noexec', 'nosuid'} & set(mount_of(place).options)  # mount(8) says all that shall hold
    with pytest.raises(OSError) as caught:
        os.mkdir(place / 'mnt' / 'x')
    assert caught.value.errno == errno.EPERM  # the empty directory itself says so


@pytest.mark.parametrize(
    ('options', 'word'),
    [
        ('volume=home', 'cannot change the volume'),
        ('source=/none', 'cannot change the source'),
        ('allow_other', 'cannot change allow_other'),
    ],
)
def test_remount_refuses_what_cannot_change(place, options, word):
    run('token', place / 'mnt', '-o', f'source={place}/store', program=HELPER)
    code, _out, err = run('token', place / 'mnt', '-o', f'remount,ro,{options}', program=HELPER)
    assert code == 1 and word in err and err.count('\n') == 1
    assert 'rw' in mount_of(place).options


def test_remount_of_what_is_not_mounted(place):
    code, _out, err = run('token', place / 'mnt', '-o', 'remount,ro', program=HELPER)
    assert code == 1 and 'is not a mounted snapfs' in err


@pytest.mark.parametrize('name', ['SIGINT', 'SIGTERM'])
@pytest.mark.parametrize('busy', [False, True])
def test_a_signal_before_it_is_mounted(place, name, busy):
    """One line, nothing mounted, the store closed; also while it waits for a store that is in use."""
    with contextlib.ExitStack() as stack:
        if busy:
            file = stack.enter_context(open(place / 'store' / 'lock', 'w'))
            fcntl.flock(file, fcntl.LOCK_EX)
        code, out, err = run('mount', '-f', place / 'store', place / 'mnt', FAKE_INTERRUPT=name)
    assert (code, out) == (Unavailable.exit_code, '')
    assert err.splitlines()[-1].endswith(f'{name} came before anything was mounted')
    assert mount_of(place) is None
    assert client.lock_is_free(place / 'store')
    assert 'home' in run('volume', 'list', '--store', place / 'store')[1]
    assert run('mount', place / 'store', place / 'mnt') == (0, '', ''), (
        'nothing is in the way of the next one'
    )


def test_the_lock_names_the_mountpoint(place):
    """Who finds the store in use is told where it is mounted."""
    from snapfs.service.compose import RealParts
    from snapfs.store.durable import Disk
    from snapfs.store.store import Store
    from snapfs.world import World

    store = Store.create(place / 'real', Disk(), World())
    engine = SimpleNamespace(store=store)
    RealParts().mounted(engine, SimpleNamespace(mountpoint='/the/mountpoint'))
    with pytest.raises(Unavailable, match=r'in use by process .* mounted at /the/mountpoint'):
        Store.open(place / 'real', Disk(), World())
    store.latch('for the test')
    RealParts().mounted(engine, SimpleNamespace(mountpoint='/other'))
    store.close(clean=False)
