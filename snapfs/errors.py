"""L0 errors: the six ways in which snapfs says no. No state, no I/O.

A bug is an AssertionError: the task dies loudly and the store latches. Everything else is one of the six
classes below. A class carries the errno a system call answers, the exit code a command ends with, and the
advice a person is given; a new class is made only where a caller acts differently.
"""

import errno as _errno
import os


class SnapfsError(Exception):
    """Base of the six. `str(error)` is one line for a person: what, where; `advice` says what to do."""

    errno: int = _errno.EIO
    exit_code: int = 1
    advice: str = ''

    def __init__(self, message: str, *, advice: str | None = None) -> None:
        super().__init__(message)
        if advice is not None:
            self.advice = advice

    def line(self) -> str:
        """Return the one line that a command prints: the message, then the advice."""
        text = ' '.join(str(self).split())
        if not self.advice:
            return text
        return f'{text.rstrip(".")}. {self.advice}'


class Refused(SnapfsError):
    """POSIX says no: the errno is the whole answer. Harmless; the caller passes it on."""

    exit_code = 3

    def __init__(self, errno: int, message: str = '', *, advice: str | None = None) -> None:
        super().__init__(message or os.strerror(errno), advice=advice)
        self.errno = errno
        if errno == _errno.ENOSPC:
            self.exit_code = Unavailable.exit_code  # full is `not now`


class Invalid(SnapfsError):
    """The command or its input is wrong; fix it and call again. Nothing was changed."""

    errno = _errno.EINVAL
    exit_code = 2


class Held(SnapfsError):
    """A hold or a pin forbids it. Release the hold first."""

    errno = _errno.EBUSY
    exit_code = 11


class Unavailable(SnapfsError):
    """Not now: somebody else owns the store, or the disk is full, or a daemon does not answer. Try again."""

    errno = _errno.EAGAIN
    exit_code = 12


class Corrupt(SnapfsError):
    """Bytes on disk are not what was written. Only the range concerned is lost to readers (never zeros)."""

    errno = _errno.EIO
    exit_code = 13
    advice = 'The store needs checking before anything is changed: snapfs fsck. Keep it as it is.'


class Latched(SnapfsError):
    """The store has stopped writing and a person must look: a sync failed, or a guard fell."""

    errno = _errno.EROFS
    exit_code = 14
    advice = 'Read the log and .snapfs/health; nothing more is written until a person has looked.'
