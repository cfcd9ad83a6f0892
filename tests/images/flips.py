"""Turn single bits of a store round: a full fsck finds each, or it is proved to mean nothing.

    python -m tests.images.flips COUNT [SEED]

Places are drawn by structure, then file, then byte, so that small structures are hit as often as large ones.
What fsck does not find is one of these:

    harmless     every row of the catalog, every record that the journal would replay, and the bytes of every
                 chunk are as they were
    torn         the last record of the journal: a power cut that tore it before fsync returned looks the same
    unprotected  a value in a row of the catalog that nothing else tells: a time, who, why. SQLite has no
                 checksums
    MISSED       anything else; there must be none: packs, receipts, plans, certificates and the audit log
                 have no byte without a meaning
"""

from __future__ import annotations

import random
import shutil
import sqlite3
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from snapfs.errors import Corrupt
from snapfs.format.journal import JOURNAL_HEADER_BYTES, decode_journal_header, decode_records
from snapfs.format.packs import PACK_HEADER_BYTES
from snapfs.format.records import HEADER_BYTES, decode_header, decode_payload
from tests.images.image import make
from tests.mutants.setting import small
from tests.support.fsck import report_of

FOUND, HARMLESS, TORN, UNPROTECTED, MISSED = OUTCOMES = ('found', 'harmless', 'torn', 'unprotected', 'MISSED')
NO_MEANING = {'lock': 'names the last holder', 'reserve': 'room that is given up when the disk is full'}


def structure_of(name: str) -> str:
    """Return what a file of a store is, by its relative path."""
    parts = name.split('/')
    if parts[0] == 'packs':
        return f'{parts[1]} pack'
    if parts[0] == 'batches':
        return f'batch {parts[-1]}'
    if parts[0] == 'backups':
        return 'backup'
    return parts[0].replace('catalog.sqlite', 'catalog')


def rows(path: Path) -> Any:
    """Return all rows of the catalog, or None when it cannot be read."""
    with tempfile.TemporaryDirectory() as folder:
        for suffix in ('', '-wal'):
            if Path(f'{path}{suffix}').exists():
                shutil.copyfile(f'{path}{suffix}', f'{folder}/catalog{suffix}')
        try:
            db = sqlite3.connect(f'{folder}/catalog')
            try:
                return list(db.iterdump())
            finally:
                db.close()
        except (sqlite3.Error, UnicodeDecodeError):
            return None


def replayed(store: Path) -> Any:
    """Return what the journal would replay, or the error: what a commit has superseded means nothing."""
    found: list[Any] = []
    with sqlite3.connect(f'file:{store / "catalog.sqlite"}?mode=ro', uri=True) as db:
        ((after,),) = db.execute("SELECT value FROM settings WHERE key = 'journal_sequence'").fetchall()
    for number in (0, 1):
        data = (store / 'journal' / str(number)).read_bytes()
        try:
            head = decode_journal_header(data)
            records = list(decode_records(data, head.store_uuid, JOURNAL_HEADER_BYTES, head.first_sequence))
            found.append((head, [one for one in records if one[0].sequence > after]))
        except Corrupt as error:
            found.append(str(error))
    return found


class Flips:
    """Flips on one store, which is the same again after each."""

    def __init__(self, store: Path, seed: int) -> None:
        self.store = store
        self.chance = random.Random(seed)
        self.places: dict[str, list[Path]] = {}
        for path in sorted(store.rglob('*')):
            if path.is_file() and path.stat().st_size:
                self.places.setdefault(structure_of(str(path.relative_to(store))), []).append(path)
        self.rows = rows(store / 'catalog.sqlite')
        self.replayed = replayed(store)

    def run(self, count: int) -> Iterator[tuple[str, str, str]]:
        """Yield (structure, outcome, place)."""
        for _ in range(count):
            structure = self.chance.choice(sorted(self.places))
            path = self.chance.choice(self.places[structure])
            data = path.read_bytes()
            # Of the preallocated journal most is empty: half of the flips go where something stands.
            size = len(data.rstrip(b'\0')) if self.chance.random() < 0.5 else len(data)
            at, bit = self.chance.randrange(max(1, size)), self.chance.randrange(8)
            place = f'{path.relative_to(self.store)} byte {at} bit {bit}'
            with path.open('r+b') as file:
                file.seek(at)
                file.write(bytes([data[at] ^ (1 << bit)]))
            try:
                outcome = self.outcome(structure)
                if outcome == MISSED and _same_records(path, data):
                    outcome = HARMLESS
                yield structure, outcome, place
            finally:
                with path.open('r+b') as file:
                    file.seek(at)
                    file.write(data[at : at + 1])

    def outcome(self, structure: str) -> str:
        report = report_of(self.store)
        if report.findings or report.unchecked:
            return FOUND
        if structure in NO_MEANING:
            return HARMLESS
        if structure.startswith('catalog'):
            return HARMLESS if rows(self.store / 'catalog.sqlite') == self.rows else UNPROTECTED
        if structure == 'journal':
            now = replayed(self.store)
            return HARMLESS if now == self.replayed else TORN if _torn(now, self.replayed) else MISSED
        return MISSED


def _same_records(path: Path, before: bytes) -> bool:
    """Whether all records of a pack still give the same bytes: a compressed frame has a few bits, at the end
    of a bit stream, that no decoder reads. What stands outside of payloads is as it was."""
    now, at = path.read_bytes(), PACK_HEADER_BYTES
    if 'packs' not in path.parts and 'mirror' not in path.parts:
        return False
    try:
        while before[at : at + 4] == b'SfR1':
            start = at + HEADER_BYTES
            header = decode_header(before[at:start])
            at = start + header.stored_length
            if before[start:at] != now[start:at]:
                same = decode_payload(header, now[start:at]) == decode_payload(header, before[start:at])
                return same and before[:start] == now[:start] and before[at:] == now[at:]
    except Corrupt:
        pass
    return False


def _torn(now: Any, before: Any) -> bool:
    """Whether the last record of all, and nothing else, is not there any more."""
    if any(isinstance(one, str) for one in now):
        return False
    last = max(record[0].sequence for _, records in before for record in records)
    left = [(head, [r for r in records if r[0].sequence != last]) for head, records in before]
    return bool(now == left)


def main(count: int, seed: int) -> int:
    """Print a table; 1 when something was missed."""
    table: Counter[tuple[str, str]] = Counter()
    with tempfile.TemporaryDirectory(dir='/dev/shm' if Path('/dev/shm').is_dir() else None) as folder:
        store = Path(folder) / 'store'
        make(store)
        with small():
            for structure, outcome, place in Flips(store, seed).run(count):
                table[structure, outcome] += 1
                if outcome == MISSED:
                    print(f'MISSED {place}', flush=True)
    for structure in sorted({structure for structure, _ in table}):
        counts = [f'{table[structure, outcome]:6} {outcome}' for outcome in OUTCOMES]
        print(f'{structure:28}', *counts)
    missed = sum(number for (_, outcome), number in table.items() if outcome == MISSED)
    print(f'{count} flips, {missed} missed')
    return 1 if missed else 0


if __name__ == '__main__':
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 1))
