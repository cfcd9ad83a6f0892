"""Recount 2 confirms nothing when anything is missing, unreadable or odd (P10)."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from snapfs import limits
from snapfs.collect import catalog_ids, condemned, meta_packs
from snapfs.collect.catalog_ids import COLUMNS
from snapfs.errors import Corrupt
from snapfs.format.ids import RecordKind, node_id
from snapfs.format.journal import JOURNAL_HEADER_BYTES, VolumeDelta, encode_record_frames
from snapfs.format.keys import dirent_key, extent_key, inode_key, xattr_key
from snapfs.format.nodes import encode_leaf
from snapfs.format.packs import ENTRY_BYTES, TRAILER_BYTES, decode_footer, encode_footer, footer_offset
from snapfs.store import schema
from tests.unit.collect.kit2 import INODE, Built, branch, build, catalog, leaf

SCHEMA = schema.TABLES


@pytest.fixture
def built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Built]:
    """A store with sealed and open packs of both kinds, and a batch that recount 2 finds clear."""
    for name in ('JOURNAL_BYTES', 'RESERVE_BYTES', 'FREE_BYTES_MIN'):
        monkeypatch.setattr(limits, name, 64 * limits.KIB)
    made = build(tmp_path / 'store')
    d = made.put_data(b'a', b'b', b'c')
    leaves = [leaf(d[:2], 1), leaf(d[2:], 2)]
    made.put_nodes(*leaves, branch(leaves))
    made.commit()
    made.volume(1, branch(leaves))
    made.seal()
    made.seal(RecordKind.DATA)
    gone = leaf(made.put_data(b'x'), 3)
    made.put_nodes(gone)
    made.commit()
    made.batch(1, [node_id(gone), *made.put_data(b'x')])
    made.request(1, plain=gone, batch=1)
    seen = made.mentions()
    assert (seen.live, seen.leftovers, seen.packs) == ((), (), 2)
    yield made
    made.store.close(clean=False)


def pack(built: Built, kind: str, state: str) -> Path:
    number = {'data': 1, 'meta': 2}[kind]
    ((name,),) = built.sql('SELECT name FROM pack WHERE kind = ? AND state = ?', (number, state))
    assert isinstance(name, bytes)
    return built.path / 'packs' / kind / name.hex()[:2] / name.hex()


def refuses(built: Built, match: str, **changes: object) -> None:
    with pytest.raises(Corrupt, match=match) as caught:
        built.mentions(**changes)
    assert '\n' not in str(caught.value)


# --- packs ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize('kind', ['data', 'meta'])
@pytest.mark.parametrize('state', ['sealed', 'open'])
def test_a_pack_that_is_missing_or_too_short_or_no_file(built: Built, kind: str, state: str) -> None:
    path = pack(built, kind, state)
    whole = path.read_bytes()
    path.unlink()
    refuses(built, f'not on the disk, the first is {path.name}')
    path.write_bytes(whole[:-1])
    refuses(built, f'pack {path.name} has {len(whole) - 1} bytes')
    path.write_bytes(whole + b'?')
    if state == 'sealed':
        refuses(built, f'pack {path.name} has {len(whole) + 1} bytes')
    else:
        built.mentions()  # a writer went on
    path.unlink()
    path.symlink_to('/dev/null')
    refuses(built, 'not a regular file')
    path.unlink()
    path.mkdir()
    refuses(built, 'not a regular file')


@pytest.mark.parametrize('kind', ['data', 'meta'])
def test_a_pack_too_many_or_a_stray_file(built: Built, kind: str) -> None:
    folder = pack(built, kind, 'sealed').parent
    stray = folder / (folder.name + 'f' * 30)
    stray.write_bytes(b'')
    refuses(built, f'pack {stray.name} is on the disk and not in the catalog')
    assert built.mentions(writers=True).strangers == (bytes.fromhex(stray.name),)
    stray.unlink()
    for name in ('junk', folder.name + 'f' * 28, folder.name.upper() + 'F' * 30, '0' * 32):
        (folder / name).write_bytes(b'')
        refuses(built, 'is not a pack')
        (folder / name).unlink()
    built.mentions()


def test_a_truncated_listing(built: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory that says less than there is: the pack table knows better."""
    real = os.listdir

    def short(path: Any) -> list[str]:
        return sorted(real(path))[:-1] if Path(path).name == 'meta' else real(path)

    monkeypatch.setattr(os, 'listdir', short)
    refuses(built, 'not on the disk')


def test_a_folder_that_cannot_be_listed_is_not_an_empty_one(
    built: Built, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even where no pack of the catalog is missed: nobody knows what else is in there."""
    known = {path.parent.name for path in [*built.pack_files('data'), *built.pack_files('meta')]}
    folder = built.path / 'packs' / 'meta' / next(f'{n:02x}' for n in range(9) if f'{n:02x}' not in known)
    folder.mkdir()
    built.mentions()
    real = os.listdir

    def fail(path: Any) -> list[str]:
        if Path(path) == folder:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(path)

    monkeypatch.setattr(os, 'listdir', fail)
    refuses(built, 'cannot list')


@pytest.mark.parametrize('call', ['listdir', 'lstat', 'open', 'preadv', 'pread'])
@pytest.mark.parametrize('code', [errno.EIO, errno.EACCES, errno.ENOENT])
def test_an_error_at_any_call_is_not_taken_for_an_empty_answer(
    built: Built, monkeypatch: pytest.MonkeyPatch, call: str, code: int
) -> None:
    """Let the first, the second, … call fail, until there is no further one. Nothing may come out as
    clear."""
    real: Callable[..., Any] = getattr(os, call)
    left = [0]

    def fail(*arguments: Any, **options: Any) -> Any:
        left[0] -= 1
        if left[0] == 0:
            raise OSError(code, os.strerror(code))
        return real(*arguments, **options)

    monkeypatch.setattr(os, call, fail)
    failed = 0
    for nth in range(1, 500):
        left[0] = nth
        try:
            seen = built.mentions()
        except Corrupt:
            failed += 1
            continue
        # Names of files beside the catalog may be absent; that call is the only one for which this is an
        # answer.
        assert left[0] > 0 or code == errno.ENOENT, f'{call} number {nth} failed and nobody saw it: {seen}'
        if left[0] > 0:
            break
    else:
        pytest.fail('it never ends')
    assert failed >= 2


def test_reads_that_come_up_short(built: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.preadv

    def nothing(fd: int, buffers: list[Any], offset: int) -> int:
        return 0 if offset else real(fd, buffers, offset)

    monkeypatch.setattr(limits, 'READ_BYTES_MAX', 100)
    built.mentions()
    monkeypatch.setattr(os, 'preadv', nothing)
    refuses(built, 'ends at 100')


def test_every_bit_of_a_meta_pack_matters(built: Built) -> None:
    """One bit in every fifth byte of header, records and footer, one after the other."""
    for state in ('sealed', 'open'):
        path = pack(built, 'meta', state)
        whole = path.read_bytes()
        for n in range(0, len(whole), 5):
            path.write_bytes(whole[:n] + bytes([whole[n] ^ (1 << n % 8)]) + whole[n + 1 :])
            refuses(built, path.name)
        path.write_bytes(whole)
    built.mentions()


def test_a_good_footer_that_lists_other_records(built: Built) -> None:
    path = pack(built, 'meta', 'sealed')
    whole = path.read_bytes()
    start = footer_offset(whole[-TRAILER_BYTES:], len(whole))
    name = bytes.fromhex(path.name)
    entries = decode_footer(whole[start:], len(whole), name)
    for odd in (
        [entries[0]._replace(id=bytes(32)), *entries[1:]],
        [entries[0]._replace(plain_length=entries[0].plain_length + 1), *entries[1:]],
    ):
        path.write_bytes(whole[:start] + encode_footer(odd, start, name))
        refuses(built, 'footer does not list')
    fewer = whole[:start] + encode_footer(entries[:-1], start, name)
    path.write_bytes(fewer)
    built.sql('UPDATE pack SET bytes = bytes - ? WHERE name = ?', (ENTRY_BYTES, name))
    refuses(built, 'footer does not list')


def test_a_pack_whose_records_are_not_as_many_as_the_catalog_says(built: Built) -> None:
    for change in ('records = records + 1', 'records = records - 1'):
        built.sql(f"UPDATE pack SET {change} WHERE kind = 2 AND state = 'open'")
        refuses(built, 'records, the catalog says')
        built.sql("UPDATE pack SET records = 2 WHERE kind = 2 AND state = 'open'")
    built.mentions()
    built.sql("UPDATE pack SET bytes = bytes - 1 WHERE kind = 2 AND state = 'open'")
    refuses(built, 'a record of kind 2 that ends at')
    built.sql("UPDATE pack SET bytes = 47 WHERE kind = 2 AND state = 'open'")
    refuses(built, 'cannot be')


def test_a_record_that_is_no_node_inside(built: Built) -> None:
    """Its id is right, its bytes are no node: the catalog does not know, decoding does."""
    built.put_nodes(b'these bytes are not a node at all')
    built.commit()
    refuses(built, 'at offset .*node: format version')


@pytest.mark.parametrize(
    ('key', 'value', 'match'),
    [
        (extent_key(20, 0), (0, b'i' * 32), 'impossible length'),
        (extent_key(20, 0), (limits.PLAIN_BYTES_MAX + 1, b'i' * 32), 'impossible length'),
        (extent_key(20, limits.FILE_BYTES_MAX - 5), (6, b'i' * 32), 'beyond the largest file'),
        (bytes(8) + extent_key(20, 0)[8:], (6, b'i' * 32), 'inode number 0'),
        (b'\xff' * 8 + extent_key(20, 0)[8:], (6, b'i' * 32), 'out of range'),
        (xattr_key(20, b'user.x'), (1, 1024, b'i' * 32), 'impossible length'),
        (inode_key(20), (0o070644, *INODE[1:]), 'unknown type'),
        (dirent_key(20, 9), ((b'a/b', 20, 8),), 'impossible name'),
    ],
)
def test_an_item_outside_of_its_schema(built: Built, key: bytes, value: Any, match: str) -> None:
    built.put_nodes(encode_leaf([key], [value]))
    built.commit()
    refuses(built, match)


def test_items_at_the_very_edge_of_their_schema(built: Built) -> None:
    """What the short way does not take for sure goes the long way, and is good."""
    edge = limits.FILE_BYTES_MAX - limits.PLAIN_BYTES_MAX
    keys = [extent_key(1, 0), extent_key(20, edge - 1), extent_key(20, edge), extent_key(limits.INO_MAX, 7)]
    built.put_nodes(encode_leaf(keys, [(limits.PLAIN_BYTES_MAX, bytes([n]) * 32) for n in range(4)]))
    built.commit()
    before = built.mentions()
    assert (before.live, before.leftovers) == ((), ())


# --- the catalog ---------------------------------------------------------------------------------------
def change_schema(built: Built, *texts: str) -> None:
    """Close the store, and change its catalog behind its back."""
    built.store.close(clean=True)
    db = catalog(built.path)
    for text in texts:
        db.execute(text)
    db.execute('PRAGMA wal_checkpoint(TRUNCATE)')
    db.close()


ODD_SCHEMAS = {
    'CREATE TABLE bookmark (root BLOB) STRICT': 'table bookmark',
    'CREATE TABLE bookmark (name TEXT) STRICT': 'table bookmark',
    'DROP TABLE canary': 'table canary',
    'ALTER TABLE volume ADD COLUMN shadow_root BLOB': 'table volume',
    'ALTER TABLE snapshot ADD COLUMN anything BLOB': 'table snapshot',
    'ALTER TABLE config ADD COLUMN more TEXT': 'table config',
    'CREATE VIEW lookout AS SELECT root FROM volume': 'view lookout',
    'CREATE TRIGGER spring AFTER DELETE ON hold BEGIN DELETE FROM volume; END': 'trigger spring',
    'CREATE INDEX quick ON volume (root)': 'index quick',
    'PRAGMA user_version = 4': 'schema version 4',
    'PRAGMA application_id = 1': 'schema version',
}


@pytest.mark.parametrize('text', ODD_SCHEMAS)
def test_a_table_or_column_without_a_rule(built: Built, text: str) -> None:
    change_schema(built, text)
    refuses(built, ODD_SCHEMAS[text])


def test_a_table_that_takes_any_type(built: Built) -> None:
    plain = SCHEMA['canary'].replace('STRICT', '')
    change_schema(built, 'DROP TABLE canary', plain)
    refuses(built, 'table canary has columns')


def test_the_rules_know_every_column_of_the_schema_and_each_guard_of_them_is_needed(
    built: Built, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The list of columns is kept by hand. Were it kept up without thought, the rules for ids would still
    speak."""
    for table in SCHEMA:
        rows = built.sql(f'SELECT name FROM pragma_table_info({table!r})')
        # Whoever adds a column decides whether it can hold the id of a chunk, and says so in catalog_ids.
        assert COLUMNS[table].split() == [name for (name,) in rows], table
    assert COLUMNS.keys() == SCHEMA.keys()
    change_schema(
        built, 'ALTER TABLE volume ADD COLUMN safety_root BLOB', 'ALTER TABLE hold ADD COLUMN seal BLOB'
    )
    careless = {**COLUMNS, 'volume': f'{COLUMNS["volume"]} safety_root', 'hold': f'{COLUMNS["hold"]} seal'}
    monkeypatch.setattr(catalog_ids, 'COLUMNS', careless)
    refuses(built, 'no rule for the BLOB in hold.seal')
    monkeypatch.setattr(catalog_ids, 'BLOBS', catalog_ids.BLOBS | {('hold', 'seal')})
    refuses(built, "no rule for the ids in .*'volume', 'safety_root'")


@pytest.mark.parametrize(
    'text',
    [
        "UPDATE volume SET root = x'00'",
        "UPDATE volume SET root = x''",
        'INSERT INTO request_part VALUES (1, 0, "chunks", x\'0102\')',
        'INSERT INTO request_part VALUES (1, 0, "chunks", x\'\')',
        'UPDATE volume SET root = CAST(zeroblob(64) AS BLOB)',
    ],
)
def test_an_id_that_cannot_be_one(built: Built, text: str) -> None:
    built.sql(text.replace('"', "'"))
    refuses(built, 'an impossible')


def test_a_part_of_no_request(built: Built) -> None:
    with built.store.catalog.transaction() as db:
        db.execute('PRAGMA defer_foreign_keys = ON')
    built.store.close(clean=True)
    db = catalog(built.path)
    db.execute('PRAGMA foreign_keys = OFF')
    db.execute("INSERT INTO request_part VALUES (77, 0, 'chunks', zeroblob(32))")
    db.execute('PRAGMA wal_checkpoint(TRUNCATE)')
    db.close()
    refuses(built, 'an impossible request_part.ids')


def test_a_part_of_a_kind_that_nobody_knows(built: Built) -> None:
    built.store.close(clean=True)
    db = catalog(built.path)
    db.execute('PRAGMA ignore_check_constraints = ON')
    db.execute("INSERT INTO request_part VALUES (1, 0, 'forests', zeroblob(32))")
    db.execute('PRAGMA wal_checkpoint(TRUNCATE)')
    db.close()
    refuses(built, 'an impossible request_part.ids')


@pytest.mark.parametrize('text', ["name = x'00'", 'bytes = -1', 'kind = 3', 'records = -1'])
def test_a_pack_row_that_cannot_be(built: Built, text: str) -> None:
    built.sql(f'UPDATE pack SET {text} WHERE pack = (SELECT min(pack) FROM pack)')
    refuses(built, 'impossible row of pack')


@pytest.mark.parametrize('key', ['epoch', 'journal_sequence'])
def test_a_setting_that_is_missing(built: Built, key: str) -> None:
    built.sql('DELETE FROM settings WHERE key = ?', (key,))
    refuses(built, f'setting {key} is missing')


def test_a_catalog_that_is_missing_or_damaged(built: Built) -> None:
    built.store.close(clean=True)
    path = built.path / 'catalog.sqlite'
    whole = path.read_bytes()
    for damaged in (b'', b'?' * 5000, whole[:4096], whole[: len(whole) // 2]):
        path.write_bytes(damaged)
        refuses(built, '.')
    path.unlink()
    refuses(built, 'catalog.sqlite is missing')
    path.symlink_to('/dev/zero')
    refuses(built, 'not a regular file')


def test_a_catalog_copied_with_its_log_is_read_whole(built: Built, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / 'copy'
    shutil.copytree(built.path, copy)
    (copy / 'catalog.sqlite-shm').unlink()
    assert (copy / 'catalog.sqlite-wal').stat().st_size > 0
    assert built.mentions(store=copy) == built.mentions()
    assert not (copy / 'catalog.sqlite-shm').exists()


# --- the batch and the journal -------------------------------------------------------------------------
def test_the_file_of_condemned_ids_must_be_there_whole_ordered_and_name_every_row(built: Built) -> None:
    path = built.path / 'batches' / '1' / 'condemned'
    whole = path.read_bytes()
    assert len(whole) == 64
    for odd, match in {
        whole[:-1]: '63 bytes',
        whole[:32]: 'which its file does not name',
        whole[32:] + whole[:32]: 'do not ascend',
        whole[:32] + whole[:32]: 'do not ascend',
        b'': 'which its file does not name',
    }.items():
        path.write_bytes(odd)
        refuses(built, match)
    path.unlink()
    refuses(built, 'cannot open the condemned ids')


def test_the_order_of_condemned_ids_is_checked_across_blocks(
    built: Built, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(condemned, '_BLOCK_IDS', 1)
    built.mentions()
    path = built.path / 'batches' / '1' / 'condemned'
    whole = path.read_bytes()
    path.write_bytes(whole[32:] + whole[:32])
    refuses(built, 'do not ascend')


def test_a_journal_that_cannot_be_read_or_belongs_elsewhere(built: Built) -> None:
    for number in (0, 1):
        path = built.path / 'journal' / str(number)
        whole = path.read_bytes()
        path.write_bytes(whole[:-1])
        refuses(built, f'journal/{number} is missing')
        path.unlink()
        refuses(built, f'journal/{number} is missing')
        path.write_bytes((built.path / 'journal' / str(1 - number)).read_bytes())
        refuses(built, f'file {1 - number}')
        path.write_bytes(bytes(20) + whole[20:])
        refuses(built, 'journal: ')
        path.write_bytes(whole)
    built.mentions()


def test_a_record_behind_a_block_that_was_cut_off_is_seen(built: Built) -> None:
    [x] = built.put_data(b'y')
    built.commit()
    built.batch(2, [x])
    sequence = built.store.journal.last_sequence + 1
    delta = VolumeDelta(1, 99, items=[(extent_key(20, 0), (10, x))])
    built.store.journal.append(sequence, encode_record_frames(sequence, [], [delta], built.uuid))
    built.store.journal.sync()
    assert built.mentions(2).live_count == 1
    path = built.path / 'journal' / str(built.store.journal.active)
    whole = path.read_bytes()
    path.write_bytes(whole[:36] + b'\xff' * 8 + whole[44:])
    assert built.mentions(2).live_count == 1
    path.write_bytes(whole[:JOURNAL_HEADER_BYTES] + b'?' + whole[JOURNAL_HEADER_BYTES + 1 :])
    assert built.mentions(2).live_count == 0


def test_the_superblock_must_be_there(built: Built) -> None:
    path = built.path / 'superblock'
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    refuses(built, 'superblock ends at')
    path.unlink()
    refuses(built, 'superblock')


def test_a_stranger_that_cannot_be_read_is_no_empty_one(
    built: Built, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = pack(built, 'meta', 'sealed').name[:2] + 'e' * 30
    path = built.path / 'packs' / 'meta' / name[:2] / name
    path.write_bytes(b'?' * 100)
    refuses(built, 'wrong magic', writers=True)
    real = meta_packs.read_bytes

    def fail(where: Path, start: int, count: int) -> memoryview:
        if where == path:
            raise Corrupt('cannot read')
        return real(where, start, count)

    monkeypatch.setattr(meta_packs, 'read_bytes', fail)
    refuses(built, 'cannot read', writers=True)


@pytest.mark.parametrize('kind', ['data', 'meta'])
def test_a_retired_pack_may_be_gone(built: Built, kind: str) -> None:
    """A crash came between its unlink and the end of its row. No recount would ever pass again."""
    path = pack(built, kind, 'sealed')
    number = {'data': 1, 'meta': 2}[kind]
    before = built.mentions().packs
    path.unlink()
    with built.store.catalog.transaction() as db:
        db.execute("UPDATE pack SET state = 'retired' WHERE kind = ? AND state = 'sealed'", (number,))
    assert built.mentions().packs == before - (kind == 'meta')
