"""L4 roots: the registry of everything that keeps chunks alive (L3). Pure over a `query`; any thread.

A kind of root that is not in ROOT_KINDS cannot exist: a test looks at every column of the catalog and at
every kind of item, and fails when one can hold a chunk id and is neither walked nor, with a reason, excused.

A caller reads the registry inside one read transaction. `query(text, values)` returns all rows of a SELECT:
`lambda text, values=(): db.execute(text, values).fetchall()` in a transaction of the catalog.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from snapfs import limits
from snapfs.errors import Corrupt, Unavailable
from snapfs.store.rows import decode_name

Query = Callable[..., list[tuple[Any, ...]]]
Identity = tuple[str, int]


@dataclass(frozen=True, slots=True)
class RootRow:
    """One root. A tree has `id`, `items` and `refs` as its row claims them (id None: an empty tree). A root
    of kind 'dropped' has no tree: `chunks` ids that count alone, `subtrees` tops of trees, in request_part.

    `number`: of a volume its stable number, of a snapshot its view number, of a request the request's.
    `identity` stays when a snapshot or volume becomes a request, or comes back. `view`: view number, or 0.
    `batch`: the resting batch that the request is in, or None.
    """

    kind: str
    number: int
    name: str
    id: bytes | None
    items: int | None
    refs: int | None
    identity: Identity
    view: int = 0
    batch: int | None = None
    chunks: int = 0
    subtrees: int = 0


@dataclass(frozen=True, slots=True)
class RootSet:
    """All standing roots at one moment, with the epoch and the counters of that moment."""

    epoch: int
    next_view: int
    next_volume: int
    next_request: int
    roots: tuple[RootRow, ...]


Walker = Callable[[Query], Iterator[RootRow]]

# What is in a batch of these states nobody can take back any more: such a request is no root.
_ENDED_STATES = ('CONFIRMED', 'FREED')
_RESTING_STATES = ('PLANNED', 'QUARANTINED')
_TREE_KINDS = ('snapshot', 'volume')
_PART_KINDS = ('dropped', 'returned', 'leaked')


def _volumes(query: Query) -> Iterator[RootRow]:
    text = 'SELECT volume, number, name, root, root_items, root_refs FROM volume ORDER BY volume'
    for volume, view, name, *tree in query(text):
        yield _tree('volume', volume, decode_name(name), tree, ('volume', volume), view)


def _snapshots(query: Query) -> Iterator[RootRow]:
    text = (
        'SELECT s.number, v.name, s.name, s.root, s.root_items, s.root_refs '
        'FROM snapshot s LEFT JOIN volume v ON v.volume = s.volume ORDER BY s.number'
    )
    for view, volume_name, name, *tree in query(text):
        owner = decode_name(volume_name) if volume_name is not None else '?'
        yield _tree('snapshot', view, f'{owner}@{decode_name(name)}', tree, ('view', view), view)


def _requests(query: Query) -> Iterator[RootRow]:
    """Requests for snapshots and volumes."""
    text = (
        'SELECT r.number, r.kind, r.batch, b.state, r.volume, r.view, r.volume_name, r.name, '
        'r.root, r.root_items, r.root_refs FROM request r LEFT JOIN batch b ON b.number = r.batch '
        "WHERE r.kind NOT IN ('dropped', 'returned', 'leaked') ORDER BY r.number"
    )
    for number, kind, batch, state, volume, view, volume_name, name, *tree in query(text):
        if kind not in _TREE_KINDS:
            raise Corrupt(f'catalog: request {number} is of the unknown kind {kind!r}')
        if state in _ENDED_STATES:
            continue
        title = decode_name(volume_name)
        if kind == 'snapshot':
            title, identity = f'{title}@{decode_name(name)}', ('view', view)
        else:
            identity = ('volume', volume)
        row = _tree('request', number, f'request {number} ({title})', tree, identity, view)
        yield replace(row, batch=_resting(number, batch, state))


def _dropped(query: Query) -> Iterator[RootRow]:
    """Requests whose ids are in request_part."""
    counts: dict[int, dict[str, int]] = {}
    text = 'SELECT request, kind, sum(length(ids)), max(length(ids) % 32) FROM request_part GROUP BY 1, 2'
    for number, kind, size, odd in query(text):
        if odd or kind not in ('chunks', 'subtrees'):
            raise Corrupt(f'catalog: request {number} has a list of ids that cannot be one')
        counts.setdefault(number, {})[kind] = size // limits.ID_BYTES
    text = (
        'SELECT r.number, r.kind, r.batch, b.state, r.root, r.volume_name FROM request r '
        "LEFT JOIN batch b ON b.number = r.batch WHERE r.kind IN ('dropped', 'returned', 'leaked') "
        'ORDER BY r.number'
    )
    for number, kind, batch, state, root, volume_name in query(text):
        if root is not None:
            raise Corrupt(f'catalog: request {number} is of the kind {kind}, and has a root')
        found = counts.pop(number, {})
        if state in _ENDED_STATES:
            continue
        name = f'request {number} ({kind}{" by " if volume_name else ""}{decode_name(volume_name)})'
        yield RootRow(
            'dropped', number, name, None, None, None, ('request', number),
            batch=_resting(number, batch, state),
            chunks=found.get('chunks', 0), subtrees=found.get('subtrees', 0),
        )  # fmt: skip
    if counts:
        raise Corrupt(f'catalog: ids belong to request {min(counts)}, which cannot have any')


def _canaries(query: Query) -> Iterator[RootRow]:
    text = 'SELECT number, root, root_items, root_refs FROM canary ORDER BY number'
    for number, *tree in query(text):
        yield _tree('canary', number, f'canary {number}', tree, ('canary', number))


def _nobody(query: Query) -> Iterator[RootRow]:
    """What only the daemon's memory knows: handed in as `extra`."""
    return iter(())


# In the order in which roots claim what they keep. Pins and recoveries are handed in by the caller.
ROOT_KINDS: dict[str, Walker] = {
    'volume': _volumes,
    'snapshot': _snapshots,
    'request': _requests,
    'dropped': _dropped,
    'canary': _canaries,
    'pin': _nobody,
    'recovery': _nobody,
}
HANDED_IN = frozenset({'pin', 'recovery'})

# Every column that can hold a chunk id: the kind of root that walks it, or why it is none.
WALKED_COLUMNS = {
    'volume.root': 'volume',
    'snapshot.root': 'snapshot',
    'request.root': 'request',
    'request_part.ids': 'dropped',
    'canary.root': 'canary',
}
EXCUSED_COLUMNS = {
    'chunk.id': 'the index says where a chunk is; to be there keeps nothing alive',
    'quarantine.id': 'condemned by a batch; its requests are roots while they can be taken back',
    'freed.id': 'has its receipt',
    'damage.id': 'says what was found lost; that keeps nothing alive',
}

_ORDER = {kind: position for position, kind in enumerate(ROOT_KINDS)}


def _tree(
    kind: str, number: int, name: str, tree: Sequence[Any], identity: Identity, view: int = 0
) -> RootRow:
    id, items, refs = tree
    good = type(items) is int and type(refs) is int and items >= 0 and refs >= 0
    if id is None:
        good = good and items == refs == 0
    else:
        good = good and type(id) is bytes and len(id) == limits.ID_BYTES and items > 0
    if not good:
        raise Corrupt(f'catalog: the root of {kind} {name} cannot be one')
    return RootRow(kind, number, name, id, items, refs, identity, view)


def _resting(number: int, batch: int | None, state: str | None) -> int | None:
    """Return the batch if it rests; None when the request is in none, or in one that was restored."""
    if batch is None or state == 'RESTORED':
        return None
    if state not in _RESTING_STATES:
        raise Corrupt(f'catalog: request {number} is in batch {batch}, whose state is {state!r}')
    return batch


def every(query: Query, extra: Sequence[RootRow] = ()) -> tuple[RootRow, ...]:
    """Return every root there is, requests of any batch that can be taken back included. Corrupt.

    Sorted: firm roots by kind and number, then the requests of resting batches.
    """
    rows = [row for walker in ROOT_KINDS.values() for row in walker(query)]
    for row in extra:
        assert row.kind in HANDED_IN, f'a root of kind {row.kind} is not handed in'
    rows += extra
    if len({row.identity for row in rows}) != len(rows):
        raise Corrupt('catalog: the same root stands there twice')
    return in_order(rows)


def in_order(rows: Iterable[RootRow]) -> tuple[RootRow, ...]:
    """Return roots in the order of the registry; those that rest come last."""
    return tuple(sorted(rows, key=lambda row: (row.batch is not None, _ORDER[row.kind], row.number)))


def standing(
    query: Query, without: frozenset[int] = frozenset(), extra: Sequence[RootRow] = ()
) -> tuple[RootRow, ...]:
    """Return every root but the requests numbered in `without`: those of the batch at hand. Corrupt."""
    return tuple(
        row
        for row in every(query, extra)
        if not (row.kind in ('request', 'dropped') and row.number in without)
    )


def root_set(query: Query, without: frozenset[int] = frozenset(), extra: Sequence[RootRow] = ()) -> RootSet:
    """Return the standing roots with epoch and counters: what the daemon freezes at the horizon. Corrupt."""
    values: dict[str, Any] = {key: value for key, value in query('SELECT key, value FROM settings')}  # noqa: C416
    keys = ('epoch', 'next_view', 'next_volume', 'next_request')
    if any(type(values.get(key)) is not int for key in keys):
        raise Corrupt('catalog: a setting is missing')
    epoch, view, volume, request = [values[key] for key in keys]
    return RootSet(epoch, view, volume, request, standing(query, without, extra))


def part_ids(query: Query, number: int, kind: str) -> Iterator[bytes]:
    """Yield the ids of a request of kind 'dropped', 'returned' or 'leaked' in slices, back to back.

    `kind`: 'chunks' (each id counts alone) or 'subtrees' (with all below it).
    """
    parts = query('SELECT part FROM request_part WHERE request = ? AND kind = ?', (number, kind))
    for (part,) in parts:
        rows = query('SELECT ids FROM request_part WHERE request = ? AND part = ?', (number, part))
        if not rows:
            raise Unavailable(f'request {number} has changed meanwhile')
        yield rows[0][0]


def agree(expected: RootSet, found: RootSet) -> tuple[RootRow, ...]:
    """Return the roots that count: those expected, and what commits and people have added since.

    `expected` was frozen at the horizon, `found` read later and elsewhere. Corrupt when one root is missing,
    or is there that was not, and no change since the horizon explains it (L2). Unavailable when a batch
    moved.
    """
    if found.epoch < expected.epoch:
        raise Corrupt(f'the catalog is at epoch {found.epoch}, older than the horizon {expected.epoch}')
    now = {row.identity: row for row in found.roots}
    counted = list(expected.roots)
    for row in expected.roots:
        other = now.pop(row.identity, None)
        if other is None:
            if row.id is None and row.kind == 'volume':
                continue  # a volume whose making was refused: it never held anything
            raise Corrupt(f'a root is missing since the horizon: {row.kind} {row.name}')
        if other.batch != row.batch:
            raise Unavailable(f'{row.name} has changed its batch while the recount ran')
        if _tree_of(other) == _tree_of(row):
            continue
        moved = found.epoch > expected.epoch or other.view >= expected.next_view  # a commit, a rollback
        if row.identity[0] != 'volume' or not moved:
            raise Corrupt(f'a root has changed since the horizon: {row.kind} {row.name}')
        counted.append(other)
    newest = {'view': expected.next_view, 'volume': expected.next_volume, 'request': expected.next_request}
    for (kind, number), row in now.items():
        if kind not in newest or number < newest[kind]:
            raise Corrupt(f'a root is there that was not expected: {row.kind} {row.name}')
        counted.append(row)
    return in_order(counted)


def _tree_of(row: RootRow) -> tuple[object, ...]:
    return row.id, row.items, row.refs, row.chunks, row.subtrees
