"""What findings mean and advise: commands that can be copied, and no damage that nobody has."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from snapfs.format.records import HEADER_BYTES
from tests.mutants.setting import small
from tools import fsck
from tools.breaking.edit import Patient
from tools.breakit import break_it
from tools.checker.check import Options, check
from tools.checker.findings import Report


def found(path: Path, *, names: bool = False) -> Report:
    report = Report()
    with small():
        check(path, Options(full=not names, jobs=1, names=names), report)
    return report


def test_commands_name_the_store(store: Path) -> None:
    break_it(store, 'payload-flip', seed=1)
    (one,) = [one for one in found(store).findings if one.severity == 'damage']
    assert f"snapfs recover --verify VOLUME@SNAPSHOT --store '{store}' (--donors DIR" in one.advice(
        str(store)
    )
    shutil.rmtree(store / 'packs')
    (store / 'catalog.sqlite').write_bytes(b'nonsense')
    texts = [one.advice(str(store)) for one in found(store).findings if one.code.startswith('catalog-')]
    assert texts and f"snapfs rebuild '{store}' '{store}'/catalog.new --install" in texts[0]


def unneeded_pack(store: Path) -> Path:
    """Let the catalog name a pack that is not there, and no chunk in it: what is left when all of a lost pack
    came back elsewhere."""
    patient = Patient(store, 1)
    patient.sql(
        "INSERT INTO pack VALUES ((SELECT max(pack) + 1 FROM pack), randomblob(16), 1, 'sealed', 500, 3)"
    )
    patient.sql("UPDATE settings SET value = (SELECT max(pack) + 1 FROM pack) WHERE key = 'next_pack'")
    patient.close()
    return store


def test_a_lost_pack_that_nothing_needs_is_no_damage(store: Path) -> None:
    for names in (False, True):
        report = found(unneeded_pack(store) if not names else store, names=names)
        assert report.counts['pack-gone'] == 1 and not report.count('damage')
        assert 'nothing that stands needs it' in report.findings[0].what


def test_nobody_knows_that_while_nodes_are_lost(store: Path) -> None:
    """What a lost node refers to may be in the lost pack."""
    unneeded_pack(store)
    break_it(store, 'meta-pack-gone', seed=1)
    shutil.rmtree(store / 'mirror', ignore_errors=True)
    report = found(store)
    assert not report.counts['pack-gone'] and report.counts['pack-missing'] >= 2


def test_the_map_of_damage_looks_at_the_journal_too(store: Path) -> None:
    """A damaged one refuses the mount; the map said that nothing was lost."""
    assert not found(store, names=True).findings
    break_it(store, 'journal-middle', seed=1)
    report = found(store, names=True)
    assert report.counts == {'journal-bad': 1}
    assert '--install --journal' in report.findings[0].advice(str(store))


def test_nodes_whose_second_copy_is_whole_are_not_called_lost(store: Path) -> None:
    break_it(store, 'meta-pack-gone', seed=1)
    assert (store / 'mirror').is_dir()
    lost = [one for one in found(store).findings if one.code == 'pack-missing']
    for one in lost:
        if 'second copy is whole' in one.what:
            assert one.means() == 'these nodes are read from their second copy meanwhile'
            assert one.advice('/s') == 'snapfs scrub --store /s puts back what the second copy has.'
    assert any('second copy is whole' in one.what for one in lost)


def test_a_volume_that_has_lost_its_top_is_told_what_helps(store: Path) -> None:
    break_it(store, 'meta-pack-gone', seed=1)
    shutil.rmtree(store / 'mirror', ignore_errors=True)
    texts = [
        one.advice('/s') for one in found(store).findings if any(root == 'home' for root, *_ in one.files)
    ]
    assert texts and all('snapfs volume rollback' in text for text in texts)


def test_what_a_finding_means_is_told_once(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A thousand rotten chunks are told with a thousand lines, not with a thousand times the same advice."""
    patient = Patient(store, 1)
    rows = patient.sql('SELECT pack, offset, stored FROM chunk WHERE kind = 1 AND stored > 100 LIMIT 5')
    for pack, offset, stored in rows:
        patient.flip(patient.pack(pack), offset + HEADER_BYTES + stored // 2)
    patient.close()
    with small():
        assert fsck.main([str(store)]) == 4
    said = capsys.readouterr().out
    assert said.count('DAMAGE record-payload') == 5
    assert said.count('It means: the bytes of a chunk are wrong') == 1
