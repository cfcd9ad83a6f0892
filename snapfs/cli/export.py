"""L7 export: the commands `snapfs export` and `snapfs verify`. Main thread."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import click

from snapfs.cli import output
from snapfs.errors import Invalid


@click.command('export', epilog='Example: snapfs export home@monday -o monday.export')
@click.argument('snapshot', metavar='VOLUME@NAME')
@click.option('-o', 'out', metavar='FILE', required=True, help='Where the list goes; must not be there.')
@output.store_options
def export_command(snapshot: str, out: str) -> None:
    """List everything in a snapshot, with one hash over it (a Merkle root).

    Keep the list, or only the hash, where the store is not. `snapfs verify` rechecks the store against it
    later, and so does a short script that needs no snapfs: snapfs verify --script.
    """
    found = output.call_watched('export', snapshot=snapshot, out=os.path.abspath(out))
    output.show(found, lambda one: output.say(f'{one["entries"]} names, root {one["root"]}'))


@click.command('verify', epilog='Example: snapfs verify monday.export')
@click.argument('file', metavar='[FILE]', required=False)
@click.option('--root', metavar='HASH', help='The root that the list must have.')
@click.option('--script', is_flag=True, help='Print a script that does the same without snapfs.')
@output.store_options
def verify_command(file: str | None, root: str | None, script: bool) -> int:
    """Recheck a snapshot from the raw store: every chunk that an export lists is read and hashed.

    The exit code is 0 when all is there and right, 1 otherwise.
    """
    source = _source()
    if script:
        output.say(source.rstrip('\n'))
        return 0
    if file is None:
        raise Invalid('give the FILE of an export, or --script')
    if not os.path.isfile(file):
        raise Invalid(f'there is no file {file}')
    from snapfs.service import client

    store, _as_json = click.get_current_context().obj
    target = client.locate(store, os.environ)
    ran = subprocess.run(
        [sys.executable, '-c', source, file, str(target.store)], capture_output=True, text=True, check=False
    )
    lines = ran.stdout.splitlines()
    if ran.returncode not in (0, 1) or not lines:
        raise Invalid(f'{file} is no export that can be read: {ran.stderr.strip().splitlines()[-1:]}')
    good = ran.returncode == 0 and (root is None or lines[-1].split()[1] == root.lower())
    value = {
        'good': good,
        'root': lines[-1].split()[1],
        'wrong': [one for one in lines if one.startswith('WRONG')],
    }
    output.show(value, _render)
    return 0 if good else 1


def _source() -> str:
    import tools

    return (Path(tools.__path__[0]) / 'verify_export.py').read_text()


def _render(value: Any) -> None:
    for line in value['wrong']:
        output.say(line)
    output.say(f'root {value["root"]}: {"all is there and right" if value["good"] else "NOT as exported"}')
