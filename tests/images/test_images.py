"""Each kind of damage, and exactly what fsck must say of it: no more, no less."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from snapfs.format.ids import data_id
from tests.images.flips import FOUND, MISSED, Flips
from tests.images.image import make
from tests.mutants.setting import small
from tests.support.fsck import report_of
from tools.breaking.edit import Patient
from tools.breakit import KINDS, break_it, main

SAME: dict[str, int] | None = None
File = tuple[str, str, int | None, int | None]


@dataclass(frozen=True, slots=True)
class Seen:
    """Codes with how often a full check reports each; those of a quick one (SAME: the same); the first file
    of home@monday that is named, and how many there are."""

    full: dict[str, int]
    quick: dict[str, int] | None
    file: File | None
    files: int


EXPECTED = {
    'superblock-flip': Seen({'superblock-bad': 1}, SAME, None, 0),
    'superblock-version': Seen({'superblock-bad': 1}, SAME, None, 0),
    'superblock-gone': Seen({'superblock-bad': 1}, SAME, None, 0),
    'superblock-backups': Seen({'superblock-bad': 1}, SAME, None, 0),
    'superblock-copy': Seen({'superblock-copy': 1}, SAME, None, 0),
    'superblock-mirror': Seen({'superblock-copy': 1}, SAME, None, 0),
    'lock-garbage': Seen({}, SAME, None, 0),
    'stray-file': Seen({'entry-unknown': 1}, SAME, None, 0),
    'stray-pack': Seen({'pack-unknown': 1}, SAME, None, 0),
    'pack-foreign': Seen({'pack-foreign': 1}, SAME, None, 0),
    'payload-flip': Seen({'record-payload': 1}, {}, ('home@monday', '/directory 0/below/one', 0, 900), 1),
    'payload-zeros': Seen({'record-payload': 1}, {}, ('home@monday', '/directory 0/below/two', 0, 900), 1),
    'header-flip': Seen({'record-header': 1}, {}, ('home@monday', '/directory 0/below/one', 0, 900), 1),
    'record-torn': Seen({'record-payload': 1}, {}, ('home@monday', '/directory 0/below/three', 0, 900), 1),
    'records-swapped': Seen({'record-header': 2}, {}, ('home@monday', '/directory 0/below/one', 0, 900), 2),
    'record-doubled': Seen({}, SAME, None, 0),
    'pack-header-flip': Seen({'pack-header': 1}, SAME, None, 0),
    'pack-footer-flip': Seen({'pack-footer': 1}, SAME, None, 0),
    'pack-trailer-flip': Seen({'pack-footer': 1}, SAME, None, 0),
    'pack-cut': Seen({'pack-short': 1}, SAME, ('home@monday', '/directory 0/below/one', 0, 900), 15),
    'pack-longer': Seen({'pack-footer': 1}, SAME, None, 0),
    'data-pack-gone': Seen({'pack-missing': 1}, SAME, ('home@monday', '/directory 0/below/one', 0, 900), 17),
    'meta-pack-gone': Seen(
        {'pack-missing': 1},
        SAME,
        ('home@monday', '/ (a part of the tree, inodes 1 to 19: names below are not known)', None, None),
        9,
    ),
    'pack-misplaced': Seen(
        {'pack-misplaced': 1, 'pack-missing': 1}, SAME, ('home@monday', '/directory 0/below/one', 0, 900), 17
    ),
    'pack-exchanged': Seen(
        {'index-record': 1, 'pack-footer': 1, 'pack-misplaced': 1, 'record-header': 1},
        SAME,
        ('home@monday', '/directory 0/below/one', 0, 900),
        17,
    ),
    'pack-a-link': Seen(
        {'entry-odd': 1, 'entry-unknown': 1, 'pack-missing': 1},
        SAME,
        ('home@monday', '/directory 0/below/one', 0, 900),
        17,
    ),
    'leaf-flip': Seen(
        {'record-payload': 1},
        SAME,
        ('home@monday', '/ (a part of the tree, inodes 1 to 1: names below are not known)', None, None),
        1,
    ),
    'branch-flip': Seen({'record-payload': 1}, SAME, ('home@monday', '/ (the whole tree)', None, None), 1),
    'top-flip': Seen({'record-payload': 1}, SAME, ('home@monday', '/ (the whole tree)', None, None), 1),
    'open-pack-flip': Seen({'record-payload': 1}, {}, None, 0),
    'index-row-gone': Seen(
        {'chunk-unindexed': 1, 'record-unindexed': 1, 'request-incomplete': 1},
        SAME,
        ('home@monday', '/directory 0/below/one', 0, 900),
        1,
    ),
    'index-node-gone': Seen(
        {'chunk-unindexed': 1, 'record-unindexed': 1},
        SAME,
        ('home@monday', '/ (a part of the tree, inodes 1 to 1: names below are not known)', None, None),
        1,
    ),
    'index-elsewhere': Seen({'index-record': 1}, SAME, ('home@monday', '/directory 0/below/one', 0, 900), 1),
    'index-length': Seen(
        {'catalog-row': 1, 'chunk-length': 1, 'index-record': 1},
        {'catalog-row': 1, 'index-record': 1},
        ('home@monday', '/directory 0/below/one', 0, 900),
        1,
    ),
    'index-id-end': Seen(
        {'chunk-unindexed': 1, 'index-record': 1, 'leaked': 1, 'request-incomplete': 1},
        SAME,
        ('home@monday', '/directory 0/below/one', 0, 900),
        1,
    ),
    'index-no-pack': Seen({'index-record': 1}, SAME, ('home@monday', '/directory 0/below/one', 0, 900), 1),
    'index-behind': Seen({'index-record': 1}, SAME, ('home@monday', '/directory 0/below/one', 0, 900), 1),
    'totals-items': Seen({'node-totals': 1, 'root-totals': 1}, SAME, None, 0),
    'totals-header': Seen({'node-unreadable': 1}, SAME, ('home@monday', '/ (the whole tree)', None, None), 1),
    'reference-lost': Seen(
        {'allocated-bytes': 1, 'node-totals': 1},
        {'node-totals': 1},
        ('home@monday', '/directory 0/below/one', None, None),
        1,
    ),
    'root-totals': Seen({'root-totals': 1}, SAME, None, 0),
    'level-wrong': Seen({'node-totals': 9}, SAME, None, 0),
    'leaves-exchanged': Seen({'inode-missing': 2, 'node-order': 2}, {}, ('home@monday', '/', None, None), 2),
    'child-elsewhere': Seen(
        {'chunk-missing': 1},
        SAME,
        ('home@monday', '/ (a part of the tree, inodes 1 to 1: names below are not known)', None, None),
        1,
    ),
    'link-count': Seen({'link-count': 1}, {}, ('home@monday', '/directory 0/below/one', None, None), 1),
    'directory-links': Seen({'link-count': 1}, {}, ('home@monday', '/directory 0', None, None), 1),
    'directory-size': Seen({'directory-size': 1}, {}, ('home@monday', '/directory 0', None, None), 1),
    'entry-dangling': Seen(
        {'entry-dangling': 1, 'inode-orphan': 1}, {}, ('home@monday', '/(inode 18)', None, None), 2
    ),
    'entry-type': Seen({'entry-dangling': 1}, {}, ('home@monday', '/directory 0/below', None, None), 1),
    'inode-orphan': Seen({'inode-orphan': 1}, {}, ('home@monday', '/(inode 18)', None, None), 1),
    'directory-cycle': Seen(
        {'directory-orphan': 2}, {}, ('home@monday', '/(inode 16)/below/directory 0', None, None), 2
    ),
    'two-parents': Seen({'directory-parent': 1}, {}, ('home@monday', '/directory 0/below', None, None), 1),
    'top-below-itself': Seen({'directory-parent': 1}, {}, ('home@monday', '/', None, None), 1),
    'parent-wrong': Seen({'directory-parent': 1}, {}, ('home@monday', '/directory 0/below', None, None), 1),
    'extents-overlap': Seen({'extent-overlap': 1}, {}, ('home@monday', '/cut in pieces', None, None), 1),
    'extent-beyond': Seen({'extent-beyond': 1}, {}, ('home@monday', '/directory 0/below/one', None, None), 1),
    'extent-length': Seen({'chunk-length': 1}, {}, ('home@monday', '/directory 0/below/one', 0, 899), 1),
    'allocated': Seen({'allocated-bytes': 1}, {}, ('home@monday', '/directory 0/below/one', None, None), 1),
    'inode-gone': Seen(
        {'entry-dangling': 1, 'inode-missing': 1}, {}, ('home@monday', '/directory 0/below', None, None), 2
    ),
    'item-value': Seen(
        {'entry-dangling': 1, 'item-bad': 1}, {}, ('home@monday', '/directory 0/below', None, None), 2
    ),
    'xattr-hidden': Seen({'xattr-flag': 1}, {}, ('home@monday', '/hard too', None, None), 1),
    'name-hash': Seen({'name-hash': 1}, {}, ('home@monday', '/directory 0/below', None, None), 1),
    'next-ino': Seen({'inode-number': 1}, {}, ('home@monday', '/pipe', None, None), 1),
    'catalog-gone': Seen({'catalog-missing': 1}, SAME, None, 0),
    'catalog-garbage': Seen({'catalog-corrupt': 1}, SAME, None, 0),
    'catalog-page': Seen({'catalog-corrupt': 1}, SAME, None, 0),
    'catalog-schema': Seen({'catalog-corrupt': 1}, SAME, None, 0),
    'catalog-version': Seen({'catalog-corrupt': 1}, SAME, None, 0),
    'epoch-back': Seen({'catalog-row': 4}, SAME, None, 0),
    'setting-gone': Seen({'catalog-row': 1}, SAME, None, 0),
    'snapshot-rootless': Seen({'catalog-row': 1, 'root-totals': 1}, SAME, None, 0),
    'snapshot-other-root': Seen({'root-totals': 1}, SAME, None, 0),
    'snapshot-root-end': Seen(
        {'chunk-missing': 1}, SAME, ('home@monday', '/ (the whole tree)', None, None), 1
    ),
    'hold-of-nobody': Seen({'catalog-row': 1}, SAME, None, 0),
    'request-empty': Seen({'catalog-row': 1, 'leaked': 1}, SAME, None, 0),
    'damage-row': Seen({'damage-healed': 1}, {'damage-known': 1}, None, 0),
    'incident-open': Seen({'incident': 1}, SAME, None, 0),
    'live-condemned': Seen(
        {'chunk-condemned': 1}, SAME, ('home@monday', '/directory 0/below/one', 0, 900), 1
    ),
    'live-freed': Seen(
        {'chunk-freed': 1, 'freed-unproved': 1, 'request-incomplete': 1},
        SAME,
        ('home@monday', '/directory 0/below/one', 0, 900),
        1,
    ),
    'quarantine-lost': Seen({'record-unindexed': 1, 'request-incomplete': 1}, SAME, None, 0),
    'batch-forged': Seen({'catalog-row': 1}, SAME, None, 0),
    'plan-flip': Seen({'batch-file': 1, 'view-unaccounted': 1}, SAME, None, 0),
    'receipt-flip': Seen({'freed-unproved': 1, 'receipt-bad': 1}, SAME, None, 0),
    'certificate-flip': Seen({'certificate-bad': 1}, SAME, None, 0),
    'condemned-flip': Seen({'batch-file': 1}, SAME, None, 0),
    'plan-gone': Seen({'batch-file': 1, 'view-unaccounted': 1}, SAME, None, 0),
    'receipt-gone': Seen({'freed-unproved': 11, 'receipt-bad': 1}, SAME, None, 0),
    'certificate-gone': Seen({'certificate-bad': 1}, SAME, None, 0),
    'journal-gone': Seen({'journal-bad': 1, 'pack-tail': 1}, SAME, None, 0),
    'journal-short': Seen({'journal-bad': 1, 'pack-tail': 1}, SAME, None, 0),
    'journal-block': Seen({'journal-bad': 1, 'pack-tail': 1}, SAME, None, 0),
    'journal-middle': Seen({'journal-bad': 1}, SAME, None, 0),
    'journal-last': Seen({'journal-torn': 1}, SAME, None, 0),
    'journal-zeros': Seen({'journal-bad': 1, 'pack-tail': 1}, SAME, None, 0),
    'audit-flip': Seen({'audit-broken': 1}, SAME, None, 0),
    'audit-line-gone': Seen({'audit-broken': 1}, SAME, None, 0),
    'audit-cut': Seen({'audit-broken': 1}, SAME, None, 0),
    'mirror-flip': Seen({'mirror-bad': 1}, {}, None, 0),
    'mirror-cut': Seen({}, SAME, None, 0),
    'mirror-gone': Seen({}, SAME, None, 0),
    'mirror-gone-top-flip': Seen(
        {'record-payload': 1}, SAME, ('home@monday', '/ (the whole tree)', None, None), 1
    ),
    'audit-gone': Seen({'audit-broken': 1}, SAME, None, 0),
    'catalog-stale': Seen({'view-unaccounted': 1}, SAME, None, 0),
}
HARMLESS = {
    'mirror-flip',
    'mirror-cut',
    'mirror-gone',
    'lock-garbage',
    'stray-file',
    'stray-pack',
    'record-doubled',
    'journal-last',
    'incident-open',
}


@pytest.fixture(scope='module')
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp('whole') / 'store'
    make(path)
    return path


def test_every_kind_has_an_expectation_and_there_are_enough():
    assert EXPECTED.keys() == KINDS.keys()
    assert len(KINDS) >= 40


@pytest.mark.parametrize('full', [True, False])
def test_nothing_is_found_in_a_whole_store(whole, full):
    before = {path: path.read_bytes() for path in whole.rglob('*') if path.is_file()}
    with small():
        report = report_of(whole, full=full)
    assert not report.findings and not report.unchecked
    assert {path: path.read_bytes() for path in whole.rglob('*') if path.is_file()} == before, 'it wrote'
    balance = report.facts['balance']
    assert balance['indexed'] == balance['reachable'] + balance['requested'] + balance['leaked']
    assert balance['quarantined'] > 0 and balance['requested'] > 0


@pytest.mark.parametrize('name', KINDS)
def test_exactly_this_is_found(whole, tmp_path, name):
    path = tmp_path / 'store'
    shutil.copytree(whole, path, symlinks=True)
    assert break_it(path, name, seed=1), 'it says what it did'
    expected = EXPECTED[name]
    with small():
        full, quick = report_of(path), report_of(path, full=False)
    assert dict(full.counts) == expected.full
    assert dict(quick.counts) == (expected.full if expected.quick is None else expected.quick)
    files = sorted({file for one in full.findings for file in one.files if file[0] == 'home@monday'}, key=str)
    assert (files[0] if files else None, len(files)) == (expected.file, expected.files)
    damaged = any(one.severity == 'damage' for one in full.findings)
    assert damaged is (
        name not in HARMLESS
        and name not in {'damage-row', 'catalog-stale', 'superblock-copy', 'superblock-mirror'}
    )


def test_breakit_wants_to_be_told_which_store_and_that_you_mean_it(whole, tmp_path, capsys):
    path = tmp_path / 'store'
    shutil.copytree(whole, path)
    before = {one: one.read_bytes() for one in path.rglob('*') if one.is_file()}
    with pytest.raises(SystemExit):
        main([str(path), 'link-count'])
    with pytest.raises(SystemExit):
        main([str(path), 'link-count', '--destroy', '0' * 32])
    assert {one: one.read_bytes() for one in path.rglob('*') if one.is_file()} == before
    assert 'add --destroy' in capsys.readouterr().err
    assert main(['--list']) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(KINDS)


@pytest.mark.parametrize('seed', range(2))
def test_a_flipped_bit_is_found_or_means_nothing(tmp_path, seed):
    make(tmp_path / 'store')
    with small():
        outcomes = list(Flips(tmp_path / 'store', seed).run(100))
        assert not report_of(tmp_path / 'store').findings, 'each flip was turned back'
    missed = [place for _, outcome, place in outcomes if outcome == MISSED]
    assert not missed, f'seed {seed}'
    assert sum(outcome == FOUND for _, outcome, _ in outcomes) > 40


@pytest.mark.parametrize(
    'text', [b'[]', b'7', b'null', b'{"requests":[3]}', b'{"requests":7}', b'[' * 50_000]
)
def test_a_plan_that_is_none_behind_a_right_digest_is_a_finding(whole, tmp_path, text):
    path = tmp_path / 'store'
    shutil.copytree(whole, path)
    patient = Patient(path, seed=1)
    ((number,),) = patient.db.execute("SELECT max(number) FROM batch WHERE state = 'FREED'").fetchall()
    (path / 'batches' / str(number) / 'plan.json').write_bytes(text)
    patient.sql('UPDATE batch SET digest = ? WHERE number = ?', data_id(text), number)
    patient.close()
    with small():
        report = report_of(path)
    assert report.counts['batch-file'] >= 1
