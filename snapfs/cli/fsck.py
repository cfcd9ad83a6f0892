"""L7 fsck: checks a store by a program of its own, which shares nothing with the rest. Main thread."""

from __future__ import annotations

import click


@click.command(
    'fsck',
    context_settings={'ignore_unknown_options': True, 'help_option_names': []},
    add_help_option=False,
)
@click.argument('arguments', nargs=-1, type=click.UNPROCESSED)
def fsck_command(arguments: tuple[str, ...]) -> int:
    """Check a store, mounted or not. Example: snapfs fsck --quick /srv/store"""
    from tools.fsck import main

    return main(list(arguments), prog='snapfs fsck')
