"""What counts as freed is held against its receipt piece by piece; how large pieces are changes nothing."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from snapfs import limits
from snapfs.format.receipts import RECEIPT_HEADER_BYTES, RECEIPT_ROW_BYTES
from tests.images.image import make
from tests.mutants.setting import small
from tests.support.fsck import report_of
from tools.breaking.edit import Patient


@pytest.fixture(scope='module')
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp('image') / 'store'
    make(path)
    return path


@pytest.mark.parametrize('rows', [1, 2, 3, 5, 4096])
def test_in_pieces_of_any_size(
    image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    monkeypatch.setattr(limits, 'RECEIPT_ROWS_PER_READ', rows)
    path = tmp_path / 'store'
    shutil.copytree(image, path)
    with small():
        assert not report_of(path, full=False).findings
    patient = Patient(path, 1)
    freed = patient.sql('SELECT id, pack, offset, batch FROM freed ORDER BY id')
    assert len(freed) > 5
    # The first, one in the middle and the last are of another place; nothing is before or behind them.
    for id, pack, offset, _ in (freed[0], freed[len(freed) // 2], freed[-1]):
        patient.sql('UPDATE freed SET offset = offset + 1 WHERE id = ? AND pack = ? AND offset = ?',
                    id, pack, offset)  # fmt: skip
    patient.close()
    with small():
        report = report_of(path, full=False)
    told = {one.place for one in report.findings if one.code == 'freed-unproved'}
    assert told == {f'chunk {freed[index][0].hex()}' for index in (0, len(freed) // 2, -1)}
    assert report.counts['freed-unproved'] == 3


def test_behind_a_damaged_row_nothing_is_proved(image: Path, tmp_path: Path) -> None:
    path = tmp_path / 'store'
    shutil.copytree(image, path)
    patient = Patient(path, 1)
    freed = patient.sql('SELECT id, batch FROM freed ORDER BY id')
    batch = freed[0][1]
    receipt = path / 'batches' / str(batch) / 'receipt'
    patient.cut(receipt, RECEIPT_HEADER_BYTES + 2 * RECEIPT_ROW_BYTES + 1)
    patient.close()
    with small():
        report = report_of(path, full=False)
    assert report.counts['freed-unproved'] == sum(one == batch for _, one in freed)
