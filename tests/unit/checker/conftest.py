"""Stores that are checked."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest


@pytest.fixture(scope='session')
def image(cut_image: Path) -> Path:
    """A store with all there can be in it, also records in its journal. Never to be changed, nor opened."""
    return cut_image


@pytest.fixture
def store(image: Path, tmp_path: Path) -> Path:
    """A copy of it, to be damaged."""
    shutil.copytree(image, tmp_path / 'a store')
    return tmp_path / 'a store'
