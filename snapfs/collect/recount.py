"""L4 recount 1, top-down: who is alive? Blocking; one thread, best in a process of its own (worker.py).

Candidates are what the batch's requests reach. Condemned are the candidates that no standing root reaches,
and no others. In this order:

1. The worker's own list of roots is compared with the one the daemon froze at the horizon (roots.agree). A
   request that nobody can take back, what a commit dropped, is counted and keeps nothing.
2. All branches below the standing roots are read: now every live node is known by its id. The requests of
   resting batches come second; their nodes may lie in quarantine.
3. All nodes below the batch's requests are read, except live ones: what a live node reaches is alive. These
   nodes and what their leaves refer to are the candidates, with the canary's chunks among them.
4. The live leaves are read, and what they refer to is looked for among the candidates, by 8 bytes: that can
   only keep. What nobody mentioned is condemned.

Anything missing, unreadable or odd is Corrupt, and nothing is written (L1, P10). A live reference to what is
only in quarantine, or a canary that was not found alive, proves that a recount was wrong: the result is an
alarm, and again nothing is written. Memory grows with candidates (12 bytes each, up to COLLECT_PASS_IDS; more
take more passes) and with nodes (about 60 bytes each), not with references.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from snapfs import limits
from snapfs.collect.idsets import (
    NOBODY,
    UNKNOWN,
    Ids,
    Numbers,
    Owners,
    PrefixSet,
    claim,
    find,
    to_array,
    to_bytes,
)
from snapfs.collect.reading import PACK, STORED, StoreReader
from snapfs.collect.recount_values import (
    CONDEMNED_FILE,
    MODES,
    RETURNED_FILE,
    Alarm,
    Recount,
    RecountSpec,
    Share,
)
from snapfs.collect.roots import HANDED_IN, RootRow, RootSet, agree, part_ids, root_set
from snapfs.collect.spill import Candidates, IdFile
from snapfs.collect.walk import Levels, Walk, no_levels, united
from snapfs.errors import Corrupt, Invalid, Unavailable
from snapfs.format.records import HEADER_BYTES
from snapfs.store.durable import Disk

Progress = Callable[[int, int], None]


# Roots that last; pins and recoveries, which end and leave no request behind; requests of resting batches;
# and, when leaks are looked for, what somebody has asked for already.
LASTING, PASSING, RESTING, ASKED = range(4)


class _Alarmed(Exception):
    """The recount ends here: there is evidence."""


def recount(
    spec: RecountSpec, progress: Progress = lambda done, known: None, disk: Disk | None = None
) -> Recount:
    """Recount; `progress(nodes read, nodes known of)` is called now and then. `disk` is for tests.

    Corrupt: something is missing, unreadable or odd. Unavailable: a request was taken back meanwhile, or
    there is no room for a temporary file. Then, and when the result has an alarm, nothing is written.
    """
    if spec.mode not in MODES:
        raise Invalid(f'a recount has no mode {spec.mode!r}')
    if spec.mode == 'batch' and not spec.control:
        raise Invalid('a recount without a canary could be blind: there are no control ids')
    disk = disk if disk is not None else Disk()
    run = _Run(spec, StoreReader(spec.store, spec.uuid, disk), progress)
    try:
        try:
            run.begin()
            run.walk_roots()
            run.gather()
            run.compare()
        except _Alarmed:
            pass
        if spec.mode != 'what-if' and not run.alarms:
            run.condemned.write(disk, spec.out / CONDEMNED_FILE)
            run.returned.write(disk, spec.out / RETURNED_FILE)
        return run.result()
    finally:
        run.close()


class _Run:
    """One recount. Owners are positions: in `roots` for what is alive, in `requests` for candidates."""

    def __init__(self, spec: RecountSpec, reader: StoreReader, progress: Progress) -> None:
        self.spec = spec
        self.reader = reader
        self.candidates = Candidates(spec.out)
        self.condemned = IdFile(spec.out)
        self.returned = IdFile(spec.out)
        self.alarms: list[Alarm] = []
        self.seen: tuple[RootRow, ...] = ()
        self.roots: tuple[RootRow, ...] = ()
        self.requests: tuple[RootRow, ...] = ()
        self.epoch = self.firm = 0
        self.items = self.references = 0
        self._progress = progress
        self._done = self._known = 0
        control = to_array(b''.join(spec.control))
        self._control: Ids = np.unique(control, axis=0) if len(control) else control

    def close(self) -> None:
        """Let go of files."""
        self.reader.close()
        for file in (self.candidates, self.condemned, self.returned):
            file.close()

    # --- roots -------------------------------------------------------------------------------------------
    def begin(self) -> None:
        """Read the roots, and compare them with those expected."""
        handed_in = [row for row in self.spec.expected.roots if row.kind in HANDED_IN]
        with self.reader.transaction():
            found = root_set(self.reader.query, extra=handed_in)
        self.epoch = found.epoch
        self.seen, self.requests = _divide(self.spec, found)
        # A wish that nobody can take back keeps nothing; but what somebody asked for already is no leak.
        asked = self.spec.mode == 'leaks'
        roots = [row for row in self.seen if asked or row.kind != 'dropped']
        self.roots = tuple(sorted(roots, key=_rank))  # stable: in the registry's order otherwise
        self.lasting = sum(_rank(row) == LASTING for row in self.roots)
        self.firm = sum(_rank(row) <= PASSING for row in self.roots)
        self._kept = np.zeros((len(self.roots), 3), dtype=np.int64)  # chunks, bytes, shared references
        self._freed = np.zeros((len(self.requests) + 1, 3), dtype=np.int64)
        self._back = 0  # bytes that are returned

    def walk_roots(self) -> None:
        """Read every live branch: below roots that last; below pins and recoveries, which end and leave no
        request behind; below requests of resting batches, whose nodes alone may be in quarantine."""
        self._lasting = self._walk(self.roots[: self.lasting], 0, no_levels(), strict=True)
        passing = self.roots[self.lasting : self.firm]
        self._passing = self._walk(passing, self.lasting, self._lasting.levels, strict=True)
        firm = united(self._lasting.levels, self._passing.levels)
        resting = [row for row in self.roots[self.firm :] if row.kind != 'dropped']
        self._resting = self._walk(resting, self.firm, firm, strict=False)
        self._alive = united(firm, self._resting.levels)
        first = self.firm + len(resting)
        self._asked = self._walk(self.roots[first:], first, self._alive, strict=False, lenient=True)
        self._alive = united(self._alive, self._asked.levels)

    def _walk(
        self, rows: Sequence[RootRow], first: int, known: Levels, strict: bool, lenient: bool = False
    ) -> Walk:
        def name(owner: int) -> str:
            return rows[owner - first].name

        tops = []
        for owner, row in enumerate(rows, first):
            if row.id is not None:
                tops.append(claim(row.id, row.items, row.refs, owner))
            if row.subtrees:
                for ids in self._parts(row, 'subtrees'):
                    tops.append(claim(ids, UNKNOWN, UNKNOWN, owner))
        on_missing = self._missing if strict else None
        walk = Walk(self.reader, known, name, not strict, on_missing, self._tick, lenient)
        walk.run(tops)
        self._known += len(walk.levels[0])
        return walk

    def _parts(self, row: RootRow, kind: str) -> Iterator[bytes]:
        """Yield the ids of a request that has no tree, some thousands at a time."""
        seen = 0
        part: list[bytes] = []
        for ids in part_ids(self.reader.query, row.number, kind):
            part.append(ids)
            seen += len(ids) // limits.ID_BYTES
            if len(part) >= limits.COLLECT_PARTS:
                yield b''.join(part)
                part = []
        yield b''.join(part)
        if seen != (row.chunks if kind == 'chunks' else row.subtrees):
            raise Corrupt(f'{row.name} has changed since the horizon: it names {seen} {kind}')

    # --- candidates --------------------------------------------------------------------------------------
    def gather(self) -> None:
        """Collect the candidates."""
        if self.spec.mode == 'leaks':
            text = 'SELECT id FROM chunk WHERE epoch <= ? ORDER BY id'
            for rows in self.reader.rows(text, (self.spec.expected.epoch,)):
                self.candidates.add(to_array(b''.join([row[0] for row in rows])), 0)
        # What only passing roots reach is gone into: it must not be forgotten when these have passed.
        trees = sum(row.kind != 'dropped' for row in self.requests)
        known = self._lasting.levels
        walk = self._walk(self.requests[:trees], 0, known, strict=True)
        # What a commit dropped may be condemned already, by a batch that reaches it from a snapshot.
        parts = self._walk(self.requests[trees:], trees, known, strict=False, lenient=True)
        for met in (*walk.met, *parts.met):
            np.add.at(self._kept[:, 2], met.owners.astype(np.intp), met.refs + 1)
        for one in (walk, parts):
            for claims in one.levels:
                self.candidates.add(claims.ids, claims.owners)
            for ids, owners, _ in one.leaves():
                self.candidates.add(ids, owners)
        for owner, row in enumerate(self.requests):
            if row.chunks:
                for part in self._parts(row, 'chunks'):
                    self.candidates.add(to_array(part), owner)
        # The positive control. Nobody asked for these; a recount that does not find them alive is blind.
        self.candidates.add(self._control, len(self.requests))
        self.candidates.finish()

    # --- who is alive ------------------------------------------------------------------------------------
    def compare(self) -> None:
        """Look for the candidates among everything alive, and condemn those that are not there."""
        trips = self._quarantined_only()
        scan = self._scan_pays()
        controls = 0
        self._known += (len(self.candidates.counts) > 1) * len(self._lasting.levels[0])
        for number, (parts, prefixes) in enumerate(self.candidates.groups()):
            self._mark(prefixes, trips if number == 0 else None)
            if self.alarms:
                raise _Alarmed
            start = 0
            for part in parts:
                ids, requests = self.candidates.part(part)
                controls += self._judge(ids, requests, prefixes.owners_of(start, start + len(ids)), scan)
                start += len(ids)
            del prefixes  # the next one is made when this one is gone
        if self.alarms:
            raise _Alarmed
        assert controls == len(self._control), 'a chunk of the canary was not judged'

    def _mark(self, prefixes: PrefixSet, trips: PrefixSet | None) -> None:
        """Note for each candidate the first root that mentions it. With `trips`, look for these as well."""
        for claims in self._alive:
            prefixes.mark(claims.ids[:, 0], claims.owners)
        for owner, row in enumerate(self.roots):
            if row.chunks:
                for part in self._parts(row, 'chunks'):
                    prefixes.mark(to_array(part)[:, 0], np.uint32(owner))
        for walk in (self._lasting, self._passing, self._resting, self._asked):
            references = walk.branch_refs
            items = 0
            for ids, owners, count in walk.leaves():
                prefixes.mark(ids[:, 0].copy(), owners)
                references += len(ids)
                items += count
                if trips is not None and walk in (self._lasting, self._passing):
                    self._trip(trips, ids, owners)
            if trips is not None:
                self.references += references
                self.items += items

    def _judge(self, ids: Ids, requests: Owners, keepers: Owners, scan: bool) -> int:
        """Condemn what has no keeper; return how many of these candidates are the canary's."""
        control = find(self._control, ids) >= 0
        blind = np.flatnonzero(control & (keepers == NOBODY))
        for place in blind[: limits.COLLECT_ALARMS_MAX].tolist():
            self._alarm('blind', to_bytes(ids[place]), 'canary')
        ids, requests, keepers = ids[~control], requests[~control], keepers[~control]
        sizes = self._sizes(ids, requests, scan)
        there = sizes >= 0
        ids, requests, keepers, sizes = ids[there], requests[there], keepers[there], sizes[there]
        sizes = sizes + HEADER_BYTES
        gone = keepers == NOBODY
        kept = keepers[~gone].astype(np.intp)
        _add(self._kept, kept, sizes[~gone])
        _add(self._freed, requests[gone].astype(np.intp), sizes[gone])
        self.condemned.add(ids[gone])
        back = ~gone & (keepers >= self.lasting)
        self._back += int(sizes[back].sum())
        self.returned.add(ids[back])
        return int(control.sum())

    def _sizes(self, ids: Ids, requests: Owners, scan: bool) -> Numbers:
        """Return the payload bytes of each chunk in its pack. Corrupt when one is not in the index; -1 for
        one that a request without a tree names, and that another batch has condemned or freed before."""
        if scan:
            sizes = self._scan(ids)
        else:
            numbers = self.reader.locate(ids).numbers
            sizes = np.where(numbers[:, PACK] < 0, -1, numbers[:, STORED])
        for place in np.flatnonzero(sizes < 0).tolist():
            owner = int(requests[place])
            if owner < len(self.requests) and self.requests[owner].kind == 'dropped':
                continue
            name = self.requests[owner].name if owner < len(self.requests) else 'the index'
            self._missing(to_bytes(ids[place]), name)
            raise Corrupt(f'chunk {to_bytes(ids[place]).hex()} of {name} is not in the index')
        return sizes

    def _scan_pays(self) -> bool:
        rows = self.reader.query('SELECT coalesce(sum(records), 0) FROM pack')[0][0]
        return len(self.candidates) * limits.COLLECT_SCAN_SHARE > int(rows)

    def _scan(self, ids: Ids) -> Numbers:
        """As `_sizes`, reading through the index between the first and the last of the ids."""
        sizes = np.full(len(ids), -1, dtype=np.int64)
        if not len(ids):
            return sizes
        bounds = (to_bytes(ids[0]), to_bytes(ids[-1]))
        text = 'SELECT id, stored FROM chunk WHERE id >= ? AND id <= ? ORDER BY id'
        for rows in self.reader.rows(text, bounds):
            there = to_array(b''.join([row[0] for row in rows]))
            stored = np.array([row[1] for row in rows], dtype=np.int64)
            low = int(np.searchsorted(ids[:, 0], there[0, 0]))
            high = int(np.searchsorted(ids[:, 0], there[-1, 0], side='right'))
            places = find(there, ids[low:high])
            hit = np.flatnonzero(places >= 0)
            sizes[low + hit] = stored[places[hit]]
        return sizes

    # --- alarms ------------------------------------------------------------------------------------------
    def _quarantined_only(self) -> PrefixSet:
        """Return what only quarantine or freed has: a live reference to it proves a recount wrong."""
        found = []
        for table in ('quarantine', 'freed'):
            text = (
                f'SELECT id FROM {table} WHERE NOT EXISTS (SELECT 1 FROM chunk WHERE chunk.id = {table}.id)'
            )
            for rows in self.reader.rows(text):
                found.append(to_array(b''.join([row[0] for row in rows]))[:, 0].copy())
        return PrefixSet(np.unique(np.concatenate([*found, np.empty(0, dtype=np.uint64)])))

    def _trip(self, trips: PrefixSet, ids: Ids, owners: Owners) -> None:
        """Raise the alarm for references to what only quarantine or freed has."""
        if not len(trips):
            return
        for place in trips.hits(ids[:, 0].copy())[0].tolist():
            if len(self.alarms) >= limits.COLLECT_ALARMS_MAX:
                return
            id = ids[place : place + 1]
            if not len(self.reader.locate(id).missing):
                continue
            for table in ('quarantine', 'freed'):
                if not len(self.reader.locate(id, table).missing):
                    self._alarm(table, to_bytes(id), self.roots[int(owners[place])].name)
                    break

    def _missing(self, id: bytes, name: str) -> None:
        """A chunk that has to be in the index is not: an alarm if a batch has condemned it."""
        for table in ('quarantine', 'freed'):
            if not len(self.reader.locate(to_array(id), table).missing):
                self._alarm(table, id, name)
                raise _Alarmed

    def _alarm(self, what: str, id: bytes, who: str) -> None:
        if len(self.alarms) < limits.COLLECT_ALARMS_MAX:
            self.alarms.append(Alarm(what, id, who))

    # --- the result --------------------------------------------------------------------------------------
    def _tick(self, count: int) -> None:
        self._done += count
        self._progress(self._done, max(self._known, self._done))

    def result(self) -> Recount:
        """Return what was found; with an alarm, nothing is condemned."""
        quiet = not self.alarms
        walks = (self._lasting, self._passing, self._resting, self._asked) if quiet else ()
        freed = self._freed if quiet else self._freed * 0
        return Recount(
            horizon=self.spec.expected.epoch,
            epoch=self.epoch,
            roots=len(self.roots),
            nodes=sum(walk.branches + len(walk.levels[0]) for walk in walks),
            items=self.items,
            references=self.references,
            claimed=sum(row.refs or 0 for row in self.roots),
            candidates=len(self.candidates) - len(self._control) if quiet else 0,
            condemned=self.condemned.count if quiet else 0,
            condemned_bytes=int(freed[:, 1].sum()),
            returned=self.returned.count if quiet else 0,
            returned_bytes=self._back if quiet else 0,
            kept=_shares(self.roots, self._kept) if quiet else (),
            requests=_shares(self.requests, freed),
            condemned_digest=self.condemned.digest(),
            returned_digest=self.returned.digest(),
            alarm=tuple(self.alarms),
            seen=self.seen,
        )


def _divide(spec: RecountSpec, found: RootSet) -> tuple[tuple[RootRow, ...], tuple[RootRow, ...]]:
    """Return the standing roots that count, and the roots to be deleted."""
    wanted = set(spec.deleted)
    deleted = tuple(row for row in found.roots if _named(row) in wanted)
    if len(deleted) != len(wanted):
        kind, number = sorted(wanted - {_named(row) for row in deleted})[0]
        raise Unavailable(f'{kind} {number} is not there any more: it was taken back, or is being freed')
    expected = tuple(row for row in spec.expected.roots if _named(row) not in wanted)
    standing = tuple(row for row in found.roots if _named(row) not in wanted)
    deleted = tuple(sorted(deleted, key=lambda row: row.kind == 'dropped'))
    return agree(replace(spec.expected, roots=expected), replace(found, roots=standing)), deleted


def _rank(row: RootRow) -> int:
    """Return in which order roots are walked: what a later one reaches alone may not be where it should."""
    if row.kind == 'dropped':
        return ASKED
    if row.batch is not None:
        return RESTING
    return PASSING if row.kind in HANDED_IN else LASTING


def _named(row: RootRow) -> tuple[str, int]:
    """Return what a root is called in `RecountSpec.deleted`."""
    return 'request' if row.kind == 'dropped' else row.kind, row.number


def _add(table: Numbers, owners: Numbers, sizes: Numbers) -> None:
    """Add chunks and bytes to the rows of their owners."""
    np.add.at(table[:, 0], owners, 1)
    np.add.at(table[:, 1], owners, sizes)


def _shares(rows: tuple[RootRow, ...], table: Numbers) -> tuple[Share, ...]:
    counts = table.tolist()
    return tuple(
        Share(row.kind, row.number, row.name, chunks, size, shared)
        for row, (chunks, size, shared) in zip(rows, counts, strict=False)
        if chunks or shared
    )
