"""A bit that rots under a mount: the scrub finds it, says where, and the collector waits for a person."""

import fcntl
import json
import os
from pathlib import Path

from tests.support.mounted import SNAPFS, Mount, refused, run

FILES = 40
SIZE = 20_000


def fill(home: Path) -> dict[str, bytes]:
    made = {f'file {number}': os.urandom(SIZE) for number in range(FILES)}
    (home / 'dir').mkdir()
    for name, data in made.items():
        (home / 'dir' / name).write_bytes(data)
    return made


def rot(store: Path, data: bytes) -> None:
    """Turn one bit round in the pack that has these bytes as they are."""
    for path in (store / 'packs/data').rglob('*'):
        at = path.read_bytes().find(data[:200]) if path.is_file() else -1
        if at >= 0:
            with path.open('r+b') as pack:
                pack.seek(at + 100)
                pack.write(bytes([data[100] ^ 1]))
            return
    raise AssertionError('no pack has these bytes')


def test_what_has_rotted_is_found_named_and_stops_the_collector(mounted: Mount) -> None:
    home = mounted.path / 'home'
    made = fill(home)
    monday = home / '.snapshots/monday'
    monday.mkdir()
    mounted.snapfs('config', 'automatic', 'off')
    assert 'damaged: 0' in mounted.snapfs('scrub')
    (shown,) = json.loads(mounted.snapfs('snapshot', 'list', '--json'))
    assert shown['verified_percent'] == 100 and shown['damaged_ns'] is None
    assert b'verified: 100 %' in os.getxattr(monday, 'user.snapfs.verified')
    assert os.getxattr(monday, 'user.snapfs.damage') == b'no damage known'
    assert os.listxattr(monday) == [], 'no copy takes them along'
    assert 'home@monday: verified: 100 %' in (mounted.path / '.snapfs/verified').read_text()

    mounted.expected += ['damaged', 'a scrub found', 'the payload has another id']
    rot(mounted.store, made['file 7'])
    found = json.loads(run(SNAPFS, 'scrub', '--again', '--json', '--store', mounted.store, fails=True))
    assert found['bad'] == 1
    (shown,) = json.loads(mounted.snapfs('snapshot', 'list', '--json'))
    assert shown['damaged_ns'] is not None and shown['verified_percent'] < 100
    assert b'DAMAGED' in os.getxattr(monday, 'user.snapfs.damage')
    told = mounted.snapfs('damage', fails=True)
    assert 'home@monday' in told and '/dir/file 7' in told and 'file 8' not in told
    (incident,) = json.loads(mounted.snapfs('incident', 'list', '--json'))
    assert 'home@monday' in incident['reason']
    assert 'home@monday' in mounted.snapfs('collect', fails=True)

    mounted.snapfs('incident', 'ack', str(incident['number']), '--note', 'seen')
    mounted.restart()
    refused(5, (monday / 'dir/file 7').read_bytes)
    assert (monday / 'dir/file 8').read_bytes() == made['file 8']
    donors = mounted.place / 'donors'
    donors.mkdir()
    (donors / 'copy').write_bytes(made['file 7'])
    mounted.snapfs('recover', 'home@monday', '--donors', str(donors))
    assert (monday / 'dir/file 7').read_bytes() == made['file 7'] == (home / 'dir/file 7').read_bytes()
    assert 'damaged: 0' in mounted.snapfs('scrub', '--again')


def test_export_and_verify_beside_writers(mounted: Mount) -> None:
    home = mounted.path / 'home'
    made = fill(home)
    (home / '.snapshots/monday').mkdir()
    kept = mounted.place / 'kept'
    root = json.loads(mounted.snapfs('export', 'home@monday', '-o', str(kept), '--json'))['root']
    (home / 'dir/file 1').write_bytes(b'later')
    mounted.snapfs('snapshot', 'rename', 'home@monday', 'first')
    assert f'root {root}' in mounted.snapfs('verify', 'home@first', '--root', root)
    assert f'root {root}, as it should be' in mounted.snapfs('verify', str(kept))
    rot(mounted.store, made['file 1'])
    assert '/dir/file 1' in mounted.snapfs('verify', str(kept), fails=True)
    assert '/dir/file 1' in mounted.snapfs('verify', 'home@first', fails=True)


def test_nothing_is_freed_under_the_eyes_of_whoever_checks(mounted: Mount) -> None:
    fill(mounted.path / 'home')
    mounted.snapfs('config', 'automatic', 'off')
    with (mounted.store / 'superblock').open('rb') as superblock:
        fcntl.flock(superblock, fcntl.LOCK_SH)
        assert 'being checked' in mounted.snapfs('collect', fails=True)
    mounted.snapfs('collect')
