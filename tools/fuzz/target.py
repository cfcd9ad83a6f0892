"""Tool fuzz, target: what is fuzzed, and what counts as an answer. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from snapfs.errors import Corrupt
from tools.fuzz.mutate import mutate_bytes

MESSAGE_CHARACTERS_MAX = 5000  # of an error: it may name a file, or quote a word, but not the whole input
INPUT_BYTES_MAX = 4096  # of one input; larger ones cost time and show little more
UNSEALED = 8  # one mutation in so many stays as it is: checksums are checked, too


class Broken(AssertionError):
    """A reader took something that does not hold what it must."""


def unsealed(data: bytes) -> bytes:
    """Return the bytes as they are: a structure without a checksum."""
    return data


@dataclass(frozen=True, slots=True)
class Target:
    """One structure. `read` takes the bytes, or raises one of `errors`, or Broken. `seal` makes checksums
    right; `mutate` knows the shape. `seeds` are whole. `bytes_max` of an input."""

    name: str
    read: Callable[[bytes], object]
    seeds: Callable[[], list[bytes]]
    seal: Callable[[bytes], bytes] = unsealed
    mutate: Callable[[bytes, Random], bytes] = mutate_bytes
    errors: tuple[type[Exception], ...] = (Corrupt,)
    bytes_max: int = INPUT_BYTES_MAX


def answers(target: Target, data: bytes) -> bool:
    """Return whether the reader took the bytes. Whatever else it raises goes through."""
    try:
        target.read(data)
    except target.errors as error:
        text = str(error)
        if not text or len(text) > MESSAGE_CHARACTERS_MAX:
            raise Broken(f'{target.name}: an error of {len(text)} characters') from error
        return False
    return True


def mutated(target: Target, data: bytes, chance: Random) -> bytes:
    """Return the bytes with some damage, mostly sealed again."""
    out = target.mutate(data, chance)[: target.bytes_max]
    return out if chance.randrange(UNSEALED) == 0 else target.seal(out)


def must(condition: object, what: str) -> None:
    """Raise Broken unless the condition holds."""
    if not condition:
        raise Broken(what)
