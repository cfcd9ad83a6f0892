"""tools bench: recount 1 of a synthetic store, in a worker process as the daemon runs it: speed and memory.

    python -m tools.bench.recounts STORE        a store made by tools.bench.synthetic

References per second of processor time (user and system), because the worker stands back behind everybody.
"""

from __future__ import annotations

import argparse
import os
import sqlite3
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from snapfs.collect.recount import Recount, RecountSpec
from snapfs.collect.roots import root_set
from snapfs.collect.worker import Lines, command, encode_job
from snapfs.format.superblock import decode_superblock
from tools.bench.synthetic import CONTROL


@dataclass(frozen=True, slots=True)
class Measured:
    """One run: the result, seconds of processor and of wall clock, and the most memory it had, in bytes."""

    result: Recount
    processor_seconds: float
    wall_seconds: float
    memory_bytes: int

    @property
    def references_per_second(self) -> float:
        """References in live nodes, shared ones counted once, per second of one processor."""
        return self.result.references / self.processor_seconds


def measure(store: Path) -> Measured:
    """Recount the store without the requests it has; nothing is moved."""
    db = sqlite3.connect(f'file:{store / "catalog.sqlite"}?mode=ro', uri=True)
    try:
        expected = root_set(lambda text, values=(): db.execute(text, values).fetchall())
    finally:
        db.close()
    deleted = tuple(('request', row.number) for row in expected.roots if row.kind == 'request')
    uuid = decode_superblock((store / 'superblock').read_bytes()).uuid
    spec = RecountSpec(store, uuid, expected, deleted, CONTROL, store / 'batches')
    start = time.monotonic()
    with subprocess.Popen(command(), stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(encode_job('recount', spec))
        process.stdin.close()
        lines = Lines('recount')
        for line in process.stdout:
            lines.line(line)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    result = lines.result(process.returncode)
    processor = usage.ru_utime + usage.ru_stime
    return Measured(result, processor, time.monotonic() - start, usage.ru_maxrss * 1024)


def main() -> None:
    """Measure from the command line."""
    parser = argparse.ArgumentParser(description='measure recount 1 of a synthetic store')
    parser.add_argument('store', type=Path)
    found = measure(parser.parse_args().store)
    print(
        f'{found.result.references:,} references in {found.result.nodes:,} nodes, '
        f'{found.result.candidates:,} candidates, {found.result.condemned:,} condemned: '
        f'{found.references_per_second / 1e6:.2f} million references/s, '
        f'{found.processor_seconds:.1f} s of processor, {found.wall_seconds:.1f} s, '
        f'{found.memory_bytes / 2**20:.0f} MiB'
    )


if __name__ == '__main__':
    main()
