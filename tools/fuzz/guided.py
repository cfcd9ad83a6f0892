"""Tool fuzz, guided: one target under atheris, in a process of its own: libFuzzer ends it. See the package.

python -m tools.fuzz.guided TARGET [options of libFuzzer] CORPUS...
"""

from __future__ import annotations

import resource
import sys
from random import Random

INSTRUMENTED = ['snapfs', 'tools.certificate']
MEMORY_BYTES_MAX = 64 << 20  # that one input may add to the peak of the process


def main(argv: list[str]) -> None:
    """Fuzz until libFuzzer has enough; it then ends the process."""
    import atheris

    with atheris.instrument_imports(include=INSTRUMENTED):
        from tools.fuzz.targets import find
    from tools.fuzz.target import Broken, answers, mutated

    target = find(argv[0])[0]
    answers(target, target.seeds()[0])  # what is imported late is not the input's memory
    runs = 0

    def one(data: bytes) -> None:
        nonlocal runs
        runs += 1
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        answers(target, data)
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10
        if grown > MEMORY_BYTES_MAX and runs > 1:
            raise Broken(f'{target.name}: {grown >> 20} MiB for {len(data)} bytes')

    def mutate(data: bytes, most: int, seed: int) -> bytes:
        chance = Random(seed)
        if chance.randrange(2):
            return mutated(target, data, chance)[:most]
        out = bytes(atheris.Mutate(data, min(most, target.bytes_max)))
        return (out if chance.randrange(8) == 0 else target.seal(out))[:most]

    atheris.Setup([sys.argv[0], *argv[1:]], one, custom_mutator=mutate)
    atheris.Fuzz()


if __name__ == '__main__':
    main(sys.argv[1:])
