"""What the README's table of damages says, for one kind of each sort; `python -m tests.images.ways_back`
makes all of it."""

from pathlib import Path

import pytest

from tests.images.ways_back import GROUPS, Outcome, Setting, group_of, table
from tools.breakit import KINDS

# What became of the store; how many of 44 files of snapshots were read at once, recovered, and with donors.
EXPECTED = {
    'superblock-gone': ('after a rebuild', 44, 44, 44),
    'data-pack-gone': ('as it was', 10, 10, 40),
    'pack-header-flip': ('as it was', 44, 44, 44),
    'index-row-gone': ('as it was', 42, 44, 44),
    'top-flip': ('as it was', 44, 44, 44),
    'meta-pack-gone': ('as it was', 44, 44, 44),
    'mirror-gone-top-flip': ('as it was', 23, 23, 23),
    'totals-header': ('as it was', 23, 23, 23),
    'setting-gone': ('after a rebuild', 44, 44, 44),
    'snapshot-other-root': ('as it was', 23, 44, 44),
    'snapshot-root-end': ('as it was', 23, 44, 44),
    'live-freed': ('as it was', 44, 44, 44),
    'journal-middle': ('after a rebuild', 44, 44, 44),
    'audit-gone': ('as it was', 44, 44, 44),
}


@pytest.fixture(scope='module')
def setting(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    return Setting(tmp_path_factory.mktemp('ways'))


@pytest.mark.slow
@pytest.mark.parametrize('name', EXPECTED)
def test_so_much_comes_back(setting: Setting, name: str) -> None:
    one = setting.measure(name)
    assert one.found
    assert (one.opened, one.read, one.recovered, one.with_donors) == EXPECTED[name], one.errors
    assert one.files == 44


def test_every_kind_has_its_row() -> None:
    outcomes = [Outcome(name, True, 'as it was', 1, 1, 1, 1) for name in KINDS]
    rows = list(table(outcomes))[2:]
    assert len(rows) == len(GROUPS)
    assert (
        sum(int(row.split('|')[2]) for row in rows)
        == len(KINDS)
        == len({*map(group_of, KINDS), *KINDS}) - len(GROUPS)
    )


def test_what_was_not_told_and_what_was_lost_is_in_the_table(tmp_path: Path) -> None:
    outcomes = [
        Outcome('payload-flip', False, 'no', 0, 0, 0, 5),
        Outcome('leaf-flip', True, 'after a rebuild', 3, 4, 5, 5),
    ]
    assert list(table(outcomes))[2:] == [
        '| packs and records | 2 | 1 | 0, 1 after a rebuild, 1 not | 3 of 10 | 4 | 5 | 5 |'
    ]
