"""Model, search: breadth first through every state, so that the first finding has the shortest trace.

Findings, each a predicate of one state:
- `loss`: something needed has no readable copy (P1). What a person may still take back is needed, too.
- `wrong`: something in use has its only copies in quarantine or freed (P3): a read now would be the alarm.
- `latch`: the alarm fell.
- `leak`: no batch is on its way, and a row of the index is neither in use nor named by a request: it stays
  for ever (P9). Rows that a crash orphaned are not meant: the protocol reports those.
States with a loss or a latch are not explored further. `dead_ends` is the liveness question (P9), asked of a
whole graph.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from tests.model.collector import COLLECTOR, wrongly_condemned
from tests.model.machine import Machine, Step
from tests.model.packs import PACKING
from tests.model.rules import Config
from tests.model.state import (
    COPY,
    DROP_OUT,
    FREED,
    IDLE,
    LATCH,
    ORPHAN,
    PHASE,
    QUARANTINE,
    State,
    describe,
    masks,
    sort_copies,
)
from tests.model.writer import WRITER

LOSS, WRONG, LATCHED, LEAK = 1, 2, 4, 8
FINDINGS = {'loss': LOSS, 'wrong': WRONG, 'latch': LATCHED, 'leak': LEAK}

# What a store that is left alone does not do. Handles are closed and flushes end some day.
NOT_BY_ITSELF = {
    'put: look-up', 'file removed', 'fsync', 'snapshot taken', 'deletion requested', 'undelete',
    'rollback or clone', 'crash', 'reader meets quarantine',
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Result:
    """What one search saw. `first` maps a finding to its trace: a line a step, the start first."""

    states: int
    depth: int
    complete: bool  # False: cut at the limit of states
    first: dict[str, tuple[str, ...]]

    def steps(self, finding: str) -> int | None:
        """Steps to the first such finding, or None."""
        return len(self.first[finding]) - 1 if finding in self.first else None


def table_of(config: Config) -> tuple[Step, ...]:
    """The steps that a configuration has."""
    left_out = set() if config.split_put else {'put: returns'}
    if not config.nodes:
        left_out.add('commit: transaction')
    if not config.pins:
        left_out.add('handle closed')
    if not config.rollback:
        left_out.add('rollback or clone')
    steps: tuple[Step, ...] = WRITER + COLLECTOR
    if config.packs:
        left_out.add('unlink')
        steps += PACKING
    return tuple(step for step in steps if step.name not in left_out)


def judge(m: Machine, s: State) -> int:
    """The findings of one state."""
    found = LATCHED if s[LATCH] else 0
    if m.needed(s) & ~masks(s).readable:
        found |= LOSS
    if wrongly_condemned(m, s):
        found |= WRONG
    if s[PHASE] == IDLE and masks(s).row & ~m.used(s) & ~s[DROP_OUT] & ~s[ORPHAN]:
        found |= LEAK
    return found


class Search:
    """One search. `seen` maps each state to the one it was first reached from."""

    def __init__(self, config: Config, without: str = '') -> None:
        """`without`: a step that never happens, to see that the liveness question can be answered with no."""
        self.m = Machine(config)
        self.steps = tuple(step for step in table_of(config) if step.name != without)
        self.seen: dict[State, State | None] = {}

    def successors(self, s: State) -> list[tuple[str, State]]:
        """Every state one step from `s`."""
        m, found = self.m, []
        for step in self.steps:
            if step.guard(m, s):
                for t in step.effect(m, s):
                    if not m.config.packs:
                        sort_copies(t)
                    found.append((step.name, bytes(t)))
        return found

    def run(self, limit: int, until: int = LOSS) -> Result:
        """Search until a finding of `until`, or `limit` states are known, or there are no more."""
        m, seen, packs = self.m, self.seen, self.m.config.packs
        steps = [(step.guard, step.effect) for step in self.steps]
        first: dict[int, State] = {}
        seen.update(dict.fromkeys(m.start))
        level = list(m.start)
        depth = 0
        while level and len(seen) < limit:
            depth += 1
            following: list[State] = []
            for s in level:
                for guard, effect in steps:
                    if not guard(m, s):
                        continue
                    for t in effect(m, s):
                        if not packs:
                            sort_copies(t)
                        new = bytes(t)
                        if new in seen:
                            continue
                        seen[new] = s
                        found = judge(m, new)
                        if found:
                            self._note(first, found, new)
                            if found & until:
                                return self._result(depth, False, first)
                            if found & (LOSS | LATCHED):
                                continue
                        following.append(new)
                if len(seen) >= limit:
                    break
            level = following
        return self._result(depth, not level, first)

    def _note(self, first: dict[int, State], found: int, state: State) -> None:
        for bit in FINDINGS.values():
            if found & bit:
                first.setdefault(bit, state)

    def _result(self, depth: int, complete: bool, first: dict[int, State]) -> Result:
        traces = {name: self.trace(first[bit]) for name, bit in FINDINGS.items() if bit in first}
        return Result(len(self.seen), depth, complete, traces)

    def trace(self, state: State) -> tuple[str, ...]:
        """How `state` was reached, a line a step."""
        path: list[State] = [state]
        while (before := self.seen[path[-1]]) is not None:
            path.append(before)
        path.reverse()
        lines = [f'start: {describe(None, path[0])}']
        for old, new in pairwise(path):
            name = next(name for name, t in self.successors(old) if t == new)
            lines.append(f'{name}: {describe(old, new)}')
        return tuple(lines)

    def dead_ends(self) -> list[State]:
        """After a complete run: states, not latched, that cannot get tidy when the store is left alone."""
        before: dict[State, list[State]] = {}
        tidy: list[State] = []
        for s in self.seen:
            if s[LATCH]:
                continue
            if is_tidy(self.m, s):
                tidy.append(s)
            for name, t in self.successors(s):
                if name not in NOT_BY_ITSELF:
                    before.setdefault(t, []).append(s)
        good = set(tidy)
        while tidy:
            for s in before.get(tidy.pop(), ()):
                if s not in good:
                    good.add(s)
                    tidy.append(s)
        return [s for s in self.seen if s not in good and not s[LATCH]]


def is_tidy(m: Machine, s: State) -> bool:
    """No batch, nothing in quarantine or freed, and every row of the index is in use."""
    if s[PHASE] != IDLE or QUARANTINE in s[COPY:] or FREED in s[COPY:]:
        return False
    return not masks(s).row & ~m.used_without_requests(s) & ~s[ORPHAN]
