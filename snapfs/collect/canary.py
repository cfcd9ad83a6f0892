"""L4 canary: the trip wire. A hidden root whose chunks nothing else references and nobody deletes.
Blocking; the owner of the store.

A recount that does not find every planted chunk alive is blind, whatever else it says: its control. The
planted chunks are random, so no writer ever shares them, and they are never wiped. Planting is two steps,
because a row may only name chunks that the index has: `sow` puts the chunks, a commit follows, then
`enroll` writes the row. A crash in between leaks a few KiB. Enroll while no recount runs: its roots are
frozen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from snapfs import limits
from snapfs.errors import Corrupt, SnapfsError
from snapfs.format.ids import RecordKind
from snapfs.format.keys import extent_key
from snapfs.format.nodes import decode_node, encode_leaf
from snapfs.store.catalog import Catalog
from snapfs.store.chunks import ChunkStore
from snapfs.world import World


@dataclass(frozen=True, slots=True)
class Canary:
    """Planted chunks: the `root` (a leaf), and the data chunks it names."""

    root: bytes
    data: tuple[bytes, ...]

    @property
    def ids(self) -> tuple[bytes, ...]:
        """All its chunks, ascending."""
        return tuple(sorted({self.root, *self.data}))


def sow(chunks: ChunkStore, world: World) -> Canary:
    """Put a canary's chunks. They count from the moment that `enroll` has written the row."""
    plains = [world.random_bytes(limits.CANARY_CHUNK_BYTES) for _ in range(limits.CANARY_CHUNKS)]
    data = chunks.put_batch(RecordKind.DATA, plains)
    size = limits.CANARY_CHUNK_BYTES
    keys = [extent_key(limits.INO_FIRST, n * size) for n in range(len(data))]
    (root,) = chunks.put_batch(RecordKind.NODE, [encode_leaf(keys, [(size, id) for id in data])])
    return Canary(root, tuple(data))


def enroll(catalog: Catalog, canary: Canary, now_ns: int) -> bool:
    """Write the row of a canary whose chunks a commit has put into the index; return False, nothing
    changed, when they are not all there yet."""
    ids = canary.ids
    marks = ','.join('?' * len(ids))
    with catalog.transaction() as db:
        found = db.execute(f'SELECT count(*) FROM chunk WHERE id IN ({marks})', ids).fetchone()[0]
        if found != len(ids):
            return False
        db.execute(
            'INSERT INTO canary SELECT coalesce(max(number), 0) + 1, ?, ?, ?, ? FROM canary',
            (canary.root, len(canary.data), len(canary.data), now_ns),
        )
    return True


def canaries(catalog: Catalog, get: Callable[[bytes], bytes]) -> list[Canary]:
    """Return every canary, its leaf read with `get` (which verifies the id). Corrupt when one is not as
    its row says."""
    found = []
    for number, root, items, refs in catalog.query('SELECT number, root, root_items, root_refs FROM canary'):
        if type(root) is not bytes or len(root) != limits.ID_BYTES:
            raise Corrupt(f'canary {number} has a root that is none')
        node = decode_node(get(root))
        if node.level or (node.items_below, node.refs_below) != (items, refs):
            raise Corrupt(f'canary {number} has not the totals of its row')
        found.append(Canary(root, tuple(node.ref_ids())))
    return found


def rotten(catalog: Catalog, get: Callable[[bytes], bytes]) -> list[tuple[int, tuple[bytes, ...]]]:
    """Return (number, lost ids) of the canaries whose bytes cannot be read, though the index has them all."""
    found = []
    for number, root in catalog.query('SELECT number, root FROM canary'):
        if type(root) is not bytes or len(root) != limits.ID_BYTES:
            continue  # `canaries` says what that is
        ids, lost = [root], []
        for id in ids:  # its leaf comes first, and names the others
            try:
                plain = get(id)
            except Corrupt:
                lost.append(id)
                continue
            if id == root:
                ids += decode_node(plain).ref_ids()
        if lost and len(catalog.locate(ids)) == len(set(ids)):
            found.append((number, tuple(lost)))
    return found


def dismiss(catalog: Catalog, lost: Sequence[tuple[int, Sequence[bytes]]]) -> None:
    """Take away the rows of canaries that are of no more use, given as `rotten` does, and what was noted of
    their loss. No chunk is freed: they count as leaked from now on."""
    with catalog.transaction() as db:
        for number, ids in lost:
            db.execute('DELETE FROM canary WHERE number = ?', (number,))
            db.executemany('DELETE FROM damage WHERE id = ?', [(id,) for id in ids])


def control_ids(canaries: Sequence[Canary]) -> tuple[bytes, ...]:
    """Return the ids that a recount must find alive, ascending."""
    return tuple(sorted({id for canary in canaries for id in canary.ids}))


def check(catalog: Catalog, get: Callable[[bytes], bytes]) -> list[str]:
    """Look at every canary, chunk by chunk; return what is wrong, one line each. Any line is an alarm."""
    wrong = []
    try:
        found = canaries(catalog, get)
    except SnapfsError as error:
        return [f'the canary cannot be read: {error}']
    ids = control_ids(found)
    present = catalog.locate(ids)
    for id in ids:
        if id not in present:
            wrong.append(f'chunk {id.hex()} of the canary is not in the index')
            continue
        try:
            get(id)
        except SnapfsError as error:
            wrong.append(f'chunk {id.hex()} of the canary cannot be read: {error}')
    return wrong
