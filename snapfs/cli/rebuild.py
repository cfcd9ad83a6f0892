"""L7 rebuild: the command `snapfs rebuild`. Main thread."""

from __future__ import annotations

import errno
import sys
from pathlib import Path
from typing import Any

import click

from snapfs.cli import output
from snapfs.errors import Corrupt, Invalid, Refused


@click.command('rebuild', epilog='Example: snapfs rebuild /srv/store /srv/store/catalog.new --install')
@click.argument('store', metavar='STORE')
@click.argument('target', metavar='NEW-CATALOG', required=False)
@click.option('--backup', metavar='FILE', help='Take names from this backup, not the newest.')
@click.option('--install', is_flag=True, help='Put it in place; the old one is kept.')
@click.option('--journal', 'give_up', is_flag=True, help='Go on without what a damaged journal has lost.')
@click.option('--list-backups', 'only_list', is_flag=True, help='Only say which backups there are.')
@click.option('--json', 'as_json', is_flag=True, help='Print JSON.')
def rebuild_command(
    store: str,
    target: str | None,
    backup: str | None,
    install: bool,
    give_up: bool,
    only_list: bool,
    as_json: bool,
) -> None:
    """Make a new catalog for a store that has lost its own; or put back its superblock, or its journal.

    Chunks come from the packs themselves; names from the catalog, if other parts of it are damaged, else from
    the newest backup; whole trees that nobody names any more become snapshots of a volume `recovered`.
    Nothing in the store is changed: the old catalog stays.
    NEW-CATALOG is a new file: with --install one in the store, else one outside of it.
    The store must not be mounted. Afterwards the collector stands still until you have looked: snapfs
    incident list.

    Where the catalog is whole none is made. A damaged superblock is replaced by its copy. A damaged journal
    is replaced, with --journal, by its part before the damage: what fsync promised after that is lost. What
    was damaged stays in the store as superblock.lost-N and journal.lost-N.
    """
    found: Any
    if only_list:
        found = _backups(Path(store))
    elif target is None:
        example = f'snapfs rebuild {store} {Path(store) / "catalog.new"} --install'
        raise Invalid('which new catalog?', advice=f'Say: {example}.')
    else:
        found = _rebuild(Path(store), Path(target), backup, install, give_up)
    if as_json:
        output.print_json(found)
    else:
        _render(found, store, target or '', install)


def _backups(store: Path) -> Any:
    from snapfs import limits
    from snapfs.rescue import small_parts
    from snapfs.store import backup as backups
    from snapfs.store.durable import Disk

    disk = Disk()
    try:
        uuid = small_parts.find_superblock(disk, store).block.uuid
    except (FileNotFoundError, NotADirectoryError):
        raise Invalid(f'{store} is not a snapfs store') from None
    folder, told = store / backups.FOLDER, []
    for name in backups.names(disk, store):
        path = folder / name
        one: dict[str, Any] = {'name': name, 'path': str(path), 'made_ns': None, 'epoch': None}
        one |= {'volumes': None, 'snapshots': None, 'problem': None}
        try:
            found = backups.decode(path, disk.read_file(path, limits.BACKUP_BYTES_MAX), uuid)
            one |= {'made_ns': found.made_ns, 'epoch': found.epoch}
            one |= {'volumes': len(found.tables['volume']), 'snapshots': len(found.tables['snapshot'])}
        except (Corrupt, OSError) as error:
            one['problem'] = str(error)
        told.append(one)
    return {'backups': told}


def _rebuild(store: Path, target: Path, backup: str | None, install: bool, give_up: bool = False) -> Any:
    from dataclasses import asdict

    from snapfs.rescue import small_parts
    from snapfs.rescue.rebuild_install import catalog_is_whole
    from snapfs.rescue.rebuild_install import install as install_new
    from snapfs.rescue.rebuild_target import checked_target
    from snapfs.store.durable import Disk
    from snapfs.store.lock import StoreLock
    from snapfs.store.missing import refuse_links
    from snapfs.world import World

    world, disk = World(), Disk()
    store = store.resolve()
    try:
        found = small_parts.find_superblock(disk, store)
    except (FileNotFoundError, NotADirectoryError):
        raise Invalid(f'{store} is not a snapfs store') from None
    refuse_links(store)
    uuid = found.block.uuid
    lock = StoreLock(disk, store / 'lock', world)
    lock.acquire()
    try:
        if catalog_is_whole(disk, store):
            return _small(disk, store, found, install, give_up)
        target = checked_target(disk, store, target, install)
        result = _made(disk, store, uuid, target, backup, world.time_ns())
        if install:
            result.kept = small_parts.restore_superblock(disk, store, found.block) if found.problem else []
            result.kept += install_new(disk, store, target, uuid, result.replay)
        return {**asdict(result), 'read_only': disk.is_read_only(store)}
    finally:
        lock.release()


def _made(disk: Any, store: Path, uuid: bytes, target: Path, backup: str | None, now_ns: int) -> Any:
    """Make the new catalog: with the names of the backup that was asked for, or those of the damaged catalog
    if they prove themselves, or those of the newest backup."""
    from snapfs.rescue import rebuild_names
    from snapfs.rescue.rebuild import Rebuild
    from snapfs.rescue.rebuild_target import check_room
    from snapfs.store import backup as backups

    kept, doubt = None, ''
    if backup is None:
        kept = backups.newest(disk, store, uuid)
        try:
            read = rebuild_names.names_in_catalog(disk, store, uuid, now_ns, kept)
            if read is not None:
                check_room(disk, target, read)
                trees = rebuild_names.trees_to_prove(read, kept)
                return Rebuild(disk, store, uuid, target, now_ns).run(read, _progress, trees)
        except rebuild_names.Unproved as error:
            doubt = str(error)
    else:
        path = Path(backup)
        if not path.is_file():
            raise Invalid(f'there is no backup {backup}')
        kept = backups.decode(path, disk.read_file(path, 1 << 30), uuid)
    check_room(disk, target, kept)
    result = Rebuild(disk, store, uuid, target, now_ns).run(kept, _progress)
    result.doubt = doubt
    return result


def _small(disk: Any, store: Path, found: Any, install: bool, give_up: bool) -> Any:
    """The catalog is whole: put back what else is damaged. Refused when that would give up what was
    promised, and nobody asked for it; or when nothing is damaged."""
    from snapfs.rescue import rebuild_install, small_parts

    uuid, position = found.block.uuid, small_parts.position_of(store)
    problem = small_parts.journal_problem(disk, store / 'journal', uuid, position)
    if not problem and not found.problem:
        rebuild_install.refuse_whole(disk, store)
    if problem and not (give_up or position.clean):
        raise Refused(
            errno.EPERM,
            f'the catalog is whole, and the journal is not: {problem}',
            advice='What fsync promised after the damage is lost. To go on without it, add --journal; the '
            'journal as it is will be kept.',
        )
    told = {'small': True, 'superblock': found.problem, 'journal': problem, 'records': 0, 'kept': []}
    if install and found.problem:
        told['kept'] += small_parts.restore_superblock(disk, store, found.block)
    if install and problem:
        mended = small_parts.mend_journal(disk, store, uuid, position)
        told['records'] = mended.records
        told['kept'] += [mended.kept] if mended.kept else []
    return told


def _progress(what: str, done: int, known: int) -> None:
    if sys.stderr.isatty():
        end = '\r' if done < known else '\r\x1b[K'
        sys.stderr.write(f'{what} {done}/{known}{end}')
        sys.stderr.flush()


def _render(found: Any, store: str, target: str, install: bool) -> None:
    if 'backups' in found:
        columns = ('made (UTC)', 'epoch', 'volumes', 'snapshots', 'backup')
        output.table(columns, [_backup_row(one) for one in found['backups']], 'There are no backups.')
        for one in found['backups']:
            if one['problem']:
                output.say(one['problem'])
        return
    if 'small' in found:
        _render_small(found, store, install)
        return
    names = (
        f'names as of epoch {found["backup_epoch"]}, from {found["backup"]}'
        if found['backup']
        else 'no backup'
    )
    if found['doubt']:
        output.say(f'names are not taken from the damaged catalog: {found["doubt"]}')
    output.say(f'{found["packs"]} packs, {found["chunks"]} chunks; {names}')
    output.say(f'{found["volumes"]} volumes and {found["snapshots"]} snapshots by name')
    if found['backup'] and not found['replay']:
        output.say('Volumes are as they were then: what was written since is not in them')
    if found['trees']:
        output.say(f'{found["trees"]} whole trees that nobody names: snapshots of the volume recovered')
    if found['hidden']:
        output.say(f'{found["hidden"]} more whole trees, older ones, stay in the packs and are not shown')
    if found['incomplete']:
        output.say(f'{found["incomplete"]} trees were not whole, and are left where they are')
    output.say(f'journal: {found["journal"]}')
    for text in found['bad']:
        output.say(f'could not be read: {text}')
    if found['bad_count'] > len(found['bad']):
        output.say(f'and {found["bad_count"] - len(found["bad"])} more could not be read')
    if install:
        for name in found['kept']:
            output.say(f'kept: {store}/{name}')
        output.say(f'It is in place. Next: snapfs fsck {store}; then snapfs incident list --store {store}')
    else:
        when = ', when the disk below the store can be written again' if found['read_only'] else ''
        output.say(
            f'The new catalog is {target}. To put one in place{when}: '
            f'snapfs rebuild {store} {Path(store) / "catalog.new"} --install'
        )


def _backup_row(one: Any) -> tuple[str, ...]:
    if one['problem']:
        return ('unusable', '-', '-', '-', one['path'])
    counts = (one['epoch'], one['volumes'], one['snapshots'])
    return (output.moment_utc(one['made_ns']), *map(str, counts), one['path'])


def _render_small(found: Any, store: str, install: bool) -> None:
    output.say('The catalog is whole; none was made.')
    word = 'was put back' if install else 'can be put back: add --install'
    if found['superblock']:
        output.say(f'superblock: {found["superblock"]}. Its copy {word}.')
    if found['journal']:
        output.say(f'journal: {found["journal"]}')
        if install:
            output.say(f'{found["records"]} records before the damage will be replayed.')
        else:
            output.say('Its part before the damage can be put back: add --install.')
    for name in found['kept']:
        output.say(f'kept: {store}/{name}')
    if install:
        output.say(f'Next: snapfs fsck {store}')
