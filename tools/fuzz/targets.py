"""Tool fuzz, targets: all of them, by name."""

from __future__ import annotations

from snapfs.errors import Invalid
from tools.fuzz import binary, messages, texts
from tools.fuzz.target import Target

TARGETS: dict[str, Target] = {one.name: one for one in (*binary.TARGETS, *texts.TARGETS, *messages.TARGETS)}


def find(name: str) -> list[Target]:
    """Return the target of this name, or all of them for 'all'. Invalid."""
    if name == 'all':
        return list(TARGETS.values())
    if name not in TARGETS:
        raise Invalid(f'there is no target {name!r}', advice=f'There are: {", ".join(TARGETS)}.')
    return [TARGETS[name]]
