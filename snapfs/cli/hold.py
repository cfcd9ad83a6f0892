"""L7 hold: the commands `snapfs hold …`. Main thread."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import click

from snapfs.cli import output
from snapfs.world import World


@click.group(
    'hold', no_args_is_help=False, epilog='Example: snapfs hold add home@monday audit --why "tax office"'
)
def hold_command() -> None:
    """Holds: named reasons not to delete a snapshot. A held snapshot cannot be deleted."""


@hold_command.command(
    'add', epilog='Example: snapfs hold add home@monday audit --why "tax office" --until 2030-12-31'
)
@click.argument('snapshot', metavar='VOLUME@NAME')
@click.argument('name')
@click.option('--why', default='', help='The reason, for whoever wants to delete it one day.')
@click.option(
    '--until', metavar='DATE|SPAN', help='When the hold ends by itself: 2030-12-31, or 12h, 30d, 4w.'
)
@output.store_options
def add(snapshot: str, name: str, why: str, until: str | None) -> None:
    """Hold a snapshot. A snapshot can have several holds."""
    now = datetime.fromtimestamp(World().time_ns() // output.NANOSECONDS, UTC)
    arguments = {'snapshot': snapshot, 'hold': name, 'why': why, 'until_ns': output.parse_until(until, now)}
    output.show(output.call('hold.add', **arguments), _quiet)


@hold_command.command('release', epilog='Example: snapfs hold release home@monday audit')
@click.argument('snapshot', metavar='VOLUME@NAME')
@click.argument('name')
@output.store_options
def release(snapshot: str, name: str) -> None:
    """Release a hold."""
    output.show(output.call('hold.release', snapshot=snapshot, hold=name), _quiet)


@hold_command.command('list', epilog='Example: snapfs hold list home@monday')
@click.argument('snapshot', metavar='VOLUME@NAME')
@output.store_options
def list_(snapshot: str) -> None:
    """List the holds of a snapshot."""
    output.show(output.call('hold.list', snapshot=snapshot), _render)


def _quiet(_value: Any) -> None:
    """Nothing to say when all went well, as other commands that change file systems."""


def _render(holds: Any) -> None:
    rows = [
        (
            one['name'],
            one['who'],
            output.moment(one['created_ns']),
            output.moment(one['until_ns']),
            one['why'],
        )
        for one in holds
    ]
    output.table(('hold', 'by', 'since', 'until', 'why'), rows, 'It is not held.')
