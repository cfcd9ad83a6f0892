"""Frames are looked for in time that grows with the bytes, whatever heads stand in them."""

import random

import pytest
from crc32c import crc32c

from snapfs import limits
from snapfs.format import crcs, journal
from snapfs.format.journal import FRAME_BODY_BYTES_MAX, JournalFrame, encode_frame, find_frames

UUID = b'u' * 16
WORK_MAX = 40  # bytes read for each byte of the buffer: 2, and 2 blocks for each head of 44 bytes


@pytest.mark.parametrize('seed', range(20))
def test_ranges_are_what_they_are_when_read(seed):
    rng = random.Random(seed)
    data = memoryview(rng.randbytes(rng.randrange(1, 40) * 1000 + rng.randrange(3)))
    ranges = crcs.RangeCrcs(data)
    for _ in range(200):
        start = rng.randrange(len(data) + 1)
        end = rng.choice([len(data), rng.randrange(start, len(data) + 1)])
        before = rng.choice([0, rng.getrandbits(32)])
        assert ranges.crc(start, end, before) == crc32c(data[start:end], before), (seed, start, end)


def false_heads(count: int, length: int) -> bytes:
    head = journal._FRAME.pack(journal.FRAME_MAGIC, length, 7, 0, 0, b'\0' * 3, UUID) + b'\0' * 4
    return head * count


@pytest.mark.parametrize('length', [FRAME_BODY_BYTES_MAX, 100_000, 2000])
def test_false_heads_cost_what_they_take(monkeypatch, length):
    whole = encode_frame(JournalFrame(9), UUID)
    heads = false_heads(limits.MIB // 44, length)
    data = heads + whole + heads + whole + bytes(length)
    work = 0

    def counted(part, crc=0):
        nonlocal work
        work += len(part)
        assert work <= WORK_MAX * len(data), 'more than in proportion'
        return crc32c(part, crc)

    for module in (journal, crcs):
        monkeypatch.setattr(module, 'crc32c', counted)
    found = [(start, end) for start, end, _ in find_frames(data, UUID, 0)]
    first, second = len(heads), 2 * len(heads) + len(whole)
    assert found == [(first, first + len(whole)), (second, second + len(whole))]
