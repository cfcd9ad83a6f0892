"""Tool: command line of snapfs-dump. Exit codes: 0 nothing odd, 1 oddities were printed, 2 wrong call."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, TextIO, cast

from snapfs.errors import Invalid
from tools.dump import files, trees
from tools.dump.journal import journal
from tools.dump.report import Report
from tools.dump.source import Source

EXAMPLES = """\
Looks only: takes no lock, changes no byte, works while the store is mounted. One fact a line: words, then
name=value. A line that begins with ODD is something that is not as it should be, and makes the exit code 1.

examples:
  snapfs-dump STORE                                what is in there, in numbers
  snapfs-dump STORE catalog volume                 one table of the catalog, a row a line
  snapfs-dump STORE tree home@monday --path /a/b   all items of one file, with the places of its chunks
  snapfs-dump STORE chunk 5e21c                    where chunks are whose id begins so
  snapfs-dump STORE chunk 5e21c07d --raw | xxd     the bytes of one chunk
  snapfs-dump STORE pack 07 | grep -c ^record      how many records a pack has
  snapfs-dump STORE journal | grep ^replay         what would be replayed after a power cut now
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog='snapfs-dump',
        description='Show any structure of a snapfs store as text.',
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('store', type=Path, metavar='STORE')
    what = parser.add_subparsers(dest='what', metavar='WHAT')
    what.add_parser('usage', help='a summary in numbers (the default)')
    what.add_parser('superblock', help='what never changes about the store')
    one = what.add_parser('catalog', help='all tables but the rows of chunk, or one TABLE whole')
    one.add_argument('table', nargs='?', metavar='TABLE')
    what.add_parser('packs', help='a line for each pack')
    one = what.add_parser('pack', help='header, record headers and footer; verifies every payload')
    one.add_argument('name', metavar='NAME', help='a pack name, or its first digits')
    one = what.add_parser('chunk', help='where a chunk is')
    one.add_argument('id', metavar='ID', help='a chunk id, or its first digits')
    one.add_argument('--raw', action='store_true', help='write its plain bytes to standard output')
    one = what.add_parser('node', help='a node: header, refs table, items')
    one.add_argument('id', metavar='ID', help='a chunk id, or its first digits')
    one = what.add_parser('tree', help='the committed items of a volume or snapshot, in key order')
    one.add_argument('name', metavar='VOLUME[@SNAPSHOT]')
    group = one.add_mutually_exclusive_group()
    group.add_argument('--ino', type=int, metavar='N', help='only the items of this inode')
    group.add_argument('--path', metavar='/a/b', help='only the items of the inode at this path')
    one.add_argument('--nodes', action='store_true', help='also a line for each node on the way')
    what.add_parser('journal', help='files, frames, changes, and what a replay would apply')
    what.add_parser('audit', help='the lines of the audit log and the state of their chain')
    what.add_parser('lock', help='who owns the store')
    return parser


def run(arguments: argparse.Namespace, out: TextIO, raw: BinaryIO) -> int:
    """Do what the arguments say; return the exit code. Invalid when there is nothing of that name."""
    wants_raw = arguments.what == 'chunk' and arguments.raw
    report = Report(sys.stderr if wants_raw else out)
    source = Source(arguments.store, report)
    try:
        if wants_raw:
            with report.guard(f'chunk {arguments.id}'):
                raw.write(trees.raw(source, arguments.id))
        else:
            _show(source, report, arguments)
    finally:
        source.close()
    return 1 if report.oddities else 0


def _show(source: Source, report: Report, arguments: argparse.Namespace) -> None:
    plain = {
        None: files.usage,
        'usage': files.usage,
        'superblock': files.superblock,
        'packs': files.packs,
        'journal': journal,
        'audit': files.audit,
        'lock': files.lock,
    }
    with report.guard(arguments.what or 'usage'):
        if arguments.what in plain:
            plain[arguments.what](source, report)
        elif arguments.what == 'catalog':
            files.catalog(source, report, arguments.table)
        elif arguments.what == 'pack':
            files.pack(source, report, arguments.name)
        elif arguments.what == 'chunk':
            trees.chunk(source, report, arguments.id)
        elif arguments.what == 'node':
            trees.node(source, report, arguments.id)
        else:
            which = {'ino': arguments.ino, 'path': arguments.path}
            trees.tree(source, report, arguments.name, **which, nodes=arguments.nodes)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of snapfs-dump; `argv` without the program's name."""
    arguments = _parser().parse_args(argv)
    if hasattr(sys.stdout, 'reconfigure'):
        sys.stdout.reconfigure(errors='backslashreplace')
    try:
        code = run(arguments, sys.stdout, cast(BinaryIO, sys.stdout.buffer))
        sys.stdout.flush()
    except Invalid as error:
        print(f'snapfs-dump: {error}', file=sys.stderr)
        return 2
    except BrokenPipeError:
        # The reader has seen enough. What is left in the buffer must not be tried again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return code
