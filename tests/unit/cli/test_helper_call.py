"""How mount(8) calls its helper, and the exit codes it wants."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapfs.cli import main as cli_main
from snapfs.cli import mount_helper
from snapfs.cli.mount_helper import HelperCall, parse_call
from snapfs.errors import Invalid
from snapfs.service import mounting


def test_calls_as_mount_makes_them():
    assert parse_call(['src', '/m', '-o', 'rw,noatime']) == HelperCall(
        'src', '/m', ('rw,noatime',), False, False
    )
    assert parse_call(['src', '/m', '-sfnv', '-o', 'a', '-ob', '-t', 'fuse.snapfs', '-N', '5']) == HelperCall(
        'src', '/m', ('a', 'b'), True, True
    )
    assert parse_call(['-r', '-', '/m']) == HelperCall('-', '/m', ('ro',), False, False)


@pytest.mark.parametrize('words', [[], ['a'], ['a', 'b', 'c'], ['a', 'b', '-o'], ['a', 'b', '-x']])
def test_wrong_calls(words, capsys):
    with pytest.raises(Invalid):
        parse_call(words)
    assert mount_helper.main(words) == mount_helper.EXIT_USAGE
    error = capsys.readouterr().err
    assert error.startswith('mount.fuse.snapfs: ') and error.count('\n') == 1


@given(st.lists(st.text(max_size=5), max_size=6))
def test_any_words_are_a_call_or_invalid(words):
    try:
        parse_call(words)
    except Invalid:
        pass


@pytest.fixture
def planned(monkeypatch):
    seen = []

    def mount(request):
        seen.append(request)
        return 0

    monkeypatch.setattr(mounting, 'mount', mount)
    return seen


def test_the_source_is_opaque_and_shown_as_given(planned, tmp_path):
    assert mount_helper.main(['my,token', '/m', '-o', f'source={tmp_path},volume=home,ro']) == 0
    request = planned[0]
    assert (request.fsname, request.store, request.volume) == ('my,token', tmp_path, 'home')
    assert request.options.ro


def test_without_an_option_the_source_is_the_store(planned, tmp_path):
    assert mount_helper.main([f'{tmp_path}:home', '/m', '-o', 'rw']) == 0
    assert (planned[0].store, planned[0].volume, planned[0].fsname) == (tmp_path, 'home', f'{tmp_path}:home')


def test_two_volumes_contradict(planned, tmp_path, capsys):
    assert mount_helper.main([f'{tmp_path}:home', '/m', '-o', 'volume=attic']) == mount_helper.EXIT_USAGE
    assert 'two volumes' in capsys.readouterr().err


def test_nofail_is_silent_about_what_does_not_exist(planned, tmp_path, capsys):
    assert mount_helper.main(['t', '/m', '-o', f'source={tmp_path}/none,nofail']) == 0
    assert not planned and capsys.readouterr().err == ''


def test_a_fake_mount_mounts_nothing(planned, tmp_path):
    assert mount_helper.main(['t', '/m', '-f', '-o', f'source={tmp_path}']) == 0
    assert not planned


def test_failures_have_the_code_of_mount(tmp_path, capsys):
    assert mount_helper.main(['t', '/m', '-o', f'source={tmp_path}/none']) == mount_helper.EXIT_USAGE
    assert capsys.readouterr().err == (
        f'mount.fuse.snapfs: there is no store at {tmp_path}/none. snapfs init {tmp_path}/none makes one.\n'
    )


def test_the_words_of_mount_fuse3_reach_the_helper(planned, tmp_path):
    """Where our helper is not installed, mount.fuse3 runs `snapfs SOURCE MOUNTPOINT -o OPTIONS`."""
    assert cli_main.main(['t', '/m', '-o', f'source={tmp_path},dev,suid']) == 0
    assert (planned[0].fsname, planned[0].options.nosuid) == ('t', False)
