"""Tool fsck, check: the whole of it, in order. One thread, with worker processes for packs and parts.

1. superblock and catalog; 2. every pack: its records, and all nodes; 3. from these the graph, and what each
root reaches; 4. references, index and records held against each other, part by part; 5. trees, as POSIX
sees them;
6. names of the files that have lost something; 7. journal, audit log, batches. What cannot be checked for
want of something earlier is told as such, never as clean."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from snapfs import limits
from snapfs.errors import Corrupt
from snapfs.format.nodes import Leaf, decode_node
from snapfs.format.packs import PACK_HEADER_BYTES, decode_pack_header
from snapfs.format.records import HEADER_BYTES, decode_header, decode_payload
from tools.checker.backups import check_backups
from tools.checker.badrows import CODES, BadWriter
from tools.checker.balance import World, check_part
from tools.checker.catalog import Catalog, Root, asked_ids, small_pages_are_sound
from tools.checker.evidence import Evidence, Journal
from tools.checker.findings import Report
from tools.checker.graph import ASKED, NOBODY, RESTING, STRICT, Graph
from tools.checker.mirror import check_mirror, tell_copies
from tools.checker.naming import LEAVES_AT_ONCE, Namer
from tools.checker.packs import META, PackResult, Task, look, packs_on_disk
from tools.checker.posix import Posix
from tools.checker.spill import ASKED as ASKED_ROWS
from tools.checker.spill import Spill, parts_for, text_of, words, words_of
from tools.checker.store import FOLDERS, Pack, Store, is_ours, read_at
from tools.checker.sums import Sums
from tools.checker.telling import Telling
from tools.checker.trust import ODD, LookCloser, Moved, Trust

TOPS = np.dtype([('a', 'u8'), ('b', 'u8'), ('flag', 'u1')])
META_PLACE = f'packs/{FOLDERS[META]}/'
UNKNOWN = Pack(0, b'', 1, 'unknown', 0, 0)
LOST_BY = ('pack-missing', 'pack-short', 'pack-unreadable')  # told with the chunks that are lost
PAGES, JOURNAL = 'pages', 'journal'  # tasks beside those of packs
SMALL_BYTES = 32 * limits.MIB  # below this in all, one process does it


@dataclass(frozen=True, slots=True)
class Options:
    """`full`: read and hash every byte; else structures, totals and presence. `jobs`: processes. `names`:
    only what is known or seen to be lost is looked for, as `damage` does. `chunks`: ids to be named as
    well."""

    full: bool = True
    jobs: int = 2
    names: bool = False
    chunks: tuple[bytes, ...] = ()
    scratch: Path | None = None


def check(path: Path, options: Options, report: Report) -> None:
    """Check a store; all that is found goes into the report. Invalid when there is no store to look at."""
    # Reading every byte takes so long that one look at each row of the catalog is nothing beside it.
    trust = None if options.full else Trust()
    while True:
        try:
            _check(path, options, report, trust)
            return
        except Moved:
            assert trust is not None
            trust = replace(trust, in_place=False)
        except LookCloser as error:
            assert trust is not None
            # The second time more may be odd; then there is a third, which takes nothing for granted.
            trust = replace(trust, listed=error.packs) if error.packs - trust.listed else None
        report.begin()


def _check(path: Path, options: Options, report: Report, trust: Trust | None) -> None:
    try:
        store = Store(path, options.scratch)
    except OSError as error:  # no right, or a disk that answers nothing
        report.could_not(str(path), error.strerror or str(error))
        return
    try:
        _Check(store, options, report, trust).run()
    except KeyboardInterrupt:
        if store.moved():
            report.begin()  # nobody knows what that was of
        report.partial = True
    except Exception as error:
        if store.moved():
            raise Moved from error  # whatever it was
        if trust is not None and isinstance(error, ODD) and not is_ours(error):
            raise LookCloser from error
        if not (isinstance(error, OSError | sqlite3.Error) and is_ours(error)):
            raise
        why = getattr(error, 'strerror', None) or str(error)
        report.could_not('the rest', f'{why}; temporary files are in {store.scratch.parent} (see --scratch)')
    else:
        if store.moved():
            raise Moved
    finally:
        store.close()


class _Check:
    def __init__(self, store: Store, options: Options, report: Report, trust: Trust | None) -> None:
        self.trust = trust
        self.closer = trust is None
        self.store = store
        self.options = options
        self.report = report
        self.catalog = Catalog(store, report)
        self.results: list[PackResult] = []
        self.graph = Graph([], [])
        self.unknown: list[tuple[int, bytes]] = []
        self.journal = Journal()
        self.holes = False  # nodes are lost: nobody knows what they refer to

    def run(self) -> None:
        report, store = self.report, self.store
        try:
            store.begin()
        except (OSError, Corrupt) as error:
            why = getattr(error, 'strerror', None) or str(error)
            if is_ours(error):
                report.could_not('the store', f'superblock: {why}')
                return
            report.add('superblock-bad', 'superblock', why)
            report.could_not('the store', 'without a superblock nothing can be told apart')
            return
        if store.superblock_problem:
            report.add('superblock-bad', 'superblock', f'{store.superblock_problem}; its copy is whole')
        check_backups(store, report, full=self.options.full, names=self.options.names)
        for code, name in store.links():
            report.add(code, name, 'is a symbolic link')
        report.progress('catalog', 0, 0)
        in_place = self.trust is not None and self.trust.in_place
        self.catalog.check(closer=self.closer, in_place=in_place)
        self.parts = parts_for(sum(pack.records for pack in self.catalog.packs.values()))
        self._packs()
        if not self.catalog.sound:
            report.could_not(
                'trees, index and evidence', 'without its catalog nobody knows what they should be'
            )
            return
        self.graph = Graph([one.nodes for one in self.results if one.nodes is not None],
                           [fact for one in self.results for fact in one.facts])  # fmt: skip
        journal = self.evidence.journal(self.journal)
        db = store.connect()
        try:
            tops = self._roots(db)
        finally:
            db.close()
        self._balance(tops, journal)
        if not self.options.names:
            if self.options.full:
                self._trees()
                check_mirror(self.store, self.catalog.packs.values(), self.report)
            self.evidence.check()
        tell_copies(self.store, self.catalog.packs.values(), self.report)
        self.report.facts['epoch'] = self.catalog.settings.get('epoch')

    # --- packs -------------------------------------------------------------------------------------------
    def _tasks(self) -> list[Task]:
        names = self.options.names
        on_disk, findings, unseen = packs_on_disk(self.store)
        for place, why in unseen:
            self.report.could_not(place, why)
        for code, place, what in findings if not names else ():
            self.report.add(code, place, what)
        known = {(pack.kind, pack.name): pack for pack in self.catalog.packs.values()}
        tasks, index = [], 0
        for pack in sorted(known.values(), key=lambda one: one.number):
            tasks.append(Task(pack, index, self.options.full, True, names, self._summed(pack)))
            index += pack.kind == META
        for kind, name in on_disk:
            if (kind, name) not in known:
                self.unknown.append((kind, name))
                if not self.catalog.sound:
                    stranger = replace(UNKNOWN, name=name, kind=kind)
                    tasks.append(Task(stranger, index, self.options.full, False, names))
                    index += kind == META
        return tasks

    def _summed(self, pack: Pack) -> bool:
        """Return whether this pack's records need not be listed: all of them should be named by rows."""
        if self.trust is None or self.options.names:
            return False
        return pack.state == 'sealed' and pack.number not in self.trust.listed

    def _packs(self) -> None:
        tasks = self._tasks()
        total = sum(task.pack.bytes for task in tasks)
        # What takes longest for its bytes comes first, so that no process waits for it at the end.
        tasks.sort(key=lambda task: task.pack.kind != META)
        work: list[Task | str] = [*tasks]
        if self.catalog.sound:
            self.evidence = Evidence(self.store, self.catalog, self.report, self.unknown)
            # A daemon that has the store has opened its journal: the map of damage need not read it.
            journal = not self.options.names or not self.store.in_use()
            work[:0] = [PAGES] * (not self.closer) + [JOURNAL] * journal
        try:
            for result in self._spread(_pack_work, work, total, as_they_come=True):
                self._take_result(result)
                self.report.progress('packs', len(self.results), len(tasks))
        finally:  # also what an interrupted check has found
            # Two checks say the same in the same order.
            self.results.sort(key=lambda one: (one.number, one.findings[:1]))
            for one in self.results:
                self._tell_pack(one)
        if self.catalog.sound:
            self._strangers()

    def _take_result(self, result: PackResult | Journal | bool) -> None:
        if isinstance(result, Journal):
            self.journal = result
        elif isinstance(result, PackResult):
            self.results.append(result)
        elif not result:
            raise LookCloser

    def _tell_pack(self, result: PackResult) -> None:
        """Tell what is wrong with a pack, but for what is told with the chunks that are lost."""
        for finding in result.findings:
            if finding[0] not in LOST_BY:
                self.report.add(*finding)
        result.findings = [one for one in result.findings if one[0] in LOST_BY]
        if result.unseen:
            pack = self.catalog.packs.get(result.number)
            name = '/'.join(self.store.pack_parts(pack.kind, pack.name)) if pack else 'a pack'
            self.report.could_not(name, f'{result.unseen}; what its chunks are needed for neither')

    def _strangers(self) -> None:
        if self.options.names or self.store.in_use():
            return
        for kind, name in self.unknown:
            parts = self.store.pack_parts(kind, name)
            code, what = 'pack-unknown', 'the catalog does not know it'
            try:
                with self.store.opened(*parts) as (fd, _):
                    header = decode_pack_header(read_at(fd, PACK_HEADER_BYTES, 0))
                if header.store_uuid != self.store.uuid:
                    code, what = 'pack-foreign', f'it is a pack of store {header.store_uuid.hex()}'
                elif header.name != name or header.kind != kind:
                    code, what = (
                        'pack-misplaced',
                        f'it is pack {header.name.hex()} of kind {int(header.kind)}',
                    )
            except (OSError, Corrupt) as error:
                what = f'{what}; {error}'
            self.report.add(code, '/'.join(parts), what)

    def _spread(
        self, work: Callable[[Any], Any], tasks: Sequence[Any], total: int, *, as_they_come: bool = False
    ) -> Iterator[Any]:
        """Do tasks in worker processes, when that is worth it, and yield the results, in the order of tasks
        or as they come."""
        global _SHARED
        _SHARED = self._shared()
        _SPILL.clear()
        _BAD.clear()
        jobs = min(self.options.jobs, len(tasks))
        if jobs < 2 or total < SMALL_BYTES:
            for task in tasks:
                yield work(task)
            _finish_spill()
            return
        # Children are forked: what they share is there already, and is not copied.
        with multiprocessing.get_context('fork').Pool(jobs, _begin_work) as pool:
            spread = pool.imap_unordered if as_they_come else pool.imap
            yield from spread(work, tasks, chunksize=1)

    def _spread_leaves(self, look: Callable[[Any], Any], tasks: Sequence[Any]) -> Iterator[Any]:
        self._look = look
        total = len(tasks) * LEAVES_AT_ONCE * limits.NODE_BYTES_TARGET
        return self._spread(_name_work, tasks, total, as_they_come=True)

    def _shared(self) -> dict[str, Any]:
        return {
            'store': self.store,
            'parts': self.parts,
            'world': getattr(self, 'world', None),
            'own': os.getpid(),
            'look': getattr(self, '_look', None),
            'evidence': getattr(self, 'evidence', None),
        }

    # --- roots and the graph -----------------------------------------------------------------------------
    def _roots(self, db: sqlite3.Connection) -> NDArray[np.void]:
        """Mark what each kind of root reaches; return the ids of their tops."""
        graph, tops = self.graph, []
        self.standing: list[tuple[Root, int]] = []
        for root in self.catalog.roots:
            flag = STRICT if root.strict else RESTING if root.resting else ASKED
            found = graph.find_ids(b''.join(root.tops))
            self.holes |= flag != ASKED and bool((found == NOBODY).any())
            tops += [(*words_of(id), flag) for id in root.tops]
            graph.reach(found, flag)
            if flag != ASKED and root.tops:
                self._root(root, int(found[0]))
            elif flag != ASKED and (root.items or root.refs):
                self.report.add('root-totals', root.name, f'no tree, and {root.items} items')
        spill = Spill(self.store.scratch, self.parts)
        for root in self.catalog.roots:
            if not (root.strict or root.resting):
                for subtrees, ids in asked_ids(db, root):
                    if subtrees:
                        graph.reach(graph.find_ids(ids), ASKED)
                    rows = np.zeros(len(ids) // limits.ID_BYTES, dtype=ASKED_ROWS)
                    rows['a'], rows['b'] = words(ids)
                    spill.add('asked', rows)
        spill.close()
        self.holes |= graph.has_holes()
        graph.check_edges(self.report)
        if self.options.full:
            graph.check_order(self.report)
        return np.array(tops, dtype=TOPS)

    def _root(self, root: Root, top: int) -> None:
        if top == NOBODY:
            return  # the balance tells where it is gone
        self.standing.append((root, top))
        node = self.graph.nodes[top]
        if (int(node['items']), int(node['refs'])) != (root.items, root.refs):
            self.report.add(
                'root-totals',
                root.name,
                f'the catalog says {root.items} items and {root.refs} references, the tree has '
                f'{node["items"]} and {node["refs"]}',
            )

    # --- the balance -------------------------------------------------------------------------------------
    def _balance(self, tops: NDArray[np.void], journal: frozenset[int]) -> None:
        places = {pack.number: '/'.join(self.store.pack_parts(pack.kind, pack.name))
                  for pack in self.catalog.packs.values()}  # fmt: skip
        self.world = World(
            self.store, self.catalog.rows, None if self.closer else self.catalog.settings['epoch'],
            self.graph, {one.number: one.end for one in self.results},
            {one.number: one.lost_by for one in self.results if one.lost_by},
            frozenset(one.number for one in self.results if one.unseen),
            {one.number: one.bad for one in self.results if one.bad is not None},
            {one.number: one.dark for one in self.results if one.dark},
            {pack.number: pack.kind for pack in self.catalog.packs.values()},
            not self.options.names, self.options.full, journal, tops, self.parts,
            self.options.chunks, self.report.shown_max,
            frozenset(one.number for one in self.results if one.sums is not None),
            self.catalog.damaged,
        )  # fmt: skip
        telling = Telling(self.graph, self.report, places, self.options.chunks, self.holes)
        counts: dict[str, int] = {}
        named = Sums()
        total = sum(pack.bytes for pack in self.catalog.packs.values())
        for done, result in enumerate(self._spread(_part_work, range(self.parts), total)):
            if result.unusual:
                raise LookCloser
            telling.take(result.losses)
            named.add_all(result.sums)
            for name, number in result.counts.items():
                counts[name] = counts.get(name, 0) + number
            for a in result.healed:
                self.report.add('damage-healed', f'chunk {text_of(a)}', 'is whole')
            self.report.progress('index', done + 1, self.parts)
        self._same_records(named, counts)
        self.report.facts['balance'], self.report.facts['holes'] = counts, self.holes
        synced = {place >> 32 for place in journal}
        for one in self.results:
            # In a store that is in use they are new records; the journal names those that a power cut left.
            if one.tail and one.number not in synced and not (self.options.names or self.store.in_use()):
                self.report.add('pack-tail', places[one.number], f'{one.tail} bytes behind its last record')
        telling.tell(Namer(self.graph, self.standing, self._plain, self._spread_leaves), self.catalog.roots)
        self._unneeded(telling, places)
        blind = self.holes or any(places[number].startswith(META_PLACE) for number in self.world.unseen)
        if counts.get('leaked') and not blind:  # who knows what nodes that were not read refer to
            self.report.add('leaked', 'store', f'{counts["leaked"]} chunks, {counts["leaked bytes"]} bytes')
        if counts.get('unindexed'):
            self.report.add(
                'record-unindexed',
                'store',
                f'{counts["unindexed"]} records, {counts["unindexed bytes"]} bytes',
            )

    def _same_records(self, named: Sums, counts: dict[str, int]) -> None:
        """See that rows name just the records of the packs where these were only added up. LookCloser."""
        seen = Sums()
        for one in self.results:
            if one.sums is not None:
                seen.add_all(one.sums)
        if odd := seen.unlike(named, self.world.summed):
            raise LookCloser(odd)
        if self.world.compared:
            counts['records'] = counts.get('records', 0) + sum(count for count, _ in seen.of.values())

    def _unneeded(self, telling: Telling, places: dict[int, str]) -> None:
        """Report what is damaged in packs, and no row of the index names."""
        for one in self.results:
            rows = one.bad.read() if one.bad is not None and not self.options.names else ()
            for row in rows:
                code = CODES[row['code']]
                if row['named']:
                    continue
                if not self.report.room('record-waste'):
                    self.report.more('record-waste', 1)
                    continue
                where = f'{places[one.number]} at offset {row["offset"]}'
                what = one.bad.what(row) if one.bad is not None else ''
                self.report.add('record-waste', where, f'{code}: {what}; no row of the index names it')
            for code, place, what in one.findings:
                if not telling.has_told(code, one.number):
                    self.report.add(telling.unneeded(code), place, f'{what}; nothing that stands needs it')

    def _plain(self, node: int) -> bytes | None:
        """Read a node again."""
        row = self.graph.nodes[node]
        pack = self.catalog.packs[int(row['pack'])]
        try:
            with self.store.opened(*self.store.pack_parts(pack.kind, pack.name)) as (fd, _):
                header = decode_header(read_at(fd, HEADER_BYTES, int(row['offset'])))
                payload = read_at(fd, header.stored_length, int(row['offset']) + HEADER_BYTES)
            return decode_payload(header, payload)
        except (OSError, Corrupt):
            return None  # told as what it is when its pack was read

    def _trees(self) -> None:
        assert self.store.superblock is not None

        def read(node: int) -> Leaf:
            plain = self._plain(node)
            found = decode_node(plain) if plain is not None else None
            if not isinstance(found, Leaf):
                raise Corrupt(f'node {text_of(self.graph.nodes[node]["a"])} cannot be read again')
            return found

        namer = Namer(self.graph, self.standing, self._plain, self._spread_leaves)
        posix = Posix(self.graph, self.report, namer, read, self.store.superblock.name_key)
        for done, (root, top) in enumerate(self.standing):
            if root.kind == 'canary':
                continue  # planted chunks, no files
            try:
                posix.check(root, top)
            except Corrupt as error:
                self.report.could_not(root.name, str(error))
            self.report.progress('trees', done + 1, len(self.standing))


# What worker processes are forked with, and their own files.
_SHARED: dict[str, Any] = {}
_SPILL: dict[int, Spill] = {}
_BAD: dict[int, BadWriter] = {}


def _begin_work() -> None:
    # Ctrl-C reaches every process of the terminal. The first one ends the others, and tells what they found.
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _pack_work(task: Task | str) -> PackResult | Journal | bool:
    """Look at a pack, at the pages of the small tables of the catalog, or at the journal."""
    if isinstance(task, str):
        if task == JOURNAL:
            found: Journal = _SHARED['evidence'].look_at_journal()
            return found
        try:
            return small_pages_are_sound(_SHARED['store'])
        except sqlite3.Error:
            return False
    process = os.getpid()
    spill = _SPILL.setdefault(process, Spill(_SHARED['store'].scratch, _SHARED['parts']))
    bad = _BAD.setdefault(process, BadWriter(_SHARED['store'].scratch))
    result = look(_SHARED['store'], task, spill, bad)
    if process != _SHARED['own']:
        spill.close()
    return result


def _part_work(part: int) -> Any:
    return check_part(_SHARED['world'], part)


def _name_work(nodes: Any) -> Any:
    return _SHARED['look'](nodes)


def _finish_spill() -> None:
    spill = _SPILL.pop(os.getpid(), None)
    if spill is not None:
        spill.close()


assert set(FOLDERS) == {1, META}
