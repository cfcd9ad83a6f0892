"""The numbers hold together: change one so that a promise would break, and nothing can be imported."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from snapfs import limits

SOURCE = Path(limits.__file__).read_text()


def with_number(name: str, value: str) -> str:
    """Return the source of the limits with one number changed."""
    changed, count = re.subn(rf'^{name} = [^#\n]*', f'{name} = {value}  ', SOURCE, flags=re.MULTILINE)
    assert count == 1, f'{name} stands {count} times in limits.py'
    return changed


def imported(source: str) -> dict[str, object]:
    found: dict[str, object] = {}
    exec(compile(source, 'limits.py', 'exec'), found)
    return found


@pytest.mark.parametrize(
    ('name', 'value'),
    [
        ('FREE_BYTES_MIN', 'RESERVE_BYTES'),  # writers would eat the reserve once it is given up
        ('FREE_BYTES_MIN', '1 * MIB'),
        ('RESERVE_BYTES', '64 * MIB'),
        ('CHUNK_BYTES_MAX', 'PLAIN_BYTES_MAX + 1'),
        ('CHUNK_BYTES_MIN', 'CHUNK_BYTES_AVERAGE'),
        ('NODE_BYTES_TARGET', 'NODE_BYTES_MAX'),
        ('XATTR_VALUE_BYTES_MAX', 'PLAIN_BYTES_MAX + 1'),
        ('DIRTY_BYTES_MAX', 'DIRTY_BYTES_FLUSH'),
        ('PACK_DATA_BYTES_MAX', 'DIRTY_BYTES_MAX'),
        ('JOURNAL_INLINE_BYTES_MAX', 'JOURNAL_FRAME_BYTES_MAX'),
        ('JOURNAL_BYTES', '1 * MIB'),
        ('JOURNAL_FRAME_BYTES_TARGET', 'JOURNAL_FRAME_BYTES_MAX'),
        ('INO_BITS', '48'),
        ('HASH_COLLISIONS_MAX', 'STREAM_ARRAY_ELEMENTS_MAX + 1'),
        ('ZSTD_WINDOW_LOG_MAX', '16'),
        ('NAME_BYTES_MAX', 'KEY_SUFFIX_BYTES_MAX + 1'),
        ('SESSION_TASKS_IDLE', 'SESSION_TASKS_MAX'),
    ],
)
def test_numbers_that_contradict_each_other_are_refused(name: str, value: str) -> None:
    # A number may stand above those it is compared with: give it its value where those are known.
    numbers = imported(SOURCE)
    wanted = eval(value, {}, numbers)
    with pytest.raises(AssertionError):
        imported(with_number(name, str(wanted)))


def test_the_numbers_as_they_are_are_accepted() -> None:
    assert imported(SOURCE)['RESERVE_BYTES'] == limits.RESERVE_BYTES
