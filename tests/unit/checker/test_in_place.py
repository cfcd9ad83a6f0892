"""A quick check reads the catalog where it stands, unless somebody has the store; and begins anew when
somebody takes it meanwhile."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from snapfs.store.durable import Disk
from snapfs.store.store import Store as Mounted
from snapfs.world import World
from tests.mutants.setting import small
from tools.checker import check as module
from tools.checker.check import Options, check
from tools.checker.findings import Report
from tools.checker.store import Store


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    with small():
        Mounted.create(tmp_path / 'empty', Disk(), World()).close(clean=True)
    return tmp_path / 'empty'


def quick(path: Path, *, full: bool = False) -> Report:
    """Return what a check says."""
    report = Report()
    with small():
        check(path, Options(full=full, jobs=1), report)
    return report


class Watched:
    """Notes where each round reads the catalog, and does something in the middle of the first."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, action: Callable[[], None] = lambda: None) -> None:
        self.in_place: list[bool] = []
        real = module._Check._balance

        def balance(self_: module._Check, *arguments: object) -> None:
            self.in_place.append(self_.store.in_place)
            if len(self.in_place) == 1:
                action()
            real(self_, *arguments)  # type: ignore[arg-type]

        monkeypatch.setattr(module._Check, '_balance', balance)


def test_nobody_has_it(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path: path.stat().st_mtime_ns for path in store.rglob('*')}
    watched = Watched(monkeypatch)
    assert not quick(store).findings
    assert watched.in_place == [True]
    assert {path: path.stat().st_mtime_ns for path in store.rglob('*')} == before  # and no file more


def test_a_full_check_takes_a_copy(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(monkeypatch)
    quick(store, full=True)
    assert watched.in_place == [False]


def test_somebody_has_it(empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with small():
        mounted = Mounted.open(empty, Disk(), World())
    watched = Watched(monkeypatch)
    assert not quick(empty).findings
    assert watched.in_place == [False]
    mounted.close(clean=True)


def test_a_log_goes_with_it(empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a power cut left."""
    db = sqlite3.connect(empty / 'catalog.sqlite')
    db.execute('PRAGMA journal_mode = WAL')
    db.execute("UPDATE settings SET value = value + 7 WHERE key = 'epoch'")
    db.commit()
    files = [empty / 'catalog.sqlite', empty / 'catalog.sqlite-wal']
    kept = [path.read_bytes() for path in files]
    db.close()
    for path, data in zip(files, kept, strict=True):
        assert data
        path.write_bytes(data)
    watched = Watched(monkeypatch)
    report = quick(empty)
    assert not report.findings and report.facts['epoch'] == 7
    assert watched.in_place == [False]


def touch(store: Path) -> None:
    """Do to the files what a daemon does that comes and goes."""
    Mounted.open(store, Disk(), World()).close(clean=True)
    status = (store / 'catalog.sqlite').stat()
    os.utime(store / 'catalog.sqlite', ns=(status.st_atime_ns, status.st_mtime_ns + 1))


def test_somebody_takes_it_meanwhile(empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was found until then is forgotten."""
    (empty / 'backups' / 'superblock').write_bytes(b'is told once')
    watched = Watched(monkeypatch, lambda: touch(empty))
    report = quick(empty)
    assert watched.in_place == [True, False]
    assert report.counts == {'superblock-copy': 1}


def test_whatever_comes_of_that_is_no_matter(empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        touch(empty)
        raise ValueError('a page that was half written')

    watched = Watched(monkeypatch, fail)
    assert not quick(empty).findings
    assert watched.in_place == [True, False]


def test_without_anybody_an_error_is_one(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise RuntimeError('a mistake of this program')

    Watched(monkeypatch, fail)
    with pytest.raises(RuntimeError, match='a mistake'):
        quick(store)


def test_interrupted_when_somebody_had_taken_it(empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was found is of no state that ever was."""

    def interrupt() -> None:
        touch(empty)
        raise KeyboardInterrupt

    (empty / 'backups' / 'superblock').write_bytes(b'is told otherwise')
    Watched(monkeypatch, interrupt)
    report = quick(empty)
    assert report.partial and not report.findings


def test_a_link_is_not_followed(store: Path, tmp_path: Path) -> None:
    (store / 'catalog.sqlite').rename(tmp_path / 'elsewhere')
    (store / 'catalog.sqlite').symlink_to(tmp_path / 'elsewhere')
    taken = Store(store)
    with pytest.raises(OSError, match='symbolic'):
        taken.take_catalog(in_place=True)
    taken.close()
