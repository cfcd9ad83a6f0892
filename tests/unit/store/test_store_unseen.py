"""P10: a name that the disk does not tell of is not one that is gone."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from snapfs.errors import Corrupt
from snapfs.format.ids import RecordKind
from snapfs.rescue import donors
from snapfs.rescue.rebuild_install import free_name, install
from snapfs.store.durable import Disk
from snapfs.store.missing import way_out_of_catalog
from snapfs.store.packs import pack_path
from snapfs.store.recovery import packs_on_disk
from tests.unit.store.test_store_mirror import copies, put, store

__all__ = ['store']


def blind(monkeypatch: pytest.MonkeyPatch, path: Path, *calls: str) -> None:
    """The disk answers EIO for this name."""
    for name in calls:
        true_call = getattr(os, name)

        def call(at: Any, *words: Any, _true: Any = true_call, **more: Any) -> Any:
            if not isinstance(at, int) and os.fspath(at) == str(path):
                raise OSError(errno.EIO, os.strerror(errno.EIO), str(at))
            return _true(at, *words, **more)

        monkeypatch.setattr(os, name, call)


def test_exists_says_yes_no_or_that_it_cannot_tell(tmp_path, monkeypatch):
    (tmp_path / 'link').symlink_to('nowhere')
    assert Disk().exists(tmp_path / 'link')
    assert not Disk().exists(tmp_path / 'other')
    assert not Disk().exists(tmp_path / 'link' / 'below')
    blind(monkeypatch, tmp_path / 'link', 'lstat')
    with pytest.raises(Corrupt, match=r'cannot look for .*link: Input/output error'):
        Disk().exists(tmp_path / 'link')


def test_the_copy_of_a_pack_that_cannot_be_seen_stays(store, monkeypatch):
    put(store, [b'a node'])
    store.mirror.copy()
    (name,) = copies(store)
    with store.catalog.transaction() as db:
        db.execute('DELETE FROM chunk')
        db.execute('DELETE FROM pack')
    blind(monkeypatch, pack_path(store.path / 'packs', RecordKind.NODE, bytes.fromhex(name)), 'lstat')
    store.mirror.copy()
    assert list(copies(store)) == [name]


@pytest.mark.parametrize('calls', [('listdir',), ('listdir', 'lstat', 'stat')])
def test_a_directory_of_packs_that_cannot_be_seen_is_not_left_alone(tmp_path, monkeypatch, calls):
    for folder in ('data/ab', 'meta'):
        (tmp_path / folder).mkdir(parents=True)
    blind(monkeypatch, tmp_path / 'data/ab', *calls)
    with pytest.raises(Corrupt, match='ab: Input/output error'):
        packs_on_disk(Disk(), tmp_path, every=True)
    assert packs_on_disk(Disk(), tmp_path) == []


def test_a_name_that_cannot_be_seen_is_not_free(tmp_path, monkeypatch):
    (tmp_path / 'journal.lost-1').mkdir()
    blind(monkeypatch, tmp_path / 'journal.lost-1', 'lstat')
    with pytest.raises(Corrupt, match='lost-1'):
        free_name(Disk(), tmp_path, 'journal.lost-', [''])


def test_a_catalog_that_cannot_be_seen_is_not_replaced(tmp_path, monkeypatch):
    (tmp_path / 'catalog.sqlite').write_text('old')
    (tmp_path / 'new').write_text('new')
    blind(monkeypatch, tmp_path / 'catalog.sqlite', 'lstat')
    with pytest.raises(Corrupt, match='catalog'):
        install(Disk(), tmp_path, tmp_path / 'new', bytes(16), replay=True)
    assert (tmp_path / 'catalog.sqlite').read_text() == 'old'


def test_donors_in_a_directory_that_cannot_be_listed_offer_nothing_and_the_others_do(tmp_path, monkeypatch):
    for prefix in ('ab', 'cd'):
        (tmp_path / prefix).mkdir()
        (tmp_path / prefix / f'{prefix}'.ljust(32, '0')).touch()
    blind(monkeypatch, tmp_path / 'ab', 'listdir', 'scandir')
    assert [path.parent.name for path in donors._packs(tmp_path)] == ['cd']
    assert list(donors._packs(tmp_path / 'none')) == []


def test_the_way_out_of_a_lost_catalog_is_told_where_backups_cannot_be_listed(tmp_path, monkeypatch):
    (tmp_path / 'backups').mkdir()
    (tmp_path / 'backups/1.json').touch()
    assert 'There are 1 backups' in way_out_of_catalog(tmp_path)
    blind(monkeypatch, tmp_path / 'backups', 'listdir', 'scandir')
    assert 'rebuild' in way_out_of_catalog(tmp_path)
    assert 'cannot be listed: Input/output error' in way_out_of_catalog(tmp_path)
