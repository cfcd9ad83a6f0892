"""L7 snapshot: the commands `snapfs snapshot …`. Main thread."""

from __future__ import annotations

from typing import Any

import click

from snapfs.cli import output


@click.group('snapshot', no_args_is_help=False, epilog='Example: snapfs snapshot create home@monday')
def snapshot_command() -> None:
    """Snapshots: what a volume was at one moment. Written VOLUME@NAME."""


@snapshot_command.command('create', epilog='Example: snapfs snapshot create home@monday')
@click.argument('snapshot', metavar='VOLUME@NAME')
@output.store_options
def create(snapshot: str) -> None:
    """Take a snapshot."""
    output.show(output.call('snapshot.create', snapshot=snapshot), _quiet)


@snapshot_command.command('list', epilog='Example: snapfs snapshot list home')
@click.argument('volume', required=False)
@click.option('--deleted', is_flag=True, help='List what was requested to be deleted instead.')
@output.store_options
def list_(volume: str | None, deleted: bool) -> None:
    """List the snapshots of a volume, or of all volumes."""
    if not deleted:
        output.show(output.call('snapshot.list', volume=volume), _render)
        return
    rows = output.call('request.list')
    output.show([row for row in rows if volume in (None, row['volume'])], _render_requests)


@snapshot_command.command('show', epilog='Example: snapfs snapshot show home@monday')
@click.argument('snapshot', metavar='VOLUME@NAME')
@click.option('--quick', is_flag=True, help='Leave out the bytes that only this snapshot holds.')
@output.store_options
def show(snapshot: str, quick: bool) -> None:
    """Show everything that is known of a snapshot, with the bytes that it alone holds."""
    output.show(output.call_watched('snapshot.show', snapshot=snapshot, space=not quick), _render_one)


@snapshot_command.command('space', epilog='Example: snapfs snapshot space home@monday home@tuesday')
@click.argument('snapshots', metavar='VOLUME@NAME...', nargs=-1, required=True)
@output.store_options
def space(snapshots: tuple[str, ...]) -> None:
    """Say how many bytes would come back if these snapshots were deleted, all together. Exact."""
    from snapfs.cli.collect import render_space

    output.show(output.call_watched('snapshot.space', snapshots=list(snapshots)), render_space)


@snapshot_command.command('rename', epilog='Example: snapfs snapshot rename home@monday before-upgrade')
@click.argument('snapshot', metavar='VOLUME@NAME')
@click.argument('name', metavar='NEW-NAME')
@output.store_options
def rename(snapshot: str, name: str) -> None:
    """Give a snapshot another name in its volume."""
    output.show(output.call('snapshot.rename', snapshot=snapshot, name=name), _quiet)


@snapshot_command.command('delete', epilog='Example: snapfs snapshot delete home@monday home@tuesday')
@click.argument('snapshots', metavar='VOLUME@NAME...', nargs=-1, required=True)
@output.store_options
def delete(snapshots: tuple[str, ...]) -> None:
    """Request the deletion of snapshots. It can be taken back with `snapfs snapshot undelete`.

    When one of them cannot be deleted, none is.
    """
    if len(snapshots) == 1:
        output.show(output.call('snapshot.delete', snapshot=snapshots[0]), output.say_request)
        return
    output.show(output.call('snapshot.delete-all', snapshots=list(snapshots)), _say_requests)


@snapshot_command.command(
    'undelete',
    short_help='Take a deletion back.',
    epilog='Example: snapfs snapshot undelete home@monday --name saved',
)
@click.argument('request', metavar='REQUEST|VOLUME[@NAME]')
@click.option('--name', help='The name it gets back [the one it had].')
@click.option('--volume', help='The volume it goes back to [its own].')
@output.store_options
def undelete(request: str, name: str | None, volume: str | None) -> None:
    """Take the deletion of a snapshot or a volume back, by the number of its request or the name it had."""
    arguments = {'request': request, 'name': name, 'volume': volume}
    output.show(output.call('snapshot.undelete', **arguments), _quiet)


def _quiet(_value: Any) -> None:
    """Nothing to say when all went well, as other commands that change file systems."""


def _say_requests(requests: Any) -> None:
    for request in requests:
        output.say_request(request)


def _render(snapshots: Any) -> None:
    rows = [
        (
            one['snapshot'],
            output.moment(one['created_ns']),
            one['who'],
            ', '.join(h['name'] for h in one['holds']),
            _state(one),
        )
        for one in snapshots
    ]
    output.table(('snapshot', 'taken', 'by', 'holds', 'state'), rows, 'There are no snapshots.')


def _state(one: Any) -> str:
    """Say whether a snapshot is damaged, or how much of it was verified."""
    if one['damaged_ns'] is not None:
        return f'DAMAGED, seen {output.moment(one["damaged_ns"])}'
    return f'{one["verified_percent"]} % verified' if one['verified_ns'] is not None else 'not verified yet'


def _render_requests(requests: Any) -> None:
    rows = [
        (
            str(one['number']),
            one['kind'],
            one['what'],
            output.moment(one['requested_ns']),
            one['who'],
            '-' if one['batch'] is None else str(one['batch']),
        )
        for one in requests
    ]
    output.table(('number', 'kind', 'what', 'requested', 'by', 'batch'), rows, 'Nothing is to be deleted.')


def _render_one(one: Any) -> None:
    rows = [('snapshot', one['snapshot']), ('taken', output.moment(one['created_ns'])), ('by', one['who'])]
    rows += [('number', str(one['number'])), ('root', one['root'] or 'empty'), ('state', _state(one))]
    space = one.get('space')
    if space is not None:
        alone = space['why'] if space['bytes'] is None else f'{output.size(space["bytes"])}'
        rows.append(('it alone holds', alone))
    for hold in one['holds']:
        until = '' if hold['until_ns'] is None else f' until {output.moment(hold["until_ns"])}'
        rows.append(('held', f'{hold["name"]} by {hold["who"]}{until}: {hold["why"]}'))
    output.table(('what', 'value'), rows, '')
