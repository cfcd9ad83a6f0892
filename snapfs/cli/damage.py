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

EXIT_DAMAGED = 4


@click.command('damage', epilog='Example: snapfs damage /srv/store')
@click.argument('store_path', metavar='[STORE]', required=False)
@click.option('--chunk', 'chunks', multiple=True, metavar='ID', help='Name the files of this chunk as well.')
@output.store_options
def damage_command(store_path: str | None, chunks: tuple[str, ...]) -> int:
    """Say which files of which snapshots have lost which bytes.

    Lost is what reads, scrubs and recoveries found missing or wrong, what lies in packs that are gone or too
    short, and what the index has lost. Bytes that have rotted in secret are found by `snapfs scrub` and by
    `snapfs fsck`. Read only; seconds; mounted or not. The exit code is 0 when nothing is lost, 4 otherwise.
    """
    from tools.checker.check import Options, check
    from tools.checker.findings import Report
    from tools.fsck import Bar, plain

    for text in chunks:
        if not re.fullmatch('[0-9a-fA-F]{64}', text):
            raise Invalid(f'{text[:80]!r} is not the id of a chunk: 64 hexadecimal digits')
    store, _as_json = click.get_current_context().obj
    if store_path is not None and store is not None:
        raise Invalid('give the store once: as STORE or with --store')
    path = Path(store_path) if store_path is not None else _located(store)
    bar = Bar(sys.stderr)
    report = Report(bar, shown_max=limits.UNREADABLE_CHUNKS_MAX)
    ids = tuple(bytes.fromhex(text) for text in chunks)
    check(path, Options(full=False, jobs=os.cpu_count() or 1, names=True, chunks=ids), report)
    bar.end()
    found = [one for one in report.findings if one.severity == 'damage' or one.code == 'chunk-named']
    value = {
        'damage': [plain(one) for one in found],
        'left_out': report.left_out(),
        'not_checked': report.unchecked,
    }
    output.show(value, _render)
    lost = any(one.severity == 'damage' for one in found)
    return EXIT_DAMAGED if lost or report.unchecked else 0


def _located(store: str | None) -> Path:
    from snapfs.service import client

    return client.locate(store, os.environ).store


def _render(value: Any) -> None:
    rows = []
    for one in value['damage']:
        output.say(f'{one["code"]} {one["place"]}: {one["what"]}')
        for file in one['files']:
            where = '' if file['start'] is None else f'{file["start"]} to {file["end"]}'
            rows.append((file['in'], file['path'], where))
    if rows:
        output.table(('in', 'file', 'lost bytes'), rows, '')
    if any(one['severity'] == 'damage' for one in value['damage']):
        output.say('Get back what exists: snapfs recover VOLUME@SNAPSHOT')
    elif not value['damage']:
        output.say('Nothing is known to be lost.')
    for code, number in value['left_out'].items():
        output.say(f'{code}: {number} more are left out')
    for text in value['not_checked']:
        output.say(f'NOT CHECKED {text}')
