"""Stores to test with: small packs, small journal, a simulated disk where power cuts matter."""

from __future__ import annotations

import pytest

from snapfs import limits
from snapfs.store.durable import Disk
from snapfs.store.store import Store
from tests.sim.world import SimWorld


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """A store of a few hundred KiB instead of 48 MiB."""
    monkeypatch.setattr(limits, 'JOURNAL_BYTES', 256 * limits.KIB)
    monkeypatch.setattr(limits, 'RESERVE_BYTES', 64 * limits.KIB)
    monkeypatch.setattr(limits, 'FREE_BYTES_MIN', 64 * limits.KIB)


@pytest.fixture
def world():
    return SimWorld(1)


@pytest.fixture
def disk():
    return Disk()


@pytest.fixture
def store(tmp_path, disk, world):
    """A new store, closed uncleanly at the end if the test has not closed it."""
    store = Store.create(tmp_path / 'store', disk, world)
    yield store
    store.close(clean=False)
