"""L4 plan: what a batch will do, frozen, with a digest; whether it may; who allowed it. Pure but for the
approvals, which are rows of the catalog.

plan.json is canonical JSON: keys sorted, no spaces, ASCII, one newline at the end; ids and digests in
hexadecimal; no floats. Its digest is the BLAKE3-256 of exactly these bytes, and the plan holds the digest of
the file `condemned`, so that whoever approves a digest approves one list of chunks, one root set, and one
set of limits. Execution decides nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from snapfs import limits
from snapfs.collect.configuration import Configuration
from snapfs.collect.roots import Identity, RootRow
from snapfs.errors import Corrupt, Held
from snapfs.format.annotations import fits
from snapfs.format.ids import data_id
from snapfs.store.rows import RequestRow

PLAN_VERSION = 1
LIMITS = {'kept': 'limit-share', 'dropped': 'limit-dropped'}  # the setting with the share that may go
CLASSES = {
    'snapshot': 'kept',
    'volume': 'kept',
    'leaked': 'kept',
    'dropped': 'dropped',
    'returned': 'dropped',
}


@dataclass(frozen=True, slots=True)
class PlanRoot:
    """A standing root, as the registry has it; `items` and `refs` are None where only chunks are named."""

    kind: str
    identity: Identity
    name: str
    id: bytes | None
    items: int | None
    refs: int | None
    view: int

    @classmethod
    def of(cls, row: RootRow) -> PlanRoot:
        """Return a row of the registry as a plan and a certificate hold it."""
        return cls(row.kind, row.identity, printable(row.name), row.id, row.items, row.refs, row.view)


@dataclass(frozen=True, slots=True)
class PlanRequest:
    """A request that the batch fulfils. `bytes_back` come back with it, as far as it alone is the reason."""

    number: int
    kind: str
    identity: Identity
    name: str
    who: str
    root: bytes | None
    bytes_back: int | None

    @classmethod
    def of(cls, row: RequestRow, bytes_back: int | None) -> PlanRequest:
        """Return a row of the table as a plan holds it. `identity` is that of the root it was."""
        name = f'{row.volume_name}@{row.name}' if row.kind == 'snapshot' else row.volume_name
        by_kind = {'snapshot': ('view', row.view), 'volume': ('volume', row.volume)}
        identity = by_kind.get(row.kind, ('request', row.number))
        return cls(row.number, row.kind, identity, printable(name), row.who, row.root, bytes_back)


@dataclass(frozen=True, slots=True)
class Kept:
    """What stays of the batch's reach because the root `name` keeps it."""

    name: str
    chunks: int
    stored_bytes: int


@dataclass(frozen=True, slots=True)
class Counts:
    """What a recount counted: standing roots, live nodes, items and references below all of these."""

    roots: int
    nodes: int
    items: int
    references: int


@dataclass(frozen=True, slots=True)
class Found:
    """The result of recount 1, as the plan takes it. Digests are those of files in the batch's directory;
    bytes count stored payloads with their record headers."""

    horizon: int
    expected: tuple[RootRow, ...]
    roots: tuple[RootRow, ...]
    counts: Counts
    candidates: int
    condemned: int
    condemned_bytes: int
    condemned_digest: bytes
    returned: int
    returned_digest: bytes
    kept: tuple[Kept, ...]
    request_bytes: Mapping[int, int]
    store_chunks: int
    store_bytes: int


@dataclass(frozen=True, slots=True)
class Plan:
    """The frozen plan of one batch. `limit_*`, `second_person`, `approval_ns`, `grace_ns` are as configured
    when it was made. Times in ns since 1970, spans in ns, shares in hundredths of a percent."""

    version: int
    store: bytes
    batch: int
    grace_class: str
    horizon: int
    made_ns: int
    requests: tuple[PlanRequest, ...]
    roots: tuple[PlanRoot, ...]
    roots_expected: int
    counts: Counts
    candidates: int
    condemned: int
    condemned_bytes: int
    condemned_digest: bytes
    returned: int
    returned_digest: bytes
    kept: tuple[Kept, ...]
    store_chunks: int
    store_bytes: int
    grace_ns: int
    limit_share: int
    limit_drop: int
    second_person: bool
    approval_ns: int

    def encode(self) -> bytes:
        """Return the bytes of plan.json."""
        text = json.dumps(
            asdict(self), sort_keys=True, separators=(',', ':'), default=bytes.hex, allow_nan=False
        )
        return text.encode('ascii') + b'\n'

    @property
    def digest(self) -> bytes:
        """What an approval and the batch's row name: the hash of `encode()`."""
        return data_id(self.encode())

    @property
    def requesters(self) -> frozenset[str]:
        """Everybody who asked for something in it, as recorded."""
        return frozenset(request.who for request in self.requests if request.who)


def make_plan(
    store: bytes,
    batch: int,
    made_ns: int,
    requests: Sequence[RequestRow],
    found: Found,
    configuration: Configuration,
) -> Plan:
    """Return the plan of batch `batch` for these requests. Pure. Corrupt when what recount 1 saw is not
    what was expected (P10): then nothing is condemned."""
    assert requests, 'P2: a batch without a request'
    classes = {CLASSES[request.kind] for request in requests}
    assert len(classes) == 1, 'a batch has one grace'
    expected = sorted(map(PlanRoot.of, found.expected), key=_root_key)
    roots = sorted(map(PlanRoot.of, found.roots), key=_root_key)
    _check_roots(expected, roots)
    if not 0 <= found.condemned <= found.candidates or found.condemned > found.store_chunks:
        raise Corrupt(
            f'P10: {found.condemned} chunks condemned of {found.candidates} candidates, in a store of '
            f'{found.store_chunks}'
        )
    grace_class = classes.pop()
    return Plan(
        version=PLAN_VERSION,
        store=store,
        batch=batch,
        grace_class=grace_class,
        horizon=found.horizon,
        made_ns=made_ns,
        requests=tuple(
            PlanRequest.of(row, found.request_bytes.get(row.number))
            for row in sorted(requests, key=lambda row: row.number)
        ),
        roots=tuple(roots),
        roots_expected=len(expected),
        counts=found.counts,
        candidates=found.candidates,
        condemned=found.condemned,
        condemned_bytes=found.condemned_bytes,
        condemned_digest=found.condemned_digest,
        returned=found.returned,
        returned_digest=found.returned_digest,
        kept=tuple(sorted(found.kept, key=lambda kept: kept.name)),
        store_chunks=found.store_chunks,
        store_bytes=found.store_bytes,
        grace_ns=configuration.grace_ns(grace_class),
        limit_share=configuration.share_limit(grace_class),
        limit_drop=configuration.limit_drop,
        second_person=configuration.second_person,
        approval_ns=configuration.approval_ns,
    )


def _root_key(root: PlanRoot) -> tuple[Identity, bytes]:
    return root.identity, root.id or b''


def printable(name: str) -> str:
    """Return a name as JSON can carry it: bytes that are no UTF-8 are written out as escapes."""
    return name.encode('utf-8', 'backslashreplace').decode()


def _check_roots(expected: Sequence[PlanRoot], seen: Sequence[PlanRoot]) -> None:
    """Every root expected was walked. More may have been: a head that committed meanwhile counts twice."""
    missing = set(map(_root_key, expected)) - set(map(_root_key, seen))
    if missing:
        (kind, number), _ = min(missing)
        raise Corrupt(f'P10: recount 1 did not see {len(missing)} roots, the first is {kind} {number}')


def decode_plan(data: bytes) -> Plan:
    """Return the plan of plan.json. Corrupt unless every field is of its type and encoding it again gives
    exactly these bytes."""
    if len(data) > limits.PLAN_BYTES_MAX:
        raise Corrupt(f'plan: {len(data)} bytes')
    try:
        value = json.loads(data)
        plan = _plan_of(value)
        good = fits(plan, Plan) and plan.encode() == data and plan.version == PLAN_VERSION
        good = good and plan.grace_class in LIMITS
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Corrupt(f'plan: not a plan of batch ({type(error).__name__})') from error
    if not good:
        raise Corrupt('plan: not in its canonical form')
    return plan


def _plan_of(value: dict[str, Any]) -> Plan:
    names = {field.name for field in fields(Plan)}
    if set(value) != names:
        raise ValueError(f'other keys: {set(value) ^ names}')
    for part in [*value['requests'], *value['roots']]:
        kind, number = part['identity']
        part['identity'] = (kind, number)
    value['requests'] = tuple(_part(PlanRequest, part, 'root') for part in value['requests'])
    value['roots'] = tuple(_part(PlanRoot, part, 'id') for part in value['roots'])
    value['kept'] = tuple(_part(Kept, part) for part in value['kept'])
    value['counts'] = _part(Counts, value['counts'])
    for key in ('store', 'condemned_digest', 'returned_digest'):
        value[key] = bytes.fromhex(value[key])
    return Plan(**value)


def _part(kind: type[Any], value: dict[str, Any], id_key: str | None = None) -> Any:
    if id_key is not None and value[id_key] is not None:
        value[id_key] = bytes.fromhex(value[id_key])
    return kind(**value)


# --- limits ----------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Certified:
    """What the last certificate says: the standing roots then and the bytes of the index."""

    epoch: int
    roots: tuple[PlanRoot, ...]
    store_bytes: int


@dataclass(frozen=True, slots=True)
class Since:
    """What was logged since the last certificate, and moved within the last day. `dropped`: volumes
    (stable number) with a request of kind 'dropped' or 'returned' since; `ended`: roots that batches have
    freed since. `moved_bytes`: of batches quarantined since, not restored; `day_bytes`: of those of the
    plan's class in the last trusted day."""

    dropped: frozenset[int] = frozenset()
    ended: frozenset[Identity] = frozenset()
    moved_bytes: int = 0
    day_bytes: int = 0


def check_limits(plan: Plan, last: Certified | None, since: Since) -> list[str]:
    """Return why the plan must wait for an approval of its digest: one line each; none = it may run. Pure.

    Uses the limits that the plan has frozen (L19, and L9: day over day, what no request explains).
    """
    reasons = []
    moved = plan.condemned_bytes + since.day_bytes
    whole = plan.store_bytes + since.day_bytes
    if moved * 10_000 > whole * plan.limit_share:
        share = 100 * moved / whole if whole else 100.0
        reasons.append(
            f'L19: it takes {moved} of {whole} bytes ({share:.1f} %) within a day; '
            f'{LIMITS[plan.grace_class]} is {plan.limit_share / 100:g} %'
        )
    if last is not None:
        reasons += _drops(plan, last, since)
    return reasons


def _drops(plan: Plan, last: Certified, since: Since) -> list[str]:
    reasons, lost, all_refs = [], 0, 0
    now = {root.identity: root for root in plan.roots}
    gone = since.ended | {request.identity for request in plan.requests}
    for before in last.roots:
        refs = before.refs or 0
        all_refs += refs
        after = now.get(before.identity)
        if after is None:
            if before.identity not in gone:
                lost += refs
                reasons.append(f'L9: {before.kind} {before.name} is gone and no request says why')
        elif after.id != before.id:
            explained = before.identity[0] == 'volume' and _volume_explained(before, after, since)
            if not explained:
                lost += max(0, refs - (after.refs or 0))
            if before.identity[0] != 'volume':
                reasons.append(f'P6: {before.kind} {before.name} has another root than at epoch {last.epoch}')
    if lost * 10_000 > all_refs * plan.limit_drop:
        reasons.append(
            f'L9: {lost} of {all_refs} references are gone since epoch {last.epoch} and no request '
            f'says why; limit-drop is {plan.limit_drop / 100:g} %'
        )
    lost_bytes = last.store_bytes - since.moved_bytes - plan.store_bytes
    if lost_bytes > 0 and lost_bytes * 10_000 > last.store_bytes * plan.limit_drop:
        reasons.append(
            f'L9: {lost_bytes} of {last.store_bytes} bytes have left the index since epoch {last.epoch} '
            f'and no batch took them'
        )
    return reasons


def _volume_explained(before: PlanRoot, after: PlanRoot, since: Since) -> bool:
    """A head may lose references to commits, which log what they drop, and to a rollback, whose safety
    snapshot keeps them."""
    return before.identity[1] in since.dropped or after.view != before.view


def refuse(reasons: Iterable[str], plan: Plan) -> None:
    """Raise Held when there is a reason to wait: what it is, and how to allow it."""
    lines = list(reasons)
    if lines:
        raise Held(
            f'batch {plan.batch} waits: {"; ".join(lines)}',
            advice=f'Look at it, then: snapfs collect approve {plan.digest.hex()}.',
        )
