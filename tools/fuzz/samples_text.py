"""Tool fuzz, samples of texts: whole files and messages, made by the encoders where there are some. Pure."""

from __future__ import annotations

import json
import sqlite3
from typing import Any

from snapfs.collect import worker
from snapfs.collect.plan import Counts, Kept, Plan, PlanRequest, PlanRoot
from snapfs.collect.proof_values import Missing, Proof, ProvedRoot
from snapfs.collect.recount_values import Alarm, Recount, Share
from snapfs.collect.roots import RootRow
from snapfs.errors import Held, Refused
from snapfs.format.ids import data_id
from snapfs.rescue.export import encode
from snapfs.rescue.merkle import Merkle
from snapfs.service import wire
from snapfs.store import audit, backup, schema
from tools.fuzz.samples import IDS, NAME, NOW, UUID

ROW_VALUES = {'INTEGER': 1, 'TEXT': 'x', 'BLOB': IDS[0]}


# --- the audit log ---------------------------------------------------------------------------------------
def event_of(line: bytes) -> dict[str, Any] | None:
    """Return the event of what looks like a line of the log, or is an event itself; None: no object."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict):
        return None
    event = value.get('event')
    return event if isinstance(event, dict) else value


def audit_line(sequence: int, previous: str, event: dict[str, Any]) -> tuple[bytes, str]:
    """Return a line without its newline, and its hash."""
    body = {'sequence': sequence, 'time_ns': NOW, 'previous': previous, 'event': event}
    text = json.dumps(body, separators=(',', ':')).encode()
    hash_ = data_id(text).hex()
    return b''.join((text[:-1], audit.HASH_START, hash_.encode(), audit.HASH_END)), hash_


def audits() -> list[bytes]:
    """Return logs behind the head that the catalog has of them: none, of all lines, of the first; a torn
    line, and one that began again."""
    previous, log, heads = audit.FIRST_PREVIOUS, b'', [None]
    for sequence, event in enumerate(({'event': 'store-created'}, {'event': 'hold', 'who': 'ann'}), start=1):
        line, previous = audit_line(sequence, previous, event)
        log += line + b'\n'
        heads.append([[len(log), sequence, previous], list(audit.START)])  # type: ignore[arg-type]
    again = [heads[2][0], heads[1][0]]  # type: ignore[index]
    found = [json.dumps(head).encode() + b'\n' + log for head in (*heads, again)]
    return [*found, b'null\n', found[1] + b'{"sequence":3,"time']


# --- plans, certificates, backups ------------------------------------------------------------------------
def plan(**changed: Any) -> Plan:
    """Return a plan of one request and two roots."""
    values: dict[str, Any] = {
        'version': 1, 'store': UUID, 'batch': 7, 'grace_class': 'kept', 'horizon': 9, 'made_ns': NOW,
        'requests': (PlanRequest(3, 'snapshot', ('view', 5), 'home@old', 'ann', IDS[0], 4096),),
        'roots': (
            PlanRoot('snapshot', ('view', 6), 'home@new', IDS[1], 10, 20, 6),
            PlanRoot('request', ('request', 8), '', None, None, None, 0),
        ),
        'roots_expected': 2, 'counts': Counts(2, 3, 10, 20), 'candidates': 5, 'condemned': 4,
        'condemned_bytes': 4000, 'condemned_digest': IDS[2], 'returned': 0, 'returned_digest': IDS[3],
        'kept': (Kept('home@new', 1, 100),), 'store_chunks': 50, 'store_bytes': 50_000, 'grace_ns': 10**9,
        'limit_share': 3000, 'limit_drop': 0, 'second_person': False, 'approval_ns': 10**9,
    }  # fmt: skip
    return Plan(**{**values, **changed})


def plans() -> list[bytes]:
    """Return plans with and without what may be absent."""
    return [plan().encode(), plan(requests=(), roots=(), kept=()).encode()]


def proofs() -> list[Proof]:
    """Return one that holds and one that does not."""
    roots = (
        ProvedRoot('volume', 1, 'home', IDS[0].hex(), 10, 20, None),
        ProvedRoot('request', 2, 'home@x', '', 0, 0, 4),
    )
    missing = (Missing(IDS[1], 'volume 1', 'it is not in the index'),)
    return [
        Proof(UUID, 7, 9, False, roots, 3, 20, 12, 4, (), 0),
        Proof(UUID, None, 9, True, (), 0, 0, 0, 0, missing, 1),
    ]


def columns(table: str) -> list[tuple[str, bool]]:
    """Return (type, may it be NULL) of each column of a table of the catalog."""
    db = sqlite3.connect(':memory:')
    try:
        db.execute(schema.TABLES[table])
        rows = db.execute(f'PRAGMA table_xinfo({table})').fetchall()
    finally:
        db.close()
    return [(row[2], not row[3] and not row[5]) for row in rows]


def backup_tables() -> dict[str, list[list[Any]]]:
    """Return one row of each table, with the settings of a new store."""
    words = {
        'batch': {1: 'FREED', 2: 'kept'}, 'request': {1: 'snapshot'}, 'incident': {1: 'store'},
        'pack': {3: 'sealed'}, 'receipt': {1: 'certificate'}, 'approval': {1: 'grace'},
    }  # fmt: skip
    tables: dict[str, list[list[Any]]] = {}
    for name in backup.TABLES:
        row: list[Any] = [ROW_VALUES[kind] for kind, _ in columns(name)]
        for at, word in words.get(name, {}).items():
            row[at] = word
        tables[name] = [row]
    tables['settings'] = sorted([key, value] for key, value in schema.SETTINGS_INITIAL.items())
    tables['pack'][0][1] = NAME
    return tables


def backups() -> list[bytes]:
    """Return a backup with a row in every table, and one of an empty store."""
    tables = backup_tables()
    empty = {name: rows if name == 'settings' else [] for name, rows in tables.items()}
    return [backup.encode(UUID, 9, NOW, one) for one in (tables, empty)]


def fill(tables: dict[str, list[list[Any]]]) -> None:
    """Put the rows where a rebuild puts them. sqlite3.IntegrityError, which a rebuild expects, is passed
    over; nothing else may happen."""
    db = sqlite3.connect(':memory:')
    try:
        for name, text in schema.TABLES.items():
            db.execute(text)
            for row in tables.get(name, ()):
                try:
                    db.execute(f'INSERT INTO {name} VALUES ({",".join("?" * len(columns(name)))})', row)
                except sqlite3.IntegrityError:
                    pass
    finally:
        db.close()


# --- exports, small files --------------------------------------------------------------------------------
def exports() -> list[bytes]:
    """Return an export of a directory, a file with everything, and a further name."""
    id = IDS[0].hex()
    lines: list[dict[str, Any]] = [
        {'path': '/', 'mode': 0o40755, 'uid': 0, 'gid': 0, 'mtime_ns': NOW},
        {
            'path': '/a', 'mode': 0o100644, 'uid': 0, 'gid': 0, 'mtime_ns': NOW, 'size': 7,
            'xattrs': [['user.a', '00'], ['user.b', 2000, id]], 'chunks': [[0, 4, id], [4, 3, id, 1, 9]],
        },
        {'more': [[8, 1, id]]},
        {'path': '/b', 'link': '/a'},
    ]  # fmt: skip
    found = []
    for count in (len(lines), 0):
        merkle = Merkle()
        texts = [encode(line) for line in lines[:count]]
        for text in texts:
            merkle.add(text)
        head = {'snapfs-export': 1, 'snapshot': 'home@x', 'store': UUID.hex(), 'created_ns': NOW, 'epoch': 3}
        end = encode({'lines': merkle.lines, 'root': merkle.root().hex()})
        found.append(b''.join(text + b'\n' for text in (encode(head), *texts, end)))
    return found


def holders() -> list[bytes]:
    """Return the text of a lock, padded as it is."""
    return [json.dumps([1234, 'host', NOW, '/mnt']).encode().ljust(100)]


def entries() -> list[bytes]:
    """Return entries of a mount of a store, and of a volume."""
    fields = {'store': '/s', 'device': '0:1', 'mountpoint': '/m', 'source': 'x', 'volume': None, 'pid': 12}
    return [json.dumps(one).encode() for one in (fields, {**fields, 'volume': 'home'})]


def mountinfos() -> list[bytes]:
    """Return two mounts, as the kernel tells of them."""
    first = rb'36 35 98:0 / /mnt\0402 rw,noatime shared:1 - fuse.snapfs /s\040x rw,user_id=1000,group_id=0'
    return [first + b'\n', first + b'\n25 1 0:22 / / rw - ext4 /dev/sda1 rw\n']


# --- messages --------------------------------------------------------------------------------------------
def requests() -> list[bytes]:
    """Return requests with arguments of each type."""
    found = [
        wire.Request('status', {}),
        wire.Request('volume.create', {'name': 'home', 'mode': 0o755}, '0:57'),
        wire.Request('snapshot.create', {'snapshot': 'home@x'}),
        wire.Request('hold.add', {'snapshot': 'home@x', 'hold': 'a', 'why': 'b', 'until_ns': None}),
        wire.Request('scrub.run', {'part': 1, 'parts': 30, 'again': True}),
    ]
    return [wire.encode_request(one) for one in found]


def answers() -> list[bytes]:
    """Return a value, and two errors."""
    found = [wire.encode_result({'a': [1, None, 'x']}), wire.encode_error(Held('it is held', advice='Wait.'))]
    return [*found, wire.encode_error(Refused(2, 'no such volume'))]


def workers() -> list[bytes]:
    """Return what a recount says: progress and a result; and an error."""
    share = Share('volume', 1, 'home', 2, 3)
    row = RootRow('volume', 1, 'home', IDS[0], 10, 20, ('volume', 1), 4)
    numbers = (9, 9, 1, 2, 3, 4, 5, 6, 0, 0, 0, 0)
    found = Recount(*numbers, (share,), (), IDS[1], IDS[2], (Alarm('blind', IDS[0], 'home'),), (row,))
    result = json.dumps({'result': worker.to_json(found)}).encode()
    error = json.dumps({'error': 'no', 'kind': 'Corrupt', 'advice': 'x', 'errno': 5}).encode()
    return [b'{"done": 1, "known": 2}\n' + result, error]


# --- what people type ------------------------------------------------------------------------------------
def options() -> list[bytes]:
    """Return the options of mount(8), with escapes and quotes."""
    return [
        b'ro,nosuid,uid=1000,source=/a\\,b,x-systemd.idle,_netdev',
        b'fsname="a,b",volume=home,log=/x,exec',
    ]


def calls() -> list[bytes]:
    """Return calls of mount(8), a word on each line."""
    return [b'/srv\n/mnt\n-o\nro,sync\n-sf', b'x\n/mnt\n-tsnapfs']


def settings() -> list[bytes]:
    """Return settings of each kind."""
    texts = (
        'interval=1h30m',
        'limit-share=30.5%',
        'rate=32MiB',
        'automatic=on',
        'hook=["/bin/x", "y"]',
        'hook=none',
    )
    return [text.encode() for text in texts]


def specs() -> list[bytes]:
    """Return a snapshot, a source, a digest, dates."""
    texts = ('home@monday', '/srv/store:home', 'ab' * 32, '30d', '2030-01-31T12:00', '2030-01-31')
    return [text.encode() for text in texts]
