"""Plan: what it holds, its one encoding, its digest, the limits, and who may approve it."""

from __future__ import annotations

import dataclasses
import json

import pytest

from snapfs.collect import approvals
from snapfs.collect.approvals import GRACE, LIMITS, approve, find, parse_digest, require
from snapfs.collect.batches import Batches
from snapfs.collect.clock import TrustedClock
from snapfs.collect.configuration import change, load
from snapfs.collect.plan import Certified, Kept, PlanRoot, Since, check_limits, decode_plan, make_plan, refuse
from snapfs.collect.roots import RootRow
from snapfs.errors import Corrupt, Held, Invalid
from tests.unit.collect.batch_kit import (
    DAY_NS,
    add_chunks,
    found_by_recount,
    pass_time,
    plan_for,
    quarantined,
    request,
)


@pytest.fixture
def batches(batch_store):
    return Batches(batch_store)


@pytest.fixture
def ids(batch_store):
    return add_chunks(batch_store, 1, 10)


@pytest.fixture
def plan(batch_store, batches, ids):
    return plan_for(batch_store, batches, [request(batch_store, ids[:2])], ids[:2])


def root(kind, number, id, refs, name='', view=0):
    identity = ('view', number) if kind == 'snapshot' else (kind, number)
    return PlanRoot(kind, identity, name or f'{kind} {number}', id, refs, refs, view)


SNAPSHOT = root('snapshot', 5, b's' * 32, 100)
VOLUME = root('volume', 1, b'v' * 32, 100, view=1)
CANARY = root('canary', 1, b'c' * 32, 16)
ROOTS = (SNAPSHOT, VOLUME, CANARY)
CERTIFIED = Certified(3, ROOTS, 1000)


def checked(plan, roots=ROOTS, last=CERTIFIED, since=None, **changes):
    plan = dataclasses.replace(plan, roots=tuple(roots), store_bytes=1000, condemned_bytes=10, **changes)
    return check_limits(plan, last, since or Since())


# --- what it is ------------------------------------------------------------------------------------------
def test_a_plan_is_read_back_as_it_was_and_its_digest_is_that_of_its_file(batch_store, batches, plan):
    data = plan.encode()
    assert decode_plan(data) == plan
    batches.files.write_plan(plan)
    assert batches.files.digest(plan.batch, 'plan.json') == plan.digest
    assert batches.files.plan(plan.batch, plan.digest) == plan
    assert list(json.loads(data)) == sorted(json.loads(data))


def test_the_digest_changes_with_every_part_of_the_plan(plan):
    plan = dataclasses.replace(plan, kept=(Kept('home@a', 1, 2),))
    digests = {plan.digest}
    for field in dataclasses.fields(plan):
        value = getattr(plan, field.name)
        if field.name in ('requests', 'roots', 'kept'):
            other = ()
        elif dataclasses.is_dataclass(value):
            other = dataclasses.replace(value, nodes=7)
        elif isinstance(value, bytes):
            other = bytes(len(value))
        elif isinstance(value, bool):
            other = not value
        else:
            other = value * 2 + 1 if isinstance(value, int) else value + 'x'
        digests.add(dataclasses.replace(plan, **{field.name: other}).digest)
    assert len(digests) == len(dataclasses.fields(plan)) + 1


def test_a_plan_file_that_is_not_canonical_is_refused(plan):
    data = plan.encode()
    value = json.loads(data)
    odd = [
        b'', b'{}', b'[]', b'null', b'\xff', data[:-1], data + b' ', data.replace(b',', b', ', 1),
        b'[' * 10_000,
        json.dumps({**value, 'extra': 1}, sort_keys=True, separators=(',', ':')).encode() + b'\n',
        json.dumps({**value, 'version': 2}, sort_keys=True, separators=(',', ':')).encode() + b'\n',
        json.dumps({**value, 'requests': [1]}, sort_keys=True, separators=(',', ':')).encode() + b'\n',
        json.dumps({**value, 'store': 'xyz'}, sort_keys=True, separators=(',', ':')).encode() + b'\n',
    ]  # fmt: skip
    for bad in odd:
        with pytest.raises(Corrupt, match='plan'):
            decode_plan(bad)


def test_a_plan_of_another_store_or_batch_is_not_believed(batch_store, batches, plan):
    for odd in ({'store': bytes(16)}, {'batch': 7}):
        other = dataclasses.replace(plan, **odd)
        batches.files.make(plan.batch)
        batch_store.disk.write_file(batches.files.path(plan.batch, 'plan.json'), other.encode())
        with pytest.raises(Corrupt, match='is of batch'):
            batches.files.plan(plan.batch, other.digest)


def test_a_name_that_is_no_text_goes_into_a_plan(plan):
    odd = dataclasses.replace(plan, roots=(root('snapshot', 1, None, 0, name='a\\udcff'),))
    assert decode_plan(odd.encode()) == odd
    row = RootRow('snapshot', 1, 'home@\udcff', None, 0, 0, ('view', 1))
    assert PlanRoot.of(row).name == 'home@\\udcff'


def test_a_recount_that_saw_a_root_too_few_makes_no_plan(batch_store, batches, ids):
    number = request(batch_store, ids[:2])
    found = found_by_recount(batch_store, batches, [number], ids[:2])
    requests = batch_store.registry.requests()
    configuration = load(batch_store.catalog)
    assert found.roots

    def make(found):
        return make_plan(bytes(16), 1, 1, requests, found, configuration)

    make(found)
    with pytest.raises(Corrupt, match='P10: recount 1 did not see 1 roots, the first is volume 1'):
        make(dataclasses.replace(found, roots=found.roots[1:]))
    changed = (dataclasses.replace(found.roots[0], id=b'x' * 32), *found.roots[1:])
    with pytest.raises(Corrupt, match='P10'):
        make(dataclasses.replace(found, roots=changed))
    for odd in ({'condemned': 3}, {'condemned': 99, 'candidates': 100}, {'condemned': -1}):
        with pytest.raises(Corrupt, match=r'P10: .* chunks condemned'):
            make(dataclasses.replace(found, **odd))


def test_a_plan_has_requests_and_one_grace(batch_store, batches, ids):
    found = found_by_recount(batch_store, batches, [request(batch_store, ids[:2])], ids[:2])
    (row,) = batch_store.registry.requests()
    configuration = load(batch_store.catalog)
    with pytest.raises(AssertionError, match='P2'):
        make_plan(bytes(16), 1, 1, [], found, configuration)
    other = dataclasses.replace(row, number=99, kind='snapshot')
    with pytest.raises(AssertionError, match='one grace'):
        make_plan(bytes(16), 1, 1, [row, other], found, configuration)


# --- limits ----------------------------------------------------------------------------------------------
def test_a_plan_within_the_limits_does_not_wait(plan):
    assert checked(plan) == []
    refuse([], plan)


def test_a_plan_over_the_share_waits_and_says_how_to_allow_it(plan):
    big = dataclasses.replace(
        plan, store_bytes=1000, condemned_bytes=301, limit_share=3000, grace_class='kept'
    )
    (reason,) = check_limits(big, None, Since())
    assert 'L19' in reason
    assert '30.1 %' in reason
    assert 'limit-share is 30 %' in reason
    assert check_limits(dataclasses.replace(big, condemned_bytes=300), None, Since()) == []
    with pytest.raises(Held, match='L19') as caught:
        refuse([reason], big)
    assert big.digest.hex() in caught.value.line()


def test_what_went_within_the_day_counts_for_the_share(plan):
    small = dataclasses.replace(plan, store_bytes=800, condemned_bytes=200, limit_share=3000)
    assert check_limits(small, None, Since()) == []
    (reason,) = check_limits(small, None, Since(day_bytes=200))
    assert '400 of 1000 bytes' in reason


def test_a_setting_changed_later_does_not_widen_a_plan(batch_store, batches, ids):
    number = request(batch_store, ids[:8])
    change(batch_store.catalog, batch_store.audit, 'limit-dropped', '30%', 'ann')
    plan = plan_for(batch_store, batches, [number], ids[:8])
    change(batch_store.catalog, batch_store.audit, 'limit-dropped', '100%', 'ann')
    (reason,) = check_limits(plan, None, Since())
    assert 'limit-dropped is 30 %' in reason
    assert check_limits(plan_for(batch_store, batches, [number], ids[:8]), None, Since()) == []


def test_each_class_has_a_share_of_its_own(batch_store, batches, ids):
    """What is overwritten all day goes by itself; snapshots that go at once wait for a person."""
    dropped = plan_for(batch_store, batches, [request(batch_store, ids[:8])], ids[:8])
    leaked = request(batch_store, ids[8:])
    with batch_store.catalog.transaction() as db:
        db.execute("UPDATE request SET kind = 'leaked' WHERE number = ?", (leaked,))
    kept = plan_for(batch_store, batches, [leaked], ids[8:])
    assert (dropped.limit_share, kept.limit_share) == (10_000, 3000)
    assert check_limits(dropped, None, Since()) == []


def test_a_snapshot_that_vanished_without_a_request_makes_the_plan_wait(plan):
    reasons = checked(plan, roots=(VOLUME, CANARY))
    assert len(reasons) == 2
    assert 'snapshot 5 is gone and no request says why' in reasons[0]
    assert '100 of 216 references are gone' in reasons[1]


def test_a_snapshot_that_became_a_request_is_explained(plan):
    wish = dataclasses.replace(SNAPSHOT, kind='request', name='request 9 (home@a)')
    assert checked(plan, roots=(wish, VOLUME, CANARY)) == []
    own = dataclasses.replace(plan.requests[0], identity=('view', 5))
    assert checked(plan, roots=(VOLUME, CANARY), requests=(own,)) == []
    assert checked(plan, roots=(VOLUME, CANARY), since=Since(ended=frozenset({('view', 5)}))) == []
    assert checked(plan, roots=(VOLUME, CANARY), since=Since(ended=frozenset({('view', 6)}))) != []


def test_a_snapshot_with_another_root_makes_the_plan_wait(plan):
    other = dataclasses.replace(SNAPSHOT, id=b'x' * 32)
    (reason,) = checked(plan, roots=(other, VOLUME, CANARY))
    assert reason.startswith('P6: snapshot')


def test_the_canary_cannot_vanish(plan):
    assert 'canary 1 is gone' in checked(plan, roots=(SNAPSHOT, VOLUME))[0]


def test_a_volume_may_lose_what_a_commit_dropped_or_a_rollback_left(plan):
    less = dataclasses.replace(VOLUME, id=b'w' * 32, refs=60)
    (reason,) = checked(plan, roots=(SNAPSHOT, less, CANARY))
    assert '40 of 216 references are gone' in reason
    assert checked(plan, roots=(SNAPSHOT, less, CANARY), since=Since(dropped=frozenset({1}))) == []
    assert checked(plan, roots=(SNAPSHOT, less, CANARY), since=Since(dropped=frozenset({2}))) != []
    assert checked(plan, roots=(SNAPSHOT, dataclasses.replace(less, view=8), CANARY)) == []
    more = dataclasses.replace(VOLUME, id=b'w' * 32, refs=101)
    assert checked(plan, roots=(SNAPSHOT, more, CANARY)) == []


def test_a_drop_within_the_limit_that_the_plan_froze_does_not_wait_but_a_lost_root_does(plan):
    less = dataclasses.replace(VOLUME, id=b'w' * 32, refs=99)
    assert checked(plan, roots=(SNAPSHOT, less, CANARY), limit_drop=100) == []
    assert len(checked(plan, roots=(less, CANARY), limit_drop=10_000)) == 1


def test_bytes_that_left_the_index_without_a_batch_make_the_plan_wait(plan):
    last = dataclasses.replace(CERTIFIED, store_bytes=1500)
    (reason,) = checked(plan, last=last)
    assert '500 of 1500 bytes have left the index' in reason
    assert checked(plan, last=last, since=Since(moved_bytes=500)) == []
    assert checked(plan, last=last, since=Since(moved_bytes=499)) != []


# --- approvals -------------------------------------------------------------------------------------------
def test_an_approval_counts_for_its_plan_its_purpose_and_its_time(batch_store, plan):
    catalog, audit = batch_store.catalog, batch_store.audit
    row = approve(catalog, audit, plan, LIMITS, 'ann', (1, 1000))
    assert row.until_trusted_ns == 1000 + 3 * DAY_NS
    assert require(catalog, plan, LIMITS, row.until_trusted_ns - 1) == row
    with pytest.raises(Held, match='the approval of ann counts no longer'):
        require(catalog, plan, LIMITS, row.until_trusted_ns)
    with pytest.raises(Held, match='nobody has approved it'):
        require(catalog, plan, GRACE, 1000)
    other = dataclasses.replace(plan, condemned_digest=bytes(32))
    with pytest.raises(Held, match='nobody has approved it'):
        require(catalog, other, LIMITS, 1000)
    (event,) = [line.event for line in audit.lines()]
    assert (event['event'], event['digest'], event['who']) == ('approve', plan.digest.hex(), 'ann')


def test_an_approval_of_another_digest_does_not_count_however_it_was_found(plan):
    row = approvals.ApprovalRow(bytes(32), LIMITS, 'ann', 1, DAY_NS)
    assert approvals.counts(plan, [row], LIMITS, 1) is None
    assert approvals.counts(plan, [dataclasses.replace(row, digest=plan.digest)], LIMITS, 1) is not None


@pytest.fixture
def second_person(batch_store, batches, ids):
    change(batch_store.catalog, batch_store.audit, 'second-person', 'on', 'root')
    plan = plan_for(batch_store, batches, [request(batch_store, ids[:2])], ids[:2])
    wishes = (
        dataclasses.replace(plan.requests[0], who='ann'),
        dataclasses.replace(plan.requests[0], who='bob'),
    )
    return dataclasses.replace(plan, requests=wishes)


def test_who_asked_for_any_of_it_is_no_second_person(batch_store, second_person):
    catalog, audit = batch_store.catalog, batch_store.audit
    assert second_person.requesters == {'ann', 'bob'}
    lines = audit.sequence
    for who in ('ann', 'bob'):
        with pytest.raises(Held, match='a second person must'):
            approve(catalog, audit, second_person, LIMITS, who, (1, 1))
    assert (approvals.approvals(catalog), audit.sequence) == ([], lines)
    assert approve(catalog, audit, second_person, LIMITS, 'eve', (1, 1)).who == 'eve'
    assert require(catalog, second_person, LIMITS, 1).who == 'eve'


def test_a_row_that_names_a_requester_does_not_count_however_it_came_there(batch_store, second_person):
    catalog = batch_store.catalog
    with catalog.transaction() as db:
        db.execute("INSERT INTO approval VALUES (?, 'limits', 'ann', 1, ?)", (second_person.digest, DAY_NS))
    with pytest.raises(Held, match='counts no longer'):
        require(catalog, second_person, LIMITS, 1)


def test_one_person_is_enough_when_no_second_is_wanted(batch_store, second_person):
    plan = dataclasses.replace(second_person, second_person=False)
    assert approve(batch_store.catalog, batch_store.audit, plan, LIMITS, 'ann', (1, 1)).who == 'ann'


@pytest.mark.parametrize('text', ['', 'abc', 'g' * 64, 'ab' * 31, 'ab' * 33, '../' * 20, '\0' * 64, '٣' * 64])
def test_what_is_no_digest_is_invalid(text):
    with pytest.raises(Invalid, match='not the digest of a plan'):
        parse_digest(text)


def test_a_digest_is_taken_whole_and_in_any_case(plan):
    assert parse_digest(f' {plan.digest.hex().upper()}\n') == plan.digest


def test_a_foreign_or_finished_digest_is_told_apart(batch_store, batches, ids, plan):
    waiting = [(plan, LIMITS)]
    assert find(batch_store.catalog, waiting, plan.digest) == (plan, LIMITS)
    with pytest.raises(Invalid, match='no plan waits that has the digest 0000'):
        find(batch_store.catalog, waiting, bytes(32))
    row = quarantined(batch_store, batches, ids[5:])
    batches.restore(row.number, 'back')
    with pytest.raises(Invalid, match='batch 1, which waits for nobody: RESTORED'):
        find(batch_store.catalog, waiting, row.digest)


def test_an_approval_by_nobody_is_invalid_and_old_ones_make_room(batch_store, plan, monkeypatch):
    catalog, audit = batch_store.catalog, batch_store.audit
    with pytest.raises(Invalid, match='name of a person'):
        approve(catalog, audit, plan, LIMITS, '', (1, 1))
    monkeypatch.setattr('snapfs.limits.APPROVALS_MAX', 1)
    approve(catalog, audit, plan, LIMITS, 'ann', (1, 1))
    with pytest.raises(Held, match='1 approvals already'):
        approve(catalog, audit, plan, LIMITS, 'bob', (1, 1))
    clock = TrustedClock(catalog, batch_store.world)
    for _ in range(8):
        pass_time(batch_store, clock, DAY_NS / 1e9)
    approve(catalog, audit, plan, LIMITS, 'bob', (1, clock.now_ns))
    assert [row.who for row in approvals.approvals(catalog)] == ['bob']
