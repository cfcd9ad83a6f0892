"""Tool fsck, mirror: the second copies of nodes. One thread; full checks only.

A copy is read where its pack has lost a node, so every record in it must be one. What is not in records is
compared with the pack. A copy that is not there, or has not grown yet, does no harm: it is made within a
minute of the next mount."""

from __future__ import annotations

from collections.abc import Iterable

from snapfs.errors import Corrupt
from snapfs.format.packs import PACK_HEADER_BYTES
from snapfs.format.records import HEADER_BYTES, decode_header, decode_payload
from tools.checker.findings import Report
from tools.checker.packs import META
from tools.checker.store import Pack, Store, is_ours, read_at


def check_mirror(store: Store, packs: Iterable[Pack], report: Report) -> None:
    """Check the copies of these packs."""
    for pack in packs:
        if pack.kind != META or pack.state == 'retired':
            continue
        name = pack.name.hex()
        parts = ('mirror', name[:2], name)
        try:
            with store.opened(*parts) as (fd, size):
                _check(store, pack, fd, min(size, pack.bytes))
        except FileNotFoundError:
            continue
        except (OSError, Corrupt) as error:
            if isinstance(error, OSError) and is_ours(error):
                report.could_not('/'.join(parts), error.strerror or str(error))
                continue
            why = error.strerror if isinstance(error, OSError) else str(error)
            report.add('mirror-bad', '/'.join(parts), why or '')


def _check(store: Store, pack: Pack, fd: int, size: int) -> None:
    at = PACK_HEADER_BYTES
    for _ in range(pack.records):
        if at + HEADER_BYTES > size:
            break
        header = decode_header(read_at(fd, HEADER_BYTES, at))
        end = at + HEADER_BYTES + header.stored_length
        if end > size:
            break  # the rest is copied when the store is mounted next
        try:
            decode_payload(header, read_at(fd, header.stored_length, at + HEADER_BYTES))
        except Corrupt as error:
            raise Corrupt(f'offset {at}: {error}') from error
        at = end
    try:
        with store.opened(*store.pack_parts(pack.kind, pack.name)) as (other, _):
            for start, stop in ((0, min(size, PACK_HEADER_BYTES)), (at, size)):
                if read_at(fd, stop - start, start) != read_at(other, stop - start, start):
                    raise Corrupt(f'bytes {start} to {stop} are not those of its pack')
    except OSError:
        return  # the pack is told of elsewhere
