"""L5 answers: errors on their way to the kernel. Event loop only.

pyfuse3 takes one exception from a handler, FUSEError; any other would end the daemon.
"""

from __future__ import annotations

import errno
import functools
import logging
from collections.abc import Callable, Coroutine
from typing import Any, Protocol, TypeVar, TypeVarTuple

from pyfuse3 import FUSEError

from snapfs.errors import Corrupt, Latched, SnapfsError

log = logging.getLogger(__name__)


class Handlers(Protocol):
    """What has handlers: the adapter."""

    def unexpected(self, name: str, error: Exception) -> None: ...


H = TypeVar('H', bound=Handlers)
Ts = TypeVarTuple('Ts')
T = TypeVar('T')


def translate_errors(
    handler: Callable[[H, *Ts], Coroutine[Any, Any, T]],
) -> Callable[[H, *Ts], Coroutine[Any, Any, T]]:
    """Make a handler raise nothing but FUSEError.

    A SnapfsError becomes its errno. Anything else is a bug and goes to `unexpected` (a traceback in the log,
    a count, and for an AssertionError a latched store); the caller gets EIO and the daemon lives on.
    """

    @functools.wraps(handler)
    async def translated(self: H, *arguments: *Ts) -> T:
        try:
            return await handler(self, *arguments)
        except FUSEError:
            raise
        except SnapfsError as error:
            if isinstance(error, (Corrupt, Latched)):
                log.error('%s: %s', handler.__name__, error.line())
            raise FUSEError(error.errno) from error
        except Exception as error:
            self.unexpected(handler.__name__, error)
            raise FUSEError(errno.EIO) from error

    return translated
