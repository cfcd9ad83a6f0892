"""L7 main: the command `snapfs`. Main thread. Imports click alone; a noun's file is imported when it is
called.

A mistake of a person is one line on standard error and an exit code; a traceback is always a bug of ours.
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import NoReturn

import click

from snapfs import __version__
from snapfs.errors import SnapfsError

# Name, file, help: the help stands here so that `snapfs --help` imports none of the files.
NOUNS = {
    'init': ('store', 'Make a new store.'),
    'mount': ('store', 'Mount a store, or one volume of it.'),
    'umount': ('store', 'Unmount, and wait until the store is clean.'),
    'status': ('store', 'Show the state of a store and of its daemon.'),
    'volume': ('volume', 'Create, list, rename, delete, clone and roll back volumes.'),
    'snapshot': ('snapshot', 'Create, list, show, rename, delete and undelete snapshots.'),
    'hold': ('hold', 'Keep snapshots from being deleted.'),
    'collect': ('collect', 'Free what was deleted, or say what would be freed.'),
    'quarantine': ('collect', 'List what is on its way, and when it is freed at the earliest.'),
    'incident': ('incident', 'List, show and acknowledge what made the collector stop.'),
    'config': ('configuration', 'Show and change the settings of deletion.'),
    'audit': ('audit', 'Show who deleted what; verify the audit log.'),
    'why': ('why', 'Say who keeps a file or a chunk alive.'),
    'fsck': ('fsck', 'Check a store, without changing it.'),
    'scrub': ('scrub', 'Read and verify every stored byte, part by part.'),
    'damage': ('damage', 'Say which files have lost which bytes.'),
    'recover': ('recover', 'Bring back what a damaged snapshot has lost.'),
    'rebuild': ('rebuild', 'Make a new catalog for a store that has lost its own.'),
    'export': ('export', 'Write down what a snapshot holds, with one hash over it.'),
    'verify': ('verify', 'Check a snapshot, or an export of one, against its hash.'),
    'drill': ('drill', 'Replay accidents on a scratch store, and say what stops them.'),
}
EXIT_USAGE, EXIT_INTERRUPTED, EXIT_SYSTEM, EXIT_PIPE = 2, 130, 1, 141


class LazyGroup(click.Group):
    """A group whose commands are imported when they are called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(NOUNS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in NOUNS:
            return None
        module = importlib.import_module(f'snapfs.cli.{NOUNS[cmd_name][0]}')
        found = getattr(module, f'{cmd_name}_command')
        assert isinstance(found, click.Command)
        return found

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section('Commands'):
            formatter.write_dl([(name, text) for name, (_module, text) in NOUNS.items()])


@click.group(
    cls=LazyGroup,
    no_args_is_help=False,
    context_settings={'help_option_names': ['-h', '--help'], 'max_content_width': 100},
    epilog='Example: snapfs init /srv/store && snapfs mount /srv/store /mnt',
)
@click.version_option(__version__, prog_name='snapfs')
def snapfs() -> None:
    """A file system with snapshots that never deletes what is still needed.

    Except for init, mount and umount, the store is found by the command's --store, by SNAPFS_STORE, or by
    the mount that you stand in. A snapshot is written VOLUME@NAME.
    """


def main(arguments: list[str] | None = None) -> int:
    """Run a command line and return its exit code."""
    words = sys.argv[1:] if arguments is None else arguments
    if len(words) == 4 and words[2] == '-o' and words[0] not in NOUNS and not words[0].startswith('-'):
        # mount.fuse3, where the helper is not installed, calls the program named like the type in this way.
        from snapfs.cli import mount_helper

        return mount_helper.main(words)
    return run(lambda: snapfs.main(args=words, prog_name='snapfs', standalone_mode=False))


def run(action: object) -> int:
    """Call `action`, and turn what it raises into one line and an exit code."""
    assert callable(action)
    try:
        result = action()
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except click.exceptions.Exit as error:
        return error.exit_code
    except click.Abort:
        return EXIT_INTERRUPTED
    except click.ClickException as error:
        return complain(_usage(error), max(error.exit_code, EXIT_USAGE))
    except SnapfsError as error:
        return complain(error.line(), error.exit_code)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader went away. Python would complain once more when it flushes at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return EXIT_PIPE
    except OSError as error:
        where = f'{error.filename}: ' if error.filename else ''
        return complain(f'{where}{error.strerror or error}', EXIT_SYSTEM)


def complain(line: str, code: int, program: str = 'snapfs') -> int:
    """Print one line to standard error and return the exit code."""
    text = ' '.join(line.split())
    print(f'{program}: {text}', file=sys.stderr)  # noqa: T201
    return code


def _usage(error: click.ClickException) -> str:
    message = error.format_message()
    if not isinstance(error, click.UsageError) or error.ctx is None:
        return message
    return f'{message.rstrip(".")}. Try: {error.ctx.command_path} --help'


def entry() -> NoReturn:
    """Entry point of `python -m snapfs.cli.main`."""
    sys.exit(main())


if __name__ == '__main__':
    entry()
