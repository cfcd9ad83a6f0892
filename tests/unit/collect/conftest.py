"""A small store for the tests of batches, incidents, clock and settings."""

from __future__ import annotations

import pytest

from snapfs import limits
from snapfs.store.durable import Disk
from snapfs.store.store import Store
from tests.sim.world import SimWorld


@pytest.fixture
def small_limits(monkeypatch):
    """A store of a few hundred KiB instead of 48 MiB."""
    monkeypatch.setattr(limits, 'JOURNAL_BYTES', 256 * limits.KIB)
    monkeypatch.setattr(limits, 'RESERVE_BYTES', 64 * limits.KIB)
    monkeypatch.setattr(limits, 'FREE_BYTES_MIN', 64 * limits.KIB)


@pytest.fixture
def batch_store(tmp_path, small_limits):
    """A new store in a simulated world, closed uncleanly at the end."""
    store = Store.create(tmp_path / 'store', Disk(), SimWorld(1))
    yield store
    store.close(clean=False)
