"""L6 process: what a process that works with a store sets up once. Called from the main thread, at start."""

from __future__ import annotations

import ctypes
import gc
import resource
import sys
import warnings

from snapfs import limits
from snapfs.errors import Invalid, Unavailable

M_ARENA_MAX = -8  # <malloc.h>
M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3


def check_interpreter(optimize: int | None = None) -> None:
    """Refuse an interpreter without asserts: they are part of the promises, not of the tests."""
    if (sys.flags.optimize if optimize is None else optimize) > 0:
        raise Invalid('snapfs does not run under python -O (or PYTHONOPTIMIZE): its asserts guard the data')


def check_chunker() -> None:
    """Refuse the pure Python fallback of pyfastcdc, which is some hundred times slower."""
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        import pyfastcdc
    if (
        pyfastcdc.FastCDC.__module__.startswith('pyfastcdc.py.')
        or pyfastcdc.FastCDC.__module__ == 'pyfastcdc.py'
    ):
        raise Unavailable(
            'pyfastcdc has no compiled extension here and its fallback is too slow',
            advice='Install a wheel of pyfastcdc, or a C compiler before installing it.',
        )


def tune() -> None:
    """Set the switch interval, the allocator and the number of files a daemon may have open."""
    sys.setswitchinterval(limits.SWITCH_INTERVAL_SECONDS)
    try:
        # Without this every worker thread keeps an arena of its own, and what it frees never goes back.
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_ARENA_MAX, limits.MALLOC_ARENAS_MAX)
        # Buffers of a write's size must not go back to the kernel and come again, page fault by page fault,
        # with every write; `trim_memory` gives them back when the burst is over.
        mallopt(M_TRIM_THRESHOLD, limits.MALLOC_TRIM_BYTES)
        mallopt(M_MMAP_THRESHOLD, limits.MALLOC_MMAP_BYTES)
    except (OSError, AttributeError):
        pass  # another C library: more memory, nothing worse
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def trim_memory() -> None:
    """Give what the allocator holds free back to the system: after a burst of work that may be a third of
    all.
    Blocking, some milliseconds; without the GIL."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError):
        pass  # another C library


def freeze_garbage() -> None:
    """Take what start-up built out of every later collection, and make full collections rare."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*limits.GARBAGE_THRESHOLDS)
