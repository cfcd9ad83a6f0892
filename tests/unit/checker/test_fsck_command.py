"""fsck as a program: what it says and how it ends."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from snapfs.store.durable import Disk
from snapfs.store.store import Store
from snapfs.world import World
from tools import fsck

PROGRAM = Path(fsck.__file__)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    path = tmp_path / 'store'
    Store.create(path, Disk(), World()).close(clean=True)
    return path


def test_a_clean_store(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fsck.main(['--json', str(store)]) == 0
    assert json.loads(capsys.readouterr().out)['findings'] == []


@pytest.mark.parametrize(
    'words', [[], ['--frobnicate'], ['/nonexistent'], ['/dev/null'], ['--jobs', 'x', '/']], ids=str
)
def test_a_wrong_call(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code = fsck.main(words)
    except SystemExit as end:
        code = end.code
    assert (code, capsys.readouterr().err.count('\n')) == (16, 1)


def test_a_directory_that_is_no_store(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / 'letter').write_text('to my aunt')
    assert fsck.main([str(tmp_path)]) == 16
    assert 'is not a store' in capsys.readouterr().err


def test_a_store_without_superblock_is_damaged(store: Path) -> None:
    (store / 'superblock').unlink()
    assert fsck.main([str(store)]) == 4, 'its copy is there, and the rest was checked'
    for folder in ('backups', 'mirror'):
        (store / folder / 'superblock').unlink()
    assert fsck.main([str(store)]) == 12


def test_without_catalog_the_rest_is_not_checked(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (store / 'catalog.sqlite').unlink()
    assert fsck.main([str(store)]) == 12
    out = capsys.readouterr().out
    assert 'NOT CHECKED' in out and 'snapfs rebuild' in out


def test_it_writes_nothing(store: Path, tmp_path: Path) -> None:
    def state() -> list[tuple[str, int, int, bytes]]:
        return sorted(
            (str(path), path.stat().st_mtime_ns, path.stat().st_ctime_ns, path.read_bytes())
            for path in store.rglob('*')
            if path.is_file()
        )

    before = state()
    assert fsck.main([str(store)]) == 0
    assert state() == before


def test_a_reader_that_goes_away(store: Path) -> None:
    """`snapfs fsck … | head` shows no traceback, and keeps the exit code."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            [sys.executable, PROGRAM, store], stdout=writer, stderr=subprocess.PIPE, text=True, check=False
        )
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (0, '')


def test_an_interrupt_leaves_a_partial_report(
    store: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        'tools.checker.catalog.Catalog.check',
        lambda _self, closer, in_place: signal.raise_signal(signal.SIGINT),
    )
    # Who is started in the background of a shell ignores it from the beginning.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert fsck.main([str(store)]) == 32
    finally:
        signal.signal(signal.SIGINT, before)
    assert 'PARTIAL' in capsys.readouterr().out


def test_no_room_is_no_damage(
    store: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr('tools.checker.store.Store._copy_file', full)
    assert fsck.main([str(store)]) == 8
    assert 'No space left' in capsys.readouterr().out
    monkeypatch.undo()
    monkeypatch.setattr('tools.checker.evidence.Evidence.journal', full)
    assert fsck.main([str(store)]) == 8
    assert '--scratch' in capsys.readouterr().out


def test_a_place_for_temporary_files_that_is_none(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fsck.main(['--scratch', '/nonexistent', str(store)]) == 16
    assert '/nonexistent' in capsys.readouterr().err


@pytest.mark.parametrize(
    'words', [['-C'], ['-C0'], ['-C', '3'], ['-C3', '-a'], ['-a', '-C'], ['-C', '-y'], []]
)
def test_as_fsck_8_calls_it(
    words: list[str], store: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """-C, -CFD and -C FD ask for progress; none of them swallows the store."""
    assert fsck.main([*words, '--json', str(store)]) == 0
    assert json.loads(capsys.readouterr().out)['store'] == str(store)
    assert fsck.main([str(store), *words[:1]]) == 0
    store.rename(store.with_name('3'))
    monkeypatch.chdir(store.parent)
    assert fsck.main(['-C', '3']) == 0, 'the only word is the store'
