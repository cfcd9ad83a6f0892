"""A disk that fails where a test says so: drives the filesystem of `passthrough`. Blocking; never hangs."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.support.mounted import let_go

ANSWER_SECONDS = 20.0
PROJECT = Path(__file__).resolve().parents[2]


class BadDisk:
    """A disk mounted at `place`/disk; what is on it is, whole and readable for us, in `place`/real."""

    def __init__(self, place: Path) -> None:
        self.real, self.path = place / 'real', place / 'disk'
        for path in (self.real, self.path):
            path.mkdir()
        words = [sys.executable, '-m', 'tests.support.passthrough', str(self.real), str(self.path)]
        self._log = open(place / 'disk.log', 'wb')  # noqa: SIM115 - as long as the process
        pipes: dict[str, Any] = {'stdin': subprocess.PIPE, 'stdout': subprocess.PIPE, 'stderr': self._log}
        self._process = subprocess.Popen(words, cwd=PROJECT, bufsize=0, **pipes)
        assert self._line() == 'ready'

    def _line(self) -> str:
        assert self._process.stdout is not None
        data = b''
        while not data.endswith(b'\n'):
            ready = select.select([self._process.stdout], [], [], ANSWER_SECONDS)[0]
            more = os.read(self._process.stdout.fileno(), 1 << 16) if ready else b''
            assert more, f'the disk says nothing: {Path(self._log.name).read_text()[-3000:]}'
            data += more
        return data.decode().strip()

    def fail(self, *faults: dict[str, Any]) -> list[int]:
        """From now on these faults, and no others; return how often each of those before was met."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(faults).encode() + b'\n')
        return list(json.loads(self._line()))

    def mend(self) -> list[int]:
        """No faults any more."""
        return self.fail()

    def end(self) -> None:
        """No mount and no process is left, whatever state this is in."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            self._process.wait(ANSWER_SECONDS / 2)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(ANSWER_SECONDS)
        let_go(self.path)
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._log.close()


def fault(on: str, path: str, start: int = 0, end: int | None = None, **more: Any) -> dict[str, Any]:
    """A fault of the disk, as `passthrough` has it."""
    range_ = {'start': start} if end is None else {'start': start, 'end': end}
    return {'on': on, 'path': path, **range_, **more}
