"""Driving the real snapfs as a person does: its commands, its mounts, its daemon's process."""

import json
import os
import select
import subprocess
import sys
from pathlib import Path

from snapfs.service import client, mounts

PROJECT = Path(__file__).resolve().parents[2]
SNAPFS = [sys.executable, '-m', 'snapfs.cli.main']
HELPER = [sys.executable, '-m', 'snapfs.cli.mount_helper']
INSTALL_HELPERS = PROJECT / 'packaging' / 'install-helpers'


class Place:
    """A store and a mountpoint in a directory of their own."""

    def __init__(self, directory: Path) -> None:
        self.store = directory / 'store'
        self.mnt = directory / 'mnt'
        self.mnt.mkdir()
        self.check('init', self.store)

    def run(self, *words, program=SNAPFS, cwd=None):
        """Run a command; returns (exit code, standard output, standard error). A traceback fails the test."""
        done = subprocess.run(
            [*program, *map(str, words)], capture_output=True, text=True, timeout=100, cwd=cwd
        )
        assert 'Traceback' not in done.stderr, done.stderr
        return done.returncode, done.stdout, done.stderr

    def check(self, *words, program=SNAPFS, cwd=None):
        """Run a command that must succeed without a word on standard error; returns its output."""
        code, out, err = self.run(*words, program=program, cwd=cwd)
        assert (code, err) == (0, ''), (words, code, err)
        return out

    def ask(self, *words, cwd=None):
        """Run a command on the store with --json and return the value."""
        return json.loads(self.check(*words, '--store', self.store, '--json', cwd=cwd))

    def mount(self):
        """Return what the kernel shows at the mountpoint."""
        return mounts.mount_at(str(self.mnt), mounts.read_mounts())

    def daemon(self):
        """Return a handle of the daemon's process."""
        return os.pidfd_open(client.hello_of(self.store)['pid'])

    def clean_up(self):
        while self.mount():
            subprocess.run(['umount', '-l', str(self.mnt)], check=True)


def wait_for_end(pidfd):
    """Wait until a process has ended."""
    assert select.select([pidfd], [], [], 60)[0], 'the daemon does not end'
    os.close(pidfd)
