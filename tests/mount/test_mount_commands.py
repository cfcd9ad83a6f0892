"""What the command line changes is seen at once in a mounted tree that the kernel has cached."""

import errno
import json
import os
from pathlib import Path

from tests.support.mounted import Mount, names, refused, shell


def fill_cache(path: Path) -> None:
    """Have the kernel know every name, attribute and page below `path`."""
    shell('find . -type f -exec cat {} + > /dev/null; ls -lR . > /dev/null', path)


def make_history(mounted: Mount) -> Path:
    """A volume with a snapshot `old`, after which everything was changed."""
    home = mounted.path / 'home'
    shell('mkdir -p d/e gone; echo old > d/e/file; echo x > gone/file; echo old > top', home)
    (home / '.snapshots/old').mkdir()
    shell('echo newer > d/e/file; rm -r gone; echo newer > top; mkdir new; echo new > new/file', home)
    fill_cache(home)
    refused(errno.ENOENT, os.stat, home / 'gone')
    return home


def assert_old(home: Path) -> None:
    assert (home / 'top').read_text() == 'old\n'
    assert (home / 'd/e/file').read_text() == 'old\n'
    assert os.stat(home / 'd/e/file').st_size == 4
    assert (home / 'gone/file').read_text() == 'x\n'
    assert names(home) == ['d', 'gone', 'top']
    refused(errno.ENOENT, os.stat, home / 'new')


def test_a_rollback_is_seen_at_once(mounted: Mount):
    home = make_history(mounted)
    mounted.snapfs('volume', 'rollback', 'home@old')
    assert_old(home)
    shell('echo again > top; mkdir new; echo x > gone/second', home)
    safety, old = names(home / '.snapshots')
    assert safety.startswith('before-rollback-')
    assert old == 'old'
    assert (home / '.snapshots' / safety / 'new/file').read_text() == 'new\n'
    mounted.restart()
    assert names(home) == ['d', 'gone', 'new', 'top']
    assert (home / 'top').read_text() == 'again\n'


def test_a_rollback_with_open_files_and_somebody_inside(mounted: Mount):
    home = make_history(mounted)
    os.chdir(home / 'd/e')
    fd = os.open('file', os.O_RDWR)
    os.write(fd, b'NEWER')
    directory = os.open(home / 'new', os.O_RDONLY)
    mounted.snapfs('volume', 'rollback', 'home@old')
    assert_old(home)
    # Whoever was inside holds a state that is a snapshot now: he is told, and cannot write into the old
    # state.
    refused(errno.ESTALE, os.ftruncate, fd, 0)
    refused(errno.ESTALE, os.pwrite, fd, b'late', 0)
    refused(errno.ESTALE, os.open, 'another', os.O_CREAT | os.O_WRONLY)
    refused(errno.ESTALE, os.mkdir, 'another', dir_fd=directory)
    refused(errno.ESTALE, os.listdir, directory)
    os.close(fd)
    os.close(directory)
    os.chdir('/')
    assert_old(home)
    safety = names(home / '.snapshots')[0]
    assert (home / '.snapshots' / safety / 'd/e/file').read_text() == 'NEWER\n'


def test_a_rollback_of_a_volume_mounted_alone(mounted: Mount):
    make_history(mounted)
    mounted.restart(volume='home')
    home = mounted.path
    fill_cache(home)
    refused(errno.ENOENT, os.stat, home / 'gone')
    mounted.snapfs('volume', 'rollback', 'home@old')
    assert_old(home)
    shell('echo again > top; cat d/e/file', home)
    mounted.restart(volume='home')
    assert (home / 'top').read_text() == 'again\n'


def test_one_volume_mounted_alone(mounted: Mount):
    (mounted.path / 'other').mkdir()
    (mounted.path / 'home/file').write_text('text')
    number = os.stat(mounted.path / 'home/file').st_ino
    mounted.restart(volume='home')
    path = mounted.path
    assert names(path) == ['file']
    assert os.stat(path / 'file').st_ino == number
    assert (path / '.snapfs/health').read_text().startswith('ok\n')
    (path / '.snapshots/one').mkdir()
    mounted.snapfs('snapshot', 'create', 'home@two')
    mounted.snapfs('snapshot', 'create', 'other@three')
    assert names(path / '.snapshots') == ['one', 'two']
    os.mkdir(path / 'directory')
    assert os.stat(path / 'directory/..').st_ino == os.stat(path).st_ino
    os.rmdir(path / '.snapshots/one')
    (request,) = names(path / '.snapfs/trash')
    shell(f'mv .snapfs/trash/{request} .snapshots/back', path)
    assert names(path / '.snapshots') == ['back', 'two']
    mounted.restart()
    assert names(path) == ['home', 'other']


def test_snapshots_of_the_command_line_are_seen_at_once(mounted: Mount):
    home = mounted.path / 'home'
    shell('mkdir d; echo x > d/file', home)
    refused(errno.ENOENT, os.stat, home / '.snapshots/one')
    refused(errno.ENOENT, os.stat, home / 'd/.snapshots/one')
    mounted.snapfs('snapshot', 'create', 'home@one')
    for special in (home / '.snapshots', home / 'd/.snapshots'):
        assert names(special) == ['one']
    fill_cache(home / '.snapshots/one')
    mounted.snapfs('snapshot', 'rename', 'home@one', 'two')
    for special in (home / '.snapshots', home / 'd/.snapshots'):
        refused(errno.ENOENT, os.stat, special / 'one')
        assert names(special) == ['two']
    assert (home / 'd/.snapshots/two/file').read_text() == 'x\n'
    mounted.snapfs('snapshot', 'delete', 'home@two')
    for special in (home / '.snapshots', home / 'd/.snapshots'):
        refused(errno.ENOENT, os.stat, special / 'two')
        assert names(special) == []
    mounted.snapfs('snapshot', 'undelete', 'home@two', '--name', 'three')
    assert (home / 'd/.snapshots/three/file').read_text() == 'x\n'
    (listed,) = json.loads(mounted.snapfs('snapshot', 'list', '--json'))
    assert listed['name'] == 'three'


def test_volumes_of_the_command_line_are_seen_at_once(mounted: Mount):
    path = mounted.path
    refused(errno.ENOENT, os.stat, path / 'second')
    mounted.snapfs('volume', 'create', 'second', '--mode', '700')
    assert os.stat(path / 'second').st_mode & 0o777 == 0o700
    (path / 'second/file').write_text('text')
    mounted.snapfs('volume', 'rename', 'second', 'third')
    refused(errno.ENOENT, os.stat, path / 'second')
    assert (path / 'third/file').read_text() == 'text'
    mounted.snapfs('volume', 'delete', 'third')
    refused(errno.ENOENT, os.stat, path / 'third')
    refused(errno.ENOENT, os.stat, path / 'third/file')
    assert names(path) == ['home']


def test_a_clone_is_a_volume_of_its_own(mounted: Mount):
    home = mounted.path / 'home'
    (home / 'file').write_bytes(os.urandom(1 << 20))
    (home / '.snapshots/one').mkdir()
    before = mounted.status()['counters']
    mounted.snapfs('volume', 'clone', 'home@one', 'copy')
    copy = mounted.path / 'copy'
    assert (copy / 'file').read_bytes() == (home / 'file').read_bytes()
    assert mounted.status()['counters']['new_bytes'] - before['new_bytes'] < 1 << 16
    shell('echo own > own; echo more >> file', copy)
    assert names(home) == ['file']
    assert os.stat(home / 'file').st_size == 1 << 20
    assert names(copy / '.snapshots') == []
    mounted.restart()
    assert names(copy) == ['file', 'own']
    assert os.stat(copy / 'file').st_size == (1 << 20) + 5


def test_the_same_commands_without_a_mount(mounted: Mount):
    (mounted.path / 'home/file').write_text('old')
    mounted.stop()
    mounted.snapfs('snapshot', 'create', 'home@one')
    mounted.start()
    (mounted.path / 'home/file').write_text('new')
    mounted.stop()
    mounted.snapfs('volume', 'rollback', 'home@one')
    mounted.snapfs('volume', 'clone', 'home@one', 'copy')
    mounted.start()
    assert (mounted.path / 'home/file').read_text() == 'old'
    assert names(mounted.path) == ['copy', 'home']


def test_many_volumes_keep_apart(mounted: Mount):
    volumes = [mounted.path / f'volume {number}' for number in range(12)]
    for volume in volumes:
        volume.mkdir()
        (volume / 'name').write_text(volume.name)
        (volume / '.snapshots/one').mkdir()
        (volume / 'name').write_text('changed')
    mounted.restart()
    for volume in volumes:
        assert (volume / '.snapshots/one/name').read_text() == volume.name
        assert (volume / 'name').read_text() == 'changed'
    assert len({os.stat(volume / 'name').st_ino for volume in volumes}) == len(volumes)
