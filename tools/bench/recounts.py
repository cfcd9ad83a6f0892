"""tools bench: recount 1, recount 2 and the proof of a synthetic store, in worker processes as the daemon
runs them: speed and memory.

    python -m tools.bench.recounts STORE        a store made by tools.bench.synthetic

Its deleted snapshot goes into quarantine for recount 2, and comes back at the end.

References per second of processor time (user and system), because the workers stand back behind everybody.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from snapfs import limits
from snapfs.collect.collector import Chosen, Collector
from snapfs.collect.mention_values import MentionSpec
from snapfs.collect.plan import CLASSES
from snapfs.collect.proof_values import ProofSpec
from snapfs.collect.recount_values import RecountSpec
from snapfs.collect.states import BatchRow
from snapfs.collect.worker import Lines, command, encode_job, job_of
from snapfs.store.durable import Disk
from snapfs.store.store import Store
from snapfs.world import World


@dataclass(frozen=True, slots=True)
class Measured:
    """One run of a worker: its result, seconds of processor and of wall clock, and the most memory it had, in
    bytes."""

    result: Any
    processor_seconds: float
    wall_seconds: float
    memory_bytes: int

    @property
    def references_per_second(self) -> float:
        """References it has seen, per second of one processor."""
        return float(self.result.references) / self.processor_seconds


def start(spec: object) -> subprocess.Popen[bytes]:
    """Start a worker process on its job. What it says comes out of its standard output."""
    process = subprocess.Popen(command(), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    process.stdin.write(encode_job(job_of(spec), spec))
    process.stdin.close()
    return process


def measure(spec: object) -> Measured:
    """Do a job in a worker process, to its end."""
    begun = time.monotonic()
    with start(spec) as process:
        assert process.stdout is not None
        lines, memory = Lines(job_of(spec)), 0
        for line in process.stdout:
            memory = max(memory, _memory_bytes(process.pid))
            lines.line(line)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    result = lines.result(process.returncode)
    processor = usage.ru_utime + usage.ru_stime
    return Measured(result, processor, time.monotonic() - begun, memory)


def _memory_bytes(pid: int) -> int:
    """Return the most memory that a process had so far; 0 when it has ended. What wait4 tells is at least
    what its parent had when it was started."""
    found = re.search(r'^VmHWM:\s+(\d+) kB$', Path(f'/proc/{pid}/status').read_text(), re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


class Synthetic:
    """A synthetic store, opened: what its collector would hand to the workers."""

    def __init__(self, store: Store) -> None:
        self.collector = Collector(store, World())
        self._record = store.chunks.start_recording()

    def chosen(self) -> Chosen:
        """Return the requests that a batch takes: the deleted snapshot's."""
        rows = [row for row in self.collector.store.registry.requests() if CLASSES[row.kind] == 'kept']
        return Chosen('kept', tuple(rows))

    def recount(self) -> RecountSpec:
        """Return what recount 1 gets. It may be run any number of times."""
        return self.collector.freeze(self.chosen())

    def condemn(self, spec: RecountSpec, measured: Measured) -> BatchRow:
        """Move what a recount 1 has condemned into quarantine."""
        plan = self.collector.plan(self.chosen(), spec, measured.result)
        self.collector.begin(plan)
        for _ in self.collector.condemn(plan, self._record):
            pass
        return self.collector.rest(plan)

    def mentions(self, batch: BatchRow) -> MentionSpec:
        """Return what recount 2 gets. It may be run any number of times."""
        return self.collector.mention_spec(batch)[0]

    def restore(self, batch: BatchRow) -> None:
        """Bring it all back."""
        self.collector.restore(batch.number, 'bench')

    def proof(self, batch: BatchRow) -> ProofSpec:
        """Return what the proof after a batch gets."""
        return self.collector.proof_spec(batch)


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Synthetic]:
    """Own a synthetic store."""
    store = Store.open(path, Disk(), World())
    try:
        yield Synthetic(store)
    finally:
        store.close(clean=True)


def measure_all(path: Path) -> dict[str, Measured]:
    """Measure recount 1, recount 2 and the proof."""
    with opened(path) as synthetic:
        spec = synthetic.recount()
        first = measure(spec)
        batch = synthetic.condemn(spec, first)
        try:
            second = measure(synthetic.mentions(batch))
        finally:
            synthetic.restore(batch)
        assert not second.result.live_count and second.result.condemned == first.result.condemned
        return {'recount 1': first, 'recount 2': second, 'proof': measure(synthetic.proof(batch))}


def main() -> None:
    """Measure from the command line."""
    parser = argparse.ArgumentParser(description='measure the recounts of a synthetic store')
    parser.add_argument('store', type=Path)
    for name, found in measure_all(parser.parse_args().store).items():
        print(
            f'{name}: {found.result.references:,} references: '
            f'{found.references_per_second / 1e6:.2f} million/s, {found.processor_seconds:.1f} s of '
            f'processor, {found.wall_seconds:.1f} s, {found.memory_bytes / limits.MIB:.0f} MiB'
        )


if __name__ == '__main__':
    main()
