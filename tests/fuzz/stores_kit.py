"""Ways to damage a whole store so that every checksum and digest is right, and what a store is used for.

Each way changes one structure, and then everything that vouches for it: CRCs, the digest in a row of the
catalog, the chain of the audit log. So what is read afterwards is the damage, not the checksum."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from random import Random
from typing import Any

from snapfs.errors import Corrupt
from snapfs.format.ids import RecordKind, data_id, node_id
from snapfs.format.journal import FRAME_MAGIC, JOURNAL_HEADER_BYTES, scan_frames
from snapfs.format.nodes import Leaf
from snapfs.format.packs import PACK_HEADER_BYTES, TRAILER_BYTES, decode_footer, footer_offset
from snapfs.format.records import HEADER_BYTES
from snapfs.store import backup, schema
from tools.breaking.edit import Patient
from tools.breaking.kinds import victim
from tools.fuzz.binary import (
    mutate_frames,
    seal_block,
    seal_footer,
    seal_frames,
    seal_receipt,
    seal_record,
    seal_tail,
)
from tools.fuzz.mutate import NUMBERS, TEXTS, mutate_bytes, mutate_json, mutate_json_lines
from tools.fuzz.samples_text import audit_line, event_of
from tools.fuzz.texts import canonical, seal_canonical, seal_digest

Way = Callable[[Patient, Random], None]
NODE_BYTES_MAX = 131_000


# --- trees -----------------------------------------------------------------------------------------------
def nodes(p: Patient, chance: Random) -> None:
    """A node of a tree, with every hash above it right."""
    table, name, root = victim(p)
    way, id, _ = chance.choice(list(p.nodes(root)))
    p.replace_node(table, name, way, (mutate_bytes(p.plain(id), chance) or b'\0')[:NODE_BYTES_MAX])


def leaves(p: Patient, chance: Random) -> None:
    """A leaf behind a header that is right again: what is in its items is read."""
    from tools.fuzz.binary import mutate_node, seal_node

    table, name, root = victim(p)
    found = [(way, id) for way, id, node in p.nodes(root) if isinstance(node, Leaf)]
    way, id = chance.choice(found)
    p.replace_node(table, name, way, seal_node(mutate_node(p.plain(id), chance))[:NODE_BYTES_MAX])


def items(p: Patient, chance: Random) -> None:
    """Values of items that are whole in themselves: numbers are others, and every total is right."""
    table, name, _ = victim(p)

    def change(found: dict[bytes, Any]) -> None:
        key = chance.choice(sorted(found))
        value = list(found[key])
        spots = [at for at, one in enumerate(value) if type(one) is int]
        if spots and chance.randrange(4):
            at = chance.choice(spots)
            value[at] = chance.choice([one for one in NUMBERS if 0 <= one < 1 << 63])
            found[key] = tuple(value)
        elif chance.randrange(2):
            del found[key]
        else:
            other = (chance.choice(NUMBERS[:9]) % (1 << 40)).to_bytes(8, 'big') + key[8:]
            found[other] = found[key]

    with suppress(ValueError, AssertionError, Corrupt):  # what the encoder itself does not take
        p.change_items(table, name, change)


def wrong_kind(p: Patient, chance: Random) -> None:
    """Bytes of anything, stored as a node that a root names."""
    table, name, _ = victim(p)
    plain = chance.randbytes(chance.randrange(1, 300))
    p.store(RecordKind.NODE, [(node_id(plain), plain)])
    p.sql(f'UPDATE {table} SET root = ? WHERE name = ?', node_id(plain), name)


# --- the catalog -----------------------------------------------------------------------------------------
def rows(p: Patient, chance: Random) -> None:
    """Values of all rows of a column, as SQLite lets them be."""
    columns = [
        ('volume', 'root_items'),
        ('volume', 'next_ino'),
        ('snapshot', 'root_refs'),
        ('snapshot', 'epoch'),
    ]
    columns += [
        ('chunk', 'offset'),
        ('chunk', 'stored'),
        ('chunk', 'plain'),
        ('chunk', 'pack'),
        ('pack', 'bytes'),
    ]
    columns += [('pack', 'records'), ('batch', 'chunks'), ('settings', 'value'), ('request', 'root_items')]
    table, column = chance.choice(columns)
    value = chance.choice([0, 1, -1, 1 << 31, (1 << 63) - 1, -(1 << 63), chance.randrange(1 << 40)])
    p.sql(f'UPDATE {table} SET {column} = ?', value)


def _value(kind: str, chance: Random) -> Any:
    if kind == 'INTEGER':
        return chance.choice([one for one in NUMBERS if -(1 << 63) <= one < 1 << 63])
    if kind == 'TEXT':
        return chance.choice(
            [one for one in TEXTS if one.isprintable() or one == '\n'] + ['FREED', 'open', '1h', '[]']
        )
    lengths = (0, 1, 15, 16, 17, 31, 32, 33, 64, 1000, 70_000)
    return chance.choice([chance.randbytes(chance.choice(lengths)), b'/', b'..', b'a\0b', b'\xff', b'\n'])


def _columns(db: sqlite3.Connection, table: str) -> tuple[list[tuple[str, str]], list[str]]:
    found = db.execute(f'PRAGMA table_xinfo({table})').fetchall()
    return [(row[1], row[2]) for row in found], [
        row[1] for row in sorted(found, key=lambda row: row[5]) if row[5]
    ]


def cells(p: Patient, chance: Random) -> None:
    """One value of one row of any table: of its type, past the checks of the schema."""
    p.db.execute('PRAGMA ignore_check_constraints = ON')
    _change_cell(p, chance, lambda kind: _value(kind, chance))


def wrong_types(p: Patient, chance: Random) -> None:
    """One value of one row of any table, of any type: as a flipped bit in a page leaves it. SQLite keeps that
    out of STRICT tables, so the schema is another one meanwhile."""
    tables = [name for name in schema.TABLES if p.db.execute(f'SELECT count(*) FROM {name}').fetchone()[0]]
    table = chance.choice(tables)
    kinds = ['INTEGER', 'TEXT', 'BLOB']
    odd = [None, 1.5, float('inf')]
    with loosened(p, table):
        _change_cell(
            p, chance, lambda _: chance.choice([*odd, *(_value(kind, chance) for kind in kinds)]), table
        )


@contextmanager
def loosened(p: Patient, table: str) -> Iterator[None]:
    """While inside, a table takes any value in any column; then it says again that it does not."""
    (text,) = p.db.execute('SELECT sql FROM sqlite_schema WHERE name = ?', (table,)).fetchone()
    loose = text.replace(' STRICT, WITHOUT ROWID', ' WITHOUT ROWID').replace(') STRICT', ')')
    p.db.execute('PRAGMA ignore_check_constraints = ON')
    _schema(p, table, loose.replace('NOT NULL', ''))
    yield
    _schema(p, table, text)


def _schema(p: Patient, table: str, text: str) -> None:
    p.db.execute('PRAGMA writable_schema = ON')
    p.db.execute('UPDATE sqlite_schema SET sql = ? WHERE name = ?', (text, table))
    p.db.execute('PRAGMA writable_schema = RESET')


def _change_cell(p: Patient, chance: Random, value: Callable[[str], Any], table: str = '') -> None:
    names = [table] if table else [
        name for name in schema.TABLES if p.db.execute(f'SELECT count(*) FROM {name}').fetchone()[0]
    ]  # fmt: skip
    for _ in range(chance.randrange(1, 3)):
        name = chance.choice(names)
        columns, primary = _columns(p.db, name)
        keys = p.db.execute(f'SELECT {", ".join(primary)} FROM {name}').fetchall()
        key = chance.choice(keys)
        column, kind = chance.choice(columns)
        where = ' AND '.join(f'{one} IS ?' for one in primary)
        try:
            p.sql(f'UPDATE {name} SET {column} = ? WHERE {where}', value(kind), *key)
        except sqlite3.IntegrityError:
            pass  # there is such a row already


# --- files -----------------------------------------------------------------------------------------------
def files(p: Patient, chance: Random) -> None:
    """Any file, as it is: checksums and all."""
    path = chance.choice(
        sorted(one for one in p.path.rglob('*') if one.is_file() and one.stat().st_size < 1 << 20)
    )
    if path.name.startswith('catalog'):
        p.db.execute('PRAGMA wal_checkpoint(TRUNCATE)')
    data = path.read_bytes()
    if data:
        path.write_bytes(mutate_bytes(data, chance) or b'\0')


def journals(p: Patient, chance: Random) -> None:
    """Frames of a journal file, and now and then its block."""
    uuid = p.superblock.uuid
    path = chance.choice(sorted((p.path / 'journal').iterdir()))
    data = path.read_bytes()
    head, body = data[:JOURNAL_HEADER_BYTES], data[JOURNAL_HEADER_BYTES:]
    end = max((one.end for one in scan_frames(body, uuid)), default=0)
    frames = body[:end] or FRAME_MAGIC + bytes(40)
    if chance.randrange(4) == 0:
        head = seal_block(mutate_bytes(head[:48], chance)[:48])[:JOURNAL_HEADER_BYTES]
    else:
        frames = seal_frames(mutate_frames(frames, chance), uuid)
    path.write_bytes((head + frames).ljust(len(data), b'\0')[: len(data)])


def audit(p: Patient, chance: Random) -> None:
    """Events of the audit log, in a chain that is whole and that the catalog knows."""
    data = (p.path / 'audit.log').read_bytes().rstrip(b'\n')
    audit_events(p, mutate_json_lines(data, chance).split(b'\n'))


def audit_events(p: Patient, lines: list[bytes]) -> None:
    """Write a log of these events, or lines with events, that is a chain; the catalog knows its end."""
    path = p.path / 'audit.log'
    out, previous, count = b'', '0' * 64, 0
    for line in lines:
        event = event_of(line)
        if event is None:
            continue
        count += 1
        text, previous = audit_line(count, previous, event)
        out += text + b'\n'
    path.write_bytes(out)
    p.sql('UPDATE audit_head SET end_bytes = ?, end_lines = ?, end_hash = ?', len(out), count, previous)


def batches(p: Patient, chance: Random) -> None:
    """A file of a batch, and the digests of it."""
    number, _ = chance.choice(p.sql('SELECT number, state FROM batch ORDER BY number'))
    folder = p.path / 'batches' / str(number)
    name = chance.choice(sorted(path.name for path in folder.iterdir()))
    path = folder / name
    data = path.read_bytes()
    if name == 'plan.json':
        _plan(p, number, seal_canonical(mutate_json(data, chance)))
    elif name in ('condemned', 'returned'):
        data = mutate_bytes(data, chance)
        path.write_bytes(data)
        plan = json.loads((folder / 'plan.json').read_bytes())
        plan[f'{name}_digest'] = data_id(data).hex()
        plan[name] = len(data) // 32
        _plan(p, number, canonical(plan))
    elif name == 'receipt':
        data = seal_receipt(mutate_bytes(data, chance))
        path.write_bytes(data)
        p.sql('UPDATE batch SET receipt = ? WHERE number = ?', data_id(data), number)
    elif name == 'certificate.json':
        data = seal_digest(mutate_json(data, chance))
        path.write_bytes(data)
        p.sql('UPDATE receipt SET digest = ? WHERE batch = ?', data_id(data), number)
    else:
        path.write_bytes(mutate_bytes(data, chance))


def plan_of_batch(p: Patient, number: int, **changed: Any) -> None:
    """Change fields of a plan."""
    data = (p.path / 'batches' / str(number) / 'plan.json').read_bytes()
    _plan(p, number, canonical({**json.loads(data), **changed}))


def _plan(p: Patient, number: int, data: bytes) -> None:
    """Put another plan in, and its digest wherever it stands."""
    folder = p.path / 'batches' / str(number)
    (folder / 'plan.json').write_bytes(data)
    p.sql('UPDATE batch SET digest = ? WHERE number = ?', data_id(data), number)
    receipt = folder / 'receipt'
    if receipt.exists():
        whole = receipt.read_bytes()
        whole = seal_receipt(whole[:36] + data_id(data) + whole[68:])
        receipt.write_bytes(whole)
        p.sql('UPDATE batch SET receipt = ? WHERE number = ?', data_id(whole), number)


def incidents(p: Patient, chance: Random) -> None:
    """An incident that holds the collector, and its evidence."""
    text = chance.choice([one for one in TEXTS if one.isprintable()])
    batch = chance.choice([None, 1, 4, -1, 1 << 62])
    number = chance.choice([1, 2, 1 << 40, (1 << 63) - 1])
    ended = chance.choice([None, 5])
    scope = chance.choice(['collector', 'store'])
    p.sql('INSERT INTO incident VALUES (?, ?, ?, ?, ?, ?, ?)', number, scope, 7, text, ended, 'ann', batch)
    folder = p.path / 'incidents' / chance.choice([str(number), '0', '-1', 'x', '\u00b2', '1' * 200])
    folder.mkdir(parents=True)
    evidence = canonical({'what': 'a guard fell', 'ids': ['00' * 32]})
    (folder / chance.choice(['reason.json', 'x', 'a' * 80 + '.json'])).write_bytes(
        mutate_json(evidence, chance)
    )
    if chance.randrange(3) == 0:
        (folder / 'link.json').symlink_to('/etc/passwd')


def packs(p: Patient, chance: Random) -> None:
    """Header, a record's header, or the footer of a pack, with right CRCs and, mostly, the right size in the
    catalog."""
    number, name, _ = chance.choice(p.sql("SELECT pack, name, kind FROM pack WHERE state = 'sealed'"))
    path = p.pack(number)
    data = path.read_bytes()
    start = footer_offset(data[-TRAILER_BYTES:], len(data))
    entries = decode_footer(data[start:], len(data), name)
    way = chance.randrange(3)
    if way == 0:
        head = seal_tail((mutate_bytes(data[:PACK_HEADER_BYTES], chance) + bytes(48))[:PACK_HEADER_BYTES])
        data = head + data[PACK_HEADER_BYTES:]
    elif way == 1:
        data = data[:start] + seal_footer(mutate_bytes(data[start:], chance), name)
    else:
        one = chance.choice(entries)
        end = one.offset + HEADER_BYTES + one.stored_length
        record = seal_record(mutate_bytes(data[one.offset : end], chance))
        data = data[: one.offset] + record.ljust(end - one.offset, b'\0')[: end - one.offset] + data[end:]
    path.write_bytes(data)
    if chance.randrange(4):
        p.sql('UPDATE pack SET bytes = ? WHERE pack = ?', len(data), number)


def backups(p: Patient, chance: Random) -> None:
    """A backup of the catalog, and no catalog: it has to be made anew."""
    tables = {
        name: [list(row) for row in p.db.execute(f'SELECT * FROM {name} ORDER BY 1')]
        for name in backup.TABLES
    }
    epoch = next(row[1] for row in tables['settings'] if row[0] == 'epoch')
    data = seal_digest(mutate_json(backup.encode(p.superblock.uuid, epoch, 7, tables), chance))
    folder = p.path / 'backups'
    shutil.rmtree(folder, ignore_errors=True)  # the only one that there is
    folder.mkdir()
    names = (f'{epoch:012d}-7.json', f'{epoch}-7.json', '\u00b2-7.json', '9' * 200 + '-7.json')
    (folder / chance.choice(names)).write_bytes(data)
    p.db.execute('PRAGMA wal_checkpoint(TRUNCATE)')
    for suffix in ('', '-wal', '-shm'):
        (p.path / f'catalog.sqlite{suffix}').unlink(missing_ok=True)


WAYS: list[Way] = [
    nodes, leaves, items, wrong_kind, rows, cells, wrong_types, files, journals, audit, batches,
    incidents, packs, backups,
]  # fmt: skip
