#!/usr/bin/env python3
"""Tool: check a store. It reads and never writes.

It shares nothing with what it checks but the byte decoders of snapfs.format, and runs on a machine without
FUSE:
`python tools/fsck.py STORE` needs the checkout, and blake3, crc32c, msgpack, numpy and backports.zstd. Exit
codes are those of fsck(8): 0 nothing is wrong, 4 damage was found, 8 something could not be checked (12:
both), 16 wrong call, 32 interrupted."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn, TextIO

if __package__ in (None, ''):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from snapfs.errors import SnapfsError
from tools.checker.check import Options, check
from tools.checker.findings import DAMAGE, NOTE, WARNING, Finding, Report

OK, DAMAGED, UNCHECKED, USAGE, CANCELLED = 0, 4, 8, 16, 32
FILES_SHOWN = 10
FILES_AT_ONCE = 1000
EXAMPLES = """\
examples:
  snapfs fsck /srv/store            every byte is read and hashed
  snapfs fsck --quick /srv/store    structures, totals and presence only
  snapfs fsck --json /srv/store     for programs
"""


class Parser(argparse.ArgumentParser):
    """Ends with the exit code that fsck(8) gives to a wrong call."""

    def error(self, message: str) -> NoReturn:
        """Say one line and end."""
        print(f'{self.prog}: {message}. Try: {self.prog} --help', file=sys.stderr)
        raise SystemExit(USAGE)


def parser(prog: str) -> Parser:
    """Return the parser of the command line."""
    made = Parser(
        prog=prog,
        description='Check a store, mounted or not. It reads and never writes. Exit codes: 0 nothing is '
        'wrong, 4 damage, 8 something could not be checked, 16 wrong call, 32 interrupted.',
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument('store', metavar='STORE', type=Path, help='the directory of the store')
    made.add_argument('--quick', action='store_true', help='structures, totals and presence; hash only nodes')
    made.add_argument('--json', action='store_true', dest='as_json', help='print JSON')
    made.add_argument(
        '--jobs', type=int, default=os.cpu_count() or 1, metavar='N', help='processes (all cores)'
    )
    made.add_argument(
        '--scratch', type=Path, metavar='DIR', help='for temporary files: 100 bytes for a chunk'
    )
    # fsck(8) passes these; there is nothing to repair, so all mean the same.
    for flag in ('-a', '-p', '-y', '-n', '-r', '-f', '-V', '-M', '-T'):
        made.add_argument(flag, action='store_true', help=argparse.SUPPRESS)
    return made


def without_progress(words: Sequence[str]) -> list[str]:
    """Return a call without -C, -CFD and -C FD of fsck(8): progress is shown on a terminal anyway.
    A number behind -C is a descriptor if another word that is no option follows: else it is the store."""
    kept: list[str] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if word == '--':
            return [*kept, word, *rest]
        if not re.fullmatch('-C[0-9]*', word):
            kept.append(word)
        elif word == '-C' and rest and rest[0].isdecimal() and _has_operand(rest[1:]):
            rest.pop(0)
    return kept


def _has_operand(words: Sequence[str]) -> bool:
    return any(not word.startswith('-') or word == '-' for word in words)


class Bar:
    """Progress on a terminal: what, how far, time left."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._shown = stream.isatty()
        self._what, self._began, self._last = '', 0.0, 0.0

    def __call__(self, what: str, done: int, known: int) -> None:
        """Show how far it is, a few times a second."""
        now = time.monotonic()
        if what != self._what:
            self._what, self._began, self._last = what, now, 0.0
        if not self._shown or now - self._last < 0.2:
            return
        self._last = now
        left = f', {(now - self._began) * (known - done) / done:.0f} s left' if done and known else ''
        share = f' {100 * done // known} %' if known else ''
        self._stream.write(f'\r\x1b[K{what}{share}{left}')
        self._stream.flush()

    def end(self) -> None:
        """Clear the line."""
        if self._shown:
            self._stream.write('\r\x1b[K')
            self._stream.flush()


def exit_code(report: Report) -> int:
    """Return the exit code of what was found."""
    code = (DAMAGED if report.count(DAMAGE) else OK) | (UNCHECKED if report.unchecked else OK)
    return code | (CANCELLED if report.partial else OK)


def _head(finding: Finding, store: str) -> dict[str, Any]:
    return {
        'code': finding.code, 'severity': finding.severity, 'place': finding.place, 'what': finding.what,
        **finding.facts, 'means': finding.means(), 'advice': finding.advice(store),
    }  # fmt: skip


def json_parts(value: dict[str, Any], name: str, findings: Iterable[Finding], store: str) -> Iterator[str]:
    """Yield an object as JSON, piece by piece: `value`, and the findings by this name, about the store at
    this path. All of them at once would take several times the memory that the findings do."""
    yield f'{{\n"{name}": ['
    for number, finding in enumerate(findings):
        yield f'{"," * (number > 0)}\n{json.dumps(_head(finding, store))[:-1]}, "files": ['
        for start in range(0, len(finding.files), FILES_AT_ONCE):
            part = [
                {'in': root, 'path': path, 'start': first, 'end': end}
                for root, path, first, end in finding.files[start : start + FILES_AT_ONCE]
            ]
            yield f'{"," * (start > 0)}\n  ' + json.dumps(part)[1:-1].replace('}, {', '},\n  {')
        yield ']}'
    yield ']'
    for key, one in value.items():
        yield f',\n{json.dumps(key)}: {json.dumps(one, indent=2)}'
    yield '\n}\n'


def say_incomplete(report: Report, line: Callable[[str], None]) -> None:
    """Say what the report leaves out, and in what the damage is all the same."""
    for code, number in report.left_out().items():
        line(f'{code}: {number} more are counted and not shown')
    files = report.facts.get('files_left_out', 0)
    if files:
        line(f'THE LIST OF FILES IS NOT COMPLETE: {files} more are counted and not named')
    if files or report.left_out():
        for name in report.facts.get('snapshots', ()):
            line(f'    {name} is damaged')


def say(report: Report, seconds: float, store: str) -> None:
    """Print the findings for a person, the worst first."""
    told: set[str] = set()
    for severity in (DAMAGE, WARNING, NOTE):
        for finding in report.findings:
            if finding.severity == severity:
                _say_finding(finding, store, told)
    say_incomplete(report, print)
    for text in report.unchecked:
        print(f'NOT CHECKED {text}')
    counts = report.facts.get('balance', {})
    if counts:
        print(
            f'chunks: {counts.get("indexed", 0)} indexed = {counts.get("reachable", 0)} reachable + '
            f'{counts.get("requested", 0)} requested + {counts.get("leaked", 0)} leaked; '
            f'{counts.get("quarantined", 0)} in quarantine'
        )
        if report.facts.get('holes'):
            print('parts of trees are lost: what they refer to counts as leaked, and is not')
    ends = f'{report.count(DAMAGE)} damages, {report.count(WARNING)} warnings, {report.count(NOTE)} notes'
    word = 'PARTIAL: interrupted; ' if report.partial else ''
    print(f'{word}{ends}, in {seconds:.1f} s')


def _say_finding(finding: Finding, store: str, told: set[str]) -> None:
    print(f'{finding.severity.upper()} {finding.code} {finding.place}: {finding.what}')
    for root, path, start, end in finding.files[:FILES_SHOWN]:
        where = f' bytes {start} to {end}' if start is not None else ''
        print(f'    {root}: {path}{where}')
    if len(finding.files) > FILES_SHOWN:
        print(f'    and {len(finding.files) - FILES_SHOWN} more (--json tells all)')
    meaning = f'    It means: {finding.means()}. {finding.advice(store)}'
    if finding.severity != NOTE and meaning not in told:  # once is enough
        told.add(meaning)
        print(meaning)


def main(argv: Sequence[str] | None = None, prog: str = 'fsck.snapfs') -> int:
    """Entry point; the exit code is that of fsck(8)."""
    options = parser(prog).parse_args(without_progress(sys.argv[1:] if argv is None else argv))
    bar = Bar(sys.stderr)
    report = Report(bar)
    began = time.monotonic()
    try:
        check(
            options.store, Options(not options.quick, max(1, options.jobs), scratch=options.scratch), report
        )
    except SnapfsError as error:
        bar.end()
        print(f'{prog}: {error.line()}', file=sys.stderr)
        return USAGE
    bar.end()
    try:
        _tell(options, report, time.monotonic() - began)
        sys.stdout.flush()
    except BrokenPipeError:  # `snapfs fsck … | head`: nobody listens any more; the exit code still counts
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return exit_code(report)


def _tell(options: argparse.Namespace, report: Report, seconds: float) -> None:
    if options.as_json:
        value = {
            'store': str(options.store), 'quick': options.quick, 'partial': report.partial,
            'counts': dict(report.counts), 'left_out': report.left_out(),
            'not_checked': report.unchecked, **report.facts,
        }  # fmt: skip
        for text in json_parts(value, 'findings', report.findings, str(options.store)):
            sys.stdout.write(text)
    else:
        say(report, seconds, str(options.store))


if __name__ == '__main__':
    sys.exit(main())
