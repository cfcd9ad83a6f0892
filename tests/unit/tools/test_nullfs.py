"""nullfs: what its inodes make of reads, writes and sizes, against a plain bytearray."""

import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tools import nullfs


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    monkeypatch.setattr(nullfs, 'BLOCK_BYTES', 64)
    monkeypatch.setattr(nullfs, 'ZEROS', bytes(64))


def new() -> nullfs.Inode:
    return nullfs.Inode(nullfs.entry(2, stat.S_IFREG | 0o644, 0, 0))


steps = st.lists(
    st.one_of(
        st.tuples(st.just('write'), st.integers(0, 300), st.binary(min_size=1, max_size=200)),
        st.tuples(st.just('resize'), st.integers(0, 400), st.none()),
    ),
    max_size=12,
)


@given(steps, st.integers(0, 500), st.integers(0, 500))
def test_an_inode_holds_what_a_bytearray_holds(steps, offset, size):
    inode, model = new(), bytearray()
    for action, place, data in steps:
        if action == 'write':
            inode.write(place, data)
            model.extend(bytes(max(0, place + len(data) - len(model))))
            model[place : place + len(data)] = data
        else:
            inode.resize(place)
            model[:] = model[:place] + bytes(max(0, place - len(model)))
        assert inode.size == inode.attributes.st_size == len(model)
    assert bytes(inode.read(0, 1000)) == model
    assert bytes(inode.read(offset, size)) == model[offset : offset + size]


def test_a_huge_hole_costs_nothing():
    inode = new()
    inode.resize(10**15)
    inode.write(10**15 - 3, b'end')
    assert len(inode.blocks) == 1
    assert bytes(inode.read(10**15 - 5, 10)) == b'\0\0end'
    inode.resize(1)
    assert not inode.blocks
    assert bytes(inode.read(0, 10)) == b'\0'


def test_an_aligned_block_is_kept_without_a_copy():
    inode, data = new(), bytes(range(64))
    inode.write(64, data)
    assert inode.blocks[1] is data
    assert inode.read(64, 64) is data


def test_an_emptied_file_keeps_no_block():
    inode = new()
    inode.write(0, b'some')
    inode.resize(0)
    assert not inode.blocks
