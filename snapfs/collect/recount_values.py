"""L4 recount values: what recount 1 is asked, and what it answers. Pure; any thread.

Apart from the recount, so that the daemon, which only asks, need not load what counts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from snapfs.collect.roots import RootRow, RootSet

MODES = ('batch', 'what-if', 'leaks')
CONDEMNED_FILE, RETURNED_FILE = 'condemned.part', 'returned.part'


@dataclass(frozen=True, slots=True)
class RecountSpec:
    """What to recount. `expected`: all roots as the daemon froze them at the horizon, roots.root_set(query).

    `deleted`: the batch's requests as ('request', number); for 'what-if' also ('snapshot', view number) and
    ('volume', number). `control`: ids of the canary's chunks. `out`: an existing directory for the results
    and for a temporary file. Mode 'batch' writes files there; 'what-if' only answers; 'leaks' takes all
    rows of the index as candidates and writes what nobody reaches.
    """

    store: Path
    uuid: bytes
    expected: RootSet
    deleted: tuple[tuple[str, int], ...]
    control: tuple[bytes, ...]
    out: Path
    mode: str = 'batch'


@dataclass(frozen=True, slots=True)
class Share:
    """Candidates of one root or request: chunks, and bytes in packs, record headers included.

    Of what a root keeps, whole subtrees are not gone into: `shared` counts the references in these, their
    top nodes' own included.
    """

    kind: str
    number: int
    name: str
    chunks: int
    bytes: int
    shared: int = 0


@dataclass(frozen=True, slots=True)
class Alarm:
    """Evidence that a recount was wrong. `what`: 'quarantine' or 'freed' (a root needs what is only there),
    or 'blind' (a chunk of the canary was not found alive). `who` is the name of a root."""

    what: str
    id: bytes
    who: str


@dataclass(frozen=True, slots=True)
class Recount:
    """The result. With an alarm nothing is condemned and no file was written.

    `nodes`, `items`, `references` count what standing roots reach, shared parts once; `claimed` is the sum of
    the references that the rows of the standing roots claim, shared parts as often as they are shared.
    `seen`: the standing roots that were walked. `kept`: what stays, by the first root that keeps it;
    `requests`: what is condemned, by the first request that reaches it. `returned`: candidates that only
    requests of resting batches, pins and recoveries keep: somebody has to ask for them again. Digests are
    those of the files `condemned.part` and `returned.part`: sorted ids back to back.
    """

    horizon: int
    epoch: int
    roots: int
    nodes: int
    items: int
    references: int
    claimed: int
    candidates: int
    condemned: int
    condemned_bytes: int
    returned: int
    returned_bytes: int
    kept: tuple[Share, ...]
    requests: tuple[Share, ...]
    condemned_digest: bytes
    returned_digest: bytes
    alarm: tuple[Alarm, ...]
    seen: tuple[RootRow, ...]
