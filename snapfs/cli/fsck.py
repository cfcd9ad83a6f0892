"""L7 fsck: checks a store by a program of its own, which shares nothing with the rest. Main thread."""

from __future__ import annotations

import click

EXIT_USAGE = 16  # as fsck(8) has it


class WrongCall(click.UsageError):
    """A wrong call of fsck."""

    exit_code = EXIT_USAGE


class FsckCommand(click.Command):
    """Ends with the exit code that fsck(8) gives to a wrong call."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """As for every command, but for the exit code."""
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as error:
            raise WrongCall(error.format_message(), error.ctx) from error


@click.command('fsck', cls=FsckCommand, epilog='Example: snapfs fsck --quick /srv/store')
@click.argument('store', metavar='STORE')
@click.option('--quick', is_flag=True, help='Structures, totals and presence; hash only nodes.')
@click.option('--json', 'as_json', is_flag=True, help='Print JSON.')
@click.option('--jobs', type=click.IntRange(1, 256), metavar='N', help='Processes; all cores if not given.')
@click.option('--scratch', metavar='DIR', help='For temporary files: about 100 bytes for each chunk.')
def fsck_command(store: str, quick: bool, as_json: bool, jobs: int | None, scratch: str | None) -> int:
    """Check a store without changing a byte of it, mounted or not.

    Every byte is read and hashed. Findings name files and byte ranges in snapshots, and say what to do. Exit
    codes: 0 nothing is wrong, 4 damage, 8 something could not be checked (12: both), 16 wrong call, 32
    interrupted: then the report is partial, and says so.
    """
    from tools.fsck import main

    words = [store] + ['--quick'] * quick + ['--json'] * as_json
    words += ['--jobs', str(jobs)] if jobs is not None else []
    words += ['--scratch', scratch] if scratch is not None else []
    return main(words, prog='snapfs fsck')
