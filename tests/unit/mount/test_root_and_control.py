"""The root of a mount, `.snapfs`, mounts of one volume, and taking deletions back."""

from __future__ import annotations

import errno
import os
import stat

import pytest

from snapfs.errors import Unavailable
from snapfs.mount.adapter import Adapter
from snapfs.mount.control import status_lines
from snapfs.mount.requests import request_text
from tests.unit.mount.kit import ADMIN, ROOT, USER, Kit, refused


async def test_volumes_are_made_renamed_and_removed(kit: Kit) -> None:
    await kit.mkdir('work', USER, 0o750)
    entry = await kit.stat('work')
    assert (stat.S_IMODE(entry.st_mode), entry.st_uid) == (0o750, USER.uid)
    assert await kit.list('') == [b'home', b'work']
    known = kit.adapter._counts[await kit.node('work')]
    await kit.list('')
    assert kit.adapter._counts[await kit.node('work')] == known + 2, 'the listing and the look-up'
    async with refused(errno.EEXIST):
        await kit.mkdir('home')
    async with refused(errno.EEXIST):
        await kit.rename('home', 'work')
    async with refused(errno.EINVAL):
        await kit.rename('home', 'work', 2)
    await kit.rename('home', 'house')
    assert await kit.list('', room=1) == [b'house', b'work']
    async with refused(errno.ENOENT):
        await kit.rename('home', 'x')
    await kit.rmdir('work', USER)
    assert await kit.list('') == [b'house']
    assert [(row.kind, row.volume_name, row.who) for row in kit.engine.request_list()] == [
        ('volume', 'work', 'uid 1000')
    ]
    async with refused(errno.ENOENT):
        await kit.rmdir('work')


async def test_only_an_empty_volume_without_snapshots_is_removed(kit: Kit) -> None:
    await kit.write('home/f', b'')
    async with refused(errno.ENOTEMPTY):
        await kit.rmdir('home')
    await kit.mkdir('home/.snapshots/s')
    await kit.unlink('home/f')
    async with refused(errno.ENOTEMPTY):
        await kit.rmdir('home')
    await kit.rmdir('home/.snapshots/s')
    await kit.rmdir('home')


async def test_the_root_belongs_to_the_stores_owner_and_holds_nothing_else(kit: Kit) -> None:
    entry = await kit.stat('')
    owner = os.stat(kit.engine.store.path)
    assert (entry.st_ino, entry.st_mode, entry.st_uid) == (ROOT, stat.S_IFDIR | 0o755, owner.st_uid)
    async with refused(errno.EPERM):
        await kit.write('file', b'')
    async with refused(errno.EPERM):
        await kit.adapter.unlink(ROOT, b'home', ADMIN)
    for name in (b'.snapfs', b'.snapshots'):
        async with refused(errno.EPERM):
            await kit.adapter.mkdir(ROOT, name, 0o755, ADMIN)
    async with refused(errno.EPERM):
        await kit.rmdir('.snapfs')
    async with refused(errno.EPERM):
        await kit.rename('.snapfs', 'x')
    missing = await kit.adapter.lookup(ROOT, b'nothing', ADMIN)
    assert (missing.st_ino, missing.entry_timeout) == (0, 0), 'the command line may make it any time'
    await kit.mkdir('home/d')
    async with refused(errno.EXDEV):
        await kit.rename('home/d', 'd')


async def test_control_is_read_and_never_listed(kit: Kit) -> None:
    assert await kit.list('') == [b'home']
    names = [b'health', b'trash', b'pending', b'incidents', b'quarantine', b'verified']
    assert await kit.list('.snapfs', room=1) == names
    text = await kit.read('.snapfs/health')
    assert text.startswith(b'ok\n')
    assert b'\nvolumes: 1\n' in text
    entry = await kit.stat('.snapfs/health')
    assert entry.st_size == len(await kit.read('.snapfs/health'))
    assert entry.st_mode == stat.S_IFREG | 0o444
    info = await kit.adapter.open(entry.st_ino, os.O_RDONLY, ADMIN)
    assert info.direct_io
    await kit.adapter.release(info.fh)
    assert kit.adapter._texts == {}
    for flags in (os.O_WRONLY, os.O_RDWR, os.O_TRUNC):
        async with refused(errno.EPERM):
            await kit.adapter.open(entry.st_ino, flags, ADMIN)
    async with refused(errno.EISDIR):
        await kit.adapter.open(await kit.node('.snapfs/trash'), os.O_RDONLY, ADMIN)
    async with refused(errno.ENOTDIR):
        await kit.adapter.lookup(entry.st_ino, b'x', ADMIN)
    async with refused(errno.EPERM):
        await kit.write('.snapfs/x', b'')
    async with refused(errno.EPERM):
        await kit.mkdir('.snapfs/trash/x')
    assert not await kit.exists('.snapfs/x')


async def test_a_text_stays_the_same_while_it_is_open(kit: Kit) -> None:
    info = await kit.adapter.open(await kit.node('.snapfs/health'), os.O_RDONLY, ADMIN)
    before = await kit.adapter.read(info.fh, 0, 1 << 20)
    await kit.mkdir('work')
    assert await kit.adapter.read(info.fh, 3, 10) == before[3:13]
    assert await kit.read('.snapfs/health') != before


async def test_a_deleted_snapshot_can_be_read_and_taken_back(kit: Kit) -> None:
    await kit.write('home/f', b'precious')
    await kit.mkdir('home/.snapshots/monday')
    await kit.rmdir('home/.snapshots/monday', USER)
    trash = kit.trash()
    number = trash.rpartition('/')[2]
    assert await kit.list('.snapfs/trash') == [number.encode()]
    assert await kit.list('.snapfs/pending') == [number.encode(), b'dropped-1'], 'the latter by the commit'
    assert await kit.list(trash, room=1) == [b'request', b'tree']
    assert await kit.read(f'{trash}/tree/f') == b'precious'
    text = await kit.read(f'{trash}/request')
    assert b'what: snapshot home@monday\n' in text
    assert b'by: uid 1000\n' in text
    assert f"take back: mv '{trash}' 'home/.snapshots/monday'\n".encode() in text
    assert await kit.read(f'.snapfs/pending/{number}') == text
    async with refused(errno.EROFS):
        await kit.write(f'{trash}/tree/x', b'')
    await kit.mkdir('work')
    await kit.mkdir('home/d')
    async with refused(errno.EXDEV):
        await kit.rename(trash, 'work/.snapshots/monday')
    for target in ('monday', 'home/d/.snapshots/monday', 'home/monday', '.snapfs/pending/x'):
        async with refused(errno.EPERM):
            await kit.rename(trash, target)
    async with refused(errno.ENOENT):
        await kit.rename('.snapfs/trash/999', 'home/.snapshots/monday')
    await kit.rename(trash, 'home/.snapshots/tuesday')
    assert await kit.list('home/.snapshots') == [b'tuesday']
    assert await kit.read('home/.snapshots/tuesday/f') == b'precious'
    assert await kit.list('.snapfs/trash') == []
    assert not await kit.exists(trash)


async def test_a_deletion_is_not_taken_back_over_another_snapshot(kit: Kit) -> None:
    await kit.mkdir('home/.snapshots/a')
    await kit.rmdir('home/.snapshots/a')
    trash = kit.trash()
    await kit.mkdir('home/.snapshots/a')
    async with refused(errno.EEXIST):
        await kit.rename(trash, 'home/.snapshots/a')


async def test_a_deleted_volume_can_be_taken_back(kit: Kit) -> None:
    file = await kit.write('home/f', b'precious')
    await kit.engine.volume_delete('home', 'me')
    trash = kit.trash()
    assert await kit.list('') == []
    async with refused(errno.ESTALE):
        await kit.adapter.getattr(file, ADMIN)
    assert await kit.read(f'{trash}/tree/f') == b'precious'
    assert f"take back: mv '{trash}' 'home'\n".encode() in await kit.read(f'{trash}/request')
    tree = await kit.node(f'{trash}/tree')
    await kit.rename(trash, 'back')
    async with refused(errno.ESTALE):
        await kit.adapter.getattr(tree, ADMIN)
    assert await kit.read('back/f') == b'precious'
    assert await kit.node('back/f') == file
    # The kernel has had the file in use all the time: its name may go, the file stays.
    await kit.unlink('back/f')
    assert await kit.adapter.read(file, 0, 100) == b'precious'


async def test_the_owner_of_a_tree_may_take_its_deletion_back(kit: Kit) -> None:
    await kit.mkdir('home/.snapshots/s')
    await kit.rmdir('home/.snapshots/s')
    trash, pending = kit.trash(), kit.trash().replace('trash', 'pending')
    entry = await kit.stat(trash)
    assert (await kit.stat('.snapfs/trash')).st_mode == stat.S_IFDIR | 0o1777
    assert (entry.st_mode, entry.st_uid, entry.st_gid) == (stat.S_IFDIR | 0o700, USER.uid, USER.gid)
    text = await kit.stat(pending)
    assert (text.st_mode, text.st_uid) == (stat.S_IFREG | 0o440, USER.uid)
    for path in (trash, f'{trash}/request', pending, '.snapfs/health'):
        assert (await kit.stat(path)).entry_timeout == 0


async def test_parents_below_control(kit: Kit) -> None:
    await kit.mkdir('home/.snapshots/s')
    await kit.rmdir('home/.snapshots/s')
    trash, pending = kit.trash(), kit.trash().replace('trash', 'pending')
    for path in ('.snapfs', '.snapfs/trash', '.snapfs/health', trash, pending):
        found = await kit.adapter.lookup(await kit.node(path), b'..', ADMIN)
        assert found.st_ino == await kit.node(path.rpartition('/')[0])
    request = await kit.adapter.lookup(await kit.node(f'{trash}/request'), b'..', ADMIN)
    assert request.st_ino == await kit.node(trash)
    tree = await kit.adapter.lookup(await kit.node(f'{trash}/tree'), b'..', ADMIN)
    assert tree.st_ino == await kit.node(trash)


async def test_request_text_of_what_cannot_be_taken_back(kit: Kit) -> None:
    await kit.mkdir('home/.snapshots/s')
    await kit.rmdir('home/.snapshots/s')
    await kit.rmdir('home')
    text = request_text(kit.engine.request_list()[0], None)
    assert 'take back' not in text, 'its volume is gone'
    assert 'what: snapshot home@s\n' in text


# --- mounts of one volume --------------------------------------------------------------------------------
async def test_one_volume_alone(kit: Kit) -> None:
    await kit.mkdir('home/d')
    file = await kit.write('home/d/f', b'x')
    await kit.mkdir('work')
    alone = Kit(kit.engine, 'home')
    assert (await alone.stat('')).st_ino == ROOT
    assert await alone.list('') == [b'd']
    assert await alone.node('d/f') == file, 'numbers are those of a mount of the whole store'
    await alone.write('g', b'y')
    assert await alone.read('g') == b'y'
    await alone.mkdir('.snapshots/s')
    assert await alone.read('.snapshots/s/d/f') == b'x'
    assert await alone.list('d/.snapshots') == [b's']
    assert (await alone.read('.snapfs/health')).startswith(b'ok\n')
    await alone.rmdir('.snapshots/s')
    await alone.rename(alone.trash(), '.snapshots/t')
    assert await alone.list('.snapshots') == [b't']
    assert (await alone.adapter.lookup(await alone.node('d'), b'..', ADMIN)).st_ino == ROOT
    assert (await alone.adapter.lookup(await alone.node('.snapshots'), b'..', ADMIN)).st_ino == ROOT
    assert {node for _, node, _ in (await alone.entries(ROOT))[:2]} == {ROOT}
    for name in (b'.snapfs', b'.snapshots'):
        async with refused(errno.EPERM):
            await alone.adapter.mkdir(ROOT, name, 0o755, ADMIN)
    await kit.engine.volume_rename('home', 'house')
    assert await alone.read('g') == b'y'


async def test_a_volume_that_is_not_there_cannot_be_mounted(kit: Kit) -> None:
    with pytest.raises(Unavailable, match='there is no volume nothing'):
        Adapter(kit.engine, volume='nothing')


async def test_directories_of_no_volume_belong_to_whom_the_mount_says(kit: Kit) -> None:
    adapter = Adapter(kit.engine, uid=7, gid=8)
    entry = await adapter.getattr(ROOT, ADMIN)
    assert (entry.st_uid, entry.st_gid) == (7, 8)


def test_figures_of_health_are_a_line_each() -> None:
    """A list is told by its length and its entries, not as one line that nobody reads."""
    status = {'damaged': ['one', 'two'], 'incidents': [{'number': 1, 'reason': 'r'}], 'counters': {'a': 1}}
    assert status_lines('', status) == [
        'damaged: 2', 'damaged.1: one', 'damaged.2: two', 'incidents: 1', 'incidents.1.number: 1',
        'incidents.1.reason: r', 'counters.a: 1',
    ]  # fmt: skip
