"""L6 workers: runs the collector's long jobs in processes of their own. Event loop only.

A job that is cancelled takes its process with it. What a process says is believed only when it ended well
and said its last line; everything else is an error of the job, and its caller condemns and frees nothing.
"""

from __future__ import annotations

import logging
import subprocess
from collections.abc import Callable
from typing import Any

import trio

from snapfs import limits
from snapfs.collect.worker import Lines, command, encode_job, job_of
from snapfs.errors import Corrupt

log = logging.getLogger('snapfs.collect')


async def run_in_process(spec: Any, progress: Callable[[int, int], None]) -> Any:
    """Run a recount or a proof; return its result. Errors as the job's own; Unavailable when its process
    died."""
    job = job_of(spec)
    lines = Lines(job, progress)
    async with trio.open_nursery() as nursery:
        process = await nursery.start(_start)
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        nursery.start_soon(_log_errors, job, process.stderr)
        async with process.stdin:
            await process.stdin.send_all(encode_job(job, spec))
        await _read(lines, job, process.stdout)
        code = await process.wait()
        nursery.cancel_scope.cancel()
    return lines.result(code)


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
