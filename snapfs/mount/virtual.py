"""L5 virtual: extended attributes of a snapshot's top directory that tell of its health. Event loop only.

They are answered and not listed, so that no copy takes them along: user.snapfs.verified says how much of the
snapshot was verified and since when, user.snapfs.damage whether something in it is known to be lost."""

from __future__ import annotations

from typing import TYPE_CHECKING

from snapfs import limits
from snapfs.mount.control import damaged_text, verified_text

if TYPE_CHECKING:
    from snapfs.volume.engine import Engine

PREFIX = b'user.snapfs.'
VERIFIED, DAMAGE = PREFIX + b'verified', PREFIX + b'damage'


def attribute(engine: Engine, view: int, ino: int, name: bytes) -> bytes | None:
    """Return the value of a virtual attribute, or None when there is none of that name there."""
    if ino != limits.INO_ROOT or name not in (VERIFIED, DAMAGE):
        return None
    row = next((one for one in engine.snapshot_list() if one.number == view), None)
    if row is None:
        return None
    if name == DAMAGE:
        return damaged_text(row).encode()
    return verified_text(engine.coverage().of(row.epoch)).encode()
