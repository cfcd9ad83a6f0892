"""L7 store: init, mount, umount, status. Main thread."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from snapfs.cli import output
from snapfs.cli.progress import describe
from snapfs.errors import Invalid


def not_empty(_: click.Context, parameter: click.Parameter, value: str) -> str:
    """Refuse an empty path: it would quietly mean the directory one stands in."""
    if not value:
        raise Invalid(f'{(parameter.name or "path").upper()} is empty; name a path')
    return value


@click.command('init', epilog='Example: snapfs init /srv/store')
@click.argument('store', callback=not_empty)
@click.option('--json', 'as_json', is_flag=True, help='Print JSON.')
def init_command(store: str, as_json: bool) -> None:
    """Make a new store in the directory STORE, which must be absent or empty."""
    from snapfs.service import compose

    path = Path(os.path.abspath(store))
    compose.create_store(path)
    if as_json:
        output.print_json({'store': str(path)})


@click.command('mount', epilog='Example: snapfs mount -o ro,allow_other /srv/store:home /home')
@click.argument('source', metavar='STORE[:VOLUME]', callback=not_empty)
@click.argument('mountpoint', callback=not_empty)
@click.option('-o', 'options', multiple=True, metavar='OPTION,…', help='Mount options, as for mount(8).')
@click.option('-f', '--foreground', is_flag=True, help='Stay in the foreground, for a supervisor.')
@click.option(
    '--log', metavar='FILE', help='Where the log goes [STORE/daemon.log; in the foreground: stderr].'
)
def mount_command(
    source: str, mountpoint: str, options: tuple[str, ...], foreground: bool, log: str | None
) -> int:
    """Mount a store at MOUNTPOINT: all of its volumes as directories, or one volume alone.

    Returns when it is mounted. Options: ro, rw, suid, dev, exec and their opposites, the atime family, sync,
    allow_other, remount, uid=, gid= (who owns the top directory), log=FILE, volume=NAME, source=STORE.
    """
    from dataclasses import replace

    from snapfs.service import mounting
    from snapfs.service.options import parse_options

    parsed = parse_options(options)
    if parsed.remount:
        mounting.remount(mountpoint, parsed)
        return 0
    parsed = replace(parsed, foreground=foreground or parsed.foreground, log=log or parsed.log)
    return mounting.mount(mounting.plan_mount(source, mountpoint, parsed))


@click.command('umount', epilog='Example: snapfs umount /mnt')
@click.argument('mountpoint', callback=not_empty)
@click.option('--json', 'as_json', is_flag=True, help='Print JSON.')
def umount_command(mountpoint: str, as_json: bool) -> None:
    """Unmount MOUNTPOINT and wait until the store is clean and its daemon has ended."""
    from dataclasses import asdict

    from snapfs.service import stop

    stopped = stop.stop(mountpoint)
    if as_json:
        output.print_json(asdict(stopped))
    elif not stopped.daemon:
        click.echo('snapfs: its daemon had ended before; the next mount replays the journal', err=True)


@click.command('status', epilog='Example: snapfs status --store /srv/store --json')
@click.option('--space', is_flag=True, help='Count exactly what waits for deletion, and what leaked.')
@output.store_options
def status_command(space: bool) -> None:
    """Show the state of the store: health, volumes, sizes, deletion, and the daemon if it is mounted."""
    status = output.call('status')
    if space and 'collector' in status:
        status['collector']['space'] = output.call_watched('space')
    output.show(status, _render_status)


def _render_status(value: Any) -> None:
    daemon = value.get('daemon')
    lines = [('daemon', 'none')] if daemon is None else []
    if daemon is not None:
        lines = [('daemon', f'pid {daemon["pid"]}'), ('mounted at', daemon['mountpoint'])]
        lines.append(('socket', daemon['socket']))
    lines += [(key, item) for key, item in _flatten('', value) if not key.startswith(('daemon', 'collector'))]
    if 'collector' in value:
        lines += _deletion(value['collector'])
    output.table(('what', 'value'), [(key, str(item)) for key, item in lines], '')


def _deletion(told: Any) -> list[tuple[str, str]]:
    """Return what a person wants to know of deletion."""
    space, batches, moving = told['space'], told['batches'], told['moving']
    waits = sum(space['pending_requests'].values())
    pending = f'{waits} requests in no batch'
    if 'pending' in space:
        pending += f', {output.size(space["pending"]["bytes"])} would come back'
    rest = f'{output.size(space["quarantined_bytes"])} in {len(batches)} batches'
    dues = [one['earliest_ns'] for one in batches if one['earliest_ns'] is not None]
    if dues:
        rest += f', the first can be freed at {output.moment(min(dues))}'
    lines = [('collector', 'idle' if moving is None else f'at work: {describe(moving)}')]
    if told['stopped'] is not None:
        lines = [('collector', f'stands still: {told["stopped"]}')]
    if told['error'] is not None:
        lines.append(('collector waits', told['error']))
    lines += [('pending', pending), ('quarantined', rest)]
    lines += [
        ('waits for approval', f'{one["digest"]}: {output.size(one["bytes"])}: {"; ".join(one["reasons"])}')
        for one in told['waiting']
    ]
    if 'leaked' in space:
        lines.append(
            ('leaked', f'{output.size(space["leaked"]["bytes"])}, {space["leaked"]["chunks"]} chunks')
        )
    lines.append(('reclaimable', f'{output.size(space["reclaimable_bytes"])} of packs belong to no chunk'))
    lines.append(('packs', f'{output.size(space["packs_bytes"])}, {output.size(space["live_bytes"])} in use'))
    return lines


def _flatten(prefix: str, value: Any) -> list[tuple[str, Any]]:
    """Turn nested objects into dotted names; lists become their length."""
    if isinstance(value, dict):
        pairs = []
        for key, item in value.items():
            pairs += _flatten(f'{prefix}.{key}' if prefix else str(key), item)
        return pairs
    if isinstance(value, list):
        return [(prefix, len(value))]
    return [(prefix, '-' if value is None else value)]
