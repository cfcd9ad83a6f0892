"""Packs that are there and cannot be read: by the disk's fault, which is damage, or for want of a right."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from snapfs.cli.main import main as snapfs
from tests.images.image import make
from tests.mutants.setting import small
from tools import fsck
from tools.breaking.edit import Patient
from tools.breaking.kinds import data_place, node_place
from tools.checker import packs, store
from tools.checker.check import Options, check
from tools.checker.findings import Report

OPEN, READ = store.Store.opened, store.read_at


@pytest.fixture(scope='module')
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp('image') / 'store'
    make(path)
    return path


def place(image: Path, kind: str) -> tuple[Path, int, int]:
    """A pack of the victim, and where one of its records is."""
    patient = Patient(image, 1)
    found = data_place(patient)[:3] if kind == 'data' else node_place(patient, 0)
    patient.close()
    return found


def refuse_to_open(monkeypatch: pytest.MonkeyPatch, path: Path, number: int) -> None:
    def opened(self: store.Store, *parts: str) -> object:
        if self.path.joinpath(*parts) == path:
            raise OSError(number, os.strerror(number))
        return OPEN(self, *parts)

    monkeypatch.setattr(store.Store, 'opened', opened)


def refuse_to_read(monkeypatch: pytest.MonkeyPatch, path: Path, hit: Callable[[int, int], bool]) -> None:
    """Reads of this file that touch (from, to) give EIO."""
    inode = path.stat().st_ino

    def read_at(fd: int, size: int, offset: int) -> bytes:
        if os.fstat(fd).st_ino == inode and hit(offset, offset + size):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return READ(fd, size, offset)

    monkeypatch.setattr(packs, 'read_at', read_at)


def report_of(path: Path, **options: bool) -> Report:
    report = Report()
    with small():
        check(path, Options(jobs=1, **options), report)
    return report


@pytest.mark.parametrize('kind', ['data', 'meta'])
@pytest.mark.parametrize('options', [{}, {'full': False}, {'full': False, 'names': True}], ids=str)
@pytest.mark.parametrize('number', [errno.EACCES, errno.EPERM])
def test_one_that_nobody_lets_us_open(
    image: Path, monkeypatch: pytest.MonkeyPatch, kind: str, options: dict[str, bool], number: int
) -> None:
    path, _, _ = place(image, kind)
    refuse_to_open(monkeypatch, path, number)
    report = report_of(image, **options)
    assert not report.findings
    assert len(report.unchecked) == 1
    assert report.unchecked[0].startswith(f'{path.relative_to(image)}: {os.strerror(number)}')
    assert fsck.exit_code(report) == fsck.UNCHECKED


@pytest.mark.parametrize('options', [{}, {'full': False}, {'full': False, 'names': True}], ids=str)
def test_one_that_the_disk_does_not_open(
    image: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, bool]
) -> None:
    path, _, _ = place(image, 'data')
    refuse_to_open(monkeypatch, path, errno.EIO)
    report = report_of(image, **options)
    assert dict(report.counts) == {'pack-unreadable': 1}
    assert ('home@monday', '/directory 0/below/one', 0, 900) in report.findings[0].files
    assert fsck.exit_code(report) == fsck.DAMAGED


def test_a_record_that_the_disk_does_not_give(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, offset, stored = place(image, 'data')
    monkeypatch.setattr(packs, 'BLOCK_BYTES', 64)
    at = offset + stored // 2
    refuse_to_read(monkeypatch, path, lambda start, end: start <= at < end)
    report = report_of(image)
    assert dict(report.counts) == {'pack-unreadable': 1}
    (finding,) = report.findings
    assert 'disk' in finding.what and finding.facts['chunks'] == 1
    home = [file for file in finding.files if file[0] == 'home@monday']
    assert home == [('home@monday', '/directory 0/below/one', 0, 900)]
    assert not report_of(image, full=False).findings, 'a quick check does not read it'


def test_a_leaf_that_the_disk_does_not_give(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, offset, stored = place(image, 'meta')
    monkeypatch.setattr(packs, 'BLOCK_BYTES', 64)
    at = offset + stored // 2
    refuse_to_read(monkeypatch, path, lambda start, end: start <= at < end)
    for options in ({}, {'full': False}, {'full': False, 'names': True}):
        report = report_of(image, **options)
        assert dict(report.counts) == {'pack-unreadable': 1}, options
        assert any('a part of the tree' in file[1] for file in report.findings[0].files), options


def test_a_footer_and_a_header_that_the_disk_does_not_give(
    image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is lost: all records are found. But it is damage."""
    path, _, _ = place(image, 'data')
    monkeypatch.setattr(packs, 'BLOCK_BYTES', 16)
    end = path.stat().st_size
    for at in (end - 1, 20):
        refuse_to_read(monkeypatch, path, lambda start, stop, at=at: start <= at < stop)
        report = report_of(image)
        assert dict(report.counts) == {'pack-unreadable': 1}, at
        assert not report.findings[0].files, at


def test_a_disk_that_gives_nothing_is_not_asked_for_each_block(
    image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, _, _ = place(image, 'data')
    monkeypatch.setattr(packs, 'BLOCK_BYTES', 16)
    monkeypatch.setattr(packs, 'BLOCKS_TRIED_MAX', 5)
    asked = 0

    def never(start: int, end: int) -> bool:
        nonlocal asked
        asked += end - start <= 16
        return True

    refuse_to_read(monkeypatch, path, never)
    report = report_of(image)
    assert dict(report.counts) == {'pack-unreadable': 1}
    assert ('home@monday', '/directory 0/below/one', 0, 900) in report.findings[0].files
    assert asked < 20


@pytest.mark.parametrize('number', [errno.EACCES, errno.EIO])
def test_a_folder_that_nobody_lets_us_list(image: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    entries = store.Store.entries

    def refused(self: store.Store, *parts: str) -> list[str]:
        if len(parts) == 3:
            raise OSError(number, os.strerror(number))
        return entries(self, *parts)

    monkeypatch.setattr(store.Store, 'entries', refused)
    report = report_of(image)
    assert not report.findings
    assert report.unchecked and all(os.strerror(number) in text for text in report.unchecked)


def test_no_room_for_what_is_noted_is_nobodys_damage(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr('tools.checker.spill.Spill.add', full)
    report = report_of(image)
    assert not report.findings and '--scratch' in report.unchecked[0]


@pytest.mark.parametrize('parts', [('journal', '0'), ('audit.log',)])
def test_a_part_that_we_may_not_open_is_not_checked_and_no_damage(image, monkeypatch, parts):
    """As with packs and the catalog: what is closed to us is never told as damage, nor as clean."""
    refuse_to_open(monkeypatch, image.joinpath(*parts), errno.EACCES)
    report = Report()
    with small():
        check(image, Options(full=False, jobs=1), report)
    assert [str(one) for one in report.findings if one.severity == 'damage'] == []
    assert any('Permission denied' in text for text in report.unchecked)


def test_the_map_of_damage_says_that_it_is_not_complete(
    image: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path, _, _ = place(image, 'data')
    refuse_to_open(monkeypatch, path, errno.EACCES)
    with small():
        assert snapfs(['damage', str(image)]) == fsck.UNCHECKED
    assert 'NOT CHECKED' in capsys.readouterr().out


@pytest.mark.parametrize('number', [errno.EIO, errno.ESTALE, errno.EACCES])
def test_a_disk_that_answers_nothing_is_not_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Found by a power cut below the store: fsck ended with a traceback."""

    def fail(_path: object) -> list[str]:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr('tools.checker.store.os.listdir', fail)
    report = Report()
    check(tmp_path, Options(), report)
    assert report.unchecked == [f'{tmp_path}: {os.strerror(number)}'] and not report.findings


def test_without_room_for_temporary_files_nothing_is_said_of_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / 'superblock').touch()

    def fail(**_options: object) -> str:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr('tools.checker.store.tempfile.mkdtemp', fail)
    assert fsck.main([str(tmp_path)]) == 16
    assert (
        'no temporary files can be made: No space left on device. See --scratch.' in capsys.readouterr().err
    )
