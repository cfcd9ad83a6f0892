"""L4 presence: whether chunks are where the index says. Blocking; one thread.

Three depths. *Known*: the index has a place, the pack there is long enough, and nothing else is known.
*Present*: the header of the record is read as well, and is of this chunk and of this length: so much of a
record readers demand before they look at its payload. A short record is read whole and hashed: it costs no
more, measured on small files, than to read the headers around it. *Read*: every payload is read and hashed.
So what a look costs by default is bounded for each chunk, however long files are. Records are looked at in
the order of their places, neighbours in one read."""

from __future__ import annotations

from collections.abc import Mapping

from snapfs import limits
from snapfs.errors import Corrupt
from snapfs.format.records import HEADER_BYTES, RecordHeader, decode_header, decode_payload
from snapfs.rescue.reader import Place, Reader
from snapfs.rescue.recover_values import Depth


class Presence:
    """Whether chunks are there. `bytes`: of data that were read and hashed; `unhashed`: chunks that were not,
    and are there as far as it was looked."""

    def __init__(self, reader: Reader, depth: Depth = Depth.KNOWN) -> None:
        self._reader = reader
        self._depth = depth
        self._known = {id for (id,) in reader.query('SELECT id FROM damage')}
        self._ends = reader.pack_ends()
        self.bytes = self.unhashed = 0

    def plain(self, id: bytes, place: Place | None) -> bytes:
        """Return the bytes of a chunk that is at this place. Corrupt, OSError."""
        if place is None:
            raise Corrupt('it is not in the index')
        record = self._reader.read(place.pack, HEADER_BYTES + place.stored, place.offset)
        return _plain(memoryview(record), place)

    def why(self, id: bytes, place: Place | None) -> str:
        """Say why a chunk of data is known to be lost; nothing when it is not."""
        if place is None:
            return 'it is not in the index'
        if id in self._known and self._unreadable(place):
            return 'it was found missing or wrong'
        if place.offset + HEADER_BYTES + place.stored > self._ends.get(place.pack, 0):
            return f'{self._reader.name_of(place.pack)} is missing or too short'
        return ''

    def lost(self, places: Mapping[bytes, Place | None]) -> dict[bytes, str]:
        """Return which of these chunks of data are lost, and why, as far as the depth shows it."""
        bad: dict[bytes, str] = {}
        there: list[Place] = []
        for id, place in places.items():
            why = self.why(id, place)
            if why:
                bad[id] = why
            elif place is not None:
                there.append(place)
        self.unhashed += sum(not self._hashes(place) for place in there)
        if self._depth > Depth.KNOWN:
            there.sort()
            start = 0
            while start < len(there):
                end = self._run_end(there, start)
                bad.update(self._look(there[start:end]))
                start = end
        return bad

    def _size(self, place: Place) -> int:
        """Return how much of a record is looked at."""
        return HEADER_BYTES + (place.stored if self._hashes(place) else 0)

    def _hashes(self, place: Place) -> bool:
        short = self._depth == Depth.PRESENT and place.stored <= limits.READ_GAP_BYTES_MAX
        return short or self._depth == Depth.READ

    def _run_end(self, places: list[Place], start: int) -> int:
        first, end = places[start], start + 1
        while end < len(places):
            one, before = places[end], places[end - 1]
            gap = one.offset - (before.offset + self._size(before))
            far = one.offset + self._size(one) - first.offset > limits.SCRUB_READ_BYTES
            if one.pack != first.pack or gap > limits.READ_GAP_BYTES_MAX or far:
                break
            end += 1
        return end

    def _look(self, run: list[Place]) -> dict[bytes, str]:
        first = run[0]
        end = max(one.offset + self._size(one) for one in run)
        try:
            data = memoryview(self._reader.read(first.pack, end - first.offset, first.offset))
        except (Corrupt, OSError):
            data = memoryview(b'')  # one by one: some of them may be whole
        bad: dict[bytes, str] = {}
        for place in run:
            at = place.offset - first.offset
            record = data[at : at + self._size(place)]
            if self._wrong(record, place) and (why := self._unreadable(place)):
                bad[place.id] = why
        return bad

    def _wrong(self, record: memoryview, place: Place) -> bool:
        try:
            if self._hashes(place):
                self.bytes += len(_plain(record, place))
            else:
                _header(record, place)
        except Corrupt:
            return True
        return False

    def _unreadable(self, place: Place) -> str:
        """Say why a record cannot be read by itself; nothing when it can."""
        try:
            self.bytes += len(self.plain(place.id, place))
        except Corrupt as error:
            return f'its bytes are wrong: {error}'
        except OSError as error:
            return f'its bytes are wrong: {error.strerror or error}'
        return ''


def is_whole(reader: Reader, place: Place) -> bool:
    """Say whether a chunk can be read at this place, and has the bytes it is called by."""
    try:
        _plain(memoryview(reader.read(place.pack, HEADER_BYTES + place.stored, place.offset)), place)
        return True
    except (Corrupt, OSError):
        return False


def _header(record: memoryview, place: Place) -> RecordHeader:
    """Return the header of a record at its place. Corrupt for whatever a reader would not take."""
    header = decode_header(record[:HEADER_BYTES])
    if header.id != place.id or header.stored_length != place.stored:
        raise Corrupt(f'another record stands there: {header.id.hex()}, {header.stored_length} bytes')
    return header


def _plain(record: memoryview, place: Place) -> bytes:
    return decode_payload(_header(record, place), record[HEADER_BYTES : HEADER_BYTES + place.stored])
