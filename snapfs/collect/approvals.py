"""L4 approvals: a person's word for exactly one plan (L10). Blocking; the owner of the store.

An approval adds to the machine's checks and replaces none of them: 'limits' lets a plan exceed the limits
that it has frozen, 'grace' lets its batch be freed before the grace is over; no recount is left out for
either. It names the digest of the plan, so it counts for no other, and it expires by the trusted clock.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from snapfs import limits
from snapfs.collect.plan import Plan
from snapfs.collect.states import ApprovalRow, approvals, batches
from snapfs.errors import Held, Invalid
from snapfs.store.audit import AuditLog
from snapfs.store.catalog import Catalog
from snapfs.store.rows import clean_text

LIMITS, GRACE = 'limits', 'grace'
WHAT = {LIMITS: 'to exceed the limits', GRACE: 'to be freed before its grace is over'}
_DIGEST = re.compile(r'[0-9a-f]{64}')


def parse_digest(text: str) -> bytes:
    """Return the digest that a person typed. Invalid unless it is a whole one."""
    if not _DIGEST.fullmatch(text.strip().lower()):
        raise Invalid(f'{text[:80]!r} is not the digest of a plan: 64 hexadecimal digits')
    return bytes.fromhex(text.strip())


def find(catalog: Catalog, waiting: Sequence[tuple[Plan, str]], digest: bytes) -> tuple[Plan, str]:
    """Return the plan of this digest among those that wait, with what for. Invalid, saying what became of it,
    when none of them has it."""
    for plan, what in waiting:
        if plan.digest == digest:
            return plan, what
    text = digest.hex()
    for row in batches(catalog):
        if row.digest == digest:
            raise Invalid(
                f'the plan {text} is that of batch {row.number}, which waits for nobody: {row.state}'
            )
    raise Invalid(
        f'no plan waits that has the digest {text}',
        advice='A plan that was made anew has another digest. See: snapfs collect --dry-run.',
    )


def approve(
    catalog: Catalog, audit: AuditLog, plan: Plan, what: str, who: str, times: tuple[int, int]
) -> ApprovalRow:
    """Record that `who` allows the plan `what`; `times`: now in ns since 1970, and trusted time in ns.

    Held when the plan wants a second person and `who` asked for something in it; Invalid for nobody. The
    audit line comes first."""
    assert what in WHAT
    now_ns, trusted_ns = times
    name = clean_text(who)
    if not name:
        raise Invalid('an approval needs the name of a person')
    check_second(plan, frozenset({name}))
    row = ApprovalRow(plan.digest, what, name, now_ns, trusted_ns + plan.approval_ns)
    with catalog.transaction() as db:
        db.execute('DELETE FROM approval WHERE until_trusted_ns <= ?', (trusted_ns - plan.approval_ns,))
        count = db.execute('SELECT count(*) FROM approval').fetchone()[0]
        if count >= limits.APPROVALS_MAX:
            raise Held(f'there are {count} approvals already', advice='They go when they have expired.')
        audit.append({
            'event': 'approve', 'batch': plan.batch, 'digest': row.digest.hex(), 'what': what, 'who': name,
            'until_trusted_ns': row.until_trusted_ns,
        })  # fmt: skip
        db.execute(
            'INSERT OR REPLACE INTO approval VALUES (?, ?, ?, ?, ?)',
            (row.digest, row.what, row.who, row.given_ns, row.until_trusted_ns),
        )
    return row


def check_second(plan: Plan, names: frozenset[str]) -> None:
    """Raise Held when the plan wants a second person and whoever has these names is not one."""
    asked = sorted(plan.requesters & names)
    if plan.second_person and asked:
        raise Held(
            f'{asked[0]} asked for a deletion in this plan and cannot approve it: a second person must',
            advice='Who may approve is set by: snapfs config second-person.',
        )


def counts(plan: Plan, rows: Iterable[ApprovalRow], what: str, trusted_ns: int) -> ApprovalRow | None:
    """Return the approval among `rows` that counts for this plan now, or None. Pure: asked again where it
    is used, inside the transaction."""
    for row in rows:
        if (
            row.digest == plan.digest
            and row.what == what
            and row.until_trusted_ns > trusted_ns
            and not (plan.second_person and row.who in plan.requesters)
        ):
            return row
    return None


def require(catalog: Catalog, plan: Plan, what: str, trusted_ns: int) -> ApprovalRow:
    """Return the approval that lets this plan do `what`. Held, saying why, when there is none that counts."""
    rows = approvals(catalog, plan.digest)
    row = counts(plan, rows, what, trusted_ns)
    if row is not None:
        return row
    old = [row for row in rows if row.what == what]
    state = f'the approval of {old[-1].who} counts no longer' if old else 'nobody has approved it'
    raise Held(
        f'batch {plan.batch} needs an approval {WHAT[what]}: {state}',
        advice=f'Look at it, then: snapfs collect approve {plan.digest.hex()}.',
    )
