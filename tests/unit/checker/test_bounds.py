"""What fsck keeps when very much is lost is bounded; what it leaves out is counted and said."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from snapfs.cli.main import main as snapfs
from snapfs.format.records import HEADER_BYTES
from tests.mutants.setting import small
from tests.unit.checker.brute import IN_LOST_PART, Brute
from tests.unit.checker.test_damage_map import make_random
from tools import fsck
from tools.breaking.edit import Patient
from tools.checker import badrows, losses, naming, telling
from tools.checker.check import Options, check
from tools.checker.findings import FINDINGS_MAX, SHOWN_MAX, UNCHECKED_MAX, Report

WAYS = ('flip', 'row', 'gone', 'node')
LIMITS = (
    {'pairs': 1, 'part': 10_000},
    {'pairs': 3},
    {'files': 4},
    {'paths': 200},
    {'shown': 1},
    {'pairs': 5, 'files': 3, 'shown': 2},
)


def lose_all(path: Path, way: str) -> None:
    """Lose all data, or all nodes."""
    patient = Patient(path, 1)
    kind = 2 if way == 'node' else 1
    for id, pack, offset, stored in patient.sql(
        'SELECT id, pack, offset, stored FROM chunk WHERE kind = ? ORDER BY id', kind
    ):
        if way == 'row' or way == 'node':
            patient.sql('DELETE FROM chunk WHERE id = ?', id)
        elif way == 'flip':
            patient.flip(patient.pack(pack), offset + HEADER_BYTES + stored // 2)
        elif way == 'gone' and patient.pack(pack).exists():
            patient.gone(patient.pack(pack))
    patient.close()


def limit(monkeypatch: pytest.MonkeyPatch, limits: dict[str, int]) -> Report:
    if 'pairs' in limits:
        monkeypatch.setattr(losses, 'PAIRS_MAX', limits.get('part', limits['pairs'] + 2))
        monkeypatch.setattr(telling, 'PAIRS_MAX', limits['pairs'])
    if 'files' in limits:
        monkeypatch.setattr(naming, 'FILES_MAX', limits['files'])
    if 'paths' in limits:
        monkeypatch.setattr(naming, 'PATHS_BYTES_MAX', limits['paths'])
    return Report(shown_max=limits.get('shown', 10_000))


def run(path: Path, report: Report, *, names: bool = False) -> Report:
    with small():
        check(path, Options(full=not names, jobs=1, names=names), report)
    return report


def ranges(report: Report, brute: Brute) -> set[Any]:
    """The ranges of files that a report names, each once, whatever the names of its file."""
    means = brute.shown()
    found = set()
    for one in report.findings:
        for file in one.files:
            if file[1].endswith(f'({IN_LOST_PART})'):
                continue  # names of what a lost part of a tree had: that part counts once
            (ino,) = {loss[2] for loss in means[file]}
            attribute = {loss[5] for loss in means[file]} if file[2] is None else None
            found.add((one.code, one.place, file[0], ino, *file[2:], str(attribute)))
    return found


@pytest.mark.parametrize('way', WAYS)
@pytest.mark.parametrize('limits', LIMITS, ids=str)
def test_what_is_left_out_is_counted(
    way: str, limits: dict[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seed = 9 if way == 'node' else WAYS.index(way)
    path = tmp_path / 'store'
    make_random(path, seed)
    lose_all(path, way)
    where = f'seed {seed}, {way}'
    whole = run(path, Report(shown_max=10_000))
    all_files = {(one.code, one.place): set(one.files) for one in whole.findings}
    chunks = {(one.code, one.place): one.facts.get('chunks') for one in whole.findings}
    total = sum(map(len, all_files.values()))
    assert total > 8 and not whole.left_out() and whole.facts['files_left_out'] == 0, where

    report = run(path, limit(monkeypatch, limits))
    assert report.counts == whole.counts, where
    kept = sum(len(one.files) for one in report.findings)
    assert kept < total or limits == {'shown': 1}, where  # all is about one pack
    brute = Brute(path, True)
    # What was never looked at counts once for each file, whatever its names.
    least, most = len(ranges(whole, brute)) - len(ranges(report, brute)), total - kept
    if limits.keys() <= {'files', 'paths'}:
        least = most
    elif not limits.keys() & {'files', 'paths'}:
        most = least
    assert least <= report.facts['files_left_out'] <= most, where
    assert kept <= limits.get('files', total), where
    # A pair is one range in each root at most; a lost top is told without one.
    assert len(ranges(report, brute)) <= (limits.get('pairs', total) + 1) * len(brute.trees), where
    assert report.facts['snapshots'] == whole.facts['snapshots'], where
    assert set(whole.facts['snapshots']) == {loss[1] for loss in brute.losses()}, where
    for one in report.findings:
        assert set(one.files) <= all_files[one.code, one.place], where
        assert one.facts.get('chunks') == chunks[one.code, one.place], where
        needed = bool(all_files[one.code, one.place])
        if one.facts:
            assert one.what.endswith('nothing that stands needs it') is not needed, where
    shown = sum(report.left_out().values()) + len(report.findings)
    assert shown == sum(whole.counts.values()), where


def test_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / 'store'
    make_random(path, 1)
    lose_all(path, 'row')
    limit(monkeypatch, {'pairs': 3})
    with small():
        assert fsck.main(['--jobs', '1', str(path)]) == 4
        text = capsys.readouterr().out
        assert fsck.main(['--jobs', '1', '--json', str(path)]) == 4
        told = json.loads(capsys.readouterr().out)
        assert snapfs(['damage', str(path)]) == 4
        damage_text = capsys.readouterr().out
        assert snapfs(['damage', '--json', str(path)]) == 4
        damage = json.loads(capsys.readouterr().out)
    assert told['files_left_out'] > 0 and damage['files_left_out'] > 0
    assert f'NOT COMPLETE: {told["files_left_out"]} more' in text
    assert f'NOT COMPLETE: {damage["files_left_out"]} more' in damage_text
    assert told['snapshots'] == damage['snapshots'] != []
    for name in told['snapshots']:
        assert f'{name} is damaged' in text and f'{name} is damaged' in damage_text
    assert told['left_out'] == damage['left_out'] == {}
    files = [file for one in damage['damage'] for file in one['files']]
    assert len(files) == sum(len(one['files']) for one in told['findings']) > 0
    assert files[0].keys() == {'in', 'path', 'start', 'end'}


def test_findings_left_out_are_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / 'store'
    make_random(path, 1)
    lose_all(path, 'row')
    monkeypatch.setattr(fsck, 'Report', lambda bar: Report(bar, shown_max=2))
    with small():
        assert fsck.main(['--jobs', '1', '--json', str(path)]) == 4
        told = json.loads(capsys.readouterr().out)
        assert fsck.main(['--jobs', '1', str(path)]) == 4
    missing = told['left_out']['chunk-unindexed']
    assert missing == told['counts']['chunk-unindexed'] - 2 > 0
    assert f'chunk-unindexed: {missing} more' in capsys.readouterr().out


def test_a_report_is_bounded_in_all() -> None:
    report = Report(shown_max=FINDINGS_MAX)
    for number in range(FINDINGS_MAX + 10):
        report.add('chunk-missing', f'chunk {number}', 'is gone')
    for number in range(SHOWN_MAX + 10):
        report.add('leaked', f'{number}', 'is there')
    for number in range(UNCHECKED_MAX + 10):
        report.could_not(f'{number}', 'no right')
    assert report.left_out() == {'chunk-missing': 10, 'leaked': 10}
    assert len(report.findings) == FINDINGS_MAX + SHOWN_MAX
    assert report.unchecked[UNCHECKED_MAX:] == ['10 more']


def test_bad_records_are_kept_on_the_disk(tmp_path: Path) -> None:
    for seed in range(20):
        chance = random.Random(f'bad {seed}')
        writer = badrows.BadWriter(tmp_path)
        for _ in range(3):
            if chance.random() < 0.3:
                writer.add(77, 'record-header', f'of a pack that was given up {chance.random()}')
            writer.begin()
            expected: dict[int, tuple[str, str]] = {}
            for _ in range(chance.randrange(20)):
                offset, code = chance.randrange(30), chance.choice(badrows.CODES)
                expected[offset] = code, f'what {chance.randrange(5)}'
                writer.add(offset, *expected[offset])
            rows = writer.finish()
            if rows is None:
                assert not expected, seed
                continue
            found = rows.read()
            seen = {int(row['offset']): (badrows.CODES[row['code']], rows.what(row)) for row in found}
            assert seen == expected, seed
            assert list(found['offset']) == sorted(expected), seed
            some = [number for number in range(len(found)) if chance.random() < 0.5]
            rows.name(badrows.np.array(some, dtype=badrows.np.int64))
            assert [number for number, row in enumerate(rows.read()) if row['named']] == some, seed
        for path in tmp_path.iterdir():
            path.unlink()
