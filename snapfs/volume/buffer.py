"""L4 buffer: the bytes of one file that are written and not yet in packs. Event loop only; no I/O.

A buffer is a sorted list of disjoint pieces. A piece is `bytes` as they came from the kernel until something
lands inside it or right behind it; then it becomes a `bytearray`. A buffer that is being flushed is frozen:
nobody writes to it any more, so a worker thread may read it.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right

from snapfs import limits

Range = tuple[int, int]

# What one piece costs beside its bytes, so that a million writes of one byte meet the memory limit too.
PIECE_OVERHEAD_BYTES = 256
PIECE_BYTES_MAX = 1 * limits.MIB
FRESH_RANGES_MAX = 64


class Buffer:
    """Bytes by file offset; `bytes` is their number, `cost` what they take of the memory limit."""

    __slots__ = ('bytes', 'fresh', 'logged', 'pieces', 'starts')

    def __init__(self) -> None:
        self.starts: list[int] = []
        self.pieces: list[bytes | bytearray] = []
        self.bytes = 0
        self.fresh: list[Range] = []  # written since the last journal record
        self.logged = False  # some of the bytes stand in the journal

    @property
    def cost(self) -> int:
        """Return the bytes of memory this buffer is charged with."""
        return self.bytes + len(self.starts) * PIECE_OVERHEAD_BYTES

    def end(self) -> int:
        """Return the offset behind the last byte; 0 when empty."""
        return self.starts[-1] + len(self.pieces[-1]) if self.starts else 0

    def write(self, offset: int, data: bytes) -> None:
        """Lay `data` (not empty) over what is there."""
        starts = self.starts
        end = offset + len(data)
        if not starts:
            starts.append(offset)
            self.pieces.append(data)
            self.bytes = len(data)
        else:
            last = self.pieces[-1]
            last_end = starts[-1] + len(last)
            if offset == last_end:
                self._append(last, offset, data)
            elif offset > last_end:
                starts.append(offset)
                self.pieces.append(data)
                self.bytes += len(data)
            else:
                self._overlay(offset, end, data)
        fresh = self.fresh
        if fresh and fresh[-1][1] == offset:
            fresh[-1] = (fresh[-1][0], end)
        else:
            fresh.append((offset, end))
            if len(fresh) > FRESH_RANGES_MAX + 2 * len(starts):
                self.fresh = merge_ranges(fresh)

    def _append(self, last: bytes | bytearray, offset: int, data: bytes) -> None:
        if len(last) + len(data) > PIECE_BYTES_MAX:
            self.starts.append(offset)
            self.pieces.append(data)
        elif isinstance(last, bytearray):
            last += data
        else:
            grown = bytearray(last)
            grown += data
            self.pieces[-1] = grown
        self.bytes += len(data)

    def _overlay(self, offset: int, end: int, data: bytes) -> None:
        index = bisect_right(self.starts, offset) - 1
        if index >= 0:
            start, piece = self.starts[index], self.pieces[index]
            if end <= start + len(piece):
                if not isinstance(piece, bytearray):
                    piece = self.pieces[index] = bytearray(piece)
                piece[offset - start : end - start] = data
                return
        self._remove(offset, end)
        index = bisect_left(self.starts, offset)
        self.starts.insert(index, offset)
        self.pieces.insert(index, data)
        self.bytes += len(data)

    def discard(self, start: int, end: int) -> bool:
        """Drop the bytes in [start, end); return whether there were any."""
        before = self.bytes
        self._remove(start, end)
        if self.fresh:
            self.fresh = subtract_range(self.fresh, start, end)
        return self.bytes != before

    def _remove(self, start: int, end: int) -> None:
        starts, pieces = self.starts, self.pieces
        first = bisect_right(starts, start) - 1
        if first < 0 or starts[first] + len(pieces[first]) <= start:
            first += 1
        stop = bisect_left(starts, end, lo=max(first, 0))
        if first >= stop:
            return
        kept_starts: list[int] = []
        kept_pieces: list[bytes | bytearray] = []
        head_start, head = starts[first], pieces[first]
        tail_start, tail = starts[stop - 1], pieces[stop - 1]
        if head_start < start:
            kept_starts.append(head_start)
            kept_pieces.append(head[: start - head_start])
        if tail_start + len(tail) > end:
            kept_starts.append(end)
            kept_pieces.append(tail[end - tail_start :])
        removed = sum(map(len, pieces[first:stop])) - sum(map(len, kept_pieces))
        starts[first:stop] = kept_starts
        pieces[first:stop] = kept_pieces
        self.bytes -= removed

    def overlaps(self, start: int, end: int) -> bool:
        """Return whether any byte of [start, end) is here."""
        index = bisect_left(self.starts, end) - 1
        return index >= 0 and self.starts[index] + len(self.pieces[index]) > start

    def covers(self, start: int, end: int) -> bool:
        """Return whether one piece holds all bytes of [start, end)."""
        index = bisect_right(self.starts, start) - 1
        return index >= 0 and end <= self.starts[index] + len(self.pieces[index])

    def whole(self, start: int, end: int) -> bytes | bytearray | memoryview | None:
        """Return the bytes of [start, end), not empty, if all of them are here, else None.

        What one piece has is not copied: that piece must not change while the answer is in use.
        """
        starts, pieces = self.starts, self.pieces
        parts: list[bytes | bytearray | memoryview] = []
        position, index = start, bisect_right(starts, start) - 1
        while position < end:
            if not 0 <= index < len(starts) or starts[index] > position:
                return None
            piece, low = pieces[index], starts[index]
            high = low + len(piece)
            if high <= position:
                return None
            if low == position and high <= end:
                parts.append(piece)
            else:
                parts.append(memoryview(piece)[position - low : end - low])
            position, index = high, index + 1
        return parts[0] if len(parts) == 1 else b''.join(parts)

    def copy_into(self, target: bytearray, offset: int) -> None:
        """Lay the bytes held here over `target`, which stands for the file from `offset` on."""
        end = offset + len(target)
        index = max(bisect_right(self.starts, offset) - 1, 0)
        for position in range(index, len(self.starts)):
            start = self.starts[position]
            if start >= end:
                break
            piece = self.pieces[position]
            low = max(start, offset)
            high = min(start + len(piece), end)
            if low < high:
                target[low - offset : high - offset] = memoryview(piece)[low - start : high - start]

    def runs(self) -> list[Range]:
        """Return the contiguous stretches held here, in order."""
        return merge_ranges(
            [(start, start + len(piece)) for start, piece in zip(self.starts, self.pieces, strict=True)]
        )

    def take_fresh(self) -> list[tuple[int, bytes]]:
        """Return what was written since the last call as (offset, bytes) and count it as logged."""
        result: list[tuple[int, bytes]] = []
        for start, end in merge_ranges(self.fresh):
            copy = bytearray(end - start)
            self.copy_into(copy, start)
            result.append((start, bytes(copy)))
        if result:
            self.logged = True
        self.fresh = []
        return result

    def unlog(self, start: int, end: int) -> None:
        """Count what is still here of [start, end) as fresh again: the record that had it came to nothing."""
        for position in range(max(bisect_right(self.starts, start) - 1, 0), len(self.starts)):
            low = self.starts[position]
            if low >= end:
                break
            high = low + len(self.pieces[position])
            if high > start:
                self.fresh.append((max(low, start), min(high, end)))

    def fresh_bytes(self) -> int:
        """Return an upper bound of the bytes `take_fresh` would return."""
        return sum(end - start for start, end in self.fresh)

    def laid_over(self, newer: Buffer | None) -> Buffer:
        """Return this buffer with a newer one laid over it: what a flush that failed leaves. Both
        end here.
        """
        # What failed may hold on to views of the pieces (its traceback does): a bytearray could not grow.
        self.pieces = [bytes(piece) for piece in self.pieces]
        if newer is not None:
            for start, piece in zip(newer.starts, newer.pieces, strict=True):
                self.write(start, bytes(piece))
            self.logged = self.logged or newer.logged
        return self


def merge_ranges(ranges: list[Range]) -> list[Range]:
    """Return the same bytes as sorted ranges that neither overlap nor touch."""
    result: list[Range] = []
    for start, end in sorted(ranges):
        if result and start <= result[-1][1]:
            if end > result[-1][1]:
                result[-1] = (result[-1][0], end)
        else:
            result.append((start, end))
    return result


def subtract_range(ranges: list[Range], start: int, end: int) -> list[Range]:
    """Return `ranges` without the bytes of [start, end)."""
    result: list[Range] = []
    for low, high in ranges:
        if low < start:
            result.append((low, min(high, start)))
        if high > end:
            result.append((max(low, end), high))
    return [(low, high) for low, high in result if low < high]
