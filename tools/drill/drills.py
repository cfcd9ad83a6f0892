"""Tool: drills: what a drill is, and the list of all. Pure."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from snapfs.errors import Invalid
from tools.drill.lab import Lab


@dataclass(frozen=True, slots=True)
class Drill:
    """One accident. `story`: what happened, and where; `fault`: what the drill does; `guards`: what must
    stop it, by name; `play`: does it, and raises when it does not end as it must."""

    name: str
    story: tuple[str, str]
    fault: str
    guards: tuple[str, ...]
    play: Callable[[Lab], Awaitable[None]]


def drills() -> dict[str, Drill]:
    """Return all drills by name, in the order in which they are told."""
    from tools.drill import counting, crashes, ebs2011, races, things

    every = (*ebs2011.DRILLS, *counting.DRILLS, *races.DRILLS, *things.DRILLS, *crashes.DRILLS)
    return {drill.name: drill for drill in every}


def named(name: str) -> Drill:
    """Return one drill. Invalid when there is none of that name."""
    found = drills().get(name)
    if found is None:
        raise Invalid(f'there is no drill {name!r}', advice='See: snapfs drill --list.')
    return found
