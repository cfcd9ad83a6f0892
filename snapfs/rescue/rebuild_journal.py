"""L4 rebuild, journal: does what it holds follow the heads that were chosen? Blocking; reads only.

Records have consecutive sequences, and each holds what changed since the one before it. But a commit need
not be a record: one that found no room in the journal, the one of a rollback, and the one after a replay are
in their roots alone. So that records J+1, J+2, … follow a source whose journal position is J takes two
proofs, and both are about the same span of time:

1. From J+1 to the end no record is missing or damaged. The journal's own reading shows it (store/journal.py).
2. Nothing was committed since the source was written. A commit that changes a root writes at least one node,
   and packs only grow at their ends; the source knows how far each pack went when its roots were current. So
   there must be no node behind these ends, and none in a pack that the source does not know. (A commit whose
   nodes were all there before leads back to an older state of the same volume; its records are in the
   journal, or it was a rollback, which changes the view.) Nodes that a crash, a repacking or a planted canary
   left behind the ends prove nothing, and count as if they did.

Then the old heads with the records on top are the last durable moment, exactly. Records of a view that no
volume has would be passed over by the replay; where there are any, the proof has failed as well.

Without a proof nothing is replayed: the files go aside, whole, under another name, and the report says how
many records they hold. A head that is newer than the source is no better base: which records it contains is
written nowhere, and a record under a newer state would bring some files back to an older one. The new
catalog then says that all records ever seen are done, so that not even the old files, should somebody leave
them there, are replayed or refused."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from snapfs import limits
from snapfs.errors import Invalid, SnapfsError, Unavailable
from snapfs.format.journal import JOURNAL_HEADER_BYTES, decode_journal_header, find_frames
from snapfs.store.durable import Disk
from snapfs.store.journal import FILES, Journal


@dataclass(slots=True)
class JournalFacts:
    """What both files hold. `records` follow the position that was asked about, without a gap, unless
    `fault` says why they do not. `greatest`: sequence of anything that was seen, 0 when nothing was."""

    fault: str = ''
    records: int = 0
    greatest: int = 0
    views: dict[int, int] = field(default_factory=dict)  # of deltas: to the greatest next_ino
    packs: set[bytes] = field(default_factory=set)  # that chunks of the records are in


def look(store: Path, uuid: bytes, after: int) -> JournalFacts:
    """Read the journal. Nothing is written; what is damaged or gone is a fault. Invalid, Unavailable: we were
    not let in, which is none."""
    facts = JournalFacts()
    reader = Disk()
    reader.latch('a rebuild only reads the journal')  # it is opened for reading alone then
    for number in FILES:
        try:
            data = reader.read_file(store / 'journal' / str(number), limits.JOURNAL_BYTES)
            for _, _, place in find_frames(data, uuid, JOURNAL_HEADER_BYTES):
                facts.greatest = max(facts.greatest, place.sequence)
            head = decode_journal_header(data)
            if head.store_uuid == uuid:
                facts.greatest = max(facts.greatest, head.first_sequence - 1)
        except (Invalid, Unavailable):
            raise
        except (SnapfsError, OSError):
            continue
    try:
        journal = Journal.open(reader, store / 'journal', uuid, after, was_clean=True)
        try:
            for record in journal.replay(after):
                facts.records += 1
                for frame in record:
                    facts.packs.update(chunk.pack_name for chunk in frame.chunks)
                    for delta in frame.volumes:
                        facts.views[delta.volume] = max(facts.views.get(delta.volume, 0), delta.next_ino)
        finally:
            journal.close()
    except (Invalid, Unavailable):
        raise
    except (SnapfsError, OSError) as error:
        facts.fault = str(error)
    return facts
