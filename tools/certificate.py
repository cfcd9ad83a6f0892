"""Tool: replay the certificate of a deletion batch: is every reference of every standing root still there?

Looks only: no lock, no daemon, no byte changed. It shares nothing with the collector but the byte decoders
of snapfs.format: its own walk, its own SQL, its own idea of what stands. Exit codes: 0 all is there, 13
something is missing or unreadable, 2 wrong call, or a certificate that is altered or of another store."""

from __future__ import annotations

import argparse
import json
import os
import sqlite3
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from urllib.parse import quote

from snapfs import limits
from snapfs.errors import Corrupt, Invalid
from snapfs.format.annotations import fits
from snapfs.format.ids import RecordKind, data_id
from snapfs.format.nodes import peek_refs
from snapfs.format.packs import PACK_HEADER_BYTES, decode_pack_header
from snapfs.format.records import HEADER_BYTES, decode_header, decode_payload
from snapfs.format.superblock import SUPERBLOCK_BYTES, decode_superblock

T = TypeVar('T', bound=tuple[Any, ...])
VERSION = 1
KEYS = (
    'batch certificate chunks digest epoch evidence hashed missing nodes packs passed references roots store'
)
# Of what is used. A digest vouches for the text, not for its sense.
TYPES = {'batch': int | None, 'epoch': int, 'missing': int, 'passed': bool}
FILE_BYTES_MAX = 256 * limits.MIB
SHOWN_MAX = 100
EXAMPLES = """\
examples:
  snapfs-certificate STORE                                      the newest certificate of the store
  snapfs-certificate STORE STORE/batches/7/certificate.json     that of batch 7
  snapfs-certificate --data STORE                               read and verify all data, too
"""


class Root(NamedTuple):
    """A root, as a certificate has it. `root` is hexadecimal, '' for none."""

    kind: str
    number: int
    name: str
    root: str
    items: int
    refs: int
    resting: int | None


class Pack(NamedTuple):
    """A pack of the catalog, and why it cannot be used (None: it can)."""

    path: Path
    bytes: int
    kind: int
    oddity: str | None


class Place(NamedTuple):
    """Where a record is."""

    pack: int
    offset: int
    stored: int
    kind: int


# --- the certificate -----------------------------------------------------------------------------------
def newest(store: Path) -> Path:
    """Return the certificate of the last batch that has one. Invalid when there is none."""
    found = [path for path in store.glob('batches/*/certificate.json') if path.parent.name.isdecimal()]
    if not found:
        raise Invalid(f'{store} has no certificate yet')
    return max(found, key=lambda path: int(path.parent.name))


def load(path: Path, uuid: bytes) -> dict[str, Any]:
    """Return the fields of a certificate of this store. Invalid when it is none, or altered, or of
    another."""
    try:
        with open(path, 'rb') as file:
            # Asked for more than there is, Python makes room for all that it was asked for.
            raw = file.read(min(os.fstat(file.fileno()).st_size, FILE_BYTES_MAX) + 1)
        fields = json.loads(raw) if len(raw) <= FILE_BYTES_MAX else None
    except OSError as error:
        raise Invalid(f'cannot read {path}: {error.strerror}') from error
    except (ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict) or ' '.join(sorted(fields)) != KEYS or fields['certificate'] != VERSION:
        raise Invalid(f'{path} is not a certificate that this program knows')
    rest = {name: value for name, value in fields.items() if name != 'digest'}
    text = json.dumps(rest, sort_keys=True, separators=(',', ':')) + '\n'
    if data_id(text.encode('utf-8', 'backslashreplace')).hex() != fields['digest']:
        raise Invalid(f'{path} has been altered: its digest does not fit')
    if fields['store'] != uuid.hex():
        raise Invalid(f'{path} is a certificate of store {fields["store"]}, this one is {uuid.hex()}')
    try:
        fields['roots'] = [Root(*row) for row in fields['roots']]
        good = all(fits(one, Root) for one in fields['roots'])
    except TypeError:
        good = False
    if not (good and all(fits(fields[name], kind) for name, kind in TYPES.items())):
        raise Invalid(f'{path} is not a certificate that this program knows')
    return fields


# --- the store -----------------------------------------------------------------------------------------
ROOTS = """
SELECT 'canary', number, '', root, root_items, root_refs, NULL FROM canary
UNION ALL SELECT 'request', r.number, CAST(r.volume_name || '@' || r.name AS TEXT), r.root, r.root_items,
  r.root_refs, CASE WHEN b.state IN ('PLANNED', 'QUARANTINED') THEN b.number END
  FROM request r LEFT JOIN batch b ON b.number = r.batch
  WHERE r.kind IN ('snapshot', 'volume') AND (b.number IS NULL OR b.state NOT IN ('CONFIRMED', 'FREED'))
UNION ALL SELECT 'snapshot', number, CAST(name AS TEXT), root, root_items, root_refs, NULL FROM snapshot
UNION ALL SELECT 'volume', volume, CAST(name AS TEXT), root, root_items, root_refs, NULL FROM volume
"""
RESTING = (
    "(SELECT q.* FROM quarantine q JOIN batch ON number = batch WHERE state IN ('PLANNED', 'QUARANTINED'))"
)


def connect(store: Path) -> sqlite3.Connection:
    """Open the catalog for reading. A file beside it would be made even so, if SQLite were not told
    better."""
    path = store / 'catalog.sqlite'
    beside = {suffix: os.path.lexists(f'{path}{suffix}') for suffix in ('-wal', '-shm')}
    if beside['-wal'] and not beside['-shm'] and os.path.getsize(f'{path}-wal'):
        raise Corrupt(
            'catalog.sqlite has a log without an index to it: open the store once, or copy it whole'
        )
    options = 'readonly_shm=1' if beside['-shm'] else 'immutable=1'
    db = sqlite3.connect(f'file:{quote(str(path))}?mode=ro&{options}', uri=True, isolation_level=None)
    db.text_factory = lambda raw: raw.decode('utf-8', 'backslashreplace')
    db.execute('PRAGMA trusted_schema = OFF')
    db.execute('PRAGMA query_only = ON')
    views = db.execute("SELECT count(*) FROM sqlite_schema WHERE type IN ('view', 'trigger')").fetchone()[0]
    if views:
        raise Corrupt('catalog.sqlite is not as snapfs makes it')
    return db


@dataclass
class Replay:
    """A walk over everything that stands. Not shared; one use."""

    store: Path
    uuid: bytes
    db: sqlite3.Connection
    data: bool
    roots: list[Root] = field(default_factory=list)
    packs: dict[int, Pack] = field(default_factory=dict)
    nodes: int = 0
    references: int = 0
    missing: int = 0
    _seen: set[tuple[bytes, bool]] = field(default_factory=set)
    _whole: set[bytes] = field(default_factory=set)  # nodes that are there for everybody

    def run(self) -> None:
        """Look at every reference of every root; print what is missing."""
        for number, name, kind, state, size in self.db.execute(
            'SELECT pack, name, kind, state, bytes FROM pack'
        ):
            if not (type(name) is bytes and type(kind) is type(size) is int):
                raise Corrupt(f'catalog: pack {number} has columns of other types')
            self.packs[number] = self._pack(name, kind, state, size)
        for kind, number, name, root, items, refs, resting in self.db.execute(ROOTS).fetchall():
            if not isinstance(root, bytes | None):
                raise Corrupt(f'catalog: the root of {kind} {number} is no id')
            self.roots.append(checked(Root(kind, number, name, (root or b'').hex(), items, refs, resting)))
        # What must be in the index first: then little is left for requests that may have it in quarantine.
        for one in sorted(self.roots, key=lambda one: one.resting is not None):
            by, resting = f'{one.kind} {one.number}', one.resting is not None
            if one.root:
                self._tree(bytes.fromhex(one.root), by, resting)

    def _pack(self, name: bytes, kind: int, state: str, size: int) -> Pack:
        folder = 'data' if kind == RecordKind.DATA else 'meta'
        path = self.store / 'packs' / folder / name.hex()[:2] / name.hex()
        oddity = None
        try:
            found = path.lstat().st_size
            if found < size or (state != 'open' and found != size):
                oddity = f'pack {path.name} has {found} bytes, the catalog says {size}'
            elif (header := decode_pack_header(read(path, 0, PACK_HEADER_BYTES))).store_uuid != self.uuid or (
                header.name != name or header.kind != kind
            ):
                oddity = f'pack {path.name} is another one inside'
        except (OSError, Corrupt) as error:
            oddity = f'pack {path.name} cannot be read: {error}'
        return Pack(path, size, kind, oddity)

    def _miss(self, id: bytes, by: str, why: str) -> None:
        self.missing += 1
        if self.missing <= SHOWN_MAX:
            print(f'MISSING {id.hex()}, referred to by {by}: {why}')

    def _places(self, ids: Sequence[bytes], resting: bool) -> dict[bytes, Place]:
        found: dict[bytes, Place] = {}
        for table in ('chunk', RESTING) if resting else ('chunk',):
            wanted = [id for id in ids if id not in found]
            for start in range(0, len(wanted), limits.LOCATE_IDS_MAX):
                part = wanted[start : start + limits.LOCATE_IDS_MAX]
                marks = ','.join('?' * len(part))
                for row in self.db.execute(
                    f'SELECT id, pack, offset, stored, kind FROM {table} WHERE id IN ({marks})', part
                ):
                    found[row[0]] = checked(Place(*row[1:]))
        return found

    def _oddity(self, place: Place | None) -> str | None:
        if place is None:
            return 'it is not in the index'
        pack = self.packs.get(place.pack)
        if pack is None:
            return f'its pack {place.pack} is not in the catalog'
        if pack.oddity is not None:
            return pack.oddity
        if place.offset < PACK_HEADER_BYTES or place.offset + HEADER_BYTES + place.stored > pack.bytes:
            return f'it is said to be outside of pack {pack.path.name}'
        return None if place.kind == pack.kind else f'pack {pack.path.name} is of another kind'

    def _all_there(self, ids: list[bytes], by: str, resting: bool) -> None:
        places = self._places(ids, resting)
        for id in ids:
            place = places.get(id)
            why = self._oddity(place)
            if why is None and self.data and place is not None:
                why = self._plain(id, place)[0]
            if why is not None:
                self._miss(id, by, why)

    def _plain(self, id: bytes, place: Place) -> tuple[str | None, bytes]:
        """Return (why not, b'') or (None, plain bytes) of a chunk."""
        try:
            raw = read(self.packs[place.pack].path, place.offset, HEADER_BYTES + place.stored)
            header = decode_header(raw)
            if (header.id, header.kind, header.stored_length) != (id, place.kind, place.stored):
                return f'another record stands in its place, {header.id.hex()}', b''
            return None, decode_payload(header, memoryview(raw)[HEADER_BYTES:])
        except (OSError, Corrupt) as error:
            return str(error), b''

    def _tree(self, top: bytes, by: str, resting: bool) -> None:
        """Go through a tree, but for what was seen before. What may be in quarantine is looked at for
        itself: there it may be where nothing else is allowed to be."""
        waiting = [(top, by)]
        while waiting:
            id, by = waiting.pop()
            if (id, resting) in self._seen or id in self._whole:
                continue
            self._seen.add((id, resting))
            place = self._places([id], resting).get(id)
            why, plain = self._oddity(place), b''
            if why is None and place is not None:
                why, plain = self._plain(id, place)
            try:
                header, table = peek_refs(plain) if why is None else (None, b'')
            except Corrupt as error:
                why, header, table = str(error), None, b''
            if header is None:
                self._miss(id, by, why or '')
                continue
            if not resting:
                self._whole.add(id)
            self.nodes += 1
            self.references += header.refs
            node = f'node {id.hex()}'
            if header.level:
                waiting += [(child, node) for child in split(table)]
            else:
                self._all_there(split(table), node, resting)


def checked(row: T) -> T:
    """Return a row of the catalog whose columns are of their types. Corrupt."""
    if not fits(row, type(row)):
        raise Corrupt(f'catalog: a {type(row).__name__.lower()} with columns of other types')
    return row


def split(ids: bytes) -> list[bytes]:
    """Return ids that stand back to back."""
    return [ids[start : start + limits.ID_BYTES] for start in range(0, len(ids), limits.ID_BYTES)]


def read(path: Path, start: int, count: int) -> bytes:
    """Return exactly these bytes of a file. Corrupt when it ends before, OSError."""
    with open(path, 'rb', buffering=0) as file:
        data = os.pread(file.fileno(), count, start)
    if len(data) != count:
        raise Corrupt(f'{path.name} ends at {start + len(data)}')
    return data


# --- what changed --------------------------------------------------------------------------------------
def changes(then: Sequence[Root], now: Sequence[Root]) -> Iterator[tuple[bool, str]]:
    """Yield (whether it must not be, what) for each root that is not as the certificate has it."""
    before = {(one.kind, one.number): one for one in then}
    after = {(one.kind, one.number): one for one in now}
    asked = {one.root: one.number for one in now if one.kind == 'request'}
    for key, one in before.items():
        what, found = f'{one.kind} {one.number} {one.name!r}', after.get(key)
        if found is None:
            request = f', request {asked[one.root]} is about it' if one.root in asked and one.root else ''
            yield False, f'{what} is gone{request if one.kind != "request" else ""}'
        elif found.root != one.root:
            # P6: nobody may change the root of anything but a volume.
            yield one.kind != 'volume', f'{what} has another root'
        elif found.name != one.name:
            yield False, f'{what} is called {found.name!r} now'
    for key, one in after.items():
        if key not in before:
            yield False, f'{one.kind} {one.number} {one.name!r} is new'


def replay(store: Path, file: Path | None, data: bool) -> int:
    """Do it and print it; return the exit code. Invalid for a wrong certificate; Corrupt, sqlite3.Error,
    OSError for a store that cannot be read."""
    try:
        uuid = decode_superblock(read(store / 'superblock', 0, SUPERBLOCK_BYTES)).uuid
    except (OSError, Corrupt) as error:
        raise Invalid(f'{store} is not a snapfs store: {error}') from error
    path = newest(store) if file is None else file
    fields = load(path, uuid)
    db = connect(store)
    try:
        db.execute('BEGIN')
        (epoch,) = db.execute("SELECT value FROM settings WHERE key = 'epoch'").fetchone() or (None,)
        if type(epoch) is not int:
            raise Corrupt('catalog: there is no epoch')
        walk = Replay(store, uuid, db, data)
        walk.run()
    finally:
        db.close()
    state = 'everything was there' if fields['passed'] else f'{fields["missing"]} references were missing'
    print(f'certificate of batch {fields["batch"]}, epoch {fields["epoch"]}: {state}')
    bad = walk.missing > 0
    if epoch < fields['epoch']:
        bad = True
        print(f'BROKEN the catalog is of epoch {epoch}, older than the certificate')
    for wrong, what in changes(fields['roots'], walk.roots):
        bad = bad or wrong
        print(f'{"BROKEN" if wrong else "since"} {what}')
    verdict = f'{walk.missing} MISSING' if walk.missing else 'all there'
    print(
        f'epoch {epoch}: {len(walk.roots)} roots, {walk.nodes} nodes, {walk.references} references: {verdict}'
    )
    return Corrupt.exit_code if bad else 0


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of snapfs-certificate; `argv` without the program's name."""
    parser = argparse.ArgumentParser(
        prog='snapfs-certificate',
        description='Replay the certificate of a deletion: is all that stands still there?',
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('store', type=Path, metavar='STORE')
    parser.add_argument(
        'file', type=Path, metavar='FILE', nargs='?', help='the newest of the store, if not given'
    )
    parser.add_argument('--data', action='store_true', help='read data chunks, too, and verify their ids')
    arguments = parser.parse_args(argv)
    if hasattr(sys.stdout, 'reconfigure'):
        sys.stdout.reconfigure(errors='backslashreplace')
    try:
        code = replay(arguments.store, arguments.file, arguments.data)
        sys.stdout.flush()
        return code
    except Invalid as error:
        print(f'snapfs-certificate: {error.line()}', file=sys.stderr)
        return Invalid.exit_code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (Corrupt, sqlite3.Error, OSError) as error:
        print(f'snapfs-certificate: the store cannot be read: {error}', file=sys.stderr)
        return Corrupt.exit_code


if __name__ == '__main__':
    sys.exit(main())
