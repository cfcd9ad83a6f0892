"""L7 incident: the commands `snapfs incident …`. Main thread."""

from __future__ import annotations

from typing import Any

import click

from snapfs.cli import output


@click.group('incident', no_args_is_help=False, epilog='Example: snapfs incident list')
def incident_command() -> None:
    """What made the collector stop. It stands still until a person has looked; reading and writing go on."""


@incident_command.command('list', epilog='Example: snapfs incident list --all')
@click.option('--all', 'everything', is_flag=True, help='Also those that were acknowledged.')
@output.store_options
def list_(everything: bool) -> None:
    """List the incidents in force."""
    output.show(output.call('incident.list', all=everything), _render)


@incident_command.command('show', epilog='Example: snapfs incident show 1')
@click.argument('number', type=click.IntRange(min=1))
@output.store_options
def show(number: int) -> None:
    """Show an incident with its evidence."""
    output.show(output.call('incident.show', number=number), _render_one)


@incident_command.command(
    'ack',
    short_help='Acknowledge an incident.',
    epilog="Example: snapfs incident ack 1 --note 'disk replaced'",
)
@click.argument('number', type=click.IntRange(min=1))
@click.option('--note', default='', help='What was found out; it goes into the audit log.')
@output.store_options
def ack(number: int, note: str) -> None:
    """Say that you have looked at an incident. When none is left in force, the collector runs again."""
    output.show(output.call('incident.ack', number=number, note=note), _render_ack)


def _render(incidents: Any) -> None:
    rows = [
        (
            str(one['number']),
            output.moment(one['opened_ns']),
            'all writing' if one['scope'] == 'store' else 'deletion',
            '-' if one['acknowledged_ns'] is None else f'{one["acknowledged_by"]}',
            one['reason'],
        )
        for one in incidents
    ]
    output.table(('number', 'since', 'stops', 'acknowledged by', 'why'), rows, 'There are no incidents.')


def _render_one(one: Any) -> None:
    _render([one])
    output.say(f'evidence in {one["directory"]}:')
    for name, text in one['evidence'].items():
        output.say(f'--- {name}')
        for line in text.splitlines():
            output.say(output.printable(line))


def _render_ack(one: Any) -> None:
    if one['left']:
        numbers = ', '.join(map(str, one['left']))
        output.say(f'incident {one["number"]} is acknowledged; still in force: {numbers}')
    else:
        output.say(f'incident {one["number"]} is acknowledged; no other is in force')
