"""A sample of what `python -m tests.wild` tries with thousands of seeds."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.wild.ways import Wild

pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def wild(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Wild]:
    made = Wild(tmp_path_factory.mktemp('wild'))
    yield made
    made.end()


@pytest.mark.parametrize('seed', range(8))
def test_random_damage_is_told_and_what_is_there_comes_back(wild: Wild, seed: int) -> None:
    assert list(wild.damaged(seed)) == []


def test_it_sees_other_bytes(wild: Wild) -> None:
    """It can fail: another file in the past would be told."""
    wild.fresh()
    path = next(path for path in sorted((wild.gold / 's0').rglob('*')) if path.is_file())
    wild.call('mount', wild.store, wild.mount)
    kept = path.read_bytes()
    path.write_bytes(kept + b'!')
    try:
        assert wild.compare('s0', 's0') == ([], [str(path.relative_to(wild.gold / 's0'))])
        assert [text for text in wild._recovered() if text.startswith('s0 has other bytes')]
    finally:
        path.write_bytes(kept)
    assert wild.compare('s0', 's0') == ([], [])
    wild.end()
