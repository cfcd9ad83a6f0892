"""Fixtures: mounts without a kernel."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.unit.mount.kit import Kit, open_kit


@pytest.fixture
async def kit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Kit]:
    async with open_kit(tmp_path / 'store', monkeypatch) as one:
        yield one
