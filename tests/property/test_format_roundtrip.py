"""What any structure of the format means is what comes back, for all values that its schema allows."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from snapfs import limits
from snapfs.format import ids, journal, keys, nodes, packs, records, superblock
from snapfs.format.codec import Compressor
from snapfs.format.items import check_item, item_size, ref_of

REPEATABLE = settings(derandomize=True, deadline=None, max_examples=150)
UUID = b'u' * 16

u32 = st.integers(0, (1 << 32) - 1)
u64 = st.integers(0, (1 << 64) - 1)
id32 = st.binary(min_size=32, max_size=32)
name16 = st.binary(min_size=16, max_size=16)
time_ns = st.integers(-(1 << 63), (1 << 63) - 1)
file_bytes = st.integers(0, limits.FILE_BYTES_MAX)
ino = st.integers(limits.INO_FIRST, limits.INO_MAX)
type_number = st.sampled_from([1, 2, 4, 6, 8, 10, 12])
name = st.binary(min_size=1, max_size=30).filter(
    lambda text: not {0, 47} & set(text) and text not in (b'.', b'..')
)


@st.composite
def inode_values(draw: st.DrawFn) -> tuple[Any, ...]:
    kind = draw(type_number)
    mode = kind << 12 | draw(st.integers(0, 0o7777))
    middle = draw(st.tuples(u32, u32, u64, file_bytes, file_bytes, st.integers(0, limits.NLINK_MAX), u64))
    parent = draw(st.integers(0, limits.INO_MAX))
    times = draw(st.tuples(time_ns, time_ns, time_ns, time_ns))
    target = draw(st.binary(min_size=1, max_size=100)) if kind == 10 else b''
    return (mode, *middle, parent, *times, draw(u32), target)


entries = st.lists(
    st.tuples(name, ino, type_number), min_size=1, max_size=5, unique_by=lambda entry: entry[0]
)
inode_items = st.tuples(ino.map(keys.inode_key), inode_values())
dirent_items = st.tuples(
    st.builds(keys.dirent_key, ino, st.integers(2, (1 << 63) - 1)),
    entries.map(lambda found: tuple(sorted(found))),
)
extent_items = st.tuples(
    st.builds(keys.extent_key, ino, st.integers(0, limits.FILE_BYTES_MAX - limits.PLAIN_BYTES_MAX)),
    st.tuples(st.integers(1, limits.PLAIN_BYTES_MAX), id32)
    | st.tuples(st.integers(1, 900), st.integers(0, 100), st.integers(1001, limits.PLAIN_BYTES_MAX), id32),
)
xattr_items = st.tuples(
    st.builds(keys.xattr_key, ino, st.binary(min_size=1, max_size=30).filter(lambda text: 0 not in text)),
    st.tuples(st.just(0), st.binary(max_size=1024))
    | st.tuples(st.just(1), st.integers(1025, limits.XATTR_VALUE_BYTES_MAX), id32),
)
orphan_items = st.tuples(ino.map(keys.orphan_key), st.just(()))
items = st.one_of(inode_items, dirent_items, extent_items, xattr_items, orphan_items)
item_lists = st.lists(items, min_size=1, max_size=40, unique_by=lambda item: item[0]).map(sorted)


@given(items)
@REPEATABLE
def test_the_strategy_makes_items_of_the_schema_and_keys_come_back(item: tuple[bytes, Any]) -> None:
    check_item(*item)
    assert keys.encode_key(*keys.decode_key(item[0])) == item[0]


@given(items, items)
@REPEATABLE
def test_bytes_sort_as_inode_then_kind_then_suffix(one: tuple[bytes, Any], other: tuple[bytes, Any]) -> None:
    assert (one[0] < other[0]) == (keys.decode_key(one[0]) < keys.decode_key(other[0]))
    for key in (one[0], other[0]):
        number, kind, _ = keys.decode_key(key)
        for lo, hi in (keys.ino_range(number), keys.kind_range(number, kind)):
            assert lo <= key < hi


@given(item_lists)
@REPEATABLE
def test_leaf(found: list[tuple[bytes, Any]]) -> None:
    leaf_keys, values = [key for key, _ in found], [value for _, value in found]
    plain = nodes.encode_leaf(leaf_keys, values)
    leaf = nodes.decode_node(plain)
    assert isinstance(leaf, nodes.Leaf)
    assert (leaf.keys, leaf.values_with_ids()) == (leaf_keys, values)
    refs = [id for id in map(ref_of, leaf_keys, values) if id is not None]
    header, table = nodes.peek_refs(plain)
    assert leaf.ref_ids() == refs == nodes.split_refs(table)
    assert (
        (header.items_below, header.refs_below)
        == (len(found), len(refs))
        == (leaf.items_below, leaf.refs_below)
    )
    estimate = sum(map(item_size, leaf_keys, values))
    assert len(plain) <= estimate * 5 // 4 + nodes.NODE_HEADER_BYTES + 5


children = st.tuples(
    st.binary(min_size=1, max_size=40), id32, st.integers(1, 1 << 40), st.integers(0, 1 << 40)
)


@given(
    st.integers(1, 16),
    st.lists(children, min_size=1, max_size=40, unique_by=lambda child: child[0]).map(sorted),
)
@REPEATABLE
def test_branch(level: int, found: list[tuple[bytes, bytes, int, int]]) -> None:
    columns = [list(column) for column in zip(*found, strict=True)]
    columns[0][0] = b''
    separators, child_ids, child_items, child_refs = columns
    plain = nodes.encode_branch(level, separators, child_ids, child_items, child_refs)
    branch = nodes.decode_node(plain)
    assert isinstance(branch, nodes.Branch)
    assert branch.level == level
    assert [branch.keys, branch.children, branch.child_items, branch.child_refs] == [
        tuple(column) for column in columns
    ]
    assert branch.items_below == sum(child_items)
    assert branch.refs_below == sum(child_refs) + len(found)
    assert nodes.peek_refs(plain)[1] == b''.join(child_ids)


plains = st.binary(max_size=2000) | st.builds(
    lambda text, times: (text * times)[: limits.PLAIN_BYTES_MAX],
    st.binary(max_size=20),
    st.integers(0, 10_000),
)


@given(st.sampled_from(records.RecordKind), st.lists(plains, max_size=5))
@REPEATABLE
def test_records_back_to_back_in_a_pack(kind: records.RecordKind, texts: list[bytes]) -> None:
    compressor = Compressor()
    pack = packs.encode_pack_header(packs.PackHeader(UUID, b'n' * 16, kind))
    found = []
    for plain in texts:
        id = ids.chunk_id(kind, plain)
        header, payload = records.encode_record(kind, id, plain, compressor)
        decoded = records.decode_header(header)
        found.append(packs.PackEntry(id, len(pack), len(payload), len(plain), decoded.codec))
        pack += header + payload
    index_offset = len(pack)
    pack += packs.encode_footer(found, index_offset, b'n' * 16)
    assert packs.decode_pack_header(pack).kind == kind
    assert packs.footer_offset(pack[-packs.TRAILER_BYTES :], len(pack)) == index_offset
    assert packs.decode_footer(pack[index_offset:], len(pack), b'n' * 16) == found
    for entry, plain in zip(found, texts, strict=True):
        header_found = records.decode_header(pack, entry.offset)
        start = entry.offset + records.HEADER_BYTES
        assert records.decode_payload(header_found, pack[start : start + entry.stored_length]) == plain


@given(
    name16,
    name16,
    time_ns,
    st.integers(0, 3),
    st.lists(st.integers(1, 1 << 17), min_size=3, max_size=3, unique=True),
)
@REPEATABLE
def test_superblock(uuid: bytes, key: bytes, created_ns: int, normalization: int, sizes: list[int]) -> None:
    minimum, average, maximum = sorted(sizes)
    chunker = superblock.ChunkerParameters(minimum, average, maximum, normalization, minimum)
    block = superblock.Superblock(uuid, created_ns, key, chunker)
    assert superblock.decode_superblock(superblock.encode_superblock(block)) == block


new_chunks = st.builds(
    lambda id, kind, pack_name, offset, stored, codec: journal.NewChunk(
        id, kind, pack_name, offset, stored, stored + codec, codec
    ),
    id32,
    st.sampled_from([1, 2]),
    name16,
    st.integers(48, 1 << 32),
    st.integers(0, limits.PLAIN_BYTES_MAX - 1),
    st.sampled_from([0, 1]),
)
bounds = st.tuples(st.binary(max_size=20), st.binary(max_size=20)).filter(lambda pair: pair[0] < pair[1])
spans = st.tuples(ino, file_bytes, file_bytes).map(lambda span: (span[0], min(span[1:]), max(span[1:])))
writes = st.tuples(ino, st.integers(0, limits.FILE_BYTES_MAX - 3000), st.binary(min_size=1, max_size=3000))
deltas = st.builds(
    journal.VolumeDelta,
    st.integers(1, 1 << 40),
    st.integers(16, limits.INO_MAX + 1),
    st.lists(bounds, max_size=4),
    st.lists(items | st.tuples(items.map(lambda item: item[0]), st.none()), max_size=10),
    st.lists(spans, max_size=4),
    st.lists(writes, max_size=4),
)


@given(
    st.lists(st.tuples(st.lists(new_chunks, max_size=5), st.lists(deltas, max_size=3)), max_size=4),
    st.integers(0, 1 << 63),
)
@REPEATABLE
def test_journal(found: list[tuple[Any, Any]], sequence: int) -> None:
    frames = [[journal.JournalFrame(sequence + n, 0, False, *record)] for n, record in enumerate(found)]
    data = b''.join(
        part
        for n, record in enumerate(found)
        for part in journal.encode_record_frames(sequence + n, *record, UUID)
    )
    assert list(journal.decode_records(data + bytes(64), UUID)) == frames
