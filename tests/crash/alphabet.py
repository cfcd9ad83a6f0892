"""The operations that workloads are enumerated from, and when each makes sense.

A word is a tuple of names of operations. Operations choose what they work on by rules, not by names: file A,
file B, the newest snapshot, and so on; so two words are never the same up to names. `State` is what of the
store decides whether an operation can apply. Words are left out whose operation cannot apply, and those with
a `sync`, `flush`, `commit` or `reopen` that has nothing to do: without it they are another word of the list.
What `State` does not know (does a commit leave anything for the collector?) the run finds out: it says so of
a word, and it is counted apart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

Word = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Shape:
    """What there is in the volume."""

    a: int = 1  # names that file A has
    b: bool = True
    empties: int = 2  # empty directories
    xattrs: int = 1  # extended attributes of A


BASE = Shape()


@dataclass(frozen=True, slots=True)
class State:
    """The base store is what the defaults say (tests/crash/word_run.py)."""

    shape: Shape = BASE
    opened: bool = False  # a file is open and has no name
    snapshots: tuple[tuple[Shape, int], ...] = ((BASE, 0),)  # with their holds, the newest last
    asked: tuple[Shape, ...] = (BASE,)  # requests for snapshots
    volumes: int = 1  # without snapshots, so that they can be deleted
    volumes_asked: int = 1
    loose: bool = True  # there may be a request in no batch
    plan: bool = False
    resting: bool = False
    confirmed: bool = False
    buffered: bool = False  # there are bytes for `flush`
    unlogged: bool = False  # there are changes for `sync`
    uncommitted: bool = False


@dataclass(frozen=True, slots=True)
class Operation:
    """When one operation can apply, and what it makes of the state. `kind` is 'posix', 'admin' or
    'collector'."""

    kind: str
    applies: Callable[[State], bool]
    after: Callable[[State], State]


def _always(state: State) -> bool:
    return True


def _changed(state: State, *, buffered: bool = False, **shape: int) -> State:
    return replace(
        state,
        shape=replace(state.shape, **shape),
        buffered=buffered or state.buffered,
        unlogged=True,
        uncommitted=True,
    )


def _committed(state: State) -> State:
    """After a commit. What changed left something behind, which is a request now."""
    loose = state.loose or state.uncommitted
    return replace(state, buffered=False, unlogged=False, uncommitted=False, loose=loose)


def _posix(needs: str = '', *, buffered: bool = False, **more: int) -> Operation:
    """A change of files. `needs`: A, B. `more`: what it adds to the shape."""

    def applies(state: State) -> bool:
        return not ('A' in needs and not state.shape.a) and not ('B' in needs and not state.shape.b)

    def after(state: State) -> State:
        shape = {name: getattr(state.shape, name) + count for name, count in more.items()}
        return _changed(state, buffered=buffered, **shape)

    return Operation('posix', applies, after)


def _and(operation: Operation, also: Callable[[State], bool]) -> Operation:
    return replace(operation, applies=lambda state: operation.applies(state) and also(state))


def _write_unlinked(state: State) -> State:
    return replace(_changed(state, buffered=True, a=0), opened=True)


def _snapshot(state: State) -> State:
    state = _committed(state)
    return replace(state, snapshots=(*state.snapshots, (state.shape, 0)))


def _delete_snapshot(state: State) -> State:
    *left, (shape, _) = state.snapshots
    return replace(state, snapshots=tuple(left), asked=(*state.asked, shape), loose=True)


def _undelete_snapshot(state: State) -> State:
    *left, shape = state.asked
    return replace(state, snapshots=(*state.snapshots, (shape, 0)), asked=tuple(left), loose=True, plan=False)


def _rollback(state: State) -> State:
    shape = state.snapshots[-1][0]
    return replace(_snapshot(state), shape=shape, opened=False)


def _delete_volume(state: State) -> State:
    state = _committed(state)
    return replace(state, volumes=state.volumes - 1, volumes_asked=state.volumes_asked + 1, loose=True)


def _undelete_volume(state: State) -> State:
    asked = state.volumes_asked - 1
    return replace(state, volumes=state.volumes + 1, volumes_asked=asked, loose=True, plan=False)


def _held(count: int) -> Callable[[State], State]:
    def after(state: State) -> State:
        *left, (shape, holds) = state.snapshots
        return replace(state, snapshots=(*left, (shape, holds + count)))

    return after


def _more_volumes(state: State) -> State:
    return replace(state, volumes=state.volumes + 1)


POSIX: dict[str, Operation] = {
    'create': _posix(),
    'mkdir': _posix(empties=1),
    'symlink': _posix(),
    'fifo': _posix(),
    'write new': _posix(buffered=True),
    'overwrite A': _posix('A', buffered=True),
    'append A': _posix('A', buffered=True),
    'shrink A': _posix('A', buffered=True),
    'grow A': _posix('A'),
    'overwrite B': _posix('B', buffered=True),
    'unlink A': _posix('A', a=-1),
    'unlink B': _posix('B', b=-1),
    'rmdir': _and(_posix(empties=-1), lambda s: s.shape.empties > 0),
    'link A': _posix('A', a=1),
    'rename A': _posix('A'),
    'rename A to B': _posix('AB', b=-1),
    'rename A to A': Operation('posix', lambda s: s.shape.a > 1, lambda s: s),
    'rename A across': _posix('A'),
    'rename directory to directory': _and(_posix(empties=-1), lambda s: s.shape.empties > 1),
    'rename tree': _posix(),
    'exchange A and B': _posix('AB'),
    'chmod A': _posix('A'),
    'chown directory': _posix(),
    'utimes A': _posix('A'),
    'set xattr A': _posix('A', xattrs=1),
    'set long xattr A': _posix('A', xattrs=1),
    'remove xattr A': _and(_posix('A', xattrs=-1), lambda s: s.shape.xattrs > 0),
    'write to unlinked A': Operation('posix', lambda s: s.shape.a > 0 and not s.opened, _write_unlinked),
    'close': Operation('posix', lambda s: s.opened, lambda s: replace(_changed(s), opened=False)),
    'sync': Operation('posix', lambda s: s.unlogged, lambda s: replace(s, unlogged=False)),
    'flush': Operation('posix', lambda s: s.buffered, lambda s: replace(_changed(s), buffered=False)),
    'commit': Operation('posix', lambda s: s.uncommitted, _committed),
    'reopen': Operation('posix', _always, lambda s: replace(_committed(s), opened=False, plan=False)),
}

PEOPLE: dict[str, Operation] = {
    'snapshot': Operation('admin', _always, _snapshot),
    'delete snapshot': Operation(
        'admin', lambda s: bool(s.snapshots) and not s.snapshots[-1][1], _delete_snapshot
    ),
    'undelete snapshot': Operation('admin', lambda s: bool(s.asked), _undelete_snapshot),
    'rename snapshot': Operation('admin', lambda s: bool(s.snapshots), lambda s: s),
    'create volume': Operation('admin', _always, lambda s: _more_volumes(_committed(s))),
    'clone': Operation('admin', lambda s: bool(s.snapshots), _more_volumes),
    'rollback': Operation('admin', lambda s: bool(s.snapshots), _rollback),
    'delete volume': Operation('admin', lambda s: s.volumes > 0, _delete_volume),
    'undelete volume': Operation('admin', lambda s: s.volumes_asked > 0, _undelete_volume),
    'rename volume': Operation('admin', _always, lambda s: s),
    'hold': Operation('admin', lambda s: bool(s.snapshots), _held(1)),
    'release': Operation('admin', lambda s: bool(s.snapshots) and s.snapshots[-1][1] > 0, _held(-1)),
}

COLLECTOR: dict[str, Operation] = {
    'plan': Operation(
        'collector',
        lambda s: s.loose and not s.plan and not s.confirmed,
        lambda s: replace(_committed(s), plan=True),
    ),
    'quarantine': Operation(
        'collector',
        lambda s: (s.loose or s.plan) and not s.confirmed,
        lambda s: replace(_committed(s), plan=False, resting=True, loose=False),
    ),
    'confirm': Operation(
        'collector',
        lambda s: s.resting and not s.confirmed,
        lambda s: replace(_committed(s), confirmed=True),
    ),
    'free': Operation(
        'collector',
        lambda s: s.resting,
        lambda s: replace(_committed(s), confirmed=False, resting=False),
    ),
    'restore': Operation(
        'collector',
        lambda s: s.resting and not s.confirmed,
        lambda s: replace(s, resting=False, loose=True),
    ),
}

OPERATIONS: dict[str, Operation] = {**POSIX, **PEOPLE, **COLLECTOR}


def words(length: int, kinds: frozenset[str] | None = None) -> Iterator[Word]:
    """Yield every word of exactly this length, always in the same order. `kinds`: of operations."""
    names = [name for name, one in OPERATIONS.items() if kinds is None or one.kind in kinds]
    yield from _longer((), State(), length, names)


def _longer(word: Word, state: State, length: int, names: list[str]) -> Iterator[Word]:
    if not length:
        yield word
        return
    for name in names:
        operation = OPERATIONS[name]
        if operation.applies(state) and not _idle(word, name):
            yield from _longer((*word, name), operation.after(state), length - 1, names)


def _idle(word: Word, name: str) -> bool:
    return bool(word) and word[-1] == name == 'reopen'
