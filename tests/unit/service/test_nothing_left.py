"""Who only reads a store that nobody has open leaves no file beside its catalog."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from contextlib import closing
from pathlib import Path

import pytest

from snapfs.cli.main import main
from tests.mutants.setting import small
from tools.dump.main import main as dump_main


@pytest.mark.parametrize('log', [False, True])
def test_who_reads_a_store_that_nobody_has_leaves_nothing_behind(cut_store, tmp_path, monkeypatch, log):
    """SQLite makes an index and a log beside a catalog that it only reads, and leaves them there."""
    scratch = tmp_path / 'scratch'
    scratch.mkdir()
    monkeypatch.setattr(tempfile, 'tempdir', str(scratch))
    if log:  # as a power cut leaves it
        copies = tmp_path / 'copies'
        copies.mkdir()
        with closing(sqlite3.connect(cut_store / 'catalog.sqlite')) as db:
            db.execute("UPDATE settings SET value = value + 1 WHERE key = 'epoch'")
            db.commit()
            for suffix in ('', '-wal'):
                shutil.copy(cut_store / f'catalog.sqlite{suffix}', copies)
        for file in copies.iterdir():
            shutil.copy(file, cut_store)
        assert (cut_store / 'catalog.sqlite-wal').stat().st_size

    def files() -> dict[str, bytes]:
        found = sorted(cut_store.glob('catalog*'))
        return {file.name: file.read_bytes() for file in found}

    before, export, script = files(), tmp_path / 'export', tmp_path / 'check.py'
    script.write_bytes((Path(__file__).parents[3] / 'tools/verify_export.py').read_bytes())
    with small():
        assert main(['export', 'home@monday', '-o', str(export), '--store', str(cut_store)]) == 0
        assert main(['verify', 'home@monday', '--store', str(cut_store)]) == 0
        assert main(['verify', str(export), '--store', str(cut_store)]) == 0
    assert files() == before
    called = [sys.executable, str(script), str(export), str(cut_store)]
    done = subprocess.run(called, env={**os.environ, 'TMPDIR': str(scratch)}, capture_output=True)
    assert done.returncode == 0, done.stderr
    dump_main([str(cut_store), 'usage'])
    assert files() == before
    assert not list(scratch.iterdir()), 'no copy stays'
