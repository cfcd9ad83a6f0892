"""A superblock and a journal that are damaged beside a catalog that is whole: put back, and nothing else."""

from __future__ import annotations

import itertools
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from snapfs.cli import rebuild as command
from snapfs.errors import Corrupt, Invalid, Refused
from snapfs.format.journal import (
    JOURNAL_HEADER_BYTES,
    JournalHeader,
    VolumeDelta,
    encode_journal_header,
    encode_record_frames,
    find_frames,
)
from snapfs.format.superblock import decode_superblock, encode_superblock
from snapfs.rescue import small_parts
from snapfs.service.collecting import Collecting
from snapfs.store.backup import COPIES
from snapfs.store.durable import Disk
from snapfs.store.store import Store
from tests.mutants.setting import StepWorld, content, small
from tests.support.fsck import report_of
from tests.support.lives import on, trees
from tools.breakit import break_it

JOURNAL = ['journal-gone', 'journal-short', 'journal-block', 'journal-middle', 'journal-zeros']


@pytest.fixture
def store(cut_store: Path) -> Path:
    return cut_store


def rebuilt(path: Path, *, install: bool = True, journal: bool = False) -> Any:
    with small():
        return command._rebuild(path, path / 'catalog.new', None, install, journal)


def files(path: Path) -> dict[str, bytes]:
    """All but the lock, which names its last holder."""
    found = {str(one.relative_to(path)): one for one in path.rglob('*')}
    return {name: one.read_bytes() for name, one in found.items() if one.is_file() and name != 'lock'}


def damages(path: Path) -> list[str]:
    with small():
        report = report_of(path)
    assert not report.unchecked
    return [one.code for one in report.findings if one.severity == 'damage']


# --- superblock ------------------------------------------------------------------------------------------
@pytest.mark.parametrize('how', ['superblock-flip', 'superblock-version', 'superblock-gone'])
def test_the_copy_takes_the_place_of_a_damaged_superblock(store, tmp_path, how):
    shutil.copytree(store, tmp_path / 'other')
    wanted = trees(tmp_path / 'other')
    break_it(store, how, seed=1)
    damaged = files(store)
    with pytest.raises(Corrupt, match='superblock') as failed:
        on(store, lambda collecting: None)
    assert failed.value.advice is not None and 'snapfs rebuild' in failed.value.advice
    assert damages(store) == ['superblock-bad'], 'the rest is checked all the same'
    rebuilt(store, install=False)
    assert files(store) == damaged, 'only --install changes anything'
    told = rebuilt(store)
    assert told['kept'] == ([] if how == 'superblock-gone' else ['superblock.lost-1'])
    if told['kept']:
        assert (store / 'superblock.lost-1').read_bytes() == damaged['superblock']
    assert damages(store) == []
    assert trees(store) == wanted


def test_the_copy_of_another_store_is_not_taken(store, tmp_path):
    other = tmp_path / 'other'
    with small():
        world = StepWorld()
        world._random.seed('another store')
        Store.create(other, Disk(), world).close(clean=True)
    uuid = decode_superblock((other / 'superblock').read_bytes()).uuid
    for folder in COPIES:
        shutil.copyfile(other / 'superblock', store / folder / 'superblock')
    (store / 'superblock').unlink()
    before = files(store)
    with pytest.raises(Corrupt, match=f'that of store {uuid.hex()}'):
        rebuilt(store)
    assert files(store) == before


@pytest.mark.parametrize('folder', COPIES)
@pytest.mark.parametrize('how', ['gone', 'nonsense', 'of another store'])
def test_one_copy_is_enough(store, tmp_path, folder, how):
    """With all backups gone, or all second copies, there is a way back."""
    wanted = (store / 'superblock').read_bytes()
    copy = store / folder / 'superblock'
    if how == 'gone':
        shutil.rmtree(store / folder)
    elif how == 'nonsense':
        copy.write_bytes(b'nonsense')
    else:
        block = decode_superblock(wanted)
        copy.write_bytes(encode_superblock(type(block)(b'o' * 16, block.created_ns, block.name_key)))
    (store / 'superblock').unlink()
    with pytest.raises(Corrupt, match='is missing') as caught:
        on(store, lambda collecting: None)
    assert f'snapfs rebuild {store} {store}/catalog.new --install' in caught.value.line()
    assert rebuilt(store)['superblock'] == 'it is missing'
    assert (store / 'superblock').read_bytes() == wanted


def test_what_a_newer_program_wrote_is_no_damage(store, monkeypatch):
    block = decode_superblock((store / 'superblock').read_bytes())
    monkeypatch.setattr('snapfs.limits.FORMAT_VERSION', 2)
    newer = encode_superblock(
        type(block)(block.uuid, block.created_ns, block.name_key, block.chunker, version=2)
    )
    monkeypatch.undo()
    (store / 'superblock').write_bytes(newer)
    with pytest.raises(Corrupt, match='version 2'):
        rebuilt(store)
    assert (store / 'superblock').read_bytes() == newer


def test_without_a_copy_it_says_what_is_wrong(store):
    break_it(store, 'superblock-flip', seed=1)
    for folder in COPIES:
        (store / folder / 'superblock').unlink()
    with pytest.raises(Corrupt, match='wrong CRC'):
        rebuilt(store)
    (store / 'superblock').unlink()
    with pytest.raises(Invalid, match='not a snapfs store'):
        rebuilt(store)


@pytest.mark.parametrize('folder', COPIES)
def test_a_copy_that_is_gone_or_damaged_is_made_again(store, folder):
    wanted = (store / 'superblock').read_bytes()
    copy = store / folder / 'superblock'
    for damage in (copy.unlink, lambda: copy.write_bytes(b'nonsense'), lambda: copy.write_bytes(bytes(81))):
        damage()

        async def write(collecting: Collecting) -> None:
            collecting.engine.store.backups.write(10**18)

        on(store, write)
        assert copy.read_bytes() == wanted


def test_where_nothing_is_damaged_nothing_is_done(store):
    before = files(store)
    with pytest.raises(Refused, match='the catalog is whole'):
        rebuilt(store, journal=True)
    assert files(store) == before


# --- journal ---------------------------------------------------------------------------------------------
def late(path: Path) -> list[int]:
    """Which of the files that only the journal knew are there, each with its bytes."""

    async def look(collecting: Collecting) -> list[int]:
        head = collecting.engine.head('work')
        top, found = await head.inode(1), []
        for number in range(3):
            inode = await head.lookup(top, f'late {number}'.encode())
            if inode is not None:
                assert await head.read(inode, 0, 10_000) == content(f'late {number}', 700)
                found.append(number)
        return found

    return on(path, look)


@pytest.mark.parametrize('how', JOURNAL)
def test_a_damaged_journal_is_given_up_behind_the_damage_and_only_when_asked(store, tmp_path, how):
    shutil.copytree(store, tmp_path / 'other')
    wanted = trees(tmp_path / 'other')
    break_it(store, how, seed=1)
    before = files(store)
    with pytest.raises(Corrupt) as failed:
        on(store, lambda collecting: None)
    assert failed.value.advice is not None and '--journal' in failed.value.advice
    with pytest.raises(Refused, match='the journal is not') as refused:
        rebuilt(store)
    assert refused.value.advice is not None and '--journal' in refused.value.advice
    assert files(store) == before
    told = rebuilt(store, journal=True)
    assert told['kept'] == ['journal.lost-1']
    kept = {name: data for name, data in files(store).items() if name.startswith('journal.lost-1/')}
    assert kept == {
        name.replace('journal/', 'journal.lost-1/'): data
        for name, data in before.items()
        if name.startswith('journal/')
    }
    assert damages(store) == []
    found = late(store)
    assert found == list(range(len(found))), 'a moment of the history, without a gap'
    assert len(found) == told['records']
    if how == 'journal-block':
        assert found == [0, 1, 2], 'no record was damaged'
    if how == 'journal-middle':
        assert 0 < len(found) < 3
    now = trees(store)
    assert {name: tree for name, tree in now.items() if '@' in name} == {
        name: tree for name, tree in wanted.items() if '@' in name
    }


def test_behind_a_gap_nothing_is_kept():
    """Records 1, 2 and 5 in one file, 4 in the other: 3 is missing, so 2 is the last."""
    uuid = b'u' * 16

    def file(number: int, *sequences: int) -> bytearray:
        frames = [encode_record_frames(one, [], [VolumeDelta(1, 100 + one)], uuid) for one in sequences]
        block = encode_journal_header(JournalHeader(uuid, number, 1))
        return bytearray(b''.join([block, *itertools.chain.from_iterable(frames), bytes(5000)]))

    files = [file(0, 1, 2, 5), file(1, 4)]
    assert small_parts._prefix_end(files, uuid, 0) == 2
    assert small_parts._prefix_end(files, uuid, 3) == 5
    small_parts._end_after(files[0], uuid, 0, 2)
    assert [place.sequence for _, _, place in find_frames(bytes(files[0]), uuid, JOURNAL_HEADER_BYTES)] == [
        1,
        2,
    ]


@pytest.mark.parametrize('step', [1, 2])
def test_a_power_cut_while_the_journal_is_replaced_loses_nothing_more(store, monkeypatch, step):
    break_it(store, 'journal-middle', seed=1)
    real, count = Disk.rename, 0

    def rename(self: Disk, source: Path, target: Path) -> None:
        nonlocal count
        if source.name in ('journal', small_parts.NEW_JOURNAL):
            count += 1
            if count == step:
                raise KeyboardInterrupt
        real(self, source, target)

    monkeypatch.setattr(Disk, 'rename', rename)
    with pytest.raises(KeyboardInterrupt):
        rebuilt(store, journal=True)
    monkeypatch.undo()
    if not (store / 'journal').exists():
        with pytest.raises(Corrupt, match='missing'):
            on(store, lambda collecting: None)
    told = rebuilt(store, journal=True)
    assert told['records'] == len(late(store)) > 0
    assert damages(store) == []


# --- the audit log ---------------------------------------------------------------------------------------
def test_an_audit_log_that_is_gone_stops_the_collector_and_nobody_else(store, tmp_path):
    shutil.copytree(store, tmp_path / 'other')
    wanted = trees(tmp_path / 'other')
    break_it(store, 'audit-gone', seed=1)
    assert trees(store) == wanted

    async def look(collecting: Collecting) -> Any:
        return collecting.collector.incidents.latched(), collecting.engine.health()

    for _ in range(2):  # it stays stopped, and the new log is one that can be verified
        latched, health = on(store, look)
        assert latched is not None and 'audit log is gone' in health
        assert damages(store) == []


@pytest.mark.parametrize('make', [os.mkfifo, os.mkdir])
def test_something_else_in_the_place_of_a_journal_file_goes_aside(store, make):
    """The advice of the mount was a rebuild, and that of the rebuild to keep it as it is."""
    (store / 'journal' / '1').unlink()
    make(store / 'journal' / '1')
    told = rebuilt(store, journal=True)
    assert told['kept'] == ['journal.lost-1']
    assert damages(store) == []


def test_a_link_in_the_place_of_a_journal_file_is_not_followed_nor_given_up(store, tmp_path):
    (store / 'journal' / '1').rename(tmp_path / 'elsewhere')
    (store / 'journal' / '1').symlink_to(tmp_path / 'elsewhere')
    with pytest.raises(Corrupt, match='symbolic'):
        rebuilt(store, journal=True)
    assert (tmp_path / 'elsewhere').is_file()
