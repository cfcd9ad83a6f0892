"""Random damage to a store, and the way back by commands alone: python -m tests.wild [FROM] [TO]

A seed decides what is broken, and whether a command is killed on its way. Prints what must not be; 1 when
anything was printed."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from tests.wild.ways import Wild


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(prog='python -m tests.wild', description='Random damage, real commands.')
    parser.add_argument('first', type=int, nargs='?', default=0)
    parser.add_argument('last', type=int, nargs='?', default=20)
    options = parser.parse_args()
    wrong = 0
    with tempfile.TemporaryDirectory(prefix='snapfs-wild-') as folder:
        wild = Wild(Path(folder))
        try:
            for seed in range(options.first, options.last):
                for text in (*wild.damaged(seed), *wild.killed(seed)):
                    wrong += 1
                    print(f'seed {seed}: {text}', flush=True)
        finally:
            wild.end()
    print(f'{options.last - options.first} seeds, {wrong} things that must not be')
    return 1 if wrong else 0


if __name__ == '__main__':
    sys.exit(main())
