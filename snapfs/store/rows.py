"""L2 rows: the catalog's rows as frozen values. Pure; any thread.

Names are str: the bytes on disk as UTF-8 with surrogateescape, so that every file name survives the round
trip.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from snapfs import limits
from snapfs.errors import Corrupt
from snapfs.format.annotations import fits
from snapfs.format.records import HEADER_BYTES


class Location(NamedTuple):
    """Where a record is: pack number, offset of its header, payload bytes there, bytes after
    decompression."""

    pack: int
    offset: int
    stored_length: int
    plain_length: int

    @property
    def end(self) -> int:
        """Where the record ends in its pack."""
        return self.offset + HEADER_BYTES + self.stored_length


class ChunkRow(NamedTuple):
    """A row of the index, without the epoch: the commit that inserts it knows that."""

    id: bytes
    pack: int
    offset: int
    stored: int
    plain: int
    codec: int
    kind: int


@dataclass(frozen=True, slots=True)
class PackRow:
    """A pack: state is 'open', 'sealed' or 'retired'; `bytes` and `records` count what is durable."""

    pack: int
    name: bytes
    kind: int
    state: str
    bytes: int
    records: int


@dataclass(frozen=True, slots=True)
class CommitRows:
    """What a commit writes about chunks: index rows and packs, all of it durable."""

    chunks: tuple[ChunkRow, ...]
    packs: tuple[PackRow, ...]


@dataclass(frozen=True, slots=True)
class VolumeRow:
    """A volume. `volume` is its stable number; `number` is its view number, new after each rollback."""

    volume: int
    number: int
    name: str
    root: bytes | None
    root_items: int
    root_refs: int
    next_ino: int
    created_ns: int
    origin: int | None
    damaged_ns: int | None


@dataclass(frozen=True, slots=True)
class SnapshotRow:
    """A snapshot. `number` is its view number, `volume` the stable number of its volume."""

    number: int
    volume: int
    name: str
    root: bytes | None
    root_items: int
    root_refs: int
    next_ino: int
    epoch: int
    created_ns: int
    who: str
    damaged_ns: int | None


@dataclass(frozen=True, slots=True)
class HoldRow:
    """A hold on a snapshot. It holds while `until_ns` is None or later than now."""

    snapshot: int
    name: str
    who: str
    why: str
    created_ns: int
    until_ns: int | None


@dataclass(frozen=True, slots=True)
class RequestRow:
    """A wish to delete, of one of the schema's kinds. `view` is the view number that went away."""

    number: int
    kind: str
    volume: int
    volume_name: str
    name: str
    view: int
    root: bytes | None
    root_items: int
    root_refs: int
    next_ino: int
    root_epoch: int
    created_ns: int
    created_by: str
    origin: int | None
    requested_ns: int
    who: str
    epoch: int
    bytes: int | None
    batch: int | None
    owner_user: int | None = None
    owner_group: int | None = None

    @property
    def owner(self) -> tuple[int, int] | None:
        """(uid, gid) of the deleted tree's top directory, or None when it is not known."""
        if self.owner_user is None or self.owner_group is None:
            return None
        return self.owner_user, self.owner_group


@dataclass(frozen=True, slots=True)
class RequestGroup:
    """The requests of one volume (stable number, 0 = none) and of one kind that nobody takes back: what
    commits dropped, and what the collector asks for. `bytes` is None when one of them does not know."""

    kind: str
    volume: int
    volume_name: str
    requests: int
    first_ns: int
    last_ns: int
    bytes: int | None


@dataclass(frozen=True, slots=True)
class RequestPart:
    """What one commit dropped from one volume: single chunks (data and nodes), and tops of whole subtrees."""

    volume: int
    chunks: tuple[bytes, ...]
    subtrees: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class IncidentRow:
    """A latch: scope 'store' (nothing is written) or 'collector' (nothing is deleted). In force until
    acknowledged."""

    number: int
    scope: str
    opened_ns: int
    reason: str
    acknowledged_ns: int | None
    acknowledged_by: str | None
    batch: int | None


@dataclass(frozen=True, slots=True)
class HeadUpdate:
    """A volume's new committed root. `volume` is the stable number."""

    volume: int
    root: bytes | None
    root_items: int
    root_refs: int
    next_ino: int


@dataclass(frozen=True, slots=True)
class Commit:
    """All that one commit makes current at once. `chunks` and `packs` come from `ChunkStore.commit_rows`."""

    heads: Sequence[HeadUpdate]
    chunks: Sequence[ChunkRow]
    packs: Sequence[PackRow]
    dropped: Sequence[RequestPart]
    journal_sequence: int
    time_ns: int


def encode_name(name: str) -> bytes:
    """Return a name as it is stored."""
    return name.encode('utf-8', 'surrogateescape')


def decode_name(stored: bytes) -> str:
    """Return a stored name."""
    return stored.decode('utf-8', 'surrogateescape')


def with_names(values: tuple[Any, ...], *columns: int) -> list[Any]:
    """Return a row with the names in these columns decoded. Corrupt where no name stands."""
    row = list(values)
    for column in columns:
        if type(row[column]) is not bytes:
            raise Corrupt('catalog: a name that is none')
        row[column] = decode_name(row[column])
    return row


def clean_text(text: str) -> str:
    """Return free text (who, why, reason) as SQLite can hold it: what is no character is written out as an
    escape."""
    return text.encode('utf-8', 'backslashreplace').decode('utf-8')


def check_row(row: Any) -> None:
    """Raise Corrupt unless every column of a row from disk is of its type: a page of the catalog that rotted
    may have anything in any column, whatever the schema says."""
    if not fits(row, type(row)):
        raise Corrupt(f'catalog: a {type(row).__name__} with columns of other types')


def check_root(row: VolumeRow | SnapshotRow | RequestRow) -> None:
    """Raise Corrupt when a row from disk has a root that cannot be one, or columns of other types."""
    check_row(row)
    if row.root is not None and len(row.root) != limits.ID_BYTES:
        raise Corrupt(f'catalog: a root of {len(row.root)} bytes')
    if row.root_items < 0 or row.root_refs < 0 or not 0 <= row.next_ino <= limits.INO_MAX + 1:
        raise Corrupt(
            f'catalog: impossible counts of a root: {row.root_items}, {row.root_refs}, {row.next_ino}'
        )
    if row.root is None and (row.root_items or row.root_refs):
        raise Corrupt('catalog: an empty tree with items')


def volume_row(values: tuple[Any, ...]) -> VolumeRow:
    """Return a checked row of the volume table."""
    row = VolumeRow(*with_names(values, 2))
    check_root(row)
    return row


def snapshot_row(values: tuple[Any, ...]) -> SnapshotRow:
    """Return a checked row of the snapshot table."""
    row = SnapshotRow(*with_names(values, 2))
    check_root(row)
    return row


def request_row(values: tuple[Any, ...]) -> RequestRow:
    """Return a checked row of the request table."""
    row = RequestRow(*with_names(values, 3, 4))
    check_root(row)
    return row


def hold_row(values: tuple[Any, ...]) -> HoldRow:
    """Return a checked row of the hold table."""
    row = HoldRow(*with_names(values, 1))
    check_row(row)
    return row


def pack_row(values: tuple[Any, ...]) -> PackRow:
    """Return a checked row of the pack table."""
    row = PackRow(*values)
    check_row(row)
    if len(row.name) != limits.PACK_NAME_BYTES or row.kind not in (1, 2) or row.bytes < 0 or row.records < 0:
        raise Corrupt(f'catalog: impossible row of pack {row.pack}')
    return row
