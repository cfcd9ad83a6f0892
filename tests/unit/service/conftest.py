"""Fakes for everything below the service."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import service_fakes


@pytest.fixture
def store(tmp_path):
    """The directory of a store as far as the service looks at it."""
    return service_fakes.make_store(tmp_path / 'store')


@pytest.fixture
def fake_parts(monkeypatch):
    """Let everything that composes an engine compose a fake one, in this process."""
    from snapfs.service import compose

    for name in ('open_engine', 'operations', 'collecting', 'serve', 'terminate'):
        monkeypatch.setattr(compose.RealParts, name, getattr(service_fakes.FakeParts, name))
    monkeypatch.setattr(compose, 'create_store', service_fakes.make_store)
