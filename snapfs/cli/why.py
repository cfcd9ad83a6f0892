"""L7 why: the command `snapfs why`. Main thread."""

from __future__ import annotations

import os
from typing import Any

import click

from snapfs.cli import output
from snapfs.errors import Invalid


@click.command('why', epilog='Example: snapfs why /mnt/home/photo.jpg; snapfs why home@monday:/photo.jpg')
@click.argument('target', metavar='PATH|VOLUME[@NAME]:/PATH|CHUNK')
@output.store_options
def why_command(target: str) -> None:
    """Say who keeps the bytes of a file, or a chunk, alive: volumes, snapshots and requests.

    A file is named by its path in a mount, or as VOLUME:/path or VOLUME@NAME:/path; a chunk by its id.
    """
    found = _by_path(target)
    if found is None:
        found = output.call_watched('why', target=target)
    output.show(found, _render)


def _by_path(target: str) -> Any:
    """Ask about a path in a mount; None when it is none. The mount's inode number names it."""
    from snapfs.service import mounts

    if not os.path.lexists(target):
        return None
    path = os.path.join(os.path.realpath(os.path.dirname(target) or '.'), os.path.basename(target))
    mount = mounts.enclosing_mount(path, mounts.read_mounts())
    if mount is None or not mount.is_snapfs:
        if '/' in target or len(target) != 64:
            raise Invalid(f'{target} is not in a mount of snapfs')
        return None
    return output.call_watched('why', directory=os.path.dirname(path), node=os.lstat(path).st_ino)


def _render(found: Any) -> None:
    if not found['chunks']:
        output.say('It has no chunks of its own: an empty file, a link or a device.')
        return
    more = '' if found['whole'] else f' (the first {found["chunks"]}; it has more)'
    where = ', '.join(f'{one["chunks"]} in {_WHERE[one["table"]]}' for one in found['where'])
    output.say(f'chunks: {found["chunks"]}{more}: {where or "nowhere in this store"}')
    rows = []
    for one in found['keepers']:
        what = one['name'] if one['batch'] is None else f'{one["name"]}, in batch {one["batch"]}'
        kind = 'request' if one['kind'] == 'dropped' else one['kind']
        rows.append((kind, what, str(one['chunks']), output.size(one['bytes']), '\n'.join(one['files'])))
    output.table(('kept by', 'name', 'chunks', 'bytes', 'files'), rows, 'Nobody needs them.')


_WHERE = {'chunk': 'use', 'quarantine': 'quarantine', 'freed': 'packs that are to go'}
