"""A log that is a symbolic link in the store is not written through."""

from __future__ import annotations

from pathlib import Path

import pytest

from snapfs.errors import Invalid
from snapfs.service.compose import MountRequest
from snapfs.service.mounting import DEFAULT_LOG, _log_to
from snapfs.service.options import MountOptions


def test_the_log_of_a_store_is_no_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr('snapfs.service.logs.log_to_file', lambda path: path.write_bytes(b'x'))
    log, away = tmp_path / DEFAULT_LOG, tmp_path / 'away'
    log.symlink_to(away)
    with pytest.raises(Invalid, match='symbolic link'):
        _log_to(MountRequest(tmp_path, None, str(tmp_path / 'mnt'), 'x', MountOptions(), log))
    assert not away.exists()
