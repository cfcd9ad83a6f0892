"""Tool fsck, findings: what can be wrong with a store, what it means and what to do. One thread.

A finding has a code of CODES. Only `damage` makes the exit code 4: something that somebody may want to read
is wrong, or what protects it is. A `warning` is odd and hurts no reader; a `note` is for information, such as
space that nobody uses."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

DAMAGE, WARNING, NOTE = 'damage', 'warning', 'note'
SHOWN_MAX = 200  # findings kept for each code; all are counted
UNCHECKED_MAX = 1000
FINDINGS_MAX = 50_000  # kept in all, but for the first SHOWN_MAX of each code


@dataclass(frozen=True, slots=True)
class Code:
    """A kind of finding: how bad, what it means for the user, what to do about it."""

    severity: str
    means: str
    advice: str


_RECOVER = (
    'snapfs recover --verify VOLUME@SNAPSHOT --store {store} (--donors DIR, where copies of files are) '
    'brings back what exists, and makes a sibling without the rest.'
)
_REBUILD = (
    'Keep the store as it is; snapfs rebuild {store} {store}/catalog.new --install puts back what it has '
    'lost.'
)
_STALE = (
    'If the catalog was replaced by an older copy, put back the one that was there. Else keep the store as '
    'it is: snapfs audit says who deleted what.'
)
_JOURNAL = (
    'Restore it from a copy of the store; snapfs rebuild {store} {store}/catalog.new --install --journal '
    'goes on without what is damaged.'
)
_RESTORE = 'Restore the file from a copy of the store, or ask before going on; delete nothing meanwhile.'
_COLLECT = 'snapfs collect leaks --request --store {store} asks for it to be freed.'
_SCRUB = 'snapfs scrub --store {store} puts back what the second copy has.'
_BUG = 'Please report this: no crash and no disk makes it. Do not let the collector run.'
_NOTHING = 'There is nothing to do.'

CODES = {
    # --- what stands at the top
    'superblock-bad': Code(DAMAGE, 'the store cannot be opened', _REBUILD),
    'superblock-copy': Code(
        WARNING, 'the copy of the superblock would not help', 'Mount the store: it is written anew.'
    ),
    'backup-bad': Code(
        WARNING,
        'a backup of the names of volumes and snapshots would not help',
        'Look for others: snapfs rebuild {store} --list-backups. The daemon writes new ones.',
    ),
    'catalog-missing': Code(DAMAGE, 'nobody knows the names of volumes and snapshots', _REBUILD),
    'catalog-unreadable': Code(DAMAGE, 'the catalog cannot be read', _REBUILD),
    'catalog-corrupt': Code(DAMAGE, 'pages or rows of the catalog are damaged', _REBUILD),
    'catalog-row': Code(DAMAGE, 'a row of the catalog cannot be', _REBUILD),
    'entry-unknown': Code(NOTE, 'snapfs did not put it there, and does not look at it', _NOTHING),
    'entry-link': Code(
        DAMAGE,
        'inside a store no symbolic link is followed, so the store is not opened',
        'Put the directory itself there, or mount its disk there.',
    ),
    'entry-odd': Code(WARNING, 'a file of the store is not what it should be', 'Look what it is.'),
    # --- packs
    'pack-missing': Code(DAMAGE, 'all its chunks are lost, unless there are donors', _RECOVER),
    'pack-gone': Code(
        WARNING,
        'a pack is gone, and nothing that stands needs its chunks any more',
        'There is nothing to do; if you find the file, put it back.',
    ),
    'pack-unreadable': Code(
        DAMAGE,
        'the disk does not give its bytes: chunks there are lost, unless there are donors or it reads again',
        'Copy what can be read to another disk first. ' + _RECOVER,
    ),
    'pack-short': Code(DAMAGE, 'chunks at its end are lost, unless there are donors', _RECOVER),
    'pack-header': Code(DAMAGE, 'the pack cannot be used after a rebuild', _RECOVER),
    'pack-footer': Code(DAMAGE, 'its list of records is damaged; records themselves may be whole', _RECOVER),
    'pack-misplaced': Code(DAMAGE, 'nobody will find it there', 'Put it where its name says.'),
    'pack-foreign': Code(DAMAGE, 'it belongs to another store', 'Take it back to its store.'),
    'pack-unknown': Code(NOTE, 'a crash left it, or its catalog is older; it only takes room', _COLLECT),
    'pack-tail': Code(NOTE, 'a crash left bytes behind the last record; they only take room', _NOTHING),
    'record-header': Code(DAMAGE, 'the bytes of a chunk cannot be found or read', _RECOVER),
    'record-payload': Code(DAMAGE, 'the bytes of a chunk are wrong', _RECOVER),
    'record-waste': Code(NOTE, 'bytes that nobody has needed for long are wrong', _NOTHING),
    'record-unindexed': Code(NOTE, 'a crash left a record that nobody knows; it only takes room', _COLLECT),
    'index-record': Code(DAMAGE, 'the index names a place where this chunk is not', _RECOVER),
    'index-double': Code(DAMAGE, 'two chunks claim the same place', _BUG),
    'mirror-bad': Code(
        WARNING,
        'the second copy of a node would not help; those of other nodes do',
        'While anything else is damaged, keep it, and recover first. Then remove it: it is made again.',
    ),
    # --- trees
    'chunk-missing': Code(DAMAGE, 'a part of a file, or of a tree, is nowhere', _RECOVER),
    'chunk-unindexed': Code(DAMAGE, 'the index has lost a chunk that is still in a pack', _RECOVER),
    'chunk-condemned': Code(DAMAGE, 'something needed is in quarantine: it would be freed', _BUG),
    'chunk-freed': Code(DAMAGE, 'something needed has been freed; its bytes may still be there', _RECOVER),
    'chunk-length': Code(DAMAGE, 'a chunk is not as long as a file says', _RECOVER),
    'node-unreadable': Code(DAMAGE, 'a part of a tree cannot be read', _RECOVER),
    'node-totals': Code(DAMAGE, 'the counts of a tree do not add up: references may be missing', _BUG),
    'node-order': Code(DAMAGE, 'a part of a tree stands where it does not belong', _BUG),
    'item-bad': Code(DAMAGE, 'an item of a tree has values that cannot be', _BUG),
    'root-totals': Code(DAMAGE, 'the catalog counts something else than the tree has', _BUG),
    'inode-missing': Code(DAMAGE, 'items belong to a file that is not there', _BUG),
    'link-count': Code(DAMAGE, 'a file has another number of names than it says', _BUG),
    'entry-dangling': Code(DAMAGE, 'a name leads to no file, or to one of another type', _BUG),
    'inode-orphan': Code(DAMAGE, 'a file has no name that leads to it', _BUG),
    'directory-parent': Code(DAMAGE, 'a directory is not in the one that it says', _BUG),
    'directory-size': Code(DAMAGE, 'a directory has another number of entries than it says', _BUG),
    'directory-orphan': Code(DAMAGE, 'a directory cannot be reached from the top', _BUG),
    'extent-overlap': Code(DAMAGE, 'two parts of a file claim the same bytes', _BUG),
    'extent-beyond': Code(DAMAGE, 'a file has bytes beyond its end', _BUG),
    'allocated-bytes': Code(DAMAGE, 'a file has other bytes than it says (as du sees it)', _BUG),
    'xattr-flag': Code(DAMAGE, 'extended attributes of a file are not seen', _BUG),
    'name-hash': Code(DAMAGE, 'an entry stands where a look-up by name does not find it', _BUG),
    'inode-number': Code(DAMAGE, 'numbers of files would be given out twice', _BUG),
    # --- the balance
    'leaked': Code(NOTE, 'nobody needs these chunks and nobody asked for them to go', _COLLECT),
    'request-incomplete': Code(DAMAGE, 'a deleted snapshot could not be taken back whole', _RECOVER),
    'view-unaccounted': Code(
        WARNING, 'a snapshot or volume vanished and nobody asked for it; an old catalog does that', _STALE
    ),
    'damage-known': Code(DAMAGE, 'a chunk was found lost before, and is not whole again', _RECOVER),
    'chunk-named': Code(NOTE, 'the files that a chunk is in', _NOTHING),
    'damage-healed': Code(NOTE, 'a chunk that was found lost before can be read', _NOTHING),
    # --- evidence
    'journal-bad': Code(DAMAGE, 'what fsync promised since the last commit may be lost', _JOURNAL),
    'journal-torn': Code(
        NOTE,
        'the last record is not whole: a power cut tore it before fsync returned, or it was damaged',
        _NOTHING,
    ),
    'journal-chunk': Code(DAMAGE, 'the journal names bytes that are not there', _RESTORE),
    'audit-broken': Code(DAMAGE, 'who deleted what can no longer be proved', _RESTORE),
    'audit-again': Code(WARNING, 'the audit log was broken once and went on anew', _NOTHING),
    'batch-file': Code(DAMAGE, 'a deletion can no longer be proved, or not be taken back', _RESTORE),
    'receipt-bad': Code(DAMAGE, 'what was freed, and why, can no longer be proved', _RESTORE),
    'receipt-live': Code(DAMAGE, 'something that counts as freed is still in use', _BUG),
    'freed-unproved': Code(DAMAGE, 'chunks count as freed that no receipt names', _BUG),
    'certificate-bad': Code(DAMAGE, 'the proof after a deletion was altered or is gone', _RESTORE),
    'incident': Code(
        WARNING, 'the collector stopped, and waits for a person', 'snapfs incident list --store {store}'
    ),
}
COPIED = {'means': 'these nodes are read from their second copy meanwhile', 'advice': _SCRUB}
HEADS = (
    'What stands now in a volume: snapfs snapshot create VOLUME@NAME, and recover that. Where its top is '
    'lost: snapfs volume rollback VOLUME@SNAPSHOT, or snapfs volume clone VOLUME@SNAPSHOT NEW.'
)


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong. `place` names an object of the store, `files` what a person knows it by:
    (snapshot or volume, path, first byte, byte behind the last) — no range when it is not about bytes."""

    code: str
    place: str
    what: str
    files: tuple[tuple[str, str, int | None, int | None], ...] = ()
    facts: dict[str, Any] = field(default_factory=dict)

    def means(self) -> str:
        """Return what it means for the user."""
        return str(self.facts.get('means', CODES[self.code].means))

    def advice(self, store: str) -> str:
        """Return what to do about it, with commands for the store at this path."""
        text = str(self.facts.get('advice', CODES[self.code].advice))
        if text == _RECOVER and any('@' not in root for root, *_ in self.files):
            text = f'{text} {HEADS}'
        return text.replace('{store}', shlex.quote(store))

    @property
    def severity(self) -> str:
        """Return damage, warning or note."""
        return CODES[self.code].severity


Progress = Callable[[str, int, int], None]  # what is done, how much of it, of how much (0: unknown)


class Report:
    """All findings of one check. Memory is bounded: of each code the first `shown_max` are kept, and
    FINDINGS_MAX in all. `facts` has, where something is lost, `snapshots`: names of all standing roots that
    have lost something, never cut short; and `files_left_out`: how many more files (one range of one file in
    one root each; what was never looked at counts once, whatever its names) would have been named."""

    def __init__(
        self, progress: Progress = lambda what, done, known: None, shown_max: int = SHOWN_MAX
    ) -> None:
        self.shown_max = shown_max
        self.progress = progress
        self.begin()

    def begin(self) -> None:
        """Forget all that was found, as a check does that begins anew."""
        self.findings: list[Finding] = []
        self.counts: Counter[str] = Counter()
        self.kept: Counter[str] = Counter()
        self.facts: dict[str, Any] = {}
        self.unchecked: list[str] = []
        self.not_checked = 0
        self.partial = False

    def add(
        self,
        code: str,
        place: str,
        what: str,
        files: Sequence[tuple[str, str, int | None, int | None]] = (),
        **facts: Any,
    ) -> None:
        """Add a finding."""
        assert code in CODES, code
        self.counts[code] += 1
        if self.room(code):
            self.kept[code] += 1
            self.findings.append(Finding(code, place, what, tuple(files), facts))

    def room(self, code: str, more: int = 0, more_in_all: int = 0) -> bool:
        """Return whether a further finding of this code would be kept, after so many `more` of the code,
        and so many in all."""
        kept = self.kept[code] + more
        full = len(self.findings) + more_in_all >= FINDINGS_MAX
        return kept < min(self.shown_max, SHOWN_MAX if full else self.shown_max)

    def more(self, code: str, number: int) -> None:
        """Count findings that are not kept."""
        assert code in CODES, code
        self.counts[code] += number

    def could_not(self, what: str, why: str) -> None:
        """Say that a part was not checked: never a clean store then. Of very many the first are kept."""
        self.not_checked += 1
        if self.not_checked <= UNCHECKED_MAX:
            self.unchecked.append(f'{what}: {why}')
        else:
            self.unchecked[UNCHECKED_MAX:] = [f'{self.not_checked - UNCHECKED_MAX} more']

    def left_out(self) -> dict[str, int]:
        """Return, by code, how many findings were counted and not kept."""
        return {code: n - self.kept[code] for code, n in self.counts.items() if n > self.kept[code]}

    def count(self, severity: str) -> int:
        """Return how many findings are of this severity."""
        return sum(number for code, number in self.counts.items() if CODES[code].severity == severity)
