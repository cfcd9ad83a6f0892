"""Receipts: the round trip, and every way in which a file can be none."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapfs import limits
from snapfs.errors import Corrupt
from snapfs.format.receipts import (
    RECEIPT_HEADER_BYTES,
    RECEIPT_ROW_BYTES,
    ReceiptHeader,
    ReceiptRow,
    decode_receipt_header,
    decode_receipt_rows,
    encode_receipt_header,
    encode_receipt_rows,
)

HEADER = ReceiptHeader(b'u' * 16, 7, b'd' * 32, 3)


def rows_of(seed: int, count: int) -> list[ReceiptRow]:
    chance = random.Random(seed)
    return sorted(
        ReceiptRow(
            chance.randbytes(32),
            chance.randbytes(16),
            chance.randrange(48, 1 << 26),
            chance.randrange(1 << 17),
        )
        for _ in range(count)
    )


def test_a_header_is_read_back_and_counts_its_rows() -> None:
    data = encode_receipt_header(HEADER)
    assert len(data) == RECEIPT_HEADER_BYTES
    assert decode_receipt_header(data, RECEIPT_HEADER_BYTES + 3 * RECEIPT_ROW_BYTES) == HEADER
    for size in (0, 80, 80 + 2 * 60, 80 + 3 * 60 - 1, 80 + 3 * 60 + 1, 80 + 4 * 60):
        with pytest.raises(Corrupt, match='cannot fill'):
            decode_receipt_header(data, size)


def test_every_flipped_bit_and_truncation_of_a_header_is_seen() -> None:
    data = encode_receipt_header(HEADER)
    for bit in range(8 * len(data)):
        odd = bytearray(data)
        odd[bit // 8] ^= 1 << bit % 8
        with pytest.raises(Corrupt, match='receipt'):
            decode_receipt_header(odd, 80 + 3 * 60)
    for length in range(len(data)):
        with pytest.raises(Corrupt, match='receipt'):
            decode_receipt_header(data[:length], 80 + 3 * 60)


def test_rows_are_read_back_piece_by_piece() -> None:
    rows = rows_of(1, 50)
    data = encode_receipt_rows(rows)
    assert len(data) == 50 * RECEIPT_ROW_BYTES
    found: list[ReceiptRow] = []
    for start in range(0, len(data), 7 * RECEIPT_ROW_BYTES):
        previous = found[-1] if found else None
        found += decode_receipt_rows(data[start : start + 7 * RECEIPT_ROW_BYTES], previous)
    assert found == rows
    assert decode_receipt_rows(b'') == []


def test_rows_that_do_not_ascend_are_corrupt_also_across_pieces() -> None:
    rows = rows_of(2, 3)
    for odd in ([rows[1], rows[0]], [rows[0], rows[0]]):
        with pytest.raises(Corrupt, match='does not follow'):
            decode_receipt_rows(encode_receipt_rows(odd))
    for previous, first in ((rows[1], rows[0]), (rows[0], rows[0])):
        with pytest.raises(Corrupt, match='does not follow'):
            decode_receipt_rows(encode_receipt_rows([first]), previous)


@pytest.mark.parametrize(
    'odd',
    [
        {'offset': 47},
        {'offset': limits.PACK_DATA_BYTES_MAX + 1},
        {'stored_length': limits.STORED_BYTES_MAX + 1},
    ],
)
def test_a_place_that_cannot_be_is_corrupt(odd: dict[str, int]) -> None:
    (row,) = rows_of(3, 1)
    with pytest.raises(Corrupt, match='impossible location'):
        decode_receipt_rows(encode_receipt_rows([row._replace(**odd)]))


def test_half_a_row_is_corrupt() -> None:
    with pytest.raises(Corrupt, match='no whole number of rows'):
        decode_receipt_rows(encode_receipt_rows(rows_of(4, 2))[:-1])


@given(st.binary(max_size=400))
def test_any_bytes_are_rows_in_order_or_corrupt(data: bytes) -> None:
    try:
        rows = decode_receipt_rows(data)
    except Corrupt:
        return
    assert all(before < after for before, after in pairwise(rows))
    assert encode_receipt_rows(rows) == data


@given(st.binary(min_size=0, max_size=100), st.integers(0, 1 << 62))
def test_any_bytes_are_no_header(data: bytes, size: int) -> None:
    with pytest.raises(Corrupt):
        decode_receipt_header(data, size)


def test_a_header_that_cannot_be_is_a_bug() -> None:
    for odd in ({'store_uuid': b''}, {'plan_digest': b''}, {'batch': 0}):
        with pytest.raises(AssertionError):
            encode_receipt_header(HEADER._replace(**odd))
