"""L4 collector: the conductor: which step comes when. Blocking; the owner of the store, one call at a time.

It decides nothing that a plan has decided, and moves no row itself. What takes long (recounts, the proof)
runs elsewhere, in a process of its own: the caller gets a specification here and brings the result back.
What must happen on the event loop (the horizon's commit) is the caller's as well. Order of one batch:

    choose · horizon · `freeze` · recount 1 · `plan` · limits · `begin` · `condemn` slices · `rest`
    grace and a cycle · commit · recount 2 · `confirm` · `free` (canary slice, proof, the rest) · `finish` ·
    `sweep` · proof, certificate

Whoever sees an `Alarm` calls `stop`: every batch that can be goes back, and the latch falls.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any

from snapfs import limits
from snapfs.collect import approvals, configuration
from snapfs.collect.batches import Batches, Recounted
from snapfs.collect.canary import canaries, control_ids
from snapfs.collect.certificate import encode_certificate
from snapfs.collect.clock import TrustedClock
from snapfs.collect.configuration import Configuration
from snapfs.collect.files import CONDEMNED, RECEIPT, RETURNED
from snapfs.collect.incidents import Alarm, Incidents
from snapfs.collect.mention_values import Mentions, MentionSpec
from snapfs.collect.plan import CLASSES, Counts, Found, Kept, Plan, check_limits, make_plan
from snapfs.collect.proof_values import Proof, ProofSpec
from snapfs.collect.receipts import Receipts
from snapfs.collect.recount_values import CONDEMNED_FILE, RETURNED_FILE, Recount, RecountSpec
from snapfs.collect.repack import choose as choose_packs
from snapfs.collect.repack import repack
from snapfs.collect.roots import RootRow, root_set
from snapfs.collect.since import certified, since
from snapfs.collect.states import CONFIRMED, QUARANTINED, BatchRow, batch, batches
from snapfs.collect.states import approvals as approvals_of
from snapfs.collect.sweep import Vanished, census, retire, seal_wasteful, unlink
from snapfs.errors import Corrupt, Held
from snapfs.format.ids import data_id
from snapfs.format.records import HEADER_BYTES
from snapfs.store.horizon import PutRecord
from snapfs.store.rows import RequestRow
from snapfs.store.store import Store
from snapfs.world import World

log = logging.getLogger('snapfs.collect')

CERTIFICATE = 'certificate.json'
EXCLUDED = 'excluded'  # file of a batch: condemned by the plan, and put since the horizon


@dataclass(frozen=True, slots=True)
class Chosen:
    """Requests of one grace class that a batch takes."""

    grace_class: str
    requests: tuple[RequestRow, ...]

    @property
    def numbers(self) -> frozenset[int]:
        """The requests' numbers."""
        return frozenset(row.number for row in self.requests)


@dataclass(frozen=True, slots=True)
class Swept:
    """What a sweep did: packs and bytes that are gone, chunks moved by repacking, packs that had to stay."""

    packs: int
    bytes: int
    moved: int
    kept: tuple[str, ...]


class Collector:
    """The collector of one open store."""

    def __init__(self, store: Store, world: World) -> None:
        self.store = store
        self.world = world
        self.batches = Batches(store)
        self.clock = TrustedClock(store.catalog, world)
        self.incidents = Incidents(store, lambda: self.configuration().hook)
        self._told: set[tuple[bytes, str]] = set()  # what stays and why: said once, not in each round
        self._looked: float | None = None  # when all pages of the catalog were last looked at

    def configuration(self) -> Configuration:
        """Return all settings as they are now."""
        return configuration.load(self.store.catalog)

    def recover(self) -> list[BatchRow]:
        """After opening, before anything is collected: what was half decided goes back; the confirmed
        batches, which have to be brought to their end, are returned."""
        return [] if self.store.latched is not None else self.batches.recover()

    # --- when it may run ---------------------------------------------------------------------------------
    def check(self, troubles: Sequence[str] = ()) -> None:
        """Raise Latched or Held when nothing may be collected now (L18). `troubles`: what the caller
        knows."""
        self.store.disk.check()
        self.incidents.check()
        if troubles:
            raise Held(f'the collector waits: {troubles[0]}', advice='See: snapfs status; snapfs damage.')
        self.look_at_catalog()
        self.incidents.check()

    def look_at_catalog(self, *, again: bool = False) -> str:
        """Look at all pages of the catalog: in each session, once a day, or `again`. Return what is wrong, or
        ''; the collector stands still then: doubt stops deletion and nobody else (P7)."""
        now = self.world.monotonic()
        if not again and self._looked is not None and now - self._looked < limits.CATALOG_LOOK_SECONDS:
            return ''
        problem = self.store.catalog.problem()
        if not problem:
            self._looked = now
            return ''
        reason = f'the catalog is damaged: {problem}'
        if all(row.reason != reason for row in self.store.catalog.incidents()):
            self.incidents.open(reason, {})
        return problem

    def stop(self, alarm: Alarm) -> None:
        """The latch falls, then everything that is condemned comes back (P7)."""
        self.incidents.open(str(alarm), alarm.evidence, alarm.batch)
        self.restore_all(str(alarm))

    def restore_all(self, reason: str) -> None:
        """Everything that is condemned comes back: a verdict was wrong, so every verdict is in doubt."""
        self.batches.restore_all(f'an alarm: {reason}')

    # --- recount 1 and the plan --------------------------------------------------------------------------
    def choose(self, pinned: frozenset[int] = frozenset()) -> list[Chosen]:
        """Return what batches could take, by grace class. `pinned`: views with open handles; their requests
        wait. So does everything when as many batches rest as may."""
        if len(batches(self.store.catalog, QUARANTINED)) >= limits.BATCHES_RESTING_MAX:
            return []
        by_class: dict[str, list[RequestRow]] = {}
        for row in self.store.registry.requests():
            if row.batch is None and not (row.view and row.view in pinned):
                by_class.setdefault(CLASSES[row.kind], []).append(row)
        return [
            Chosen(name, tuple(rows[: limits.BATCH_REQUESTS_MAX])) for name, rows in sorted(by_class.items())
        ]

    def freeze(self, chosen: Chosen, pins: Sequence[RootRow] = (), mode: str = 'batch') -> RecountSpec:
        """Return what recount 1 gets: every root there is, read at one moment after the horizon's commit."""
        out = self.batches.files.make(self.batches.reserve_number())
        return self._spec(out, tuple(('request', one) for one in sorted(chosen.numbers)), pins, mode)

    def what_if(self, deleted: Sequence[tuple[str, int]], mode: str = 'what-if') -> RecountSpec:
        """Return the specification of a recount that only answers what deleting these would free."""
        return self._spec(self.batches.files.make_scratch(), tuple(deleted), (), mode)

    def _spec(
        self, out: Path, deleted: tuple[tuple[str, int], ...], pins: Sequence[RootRow], mode: str
    ) -> RecountSpec:
        store = self.store
        control = control_ids(canaries(store.catalog, store.chunks.get))
        with store.catalog.transaction() as db:
            expected = root_set(lambda text, values=(): db.execute(text, values).fetchall(), extra=pins)
        return RecountSpec(store.path, store.superblock.uuid, expected, deleted, control, out, mode)

    def plan(self, chosen: Chosen, spec: RecountSpec, result: Recount) -> Plan:
        """Return the frozen plan that recount 1 leads to. Alarm when it saw that a recount was wrong; Corrupt
        when it is not about what it was asked."""
        number = int(spec.out.name)
        self.believe(spec, result, number)
        if result.horizon != spec.expected.epoch or result.epoch < result.horizon:
            raise Corrupt(f'P10: recount 1 is of epoch {result.horizon}, not {spec.expected.epoch}')
        files = self.batches.files
        files.adopt(number, CONDEMNED_FILE, CONDEMNED, result.condemned_digest)
        files.adopt(number, RETURNED_FILE, RETURNED, result.returned_digest)
        return self.draft(chosen, spec, result)

    def believe(self, spec: RecountSpec, result: Recount, number: int | None = None) -> None:
        """Raise Alarm when recount 1 saw that a recount was wrong. `number`: the batch that it is for."""
        if result.alarm:
            first = result.alarm[0]
            raise Alarm(
                f'recount 1: {first.what}: chunk {first.id.hex()}, needed by {first.who}',
                {'recount1.json': _plain(result), 'roots.json': [_plain(row) for row in spec.expected.roots]},
                number,
            )

    def draft(self, chosen: Chosen, spec: RecountSpec, result: Recount) -> Plan:
        """Return the plan that these figures lead to. Changes nothing: a dry run shows it."""
        number = int(spec.out.name)
        count, size = self._index_size()
        wanted = chosen.numbers
        expected = tuple(row for row in spec.expected.roots if not _is_request(row, wanted))
        found = Found(
            horizon=result.horizon,
            expected=expected,
            roots=result.seen,
            counts=Counts(result.roots, result.nodes, result.items, result.references),
            candidates=result.candidates,
            condemned=result.condemned,
            condemned_bytes=result.condemned_bytes,
            condemned_digest=result.condemned_digest,
            returned=result.returned,
            returned_digest=result.returned_digest,
            kept=tuple(Kept(share.name, share.chunks, share.bytes) for share in result.kept),
            request_bytes={share.number: share.bytes for share in result.requests},
            store_chunks=count,
            store_bytes=size,
        )
        now = self.world.time_ns()
        uuid = self.store.superblock.uuid
        return make_plan(uuid, number, now, chosen.requests, found, self.configuration())

    def discard(self, number: int) -> None:
        """Remove what a plan that came to nothing has left. Does nothing when a batch was made of it."""
        if not self.store.catalog.query('SELECT 1 FROM batch WHERE number = ?', (number,)):
            self.batches.files.remove(number)

    def _index_size(self) -> tuple[int, int]:
        text = 'SELECT count(*), coalesce(sum(stored + ?), 0) FROM chunk'
        return self.store.catalog.query(text, (HEADER_BYTES,))[0]

    def reasons(self, plan: Plan) -> list[str]:
        """Return why a plan must wait for an approval that it does not have; none: it may run."""
        reasons = check_limits(
            plan, certified(self.store), since(self.store, self.clock.now_ns, plan.grace_class)
        )
        if not reasons:
            return []
        given = approvals_of(self.store.catalog, plan.digest)
        if approvals.counts(plan, given, approvals.LIMITS, self.clock.tick()) is not None:
            return []
        return reasons

    # --- quarantine --------------------------------------------------------------------------------------
    def begin(self, plan: Plan) -> BatchRow:
        """Make the batch of a plan. Alarm when this number has been confirmed before: the catalog went back
        in time. Another number would get through, and free what today's catalog needs."""
        if self.batches.files.has(plan.batch, RECEIPT):
            raise Alarm(
                f'batch {plan.batch} has a receipt already: the catalog is older than the store',
                {'plan.json': _plain(plan)},
            )
        return self.batches.begin(plan)

    def condemn(self, plan: Plan, record: PutRecord) -> Iterator[int]:
        """Move what is condemned into quarantine, a slice at each step of the iteration; yield how many
        moved.

        `record`: the puts noted since the horizon.
        """
        store, number = self.store, plan.batch
        excluded: list[bytes] = []
        for ids in self.batches.files.ids(number, CONDEMNED, limits.QUARANTINE_SLICE_ROWS):
            # P3: between puts. The transaction is the only one meanwhile, so that no put waits for a commit.
            with store.catalog.reserved(), store.chunks.exclusive():
                moved = self.batches.quarantine_slice(number, ids, record.has)
            store.chunks.forget(moved.moved)
            excluded += moved.excluded
            yield len(moved.moved)
        self.batches.files.write_ids(number, EXCLUDED, excluded)

    def rest(self, plan: Plan) -> BatchRow:
        """The batch is in quarantine; its grace begins."""
        self.clock.tick()
        self.clock.save()
        return self.batches.finish_quarantine(plan.batch, self.clock.now_ns)

    def restore(self, number: int, reason: str) -> BatchRow:
        """Bring a batch back, because somebody takes a request of it back. Held from CONFIRMED on."""
        return self.batches.restore(number, reason)

    # --- recount 2 ---------------------------------------------------------------------------------------
    def due(self) -> list[BatchRow]:
        """Return the resting batches whose grace is over, or that a person has released, oldest first."""
        now = self.clock.tick()
        rows = batches(self.store.catalog, QUARANTINED)
        return [row for row in rows if not row.restoring and (self._is_over(row, now) or self.released(row))]

    @staticmethod
    def _is_over(row: BatchRow, now: int) -> bool:
        return row.due_trusted_ns is not None and now >= row.due_trusted_ns

    def released(self, row: BatchRow) -> bool:
        """Return whether an approval of exactly this batch's plan lets it be freed before its grace is
        over."""
        given = approvals_of(self.store.catalog, row.digest)
        if not given:
            return False
        plan = self.batches.files.plan(row.number, row.digest)
        return approvals.counts(plan, given, approvals.GRACE, self.clock.now_ns) is not None

    def mention_spec(self, row: BatchRow) -> tuple[MentionSpec, Recounted]:
        """Return what recount 2 gets, after a commit that makes an epoch pass; and when it began."""
        self.clock.tick()
        self.clock.save()
        epoch = self.store.catalog.epoch
        control = control_ids(canaries(self.store.catalog, self.store.chunks.get))
        store = self.store
        spec = MentionSpec(store.path, store.superblock.uuid, row.number, epoch, control, writers=True)
        return spec, Recounted(epoch, self.clock.now_ns, {})

    def confirm(self, row: BatchRow, began: Recounted, result: Mentions) -> BatchRow:
        """Believe recount 2: leftovers leave the batch, then the receipt is written, and the batch goes
        forwards only. Alarm when something live mentions what is condemned."""
        number = row.number
        if result.live_count:
            first = result.live[0]
            raise Alarm(
                f'recount 2: chunk {first.id.hex()} of batch {number} is mentioned: {first.by}: {first.how}',
                {'mentions.json': _plain(result)},
                number,
            )
        for name in result.strangers:
            if not self.store.chunks.has_pack(name):
                raise Corrupt(f'pack {name.hex()} is on the disk and nobody knows it')
        leftovers = list(result.leftovers)
        for start in range(0, len(leftovers), limits.BATCH_SLICE_ROWS_MAX):
            part = leftovers[start : start + limits.BATCH_SLICE_ROWS_MAX]
            self.batches.drop_from_batch(number, part, 'a leftover still mentions them')
        receipt = self.batches.write_receipt(number)
        checks = {key: value for key, value in _plain(result).items() if isinstance(value, int)}
        return self.batches.confirm(
            number, receipt, Recounted(began.began_epoch, began.began_trusted_ns, checks)
        )

    # --- free --------------------------------------------------------------------------------------------
    def free(self, number: int, first: bool) -> Iterator[int]:
        """Free a confirmed batch, a slice at each step; yield how many. `first`: only the canary slice (L11),
        after which the caller has the store proved."""
        row = batch(self.store.catalog, number)
        assert row.state == CONFIRMED, f'batch {number} is {row.state}'
        assert row.receipt is not None
        left = max(1, row.chunks // limits.CANARY_SLICE_PART) if first else row.chunks
        for rows in self.batches.files.receipt(number, row.receipt, row.digest):
            for start in range(0, len(rows), limits.QUARANTINE_SLICE_ROWS):
                part = rows[start : start + limits.QUARANTINE_SLICE_ROWS][:left]
                if part:
                    yield self.batches.free_slice(number, part)
                    self.store.chunks.forget(one.id for one in part)
                    left -= len(part)

    def finish(self, number: int) -> BatchRow:
        """End a batch whose chunks are all freed. What its requests reached and something kept goes into a
        new request."""
        files = self.batches.files
        returned = [
            id for name in (RETURNED, EXCLUDED) for ids in files.ids(number, name, 10_000) for id in ids
        ]
        row = self.batches.finish(number, returned)
        self.store.forget_freed_damage()
        return row

    # --- proof -------------------------------------------------------------------------------------------
    def proof_spec(self, row: BatchRow) -> ProofSpec:
        """Return what the proof after a batch gets. The caller has committed."""
        store = self.store
        return ProofSpec(store.path, store.superblock.uuid, store.catalog.epoch, row.number)

    def certify(self, row: BatchRow, proof: Proof, final: bool) -> None:
        """Believe a proof: `final` writes the certificate and its receipt. Alarm when something is
        missing."""
        if not proof.passed:
            first = proof.missing[0]
            raise Alarm(
                f'the proof after batch {row.number} failed: {proof.missing_count} references are broken, '
                f'the first is {first.id.hex()} of {first.by}: {first.why}',
                {'proof.json': _plain(proof)},
                row.number,
            )
        if not final:
            return
        data = encode_certificate(proof)
        digest = data_id(data)
        store, number = self.store, row.number
        store.disk.write_file(self.batches.files.path(number, CERTIFICATE), data)
        store.audit.append(
            {'event': 'certificate', 'batch': number, 'epoch': proof.epoch, 'digest': digest.hex()}
        )
        with store.catalog.transaction() as db:
            db.execute(
                "INSERT INTO receipt SELECT coalesce(max(number), 0) + 1, 'certificate', ?, ?, ?, 1, ? "
                'FROM receipt',
                (number, self.world.time_ns(), proof.epoch, digest),
            )

    # --- packs -------------------------------------------------------------------------------------------
    def seal(self) -> bool:
        """End open packs that are mostly waste; return whether there was one. A commit has to follow."""
        return seal_wasteful(self.store, self.configuration().repack_waste / 10_000) > 0

    def sweep(self, step: Callable[[], None]) -> Swept:
        """Remove the packs that nobody needs, and repack wasteful ones; `step` is called before each, and
        raises when that must not go on. A pack that cannot be read stays, and is told."""
        receipts = Receipts(self.store)
        moved, gone, size, kept = 0, 0, 0, []
        try:
            for _ in range(limits.REPACKS_PER_SWEEP_MAX + 1):
                uses = census(self.store.catalog, self.store.chunks.busy_packs())
                for use in uses:
                    if use.live or use.quarantined or use.row.name.hex() in kept:
                        continue
                    step()
                    if self._remove(use.row, receipts):
                        gone, size = gone + 1, size + use.row.bytes
                    else:
                        kept.append(use.row.name.hex())
                waste = self.configuration().repack_waste / 10_000
                chosen = choose_packs([use for use in uses if use.row.name.hex() not in kept], waste)
                if not chosen:
                    break
                step()
                count = self._repack(chosen, receipts)
                if not count:
                    kept += [use.row.name.hex() for use in chosen]
                moved += count
        finally:
            receipts.close()
        return Swept(gone, size, moved, tuple(kept))

    def _remove(self, row: Any, receipts: Receipts) -> bool:
        try:
            if row.state == 'sealed' and not retire(self.store, row):
                return False
            return unlink(self.store, row, receipts) is None
        except Vanished:
            self._tell(row.name, 'is not on the disk, and nothing needs it: only its row stays')
        except Corrupt as error:
            self._tell(row.name, f'stays: {error}')
        return False

    def _tell(self, name: bytes, what: str) -> None:
        if (name, what) not in self._told:
            self._told.add((name, what))
            log.error('pack %s %s', name.hex(), what)

    def _repack(self, chosen: Sequence[Any], receipts: Receipts) -> int:
        try:
            return repack(self.store, chosen, receipts)
        except Corrupt as error:
            log.error('packs stay as they are: %s', error)
            return 0


def _is_request(row: RootRow, numbers: frozenset[int]) -> bool:
    return row.kind in ('request', 'dropped') and row.number in numbers


def _plain(value: Any) -> Any:
    """Return a value of a dataclass as JSON can hold it."""
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return value.hex() if isinstance(value, bytes) else value
