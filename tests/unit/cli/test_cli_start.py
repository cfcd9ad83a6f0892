"""`snapfs --help` is fast because it imports nothing, and every command explains itself."""

import subprocess
import sys

import click
import pytest

from snapfs import errors
from snapfs.cli.main import NOUNS, snapfs

HEAVY = {'trio', 'pyfuse3', 'sqlite3', 'rich', 'msgpack', 'blake3', 'pyfastcdc', 'asyncio', 'numpy', 'json'}


@pytest.mark.parametrize('words', [['--help'], ['--version'], ['volume', '--help'], ['mount', '--help']])
def test_help_imports_nothing_heavy(words):
    program = (
        'import sys; from snapfs.cli.main import main; code = main(sys.argv[1:]);'
        'print(*sorted(sys.modules), file=sys.stderr); sys.exit(code)'
    )
    done = subprocess.run([sys.executable, '-c', program, *words], capture_output=True, text=True)
    assert done.returncode == 0
    loaded = set(done.stderr.split())
    allowed = {'json'} if words[0] in ('volume', 'mount') else set()  # output.py prints it
    assert not loaded & (HEAVY - allowed)
    assert len(loaded) < 250  # a bare interpreter with click: about 150


def commands(group, path=()):
    context = click.Context(group)
    for name in group.list_commands(context):
        found = group.get_command(context, name)
        yield (*path, name), found
        if isinstance(found, click.Group):
            yield from commands(found, (*path, name))


ALL = dict(commands(snapfs))
NAMES = {
    'init': '',
    'mount': '',
    'umount': '',
    'status': '',
    'volume': 'create list rename delete clone rollback',
    'snapshot': 'create list show space rename delete undelete',
    'hold': 'add release list',
    'collect': 'approve leaks',
    'quarantine': '',
    'incident': 'list show ack',
    'config': '',
    'audit': '',
    'why': '',
    'drill': '',
    'fsck': '',
    'scrub': '',
    'damage': '',
    'recover': '',
    'export': '',
    'verify': '',
    'rebuild': '',
}


def test_the_commands_of_the_manual_exist():
    wanted = {(noun,) for noun in NAMES} | {
        (noun, verb) for noun, verbs in NAMES.items() for verb in verbs.split()
    }
    assert set(ALL) == wanted
    assert set(NOUNS) == set(NAMES)


@pytest.mark.parametrize('path', sorted(ALL))
def test_every_command_has_help_with_an_example(cli, path):
    code, out, err = cli(*path, '--help')
    assert (code, err) == (0, '')
    assert f'Example: snapfs {path[0]}' in out
    assert ALL[path].help


def test_every_command_that_prints_knows_json():
    for path, command in ALL.items():
        if isinstance(command, click.Group) or path == ('mount',):
            continue
        assert any('--json' in option.opts for option in command.params), path


def test_exit_codes_differ_by_kind():
    kinds = (errors.Refused, errors.Invalid, errors.Held, errors.Unavailable, errors.Corrupt, errors.Latched)
    codes = {kind.exit_code for kind in kinds}
    assert len(codes) == 6 and not codes & {0, 1}
