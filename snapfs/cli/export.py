"""L7 export: the command `snapfs export`. Main thread, which reads the store itself, mounted or not."""

from __future__ import annotations

import errno
import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import click

from snapfs.cli import output
from snapfs.errors import Corrupt, Refused

if TYPE_CHECKING:
    from snapfs.rescue.export import Snapshot
    from snapfs.rescue.reader import Reader


@click.command('export', epilog='Example: snapfs export home@monday -o monday.export')
@click.argument('snapshot', metavar='VOLUME@NAME')
@click.option('-o', 'file', metavar='FILE', help='Write there, and print the root; a new file.')
@output.store_options
def export_command(snapshot: str, file: str | None) -> None:
    """Write down every file of a snapshot, with the hashes of its contents, and one hash over all of it.

    The text is JSON, a line for each file. Whoever keeps it, or only its last line, the root, can tell later
    whether the snapshot is still the same and all there: snapfs verify; or without snapfs, by the script that
    `snapfs verify --script` prints.
    """
    with opened_store() as reader:
        found = named_snapshot(reader, snapshot)
        if file is None:
            _write(reader, found, sys.stdout.buffer)
            return
        path = Path(file)
        try:
            with path.open('xb') as target:
                told = _write(reader, found, target)
        except FileExistsError:
            raise Refused(errno.EEXIST, f'{path} exists already; name a new file') from None
        except BaseException:
            path.unlink(missing_ok=True)  # half an export is none
            raise
    output.show({**told, 'file': file}, lambda value: output.say(f'root {value["root"]}'))


@contextmanager
def opened_store() -> Iterator[Reader]:
    """The store that the options mean, to be read. No pack goes meanwhile."""
    from snapfs.format.superblock import SUPERBLOCK_BYTES, decode_superblock
    from snapfs.rescue.reader import Reader
    from snapfs.service import client
    from snapfs.store.durable import Disk
    from snapfs.store.lock import as_verifier
    from snapfs.store.missing import refuse_links

    option, _as_json = click.get_current_context().obj
    store = client.locate(option, os.environ).store
    refuse_links(store)
    uuid = decode_superblock(Disk().read_file(store / 'superblock', SUPERBLOCK_BYTES)).uuid
    with as_verifier(Disk(), store), _led_out(store):
        reader = Reader(store, uuid)
        try:
            yield reader
        finally:
            reader.close()


@contextmanager
def _led_out(store: Path) -> Iterator[None]:
    """Whoever meets a catalog that is lost is told how a new one is made."""
    try:
        yield
    except Corrupt as error:
        text = str(error)
        if _of_catalog(error) and 'schema version' not in text and error.advice == Corrupt.advice:
            error.advice = (
                f'Make a new catalog: snapfs rebuild {shlex.quote(str(store))} '
                f'{shlex.quote(str(store / "catalog.new"))} --install.'
            )
        raise


def _of_catalog(error: BaseException | None) -> bool:
    """Whether it is the catalog that is damaged, at the end of what led to this error."""
    while error is not None:
        if str(error).startswith('catalog'):
            return True
        error = error.__cause__
    return False


def named_snapshot(reader: Reader, text: str) -> Snapshot:
    """Return the standing snapshot VOLUME@NAME. Refused(ENOENT)."""
    from snapfs.rescue.export import find_snapshot
    from snapfs.service.commands import parse_snapshot

    found = find_snapshot(reader, *parse_snapshot(text))
    if found is None:
        raise Refused(errno.ENOENT, f'there is no snapshot {text}', advice='See: snapfs snapshot list')
    return found


@contextmanager
def advised(title: str) -> Iterator[None]:
    """Whoever meets damage in a snapshot's tree is told what to do about it."""
    try:
        yield
    except Corrupt as error:
        if _of_catalog(error):
            raise  # no recovery helps: `_led_out`
        raise Corrupt(f'{title}: {error}', advice=f'Next: snapfs recover {title}') from error


def _write(reader: Reader, snapshot: Snapshot, target: BinaryIO) -> dict[str, Any]:
    from snapfs.rescue.export import export_lines, first_line, last_line
    from snapfs.rescue.merkle import Merkle

    merkle = Merkle()
    target.write(first_line(snapshot, reader.uuid) + b'\n')
    with advised(snapshot.title):
        for line in export_lines(reader, snapshot):
            merkle.add(line.text)
            target.write(line.text + b'\n')
    target.write(last_line(merkle) + b'\n')
    target.flush()
    return {'snapshot': snapshot.title, 'lines': merkle.lines, 'root': merkle.root().hex()}
