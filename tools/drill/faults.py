"""Tool: faults: stand-ins for parts of snapfs that do what the drilled accidents did. Each wraps the part it
stands in for; the product knows nothing of them."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from snapfs.collect import catalog_ids, mentions, meta_packs, recount, roots
from snapfs.collect.idsets import Claims, Ids, to_bytes
from snapfs.collect.reading import Places, StoreReader
from snapfs.collect.walk import Walk
from snapfs.errors import Corrupt
from snapfs.format.keys import EXTENT, KIND_POSITION
from snapfs.format.nodes import Leaf, NodeHeader, decode_node, encode_leaf
from snapfs.store.durable import Disk
from tools.drill.lab import Fault, replaced


def without_references(plain: bytes) -> bytes:
    """Return a leaf that has lost everything that refers to a chunk; another node as it is."""
    node = decode_node(plain)
    if not isinstance(node, Leaf):
        return plain
    pairs = zip(node.keys, node.values_with_ids(), strict=True)
    kept = [(key, value) for key, value in pairs if key[KIND_POSITION] != EXTENT]
    return encode_leaf([key for key, _ in kept], [value for _, value in kept]) if kept else plain


def loses_pages(victims: frozenset[bytes] | None) -> Fault:
    """Recount 1 gets these leaves without their references; None: it loses the references of every leaf."""

    class LosingReader(StoreReader):
        def nodes(self, ids: Ids, places: Places) -> Iterator[tuple[int, bytes]]:
            for position, plain in super().nodes(ids, places):
                lost = victims is not None and to_bytes(ids[position]) in victims
                yield position, without_references(plain) if lost else plain

    class LosingWalk(Walk):
        def leaves(self) -> Iterator[Any]:
            for ids, owners, items in super().leaves():
                yield ids[:0], owners[:0], items

    if victims is None:
        return lambda: replaced(recount, 'Walk', LosingWalk)
    return lambda: replaced(recount, 'StoreReader', LosingReader)


def no_totals() -> AbstractContextManager[object]:
    """Recount 1 compares no total any more."""

    class TrustingWalk(Walk):
        def _check(self, claims: Claims, position: int, header: NodeHeader, level: int) -> None:
            pass

    return replaced(recount, 'Walk', TrustingWalk)


class FailingDisk(Disk):
    """A disk whose read number `fail_at` ends with EIO."""

    def __init__(self, fail_at: int) -> None:
        super().__init__()
        self.fail_at = fail_at
        self.reads = 0

    def _sys_pread(self, fd: int, count: int, offset: int) -> bytes:
        self.reads += 1
        if self.reads == self.fail_at:
            raise OSError(errno.EIO, 'Input/output error')
        return super()._sys_pread(fd, count, offset)


def fails_at_read(fail_at: int) -> Fault:
    """Each recount 1 gets a disk whose read of this number fails."""
    return lambda: replaced(recount, 'Disk', lambda: FailingDisk(fail_at))


class FailingReads:
    """Recount 2 and the proof read packs by a function of their own; its call number `fail_at` ends with
    EIO."""

    def __init__(self, fail_at: int) -> None:
        self.fail_at = fail_at
        self.reads = 0
        self._read = meta_packs._read_exactly

    def __call__(self, fd: int, path: Path, start: int, count: int) -> memoryview:
        self.reads += 1
        if self.reads == self.fail_at:
            raise OSError(errno.EIO, 'Input/output error')
        return self._read(fd, path, start, count)

    def put_in(self) -> AbstractContextManager[object]:
        """Return the fault."""
        return replaced(meta_packs, '_read_exactly', self)


def takes_errors_for_ends() -> AbstractContextManager[object]:
    """Recount 1 takes a node that cannot be read for the end of what there is."""

    class SilentReader(StoreReader):
        def nodes(self, ids: Ids, places: Places) -> Iterator[tuple[int, bytes]]:
            try:
                yield from super().nodes(ids, places)
            except Corrupt:
                return

    return replaced(recount, 'StoreReader', SilentReader)


def reads_store_at(old: Path) -> Fault:
    """Recount 1 reads another directory than it is told: an old copy of the store."""

    class StaleReader(StoreReader):
        def __init__(self, store: Path, uuid: bytes, disk: Disk | None = None) -> None:
            super().__init__(old, uuid, disk)

    return lambda: replaced(recount, 'StoreReader', StaleReader)


def second_reads_store_at(old: Path) -> Fault:
    """Recount 2 reads the catalog of an old copy of the store."""
    return lambda: replaced(mentions, 'opened_catalog', lambda store: catalog_ids.opened_catalog(old))


def truncated_query(words: str) -> Fault:
    """Recount 1 gets all rows but the last from every question with these words in it."""

    class ShortReader(StoreReader):
        def query(self, text: str, values: Any = ()) -> list[tuple[Any, ...]]:
            rows = super().query(text, values)
            return rows[:-1] if words in text else rows

    return lambda: replaced(recount, 'StoreReader', ShortReader)


def truncated_listing() -> AbstractContextManager[object]:
    """Recount 2 gets all names but the last from every directory of packs."""
    whole = meta_packs._listed
    return replaced(meta_packs, '_listed', lambda folder: whole(folder)[:-1])


def forgets_kind(kind: str) -> AbstractContextManager[object]:
    """The registry of roots does not know this kind of root."""
    kinds = {name: walker for name, walker in roots.ROOT_KINDS.items() if name != kind}
    return replaced(roots, 'ROOT_KINDS', kinds)


def around(module: Any, name: str, before: Callable[[], None]) -> Fault:
    """Something happens while a job runs."""
    job = getattr(module, name)

    def run(spec: Any, progress: Any) -> Any:
        before()
        return job(spec, progress)

    return lambda: replaced(module, name, run)
