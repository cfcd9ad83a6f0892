"""`.snapshots`: walking into the past, and administration by mkdir, mv and rmdir."""

from __future__ import annotations

import errno
import os
import stat

import pytest

from snapfs.mount.attributes import FOREVER
from tests.unit.mount.kit import ADMIN, USER, Kit, refused


async def test_a_snapshot_is_taken_entered_and_stays_as_it_was(kit: Kit) -> None:
    await kit.mkdir('home/docs')
    await kit.write('home/docs/a', b'old')
    node = await kit.mkdir('home/.snapshots/monday')
    assert node == await kit.node('home/.snapshots/monday')
    live = await kit.node('home/docs/a')
    await kit.adapter.write(live, 0, b'new')
    await kit.write('home/docs/b', b'')
    assert await kit.read('home/.snapshots/monday/docs/a') == b'old'
    assert await kit.read('home/docs/a') == b'new'
    assert await kit.list('home/.snapshots/monday/docs') == [b'a']
    entry = await kit.stat('home/.snapshots/monday/docs/a')
    assert (entry.attr_timeout, entry.entry_timeout) == (FOREVER, FOREVER)
    row = kit.engine.snapshot_find('home', 'monday')
    assert row.who == 'uid 0'


async def test_snapshots_is_everywhere_and_listed_nowhere(kit: Kit) -> None:
    await kit.mkdir('home/docs')
    assert await kit.exists('home/.snapshots')
    assert await kit.exists('home/docs/.snapshots')
    assert await kit.list('home') == [b'docs']
    assert await kit.list('home/docs') == []
    await kit.mkdir('home/.snapshots/monday')
    assert not await kit.exists('home/.snapshots/monday/.snapshots')
    assert not await kit.exists('.snapshots')
    assert not await kit.exists('home/.snapfs')
    assert not await kit.exists('home/.snapshots/.snapshots')
    await kit.rmdir('home/docs')


async def test_the_name_means_nothing_else(kit: Kit) -> None:
    home = await kit.node('home')
    await kit.mkdir('home/d')
    file = await kit.write('home/d/f', b'')
    deep = await kit.node('home/d')
    adapter = kit.adapter
    for parent in (home, deep):
        async with refused(errno.EPERM):
            await adapter.create(parent, b'.snapshots', 0o644, 0, ADMIN)
        async with refused(errno.EPERM):
            await adapter.mkdir(parent, b'.snapshots', 0o755, ADMIN)
        async with refused(errno.EPERM):
            await adapter.mknod(parent, b'.snapshots', stat.S_IFIFO | 0o644, 0, ADMIN)
        async with refused(errno.EPERM):
            await adapter.symlink(parent, b'.snapshots', b'x', ADMIN)
        async with refused(errno.EPERM):
            await adapter.link(file, parent, b'.snapshots', ADMIN)
        async with refused(errno.EPERM):
            await adapter.rmdir(parent, b'.snapshots', ADMIN)
        async with refused(errno.EPERM):
            await adapter.rename(deep, b'f', parent, b'.snapshots', 0, ADMIN)
        async with refused(errno.EPERM):
            await adapter.rename(parent, b'.snapshots', home, b'x', 0, ADMIN)
    async with refused(errno.EPERM):
        await adapter.mkdir(home, b'.snapfs', 0o755, ADMIN)
    await kit.mkdir('home/d/.snapfs')  # which means something in the top directory only
    await kit.write('home/.hidden', b'x')
    assert await kit.read('home/.hidden') == b'x'


async def test_a_renamed_directory_keeps_its_past(kit: Kit) -> None:
    await kit.mkdir('home/old')
    await kit.write('home/old/a', b'1')
    await kit.mkdir('home/.snapshots/before')
    await kit.mkdir('home/later')
    await kit.rename('home/old', 'home/later/new')
    await kit.unlink('home/later/new/a')
    assert await kit.read('home/later/new/.snapshots/before/a') == b'1'
    assert await kit.node('home/later/new/.snapshots/before') == await kit.node('home/.snapshots/before/old')
    assert await kit.list('home/later/new/.snapshots') == [b'before']
    assert await kit.list('home/later/.snapshots') == [], 'it did not exist then'
    assert not await kit.exists('home/later/.snapshots/before')
    await kit.mkdir('home/.snapshots/after')
    assert await kit.list('home/later/.snapshots') == [b'after']
    assert await kit.list('home/.snapshots', room=1) == [b'before', b'after']


async def test_everything_inside_a_snapshot_is_read_only(kit: Kit) -> None:
    await kit.mkdir('home/d')
    file = await kit.write('home/d/f', b'')
    await kit.adapter.setxattr(file, b'user.x', b'1', ADMIN)
    await kit.mkdir('home/.snapshots/s')
    home = await kit.node('home')
    top, inside = await kit.node('home/.snapshots/s'), await kit.node('home/.snapshots/s/d')
    old = await kit.node('home/.snapshots/s/d/f')
    adapter = kit.adapter
    for directory in (top, inside):
        attempts = (
            adapter.create(directory, b'x', 0o644, 0, ADMIN),
            adapter.mkdir(directory, b'x', 0o755, ADMIN),
            adapter.mkdir(directory, b'.snapshots', 0o755, ADMIN),
            adapter.mknod(directory, b'x', stat.S_IFIFO | 0o644, 0, ADMIN),
            adapter.symlink(directory, b'x', b'y', ADMIN),
            adapter.link(file, directory, b'x', ADMIN),
            adapter.unlink(directory, b'f', ADMIN),
            adapter.rmdir(directory, b'd', ADMIN),
            adapter.rename(directory, b'f', home, b'f', 0, ADMIN),
            adapter.rename(home, b'd', directory, b'd', 0, ADMIN),
            adapter.rename(directory, b'd', directory, b'e', 0, ADMIN),
        )
        for attempt in attempts:
            async with refused(errno.EROFS):
                await attempt
    async with refused(errno.EROFS):
        await kit.setattr(old, mode=0o600)
    async with refused(errno.EROFS):
        await adapter.write(old, 0, b'x')
    for flags in (os.O_WRONLY, os.O_RDWR, os.O_RDONLY | os.O_TRUNC):
        async with refused(errno.EROFS):
            await adapter.open(old, flags, ADMIN)
    async with refused(errno.EROFS):
        await adapter.setxattr(old, b'user.x', b'2', ADMIN)
    async with refused(errno.EROFS):
        await adapter.removexattr(old, b'user.x', ADMIN)
    async with refused(errno.EXDEV):
        await adapter.link(old, home, b'x', ADMIN)
    assert await adapter.getxattr(old, b'user.x', ADMIN) == b'1'
    assert await adapter.listxattr(old, ADMIN) == [b'user.x']


async def test_administration_is_for_the_volumes_top_directory(kit: Kit) -> None:
    await kit.mkdir('home/deep')
    await kit.mkdir('home/.snapshots/s')
    async with refused(errno.EPERM):
        await kit.mkdir('home/deep/.snapshots/t')
    async with refused(errno.EPERM):
        await kit.rmdir('home/deep/.snapshots/s')
    async with refused(errno.EPERM):
        await kit.rename('home/deep/.snapshots/s', 'home/deep/.snapshots/t')
    async with refused(errno.EPERM):
        await kit.rename('home/deep/.snapshots/s', 'home/.snapshots/t')
    assert [row.name for row in kit.engine.snapshot_list('home')] == ['s']


async def test_the_kernel_can_check_who_may(kit: Kit) -> None:
    await kit.setattr(await kit.node('home'), mode=0o775)
    await kit.mkdir('home/deep', USER, 0o777)
    top, deep = await kit.stat('home/.snapshots'), await kit.stat('home/deep/.snapshots')
    assert (stat.S_IMODE(top.st_mode), top.st_uid, top.st_gid) == (0o775, USER.uid, USER.gid)
    assert (stat.S_IMODE(deep.st_mode), deep.st_uid) == (0o555, USER.uid)
    assert stat.S_ISDIR(deep.st_mode)
    assert deep.attr_timeout <= 1


async def test_snapshots_are_renamed_and_never_replaced(kit: Kit) -> None:
    await kit.mkdir('home/.snapshots/a')
    await kit.mkdir('home/.snapshots/b')
    async with refused(errno.EEXIST):
        await kit.mkdir('home/.snapshots/a')
    async with refused(errno.EEXIST):
        await kit.rename('home/.snapshots/a', 'home/.snapshots/b')
    async with refused(errno.EINVAL):
        await kit.rename('home/.snapshots/a', 'home/.snapshots/b', 2)
    async with refused(errno.ENOENT):
        await kit.rename('home/.snapshots/x', 'home/.snapshots/y')
    await kit.rename('home/.snapshots/a', 'home/.snapshots/c', 1)
    assert await kit.list('home/.snapshots') == [b'c', b'b']
    await kit.mkdir('work')
    async with refused(errno.EXDEV):
        await kit.rename('home/.snapshots/b', 'work/.snapshots/b')
    for ends in (('home/.snapshots/b', 'home/b'), ('home/.snapshots/b', 'b')):
        async with refused(errno.EPERM):
            await kit.rename(*ends)
    await kit.mkdir('home/d')
    async with refused(errno.EPERM):
        await kit.rename('home/d', 'home/.snapshots/d')


async def test_rmdir_requests_the_deletion(kit: Kit) -> None:
    await kit.write('home/f', b'x')
    await kit.mkdir('home/.snapshots/s')
    inside = await kit.node('home/.snapshots/s/f')
    async with refused(errno.ENOENT):
        await kit.rmdir('home/.snapshots/t')
    await kit.rmdir('home/.snapshots/s', USER)
    assert await kit.list('home/.snapshots') == []
    request = kit.engine.request_list()[0]
    assert (request.kind, request.name, request.who) == ('snapshot', 's', 'uid 1000')
    assert await kit.adapter.read(inside, 0, 10) == b'x', 'who has it open may go on reading'


async def test_a_held_snapshot_stays(kit: Kit) -> None:
    await kit.mkdir('home/.snapshots/s')
    await kit.engine.hold_add('home', 's', 'audit', 'me', 'because')
    async with refused(errno.EBUSY):
        await kit.rmdir('home/.snapshots/s')
    assert await kit.list('home/.snapshots') == [b's']


async def test_only_directories_are_in_it(kit: Kit) -> None:
    place = await kit.node('home/.snapshots')
    adapter = kit.adapter
    for attempt in (
        lambda: adapter.create(place, b'x', 0o644, 0, ADMIN),
        lambda: adapter.symlink(place, b'x', b'y', ADMIN),
        lambda: adapter.mknod(place, b'x', stat.S_IFIFO, 0, ADMIN),
        lambda: adapter.unlink(place, b'x', ADMIN),
        lambda: kit.setattr(place, mode=0o700),
        lambda: adapter.setxattr(place, b'user.x', b'', ADMIN),
    ):
        async with refused(errno.EPERM):
            await attempt()
    async with refused(errno.ENODATA):
        await adapter.getxattr(place, b'user.x', ADMIN)
    assert list(await adapter.listxattr(place, ADMIN)) == []
    async with refused(errno.EINVAL):
        await adapter.readlink(place, ADMIN)


async def test_parents_of_snapshots(kit: Kit) -> None:
    await kit.mkdir('home/d')
    await kit.mkdir('home/.snapshots/s')
    node = kit.node
    lookup = kit.adapter.lookup

    async def above(path: str) -> int:
        return (await lookup(await node(path), b'..', ADMIN)).st_ino

    assert await above('home/.snapshots') == await node('home')
    assert await above('home/d/.snapshots') == await node('home/d')
    assert await above('home/.snapshots/s') == await node('home/.snapshots')
    assert await above('home/.snapshots/s/d') == await node('home/.snapshots/s')
    for path in ('home/.snapshots', 'home/.snapshots/s', 'home/.snapshots/s/d'):
        listed = {name: found for name, found, _ in await kit.entries(await node(path))}
        assert listed[b'.'] == await node(path)
        assert listed[b'..'] == await above(path)
    await kit.rename('home/.snapshots/s', 'home/.snapshots/t')
    assert await above('home/.snapshots/t') == await node('home/.snapshots')
    inside = await node('home/.snapshots/t')
    await kit.rmdir('home/.snapshots/t')
    assert (await lookup(inside, b'..', ADMIN)).st_ino == await node(kit.trash())


async def test_snapshots_of_a_removed_directory_are_stale(kit: Kit) -> None:
    await kit.mkdir('home/d')
    place = await kit.node('home/d/.snapshots')
    await kit.rmdir('home/d')
    async with refused(errno.ESTALE):
        await kit.adapter.getattr(place, ADMIN)
    async with refused(errno.ESTALE):
        await kit.entries(place)
    async with refused(errno.ESTALE):
        await kit.adapter.lookup(place, b'x', ADMIN)


@pytest.mark.parametrize('count', [40])
async def test_snapshots_in_use_are_bounded(kit: Kit, count: int) -> None:
    await kit.write('home/f', b'x')
    for number in range(count):
        await kit.mkdir(f'home/.snapshots/{number}')
    nodes = [await kit.node(f'home/.snapshots/{number}/f') for number in range(count)]
    assert len(kit.space.views) - len(kit.space.heads) <= 32
    for node in nodes:
        assert await kit.adapter.read(node, 0, 10) == b'x'
