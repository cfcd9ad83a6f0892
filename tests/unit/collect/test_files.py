"""Files of a batch: what cannot be verified is Corrupt, never empty (P10)."""

from __future__ import annotations

import pytest

from snapfs.collect.batches import Batches
from snapfs.collect.files import CONDEMNED, RECEIPT, BatchFiles
from snapfs.errors import Corrupt, Refused
from snapfs.format.ids import data_id
from snapfs.format.receipts import ReceiptRow
from tests.sim.disk import SimDisk

IDS = sorted(data_id(b'%d' % n) for n in range(20))
ROWS = [ReceiptRow(id, b'p' * 16, 48 + n, 100) for n, id in enumerate(IDS)]
PLAN = b'd' * 32


@pytest.fixture
def files(batch_store):
    files = Batches(batch_store).files
    files.make(1)
    return files


def test_ids_are_written_sorted_and_once_and_read_in_slices(files):
    digest = files.write_ids(1, CONDEMNED, [*IDS[::-1], IDS[3]])
    files.check(1, CONDEMNED, digest, 20)
    assert list(files.ids(1, CONDEMNED, 7)) == [IDS[:7], IDS[7:14], IDS[14:]]
    assert list(files.ids(2 - 1, CONDEMNED, 100)) == [IDS]
    files.check(1, CONDEMNED, files.write_ids(1, CONDEMNED, []), 0)
    assert list(files.ids(1, CONDEMNED, 7)) == []


@pytest.mark.parametrize('what', ['shorter', 'longer', 'changed', 'count'])
def test_a_list_that_was_altered_is_corrupt(files, what):
    digest = files.write_ids(1, CONDEMNED, IDS)
    path = files.path(1, CONDEMNED)
    data = path.read_bytes()
    altered = {'shorter': data[:-32], 'longer': data + bytes(32), 'changed': b'\0' + data[1:], 'count': data}
    path.write_bytes(altered[what])
    with pytest.raises(Corrupt, match='the file condemned'):
        files.check(1, CONDEMNED, digest, 19 if what == 'count' else 20)


@pytest.mark.parametrize('odd', [IDS[::-1], [IDS[0], IDS[0]], [*IDS[:7], *IDS[6:]], [IDS[0], b'x']])
def test_a_list_out_of_order_is_corrupt_also_between_slices(files, odd):
    files.path(1, CONDEMNED).write_bytes(b''.join(odd))
    with pytest.raises(Corrupt, match='no ascending list'):
        list(files.ids(1, CONDEMNED, 7))


def test_a_file_that_is_missing_is_corrupt_and_not_empty(files):
    calls = (
        lambda: files.plan(1, PLAN),
        lambda: files.digest(1, CONDEMNED),
        lambda: list(files.ids(1, CONDEMNED, 7)),
        lambda: list(files.receipt(1, PLAN, PLAN)),
        lambda: list(files.receipt(5, PLAN, PLAN)),
    )
    for call in calls:
        with pytest.raises(Corrupt, match='is missing'):
            call()


def test_a_receipt_is_read_back_in_slices(files, monkeypatch):
    monkeypatch.setattr('snapfs.limits.RECEIPT_ROWS_PER_READ', 6)
    digest = files.write_receipt(1, PLAN, 20, [ROWS[:9], ROWS[9:]])
    assert list(files.receipt(1, digest, PLAN)) == [ROWS[:6], ROWS[6:12], ROWS[12:18], ROWS[18:]]
    assert digest == data_id(files.path(1, RECEIPT).read_bytes())


def test_a_receipt_that_is_not_whole_or_not_in_order_is_not_written_as_good(files):
    with pytest.raises(Corrupt, match='cannot fill'):
        files.write_receipt(1, PLAN, 21, [ROWS])
    with pytest.raises(Corrupt, match='does not follow'):
        files.write_receipt(1, PLAN, 20, [ROWS[9:], ROWS[:9]])


def test_a_receipt_of_another_batch_plan_or_store_is_corrupt(batch_store, files):
    digest = files.write_receipt(1, PLAN, 20, [ROWS])
    files.make(2)
    files.path(2, RECEIPT).write_bytes(files.path(1, RECEIPT).read_bytes())
    other = BatchFiles(batch_store.disk, batch_store.path, bytes(16))
    for call in (
        lambda: files.receipt(2, digest, PLAN),
        lambda: files.receipt(1, digest, bytes(32)),
        lambda: other.receipt(1, digest, PLAN),
    ):
        with pytest.raises(Corrupt, match='of another plan or store'):
            list(call())
    with pytest.raises(Corrupt, match='not the one that the catalog names'):
        list(files.receipt(1, bytes(32), PLAN))


def test_what_a_worker_wrote_is_taken_over_only_with_its_digest(files):
    digest = files.write_ids(1, 'condemned.part', IDS)
    with pytest.raises(Corrupt, match=r'condemned\.part'):
        files.adopt(1, 'condemned.part', CONDEMNED, bytes(32))
    assert not files.path(1, CONDEMNED).exists()
    files.adopt(1, 'condemned.part', CONDEMNED, digest)
    files.check(1, CONDEMNED, digest, 20)
    assert not files.path(1, 'condemned.part').exists()


def test_a_receipt_is_durable_when_its_digest_is_known(tmp_path):
    for cut in range(1, 30):
        root = tmp_path / f'run-{cut}'
        (root / 'batches').mkdir(parents=True)
        disk = SimDisk(root)
        files = BatchFiles(disk, root, bytes(16))
        files.make(1)
        digest = files.write_receipt(1, PLAN, 20, [ROWS])
        left = disk.crash(cut, tmp_path / f'left-{cut}')
        disk.forget()
        after = BatchFiles(SimDisk(left), left, bytes(16))
        assert list(after.receipt(1, digest, PLAN)) == [ROWS], f'seed {cut}'


def test_a_full_disk_writes_no_receipt(tmp_path):
    (tmp_path / 'batches').mkdir()
    disk = SimDisk(tmp_path)
    files = BatchFiles(disk, tmp_path, bytes(16))
    files.make(1)
    disk.space = 100
    with pytest.raises(Refused, match='no space'):
        files.write_receipt(1, PLAN, 20, [ROWS])
    assert not files.path(1, RECEIPT).exists()
    disk.forget()
