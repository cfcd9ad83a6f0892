"""L7 verify: the command `snapfs verify`. Main thread, which reads the store itself, mounted or not."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from snapfs.cli import output
from snapfs.cli.export import advised, named_snapshot, opened_store
from snapfs.errors import Corrupt, Invalid, SnapfsError

if TYPE_CHECKING:
    from snapfs.rescue.recheck import Recheck

EXIT_DAMAGED = 4


@click.command('verify', epilog='Example: snapfs verify home@monday --root 6c1f…')
@click.argument('what', metavar='VOLUME@NAME|FILE', required=False)
@click.option('--root', metavar='HASH', help='The root that it must have, as snapfs export told it.')
@click.option('--script', is_flag=True, help='Print a script that checks an export without snapfs.')
@output.store_options
def verify_command(what: str | None, root: str | None, script: bool) -> int:
    """Read every byte of a snapshot, or all that an export names, and say whether it is whole.

    What contains an @ and no slash is a snapshot, everything else a file with an export. Its root must be
    --root, if given; that of an export also what its last line says.

    The exit code is 0 when all is whole and the root is right. It is 4 when something is damaged, the root is
    another, or the export is cut off or malformed; and 2 for a wrong call: no such file, or a file that is no
    export. Others are those of every command.
    """
    if script:
        if what is not None or root is not None:
            raise Invalid('--script is given alone')
        output.say(_script().rstrip('\n'))
        return 0
    if what is None:
        raise Invalid('what is to be verified? VOLUME@NAME, or a file that snapfs export has written')
    if root is not None and not re.fullmatch('[0-9a-fA-F]{64}', root):
        raise Invalid(f'{root[:80]!r} is not a root: 64 hexadecimal digits')
    is_snapshot = '@' in what and '/' not in what
    found = _snapshot(what) if is_snapshot else _file(Path(what))
    wanted = [one for one in (root and root.lower(), found['stated']) if one]
    found['wanted'] = wanted[0] if wanted else None
    found['right'] = all(found['root'] == one for one in wanted)
    output.show(found, _render)
    return 0 if found['right'] and not found['damaged'] else EXIT_DAMAGED


def _script() -> str:
    from importlib.resources import files

    return files('tools').joinpath('verify_export.py').read_text('utf-8')


def _snapshot(title: str) -> dict[str, Any]:
    from snapfs.rescue.export import export_lines
    from snapfs.rescue.recheck import Recheck

    with opened_store() as reader:
        snapshot = named_snapshot(reader, title)
        recheck = Recheck(reader)
        with _damaged(Corrupt), advised(title):
            for line in export_lines(reader, snapshot):
                recheck.add(line)
            return _told(title, recheck, '')


def _file(path: Path) -> dict[str, Any]:
    from snapfs.rescue.recheck import Kept, Recheck

    if not path.is_file():
        raise Invalid(f'there is no file {path}', advice='A snapshot is written VOLUME@NAME.')
    kept = Kept(path)
    with opened_store() as reader:
        recheck = Recheck(reader, deleted=True)
        with _damaged(Invalid):
            for line in kept.lines():
                recheck.add(line)
        return _told(kept.title, recheck, kept.root.hex())


@contextmanager
def _damaged(kind: type[SnapfsError]) -> Iterator[None]:
    """What is looked at is damaged, then: neither the call nor the store's opening went wrong."""
    try:
        yield
    except kind as error:
        error.exit_code = EXIT_DAMAGED
        raise


def _told(title: str, recheck: Recheck, stated: str) -> dict[str, Any]:
    root = recheck.finish().hex()
    wrong = [{'path': one.path, 'chunk': one.id.hex(), 'why': one.why} for one in recheck.wrong]
    return {
        'snapshot': title,
        'root': root,
        'stated': stated or None,
        'lines': recheck.merkle.lines,
        'chunks': recheck.chunks,
        'bytes': recheck.bytes,
        'damaged': recheck.wrong_count,
        'wrong': wrong,
    }


def _render(found: Any) -> None:
    if found['wrong']:
        output.table(('file', 'chunk', 'why'), [tuple(one.values()) for one in found['wrong']], '')
        output.say(
            f'DAMAGED: {found["damaged"]} chunks. Next: snapfs recover --verify {found["snapshot"]} '
            f'{output.store_words()}'
        )
    said = '' if found['wanted'] is None else ', as it should be' if found['right'] else ': WRONG'
    output.say(f'root {found["root"]}{said}')
    if not found['right']:
        output.say(f'wanted was {found["wanted"]}')
    size = output.size(found['bytes'])
    output.say(f'{found["snapshot"]}: read {found["lines"]} lines, {found["chunks"]} chunks, {size}')
