"""Tool: make one precise damage in a store, to see what finds it. It destroys: never point it at a store
you need.

    python -m tools.breakit --list
    python -m tools.breakit STORE KIND --destroy UUID

It works on the store itself and wants the store's uuid as a sign that you mean it. Deterministic by --seed.
Exit codes: 0 the damage was made, 2 wrong call, 11 somebody has the store open."""

from __future__ import annotations

import argparse
import fcntl
import sys
from collections.abc import Sequence
from pathlib import Path

import tools.breaking.evidence
import tools.breaking.trees
from snapfs.errors import Held, SnapfsError
from tools.breaking.edit import Patient
from tools.breaking.kinds import KINDS

assert tools.breaking.evidence and tools.breaking.trees  # they enter their kinds


def break_it(store: Path, name: str, seed: int) -> list[str]:
    """Make a damage; return what was done. Invalid when the store has nothing to do it to."""
    patient = Patient(store, seed)
    try:
        KINDS[name].make(patient)
    finally:
        if name != 'catalog-garbage' and name != 'catalog-gone':
            patient.close()
        else:
            patient.db.close()
    return patient.said


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(prog='breakit', description='Damage a store in one precise way.')
    parser.add_argument('store', nargs='?', type=Path, metavar='STORE')
    parser.add_argument('kind', nargs='?', choices=sorted(KINDS), metavar='KIND')
    parser.add_argument('--list', action='store_true', help='list the kinds of damage')
    parser.add_argument(
        '--destroy', metavar='UUID', default='', help='the uuid of the store that is to be damaged'
    )
    parser.add_argument('--seed', type=int, default=1)
    options = parser.parse_args(argv)
    if options.list:
        for one in KINDS.values():
            print(f'{one.name:20} {one.what}')
        return 0
    if options.store is None or options.kind is None:
        parser.error('give STORE and KIND, or --list')
    try:
        with open(options.store / 'lock', 'rb') as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise Held(f'{options.store} is in use', advice='Unmount it first.') from None
            patient = Patient(options.store, options.seed)
            patient.db.close()
            if options.destroy.replace('-', '') != patient.superblock.uuid.hex():
                parser.error(f'to damage this store for good, add --destroy {patient.superblock.uuid.hex()}')
            for text in break_it(options.store, options.kind, options.seed):
                print(text)
    except (SnapfsError, OSError) as error:
        print(f'breakit: {error}', file=sys.stderr)
        return error.exit_code if isinstance(error, SnapfsError) else 1
    return 0


if __name__ == '__main__':
    sys.exit(main())
