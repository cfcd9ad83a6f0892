"""An empty path, as a script with an unset variable gives it, never quietly means some other place."""

from __future__ import annotations

import pytest

from snapfs.cli import mount_helper


@pytest.mark.parametrize(
    ('words', 'word'),
    [
        (['init', ''], 'STORE is empty'),
        (['mount', '', '/mnt'], 'SOURCE is empty'),
        (['mount', '/none', ''], 'MOUNTPOINT is empty'),
        (['umount', ''], 'MOUNTPOINT is empty'),
        (['volume', 'create', 'a', '--store', ''], '--store is empty'),
        (['snapshot', 'list', '--store='], '--store is empty'),
        (['status', '--store', ''], '--store is empty'),
        (['recover', 'home@monday', '--donors', ''], '--donors is empty'),
        (['mount', '/none', '/mnt', '-o', 'source='], 'source has no usable value'),
        (['mount', '/none', '/mnt', '-o', 'volume='], 'volume has no usable value'),
    ],
)
def test_an_empty_path_is_refused(cli, store, monkeypatch, words, word):
    monkeypatch.chdir(store)  # where the empty path would lead
    code, out, err = cli(*words)
    assert (code, out) == (2, ''), err
    assert word in err and err.count('\n') == 1
    assert cli('volume', 'list')[1].split()[-5:-4] != ['a']


@pytest.mark.parametrize(
    'words',
    [
        ['', '{mnt}'],
        ['{store}', ''],
        ['token', '', '-o', 'source={store}'],
        ['', '{mnt}', '-o', 'volume=home'],
    ],
)
def test_the_mount_helper_takes_no_empty_path(cli, store, tmp_path, monkeypatch, capsysbinary, words):
    (tmp_path / 'mnt').mkdir()
    monkeypatch.chdir(store)
    words = [word.format(store=store, mnt=tmp_path / 'mnt') for word in words]
    assert mount_helper.main(words) == mount_helper.EXIT_USAGE
    assert b'is empty' in capsysbinary.readouterr().err


def test_an_empty_variable_is_as_good_as_none(cli, monkeypatch):
    monkeypatch.setenv('SNAPFS_STORE', '')
    code, _out, err = cli('volume', 'list')
    assert code == 2 and 'which store?' in err
