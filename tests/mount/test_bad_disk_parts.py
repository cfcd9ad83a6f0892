"""A disk that does not give the small parts of a store, or a directory: told as unreadable, never taken for
empty, and nothing is written that makes it worse."""

from __future__ import annotations

import os

import pytest

from tests.mount.bad_disk_kit import PAGE, Bad
from tests.support.bad_disk import fault
from tests.support.mounted import SNAPFS

pytestmark = pytest.mark.slow

CATALOG = 'store/catalog.sqlite'
REBUILD = 'Make a new catalog: snapfs rebuild'


@pytest.mark.parametrize('start', [0, 2 * PAGE], ids=['first page', 'all pages from the third on'])
def test_pages_of_the_catalog(bad: Bad, start: int) -> None:
    before = bad.files()
    bad.disk.fail(fault('read', CATALOG, start, PAGE if start == 0 else None))
    assert 'catalog-unreadable' in bad.says(12, 'fsck', '--quick')
    assert 'catalog-unreadable' in bad.says(4, 'damage')
    for words in (['snapshot', 'list'], ['recover', 'home@monday', '--dry-run'], ['verify', 'home@monday']):
        assert REBUILD in bad.says(13, *words), words
    assert '2 snapshots by name' in bad.says(0, 'rebuild', bad.place / 'catalog.new')
    assert bad.files() == before
    assert bad.disk.mend()[0] > 0
    assert '0 damages, 0 warnings' in bad.says(0, 'fsck')


def test_a_catalog_that_does_not_open_is_not_taken_for_a_lost_one(bad: Bad) -> None:
    before = bad.files()
    bad.disk.fail(fault('open', CATALOG))
    for words in (['snapshot', 'list'], ['verify', 'home@monday']):
        told = bad.says(13, *words)
        assert f'{bad.store / "catalog.sqlite"}: ' in told and 'rebuild' not in told
    assert 'Nothing was changed' in bad.says(13, 'rebuild', bad.place / 'catalog.new')
    assert bad.files() == before


def test_the_superblock(bad: Bad) -> None:
    before = bad.files()
    bad.disk.fail(fault('read', 'store/superblock'))
    assert 'superblock-bad' in bad.says(12, 'fsck')
    for words in (['snapshot', 'list'], ['verify', 'home@monday'], ['scrub']):
        told = bad.says(13, *words)
        assert f'{bad.store / "superblock"}' in told and 'Input/output error' in told
    assert 'Its copy can be put back' in bad.says(0, 'rebuild', bad.place / 'catalog.new')
    assert bad.files() == before


@pytest.mark.parametrize('folder', ['data', 'meta'])
def test_a_directory_of_packs_that_cannot_be_listed(bad: Bad, folder: str) -> None:
    """Its packs can be opened all the same: nothing is known to be lost, and not all was looked at."""
    bad.disk.fail(fault('list', f'store/packs/{folder}'))
    told = bad.says(8, 'fsck', '--quick')
    assert f'NOT CHECKED packs/{folder}' in told and 'Input/output error' in told
    assert 'nothing that is known' in bad.says(0, 'recover', 'home@monday', '--dry-run')


def test_a_directory_of_packs_that_gives_no_name(bad: Bad) -> None:
    bad.disk.fail(fault('list', 'store/packs/data'), fault('lookup', 'store/packs/data'))
    assert 'pack-unreadable' in bad.says(12, 'fsck', '--quick')
    assert '/big' in bad.says(4, 'recover', 'home@monday', '--dry-run')
    assert bad.disk.mend()[1] > 0


def test_the_audit_log(bad: Bad) -> None:
    """It stops the collector, and nobody else; the same failure again is the same incident."""
    bad.disk.fail(fault('read', 'store/audit.log'))
    assert 'audit-broken' in bad.says(4, 'fsck', '--quick')
    for _ in range(3):
        assert 'home@monday' in bad.says(0, 'snapshot', 'list')
    told = bad.says(0, 'incident', 'list')
    assert told.count('deletion') == 1 and f'{bad.store / "audit.log"}' in told


def test_files_of_a_batch_and_backups(bad: Bad) -> None:
    bad.disk.fail(fault('read', 'store/backups/*.json'))
    assert f'{bad.store / "backups"}' in bad.says(0, 'rebuild', '--list-backups')
    assert 'home@monday' in bad.says(0, 'snapshot', 'list')


@pytest.mark.parametrize('on', ['read', 'open'])
def test_a_journal_with_what_was_synced_is_not_taken_for_a_torn_one(bad: Bad, on: str) -> None:
    """After a kill (P5, P10): the mount is refused, says which way leads on, and changes nothing."""
    bad.mount.start()
    with open(bad.home / 'synced', 'wb', buffering=0) as file:
        file.write(b'synced')
        os.fsync(file.fileno())
    bad.mount.kill()
    bad.mount.expected += ['Input/output error']
    bad.disk.fail(fault(on, 'store/journal/*', PAGE, 2 * PAGE))
    assert 'journal-bad' in bad.says(4, 'fsck', '--quick')
    before = bad.files()
    code, told = bad.call(SNAPFS, 'mount', bad.store, bad.mount.path)
    assert code == 13 and 'journal/' in told and '--install --journal' in told
    assert '--journal' in bad.says(3, 'rebuild', bad.place / 'catalog.new')
    journals = {name: data for name, data in bad.files().items() if name.startswith('journal/')}
    assert journals == {name: data for name, data in before.items() if name.startswith('journal/')}
    bad.disk.mend()
    bad.mount.start()
    assert (bad.home / 'synced').read_bytes() == b'synced'
