"""Settings of the crash suite: how many seeds, and small stores."""

from __future__ import annotations

import pytest

from snapfs import limits


@pytest.fixture(autouse=True)
def small_store(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thousands of images are written and read."""
    monkeypatch.setattr(limits, 'RESERVE_BYTES', 256 * limits.KIB)
    monkeypatch.setattr(limits, 'JOURNAL_BYTES', 512 * limits.KIB)
