"""Records of a pack added up instead of listed: what that sees, and that a check which sees it begins anew
and says what it would have said with all records listed."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.mutants.setting import small
from tools.breaking.edit import Patient
from tools.checker.check import Options, check
from tools.checker.check import _check as check_once
from tools.checker.findings import Report
from tools.checker.packs import PackResult
from tools.checker.spill import RECORDS
from tools.checker.sums import Sums, mixed_records


def records(chance: random.Random, count: int) -> np.ndarray:
    """Return records of one pack, with any numbers."""
    table = np.zeros(count, dtype=RECORDS)
    for name in RECORDS.names or ():
        bits = 8 * RECORDS[name].itemsize
        table[name] = [chance.getrandbits(bits) for _ in range(count)]
    return table


def test_order_and_slices_do_not_matter() -> None:
    table = records(random.Random(1), 1000)
    one, other = Sums(), Sums()
    one.add_records(7, [table])
    shuffled = table[np.random.default_rng(1).permutation(len(table))]
    other.add_records(7, [shuffled[:10], shuffled[10:]])
    assert one == other
    assert one.unlike(other, [7, 8]) == frozenset()  # of 8 there is nothing on either side


@pytest.mark.parametrize('seed', range(200))
def test_any_bit_of_any_number_counts(seed: int) -> None:
    chance = random.Random(seed)
    table = records(chance, 20)
    changed = table.copy()
    name = chance.choice(RECORDS.names or ())
    at = chance.randrange(len(table))
    changed[name][at] ^= 1 << chance.randrange(8 * RECORDS[name].itemsize)
    one, other = Sums(), Sums()
    one.add_records(3, [table])
    other.add_records(3, [changed])
    assert one.unlike(other, [3]) == {3}


def test_numbers_that_change_places_count() -> None:
    """Two rows that have each other's place, or length, or id: no sum of single columns would see it."""
    table = records(random.Random(2), 20)
    for name in RECORDS.names or ():
        changed = table.copy()
        changed[name][[3, 9]] = table[name][[9, 3]]
        one, other = Sums(), Sums()
        one.add_records(3, [table])
        other.add_records(3, [changed])
        assert one.unlike(other, [3]) == {3}, name


def test_a_record_twice_is_not_a_record_once() -> None:
    table = records(random.Random(3), 20)
    one, other = Sums(), Sums()
    one.add_records(3, [table])
    other.add_records(3, [table, table[:1]])
    assert one.unlike(other, [3]) == {3}
    assert len(np.unique(mixed_records(table))) == 20


class Seen:
    """What a quick check says, and how often it looked at which packs without adding up."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rounds: list[tuple[set[int], set[int]]] = []  # (added up, listed)

        def run(self_: object, *arguments: object) -> None:
            self.rounds.append((set(), set()))
            real(self_, *arguments)  # type: ignore[arg-type]

        def looked(*arguments: object) -> PackResult:
            result = look(*arguments)  # type: ignore[arg-type]
            self.rounds[-1][result.sums is None].add(result.number)
            return result

        from tools.checker import check as module

        real, look = module._Check._packs, module.look
        monkeypatch.setattr(module._Check, '_packs', run)
        monkeypatch.setattr(module, 'look', looked)
        self.report = Report()
        with small():
            check(path, Options(full=False, jobs=1), self.report)


def listed(path: Path) -> Report:
    """Return what a quick check says that takes nothing for granted."""
    report = Report()
    with small():
        check_once(path, Options(full=False, jobs=1), report, None)
    return report


def test_a_sound_store_is_looked_at_once_and_sealed_packs_are_added_up(
    image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = Seen(image, monkeypatch)
    assert len(seen.rounds) == 1 and len(seen.rounds[0][0]) > 2
    assert not seen.report.findings
    monkeypatch.undo()
    assert seen.report.facts['balance'] == listed(image).facts['balance']


SWAPPED = """UPDATE chunk SET {0} = CASE id
  WHEN x'{1}' THEN (SELECT {0} FROM chunk WHERE id = x'{2}')
  WHEN x'{2}' THEN (SELECT {0} FROM chunk WHERE id = x'{1}') ELSE {0} END"""


def test_rows_that_name_other_records_are_told_as_when_all_are_listed(
    image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two rows of one pack have each other's offset. Only this pack's records are listed then."""
    path = tmp_path / 'store'
    shutil.copytree(image, path)
    patient = Patient(path, 1)
    rows = patient.sql(
        "SELECT c.id, c.pack FROM chunk c JOIN pack p ON p.pack = c.pack WHERE p.state = 'sealed' AND "
        'p.kind = 1 ORDER BY c.pack, c.id LIMIT 2'
    )
    (one, pack), (other, same) = rows
    assert pack == same
    patient.sql(SWAPPED.format('offset', one.hex(), other.hex()))
    patient.close()
    seen = Seen(path, monkeypatch)
    assert [sorted(listed_ & {pack}) for _, listed_ in seen.rounds] == [[], [pack]]
    assert seen.report.counts['index-record']
    monkeypatch.undo()
    assert seen.report.findings == listed(path).findings


def test_what_an_absent_chunk_is_to_its_pack_is_told_with_all_listed(
    image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / 'store'
    shutil.copytree(image, path)
    patient = Patient(path, 1)
    patient.sql(
        'DELETE FROM chunk WHERE id = (SELECT c.id FROM chunk c JOIN pack p ON p.pack = c.pack '
        "WHERE p.state = 'sealed' AND c.kind = 1 ORDER BY c.id LIMIT 1)"
    )
    patient.close()
    seen = Seen(path, monkeypatch)
    monkeypatch.undo()
    assert seen.report.counts['chunk-unindexed'] == 1
    assert seen.report.findings == listed(path).findings
