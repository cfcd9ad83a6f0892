"""L4 mentions: recount 2, bottom-up: does anybody still mention what a batch condemns? Blocking; one
thread.

Another method than recount 1, in code of its own above the byte decoders: no tree is walked, no registry
of roots is asked. Every NODE record of every meta pack is read and decoded item by item; every column of
the catalog that can hold an id is read (catalog_ids.py), and the journal. Then each mention of a condemned
id is judged:

- It does not count when the mentioner is condemned in the same batch (and not stored afresh since), or
  when the mentioned chunk has been stored afresh since: then that copy is meant.
- It is *live* when a row of the catalog keeps the mentioner, or names the chunk itself: recount 1 was
  wrong.
- Else, when a request that nobody can take back asks for the mentioner, it will go, too: it needs nothing.
- Else nobody can come to the mentioner: a *leftover*, of a crash or of what waits to be freed in its turn.
  It needs nothing, but in doubt we keep: the chunk leaves the batch. A mentioner that has been freed
  already does not count.

What another batch condemned is kept by that batch's requests until it is freed; such a mention is served
where the other batch holds a copy of its own.

Anything missing, unreadable or odd raises Corrupt: then nothing is known and nothing may be freed (P10).
"""

from __future__ import annotations

import sqlite3
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from snapfs import limits
from snapfs.collect.ancestry import BranchPlaces, Keeper, keepers, parents_above
from snapfs.collect.catalog_ids import (
    Claim,
    PackFact,
    batches_with,
    claims,
    opened_catalog,
    pack_facts,
    setting,
)
from snapfs.collect.condemned import Condemned, as_ids, prefixes_of
from snapfs.collect.live_journal import JournalId, live_ids
from snapfs.collect.mention_values import Mention, Mentions, MentionSpec
from snapfs.collect.meta_packs import (
    PackContent,
    PackList,
    compare_packs,
    read_bytes,
    read_meta_pack,
    read_stranger,
)
from snapfs.errors import Corrupt, Invalid
from snapfs.format.ids import RecordKind
from snapfs.format.items import check_item
from snapfs.format.keys import EXTENT, KIND_POSITION, XATTR
from snapfs.format.nodes import Branch, Leaf, decode_node
from snapfs.format.records import HEADER_BYTES, decode_header, decode_payload
from snapfs.format.superblock import SUPERBLOCK_BYTES, decode_superblock

Progress = Callable[[int, int], None]  # bytes done, bytes in all
_ID = limits.ID_BYTES
_LENGTH_SURE = limits.PLAIN_BYTES_MAX
_OFFSET_SURE = bytes([EXTENT]) + (limits.FILE_BYTES_MAX - limits.PLAIN_BYTES_MAX).to_bytes(8, 'big')
_INO_FIRST, _INO_END = (1).to_bytes(8, 'big'), (limits.INO_MAX + 1).to_bytes(8, 'big')


@dataclass(slots=True)
class _Node:
    """A node that mentions condemned ids: where it was seen, and the places of these ids among the
    condemned."""

    where: str
    places: array[int] = field(default_factory=lambda: array('I'))


def look_for_mentions(spec: MentionSpec, progress: Progress = lambda done, total: None) -> Mentions:
    """Do recount 2. Invalid when the batch is not in quarantine; Corrupt as above."""
    raw = read_bytes(spec.store / 'superblock', 0, SUPERBLOCK_BYTES)
    if decode_superblock(raw).uuid != spec.uuid:
        raise Corrupt('the store is not the one that recount 2 was asked about')
    path = spec.store / 'batches' / str(spec.batch) / 'condemned'
    with opened_catalog(spec.store) as db:
        # One moment for all that says what to look at and who keeps what. It ends before the long work:
        # else the catalog's log could not be recycled.
        db.execute('BEGIN')
        epoch, committed = setting(db, 'epoch'), setting(db, 'journal_sequence')
        _check_batch(db, spec, epoch)
        facts = pack_facts(db)
        with Condemned(path, db, spec.batch) as condemned:
            recount = _Recount(spec, condemned, progress)
            recount.read_claims(db)
            db.execute('COMMIT')
            # After the rows: a pack that is made from here on has nothing of before the horizon.
            recount.read_packs(compare_packs(spec.store, facts))
            recount.read_journal(committed)
            db.execute('BEGIN')
            recount.judge(db)
            return recount.result(epoch)


def _check_batch(db: sqlite3.Connection, spec: MentionSpec, epoch: int) -> None:
    if epoch < spec.horizon:
        raise Corrupt(f'the catalog is of epoch {epoch}, the horizon was {spec.horizon}: it is an old one')
    row = db.execute('SELECT state FROM batch WHERE number = ?', (spec.batch,)).fetchone()
    if row is None or row[0] != 'QUARANTINED':
        raise Invalid(f'batch {spec.batch} is not in quarantine')


class _Recount:
    """The state of one run."""

    def __init__(self, spec: MentionSpec, condemned: Condemned, progress: Progress) -> None:
        self._spec = spec
        self._condemned = condemned
        self._progress = progress
        self._strangers: tuple[bytes, ...] = ()
        self._packs: list[PackFact] = []
        self._branches = BranchPlaces()
        self._nodes: dict[bytes, _Node] = {}
        self._pairs = 0
        self._overflow: Mention | None = None
        self._journal: list[tuple[int, str]] = []  # place of the condemned id, row
        self._journal_copies: dict[bytes, set[tuple[bytes, int]]] = {}
        self._claims: list[tuple[int, str, int | None]] = []  # place, row, batch
        self._reaching: list[Claim] = []
        self._asked: list[Claim] = []
        control = sorted(set(spec.control))
        self._control = {id: prefixes_of(as_ids(id))[0] for id in control}
        self._records = self._items = self._references = self._bytes = 0
        self._rows = self._journal_ids = 0
        self._live: list[Mention] = []
        self._live_count = 0
        self._leftovers: set[int] = set()

    # --- the packs ---------------------------------------------------------------------------------------
    def read_packs(self, listed: PackList) -> None:
        """Read every record of every meta pack."""
        if listed.strangers and not self._spec.writers:
            raise Corrupt(f'pack {listed.strangers[0].hex()} is on the disk and not in the catalog')
        self._strangers = listed.strangers
        self._packs = [fact for fact in listed.packs if fact.kind == RecordKind.NODE]
        total = sum(fact.bytes for fact in self._packs)
        done = 0
        for number, fact in enumerate(self._packs):
            self._read_pack(number, read_meta_pack(self._spec.store, self._spec.uuid, fact), whole=True)
            done += fact.bytes
            self._progress(done, total)
        for name in self._strangers:
            content = read_stranger(self._spec.store, self._spec.uuid, name)
            if content is not None:
                self._packs.append(content.fact)
                self._read_pack(len(self._packs) - 1, content, whole=False)

    def _read_pack(self, number: int, content: PackContent, whole: bool) -> None:
        self._bytes += len(content.data)
        ids = as_ids(b''.join([header.id for _, header in content.records]))
        places = self._condemned.find(ids)
        # A condemned node may mention whatever it likes, unless it has come back.
        excused = (
            (places >= 0) & ~self._condemned.fresh[places] if len(self._condemned.fresh) else places >= 0
        )
        table: list[bytes] = []
        owners: list[tuple[int, int]] = []  # index of the record, references
        waiting = 0
        for index, (offset, header) in enumerate(content.records):
            start = offset + HEADER_BYTES
            try:
                plain = decode_payload(header, content.data[start : start + header.stored_length])
                node = decode_node(plain)
            except Corrupt as error:
                if not whole:
                    break  # the last record of a pack that is being written
                raise Corrupt(f'pack {content.fact.name.hex()} at offset {offset}: {error}') from error
            refs = self._references_of(node)
            if node.level:
                self._branches.add(number, offset)
            self._records += 1
            if not refs:
                continue
            self._references += len(refs) // _ID
            self._see_control(refs)
            if excused[index]:
                continue
            table.append(refs)
            owners.append((index, len(refs) // _ID))
            waiting += len(refs) // _ID
            if waiting >= limits.MENTION_BLOCK_IDS:
                self._match(content, table, owners)
                table, owners, waiting = [], [], 0
        self._match(content, table, owners)

    def _references_of(self, node: Leaf | Branch) -> bytes:
        """Return the ids that the items of a node refer to, in order. Each item is checked against the whole
        schema, and its id found by its own position."""
        if isinstance(node, Branch):
            self._items += len(node.children)
            return b''.join(node.children)
        self._items += len(node.keys)
        refs = node.refs
        found: list[bytes] = []
        for key, value in zip(node.keys, node.values, strict=True):
            kind = key[KIND_POSITION]
            if kind == EXTENT or (kind == XATTR and value[0]):
                start = value[-1] * _ID
                id = refs[start : start + _ID]
                found.append(id)
                # Most are plainly good: decode_node has seen shape and types. What is not goes the long way.
                if (
                    kind == EXTENT
                    and 0 < value[0] <= _LENGTH_SURE
                    and key[KIND_POSITION:] < _OFFSET_SURE
                    and _INO_FIRST <= key < _INO_END
                ):
                    continue
                value = (*value[:-1], id)
            check_item(key, value)
        return b''.join(found)

    def _see_control(self, refs: bytes) -> None:
        for id in [id for id in self._control if id in refs]:
            at = refs.find(id)
            while at >= 0 and at % _ID:
                at = refs.find(id, at + 1)
            if at >= 0:
                del self._control[id]

    def _match(self, content: PackContent, table: list[bytes], owners: list[tuple[int, int]]) -> None:
        """Note which of the collected references are to condemned chunks."""
        if not table:
            return
        places = self._condemned.find(as_ids(b''.join(table)))
        hits = np.flatnonzero(places >= 0)
        if not len(hits):
            return
        ends = np.cumsum([count for _, count in owners])
        for hit, owner in zip(hits.tolist(), np.searchsorted(ends, hits, 'right').tolist(), strict=True):
            offset, header = content.records[owners[owner][0]]
            self._mention(
                header.id, f'in pack {content.fact.name.hex()} at offset {offset}', int(places[hit])
            )

    def _mention(self, node: bytes, where: str, place: int) -> None:
        if self._pairs >= limits.MENTION_PAIRS_MAX:
            if self._overflow is None:
                how = (
                    f'{where}, after {self._pairs} others: more than can be looked into, so it counts as live'
                )
                self._overflow = Mention(self._condemned.id(place), f'node {node.hex()}', how)
            return
        known = self._nodes.get(node)
        if known is None:
            known = self._nodes[node] = _Node(where)
        elif known.where != where:
            return  # the same node again, at another place: it mentions the same
        known.places.append(place)
        self._pairs += 1

    def _branch_at(self, pack: int, offset: int) -> tuple[bytes, list[bytes]]:
        fact = self._packs[pack]
        path = self._spec.store / 'packs' / 'meta' / fact.name.hex()[:2] / fact.name.hex()
        header = decode_header(read_bytes(path, offset, HEADER_BYTES))
        plain = decode_payload(header, read_bytes(path, offset + HEADER_BYTES, header.stored_length))
        node = decode_node(plain)
        assert isinstance(node, Branch)
        return header.id, node.ref_ids()

    # --- the journal and the catalog ---------------------------------------------------------------------
    def read_journal(self, committed: int) -> None:
        """Note what live journal records name."""
        for part in _blocks(live_ids(self._spec.store, self._spec.uuid, committed)):
            self._journal_ids += len(part)
            places = self._condemned.find(as_ids(b''.join([one.id for one in part])))
            for index in np.flatnonzero(places >= 0).tolist():
                one = part[index]
                if one.pack:
                    self._journal_copies.setdefault(one.id, set()).add((one.pack, one.offset))
                self._journal.append((int(places[index]), one.row))

    def read_claims(self, db: sqlite3.Connection) -> None:
        """Note which rows of the catalog name condemned ids, but for the requests of the batch itself."""
        for claim in claims(db):
            self._rows += 1
            self._see_control(claim.ids)
            if claim.batch == self._spec.batch:
                continue
            if not claim.keeps:
                self._asked.append(claim)
                continue
            if claim.reach:
                self._reaching.append(claim)
            places = self._condemned.find(as_ids(claim.ids))
            for place in places[places >= 0].tolist():
                self._claims.append((place, claim.row, claim.batch))

    # --- the verdict -------------------------------------------------------------------------------------
    def judge(self, db: sqlite3.Connection) -> None:
        """Sort all mentions into those that do not count, live ones and leftovers."""
        if self._control:
            raise Corrupt(f'recount 2 is blind: it has not seen who mentions {min(self._control).hex()}')
        places = {place for node in self._nodes.values() for place in node.places}
        places |= {place for place, _ in self._journal} | {place for place, _, _ in self._claims}
        copies = _Copies(db, self._spec.batch, {place: self._condemned.id(place) for place in places})
        for place, row, batch in self._claims:
            if not copies.serve(place, batch):
                self._is_live(place, row, 'names it')
        self._judge_journal(copies, db)
        self._judge_nodes(copies, db)
        if self._overflow is not None:
            self._live_count += 1
            self._live.insert(0, self._overflow)

    def _judge_journal(self, copies: _Copies, db: sqlite3.Connection) -> None:
        if not self._journal:
            return
        names = dict(db.execute('SELECT pack, name FROM pack'))
        for place, row in self._journal:
            id = copies.ids[place]
            text = 'SELECT pack, offset FROM quarantine WHERE id = ?'
            held = {(names.get(pack), offset) for pack, offset in db.execute(text, (id,))}
            own_copy = any(copy not in held for copy in self._journal_copies.get(id, ()))
            if not own_copy and not copies.serve(place, None):
                self._is_live(place, row, 'would be replayed after a crash, and names it')

    def _judge_nodes(self, copies: _Copies, db: sqlite3.Connection) -> None:
        waiting = {
            id: pending
            for id, node in self._nodes.items()
            if (pending := [place for place in node.places if not copies.fresh(place)])
        }
        if not waiting:
            return
        parents = parents_above(waiting, self._branches, self._branch_at)
        kept_by = keepers(self._reaching, parents)
        below = keepers([claim for claim in self._asked if claim.reach], parents)
        alone = keepers([claim for claim in self._asked if not claim.reach], {id: set() for id in waiting})
        rows = {table: batches_with(db, table, waiting) for table in ('chunk', 'quarantine', 'freed')}
        for id, pending in waiting.items():
            gone = id in rows['freed'] and id not in rows['chunk'] and id not in rows['quarantine']
            for place in pending:
                keeper = _first_unserved(kept_by[id], copies, place)
                if keeper is not None:
                    how = f'{self._nodes[id].where}, which {keeper.row} keeps'
                    self._is_live(place, f'node {id.hex()}', how)
                elif not kept_by[id] and not below[id] and not alone[id] and not gone:
                    self._leftovers.add(place)

    def _is_live(self, place: int, by: str, how: str) -> None:
        self._live_count += 1
        if len(self._live) < limits.MENTIONS_SHOWN_MAX:
            self._live.append(Mention(self._condemned.id(place), by, how))

    def result(self, epoch: int) -> Mentions:
        """Return what was found."""
        return Mentions(
            records=self._records,
            items=self._items,
            references=self._references,
            bytes=self._bytes,
            packs=len(self._packs),
            rows=self._rows,
            journal_ids=self._journal_ids,
            epoch=epoch,
            condemned=self._condemned.count,
            live=tuple(self._live),
            live_count=self._live_count,
            leftovers=tuple(self._condemned.id(place) for place in sorted(self._leftovers)),
            strangers=self._strangers,
        )


class _Copies:
    """Other copies of condemned chunks, looked up last of all: what came since may only keep a mention
    from being an alarm, because it serves it."""

    def __init__(self, db: sqlite3.Connection, batch: int, ids: dict[int, bytes]) -> None:
        self.ids = ids
        self._fresh = batches_with(db, 'chunk', ids.values()).keys()
        self._others = batches_with(db, 'quarantine', ids.values())
        self._batch = batch

    def fresh(self, place: int) -> bool:
        """Return whether the chunk has been stored afresh, for everybody."""
        return self.ids[place] in self._fresh

    def serve(self, place: int, batch: int | None) -> bool:
        """Return whether a mention on behalf of another batch's request (None: of anything else) means a
        copy."""
        if self.fresh(place):
            return True
        held = self._others.get(self.ids[place], set())
        return batch is not None and batch != self._batch and batch in held


def _first_unserved(kept_by: frozenset[Keeper], copies: _Copies, place: int) -> Keeper | None:
    unserved = [keeper for keeper in kept_by if not copies.serve(place, keeper.batch)]
    return min(unserved, key=lambda keeper: keeper.row) if unserved else None


def _blocks(things: Iterator[JournalId]) -> Iterator[list[JournalId]]:
    part: list[JournalId] = []
    for thing in things:
        part.append(thing)
        if len(part) >= limits.MENTION_BLOCK_IDS:
            yield part
            part = []
    if part:
        yield part
