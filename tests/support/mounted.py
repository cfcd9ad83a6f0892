"""A store and its real mount, driven by the command line as a person would. Blocking; for the mount tests.

Nothing here waits without an end: every program has a timeout, and a test that hangs in the kernel is freed
by a timer that kills the daemon, after which the kernel answers every waiting call.
"""

import contextlib
import json
import os
import re
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

BIN = Path(sys.executable).parent
SNAPFS = BIN / 'snapfs'
PROGRAM_SECONDS = 60.0  # no program of these tests takes longer
UNTIL_SECONDS = 20.0
TEST_SECONDS = 100.0  # then the daemon is killed, so that nothing waits for it
POLL_SECONDS = 0.01
IS_ROOT = os.geteuid() == 0
NOBODY = 65534

# A line of the log that says that something is wrong. Everything else is INFO.
BAD_LINE = re.compile(r' (WARNING|ERROR|CRITICAL) |^Traceback|^Fatal Python error|^\w*Error\b')


def run(*words: str | Path, cwd: Path | None = None, fails: bool = False, **more: object) -> str:
    """Run a program and return what it prints; its exit status must be zero, or not, as `fails` says."""
    environment = {**os.environ, 'LC_ALL': 'C.UTF-8', 'PATH': f'{BIN}:{os.environ.get("PATH", "")}'}
    environment |= {'HOME': '/nonexistent', 'GIT_CONFIG_NOSYSTEM': '1', 'TZ': 'UTC'}
    done = subprocess.run(
        [str(word) for word in words],
        cwd=cwd,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors='surrogateescape',
        timeout=PROGRAM_SECONDS,
        check=False,
        **more,  # type: ignore[call-overload]
    )
    if (done.returncode != 0) != fails:
        pytest.fail(f'{" ".join(map(str, words))} ended with {done.returncode}: {done.stdout[-3000:]}')
    return str(done.stdout)


def shell(script: str, cwd: Path, **more: object) -> str:
    """Run a script of /bin/sh that stops at the first error; return what it prints."""
    return run('/bin/sh', '-euc', script, cwd=cwd, **more)


def as_user(script: str, cwd: Path, uid: int = NOBODY, gid: int = NOBODY, fails: bool = False) -> str:
    """Run a script as another user, in `cwd`, whose parents he need not be allowed to pass."""
    return shell(script, cwd, fails=fails, user=uid, group=gid, extra_groups=[])


def until(true: Callable[[], object], what: str, seconds: float = UNTIL_SECONDS) -> None:
    """Poll until `true()`; fail with `what` at the deadline."""
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            pytest.fail(f'not within {seconds} s: {what}')
        time.sleep(POLL_SECONDS)


def refused(number: int, call: Callable[..., object], *arguments: object, **named: object) -> None:
    """Assert that a call fails with this errno."""
    try:
        result = call(*arguments, **named)
    except OSError as error:
        wanted, got = os.strerror(number), error.strerror
        assert error.errno == number, f'{call.__name__}{arguments}: {got} where {wanted} was expected'
    else:
        pytest.fail(
            f'{call.__name__}{arguments} returned {result!r} where {os.strerror(number)} was expected'
        )


class Mount:
    """A store in `place`/store and its mount at `place`/mnt. `expected`: log lines that may be there."""

    def __init__(self, place: Path, options: str = '', store: Path | None = None) -> None:
        self.place = place
        self.store = store or place / 'store'
        self.path = place / 'mnt'
        self.path.mkdir(exist_ok=True)
        self.options = options or ('allow_other,suid,dev' if IS_ROOT else '')
        self.expected: list[str] = []
        self._log_seen = 0
        self._pid = 0
        if not self.store.exists():
            run(SNAPFS, 'init', self.store)

    # --- life --------------------------------------------------------------------------------------------
    def start(self, volume: str | None = None) -> None:
        """Mount the store, or one volume of it."""
        words = ['-o', self.options] if self.options else []
        source = str(self.store) if volume is None else f'{self.store}:{volume}'
        run(SNAPFS, 'mount', *words, source, self.path)
        self._pid = self.status()['daemon']['pid']

    def stop(self) -> None:
        """Unmount, wait for the clean end, and look at the log."""
        run(SNAPFS, 'umount', self.path)
        self._pid = 0
        self.check_log()

    def kill_while_busy(self) -> None:
        """End the daemon as a crash would. The dead mountpoint stays, and what is open in it."""
        handle, self._pid = os.pidfd_open(self._pid), 0
        try:
            signal.pidfd_send_signal(handle, signal.SIGKILL)
            assert select.select([handle], [], [], UNTIL_SECONDS)[0], 'a killed daemon does not end'
        finally:
            os.close(handle)

    def end_dead_mount(self) -> None:
        """Take away the mountpoint of a daemon that was killed."""
        run(SNAPFS, 'umount', self.path)

    def kill(self) -> None:
        """End the daemon as a crash would, and take away the dead mountpoint."""
        self.kill_while_busy()
        self.end_dead_mount()

    def restart(self, volume: str | None = None) -> None:
        """Unmount and mount again: nothing is in any cache then."""
        self.stop()
        self.start(volume)

    def abandon(self) -> None:
        """Whatever state this is in: no daemon and no mount is left."""
        if self._pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)
        let_go(self.path)
        self._pid = 0

    @property
    def running(self) -> bool:
        return self._pid != 0

    @property
    def pid(self) -> int:
        assert self._pid, 'there is no daemon'
        return self._pid

    # --- looking -----------------------------------------------------------------------------------------
    def snapfs(self, *words: str, fails: bool = False) -> str:
        """Run a command of the command line on this store."""
        return run(SNAPFS, *words, '--store', self.store, fails=fails)

    def status(self) -> dict:
        """Return `status --json`."""
        return json.loads(self.snapfs('status', '--json'))

    def resident_bytes(self, peak: bool = False) -> int:
        """Return the memory of the daemon, now or at its peak."""
        word = 'VmHWM' if peak else 'VmRSS'
        for line in Path(f'/proc/{self.pid}/status').read_text().splitlines():
            if line.startswith(word):
                return int(line.split()[1]) * 1024
        raise AssertionError(f'no {word}')

    def check_log(self) -> None:
        """Fail when the daemon has said since the last look that something is wrong, unless it is
        expected.
        """
        try:
            data = (self.store / 'daemon.log').read_bytes()
        except FileNotFoundError:
            return
        new, self._log_seen = data[self._log_seen :].decode(errors='replace'), len(data)
        bad = [
            line
            for line in new.splitlines()
            if BAD_LINE.search(line) and not any(re.search(one, line) for one in self.expected)
        ]
        assert not bad, f'the log of the daemon: {new[-6000:]}'

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Kill the daemon when the body takes too long: a call that hangs in the kernel returns then."""
        fired = threading.Event()

        def fire() -> None:
            fired.set()
            if self._pid:
                os.kill(self._pid, signal.SIGKILL)

        timer = threading.Timer(TEST_SECONDS, fire)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
        assert not fired.is_set(), f'no end after {TEST_SECONDS} s; the daemon was killed'


def let_go(path: Path) -> None:
    """Take away what is mounted there, also when it is in use or dead."""
    if os.path.ismount(path) or _is_dead(path):
        quietly = {'stdout': subprocess.DEVNULL, 'stderr': subprocess.DEVNULL, 'timeout': 10, 'check': False}
        for words in (['fusermount3', '-u', '-z'], ['umount', '-l']):
            subprocess.run([*words, str(path)], **quietly)  # type: ignore[call-overload]


def _is_dead(path: Path) -> bool:
    try:
        os.statvfs(path)
    except OSError:
        return True
    return False


def names(path: Path | str) -> list[str]:
    """Return the sorted names in a directory."""
    return sorted(os.listdir(path))


def require_programs(words: Sequence[str]) -> None:
    """Fail with one clear sentence when a program is missing."""
    import shutil

    missing = [word for word in words if shutil.which(word) is None]
    if missing:
        pytest.fail(f'the mount tests need these programs; `make setup` installs them: {" ".join(missing)}')
