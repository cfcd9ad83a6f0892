"""Findings come in the same order in each check, and an interrupted one tells what it has found."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.images.image import make as make_image
from tests.mutants.setting import small
from tools.checker import check as module
from tools.checker.check import Options, check
from tools.checker.findings import Report


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    path = tmp_path / 'store'
    make_image(path)
    for number, pack in enumerate(sorted((path / 'packs').rglob('*'))):
        if pack.is_file():
            data = bytearray(pack.read_bytes())
            data[50 + number] ^= 1
            data[20] ^= 1
            pack.write_bytes(data)
    return path


def test_however_packs_were_spread_over_processes(damaged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, 'SMALL_BYTES', 0)
    seen = []
    for jobs in (2, 3, 2, 1):
        report = Report()
        with small():
            check(damaged, Options(full=True, jobs=jobs), report)
        seen.append([(one.code, one.place, one.what, one.files) for one in report.findings])
    assert len(seen[0]) > 5
    assert all(one == seen[0] for one in seen)


def test_an_interrupted_check_tells_of_the_packs_it_has_seen(
    damaged: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = Report()
    looked = 0

    def progress(what: str, done: int, _known: int) -> None:
        nonlocal looked
        if what == 'packs':
            looked = done
            if done == 4:
                raise KeyboardInterrupt

    report.progress = progress  # type: ignore[method-assign]
    with small():
        check(damaged, Options(full=True, jobs=1), report)
    assert looked == 4 and report.partial
    assert any(one.place.startswith('packs/') for one in report.findings)
