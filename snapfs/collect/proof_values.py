"""L4 proof values: what a proof is asked, and what it answers. Pure; any thread.

Apart from the proof, so that the daemon, which only asks, need not load what looks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class ProofSpec:
    """What to prove. `epoch`: of the commit that ended the batch; an older catalog is Corrupt. `batch`:
    the batch it is about, or None. `hashed`: read every data chunk, too, and verify its id."""

    store: Path
    uuid: bytes
    epoch: int = 0
    batch: int | None = None
    hashed: bool = False


@dataclass(frozen=True, slots=True)
class ProvedRoot:
    """A root as the catalog had it. `root`: hexadecimal, '' for none; `items`, `refs`: totals below it;
    `resting`: the batch in quarantine that its request is in, or None. Requests that nobody can take back
    are no roots."""

    kind: str
    number: int
    name: str
    root: str
    items: int
    refs: int
    resting: int | None


@dataclass(frozen=True, slots=True)
class Missing:
    """A reference that does not resolve: `by` is a node (hexadecimal) or a row, `why` the reason."""

    id: bytes
    by: str
    why: str


@dataclass(frozen=True, slots=True)
class Proof:
    """What was seen. It holds (`passed`) when nothing is missing. `missing`: the first COLLECT_ALARMS_MAX
    of `missing_count`. `references`: those of all nodes, each node counted once; `chunks`: different data
    chunks."""

    uuid: bytes
    batch: int | None
    epoch: int
    hashed: bool
    roots: tuple[ProvedRoot, ...]
    nodes: int
    references: int
    chunks: int
    packs: int
    missing: tuple[Missing, ...]
    missing_count: int

    @property
    def passed(self) -> bool:
        """Whether everything is there."""
        return self.missing_count == 0
