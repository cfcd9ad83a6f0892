"""Who keeps a chunk alive: against a walk of every root, and every way in which something can be missing."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from snapfs import limits
from snapfs.collect.why import why
from snapfs.collect.why_values import Why, WhySpec
from snapfs.collect.worker import from_json, to_json
from snapfs.errors import Corrupt, Invalid
from snapfs.format.items import ref_of
from snapfs.format.nodes import Branch, decode_node
from snapfs.service.collecting import Collecting
from tests.support.collecting import collected, noise, remove_file, write_file


@pytest.fixture
async def collecting(tmp_path: Path) -> AsyncIterator[Collecting]:
    async with collected(tmp_path / 'store') as made:
        await made.engine.volume_create('home', 0, 0)
        yield made


def ask(collecting: Collecting, **what: object) -> Why:
    store = collecting.engine.store
    spec = WhySpec(store.path, store.superblock.uuid, **what)  # type: ignore[arg-type]
    assert from_json(WhySpec, to_json(spec)) == spec
    found = why(spec)
    assert from_json(Why, to_json(found)) == found
    return found


def reach(collecting: Collecting, root: bytes | None) -> set[bytes]:
    """Everything below a node, the slow and plain way."""
    seen: set[bytes] = set()
    pending = [] if root is None else [root]
    while pending:
        id = pending.pop()
        if id in seen:
            continue
        seen.add(id)
        node = decode_node(collecting.engine.store.chunks.get(id))
        if isinstance(node, Branch):
            pending += node.children
        else:
            seen |= {
                ref for n, key in enumerate(node.keys) if (ref := ref_of(key, node.value(n))) is not None
            }
    return seen


async def test_every_chunk_against_a_walk_of_every_root(collecting: Collecting) -> None:
    engine, seed = collecting.engine, 7
    rng = random.Random(seed)
    await many(collecting)
    for step in range(4):
        for n in rng.sample(range(60), 30):
            await write_file(engine, f'file{n:03}', noise(rng.randrange(50)))
        if step:
            await remove_file(engine, f'file{rng.choice(sorted(await names(collecting)))}')
        await engine.snapshot_create('home', f's{step}', 'ann')
    await engine.volume_clone('home', 's1', 'copy')
    await engine.snapshot_delete('home', 's0', 'ann')
    await engine.commit()
    catalog = engine.store.catalog
    reaches = {('volume', row.volume): reach(collecting, row.root) for row in engine.store.registry.volumes()}
    reaches |= {('snapshot', row.number): reach(collecting, row.root) for row in engine.snapshot_list()}
    reaches |= {('request', row.number): reach(collecting, row.root) for row in engine.request_list()}
    ids = [row[0] for row in catalog.query('SELECT id FROM chunk ORDER BY id')]
    for id in rng.sample(ids, 40):
        found = ask(collecting, ids=(id,))
        got = {(one.kind, one.number) for one in found.keepers if one.kind != 'dropped'}
        assert got == {root for root, all_ids in reaches.items() if id in all_ids}, f'seed {seed}: {id.hex()}'
        assert [one.table for one in found.where] == ['chunk']
    found = ask(collecting, ids=tuple(ids))
    counted = {(one.kind, one.number): one.chunks for one in found.keepers}
    for root, all_ids in reaches.items():
        assert counted[root] == len(all_ids & set(ids)), f'seed {seed}: {root}'
    total = catalog.query('SELECT sum(stored) + 52 * count(*) FROM chunk')[0][0]
    assert (found.chunks, found.where[0].bytes) == (len(ids), total)


async def many(collecting: Collecting) -> None:
    """So many files that the tree has branches."""
    for n in range(600):
        await write_file(collecting.engine, f'many{n:05}', b'%d' % n)


async def names(collecting: Collecting) -> list[str]:
    head = collecting.engine.head('home')
    assert head is not None
    listed = await head.list_directory(await head.inode(limits.INO_ROOT), 0, 1000)
    return [name.decode().removeprefix('file') for _, name, _, _ in listed if name.startswith(b'file')]


async def test_a_file_by_its_inode_with_all_its_names(collecting: Collecting) -> None:
    engine = collecting.engine
    await many(collecting)
    await write_file(engine, 'a', noise(1, 300_000))
    await write_file(engine, 'other', noise(2))
    await write_file(engine, 'empty', b'')
    head = engine.head('home')
    assert head is not None
    root = await head.inode(limits.INO_ROOT)
    directory = await head.make(root, b'dir', 0o40755, 0, 0)
    inode = await head.lookup(root, b'a')
    empty = await head.lookup(root, b'empty')
    assert inode is not None and empty is not None
    await head.link(inode, directory, b'again\xff')
    await engine.snapshot_create('home', 's', 'ann')
    found = ask(collecting, root=('volume', head.row.volume), ino=inode.ino)
    assert found.chunks > 1 and found.whole
    by_kind = {one.kind: one for one in found.keepers}
    assert by_kind['volume'].files == ('/a', '/dir/again\\xff')
    assert by_kind['volume'].chunks == by_kind['snapshot'].chunks == found.chunks
    assert by_kind['snapshot'].name == 'home@s'
    assert ask(collecting, root=('volume', head.row.volume), ino=empty.ino).chunks == 0
    with pytest.raises(Invalid, match='has no inode 999'):
        ask(collecting, root=('volume', head.row.volume), ino=999)
    with pytest.raises(Invalid, match='there is no snapshot 999'):
        ask(collecting, root=('snapshot', 999), ino=inode.ino)


async def test_a_file_whose_items_are_in_many_leaves(collecting: Collecting) -> None:
    engine = collecting.engine
    await many(collecting)
    await write_file(engine, 'sparse', b'')
    await many(collecting)
    head = engine.head('home')
    assert head is not None
    inode = await head.lookup(await head.inode(limits.INO_ROOT), b'sparse')
    assert inode is not None
    for n in range(700):
        await head.write(inode, n << 20, b'part %d' % n)
    await engine.commit()
    assert ask(collecting, root=('volume', head.row.volume), ino=inode.ino).chunks == 700


async def test_a_big_file_is_asked_about_in_part_and_says_so(
    collecting: Collecting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, 'WHY_CHUNKS_MAX', 3)
    engine = collecting.engine
    await write_file(engine, 'a', noise(1, 300_000))
    await engine.commit()
    head = engine.head('home')
    assert head is not None
    inode = await head.lookup(await head.inode(limits.INO_ROOT), b'a')
    assert inode is not None
    found = ask(collecting, root=('volume', head.row.volume), ino=inode.ino)
    assert (found.chunks, found.whole) == (3, False)


async def test_a_node_has_keepers_as_well_and_nobody_keeps_what_is_not_there(collecting: Collecting) -> None:
    engine = collecting.engine
    await write_file(engine, 'a', noise(1))
    await engine.commit()
    (volume,) = engine.store.registry.volumes()
    assert volume.root is not None
    found = ask(collecting, ids=(volume.root,))
    assert [one.kind for one in found.keepers] == ['volume']
    found = ask(collecting, ids=(bytes(32),))
    assert (found.where, found.keepers, found.chunks) == ((), (), 1)


async def test_in_quarantine_the_batch_is_named(collecting: Collecting) -> None:
    engine = collecting.engine
    for n in range(30):
        await write_file(engine, f'keep{n}', noise(100 + n))
    await write_file(engine, 'old', noise(1))
    await engine.snapshot_create('home', 's', 'ann')
    await remove_file(engine, 'old')
    await engine.snapshot_delete('home', 's', 'ann')
    await collecting.collect()
    (request,) = engine.request_list()
    assert request.batch is not None
    (id,) = engine.store.catalog.query(
        'SELECT id FROM quarantine WHERE batch = ? AND kind = 1', (request.batch,)
    )[0]
    found = ask(collecting, ids=(id,))
    assert [(one.table, one.chunks) for one in found.where] == [('quarantine', 1)]
    keepers = {one.number: one for one in found.keepers if one.kind == 'request'}
    assert keepers[request.number].batch == request.batch
    assert collecting.collector.incidents.latched() is None, 'to ask is no alarm'


async def test_a_missing_node_is_corrupt_but_not_below_what_commits_dropped(collecting: Collecting) -> None:
    engine = collecting.engine
    for n in range(600):
        await write_file(engine, f'a{n:05}', b'x')
    await engine.commit()
    catalog = engine.store.catalog
    with catalog.transaction() as db:
        db.execute(
            "INSERT INTO request VALUES (900, 'dropped', 1, x'61', x'', 0, NULL, 0, 0, 0, 0, 0, '', NULL, "
            "0, '', 0, NULL, NULL, NULL, NULL)"
        )
        db.execute("INSERT INTO request_part VALUES (900, 0, 'subtrees', ?)", (b'n' * 32,))
    assert ask(collecting, ids=(bytes(32),)).keepers == (), 'another batch may have freed a part of it'
    (volume,) = engine.store.registry.volumes()
    assert volume.root is not None
    node = decode_node(engine.store.chunks.get(volume.root))
    assert isinstance(node, Branch)
    with catalog.transaction() as db:
        db.execute('DELETE FROM chunk WHERE id = ?', (node.children[0],))
    with pytest.raises(Corrupt, match=f'node {node.children[0].hex()} is not in the index'):
        ask(collecting, ids=(bytes(32),))
