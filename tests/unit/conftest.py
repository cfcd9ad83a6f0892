"""A finished store, made once and copied for each test that damages it."""

import shutil

import pytest

from tests.images.image import make


@pytest.fixture(scope='session')
def cut_image(tmp_path_factory):
    """The image as a power cut leaves it, with records in the journal. Nobody writes to it."""
    path = tmp_path_factory.mktemp('cut') / 'store'
    make(path)
    return path


@pytest.fixture
def cut_store(cut_image, tmp_path):
    """A copy of `cut_image`."""
    return shutil.copytree(cut_image, tmp_path / 'store')
