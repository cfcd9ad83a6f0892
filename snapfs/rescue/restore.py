"""L4 restore: makes packs of nodes again from their copies. Blocking; in a thread of the store's owner, while
no batch moves. What is done was decided by a look at the copies (copies.py), and is looked at once more.

A pack is written beside its place, synced, and gets its name: whatever ends it, there is what was there, or
all of it. A file that is replaced was the beginning of the new one, or had a wrong footer and is
kept. The catalog's row changes last, and only
where a pack had never got its footer: one that was open when it lost something."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from snapfs.errors import SnapfsError
from snapfs.format.ids import RecordKind
from snapfs.rescue.copies import Content, adds_only, content_of, is_odd, named_end, only_damaged
from snapfs.rescue.rebuild_install import free_name
from snapfs.rescue.recover_values import PackCopy
from snapfs.store.packs import pack_path
from snapfs.store.recovery import PACK_FILE_BYTES_MAX
from snapfs.store.rows import PackRow
from snapfs.store.store import Store

log = logging.getLogger('snapfs.rescue')


def restore_packs(store: Store, plan: Iterable[PackCopy]) -> dict[bytes, int]:
    """Make packs again; return how many nodes each of them has, by its name. What is not as it was planned is
    left alone. Refused(ENOSPC): what was made stays. Latched when the disk failed."""
    made: dict[bytes, int] = {}
    writing = store.chunks.writers[RecordKind.NODE].numbers()
    rows = {row.pack: row for row in store.catalog.packs()}
    for one in plan:
        row = rows.get(one.pack)
        if row is None or row.name != one.name or row.state == 'retired' or row.pack in writing:
            continue
        if not is_odd(store.disk, store.path, row):
            continue
        named = named_end(store.catalog.query, row.pack)
        content = content_of(store.disk, store.path, store.superblock.uuid, row, named)
        if content is None or not adds_only(store.disk, store.path, row, content):
            continue
        _keep_damaged(store, row, content)
        _write(store, row, content)
        _note(store, row, content)
        log.warning('pack %s was made again from its copy', row.name.hex())
        made[row.name] = len(content.entries)
    return made


def _keep_damaged(store: Store, row: PackRow, content: Content) -> None:
    """Keep a file that is not merely the beginning of the new one, as STORE/pack.lost-NAME-N."""
    disk, path = store.disk, pack_path(store.path / 'packs', row.kind, row.name)
    if disk.exists(path):
        now = disk.read_file(path, PACK_FILE_BYTES_MAX)
        if only_damaged(now, content):
            name = free_name(disk, store.path, f'pack.lost-{row.name.hex()}-', [''])
            disk.write_file(store.path / name, now)
            log.warning('pack %s is damaged; it is kept as %s', row.name.hex(), name)


def _write(store: Store, row: PackRow, content: Content) -> None:
    disk, path = store.disk, pack_path(store.path / 'packs', row.kind, row.name)
    if disk.mkdir(path.parent):
        disk.sync_directory(path.parent.parent)
    try:
        disk.write_file(path, content.data)
    except SnapfsError:
        temporary = path.with_name(path.name + '.new')
        if disk.latched is None and disk.exists(temporary):
            disk.unlink(temporary)  # the disk is full: it only takes room
        raise
    store.chunks.reopen_pack(row.pack)


def _note(store: Store, row: PackRow, content: Content) -> None:
    """Let everybody know what is whole again."""
    ids = {entry.id for entry in content.entries}
    if len(content.data) != row.bytes or row.state != 'sealed':
        store.catalog.put_packs(
            [PackRow(row.pack, row.name, row.kind, 'sealed', len(content.data), len(content.entries))]
        )
    store.chunks.mirrored.difference_update(ids)
    lost = ids & store.chunks.unreadable
    if lost:
        store.chunks.unreadable.difference_update(lost)
        with store.catalog.transaction() as db:
            db.executemany('DELETE FROM damage WHERE id = ?', [(id,) for id in lost])
