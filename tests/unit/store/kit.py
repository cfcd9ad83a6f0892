"""What the tests of the store share."""

from __future__ import annotations

import random

from snapfs.format.journal import VolumeDelta, encode_record_frames
from snapfs.format.records import RecordKind
from snapfs.store.catalog import Commit, HeadUpdate
from snapfs.store.store import Store


def plains_of(seed: int, count: int, size: int = 3000) -> list[bytes]:
    """Different contents, of which half compress."""
    chance = random.Random(seed)
    return [
        chance.randbytes(size) if n % 2 else (b'%d %d ' % (seed, n) * size)[: size + n % 5]
        for n in range(count)
    ]


def commit(store: Store, heads: tuple[HeadUpdate, ...] = (), sequence: int | None = None) -> int:
    """Sync, and commit everything put so far."""
    store.chunks.sync()
    rows = store.chunks.commit_rows()
    sequence = store.journal.last_sequence if sequence is None else sequence
    epoch = store.catalog.commit(Commit(heads, rows.chunks, rows.packs, (), sequence, store.world.time_ns()))
    store.chunks.committed(rows)
    return epoch


def record(store: Store, mark: int) -> int:
    """Write and sync a journal record that names all new chunks and carries `mark`; return its sequence."""
    sequence = append(store, mark)
    store.journal.sync()
    return sequence


def append(store: Store, mark: int) -> int:
    """As `record`, without syncing the journal; what was appended before is durable then."""
    store.journal.sync()
    store.chunks.sync()
    sequence = store.journal.last_sequence + 1
    deltas = [VolumeDelta(1, mark)]  # any number will do as a mark
    frames = encode_record_frames(sequence, store.chunks.take_new(), deltas, store.superblock.uuid)
    store.journal.append(sequence, frames)
    return sequence


def marks(frames: list) -> list[int]:
    """The marks of a replayed record."""
    return [delta.next_ino for frame in frames for delta in frame.volumes]


def replayed(store: Store) -> list[int]:
    """The marks of all records to be replayed, in order; adopts their chunks."""
    found = []
    for frames in store.journal.replay(store.committed_sequence):
        found += marks(frames)
        for frame in frames:
            store.chunks.adopt(frame.chunks)
    return found


def put(store: Store, plains: list[bytes], kind: RecordKind = RecordKind.DATA) -> list[bytes]:
    return store.chunks.put_batch(kind, plains)


def index(store: Store) -> list[bytes]:
    """Every id in the index."""
    return [row[0] for row in store.catalog.query('SELECT id FROM chunk')]
