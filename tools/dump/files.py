"""Tool: a store's superblock, catalog, packs, audit log and lock, and the summary. One thread."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from snapfs import limits
from snapfs.errors import Corrupt, Invalid
from snapfs.format.packs import (
    PACK_HEADER_BYTES,
    TRAILER_BYTES,
    PackEntry,
    decode_footer,
    decode_pack_header,
    footer_offset,
)
from snapfs.format.records import HEADER_BYTES, RecordKind, decode_payload
from snapfs.store import schema
from snapfs.store.audit import FIRST_PREVIOUS, decode_line
from snapfs.store.packs import FOLDERS, scan_records
from tools.dump.report import Report, moment
from tools.dump.source import Source

CODECS = {0: 'plain', 1: 'zstd'}
KINDS = {1: 'data', 2: 'node'}
_ID_COLUMNS = frozenset({'id', 'root', 'digest'})
_PACK_ROW = 'SELECT pack, state, bytes, records FROM pack WHERE name = ?'


def superblock(source: Source, report: Report) -> None:
    """Print the superblock, a field a line. That it is unreadable was said when the store was opened."""
    block = source.superblock
    if block is None:
        return
    report.fact('superblock', version=block.version)
    report.fact('superblock', uuid=block.uuid.hex())
    report.fact('superblock', created=moment(block.created_ns))
    report.fact('superblock', hash=block.hash)
    report.fact('superblock', name_key=block.name_key.hex())
    for name in ('minimum', 'average', 'maximum', 'normalization', 'whole_file_max'):
        report.fact('superblock', **{f'chunker_{name}': getattr(block.chunker, name)})


# --- catalog ---------------------------------------------------------------------------------------------
def catalog(source: Source, report: Report, table: str | None) -> None:
    """Print the rows of one table, or of all but the chunk index's, of which only the number."""
    if table is not None and table not in schema.TABLES:
        raise Invalid(f'there is no table {table!r}: {", ".join(schema.TABLES)}')
    for name in [table] if table else schema.TABLES:
        with report.guard(f'catalog {name}'):
            count = next(source.query(f'SELECT count(*) FROM {name}'))[0]
            report.fact('table', name, rows=count)
            if table or name != 'chunk':
                _rows(source, report, name)


def _rows(source: Source, report: Report, name: str) -> None:
    columns = [row[0] for row in source.query('SELECT name FROM pragma_table_info(?)', (name,))]
    # The order of the primary key: stable, and nothing to sort.
    for row in source.query(f'SELECT * FROM {name}'):
        fields = {c: _cell(name, c, v) for c, v in zip(columns, row, strict=True)}
        report.fact(name, **fields)


def _cell(table: str, column: str, value: Any) -> object:
    if isinstance(value, bytes) and column == 'ids':
        return ','.join(value[at : at + 32].hex() for at in range(0, len(value), 32))
    if isinstance(value, bytes) and (column in _ID_COLUMNS or (table, column) == ('pack', 'name')):
        return value.hex()
    if isinstance(value, int) and column.endswith('_ns'):
        return moment(value)
    return value


# --- packs -----------------------------------------------------------------------------------------------
def packs(source: Source, report: Report) -> None:
    """Print a line for every pack on disk or in the catalog."""
    rows: dict[bytes, tuple[Any, ...]] = {}
    with report.guard('catalog'):
        for row in source.query('SELECT name, pack, state, bytes, records, kind FROM pack ORDER BY name'):
            rows[row[0]] = row
    for kind, name in source.pack_names():
        row = rows.pop(name, (name, None, None, None, None, kind))
        with report.guard(f'pack {name.hex()}'), source.opened(source.pack_file(kind, name)) as (fd, size):
            fields = {'number': row[1], 'state': row[2], 'bytes': row[3], 'records': row[4]}
            report.fact('pack', name.hex(), kind=KINDS[kind], **fields, file_bytes=size)
            _check_header(source, report, kind, name, bytes(source.disk.pread(fd, PACK_HEADER_BYTES, 0)))
            if row[3] is not None and size < row[3]:
                raise Corrupt(f'{size} bytes, the catalog says that {row[3]} are durable')
            if row[5] != kind:
                raise Corrupt(f'it stands in {FOLDERS[kind]}, the catalog says kind {row[5]}')
    for name, row in rows.items():
        if row[2] != 'retired':
            report.oddity(f'pack {name.hex()}', f'the catalog has it as {row[2]}, the disk has not')


def _check_header(source: Source, report: Report, kind: int, name: bytes, data: bytes) -> None:
    with report.guard(f'pack {name.hex()}'):
        header = decode_pack_header(data)
        if source.superblock is not None and header.store_uuid != source.superblock.uuid:
            raise Corrupt(f'it is a pack of store {header.store_uuid.hex()}')
        if (header.kind, header.name) != (kind, name):
            raise Corrupt(f'its header is that of pack {header.name.hex()}, kind {header.kind}')


def pack(source: Source, report: Report, prefix: str) -> None:
    """Print header, record headers and footer of the packs whose name begins so; read every payload."""
    found = [(kind, name) for kind, name in source.pack_names() if name.hex().startswith(prefix.lower())]
    if not found:
        raise Invalid(f'no pack begins with {prefix!r}')
    for kind, name in found:
        where = f'pack {name.hex()}'
        with report.guard(where), source.opened(source.pack_file(kind, name)) as (fd, size):
            _put_pack(source, report, kind, name, fd, size)


def _put_pack(source: Source, report: Report, kind: int, name: bytes, fd: int, size: int) -> None:
    where = f'pack {name.hex()}'
    report.fact('pack', name.hex(), kind=KINDS[kind], file_bytes=size)
    data = bytes(source.disk.pread(fd, PACK_HEADER_BYTES, 0))
    _check_header(source, report, kind, name, data)
    with report.guard(where):
        report.fact('header', uuid=decode_pack_header(data).store_uuid.hex())
    footer: list[PackEntry] | None = None
    end = size
    row: tuple[Any, ...] | None = None
    with report.guard('catalog'):
        row = next(source.query(_PACK_ROW, (name,)), None)
    try:
        end = footer_offset(source.disk.pread(fd, TRAILER_BYTES, max(0, size - TRAILER_BYTES)), size)
    except Corrupt as error:
        if row is not None and row[1] != 'open':
            report.oddity(f'{where} footer', error)
        elif row is not None:
            end = min(size, row[2])  # what follows is not durable yet, and perhaps half a record
    else:
        with report.guard(f'{where} footer'):
            footer = decode_footer(source.disk.pread(fd, size - end, end), size, name)
    seen = _put_records(source, report, where, fd, end)
    if footer is None:
        report.fact('footer', state='none', after=end, rest_bytes=size - end)
        return
    report.fact('footer', state='good', offset=end, records=len(footer))
    for entry in footer:
        if entry not in seen:
            report.oddity(f'{where} footer', f'entry {entry.id.hex()} at {entry.offset} has no such record')
    for missing in seen - set(footer):
        report.oddity(f'{where} footer', f'no entry for {missing.id.hex()} at {missing.offset}')


def _put_records(source: Source, report: Report, where: str, fd: int, end: int) -> set[PackEntry]:
    seen = set()
    with report.guard(where):
        for offset, head in scan_records(source.disk, fd, end):
            fields = {'stored': head.stored_length, 'plain': head.plain_length, 'codec': CODECS[head.codec]}
            report.fact('record', head.id.hex(), offset=offset, kind=KINDS[head.kind], **fields)
            seen.add(PackEntry(head.id, offset, head.stored_length, head.plain_length, head.codec))
            with report.guard(f'{where} offset {offset}'):
                count = min(head.stored_length, limits.STORED_BYTES_MAX)
                decode_payload(head, source.disk.pread(fd, count, offset + HEADER_BYTES))
    return seen


# --- audit log and lock ----------------------------------------------------------------------------------
def audit(source: Source, report: Report) -> None:
    """Print every line of the audit log and whether it follows from the one before."""
    previous, sequence, number, broken = FIRST_PREVIOUS, 0, 0, 0
    with report.guard('audit.log'), source.opened(source.path / 'audit.log') as (fd, size):
        offset, rest = 0, b''
        while offset < size and (block := bytes(source.disk.pread(fd, limits.MIB, offset))):
            offset += len(block)
            *whole, rest = (rest + block).split(b'\n')
            for text in whole:
                number += 1
                line = decode_line(text)
                if line is None:
                    broken += 1
                    report.oddity(
                        f'audit line {number}',
                        f'no line, or not the one its hash was made for: {text[:80]!r}',
                    )
                    continue
                good = (line.previous, line.sequence) == (previous, sequence + 1)
                event = json.dumps(line.event)
                chain = 'good' if good else 'broken'
                time = moment(line.time_ns) if isinstance(line.time_ns, int) else str(line.time_ns)
                report.fact('audit', line.sequence, event, time=time, chain=chain)
                if not good:
                    broken += 1
                    report.oddity(f'audit line {number}', f'it does not follow from line {sequence}')
                previous, sequence = line.hash, line.sequence
            if len(rest) > limits.AUDIT_LINE_BYTES_MAX:
                raise Corrupt(f'line {number + 1} does not end')
        if rest:
            broken += 1
            report.oddity(f'audit line {number + 1}', f'torn: {len(rest)} bytes without a line end')
    report.fact('audit-chain', lines=number, broken=broken, head=previous)


def lock(source: Source, report: Report) -> None:
    """Print who holds the store, by the kernel's list of locks (asking the lock itself would take it)."""
    path = source.path / 'lock'
    with report.guard('lock'):
        text = source.read(path, limits.LOCK_HOLDER_BYTES).strip()
        try:
            pid, host, since_ns, mountpoint = json.loads(text) if text else (None, None, 0, None)
            since = moment(since_ns) if text else None
            report.fact('lock-text', pid=pid, host=host, since=since, mountpoint=mountpoint or None)
        except (ValueError, TypeError, RecursionError):
            pid = None
            report.oddity('lock', 'its text does not name a holder')
        report.fact('lock', state=_lock_state(path, pid))


def _lock_state(path: Path, pid: object) -> str:
    status = path.lstat()
    device = f'{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}'
    for line in Path('/proc/locks').read_text().splitlines():
        words = line.split()
        if 'FLOCK' not in words or len(words) < 8:
            continue
        owner, place = words[-4], words[-3]
        # Some filesystems show another device here than stat does; then the holder's number decides.
        same = place == f'{device}:{status.st_ino}' or (
            place.endswith(f':{status.st_ino}') and owner == str(pid)
        )
        if same:
            return f'held-by-{owner}'
    return 'free'


# --- summary ---------------------------------------------------------------------------------------------
_SUMS = 'SELECT kind, count(*), sum(plain), sum(stored) FROM {table} GROUP BY kind ORDER BY kind'


def usage(source: Source, report: Report) -> None:
    """Print what the store holds, in numbers."""
    if source.superblock is not None:
        report.fact('store', uuid=source.superblock.uuid.hex(), created=moment(source.superblock.created_ns))
    with report.guard('lock'):
        report.fact('lock', state=_lock_state(source.path / 'lock', None))
    for step in _USAGE:
        with report.guard('catalog'):
            step(source, report)
    sizes: dict[RecordKind, list[int]] = {kind: [0, 0] for kind in FOLDERS}
    for kind, name in source.pack_names():
        with report.guard(f'pack {name.hex()}'):
            sizes[kind][0] += 1
            sizes[kind][1] += source.pack_file(kind, name).lstat().st_size
    for number, (count, size) in sizes.items():
        report.fact('packs', kind=KINDS[number], files=count, file_bytes=size)
    for text in ('catalog.sqlite', 'catalog.sqlite-wal', 'journal/0', 'journal/1', 'audit.log', 'reserve'):
        path = source.path / text
        if os.path.lexists(path):
            report.fact('file', text, bytes=path.lstat().st_size)


def _usage_settings(source: Source, report: Report) -> None:
    for key, value in source.settings().items():
        report.fact('setting', **{key: value})


def _usage_volumes(source: Source, report: Report) -> None:
    text = 'SELECT volume, number, name, root_items, root_refs, damaged_ns FROM volume ORDER BY volume'
    for volume, view, name, items, refs, damaged in source.query(text):
        count = next(source.query('SELECT count(*) FROM snapshot WHERE volume = ?', (volume,)))[0]
        facts = {'view': view, 'items': items, 'refs': refs, 'snapshots': count}
        report.fact('volume', volume, name=name, **facts, damaged=damaged is not None)


def _usage_snapshots(source: Source, report: Report) -> None:
    text = (
        'SELECT v.name, s.name, s.number, s.root_items, s.root_refs, s.created_ns FROM snapshot AS s '
        'JOIN volume AS v USING (volume) ORDER BY s.number'
    )
    for volume, name, view, items, refs, created_ns in source.query(text):
        facts = {'view': view, 'items': items, 'refs': refs, 'created': moment(created_ns)}
        report.fact('snapshot', name=volume + b'@' + name, **facts)


def _usage_chunks(source: Source, report: Report) -> None:
    for table in ('chunk', 'quarantine', 'freed'):
        for kind, count, plain, stored in source.query(_SUMS.format(table=table)):
            facts = {'count': count, 'plain_bytes': plain, 'stored_bytes': stored}
            report.fact('chunks', table=table, kind=KINDS.get(kind, kind), **facts)


_USAGE: tuple[Callable[[Source, Report], None], ...] = (
    _usage_settings,
    _usage_volumes,
    _usage_snapshots,
    _usage_chunks,
)
