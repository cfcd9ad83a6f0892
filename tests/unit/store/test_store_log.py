"""The catalog's write-ahead log: what the catalog file alone says when the log is lost or left behind."""

from __future__ import annotations

import shutil
import sqlite3

import pytest

from snapfs.errors import Latched, Refused
from snapfs.store.durable import Disk
from snapfs.store.store import Store
from tests.unit.store.kit import record, replayed


def without_log(store, place):
    """Copy an open store as a careless backup does: the catalog file, and not the log beside it."""
    shutil.copytree(store.path, place, ignore=shutil.ignore_patterns('*-wal', '*-shm', '*.sock'))
    return place


def settings_of(path):
    with sqlite3.connect(f'file:{path / "catalog.sqlite"}?mode=ro', uri=True) as db:
        return dict(db.execute('SELECT key, value FROM settings'))


def test_without_its_log_an_open_catalog_does_not_say_clean(store, tmp_path):
    """Else the journal is not replayed, and what fsync made durable is gone without a word (P5)."""
    store.close(clean=True)
    opened = Store.open(store.path, Disk(), store.world)
    record(opened, 7)
    place = without_log(opened, tmp_path / 'copy')
    opened.close(clean=False)
    assert settings_of(place)['clean'] == 0
    copy = Store.open(place, Disk(), store.world)
    assert not copy.was_clean
    assert replayed(copy) == [7]
    copy.close(clean=False)


def test_a_checkpoint_leaves_nothing_in_the_log(store):
    log = store.path / 'catalog.sqlite-wal'
    store.catalog.set_setting('epoch', 5)
    assert log.stat().st_size > 0
    store.catalog.checkpoint()
    assert log.stat().st_size == 0
    assert store.catalog.setting('epoch') == 5


def test_a_latched_store_checkpoints_nothing(store):
    store.disk.latch('a test')
    with pytest.raises(Latched, match='a test'):
        store.catalog.checkpoint()


def test_opening_gives_up_the_reserve_for_the_checkpoint(store, world, monkeypatch):
    """A full disk must not keep anybody from coming in to delete something."""
    store.close(clean=True)
    refused = []
    real = type(store.catalog).checkpoint

    def checkpoint(catalog):
        if not refused:
            refused.append(True)
            raise Refused(28)
        real(catalog)

    monkeypatch.setattr(type(store.catalog), 'checkpoint', checkpoint)
    monkeypatch.setattr(Store, 'restore_reserve', lambda self: self.has_reserve)
    opened = Store.open(store.path, Disk(), world)
    assert not opened.has_reserve
    assert settings_of(opened.path)['clean'] == 0
    opened.close(clean=False)
