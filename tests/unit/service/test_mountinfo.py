"""mountinfo as the kernel writes it, and finding one's way in it."""

import os

from snapfs.service import mounts

TEXT = rb"""27 1 254:0 / / rw,relatime - ext4 /dev/vda rw,discard
40 27 0:40 / /mnt/a\040b rw,nosuid shared:3 master:1 - fuse.snapfs to\134ken,\303\251 rw,user_id=1000
41 27 0:41 / /mnt/a\040b/c ro - fuse.sshfs x rw,user_id=0
42 27 0:42 / /mnt/a\040b rw - fuse.snapfs later rw,user_id=x
nonsense
43 27 0:43 / /mnt/short - fuse
"""


def test_fields_and_escapes():
    found = mounts.parse_mountinfo(TEXT)
    assert [mount.device for mount in found] == ['254:0', '0:40', '0:41', '0:42']
    first = found[1]
    assert (first.mountpoint, first.source, first.options) == ('/mnt/a b', 'to\\ken,é', ('rw', 'nosuid'))
    assert (first.is_snapfs, first.owner) == (True, 1000)
    assert (found[2].is_snapfs, found[2].owner) == (False, 0)
    assert found[3].owner is None


def test_the_topmost_mount_is_found():
    found = mounts.parse_mountinfo(TEXT)
    assert mounts.mount_at('/mnt/a b', found).device == '0:42'
    assert mounts.mount_at('/mnt', found) is None


def test_the_enclosing_mount_is_the_longest_and_latest():
    found = mounts.parse_mountinfo(TEXT)
    assert mounts.enclosing_mount('/mnt/a b/x', found).device == '0:42'
    assert mounts.enclosing_mount('/mnt/a b/c/d', found).device == '0:41'
    assert mounts.enclosing_mount('/mnt/a bc', found).device == '254:0'
    assert mounts.enclosing_mount('/x', []) is None


def test_this_machine_has_a_root():
    assert mounts.enclosing_mount('/', mounts.read_mounts()).mountpoint == '/'


def test_absolute_resolves_links_but_not_the_end(tmp_path, monkeypatch):
    (tmp_path / 'real').mkdir()
    (tmp_path / 'link').symlink_to('real')
    monkeypatch.chdir(tmp_path)
    assert mounts.absolute('link') == tmp_path / 'real'
    assert mounts.absolute('link/x/../y') == tmp_path / 'real' / 'y'
    assert mounts.absolute(os.fspath(tmp_path / 'none') + '/') == tmp_path / 'none'
    assert str(mounts.absolute('/')) == '/'
