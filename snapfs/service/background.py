"""L6 background: starts a daemon that outlives the command, and waits until it is really mounted. Main
thread.

The two forks happen before trio, or any thread, exists. The command waits on a pipe for one line (wire.py's
answer): what the daemon says of itself, or the error; a pipe that closes without a line is a daemon that
died.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import NoReturn

from snapfs import limits
from snapfs.errors import SnapfsError, Unavailable
from snapfs.service import wire

Report = Callable[[bytes], None]
Target = Callable[[Report], None]
INTERRUPTED = 130  # the exit code that shells expect after Ctrl-C


def launch(target: Target, log: Path | None) -> object:
    """Run `target(report)` in a process of its own; return what it reported, or raise the error it reported.

    The daemon has no terminal, stands in /, and lets go of standard output and error when it reports.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        _become_daemon(target, writer)
    os.close(writer)
    os.waitpid(child, 0)
    with open(reader, 'rb') as pipe:
        line = pipe.read(limits.CONTROL_REQUEST_BYTES_MAX)
    if not line.endswith(b'\n'):
        hint = '' if log is None else f'; see {log}'
        raise Unavailable(f'the daemon ended before anything was mounted{hint}')
    return wire.decode_answer(line)


def guarded(target: Target, report: Report) -> int:
    """Run a daemon and return its exit code. What goes wrong is reported if nobody was told anything yet."""
    try:
        target(report)
    except SnapfsError as error:
        logging.getLogger(__name__).error('%s', error.line())
        report(wire.encode_error(error))
        return error.exit_code
    except BaseException as error:
        if _is_interrupt(error):
            interrupt = Unavailable('interrupted before anything was mounted')
            logging.getLogger(__name__).error('%s', interrupt.line())
            report(wire.encode_error(interrupt))
            return INTERRUPTED
        logging.getLogger(__name__).critical('the daemon ends', exc_info=True)
        report(wire.encode_error(Unavailable(f'the daemon failed: {error!r}; its log has more')))
        return 1
    return 0


def _is_interrupt(error: BaseException) -> bool:
    """Whether an error is Ctrl-C, perhaps in the groups that trio makes, and nothing else."""
    if isinstance(error, BaseExceptionGroup):
        return error.split(KeyboardInterrupt)[1] is None
    return isinstance(error, KeyboardInterrupt)


def answer(hello: object) -> bytes:
    """Return the line that says that all is well."""
    return wire.encode_result(asdict(hello))  # type: ignore[call-overload]


def _become_daemon(target: Target, writer: int) -> NoReturn:
    code = 1
    try:
        os.setsid()
        if os.fork():
            os._exit(0)  # the daemon belongs to init, and never gets a terminal
        os.chdir('/')
        # Until there is a log, the command alone tells what goes wrong.
        logging.getLogger().addHandler(logging.NullHandler())
        _close_others(writer)
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, 0)

        def report(line: bytes) -> None:
            nonlocal writer
            if writer < 0:
                return
            os.dup2(null, 1)
            os.dup2(null, 2)
            with contextlib.suppress(BrokenPipeError):
                os.write(writer, line)
            os.close(writer)
            writer = -1

        code = guarded(target, report)
    finally:
        os._exit(code)


def _close_others(keep: int) -> None:
    """Close what the caller had open: a daemon must not hold another mount, or somebody's pipe, for its
    life."""
    for name in os.listdir('/proc/self/fd'):
        fd = int(name)
        if fd > 2 and fd != keep:
            with contextlib.suppress(OSError):
                os.close(fd)
