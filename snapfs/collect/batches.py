"""L4 batches: the only module that moves rows between `chunk`, `quarantine` and `freed`. Blocking; the
owner of the store, one caller at a time.

Each step is one transaction that first looks at the state of the batch: a step that comes too late, or
twice, or for another batch, changes nothing. What must be durable before (plan file, receipt, audit line)
is so before the transaction ends; the audit line is written inside it, after the checks, so that it speaks
of nothing that was refused. A crash between any two transactions leaves a state from which `recover` goes
one way only: PLANNED goes back, a batch on its way back goes on, QUARANTINED stays, CONFIRMED goes
forwards."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from snapfs import limits
from snapfs.collect import moves
from snapfs.collect.approvals import GRACE, counts
from snapfs.collect.files import CONDEMNED, RECEIPT, RETURNED, BatchFiles
from snapfs.collect.moves import Moved
from snapfs.collect.plan import CLASSES, Plan
from snapfs.collect.states import (
    CONFIRMED,
    FREED,
    PLANNED,
    QUARANTINED,
    RESTING,
    RESTORED,
    ApprovalRow,
    BatchRow,
    batch,
    batch_inside,
    batches,
)
from snapfs.errors import Corrupt, Held, Latched
from snapfs.format.receipts import ReceiptRow
from snapfs.store.catalog import take_number
from snapfs.store.rows import clean_text
from snapfs.store.store import Store


@dataclass(frozen=True, slots=True)
class Recounted:
    """What recount 2 of a batch proves, for `confirm`: epoch and trusted time (ns) at which it began, and the
    checks that passed, for the audit log."""

    began_epoch: int
    began_trusted_ns: int
    checks: Mapping[str, Any]


class Batches:
    """The batches of one open store."""

    def __init__(self, store: Store) -> None:
        self._catalog = store.catalog
        self._audit = store.audit
        self._world = store.world
        self.files = BatchFiles(store.disk, store.path, store.superblock.uuid)

    def _transaction(self) -> AbstractContextManager[sqlite3.Connection]:
        return self._catalog.transaction()

    # --- PLANNED -----------------------------------------------------------------------------------------
    def next_number(self) -> int:
        """Return the number that is free next."""
        return self._catalog.setting('next_batch')

    def reserve_number(self) -> int:
        """Return a number for a plan, with its directory; nobody gets it again. Several plans may be made,
        and wait for approval, at a time."""
        with self._transaction() as db:
            number = take_number(db, 'next_batch')
        self.files.make(number)
        return number

    def begin(self, plan: Plan) -> BatchRow:
        """Make the batch of a plan, PLANNED; its requests are the batch's from now on.

        Held when a request of the plan has been taken back or is in a batch, another batch is moving, or
        too many rest. Latched while an incident is in force. Corrupt when the lists of ids are not those
        of the plan."""
        self.files.check(plan.batch, CONDEMNED, plan.condemned_digest, plan.condemned)
        self.files.check(plan.batch, RETURNED, plan.returned_digest, plan.returned)
        if self.files.has(plan.batch, RECEIPT):
            raise Corrupt(f'batch {plan.batch} has a receipt already: the catalog is older than the store')
        self.files.write_plan(plan)
        assert self.files.plan(plan.batch, plan.digest) == plan
        with self._transaction() as db:
            _check_may_begin(db, plan)
            self._audit.append({'event': 'batch-begin', **_plan_event(plan)})
            following = _setting(db, 'next_batch')
            assert 0 < plan.batch <= following, f'batch {plan.batch} was planned, {following} is next'
            assert batch_inside(db, plan.batch) is None, f'there is a batch {plan.batch} already'
            if plan.batch == following:
                take_number(db, 'next_batch')
            db.execute(
                "INSERT INTO batch VALUES (?, 'PLANNED', ?, ?, ?, ?, ?, ?, ?, NULL, NULL, NULL, NULL, NULL, "
                'NULL, 0, NULL, NULL)',
                (
                    plan.batch, plan.grace_class, plan.horizon, plan.digest, plan.condemned,
                    plan.condemned_bytes, plan.grace_ns, self._world.time_ns(),
                ),
            )  # fmt: skip
            for request in plan.requests:
                changed = db.execute(
                    'UPDATE request SET batch = ? WHERE number = ? AND batch IS NULL',
                    (plan.batch, request.number),
                ).rowcount
                assert changed == 1, f'request {request.number} was there a moment ago'
            return _required(db, plan.batch, PLANNED)

    def quarantine_slice(self, number: int, ids: Sequence[bytes], excluded: Callable[[bytes], bool]) -> Moved:
        """Move chunks from `chunk` to `quarantine`, at most BATCH_SLICE_ROWS_MAX, ascending. No put may be
        between its recording and its answer meanwhile.

        Stay where they are, and are returned as excluded: those that `excluded` says were put since the
        horizon, and those whose row is younger than it (P3). Corrupt, nothing moved, when an id has no
        row, or stands as a root."""
        with self._transaction() as db:
            row = _required(db, number, PLANNED)
            wanted = [id for id in ids if not excluded(id)]
            late = moves.to_quarantine(db, row, wanted)
            kept = set(wanted)
            moved = tuple(id for id in wanted if id not in late)
            return Moved(moved, tuple(id for id in ids if id not in kept or id in late))

    def finish_quarantine(self, number: int, trusted_ns: int) -> BatchRow:
        """End the move: QUARANTINED. Grace is counted from `trusted_ns`; chunks and bytes become those
        that did move."""
        chunks, size = moves.in_quarantine(self._catalog, number)
        with self._transaction() as db:
            row = _required(db, number, PLANNED)
            if chunks > row.chunks:
                raise Corrupt(f'batch {number}: {chunks} chunks are in quarantine, {row.chunks} were planned')
            epoch = _setting(db, 'epoch')
            self._audit.append({
                'event': 'batch-quarantined', 'batch': number, 'digest': row.digest.hex(), 'chunks': chunks,
                'bytes': size, 'epoch': epoch, 'grace_ns': row.grace_ns,
            })  # fmt: skip
            db.execute(
                "UPDATE batch SET state = 'QUARANTINED', chunks = ?, bytes = ?, quarantined_ns = ?, "
                'quarantined_trusted_ns = ?, quarantined_epoch = ? WHERE number = ?',
                (chunks, size, self._world.time_ns(), trusted_ns, epoch, number),
            )
            return _required(db, number, QUARANTINED)

    # --- RESTORED ----------------------------------------------------------------------------------------
    def restore(self, number: int, reason: str) -> BatchRow:
        """Bring everything of a batch back, in slices; RESTORED. Does nothing when it is so already; Held
        from CONFIRMED on. A chunk that was stored anew meanwhile keeps its new location."""
        row = self.restore_begin(number, reason)
        after: bytes | None = b''
        while row.state != RESTORED and after is not None:
            after = self.restore_slice(number, after)
        return self.restore_end(number)

    def restore_begin(self, number: int, reason: str) -> BatchRow:
        """Decide it: from now on the batch can only go back, also after a crash."""
        assert reason
        with self._transaction() as db:
            row = _required(db, number, *RESTING, CONFIRMED, FREED, RESTORED, restoring=True)
            if row.state in (CONFIRMED, FREED):
                raise Held(f'batch {number} is {row.state}: it is too late to take it back')
            if row.reason is not None:
                return row
            self._audit.append({
                'event': 'batch-restore', 'batch': number, 'digest': row.digest.hex(), 'state': row.state,
                'reason': clean_text(reason),
            })  # fmt: skip
            db.execute('UPDATE batch SET reason = ? WHERE number = ?', (clean_text(reason), number))
            return _required(db, number, *RESTING, restoring=True)

    def restore_slice(self, number: int, after: bytes) -> bytes | None:
        """Bring up to BATCH_SLICE_ROWS_MAX chunks with ids above `after` back; return the last of them,
        None when there are no more."""
        with self._transaction() as db:
            row = _required(db, number, *RESTING, RESTORED, restoring=True)
            if row.state == RESTORED:
                return None  # somebody else's restore of the same batch was quicker
            assert row.restoring, f'batch {number} is not being restored'
            return moves.back_to_chunk(db, number, after, limits.BATCH_SLICE_ROWS_MAX)

    def restore_end(self, number: int) -> BatchRow:
        """The requests may be taken back again, or go into another batch."""
        left, _ = moves.in_quarantine(self._catalog, number)
        with self._transaction() as db:
            row = _required(db, number, *RESTING, RESTORED, restoring=True)
            if row.state != RESTORED:
                assert row.restoring, f'batch {number} is not being restored'
                assert not left, f'batch {number}: {left} chunks are still in quarantine'
                moves.release_requests(db, number)
                db.execute(
                    "UPDATE batch SET state = 'RESTORED', ended_ns = ? WHERE number = ?",
                    (self._world.time_ns(), number),
                )
            return _required(db, number, RESTORED, restoring=True)

    def restore_all(self, reason: str) -> list[BatchRow]:
        """Bring every batch back that can be; return them. All are decided first, then moved: a crash in
        between restores the rest at the next opening."""
        rows = batches(self._catalog, *RESTING)
        for row in rows:
            self.restore_begin(row.number, reason)
        return [self.restore(row.number, reason) for row in rows]

    def drop_from_batch(self, number: int, ids: Sequence[bytes], why: str) -> int:
        """Take chunks out of a quarantined batch, at most BATCH_SLICE_ROWS_MAX: back to `chunk`, and into
        a new request of kind 'returned'. Return how many were in it."""
        with self._transaction() as db:
            row = _required(db, number, QUARANTINED)
            chunks, size = moves.take_out(db, number, ids)
            if chunks:
                request = self._add_returned(db, row, None, size)
                moves.add_parts(db, request, 0, ids)
                self._audit.append({
                    'event': 'batch-returned', 'batch': number, 'chunks': chunks, 'request': request,
                    'reason': clean_text(why),
                })  # fmt: skip
                db.execute(
                    'UPDATE batch SET chunks = chunks - ?, bytes = bytes - ? WHERE number = ?',
                    (chunks, size, number),
                )
            return chunks

    # --- CONFIRMED ---------------------------------------------------------------------------------------
    def write_receipt(self, number: int) -> bytes:
        """Write the receipt of a quarantined batch from its rows; return its digest. Durable, and read
        back."""
        row = batch(self._catalog, number)
        if row.state != QUARANTINED:  # a request was taken back while recount 2 ran
            raise Held(f'batch {number} is {row.state}, not QUARANTINED')
        rows = moves.receipt_rows(self._catalog, number)
        return self.files.write_receipt(number, row.digest, row.chunks, rows)

    def confirm(self, number: int, receipt: bytes, recounted: Recounted) -> BatchRow:
        """CONFIRMED: from here it goes forwards only. `receipt`: the digest that `write_receipt` returned.

        Held unless the grace is over in trusted time (or an approval of exactly this plan counts), an
        epoch has passed since quarantine, and recount 2 began after both. Latched while an incident is in
        force."""
        row = batch(self._catalog, number)
        plan = self.files.plan(number, row.digest)
        listed = sum(map(len, self.files.receipt(number, receipt, row.digest)))
        if listed != row.chunks:
            raise Corrupt(f'batch {number}: the receipt lists {listed} of {row.chunks} chunks')
        in_quarantine = moves.in_quarantine(self._catalog, number)
        with self._transaction() as db:
            row = _required(db, number, QUARANTINED)
            _check_latch(db)
            _check_one_moves(db, number)
            approval = _check_grace(db, row, plan, recounted)
            who = None if approval is None else approval.who
            _check_asked(db, plan)
            assert in_quarantine == (row.chunks, row.stored_bytes), (
                f'P8: batch {number} holds {in_quarantine}'
            )
            self._audit.append({
                'event': 'batch-confirmed', **_plan_event(plan), 'freed_chunks': row.chunks,
                'freed_bytes': row.stored_bytes, 'receipt': receipt.hex(),
                'released_by': who, 'checks': dict(recounted.checks),
            })  # fmt: skip
            # The grace once more, in SQL: a slip in the sum above freed what could still be taken back (L5).
            db.execute(
                "UPDATE batch SET state = 'CONFIRMED', confirmed_ns = ?, receipt = ?, released_by = ? "
                'WHERE number = ? AND (? OR quarantined_trusted_ns + grace_ns <= ?)',
                (self._world.time_ns(), receipt, who, number, bool(approval), recounted.began_trusted_ns),
            )
            return _required(db, number, CONFIRMED)

    def free_slice(self, number: int, rows: Sequence[ReceiptRow]) -> int:
        """Move chunks from `quarantine` to `freed`: rows of the batch's receipt, at most
        BATCH_SLICE_ROWS_MAX. Return how many; those that are there already are none. Corrupt when one lies
        elsewhere than its receipt says."""
        with self._transaction() as db:
            _required(db, number, CONFIRMED)
            moved = moves.to_freed(db, number, rows)
            db.execute('UPDATE batch SET freed = freed + ? WHERE number = ?', (moved, number))
            return moved

    def free_all(self, number: int) -> BatchRow:
        """Free every chunk of a confirmed batch, slice by slice; what a crash has left is done now."""
        row = batch(self._catalog, number)
        assert row.receipt is not None, f'batch {number} is {row.state}'
        for rows in self.files.receipt(number, row.receipt, row.digest):
            for start in range(0, len(rows), limits.BATCH_SLICE_ROWS_MAX):
                self.free_slice(number, rows[start : start + limits.BATCH_SLICE_ROWS_MAX])
        return batch(self._catalog, number)

    # --- FREED -------------------------------------------------------------------------------------------
    def finish(self, number: int, returned: Iterable[bytes]) -> BatchRow:
        """End a batch whose chunks are all freed: FREED. Its requests are fulfilled and go; `returned`,
        what was in their reach and something kept, becomes a new request. Does nothing when it is so
        already."""
        row = batch(self._catalog, number)
        if row.state == FREED:
            return row
        assert row.state == CONFIRMED, f'batch {number} is {row.state}'
        request = self._return(row, sorted(set(returned)))
        while self._forget_parts(number):
            pass
        left, _ = moves.in_quarantine(self._catalog, number)
        with self._transaction() as db:
            row = _required(db, number, CONFIRMED)
            assert not left, f'batch {number}: {left} chunks are not freed'
            assert row.freed == row.chunks, (
                f'P8: batch {number}: {row.freed} of {row.chunks} chunks are freed'
            )
            self._audit.append(
                {'event': 'batch-freed', 'batch': number, 'chunks': row.freed, 'bytes': row.stored_bytes}
            )
            moves.end_requests(db, number, request)
            db.execute(
                "UPDATE batch SET state = 'FREED', ended_ns = ? WHERE number = ?",
                (self._world.time_ns(), number),
            )
            return _required(db, number, FREED)

    def _return(self, row: BatchRow, ids: Sequence[bytes]) -> int | None:
        """Make the request for what is returned, in slices; it belongs to the batch until that ends, so
        that a crash leaves half a request to nobody. A half made one is begun anew."""
        own = "SELECT number FROM request WHERE batch = ?1 AND kind = 'returned' AND origin = ?1"
        with self._transaction() as db:
            _required(db, row.number, CONFIRMED)
            db.execute(f'DELETE FROM request_part WHERE request IN ({own})', (row.number,))
            left = db.execute(f'DELETE FROM request WHERE number IN ({own})', (row.number,)).rowcount
            assert left <= 1, f'batch {row.number} would end {left} requests for a half made one'
            if not ids:
                return None
            request = self._add_returned(db, row, row.number, None)
        for start in range(0, len(ids), limits.BATCH_SLICE_ROWS_MAX):
            with self._transaction() as db:
                part = start // limits.INSERT_ROWS_MAX
                moves.add_parts(db, request, part, ids[start : start + limits.BATCH_SLICE_ROWS_MAX])
        return request

    def _add_returned(
        self, db: sqlite3.Connection, row: BatchRow, owner: int | None, size: int | None
    ) -> int:
        """Add a request of kind 'returned' from this batch, of `size` bytes, in batch `owner`."""
        request, epoch, now_ns = take_number(db, 'next_request'), _setting(db, 'epoch'), self._world.time_ns()
        db.execute(
            'INSERT INTO request VALUES '
            "(?, 'returned', 0, x'', x'', 0, NULL, 0, 0, 0, ?, ?, '', ?, ?, '', ?, ?, ?, NULL, NULL)",
            (request, epoch, now_ns, row.number, now_ns, epoch, size, owner),
        )
        return request

    def _forget_parts(self, number: int) -> int:
        with self._transaction() as db:
            _required(db, number, CONFIRMED)
            return db.execute(
                'DELETE FROM request_part WHERE (request, part) IN (SELECT p.request, p.part '
                'FROM request_part p JOIN request r ON r.number = p.request WHERE r.batch = ?1 '
                "AND NOT (r.kind = 'returned' AND r.origin IS ?1) LIMIT ?2)",
                (number, limits.BATCH_SLICE_PARTS),
            ).rowcount

    def restore_suspects(self) -> list[BatchRow]:
        """Restore every batch that rested when the collector was stopped by an incident: an alarm that
        could not restore it then (the disk was full, or took no writes) is made good. Return them."""
        found = self._catalog.query(
            f'SELECT DISTINCT b.number FROM batch b JOIN incident i ON {_SUSPECT} ORDER BY b.number'
        )
        return [self.restore(number, 'it rested when the collector was stopped') for (number,) in found]

    # --- after a crash -----------------------------------------------------------------------------------
    def recover(self) -> list[BatchRow]:
        """At the opening, before anybody writes or collects: undo what was only half decided; return the
        confirmed batches, which must be brought to their end."""
        self.restore_suspects()
        for row in batches(self._catalog, *RESTING):
            if row.restoring:
                assert row.reason is not None
                self.restore(row.number, row.reason)
            elif row.state == PLANNED:
                self.restore(row.number, 'the store stopped before the batch was in quarantine')
        return batches(self._catalog, CONFIRMED)


# The wall clock is good enough: told too early or too late, a batch goes back that need not.
_SUSPECT = "b.state = 'QUARANTINED' AND i.scope = 'collector' AND i.opened_ns >= b.quarantined_ns"


# --- preconditions ---------------------------------------------------------------------------------------
def _required(db: sqlite3.Connection, number: int, *states: str, restoring: bool = False) -> BatchRow:
    """Return the batch if it is in one of these states (and not on its way back): the fence of every step."""
    row = batch_inside(db, number)
    assert row is not None, f'there is no batch {number}'
    if row.state not in states or (row.restoring and not restoring):
        state = 'being restored' if row.restoring else row.state
        raise Held(f'batch {number} is {state}, not {" or ".join(states)}')
    return row


def _setting(db: sqlite3.Connection, key: str) -> int:
    return int(db.execute('SELECT value FROM settings WHERE key = ?', (key,)).fetchone()[0])


def _check_latch(db: sqlite3.Connection) -> None:
    row = db.execute(
        'SELECT number, reason FROM incident WHERE acknowledged_ns IS NULL ORDER BY number'
    ).fetchone()
    if row is not None:
        raise Latched(
            f'the collector stands still: incident {row[0]}: {row[1]}',
            advice=f'Look at it with: snapfs incident show {row[0]}.',
        )


def _check_one_moves(db: sqlite3.Connection, number: int) -> None:
    others = db.execute(
        "SELECT number, state FROM batch WHERE number != ? AND (state IN ('PLANNED', 'CONFIRMED') "
        "OR (state = 'QUARANTINED' AND reason IS NOT NULL))",
        (number,),
    ).fetchall()
    if others:
        raise Held(f'batch {others[0][0]} is {others[0][1]} and moves; one moves at a time')


def _check_may_begin(db: sqlite3.Connection, plan: Plan) -> None:
    _check_latch(db)
    _check_one_moves(db, plan.batch)
    resting = db.execute("SELECT count(*) FROM batch WHERE state = 'QUARANTINED'").fetchone()[0]
    if resting >= limits.BATCHES_RESTING_MAX:
        raise Held(f'{resting} batches rest in quarantine; no more than {limits.BATCHES_RESTING_MAX} may')
    assert plan.requests, 'P2: a batch without a request'
    assert plan.horizon <= _setting(db, 'epoch'), f'P3: horizon {plan.horizon} has not come yet'
    for request in plan.requests:
        row = db.execute(
            'SELECT kind, root, batch FROM request WHERE number = ?', (request.number,)
        ).fetchone()
        if row is None:
            raise Held(f'request {request.number} was taken back: the plan has ended')
        if row[2] is not None:
            raise Held(f'request {request.number} is in batch {row[2]} already')
        if row[:2] != (request.kind, request.root):
            raise Corrupt(f'P6: request {request.number} is not what the plan says')
        assert CLASSES[request.kind] == plan.grace_class, f'request {request.number} has another grace'


def _check_asked(db: sqlite3.Connection, plan: Plan) -> None:
    """P2: every request of the plan is still the batch's, and no other. One that is in no batch is a root,
    and may be taken back."""
    found = db.execute('SELECT number FROM request WHERE batch = ? ORDER BY number', (plan.batch,)).fetchall()
    if [number for (number,) in found] != sorted(request.number for request in plan.requests):
        raise Corrupt(f'P2: the requests of batch {plan.batch} are not those of its plan any more')


def _check_grace(
    db: sqlite3.Connection, row: BatchRow, plan: Plan, recounted: Recounted
) -> ApprovalRow | None:
    """L5: time and a cycle. Return the approval that stands in for the time, if it is needed and there is
    one."""
    assert row.quarantined_epoch is not None
    assert row.due_trusted_ns is not None
    assert row.quarantined_trusted_ns is not None
    suspect = f'SELECT i.number FROM batch b JOIN incident i ON {_SUSPECT} WHERE b.number = ?'
    incident = db.execute(suspect, (row.number,)).fetchone()
    if incident is not None:
        raise Held(f'batch {row.number} rested when incident {incident[0]} was opened: it must be restored')
    now_ns = _setting(db, 'trusted_ns')
    if not row.quarantined_epoch < recounted.began_epoch <= _setting(db, 'epoch'):
        raise Held(f'batch {row.number}: no recount has begun since a commit after its quarantine')
    if not row.quarantined_trusted_ns <= recounted.began_trusted_ns <= now_ns:
        raise Held(f'batch {row.number}: the recount did not begin between its quarantine and now')
    if recounted.began_trusted_ns >= row.due_trusted_ns:
        return None
    found = db.execute('SELECT * FROM approval WHERE digest = ?', (row.digest,)).fetchall()
    approval = counts(plan, [ApprovalRow(*values) for values in found], GRACE, now_ns)
    if approval is None:
        left = (row.due_trusted_ns - now_ns) // 1_000_000_000
        raise Held(
            f'batch {row.number}: its grace is not over when the recount began, {max(left, 0)} s are left'
        )
    return approval


def _plan_event(plan: Plan) -> dict[str, Any]:
    """What the audit log says of a plan (L20). Bounded: plan.json, whose digest it is, has it all."""
    who: dict[str, int] = {}
    for request in plan.requests:
        who[request.who] = who.get(request.who, 0) + 1
    named = [request for request in plan.requests if request.kind in ('snapshot', 'volume', 'leaked')]
    return {
        'batch': plan.batch,
        'digest': plan.digest.hex(),
        'class': plan.grace_class,
        'horizon': plan.horizon,
        'chunks': plan.condemned,
        'bytes': plan.condemned_bytes,
        'roots': len(plan.roots),
        'requests': len(plan.requests),
        'requested_by': dict(sorted(who.items())[: limits.AUDIT_NAMES_MAX]),
        'names': [f'{request.kind} {request.name}'[:300] for request in named[: limits.AUDIT_NAMES_MAX]],
    }
