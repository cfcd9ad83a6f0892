"""Snapshots as directories: taking, reading, renaming, deleting and getting back, with plain commands."""

import errno
import os
import stat
from pathlib import Path

import pytest

from tests.support.mounted import IS_ROOT, Mount, names, refused, run, shell
from tests.support.sample import describe, differences, make_sample


def entries(path: Path) -> list[str]:
    return sorted(os.listdir(path))


def test_a_snapshot_holds_every_write_before_it(home: Path):
    """P6, with bytes that were in the buffers a moment before, of a file that is still open."""
    with open(home / 'file', 'wb', buffering=0) as file:
        for number in range(20):
            file.write(b'%4d' % number * 10_000)
            os.mkdir(home / f'.snapshots/{number}')
        os.ftruncate(file.fileno(), 100)
    for number in range(20):
        past = (home / f'.snapshots/{number}/file').read_bytes()
        assert past == b''.join(b'%4d' % one * 10_000 for one in range(number + 1))
    assert os.stat(home / 'file').st_size == 100


def test_a_snapshot_is_the_whole_tree_and_does_not_change(mounted: Mount):
    home = mounted.path / 'home'
    (home / 'tree').mkdir()
    make_sample(home / 'tree')
    before = describe(home / 'tree')
    (home / '.snapshots/then').mkdir()
    shell('rm -r "tree/directory 1" tree/odd/sparse; chmod 777 tree/odd; echo x > "tree/hard link"', home)
    shell('setfattr -x user.long tree/odd/link-target; touch -h tree/symlink; mv tree/odd elsewhere', home)
    for _ in range(2):
        assert describe(home / '.snapshots/then/tree') == before
        mounted.restart()
    run('cp', '-a', home / '.snapshots/then/tree', home / 'back')
    assert not differences(home / '.snapshots/then/tree', home / 'back')


def test_a_renamed_directory_keeps_its_past(home: Path):
    shell('mkdir -p a/b; echo one > a/b/file; mkdir .snapshots/one', home)
    shell('mv a/b moved; echo two > moved/file; rmdir a; mkdir .snapshots/two', home)
    shell('mv moved again; echo three > again/file; mkdir young', home)
    assert (home / 'again/.snapshots/one/file').read_text() == 'one\n'
    assert (home / 'again/.snapshots/two/file').read_text() == 'two\n'
    assert shell('cd .snapshots/one && cat file && ls ..', home / 'again').split() == ['one', 'one', 'two']
    assert entries(home / 'again/.snapshots') == ['one', 'two']
    assert entries(home / 'young/.snapshots') == []
    refused(errno.ENOENT, os.stat, home / 'young/.snapshots/one')
    assert entries(home / '.snapshots/one/a/b') == ['file']
    assert entries(home / '.snapshots/two') == ['moved']
    refused(errno.ENOENT, os.stat, home / '.snapshots/one/.snapshots')
    refused(errno.ENOTDIR, os.stat, home / 'again/file/.snapshots')


def modifications(past: Path, live: Path) -> list[tuple]:
    """Every way to change something inside of a snapshot, as (function, arguments)."""
    file, directory, link = past / 'file', past / 'directory', past / 'link'
    new = past / 'new'
    return [
        (os.open, file, os.O_WRONLY),
        (os.open, file, os.O_RDWR | os.O_APPEND),
        (os.open, file, os.O_RDONLY | os.O_TRUNC),
        (os.open, new, os.O_CREAT | os.O_WRONLY),
        (os.truncate, file, 0),
        (os.truncate, file, 1 << 40),
        (os.unlink, file),
        (os.unlink, link),
        (os.mkdir, new),
        (os.rmdir, directory),
        (os.rmdir, directory / 'below'),
        (os.symlink, 'target', new),
        (os.link, file, new),
        (os.link, live / 'file', new),
        (os.mkfifo, new),
        (os.mknod, new, stat.S_IFREG | 0o600),
        (os.rename, file, new),
        (os.rename, file, link),
        (os.chmod, file, 0o600),
        (os.chmod, past, 0o700),
        (os.chown, file, os.getuid(), os.getgid()),
        (os.lchown, link, os.getuid(), os.getgid()),
        (os.utime, file),
        (os.setxattr, file, 'user.name', b'value'),
        (os.removexattr, file, 'user.there'),
        (os.setxattr, past, 'user.name', b'value'),
    ]


def test_inside_a_snapshot_nothing_can_be_changed(home: Path):
    shell(
        'echo text > file; mkdir -p directory/below; ln -s file link; setfattr -n user.there -v x file', home
    )
    (home / '.snapshots/then').mkdir()
    past = home / '.snapshots/then'
    before = describe(past)
    for call, *arguments in modifications(past, home):
        refused(errno.EROFS, call, *arguments)
    refused(errno.EROFS, os.rename, home / 'file', past / 'file')
    refused(errno.EROFS, os.rename, past / 'file', home / 'file')
    for script in ('rm -rf .snapshots/then/directory', 'rm -rf .snapshots/then', 'rm -rf .snapshots'):
        shell(script, home, fails=True)
    assert describe(past) == before
    assert entries(home / '.snapshots') == ['then']


def test_in_the_directory_of_snapshots_only_snapshots_can_be_made(home: Path):
    shell('touch file; mkdir deep other; mkdir .snapshots/one', home)
    special = home / '.snapshots'
    deep = errno.EPERM if IS_ROOT else errno.EACCES  # below a deeper directory nobody has the w bit
    for name, denied in (('.snapshots', errno.EPERM), ('deep/.snapshots', deep)):
        refused(denied, os.open, home / name / 'file', os.O_CREAT | os.O_WRONLY)
        refused(denied, os.symlink, 'x', home / name / 'x')
        refused(denied, os.link, home / 'file', home / name / 'x')
        refused(denied, os.rename, home / 'file', home / name / 'x')
        refused(denied, os.rename, home / 'other', home / name / 'x')
        refused(denied, os.rename, home / name, home / 'x')
        refused(errno.EPERM, os.rmdir, home / name)
    refused(deep, os.mkdir, home / 'deep/.snapshots/x')
    refused(deep, os.rmdir, home / 'deep/.snapshots/one')
    refused(deep, os.rename, home / 'deep/.snapshots/one', home / 'deep/.snapshots/two')
    refused(errno.EEXIST, os.mkdir, special)
    refused(errno.EEXIST, os.mkdir, special / 'one')
    refused(errno.ENOENT, os.rmdir, special / 'two')
    refused(errno.EEXIST, os.open, home / 'deep/.snapshots', os.O_CREAT | os.O_EXCL | os.O_WRONLY)


def test_recursive_programs_do_not_stumble_into_the_past(home: Path, tmp_path: Path):
    shell('mkdir -p a/b/c; echo x > a/b/c/file; mkdir .snapshots/one .snapshots/two', home)
    os.stat(home / 'a/b/.snapshots/one/c/file')
    assert run('find', home, '-name', '.snap*') == ''
    assert len(run('find', home).splitlines()) == 5
    assert run('du', '-ax', home).count('file') == 1
    assert shell('tar -cf - . | tar -tf -', home).count('file') == 1
    assert run('grep', '-rl', 'x', home).count('file') == 1
    run('rsync', '-a', f'{home}/', tmp_path / 'copy')
    run('cp', '-a', home, tmp_path / 'second')
    for copy in ('copy', 'second'):
        assert not (tmp_path / copy / '.snapshots').exists()
    (tmp_path / 'empty').mkdir()
    run('rsync', '-a', '--delete', f'{tmp_path}/empty/', f'{home}/')
    assert entries(home) == []
    shell('cp -a .snapshots/one/. .; rm -rf ./* ./.[!.]* || true', home)
    run('find', home, '-mindepth', '1', '-delete')
    assert entries(home) == []
    assert entries(home / '.snapshots') == ['one', 'two']
    assert (home / '.snapshots/one/a/b/c/file').read_text() == 'x\n'


def test_renaming_a_snapshot(home: Path):
    shell('mkdir d; echo x > d/file; mkdir .snapshots/one .snapshots/two', home)
    number = os.stat(home / '.snapshots/one/d').st_ino
    fd = os.open(home / '.snapshots/one/d/file', os.O_RDONLY)
    os.stat(home / 'd/.snapshots/one/file')
    run('mv', home / '.snapshots/one', home / '.snapshots/renamed')
    assert os.stat(home / '.snapshots/renamed/d').st_ino == number
    assert (home / 'd/.snapshots/renamed/file').read_text() == 'x\n'
    refused(errno.ENOENT, os.stat, home / '.snapshots/one')
    refused(errno.ENOENT, os.stat, home / 'd/.snapshots/one/file')
    refused(errno.EEXIST, os.rename, home / '.snapshots/renamed', home / '.snapshots/two')
    assert os.read(fd, 5) == b'x\n'
    os.close(fd)
    assert entries(home / '.snapshots') == ['renamed', 'two']


def trash_of(mount: Mount) -> list[str]:
    return entries(mount.path / '.snapfs/trash')


def test_deleting_is_a_request_and_can_be_taken_back(mounted: Mount):
    home, trash = mounted.path / 'home', mounted.path / '.snapfs/trash'
    shell('mkdir d; echo precious > d/file; mkdir .snapshots/monday', home)
    number = os.stat(home / '.snapshots/monday/d/file').st_ino
    fd = os.open(home / '.snapshots/monday/d/file', os.O_RDONLY)
    os.stat(home / 'd/.snapshots/monday/file')
    (home / 'd/file').write_text('changed')
    os.rmdir(home / '.snapshots/monday')
    refused(errno.ENOENT, os.stat, home / '.snapshots/monday')
    refused(errno.ENOENT, os.stat, home / 'd/.snapshots/monday')
    assert os.read(fd, 20) == b'precious\n', 'who reads it goes on reading'
    os.close(fd)
    mounted.restart()
    (request,) = trash_of(mounted)
    text = (trash / request / 'request').read_text()
    assert 'what: snapshot home@monday' in text
    assert (trash / request / 'tree/d/file').read_text() == 'precious\n'
    refused(errno.EROFS, os.unlink, trash / request / 'tree/d/file')
    assert entries(mounted.path / '.snapfs/pending')[:1] == [request]
    refused(errno.EPERM, os.rmdir, trash / request)
    (mounted.path / 'other').mkdir()
    refused(errno.EXDEV, os.rename, trash / request, mounted.path / 'other/.snapshots/monday')
    shell(f'mv .snapfs/trash/{request} home/.snapshots/back', mounted.path)
    assert trash_of(mounted) == []
    assert (home / '.snapshots/back/d/file').read_text() == 'precious\n'
    assert os.stat(home / 'd/.snapshots/back/file').st_ino == number
    mounted.restart()
    assert (home / '.snapshots/back/d/file').read_text() == 'precious\n'


def test_a_deleted_volume_can_be_taken_back(mounted: Mount):
    path = mounted.path
    (path / 'home/file').write_text('text')
    refused(errno.ENOTEMPTY, os.rmdir, path / 'home')
    os.unlink(path / 'home/file')
    (path / 'home/.snapshots/one').mkdir()
    refused(errno.ENOTEMPTY, os.rmdir, path / 'home')
    os.rmdir(path / 'home/.snapshots/one')
    os.rmdir(path / 'home')
    refused(errno.ENOENT, os.stat, path / 'home')
    (request,) = (
        one
        for one in trash_of(mounted)
        if 'volume home' in (path / '.snapfs/trash' / one / 'request').read_text()
    )
    (path / 'home').mkdir()
    refused(errno.EEXIST, os.rename, path / '.snapfs/trash' / request, path / 'home')
    shell(f'mv .snapfs/trash/{request} again; touch again/file', path)
    mounted.restart()
    assert entries(path) == ['again', 'home']
    assert entries(path / 'again') == ['file']


def test_a_held_snapshot_is_busy(mounted: Mount):
    home = mounted.path / 'home'
    (home / '.snapshots/one').mkdir()
    mounted.snapfs('hold', 'add', 'home@one', 'audit', '--why', 'a test')
    mounted.snapfs('hold', 'add', 'home@one', 'second')
    refused(errno.EBUSY, os.rmdir, home / '.snapshots/one')
    assert 'audit' in mounted.snapfs('snapshot', 'delete', 'home@one', fails=True)
    mounted.snapfs('hold', 'release', 'home@one', 'audit')
    mounted.restart()
    refused(errno.EBUSY, os.rmdir, home / '.snapshots/one')
    mounted.snapfs('hold', 'release', 'home@one', 'second')
    os.rmdir(home / '.snapshots/one')
    assert entries(home / '.snapshots') == []


def test_standing_in_a_snapshot_while_it_is_deleted(home: Path):
    shell('mkdir d; echo x > d/file; mkdir .snapshots/one', home)
    os.chdir(home / '.snapshots/one/d')
    os.rmdir(home / '.snapshots/one')
    assert entries(Path('.')) == ['file']
    assert Path('file').read_text() == 'x\n'
    refused(errno.EROFS, os.unlink, 'file')


def test_names_of_snapshots(home: Path):
    special = os.fsencode(home / '.snapshots')
    wanted = [b'a b', b'\xff\xfe', 'ä'.encode(), b'n' * 255, b'.hidden', b'-rf', b'new\nline']
    for name in wanted:
        try:
            os.mkdir(special + b'/' + name)
        except OSError as error:
            assert error.errno == errno.EINVAL, name  # a name no command line could take
            continue
        assert os.listdir(special) == [name]
        os.rmdir(special + b'/' + name)


@pytest.mark.parametrize('name', ['.snapshots', '.snapfs'])
def test_names_that_mean_something_else_cannot_be_used(mounted: Mount, name: str):
    home = mounted.path / 'home'
    (home / 'file').touch()
    (home / 'directory').mkdir()
    for below in (mounted.path, home):
        refused_with = errno.EEXIST if (below / name).exists() else errno.EPERM
        refused(refused_with, os.mkdir, below / name)
    # What is a directory already, the kernel itself does not replace by a file.
    refused(errno.EISDIR if name == '.snapshots' else errno.EPERM, os.rename, home / 'file', home / name)
    refused(errno.EPERM, os.rename, home / 'directory', home / name)
    assert names(home) == ['directory', 'file']
    assert names(mounted.path) == ['home']
