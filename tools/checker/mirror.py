"""Tool fsck, mirror: the second copies of nodes. One thread.

A copy is read where its pack has lost a node, so every record in it must be one. What is not in records is
compared with the pack. A copy that is not there, or has not grown yet, does no harm: it is made within a
minute of the next mount. All copies are checked by full checks only; of packs that have lost something any
check says whether their copies have it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace

from snapfs.errors import Corrupt
from snapfs.format.packs import PACK_HEADER_BYTES
from snapfs.format.records import HEADER_BYTES, decode_header, decode_payload
from tools.checker.findings import COPIED, Report
from tools.checker.packs import META
from tools.checker.store import Pack, Store, is_ours, read_at

PLACE = re.compile(r'packs/meta/[0-9a-f]{2}/([0-9a-f]{32})(?: at offset ([0-9]+))?')
UNSEEN = -1
LOST = ('pack-missing', 'pack-short', 'pack-unreadable', 'record-header', 'record-payload')


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


def tell_copies(store: Store, packs: Iterable[Pack], report: Report) -> None:
    """Say of each finding about lost nodes whether their second copies have them, and what puts them back."""
    known = {pack.name.hex(): pack for pack in packs if pack.kind == META}
    for number, finding in enumerate(report.findings):
        match = PLACE.fullmatch(finding.place)
        pack = known.get(match[1]) if match is not None else None
        if match is None or pack is None or finding.code not in LOST:
            continue
        copied, of = _copied(store, pack, None if match[2] is None else int(match[2]))
        if copied == UNSEEN:
            continue
        if not copied:
            has = 'nor has its second copy'
        elif copied < of:
            has = f'its second copy has {copied} of {of} nodes: snapfs scrub puts them back'
        else:
            has = 'its second copy is whole: snapfs scrub puts it back'
        facts = {**finding.facts, **COPIED} if copied == of else finding.facts
        report.findings[number] = replace(finding, what=f'{finding.what}; {has}', facts=facts)


def _copied(store: Store, pack: Pack, offset: int | None) -> tuple[int, int]:
    """Return how many nodes the copy of a pack has whole, and of how many: that at `offset`, or all. UNSEEN
    when nobody lets us look."""
    name = pack.name.hex()
    of = pack.records if offset is None else 1
    count, at = 0, PACK_HEADER_BYTES if offset is None else offset
    try:
        with store.opened('mirror', name[:2], name) as (fd, size):
            for _ in range(of):
                if at + HEADER_BYTES > size:
                    break
                header = decode_header(read_at(fd, HEADER_BYTES, at))
                at += HEADER_BYTES
                try:
                    decode_payload(header, read_at(fd, header.stored_length, at))
                    count += 1
                except Corrupt:
                    pass
                at += header.stored_length
    except (OSError, Corrupt) as error:
        if isinstance(error, OSError) and is_ours(error):
            return UNSEEN, of
    return count, of


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
        with store.opened(*store.pack_parts(pack.kind, pack.name)) as (other, there):
            for start, stop in ((0, min(size, PACK_HEADER_BYTES)), (at, size)):
                if stop > there:
                    continue  # it is the pack that has lost its end, and that is told of elsewhere
                if read_at(fd, stop - start, start) != read_at(other, stop - start, start):
                    raise Corrupt(f'bytes {start} to {stop} are not those of its pack')
    except OSError:
        return  # the pack is told of elsewhere
