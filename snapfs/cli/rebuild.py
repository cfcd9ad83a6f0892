"""L7 rebuild: the command `snapfs rebuild`. Main thread."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from snapfs.cli import output
from snapfs.errors import Invalid


@click.command('rebuild', epilog='Example: snapfs rebuild /srv/store /srv/store/catalog.new --install')
@click.argument('store', metavar='STORE')
@click.argument('target', metavar='NEW-CATALOG')
@click.option('--backup', metavar='FILE', help='Take names from this backup, not the newest.')
@click.option('--install', is_flag=True, help='Put it in place; the old one is kept.')
@click.option('--list-backups', 'only_list', is_flag=True, help='Only say which backups there are.')
@click.option('--json', 'as_json', is_flag=True, help='Print JSON.')
def rebuild_command(
    store: str, target: str, backup: str | None, install: bool, only_list: bool, as_json: bool
) -> None:
    """Make a new catalog for a store that has lost its own.

    Chunks come from the packs themselves, names from the newest backup; whole trees that nobody names any
    more become snapshots of a volume `recovered`. Nothing in the store is changed: the old catalog stays.
    The store must not be mounted. Afterwards the collector stands still until you have looked: snapfs
    incident list.
    """
    found = _rebuild(Path(store), Path(target), backup, install, only_list)
    if as_json:
        output.print_json(found)
    else:
        _render(found, store, target, install)


def _rebuild(store: Path, target: Path, backup: str | None, install: bool, only_list: bool) -> Any:
    from dataclasses import asdict

    from snapfs.format.superblock import SUPERBLOCK_BYTES, decode_superblock
    from snapfs.rescue import rebuild
    from snapfs.rescue.rebuild_install import install as install_new
    from snapfs.rescue.rebuild_install import refuse_whole
    from snapfs.store import backup as backups
    from snapfs.store.durable import Disk
    from snapfs.store.lock import StoreLock
    from snapfs.world import World

    world, disk = World(), Disk()
    if not (store / 'superblock').is_file():
        raise Invalid(f'{store} is not a snapfs store')
    store = store.resolve()
    block = decode_superblock(disk.read_file(store / 'superblock', SUPERBLOCK_BYTES))
    if only_list:
        folder = store / backups.FOLDER
        return {'backups': sorted(path.name for path in folder.glob('*.json'))}
    lock = StoreLock(disk, store / 'lock', world)
    lock.acquire()
    try:
        refuse_whole(store)
        if backup is None:
            chosen = rebuild.newest_backup(disk, store, block.uuid)
        else:
            path = Path(backup)
            if not path.is_file():
                raise Invalid(f'there is no backup {backup}')
            chosen = backups.decode(path, disk.read_file(path, 1 << 30), block.uuid)
        target = target.absolute()
        made = rebuild.Rebuild(disk, store, block.uuid, target, world.time_ns())
        result = made.run(chosen, _progress)
        if install:
            result.kept = install_new(disk, store, target, block.uuid, result.replay)
        return asdict(result)
    finally:
        lock.release()


def _progress(what: str, done: int, known: int) -> None:
    if sys.stderr.isatty():
        end = '\r' if done < known else '\r\x1b[K'
        sys.stderr.write(f'{what} {done}/{known}{end}')
        sys.stderr.flush()


def _render(found: Any, store: str, target: str, install: bool) -> None:
    if 'backups' in found:
        output.table(('backup',), [(name,) for name in found['backups']], 'There are no backups.')
        return
    names = (
        f'names as of epoch {found["backup_epoch"]}, from {found["backup"]}'
        if found['backup']
        else 'no backup'
    )
    output.say(f'{found["packs"]} packs, {found["chunks"]} chunks; {names}')
    output.say(f'{found["volumes"]} volumes and {found["snapshots"]} snapshots by name')
    if found['trees']:
        output.say(f'{found["trees"]} whole trees that nobody names: snapshots of the volume recovered')
    if found['hidden']:
        output.say(f'{found["hidden"]} more whole trees, older ones, stay in the packs and are not shown')
    if found['incomplete']:
        output.say(f'{found["incomplete"]} trees were not whole, and are left where they are')
    output.say(f'journal: {found["journal"]}')
    for text in found['bad']:
        output.say(f'could not be read: {text}')
    if install:
        for name in found['kept']:
            output.say(f'kept: {store}/{name}')
        output.say('It is in place. Next: snapfs fsck, mount, incident list')
    else:
        output.say(f'The new catalog is {target}. To put one in place, remove it and say --install')
