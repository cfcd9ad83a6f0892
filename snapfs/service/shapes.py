"""L6 shapes: what the rows of a store look like in JSON. Pure. The names here are an interface for scripts.

Times are nanoseconds since 1970 (`…_ns`), sizes bytes, ids hexadecimal, absent values null.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from snapfs.store.rows import HoldRow, IncidentRow, RequestRow, SnapshotRow, VolumeRow
from snapfs.store.verified import Coverage

if TYPE_CHECKING:
    from snapfs.collect.overview import Resting
    from snapfs.collect.plan import Plan
    from snapfs.collect.recount_values import Recount
    from snapfs.collect.states import BatchRow
    from snapfs.service.collecting import Waiting

Object = dict[str, Any]


def volume(row: VolumeRow, snapshots: int) -> Object:
    """A volume, and how many snapshots it has."""
    return {
        'name': row.name,
        'number': row.number,
        'created_ns': row.created_ns,
        'snapshots': snapshots,
        'items': row.root_items,
        'root': hexadecimal(row.root),
        'damaged_ns': row.damaged_ns,
    }


def snapshot(volume_name: str, row: SnapshotRow, holds: Iterable[HoldRow], coverage: Coverage) -> Object:
    """A snapshot with its holds, and how much of it was verified since when."""
    verified = coverage.of(row.epoch)
    name = f'{volume_name}@{row.name}'
    return {
        'snapshot': name,
        'volume': volume_name,
        'name': row.name,
        'number': row.number,
        'created_ns': row.created_ns,
        'who': row.who,
        'epoch': row.epoch,
        'items': row.root_items,
        'root': hexadecimal(row.root),
        'damaged_ns': row.damaged_ns,
        'verified_percent': verified.percent,
        'verified_ns': verified.since_ns,
        'holds': [hold(name, one) for one in holds],
    }


def hold(snapshot_name: str, row: HoldRow) -> Object:
    """A hold."""
    return {
        'snapshot': snapshot_name,
        'name': row.name,
        'who': row.who,
        'why': row.why,
        'created_ns': row.created_ns,
        'until_ns': row.until_ns,
    }


def request(row: RequestRow, names: Mapping[int, str]) -> Object:
    """A request to delete. `names`: what the volumes are called now, by stable number."""
    volume_name = names.get(row.volume, row.volume_name)
    return {
        'number': row.number,
        'kind': row.kind,
        'what': f'{volume_name}@{row.name}' if row.kind == 'snapshot' else volume_name,
        'volume': volume_name,
        'name': row.name,
        'created_ns': row.created_ns,
        'requested_ns': row.requested_ns,
        'who': row.who,
        'bytes': row.bytes,
        'root': hexadecimal(row.root),
        'batch': row.batch,
    }


def hexadecimal(value: bytes | None) -> str | None:
    """Return an id as text."""
    return None if value is None else value.hex()


# --- deletion --------------------------------------------------------------------------------------------
def batch(row: BatchRow) -> Object:
    """A batch."""
    return {
        'batch': row.number,
        'state': row.state,
        'class': row.grace_class,
        'digest': row.digest.hex(),
        'chunks': row.chunks,
        'bytes': row.stored_bytes,
        'freed_chunks': row.freed,
        'grace_ns': row.grace_ns,
        'planned_ns': row.planned_ns,
        'quarantined_ns': row.quarantined_ns,
        'confirmed_ns': row.confirmed_ns,
        'ended_ns': row.ended_ns,
        'released_by': row.released_by,
        'reason': row.reason,
    }


def resting(one: Resting) -> Object:
    """A batch on its way, with its requests and when its bytes can come back."""
    return {
        **batch(one.row),
        'where': one.state,
        'earliest_ns': one.earliest_ns,
        'requests': [{'number': number, 'what': what} for number, what in one.requests],
        'requests_count': one.count,
    }


def plan(made: Plan) -> Object:
    """What a plan would do. Frozen: `digest` is the one to approve."""
    return {
        'class': made.grace_class,
        'grace_ns': made.grace_ns,
        'requests': [
            {
                'number': one.number,
                'kind': one.kind,
                'what': one.name,
                'who': one.who,
                'bytes': one.bytes_back,
            }
            for one in made.requests
        ],
        'candidates': made.candidates,
        'chunks': made.condemned,
        'bytes': made.condemned_bytes,
        'returned': made.returned,
        'kept': [
            {'name': one.name, 'chunks': one.chunks, 'bytes': one.stored_bytes}
            for one in made.kept
            if one.chunks
        ],
        'store_bytes': made.store_bytes,
        'horizon': made.horizon,
        'second_person': made.second_person,
    }


def waiting(one: Waiting) -> Object:
    """A plan that waits for an approval."""
    return {**plan(one.plan), 'digest': one.plan.digest.hex(), 'reasons': list(one.reasons)}


def figures(found: Recount) -> Object:
    """How much a recount would free."""
    return {'chunks': found.condemned, 'bytes': found.condemned_bytes}


def kept(found: Recount) -> list[Object]:
    """What stays, by the first root that keeps it. `shared`: references in whole subtrees that were not gone
    into, since all of them stay."""
    return [
        {'name': one.name, 'chunks': one.chunks, 'bytes': one.bytes, 'shared': one.shared}
        for one in found.kept
        if one.chunks or one.shared
    ]


def incident(row: IncidentRow) -> Object:
    """An incident."""
    return {
        'number': row.number,
        'scope': row.scope,
        'opened_ns': row.opened_ns,
        'reason': row.reason,
        'batch': row.batch,
        'acknowledged_ns': row.acknowledged_ns,
        'acknowledged_by': row.acknowledged_by,
    }
