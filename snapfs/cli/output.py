"""L7 output: JSON for programs, tables for people. Main thread. rich is imported when a table is printed."""

from __future__ import annotations

import functools
import json
import os
import shlex
import sys
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import click

from snapfs import limits
from snapfs.errors import Invalid

Label = TypeVar('Label', bound=Hashable)

UNITS = ('B', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB')
SPANS = {'h': 3600, 'd': 86_400, 'w': 7 * 86_400}
NANOSECONDS = 1_000_000_000


def store_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command --store and --json; `call` takes them from the context."""

    @click.option(
        '--store', metavar='STORE', help='The store, if not SNAPFS_STORE or the mount you stand in.'
    )
    @click.option('--json', 'as_json', is_flag=True, help='Print JSON.')
    @functools.wraps(function)
    def wrapped(store: str | None, as_json: bool, **arguments: Any) -> Any:
        context = click.get_current_context()
        context.obj = (store, as_json)
        return function(**arguments)

    return wrapped


def call(command: str, **arguments: Any) -> Any:
    """Carry a command out on the store that the options mean."""
    from snapfs.service import client

    store, _as_json = click.get_current_context().obj
    target = client.locate(store, os.environ)
    return client.call(target, command, arguments)


def call_watched(command: str, directory: str | None = None, **arguments: Any) -> Any:
    """As `call`, with a bar on a terminal that shows how far the collector is. `directory`: stand there."""
    from snapfs.cli.progress import bar
    from snapfs.service import client

    store, as_json = click.get_current_context().obj
    target = client.locate(store, os.environ, directory)
    with bar(sys.stderr.isatty() and not as_json) as watch:
        return client.call(target, command, arguments, watch=watch)


def store_words() -> str:
    """Return `--store STORE`, as it is said to a person who is to call another command for this store."""
    from snapfs.service import client

    store, _as_json = click.get_current_context().obj
    return f'--store {shlex.quote(str(client.locate(store, os.environ).store))}'


def show(value: Any, render: Callable[[Any], None]) -> None:
    """Print the value as JSON if asked, else let `render` print it for people."""
    _store, as_json = click.get_current_context().obj
    if as_json:
        print_json(value)
    else:
        render(value)


def print_json(value: Any) -> None:
    """Print a value as indented JSON."""
    say(json.dumps(value, indent=2))


def say(line: str) -> None:
    """Print a line. Names that are no UTF-8 go out as the bytes they are."""
    sys.stdout.flush()
    sys.stdout.buffer.write(line.encode('utf-8', 'surrogateescape') + b'\n')


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], empty: str) -> None:
    """Print a table, or the sentence that says that there is nothing."""
    if not rows:
        say(empty)
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=None, pad_edge=False, header_style='bold')
    for column in columns:
        grid.add_column(column, overflow='fold', justify='right' if column in ('bytes', 'number') else 'left')
    for row in rows:
        grid.add_row(*(Text(printable(cell)) for cell in row))
    # In a pipe there is no width to fit into, and a cut name would be a wrong name.
    console = Console(width=None if sys.stdout.isatty() else limits.TABLE_COLUMNS_MAX, highlight=False)
    with console.capture() as printed:
        console.print(grid)
    for line in printed.get().splitlines():
        say(line.rstrip())


def joined(
    ranges: Iterable[tuple[Label, int | None, int | None]],
) -> Iterator[tuple[Label, int | None, int | None]]:
    """Yield (label, first byte, byte behind the last) with those of one label that meet or overlap as one,
    labels in the order in which they first come. Without bytes, one stands as it is."""
    of_label: dict[Label, list[tuple[int, int]]] = {}
    whole: set[Label] = set()
    for label, start, end in ranges:
        found = of_label.setdefault(label, [])
        if start is None or end is None:
            whole.add(label)
        else:
            found.append((start, end))
    for label, found in of_label.items():
        found.sort()
        first = last = None
        for start, end in found:
            if last is not None and start <= last:
                last = max(last, end)
                continue
            if last is not None:
                yield label, first, last
            first, last = start, end
        if last is not None:
            yield label, first, last
        if label in whole:
            yield label, None, None


def printable(text: str) -> str:
    """Return text that is safe on a terminal: control characters and stray bytes are shown as escapes."""
    return ''.join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def moment(time_ns: int | None) -> str:
    """Return a point of time in local time, or a dash."""
    if time_ns is None:
        return '-'
    return datetime.fromtimestamp(time_ns // NANOSECONDS).strftime('%Y-%m-%d %H:%M:%S')


def moment_utc(time_ns: int) -> str:
    """Return a point of time in UTC; a number that is none goes out as it is."""
    try:
        return datetime.fromtimestamp(time_ns // NANOSECONDS, UTC).strftime('%Y-%m-%d %H:%M:%S')
    except (OverflowError, ValueError, OSError):
        return str(time_ns)


def size(count: int | None) -> str:
    """Return a number of bytes for people, or a dash."""
    if count is None:
        return '-'
    amount, unit = float(count), 0
    while amount >= 1024 and unit < len(UNITS) - 1:
        amount, unit = amount / 1024, unit + 1
    return f'{count} B' if unit == 0 else f'{amount:.1f} {UNITS[unit]}'


def parse_until(text: str | None, now: datetime) -> int | None:
    """Read a date, a date with time, or a span such as 12h, 30d, 4w. Returns nanoseconds since 1970."""
    if text is None:
        return None
    if text[:-1].isascii() and text[:-1].isdigit() and text[-1] in SPANS:
        try:
            until = now + timedelta(seconds=int(text[:-1]) * SPANS[text[-1]])
        except (OverflowError, ValueError):  # ValueError: more digits than Python takes
            raise Invalid(f'{text[:80]} lies too far ahead') from None
    else:
        try:
            until = datetime.fromisoformat(text).astimezone(UTC)
        except (ValueError, OverflowError):
            raise Invalid(
                f'{text!r} is no date (2030-01-31, 2030-01-31T12:00) and no span (12h, 30d)'
            ) from None
    if until <= now:
        raise Invalid(f'{text} is past already')
    return int(until.timestamp()) * NANOSECONDS


def say_request(request: Any) -> None:
    """Tell which request was made of a deletion, and how it is taken back."""
    number, what = request['number'], request['what']
    say(f'request {number}: {what} is to be deleted; back with: snapfs snapshot undelete {number}')
