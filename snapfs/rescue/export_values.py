"""L4 export values: what an export is asked, and what it answers. Pure; any thread."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class ExportSpec:
    """Which tree to list, and where to. `view`: of the snapshot; `name`: as people call it."""

    store: Path
    uuid: bytes
    root: bytes | None
    view: int
    name: str
    out: Path


@dataclass(frozen=True, slots=True)
class Exported:
    """The Merkle root, and how many names there are."""

    root: bytes
    entries: int
