"""The journal: two files in turn, replay as a prefix, restart after an unclean stop."""

from __future__ import annotations

import errno

import pytest

from snapfs import limits
from snapfs.errors import Corrupt, Latched, Refused
from snapfs.format.journal import JOURNAL_HEADER_BYTES, VolumeDelta, encode_record_frames, find_frames
from snapfs.store.journal import Journal
from tests.sim.disk import SimDisk
from tests.unit.store.kit import marks

UUID = b'u' * 16


@pytest.fixture
def sim(tmp_path):
    disk = SimDisk(tmp_path)
    Journal.create(disk, tmp_path / 'journal', UUID)
    disk.sync_directory(tmp_path)
    yield disk
    disk.forget()


def opened(disk, committed=0, was_clean=True):
    return Journal.open(disk, disk.root / 'journal', UUID, committed, was_clean)


def frames(sequence, mark, size=0, uuid=UUID):
    writes = [(100, n, bytes([n % 256]) * 1000) for n in range(size // 1000)]
    return encode_record_frames(sequence, [], [VolumeDelta(1, mark, writes=writes)], uuid)


def write(journal, *numbers, size=0, sync=True):
    for mark in numbers:
        sequence = journal.last_sequence + 1
        journal.append(sequence, frames(sequence, mark, size))
        if sync:
            journal.sync()


def found(journal, after=0):
    return [marks(record)[0] for record in journal.replay(after)]


def test_what_was_appended_is_replayed(sim):
    journal = opened(sim)
    write(journal, 11, 12, 13)
    assert found(journal) == [11, 12, 13]
    assert found(journal, after=2) == [13]
    journal.close()
    assert found(opened(sim, was_clean=False)) == [11, 12, 13]


def test_one_sync_per_record_and_no_change_of_size(sim):
    journal = opened(sim)
    write(journal, 11)
    sizes = [sim.size(sim.root / 'journal' / name) for name in '01']
    events, writes = sim.events, sim.calls['write']
    write(journal, 12)
    assert (sim.events, sim.calls['write']) == (events + 1, writes + 1)
    journal.sync()
    assert sim.events == events + 1, 'nothing to sync'
    assert sizes == [sim.size(sim.root / 'journal' / name) for name in '01'] == [limits.JOURNAL_BYTES] * 2


def test_records_of_several_frames(sim, monkeypatch):
    monkeypatch.setattr(limits, 'JOURNAL_FRAME_BYTES_TARGET', 2000)
    journal = opened(sim)
    assert len(frames(1, 11, size=9000)) > 3
    write(journal, 11, 12, size=9000)
    assert [len(record) > 3 for record in journal.replay(0)] == [True, True]


def test_the_files_are_used_in_turn(sim):
    journal = opened(sim)
    write(journal, 11, 12)
    assert journal.switch() == 0
    write(journal, 13)
    assert found(journal) == [11, 12, 13]
    with pytest.raises(Refused) as caught:
        journal.switch()
    assert caught.value.errno == errno.EBUSY
    with pytest.raises(AssertionError):
        journal.release(1)
    journal.release(0)
    assert found(journal, after=2) == [13]
    assert journal.switch() == 1
    write(journal, 14)
    assert found(journal, after=2) == [13, 14]
    journal.release(1)
    journal.close()
    assert found(opened(sim, committed=3, was_clean=False), after=3) == [14]


def test_leavings_of_earlier_use_are_no_records(sim):
    """A file is written over in place: what stands behind the new records must not be taken for more of
    them."""
    journal = opened(sim)
    for mark in range(10, 30, 2):
        write(journal, mark, mark + 1, size=3000 if mark < 18 else 0)
        left = journal.switch()
        committed = journal.last_sequence
        journal.release(left)
    write(journal, 90)
    journal.close()
    assert found(opened(sim, committed, was_clean=False), committed) == [90]


def test_a_clean_open_goes_on_counting(sim):
    journal = opened(sim)
    write(journal, 11, 12)
    journal.close()
    again = opened(sim, committed=2)
    assert again.last_sequence == 2
    write(again, 13)
    again.close()
    assert found(opened(sim, 2, was_clean=False), 2) == [13]


def test_a_full_file_refuses_and_writes_nothing(sim):
    journal = opened(sim)
    assert journal.used_fraction == 0.0
    assert journal.free_bytes == limits.JOURNAL_BYTES - JOURNAL_HEADER_BYTES
    while journal.free_bytes > 60_000:
        write(journal, 11, size=50_000)
    assert 0.7 < journal.used_fraction < 1.0
    before, last = found(journal), journal.last_sequence
    with pytest.raises(Refused) as caught:
        write(journal, 12, size=70_000)
    assert caught.value.errno == errno.ENOSPC
    assert (found(journal), journal.last_sequence) == (before, last)
    exact = journal.free_bytes
    record = frames(last + 1, 12)
    while sum(map(len, record)) < exact - 2000:
        record = frames(last + 1, 12, size=sum(map(len, record)) + 1000)
    journal.append(last + 1, record)
    assert found(journal)[-1] == 12
    assert journal.free_bytes == exact - sum(map(len, record)) >= 0


def test_only_the_next_sequence_is_taken(sim):
    journal = opened(sim)
    for wrong in (0, 2):
        with pytest.raises(AssertionError):
            journal.append(wrong, frames(wrong, 11))


def test_a_failed_sync_latches_for_ever(sim):
    journal = opened(sim)
    write(journal, 11, sync=False)
    sim.fail('sync', errno.EIO)
    for _ in range(3):
        with pytest.raises(Latched):
            journal.sync()
    with pytest.raises(Latched):
        write(journal, 12)


def test_the_file_left_is_synced_before_the_other_gets_a_byte(sim, tmp_path_factory):
    """P5: else a power cut could keep a record of the new file and lose one before it."""
    journal = opened(sim)
    write(journal, 11, 12)
    write(journal, 13, sync=False)
    journal.switch()
    write(journal, 14, sync=False)
    for seed in range(40):
        after = SimDisk(sim.crash(seed, tmp_path_factory.mktemp('after') / 'root'))
        assert found(opened(after, was_clean=False)) in ([11, 12, 13], [11, 12, 13, 14]), f'seed {seed}'
        after.forget()


def test_nothing_is_appended_behind_a_record_that_is_not_synced(sim):
    """P5: else a hole in the middle could be a torn tail, and what was promised behind it dropped."""
    journal = opened(sim)
    write(journal, 11, sync=False)
    with pytest.raises(AssertionError, match='P5'):
        write(journal, 12)
    journal.sync()
    write(journal, 12)
    assert found(journal) == [11, 12]


@pytest.mark.parametrize('switched', [False, True])
@pytest.mark.parametrize('used_before', [False, True])
def test_a_torn_tail_is_a_prefix(sim, tmp_path_factory, monkeypatch, switched, used_before):
    """The last record has many frames; any of their sectors may be lost, and any kept. That is no damage."""
    monkeypatch.setattr(limits, 'JOURNAL_FRAME_BYTES_TARGET', 2000)
    journal = opened(sim)
    committed = 0
    if used_before:  # both files are full of frames of earlier records, of all lengths
        for mark in range(40, 50):
            write(journal, mark, mark + 100, size=1000 * (mark - 40))
            committed = journal.last_sequence
            journal.release(journal.switch())
    write(journal, 11, 12, size=3000)
    if switched:
        journal.switch()
    write(journal, 13, size=9000, sync=False)
    lengths = set()
    for seed in range(60):
        after = SimDisk(sim.crash(seed, tmp_path_factory.mktemp('after') / 'root'))
        left = found(opened(after, committed, was_clean=False), committed)
        assert left == [11, 12, 13][: len(left)], f'seed {seed}'
        lengths.add(len(left))
        after.forget()
    assert lengths == {2, 3}


def test_a_block_that_was_written_in_part_does_not_hide_the_records(sim):
    """A short write of the block, and the power goes before the rest: what it says is unknown, and not
    needed. A block that is wrong in anything else is damage."""
    journal = opened(sim)
    write(journal, 11, 12)
    path = sim.root / 'journal' / '0'
    old = path.read_bytes()
    journal.release(journal.switch())
    write(journal, 13, 14)
    journal.switch()
    write(journal, 15, sync=False)
    new = path.read_bytes()
    assert new[:44] != old[:44]
    path.write_bytes(new[:44] + old[44:])
    assert found(opened(sim, 2, was_clean=False), 2) == [13, 14]
    path.write_bytes(new[:44] + old[44:JOURNAL_HEADER_BYTES] + new[JOURNAL_HEADER_BYTES:])
    assert found(opened(sim, 2, was_clean=False), 2) == [13, 14, 15]
    path.write_bytes(new[:30] + b'!' + new[31:])
    with pytest.raises(Corrupt, match='CRC'):
        opened(sim, 2, was_clean=False)


def test_records_lost_before_others_are_corrupt(sim):
    """P5: bit rot in the first file must not let replay go on with the second."""
    journal = opened(sim)
    write(journal, 11, 12, 13)
    journal.switch()
    write(journal, 14)
    journal.close()
    path = sim.root / 'journal' / '0'
    data = bytearray(path.read_bytes())
    data[data.index(b'SfJ1', data.index(b'SfJ1') + 1)] ^= 1
    path.write_bytes(data)
    with pytest.raises(Corrupt, match='2 to 3 are missing'):
        opened(sim, was_clean=False)
    assert found(opened(sim, committed=3, was_clean=False), 3) == [14], 'a commit has superseded them'


def damage(sim, number, sequence, part=0, where=0):
    """Flip a bit of one frame of a record: by default in its magic."""
    path = sim.root / 'journal' / str(number)
    data = bytearray(path.read_bytes())
    (offset,) = [
        start
        for start, _, place in find_frames(data, UUID, JOURNAL_HEADER_BYTES)
        if (place.sequence, place.part) == (sequence, part)
    ]
    data[offset + where] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize('where', [0, 8, 60])  # magic, sequence, body
@pytest.mark.parametrize('part', [0, 1, 3])
@pytest.mark.parametrize('sequence', [1, 2, 3])
def test_a_damaged_record_is_no_torn_tail(sim, monkeypatch, sequence, part, where):
    """P5, P10: what stands whole behind it was promised, and must not be dropped without a word."""
    monkeypatch.setattr(limits, 'JOURNAL_FRAME_BYTES_TARGET', 2000)
    journal = opened(sim)
    write(journal, 11, 12, 13, 14, size=9000)
    journal.close()
    damage(sim, 0, sequence, part, where)
    with pytest.raises(Corrupt, match=f'{sequence} (is|to 3 are) missing or damaged') as caught:
        opened(sim, was_clean=False)
    assert '\n' not in caught.value.line()
    assert 'Nothing was changed' in caught.value.line()


def test_a_damaged_record_that_is_superseded_hides_none_behind_it(sim):
    """Record 2 is in a commit; reading stops at it all the same, and record 3, whole, was promised."""
    journal = opened(sim)
    write(journal, 11, 12, 13)
    journal.close()
    damage(sim, 0, 2)
    with pytest.raises(Corrupt, match='record 3 is missing or damaged'):
        opened(sim, committed=2, was_clean=False)
    assert found(opened(sim, committed=3, was_clean=False), 3) == []


def test_the_last_record_of_a_file_is_missed_though_the_next_is_torn(sim, monkeypatch):
    """The block of the second file is proof enough: it is written when the first file is durable."""
    journal = opened(sim)
    write(journal, 11, 12)
    journal.switch()
    write(journal, 13)
    journal.close()
    damage(sim, 0, 2)
    damage(sim, 1, 3)
    with pytest.raises(Corrupt, match='record 2 is missing or damaged'):
        opened(sim, was_clean=False)


def test_any_selection_of_the_frames_of_the_last_record_is_a_torn_tail(sim, monkeypatch):
    """Also where the block of the file is still that of its last use."""
    monkeypatch.setattr(limits, 'JOURNAL_FRAME_BYTES_TARGET', 2000)
    journal = opened(sim)
    write(journal, 11, 12, size=9000)
    path = sim.root / 'journal' / '0'
    old_block = path.read_bytes()[:JOURNAL_HEADER_BYTES]
    journal.release(journal.switch())
    write(journal, 13)
    journal.switch()
    write(journal, 14, size=4000)
    whole = path.read_bytes()
    places = [
        (start, end)
        for start, end, place in find_frames(whole, UUID, JOURNAL_HEADER_BYTES)
        if place.sequence == 4
    ]
    assert len(places) >= 3
    for kept in range(1 << len(places)):
        for block in (old_block, whole[:JOURNAL_HEADER_BYTES]):
            data = bytearray(block + whole[JOURNAL_HEADER_BYTES:])
            for n, (start, end) in enumerate(places):
                if not kept >> n & 1:
                    data[start:end] = bytes(end - start)
            path.write_bytes(data)
            expected = [13, 14] if kept + 1 == 1 << len(places) else [13]
            assert found(opened(sim, 2, was_clean=False), 2) == expected, (kept, block is old_block)


def test_content_of_a_file_cannot_pose_as_a_later_record(sim):
    """Neither inside a whole frame, nor, as long as the store's uuid is its owner's secret, inside a torn
    one."""
    journal = opened(sim)
    for mark, uuid in ((11, UUID), (12, b'v' * 16)):
        content = VolumeDelta(1, mark, writes=[(100, 0, frames(5, 90, uuid=uuid)[0])])
        sequence = journal.last_sequence + 1
        journal.append(sequence, encode_record_frames(sequence, [], [content], UUID))
        journal.sync()
    assert found(journal) == [11, 12]
    journal.close()
    damage(sim, 0, 2)
    assert found(opened(sim, was_clean=False)) == [11]


def test_a_full_disk_below_in_the_middle_of_a_record(sim):
    """What was written of it is followed by nothing: the file counts as full until a commit frees it."""
    journal = opened(sim)
    write(journal, 11)
    sim.fail('write', errno.ENOSPC)
    for _ in range(2):
        with pytest.raises(Refused):
            write(journal, 12)
    assert journal.free_bytes == 0
    journal.switch()
    write(journal, 13)
    assert found(journal) == [11, 13]


def test_a_record_whose_block_was_torn_is_not_taken_before_those_it_follows(sim, tmp_path_factory):
    """P5: a file is used again, and a power cut keeps its new frames and its old block, which has a low
    first sequence. Replay would begin with that file, and then find that the other one, which was synced,
    has nothing newer."""
    journal = opened(sim)
    write(journal, 11, 12)
    old_block = (sim.root / 'journal' / '0').read_bytes()[:JOURNAL_HEADER_BYTES]
    journal.release(journal.switch())  # a commit has superseded 1 and 2
    write(journal, 13, 14)
    journal.switch()
    write(journal, 15, sync=False)
    for seed in range(40):
        after = SimDisk(sim.crash(seed, tmp_path_factory.mktemp('after') / 'root'))
        left = found(opened(after, 2, was_clean=False), 2)
        assert left in ([13, 14], [13, 14, 15]), f'seed {seed}: {left}'
        after.forget()
    sim.off = False
    path = sim.root / 'journal' / '0'
    path.write_bytes(old_block + path.read_bytes()[JOURNAL_HEADER_BYTES:])
    assert found(opened(sim, 2, was_clean=False), 2) == [13, 14, 15]
    assert found(opened(sim, 4, was_clean=False), 4) == [15], 'it follows what a commit holds'


def test_after_an_unclean_stop_nothing_is_appended_before_a_commit(sim):
    journal = opened(sim)
    write(journal, 11, 12)
    journal.close()
    again = opened(sim, was_clean=False)
    with pytest.raises(AssertionError, match='P5'):
        write(again, 13)
    with pytest.raises(AssertionError, match='P5'):
        again.restart(2)
    assert again.last_sequence > 2 + 1000
    committed = again.last_sequence
    again.restart(committed)
    assert found(again, committed) == []
    write(again, 13)
    assert found(again, committed) == [13]
    again.close()
    assert found(opened(sim, committed, was_clean=False), committed) == [13]


def test_a_torn_record_is_never_continued_by_the_next_run(sim, monkeypatch):
    """The second frame of a record whose first was torn survives. A new record as long as that must not adopt
    it."""
    monkeypatch.setattr(limits, 'JOURNAL_FRAME_BYTES_TARGET', 2000)
    journal = opened(sim)
    write(journal, 11)
    old = frames(2, 12, size=4000)
    position = journal._positions[0]
    journal.append(2, old)
    journal.close()
    path = sim.root / 'journal' / '0'
    data = bytearray(path.read_bytes())
    data[position : position + len(old[0])] = bytes(len(old[0]))
    path.write_bytes(data)
    again = opened(sim, was_clean=False)
    assert found(again) == [11]
    committed = again.last_sequence
    again.restart(committed)
    write(again, 13)
    torn = frames(committed + 2, 14, size=4000)
    again.append(committed + 2, torn[:1])  # and the power goes after its first frame
    again.close()
    assert found(opened(sim, committed, was_clean=False), committed) == [13]


def test_restart_is_durable_before_it_returns(sim):
    opened(sim).close()
    journal = opened(sim, was_clean=False)
    journal.restart(journal.last_sequence)
    assert not sim.unsynced()
    journal.restart(0)  # a second one does nothing


@pytest.mark.parametrize('odd', ['missing', 'short', 'long', 'other store', 'other number', 'header'])
def test_files_that_are_not_ours_are_corrupt(sim, odd):
    path = sim.root / 'journal' / '1'
    data = path.read_bytes()
    if odd == 'missing':
        path.unlink()
    elif odd == 'other number':
        path.write_bytes((sim.root / 'journal' / '0').read_bytes())
    elif odd != 'other store':
        path.write_bytes({'short': data[:-1], 'long': data + b'x', 'header': b'X' + data[1:]}[odd])
    with pytest.raises(Corrupt):
        Journal.open(sim, sim.root / 'journal', b'v' * 16 if odd == 'other store' else UUID, 0, False)
