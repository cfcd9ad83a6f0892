"""fsck, of thousands of stores that are nearly alike: what it made of the same bytes before is remembered.

Half of the time of an enumeration went into looking at what had been looked at: most images of a word have
the packs, the catalog or the batches of another image, to the byte. Remembered are four parts of fsck, each
a function of bytes that are its whole key:

- a pack (`look`): of the file's bytes, the row of the catalog, the options, and the superblock (whose uuid
  and key for names it is held against). What it gave to others, the rows it wrote, is given again.
- a leaf (`facts_of`): of its bytes, by their hash, which is verified first, and of the key for names.
- the catalog (`Catalog.check`): of the bytes of catalog.sqlite and of its log.
- audit log and batches (`Evidence.check`): of the catalog, the superblock, the audit log, all files below
  batches, and the names at the top of the store; its other source is the list of packs, from the catalog.

Only what gave *no finding at all* is remembered, and only of a store that nobody uses. So a damage is always
told by fsck itself, and what is broken on purpose is found as before. What looks at several of these together
(references against the index and records, roots, trees, the journal, mirrors) is done for every image, on one
connection to the copied catalog instead of one for each question.
"""

from __future__ import annotations

import os
import sqlite3
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from snapfs.format.nodes import Leaf
from snapfs.format.packs import PackEntry
from tools.checker import check as checker
from tools.checker import packs
from tools.checker.badrows import BadWriter
from tools.checker.catalog import Catalog
from tools.checker.evidence import Evidence
from tools.checker.leaves import LeafFacts
from tools.checker.nodes import Nodes
from tools.checker.packs import PackResult, Task
from tools.checker.spill import Spill
from tools.checker.store import Store

KEPT_MAX = 400  # of each kind; a pack of these stores is some 10 KiB of facts
CATALOG = ('sound', '_can_be', 'settings', 'packs', 'damaged', 'roots', 'batches', 'audit_head')


Value = TypeVar('Value')


class Kept(Generic[Value]):
    """The last so many results, by what they are of."""

    def __init__(self) -> None:
        self._known: OrderedDict[bytes, Value] = OrderedDict()

    def get(self, key: bytes) -> Value | None:
        found = self._known.get(key)
        if found is not None:
            self._known.move_to_end(key)
        return found

    def keep(self, key: bytes, value: Value) -> None:
        self._known[key] = value
        if len(self._known) > KEPT_MAX:
            self._known.popitem(last=False)


class Noting(Spill):
    """Hands rows on, and notes them."""

    def __init__(self, real: Spill) -> None:
        self.real = real
        self.rows: list[tuple[str, NDArray[np.void]]] = []

    def add(self, kind: str, rows: NDArray[np.void]) -> None:
        self.rows.append((kind, rows))
        self.real.add(kind, rows)


class KnownNodes(Nodes):
    """Collects the nodes of a meta pack; of a leaf that was seen before it knows the facts."""

    known: ClassVar[Kept[tuple[LeafFacts, list[int]]]]
    id = b''

    def add(self, entry: PackEntry, plain: bytes) -> None:
        self.id = entry.id
        super().add(entry, plain)

    def _leaf(self, node: Leaf, own: int) -> list[int]:
        found = self.known.get(self.id + self.name_key)
        if found is None:
            lengths = super()._leaf(node, own)
            if not self.facts[-1].odd:
                self.known.keep(self.id + self.name_key, (self.facts[-1], lengths))
            return lengths
        self.facts.append(replace(found[0], owner=own))
        return found[1]


class Lasting(sqlite3.Connection):
    """Is closed with its store."""

    def close(self) -> None:
        """Not yet."""


@dataclass(slots=True)
class Remembered:
    """What fsck made of bytes, and how often that was needed again."""

    packs: Kept[tuple[PackResult, list[tuple[str, NDArray[np.void]]]]] = field(default_factory=Kept)
    catalogs: Kept[dict[str, Any]] = field(default_factory=Kept)
    evidence: Kept[bool] = field(default_factory=Kept)
    asked: int = 0
    known: int = 0
    checks: bool = False  # the catalog is being checked: rows may go away from the copy
    connection: Lasting | None = None

    def look(self, store: Store, task: Task, spill: Spill, bad: BadWriter) -> PackResult:
        """Do what tools.checker.packs.look does."""
        path = store.path.joinpath(*store.pack_parts(task.pack.kind, task.pack.name))
        key = _key(repr((task, store.superblock)), _bytes(path))
        self.asked += 1
        found = self.packs.get(key)
        if found is not None:
            self.known += 1
            result, rows = found
            for kind, some in rows:
                spill.add(kind, some)
            return replace(result, findings=[])
        noting = Noting(spill)
        result = look(store, task, noting, bad)
        odd = result.findings or result.lost_by or result.unseen or result.dark or result.bad is not None
        if not odd:
            self.packs.keep(key, (replace(result, findings=[]), noting.rows))
        return result

    def check_catalog(self, catalog: Catalog, closer: bool) -> None:
        """Do what Catalog.check does. One that leaves the rows to others is not remembered; and rows of a
        remembered one are read by queries: what knows pages knows those of a copy that is gone."""
        if not closer:
            check_catalog(catalog, closer=closer)
            return
        store, report = catalog._store, catalog._report
        key = _catalog_key(store)
        self.asked += 1
        found = self.catalogs.get(key)
        if found is not None:
            self.known += 1
            store.take_catalog(in_place=False)
            for name, value in found.items():
                setattr(catalog, name, copy(value))
            return
        before = (len(report.counts), report.not_checked)
        self.checks = True
        try:
            check_catalog(catalog, closer=True)
        finally:
            self.checks = False
        if catalog.sound and before == (0, 0) == (len(report.counts), report.not_checked):
            self.catalogs.keep(key, {name: copy(getattr(catalog, name)) for name in CATALOG})

    def connect(self, store: Store) -> sqlite3.Connection:
        """Do what Store.connect does."""
        if self.checks:
            return connect_anew(store)
        if self.connection is None:
            real, sqlite3.connect = sqlite3.connect, partial(sqlite3.connect, factory=Lasting)
            try:
                self.connection = connect_anew(store)  # type: ignore[assignment]
            finally:
                sqlite3.connect = real
        assert self.connection is not None
        return self.connection

    def close(self, store: Store) -> None:
        """Do what Store.close does."""
        if self.connection is not None:
            sqlite3.Connection.close(self.connection)
            self.connection = None
        close(store)

    def check_evidence(self, evidence: Evidence) -> None:
        """Do what Evidence.check does."""
        store, report = evidence._store, evidence._report
        parts = [_catalog_key(store), repr((store.superblock, store.entries())).encode()]
        parts.append(_bytes(store.path / 'audit.log'))
        for folder, folders, files in os.walk(store.path / 'batches'):
            folders.sort()
            for name in sorted(files):
                place = os.path.join(folder, name)
                data = _bytes(place)
                parts += [f'{os.path.relpath(place, store.path)} {len(data)}'.encode(), data]
        key = _key(*parts)
        self.asked += 1
        if self.evidence.get(key) and not store.in_use():
            self.known += 1
            return
        before = (report.counts.total(), report.not_checked)
        check_evidence(evidence)
        if before == (report.counts.total(), report.not_checked) and not store.in_use():
            self.evidence.keep(key, True)


look, check_catalog, check_evidence = checker.look, Catalog.check, Evidence.check
connect_anew, close = Store.connect, Store.close


def _key(*parts: str | bytes) -> bytes:
    total = blake3()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        total.update(len(data).to_bytes(8, 'big'))
        total.update(data)
    return total.digest()


def _bytes(path: str | Path) -> bytes:
    """Return what is in a file; what is not there, or is no file, is unlike any file."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError as error:
        return f'no file: {error.errno}'.encode()
    try:
        size = os.fstat(fd).st_size
        return b'file' + os.pread(fd, size, 0)
    finally:
        os.close(fd)


def _catalog_key(store: Store) -> bytes:
    return _key(*(_bytes(store.path / f'catalog.sqlite{suffix}') for suffix in ('', '-wal', '-shm')))


@contextmanager
def remembering() -> Iterator[Remembered]:
    """Let fsck, in this process, remember. Not for threads, nor for more than one such block at a time."""
    mine = Remembered()
    checker.look = mine.look  # type: ignore[attr-defined]

    def remembered_check(catalog: Catalog, *, closer: bool, in_place: bool = False) -> None:
        mine.check_catalog(catalog, closer)  # its store is a copy in memory

    Catalog.check = remembered_check  # type: ignore[method-assign]
    Evidence.check = lambda evidence: mine.check_evidence(evidence)  # type: ignore[method-assign]
    Store.connect = lambda store: mine.connect(store)  # type: ignore[method-assign]
    Store.close = lambda store: mine.close(store)  # type: ignore[method-assign]
    KnownNodes.known = Kept()
    packs.Nodes = KnownNodes  # type: ignore[misc]
    try:
        yield mine
    finally:
        packs.Nodes = Nodes  # type: ignore[misc]
        Store.connect, Store.close = connect_anew, close  # type: ignore[method-assign]
        checker.look = look  # type: ignore[attr-defined]
        Catalog.check, Evidence.check = check_catalog, check_evidence  # type: ignore[method-assign]
