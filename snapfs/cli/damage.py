"""L7 damage: the command `snapfs damage`, the map from what is lost to files. Main thread."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

import click

from snapfs import limits
from snapfs.cli import output
from snapfs.errors import Invalid

EXIT_DAMAGED, EXIT_UNCHECKED = 4, 8
COLUMNS = ('in', 'file', 'lost bytes')
ROWS_AT_ONCE = 1000  # a table of all would take much memory


@click.command('damage', epilog='Example: snapfs damage /srv/store')
@click.argument('store_path', metavar='[STORE]', required=False)
@click.option('--chunk', 'chunks', multiple=True, metavar='ID', help='Name the files of this chunk as well.')
@output.store_options
def damage_command(store_path: str | None, chunks: tuple[str, ...]) -> int:
    """Say which files of which snapshots have lost which bytes.

    Lost is what reads, scrubs and recoveries found missing or wrong, what lies in packs that are gone or too
    short, and what the index has lost. Bytes that have rotted in secret are found by `snapfs scrub` and by
    `snapfs fsck`. Read only; seconds; mounted or not. The exit code is 0 when nothing is lost, 4 when
    something is, and 8 when that is not known and something could not be checked.
    """
    from tools.checker.check import Options, check
    from tools.checker.findings import Report
    from tools.fsck import Bar, json_parts, say_incomplete

    for text in chunks:
        if not re.fullmatch('[0-9a-fA-F]{64}', text):
            raise Invalid(f'{text[:80]!r} is not the id of a chunk: 64 hexadecimal digits')
    store, as_json = click.get_current_context().obj
    if store_path is not None and store is not None:
        raise Invalid('give the store once: as STORE or with --store')
    path = Path(store_path) if store_path is not None else _located(store)
    bar = Bar(sys.stderr)
    report = Report(bar, shown_max=limits.UNREADABLE_CHUNKS_MAX)
    ids = tuple(bytes.fromhex(text) for text in chunks)
    check(path, Options(full=False, jobs=os.cpu_count() or 1, names=True, chunks=ids), report)
    bar.end()
    found = [one for one in report.findings if one.severity == 'damage' or one.code == 'chunk-named']
    if as_json:
        value: dict[str, Any] = {'left_out': report.left_out(), 'not_checked': report.unchecked}
        for name, none in (('snapshots', []), ('files_left_out', 0)):
            value[name] = report.facts.get(name, none)
        for text in json_parts(value, 'damage', found, str(path)):
            sys.stdout.write(text)
    else:
        _render(found, path)
        say_incomplete(report, output.say)
        for text in report.unchecked:
            output.say(f'NOT CHECKED {text}')
    lost = any(one.severity == 'damage' for one in found)
    return EXIT_DAMAGED if lost else EXIT_UNCHECKED if report.unchecked else 0


def _located(store: str | None) -> Path:
    from snapfs.service import client

    return client.locate(store, os.environ).store


def _render(found: list[Any], store: Path) -> None:
    rows: list[tuple[str, str, str]] = []
    for one in found:
        output.say(f'{one.code} {one.place}: {one.what}')
    files = (((root, path), start, end) for one in found for root, path, start, end in one.files)
    for (root, path), start, end in output.joined(files):
        rows.append((root, path, '' if start is None else f'{start} to {end}'))
        if len(rows) >= ROWS_AT_ONCE:
            output.table(COLUMNS, rows, '')
            rows = []
    if rows:
        output.table(COLUMNS, rows, '')
    if any(one.code.startswith(('catalog-', 'superblock-')) for one in found):
        output.say('What has lost which bytes cannot be told before that is put right: snapfs fsck says how')
    elif any(one.severity == 'damage' for one in found):
        for advice in dict.fromkeys(one.advice(str(store)) for one in found if one.severity == 'damage'):
            output.say(f'Next: {advice}')
    elif not found:
        output.say(
            'Nothing is known to be lost: that is what reads and scrubs have met, and packs that are not '
            f'there. To read every byte: snapfs fsck {store}'
        )
