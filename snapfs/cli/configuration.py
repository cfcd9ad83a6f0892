"""L7 configuration: the command `snapfs config`. Main thread."""

from __future__ import annotations

from typing import Any

import click

from snapfs.cli import output
from snapfs.errors import Invalid


@click.command('config', epilog='Example: snapfs config grace-kept 14d')
@click.argument('name', required=False)
@click.argument('value', required=False)
@click.option('--reset', is_flag=True, help='Give NAME its default again.')
@output.store_options
def config_command(name: str | None, value: str | None, reset: bool) -> None:
    """Show all settings of deletion, or one; or give NAME a VALUE.

    No setting switches a recount off. A plan that is made keeps the settings it was made with.
    """
    if reset:
        if name is None or value is not None:
            raise Invalid('name the one setting to reset, and no value')
        output.show(output.call('config.reset', name=name), _render_one)
    elif name is None:
        output.show(output.call('config.list'), _render)
    elif value is None:
        output.show(output.call('config.get', name=name), _render_one)
    else:
        output.show(output.call('config.set', name=name, value=value), _render_one)


def _render(settings: Any) -> None:
    rows = [
        (
            one['name'],
            one['value'] or 'none',
            'default' if not one['set'] else f'not {one["default"] or "none"}',
            one['help'],
        )
        for one in settings
    ]
    output.table(('setting', 'value', 'default', 'what it is'), rows, '')


def _render_one(one: Any) -> None:
    output.say(one['value'] or 'none')
