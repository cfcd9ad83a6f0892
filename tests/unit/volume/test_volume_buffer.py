"""The buffer against a bytearray and a mask."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from snapfs.volume import buffer as module
from snapfs.volume.buffer import Buffer, merge_ranges, subtract_range

SPAN = 60
RANGE = st.tuples(st.integers(0, SPAN - 1), st.integers(1, 20)).map(lambda r: (r[0], min(r[0] + r[1], SPAN)))
STEP = st.tuples(st.sampled_from(['write', 'discard', 'log', 'unlog']), RANGE)


class Model:
    """What a buffer holds, and which of it no record has."""

    def __init__(self) -> None:
        self.data = bytearray(SPAN)
        self.here = [False] * SPAN
        self.fresh = [False] * SPAN

    def runs(self) -> list[tuple[int, int]]:
        return merge_ranges([(at, at + 1) for at in range(SPAN) if self.here[at]])


def check(found: Buffer, model: Model) -> None:
    assert found.bytes == sum(model.here)
    assert found.runs() == model.runs()
    assert found.cost == found.bytes + len(found.starts) * module.PIECE_OVERHEAD_BYTES
    assert found.end() == max((at + 1 for at in range(SPAN) if model.here[at]), default=0)
    seen = bytearray(b'\xee' * (SPAN - 7))
    found.copy_into(seen, 3)
    for at, byte in enumerate(seen, 3):
        assert byte == (model.data[at] if model.here[at] else 0xEE)
    for start, end in ((0, 5), (9, 30), (55, 60)):
        assert found.overlaps(start, end) == any(model.here[start:end])
        assert not found.covers(start, end) or all(model.here[start:end])
    for start, end in [(0, 5), (9, 30), (55, 60), (3, 4), *model.runs()]:
        whole = found.whole(start, end)
        assert whole == (model.data[start:end] if all(model.here[start:end]) else None)
    fresh = [False] * SPAN
    for start, end in found.fresh:
        fresh[start:end] = [True] * (end - start)
    assert fresh == model.fresh
    assert found.fresh_bytes() >= sum(fresh)


@settings(max_examples=300, deadline=None)
@given(st.lists(STEP, max_size=25), st.booleans())
def test_a_buffer_is_a_bytearray_with_a_mask(steps: list[tuple[str, tuple[int, int]]], small: bool) -> None:
    keep = module.PIECE_BYTES_MAX
    module.PIECE_BYTES_MAX = 16 if small else keep
    try:
        found, model = Buffer(), Model()
        for number, (what, (start, end)) in enumerate(steps, 1):
            count = end - start
            if what == 'write':
                found.write(start, bytes([number]) * count)
                model.data[start:end] = bytes([number]) * count
                model.here[start:end] = model.fresh[start:end] = [True] * count
            elif what == 'discard':
                assert found.discard(start, end) == any(model.here[start:end])
                model.here[start:end] = model.fresh[start:end] = [False] * count
            elif what == 'log':
                taken = found.take_fresh()
                assert found.logged or not taken
                assert sum(len(data) for _, data in taken) == sum(model.fresh)
                for offset, data in taken:
                    assert data == model.data[offset : offset + len(data)]
                model.fresh = [False] * SPAN
            else:
                found.unlog(start, end)
                for at in range(start, end):
                    model.fresh[at] = model.fresh[at] or model.here[at]
            check(found, model)
    finally:
        module.PIECE_BYTES_MAX = keep


def test_a_newer_buffer_lies_over_an_older_one() -> None:
    older, newer = Buffer(), Buffer()
    older.write(0, b'aaaa')
    newer.write(2, b'bbbb')
    newer.take_fresh()
    result = older.laid_over(newer)
    seen = bytearray(6)
    result.copy_into(seen, 0)
    assert (bytes(seen), result.logged) == (b'aabbbb', True)
    assert result.laid_over(None) is result


def test_the_list_of_fresh_ranges_is_bounded() -> None:
    buffer = Buffer()
    for number in range(10_000):
        buffer.write(number % 2 * 10, b'x')
    assert len(buffer.fresh) <= module.FRESH_RANGES_MAX + 2 * len(buffer.starts)


def test_a_range_is_taken_out_of_ranges() -> None:
    assert subtract_range([(0, 10), (20, 30), (40, 41)], 5, 25) == [(0, 5), (25, 30), (40, 41)]
    assert subtract_range([(0, 10)], 2, 4) == [(0, 2), (4, 10)]
