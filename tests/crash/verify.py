"""Open what a crash left, and hold it against what was promised (P1, P4, P5, P6)."""

from __future__ import annotations

import errno
import random
import shutil
import stat
from collections.abc import Awaitable, Callable
from pathlib import Path

from snapfs.errors import Refused
from snapfs.format.keys import ItemKind, decode_key
from snapfs.format.nodes import Leaf, decode_node
from snapfs.store.store import Store
from snapfs.volume.engine import Engine
from snapfs.volume.view import View
from tests.crash.oracle import Allowed, Found, Registry, Tree
from tests.crash.run import Image
from tests.sim.disk import PowerCut, SimDisk
from tests.sim.world import SimWorld
from tests.support.fsck import damages
from tests.support.model import freeze_view

SAFETY = 'before-rollback-'
Freeze = Callable[[View], Awaitable[Tree]]


async def verify(image: Image) -> None:
    """Reopen an image, compare, and use it. Every third one has its power cut again while it recovers."""
    disk = SimDisk(image.path)
    folder = image.path
    chance = random.Random(image.seed)
    note = image.note
    if chance.random() < 0.35:
        disk.cut_at = chance.randrange(1, 9)
        note += f'; second cut at event {disk.cut_at} of the recovery'
    try:
        try:
            await _check(disk, image.allowed, note, chance, thorough=chance.random() < 0.4)
        except PowerCut:
            again = folder.with_name(folder.name + '-again')
            disk.crash(image.seed + 1, again)
            disk.forget()
            disk, folder = SimDisk(again), again
            await _check(disk, image.allowed, note, chance, thorough=True)
    except AssertionError:
        raise
    except Exception as error:
        raise AssertionError(f'{note}: {error!r}') from error
    finally:
        disk.forget()
        for path in {image.path, folder}:
            shutil.rmtree(path)


async def _check(disk: SimDisk, allowed: Allowed, note: str, chance: random.Random, thorough: bool) -> None:
    found = damages(disk.root / 'store')
    assert not found, f'{note}: fsck of what the crash left: {found[:3]}'
    world = SimWorld(chance.randrange(1 << 60))  # other random names than any process before
    path = disk.root / 'store'
    engine = await Engine.open(path, disk, world)
    disk.cut_at = None
    try:
        assert engine.health() == 'ok', f'{note}: {engine.health()}'
        found = await look(engine, allowed)
        assert allowed.match(found) is not None, f'{note}: {allowed.explain(found)}'
        check_chunks(engine.store, note)
        for head in engine.heads().values():
            reached = await reachable(head)
            check_tree(engine.store, head.root.id, note, reached)
            assert not await head.orphans(10), f'{note}: an unlinked inode is left'
            for ino in range(16, head.next_ino):
                if ino not in reached:
                    await is_gone(head, ino, note)
        if thorough:
            await take_back(engine, allowed, found, note)
            await write_on(engine, note)
            await engine.close()
            await _is_clean(path, disk, world, note)
    except PowerCut:
        raise
    finally:
        if not engine.closed:
            engine.store.close(clean=False)
            engine.closed = True


async def look(engine: Engine, allowed: Allowed, freeze: Freeze = freeze_view) -> Found:
    """Read everything there is. What is condemned cannot be read: it counts as what it should be."""
    names, trees = {}, {}
    for head in engine.heads().values():
        names[head.row.volume] = head.name
        trees[head.row.volume] = await freeze(head)
    snapshots, requests = {}, {}
    for row in engine.snapshot_list():
        name = row.name
        if name.startswith(SAFETY) and not allowed.names(row.volume, name):
            name = 'safety'
        view = engine.snapshot_view(row.number)
        assert view is not None
        snapshots[row.volume, name] = await freeze(view)
    for request in engine.request_list():
        view = engine.snapshot_view(request.view)
        if view is None:
            assert request.batch is not None
            requests[request.kind, request.view] = allowed.tree_of_request(request.kind, request.view)
        else:
            requests[request.kind, request.view] = await freeze(view)
    holds = {
        (row.volume, row.name, hold.name)
        for row in engine.snapshot_list()
        for hold in engine.store.registry.holds(row.number)
    }
    return Found(Registry(names, snapshots, requests, frozenset(holds)), trees)


def check_chunks(store: Store, note: str) -> None:
    """P4: the catalog names only bytes that are there, and are what was stored."""
    ids = [row[0] for row in store.catalog.query('SELECT id FROM chunk')]
    assert len(store.chunks.get_many(ids)) == len(ids), note


def check_tree(store: Store, root: bytes | None, note: str, reached: dict[int, int]) -> None:
    """P1: all below a root is there. The items are those of the inodes that have a name, and of no others."""
    inodes: set[int] = set()
    stored = dict.fromkeys(reached, 0)
    todo = [root] if root is not None else []
    while todo:
        node = decode_node(store.chunks.get(todo.pop()))
        if not isinstance(node, Leaf):
            todo += node.children
            continue
        for position, key in enumerate(node.keys):
            ino, kind, _ = decode_key(key)
            assert ino in reached, f'{note}: an item {kind!r} of inode {ino}, which no name leads to'
            if kind == ItemKind.INODE:
                inodes.add(ino)
            elif kind == ItemKind.EXTENT:
                length, chunk = node.value(position)
                stored[ino] += length
                assert len(store.chunks.get(chunk)) == length, f'{note}: an extent is one whole chunk'
    assert inodes == reached.keys(), f'{note}: names lead to {sorted(reached.keys() - inodes)}'
    for ino, allocated in reached.items():
        assert stored[ino] == allocated, f'{note}: inode {ino} counts {allocated} bytes, has {stored[ino]}'


async def reachable(view: View, ino: int = 1) -> dict[int, int]:
    """Return the inodes that names lead to, with the bytes they say are allocated."""
    inode = await view.inode(ino)
    found = {ino: inode.allocated}
    if inode.is_directory():
        after = 0
        while page := await view.list_directory(inode, after, 100):
            for _, _, child, _ in page:
                found |= await reachable(view, child)
            after = page[-1][0]
    return found


async def is_gone(head: View, ino: int, note: str) -> None:
    """Nothing is left of an inode without a name."""
    try:
        await head.inode(ino)
    except Refused as error:
        assert error.errno == errno.ESTALE, note
    else:
        raise AssertionError(f'{note}: inode {ino} has no name and is still there')


async def take_back(engine: Engine, allowed: Allowed, found: Found, note: str) -> None:
    """Every deletion can be taken back, byte for byte."""
    for number, row in enumerate(engine.request_list()):
        promised = found.registry.requests[row.kind, row.view]
        if row.kind == 'volume':
            view: View | None = await engine.volume_undelete(row.number, f'back {number}')
        else:
            somewhere = next(iter(engine.heads()))
            taken = await engine.snapshot_undelete(row.number, f'back {number}', somewhere)
            view = engine.snapshot_view(taken.number)
        assert view is not None
        assert await freeze_view(view) == promised, f'{note}: {row.name} came back as something else'


async def write_on(engine: Engine, note: str) -> None:
    """The store takes changes, and keeps them."""
    for name, head in list(engine.heads().items()):
        root = await head.inode(1)
        inode = await head.make(root, b'after the crash', stat.S_IFREG | 0o600, 0, 0)
        await head.write(inode, 0, b'new' * 5000)
        await engine.sync()
        await engine.snapshot_create(name, 'after the crash', 'test')


async def _is_clean(path: Path, disk: SimDisk, world: SimWorld, note: str) -> None:
    engine = await Engine.open(path, disk, world)
    assert engine.store.was_clean, f'{note}: not clean after a clean close'
    for name, head in engine.heads().items():
        inode = await head.lookup(await head.inode(1), b'after the crash')
        assert inode is not None, note
        assert await head.read(inode, 0, 20_000) == b'new' * 5000, note
        row = engine.snapshot_find(name, 'after the crash')
        view = engine.snapshot_view(row.number)
        assert view is not None
        assert await freeze_view(view) == await freeze_view(head), f'{note}: P6'
    await engine.close()
    found = damages(path)
    assert not found, f'{note}: fsck: {found[:3]}'
