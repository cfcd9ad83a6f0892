"""L2 journal: what an fsync makes durable without a commit: two preallocated files, used in turn. Blocking.

One caller at a time (the head's journal task). Life of a file: `begin` it at its first append (its block says
from which sequence on frames count), append records, `switch` to the other file when a commit freezes the
memtable, and `release` it when that commit is durable. The files are written over in place and never change
their size, so a sync moves no metadata: one `fdatasync`, one device write.

Prefix consistency (P5) across the two files: the file that is left is synced before the other gets a byte,
and its block names the sequence it begins with, so that a replay which finds the first file cut short says so
(Corrupt) instead of going on with the second. Until its first sync the other file may hold new frames behind
its old block: so records are taken by their sequence, not file by file.

A torn tail and a damaged record both end a replay, and must not be confused: what stands behind a damaged
record was promised. Records have consecutive sequences, and none is appended before the one before it is
synced; so a power cut can tear one record only, the last, `last + 1`. Whatever of a later record is whole
(with a CRC, in either file) proves that `last + 1` was durable once: Corrupt. So does a whole record
`last + 1` that reading did not come to, and a block that begins above it. Nothing else can look so: leavings
of earlier use are of records that a commit superseded before the file was written over, hence not above
`last`; a torn record's own frames, in whatever selection, have its own sequence and lack one; numbers that a
dead process may have used are skipped. What cannot be told from a torn tail is damage to the very last
record.

After an unclean stop nothing may be appended until a commit supersedes all that was replayed and `restart`
has made a new first sequence durable, above any that the dead process may have written: else a new record
could be continued by a surviving part of an old, torn one.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from heapq import merge
from pathlib import Path

from snapfs import limits
from snapfs.errors import Corrupt, Refused
from snapfs.format.journal import (
    FRAME_HEADER_BYTES,
    JOURNAL_HEADER_BYTES,
    FramePlace,
    JournalFrame,
    JournalHeader,
    decode_journal_header,
    decode_records,
    encode_journal_header,
    find_frames,
    is_cut_journal_header,
)
from snapfs.store.durable import Disk

FILES = (0, 1)
RECORDS_MAX = len(FILES) * limits.JOURNAL_BYTES // FRAME_HEADER_BYTES  # that both files together can hold

# Else what a dead process wrote could be taken for a later record of the next one.
assert limits.JOURNAL_SEQUENCE_GAP > 1


class Journal:
    """The journal of one store. `last_sequence` is that of the last record; the next one has `last_sequence`
    + 1."""

    def __init__(self, disk: Disk, directory: Path, store_uuid: bytes, last_sequence: int) -> None:
        self._disk = disk
        self._directory = directory
        self._uuid = store_uuid
        self._fds: list[int] = []
        self._active = 0
        self._positions = [0, 0]  # end of what this process wrote; 0 = the file is free
        self._unsynced = [False, False]
        self._must_restart = False
        self.bytes_max = limits.JOURNAL_BYTES
        self.last_sequence = last_sequence

    # --- open and close ----------------------------------------------------------------------------------
    @staticmethod
    def create(disk: Disk, directory: Path, store_uuid: bytes) -> None:
        """Make the two files, zero-filled and durable, in a new directory."""
        disk.mkdir(directory)
        for number in FILES:
            path = directory / str(number)
            disk.preallocate(path, limits.JOURNAL_BYTES)
            fd = disk.open_write(path, create=False)
            try:
                disk.pwrite(fd, [encode_journal_header(JournalHeader(store_uuid, number, 1))], 0)
                disk.sync_data(fd)
            finally:
                disk.close(fd)
        disk.sync_directory(directory)

    @classmethod
    def open(
        cls, disk: Disk, directory: Path, store_uuid: bytes, committed_sequence: int, was_clean: bool
    ) -> Journal:
        """Open both files. After an unclean stop they are read once; appending then needs `restart` first."""
        journal = cls(disk, directory, store_uuid, committed_sequence)
        try:
            for number in FILES:
                path = directory / str(number)
                fd = disk.open_read(path) if disk.latched else disk.open_write(path, create=False)
                journal._fds.append(fd)
                if disk.size(fd) != limits.JOURNAL_BYTES:
                    raise Corrupt(f'{path} has {disk.size(fd)} bytes, not {limits.JOURNAL_BYTES}')
            if not was_clean:
                journal._must_restart = True
                for record in journal.replay(committed_sequence):
                    journal.last_sequence = record[0].sequence
                journal.last_sequence += limits.JOURNAL_SEQUENCE_GAP
        except FileNotFoundError as error:
            journal.close()
            raise Corrupt(f'{error.filename} is missing') from error
        except BaseException:
            journal.close()
            raise
        return journal

    def close(self) -> None:
        """Close the files. Syncs nothing."""
        while self._fds:
            self._disk.close(self._fds.pop())

    # --- writing -----------------------------------------------------------------------------------------
    @property
    def active(self) -> int:
        """The file that records go to: 0 or 1."""
        return self._active

    @property
    def free_bytes(self) -> int:
        """Room for frames in the active file."""
        return self.bytes_max - max(self._positions[self._active], JOURNAL_HEADER_BYTES)

    @property
    def used_fraction(self) -> float:
        """How full the active file is, 0.0 to 1.0."""
        return 1.0 - self.free_bytes / (self.bytes_max - JOURNAL_HEADER_BYTES)

    def append(self, sequence: int, frames: Sequence[bytes]) -> None:
        """Write the frames of the record `sequence` (`last_sequence` + 1). Durable after `sync`, which comes
        before the next append.

        Refused(ENOSPC) when they do not fit into the active file: the caller commits, which frees one.
        Nothing was written then, or, when the disk below was full, nothing that a replay would take.
        """
        self._disk.check()
        assert not self._must_restart, 'P5: what was replayed must be committed before anything is appended'
        assert sequence == self.last_sequence + 1, f'{sequence} does not follow {self.last_sequence}'
        size = sum(map(len, frames))
        if size > self.free_bytes:
            raise Refused(errno.ENOSPC, f'journal: {size} bytes do not fit into {self.free_bytes}')
        assert not any(self._unsynced), 'P5: the record before it must be durable'
        active = self._active
        position = self._positions[active]
        self._unsynced[active] = True
        if position == 0:
            header = encode_journal_header(JournalHeader(self._uuid, active, sequence))
            frames = [header, *frames]
        try:
            position += self._disk.pwrite(self._fds[active], frames, position)
        except Refused:
            # Parts of this record are there. The next one, of the same number, must not be continued by them.
            position = self.bytes_max
            raise
        finally:
            self._positions[active] = position
        self.last_sequence = sequence

    def sync(self) -> None:
        """Make every appended record durable. Latched when it fails, and for ever after."""
        for number in FILES:
            if self._unsynced[number]:
                self._disk.sync_data(self._fds[number])
                self._disk.check_named(self._fds[number], self._directory / str(number))
                self._unsynced[number] = False

    def switch(self) -> int:
        """Let records go to the other file from now on; return the file left, for `release` once a commit has
        superseded it. Refused(EBUSY) while the other one is not released. Syncs the file left if it must
        be."""
        old, new = self._active, 1 - self._active
        if self._positions[new]:
            raise Refused(errno.EBUSY, 'journal: the other file is still needed')
        # In the other order a power cut could keep a record in the new file and lose one before it in the old
        # one.
        self.sync()
        self._active = new
        return old

    def release(self, number: int) -> None:
        """Let a file be written over: a durable commit has superseded its records."""
        assert number != self._active, 'P5: records go there; switch first'
        self._positions[number] = 0

    def restart(self, committed_sequence: int) -> None:
        """After an unclean stop, when a commit with journal sequence `last_sequence` is durable: begin anew.
        Does nothing after a clean one."""
        if not self._must_restart:
            return
        assert committed_sequence == self.last_sequence, 'P5: what was replayed is not superseded'
        for number in FILES:
            header = encode_journal_header(JournalHeader(self._uuid, number, self.last_sequence + 1))
            self._disk.pwrite(self._fds[number], [header], 0)
            self._disk.sync_data(self._fds[number])
        self._must_restart = False

    # --- reading -----------------------------------------------------------------------------------------
    def replay(self, after_sequence: int) -> Iterator[list[JournalFrame]]:
        """Yield the complete records above `after_sequence`, each as its frames, without a gap in their
        sequences. Ends at the first that is not whole. Corrupt when the journal cannot be read or has lost
        records that were durable, as a later one or its file's block proves (P5)."""
        files = [self._read(number) for number in FILES]
        # By sequence, not file by file: a power cut may keep new frames behind an old block, whose first
        # sequence says nothing about them.
        records = merge(
            *(
                decode_records(data, self._uuid, JOURNAL_HEADER_BYTES, one.first_sequence)
                for one, data in files
            ),
            key=lambda record: record[0].sequence,
        )
        last = after_sequence
        for record in records:
            sequence = record[0].sequence
            if sequence <= last:
                continue
            if sequence != last + 1:
                raise _lost(last + 1, sequence - 1, f'record {sequence} is there')
            last = sequence
            yield record
        for header, data in files:
            if header.first_sequence > last + 1:
                raise _lost(last + 1, header.first_sequence - 1, f'file {header.file_number} follows them')
            for offset, place in _later_records(data, self._uuid, last):
                where = f'byte {offset} of file {header.file_number}'
                raise _lost(
                    last + 1, max(last + 1, place.sequence - 1), f'{where} has record {place.sequence}'
                )

    def _read(self, number: int) -> tuple[JournalHeader, memoryview]:
        fd = self._fds[number]
        try:
            data = memoryview(self._disk.pread(fd, self._disk.size(fd), 0))
        except Corrupt as error:  # the disk does not give it: nothing of it may be taken for torn
            raise Corrupt(f'journal/{number}: {error}') from error
        try:
            header = decode_journal_header(data)
        except Corrupt:
            if not is_cut_journal_header(data, self._uuid, number):
                raise
            # A power cut came in the middle of writing the block: its sequence is unknown. Records count by
            # their own, so nothing is lost, and nothing that a commit has superseded is taken.
            header = JournalHeader(self._uuid, number, 0)
        if (header.store_uuid, header.file_number) != (self._uuid, number):
            raise Corrupt(f'journal: file {number} is that of another store, or in the wrong place')
        return header, data


def _later_records(data: memoryview, store_uuid: bytes, last: int) -> Iterator[tuple[int, FramePlace]]:
    """Yield (offset, place) of what proves that the record `last` + 1, at which a replay stopped, was durable
    once: any frame of a later one, or the whole of it where reading did not come to."""
    parts_end = 0  # of the parts of `last` + 1 that stand back to back from part 0 on; 0 = none yet
    parts = 0
    for offset, end, place in find_frames(data, store_uuid, JOURNAL_HEADER_BYTES):
        if last + 1 < place.sequence <= last + RECORDS_MAX:
            yield offset, place
        if place.sequence != last + 1:
            continue
        if place.part == 0:
            parts, parts_end = 0, offset
        if place.part == parts and offset == parts_end:
            parts, parts_end = parts + 1, end
            if not place.more:
                yield offset, place


def _lost(first: int, end: int, proof: str) -> Corrupt:
    missing = f'record {first} is' if first == end else f'records {first} to {end} are'
    return Corrupt(
        f'journal: {missing} missing or damaged, but {proof}, written when they were durable (P5)',
        advice='Nothing was changed. Keep a copy of the store as it is; what the journal holds can be read '
        'with snapfs-dump.',
    )
