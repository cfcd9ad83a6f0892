"""Fakes for everything below the service; and finished stores, made once and copied for each test."""

import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import service_fakes

from tests.support.lives import backup_at, on


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


@pytest.fixture(scope='session')
def kept_image(cut_image, tmp_path_factory):
    """The image with a backup of its catalog, closed clean. Nobody writes to it."""
    path = tmp_path_factory.mktemp('kept') / 'store'
    shutil.copytree(cut_image, path)
    on(path, backup_at(10**18))
    return path


@pytest.fixture
def kept_store(kept_image, tmp_path):
    """A copy of `kept_image`."""
    return shutil.copytree(kept_image, tmp_path / 'store')
