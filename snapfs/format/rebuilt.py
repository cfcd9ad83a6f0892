"""L1 rebuilt: the reason of the incident that a rebuild leaves in its catalog. Pure; any thread.

Who makes a catalog anew does not know which numbers of views were given out since its backup, and passes over
all that may have been: a number never means two things. The reason says which these are, in words for a
person and the same each time, so that a check can tell them from numbers that vanished:

    the catalog was rebuilt: look what is there before anything goes (views FIRST to LAST were passed over)
"""

from __future__ import annotations

import re

from snapfs import limits

_TEXT = 'the catalog was rebuilt: look what is there before anything goes'
_PATTERN = re.compile(
    re.escape(_TEXT) + r' \(views ([0-9]{1,18}) to ([0-9]{1,18}) were passed over\)', re.ASCII
)


def rebuilt_reason(first: int, last: int) -> str:
    """Return the reason; `first` and `last` were passed over, and all between them."""
    assert 0 < first <= last
    return f'{_TEXT} (views {first} to {last} were passed over)'


def views_passed_over(reason: object) -> range:
    """Return the numbers up to VIEW_MAX that a reason says were passed over; none when it is another one."""
    found = _PATTERN.fullmatch(reason) if isinstance(reason, str) else None
    return range(int(found[1]), min(int(found[2]), limits.VIEW_MAX) + 1) if found is not None else range(0)
