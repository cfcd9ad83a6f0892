"""Names, links, attributes and extended attributes: what is refused, and what changes."""

from __future__ import annotations

import errno
import random
import stat
from pathlib import Path
from typing import Any

import pytest

from snapfs import limits
from snapfs.volume.files import XATTR_CREATE, XATTR_REPLACE
from snapfs.volume.head import RENAME_EXCHANGE, RENAME_NOREPLACE
from tests.support.model import refuses
from tests.support.stores import fresh_engine, reopen

FILE = stat.S_IFREG | 0o644
DIRECTORY = stat.S_IFDIR | 0o755


@pytest.fixture
async def home(tmp_path: Path) -> Any:
    engine = await fresh_engine(tmp_path / 'store')
    head = await engine.volume_create('home', 0, 0)
    yield engine, head, await head.inode(limits.INO_ROOT)
    if not engine.closed:
        await engine.close()


async def test_names_that_cannot_be_made_are_refused(home: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    _, head, root = home
    file = await head.make(root, b'f', FILE, 0, 0)
    directory = await head.make(root, b'd', DIRECTORY, 0, 0)
    for name, number in ((b'f', errno.EEXIST), (b'x' * 256, errno.ENAMETOOLONG), (b'a/b', errno.EINVAL)):
        await refuses(number, head.make(root, name, FILE, 0, 0))
        await refuses(number, head.link(file, root, name))
    await refuses(errno.ENOTDIR, head.make(file, b'n', FILE, 0, 0))
    await refuses(errno.ENAMETOOLONG, head.make(root, b'l', stat.S_IFLNK, 0, 0, 0, b'x' * 5000))
    await refuses(errno.EPERM, head.link(directory, root, b'n'))
    await refuses(errno.EISDIR, head.unlink(root, b'd'))
    await refuses(errno.ENOTDIR, head.remove_directory(root, b'f'))
    await refuses(errno.ENOENT, head.remove_directory(root, b'n'))
    monkeypatch.setattr(limits, 'NLINK_MAX', 1)
    await refuses(errno.EMLINK, head.link(file, root, b'n'))
    await refuses(errno.EMLINK, head.make(root, b'n', DIRECTORY, 0, 0))
    monkeypatch.setattr(limits, 'INO_MAX', head.next_ino - 1)
    await refuses(errno.ENOSPC, head.make(root, b'n', FILE, 0, 0))
    assert (root.size, root.nlink, file.nlink) == (2, 3, 1)


async def test_a_group_is_inherited_where_setgid_says_so(home: Any) -> None:
    _, head, root = home
    above = await head.make(root, b'd', DIRECTORY | stat.S_ISGID, 5, 6)
    below = await head.make(above, b'e', DIRECTORY, 1, 2)
    assert (below.uid, below.gid, bool(below.mode & stat.S_ISGID)) == (1, 6, True)


async def test_an_unlinked_file_lives_while_it_is_used(home: Any) -> None:
    engine, head, root = home
    file = await head.make(root, b'f', FILE, 0, 0)
    head.referenced(file.ino)
    await head.write(file, 0, b'abc')
    await engine.sync()
    await head.unlink(root, b'f')
    await refuses(errno.ENOENT, head.link(file, root, b'g'))
    await engine.commit()
    assert await head.orphans(9) == [file.ino]
    assert await head.read(file, 0, 9) == b'abc'
    head.forgotten(file.ino)
    await refuses(errno.ESTALE, head.inode(file.ino))
    assert await head.orphans(9) == []
    gone = await head.make(root, b'g', FILE, 0, 0)
    number = gone.ino
    head.referenced(number)
    await head.unlink(root, b'g')
    await engine.commit()
    del head.inodes[number], gone
    head.forgotten(number)
    await refuses(errno.ESTALE, head.inode(number))


async def test_a_removed_directory_takes_no_names(home: Any) -> None:
    _, head, root = home
    directory = await head.make(root, b'd', DIRECTORY, 0, 0)
    head.referenced(directory.ino)
    await head.remove_directory(root, b'd')
    await refuses(errno.ENOENT, head.make(directory, b'f', FILE, 0, 0))
    assert (directory.nlink, root.nlink) == (0, 2)


async def test_orphans_of_a_crash_are_removed(home: Any) -> None:
    engine, head, root = home
    file = await head.make(root, b'f', FILE, 0, 0)
    head.referenced(file.ino)
    await head.write(file, 0, b'abc')
    await head.unlink(root, b'f')
    await engine.sync()
    engine.closed = True
    engine.store.close(clean=False)
    again = await type(engine).open(engine.store.path, engine.store.disk, engine.world)
    assert again.replayed_records
    await refuses(errno.ESTALE, again.head('home').inode(file.ino))
    assert again.core.budget.dirty == 0
    await again.close()


async def test_renames(home: Any) -> None:
    _, head, root = home
    a = await head.make(root, b'a', DIRECTORY, 0, 0)
    b = await head.make(a, b'b', DIRECTORY, 0, 0)
    file = await head.make(root, b'f', FILE, 0, 0)
    await refuses(errno.EINVAL, head.rename(root, b'a', b, b'x'))
    await refuses(errno.EINVAL, head.rename(root, b'f', b, b'x', 8))
    await refuses(errno.EEXIST, head.rename(root, b'f', root, b'a', RENAME_NOREPLACE))
    await refuses(errno.ENOENT, head.rename(root, b'f', root, b'x', RENAME_EXCHANGE))
    await refuses(errno.EINVAL, head.rename(a, b'b', root, b'a', RENAME_EXCHANGE))
    await head.rename(a, b'b', root, b'f', RENAME_EXCHANGE)
    assert await head.lookup(root, b'f') is b
    assert await head.lookup(a, b'b') is file
    assert (root.nlink, a.nlink, b.parent) == (4, 2, root.ino)
    assert await head.rename(root, b'f', a, b'new') is None
    assert (root.nlink, a.nlink, b.parent) == (3, 3, a.ino)


async def test_attributes(home: Any) -> None:
    _, head, root = home
    file = await head.make(root, b'f', FILE | 0o6010, 0, 0)
    await head.set_attributes(file, uid=3, gid=4, atime_ns=-5, mtime_ns=6, ctime_ns=7)
    assert (file.uid, file.gid, file.atime_ns, file.mtime_ns, file.ctime_ns) == (3, 4, -5, 6, 7)
    assert not file.mode & 0o6000
    await head.set_attributes(file, mode=0o6711)
    await head.write(file, 0, b'abc')
    assert file.mode == stat.S_IFREG | 0o711
    assert file.blocks() == 1
    assert await head.write(file, 0, b'') == 0
    await refuses(errno.EINVAL, head.set_attributes(file, atime_ns=1 << 63))
    await refuses(errno.EFBIG, head.set_attributes(file, size=limits.FILE_BYTES_MAX + 1))
    await refuses(errno.EFBIG, head.write(file, limits.FILE_BYTES_MAX, b'x'))
    await refuses(errno.EISDIR, head.truncate(root, 0))
    await head.set_attributes(file, size=10**15)
    assert await head.read(file, 10**15 - 5, 99) == bytes(5)
    await head.write(file, 10**14, b'far')
    await head.set_attributes(file, size=10**14 + 1)
    assert (await head.read(file, 10**14, 9), file.blocks()) == (b'f', 1)


async def test_extended_attributes(home: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, head, root = home
    await refuses(errno.ERANGE, head.xattr_set(root, b'', b''))
    await refuses(errno.E2BIG, head.xattr_set(root, b'a', bytes(limits.XATTR_VALUE_BYTES_MAX + 1)))
    await refuses(errno.ENODATA, head.xattr_set(root, b'a', b'1', XATTR_REPLACE))
    await refuses(errno.ENODATA, head.xattr_remove(root, b'a'))
    assert await head.xattr_get(root, b'a') is None
    await head.xattr_set(root, b'a', b'1' * 3000)
    await refuses(errno.EEXIST, head.xattr_set(root, b'a', b'2', XATTR_CREATE))
    await head.xattr_set(root, b'b', b'2')
    monkeypatch.setattr(limits, 'XATTRS_PER_INODE_MAX', 2)
    await refuses(errno.ENOSPC, head.xattr_set(root, b'c', b'3'))
    engine = await reopen(engine)
    head = engine.head('home')
    root = await head.inode(limits.INO_ROOT)
    assert await head.xattr_get(root, b'a') == b'1' * 3000
    await head.xattr_remove(root, b'a')
    assert await head.xattr_list(root) == [b'b']
    await engine.close()


@pytest.mark.parametrize('size', [limits.XATTR_INLINE_BYTES_MAX + 1, limits.XATTR_VALUE_BYTES_MAX])
async def test_a_long_attribute_is_one_chunk_and_comes_back_whole(home: Any, size: int) -> None:
    """However large: a file of that size would be cut into several chunks."""
    engine, head, root = home
    value = random.Random(size).randbytes(size)
    await head.xattr_set(root, b'user.a', value)
    engine = await reopen(engine)
    head = engine.head('home')
    assert await head.xattr_get(await head.inode(limits.INO_ROOT), b'user.a') == value
    await engine.close()
