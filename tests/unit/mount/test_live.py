"""Files of a live volume, through the handlers."""

from __future__ import annotations

import errno
import os
import stat

import pyfuse3

from snapfs import limits
from snapfs.errors import Latched, Refused
from snapfs.mount.attributes import FOREVER
from tests.unit.mount.kit import ADMIN, USER, Kit, refused


async def test_what_is_written_is_read(kit: Kit) -> None:
    await kit.mkdir('home/docs', USER)
    await kit.write('home/docs/letter', b'Dear John', USER)
    assert await kit.read('home/docs/letter') == b'Dear John'
    entry = await kit.stat('home/docs/letter')
    assert (entry.st_size, entry.st_uid, entry.st_gid) == (9, USER.uid, USER.gid)
    assert entry.st_mode == stat.S_IFREG | 0o644
    assert entry.st_blocks > 0
    assert await kit.list('home/docs') == [b'letter']


async def test_the_kernel_may_keep_what_it_is_told_of_live_files(kit: Kit) -> None:
    await kit.write('home/a', b'x')
    entry = await kit.stat('home/a')
    assert (entry.entry_timeout, entry.attr_timeout) == (FOREVER, FOREVER)
    info = await kit.adapter.open(entry.st_ino, os.O_RDWR, ADMIN)
    assert info.keep_cache
    assert not info.direct_io
    missing = await kit.adapter.lookup(await kit.node('home'), b'nothing', ADMIN)
    assert (missing.st_ino, missing.entry_timeout) == (0, FOREVER)


async def test_attributes_are_made_once_per_change(kit: Kit) -> None:
    node = await kit.write('home/a', b'x')
    first = await kit.stat('home/a')
    assert await kit.stat('home/a') is first
    assert await kit.adapter.lookup(await kit.node('home'), b'a', ADMIN) is first
    await kit.adapter.write(node, 1, b'y')
    second = await kit.stat('home/a')
    assert second is not first
    assert (first.st_size, second.st_size) == (1, 2)


async def test_attributes_are_set_one_by_one(kit: Kit) -> None:
    node = await kit.write('home/a', b'0123456789', USER)
    before = await kit.stat('home/a')
    after = await kit.setattr(node, mode=stat.S_IFREG | 0o600)
    assert after.st_mode == stat.S_IFREG | 0o600
    assert after.st_mtime_ns == before.st_mtime_ns
    after = await kit.setattr(node, uid=5)
    assert (after.st_uid, after.st_gid) == (5, USER.gid)
    after = await kit.setattr(node, gid=6)
    assert (after.st_uid, after.st_gid) == (5, 6)
    after = await kit.setattr(node, size=3)
    assert await kit.read('home/a') == b'012'
    after = await kit.setattr(node, mtime=1_000_000_007)
    assert after.st_mtime_ns == 1_000_000_007
    assert after.st_atime_ns == before.st_atime_ns
    after = await kit.setattr(node, atime=-5)
    assert (after.st_atime_ns, after.st_mtime_ns) == (-5, 1_000_000_007)
    assert after.st_ctime_ns > before.st_ctime_ns


async def test_open_truncates(kit: Kit) -> None:
    node = await kit.write('home/a', b'0123456789')
    await kit.adapter.open(node, os.O_WRONLY, ADMIN)
    assert (await kit.stat('home/a')).st_size == 10
    await kit.adapter.open(node, os.O_WRONLY | os.O_TRUNC, ADMIN)
    assert (await kit.stat('home/a')).st_size == 0


async def test_names_of_all_kinds(kit: Kit) -> None:
    home = await kit.node('home')
    file = await kit.write('home/file', b'x')
    link = await kit.adapter.symlink(home, b'soft', b'file', ADMIN)
    assert await kit.adapter.readlink(link.st_ino, ADMIN) == b'file'
    assert stat.S_ISLNK(link.st_mode)
    hard = await kit.adapter.link(file, home, b'hard', ADMIN)
    assert (hard.st_ino, hard.st_nlink) == (file, 2)
    device = await kit.adapter.mknod(home, b'null', stat.S_IFCHR | 0o666, os.makedev(1, 3), ADMIN)
    assert (device.st_mode, device.st_rdev) == (stat.S_IFCHR | 0o666, os.makedev(1, 3))
    await kit.mkdir('home/sub')
    assert sorted(await kit.list('home')) == [b'file', b'hard', b'null', b'soft', b'sub']
    await kit.unlink('home/file')
    assert (await kit.stat('home/hard')).st_nlink == 1
    await kit.rmdir('home/sub')
    await kit.rename('home/hard', 'home/harder')
    assert sorted(await kit.list('home')) == [b'harder', b'null', b'soft']


async def test_rename_flags_reach_the_volume(kit: Kit) -> None:
    await kit.write('home/a', b'A')
    await kit.write('home/b', b'B')
    async with refused(errno.EEXIST):
        await kit.rename('home/a', 'home/b', pyfuse3.RENAME_NOREPLACE)
    await kit.rename('home/a', 'home/b', pyfuse3.RENAME_EXCHANGE)
    assert (await kit.read('home/a'), await kit.read('home/b')) == (b'B', b'A')
    async with refused(errno.EINVAL):
        await kit.rename('home/a', 'home/b', 4)


async def test_nothing_crosses_volumes(kit: Kit) -> None:
    await kit.mkdir('work')
    file = await kit.write('home/a', b'A')
    async with refused(errno.EXDEV):
        await kit.rename('home/a', 'work/a')
    async with refused(errno.EXDEV):
        await kit.adapter.link(file, await kit.node('work'), b'a', ADMIN)


async def test_an_open_file_outlives_its_name_until_forgotten(kit: Kit) -> None:
    node = await kit.write('home/a', b'still here')
    await kit.unlink('home/a')
    assert await kit.adapter.read(node, 0, 100) == b'still here'
    known = kit.adapter._counts[node]
    await kit.adapter.forget([(node, known - 1)])
    assert await kit.adapter.read(node, 0, 100) == b'still here'
    await kit.adapter.forget([(node, 1)])
    assert node not in kit.adapter.known()
    async with refused(errno.ESTALE):
        await kit.adapter.read(node, 0, 100)


async def test_every_entry_the_kernel_learns_is_counted(kit: Kit) -> None:
    node = await kit.write('home/a', b'')
    home = await kit.node('home')
    count, home_count = kit.adapter._counts[node], kit.adapter._counts[home]
    await kit.adapter.lookup(home, b'a', ADMIN)
    await kit.entries(home)
    await kit.adapter.link(node, home, b'b', ADMIN)
    await kit.entries(home, 1)
    assert kit.adapter._counts[node] == count + 1 + 1 + 1 + 2
    assert kit.adapter._counts[home] == home_count, '. and .. do not count'


async def test_a_file_known_by_its_handle_alone_is_in_use(kit: Kit) -> None:
    file = await kit.write('home/a', b'still here')
    await kit.adapter.forget([(file, 1)])
    await kit.adapter.lookup(file, b'.', ADMIN)
    await kit.adapter.unlink(await kit.node('home'), b'a', ADMIN)
    assert await kit.adapter.read(file, 0, 100) == b'still here'


async def test_a_listing_goes_on_where_it_stopped(kit: Kit) -> None:
    wanted = {b'%d' % number for number in range(150)}
    for name in wanted:
        await kit.write(f'home/{name.decode()}', b'')
    home = await kit.node('home')
    for room in (1, 2, 7, 1000):
        entries = await kit.entries(home, room)
        assert [name for name, _, _ in entries[:2]] == [b'.', b'..']
        assert [node for _, node, _ in entries[:2]] == [home, 1]
        names = [name for name, _, _ in entries[2:]]
        assert len(names) == len(wanted)
        assert set(names) == wanted


async def test_names_that_share_a_position_are_never_skipped(kit: Kit) -> None:
    for name in ('one', 'two', 'three'):
        await kit.write(f'home/{name}', b'')
    head = kit.engine.head('home')
    assert head is not None
    node = {name: await kit.node(f'home/{name}') for name in ('one', 'two', 'three')}
    colliding = [(5, b'one'), (7, b'three'), (7, b'two')]

    async def list_directory(parent: object, after: int, count: int) -> list[tuple[int, bytes, int, int]]:
        ino_mask = (1 << limits.INO_BITS) - 1
        return [
            (cookie, name, node[name.decode()] & ino_mask, 8) for cookie, name in colliding if cookie > after
        ]

    head.list_directory = list_directory  # type: ignore[method-assign]
    home = await kit.node('home')
    assert [name for name, _, _ in await kit.entries(home, 10)][2:] == [b'one', b'three', b'two']
    # A buffer that ends between the two: the next answer begins with both again.
    starts = [start for name, _, start in await kit.entries(home, 10) if name == b'three']
    assert starts == [6]


async def test_extended_attributes(kit: Kit) -> None:
    node = await kit.write('home/a', b'')
    async with refused(errno.ENODATA):
        await kit.adapter.getxattr(node, b'security.capability', ADMIN)
    async with refused(errno.ENOTSUP):
        await kit.adapter.getxattr(node, b'system.posix_acl_access', ADMIN)
    async with refused(errno.ENOTSUP):
        await kit.adapter.setxattr(node, b'system.posix_acl_access', b'', ADMIN)
    await kit.adapter.setxattr(node, b'user.colour', b'red', ADMIN)
    assert await kit.adapter.getxattr(node, b'user.colour', ADMIN) == b'red'
    assert await kit.adapter.listxattr(node, ADMIN) == [b'user.colour']
    async with refused(errno.E2BIG):
        await kit.adapter.setxattr(node, b'user.big', bytes(limits.XATTR_VALUE_BYTES_MAX + 1), ADMIN)
    async with refused(errno.ERANGE):
        await kit.adapter.setxattr(node, b'user.' + b'x' * limits.XATTR_NAME_BYTES_MAX, b'', ADMIN)
    await kit.adapter.removexattr(node, b'user.colour', ADMIN)
    async with refused(errno.ENODATA):
        await kit.adapter.removexattr(node, b'user.colour', ADMIN)


async def test_the_kernel_never_asks_again_about_close_and_access(kit: Kit) -> None:
    node = await kit.write('home/a', b'')
    async with refused(errno.ENOSYS):
        await kit.adapter.flush(node)
    async with refused(errno.ENOSYS):
        await kit.adapter.access(node, os.R_OK, ADMIN)


async def test_statfs_is_that_of_the_engine(kit: Kit) -> None:
    answer = await kit.adapter.statfs(ADMIN)
    below = kit.engine.statfs()
    assert (answer.f_frsize, answer.f_blocks, answer.f_namemax) == (below.f_frsize, below.f_blocks, 255)


async def test_fsync_makes_everything_durable(kit: Kit, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    node = await kit.write('home/a', b'x')
    calls = []

    async def sync() -> None:
        calls.append('sync')

    monkeypatch.setattr(kit.engine, 'sync', sync)
    await kit.adapter.fsync(node, False)
    await kit.adapter.fsyncdir(await kit.node('home'), True)
    assert calls == ['sync', 'sync']

    async def latched() -> None:
        raise Latched('a sync failed')

    monkeypatch.setattr(kit.engine, 'sync', latched)
    async with refused(errno.EIO):
        await kit.adapter.fsync(node, True)


async def test_file_handles_from_before_a_remount(kit: Kit) -> None:
    await kit.mkdir('home/docs')
    docs, file = await kit.node('home/docs'), await kit.write('home/docs/a', b'x')
    home = await kit.node('home')
    lookup = kit.adapter.lookup
    assert (await lookup(file, b'.', ADMIN)).st_ino == file
    assert (await lookup(docs, b'..', ADMIN)).st_ino == home
    assert (await lookup(home, b'..', ADMIN)).st_ino == 1
    assert (await lookup(1, b'..', ADMIN)).st_ino == 1
    assert (await lookup(1, b'.', ADMIN)).st_ino == 1
    async with refused(errno.ENOTDIR):
        await lookup(file, b'..', ADMIN)
    assert (await kit.stat('home/docs/a')).generation == 1
    for gone in (home + 1000, 77 << 40 | 1, 1 << 60 | 77 << 40 | 1, 3 << 60 | 99 << 40 | 1, (1 << 64) - 1):
        async with refused(errno.ESTALE):
            await kit.adapter.getattr(gone, ADMIN)


async def test_a_bug_is_an_io_error_and_is_counted(kit: Kit, monkeypatch, caplog) -> None:  # type: ignore[no-untyped-def]
    node = await kit.write('home/a', b'x')
    head = kit.engine.head('home')

    async def broken(*_: object) -> bytes:
        raise ZeroDivisionError('oops')

    monkeypatch.setattr(head, 'read', broken)
    async with refused(errno.EIO):
        await kit.adapter.read(node, 0, 1)
    assert kit.space.unexpected_errors == 1
    assert 'ZeroDivisionError: oops' in caplog.text
    assert (await kit.read('.snapfs/health')).startswith(b'errors: 1 ')
    assert kit.engine.core.budget.stopped is None


async def test_a_broken_promise_latches_the_store(kit: Kit, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    node = await kit.write('home/a', b'x')

    async def broken(*_: object) -> bytes:
        raise AssertionError('P6: a root moved')

    monkeypatch.setattr(kit.engine.head('home'), 'read', broken)
    async with refused(errno.EIO):
        await kit.adapter.read(node, 0, 1)
    assert isinstance(kit.engine.core.budget.stopped, Latched)
    assert b'P6: a root moved' in await kit.read('.snapfs/health')
    async with refused(errno.EROFS):
        await kit.write('home/b', b'x')


async def test_forget_never_raises(kit: Kit, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    node = await kit.write('home/a', b'x')

    def broken(ino: int) -> None:
        raise Refused(errno.EIO)

    monkeypatch.setattr(kit.engine.head('home'), 'forgotten', broken)
    await kit.adapter.forget([(node, 100)])
    assert kit.space.unexpected_errors == 1
