"""L7 recover: the command `snapfs recover`. Main thread."""

from __future__ import annotations

import os
from typing import Any

import click

from snapfs.cli import output
from snapfs.errors import Invalid
from snapfs.rescue.recover_values import came_back

EXIT_LOST = 4


@click.command('recover', epilog='Example: snapfs recover home@monday --donors /backup/home')
@click.argument('snapshot', metavar='VOLUME@NAME')
@click.option('--as', 'name', metavar='NAME', help='Name of the sibling; NAME-recovered if not given.')
@click.option('--donors', multiple=True, metavar='DIR', help='Files below it may have what is lost.')
@click.option('--verify', is_flag=True, help='Read and hash all its data first: finds what rotted in secret.')
@click.option('--known-only', is_flag=True, help='Do not look at its records: a scrub has just read them.')
@click.option('--dry-run', is_flag=True, help='Say what is lost and who may have it; change nothing.')
@output.store_options
def recover_command(
    snapshot: str, name: str | None, donors: tuple[str, ...], verify: bool, known_only: bool, dry_run: bool
) -> int:
    """Bring back what a damaged snapshot has lost.

    Nodes come back from their second copies (STORE/mirror) first, those of all volumes and snapshots. For the
    rest are looked for, in this order: other copies in the store (quarantine, what was freed and is still
    there, packs that nobody knows), then files below each --donors, by their hashes. What is found goes back
    to every snapshot that shares it. For what is found nowhere a sibling is made, in which it is zeros, and
    DAMAGE.json lists each range. The original stays as it is, and is held.

    A snapshot never changes. Where a backup of the catalog (STORE/backups) has another tree for it, the
    catalog is wrong, and the sibling is made of that tree.

    Before it decides, all its nodes and its chunks of up to 16 KiB are read and hashed; of longer ones it is
    seen to that a record of that name and length stands in its place. Where anything is lost, and with
    --verify, all are hashed; the last line says how many were not.

    Exit codes: 0 nothing is lost, or all of it came back; 4 something is lost for good (with --dry-run: is
    lost now); others as for every command, and nothing was given up then.
    """
    if '' in donors:
        raise Invalid('--donors is empty; name a directory')  # it would mean the one that one stands in
    found = output.call_watched(
        'recover',
        snapshot=snapshot,
        name=name,
        donors=[os.path.abspath(path) for path in donors],
        verify=verify,
        known_only=known_only,
        dry_run=dry_run,
    )
    output.show(found, _say)
    return EXIT_LOST if _is_lost(found) else 0


def _is_lost(found: Any) -> bool:
    """Say whether something is lost by now, as the exit code has it."""
    source = found['source']
    if source is not None and source['refused']:
        return True  # a backup knows another tree, and that is not to be had
    if found['dry_run'] and any(found['put_back'].values()):
        return True
    return any(found['dry_run'] or one['donor'] in (None, 'zeros') for one in found['lost'])


def _say(found: Any) -> None:
    _render(found)
    if found['sibling'] and _is_lost(found):
        output.say(f'Who else shares what is lost: snapfs damage {output.store_words()}')


def _render(found: Any) -> None:
    rows, ranges = [], []
    for one in found['lost']:
        donor = ', '.join(one['offered']) or 'nobody' if found['dry_run'] else one['donor'] or 'nobody'
        if one['unknown']:
            rows.append((one['unknown'], '', donor))
        for use in one['ranges']:
            ranges.append(((use['path'], use['attribute'], donor), use['start'], use['end']))
    for (path, attribute, donor), start, end in output.joined(ranges):
        rows.append((path, attribute if start is None else f'{start} to {end}', donor))
    rows += [(path, 'all of it', '' if found['dry_run'] else 'nobody') for path in found['names_lost']]
    rows += [(one['other'], f'as {one["path"]}', '') for one in found['also_named']]
    rows = list(dict.fromkeys(rows))  # leaves of one large directory are lost in the same words
    source, put_back = found['source'], any(found['put_back'].values())
    if put_back:
        say_put_back(found['put_back'], found['dry_run'])
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
    elif (rows or put_back) and not found['dry_run'] and source is None:
        if found['looked'] == 'known':
            output.say('what was known to be lost is back')
        else:
            output.say(f'{found["snapshot"]} is whole again, and so is all that shares with it')
    _say_looked(found)


def say_put_back(counts: Any, dry_run: bool = False) -> None:
    """Say how many packs and nodes came back from the mirror, or would."""
    were = 'would be' if dry_run else 'were'
    output.say(f'{came_back(**counts)} {were} put back from their second copies, for everybody who has them')


def _say_looked(found: Any) -> None:
    """Say what was not looked at, and what does: always the last line."""
    if not found['unhashed']:
        return
    was = 'of what is not told above the records are there'
    if found['looked'] == 'known':
        was = 'it was not looked whether their records are there'
    scrubbed = f'scrubs have verified {found["verified_percent"]} % of it'
    output.say(
        f'Contents of {found["unhashed"]} chunks were not hashed; {was}; {scrubbed}. '
        f'That does: snapfs recover --verify {found["snapshot"]} {output.store_words()}'
    )
