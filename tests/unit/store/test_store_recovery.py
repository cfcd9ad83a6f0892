"""Recovery of packs after an unclean stop, on files made wrong on purpose."""

from __future__ import annotations

import pytest

from snapfs.format.packs import TRAILER_BYTES, decode_footer, footer_offset
from snapfs.format.records import HEADER_BYTES, RecordKind
from snapfs.store.packs import pack_path
from snapfs.store.recovery import packs_on_disk, recover_pack
from snapfs.store.rows import PackRow
from tests.unit.store.kit import plains_of
from tests.unit.store.test_store_packs import UUID, encoded, sim, writer_on

__all__ = ['sim']


@pytest.fixture
def abandoned(sim):
    """A pack of six records, closed without a footer: (row, entries, path)."""
    writer, _ = writer_on(sim, bytes_max=100_000)
    ((_, entries),) = list(writer.append(encoded(plains_of(1, 6))))
    (row,) = writer.sync()
    writer.close()
    return row, entries, pack_path(sim.root, row.kind, row.name)


def footer_of(path, name):
    data = path.read_bytes()
    return decode_footer(data[footer_offset(data[-TRAILER_BYTES:], len(data)) :], len(data), name)


def unknown(row):
    """The row of a pack that the catalog has never seen."""
    return PackRow(row.pack, row.name, row.kind, 'open', 0, 0)


def test_a_whole_pack_gets_its_footer(sim, abandoned):
    row, entries, path = abandoned
    done = recover_pack(sim, sim.root, UUID, row, row.bytes)
    assert (done.records, done.cut_bytes, done.oddity) == (6, 0, None)
    assert footer_of(path, row.name) == entries
    assert sim.size(path) == done.bytes
    assert not sim.unsynced()


def test_recovery_can_be_repeated(sim, abandoned):
    row, _, path = abandoned
    first = recover_pack(sim, sim.root, UUID, row, row.bytes)
    data = path.read_bytes()
    assert recover_pack(sim, sim.root, UUID, row, row.bytes) == first
    path.write_bytes(data[:-20])  # as if the power went while the footer was written
    assert recover_pack(sim, sim.root, UUID, row, row.bytes).bytes == first.bytes
    assert path.read_bytes() == data


@pytest.mark.parametrize(
    'torn', ['garbage', 'half a record', 'half a header', 'wrong payload', 'zeros', 'other kind']
)
def test_a_torn_tail_is_cut_off(sim, abandoned, torn):
    row, entries, path = abandoned
    data = bytearray(path.read_bytes())
    valid = entries[5].offset
    if torn == 'garbage':
        data += b'garbage' * 50
        valid = row.bytes
    elif torn == 'half a record':
        del data[-10:]
    elif torn == 'half a header':
        del data[valid + 20 :]
    elif torn == 'wrong payload':
        data[valid + HEADER_BYTES + 5] ^= 1
    elif torn == 'other kind':
        data[valid:] = b''.join(encoded([b'a node in a data pack'], RecordKind.NODE)[0])
    else:
        data[valid:] = bytes(len(data) - valid)
    path.write_bytes(data)
    done = recover_pack(sim, sim.root, UUID, row, floor=entries[2].offset)
    assert done.oddity is None
    assert done.cut_bytes == len(data) - valid
    assert footer_of(path, row.name) == [entry for entry in entries if entry.offset < valid]
    assert path.read_bytes()[:valid] == data[:valid]


@pytest.mark.parametrize('where', ['header', 'payload'])
def test_nothing_is_cut_off_below_the_floor(sim, abandoned, where):
    """P4: these bytes were durable and are named. Whatever they look like, they are kept for fsck to
    judge."""
    row, entries, path = abandoned
    data = bytearray(path.read_bytes())
    data[entries[2].offset + (0 if where == 'header' else HEADER_BYTES)] ^= 1
    path.write_bytes(data)
    done = recover_pack(sim, sim.root, UUID, row, floor=row.bytes)
    assert path.read_bytes()[: row.bytes] == data
    if where == 'header':
        assert str(entries[2].offset) in done.oddity
        assert path.read_bytes() == data
    else:
        assert footer_of(path, row.name) == entries


def test_a_shorter_file_than_the_floor_is_left_alone(sim, abandoned):
    row, entries, path = abandoned
    data = path.read_bytes()[: entries[4].offset]
    path.write_bytes(data)
    assert recover_pack(sim, sim.root, UUID, row, floor=row.bytes).oddity
    assert path.read_bytes() == data


def test_a_torn_record_under_a_whole_footer_is_found(sim, abandoned):
    row, entries, path = abandoned
    recover_pack(sim, sim.root, UUID, row, row.bytes)
    data = bytearray(path.read_bytes())
    data[entries[3].offset + HEADER_BYTES] ^= 1
    path.write_bytes(data)
    done = recover_pack(sim, sim.root, UUID, row, floor=entries[2].offset)
    assert done.records == 3
    assert footer_of(path, row.name) == entries[:3]


@pytest.mark.parametrize('odd', ['other store', 'other name', 'no pack', 'huge'])
def test_a_file_that_is_no_pack_of_ours_is_left_alone(sim, abandoned, odd):
    row, _, path = abandoned
    uuid, data = UUID, path.read_bytes()
    if odd == 'other store':
        uuid = b'v' * 16
    elif odd == 'other name':
        row = PackRow(row.pack, b'n' * 16, row.kind, 'open', 0, 0)
        other = pack_path(sim.root, row.kind, row.name)
        other.parent.mkdir()
        path = path.rename(other)
    elif odd == 'no pack':
        data = b'X' * 1000
        path.write_bytes(data)
    else:
        with path.open('r+b') as file:
            file.truncate(1 << 40)
    assert recover_pack(sim, sim.root, uuid, row, floor=0).oddity
    assert path.exists()
    if odd != 'huge':
        assert path.read_bytes() == data


def test_a_missing_pack_is_an_oddity(sim, abandoned):
    row, _, path = abandoned
    path.rename(path.with_suffix('.away'))
    assert recover_pack(sim, sim.root, UUID, row, floor=row.bytes).oddity


@pytest.mark.parametrize('content', [b'', b'\0' * 30, b'\0' * 5000, None])
def test_a_pack_that_never_got_to_the_disk_goes(sim, abandoned, content):
    """Also one of whose header a part got there: it stayed, and the collector waited for ever for somebody to
    know it."""
    row, _, path = abandoned
    path.write_bytes(bytes(3) + path.read_bytes()[3:] if content is None else content)
    done = recover_pack(sim, sim.root, UUID, unknown(row), floor=0)
    assert (done.bytes, done.oddity) == (0, None)
    assert not path.exists()


def test_a_pack_that_somebody_names_never_goes(sim, abandoned):
    row, _, path = abandoned
    path.write_bytes(bytes(row.bytes))
    assert recover_pack(sim, sim.root, UUID, row, floor=row.bytes).oddity
    assert path.read_bytes() == bytes(row.bytes)


def test_a_whole_pack_of_a_killed_process_is_synced(sim):
    """It may be in the page cache only; the catalog is about to say that it is sealed."""
    writer, numbers = writer_on(sim, bytes_max=10_000)
    list(writer.append(encoded(plains_of(1, 20))))
    name, kind = numbers.packs[1]
    path = pack_path(sim.root, kind, name)
    assert footer_of(path, name)
    assert sim._names[path].pending
    assert recover_pack(sim, sim.root, UUID, PackRow(1, name, kind, 'open', 0, 0), 0).oddity is None
    assert not sim._names[path].pending


def test_only_files_called_like_packs_are_packs(sim, abandoned, caplog):
    row, _, path = abandoned
    (path.parent / 'notes.txt').write_bytes(b'')
    (path.parent / row.name.hex().upper().replace('0', 'A')).write_bytes(b'')
    (path.parent / ('00' * 16)).write_bytes(b'')  # in the wrong folder
    (sim.root / 'meta' / 'ab').mkdir()
    (sim.root / 'meta' / 'ab' / ('ab' * 16)).write_bytes(b'')
    found = packs_on_disk(sim, sim.root)
    assert sorted(found) == sorted([(RecordKind.DATA, row.name), (RecordKind.NODE, b'\xab' * 16)])
    assert caplog.text.count('left alone') == 3
