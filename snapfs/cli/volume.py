"""L7 volume: the commands `snapfs volume …`. Main thread."""

from __future__ import annotations

from typing import Any

import click

from snapfs.cli import output


@click.group('volume', no_args_is_help=False, epilog='Example: snapfs volume create home')
def volume_command() -> None:
    """Volumes: writable file trees with a name."""


@volume_command.command('create', epilog='Example: snapfs volume create home --mode 700')
@click.argument('name')
@click.option('--mode', default='755', show_default=True, help='Permissions of its top directory, in octal.')
@output.store_options
def create(name: str, mode: str) -> None:
    """Make an empty volume that belongs to you."""
    if not mode or set(mode) - set('01234567') or int(mode, 8) > 0o7777:
        raise click.BadParameter(f'{mode!r} is no octal mode', param_hint='--mode')
    output.show(output.call('volume.create', name=name, mode=int(mode, 8)), _quiet)


@volume_command.command('list', epilog='Example: snapfs volume list --json')
@output.store_options
def list_(**_nothing: Any) -> None:
    """List the volumes."""
    output.show(output.call('volume.list'), _render)


@volume_command.command('rename', epilog='Example: snapfs volume rename home houses')
@click.argument('old')
@click.argument('new')
@output.store_options
def rename(old: str, new: str) -> None:
    """Give a volume another name. Its snapshots go with it."""
    output.show(output.call('volume.rename', old=old, new=new), _quiet)


@volume_command.command('delete', epilog='Example: snapfs volume delete scratch')
@click.argument('name')
@output.store_options
def delete(name: str) -> None:
    """Request the deletion of a volume. It can be taken back with `snapfs snapshot undelete`."""
    output.show(output.call('volume.delete', name=name), output.say_request)


@volume_command.command('clone', epilog='Example: snapfs volume clone home@monday home-test')
@click.argument('snapshot', metavar='VOLUME@NAME')
@click.argument('name')
@output.store_options
def clone(snapshot: str, name: str) -> None:
    """Make a new volume that begins as the snapshot. Costs no space."""
    output.show(output.call('volume.clone', snapshot=snapshot, name=name), _quiet)


@volume_command.command('rollback', epilog='Example: snapfs volume rollback home@monday')
@click.argument('snapshot', metavar='VOLUME@NAME')
@output.store_options
def rollback(snapshot: str) -> None:
    """Set a volume back to one of its snapshots. What it was until now becomes a snapshot first."""
    output.show(output.call('volume.rollback', snapshot=snapshot), _render_rollback)


def _quiet(_value: Any) -> None:
    """Nothing to say when all went well, as other commands that change file systems."""


def _render(volumes: Any) -> None:
    rows = [
        (volume['name'], str(volume['snapshots']), output.moment(volume['created_ns'])) for volume in volumes
    ]
    output.table(('volume', 'snapshots', 'created'), rows, 'There are no volumes. snapfs volume create NAME')


def _render_rollback(value: Any) -> None:
    output.say(f'{value["volume"]} is now as in {value["now"]}; before it was {value["safety"]["snapshot"]}')
