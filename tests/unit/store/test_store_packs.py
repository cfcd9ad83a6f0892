"""Packs: append, seal, continue, run out of space."""

from __future__ import annotations

import errno
import itertools
import os

import pytest

from snapfs import limits
from snapfs.errors import Corrupt, Refused
from snapfs.format.codec import Compressor
from snapfs.format.ids import chunk_id
from snapfs.format.packs import (
    PACK_HEADER_BYTES,
    TRAILER_BYTES,
    PackHeader,
    decode_footer,
    decode_pack_header,
    footer_offset,
)
from snapfs.format.records import RecordKind, decode_header, decode_payload, encode_record
from snapfs.store.packs import PackFile, PackNumbers, PackWriter, pack_path, scan_records
from tests.sim.disk import SimDisk
from tests.sim.world import SimWorld
from tests.unit.store.kit import plains_of

UUID = b'u' * 16


@pytest.fixture
def sim(tmp_path):
    (tmp_path / 'data').mkdir()
    (tmp_path / 'meta').mkdir()
    disk = SimDisk(tmp_path)
    yield disk
    disk.forget()


def writer_on(disk, kind=RecordKind.DATA, bytes_max=20_000, rows=()):
    numbers = PackNumbers(rows, 1 + len(rows), SimWorld(3).random_bytes)
    writer = PackWriter(disk, disk.root, kind, UUID, numbers)
    writer.bytes_max = bytes_max
    return writer, numbers


def encoded(plains, kind=RecordKind.DATA):
    compressor = Compressor()
    return [encode_record(kind, chunk_id(kind, plain), plain, compressor) for plain in plains]


def content(disk, numbers, number):
    name, kind = numbers.packs[number]
    return disk.root.joinpath(pack_path(disk.root, kind, name)).read_bytes()


def test_records_stand_where_the_entries_say(sim):
    writer, numbers = writer_on(sim)
    plains = plains_of(1, 30)
    found = {}
    for number, entries in writer.append(encoded(plains)):
        for entry in entries:
            data = content(sim, numbers, number)
            header = decode_header(data, entry.offset)
            start = entry.offset + 52
            found[entry.id] = decode_payload(header, data[start : start + entry.stored_length])
    assert list(found.values()) == plains
    assert len(numbers.packs) > 1, 'more than one pack was needed'


def test_a_full_pack_is_sealed_with_a_footer_that_lists_it(sim):
    writer, numbers = writer_on(sim)
    runs = list(writer.append(encoded(plains_of(1, 30))))
    rows = {row.pack: row for row in writer.sync()}
    for number, entries in runs[:-1]:
        data = content(sim, numbers, number)
        name, kind = numbers.packs[number]
        assert decode_pack_header(data) == PackHeader(UUID, name, kind)
        offset = footer_offset(data[-TRAILER_BYTES:], len(data))
        assert decode_footer(data[offset:], len(data), name) == entries
        assert rows[number].state == 'sealed'
        assert (rows[number].bytes, rows[number].records) == (len(data), len(entries))
        assert offset <= writer.bytes_max
    last = rows[runs[-1][0]]
    assert (last.state, last.records) == ('open', len(runs[-1][1]))


def test_a_batch_is_one_write_per_pack(sim):
    writer, _ = writer_on(sim, bytes_max=limits.MIB)
    list(writer.append(encoded(plains_of(1, 1))))
    before = sim.calls['write']
    list(writer.append(encoded(plains_of(2, 50))))
    assert sim.calls['write'] == before + 1


@pytest.mark.parametrize('kind', [RecordKind.DATA, RecordKind.NODE])
def test_full_packs_of_data_go_to_disk_as_they_come(sim, monkeypatch, kind):
    files, real = [], sim.write_out

    def write_out(fd):
        files.append(os.fstat(fd).st_ino)
        real(fd)

    monkeypatch.setattr(sim, 'write_out', write_out)
    writer, numbers = writer_on(sim, kind)
    plains = plains_of(1, 60)
    runs = list(writer.append(encoded(plains, kind)))
    packs = [pack_path(sim.root, kind, numbers.packs[number][0]).stat().st_ino for number, _ in runs]
    assert len(packs) >= 4
    full = packs[:-1]
    if kind == RecordKind.DATA:
        # Each as soon as it is full, and once more when the next one is: then it is on disk, and let go.
        assert files == full[:1] + [file for pair in itertools.pairwise(full) for file in pair]
        writer.sync()
        assert files[2 * len(full) - 1 :] == full, 'and what a sync has brought to disk'
    else:
        writer.sync()
        assert files == []
    for number, entries in runs[:1]:
        data = pack_path(sim.root, kind, numbers.packs[number][0]).read_bytes()
        for entry, plain in zip(entries, plains, strict=False):
            start = entry.offset + 52
            header = decode_header(data, entry.offset)
            assert decode_payload(header, data[start : start + entry.stored_length]) == plain


def test_a_record_larger_than_a_pack_has_one_to_itself(sim):
    writer, numbers = writer_on(sim, bytes_max=1000)
    runs = list(writer.append(encoded(plains_of(1, 4, size=5000))))
    assert [len(entries) for _, entries in runs] == [1] * len(runs)
    assert len(numbers.packs) == len(runs)


def test_the_number_of_records_has_a_limit(sim, monkeypatch):
    monkeypatch.setattr(limits, 'PACK_RECORDS_FULL', 3)
    writer, _ = writer_on(sim, bytes_max=limits.MIB)
    assert [len(entries) for _, entries in writer.append(encoded(plains_of(1, 8)))] == [3, 3, 2]


def test_only_what_is_synced_counts(sim):
    writer, _ = writer_on(sim)
    list(writer.append(encoded(plains_of(1, 3))))
    (row,) = writer.sync()
    list(writer.append(encoded(plains_of(2, 3))))
    assert writer._open.durable_row() == row
    (later,) = writer.sync()
    assert (later.records, later.bytes) == (6, writer._open.bytes)
    assert writer.sync() == []
    assert not sim.unsynced(), 'the names of folder and pack are durable as well'


def test_an_open_pack_is_continued(sim):
    writer, numbers = writer_on(sim, bytes_max=60_000)
    first = [entry for _, entries in writer.append(encoded(plains_of(1, 5))) for entry in entries]
    (row,) = writer.sync()
    writer.close()
    again, _ = writer_on(sim, bytes_max=60_000, rows=[row])
    again._numbers = numbers
    assert again.resume(row)
    runs = list(again.append(encoded(plains_of(2, 40))))
    assert runs[0][0] == row.pack
    assert runs[0][1][0].offset == row.bytes
    data = content(sim, numbers, row.pack)
    footer = data[footer_offset(data[-TRAILER_BYTES:], len(data)) :]
    assert decode_footer(footer, len(data), row.name) == first + runs[0][1], (
        'the footer has the first entries too'
    )


@pytest.mark.parametrize('odd', ['longer', 'shorter', 'missing', 'header', 'link'])
def test_a_pack_that_is_not_as_it_was_left_is_not_continued(sim, odd):
    writer, _ = writer_on(sim)
    list(writer.append(encoded(plains_of(1, 3))))
    (row,) = writer.sync()
    writer.close()
    path = pack_path(sim.root, row.kind, row.name)
    data = path.read_bytes()
    if odd == 'longer':
        path.write_bytes(data + b'x')
    elif odd == 'shorter':
        path.write_bytes(data[:-1])
    elif odd == 'header':
        path.write_bytes(b'X' + data[1:])
    else:
        path.rename(path.with_suffix('.away'))
        if odd == 'link':
            path.symlink_to(path.with_suffix('.away'))
    again, _ = writer_on(sim, rows=[row])
    assert not again.resume(row)


def test_disk_full_in_an_append_leaves_the_pack_consistent(sim):
    writer, numbers = writer_on(sim, bytes_max=60_000)
    before = [entry for _, entries in writer.append(encoded(plains_of(1, 3))) for entry in entries]
    sim.space = 5000
    with pytest.raises(Refused) as caught:
        list(writer.append(encoded(plains_of(2, 10))))
    assert caught.value.errno == errno.ENOSPC
    end = writer._open.bytes
    assert sim.size(writer._open.fd) == end + 5000, 'a part was written'
    sim.space = None
    runs = list(writer.append(encoded(plains_of(2, 2))))
    assert runs[0][1][0].offset == end, 'the next append goes over it'
    list(writer.append(encoded(plains_of(4, 40))))
    data = content(sim, numbers, 1)
    entries = decode_footer(
        data[footer_offset(data[-TRAILER_BYTES:], len(data)) :], len(data), numbers.packs[1][0]
    )
    assert entries[:5] == before + runs[0][1]


def test_disk_full_while_sealing_is_tried_again(sim):
    writer, numbers = writer_on(sim, bytes_max=20_000)
    first = encoded(plains_of(1, 5))
    (number, entries), *_ = list(writer.append(first[:5]))
    sim.space = 10
    with pytest.raises(Refused):
        list(writer.append(encoded(plains_of(2, 10, size=9000))))
    assert writer._open.number == number, 'still open'
    sim.space = None
    list(writer.append(encoded(plains_of(2, 10, size=9000))))
    data = content(sim, numbers, number)
    footer = data[footer_offset(data[-TRAILER_BYTES:], len(data)) :]
    assert decode_footer(footer, len(data), numbers.packs[number][0])[: len(entries)] == entries


def test_what_a_full_disk_left_behind_the_records_is_not_left_behind_the_footer(sim):
    writer, numbers = writer_on(sim, bytes_max=60_000)
    ((_, before),) = list(writer.append(encoded(plains_of(1, 3))))
    sim.space = 20_000
    with pytest.raises(Refused):
        list(writer.append(encoded(plains_of(2, 18))))
    sim.space = None
    writer.bytes_max = 10_000
    runs = list(writer.append(encoded(plains_of(4, 5, size=9_000))))
    data = content(sim, numbers, 1)
    name = numbers.packs[1][0]
    entries = decode_footer(data[footer_offset(data[-TRAILER_BYTES:], len(data)) :], len(data), name)
    assert entries == before + runs[0][1]


def test_what_is_appended_during_a_sync_is_not_durable_by_it(sim, monkeypatch):
    writer, _ = writer_on(sim, bytes_max=limits.MIB)
    list(writer.append(encoded(plains_of(1, 3))))
    real = sim.sync_data

    def slow(fd):
        real(fd)
        list(writer.append(encoded(plains_of(2, 4))))

    with monkeypatch.context() as patch:
        patch.setattr(sim, 'sync_data', slow)
        (row,) = writer.sync()
    assert row.records == 3
    (row,) = writer.sync()
    assert row.records == 7


def test_disk_full_while_beginning_a_pack_leaves_no_file(sim, tmp_path_factory):
    writer, _ = writer_on(sim)
    sim.space = 10
    with pytest.raises(Refused):
        list(writer.append(encoded(plains_of(1, 1))))
    assert [path for path in sim.root.rglob('*') if path.is_file()] == []
    sim.space = None
    assert list(writer.append(encoded(plains_of(1, 1))))
    (row,) = writer.sync()
    for seed in range(10):
        after = sim.crash(seed, tmp_path_factory.mktemp('after') / 'root')
        assert pack_path(after, row.kind, row.name).stat().st_size == row.bytes, f'seed {seed}'


def test_a_torn_tail_is_cut_off_when_the_pack_is_closed(sim):
    writer, _ = writer_on(sim, bytes_max=60_000)
    list(writer.append(encoded(plains_of(1, 3))))
    (row,) = writer.sync()
    sim.space = 100
    with pytest.raises(Refused):
        list(writer.append(encoded(plains_of(2, 3))))
    writer.close()
    assert sim.size(pack_path(sim.root, row.kind, row.name)) == row.bytes


def test_a_pack_file_says_whose_it_is(sim):
    writer, _ = writer_on(sim)
    list(writer.append(encoded(plains_of(1, 3))))
    (row,) = writer.sync()
    path = pack_path(sim.root, row.kind, row.name)
    PackFile(sim, path, row.name).check_header(UUID, row.kind)
    with pytest.raises(Corrupt):
        PackFile(sim, path, row.name).check_header(b'v' * 16, row.kind)
    with pytest.raises(Corrupt):
        PackFile(sim, path, row.name).check_header(UUID, RecordKind.NODE)
    with pytest.raises(Corrupt):
        PackFile(sim, path, b'n' * 16).check_header(UUID, row.kind)


def test_scan_finds_every_record_and_names_where_it_ends(sim, monkeypatch):
    monkeypatch.setattr(limits, 'SCAN_WINDOW_BYTES', 1000)
    writer, _ = writer_on(sim, bytes_max=limits.MIB)
    ((_, entries),) = list(writer.append(encoded(plains_of(1, 20))))
    pack = writer._open
    found = list(scan_records(sim, pack.fd, pack.bytes))
    assert [(offset, header.id) for offset, header in found] == [(e.offset, e.id) for e in entries]
    with pytest.raises(Corrupt, match=f'offset {entries[-1].offset}'):
        list(scan_records(sim, pack.fd, pack.bytes - 1))
    sim.pwrite(pack.fd, [b'X'], entries[3].offset)
    with pytest.raises(Corrupt, match=f'offset {entries[3].offset}'):
        list(scan_records(sim, pack.fd, pack.bytes))
    assert entries[0].offset == PACK_HEADER_BYTES


def test_numbers_of_packs_found_on_disk(sim):
    _, numbers = writer_on(sim)
    number, name = numbers.new(RecordKind.NODE)
    assert numbers.packs[number] == (name, RecordKind.NODE)
    assert len(name) == 16
    other, _ = numbers.add(b'o' * 16, RecordKind.DATA)
    assert other != number
    with pytest.raises(AssertionError):
        numbers.add(b'o' * 16, RecordKind.DATA)


@pytest.mark.parametrize('how', ['removed', 'moved', 'replaced'])
@pytest.mark.parametrize('synced', [False, True])
def test_an_open_pack_that_is_no_longer_there_comes_back(sim, tmp_path, how, synced):
    """Also what was not synced yet; and the next one is another."""
    writer, numbers = writer_on(sim)
    ((first, one),) = writer.append(encoded(plains_of(1, 1)))
    if synced:
        writer.sync()
    path = pack_path(sim.root, RecordKind.DATA, numbers.packs[first][0])
    path.rename(tmp_path / 'away')
    if how == 'removed':
        (tmp_path / 'away').unlink()
    elif how == 'replaced':
        path.write_bytes(b'another file')
    ((number, two),) = writer.append(encoded(plains_of(2, 1)))
    assert number == first
    writer.seal(first)
    (row,) = writer.sync()
    assert (row.pack, row.records, row.state) == (first, 2, 'sealed')
    data = path.read_bytes()
    start = footer_offset(data[-TRAILER_BYTES:], len(data))
    assert decode_footer(data[start:], len(data), row.name) == [*one, *two]
    ((second, _),) = writer.append(encoded(plains_of(3, 1)))
    assert second != first
