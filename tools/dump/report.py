"""Tool: lines of text for structures: one fact a line, one line an oddity. One thread."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TextIO

from snapfs.errors import Invalid, SnapfsError

_MALFORMED = (TypeError, ValueError, LookupError, ArithmeticError)
_SECOND_NS = 1_000_000_000


def quoted(data: bytes | str) -> str:
    r"""Return bytes or text in double quotes on one line; what is not printable UTF-8 stands as \xNN."""
    text = data.decode('utf-8', 'surrogateescape') if isinstance(data, bytes) else data
    pieces = []
    for character in text:
        if character.isprintable() and character not in '"\\':
            pieces.append(character)
        else:
            raw = character.encode('utf-8', 'surrogateescape' if character < '\ue000' else 'strict')
            pieces.append(''.join(f'\\x{byte:02x}' for byte in raw))
    return '"' + ''.join(pieces) + '"'


def moment(time_ns: int) -> str:
    """Return a time in ns since 1970 as UTC with nine digits; a bare number outside the years 1 to 9999."""
    seconds, rest = divmod(time_ns, _SECOND_NS)
    try:
        text = datetime.fromtimestamp(seconds, UTC).replace(tzinfo=None).isoformat()
    except (ValueError, OverflowError, OSError):
        return f'{time_ns}ns'
    return f'{text}.{rest:09d}Z'


class Report:
    """Where facts and oddities go. `oddities` counts the latter; any makes the exit code 1."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self.oddities = 0

    def fact(self, *words: object, **fields: object) -> None:
        """Print `word word name=value name=value`. Bytes are quoted, None is a dash, texts stay bare
        where they are one plain word."""
        parts = [str(word) for word in words]
        parts += [f'{name}={_value(value)}' for name, value in fields.items()]
        self._out.write(' '.join(parts) + '\n')

    def oddity(self, where: str, what: object) -> None:
        """Print a line that begins with ODD, and count it."""
        self.oddities += 1
        text = quoted(' '.join(str(what).split()))[1:-1].replace('\\x22', '"')
        self._out.write(f'ODD {where}: {text}\n')

    @contextmanager
    def guard(self, where: str) -> Iterator[None]:
        """Turn what cannot be read or decoded within into one oddity, and go on after it. Invalid passes:
        the call is wrong then, not the store."""
        try:
            yield
        except (BrokenPipeError, Invalid):
            raise
        except (SnapfsError, OSError, sqlite3.Error) as error:
            self.oddity(where, error)
        except _MALFORMED as error:
            # A damaged database page can hand out any type in any column, STRICT or not.
            self.oddity(where, f'malformed: {type(error).__name__}: {error}')


def _value(value: object) -> str:
    if value is None:
        return '-'
    if isinstance(value, bytes):
        return quoted(value)
    if isinstance(value, bool):
        return 'yes' if value else 'no'
    text = str(value)
    plain = text.isascii() and text.isprintable() and not set(' "\\') & set(text)
    return text if plain and text else quoted(text)
