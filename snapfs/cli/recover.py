"""L7 recover: the command `snapfs recover`. Main thread."""

from __future__ import annotations

import os
from typing import Any

import click

from snapfs.cli import output


@click.command('recover', epilog='Example: snapfs recover home@monday --donors /backup/home')
@click.argument('snapshot', metavar='VOLUME@NAME')
@click.option('--as', 'name', metavar='NAME', help='Name of the sibling; NAME-recovered if not given.')
@click.option('--donors', multiple=True, metavar='DIR', help='Files below it may have what is lost.')
@click.option('--verify', is_flag=True, help='Read all its data first, to find what has rotted in secret.')
@click.option('--dry-run', is_flag=True, help='Say what is lost and who may have it; change nothing.')
@output.store_options
def recover_command(
    snapshot: str, name: str | None, donors: tuple[str, ...], verify: bool, dry_run: bool
) -> None:
    """Bring back what a damaged snapshot has lost.

    Looked for are, in this order: other copies in the store (quarantine, what was freed and is still there,
    packs that nobody knows), then files below each --donors, by their hashes. What is found goes back to
    every snapshot that shares it. For what is found nowhere a sibling is made, in which it is zeros, and
    DAMAGE.json lists each range. The original stays as it is, and is held.

    A snapshot never changes. Where a backup of the catalog (STORE/backups) has another tree for it, the
    catalog is wrong, and the sibling is made of that tree.
    """
    render = _render if verify else _render_known
    found = output.call_watched(
        'recover',
        snapshot=snapshot,
        name=name,
        donors=[os.path.abspath(path) for path in donors],
        verify=verify,
        dry_run=dry_run,
    )
    output.show(found, render)


def _render(found: Any) -> None:
    rows = []
    for one in found['lost']:
        donor = ', '.join(one['offered']) or 'nobody' if found['dry_run'] else one['donor'] or 'nobody'
        if one['unknown']:
            rows.append((one['unknown'], '', donor))
        for use in one['ranges']:
            where = use['attribute'] if use['start'] is None else f'{use["start"]} to {use["end"]}'
            rows.append((use['path'], where, donor))
    source = found['source']
    if source is None or source['refused'] or rows:
        output.table(('file', 'lost', 'from'), rows, f'{found["snapshot"]} has lost nothing that is known.')
    if source is not None:
        output.say(f'{found["snapshot"]} has another tree in {source["backup"]} than in the catalog')
        if source['refused']:
            output.say(f'that tree was not taken: {source["refused"]}')
        elif found['dry_run']:
            output.say('a sibling would be made of that tree')
    if found['sibling']:
        output.say(f'made: {found["sibling"]}; what is lost for good is in its DAMAGE.json')
        output.say(f'{found["snapshot"]} stays as it is, and is held')
    elif rows and not found['dry_run']:
        output.say(f'{found["snapshot"]} is whole again, and so is all that shares with it')


def _render_known(found: Any) -> None:
    _render(found)
    output.say('Only what is known to be lost was looked for; with --verify all its data is read first')
