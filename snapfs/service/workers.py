"""L6 workers: runs the collector's long jobs in processes of their own. Event loop only.

A job that is cancelled takes its process with it. What a process says is believed only when it ended well
and said its last line; everything else is an error of the job, and its caller condemns and frees nothing.
"""

from __future__ import annotations

import contextlib
import logging
import subprocess
from collections.abc import Callable
from typing import Any

import trio

from snapfs import limits
from snapfs.collect.worker import Lines, command, encode_job, job_of
from snapfs.errors import Corrupt, SnapfsError, Unavailable

log = logging.getLogger('snapfs.collect')


async def run_in_process(spec: Any, progress: Callable[[int, int], None]) -> Any:
    """Run a recount or a proof; return its result. Errors as the job's own; Unavailable when its process
    died."""
    job = job_of(spec)
    lines = Lines(job, progress)
    # The nursery would wrap what goes wrong into a group, and a group is taken for a bug of the collector.
    failure: SnapfsError | None = None
    code = -1
    async with trio.open_nursery() as nursery:
        try:
            process = await nursery.start(_start)
            nursery.start_soon(_log_errors, job, process.stderr)
            code = await _converse(process, job, spec, lines)
        except OSError as error:
            failure = Unavailable(f'the process of a {job} cannot be started: {error.strerror}')
        except SnapfsError as error:
            failure = error
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure
    return lines.result(code)


async def _converse(process: trio.Process, job: str, spec: Any, lines: Lines) -> int:
    """Tell a worker its job, take its lines, and return its exit code."""
    assert process.stdin is not None
    assert process.stdout is not None
    with contextlib.suppress(trio.BrokenResourceError):  # it died already: its exit code says so
        async with process.stdin:
            await process.stdin.send_all(encode_job(job, spec))
    await _read(lines, job, process.stdout)
    return await process.wait()


async def _start(task_status: Any) -> None:
    """Own the process: whoever cancels the job ends it."""
    # The worker opens what it needs by itself; nothing of the daemon's is inherited but these pipes.
    await trio.run_process(
        command(),
        stdin=subprocess.PIPE,
        capture_stdout=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        check=False,
        cwd='/',
        task_status=task_status,
        deliver_cancel=_kill,
    )


async def _kill(process: trio.Process) -> None:
    """End a worker at once: it has nothing to put in order, and may be too idle to hear a request."""
    process.kill()


async def _read(lines: Lines, job: str, stream: Any) -> None:
    rest = b''
    async for block in stream:
        *whole, rest = (rest + block).split(b'\n')
        if len(rest) > limits.CONTROL_RESPONSE_BYTES_MAX:
            raise Corrupt(f'the worker of a {job} does not end its line')
        for line in whole:
            lines.line(line)
    if rest:
        raise Corrupt(f'the worker of a {job} broke off in the middle of a line')


async def _log_errors(job: str, stream: Any) -> None:
    async for block in stream:
        for line in block.decode('utf-8', 'replace').splitlines():
            log.warning('worker of a %s: %s', job, line)
