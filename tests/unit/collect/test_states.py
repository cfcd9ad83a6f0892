"""Rows of batches from a catalog that rotted: anything may stand in any column."""

import pytest

from snapfs.collect.states import BatchRow, batch_row
from snapfs.errors import Corrupt

GOOD = (3, 'QUARANTINED', 'kept', 7, bytes(32), 5, 900, 10, 1, 2, 3, 4, None, None, None, 0, None, None)


def test_a_good_row():
    assert batch_row(GOOD).number == 3


@pytest.mark.parametrize('column', [0, 1, 2, 3, 4, 5, 6, 7, 8, 15])
@pytest.mark.parametrize('value', [None, 1.5])
def test_a_column_of_another_type_is_damage(column, value):
    odd = (*GOOD[:column], value, *GOOD[column + 1 :])
    with pytest.raises(Corrupt, match='impossible row of batch'):
        batch_row(odd)


def test_a_confirmed_batch_has_a_receipt():
    names = list(BatchRow.__dataclass_fields__)
    odd = list(GOOD)
    odd[1] = 'CONFIRMED'
    for receipt in (None, 'text', b'short'):
        odd[names.index('receipt')] = receipt
        with pytest.raises(Corrupt, match='without a receipt'):
            batch_row(tuple(odd))
