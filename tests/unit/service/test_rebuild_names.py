"""Names come from a damaged catalog, newer than any backup, when other parts of it are damaged; and from the
backup when anything speaks against one of its rows."""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from snapfs.cli import rebuild as command
from snapfs.service.collecting import Collecting
from snapfs.store import schema
from snapfs.store.durable import Disk
from tests.mutants.setting import small
from tests.support.fsck import report_of
from tests.support.lives import on, trees
from tests.unit.service.test_rebuild import rebuilt

CATALOG = 'catalog.sqlite'


def root_page(path: Path, table: str) -> tuple[int, int]:
    """Return where the first page of a table is, and how many bytes it has. The log stays beside it."""
    with closing(sqlite3.connect(f'file:{path / CATALOG}?mode=ro&immutable=1', uri=True)) as db:
        (size,) = db.execute('PRAGMA page_size').fetchone()
        (page,) = db.execute('SELECT rootpage FROM sqlite_schema WHERE name = ?', (table,)).fetchone()
    return (page - 1) * size, size


def spoil(path: Path, table: str) -> None:
    """Fill the first page of a table with nonsense, without SQLite."""
    offset, size = root_page(path, table)
    with (path / CATALOG).open('r+b') as file:
        file.seek(offset)
        file.write(b'\xa5' * size)


def with_a_log(path: Path) -> None:
    """Let the last commit be in a log beside the catalog, as a crash leaves it."""
    files = [path / f'{CATALOG}{suffix}' for suffix in ('', '-wal')]
    with closing(sqlite3.connect(path / CATALOG)) as db:
        db.execute('PRAGMA journal_mode = WAL')
        db.execute("UPDATE settings SET value = value + 1 WHERE key = 'unclean_opens'")
        db.commit()
        kept = [one.read_bytes() for one in files]
    for one, data in zip(files, kept, strict=True):
        assert data
        one.write_bytes(data)


def tell(path: Path, text: str, *values: Any) -> None:
    """Change rows of the catalog as rot would: nobody is asked."""
    with closing(sqlite3.connect(path / CATALOG)) as db:
        db.execute(text, values)
        db.commit()


def without_backups(path: Path) -> None:
    for one in (path / 'backups').glob('*.json'):
        one.unlink()


def take(name: str) -> Callable[[Collecting], Any]:
    async def work(collecting: Collecting) -> None:
        volume = next(iter(collecting.engine.heads()))
        await collecting.engine.snapshot_create(volume, name, 'ann')

    return work


def missing(wanted: dict[str, Any], path: Path) -> list[str]:
    """Return what is not as it was under its name. (There may be more: older trees that nobody names.)"""
    found = trees(path)
    return [name for name, tree in wanted.items() if found.get(name) != tree]


def damage_found(path: Path) -> list[Any]:
    with small():
        return [one for one in report_of(path).findings if one.severity == 'damage']


# --- names that are there --------------------------------------------------------------------------------
def test_names_without_any_backup(kept_image, kept_store, tmp_path):
    wanted = trees(shutil.copytree(kept_image, tmp_path / 'other'))
    without_backups(kept_store)
    spoil(kept_store, 'chunk')
    told = rebuilt(kept_store)
    assert (told['backup'], told['doubt']) == (CATALOG, '')
    assert not missing(wanted, kept_store)
    assert not damage_found(kept_store)


def test_names_that_are_newer_than_the_backup(kept_image, kept_store):
    on(kept_store, take('late'))
    shutil.rmtree(kept_store / 'backups')
    shutil.copytree(kept_image / 'backups', kept_store / 'backups')
    wanted = trees(shutil.copytree(kept_store, kept_store.with_name('other')))
    assert any(name.endswith('@late') for name in wanted)
    spoil(kept_store, 'quarantine')
    assert rebuilt(kept_store)['backup'] == CATALOG
    assert not missing(wanted, kept_store)
    assert not damage_found(kept_store)


def test_what_the_journal_has_goes_on_top(cut_image, cut_store, tmp_path):
    """A power cut, with a log beside the catalog, and before the first backup."""
    wanted = trees(shutil.copytree(cut_image, tmp_path / 'other'))
    without_backups(cut_store)
    with_a_log(cut_store)
    spoil(cut_store, 'chunk')
    told = rebuilt(cut_store)
    assert told['backup'] == CATALOG and told['replay'] and 'will be replayed' in told['journal']
    assert told['journal'][0] != '0'
    assert not missing(wanted, cut_store)
    assert not damage_found(cut_store)


def test_a_bad_sector_elsewhere_is_no_matter(kept_image, cut_image, cut_store, tmp_path, monkeypatch):
    """Also where the catalog is copied, since it has a log."""
    wanted = trees(shutil.copytree(cut_image, tmp_path / 'other'))
    with_a_log(cut_store)
    (at, size), inode = root_page(cut_store, 'chunk'), (cut_store / CATALOG).stat().st_ino
    real, refused = Disk._sys_pread, []

    def pread(self: Disk, fd: int, count: int, offset: int) -> bytes:
        if os.fstat(fd).st_ino == inode and offset < at + size and at < offset + count:
            refused.append(offset)
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(self, fd, count, offset)

    monkeypatch.setattr(Disk, '_sys_pread', pread)
    assert rebuilt(cut_store)['backup'] == CATALOG
    assert len(refused) >= 2
    monkeypatch.undo()
    assert not missing(wanted, cut_store)


# --- rows that are not believed --------------------------------------------------------------------------
def _less_backup(*texts: str) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        without_backups(path)
        for text in texts:
            tell(path, text)

    return damage


def _told(text: str) -> Callable[[Path], None]:
    return lambda path: tell(path, text)


SNAPSHOT = '(SELECT min(number) FROM snapshot WHERE root IS NOT NULL)'
ROOT = 'UPDATE snapshot SET root = randomblob(32) WHERE number = ' + SNAPSHOT
DOUBTS: dict[str, tuple[Callable[[Path], None], str]] = {
    'another root': (_told(ROOT), 'is another one than in backup'),
    'another root, no backup': (_less_backup(ROOT), 'its tree cannot be read'),
    'a root of a part': (
        _less_backup('UPDATE volume SET root_items = root_items + 1 WHERE root IS NOT NULL'),
        'does not count what its tree counts',
    ),
    'other references': (
        _told('UPDATE volume SET root_refs = root_refs - 1 WHERE root IS NOT NULL'),
        'does not count what its tree counts',
    ),
    'inode numbers': (
        _told('UPDATE volume SET next_ino = 2 WHERE root_items > 5'),
        'would give out inode numbers twice',
    ),
    'an older epoch': (_told("UPDATE settings SET value = 1 WHERE key = 'epoch'"), 'setting epoch is 1'),
    'an older number': (
        _told("UPDATE settings SET value = 1 WHERE key = 'next_view'"),
        'setting next_view is 1',
    ),
    'an impossible number': (
        _told("UPDATE settings SET value = value | (1 << 61) WHERE key = 'next_volume'"),
        'setting next_volume cannot be',
    ),
    'no such setting': (_told("DELETE FROM settings WHERE key = 'epoch'"), 'which epoch'),
    'a snapshot less': (
        _told('DELETE FROM snapshot WHERE number = (SELECT max(number) FROM snapshot)'),
        'is not in it',
    ),
    'a snapshot of nothing': (
        _less_backup('UPDATE snapshot SET volume = 77 WHERE number = ' + SNAPSHOT),
        'table snapshot',
    ),
    'an impossible name': (
        _less_backup("UPDATE snapshot SET name = x'612f62' WHERE number = " + SNAPSHOT),
        'name',
    ),
    'a page of names': (lambda path: spoil(path, 'snapshot'), 'table snapshot'),
    'a page of what only helps': (lambda path: spoil(path, 'incident'), 'table incident'),
    'another schema': (_told('CREATE TABLE more (x)'), 'not those of a catalog of this version'),
}


@pytest.mark.parametrize('how', DOUBTS)
def test_a_row_in_doubt_is_a_reason_to_take_the_backup(kept_image, kept_store, tmp_path, how):
    wanted = trees(shutil.copytree(kept_image, tmp_path / 'other'))
    damage, reason = DOUBTS[how]
    damage(kept_store)
    spoil(kept_store, 'chunk')
    backups = list((kept_store / 'backups').glob('*.json'))
    told = rebuilt(kept_store)
    assert reason in told['doubt']
    if backups:
        assert told['backup'] == max(backups).name
        assert not missing(wanted, kept_store)
    else:
        assert told['backup'] is None
        found = trees(kept_store)
        assert all(tree in found.values() for tree in wanted.values()), 'they have no names, but are there'
    assert not damage_found(kept_store)


def test_who_names_a_backup_gets_that(kept_store, capsys):
    spoil(kept_store, 'chunk')
    backup = max((kept_store / 'backups').glob('*.json'))
    with small():
        told = command._rebuild(kept_store, kept_store / 'catalog.new', str(backup), True)
    assert told['backup'] == backup.name


def test_the_doubt_is_told(kept_store, capsys):
    spoil(kept_store, 'chunk')
    spoil(kept_store, 'volume')
    with small():
        command.rebuild_command.callback(
            str(kept_store), str(kept_store / 'catalog.new'), None, True, False, False, False
        )
    assert 'names are not taken from the damaged catalog: table volume' in capsys.readouterr().out


def test_all_tables_of_a_backup_are_asked(kept_image):
    """A table that is new is looked at as well, or this says so."""
    from snapfs.rescue import rebuild_names
    from snapfs.store import backup

    with closing(sqlite3.connect(f'file:{kept_image / CATALOG}?mode=ro&immutable=1', uri=True)) as db:
        found = rebuild_names._read(db, kept_image / CATALOG, b'u' * 16, 1)
    assert set(found.tables) == set(backup.TABLES) == set(schema.TABLES) - backup.LEFT_OUT
