"""The daemon over a real store: what was written is there after every kind of end, mounted or not."""

import errno
import json
import os
import signal
import subprocess

import pytest
from daemon_kit import Place, wait_for_end

from snapfs.service import client


@pytest.fixture
def place(tmp_path):
    if not os.access('/dev/fuse', os.R_OK | os.W_OK):
        pytest.fail('the mount tests need /dev/fuse, and this user has none')
    made = Place(tmp_path)
    made.check('volume', 'create', 'home', '--store', made.store)
    yield made
    made.clean_up()


def test_files_survive_umount(place):
    place.check('mount', place.store, place.mnt)
    (place.mnt / 'home' / 'a').write_text('hello')
    place.check('umount', place.mnt)
    assert client.lock_is_free(place.store)
    place.check('mount', f'{place.store}:home', place.mnt)
    assert (place.mnt / 'a').read_text() == 'hello'
    assert place.mount().source == f'{place.store}:home'


def test_an_end_by_umount_and_by_a_signal_is_clean(place):
    place.check('mount', place.store, place.mnt)
    (place.mnt / 'home' / 'a').write_text('1')
    end = place.daemon()
    subprocess.run(['umount', place.mnt], check=True)
    place.check('mount', place.store, place.mnt)  # within milliseconds: waits for the lock
    wait_for_end(end)
    assert (place.mnt / 'home' / 'a').read_text() == '1'
    (place.mnt / 'home' / 'a').write_text('2')
    end = place.daemon()
    signal.pidfd_send_signal(end, signal.SIGTERM)
    wait_for_end(end)
    assert place.mount() is None
    place.check('mount', place.store, place.mnt)
    assert (place.mnt / 'home' / 'a').read_text() == '2'
    assert place.ask('status')['replayed_records'] == 0


def test_kill_leaves_a_dead_mountpoint_and_loses_nothing_synced(place):
    place.check('mount', place.store, place.mnt)
    with open(place.mnt / 'home' / 'a', 'w') as file:
        file.write('synced')
        file.flush()
        os.fsync(file.fileno())
    end = place.daemon()
    signal.pidfd_send_signal(end, signal.SIGKILL)
    wait_for_end(end)
    with pytest.raises(OSError) as caught:
        os.listdir(place.mnt)
    assert caught.value.errno == errno.ENOTCONN
    # A command goes on as if nothing were mounted, and finds what was synced.
    assert [one['name'] for one in place.ask('volume', 'list')] == ['home']
    code, _out, err = place.run('umount', place.mnt)
    assert code == 0 and 'replays the journal' in err
    place.check('mount', place.store, place.mnt)
    assert (place.mnt / 'home' / 'a').read_text() == 'synced'


def without_daemon(status):
    """Return what of a status does not depend on the process that answers."""
    return {key: status[key] for key in ('store', 'uuid', 'volumes', 'snapshots', 'requests', 'health')}


def test_commands_do_the_same_mounted_or_not(place):
    def life(prefix):
        """Every command once. Returns what was printed, without numbers and times."""
        said = [
            place.ask('volume', 'create', f'{prefix}v'),
            place.ask('snapshot', 'create', f'{prefix}v@one'),
            place.ask('snapshot', 'rename', f'{prefix}v@one', 'two'),
            place.ask('hold', 'add', f'{prefix}v@two', 'audit', '--why', 'tax'),
            place.ask('hold', 'list', f'{prefix}v@two'),
        ]
        held = place.run('snapshot', 'delete', f'{prefix}v@two', '--store', place.store)
        said += [
            held[0],
            place.ask('hold', 'release', f'{prefix}v@two', 'audit'),
            place.ask('snapshot', 'show', f'{prefix}v@two'),
            place.ask('volume', 'clone', f'{prefix}v@two', f'{prefix}copy'),
            place.ask('volume', 'rollback', f'{prefix}v@two'),
            place.ask('snapshot', 'delete', f'{prefix}v@two'),
            place.ask('snapshot', 'list', '--deleted'),
            place.ask('snapshot', 'undelete', f'{prefix}v@two', '--name', 'back'),
            place.ask('snapshot', 'list', f'{prefix}v'),
            place.ask('volume', 'rename', f'{prefix}copy', f'{prefix}other'),
            place.ask('volume', 'delete', f'{prefix}other'),
            place.ask('snapshot', 'undelete', f'{prefix}other'),
            place.ask('volume', 'delete', f'{prefix}other'),
        ]
        return skeleton(json.loads(json.dumps(said).replace(prefix, '')))

    def skeleton(value):
        if isinstance(value, dict):
            return {key: skeleton(item) for key, item in value.items()}
        if isinstance(value, list):
            return [skeleton(item) for item in value]
        return value if isinstance(value, str) and '@' in value and 'rollback' not in value else type(value)

    unmounted = life('un-')
    before = place.ask('status')
    place.check('mount', place.store, place.mnt)
    after = place.ask('status')
    assert without_daemon(before) == without_daemon(after)
    assert before['daemon'] is None and after['daemon']['mountpoint'] == str(place.mnt)
    mounted = life('mo-')
    # The list of requests still has the one of the first life.
    for said in (unmounted, mounted):
        said[11] = said[11][-1]
    assert mounted == unmounted


def test_the_mount_sees_what_the_command_line_does(place):
    place.check('mount', place.store, place.mnt)
    home = place.mnt / 'home'
    (home / 'a').write_text('1')
    assert sorted(os.listdir(place.mnt)) == ['home']
    place.check('snapshot', 'create', 'home@one', cwd=home)
    assert os.listdir(home / '.snapshots') == ['one']
    assert (home / '.snapshots' / 'one' / 'a').read_text() == '1'
    (home / 'a').write_text('2')
    place.check('volume', 'create', 'attic', cwd=home)
    assert sorted(os.listdir(place.mnt)) == ['attic', 'home']
    place.check('volume', 'clone', 'home@one', 'copy', cwd=home)
    assert (place.mnt / 'copy' / 'a').read_text() == '1'
    place.check('snapshot', 'delete', 'home@one', '--store', place.store)
    assert os.listdir(home / '.snapshots') == []
    os.mkdir(home / '.snapshots' / 'two')
    assert [one['snapshot'] for one in place.ask('snapshot', 'list', cwd=home)] == ['home@two']


def test_many_mounts_and_umounts_in_a_row(place):
    for turn in range(8):
        place.check('mount', place.store, place.mnt)
        (place.mnt / 'home' / str(turn)).write_text(str(turn))
        subprocess.run(['umount', place.mnt], check=True)
    place.check('mount', place.store, place.mnt)
    assert sorted(os.listdir(place.mnt / 'home')) == [str(turn) for turn in range(8)]
    place.check('umount', place.mnt)
    log = (place.store / 'daemon.log').read_text()
    assert log.count('closed') == 9 == log.count(', clean')
    assert 'WARNING' not in log and 'ERROR' not in log
