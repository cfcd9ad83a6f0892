"""L6 logged: for what must be tried, and must not take anything else with it when it fails. Any thread."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

log = logging.getLogger('snapfs')


@contextmanager
def logged(what: str) -> Iterator[None]:
    """Log an exception in the block, with what that means, and go on behind it."""
    try:
        yield
    except Exception:
        log.exception('bug: %s', what)
