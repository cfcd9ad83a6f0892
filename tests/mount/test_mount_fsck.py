"""fsck of a store that people work in: it finds nothing, whatever goes on meanwhile."""

import json
import os
import subprocess
import tempfile
from pathlib import Path

import pytest

from tests.support.fsck import report_of
from tests.support.mounted import BIN, IS_ROOT, NOBODY, SNAPFS, Mount, run
from tools.checker.check import Options, check
from tools.checker.findings import Report

ROUNDS = 3
LOAD = """\
n=0
while [ ! -e "$STOP" ]; do
    n=$((n + 1))
    dd if=/dev/urandom of=file$((n % 7)) bs=64k count=5 conv=fsync 2>/dev/null
    mkdir -p dir$((n % 3))/below
    echo $n > dir$((n % 3))/below/small$n
    mv dir$((n % 3))/below/small$n moved$((n % 5))
    mkdir .snapshots/s$n
    [ $n -le 2 ] || rmdir .snapshots/s$((n - 2))
    "$SNAPFS" collect --store "$STORE" >/dev/null || [ $? = 11 ]   # another collection is on its way
done
"""


def said(report: Report) -> list[str]:
    """Everything that a check says is wrong, odd or not checked."""
    found = [f'{one.code} {one.place}: {one.what}' for one in report.findings if one.severity != 'note']
    return found + report.unchecked


def write(mount: Mount, number: int) -> None:
    for one in range(8):
        path = mount.path / 'home' / f'file {number} {one}'
        descriptor = os.open(path, os.O_CREAT | os.O_WRONLY)
        try:
            os.write(descriptor, os.urandom(50_000))
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    (mount.path / 'home' / '.snapshots' / f's{number}').mkdir()


def test_nothing_is_found_while_people_work(mounted: Mount, place: Path) -> None:
    stop = place / 'stop'
    environment = {**os.environ, 'STOP': str(stop), 'STORE': str(mounted.store), 'SNAPFS': str(SNAPFS)}
    write(mounted, 0)
    load = subprocess.Popen(['/bin/sh', '-euc', LOAD], cwd=mounted.path / 'home', env=environment)
    try:
        for full in (False, True) * ROUNDS:
            assert said(report_of(mounted.store, full=full)) == []
        assert load.poll() is None, 'the load has ended by itself'
    finally:
        stop.touch()
        assert load.wait(60) == 0
    mounted.stop()
    assert said(report_of(mounted.store)) == []


@pytest.mark.parametrize('again', [False, True])
def test_a_store_that_is_closed_meanwhile(mounted: Mount, again: bool) -> None:
    """What was written since the catalog was copied is no damage, though nobody has the store any more."""
    write(mounted, 0)
    mounted.restart()
    if again:  # nobody has it at the beginning and at the end, but in between
        mounted.stop()
    ended = False

    def then(what: str, _done: int, _known: int) -> None:
        nonlocal ended
        if what == 'packs' and not ended:
            ended = True
            if again:
                mounted.start()
            for number in range(1, 5):
                write(mounted, number)
            mounted.stop()

    report = Report(then)
    check(mounted.store, Options(jobs=1), report)
    assert ended
    assert said(report) == []
    assert report.counts == {}
    assert said(report_of(mounted.store)) == []


def test_the_helper_of_fsck_8(mounted: Mount) -> None:
    write(mounted, 0)
    for flags in (['-a'], ['-p', '-C0'], ['-y', '-C'], ['-n', '-f', '-V', '-M', '-T']):
        assert '0 damages' in run(BIN / 'fsck.snapfs', *flags, '--quick', mounted.store)
    assert json.loads(run(BIN / 'fsck.fuse.snapfs', '--json', mounted.store))['findings'] == []


def test_who_may_not_read_is_told_so() -> None:
    if not IS_ROOT:
        pytest.skip('only root can become somebody else')
    # TMPDIR may be private to root: then he would not come to the store, nor have a place for his own files.
    with tempfile.TemporaryDirectory(dir='/var/tmp', prefix='snapfs-test-') as text:
        place = Path(text)
        place.chmod(0o755)
        scratch, store = place / 'scratch', place / 'store'
        scratch.mkdir()
        os.chown(scratch, NOBODY, NOBODY)
        run(SNAPFS, 'init', store)
        store.chmod(0o755)
        report = Report()
        os.seteuid(NOBODY)
        try:
            check(store, Options(jobs=1, scratch=scratch), report)
        finally:
            os.seteuid(0)
    assert report.counts == {}
    assert report.unchecked == ['the store: superblock: Permission denied']
