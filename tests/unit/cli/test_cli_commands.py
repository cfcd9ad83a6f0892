"""The commands from the words of a person to what is printed, over a fake engine."""

import json
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapfs.cli import main as cli_main
from snapfs.cli import output
from snapfs.errors import Held, Invalid, Refused


def parsed(result):
    code, out, err = result
    assert (code, err) == (0, '')
    return json.loads(out)


def test_a_life_of_a_snapshot(cli, store):
    assert cli('snapshot', 'create', 'home@one') == (0, '', '')
    code, out, _err = cli('snapshot', 'list')
    assert code == 0 and out.splitlines()[1].startswith('home@one')
    assert cli('snapshot', 'rename', 'home@one', 'uno') == (0, '', '')
    assert parsed(cli('snapshot', 'show', 'home@uno', '--json'))['name'] == 'uno'
    assert 'home@uno' in cli('snapshot', 'show', 'home@uno')[1]
    code, out, _err = cli('snapshot', 'delete', 'home@uno')
    number = parsed(cli('snapshot', 'list', '--deleted', '--json'))[0]['number']
    assert (
        out == f'request {number}: home@uno is to be deleted; back with: snapfs snapshot undelete {number}\n'
    )
    assert 'home@uno' in cli('snapshot', 'list', '--deleted')[1]
    assert parsed(cli('snapshot', 'list', '--deleted', 'attic', '--json')) == []
    assert cli('snapshot', 'undelete', number, '--name', 'back') == (0, '', '')
    assert parsed(cli('snapshot', 'list', 'home', '--json'))[0]['snapshot'] == 'home@back'


def test_volumes(cli, store):
    assert cli('volume', 'create', 'attic', '--mode', '700') == (0, '', '')
    assert cli('volume', 'rename', 'attic', 'loft') == (0, '', '')
    cli('snapshot', 'create', 'home@one')
    assert cli('volume', 'clone', 'home@one', 'copy') == (0, '', '')
    assert cli('volume', 'rollback', 'home@one')[1] == (
        'home is now as in home@one; before it was home@before-one\n'
    )
    assert [one['name'] for one in parsed(cli('volume', 'list', '--json'))] == ['copy', 'home', 'loft']
    assert cli('volume', 'list')[1].splitlines()[0].split() == ['volume', 'snapshots', 'created']
    assert 'volume delete' not in cli('volume', 'delete', 'loft')[1]


def test_holds(cli, store):
    cli('snapshot', 'create', 'home@one')
    added = parsed(cli('hold', 'add', 'home@one', 'audit', '--why', 'tax', '--until', '2w', '--json'))
    assert added['until_ns'] > 0
    assert cli('hold', 'list', 'home@one')[1].split()[5] == 'audit'
    code, _out, err = cli('snapshot', 'delete', 'home@one')
    assert (code, err) == (Held.exit_code, 'snapfs: home@one is held\n')
    assert 'audit' in cli('snapshot', 'show', 'home@one')[1]
    assert cli('hold', 'release', 'home@one', 'audit') == (0, '', '')
    assert cli('hold', 'list', 'home@one') == (0, 'It is not held.\n', '')


def test_init_and_status(cli, tmp_path):
    assert parsed(cli('init', 'there', '--json')) == {'store': str(tmp_path / 'there')}
    status = parsed(cli('status', '--store', 'there', '--json'))
    assert (status['daemon'], status['epoch'], status['counters']) == (None, 7, {'device_syncs': 3})
    out = cli('status', '--store', 'there')[1]
    assert 'counters.device_syncs' in out and 'none' in out
    assert cli('volume', 'list', '--store', 'there')[1].startswith('There are no volumes')
    assert cli('snapshot', 'list', '--store', 'there')[1] == 'There are no snapshots.\n'
    assert cli('snapshot', 'list', '--deleted', '--store', 'there')[1] == 'Nothing is to be deleted.\n'


@pytest.mark.parametrize(
    ('words', 'code', 'word'),
    [
        (['frobnicate'], 2, "No such command 'frobnicate'"),
        (['volume', 'frobnicate'], 2, 'No such command'),
        (['volume'], 2, 'Missing command'),
        ([], 2, 'Missing command'),
        (['--frob'], 2, 'No such option'),
        (['volume', 'create'], 2, "Missing argument 'NAME'. Try: snapfs volume create --help"),
        (['volume', 'create', 'a', 'b'], 2, 'unexpected extra argument'),
        (['volume', 'create', 'a', '--mode', '9'], 2, 'no octal mode'),
        (['volume', 'create', 'a', '--mode', '77777'], 2, 'no octal mode'),
        (['volume', 'create', 'a@b'], 2, '@ and :'),
        (['volume', 'delete', 'none'], 3, "there is no volume 'none'"),
        (['volume', 'create', 'home'], 3, 'File exists'),
        (['snapshot', 'create', 'home'], 2, 'VOLUME@NAME'),
        (['snapshot', 'show', 'home@x'], 3, 'there is no snapshot home@x'),
        (['snapshot', 'undelete', '77'], 2, 'nothing that was deleted'),
        (['hold', 'add', 'home@x', 'h', '--until', 'soon'], 2, 'no date'),
        (['hold', 'add', 'home@x', 'h', '--until', '2001-01-01'], 2, 'past already'),
        (['hold', 'add', 'home@x', 'h', '--until', '99999999999999d'], 2, 'too far'),
        (['status', '--store', '/none'], 2, 'snapfs init /none makes one'),
        (['mount', '/none', '/mnt'], 2, 'there is no store at /none'),
        (['mount', '/none', '/mnt', '-o', 'frob'], 2, "unknown mount option 'frob'"),
        (['mount', '/none'], 2, "Missing argument 'MOUNTPOINT'"),
        (['umount', '/proc'], 2, 'a mount of proc, not of snapfs'),
        (['umount', '/none'], 2, '/none is not mounted'),
        (['init', ''], 2, 'STORE is empty'),
        (['mount', '/none', ''], 2, 'MOUNTPOINT is empty'),
        (['umount', ''], 2, 'MOUNTPOINT is empty'),
    ],
)
def test_a_mistake_is_one_line_and_an_exit_code(cli, store, words, code, word):
    found, out, err = cli(*words)
    assert found == code
    assert word in err
    assert out == '' and err.startswith('snapfs: ') and err.count('\n') == 1 and err.endswith('\n')


def test_no_store_is_named(cli):
    code, _out, err = cli('volume', 'list')
    assert code == 2 and '--store' in err and 'SNAPFS_STORE' in err


def test_a_directory_that_is_gone(cli, tmp_path, monkeypatch):
    (tmp_path / 'gone').mkdir()
    monkeypatch.chdir(tmp_path / 'gone')
    (tmp_path / 'gone').rmdir()
    code, _out, err = cli('volume', 'list')
    assert code == 2 and 'current directory is gone' in err


@pytest.mark.parametrize(
    ('error', 'code', 'line'),
    [
        (Refused(28), 12, 'snapfs: No space left on device\n'),
        (KeyboardInterrupt(), 130, ''),
        (PermissionError(13, 'Permission denied', '/x'), 1, 'snapfs: /x: Permission denied\n'),
        (Invalid('two\nlines'), 2, 'snapfs: two lines\n'),
    ],
)
def test_what_is_raised_becomes_a_line(capsys, error, code, line):
    def action():
        raise error

    assert cli_main.run(action) == code
    assert capsys.readouterr().err == line


def test_a_bug_is_not_hidden():
    def action():
        raise AssertionError('P1')

    with pytest.raises(AssertionError):
        cli_main.run(action)


def test_names_that_are_no_text_go_out_as_the_bytes_they_are(cli, store):
    cli('volume', 'create', 'a\udcffb')
    assert parsed(cli('volume', 'list', '--json'))[0]['name'] == 'a\udcffb'
    table = cli('volume', 'list')[1]
    assert '\\udcff' in table


def test_control_characters_do_not_reach_the_terminal():
    assert output.printable('a\x1b[2Jb\nc\u202e') == 'a\\x1b[2Jb\\nc\\u202e'
    assert output.printable('grün 雪') == 'grün 雪'


def test_sizes_and_times():
    assert [output.size(count) for count in (None, 0, 1023, 1024, 1 << 40, 1 << 62)] == [
        '-',
        '0 B',
        '1023 B',
        '1.0 KiB',
        '1.0 TiB',
        '4096.0 PiB',
    ]
    assert output.moment(None) == '-'


NOW = datetime(2030, 1, 31, 12, tzinfo=UTC)


def test_ends_of_holds():
    start = int(NOW.timestamp())
    assert output.parse_until(None, NOW) is None
    assert output.parse_until('12h', NOW) == (start + 12 * 3600) * 10**9
    assert output.parse_until('2w', NOW) == (start + 14 * 86_400) * 10**9
    assert output.parse_until('2030-02-01T00:00:00+00:00', NOW) == (start + 12 * 3600) * 10**9


@given(st.text(max_size=12))
def test_any_text_is_an_end_or_invalid(text):
    try:
        until = output.parse_until(text, NOW)
    except Invalid:
        return
    assert until > NOW.timestamp() * 10**9
