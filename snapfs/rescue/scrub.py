"""L4 scrub: reads stored bytes and verifies them. Blocking; in a process of its own (collect/worker.py).

Read is every record that the index or quarantine names. The chunks of a pass are listed first, at one
epoch, and read in the order of their places, neighbours in one call. A record that is not as listed is
looked up once more: repacking may have moved it, or a batch freed it, and neither is damage. Repacking
reads back and verifies what it has copied, and what is committed later is not claimed: so what a slot of an
epoch says of a snapshot of that epoch or of an earlier one stays true wherever its chunks go. A failed read
by itself is told like wrong bytes: this reader cannot tell a disk that is tired from one that has lost
something."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from snapfs import limits
from snapfs.errors import Corrupt
from snapfs.format.records import HEADER_BYTES, decode_header, decode_payload
from snapfs.rescue.reader import Place, Reader
from snapfs.rescue.scrub_values import Bad, Scrubbed, ScrubSpec, Slot
from snapfs.world import World

Progress = Callable[[int, int], None]


@dataclass(slots=True)
class _Count:
    chunks: int = 0
    bytes: int = 0
    bad: int = 0


def scrub(
    spec: ScrubSpec, progress: Progress = lambda done, known: None, world: World | None = None
) -> Scrubbed:
    """Read and verify. Corrupt when the catalog cannot be read: then nothing is known."""
    reader = Reader(spec.store, spec.uuid)
    try:
        return _Scrub(reader, spec, progress, world or World()).run()
    finally:
        reader.close()


class _Scrub:
    def __init__(self, reader: Reader, spec: ScrubSpec, progress: Progress, world: World) -> None:
        self._reader = reader
        self._spec = spec
        self._progress = progress
        self._world = world
        self._counts = {slot: _Count() for slot in spec.slots}
        self._bad: list[Bad] = []
        self._bad_count = 0
        self._read_bytes = 0

    def run(self) -> Scrubbed:
        epoch, places = self._reader.listed(self._spec.slots)
        places.sort()
        total = sum(place.stored + HEADER_BYTES for place in places)
        began = self._world.monotonic()
        start = 0
        while start < len(places):
            end = self._run_end(places, start)
            self._read_run(places[start:end])
            self._progress(self._read_bytes, total)
            self._wait(began)
            start = end
        slots = tuple(Slot(slot, one.chunks, one.bytes, one.bad) for slot, one in self._counts.items())
        return Scrubbed(epoch, slots, tuple(self._bad), self._bad_count)

    def _wait(self, began: float) -> None:
        if self._spec.rate:
            ahead = self._read_bytes / self._spec.rate - (self._world.monotonic() - began)
            if ahead > 0:
                self._world.pause(ahead)

    def _run_end(self, places: list[Place], start: int) -> int:
        first, end = places[start], start + 1
        while end < len(places):
            one, before = places[end], places[end - 1]
            behind = before.offset + HEADER_BYTES + before.stored
            far = one.offset + HEADER_BYTES + one.stored - first.offset > limits.SCRUB_READ_BYTES
            if one.pack != first.pack or one.offset - behind > limits.COLLECT_GAP_BYTES_MAX or far:
                break
            end += 1
        return end

    def _read_run(self, run: list[Place]) -> None:
        first, last = run[0], run[-1]
        size = last.offset + HEADER_BYTES + last.stored - first.offset
        try:
            data = memoryview(self._reader.read(first.pack, size, first.offset))
        except (OSError, Corrupt):
            data = memoryview(b'')  # one by one: some of them may be whole
        for place in run:
            at = place.offset - first.offset
            count = self._counts[int.from_bytes(place.id[:2], 'big') >> 4]
            count.chunks += 1
            count.bytes += HEADER_BYTES + place.stored
            self._read_bytes += HEADER_BYTES + place.stored
            if not _good(data[at : at + HEADER_BYTES + place.stored], place):
                self._again(place, count)

    def _again(self, place: Place, count: _Count) -> None:
        """Look at a chunk by itself, wherever it is now."""
        why = ''
        for now in self._reader.places_of(place.id):
            try:
                data = memoryview(self._reader.read(now.pack, HEADER_BYTES + now.stored, now.offset))
                _verify(data, now)
                return
            except (OSError, Corrupt) as error:
                why = f'{self._reader.name_of(now.pack)} at offset {now.offset}: {_text(error)}'
        if why:  # else nobody has it any more
            count.bad += 1
            self._bad_count += 1
            if len(self._bad) < limits.SCRUB_BAD_MAX:
                self._bad.append(Bad(place.id, why))


def _good(data: memoryview, place: Place) -> bool:
    try:
        _verify(data, place)
        return True
    except Corrupt:
        return False


def _verify(data: memoryview, place: Place) -> None:
    header = decode_header(data)
    if header.id != place.id:
        raise Corrupt(f'another record stands there: {header.id.hex()}')
    decode_payload(header, data[HEADER_BYTES : HEADER_BYTES + header.stored_length])


def _text(error: Exception) -> str:
    return (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
