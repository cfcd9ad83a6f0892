"""Tool: the two journal files: blocks, frames, changes, and what a replay would apply. One thread."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from heapq import merge

from snapfs import limits
from snapfs.errors import Corrupt
from snapfs.format.journal import (
    JOURNAL_HEADER_BYTES,
    JournalFrame,
    JournalHeader,
    PlacedFrame,
    VolumeDelta,
    decode_journal_header,
    peek_frame,
    scan_frames,
)
from tools.dump.items import key_text, put_item
from tools.dump.report import Report
from tools.dump.source import Source

Records = list[list[JournalFrame]]


def journal(source: Source, report: Report) -> None:
    """Print all frames, then what a replay after an unclean stop would apply now."""
    committed: int | None = None
    with report.guard('catalog'):
        committed = source.settings()['journal_sequence']
    files: list[tuple[JournalHeader, Records]] = []
    for number in (0, 1):
        with report.guard(f'journal/{number}'):
            data = source.read(source.path / 'journal' / str(number), limits.JOURNAL_BYTES)
            header = decode_journal_header(data)
            report.fact(
                'journal',
                number,
                uuid=header.store_uuid.hex(),
                number=header.file_number,
                first_sequence=header.first_sequence,
                bytes=len(data),
            )
            files.append((header, []))
            if header.file_number != number:
                report.oddity(f'journal/{number}', f'its block is that of file {header.file_number}')
            if source.superblock is not None and header.store_uuid != source.superblock.uuid:
                raise Corrupt(f'it is the journal of store {header.store_uuid.hex()}')
            _put_file(report, number, data, header, committed, files[-1][1])
    if committed is not None:
        _put_replay(report, files, committed)


def _put_file(
    report: Report, number: int, data: bytes, header: JournalHeader, committed: int | None, records: Records
) -> None:
    last: PlacedFrame | None = None
    end = JOURNAL_HEADER_BYTES
    parts: list[JournalFrame] = []
    try:
        for last in _frames(data, header):
            frame, end = last.frame, last.end
            state = (
                'unknown' if committed is None else 'replay' if frame.sequence > committed else 'superseded'
            )
            places = {
                'file': number,
                'offset': last.offset,
                'end': end,
                'part': frame.part,
                'more': frame.more,
            }
            counts = {'chunks': len(frame.chunks), 'volumes': len(frame.volumes)}
            report.fact('frame', frame.sequence, **places, **counts, state=state)
            _put_frame(report, frame)
            parts.append(frame)
            if not frame.more:
                records.append(parts)
                parts = []
    finally:
        _put_stop(report, number, data, header, last, end)


def _frames(data: bytes, header: JournalHeader) -> Iterator[PlacedFrame]:
    return scan_frames(data, header.store_uuid, JOURNAL_HEADER_BYTES, header.first_sequence)


def _put_stop(
    report: Report, number: int, data: bytes, header: JournalHeader, last: PlacedFrame | None, end: int
) -> None:
    """Say where reading stopped and why. Leavings of earlier use are normal; a torn record is an oddity."""
    where = f'journal/{number} offset {end}'
    found = peek_frame(data, header.store_uuid, end)
    sequence = last.frame.sequence if last is not None else header.first_sequence - 1
    if last is not None and last.frame.more:
        report.oddity(where, f'record {sequence} has no part after {last.frame.part}: it does not count')
    elif found is not None and found[0] > sequence:
        report.oddity(where, f'a torn frame: record {found[0]}, part {found[1]}: it does not count')
    looks = 'frame' if found is not None else 'end' if end == len(data) else 'zeros'
    if looks == 'zeros' and any(data[end : end + limits.JOURNAL_HEADER_BYTES]):
        looks = 'remains'
    report.fact('stop', file=number, offset=end, rest_bytes=len(data) - end, looks=looks)


def _put_frame(report: Report, frame: JournalFrame) -> None:
    at = frame.sequence
    for one in frame.chunks:
        place = {'pack': one.pack_name.hex(), 'offset': one.offset, 'stored': one.stored_length}
        kinds = {'kind': one.kind, 'plain': one.plain_length, 'codec': one.codec}
        report.fact('new-chunk', at, one.id.hex(), **place, **kinds)
    for delta in frame.volumes:
        _put_delta(report, at, delta)


def _put_delta(report: Report, at: int, delta: VolumeDelta) -> None:
    report.fact('delta', at, volume=delta.volume, next_ino=delta.next_ino, **_counts(delta))
    for lo, hi in delta.ranges:
        report.fact('range', at, volume=delta.volume, lo=lo.hex(), hi=hi.hex())
    for key, value in delta.items:
        if value is None:
            report.fact('delete', at, key_text(key), volume=delta.volume)
        else:
            put_item(report, key, value, 'set', at, volume=delta.volume)
    for ino, start, end in delta.drops:
        report.fact('drop', at, volume=delta.volume, ino=ino, start=start, end=end)
    for ino, offset, data in delta.writes:
        report.fact('write', at, volume=delta.volume, ino=ino, offset=offset, bytes=len(data))


def _counts(delta: VolumeDelta) -> dict[str, int]:
    return {
        'ranges': len(delta.ranges),
        'items': len(delta.items),
        'drops': len(delta.drops),
        'writes': len(delta.writes),
    }


def _put_replay(report: Report, files: list[tuple[JournalHeader, Records]], committed: int) -> None:
    """Print totals of the complete records above the committed sequence, in the order replay takes them."""
    last = committed
    volumes: dict[int, Counter[str]] = {}
    count = chunks = 0
    # By sequence, as replay does: a power cut may keep new frames behind an old block.
    for record in merge(*(records for _, records in files), key=lambda record: record[0].sequence):
        sequence = record[0].sequence
        if sequence <= last:
            continue
        if sequence != last + 1:
            report.oddity('journal', f'records {last + 1} to {sequence - 1} are missing')
        last, count = sequence, count + 1
        for frame in record:
            chunks += len(frame.chunks)
            for delta in frame.volumes:
                total = volumes.setdefault(delta.volume, Counter())
                total.update(_counts(delta), bytes=sum(len(data) for _, _, data in delta.writes))
    report.fact('replay', after=committed, records=count, last=last, chunks=chunks)
    for volume, total in sorted(volumes.items()):
        report.fact('replay', volume=volume, **total)
