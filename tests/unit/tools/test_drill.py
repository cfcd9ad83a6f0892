"""Drills: each ends as it must; the command tells them; the reader behind them sees what it is there for."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import trio

from snapfs.cli.main import main
from snapfs.format.ids import data_id
from snapfs.service.planting import plant
from tools.drill import crashes
from tools.drill.drills import drills
from tools.drill.guards import GUARDS, guard_of
from tools.drill.lab import Lab, small_store
from tools.drill.run import play

pytestmark = pytest.mark.slow


@pytest.mark.parametrize('name', list(drills()))
def test_a_drill_ends_as_it_must(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crashes, 'STRIDE', 9)  # `snapfs drill kill` takes every step
    outcome = play(drills()[name])
    assert outcome.passed, f'{name}: {outcome.failure}; seen: {outcome.seen}'
    assert outcome.files > 10


def test_every_drill_says_what_it_is() -> None:
    for name, drill in drills().items():
        assert drill.name == name
        assert len(drill.story) == 2
        assert all(0 < len(line) <= 110 for line in (*drill.story, drill.fault)), name
        assert set(drill.guards) <= set(GUARDS), name
        assert drill.guards


def test_every_guard_is_drilled() -> None:
    drilled = {guard for drill in drills().values() for guard in drill.guards}
    assert drilled == set(GUARDS)


def test_what_no_guard_says_is_no_guard() -> None:
    assert guard_of('the moon is full').startswith('? ')
    assert guard_of('node 12 of home: level 0, 1 items; claimed: level 0, 2 and 1') == 'totals'


def damage(store: Path) -> None:
    """Change a byte in the middle of every data pack."""
    for pack in (store / 'packs' / 'data').rglob('*'):
        if pack.is_file():
            data = bytearray(pack.read_bytes())
            data[len(data) // 2] ^= 1
            pack.write_bytes(data)


def test_the_reader_sees_what_is_lost_changed_or_condemned(tmp_path: Path) -> None:
    async def look() -> None:
        lab = Lab(tmp_path / 'store')
        await lab.make()
        await lab.week()
        assert await lab.check() > 100
        lab.live['letter-000'] += b'?'
        assert lab.differences(lab.read()) == ['volume home: letter-000 is not what was written']
        lab.live['letter-000'] = lab.live['letter-000'][:-1]
        lab.snapshots['sunday'] = {}
        assert lab.differences(lab.read()) == ['snapshot sunday is gone']
        del lab.snapshots['sunday']
        await plant(lab.collecting.engine, lab.collecting.world)
        await lab.engine.commit()
        with lab.engine.store.catalog.transaction() as db:
            needed = (data_id(lab.live['letter-000']),)
            db.execute('INSERT INTO quarantine SELECT *, 1 FROM chunk WHERE id = ?', needed)
            db.execute('DELETE FROM chunk WHERE id IN (SELECT id FROM quarantine)')
        assert lab.differences(lab.read()) == ['1 chunks that are needed are still condemned']
        assert lab.differences(lab.read(), indexed=False) == []
        await lab.close()
        damage(lab.path)
        assert lab.read().lost

    with small_store():
        trio.run(look)


def test_a_drill_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('TMPDIR', str(tmp_path))
    monkeypatch.setattr('tempfile.tempdir', None)
    assert play(drills()['wrong-total']).passed
    assert list(tmp_path.iterdir()) == []


# --- the command -----------------------------------------------------------------------------------------
def test_the_list(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    assert main(['drill', '--list']) == 0
    text = capfdbinary.readouterr().out.decode()
    assert all(f'\n{name}\n' in f'\n{text}' for name in drills())


def test_one_drill_is_told(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    assert main(['drill', 'lost-page']) == 0
    text = capfdbinary.readouterr().out.decode()
    assert 'stopped by totals' in text
    assert drills()['lost-page'].story[0] in text


def test_one_drill_as_json(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    assert main(['drill', 'lost-page', '--json']) == 0
    (value,) = json.loads(capfdbinary.readouterr().out)
    assert value['passed'] and value['guards'][0]['guard'] == 'totals'


def test_a_drill_that_fails_is_an_exit_code(
    capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr('snapfs.collect.recount.Walk._check', lambda *arguments: None)
    assert main(['drill', 'lost-page']) == 1
    assert b'FAILED' in capfdbinary.readouterr().out


@pytest.mark.parametrize('words', [['ebs-1999'], ['lost-page', '--all'], ['--list', '--all']])
def test_bad_calls(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(['drill', *words]) == 2
    error = capsys.readouterr().err
    assert error.count('\n') == 1 and 'Traceback' not in error


def test_scratch_stores_are_made_where_the_user_wants(monkeypatch: pytest.MonkeyPatch) -> None:
    from tools.drill import run

    monkeypatch.setenv('TMPDIR', '/somewhere')
    assert run.scratch() is None
    monkeypatch.delenv('TMPDIR')
    monkeypatch.setattr(shutil, 'disk_usage', lambda path: shutil._ntuple_diskusage(10, 9, 1))
    assert run.scratch() is None
