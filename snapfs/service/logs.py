"""L6 logs: where the daemon's log goes. Called once, from the main thread, before work begins."""

from __future__ import annotations

import faulthandler
import logging
import logging.handlers
import sys
from pathlib import Path

from snapfs import limits
from snapfs.errors import Unavailable

LINE = '%(asctime)s %(levelname)s %(name)s: %(message)s'


def log_to_stderr() -> None:
    """For a supervisor that keeps the log itself, such as the journal of systemd."""
    _install(logging.StreamHandler(sys.stderr))
    faulthandler.enable(sys.stderr)


def log_to_file(path: Path) -> None:
    """Append to `path`; at limits.LOG_BYTES_MAX it becomes PATH.1 and a new one begins."""
    try:
        # Names need not be UTF-8, nor the locale of whoever mounts: no line may be lost for that.
        handler = logging.handlers.RotatingFileHandler(
            path,
            maxBytes=limits.LOG_BYTES_MAX,
            backupCount=1,
            encoding='utf-8',
            errors='backslashreplace',
        )
        # Kept open for ever: a crash of the interpreter itself leaves its last words there.
        faulthandler.enable(open(path, 'ab'))  # noqa: SIM115
    except OSError as error:
        raise Unavailable(f'the log {path} cannot be written: {error.strerror}') from None
    _install(handler)


def _install(handler: logging.Handler) -> None:
    handler.setFormatter(logging.Formatter(LINE))
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
        old.close()
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    logging.raiseExceptions = False  # a full disk must not turn a log line into a second error
    logging.captureWarnings(True)
