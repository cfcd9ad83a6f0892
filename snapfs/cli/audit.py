"""L7 audit: the command `snapfs audit`. Main thread."""

from __future__ import annotations

from typing import Any

import click

from snapfs.cli import output
from snapfs.errors import Invalid

HIDDEN = ('line', 'time_ns', 'event', 'who')


@click.command('audit', epilog='Example: snapfs audit --batch 3')
@click.option('--batch', type=click.IntRange(min=1), help='Only what is about this batch.')
@click.option('--last', type=click.IntRange(min=1), default=50, show_default=True, help='So many lines.')
@click.option('--verify', is_flag=True, help='Verify the chain of all lines against the catalog instead.')
@output.store_options
def audit_command(batch: int | None, last: int, verify: bool) -> None:
    """Show who deleted what, and which batch freed which bytes after which checks."""
    if verify and batch is not None:
        raise Invalid('--verify is about the whole log; leave --batch out')
    if verify:
        output.show(output.call('audit.verify'), _render_verified)
        return
    output.show(output.call('audit.list', last=last, batch=batch), _render)


def _render(lines: Any) -> None:
    rows = [
        (
            str(one['line']),
            output.moment(one['time_ns']),
            str(one.get('event', '-')),
            str(one.get('who', '') or '-'),
            ' '.join(f'{key}={_value(value)}' for key, value in one.items() if key not in HIDDEN and value),
        )
        for one in lines
    ]
    output.table(('number', 'when', 'event', 'by', 'what'), rows, 'The audit log has nothing about that.')


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return '{' + ' '.join(f'{key or "commits"}:{_value(part)}' for key, part in value.items()) + '}'
    if isinstance(value, list):
        return ','.join(map(_value, value))
    return '-' if value is None else str(value)


def _render_verified(found: Any) -> None:
    output.say(f'the chain is whole: lines {found["since_line"]} to {found["lines"]}, last {found["hash"]}')
    if found['broken'] is not None:
        output.say(f'but it was begun again after a break: {output.printable(found["broken"])}')
