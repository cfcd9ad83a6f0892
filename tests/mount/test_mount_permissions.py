"""Other users on a mount with allow_other: what is somebody's is his, in the present and in the past."""

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.mounted import Mount, as_user, names, refused, run, shell

OWNER, OTHER, THIRD = 41001, 41002, 41003

pytestmark = pytest.mark.usefixtures('as_root')


def owner(script: str, cwd: Path, fails: bool = False) -> str:
    return as_user(script, cwd, OWNER, OWNER, fails=fails)


def other(script: str, cwd: Path, fails: bool = False) -> str:
    return as_user(script, cwd, OTHER, OTHER, fails=fails)


@pytest.fixture
def theirs(home: Path) -> Path:
    """A volume of OWNER, that everybody may enter."""
    os.chown(home, OWNER, OWNER)
    return home


# --- the past --------------------------------------------------------------------------------------------
def test_a_snapshot_keeps_the_permissions_of_its_time(theirs: Path):
    """Closing a file closes it from now on: what everybody could read then is in the snapshot as it was.
    Closing the volume's own directory closes its past as well.
    """
    owner('echo open > file; mkdir -m 755 dir; echo open > dir/file; chmod 644 file dir/file', theirs)
    owner('echo closed > secret; chmod 600 secret; mkdir .snapshots/then', theirs)
    owner('chmod 600 file; chmod 644 secret; chmod 700 dir', theirs)
    other('cat file || cat dir/file || ls dir/.snapshots', theirs, fails=True)
    assert other('cat .snapshots/then/file .snapshots/then/dir/file', theirs) == 'open\nopen\n'
    other('cat .snapshots/then/secret', theirs, fails=True)
    os.chmod(theirs, 0o700)
    other('cat .snapshots/then/file', theirs.parent, fails=True)
    # By its name: other volumes of this mount have a past, too.
    assert (
        other(f'cat {theirs.name}/.snapshots/then/file 2>/dev/null || echo closed', theirs.parent)
        == 'closed\n'
    )


def test_a_directory_that_was_out_of_reach_stays_so_in_the_past(theirs: Path):
    """`.snapshots` finds a directory by its number, wherever it stands now. What lay below a closed directory
    then must not open because it lies below an open one now.
    """
    owner('mkdir -m 700 closed; mkdir -m 755 closed/dir; echo secret > closed/dir/file', theirs)
    owner('mkdir .snapshots/then; rm closed/dir/file; mv closed/dir open', theirs)
    other('ls open', theirs)
    other('cat open/.snapshots/then/file', theirs, fails=True)
    other('ls open/.snapshots/then', theirs, fails=True)
    other('cd open/.snapshots; cat then/file', theirs, fails=True)
    other('cat .snapshots/then/closed/dir/file', theirs, fails=True)
    assert owner('cat open/.snapshots/then/file', theirs) == 'secret\n'
    other('cat open/.snapshots/then/file', theirs, fails=True)  # also when somebody else was just there
    assert shell('cat open/.snapshots/then/file', theirs) == 'secret\n'
    owner('mkdir .snapshots/now', theirs)
    other('ls open/.snapshots/now', theirs)


def test_groups_count_on_the_way_into_the_past(theirs: Path):
    owner('mkdir -m 710 closed; mkdir -m 755 closed/dir; echo secret > closed/dir/file', theirs)
    os.chown(theirs / 'closed', OWNER, THIRD)
    owner('mkdir .snapshots/then; mv closed/dir open', theirs)
    read = 'cat open/.snapshots/then/file'
    other(read, theirs, fails=True)
    as_user(read, theirs, OTHER, THIRD)
    shell(read, theirs, user=OTHER, group=OTHER, extra_groups=[7, THIRD])
    other(read, theirs, fails=True)


# --- snapshots, volumes, trash ---------------------------------------------------------------------------
def test_only_who_may_write_in_a_volume_decides_about_its_snapshots(theirs: Path):
    owner('mkdir .snapshots/one; mkdir -m 777 all', theirs)
    for script in (
        'mkdir .snapshots/two',
        'rmdir .snapshots/one',
        'mv .snapshots/one .snapshots/uno',
        'mkdir all/.snapshots/two',
        'rmdir all/.snapshots/one',
        'mv all/.snapshots/one all/.snapshots/uno',
        'chmod 777 .snapshots',
        'chown 41002 .snapshots',
        'setfattr -n user.a -v b .snapshots',
        'touch .snapshots/file',
        'mv all .snapshots/all',
        'ln -s x .snapshots/link',
    ):
        other(script, theirs, fails=True)
    assert names(theirs / '.snapshots') == ['one']


def test_in_a_sticky_volume_snapshots_belong_to_its_owner(theirs: Path):
    """As in /tmp: all may make files, and nobody may touch what is another's."""
    os.chmod(theirs, 0o1777)
    owner('mkdir .snapshots/one', theirs)
    other('touch file; mkdir .snapshots/two', theirs)
    for script in ('rmdir .snapshots/one', 'mv .snapshots/one .snapshots/uno', 'rmdir .snapshots/two'):
        other(script, theirs, fails=True)
    as_user('rm -f file', theirs, THIRD, THIRD, fails=True)
    owner('rmdir .snapshots/two', theirs)
    assert names(theirs / '.snapshots') == ['one']


def test_volumes_and_trash_are_closed_to_others(mounted: Mount):
    mount = mounted.path
    home = mount / 'home'
    os.chown(home, OWNER, OWNER)
    owner('echo secret > file; chmod 644 file; mkdir .snapshots/one; rmdir .snapshots/one', home)
    (number,) = names(mount / '.snapfs/trash')
    for script in (
        'mkdir volume',
        'rmdir home',
        'mv home house',
        f'ls .snapfs/trash/{number}',
        f'cat .snapfs/trash/{number}/request',
        f'cat .snapfs/trash/{number}/tree/file',
        f'mv .snapfs/trash/{number} home/.snapshots/mine',
        f'mv .snapfs/trash/{number} .snapfs/trash/99',
        f'mv .snapfs/trash/{number} volume',
        f'rmdir .snapfs/trash/{number}',
        f'cat .snapfs/pending/{number}',
        'mkdir .snapfs/trash/x',
        'touch .snapfs/trash/x',
        'touch .snapfs/health',
        'chmod 777 .snapfs/trash',
    ):
        other(script, mount, fails=True)
    assert 'writable' in other('cat .snapfs/health; ls .snapfs/trash', mount)
    mine = mount / 'mine'
    mine.mkdir()
    os.chown(mine, OTHER, OTHER)
    other(f'mv .snapfs/trash/{number} mine/.snapshots/stolen', mount, fails=True)
    assert names(mount / '.snapfs/trash') == [number]
    owner(f'cat .snapfs/trash/{number}/tree/file; mv .snapfs/trash/{number} home/.snapshots/again', mount)


def test_the_store_and_its_socket_are_closed_to_others(mounted: Mount):
    (mounted.path / 'home/.snapshots/one').mkdir()
    for word in ('ls', 'cat', 'stat'):
        for name in ('superblock', 'catalog.sqlite', 'control.sock', 'daemon.log', 'audit.log'):
            other(f'{word} store/{name}', mounted.place, fails=True)
    os.chmod(mounted.store, 0o711)  # the socket alone must be enough
    try:
        connect = 'import socket; socket.socket(socket.AF_UNIX).connect("store/control.sock")'
        assert 'PermissionError' in other(f"python3 -c '{connect}'", mounted.place, fails=True)
        for name in ('catalog.sqlite', 'daemon.log', 'reserve', 'packs', 'journal/0'):
            other(f'ls store/{name}/ || cat store/{name}', mounted.place, fails=True)
    finally:
        os.chmod(mounted.store, 0o700)
    assert names(mounted.path / 'home/.snapshots') == ['one']


# --- files -----------------------------------------------------------------------------------------------
def test_a_file_that_others_may_write_gives_no_rights(theirs: Path):
    """A write, a truncation or a change of the owner takes setuid, setgid and file capabilities away."""
    capability = bytes.fromhex('0100000202000000000000000000000000000000')
    for script in (
        'echo x >> program',
        ': > program',
        'truncate -s 1 program',
        'dd if=/dev/zero of=program count=1',
    ):
        path = theirs / 'program'
        path.write_bytes(b'#!/bin/sh\n')
        path.chmod(0o6777)
        os.setxattr(path, 'security.capability', capability)
        other(f'{script}; echo y >> program', theirs)
        assert stat.S_IMODE(path.stat().st_mode) == 0o777, script
        refused(errno.ENODATA, os.getxattr, path, 'security.capability')
        path.unlink()


def test_a_file_made_in_a_directory_of_a_group_gives_no_rights_of_the_group(theirs: Path):
    (theirs / 'shared').mkdir()
    os.chown(theirs / 'shared', OWNER, THIRD)
    (theirs / 'shared').chmod(0o2777)
    make = 'import os; os.umask(0); os.close(os.open("shared/tool", os.O_CREAT | os.O_WRONLY, 0o2775))'
    other(f"python3 -c '{make}'", theirs)
    status = (theirs / 'shared/tool').stat()
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (OTHER, THIRD, 0o775)
    other('chmod 2775 shared/tool', theirs)
    assert stat.S_IMODE((theirs / 'shared/tool').stat().st_mode) == 0o775


def test_attributes_that_are_not_the_users(theirs: Path):
    (theirs / 'file').write_text('x')
    (theirs / 'file').chmod(0o666)
    (theirs / 'sticky').mkdir()
    (theirs / 'sticky').chmod(0o1777)
    for script in (
        'setfattr -n trusted.a -v b file',
        'setfattr -n security.a -v b file',
        'setfattr -n security.capability -v 0x0100000202000000000000000000000000000000 file',
        'setfattr -n system.posix_acl_access -v 0x0200 file',
        'setfattr -n user.a -v b sticky',
        'setfattr -n user.a -v b .snapshots',
        'chmod 777 file',
        'chown 41002 file',
        'chgrp 41002 file',
        'touch -d @5 file',
    ):
        other(script, theirs, fails=True)
    os.setxattr(theirs / 'file', 'trusted.hidden', b'value')
    assert 'value' not in other('getfattr -d -m - file; getfattr -n trusted.hidden file || :', theirs)
    other('setfattr -n user.a -v b file', theirs)  # whoever may write a file may do that


def test_links_lead_nowhere_new(theirs: Path, place: Path):
    owner(
        'echo secret > secret; chmod 600 secret; mkdir -m 777 all; mkdir -m 700 closed; echo x > closed/x',
        theirs,
    )
    for script in (
        'ln -s ../secret all/link; cat all/link',
        'ln -s ../closed all/dir; cat all/dir/x',
        'ln -s ../.snapfs/trash all/trash; mkdir all/trash/x',
        'ln -s .. all/up; echo z > all/up/new',
        'echo z > secret',
        'rm -f secret',
        'mv secret all/mine',
        'mv closed all/',
        'cat /proc/self/cwd/closed/x',
        'unshare -Ur cat secret',
        'unshare -Ur chown 0 secret',
    ):
        other(script, theirs, fails=True)
    assert names(theirs) == ['all', 'closed', 'secret']


def test_without_allow_other_nobody_else_sees_anything(place: Path, new_mount: Callable[..., Mount]):
    mount = new_mount(place, 'suid')
    mount.start()
    (mount.path / 'home').mkdir(mode=0o777)
    for script in ('ls mnt', 'stat mnt/home', 'cat mnt/.snapfs/health', 'touch mnt/home/x'):
        other(script, place, fails=True)


def test_mounted_by_hand_setuid_programs_and_devices_do_nothing(place: Path, new_mount: Callable[..., Mount]):
    mount = new_mount(place, 'allow_other,default_permissions')
    mount.start()
    options = run('findmnt', '-no', 'OPTIONS', mount.path)
    assert {'nosuid', 'nodev', 'default_permissions', 'allow_other'} <= set(options.strip().split(','))
    home = mount.path / 'home'
    home.mkdir()
    home.chmod(0o755)
    shell('cp /usr/bin/id id; chmod 4755 id', home)
    assert other('./id -u', home) == f'{OTHER}\n'
