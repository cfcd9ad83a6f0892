"""L4 why values: what `why` is asked, and what it answers. Pure; any thread.

Apart from what looks, so that the daemon, which only asks, need not load it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class WhySpec:
    """What is asked: these chunks; or, with `root` (kind and number of a root) and `ino`, those of a file."""

    store: Path
    uuid: bytes
    ids: tuple[bytes, ...] = ()
    root: tuple[str, int] | None = None
    ino: int = 0


@dataclass(frozen=True, slots=True)
class Keeper:
    """A root that reaches some of the chunks. `batch`: the resting batch that this request is in. `files`:
    paths in a volume, the first WHY_FILES_MAX of them."""

    kind: str
    number: int
    name: str
    batch: int | None
    chunks: int
    bytes: int
    files: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Where:
    """How many of the chunks, and bytes in packs with record headers, a table of the catalog has."""

    table: str
    chunks: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Why:
    """The answer. `chunks`: how many different ones were asked about; `whole`: a file had no more."""

    epoch: int
    chunks: int
    whole: bool
    where: tuple[Where, ...]
    keepers: tuple[Keeper, ...]
