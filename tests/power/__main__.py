"""Cut the power so often: python -m tests.power --kind ext4 --cuts 200 --seed 0."""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

from tests.power.cycle import Machine, PowerLost
from tests.power.disk import MAKE, Unable

CUTS_PER_STORE = 25  # then a fresh one: early and late lives of a store


def cut(kind: str, cuts: int, seed: int) -> dict[str, int]:
    """Cut the power `cuts` times, on as many stores as that takes; return what was counted."""
    total: dict[str, int] = {}
    done = 0
    while done < cuts:
        place = Path(tempfile.mkdtemp(prefix='snapfs-power-'))
        machine = None
        try:
            machine = Machine(place, kind, seed)
            for _ in range(min(CUTS_PER_STORE, cuts - done)):
                machine.cycle()
                done += 1
        finally:
            if machine is not None:
                machine.end()
            shutil.rmtree(place, ignore_errors=True)
            for name, number in (machine.counts if machine is not None else {}).items():
                total[name] = total.get(name, 0) + number
        seed += 1
    return total


def main() -> int:
    """Return 0 when nothing was lost, 1 when something was, 8 when this machine cannot tell."""
    parser = argparse.ArgumentParser(prog='python -m tests.power', description=__doc__)
    parser.add_argument('--kind', choices=sorted(MAKE), action='append')
    parser.add_argument('--cuts', type=int, default=20)
    parser.add_argument('--seed', type=int, default=0)
    options = parser.parse_args()
    for kind in options.kind or sorted(MAKE):
        try:
            counts = cut(kind, options.cuts, options.seed)
        except Unable as error:
            print(f'cannot cut the power: {error}', file=sys.stderr)
            return 8
        except PowerLost as error:
            print(error, file=sys.stderr)
            return 1
        print(f'{kind}: ' + ', '.join(f'{number} {name}' for name, number in counts.items()), flush=True)
    return 0


if __name__ == '__main__':
    sys.exit(main())
