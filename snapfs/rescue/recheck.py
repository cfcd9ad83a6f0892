"""L4 recheck: reads what an export names, and says what of it is missing or wrong. Blocking; one thread.
Reads only. Works on an export as it is made from a snapshot, and on one that was kept in a file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from snapfs import limits
from snapfs.errors import Corrupt, Invalid
from snapfs.rescue.export import VERSION, Line, Ref, plain_of
from snapfs.rescue.merkle import Merkle
from snapfs.rescue.reader import Place, Reader


class Wrong(NamedTuple):
    """A file, the chunk of it that is missing or wrong, and why."""

    path: str
    id: bytes
    why: str


class Recheck:
    """Takes the lines of an export; `wrong` has the first RECHECK_WRONG_MAX of `wrong_count`. Call `finish`
    at the end. `deleted`: chunks that are only in quarantine will do, the snapshot may be deleted."""

    def __init__(self, reader: Reader, deleted: bool = False) -> None:
        self._reader = reader
        self._deleted = deleted
        self._waiting: list[tuple[str, Ref]] = []
        self.merkle = Merkle()
        self.chunks = 0
        self.bytes = 0
        self.wrong: list[Wrong] = []
        self.wrong_count = 0

    def add(self, line: Line) -> None:
        """Take a line."""
        self.merkle.add(line.text)
        self._waiting += [(line.path, ref) for ref in line.refs]
        if len(self._waiting) >= limits.LOCATE_IDS_MAX:
            self._read()

    def finish(self) -> bytes:
        """Read what has not been read, and return the root."""
        self._read()
        return self.merkle.root()

    def _read(self) -> None:
        waiting, self._waiting = self._waiting, []
        found = self._reader.places_of_many({ref.id for _, ref in waiting})
        nowhere = (-1, -1)  # by place, so that the disk is read in one direction
        waiting.sort(key=lambda one: found[one[1].id][:2] if one[1].id in found else nowhere)
        known: dict[bytes, str] = {}
        for path, ref in waiting:
            self.chunks += 1
            self.bytes += ref.length
            if ref.id not in known:
                known[ref.id] = self._why(ref, found.get(ref.id))
            if known[ref.id]:
                self.wrong_count += 1
                if len(self.wrong) < limits.RECHECK_WRONG_MAX:
                    self.wrong.append(Wrong(path, ref.id, known[ref.id]))

    def _why(self, ref: Ref, place: Place | None) -> str:
        """Return why a chunk is not as it should be, or nothing. Repacking may have moved it meanwhile."""
        why = '' if place is None else self._why_at(ref, place)
        if place is not None and not why:
            return ''
        places = self._reader.places_of(ref.id)
        if not places:
            return 'it is not in the index'
        if place is None and not self._deleted:
            return 'it is in quarantine, though the snapshot stands'
        for now in places:
            why = self._why_at(ref, now)
            if not why:
                break
        return why

    def _why_at(self, ref: Ref, place: Place) -> str:
        try:
            length = len(plain_of(self._reader, place))
        except OSError as error:
            why = error.strerror or str(error)
        except Corrupt as error:
            why = str(error)
        else:
            if length == ref.length:
                return ''
            why = f'it has {length} bytes, {ref.length} expected'
        return f'{self._reader.name_of(place.pack)} at offset {place.offset}: {why}'


class Kept:
    """An export in a file. `title` of the snapshot, and, once all `lines` were read, the `root` it states."""

    def __init__(self, path: Path) -> None:
        """Invalid when it does not begin like one; OSError."""
        self.path = path
        self.root = b''
        with path.open('rb') as file:
            head = self._value(file.readline(limits.EXPORT_LINE_BYTES_MAX), 1)
        if head.get('snapfs-export') != VERSION or not isinstance(head.get('snapshot'), str):
            raise Invalid(f'{path} is not an export of version {VERSION}')
        self.title: str = head['snapshot']

    def lines(self) -> Iterator[Line]:
        """Yield the lines between the first and the last. Invalid when the file is cut off or malformed."""
        path, number, last = '', 1, False
        with self.path.open('rb') as file:
            file.readline(limits.EXPORT_LINE_BYTES_MAX)
            while text := file.readline(limits.EXPORT_LINE_BYTES_MAX):
                number += 1
                if last:
                    raise Invalid(f'{self.path}: line {number} follows the last one')
                value = self._value(text, number)
                try:
                    if 'root' in value:
                        self.root = bytes.fromhex(value['root'])
                        last = True
                        if value['lines'] != number - 2:
                            raise Invalid(f'{self.path} has {number - 2} lines, and says {value["lines"]}')
                        continue
                    path = str(value.get('path', path))
                    refs = tuple(_refs(value))
                except (ValueError, TypeError, KeyError, IndexError):
                    raise Invalid(f'{self.path}: line {number} is malformed') from None
                yield Line(path, text.removesuffix(b'\n'), refs)
        if not last:
            raise Invalid(f'{self.path} has no last line: it is cut off')

    def _value(self, text: bytes, number: int) -> dict[str, Any]:
        try:
            value = json.loads(text) if text.endswith(b'\n') else None
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict):
            raise Invalid(f'{self.path}: line {number} is malformed')
        return value


def _refs(value: dict[str, Any]) -> Iterator[Ref]:
    for one in value.get('xattrs', ()):
        if len(one) == 3:
            yield _ref(one[2], one[1])
    for one in value.get('chunks') or value.get('more') or ():
        yield _ref(one[2], one[4] if len(one) == 5 else one[1])


def _ref(id: str, length: object) -> Ref:
    found = bytes.fromhex(id)  # it passes over blanks
    if type(length) is not int or len(found) != limits.ID_BYTES:
        raise ValueError
    return Ref(found, length)
