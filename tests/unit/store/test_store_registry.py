"""Volumes, snapshots, holds and requests."""

from __future__ import annotations

import errno

import pytest

from snapfs import limits
from snapfs.errors import Held, Invalid, Refused
from snapfs.store.catalog import Catalog
from snapfs.store.durable import Disk
from snapfs.store.registry import Registry, check_name
from snapfs.store.rows import ChunkRow, Commit, HeadUpdate, HoldRow

ROOT = b'r' * 32


@pytest.fixture
def catalog(tmp_path):
    catalog = Catalog.create(Disk(), tmp_path / 'catalog.sqlite')
    yield catalog
    catalog.close()


@pytest.fixture
def registry(catalog):
    return Registry(catalog)


@pytest.fixture
def home(catalog, registry):
    """A volume with a committed root."""
    row = registry.volume_add('home', 5)
    chunk = ChunkRow(ROOT, 1, 48, 10, 10, 0, 2)
    head = HeadUpdate(row.volume, ROOT, 10, 20, 30)
    catalog.commit(Commit([head], [chunk], [], [], 0, 6))
    return registry.volumes()[0]


def refused(number, call, *args):
    with pytest.raises(Refused) as caught:
        call(*args)
    assert caught.value.errno == number


def test_a_volume_has_a_stable_number_and_a_view_number(registry):
    first = registry.volume_add('home \udcff', 5)
    second = registry.volume_add('work', 6)
    assert (first.name, first.root, first.created_ns) == ('home \udcff', None, 5)
    assert first.volume != second.volume
    assert first.number != second.number
    assert registry.volumes() == [first, second]
    refused(errno.EEXIST, registry.volume_add, 'work', 7)


@pytest.mark.parametrize(
    'name',
    ['', '.', '..', '.snapfs', '.snapshots', 'a/b', 'a@b', 'a\nb', 'a\0b', '\x7f', 'é' * 128, 'x' * 256],
)
def test_impossible_names(registry, home, name):
    with pytest.raises(Invalid):
        check_name(name, 'volume')
    for call in (
        lambda: registry.volume_add(name, 1),
        lambda: registry.volume_rename(home.volume, name),
        lambda: registry.snapshot_add(home.volume, name, 'ann', 1),
        lambda: registry.volume_rollback(home.volume, 1, name, 'ann', 1),
    ):
        with pytest.raises(Invalid):
            call()
    assert registry.volumes() == [home]
    assert registry.snapshots() == []


@pytest.mark.parametrize('name', ['x' * 255, 'é' * 127, ' ', '-', 'a b', 'a:b', '\udc80', '...'])
def test_possible_names(registry, name):
    assert registry.volume_add(name, 1).name == name
    assert registry.volumes()[0].name == name


def test_volume_rename(registry, home):
    other = registry.volume_add('other', 5)
    assert registry.volume_rename(home.volume, 'house').name == 'house'
    assert registry.volume_rename(home.volume, 'house').name == 'house'
    refused(errno.EEXIST, registry.volume_rename, home.volume, 'other')
    refused(errno.ENOENT, registry.volume_rename, 99, 'x')
    assert [row.name for row in registry.volumes()] == ['house', 'other']
    assert registry.volumes()[1] == other


def test_a_snapshot_is_a_name_for_the_committed_root(registry, home):
    row = registry.snapshot_add(home.volume, 'monday', 'ann', 7)
    assert (row.root, row.root_items, row.root_refs, row.next_ino, row.epoch) == (ROOT, 10, 20, 30, 1)
    assert (row.volume, row.name, row.who, row.created_ns) == (home.volume, 'monday', 'ann', 7)
    assert row.number != home.number
    refused(errno.EEXIST, registry.snapshot_add, home.volume, 'monday', 'ann', 8)
    refused(errno.ENOENT, registry.snapshot_add, 99, 'x', 'ann', 8)
    other = registry.volume_add('other', 5)
    twin = registry.snapshot_add(other.volume, 'monday', 'ann', 9)
    assert registry.snapshots() == [row, twin]
    assert registry.snapshots(home.volume) == [row]


def test_snapshot_rename(registry, home):
    row = registry.snapshot_add(home.volume, 'monday', 'ann', 7)
    registry.snapshot_add(home.volume, 'tuesday', 'ann', 8)
    assert registry.snapshot_rename(row.number, 'friday').name == 'friday'
    refused(errno.EEXIST, registry.snapshot_rename, row.number, 'tuesday')
    refused(errno.ENOENT, registry.snapshot_rename, 99, 'x')


def test_a_clone_has_the_root_of_its_snapshot(registry, home):
    snapshot = registry.snapshot_add(home.volume, 'monday', 'ann', 7)
    clone = registry.volume_add('clone', 9, snapshot)
    assert (clone.root, clone.root_items, clone.root_refs, clone.next_ino) == (ROOT, 10, 20, 30)
    assert clone.origin == snapshot.number
    registry.snapshot_delete(snapshot.number, 'ann', 10)
    refused(errno.ENOENT, registry.volume_add, 'late', 11, snapshot)


def test_rollback_takes_a_safety_snapshot_and_a_new_view_number(catalog, registry, home):
    snapshot = registry.snapshot_add(home.volume, 'monday', 'ann', 7)
    second = ChunkRow(b's' * 32, 1, 200, 10, 10, 0, 2)
    catalog.commit(Commit([HeadUpdate(home.volume, second.id, 1, 2, 50)], [second], [], [], 0, 8))
    row, safety = registry.volume_rollback(home.volume, snapshot.number, 'before rollback', 'ann', 9)
    assert (row.root, row.root_items, row.root_refs) == (ROOT, 10, 20)
    assert row.next_ino == 50, 'inode numbers are not given out twice'
    assert row.volume == home.volume
    assert row.number not in (home.number, snapshot.number, safety.number)
    assert (safety.root, safety.next_ino, safety.name) == (second.id, 50, 'before rollback')
    other = registry.volume_add('other', 5)
    with pytest.raises(Invalid):
        registry.volume_rollback(other.volume, snapshot.number, 'x', 'ann', 10)
    refused(errno.EEXIST, registry.volume_rollback, home.volume, snapshot.number, 'monday', 'ann', 11)
    assert registry.volumes()[0] == row
    assert len(registry.snapshots()) == 2


def test_a_deleted_snapshot_is_a_request_and_comes_back_whole(registry, home):
    row = registry.snapshot_add(home.volume, 'monday', 'ann', 7)
    request = registry.snapshot_delete(row.number, 'bob', 8)
    assert registry.snapshots() == []
    assert registry.requests() == [request]
    assert (request.kind, request.name, request.volume, request.volume_name) == (
        'snapshot',
        'monday',
        home.volume,
        'home',
    )
    assert (request.view, request.root, request.who, request.requested_ns) == (row.number, ROOT, 'bob', 8)
    refused(errno.ENOENT, registry.snapshot_delete, row.number, 'bob', 9)
    refused(errno.ENOENT, registry.volume_undelete, request.number)
    assert registry.snapshot_undelete(request.number) == row
    assert registry.requests() == []
    refused(errno.ENOENT, registry.snapshot_undelete, request.number)


def test_undelete_under_another_name_and_in_another_volume(registry, home):
    row = registry.snapshot_add(home.volume, 'monday', 'ann', 7)
    request = registry.snapshot_delete(row.number, 'bob', 8)
    registry.snapshot_add(home.volume, 'monday', 'ann', 9)
    refused(errno.EEXIST, registry.snapshot_undelete, request.number)
    assert registry.requests() == [request]
    with pytest.raises(Invalid):
        registry.snapshot_undelete(request.number, 'a/b')
    other = registry.volume_add('other', 5)
    back = registry.snapshot_undelete(request.number, 'old', other.volume)
    assert (back.name, back.volume, back.root, back.number) == ('old', other.volume, ROOT, row.number)


def test_a_deleted_volume_is_a_request_and_comes_back_whole(registry, home):
    snapshot = registry.snapshot_add(home.volume, 'monday', 'ann', 7)
    with pytest.raises(Held, match='1 snapshots'):
        registry.volume_delete(home.volume, 'bob', 8)
    trashed = registry.snapshot_delete(snapshot.number, 'bob', 9)
    request = registry.volume_delete(home.volume, 'bob', 10)
    assert (request.kind, request.volume_name, request.view, request.root) == (
        'volume',
        'home',
        home.number,
        ROOT,
    )
    assert registry.volumes() == []
    refused(errno.ENOENT, registry.snapshot_undelete, trashed.number)
    registry.volume_add('home', 11)
    refused(errno.EEXIST, registry.volume_undelete, request.number)
    back = registry.volume_undelete(request.number, 'old home')
    assert (back.volume, back.number, back.root, back.next_ino) == (home.volume, home.number, ROOT, 30)
    assert registry.snapshot_undelete(trashed.number).volume == home.volume


def test_a_request_in_a_batch_is_not_taken_back_under_it(catalog, registry, home):
    row = registry.snapshot_add(home.volume, 'monday', 'ann', 7)
    request = registry.snapshot_delete(row.number, 'bob', 8)
    with catalog.transaction() as db:
        columns = 'number, state, class, horizon, digest, chunks, bytes, grace_ns, planned_ns, freed'
        db.execute(f"INSERT INTO batch ({columns}) VALUES (3, 'PLANNED', 'kept', 1, x'00', 0, 0, 0, 9, 0)")
        db.execute('UPDATE request SET batch = 3')
    with pytest.raises(Held, match='batch 3'):
        registry.snapshot_undelete(request.number)


def test_holds_forbid_deletion(registry, home):
    row = registry.snapshot_add(home.volume, 'monday', 'ann', 7)
    first = registry.hold_add(HoldRow(row.number, 'audit', 'ann', 'tax', 8, None))
    second = registry.hold_add(HoldRow(row.number, 'until', 'bob', '', 8, 100))
    assert registry.holds(row.number) == registry.holds() == [first, second]
    refused(errno.EEXIST, registry.hold_add, HoldRow(row.number, 'audit', 'x', '', 9, None))
    refused(errno.ENOENT, registry.hold_add, HoldRow(99, 'x', 'x', '', 9, None))
    with pytest.raises(Held, match="'audit' of ann, 'until' of bob"):
        registry.snapshot_delete(row.number, 'eve', 50)
    registry.hold_release(row.number, 'audit')
    refused(errno.ENOENT, registry.hold_release, row.number, 'audit')
    with pytest.raises(Held, match='until'):
        registry.snapshot_delete(row.number, 'eve', 99)
    assert registry.requests() == []
    registry.snapshot_delete(row.number, 'eve', 100)
    assert registry.holds() == []


def test_holds_have_a_limit(registry, home, monkeypatch):
    monkeypatch.setattr(limits, 'HOLDS_PER_SNAPSHOT_MAX', 2)
    row = registry.snapshot_add(home.volume, 'monday', 'ann', 7)
    for name in 'ab':
        registry.hold_add(HoldRow(row.number, name, '', '', 8, None))
    refused(errno.ENOSPC, registry.hold_add, HoldRow(row.number, 'c', '', '', 8, None))


def test_volumes_and_views_have_a_limit(catalog, registry, home, monkeypatch):
    monkeypatch.setattr(limits, 'VOLUMES_MAX', 1)
    refused(errno.ENOSPC, registry.volume_add, 'more', 1)
    monkeypatch.setattr(limits, 'VIEW_MAX', 2)
    registry.snapshot_add(home.volume, 'a', '', 1)
    refused(errno.ENOSPC, registry.snapshot_add, home.volume, 'b', '', 1)
    assert len(registry.snapshots()) == 1


def test_numbers_are_never_used_again(registry, home):
    seen = {home.number}
    for n in range(5):
        row = registry.snapshot_add(home.volume, 'a', '', n)
        assert row.number not in seen
        seen.add(row.number)
        registry.snapshot_delete(row.number, '', n)
    numbers = [request.number for request in registry.requests()]
    assert numbers == sorted(set(numbers))
    registry.snapshot_undelete(numbers[-1])
    again = registry.snapshot_add(home.volume, 'b', '', 9)
    assert registry.snapshot_delete(again.number, '', 9).number > numbers[-1]


def test_damage_is_marked_once(registry, home):
    row = registry.snapshot_add(home.volume, 'monday', 'ann', 7)
    registry.mark_damaged(row.number, 50)
    registry.mark_damaged(row.number, 60)
    assert registry.snapshots()[0].damaged_ns == 50
    assert registry.volumes()[0].damaged_ns is None
    registry.mark_damaged(home.number, 70)
    assert registry.volumes()[0].damaged_ns == 70
    assert registry.snapshot_add(home.volume, 'later', 'ann', 80).damaged_ns == 70, 'it has the same chunks'


def test_a_request_that_is_not_there_has_no_parts(registry):
    refused(errno.ENOENT, registry.request_part, 9)
