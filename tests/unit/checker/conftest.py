"""Stores that are checked."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.images.image import make as make_image


@pytest.fixture(scope='session')
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with all there can be in it, also records in its journal. Never to be changed, nor opened."""
    path = tmp_path_factory.mktemp('image') / 'store'
    make_image(path)
    return path


@pytest.fixture
def store(image: Path, tmp_path: Path) -> Path:
    """A copy of it, to be damaged."""
    shutil.copytree(image, tmp_path / 'a store')
    return tmp_path / 'a store'
