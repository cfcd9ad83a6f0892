"""Deletion as a person meets it: quarantine, the way back, the bytes off the disk, and what stops it."""

import json
import os
import pty
import re
import shutil
import signal
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.mounted import BIN, NOBODY, SNAPFS, Mount, as_user, names, run, shell, until

MIB = 1 << 20
LIVE_BYTES, OLD_BYTES = 30 * MIB, 6 * MIB  # what is deleted stays below the limit of 30 %


@pytest.fixture
def deleted(mounted: Mount, place: Path) -> Iterator[Mount]:
    """A mount where a snapshot that alone holds OLD_BYTES was deleted. Its tree is kept in `place`/was."""
    home = mounted.path / 'home'
    make_snapshot(home, place)
    mounted.snapfs('config', 'automatic', 'off')
    mounted.restart()  # which seals the packs: only then can they go
    os.rmdir(home / '.snapshots/old')
    yield mounted


def make_snapshot(home: Path, place: Path) -> None:
    (home / 'live').write_bytes(os.urandom(LIVE_BYTES))
    (home / 'dir').mkdir()
    (home / 'dir/old').write_bytes(os.urandom(OLD_BYTES))
    shell('for n in 1 2 3 4 5 6 7 8 9; do echo $n > dir/small$n; ln -s small$n dir/link$n; done', home)
    (home / '.snapshots/old').mkdir()
    run('cp', '-a', home / '.snapshots/old', place / 'was')
    shutil.rmtree(home / 'dir')


def ask(mount: Mount, *words: str) -> dict:
    found = json.loads(mount.snapfs(*words, '--json'))
    assert isinstance(found, dict | list)
    return found


def kept_batch(mount: Mount) -> dict:
    """The batch in quarantine that holds the snapshot."""
    (found,) = [one for one in json.loads(mount.snapfs('quarantine', '--json')) if one['class'] == 'kept']
    return found


def packs_bytes(mount: Mount) -> int:
    return sum(path.stat().st_size for path in (mount.store / 'packs').rglob('*') if path.is_file())


def state_of(mount: Mount, batch: int) -> str:
    """The state of a batch as the catalog on disk has it, whoever owns the store."""
    db = sqlite3.connect(f'file:{mount.store}/catalog.sqlite?mode=ro', uri=True)
    try:
        return str(db.execute('SELECT state FROM batch WHERE number = ?', (batch,)).fetchone()[0])
    finally:
        db.close()


def workers(tasks: Path) -> list[str]:
    """The processes that a daemon has started and that have begun."""
    found = [pid for path in tasks.glob('*/children') for pid in path.read_text().split()]
    return [pid for pid in found if 'snapfs.collect.worker' in command_line(pid)]


def command_line(pid: str) -> str:
    try:
        return Path(f'/proc/{pid}/cmdline').read_text()
    except OSError:
        return ''


def test_from_rmdir_to_the_bytes_off_the_disk(deleted: Mount) -> None:
    control, live = deleted.path / '.snapfs', (deleted.path / 'home/live').read_bytes()
    (number,) = names(control / 'trash')
    assert names(control / f'trash/{number}') == ['request', 'tree']
    plans = {one['class']: one for one in ask(deleted, 'collect', '--dry-run')['plans']}
    promised = plans['kept']['bytes']
    assert OLD_BYTES < promised < OLD_BYTES + MIB
    assert plans['kept']['reasons'] == []
    assert [one['what'] for one in plans['kept']['requests']] == ['home@old']
    assert names(control / 'quarantine') == [], 'a dry run changes nothing'
    before = packs_bytes(deleted)
    out = deleted.snapfs('collect')
    assert re.search(r'batch \d+: .* in quarantine, freed at the earliest', out)
    batch = kept_batch(deleted)
    assert batch['bytes'] == promised
    text = (control / f'quarantine/{batch["batch"]}').read_text()
    assert f'bytes that come back: {promised}\n' in text
    assert f'request {number}: snapshot home@old\n' in text
    assert packs_bytes(deleted) >= before
    assert names(control / f'trash/{number}') == ['request'], 'what is condemned is not read'
    assert f'batch: {batch["batch"]}\n' in (control / f'trash/{number}/request').read_text()
    deleted.snapfs('config', 'repack-waste', '1%')
    assert 'may be freed before its grace is over' in deleted.snapfs('collect', 'approve', batch['digest'])
    assert f'batch {batch["batch"]}: freed' in deleted.snapfs('collect')
    assert packs_bytes(deleted) < before - OLD_BYTES * 9 // 10
    assert (deleted.store / f'batches/{batch["batch"]}/certificate.json').is_file()
    events = [
        one['event'] for one in json.loads(deleted.snapfs('audit', '--batch', str(batch['batch']), '--json'))
    ]
    assert events[:4] == ['batch-begin', 'batch-quarantined', 'approve', 'batch-confirmed']
    assert events[-2:] == ['batch-freed', 'certificate']
    assert 'the chain is whole' in deleted.snapfs('audit', '--verify')
    assert names(control / 'trash') == []
    assert 'nothing that was deleted' in deleted.snapfs('snapshot', 'undelete', number, fails=True)
    deleted.restart()
    assert (deleted.path / 'home/live').read_bytes() == live
    assert (control / 'health').read_text().startswith('ok\n')


@pytest.mark.usefixtures('as_root')
def test_its_owner_takes_it_out_of_quarantine(mounted: Mount, place: Path) -> None:
    home = mounted.path / 'home'
    os.chown(home, NOBODY, NOBODY)
    (place / 'copies').mkdir()
    os.chown(place / 'copies', NOBODY, NOBODY)
    as_user('head -c 2000000 /dev/urandom > old; head -c 20000000 /dev/urandom > live', home)
    as_user(
        f'mkdir .snapshots/s && cp -a .snapshots/s {place}/copies/was && rm old && rmdir .snapshots/s', home
    )
    mounted.snapfs('config', 'automatic', 'off')
    mounted.snapfs('collect')
    trash = mounted.path / '.snapfs/trash'
    (number,) = names(trash)
    assert (trash / number).stat().st_uid == NOBODY
    mounted.restart()
    assert names(mounted.path / '.snapfs/quarantine'), 'it rests on over a remount'
    as_user(f'mv {trash}/{number} {home}/.snapshots/s', place, uid=NOBODY - 1, gid=NOBODY - 1, fails=True)
    as_user(f'mv {trash}/{number} {home}/.snapshots/again', place)
    as_user(f'diff -r {place}/copies/was {home}/.snapshots/again', place)
    assert (mounted.path / '.snapfs/health').read_text().startswith('ok\n')
    assert [one for one in ask(mounted, 'quarantine') if one['class'] == 'kept'] == []


def test_a_volume_comes_back_too(mounted: Mount, place: Path) -> None:
    (mounted.path / 'home/live').write_bytes(os.urandom(12 * MIB))
    (mounted.path / 'work').mkdir()
    (mounted.path / 'work/f').write_bytes(os.urandom(2 * MIB))
    run('cp', '-a', mounted.path / 'work', place / 'was')
    mounted.snapfs('volume', 'delete', 'work')
    mounted.snapfs('collect')
    assert kept_batch(mounted)['requests'][0]['what'] == 'volume work'
    mounted.snapfs('snapshot', 'undelete', 'work', '--name', 'back')
    run('diff', '-r', place / 'was', mounted.path / 'back')


def test_a_wrong_verdict_is_noticed_by_a_reader_and_stops_everything(deleted: Mount) -> None:
    live = (deleted.path / 'home/live').read_bytes()
    deleted.snapfs('collect')
    batch = kept_batch(deleted)['batch']
    dump = run(BIN / 'snapfs-dump', deleted.store, 'tree', 'home', '--path', '/live')
    id = re.findall(r'EXTENT .*?chunk=([0-9a-f]{64})', dump)[10]
    deleted.stop()
    db = sqlite3.connect(deleted.store / 'catalog.sqlite')  # as if both recounts had missed it
    with db:
        columns = 'id, pack, offset, stored, plain, codec, kind, epoch'
        moved = f'INSERT INTO quarantine SELECT {columns}, ? FROM chunk WHERE id = ?'
        assert db.execute(moved, (batch, bytes.fromhex(id))).rowcount == 1
        db.execute('DELETE FROM chunk WHERE id = ?', (bytes.fromhex(id),))
    db.close()
    deleted.expected += ['CRITICAL snapfs', 'WARNING snapfs']
    deleted.start()
    assert (deleted.path / 'home/live').read_bytes() == live, 'the reader gets his bytes'
    control = deleted.path / '.snapfs'
    first = (control / 'health').read_text().splitlines()[0]
    assert first.startswith('the collector is stopped: incident 1: ') and id in first
    assert names(control / 'incidents/1') == ['incident.json', 'read.json', 'state']
    assert json.loads((control / 'incidents/1/read.json').read_text())['id'] == id
    assert 'stands still: ' in deleted.snapfs('status')
    assert 'stands still' in deleted.snapfs('collect', fails=True)
    until(lambda: state_of(deleted, batch) == 'RESTORED', 'the batch goes back')
    assert id in deleted.snapfs('incident', 'show', '1')
    (deleted.path / 'home/new').write_text('writing goes on')
    deleted.restart()
    assert (control / 'health').read_text().startswith('the collector is stopped'), (
        'no restart clears a latch'
    )
    assert 'no other is in force' in deleted.snapfs('incident', 'ack', '1', '--note', 'looked at it')
    assert (control / 'health').read_text().startswith('ok\n')
    deleted.snapfs('collect')
    assert (deleted.path / 'home/live').read_bytes() == live


def test_kill_in_quarantine_and_while_freeing(deleted: Mount, place: Path) -> None:
    live = (deleted.path / 'home/live').read_bytes()
    deleted.snapfs('collect')
    first = kept_batch(deleted)
    deleted.kill()
    deleted.start()
    assert kept_batch(deleted)['digest'] == first['digest'], 'it rests on'
    (number,) = names(deleted.path / '.snapfs/trash')
    os.rename(deleted.path / f'.snapfs/trash/{number}', deleted.path / 'home/.snapshots/old')
    run('diff', '-r', '--no-dereference', place / 'was', deleted.path / 'home/.snapshots/old')
    os.rmdir(deleted.path / 'home/.snapshots/old')
    deleted.snapfs('collect')
    second = kept_batch(deleted)
    deleted.snapfs('collect', 'approve', second['digest'])
    words = [str(SNAPFS), 'collect', '--store', str(deleted.store)]
    collecting = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until(lambda: state_of(deleted, second['batch']) in ('CONFIRMED', 'FREED'), 'recount 2 confirms it')
        deleted.kill_while_busy()
    finally:
        collecting.wait(60)
    assert state_of(deleted, second['batch']) == 'CONFIRMED', 'the daemon was too quick for this test'
    deleted.end_dead_mount()
    deleted.start()
    (number,) = names(deleted.path / '.snapfs/trash')
    assert 'too late' in (deleted.path / f'.snapfs/trash/{number}/request').read_text()
    assert 'being freed' in deleted.snapfs('snapshot', 'undelete', number, fails=True)
    assert f'batch {second["batch"]}: freed' in deleted.snapfs('collect')
    assert names(deleted.path / '.snapfs/trash') == []
    deleted.restart()
    assert (deleted.path / 'home/live').read_bytes() == live


def test_one_attaches_to_what_the_daemon_does(deleted: Mount) -> None:
    """Two at once: one moves, the other waits for it and tells what came of it, with a bar on a terminal."""
    words = [str(SNAPFS), 'collect', '--store', str(deleted.store)]
    first = subprocess.Popen([*words, '--json'], stdout=subprocess.PIPE, text=True)
    master, terminal = pty.openpty()
    second = subprocess.Popen(words, stdout=terminal, stderr=terminal, stdin=terminal)
    os.close(terminal)
    shown = b''
    while True:
        try:
            block = os.read(master, 4096)
        except OSError:
            break
        if not block:
            break
        shown += block
    os.close(master)
    assert second.wait(60) == 0
    report = json.loads(first.communicate(timeout=60)[0])
    batch = kept_batch(deleted)['batch']
    told = [one['batch'] for one in report['quarantined'] if one['class'] == 'kept']
    assert told == [batch] or f'batch {batch}: '.encode() in shown, 'one of them has seen it'
    assert told == [batch] or told == []
    assert state_of(deleted, batch) == 'QUARANTINED'


def test_without_a_daemon_it_is_the_same(deleted: Mount) -> None:
    deleted.stop()
    plans = {one['class']: one for one in ask(deleted, 'collect', '--dry-run')['plans']}
    report = ask(deleted, 'collect')
    assert {one['class']: one['bytes'] for one in report['quarantined']} == {
        name: one['bytes'] for name, one in plans.items()
    }
    digest = kept_batch(deleted)['digest']
    ask(deleted, 'collect', 'approve', digest)
    assert [one['digest'] for one in ask(deleted, 'collect')['freed']] == [digest]
    assert ask(deleted, 'audit', '--verify')['broken'] is None
    assert ask(deleted, 'why', 'home:/live')['keepers'][0]['files'] == ['/live']


def test_nothing_waits_for_the_end_of_a_collection(deleted: Mount) -> None:
    """Unmounting ends what moves, whoever began it."""
    words = [str(SNAPFS), 'collect', '--store', str(deleted.store)]
    collecting = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    children = Path(f'/proc/{deleted.pid}/task')
    found: list[str] = []
    until(lambda: found.extend(workers(children)) or found, 'a worker counts')
    os.kill(int(found[0]), signal.SIGSTOP)  # it will never come to an end
    deleted.stop()
    said = collecting.communicate(timeout=60)[0]
    assert 'Traceback' not in said
    deleted.start()
    assert names(deleted.path / '.snapfs/trash')
    assert (deleted.path / 'home/live').stat().st_size == LIVE_BYTES
