"""A drill that cannot fail proves nothing: with its guard taken away, each must fail."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import pytest

from snapfs.collect import approvals, batches, clock, collector, files, mentions, meta_packs, moves, recount
from snapfs.collect import sweep as sweeping
from snapfs.collect.states import CONFIRMED
from snapfs.collect.states import batches as batch_rows
from snapfs.service import collecting as service_collecting
from snapfs.store.audit import AuditLog
from snapfs.store.durable import Disk
from snapfs.store.horizon import PutRecord
from tools.drill import crashes
from tools.drill.drills import drills
from tools.drill.run import play

pytestmark = pytest.mark.slow


def nothing(*arguments: Any, **more: Any) -> None:
    """A guard that does not look."""


def empty_for_error(disk: Disk, fd: int, count: int, offset: int) -> Any:
    try:
        return disk._sys_pread(fd, count, offset)
    except OSError:
        return b''


def uncounted(walk: recount.Walk, claims: Any, places: Any) -> Iterator[tuple[int, bytes]]:
    yield from walk._reader.nodes(claims.ids, places)


def any_packs(store: Any, facts: Any) -> meta_packs.PackList:
    return meta_packs.PackList(tuple(facts), ())


def confirmed_only(made: batches.Batches) -> Any:
    return batch_rows(made._catalog, CONFIRMED)


# Drill, whose guard is taken away, its name, and what stands in for it.
AWAY = [
    ('ebs-2011', recount.Walk, '_check', nothing),
    ('ebs-2011', mentions._Recount, '_is_live', nothing),
    ('ebs-2011', recount._Run, '_trip', nothing),
    ('ebs-2011', collector.Collector, 'certify', nothing),
    ('lost-page', recount.Walk, '_check', nothing),
    ('blind', recount._Run, '_alarm', nothing),
    ('truncated-listing', recount, 'agree', lambda expected, found: found.roots),
    ('truncated-listing', mentions, 'compare_packs', any_packs),
    ('eio', Disk, 'pread', empty_for_error),
    ('error-as-empty', recount.Walk, '_nodes', uncounted),
    ('stale-catalog', recount, 'agree', lambda expected, found: found.roots),
    ('stale-catalog', mentions, '_check_batch', nothing),
    ('unregistered-root', moves, '_ROOTS', 'SELECT root FROM canary'),
    ('unregistered-root', mentions._Recount, '_is_live', nothing),
    ('wrong-total', recount.Walk, '_check', nothing),
    ('vanished-root', collector, 'check_limits', lambda *arguments: []),
    ('dedup-hit', PutRecord, 'has', lambda record, id: False),
    ('two-collectors', batches, '_check_one_moves', nothing),
    ('two-collectors', service_collecting, 'without_verifiers', lambda *arguments: nullcontext()),
    ('other-plan', approvals, 'find', lambda catalog, waiting, digest: waiting[0]),
    ('other-plan', files.BatchFiles, 'check', nothing),
    ('clock-jump', clock, 'session_growth', lambda wall_ns, monotonic_ns: max(0, wall_ns)),
    ('clock-jump', clock, 'gap_growth', lambda wall_ns, boot_ns: max(0, wall_ns)),
    ('suspend', recount.limits, 'COLLECT_SUSPEND_SECONDS', float('inf')),
    ('suspend', clock, 'session_growth', lambda wall_ns, monotonic_ns: max(0, wall_ns)),
    ('vanished-pack', mentions, 'compare_packs', any_packs),
    ('lost-rows', sweeping, 'last_look', lambda *arguments: sweeping.LastLook(0, 0, ())),
    ('cut-audit', AuditLog, '_verify', lambda log, head, size: log.known.end),
    ('old-catalog', files.BatchFiles, 'has', lambda *arguments: False),
    ('kill', batches.Batches, 'recover', confirmed_only),
    ('kill-9', crashes, 'run_victim', lambda *arguments: 0),
]


@pytest.mark.parametrize(
    ('name', 'owner', 'guard', 'instead'), AWAY, ids=[f'{name}-{guard}' for name, _, guard, _ in AWAY]
)
def test_a_drill_fails_without_its_guard(
    name: str, owner: Any, guard: str, instead: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crashes, 'STRIDE', 5)
    monkeypatch.setattr(owner, guard, instead)
    outcome = play(drills()[name])
    assert not outcome.passed, f'{name} passes without {guard}: {outcome.seen}'


def test_each_drill_was_seen_to_fail() -> None:
    assert {name for name, *_ in AWAY} == set(drills())
