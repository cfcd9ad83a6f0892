"""A small store for the tests of batches, incidents, clock and settings."""

from __future__ import annotations

import pytest

from snapfs import limits
from snapfs.collect.batches import Batches
from snapfs.collect.clock import TrustedClock
from snapfs.store.durable import Disk
from snapfs.store.store import Store
from tests.sim.world import SimWorld
from tests.unit.collect.batch_kit import add_chunks


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


@pytest.fixture
def batches(batch_store):
    return Batches(batch_store)


@pytest.fixture
def clock(batch_store):
    return TrustedClock(batch_store.catalog, batch_store.world)


@pytest.fixture
def ids(batch_store):
    return add_chunks(batch_store, 1, 10)
