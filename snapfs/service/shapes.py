"""L6 shapes: what the rows of a store look like in JSON. Pure. The names here are an interface for scripts.

Times are nanoseconds since 1970 (`…_ns`), sizes bytes, ids hexadecimal, absent values null.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from snapfs.store.rows import HoldRow, RequestRow, SnapshotRow, VolumeRow

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


def snapshot(volume_name: str, row: SnapshotRow, holds: Iterable[HoldRow]) -> Object:
    """A snapshot with its holds."""
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
