"""Tool: drills: the list of all. Pure."""

from __future__ import annotations

from snapfs.errors import Invalid
from tools.drill import counting, crashes, ebs2011, races, things
from tools.drill.drill import Drill

_EVERY = (*ebs2011.DRILLS, *counting.DRILLS, *races.DRILLS, *things.DRILLS, *crashes.DRILLS)


def drills() -> dict[str, Drill]:
    """Return all drills by name, in the order in which they are told."""
    return {drill.name: drill for drill in _EVERY}


def named(name: str) -> Drill:
    """Return one drill. Invalid when there is none of that name."""
    found = drills().get(name)
    if found is None:
        raise Invalid(f'there is no drill {name!r}', advice='See: snapfs drill --list.')
    return found
