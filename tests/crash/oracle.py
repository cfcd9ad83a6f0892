"""What a store may hold after a crash: the history of the model, and which part of it was promised."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

Tree = Any  # what `Node.freeze` returns


@dataclass(frozen=True, slots=True)
class Registry:
    """Names and roots as they are after one administrative change. Values are never changed in place."""

    volumes: dict[int, str] = field(default_factory=dict)  # stable number -> name
    snapshots: dict[tuple[int, str], Tree] = field(default_factory=dict)
    requests: dict[tuple[str, int], Tree] = field(default_factory=dict)  # (kind, view number)
    holds: frozenset[tuple[int, str, str]] = frozenset()  # stable number, snapshot, name of the hold

    def with_volume(self, number: int, name: str) -> Registry:
        return replace(self, volumes={**self.volumes, number: name})

    def without_volume(self, number: int) -> Registry:
        return replace(self, volumes={k: v for k, v in self.volumes.items() if k != number})

    def with_snapshot(self, volume: int, name: str, tree: Tree) -> Registry:
        return replace(self, snapshots={**self.snapshots, (volume, name): tree})

    def without_snapshot(self, volume: int, name: str) -> Registry:
        return replace(self, snapshots={k: v for k, v in self.snapshots.items() if k != (volume, name)})

    def with_snapshot_renamed(self, volume: int, name: str, new_name: str) -> Registry:
        """The holds stay on it."""
        after = self.without_snapshot(volume, name)
        after = after.with_snapshot(volume, new_name, self.snapshots[volume, name])
        renamed = {(v, new_name if (v, s) == (volume, name) else s, hold) for v, s, hold in self.holds}
        return after.with_holds(frozenset(renamed))

    def with_holds(self, holds: frozenset[tuple[int, str, str]]) -> Registry:
        return replace(self, holds=holds)

    def with_request(self, kind: str, view: int, tree: Tree) -> Registry:
        return replace(self, requests={**self.requests, (kind, view): tree})

    def without_request(self, kind: str, view: int) -> Registry:
        return replace(self, requests={k: v for k, v in self.requests.items() if k != (kind, view)})


@dataclass(frozen=True, slots=True)
class Pending:
    """An administrative change on its way: what the store holds when it got through. `low`: the first moment
    of the history that the volumes may then be at. A new snapshot is one of `snapshot` of any moment since.
    """

    registry: Registry
    low: int
    births: dict[int, Tree] = field(default_factory=dict)
    overlay: dict[int, Tree] = field(default_factory=dict)  # a rolled-back volume
    snapshot: tuple[int, str] | None = None


@dataclass(frozen=True, slots=True)
class Found:
    """What a reopened store holds."""

    registry: Registry
    volumes: dict[int, Tree]


@dataclass(frozen=True, slots=True)
class Allowed:
    """What a store may hold after a crash at one moment."""

    states: tuple[tuple[int, dict[int, Tree]], ...]  # (number in the history, volumes), from the promised one
    registry: Registry
    births: dict[int, Tree]
    pending: Pending | None

    def candidates(self) -> Iterator[tuple[int, Found]]:
        """Yield every store that a crash may have left, the latest first."""
        for number, volumes in reversed(self.states):
            if self.pending is not None and number >= self.pending.low:
                after = self.pending
                trees = {**self.births, **after.births, **volumes, **after.overlay}
                for registry in self._after(after, number):
                    yield number, Found(registry, {one: trees[one] for one in registry.volumes})
            trees = {**self.births, **volumes}
            yield number, Found(self.registry, {one: trees[one] for one in self.registry.volumes})

    def _after(self, after: Pending, number: int) -> Iterator[Registry]:
        if after.snapshot is None:
            yield after.registry
            return
        volume, name = after.snapshot
        # The volume may be later than its snapshot, by what was written while the snapshot was taken.
        for low, volumes in self.states:
            if after.low <= low <= number:
                yield after.registry.with_snapshot(volume, name, volumes[volume])

    def names(self, volume: int, snapshot: str) -> bool:
        """Return whether the workload knows a snapshot by this name."""
        known = self.pending.registry.snapshots if self.pending is not None else {}
        return (volume, snapshot) in self.registry.snapshots or (volume, snapshot) in known

    def tree_of_request(self, kind: str, view: int) -> Tree:
        """Return what a request was made of, None when it is not known."""
        known = self.registry.requests.get((kind, view))
        if known is None and self.pending is not None:
            known = self.pending.registry.requests.get((kind, view))
        return known

    def match(self, found: Found) -> int | None:
        """Return the moment of the history that `found` is, None when it is none of those allowed."""
        return next((number for number, one in self.candidates() if one == found), None)

    def explain(self, found: Found) -> str:
        """Return what is wrong with `found`, for a person."""
        if found.registry.volumes != self.registry.volumes:
            return f'volumes {found.registry.volumes}, promised {self.registry.volumes}'
        if found.registry.snapshots != self.registry.snapshots:
            lost = [
                key
                for key, tree in self.registry.snapshots.items()
                if found.registry.snapshots.get(key) != tree
            ]
            return f'snapshots differ (P6): {lost or sorted(found.registry.snapshots)}'
        if found.registry.holds != self.registry.holds:
            return f'holds {sorted(found.registry.holds)}, promised {sorted(self.registry.holds)}'
        if found.registry.requests.keys() != self.registry.requests.keys():
            return f'requests {sorted(found.registry.requests)}, promised {sorted(self.registry.requests)}'
        lines = ['no moment of the history (P5); against the latest:']
        for volume, tree in found.volumes.items():
            lines += differences(tree, self.states[-1][1].get(volume, self.births[volume]), f'{volume}:')
        return '\n  '.join(lines)


def differences(found: Tree, expected: Tree, path: str) -> list[str]:
    if found == expected:
        return []
    if found[0] == 'dir' and expected[0] == 'dir':
        lines = [f'{path}: attributes differ'] if found[1:3] != expected[1:3] else []
        if found[4:] != expected[4:]:
            lines.append(f'{path}: {found[4:]} instead of {expected[4:]}')
        ours, theirs = dict(found[3]), dict(expected[3])
        for name in sorted(ours.keys() | theirs.keys()):
            where = f'{path}/{name.decode(errors="replace")}'
            if name not in ours or name not in theirs:
                lines.append(f'{where}: {"too much" if name in ours else "missing"}')
            else:
                lines += differences(ours[name], theirs[name], where)
        return lines
    if found[0] != expected[0]:
        return [f'{path}: {found[0]} instead of {expected[0]}']
    ours, theirs = found[3], expected[3]
    first = next((n for n, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), None)
    sizes = f'{len(ours)} bytes instead of {len(theirs)}, first other byte at {first}'
    more = f'; {found[6:]} instead of {expected[6:]}' if found[6:] != expected[6:] else ''
    return [
        f'{path}: {sizes}; links {found[2]} and {expected[2]}; xattrs equal: {found[5] == expected[5]}{more}'
    ]


class Oracle:
    """The model's history while a workload runs."""

    def __init__(self) -> None:
        self.history: list[dict[int, Tree]] = [{}]
        self.floor = 0
        self.registry = Registry()
        self.births: dict[int, Tree] = {}
        self.pending: Pending | None = None

    @property
    def now(self) -> int:
        return len(self.history) - 1

    def record(self, volumes: dict[int, Tree]) -> None:
        """An operation was done."""
        self.history.append(volumes)

    def promised(self, number: int) -> None:
        """Everything up to this moment of the history is durable."""
        self.floor = max(self.floor, number)

    def settled(self) -> None:
        """The administrative change is acknowledged."""
        assert self.pending is not None
        self.births.update(self.pending.births)
        self.registry, self.pending = self.pending.registry, None

    def allowed(self) -> Allowed:
        """Return what may be there after a crash now."""
        states = tuple((n, self.history[n]) for n in range(self.floor, len(self.history)))
        return Allowed(states, self.registry, dict(self.births), self.pending)
