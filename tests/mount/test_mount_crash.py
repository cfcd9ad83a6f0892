"""The daemon is killed in the middle of work: what fsync promised is there, and nothing that never
was (P5).
"""

import os
import select
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.mounted import Mount, names, run, shell

# Each step makes a file, appends to a log and renames; now and then it syncs and says up to where. Everything
# that a step does depends on its number alone, so the tree after any number of steps is known.
WRITER = r"""
import os, sys
top, sync_every = sys.argv[1], int(sys.argv[2])
os.chdir(top)
log = os.open('log', os.O_CREAT | os.O_WRONLY | os.O_APPEND)
big = os.open('big', os.O_CREAT | os.O_RDWR)
step = 0
while True:
    os.write(log, b'%08d\n' % step)
    with open(f'file-{step}', 'wb') as file:
        file.write(b'%d ' % step * (step * 37 % 3000))
    if step % 3 == 2:
        os.rename(f'file-{step}', f'moved-{step}')
    if step % 5 == 4 and step % 3:  # else it is called otherwise
        os.unlink(f'file-{step - 1}')
    os.pwrite(big, b'%08d' % step * 512, step % 64 * 4096)
    if step % sync_every == 0:
        os.fsync(log if step % 2 else big)
        os.write(1, b'%d\n' % step)
    step += 1
"""


def expected_names(steps: int) -> set[str]:
    """The tree after the first `steps` steps."""
    found = {'log', 'big'}
    for step in range(steps):
        found.add(f'moved-{step}' if step % 3 == 2 else f'file-{step}')
        if step % 5 == 4 and step % 3:
            found.discard(f'file-{step - 1}')
    return found


def check_prefix(top: Path, synced: int) -> int:
    """Assert that the tree is as it was at one moment not before step `synced` ended; return its steps."""
    log = (top / 'log').read_bytes()
    lines = log.split(b'\n')
    assert lines.pop() == b''
    assert lines == [b'%08d' % step for step in range(len(lines))], (
        'the log has a gap, or bytes that never were'
    )
    begun = len(lines)
    assert begun > synced, f'step {synced} was synced, the log ends at {begun}'
    # The last step may be half done: its file may be missing, empty, not yet renamed.
    found = set(os.listdir(top))
    done, last = expected_names(begun - 1), begun - 1
    partial = {f'file-{last}', f'moved-{last}', f'file-{last - 1}'}
    assert found - partial == done - partial, found ^ done
    for name in found - {'log', 'big', f'file-{last}'}:
        step = int(name.split('-')[1])
        assert (top / name).read_bytes() == b'%d ' % step * (step * 37 % 3000), name
    big = (top / 'big').read_bytes()
    for slot in range(min(begun, 64)):
        latest = max(step for step in range(slot, begun, 64))
        block = big[slot * 4096 : slot * 4096 + 4096]
        wanted = [b'%08d' % latest * 512]
        if latest == last:
            wanted.append(b'%08d' % (latest - 64) * 512 if latest >= 64 else bytes(len(block)))
        assert block in wanted, f'slot {slot} at {begun} steps'
    return begun


@pytest.mark.parametrize(('sync_every', 'markers'), [(1, 40), (7, 25), (100, 6)])
def test_a_killed_daemon_loses_nothing_that_was_synced(mounted: Mount, sync_every: int, markers: int):
    home = mounted.path / 'home'
    writer = subprocess.Popen(
        [sys.executable, '-c', WRITER, home, str(sync_every)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        told = b''
        while told.count(b'\n') < markers:
            assert select.select([writer.stdout], [], [], 60)[0], 'the writer is stuck'
            more = os.read(writer.stdout.fileno(), 4096)
            assert more, writer.stderr.read()
            told += more
            if told.count(b'\n') == markers // 2:
                (home / '.snapshots/half').mkdir(exist_ok=True)
        mounted.kill_while_busy()
        writer.wait(timeout=30)
        told += writer.stdout.read()
    finally:
        writer.kill()
        writer.communicate()
    mounted.end_dead_mount()
    mounted.start()
    synced = int(told.split(b'\n')[-2])
    begun = check_prefix(home, synced)
    if (home / '.snapshots/half').exists():
        assert check_prefix(home / '.snapshots/half', 0) <= begun
    assert mounted.status()['health'] == 'ok'
    shell('echo goes on >> log; rm file-0; mkdir after', home)
    before = names(home)
    mounted.restart()
    assert names(home) == before


def test_everything_unsynced_may_go_and_nothing_else(mounted: Mount):
    """The kernel's dead mountpoint answers an error, never an empty directory."""
    home = mounted.path / 'home'
    (home / 'kept').write_text('kept')
    os.sync()
    fd = os.open(home / 'kept', os.O_RDWR)
    os.fsync(fd)
    (home / 'perhaps').write_text('perhaps')
    mounted.kill_while_busy()
    for call, argument in ((os.listdir, mounted.path), (os.listdir, home), (os.statvfs, mounted.path)):
        with pytest.raises(OSError, match='not connected'):
            call(argument)
    with pytest.raises(OSError, match=r'not connected|aborted'):
        os.fsync(fd)
    os.close(fd)
    mounted.end_dead_mount()
    mounted.start()
    assert (home / 'kept').read_text() == 'kept'
    assert set(names(home)) <= {'kept', 'perhaps'}


def test_snapshots_requests_and_holds_are_durable_when_they_return(mounted: Mount):
    home = mounted.path / 'home'
    (home / 'file').write_text('in the snapshot')
    (home / '.snapshots/one').mkdir()
    (home / '.snapshots/two').mkdir()
    mounted.snapfs('hold', 'add', 'home@one', 'audit')
    os.rmdir(home / '.snapshots/two')
    os.mkdir(mounted.path / 'other')
    mounted.kill()
    mounted.start()
    assert names(home / '.snapshots') == ['one']
    assert (home / '.snapshots/one/file').read_text() == 'in the snapshot'
    assert names(mounted.path) == ['home', 'other']
    assert 'home@two' in shell('cat .snapfs/trash/*/request', mounted.path)
    mounted.snapfs('snapshot', 'delete', 'home@one', fails=True)
    mounted.kill()
    mounted.snapfs('snapshot', 'list')
    mounted.snapfs('snapshot', 'undelete', 'home@two')
    mounted.start()
    assert names(home / '.snapshots') == ['one', 'two']


def test_a_daemon_that_is_killed_while_it_commits_and_again_while_it_replays(mounted: Mount):
    home = mounted.path / 'home'
    run('cp', '-r', Path(os.__file__).parent / 'asyncio', home / 'tree')
    fd = os.open(home / 'tree', os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)
    before = names(home / 'tree')
    for _ in range(3):
        snapshot = subprocess.Popen(['mkdir', home / '.snapshots/during'], stderr=subprocess.DEVNULL)
        mounted.kill_while_busy()
        snapshot.wait(timeout=30)
        mounted.end_dead_mount()
        mounted.start()
        assert names(home / 'tree') == before
        run('diff', '-r', '-x', '__pycache__', Path(os.__file__).parent / 'asyncio', home / 'tree')
        (home / 'more').write_text('more')
