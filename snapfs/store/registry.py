"""L2 registry: volumes, snapshots, holds and requests: the rows that hold a root. Blocking; any thread.

Each method is one transaction, small, and durable when it returns. Errors of a person: Refused(EEXIST) when a
name is taken, Refused(ENOENT) when there is no such thing, Invalid for an impossible name, Held. Nothing was
changed then.
"""

from __future__ import annotations

import errno
import sqlite3

from snapfs import limits
from snapfs.errors import Held, Invalid, Refused
from snapfs.store.catalog import Catalog, take_number
from snapfs.store.rows import (
    HoldRow,
    RequestGroup,
    RequestPart,
    RequestRow,
    SnapshotRow,
    VolumeRow,
    clean_text,
    decode_name,
    encode_name,
    hold_row,
    request_row,
    snapshot_row,
    volume_row,
)

KEPT_KINDS = ('snapshot', 'volume')  # requests that a person made, and can take back
RESERVED_NAMES = ('', '.', '..', '.snapfs', '.snapshots')


def check_name(name: str, what: str) -> bytes:
    """Return the name of a volume, snapshot or hold as it is stored. Invalid when it cannot be one."""
    stored = encode_name(name)
    if name in RESERVED_NAMES:
        raise Invalid(f'{name!r} cannot be the name of a {what}')
    if len(stored) > limits.VOLUME_NAME_BYTES_MAX:
        raise Invalid(
            f'the name of a {what} has at most {limits.VOLUME_NAME_BYTES_MAX} bytes, not {len(stored)}'
        )
    odd = next((c for c in name if c in '/@' or c < ' ' or c == '\x7f'), None)
    if odd is not None:
        raise Invalid(f'the name of a {what} cannot contain {odd!r}: {name!r}')
    return stored


class Registry:
    """Everything in the catalog that is, or was, a root."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    # --- volumes -----------------------------------------------------------------------------------------
    def volumes(self) -> list[VolumeRow]:
        """Return all volumes, by name."""
        return [volume_row(row) for row in self._catalog.query('SELECT * FROM volume ORDER BY name')]

    def volume_add(self, name: str, now_ns: int, origin: SnapshotRow | None = None) -> VolumeRow:
        """Make a volume: empty, or a clone of the snapshot `origin`."""
        stored = check_name(name, 'volume')
        with self._catalog.transaction() as db:
            root: tuple[bytes | None, int, int, int, int | None] = (None, 0, 0, limits.INO_ROOT, None)
            if origin is not None:
                # Read again inside the transaction: a clone of what somebody deletes meanwhile has no claim
                # on it.
                origin = _snapshot(db, origin.number)
                root = (origin.root, origin.root_items, origin.root_refs, origin.next_ino, origin.number)
            if db.execute('SELECT count(*) FROM volume').fetchone()[0] >= limits.VOLUMES_MAX:
                raise Refused(errno.ENOSPC, f'a store has at most {limits.VOLUMES_MAX} volumes')
            _check_free(db, 'SELECT 1 FROM volume WHERE name = ?', (stored,), f'a volume {name!r}')
            number = take_number(db, 'next_volume')
            db.execute(
                'INSERT INTO volume VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, NULL)',
                (number, _take_view(db), stored, *root[:4], now_ns, root[4]),
            )
            return _volume(db, number)

    def volume_discard(self, volume: int) -> None:
        """Remove a volume that never had a commit: its making was refused, so there is nothing to request."""
        with self._catalog.transaction() as db:
            changed = db.execute('DELETE FROM volume WHERE volume = ? AND root IS NULL', (volume,)).rowcount
            assert changed == 1, f'volume {volume} has been committed'

    def volume_rename(self, volume: int, name: str) -> VolumeRow:
        """Give a volume another name."""
        stored = check_name(name, 'volume')
        with self._catalog.transaction() as db:
            _volume(db, volume)
            taken = 'SELECT 1 FROM volume WHERE name = ? AND volume != ?'
            _check_free(db, taken, (stored, volume), f'a volume {name!r}')
            db.execute('UPDATE volume SET name = ? WHERE volume = ?', (stored, volume))
            return _volume(db, volume)

    def volume_delete(
        self, volume: int, who: str, now_ns: int, owner: tuple[int, int] | None = None
    ) -> RequestRow:
        """Turn a volume into a request. Held while it has snapshots: each of them is deleted by its own
        request. `owner`: (uid, gid) of its top directory, if known."""
        with self._catalog.transaction() as db:
            row = _volume(db, volume)
            count = db.execute('SELECT count(*) FROM snapshot WHERE volume = ?', (volume,)).fetchone()[0]
            if count:
                raise Held(f'volume {row.name!r} has {count} snapshots', advice='Delete these first.')
            request = _add_request(db, row, row, '', who, (now_ns, self._catalog.epoch), owner)
            db.execute('DELETE FROM volume WHERE volume = ?', (volume,))
            return request

    def volume_rollback(
        self, volume: int, snapshot: int, safety_name: str, who: str, now_ns: int
    ) -> tuple[VolumeRow, SnapshotRow]:
        """Take a safety snapshot of the committed root, then make the snapshot's root the volume's, with a
        new view number, in one transaction. The caller has committed. Inode numbers in use are never given
        out again."""
        safety = check_name(safety_name, 'snapshot')
        with self._catalog.transaction() as db:
            row = _volume(db, volume)
            target = _snapshot(db, snapshot)
            if target.volume != volume:
                raise Invalid(f'snapshot {target.name!r} is not one of volume {row.name!r}')
            saved = _add_snapshot(db, row, safety, who, now_ns, self._catalog.epoch)
            db.execute(
                'UPDATE volume SET number = ?, root = ?, root_items = ?, root_refs = ?, next_ino = ?, '
                'damaged_ns = ? WHERE volume = ?',
                (
                    _take_view(db),
                    target.root,
                    target.root_items,
                    target.root_refs,
                    max(row.next_ino, target.next_ino),
                    target.damaged_ns,
                    volume,
                ),
            )
            return _volume(db, volume), saved

    # --- snapshots ---------------------------------------------------------------------------------------
    def snapshots(self, volume: int | None = None) -> list[SnapshotRow]:
        """Return the snapshots of a volume, or all, oldest first."""
        if volume is None:
            rows = self._catalog.query('SELECT * FROM snapshot ORDER BY number')
        else:
            rows = self._catalog.query('SELECT * FROM snapshot WHERE volume = ? ORDER BY number', (volume,))
        return [snapshot_row(row) for row in rows]

    def snapshot_add(self, volume: int, name: str, who: str, now_ns: int) -> SnapshotRow:
        """Name the committed root of a volume. The caller has committed."""
        stored = check_name(name, 'snapshot')
        with self._catalog.transaction() as db:
            return _add_snapshot(db, _volume(db, volume), stored, who, now_ns, self._catalog.epoch)

    def snapshot_rename(self, number: int, name: str) -> SnapshotRow:
        """Give a snapshot another name in its volume."""
        stored = check_name(name, 'snapshot')
        with self._catalog.transaction() as db:
            row = _snapshot(db, number)
            taken = 'SELECT 1 FROM snapshot WHERE volume = ? AND name = ? AND number != ?'
            _check_free(db, taken, (row.volume, stored, number), f'a snapshot {name!r}')
            db.execute('UPDATE snapshot SET name = ? WHERE number = ?', (stored, number))
            return _snapshot(db, number)

    def snapshot_delete(
        self, number: int, who: str, now_ns: int, owner: tuple[int, int] | None = None
    ) -> RequestRow:
        """Turn a snapshot into a request. Held, naming the holds, while one of them holds. `owner`: (uid,
        gid) of its top directory, if known."""
        with self._catalog.transaction() as db:
            row = _snapshot(db, number)
            holds = [hold for hold in _holds(db, number) if hold.until_ns is None or hold.until_ns > now_ns]
            if holds:
                names = ', '.join(f'{hold.name!r} of {hold.who}' for hold in holds)
                raise Held(f'snapshot {row.name!r} is held: {names}', advice='Release the holds first.')
            times = now_ns, self._catalog.epoch
            request = _add_request(db, row, _volume(db, row.volume), row.name, who, times, owner)
            db.execute('DELETE FROM hold WHERE snapshot = ?', (number,))  # those that have ended
            db.execute('DELETE FROM snapshot WHERE number = ?', (number,))
            return request

    def mark_damaged(self, view: int, now_ns: int) -> None:
        """Note that a read of this volume or snapshot (by view number) found a chunk missing or wrong."""
        with self._catalog.transaction() as db:
            for table in ('volume', 'snapshot'):
                db.execute(
                    f'UPDATE {table} SET damaged_ns = ? WHERE number = ? AND damaged_ns IS NULL',
                    (now_ns, view),
                )

    # --- holds -------------------------------------------------------------------------------------------
    def holds(self, snapshot: int | None = None) -> list[HoldRow]:
        """Return the holds of a snapshot, or all; also those whose end has passed."""
        if snapshot is None:
            return [
                hold_row(row) for row in self._catalog.query('SELECT * FROM hold ORDER BY snapshot, name')
            ]
        rows = self._catalog.query('SELECT * FROM hold WHERE snapshot = ? ORDER BY name', (snapshot,))
        return [hold_row(row) for row in rows]

    def hold_add(self, hold: HoldRow) -> HoldRow:
        """Add a hold; return it as stored."""
        stored = check_name(hold.name, 'hold')
        with self._catalog.transaction() as db:
            _snapshot(db, hold.snapshot)
            if len(_holds(db, hold.snapshot)) >= limits.HOLDS_PER_SNAPSHOT_MAX:
                raise Refused(errno.ENOSPC, f'a snapshot has at most {limits.HOLDS_PER_SNAPSHOT_MAX} holds')
            taken = 'SELECT 1 FROM hold WHERE snapshot = ? AND name = ?'
            _check_free(db, taken, (hold.snapshot, stored), f'a hold {hold.name!r}')
            who, why = clean_text(hold.who), clean_text(hold.why)
            values = (hold.snapshot, stored, who, why, hold.created_ns, hold.until_ns)
            db.execute('INSERT INTO hold VALUES (?, ?, ?, ?, ?, ?)', values)
        return hold_row(values)

    def hold_release(self, snapshot: int, name: str) -> None:
        """Remove a hold."""
        with self._catalog.transaction() as db:
            values = (snapshot, encode_name(name))
            if db.execute('DELETE FROM hold WHERE snapshot = ? AND name = ?', values).rowcount != 1:
                raise Refused(errno.ENOENT, f'there is no hold {name!r}')

    # --- requests ----------------------------------------------------------------------------------------
    def requests(self) -> list[RequestRow]:
        """Return all requests, oldest first."""
        return [request_row(row) for row in self._catalog.query('SELECT * FROM request ORDER BY number')]

    def kept_requests(self) -> list[RequestRow]:
        """Return the requests that can be taken back, oldest first: few, beside what commits drop."""
        text = 'SELECT * FROM request WHERE kind IN (?, ?) ORDER BY number'
        return [request_row(row) for row in self._catalog.query(text, KEPT_KINDS)]

    def request_groups(self) -> list[RequestGroup]:
        """Return all other requests that are in no batch, added up by kind and volume. There may be one for
        every commit."""
        rows = self._catalog.query(
            'SELECT kind, volume, max(volume_name), count(*), min(requested_ns), max(requested_ns), '
            'iif(count(bytes) = count(*), sum(bytes), NULL) FROM request '
            'WHERE kind NOT IN (?, ?) AND batch IS NULL GROUP BY kind, volume ORDER BY kind, volume',
            KEPT_KINDS,
        )
        return [RequestGroup(kind, volume, decode_name(name), *rest) for kind, volume, name, *rest in rows]

    def request_part(self, number: int) -> RequestPart:
        """Return what the request of kind 'dropped' names."""
        found: dict[str, list[bytes]] = {'chunks': [], 'subtrees': []}
        rows = self._catalog.query(
            'SELECT kind, ids FROM request_part WHERE request = ? ORDER BY part', (number,)
        )
        for kind, ids in rows:
            found[kind] += [ids[n : n + limits.ID_BYTES] for n in range(0, len(ids), limits.ID_BYTES)]
        volume = self._catalog.query('SELECT volume FROM request WHERE number = ?', (number,))
        if not volume:
            raise Refused(errno.ENOENT, f'there is no request {number}')
        return RequestPart(volume[0][0], tuple(found['chunks']), tuple(found['subtrees']))

    def snapshot_undelete(
        self, number: int, name: str | None = None, volume: int | None = None
    ) -> SnapshotRow:
        """Take a request for a snapshot back: same root, same view number; in its own volume or in another
        one, under its own name or a new one."""
        with self._catalog.transaction() as db:
            request = _takeback(db, number, 'snapshot')
            stored = check_name(request.name if name is None else name, 'snapshot')
            owner = _volume(db, request.volume if volume is None else volume)
            _check_free(
                db,
                'SELECT 1 FROM snapshot WHERE volume = ? AND name = ?',
                (owner.volume, stored),
                f'a snapshot {name or request.name!r}',
            )
            db.execute(
                'INSERT INTO snapshot SELECT view, ?, ?, root, root_items, root_refs, next_ino, root_epoch, '
                'created_ns, created_by, NULL FROM request WHERE number = ?',
                (owner.volume, stored, number),
            )
            db.execute('DELETE FROM request WHERE number = ?', (number,))
            return _snapshot(db, request.view)

    def volume_undelete(self, number: int, name: str | None = None) -> VolumeRow:
        """Take a request for a volume back: same root, same numbers, under its own name or a new one."""
        with self._catalog.transaction() as db:
            request = _takeback(db, number, 'volume')
            stored = check_name(request.volume_name if name is None else name, 'volume')
            taken = 'SELECT 1 FROM volume WHERE name = ?'
            _check_free(db, taken, (stored,), f'a volume {name or request.volume_name!r}')
            db.execute(
                'INSERT INTO volume SELECT volume, view, ?, root, root_items, root_refs, next_ino, '
                'created_ns, origin, NULL FROM request WHERE number = ?',
                (stored, number),
            )
            db.execute('DELETE FROM request WHERE number = ?', (number,))
            return _volume(db, request.volume)


def _check_free(db: sqlite3.Connection, query: str, values: tuple[object, ...], what: str) -> None:
    if db.execute(query, values).fetchone() is not None:
        raise Refused(errno.EEXIST, f'there is {what} already')


def _take_view(db: sqlite3.Connection) -> int:
    view = take_number(db, 'next_view')
    if view > limits.VIEW_MAX:
        raise Refused(errno.ENOSPC, f'all {limits.VIEW_MAX} view numbers of this store have been used')
    return view


def _volume(db: sqlite3.Connection, volume: int) -> VolumeRow:
    row = db.execute('SELECT * FROM volume WHERE volume = ?', (volume,)).fetchone()
    if row is None:
        raise Refused(errno.ENOENT, 'there is no such volume')
    return volume_row(row)


def _snapshot(db: sqlite3.Connection, number: int) -> SnapshotRow:
    row = db.execute('SELECT * FROM snapshot WHERE number = ?', (number,)).fetchone()
    if row is None:
        raise Refused(errno.ENOENT, 'there is no such snapshot')
    return snapshot_row(row)


def _holds(db: sqlite3.Connection, snapshot: int) -> list[HoldRow]:
    return [
        hold_row(row) for row in db.execute('SELECT * FROM hold WHERE snapshot = ?', (snapshot,)).fetchall()
    ]


def _add_snapshot(
    db: sqlite3.Connection, volume: VolumeRow, stored: bytes, who: str, now_ns: int, epoch: int
) -> SnapshotRow:
    taken = 'SELECT 1 FROM snapshot WHERE volume = ? AND name = ?'
    _check_free(db, taken, (volume.volume, stored), f'a snapshot {stored.decode(errors="replace")!r}')
    number = _take_view(db)
    root = (volume.root, volume.root_items, volume.root_refs, volume.next_ino)
    db.execute(
        'INSERT INTO snapshot VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)',
        (number, volume.volume, stored, *root, epoch, now_ns, clean_text(who), volume.damaged_ns),
    )
    return _snapshot(db, number)


def _add_request(
    db: sqlite3.Connection,
    row: VolumeRow | SnapshotRow,
    volume: VolumeRow,
    name: str,
    who: str,
    times: tuple[int, int],
    owner: tuple[int, int] | None,
) -> RequestRow:
    number, (now_ns, epoch) = take_number(db, 'next_request'), times
    if isinstance(row, SnapshotRow):
        kind, root_epoch, created_by, origin = 'snapshot', row.epoch, row.who, None
    else:
        kind, root_epoch, created_by, origin = 'volume', epoch, '', row.origin
    values = (
        number,
        kind,
        volume.volume,
        encode_name(volume.name),
        encode_name(name),
        row.number,
        row.root,
        row.root_items,
        row.root_refs,
        row.next_ino,
        root_epoch,
        row.created_ns,
        created_by,
        origin,
        now_ns,
        clean_text(who),
        epoch,
        None,
        None,
        *(owner or (None, None)),
    )
    db.execute(f'INSERT INTO request VALUES ({",".join("?" * len(values))})', values)
    return request_row(values)


def _takeback(db: sqlite3.Connection, number: int, kind: str) -> RequestRow:
    row = db.execute('SELECT * FROM request WHERE number = ? AND kind = ?', (number, kind)).fetchone()
    if row is None:
        raise Refused(errno.ENOENT, f'there is no request {number} for a {kind}')
    request = request_row(row)
    if request.batch is not None:
        # A batch that works on it must be ended first, by the collector; a row taken away under it would be
        # believed.
        raise Held(f'request {number} is being worked on by batch {request.batch}')
    return request
